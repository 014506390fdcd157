//! The family's calls as a native caller makes them, and as 32-bit ones do: on x86_64 a process of either kind reaches
//! the others' entry by `int $0x80`; on arm64 there is none, and this program built for 32-bit ARM is what calls so.

use std::{ffi::c_long, io, ptr};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::kernel::wide;

const PAGE: usize = 4096;

/// How the caller lays out its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Abi {
    Native,
    /// A 32-bit one, with a timespec of 64 bits.
    Compat,
    /// With one of 32.
    CompatTime32,
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
    /// The call's number. Those of 32-bit callers: arch/x86/entry/syscalls/syscall_32.tbl, arch/arm/tools/syscall.tbl.
    pub fn number(self, call: Call) -> c_long {
        const FIRST: c_long = if cfg!(target_arch = "x86_64") { 277 } else { 274 };
        match (self, call) {
            (Self::Native, Call::Open) => libc::SYS_mq_open,
            (Self::Native, Call::Unlink) => libc::SYS_mq_unlink,
            (Self::Native, Call::Send) => libc::SYS_mq_timedsend,
            (Self::Native, Call::Receive) => libc::SYS_mq_timedreceive,
            (Self::Native, Call::Notify) => libc::SYS_mq_notify,
            (Self::Native, Call::Getsetattr) => libc::SYS_mq_getsetattr,
            (_, Call::Open) => FIRST,
            (_, Call::Unlink) => FIRST + 1,
            (Self::Compat, Call::Send) => 418,
            (Self::Compat, Call::Receive) => 419,
            (Self::CompatTime32, Call::Send) => FIRST + 2,
            (Self::CompatTime32, Call::Receive) => FIRST + 3,
            (_, Call::Notify) => FIRST + 4,
            (_, Call::Getsetattr) => FIRST + 5,
        }
    }

    /// What the kernel returns. Addresses are such as [`Low`] gives: those of 32-bit callers have no more bits.
    pub fn call(self, call: Call, args: [usize; 5]) -> i64 {
        match self {
            Self::Native => by_libc(self.number(call), args),
            Self::Compat | Self::CompatTime32 => as_32_bit_caller(self.number(call), args),
        }
    }

    /// Integers as long as this caller's `long`.
    pub fn longs(self, values: &[i64]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| {
                value.to_ne_bytes()[..if self == Self::Native { size_of::<c_long>() } else { 4 }].to_vec()
            })
            .collect()
    }

    pub fn timespec(self, ns: i64) -> Vec<u8> {
        let (sec, nsec) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
        self.raw_timespec(sec, nsec)
    }

    pub fn raw_timespec(self, sec: i64, nsec: i64) -> Vec<u8> {
        match self {
            Self::CompatTime32 => [sec, nsec].iter().flat_map(|part| (*part as i32).to_ne_bytes()).collect(),
            // What a 32-bit caller has in the upper half of the nanoseconds is nobody's business.
            Self::Compat => [sec.to_ne_bytes(), (nsec & 0xffff_ffff | 0x7777 << 32).to_ne_bytes()].concat(),
            Self::Native => self.longs(&[sec, nsec]),
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

fn by_libc(number: c_long, [a, b, c, d, e]: [usize; 5]) -> i64 {
    // SAFETY: the kernel checks each address; what it may write to is memory of Low.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        -1 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or_default()),
        result => wide(result),
    }
}

#[cfg(target_arch = "x86_64")]
fn as_32_bit_caller(number: c_long, args: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = args.map(|arg| arg as u32);
    let result: i32;
    // SAFETY: as any system call; ebx is the compiler's own and comes back, older kernels clear r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first:r}", "int 0x80", "xchg rbx, {first:r}",
            first = inout(reg) u64::from(a) => _, inlateout("eax") number as u32 => result,
            in("ecx") b, in("edx") c, in("esi") d, in("edi") e,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result.into()
}

/// This process is one itself.
#[cfg(target_pointer_width = "32")]
fn as_32_bit_caller(number: c_long, args: [usize; 5]) -> i64 {
    by_libc(number, args)
}

/// No other architecture lets a 64-bit process call as a 32-bit one.
#[cfg(not(any(target_arch = "x86_64", target_pointer_width = "32")))]
fn as_32_bit_caller(_: c_long, _: [usize; 5]) -> i64 {
    -i64::from(libc::ENOSYS)
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
