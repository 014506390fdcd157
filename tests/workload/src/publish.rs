//! A process context (OTEP 4719) as an application publishes it, in a memfd, and changes it.

use std::{
    env,
    ffi::CString,
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Result, bail, ensure};

use crate::{Publish, kernel};

const SIZE: usize = 4096;
const HEADER: usize = 32;

/// As which the mapping shows in /proc/PID/maps.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum Mapping {
    /// `/memfd:OTEL_CTX`
    Memfd,
    /// `[anon:OTEL_CTX]`
    Private,
    /// `[anon_shmem:OTEL_CTX]`
    Shared,
}

pub fn run(options: &Publish) -> Result<()> {
    let mapping = map(options.mapping)?;
    let queue = CString::new("workload-published")?;
    let mut lines = io::stdin().lock().lines();
    for name in &options.names {
        let is_named =
            publish(mapping, &resource(&[("service.name", name), ("service.instance.id", &format!("{name}-1"))]));
        println!("{}", if is_named { "published" } else { "published, but not named" });
        io::stdout().flush()?;
        // A line on stdin: a call; an empty one: on to the next name.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {
            kernel::mq_open(queue.as_ptr().addr(), libc::O_RDONLY as u32, 0, 0);
        }
    }
    if options.exec {
        bail!(Command::new(env::current_exe()?).args(["flat", "--calls", "1"]).exec());
    }
    Ok(())
}

/// A new mapping that is named so.
pub fn map(kind: Mapping) -> Result<*mut u8> {
    // SAFETY: a new file, and a new mapping, of all of it, that stays until the process ends.
    let mapping = unsafe {
        let (file, flags) = match kind {
            Mapping::Memfd => (libc::memfd_create(c"OTEL_CTX".as_ptr(), libc::MFD_CLOEXEC), libc::MAP_PRIVATE),
            Mapping::Private => (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            Mapping::Shared => (-1, libc::MAP_SHARED | libc::MAP_ANONYMOUS),
        };
        let sized = kind != Mapping::Memfd || libc::ftruncate(file, SIZE as libc::off_t) == 0;
        ensure!(sized, "memfd: {}", io::Error::last_os_error());
        libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0)
    };
    ensure!(mapping != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    Ok(mapping.cast())
}

/// Returns whether the kernel named the mapping.
pub fn publish(mapping: *mut u8, payload: &[u8]) -> bool {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: within the mapping, which is aligned and this thread's alone; other processes only read.
    unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now);
        let time = AtomicU64::from_ptr(mapping.add(16).cast());
        time.store(0, Ordering::SeqCst);
        let copy =
            |at: usize, bytes: &[u8]| std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.add(at), bytes.len());
        copy(0, b"OTEL_CTX");
        copy(8, &2_u32.to_ne_bytes());
        copy(12, &(payload.len() as u32).to_ne_bytes());
        copy(24, &(mapping.addr() + HEADER).to_ne_bytes());
        copy(HEADER, payload);
        time.store(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64, Ordering::SeqCst);
        // Whether the kernel can name mappings or not: this is what a reader is told by.
        libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, mapping, SIZE, c"OTEL_CTX".as_ptr()) == 0
    }
}

/// Points to a payload elsewhere in this process's memory.
pub fn point(mapping: *mut u8, payload: *const u8, len: u32) {
    // SAFETY: within the mapping, which is this thread's alone.
    unsafe {
        mapping.add(12).cast::<u32>().write_unaligned(len);
        mapping.add(24).cast::<u64>().write_unaligned(payload.addr() as u64);
    }
}

/// A field of a protobuf message that is shorter than 16 KiB.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    match bytes.len() as u16 {
        len @ ..0x80 => field.push(len as u8),
        len => field.extend([len as u8 | 0x80, (len >> 7) as u8]),
    }
    field.extend(bytes);
    field
}

/// The same as [`resource`] of doubles that are no numbers.
pub fn numbers() -> Vec<u8> {
    let attribute = |(key, value): (&str, f64)| {
        let double = [&[4 << 3 | 1][..], &value.to_le_bytes()].concat();
        field(1, &[field(1, key.as_bytes()), field(2, &double)].concat())
    };
    let doubles = [("nan", f64::NAN), ("up", f64::INFINITY), ("down", f64::NEG_INFINITY), ("finite", 1.5)];
    let attributes: Vec<u8> = doubles.into_iter().flat_map(attribute).collect();
    field(1, &attributes)
}

/// `ProcessContext { resource: Resource { attributes } }` of texts that are short.
pub fn resource(attributes: &[(&str, &str)]) -> Vec<u8> {
    let attribute = |(key, value): &(&str, &str)| {
        let value = field(2, &field(1, value.as_bytes()));
        field(1, &[field(1, key.as_bytes()), value].concat())
    };
    field(1, &attributes.iter().flat_map(attribute).collect::<Vec<_>>())
}
