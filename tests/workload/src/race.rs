//! Arguments that another thread changes between a call's entry and the kernel's own reading of them.

use std::{
    ffi::{CStr, CString},
    fmt::Write as _,
    fs::{self, File},
    hint,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd, FromRawFd},
    ptr,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::{Race, call::Attr, kernel, timing::stay_on};

const PAGE: usize = 4096;
const CREATE: u32 = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
const ATTR: Attr = [0, 2, 16, 0, 0, 0, 0, 0];
const BEFORE: &CStr = c"race-before";
const AFTER: &CStr = c"race-behind";

pub fn run(options: &Race) -> Result<()> {
    let mut record = String::new();
    names(options.calls, &mut record)?;
    attrs(options.calls, &mut record)?;
    Ok(fs::write(&options.print, record)?)
}

/// The name changes: the kernel reads attr first, which is not there until the name is another.
fn names(calls: u64, record: &mut String) -> Result<()> {
    let faults = Faults::new()?;
    let name = CString::from(BEFORE).into_raw();
    let at = name.expose_provenance();
    for _ in 0..calls {
        faults.take_away()?;
        put(at, BEFORE);
        let fd = thread::scope(|scope| {
            let other = scope.spawn(|| {
                faults.await_one()?;
                put(at, AFTER);
                faults.fill(&ATTR)
            });
            let fd = kernel::mq_open(at, CREATE, 0o600, faults.page);
            other.join().unwrap_or(Ok(())).map(|()| fd)
        })?;
        let fd = queue(fd)?;
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        writeln!(record, "name\t{}", path.display())?;
        kernel::mq_unlink(&AFTER.into());
    }
    // SAFETY: into_raw() gave it, and its length is the same.
    drop(unsafe { CString::from_raw(name) });
    Ok(())
}

/// Names of one length.
fn put(at: usize, name: &CStr) {
    // SAFETY: the caller has as much memory there, which only the kernel reads.
    unsafe { ptr::copy_nonoverlapping(name.as_ptr(), ptr::with_exposed_provenance_mut(at), BEFORE.count_bytes()) };
}

fn queue(result: i64) -> Result<File> {
    ensure!(result >= 0, "mq_open: {result}");
    // SAFETY: the call has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(result as i32) })
}

/// Attr changes: all the time, so that as a rule a call's two readings of it have nothing to do with each other.
fn attrs(calls: u64, record: &mut String) -> Result<()> {
    let attr = ATTR.map(AtomicI64::new);
    let done = AtomicBool::new(false);
    // On one CPU the two would take turns, and never meet.
    stay_on(Some(0))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            // Where there is no other, nothing changes while the kernel reads.
            let _ = stay_on(Some(1));
            while !done.load(Ordering::Relaxed) {
                attr[1].fetch_xor(1, Ordering::Relaxed);
            }
        });
        let outcome = (0..calls).try_for_each(|_| {
            // Not before the other is seen to run: on a busy machine it may not for long.
            for _ in 0..3 {
                let seen = attr[1].load(Ordering::Relaxed);
                while attr[1].load(Ordering::Relaxed) == seen {
                    hint::spin_loop();
                }
            }
            let name = CString::from(c"race-attr");
            let fd = queue(kernel::mq_open(name.as_ptr().addr(), CREATE, 0o600, attr.as_ptr().addr()))?;
            kernel::mq_unlink(&name);
            Ok(writeln!(record, "attr\t{}", kernel::mq_getattr(fd.as_fd())?[1])?)
        });
        done.store(true, Ordering::Relaxed);
        outcome
    })
}

/// A page that is not there until it is given, by userfaultfd(2).
struct Faults {
    file: File,
    page: usize,
}

impl Faults {
    fn new() -> Result<Self> {
        // include/uapi/linux/userfaultfd.h
        const API: u64 = 0xc018_aa3f;
        const REGISTER: u64 = 0xc020_aa00;
        const MISSING: u64 = 1;
        // SAFETY: makes a descriptor, or fails.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        ensure!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
        // SAFETY: the call has just returned this descriptor, and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fd as i32) };
        let (flags, protection) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: new memory, of nobody else.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        ensure!(page != libc::MAP_FAILED, io::Error::last_os_error());
        let this = Self { file, page: page.expose_provenance() };
        this.order(API, &mut [0xaa, 0, 0])?;
        this.order(REGISTER, &mut [this.page as u64, PAGE as u64, MISSING, 0])?;
        Ok(this)
    }

    fn order(&self, order: u64, argument: &mut [u64]) -> Result<()> {
        // SAFETY: the argument is as long as the order says.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), order as libc::Ioctl, argument.as_mut_ptr()) };
        ensure!(result == 0, "userfaultfd: {order:#x}: {}", io::Error::last_os_error());
        Ok(())
    }

    fn take_away(&self) -> Result<()> {
        let page = ptr::with_exposed_provenance_mut(self.page);
        // SAFETY: the page is our own, and nothing in it is used again.
        let result = unsafe { libc::madvise(page, PAGE, libc::MADV_DONTNEED) };
        ensure!(result == 0, io::Error::last_os_error());
        Ok(())
    }

    /// Returns once the kernel waits for the page.
    fn await_one(&self) -> Result<()> {
        // A struct uffd_msg.
        (&self.file).read_exact(&mut [0; 32]).context("userfaultfd")
    }

    fn fill(&self, attr: &Attr) -> Result<()> {
        const COPY: u64 = 0xc028_aa03;
        let mut page = [0_i64; PAGE / 8];
        page[..attr.len()].copy_from_slice(attr);
        self.order(COPY, &mut [self.page as u64, page.as_ptr().addr() as u64, PAGE as u64, 0, 0])
    }
}
