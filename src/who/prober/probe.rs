//! A probe: what a worker reads of one process, in steps. Thin code. Any step may hang: memory, files and locks are those of
//! another process. What can be kept from hanging in a way that not even a signal ends is kept from it: no page is read
//! that comes from a file's mapping, and no file of a file system that a process serves (FUSE) is opened.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use super::super::cgroup;
use super::super::environment;
use super::super::process_context::{self, ContextHeader, HEADER, Published, Unreadable};
use super::super::registry::{ImageFacts, Inquiry, Subject};
use super::files::{ProcessFolder, read_memory};
use super::findings::{Found, Progress, Remembered, mapped_pages, memory_device};
use super::maps::{Mapping, MapsReader, Step};
use super::schedule::Kind;
use super::threads::Files;
use super::watch::Swept;
use crate::model::call::{Image, Root};

/// The kernel side notes a process's publications once in half of this (bpf/publish.h): all of them are there by then.
pub const PAUSE: Duration = Duration::from_millis(20);
/// A context that is being changed is read so often.
const TRIES: u32 = 3;
/// As much of an environment is read.
const MOST_ENVIRON: usize = 1 << 20;
/// As many processes are seen to at one step of a sweep.
const SWEEP_STEP: usize = 64;
/// As many threads are looked at for the one that called.
const MOST_THREADS: usize = 64;

/// What is read, as far as it has got.
#[derive(Debug)]
pub enum Probe {
    /// The facts about a new image, then what it has published.
    Introduction(Inquiry),
    /// What an image has published.
    Publication(Subject),
    /// Looks for its mapping.
    Context { subject: Subject, memory: File, maps: MapsReader },
    /// The mapping is at this address; looks where the payload lies.
    Payload { subject: Subject, memory: File, maps: MapsReader, at: u64, header: ContextHeader, tries: u32 },
    /// What /proc says of an image, and the name that its thread goes by.
    Description { subject: Subject, comm: Vec<u8> },
    /// Where threads publish.
    Thread(Subject),
    /// The same, looking through the files.
    Files(Box<Files>),
    /// Whether these are still there.
    Sweep(Vec<Subject>),
}

impl Probe {
    /// Which kind of ask it answers.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Introduction(_) => Kind::Introduction,
            Self::Publication(_) | Self::Context { .. } | Self::Payload { .. } => Kind::Publication,
            Self::Description { .. } => Kind::Description,
            Self::Thread(_) | Self::Files(_) => Kind::Thread,
            Self::Sweep(_) => Kind::Sweep,
        }
    }

    /// Makes a step; what it finds is given to `out`.
    pub fn step(self, remembered: &Arc<Remembered>, out: &mut impl FnMut(Found)) -> (Option<Self>, Progress) {
        match self {
            Self::Introduction(inquiry) => introduce(&inquiry, remembered, out),
            Self::Publication(subject) => open_context(subject, out),
            Self::Context { subject, memory, maps } => find_context(subject, memory, maps, out),
            Self::Payload { .. } => self.read_payload(out),
            Self::Description { subject, comm } => {
                if let Some(image) = describe(&subject, &comm) {
                    out(Found::Described(Box::new(image)));
                }
                (None, Progress::Done)
            }
            Self::Thread(subject) => match Files::open(subject) {
                Some(files) => (Some(Self::Files(Box::new(files))), Progress::More(Duration::ZERO)),
                None => (None, Progress::Done),
            },
            Self::Files(mut files) => match files.step(remembered, out) {
                Progress::Done => (None, Progress::Done),
                more => (Some(Self::Files(files)), more),
            },
            Self::Sweep(mut subjects) => {
                for subject in subjects.split_off(subjects.len().saturating_sub(SWEEP_STEP)) {
                    let folder = ProcessFolder::of(&subject);
                    let mapped = folder.as_ref().ok().and_then(mapped_pages);
                    out(match folder {
                        Err(error) if error.kind() != ErrorKind::PermissionDenied => Found::Ended(subject.image),
                        _ => Found::Swept(Swept { image: subject.image, mapped }),
                    });
                }
                match subjects.is_empty() {
                    true => (None, Progress::Done),
                    false => (Some(Self::Sweep(subjects)), Progress::More(Duration::ZERO)),
                }
            }
        }
    }

    fn read_payload(self, out: &mut impl FnMut(Found)) -> (Option<Self>, Progress) {
        let Self::Payload { subject, memory, mut maps, at, header, tries } = self else {
            return (None, Progress::Done);
        };
        let lies_in = |mapping: &Mapping<'_>| {
            let is_it = mapping.start <= header.payload && header.payload < mapping.end;
            let end = header.payload.saturating_add(header.len as u64);
            is_it.then(|| end <= mapping.end && mapping.is_memory(memory_device()))
        };
        let lies = match header.len {
            0 => Step::Found(true),
            _ => maps.step(lies_in),
        };
        let read = match lies {
            Step::More => {
                return (
                    Some(Self::Payload { subject, memory, maps, at, header, tries }),
                    Progress::More(Duration::ZERO),
                );
            }
            Step::End => Err(Unreadable::Memory),
            Step::Found(false) => Err(Unreadable::Mapped),
            Step::Found(true) => read_at(&memory, at, &header),
        };
        match (read, ProcessFolder::of(&subject)) {
            (Ok(published), _) => out(Found::Context(subject.image, Some(published))),
            // It may have ended meanwhile.
            (_, Err(_)) => out(Found::Ended(subject.image)),
            (Err(Unreadable::Changing), _) if tries < TRIES => return again(subject, memory, at, tries),
            (Err(why), _) => out(Found::Unreadable(why)),
        }
        (None, Progress::Done)
    }
}

/// Another try at a context that was being changed.
fn again(subject: Subject, memory: File, at: u64, tries: u32) -> (Option<Probe>, Progress) {
    let header = ContextHeader { published_ns: 0, payload: 0, len: 0 };
    let Some(maps) = list_of(&subject) else { return (None, Progress::Done) };
    (Some(Probe::Payload { subject, memory, maps, at, header, tries: tries + 1 }), Progress::More(PAUSE))
}

fn list_of(subject: &Subject) -> Option<MapsReader> {
    Some(MapsReader::new(ProcessFolder::of(subject).ok()?.file("maps").ok()?))
}

fn introduce(
    inquiry: &Inquiry,
    remembered: &Arc<Remembered>,
    out: &mut impl FnMut(Found),
) -> (Option<Probe>, Progress) {
    let Inquiry { subject, environ, cgroup, shares_root, rival } = *inquiry;
    if let Some(rival) = rival
        && is_gone(&rival)
    {
        out(Found::Ended(rival.image));
    }
    let owner = || remembered.owner(subject.uid);
    let folder = match ProcessFolder::of(&subject) {
        Ok(folder) => folder,
        Err(_) => {
            if shares_root {
                out(Found::Facts(subject.image, ImageFacts { owner: owner(), ..ImageFacts::default() }));
            }
            out(Found::Ended(subject.image));
            return (None, Progress::Done);
        }
    };
    let facts = ImageFacts {
        said: environ.then(|| whole_environment(&folder, &subject)).flatten().map(|bytes| environment::read(&bytes)),
        cgroup: cgroup
            .then(|| folder.text("cgroup"))
            .flatten()
            .and_then(|lines| Some(cgroup::from_lines(&lines)?.into())),
        owner: (shares_root || folder.shares_root()).then(owner).flatten(),
    };
    // Read of another process, where this one ended meanwhile.
    if folder.runs(&subject) {
        out(Found::Facts(subject.image, facts));
    }
    (Some(Probe::Publication(subject)), Progress::More(Duration::ZERO))
}

/// Whether a process has ended for certain, or runs another image.
fn is_gone(subject: &Subject) -> bool {
    let whole = Subject { environ_at: 0, ..*subject };
    subject.local_pid != 0 && ProcessFolder::of(&whole).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// The environment of a process: from memory that is no file's.
fn whole_environment(folder: &ProcessFolder, subject: &Subject) -> Option<Vec<u8>> {
    let at = match subject.environ_at {
        0 => folder.stat()?.environ_at,
        at => at,
    };
    let mut maps = MapsReader::new(folder.file("maps").ok()?);
    let lies_in =
        |mapping: &Mapping<'_>| (mapping.start <= at && at < mapping.end).then(|| mapping.is_memory(memory_device()));
    let found = loop {
        match maps.step(lies_in) {
            Step::More => {}
            Step::Found(found) => break found,
            Step::End => break false,
        }
    };
    let mut environ = found.then(|| folder.read("environ").ok()).flatten()?;
    environ.truncate(MOST_ENVIRON);
    Some(environ)
}

fn open_context(subject: Subject, out: &mut impl FnMut(Found)) -> (Option<Probe>, Progress) {
    // Opened first: it stays the memory of this image. What is asked after that shows whose it is.
    let memory = ProcessFolder::open(subject.local_pid).and_then(|folder| folder.file("mem"));
    let memory = match memory {
        Ok(memory) => memory,
        Err(error) => {
            out(match error.kind() {
                ErrorKind::PermissionDenied => Found::Unreadable(Unreadable::Memory),
                _ => Found::Ended(subject.image),
            });
            return (None, Progress::Done);
        }
    };
    match list_of(&subject) {
        Some(maps) => (Some(Probe::Context { subject, memory, maps }), Progress::More(Duration::ZERO)),
        None => {
            out(Found::Ended(subject.image));
            (None, Progress::Done)
        }
    }
}

fn find_context(
    subject: Subject,
    memory: File,
    mut maps: MapsReader,
    out: &mut impl FnMut(Found),
) -> (Option<Probe>, Progress) {
    let named = |mapping: &Mapping<'_>| {
        let is_it = mapping.is_readable && process_context::is_name(mapping.name);
        (is_it && mapping.is_memory(memory_device())).then_some(mapping.start)
    };
    let at = match maps.step(named) {
        Step::More => return (Some(Probe::Context { subject, memory, maps }), Progress::More(Duration::ZERO)),
        Step::End => {
            out(Found::Context(subject.image, None));
            return (None, Progress::Done);
        }
        Step::Found(at) => at,
    };
    match header_at(&memory, at) {
        Ok(header) => match list_of(&subject) {
            Some(maps) => {
                let probe = Probe::Payload { subject, memory, maps, at, header, tries: 1 };
                return (Some(probe), Progress::More(Duration::ZERO));
            }
            None => out(Found::Ended(subject.image)),
        },
        Err(Unreadable::Changing) => return again(subject, memory, at, 1),
        Err(why) => out(Found::Unreadable(why)),
    }
    (None, Progress::Done)
}

fn header_at(memory: &File, at: u64) -> Result<ContextHeader, Unreadable> {
    let mut bytes = [0; HEADER];
    read_memory(memory, at, &mut bytes).map_err(|_| Unreadable::Memory)?;
    process_context::header(&bytes)
}

/// Reads the payload, unless it was changed since its place was found.
fn read_at(memory: &File, at: u64, before: &ContextHeader) -> Result<Published, Unreadable> {
    if header_at(memory, at)? != *before {
        return Err(Unreadable::Changing);
    }
    let mut payload = vec![0; before.len];
    read_memory(memory, before.payload, &mut payload).map_err(|_| Unreadable::Memory)?;
    match header_at(memory, at) {
        Ok(after) if after == *before => process_context::payload(&payload),
        _ => Err(Unreadable::Changing),
    }
}

/// What /proc tells of an image whose record was lost. Its environment only where one of its threads still has the name
/// that it called by, which an exec changes.
fn describe(subject: &Subject, comm: &[u8]) -> Option<Image> {
    let folder = ProcessFolder::of(subject).ok()?;
    let status = folder.text("status")?;
    let path = folder.link("exe")?;
    let stat = folder.stat()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let threads = fs::read_dir(format!("/proc/{}/task", subject.local_pid)).ok()?.flatten().take(MOST_THREADS);
    let has_name = threads
        .filter_map(|thread| fs::read(thread.path().join("comm")).ok())
        .any(|name| name.trim_ascii_end() == comm);
    let environ = has_name.then(|| whole_environment(&folder, subject)).flatten();
    let image = Image {
        key: subject.image,
        vpid: field("NSpid:")
            .and_then(|pids| pids.split_ascii_whitespace().last()?.parse().ok())
            .unwrap_or(subject.image.pid),
        local_pid: subject.local_pid,
        parent_pid: stat.parent,
        path: Some(path),
        environ_at: if environ.is_some() { stat.environ_at } else { 0 },
        environ,
        environ_cut: false,
        uid: subject.uid,
        cgroup: None,
        comm: comm.to_vec(),
        root: Root::default(),
    };
    // Read of another process, where this one ended meanwhile.
    folder.runs(&Subject { environ_at: image.environ_at, ..*subject }).then_some(image)
}
