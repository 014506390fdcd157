//! One randomised call of mq_open: what is passed, and from where in memory.

use crate::{memory::Place, rng::Rng};

/// Queues that all threads share: as many as now and then take the 800 KiB that a user's queues may take together
/// (`RLIMIT_MSGQUEUE`), of which one made without attr takes a tenth.
const SHARED: u64 = 24;

const CREATE: u32 = libc::O_CREAT as u32;

/// `struct mq_attr` as the kernel reads it: flags, maxmsg, msgsize, curmsgs, and four that are reserved.
pub type Attr = [i64; 8];

pub struct Call {
    pub name: Vec<u8>,
    pub name_at: Place,
    pub oflag: u32,
    pub mode: u32,
    pub attr: Attr,
    pub attr_at: Place,
    /// Whether the queue is unlinked once this call has succeeded.
    pub unlink: bool,
}

impl Call {
    /// `bit` is the single bit of oflag to try if it comes to that: counting through them leaves none out.
    pub fn random(rng: &mut Rng, seed: u64, bit: u64) -> Self {
        let shared = rng.below(5) < 2;
        let name = if shared { shared_name(seed, rng.below(SHARED)) } else { odd_name(rng) };
        // A random name might be that of a queue which is somebody else's: what is unlinked must be made here.
        let exclusive = if shared { 0 } else { libc::O_EXCL as u32 };
        let oflag = match oflag(rng, bit) {
            oflag if oflag & CREATE != 0 => oflag | exclusive,
            oflag => oflag,
        };
        Self {
            name_at: name_place(rng, &name),
            name,
            oflag,
            mode: mode(rng),
            attr: attr(rng),
            attr_at: attr_place(rng),
            unlink: if shared { rng.one_in(8) } else { oflag & CREATE != 0 },
        }
    }
}

pub fn shared_names(seed: u64) -> impl Iterator<Item = Vec<u8>> {
    (0..SHARED).map(move |number| shared_name(seed, number))
}

fn shared_name(seed: u64, number: u64) -> Vec<u8> {
    format!("workload-{seed}-{number}").into_bytes()
}

fn odd_name(rng: &mut Rng) -> Vec<u8> {
    const WRITTEN: [&[u8]; 24] = [
        b"",
        b".",
        b"..",
        b"...",
        b"/",
        b"//",
        b"/absolute",
        b"inner/slash",
        b"trailing/",
        b"a b",
        b" ",
        b"*?[a-z]",
        b"\x1b[31mred\x1b[0m",
        b"\x1b]0;title\x07",
        b"line\r\nbreak\ttab",
        b"\x7f\x01\x02",
        b"\"double\" 'single'",
        b"back\\slash\\",
        br"\x41",
        br"\\x41\n\101",
        b"\xff\xfe",
        b"cut \xe2\x82",
        "Größe 队列 🦀".as_bytes(),
        "\u{202e}left".as_bytes(),
    ];
    const LENGTHS: [u64; 12] = [1, 2, 254, 255, 256, 257, 300, 511, 4094, 4095, 4096, 5000];
    match rng.below(8) {
        0..4 => rng.pick(&WRITTEN).to_vec(),
        4 => letters(rng.pick(&LENGTHS), rng),
        5 | 6 => letters(rng.between(1, 255), rng),
        _ => (0..rng.between(1, 255)).map(|_| rng.between(1, 255) as u8).collect(),
    }
}

fn letters(length: u64, rng: &mut Rng) -> Vec<u8> {
    (0..length).map(|_| b'a' + rng.below(26) as u8).collect()
}

fn oflag(rng: &mut Rng, bit: u64) -> u32 {
    let access = rng.pick(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR]) as u32;
    match rng.below(8) {
        0 | 1 => rng.next() as u32,
        2 | 3 => 1 << (bit % 32),
        4 => access | CREATE | 1 << (bit % 32),
        _ => {
            let common = [libc::O_CREAT, libc::O_CREAT, libc::O_EXCL, libc::O_NONBLOCK, libc::O_CLOEXEC];
            common.iter().fold(access, |oflag, &flag| if rng.one_in(2) { oflag | flag as u32 } else { oflag })
        }
    }
}

/// The kernel takes the low 16 bits; callers may pass more.
fn mode(rng: &mut Rng) -> u32 {
    match rng.below(3) {
        0 => 0o600 | rng.below(0o1000) as u32,
        1 => rng.below(1 << 16) as u32,
        _ => rng.next() as u32,
    }
}

fn attr(rng: &mut Rng) -> Attr {
    let flags = rng.pick(&[0, 0, i64::from(libc::O_NONBLOCK), -1]);
    let (maxmsg, msgsize) = match rng.below(8) {
        0..3 => (rng.between(1, 10), rng.between(1, 256)),
        3 => (10, rng.between(4096, 8192)),
        4 => (rng.between(1, 200), rng.between(1, 1 << 16)),
        5 => (rng.below(2), rng.below(2)),
        6 => (rng.below(20).wrapping_neg(), rng.next()),
        _ => (rng.next(), 1 << rng.below(64)),
    };
    let curmsgs = if rng.one_in(4) { rng.next() } else { rng.below(10) };
    let reserved = if rng.one_in(8) { -1 } else { 0 };
    [flags, maxmsg.cast_signed(), msgsize.cast_signed(), curmsgs.cast_signed(), reserved, reserved, reserved, reserved]
}

fn name_place(rng: &mut Rng, name: &[u8]) -> Place {
    match rng.below(20) {
        0 => Place::Null,
        1 => wild(rng),
        // Whether a longer name is too long or can't be read depends on how far one reads.
        2 if name.len() <= 255 => Place::Cut,
        3 | 4 => Place::Absent,
        5 => Place::Torn,
        6 | 7 => Place::Edge,
        _ => Place::Resident,
    }
}

fn attr_place(rng: &mut Rng) -> Place {
    match rng.below(20) {
        0..4 => Place::Null,
        4 => wild(rng),
        5 => Place::Cut,
        6 | 7 => Place::Absent,
        8 => Place::Torn,
        9 | 10 => Place::Edge,
        _ => Place::Resident,
    }
}

/// Near zero, at the end of user space, between the halves of the address space, in the kernel's half.
fn wild(rng: &mut Rng) -> Place {
    Place::Wild(rng.pick(&[
        1,
        0x10,
        0x7fff_ffff_f000,
        0x8000_0000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_ffff_8100_0000,
        usize::MAX,
    ]))
}
