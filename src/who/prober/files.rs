//! Another process's entry in /proc, and files that it can name: opened so that nothing but regular files is, and looked
//! at before. Thin code; any of it may hang, which is why only the prober's workers call it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::super::host::{self, Stat};
use super::super::registry::Subject;

/// As much of a file of /proc is read.
const MOST: u64 = 1 << 20;
/// How files are opened: no pipe, device or terminal may make this program wait or become its own.
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;

fn open_at(folder: Option<&OwnedFd>, path: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    let folder = folder.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
    // SAFETY: a string that ends with its NUL, and a descriptor that is open or stands for the working directory; what is
    // returned is new and this caller's own.
    unsafe {
        match libc::openat(folder, path.as_ptr(), flags | FLAGS) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Opens for reading what a descriptor stands for that was opened only to be looked at, if it is a regular file.
fn reopen(looked_at: OwnedFd) -> io::Result<File> {
    let fd = looked_at.as_raw_fd();
    let looked_at = File::from(looked_at);
    if !looked_at.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    open_at(None, &format!("/proc/self/fd/{fd}"), libc::O_RDONLY).map(File::from)
}

/// Opens a regular file of this program's own root.
pub fn open_regular(path: &str) -> io::Result<File> {
    reopen(open_at(None, path, libc::O_PATH)?)
}

/// A process's folder in /proc: what is opened in it is of this process, whoever has its id later.
#[derive(Debug)]
pub struct ProcessFolder {
    folder: OwnedFd,
}

impl ProcessFolder {
    /// Opens the folder of the process that has the id now in this program's pid namespace; 0 stands for none.
    pub fn open(local_pid: u32) -> io::Result<Self> {
        if local_pid == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { folder: open_at(None, &format!("/proc/{local_pid}"), libc::O_PATH | libc::O_DIRECTORY)? })
    }

    /// Opens the folder of the subject, if it is still there and runs this image.
    pub fn of(subject: &Subject) -> io::Result<Self> {
        let folder = Self::open(subject.local_pid)?;
        if folder.runs(subject) { Ok(folder) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Opens one of its files.
    pub fn file(&self, name: &str) -> io::Result<File> {
        open_at(Some(&self.folder), name, libc::O_RDONLY).map(File::from)
    }

    /// Reads one of its files, up to 1 MiB.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(name)?.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.read(name).ok()?).ok()
    }

    /// Where a link of it leads.
    pub fn link(&self, name: &str) -> Option<Vec<u8>> {
        let path = format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd());
        std::fs::read_link(path).ok().map(|path| path.into_os_string().into_encoded_bytes())
    }

    /// Who it is.
    pub fn stat(&self) -> Option<Stat> {
        // A name need not be UTF-8.
        Stat::parse(&String::from_utf8_lossy(&self.read("stat").ok()?))
    }

    /// Whether it is the process of the subject, and runs its image, whose environment is at this address: the kernel draws
    /// another one at each exec.
    pub fn runs(&self, subject: &Subject) -> bool {
        let started = host::shown_ticks(subject.image.started_ns);
        self.stat().is_some_and(|stat| {
            stat.started == started && (subject.environ_at == 0 || stat.environ_at == subject.environ_at)
        })
    }

    /// Whether its root is this program's: then it sees the same /etc/passwd.
    pub fn shares_root(&self) -> bool {
        let identity = |folder: Option<&OwnedFd>, path: &str| {
            let root = File::from(open_at(folder, path, libc::O_PATH | libc::O_DIRECTORY).ok()?).metadata().ok()?;
            Some((root.dev(), root.ino()))
        };
        identity(Some(&self.folder), "root").is_some_and(|its| Some(its) == identity(None, "/"))
    }

    /// Opens a file that it has mapped: the file itself where that is allowed, else what its path leads to inside of its
    /// root, if that is the same file by its number.
    pub fn mapped_file(&self, start: u64, end: u64, path: &[u8], inode: u64) -> io::Result<File> {
        let by_address = open_at(Some(&self.folder), &format!("map_files/{start:x}-{end:x}"), libc::O_PATH);
        if let Ok(looked_at) = by_address {
            return reopen(looked_at);
        }
        let root = open_at(Some(&self.folder), "root", libc::O_PATH | libc::O_DIRECTORY)?;
        let file = reopen(open_inside(&root, path)?)?;
        if file.metadata()?.ino() == inode { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// Looks at a path as a process with this root would, whatever links lead out of it.
fn open_inside(root: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    // SAFETY: a structure of integers, for which zero is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    let root = root.as_fd().as_raw_fd();
    // SAFETY: the string ends with its NUL, the structure has the size that is passed; what is returned is new.
    unsafe {
        match libc::syscall(libc::SYS_openat2, root, path.as_ptr(), &raw const how, size_of::<libc::open_how>()) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as i32)),
        }
    }
}

/// Fills the buffer from this address on.
pub fn read_memory(memory: &File, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    memory.read_exact_at(buffer, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a pipe, a device or a folder in a regular file's place from being opened, which may wait for ever or change
    /// something.
    #[test]
    fn only_regular_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        nix::unistd::mkfifo(&*path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("link")).unwrap();
        std::fs::write(path("file"), "x").unwrap();
        for refused in [path("pipe"), path("link"), path(""), "/dev/zero".into(), path("none")] {
            assert!(open_regular(&refused).is_err(), "{refused}");
        }
        let mut text = String::new();
        open_regular(&path("file")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    /// Prevents another process, or a later image of this one, from being taken for the one that was asked for.
    #[test]
    fn this_process() {
        let pid = std::process::id();
        let folder = ProcessFolder::open(pid).unwrap();
        let Stat { environ_at, .. } = folder.stat().unwrap();
        let subject = super::super::tests::this_process();
        assert!(folder.runs(&subject) && folder.runs(&Subject { environ_at: 0, ..subject }));
        assert!(ProcessFolder::of(&Subject { environ_at: environ_at + 8, ..subject }).is_err());
        let mut later = subject;
        later.image.started_ns += 1_000_000_000;
        assert!(!folder.runs(&later));
        assert!(ProcessFolder::open(0).is_err() && folder.shares_root());
    }
}
