//! Memory that a call's arguments are put into: readable, not yet resident, cut off, or none at all.

use std::{fs::File, os::fd::AsRawFd, os::unix::fs::FileExt, ptr};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{SysconfVar, sysconf},
};

const PAGES: usize = 4;

/// Where an argument lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Null,
    /// An address where the process has nothing.
    Wild(usize),
    /// In memory when the call begins.
    Resident,
    /// In the page cache but not in the process's page table: the kernel's first read faults, a tracer's may fail.
    Absent,
    /// Begins in a page that is resident and goes on in one that is not.
    Torn,
    /// Ends where readable memory ends.
    Edge,
    /// Its last byte, the NUL of a name, is already beyond the edge.
    Cut,
}

impl Place {
    /// Whether all of it is in memory when the call begins.
    pub fn resident(self) -> bool {
        matches!(self, Self::Resident | Self::Edge)
    }

    /// Whether the kernel can read the whole argument.
    pub fn readable(self) -> bool {
        !matches!(self, Self::Null | Self::Wild(_) | Self::Cut)
    }
}

/// A mapped file of a few pages and an inaccessible page behind them. The file is written by its descriptor, since a
/// store through the mapping would make its pages resident; a memfd has pages like any other file's.
pub struct Region {
    file: File,
    base: usize,
    page: usize,
}

impl Region {
    pub fn new() -> Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.context("no page size")? as usize;
        let file = File::from(memfd_create(c"workload", MFdFlags::MFD_CLOEXEC)?);
        file.set_len((PAGES * page) as u64)?;
        let guarded = map(0, (PAGES + 1) * page, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        let base = map(guarded, PAGES * page, libc::PROT_READ, libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd())?;
        Ok(Self { file, base, page })
    }

    /// The address of `bytes`, which are valid until the next call.
    pub fn put(&self, bytes: &[u8], place: Place) -> Result<usize> {
        let end = PAGES * self.page;
        let start = match place {
            Place::Null => return Ok(0),
            Place::Wild(address) => return Ok(address),
            Place::Resident | Place::Absent => 0,
            Place::Torn => end - self.page - bytes.len().div_ceil(2),
            Place::Edge => end - bytes.len(),
            Place::Cut => end - bytes.len() + 1,
        };
        self.file.write_all_at(&bytes[..bytes.len().min(end - start)], start as u64)?;
        match place {
            Place::Absent => self.evict(0)?,
            Place::Torn => {
                self.touch();
                self.evict(PAGES - 1)?;
            }
            _ => self.touch(),
        }
        Ok(self.base + start)
    }

    fn touch(&self) {
        for page in 0..PAGES {
            // SAFETY: the address lies in the mapping, which is readable and lives as long as self.
            unsafe { ptr::read_volatile(ptr::without_provenance::<u8>(self.base + page * self.page)) };
        }
    }

    /// Takes the pages from `first` on out of the page table; the file keeps them.
    fn evict(&self, first: usize) -> Result<()> {
        let (address, length) = (self.base + first * self.page, (PAGES - first) * self.page);
        // SAFETY: the range lies in a shared mapping of a file, whose contents the advice does not change.
        let result = unsafe { libc::madvise(ptr::without_provenance_mut(address), length, libc::MADV_DONTNEED) };
        Errno::result(result).map(drop).context("madvise")
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: new() mapped exactly this range, and no address of it outlives the call that it was made for.
        unsafe { libc::munmap(ptr::without_provenance_mut(self.base), (PAGES + 1) * self.page) };
    }
}

/// Maps `length` bytes; `address` is 0 or, with MAP_FIXED, lies in a mapping of the caller's own.
fn map(address: usize, length: usize, protection: i32, flags: i32, file: i32) -> Result<usize> {
    // SAFETY: memory that anything else uses is never mapped over, as the comment above demands.
    let mapped = unsafe { libc::mmap(ptr::without_provenance_mut(address), length, protection, flags, file, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(Errno::last()).context("mmap");
    }
    Ok(mapped.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit 63 of a page's entry in the pagemap: it is in memory and in the page table.
    fn resident(region: &Region) -> Result<Vec<bool>> {
        let pagemap = File::open("/proc/self/pagemap")?;
        (0..PAGES)
            .map(|page| {
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, ((region.base / region.page + page) * 8) as u64)?;
                Ok(u64::from_ne_bytes(entry) >> 63 == 1)
            })
            .collect()
    }

    /// A page that is there after all would leave the second reading of names, at exit, untested.
    #[test]
    fn pages_are_resident_or_absent_as_asked() -> Result<()> {
        let region = Region::new()?;
        for (place, expected) in [
            (Place::Resident, [true; PAGES]),
            (Place::Absent, [false; PAGES]),
            (Place::Torn, [true, true, true, false]),
            (Place::Edge, [true; PAGES]),
            (Place::Cut, [true; PAGES]),
        ] {
            region.put(b"name\0", place)?;
            assert_eq!(resident(&region)?, expected, "{place:?}");
        }
        Ok(())
    }
}
