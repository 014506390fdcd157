//! A process that makes calls and times them, for `check --measure`: mqspan's own calls are not traced, those of a child of
//! it are. It makes them when it is told to, and ends with its parent.

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Read, Write};
use std::ptr;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Timed {
    /// mq_open of a queue that is missing: the cheapest call that runs all of it.
    Open,
    /// A message through a queue that nobody waits for: mq_timedsend and mq_timedreceive.
    Pass,
    /// A system call that is none of the family.
    Other,
}

impl Timed {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Open, Self::Pass, Self::Other];
}

/// The fastest of so many pieces of so many calls is what counts: nothing else fell into it. All of them are fewer than the
/// ring of calls holds.
const PIECES: usize = 6;
const CALLS: u32 = 500;
const SIZE: usize = 16;

/// The process.
#[derive(Debug)]
pub struct Caller {
    pid: Pid,
    ask: Option<File>,
    answer: File,
}

impl Caller {
    /// Forks it. This thread must be the only one.
    pub fn start() -> io::Result<Self> {
        let (asked, ask) = pipe2(OFlag::O_CLOEXEC)?;
        let (answer, told) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: there is no other thread, so that no lock can be held by one.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: child, ask: Some(ask.into()), answer: answer.into() }),
            ForkResult::Child => {
                drop((ask, answer));
                let status = make_calls(asked.into(), told.into()).map_or(1, |()| 0);
                // SAFETY: ends this process at once: what the parent's copies of buffers hold is the parent's.
                unsafe { libc::_exit(status) }
            }
        }
    }

    /// Nanoseconds that one of these takes now.
    pub fn time(&mut self, what: Timed) -> io::Result<f64> {
        self.ask.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(&[what as u8])?;
        let mut taken = [0; 8];
        self.answer.read_exact(&mut taken)?;
        Ok(f64::from_ne_bytes(taken))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.ask = None;
        let _ = waitpid(self.pid, None);
    }
}

fn make_calls(mut asked: File, mut told: File) -> io::Result<()> {
    let queue = OwnQueue::open()?;
    let mut what = [0];
    while asked.read(&mut what)? == 1 {
        let Some(what) = Timed::ALL.into_iter().find(|timed| *timed as u8 == what[0]) else { break };
        let mut least = Duration::MAX;
        for _ in 0..PIECES {
            let start = Instant::now();
            for _ in 0..CALLS {
                match what {
                    Timed::Open => open_missing(),
                    Timed::Pass => queue.pass()?,
                    // SAFETY: takes nothing, and can't fail.
                    Timed::Other => _ = unsafe { libc::syscall(libc::SYS_getppid) },
                }
            }
            least = least.min(start.elapsed());
        }
        told.write_all(&(least.as_nanos() as f64 / f64::from(CALLS)).to_ne_bytes())?;
    }
    Ok(())
}

fn open_missing() {
    // SAFETY: a name that ends with its NUL, and no more arguments without O_CREAT.
    unsafe { libc::mq_open(c"/mqspan-check-missing".as_ptr(), libc::O_RDONLY) };
}

/// A queue without a name.
struct OwnQueue(libc::mqd_t);

impl OwnQueue {
    fn open() -> io::Result<Self> {
        let name = CString::new(format!("/mqspan-check-{}", std::process::id()))?;
        // SAFETY: a structure of integers, for which zero is a value.
        let mut attr: libc::mq_attr = unsafe { std::mem::zeroed() };
        (attr.mq_maxmsg, attr.mq_msgsize) = (1, SIZE as _);
        let create = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        // SAFETY: a name that ends with its NUL, a mode and a structure that live until the calls return.
        let queue = unsafe { libc::mq_open(name.as_ptr(), create, 0o600 as libc::c_uint, &raw const attr) };
        let error = io::Error::last_os_error();
        // SAFETY: as above.
        unsafe { libc::mq_unlink(name.as_ptr()) };
        if queue < 0 { Err(error) } else { Ok(Self(queue)) }
    }

    fn pass(&self) -> io::Result<()> {
        let mut body = [0 as c_char; SIZE];
        // SAFETY: as many bytes as are named.
        let failed = unsafe {
            libc::mq_send(self.0, body.as_ptr(), SIZE, 0) < 0
                || libc::mq_receive(self.0, body.as_mut_ptr(), SIZE, ptr::null_mut()) < 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a call that fails, or none at all, from being timed as one that works.
    #[test]
    fn a_message_passes_and_nothing_is_left() {
        let Ok(queue) = OwnQueue::open() else { return assert!(!std::path::Path::new("/dev/mqueue").exists()) };
        queue.pass().unwrap();
        assert!(OwnQueue::open().is_ok(), "its name is free again");
    }
}
