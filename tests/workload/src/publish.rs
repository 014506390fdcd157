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

pub fn run(options: &Publish) -> Result<()> {
    let mapping = map()?;
    let queue = CString::new("workload-published")?;
    let mut lines = io::stdin().lock().lines();
    for name in &options.names {
        publish(mapping, &resource(&[("service.name", name), ("service.instance.id", &format!("{name}-1"))]));
        println!("published");
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

fn map() -> Result<*mut u8> {
    // SAFETY: a new file, and a new mapping of all of it that stays until the process ends.
    let mapping = unsafe {
        let file = libc::memfd_create(c"OTEL_CTX".as_ptr(), libc::MFD_CLOEXEC);
        ensure!(file >= 0 && libc::ftruncate(file, SIZE as i64) == 0, "memfd: {}", io::Error::last_os_error());
        libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE, file, 0)
    };
    ensure!(mapping != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    Ok(mapping.cast())
}

fn publish(mapping: *mut u8, payload: &[u8]) {
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
        libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, mapping, SIZE, c"OTEL_CTX".as_ptr());
    }
}

/// `ProcessContext { resource: Resource { attributes } }` of texts that are short.
fn resource(attributes: &[(&str, &str)]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let mut field = vec![number << 3 | 2];
        match bytes.len() as u16 {
            len @ ..0x80 => field.push(len as u8),
            len => field.extend([len as u8 | 0x80, (len >> 7) as u8]),
        }
        field.extend(bytes);
        field
    };
    let attribute = |(key, value): &(&str, &str)| {
        let value = field(2, &field(1, value.as_bytes()));
        field(1, &[field(1, key.as_bytes()), value].concat())
    };
    field(1, &attributes.iter().flat_map(attribute).collect::<Vec<_>>())
}
