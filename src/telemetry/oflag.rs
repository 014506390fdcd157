//! mq_open's flags as strace shows them (its `open_access_modes` and `open_mode_flags`, fcntl.h of x86-64). Pure code.

use std::fmt::Write;

/// `O_CREAT`: with it mq_open takes a mode and an attr.
pub const O_CREAT: u32 = 0o100;

/// What is tried in this order; a name of several bits stands before those it is made of.
const NAMES: [(u32, &str); 19] = [
    (O_CREAT, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o4010000, "O_SYNC"),
    (0o4000000, "__O_SYNC"),
    (0o10000, "O_DSYNC"),
    (DIRECT, "O_DIRECT"),
    (LARGEFILE, "O_LARGEFILE"),
    (NOFOLLOW, "O_NOFOLLOW"),
    (0o1000000, "O_NOATIME"),
    (0o2000000, "O_CLOEXEC"),
    (0o10000000, "O_PATH"),
    (0o20000000 | DIRECTORY, "O_TMPFILE"),
    (0o20000000, "__O_TMPFILE"),
    (DIRECTORY, "O_DIRECTORY"),
    (0o20000, "FASYNC"),
];

#[cfg(not(target_arch = "aarch64"))]
const DIRECT: u32 = 0o40000;
#[cfg(not(target_arch = "aarch64"))]
const LARGEFILE: u32 = 0o100000;
#[cfg(not(target_arch = "aarch64"))]
const DIRECTORY: u32 = 0o200000;
#[cfg(not(target_arch = "aarch64"))]
const NOFOLLOW: u32 = 0o400000;
#[cfg(target_arch = "aarch64")]
const DIRECTORY: u32 = 0o40000;
#[cfg(target_arch = "aarch64")]
const NOFOLLOW: u32 = 0o100000;
#[cfg(target_arch = "aarch64")]
const DIRECT: u32 = 0o200000;
#[cfg(target_arch = "aarch64")]
const LARGEFILE: u32 = 0o400000;

/// The flags by name, `O_RDWR|O_CREAT|O_EXCL`; bits without a name in hex.
pub fn decode(oflag: u32) -> String {
    let mut out = String::from(["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][(oflag & 3) as usize]);
    let mut rest = oflag & !3;
    for (bits, name) in NAMES {
        if rest & bits == bits {
            out.push('|');
            out.push_str(name);
            rest &= !bits;
        }
    }
    if rest != 0 {
        // Writing to a String cannot fail.
        let _ = write!(out, "|{rest:#x}");
    }
    out
}

#[cfg(all(test, not(target_arch = "aarch64")))]
mod tests {
    use super::decode;

    /// Prevents flags from being shown otherwise than strace 6.1 does: these are its own words.
    #[test]
    fn as_strace_shows_them() {
        for (oflag, expected) in [
            (0, "O_RDONLY"),
            (0o102, "O_RDWR|O_CREAT"),
            (3, "O_ACCMODE"),
            (0x101000, "O_RDONLY|O_SYNC"),
            (0x1000, "O_RDONLY|O_DSYNC"),
            (0x100000, "O_RDONLY|__O_SYNC"),
            (0x410000, "O_RDONLY|O_TMPFILE"),
            (0x400000, "O_RDONLY|__O_TMPFILE"),
            (0x80000000, "O_RDONLY|0x80000000"),
            (
                0xffffffff,
                "O_ACCMODE|O_CREAT|O_EXCL|O_NOCTTY|O_TRUNC|O_APPEND|O_NONBLOCK|O_SYNC|O_DIRECT|O_LARGEFILE|O_NOFOLLOW|\
                 O_NOATIME|O_CLOEXEC|O_PATH|O_TMPFILE|FASYNC|0xff80003c",
            ),
            (
                0xf2fff80,
                "O_RDONLY|O_EXCL|O_NOCTTY|O_TRUNC|O_APPEND|O_NONBLOCK|O_DSYNC|O_DIRECT|O_LARGEFILE|O_NOFOLLOW|\
                 O_NOATIME|O_CLOEXEC|O_PATH|O_DIRECTORY|FASYNC|0xf000000",
            ),
        ] {
            assert_eq!(decode(oflag), expected, "{oflag:#x}");
        }
    }
}
