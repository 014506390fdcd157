//! Finds out where the threads of a process hold what they publish of their spans ([`elf`], [`tls`]), on a thread of
//! its own: files and memory of other processes may take their time. Each image that makes calls is looked at once its
//! first call came, some times more while it starts, and when what it has mapped has changed: libraries come late.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use super::elf::{self, Publisher, Refused, Source};
use super::host::is_running;
use super::tls::{self, Libc, Memory};
use crate::model::call::ImageKey;
use crate::model::slot::Slot;

/// After its first call an image is looked at so often; then where its memory has changed, as often as the last.
const TRIES: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(300), Duration::from_secs(1)];
/// So many images are watched; bpf/context.h has as much room.
const MOST: usize = 4096;
/// So many wait to be looked at.
const WAITING: usize = 16_384;
/// So many files are remembered.
const FILES: usize = 16_384;
/// As much of a list of mappings is read, and as many files of one process.
const MOST_MAPS: u64 = 8 << 20;
const MOST_FILES: usize = 4096;

/// The watching thread; it ends once this is dropped and what it does is done.
#[derive(Debug)]
pub struct Publishers {
    images: SyncSender<ImageKey>,
    failures: Arc<AtomicU64>,
}

impl Publishers {
    /// Starts the thread. `put` is told where an image's threads hold it; None: nowhere, or not any more.
    pub fn start(put: impl FnMut(&ImageKey, Option<Slot>) + Send + 'static) -> std::io::Result<Self> {
        let (images, coming) = mpsc::sync_channel(WAITING);
        let failures = Arc::new(AtomicU64::new(0));
        let watch = Watch { put, processes: HashMap::new(), files: HashMap::new(), failures: failures.clone() };
        thread::Builder::new().name("mqspan-publish".into()).spawn(move || watch.run(&coming))?;
        Ok(Self { images, failures })
    }

    /// An image has made its first call.
    pub fn offer(&self, image: ImageKey) {
        if self.images.try_send(image).is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Files that contradict themselves, and images beyond those that are watched.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// A file, as long as it is not written to.
type FileKey = (u64, u64, u64, i64, i64);

struct Watched {
    key: ImageKey,
    tries: usize,
    next: Instant,
    /// What is mapped, as the kernel counts it.
    mapped: Option<u64>,
    slot: Option<Slot>,
}

struct Watch<F> {
    put: F,
    processes: HashMap<u32, Watched>,
    files: HashMap<FileKey, Result<Publisher, Refused>>,
    failures: Arc<AtomicU64>,
}

impl<F: FnMut(&ImageKey, Option<Slot>)> Watch<F> {
    fn run(mut self, coming: &Receiver<ImageKey>) {
        loop {
            let next = self.processes.values().map(|process| process.next).min();
            let rest = next.map_or(Duration::MAX, |next| next.saturating_duration_since(Instant::now()));
            match coming.recv_timeout(rest) {
                Ok(key) => self.add(key),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            let due = |process: &&Watched| process.next <= now;
            for pid in self.processes.values().filter(due).map(|process| process.key.pid).collect::<Vec<_>>() {
                self.look(pid);
            }
        }
    }

    fn add(&mut self, key: ImageKey) {
        if self.processes.get(&key.pid).is_some_and(|known| known.key == key) {
            return;
        }
        self.forget(key.pid);
        if self.processes.len() >= MOST {
            let gone: Vec<u32> = self
                .processes
                .values()
                .map(|known| known.key)
                .filter(|key| !is_running(key))
                .map(|key| key.pid)
                .collect();
            gone.into_iter().for_each(|pid| self.forget(pid));
        }
        if self.processes.len() >= MOST {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.processes.insert(key.pid, Watched { key, tries: 0, next: Instant::now(), mapped: None, slot: None });
    }

    fn forget(&mut self, pid: u32) {
        if let Some(Watched { key, slot: Some(_), .. }) = self.processes.remove(&pid) {
            (self.put)(&key, None);
        }
    }

    fn look(&mut self, pid: u32) {
        let Some(Watched { key, tries, mapped, slot, .. }) = self.processes.get(&pid) else { return };
        let (key, tries, before, known) = (*key, *tries, *mapped, *slot);
        if !is_running(&key) {
            return self.forget(pid);
        }
        let mapped = mapped_pages(pid);
        // Right after the start the linker may be between mapping a library and filling it in.
        let slot = if tries < TRIES.len() || mapped != before { self.find(pid) } else { known };
        // Read before it was another process: what was found may be that one's.
        if !is_running(&key) {
            return self.forget(pid);
        }
        if slot != known {
            (self.put)(&key, slot);
        }
        if let Some(watched) = self.processes.get_mut(&pid) {
            watched.next = Instant::now() + TRIES[tries.min(TRIES.len() - 1)];
            watched.tries = if mapped == before { tries.saturating_add(1) } else { tries.min(1) };
            (watched.mapped, watched.slot) = (mapped, slot);
        }
    }

    /// Looks through the files that a process has mapped: the executable's symbol goes before a library's.
    fn find(&mut self, pid: u32) -> Option<Slot> {
        let mut maps = Vec::new();
        File::open(format!("/proc/{pid}/maps")).ok()?.take(MOST_MAPS).read_to_end(&mut maps).ok()?;
        let mappings: Vec<Mapping<'_>> = maps.split(|byte| *byte == b'\n').filter_map(Mapping::parse).collect();
        let is_musl = |mapping: &Mapping<'_>| {
            let name = mapping.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            name.starts_with(b"ld-musl-") || name.starts_with(b"libc.musl-")
        };
        let libc = if mappings.iter().any(is_musl) { Libc::Musl } else { Libc::Glibc };
        let mut found: Vec<(u64, Publisher)> = Vec::new();
        let mut seen = HashMap::new();
        for mapping in &mappings {
            if seen.len() >= MOST_FILES {
                break;
            }
            let file = (mapping.device, mapping.inode);
            let publisher = *seen.entry(file).or_insert_with(|| self.publisher(pid, mapping));
            let Some(publisher) = publisher else { continue };
            let (offset, address) = publisher.first;
            if let Some(within) = offset.checked_sub(mapping.offset).filter(|within| *within < mapping.len()) {
                found.push((mapping.start.wrapping_add(within).wrapping_sub(address), publisher));
            }
        }
        found.sort_by_key(|(_, publisher)| !matches!(publisher.access, elf::Access::LocalExec { .. }));
        let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
        found.iter().find_map(|(bias, publisher)| tls::resolve(publisher, *bias, libc, &memory))
    }

    /// What is known of a file, else what it says.
    fn publisher(&mut self, pid: u32, mapping: &Mapping<'_>) -> Option<Publisher> {
        let file = mapping.open(pid)?;
        let about = file.metadata().ok()?;
        if !about.is_file() {
            return None;
        }
        let key = (about.dev(), about.ino(), about.size(), about.mtime(), about.mtime_nsec());
        if self.files.len() >= FILES {
            self.files.clear();
        }
        let failures = &self.failures;
        let publisher = self.files.entry(key).or_insert_with(|| {
            let publisher = elf::classify(&file);
            if publisher == Err(Refused::Malformed) {
                failures.fetch_add(1, Ordering::Relaxed);
            }
            publisher
        });
        publisher.ok()
    }
}

impl Source for File {
    fn read(&self, at: u64, buffer: &mut [u8]) -> Option<()> {
        self.read_exact_at(buffer, at).ok()
    }
}

impl Memory for File {
    fn word(&self, at: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read_exact_at(&mut word, at).ok().map(|()| u64::from_ne_bytes(word))
    }
}

/// The size of what is mapped, in pages: another one where a library came or went.
fn mapped_pages(pid: u32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split(' ').next()?.parse().ok()
}

/// A line of /proc/PID/maps that is of a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    start: u64,
    end: u64,
    offset: u64,
    device: &'a [u8],
    inode: u64,
    path: &'a [u8],
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let range = std::str::from_utf8(fields.next()?).ok()?;
        let _permissions = fields.next()?;
        let offset = std::str::from_utf8(fields.next()?).ok()?;
        let device = fields.next()?;
        let inode = std::str::from_utf8(fields.next()?).ok()?.parse().ok().filter(|inode| *inode != 0)?;
        let path = fields.next()?.trim_ascii_start();
        let (start, end) = range.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(offset)?);
        (start < end && path.starts_with(b"/")).then_some(Self { start, end, offset, device, inode, path })
    }

    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The file itself where that is allowed, else what its path leads to. Never waits for the other end of a pipe.
    fn open(&self, pid: u32) -> Option<File> {
        let open = |path: String| OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        open(format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end)).ok().or_else(|| {
            let path = std::str::from_utf8(self.path).ok()?;
            let file = open(format!("/proc/{pid}/root{path}")).ok()?;
            (file.metadata().ok()?.ino() == self.inode).then_some(file)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a mapping from being read from the wrong columns, and what is no file from being opened.
    #[test]
    fn lines_of_maps() {
        let line = b"7f00-8f00 r-xp 00001000 fe:01 1234                       /lib/a b.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.offset, mapping.inode), (0x7f00, 0x8f00, 0x1000, 1234));
        assert_eq!(mapping.path, b"/lib/a b.so (deleted)");
        for line in [
            &b"7f00-8f00 rw-p 00000000 00:00 0 "[..],
            b"7f00-8f00 rw-p 00000000 00:00 0                          [heap]",
            b"8f00-7f00 r-xp 00001000 fe:01 1234 /lib/a",
            b"7f00 r-xp 00001000 fe:01 1234 /lib/a",
            b"",
        ] {
            assert_eq!(Mapping::parse(line), None, "{line:?}");
        }
    }
}
