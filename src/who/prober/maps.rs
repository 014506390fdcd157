//! The list of a process's mappings (proc_pid_maps(5)), read line by line and in steps: a process may have tens of
//! thousands.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// As many lines are read in one step.
const STEP: usize = 2048;
/// As much of a list is read in all.
const MOST: u64 = 16 << 20;

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// Its first address.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
    /// Whether it can be read.
    pub is_readable: bool,
    /// Where in the file it begins.
    pub offset: u64,
    /// The file's device, as `major:minor` in hex.
    pub device: &'a [u8],
    /// The file's number; 0 for memory without a file.
    pub inode: u64,
    /// The file's path, or a name in brackets.
    pub name: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// Reads a line.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (range, permissions, offset) = (text()?, text()?, text()?);
        let device = fields.next()?;
        let inode = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let name = fields.next().unwrap_or_default().trim_ascii_start();
        let (start, end) = range.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(offset)?);
        let is_readable = permissions.starts_with('r');
        (start < end).then_some(Self { start, end, is_readable, offset, device, inode, name })
    }

    /// Whether it is of a file that has a path.
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.name.starts_with(b"/")
    }

    /// Whether its pages come from the kernel alone: memory without a file, or a file in memory only, which are on the
    /// device `memory`. Pages of any other file come from whoever serves its file system, when they like.
    pub fn is_memory(&self, memory: &[u8]) -> bool {
        self.inode == 0 || self.device == memory
    }
}

/// The list of one process.
#[derive(Debug)]
pub struct MapsReader {
    lines: BufReader<std::io::Take<File>>,
    line: Vec<u8>,
}

/// How far a step has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// It was found.
    Found(T),
    /// There are more lines.
    More,
    /// There are none.
    End,
}

impl MapsReader {
    /// The list in this file.
    pub fn new(file: File) -> Self {
        Self { lines: BufReader::with_capacity(1 << 16, file.take(MOST)), line: Vec::new() }
    }

    /// Looks through some of the mappings, until one is what is looked for.
    pub fn step<T>(&mut self, mut find: impl FnMut(&Mapping<'_>) -> Option<T>) -> Step<T> {
        for _ in 0..STEP {
            self.line.clear();
            if !matches!(self.lines.read_until(b'\n', &mut self.line), Ok(1..)) {
                return Step::End;
            }
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if let Some(found) = Mapping::parse(line).and_then(|mapping| find(&mapping)) {
                return Step::Found(found);
            }
        }
        Step::More
    }
}

/// Whether a process serves the file system on a device (FUSE), by a list of mounts (proc_pid_mountinfo(5)); None where it
/// is not mounted there.
pub fn served(mounts: &str, major: u64, minor: u64) -> Option<bool> {
    let device = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == device).then(|| source.starts_with("fuse"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a mapping from being read from the wrong columns.
    #[test]
    fn lines() {
        let line = b"7f00-8f00 r-xp 00001000 fe:01 1234                       /lib/a b.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.offset, mapping.inode), (0x7f00, 0x8f00, 0x1000, 1234));
        assert_eq!((mapping.device, mapping.name), (&b"fe:01"[..], &b"/lib/a b.so (deleted)"[..]));
        assert!(mapping.is_file() && mapping.is_readable && !mapping.is_memory(b"00:01"));
        for (line, is_memory) in [
            (&b"7f00-8f00 rw-p 00000000 00:00 0 "[..], true),
            (b"7f00-8f00 rw-p 00000000 00:00 0", true),
            (b"7f00-8f00 rw-p 00000000 00:00 0                          [heap]", true),
            (b"7f00-8f00 rw-s 00000000 00:01 1024                       /memfd:OTEL_CTX (deleted)", true),
            (b"7f00-8f00 rw-s 00000000 00:01 1024                       [anon_shmem:OTEL_CTX]", true),
            (b"7f00-8f00 rw-s 00000000 00:35 7                          /mnt/memfd:OTEL_CTX", false),
        ] {
            assert_eq!(Mapping::parse(line).map(|mapping| mapping.is_memory(b"00:01")), Some(is_memory), "{line:?}");
        }
        for line in [&b"8f00-7f00 r-xp 00001000 fe:01 1234 /lib/a"[..], b"7f00 r-xp 00001000 fe:01 1234 /lib/a", b""] {
            assert_eq!(Mapping::parse(line), None, "{line:?}");
        }
    }

    /// Prevents files of a file system that some process serves from being opened as any other.
    #[test]
    fn mounts() {
        let mounts = "36 25 0:53 / /a rw,relatime shared:14 - fuse.sshfs x rw\n37 25 254:1 / / rw - ext4 /dev/vda rw\n";
        for (major, minor, expected) in [(0, 53, Some(true)), (254, 1, Some(false)), (0, 54, None)] {
            assert_eq!(served(mounts, major, minor), expected);
        }
    }

    /// Prevents a long list from being read in one go, or a line at the border of two steps from being lost.
    #[test]
    fn steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("maps");
        let lines: String = (1..=2 * STEP).map(|page| format!("{page:x}000-{page:x}fff rw-p 0 00:00 0 \n")).collect();
        std::fs::write(&path, lines).unwrap();
        let (mut maps, mut seen) = (MapsReader::new(File::open(&path).unwrap()), 0);
        let mut count = |_: &Mapping<'_>| {
            seen += 1;
            None::<()>
        };
        assert_eq!(
            [maps.step(&mut count), maps.step(&mut count), maps.step(&mut count)],
            [Step::More, Step::More, Step::End]
        );
        assert_eq!(seen, 2 * STEP);
        let mut maps = MapsReader::new(File::open(&path).unwrap());
        assert_eq!(maps.step(|mapping| (mapping.start == 0x2000).then_some(7)), Step::Found(7));
    }
}
