//! A BPF ring buffer (Documentation/bpf/ringbuf.rst) as its one reader sees it: records as they stand in the shared
//! memory, without a callback and without a copy. The kernel offers the records' pages twice, one copy behind the other,
//! so that none is cut in two; but what is mapped twice counts twice as resident, so the one record that is cut is copied.
//! Decodes nothing.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{SysconfVar, sysconf};

/// Bits of a record's length (include/uapi/linux/bpf.h): it is being written, and it is to be passed over.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// What stands before each record, and what records begin at multiples of.
const HEADER: usize = 8;
/// Room is given back to the writers each time so much was read: not for each record, whose cache line is theirs.
const RELEASE_EVERY: usize = 32 << 10;

/// The reader's end of a ring. There must be only one.
#[derive(Debug)]
pub struct Ring {
    map: OwnedFd,
    page: usize,
    len: usize,
    /// The page of the reader's position.
    reader: NonNull<u8>,
    /// The page of the writers' position; the records follow.
    writers: NonNull<u8>,
    /// Takes the record that goes on at the beginning.
    joined: Vec<u8>,
}

// SAFETY: the mappings belong to this value alone, and are not bound to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps a ring of `len` bytes.
    pub fn open(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|page| usize::try_from(page).ok()).unwrap_or(4096);
        let pages = |len: usize| NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput);
        let map = map.try_clone_to_owned()?;
        let (read, write) = (ProtFlags::PROT_READ, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
        // SAFETY: new mappings of a file of the kernel's, which keeps it as long as they are there.
        let reader = unsafe { mmap(None, pages(page)?, write, MapFlags::MAP_SHARED, &map, 0) }?.cast();
        let offset = page.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: as above.
        let writers = unsafe { mmap(None, pages(page + len)?, read, MapFlags::MAP_SHARED, &map, offset) };
        match writers {
            Ok(writers) => Ok(Self { map, page, len, reader, writers: writers.cast(), joined: Vec::new() }),
            Err(error) => {
                // SAFETY: mapped just now, and used by nobody.
                let _ = unsafe { munmap(reader.cast(), page) };
                Err(error.into())
            }
        }
    }

    /// Takes records, in their order, at most so many; returns how many places of records it passed. Fewer than `most`
    /// means that there was no more that is complete.
    pub fn take(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut at = self.position().load(Ordering::Relaxed);
        let (mut released, mut taken, mut joined) = (at, 0, std::mem::take(&mut self.joined));
        while taken < most {
            if at == self.written().load(Ordering::Acquire) {
                if released == at {
                    break;
                }
                self.release(at, &mut released);
                continue;
            }
            let header = self.header(at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            let len = (header & !(BUSY | DISCARDED)) as usize;
            if header & DISCARDED == 0 {
                each(self.record(at, len, &mut joined));
            }
            at = at.wrapping_add((HEADER + len).next_multiple_of(HEADER));
            taken += 1;
            if at.wrapping_sub(released) >= RELEASE_EVERY {
                self.release(at, &mut released);
            }
        }
        self.release(at, &mut released);
        self.joined = joined;
        taken
    }

    /// From now on the writers may write up to here. The kernel wakes who has read everything before its record: it writes
    /// the record and then reads this position, so that either it sees this or the next look sees the record.
    fn release(&self, at: usize, released: &mut usize) {
        if *released != at {
            self.position().store(at, Ordering::Release);
            fence(Ordering::SeqCst);
            *released = at;
        }
    }

    /// Whether there is nothing to take, not even a record that is still being written.
    pub fn is_empty(&self) -> bool {
        self.position().load(Ordering::Relaxed) == self.written().load(Ordering::Acquire)
    }

    /// Where the next record will be written.
    pub fn end(&self) -> usize {
        self.written().load(Ordering::Acquire)
    }

    /// Whether all that was written up to there was taken.
    pub fn is_past(&self, end: usize) -> bool {
        self.position().load(Ordering::Relaxed).wrapping_sub(end).cast_signed() >= 0
    }

    fn position(&self) -> &AtomicUsize {
        // SAFETY: an aligned word at the beginning of the mapping, which both sides use atomically.
        unsafe { self.reader.cast().as_ref() }
    }

    fn written(&self) -> &AtomicUsize {
        // SAFETY: as above.
        unsafe { self.writers.cast().as_ref() }
    }

    /// Where a position stands in the mapping.
    fn place(&self, at: usize) -> NonNull<u8> {
        // SAFETY: behind the page of the position, within the records.
        unsafe { self.writers.add(self.page + at % self.len) }
    }

    fn header(&self, at: usize) -> &AtomicU32 {
        // SAFETY: records begin at multiples of eight with their length, which the kernel writes atomically.
        unsafe { self.place(at).cast().as_ref() }
    }

    fn record<'a>(&'a self, at: usize, len: usize, joined: &'a mut Vec<u8>) -> &'a [u8] {
        let begin = at.wrapping_add(HEADER);
        let (len, to_end) = (len.min(self.len - HEADER), self.len - begin % self.len);
        let bytes = |at: usize, len: usize| {
            // SAFETY: part of a complete record, within the mapping, which the kernel leaves alone until its place is passed.
            unsafe { std::slice::from_raw_parts(self.place(at).as_ptr(), len) }
        };
        if len <= to_end {
            return bytes(begin, len);
        }
        joined.clear();
        joined.extend_from_slice(bytes(begin, to_end));
        joined.extend_from_slice(bytes(0, len - to_end));
        joined
    }
}

impl AsFd for Ring {
    /// Readable when the kernel has woken the reader.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `open`, and lent to nobody any more.
        let _ = unsafe { (munmap(self.reader.cast(), self.page), munmap(self.writers.cast(), self.page + self.len)) };
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    const LEN: usize = 4096;

    /// A ring whose memory the test writes as the kernel does.
    fn ring() -> Ring {
        let file = memfd_create("ring", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, (4096 * 2 + LEN) as i64).unwrap();
        Ring::open(file.as_fd(), LEN).unwrap()
    }

    fn write(ring: &Ring, at: usize, header: u32, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::from(ring.map.try_clone().unwrap());
        let place = (4096 * 2 + at) as u64;
        file.write_all_at(&header.to_ne_bytes(), place).unwrap();
        file.write_all_at(bytes, place + 8).unwrap();
    }

    fn publish(ring: &Ring, at: usize) {
        use std::os::unix::fs::FileExt;
        std::fs::File::from(ring.map.try_clone().unwrap()).write_all_at(&at.to_ne_bytes(), 4096).unwrap();
    }

    /// Prevents records from being lost or taken twice, half-written ones from being believed, and places from being kept
    /// from the writers for ever.
    #[test]
    fn records_in_their_order() {
        let mut ring = ring();
        let mut taken = Vec::new();
        assert_eq!(ring.take(9, |bytes| taken.push(bytes.to_vec())), 0);
        write(&ring, 0, 3, b"abc");
        write(&ring, 16, DISCARDED | 8, b"12345678");
        write(&ring, 32, 8, b"ABCDEFGH");
        write(&ring, 48, BUSY | 4, b"late");
        publish(&ring, 64);
        assert_eq!(ring.take(1, |bytes| taken.push(bytes.to_vec())), 1);
        assert_eq!(ring.position().load(Ordering::Relaxed), 16);
        assert_eq!(ring.take(9, |bytes| taken.push(bytes.to_vec())), 2, "a discarded one has a place, too");
        assert_eq!(taken, [&b"abc"[..], b"ABCDEFGH"]);
        assert_eq!(ring.position().load(Ordering::Relaxed), 48);
        assert!(!ring.is_empty() && !ring.is_past(ring.end()), "one is still being written");
        assert!(ring.is_past(48));
        write(&ring, 48, 4, b"late");
        assert_eq!(ring.take(9, |bytes| taken.push(bytes.to_vec())), 1);
        assert_eq!((taken.last().map(Vec::as_slice), ring.take(9, |_| panic!())), (Some(&b"late"[..]), 0));
        assert!(ring.is_empty() && ring.is_past(ring.end()));
    }

    /// Prevents the record that ends at the ring's beginning from being cut, and the mapping from being left.
    #[test]
    fn a_record_that_goes_on_at_the_beginning() {
        for before in [LEN - 16, LEN - 8] {
            let mut ring = ring();
            let mut taken = Vec::new();
            write(&ring, 0, (before - 8) as u32, &[7]);
            publish(&ring, before);
            assert_eq!(ring.take(9, |bytes| taken.push(bytes.len())), 1);
            let to_end = LEN - before - 8;
            write(&ring, before, 16, &b"0123456789abcdef"[..to_end]);
            let rest = &b"0123456789abcdef"[to_end..];
            let file = std::fs::File::from(ring.map.try_clone().unwrap());
            std::os::unix::fs::FileExt::write_all_at(&file, rest, 4096 * 2).unwrap();
            publish(&ring, before + 24);
            let mut last = Vec::new();
            assert_eq!(ring.take(9, |bytes| last = bytes.to_vec()), 1);
            assert_eq!((last.as_slice(), ring.is_empty()), (&b"0123456789abcdef"[..], true));
        }
    }
}
