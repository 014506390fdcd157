//! Buffers that requests are written into, used again: a new one of half a MiB is a hundred pages that the kernel has to
//! clear. Bounded in bytes; pure code.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// As many bytes of buffers are kept that nobody uses.
const KEPT: usize = 1 << 20;

/// The buffers that nobody uses; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer with room for so many bytes.
    pub fn take(&self, room: usize) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = kept.unwrap_or_default();
        buffer.reserve(room);
        buffer
    }

    /// What was written, which comes back here when its last user is done with it.
    pub fn freeze(&self, written: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer: written, home: self.clone() })
    }

    fn keep(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = kept.iter().map(Vec::capacity).sum();
        if bytes + buffer.capacity() <= KEPT {
            kept.push(buffer);
        }
    }
}

/// A buffer in use.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.keep(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a buffer from being written while it is still read, and buffers from taking memory without end.
    #[test]
    fn used_again_once_nobody_reads_them() {
        let buffers = Buffers::default();
        let mut first = buffers.take(100);
        first.extend_from_slice(b"first");
        let (at, first) = (first.as_ptr(), buffers.freeze(first));
        let other = first.clone();
        drop(first);
        let meanwhile = buffers.take(10);
        assert_ne!(meanwhile.as_ptr(), at, "{other:?} is still read");
        drop(other);
        let again = buffers.take(10);
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        let many: Vec<Bytes> = (0..10).map(|_| buffers.freeze(Vec::with_capacity(KEPT / 3))).collect();
        drop(many);
        assert_eq!(buffers.0.lock().unwrap().len(), 3);
    }
}
