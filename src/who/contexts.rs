//! The thread that reads the process contexts of other processes ([`super::process_context`]): their memory may be slow
//! to come, which calls must not wait for. Thin code.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use super::host;
use super::process_context::{self, HEADER, Published, Unreadable};
use crate::model::call::{Image, ImageKey};

/// The first calls of a process wait so long to be told with what it has published, and no longer.
const PATIENCE: Duration = Duration::from_millis(100);
/// The kernel side notes a process's publications once in half of this (bpf/publish.h): all of them are there by then.
const PAUSE: Duration = Duration::from_millis(20);
/// A context that is being changed is read so often.
const TRIES: u32 = 3;
/// So many processes may wait to be looked at.
const MOST_ASKED: usize = 4096;
/// So much of a list of mappings is read.
const MOST_MAPS: u64 = 16 << 20;

#[derive(Debug)]
struct Asked {
    image: ImageKey,
    /// In the process's own pid namespace, which may be this program's too.
    vpid: u32,
    environ_at: u64,
    /// Not before.
    at: Instant,
}

/// The reading thread, as the driver sees it.
#[derive(Debug)]
pub struct Contexts {
    asked: SyncSender<Asked>,
    answers: Receiver<Answer>,
    /// Images whose first calls wait, and until when.
    awaited: HashMap<ImageKey, Instant>,
    /// Contexts that could not be read, by the reason.
    unreadable: BTreeMap<Unreadable, u64>,
}

type Answer = (ImageKey, Result<Option<Published>, Unreadable>);

impl Contexts {
    /// Starts the thread; it ends when this is gone.
    pub fn start() -> std::io::Result<Self> {
        let (asked, asks) = mpsc::sync_channel(MOST_ASKED);
        let (send, answers) = mpsc::channel();
        thread::Builder::new().name("mqspan-contexts".into()).spawn(move || read_all(&asks, &send))?;
        Ok(Self { asked, answers, awaited: HashMap::new(), unreadable: BTreeMap::new() })
    }

    /// An image has made its first call.
    pub fn first_call(&mut self, image: &Image) {
        let now = Instant::now();
        if self.ask(image, now) {
            self.awaited.insert(image.key, now + PATIENCE);
        }
    }

    /// An image has published something.
    pub fn published(&self, image: &Image) {
        self.ask(image, Instant::now() + PAUSE);
    }

    fn ask(&self, image: &Image, at: Instant) -> bool {
        let Image { key, vpid, environ_at, .. } = *image;
        // Without the address nothing would tell the image from a later one.
        environ_at != 0 && self.asked.try_send(Asked { image: key, vpid, environ_at, at }).is_ok()
    }

    /// Whether the image's calls are to wait.
    pub fn awaits(&mut self, image: &ImageKey) -> bool {
        let until = self.awaited.get(image).copied();
        let waits = until.is_some_and(|until| Instant::now() < until);
        if until.is_some() && !waits {
            self.awaited.remove(image);
        }
        waits
    }

    /// What was read since the last time.
    pub fn answers(&mut self) -> Vec<(ImageKey, Published)> {
        let mut published = Vec::new();
        while let Ok(answer) = self.answers.try_recv() {
            published.extend(self.take(answer));
        }
        published
    }

    /// Waits for what is under way, no longer than calls do; then no more is read. Says what could not be.
    pub fn settle(&mut self) -> Vec<(ImageKey, Published)> {
        let mut published = self.answers();
        while let Some(until) = self.awaited.values().max() {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(answer) => published.extend(self.take(answer)),
                Err(_) => self.awaited.clear(),
            }
        }
        for (why, count) in std::mem::take(&mut self.unreadable) {
            warn!("{count} times a process context counted as not published: {why}");
        }
        published
    }

    fn take(&mut self, (image, answer): Answer) -> Option<(ImageKey, Published)> {
        self.awaited.remove(&image);
        match answer {
            Ok(published) => Some((image, published?)),
            Err(why) => {
                *self.unreadable.entry(why).or_default() += 1;
                None
            }
        }
    }
}

/// Reads in the order in which it is due.
fn read_all(asks: &Receiver<Asked>, answers: &Sender<Answer>) {
    let mut waiting: Vec<Asked> = Vec::new();
    loop {
        let due = waiting.iter().map(|asked| asked.at).min();
        let wait = due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
        match asks.recv_timeout(wait) {
            Ok(asked) => waiting.push(asked),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        for asked in waiting.extract_if(.., |asked| asked.at <= now) {
            if answers.send((asked.image, read(&asked))).is_err() {
                return;
            }
        }
    }
}

/// What the image has published; None where it has not, or is no more.
fn read(asked: &Asked) -> Result<Option<Published>, Unreadable> {
    // A sidecar in the pid namespace of its pod sees processes by their numbers there.
    match read_of(asked, asked.image.pid)? {
        None if asked.vpid != asked.image.pid => read_of(asked, asked.vpid),
        published => Ok(published),
    }
}

/// The same of the process that has this id, if it is the one.
fn read_of(asked: &Asked, pid: u32) -> Result<Option<Published>, Unreadable> {
    let is_it = || host::is_image(pid, &asked.image, asked.environ_at);
    // Opened first: it stays the memory of this image. What is asked after that shows whose it is.
    let memory = match File::open(format!("/proc/{pid}/mem")) {
        Ok(memory) => memory,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(Unreadable::Memory),
        Err(_) => return Ok(None),
    };
    let Some(at) = is_it().then(|| find(pid)).flatten() else { return Ok(None) };
    for attempt in 1.. {
        match read_at(&memory, at) {
            Ok(published) => return Ok(Some(published)),
            Err(Unreadable::Changing) if attempt < TRIES => thread::sleep(PAUSE),
            // It may have ended meanwhile.
            Err(_) if !is_it() => return Ok(None),
            Err(why) => return Err(why),
        }
    }
    Ok(None)
}

fn find(pid: u32) -> Option<u64> {
    let maps = File::open(format!("/proc/{pid}/maps")).ok()?;
    let lines = BufReader::with_capacity(1 << 16, maps.take(MOST_MAPS)).split(b'\n').map_while(Result::ok);
    lines.into_iter().find_map(|line| process_context::mapping(std::str::from_utf8(&line).ok()?))
}

fn read_at(memory: &File, at: u64) -> Result<Published, Unreadable> {
    let header = || {
        let mut bytes = [0; HEADER];
        memory.read_exact_at(&mut bytes, at).map_err(|_| Unreadable::Memory)?;
        process_context::header(&bytes)
    };
    let before = header()?;
    let mut payload = vec![0; before.len];
    memory.read_exact_at(&mut payload, before.payload).map_err(|_| Unreadable::Memory)?;
    match header() {
        Ok(after) if after == before => process_context::payload(&payload),
        _ => Err(Unreadable::Changing),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// Prevents this process's context from being missed, and that of another image from being taken for it.
    #[test]
    fn this_process() {
        let file = nix::sys::memfd::memfd_create("OTEL_CTX", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let payload = [0x0a, 0x0f, 0x0a, 0x0d, 0x0a, 0x01, b'k', 0x12, 0x08, 0x0a, 0x06];
        let payload = [&payload[..], b"a text"].concat();
        nix::unistd::ftruncate(&file, 4096).unwrap();
        // SAFETY: a new mapping of a file that is long enough; nobody else writes to it.
        let mapped = unsafe {
            let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            let at = libc::mmap(std::ptr::null_mut(), 4096, access, shared, file.as_raw_fd(), 0);
            std::slice::from_raw_parts_mut(at.cast::<u8>(), 4096)
        };
        mapped[..8].copy_from_slice(b"OTEL_CTX");
        mapped[8..12].copy_from_slice(&2u32.to_ne_bytes());
        mapped[12..16].copy_from_slice(&(payload.len() as u32).to_ne_bytes());
        let at = mapped.as_ptr() as u64 + 32;
        mapped[24..32].copy_from_slice(&at.to_ne_bytes());
        mapped[32..32 + payload.len()].copy_from_slice(&payload);
        let pid = std::process::id();
        let image = ImageKey { pid, started_ns: host::started_ns(pid).unwrap(), exec_id: 0 };
        let asked = |environ_at| Asked { image, vpid: pid, environ_at, at: Instant::now() };
        let environ_at = host::environ_at(pid).unwrap();
        assert_eq!(read(&asked(environ_at)), Err(Unreadable::Changing), "its time is 0");
        mapped[16..24].copy_from_slice(&7u64.to_ne_bytes());
        let published = read(&asked(environ_at)).unwrap().unwrap();
        assert_eq!(published.attributes.len(), 1, "{published:?}");
        assert_eq!(read(&asked(environ_at + 8)), Ok(None), "another image");

        let inside = Asked { image: ImageKey { pid: u32::MAX, ..image }, ..asked(environ_at) };
        assert_eq!(read(&inside), Ok(Some(published.clone())), "by its number in this pid namespace");

        let mut contexts = Contexts::start().unwrap();
        contexts.first_call(&host::image(image));
        assert!(!contexts.awaits(&image), "nothing to tell it by");
        contexts.first_call(&Image { environ_at, ..host::image(image) });
        assert_eq!(contexts.settle(), [(image, published)]);
        assert!(!contexts.awaits(&image));
    }
}
