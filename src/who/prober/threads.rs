//! Where the threads of a process hold what they publish of their spans: through the files that it has mapped, in steps.
//! Thin code, as [`super::probe`].

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::super::elf::{self, Access, ElfSource, Publisher, Refused};
use super::super::registry::Subject;
use super::super::tls::{self, Libc, Memory};
use super::files::{ProcessFolder, read_memory};
use super::findings::{Found, Progress, Remembered, mapped_pages, memory_device};
use super::maps::{Mapping, MapsReader, Step, served};

/// As many files of one process are looked at, and so many at a step.
const MOST_FILES: usize = 4096;
const STEP: usize = 16;
/// As many publishers are tried, and as many ranges of memory kept in mind that are not to be read.
const MOST_FOUND: usize = 16;
const MOST_SERVED: usize = 4096;
/// As many devices are told apart; files on others are not opened.
const MOST_DEVICES: usize = 1024;

/// A mapping that is to be looked at.
#[derive(Debug)]
struct Unknown {
    start: u64,
    end: u64,
    offset: u64,
    device: u64,
    inode: u64,
    path: Vec<u8>,
}

/// How far the files of a process have been looked through.
#[derive(Debug)]
pub struct Files {
    subject: Subject,
    folder: ProcessFolder,
    maps: MapsReader,
    mapped: Option<u64>,
    libc: Libc,
    /// By device and number.
    known: HashMap<(u64, u64), Option<Publisher>>,
    /// Whether no process serves the file system on a device.
    safe: HashMap<u64, bool>,
    mounts: Option<[String; 2]>,
    /// Publishers, with how far from its linked addresses each is mapped.
    found: Vec<(u64, Publisher)>,
    /// Memory that whoever serves its file may hold back.
    served: Vec<(u64, u64)>,
}

/// A process's memory, but for what is not to be read.
struct Readable<'a> {
    memory: File,
    served: &'a [(u64, u64)],
}

impl Memory for Readable<'_> {
    fn word(&self, at: u64) -> Option<u64> {
        let mut word = [0; 8];
        let end = at.checked_add(8)?;
        let is_served = self.served.iter().any(|(from, to)| at < *to && *from < end);
        (!is_served && read_memory(&self.memory, at, &mut word).is_ok()).then(|| u64::from_ne_bytes(word))
    }
}

impl ElfSource for File {
    fn read(&self, at: u64, buffer: &mut [u8]) -> Option<()> {
        read_memory(self, at, buffer).ok()
    }
}

/// A device as a mapping names it, `major:minor` in hex.
fn device_number(device: &[u8]) -> Option<u64> {
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    let hex = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
    Some(hex(major)? << 32 | hex(minor)?)
}

fn is_musl(mapping: &Mapping<'_>) -> bool {
    let name = mapping.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(b"ld-musl-") || name.starts_with(b"libc.musl-")
}

/// How far from its linked addresses a file is mapped, by the mapping that holds its first part.
fn bias(publisher: &Publisher, start: u64, end: u64, offset: u64) -> Option<u64> {
    let (first, address) = publisher.first;
    let within = first.checked_sub(offset).filter(|within| *within < end - start)?;
    Some(start.wrapping_add(within).wrapping_sub(address))
}

impl Files {
    /// Begins with a process, if it still runs the image.
    pub fn open(subject: Subject) -> Option<Self> {
        let folder = ProcessFolder::of(&subject).ok()?;
        let mapped = mapped_pages(&folder);
        let maps = MapsReader::new(folder.file("maps").ok()?);
        Some(Self {
            subject,
            folder,
            maps,
            mapped,
            libc: Libc::Glibc,
            known: HashMap::new(),
            safe: HashMap::new(),
            mounts: None,
            found: Vec::new(),
            served: Vec::new(),
        })
    }

    /// Looks at some of the files.
    pub fn step(&mut self, remembered: &Remembered, out: &mut impl FnMut(Found)) -> Progress {
        for _ in 0..STEP {
            match self.next() {
                Step::More => return Progress::More(Duration::ZERO),
                Step::Found(unknown) => self.look_at(unknown, remembered, out),
                Step::End => {
                    self.resolve(out);
                    return Progress::Done;
                }
            }
        }
        Progress::More(Duration::ZERO)
    }

    /// The next mapping of a file that was not looked at, or of a device that is not known.
    fn next(&mut self) -> Step<Unknown> {
        let Self { maps, libc, known, safe, found, served, .. } = self;
        maps.step(|mapping| {
            if mapping.is_memory(memory_device()) {
                return None;
            }
            if is_musl(mapping) {
                *libc = Libc::Musl;
            }
            let Mapping { start, end, offset, inode, .. } = *mapping;
            let device = device_number(mapping.device)?;
            match (safe.get(&device), known.get(&(device, inode))) {
                (Some(false), _) => {
                    if served.len() < MOST_SERVED {
                        served.push((start, end));
                    }
                    return None;
                }
                (Some(true), Some(publisher)) => {
                    if let Some((publisher, bias)) = publisher.and_then(|of| Some((of, bias(&of, start, end, offset)?)))
                        && found.len() < MOST_FOUND
                    {
                        found.push((bias, publisher));
                    }
                    return None;
                }
                (Some(true), None) if !mapping.is_file() || known.len() >= MOST_FILES => return None,
                _ => {}
            }
            Some(Unknown { start, end, offset, device, inode, path: mapping.name.to_vec() })
        })
    }

    fn look_at(&mut self, unknown: Unknown, remembered: &Remembered, out: &mut impl FnMut(Found)) {
        let Unknown { start, end, offset, device, inode, .. } = unknown;
        if !self.is_safe(device) {
            if self.served.len() < MOST_SERVED {
                self.served.push((start, end));
            }
            return;
        }
        if !unknown.path.starts_with(b"/") || self.known.len() >= MOST_FILES {
            return;
        }
        let publisher = self.publisher(&unknown, remembered, out);
        self.known.insert((device, inode), publisher);
        if let Some(publisher) = publisher
            && let Some(bias) = bias(&publisher, start, end, offset)
            && self.found.len() < MOST_FOUND
        {
            self.found.push((bias, publisher));
        }
    }

    /// Whether no process serves the file system on this device, as far as is known: what is mounted nowhere may be.
    fn is_safe(&mut self, device: u64) -> bool {
        if let Some(is_safe) = self.safe.get(&device) {
            return *is_safe;
        }
        if self.safe.len() >= MOST_DEVICES {
            return false;
        }
        let folder = &self.folder;
        let own = || fs::read_to_string("/proc/self/mountinfo").ok();
        let mounts =
            self.mounts.get_or_insert_with(|| [folder.text("mountinfo"), own()].map(Option::unwrap_or_default));
        let (major, minor) = (device >> 32, device & 0xffff_ffff);
        // A disk's file system is the kernel's own, unless root made it otherwise.
        let is_safe = major != 0 || mounts.iter().find_map(|mounts| served(mounts, major, minor)) == Some(false);
        self.safe.insert(device, is_safe);
        is_safe
    }

    /// What is known of a file, else what it says.
    fn publisher(&self, of: &Unknown, remembered: &Remembered, out: &mut impl FnMut(Found)) -> Option<Publisher> {
        let file = self.folder.mapped_file(of.start, of.end, &of.path, of.inode).ok()?;
        let about = file.metadata().ok()?;
        let key = (about.dev(), about.ino(), about.size(), about.mtime(), about.mtime_nsec());
        let classified = remembered.file(&key).unwrap_or_else(|| {
            let classified = elf::classify(&file);
            if classified == Err(Refused::Malformed) {
                out(Found::BadFile);
            }
            remembered.put(key, classified);
            classified
        });
        classified.ok()
    }

    /// All files were looked at: finds where the threads hold it. The executable's symbol goes before a library's.
    fn resolve(&mut self, out: &mut impl FnMut(Found)) {
        self.found.sort_by_key(|(_, publisher)| !matches!(publisher.access, Access::LocalExec { .. }));
        // With more that is not to be read than is kept in mind, nothing is.
        let memory = match self.found.is_empty() || self.served.len() >= MOST_SERVED {
            true => None,
            false => self.folder.file("mem").ok(),
        };
        let slot = memory.and_then(|memory| {
            let memory = Readable { memory, served: &self.served };
            self.found.iter().find_map(|(bias, publisher)| tls::resolve(publisher, *bias, self.libc, &memory))
        });
        out(match self.folder.runs(&self.subject) {
            true => Found::Slot(self.subject.image, slot, self.mapped),
            false => Found::Ended(self.subject.image),
        });
    }
}
