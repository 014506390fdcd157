//! Detaching takes the kernel half a second and more (a grace period for each perf event, one after another), and whoever
//! closes the last descriptor waits. So a process of its own does that after mqspan has ended: it shares the descriptors,
//! waits for mqspan's end, and ends itself.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, fork, pipe};

/// What the kernel's BPF objects and perf events are shown as (proc_pid_fd(5)).
const KEPT: [&[u8]; 2] = [b"anon_inode:bpf", b"anon_inode:[perf_event]"];
/// Where the descriptor that shows mqspan's end goes: a process's descriptors are closed in their order.
const LAST: RawFd = 900;

/// Leaves what this process has attached to a process of its own; returns at once. To be called at the very end: what is
/// opened later is not closed there. `undo` are lines for `file`, written once everything is detached.
pub fn leave_to_another(file: Option<&Path>, undo: &[String]) {
    // Everything that allocates comes before the fork: other threads may hold the allocator's locks.
    let others = other_descriptors();
    let file = file.and_then(|file| CString::new(file.as_os_str().as_bytes()).ok());
    let undo: Vec<CString> = undo.iter().filter_map(|line| CString::new(line.as_bytes()).ok()).collect();
    let Ok((ended, alive)) = pipe() else { return };
    let Ok(alive) = fcntl(&alive, FcntlArg::F_DUPFD_CLOEXEC(LAST)).map(|last| (last, drop(alive)).0) else { return };
    // The child is to end by itself. From here on this thread takes no signals; its process ends.
    let _ = SigSet::all().thread_block();
    // SAFETY: the child makes system calls only, none of which allocates, and ends.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        wait_and_detach(ended.as_raw_fd(), alive, &others, file.as_deref(), &undo);
    }
    // `alive`, a number, stays open until this process ends.
}

/// All that is not the kernel's: open files, sockets and pipes must not be held beyond mqspan's end.
fn other_descriptors() -> Vec<RawFd> {
    let is_kept = |target: &OsStr| KEPT.iter().any(|kept| target.as_bytes().starts_with(kept));
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let others = entries.filter(|entry| !fs::read_link(entry.path()).is_ok_and(|target| is_kept(target.as_os_str())));
    others.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// In the child: system calls only.
fn wait_and_detach(ended: RawFd, alive: RawFd, others: &[RawFd], file: Option<&CStr>, undo: &[CString]) -> ! {
    // SAFETY: system calls on numbers and on strings that end with a NUL; a descriptor that is closed already is refused.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"mqspan-detach".as_ptr());
        libc::setsid();
        libc::close(alive);
        for fd in others.iter().filter(|fd| **fd != ended) {
            libc::close(*fd);
        }
        // Returns when mqspan has ended, with all its descriptors but for those that are shared.
        let mut byte = 0u8;
        while libc::read(ended, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        if let Some(file) = file {
            // Events of tracefs can be removed once nobody uses them.
            libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC);
            for line in undo {
                let bytes = line.to_bytes();
                libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            }
        }
        libc::_exit(0)
    }
}
