//! The system calls. All are safe with any address: the kernel checks it and only reads.

use std::{
    ffi::{CString, c_long},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::errno::Errno;

use crate::call::Attr;

/// A descriptor or a negative errno, as the kernel returns it.
pub fn mq_open(name: usize, oflag: u32, mode: u32, attr: usize) -> i64 {
    // A C caller's int may arrive with its sign in the upper half of the register.
    let oflag = c_long::from(oflag.cast_signed());
    // SAFETY: the kernel reads what the two addresses point to, and answers EFAULT where it can't.
    match unsafe { libc::syscall(libc::SYS_mq_open, name, oflag, c_long::from(mode), attr) } {
        -1 => -i64::from(Errno::last_raw()),
        descriptor => descriptor,
    }
}

/// The queue may be gone already: another thread has unlinked it.
pub fn mq_unlink(name: &CString) {
    // SAFETY: the name is a C string that outlives the call.
    unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) };
}

/// What the queue says of itself.
pub fn mq_getattr(queue: BorrowedFd<'_>) -> Result<Attr, Errno> {
    let mut attr = Attr::default();
    // SAFETY: the kernel writes one `struct mq_attr` where there is room for it.
    let result = unsafe { libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), 0, attr.as_mut_ptr()) };
    Errno::result(result).map(|_| attr)
}
