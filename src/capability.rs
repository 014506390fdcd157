//! Capabilities of this thread (capabilities(7)). A program that was given them by setcap runs for whoever may execute it:
//! those that pass over the permissions of files must not help with the files that this user names (`--stats-file`,
//! `--config`), only with the kernel's own. So they are laid down at the start, and taken up by the threads that need them.

use std::io;

/// Passes over the permission to read and to write files: tracefs's, to make kprobes.
pub const DAC_OVERRIDE: u32 = 1;
/// Passes over the permission to read files: tracefs's, and those of other processes.
pub const DAC_READ_SEARCH: u32 = 2;

/// Version 3: two words for each set (include/uapi/linux/capability.h).
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Lays down what passes over files' permissions, in this thread and in those that it starts from now on. root's own are
/// left: it needs none to get at a file.
pub fn lay_down() -> io::Result<()> {
    // SAFETY: asks for a number only.
    match unsafe { libc::geteuid() } {
        0 => Ok(()),
        _ => change(|sets| sets.effective &= !(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)),
    }
}

/// Takes up a capability in this thread, where the process was given it; whether it has it now is for what needs it to find
/// out.
pub fn take_up(capability: u32) {
    // One that was not given can't be taken up: the call that needs it says so.
    let _ = change(|sets| sets.effective |= sets.permitted & (1 << capability));
}

fn change(change: impl FnOnce(&mut Sets)) -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: a header and two sets of the version that it names, which the kernel fills.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    change(&mut sets[0]);
    // SAFETY: as above; the kernel only reads them.
    match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a change of one thread's capabilities from failing where it has none, and from giving it any.
    #[test]
    fn none_is_made_up() {
        let effective = || {
            let mut all = Sets::default();
            change(|sets| all = *sets).unwrap();
            all.effective
        };
        std::thread::spawn(move || {
            let before = effective();
            change(|sets| sets.effective &= !(1 << DAC_READ_SEARCH)).unwrap();
            take_up(DAC_READ_SEARCH);
            assert_eq!(effective(), before);
        })
        .join()
        .unwrap();
    }
}
