//! mq_open's flags as strace shows them (its `open_access_modes` and `open_mode_flags`, fcntl.h of x86-64). Pure code.

use std::fmt::Write;

/// `O_CREAT`: with it mq_open takes a mode and an attr.
pub const O_CREAT: u32 = 0o100;

/// The flags whose bits each architecture has places of its own for (its asm/fcntl.h); all others are the same everywhere.
#[derive(Clone, Copy)]
struct Places {
    direct: u32,
    largefile: u32,
    directory: u32,
    nofollow: u32,
}

#[cfg_attr(all(target_arch = "aarch64", not(test)), expect(dead_code, reason = "the test compares both"))]
const X86: Places = Places { direct: 0o40000, largefile: 0o100000, directory: 0o200000, nofollow: 0o400000 };
#[cfg_attr(all(not(target_arch = "aarch64"), not(test)), expect(dead_code, reason = "the test compares both"))]
const ARM: Places = Places { direct: 0o200000, largefile: 0o400000, directory: 0o40000, nofollow: 0o100000 };

#[cfg(target_arch = "aarch64")]
const OWN: Places = ARM;
#[cfg(not(target_arch = "aarch64"))]
const OWN: Places = X86;

/// What is tried in this order; a name of several bits stands before those it is made of.
const fn names(places: Places) -> [(u32, &'static str); 19] {
    [
        (O_CREAT, "O_CREAT"),
        (0o200, "O_EXCL"),
        (0o400, "O_NOCTTY"),
        (0o1000, "O_TRUNC"),
        (0o2000, "O_APPEND"),
        (0o4000, "O_NONBLOCK"),
        (0o4010000, "O_SYNC"),
        (0o4000000, "__O_SYNC"),
        (0o10000, "O_DSYNC"),
        (places.direct, "O_DIRECT"),
        (places.largefile, "O_LARGEFILE"),
        (places.nofollow, "O_NOFOLLOW"),
        (0o1000000, "O_NOATIME"),
        (0o2000000, "O_CLOEXEC"),
        (0o10000000, "O_PATH"),
        (0o20000000 | places.directory, "O_TMPFILE"),
        (0o20000000, "__O_TMPFILE"),
        (places.directory, "O_DIRECTORY"),
        (0o20000, "FASYNC"),
    ]
}

/// The flags by name, `O_RDWR|O_CREAT|O_EXCL`; bits without a name in hex.
pub fn decode(oflag: u32) -> String {
    const NAMES: [(u32, &str); 19] = names(OWN);
    decode_by(&NAMES, oflag)
}

fn decode_by(names: &[(u32, &str)], oflag: u32) -> String {
    let mut out = String::from(["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][(oflag & 3) as usize]);
    let mut rest = oflag & !3;
    for &(bits, name) in names {
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(decode_by(&names(X86), oflag), expected, "{oflag:#x}");
        }
    }

    /// Prevents flags of one architecture from being read as another's: the four whose bits differ, each by itself, all at
    /// once, and in the one name that is made of two.
    #[test]
    fn of_each_architecture() {
        for (oflag, x86, arm) in [
            (0o40000, "O_DIRECT", "O_DIRECTORY"),
            (0o100000, "O_LARGEFILE", "O_NOFOLLOW"),
            (0o200000, "O_DIRECTORY", "O_DIRECT"),
            (0o400000, "O_NOFOLLOW", "O_LARGEFILE"),
            (0o740000, "O_DIRECT|O_LARGEFILE|O_NOFOLLOW|O_DIRECTORY", "O_DIRECT|O_LARGEFILE|O_NOFOLLOW|O_DIRECTORY"),
            (0o20200000, "O_TMPFILE", "O_DIRECT|__O_TMPFILE"),
            (0o20040000, "O_DIRECT|__O_TMPFILE", "O_TMPFILE"),
        ] {
            assert_eq!(decode_by(&names(X86), oflag), format!("O_RDONLY|{x86}"), "{oflag:#o}");
            assert_eq!(decode_by(&names(ARM), oflag), format!("O_RDONLY|{arm}"), "{oflag:#o}");
        }
        // libc has those of the architecture that this was compiled for.
        let own = [libc::O_DIRECT, libc::O_DIRECTORY, libc::O_NOFOLLOW].map(|flag| decode(flag.cast_unsigned()));
        assert_eq!(own, ["O_RDONLY|O_DIRECT", "O_RDONLY|O_DIRECTORY", "O_RDONLY|O_NOFOLLOW"]);
    }
}
