//! A call of mqspan's own, which changes nothing: what is attached must see it. kprobes can be disarmed and function tracing
//! switched off for the whole host, and the kernel attaches all the same.

use std::ptr;

use nix::errno::Errno;

use crate::model::values::Op;

/// What to do where it is not seen.
pub const UNSEEN: &str = "they are attached, but a call of mqspan's own was not seen: kernel.ftrace_enabled may be 0 (sysctl -w \
                          kernel.ftrace_enabled=1), or kprobes disarmed (echo 1 > /sys/kernel/debug/kprobes/enabled)";

/// Makes the call with arguments that the kernel refuses at once: no name, no descriptor. Returns whether it came so far:
/// where a seccomp filter refused it nothing is learnt.
pub fn make(call: Op) -> bool {
    let none = ptr::null::<libc::c_void>();
    // SAFETY: the kernel refuses each (EFAULT, EBADF) before it reads or writes any of this process's memory.
    unsafe {
        match call {
            Op::MqOpen => libc::syscall(libc::SYS_mq_open, none, 0, 0, none),
            Op::MqUnlink => libc::syscall(libc::SYS_mq_unlink, none),
            Op::MqTimedsend => libc::syscall(libc::SYS_mq_timedsend, -1, none, 0, 0, none),
            Op::MqTimedreceive => libc::syscall(libc::SYS_mq_timedreceive, -1, none, 0, none, none),
            Op::MqNotify => libc::syscall(libc::SYS_mq_notify, -1, none),
            Op::MqGetsetattr => libc::syscall(libc::SYS_mq_getsetattr, -1, none, none),
        }
    };
    matches!(Errno::last(), Errno::EFAULT | Errno::EBADF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::hooks::CALLS;

    /// Prevents mqspan's own call from changing anything, or from saying nothing.
    #[test]
    fn each_is_refused_by_the_kernel() {
        for (call, name) in CALLS {
            assert!(make(call), "{name}: {}", Errno::last());
        }
    }
}
