//! The family's calls as a native caller makes them, and as 32-bit ones do: on x86_64 a process of either kind reaches
//! the others' entry by `int $0x80`.

use std::{io, ptr};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

const PAGE: usize = 4096;

/// How the caller lays out its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Abi {
    Native,
    /// With a timespec of 64 bits.
    Ia32,
    /// With one of 32.
    Ia32Time32,
}

#[derive(Clone, Copy, Debug)]
pub enum Call {
    Open,
    Unlink,
    Send,
    Receive,
    Notify,
    Getsetattr,
}

impl Abi {
    /// The call's number: arch/x86/entry/syscalls/syscall_32.tbl has those of 32-bit callers.
    pub fn number(self, call: Call) -> i64 {
        match (self, call) {
            (Self::Native, Call::Open) => libc::SYS_mq_open,
            (Self::Native, Call::Unlink) => libc::SYS_mq_unlink,
            (Self::Native, Call::Send) => libc::SYS_mq_timedsend,
            (Self::Native, Call::Receive) => libc::SYS_mq_timedreceive,
            (Self::Native, Call::Notify) => libc::SYS_mq_notify,
            (Self::Native, Call::Getsetattr) => libc::SYS_mq_getsetattr,
            (_, Call::Open) => 277,
            (_, Call::Unlink) => 278,
            (Self::Ia32, Call::Send) => 418,
            (Self::Ia32, Call::Receive) => 419,
            (Self::Ia32Time32, Call::Send) => 279,
            (Self::Ia32Time32, Call::Receive) => 280,
            (_, Call::Notify) => 281,
            (_, Call::Getsetattr) => 282,
        }
    }

    /// What the kernel returns. Addresses are such as [`Low`] gives: those of 32-bit callers have no more bits.
    pub fn call(self, call: Call, args: [usize; 5]) -> i64 {
        let number = self.number(call);
        if self != Self::Native {
            return by_interrupt(number as u32, args.map(|arg| arg as u32)).into();
        }
        let [a, b, c, d, e] = args;
        // SAFETY: the kernel checks each address; what it may write to is memory of Low.
        match unsafe { libc::syscall(number, a, b, c, d, e) } {
            -1 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or_default()),
            result => result,
        }
    }

    /// Integers as long as this caller's `long`.
    pub fn longs(self, values: &[i64]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_ne_bytes()[..if self == Self::Native { 8 } else { 4 }].to_vec())
            .collect()
    }

    pub fn timespec(self, ns: i64) -> Vec<u8> {
        let (sec, nsec) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
        self.raw_timespec(sec, nsec)
    }

    pub fn raw_timespec(self, sec: i64, nsec: i64) -> Vec<u8> {
        match self {
            Self::Ia32Time32 => [sec, nsec].iter().flat_map(|part| (*part as i32).to_ne_bytes()).collect(),
            // What a 32-bit caller has in the upper half of the nanoseconds is nobody's business.
            Self::Ia32 => [sec.to_ne_bytes(), (nsec & 0xffff_ffff | 0x7777 << 32).to_ne_bytes()].concat(),
            Self::Native => [sec.to_ne_bytes(), nsec.to_ne_bytes()].concat(),
        }
    }

    /// A struct sigevent.
    pub fn event(self, method: i32, signal: i32) -> Vec<u8> {
        let mut event = self.longs(&[0]);
        event.extend([signal, method].iter().flat_map(|part| part.to_ne_bytes()));
        event.resize(64, 0);
        event
    }
}

#[cfg(target_arch = "x86_64")]
fn by_interrupt(number: u32, [a, b, c, d, e]: [u32; 5]) -> i32 {
    let result: i32;
    // SAFETY: as any system call; ebx is the compiler's own and comes back, older kernels clear r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first:r}", "int 0x80", "xchg rbx, {first:r}",
            first = inout(reg) u64::from(a) => _, inlateout("eax") number => result,
            in("ecx") b, in("edx") c, in("esi") d, in("edi") e,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// No other architecture lets a 64-bit process call as a 32-bit one.
#[cfg(not(target_arch = "x86_64"))]
fn by_interrupt(_: u32, _: [u32; 5]) -> i32 {
    -libc::ENOSYS
}

/// A page of memory that 32-bit callers can name, given away bit by bit.
pub struct Low {
    base: usize,
    used: usize,
}

impl Low {
    pub fn new() -> Result<Self> {
        #[cfg(target_arch = "x86_64")]
        const LOW: i32 = libc::MAP_32BIT;
        #[cfg(not(target_arch = "x86_64"))]
        const LOW: i32 = 0;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | LOW;
        // SAFETY: new memory, of nobody else.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        ensure!(mapped != libc::MAP_FAILED, io::Error::last_os_error());
        Ok(Self { base: mapped.expose_provenance(), used: 0 })
    }

    /// The address of a copy, which stays.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        let at = self.base + self.used;
        self.used += bytes.len().next_multiple_of(16);
        (self.used <= PAGE).then_some(()).context("no more room")?;
        // SAFETY: within the mapping, and given to nobody before.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), ptr::with_exposed_provenance_mut(at), bytes.len()) };
        Ok(at)
    }
}
