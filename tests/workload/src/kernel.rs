//! The system calls. The kernel checks each address: what can't be read or written is an EFAULT.

use std::{
    ffi::{CString, c_long},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::errno::Errno;

use crate::call::Attr;

/// A descriptor or a negative errno, as the kernel returns it.
pub fn mq_open(name: usize, oflag: u32, mode: u32, attr: usize) -> i64 {
    // A C caller's int may arrive with its sign in the upper half of the register.
    let oflag = c_long::from(oflag.cast_signed());
    // SAFETY: the kernel reads what the two addresses point to, and answers EFAULT where it can't.
    returned(unsafe { libc::syscall(libc::SYS_mq_open, name, oflag, mode as usize, attr) })
}

/// A `long`, which programs of 32 bits have fewer bits of.
pub fn wide(long: impl Into<i64>) -> i64 {
    long.into()
}

fn returned(result: c_long) -> i64 {
    if result == -1 { -i64::from(Errno::last_raw()) } else { wide(result) }
}

/// The queue may be gone already: another thread has unlinked it.
pub fn mq_unlink(name: &CString) {
    mq_unlink_at(name.as_ptr().addr());
}

/// 0 or a negative errno, as those that follow.
pub fn mq_unlink_at(name: usize) -> i64 {
    // SAFETY: the kernel reads what the address points to.
    returned(unsafe { libc::syscall(libc::SYS_mq_unlink, name) })
}

/// `struct timespec` as the kernel reads it, valid or not.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Timespec {
    pub sec: i64,
    pub nsec: i64,
}

pub fn mq_timedsend(queue: RawFd, body: usize, length: usize, priority: u32, deadline: usize) -> i64 {
    let priority = priority as usize;
    // SAFETY: the kernel reads what the two addresses point to.
    returned(unsafe { libc::syscall(libc::SYS_mq_timedsend, c_long::from(queue), body, length, priority, deadline) })
}

/// `body` and `priority` are addresses of memory that the caller has for a message and a u32, or none at all.
pub fn mq_timedreceive(queue: RawFd, body: usize, length: usize, priority: usize, deadline: usize) -> i64 {
    // SAFETY: the kernel writes where the caller has memory for it, as demanded above.
    returned(unsafe { libc::syscall(libc::SYS_mq_timedreceive, c_long::from(queue), body, length, priority, deadline) })
}

/// `struct sigevent` as the kernel reads it.
#[repr(C)]
pub struct Event {
    value: usize,
    signal: i32,
    method: i32,
    rest: [u64; 6],
}

impl Event {
    pub fn new(method: i32, signal: i32) -> Self {
        Self { value: 0, signal, method, rest: [0; 6] }
    }
}

pub fn mq_notify(queue: RawFd, event: usize) -> i64 {
    // SAFETY: the kernel reads what the address points to.
    returned(unsafe { libc::syscall(libc::SYS_mq_notify, c_long::from(queue), event) })
}

/// `old` is the address of memory that the caller has for a `struct mq_attr`, or none at all.
pub fn mq_getsetattr(queue: RawFd, new: usize, old: usize) -> i64 {
    // SAFETY: the kernel writes where the caller has memory for it, as demanded above.
    returned(unsafe { libc::syscall(libc::SYS_mq_getsetattr, c_long::from(queue), new, old) })
}

/// A queue's descriptor.
pub fn open_queue(name: &CString, oflag: u32, attr: &Attr) -> Result<OwnedFd, Errno> {
    let attr = attr.map(|number| number as c_long);
    match i32::try_from(mq_open(name.as_ptr().addr(), oflag, 0o600, attr.as_ptr().addr())) {
        // SAFETY: the call has just returned this descriptor, and nothing else owns it.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        Ok(errno) => Err(Errno::from_raw(-errno)),
        Err(_) => Err(Errno::EOVERFLOW),
    }
}

/// Ends a sleep of another thread of this process.
pub fn interrupt(thread: i32) {
    // SAFETY: SIGUSR2 has a handler; a thread that is not there is an error.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGUSR2) };
}

/// Real-time signals are none of nix's.
pub fn ignore_signal(signal: i32) {
    // SAFETY: ignoring runs no code.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// What the queue says of itself.
pub fn mq_getattr(queue: BorrowedFd<'_>) -> Result<Attr, Errno> {
    let mut attr: [c_long; 8] = [0; 8];
    // SAFETY: the kernel writes one `struct mq_attr` where there is room for it.
    let result = unsafe { libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), 0, attr.as_mut_ptr()) };
    Errno::result(result).map(|_| attr.map(wide))
}
