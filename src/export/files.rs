//! The files that a connection is made of: certificates, keys, headers. Reads them, bounded, and sees when they
//! changed; what they are good for is the client's.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use crate::model::error::Error;

/// No file that is longer is read.
const LONGEST: u64 = 1 << 20;
/// Files are looked at at most this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What changes with a file: device and inode, size, and the times of its last change.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let file = path.metadata().ok()?;
    Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()))
}

/// The files of an endpoint.
pub fn of(endpoint: &Endpoint) -> Vec<PathBuf> {
    let client = endpoint.client.iter().flat_map(|client| [&client.certificate, &client.key]);
    endpoint.certificate.iter().chain(&endpoint.headers_file).chain(client).cloned().collect()
}

/// Reads a file that the setting `what` names.
pub fn read(path: &Path, what: &str) -> Result<Vec<u8>, Error> {
    let read = || {
        // Opening a FIFO would wait for a writer.
        if !path.metadata()?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        match File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)? as u64 {
            ..=LONGEST => Ok(bytes),
            _ => Err(std::io::Error::other(format!("longer than {LONGEST} bytes"))),
        }
    };
    read().map_err(|error| {
        Error::cannot_run(
            format!("OTLP: {what} {}: {error}", path.display()),
            format!("name a readable file, or leave {what} out"),
        )
    })
}

/// Whether a private key can't be used without a passphrase.
pub fn is_encrypted(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED")
}

/// What was made of files, made again when they change.
#[derive(Debug)]
pub struct FromFiles<T> {
    files: Vec<PathBuf>,
    stamps: Vec<Stamp>,
    /// None: to be read in any case.
    looked: Option<Instant>,
    value: T,
}

impl<T> FromFiles<T> {
    /// Makes it for the first time.
    pub fn new(files: Vec<PathBuf>, make: impl FnOnce() -> Result<T, Error>) -> Result<Self, Error> {
        // Before they are read: a change meanwhile is one to see.
        let stamps = files.iter().map(|path| stamp(path)).collect();
        Ok(Self { files, stamps, looked: Some(Instant::now()), value: make()? })
    }

    /// What was made last.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Has it made again the next time.
    pub fn reload(&mut self) {
        self.looked = None;
    }

    /// Makes it again where a file has changed. An error leaves it as it was, and comes once for each change.
    pub fn refresh(&mut self, now: Instant, make: impl FnOnce() -> Result<T, Error>) -> Result<(), Error> {
        let is_asked = self.looked.is_none();
        if self.files.is_empty() || self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY) {
            return Ok(());
        }
        self.looked = Some(now);
        let stamps: Vec<Stamp> = self.files.iter().map(|path| stamp(path)).collect();
        if is_asked || stamps != self.stamps {
            self.stamps = stamps;
            self.value = make()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a rotated token from being used until the next start, a broken file from stopping what works or being
    /// told of with each request, and files from being asked after with each request.
    #[test]
    fn read_again_when_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let make = || match std::fs::read_to_string(&path).unwrap_or_default() {
            text if text.starts_with("ok") => Ok(text),
            text => Err(Error::cannot_run(text, "")),
        };
        std::fs::write(&path, "ok").unwrap();
        let mut watched = FromFiles::new(vec![path.clone()], make).unwrap();
        let start = watched.looked.unwrap();
        let at = |seconds| start + Duration::from_secs(seconds);
        std::fs::write(&path, "ok, the second").unwrap();
        assert!(watched.refresh(start + LOOK_EVERY / 2, make).is_ok());
        assert_eq!(watched.value(), "ok", "not looked at yet");
        assert!(watched.refresh(at(1), make).is_ok());
        assert_eq!(watched.value(), "ok, the second");
        std::fs::write(&path, "broken").unwrap();
        assert!(watched.refresh(at(2), make).is_err());
        assert!(watched.refresh(at(3), make).is_ok(), "said once");
        assert_eq!(watched.value(), "ok, the second");
        std::fs::remove_file(&path).unwrap();
        assert!(watched.refresh(at(4), make).is_err());
        assert!(watched.refresh(at(5), make).is_ok(), "said once");
        watched.reload();
        assert!(watched.refresh(at(5), make).is_err(), "asked for");
        std::fs::write(&path, "ok, the third").unwrap();
        assert!(watched.refresh(at(6), make).is_ok());
        assert_eq!(watched.value(), "ok, the third");
    }

    /// Prevents a file without an end, or one that nobody writes to, from filling the memory or holding the start up.
    #[test]
    fn only_bounded_regular_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        std::fs::write(&path, vec![b'#'; LONGEST as usize]).unwrap();
        assert_eq!(read(&path, "x").unwrap().len() as u64, LONGEST);
        std::fs::write(&path, vec![b'#'; LONGEST as usize + 1]).unwrap();
        assert!(read(&path, "x").unwrap_err().message.contains("longer than"));
        assert!(read(Path::new("/dev/zero"), "x").unwrap_err().message.contains("regular"));
        assert!(read(folder.path(), "x").is_err());
    }

    /// Prevents a key with a passphrase from failing with a parser's words.
    #[test]
    fn encrypted_keys() {
        assert!(is_encrypted(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        assert!(is_encrypted(b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(!is_encrypted(b"-----BEGIN PRIVATE KEY-----\n"));
    }
}
