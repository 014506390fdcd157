//! The two system calls. Both are safe with any address: the kernel checks it and only reads.

use std::ffi::{CString, c_long};

use nix::errno::Errno;

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
