//! A file system of one file (`/file`), served by a process of its own (FUSE), that never answers when the file's content is
//! asked for: whoever touches it waits.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, fork},
};

const ROOT: u64 = 1;
const FILE: u64 = 2;
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const DIRECT_IO: u32 = 1;
const SIZE: u64 = 1 << 20;

/// The process that serves it; with it the file system ends, and all that wait in it go on.
pub struct Server(Pid);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// Mounts it, for this process and its children alone.
pub fn mount(folder: &Path) -> Result<Server> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let (folder, options) = (CString::new(folder.as_os_str().as_encoded_bytes())?, CString::new(options)?);
    // SAFETY: strings that end with their NULs; only this process's mounts are changed, before it has any threads.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(c"workload".as_ptr(), folder.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast()) == 0
    };
    ensure!(done, "mount: {}", std::io::Error::last_os_error());
    // SAFETY: this process has no threads yet.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Server(child)),
        ForkResult::Child => {
            // SAFETY: asks to be killed with the parent.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let _ = serve(device);
            std::process::exit(0)
        }
    }
}

/// Answers everything but reads (linux/fuse.h).
fn serve(mut device: File) -> Result<()> {
    let mut request = vec![0; (1 << 20) + (1 << 12)];
    let mut opens = 0;
    loop {
        let len = device.read(&mut request)?;
        let word = |at: usize| request[at..at + 4].try_into().map(u32::from_ne_bytes);
        let long = |at: usize| request[at..at + 8].try_into().map(u64::from_ne_bytes);
        ensure!(len >= 40, "{len} bytes");
        let (opcode, unique, node) = (word(4)?, long(8)?, long(16)?);
        let answer = match opcode {
            INIT => {
                let mut out = vec![0; 64];
                out[..4].copy_from_slice(&7u32.to_ne_bytes());
                out[4..8].copy_from_slice(&31u32.to_ne_bytes());
                out[20..24].copy_from_slice(&(1u32 << 20).to_ne_bytes());
                Ok(out)
            }
            LOOKUP if node == ROOT && request[40..len].starts_with(b"file\0") => Ok([FILE, 0, 3600, 3600, 0]
                .map(u64::to_ne_bytes)
                .concat()
                .into_iter()
                .chain(attributes(FILE))
                .collect()),
            LOOKUP => Err(libc::ENOENT),
            GETATTR => Ok([3600, 0].map(u64::to_ne_bytes).concat().into_iter().chain(attributes(node)).collect()),
            OPEN => {
                opens += 1;
                // Mapping the second one drops what was read by the first, and waits for what is still being read.
                let flags = if opens == 2 { DIRECT_IO } else { 0 };
                Ok([&opens_handle(opens)[..], &flags.to_ne_bytes(), &[0; 4]].concat())
            }
            RELEASE => Ok(Vec::new()),
            READ | FORGET | BATCH_FORGET | INTERRUPT => continue,
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = answer.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let length = 16 + body.len() as u32;
        let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes()].concat();
        // One that was given up meanwhile is not there any more.
        let _ = device.write(&[head, body].concat());
    }
}

fn opens_handle(opens: u64) -> [u8; 8] {
    opens.to_ne_bytes()
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == ROOT { (libc::S_IFDIR | 0o755, 0) } else { (libc::S_IFREG | 0o755, SIZE) };
    let longs = [node, size, size / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
    [longs, words].concat()
}
