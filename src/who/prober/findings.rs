//! What probes find, and what all workers remember of it. Thin code, as [`super::probe`].

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{fstat, major, minor};

use super::super::elf::{Publisher, Refused};
use super::super::owner::Owners;
use super::super::process_context::{Published, Unreadable};
use super::super::registry::ImageFacts;
use super::files::ProcessFolder;
use super::watch::Swept;
use crate::model::call::{Image, ImageKey};
use crate::model::slot::Slot;

/// As many files are remembered, and as many once more of those before.
const FILES: usize = 4096;

/// What a probe has found.
#[derive(Debug)]
pub enum Found {
    /// About an image at its first call.
    Facts(ImageKey, ImageFacts),
    /// What an image has published; None where it has not.
    Context(ImageKey, Option<Published>),
    /// Why that could not be read.
    Unreadable(Unreadable),
    /// A file that a process has mapped contradicts itself.
    BadFile,
    /// What /proc says of an image whose record was lost.
    Described(Box<Image>),
    /// Where an image's threads publish their spans, and what the process had mapped before.
    Slot(ImageKey, Option<Slot>, Option<u64>),
    /// What a sweep found.
    Swept(Swept),
    /// The image's process has ended, or runs another image.
    Ended(ImageKey),
}

/// How a step ended.
#[derive(Debug)]
pub enum Progress {
    /// There is no more to do.
    Done,
    /// There is more, after this time.
    More(Duration),
}

/// A file, as long as it is not written to: device, number, size and time of change.
pub type FileKey = (u64, u64, u64, i64, i64);
/// What a file was found to be.
pub type Classified = Result<Publisher, Refused>;

/// What all workers remember. Locked for a look-up only, never while anything is read of another process.
#[derive(Debug, Default)]
pub struct Remembered {
    files: Mutex<[HashMap<FileKey, Classified>; 2]>,
    owners: Mutex<Owners>,
}

impl Remembered {
    /// What a file was found to be.
    pub fn file(&self, key: &FileKey) -> Option<Classified> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().find_map(|files| files.get(key)).copied()
    }

    /// Remembers what a file is.
    pub fn put(&self, key: FileKey, classified: Classified) {
        let [young, old] = &mut *self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if young.len() >= FILES {
            *old = std::mem::take(young);
        }
        young.insert(key, classified);
    }

    /// The name of a user.
    pub fn owner(&self, uid: u32) -> Option<String> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).name(uid)
    }
}

/// The device that memory without a file of its own file system is on, as mappings name it.
pub fn memory_device() -> &'static [u8] {
    static DEVICE: OnceLock<Vec<u8>> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let device =
            memfd_create("mqspan", MFdFlags::MFD_CLOEXEC).ok().and_then(|file| Some(fstat(&file).ok()?.st_dev));
        // Where it is not known no mapping is on it.
        device.map_or(Vec::new(), |device| format!("{:02x}:{:02x}", major(device), minor(device)).into())
    })
}

/// The size of what is mapped, in pages: another one where a library came or went.
pub fn mapped_pages(folder: &ProcessFolder) -> Option<u64> {
    folder.text("statm")?.split(' ').next()?.parse().ok()
}
