//! How mq_notify is asked to notify: methods and signals by name. Pure code.

use std::borrow::Cow;

use nix::sys::signal::Signal;

/// sigev_notify of `SIGEV_SIGNAL` (include/uapi/asm-generic/siginfo.h).
pub const SIGEV_SIGNAL: i32 = 0;
/// The first real-time signal that programs may use: the C library keeps two of the kernel's for itself (signal(7)).
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// `SIGEV_SIGNAL` and so on; what the kernel does not know in hex.
pub fn method(method: i32) -> Cow<'static, str> {
    match method {
        SIGEV_SIGNAL => "SIGEV_SIGNAL".into(),
        1 => "SIGEV_NONE".into(),
        2 => "SIGEV_THREAD".into(),
        other => format!("{other:#x}").into(),
    }
}

/// `SIGUSR1`, `SIGRTMIN+3`; the number where it has no name.
pub fn signal(signo: i32) -> Cow<'static, str> {
    match (signo, Signal::try_from(signo)) {
        (_, Ok(signal)) => signal.as_str().into(),
        (SIGRTMIN, _) => "SIGRTMIN".into(),
        (SIGRTMIN..=SIGRTMAX, _) => format!("SIGRTMIN+{}", signo - SIGRTMIN).into(),
        _ => signo.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a signal from being shown by another's name, and an unknown method from being guessed.
    #[test]
    fn names() {
        for (number, expected) in [(0, "SIGEV_SIGNAL"), (1, "SIGEV_NONE"), (2, "SIGEV_THREAD"), (4, "0x4")] {
            assert_eq!(method(number), expected);
        }
        assert_eq!(method(-1), "0xffffffff");
        for (number, expected) in [
            (10, "SIGUSR1"),
            (34, "SIGRTMIN"),
            (37, "SIGRTMIN+3"),
            (64, "SIGRTMIN+30"),
            (33, "33"),
            (65, "65"),
            (0, "0"),
            (-1, "-1"),
        ] {
            assert_eq!(signal(number), expected);
        }
    }
}
