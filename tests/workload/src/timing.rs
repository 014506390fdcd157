//! How long calls take that do as little as they can: a failing mq_open, messages that nobody waits for and such that somebody
//! does, and a call that has nothing to do with queues.

use std::{
    ffi::CString,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{kernel, open};

/// How many calls are timed, where.
#[derive(clap::Args)]
pub struct Pieces {
    /// In each piece
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    calls: u64,

    /// The fastest of so many counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pieces: u64,

    /// Stay on this CPU
    #[arg(long)]
    cpu: Option<usize>,
}

/// Opens a queue that is missing, the cheapest call that runs all of mq_open.
pub fn flat(Pieces { calls, pieces, cpu }: Pieces) -> Result<()> {
    stay_on(cpu)?;
    let name = c"workload-missing";
    time(calls, pieces, || {
        let missing =
            (0..calls).filter(|_| kernel::mq_open(name.as_ptr().addr(), 0, 0, 0) == -i64::from(libc::ENOENT)).count();
        ensure!(missing as u64 == calls, "{name:?} exists");
        Ok(())
    })
}

/// Passes small messages through a queue of its own.
pub fn pass(Pieces { calls, pieces, cpu }: Pieces) -> Result<()> {
    const SIZE: usize = 16;
    ensure!(calls >= 2, "a send and a receive make two calls");
    stay_on(cpu)?;
    let name = CString::new(format!("workload-pass-{}", std::process::id()))?;
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    let queue = kernel::open_queue(&name, create, &[0, 2, SIZE as i64, 0, 0, 0, 0, 0])?;
    kernel::mq_unlink(&name);
    let (queue, mut body) = (queue.as_raw_fd(), [0_u8; SIZE]);
    time(calls / 2 * 2, pieces, || {
        for _ in 0..calls / 2 {
            ensure!(kernel::mq_timedsend(queue, body.as_ptr().addr(), SIZE, 0, 0) == 0, "a send failed");
            let received = kernel::mq_timedreceive(queue, body.as_mut_ptr().addr(), SIZE, 0, 0);
            ensure!(received == SIZE as i64, "a receive failed: {received}");
        }
        Ok(())
    })
}

/// Passes messages to another process, which answers each; both wait for the other.
pub fn ping(Pieces { calls, pieces, cpu }: Pieces) -> Result<()> {
    const A_ROUND: u64 = 4;
    ensure!(calls >= A_ROUND, "a message and its answer make four calls");
    stay_on(cpu)?;
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    let open = |way: &str| -> Result<_> {
        let name = CString::new(format!("workload-{way}-{}", std::process::id()))?;
        let queue = kernel::open_queue(&name, create, &[0, 1, 1, 0, 0, 0, 0, 0]);
        kernel::mq_unlink(&name);
        Ok(queue?)
    };
    let (there, back) = (open("ping")?, open("pong")?);
    let (there, back) = (there.as_raw_fd(), back.as_raw_fd());
    let send = |queue, size| kernel::mq_timedsend(queue, [0_u8].as_ptr().addr(), size, 0, 0);
    let receive = |queue| kernel::mq_timedreceive(queue, [0_u8].as_mut_ptr().addr(), 1, 0, 0);
    let other = open::spawn(|| {
        while receive(there) == 1 {
            send(back, 1);
        }
        Ok(())
    })?;
    time(calls / A_ROUND * A_ROUND, pieces, || {
        for _ in 0..calls / A_ROUND {
            ensure!(send(there, 1) == 0 && receive(back) == 1, "a message or its answer was not passed");
        }
        Ok(())
    })?;
    // An empty message ends it.
    send(there, 0);
    open::reap(other)
}

/// Makes a system call that has nothing to do with queues.
pub fn unrelated(Pieces { calls, pieces, cpu }: Pieces) -> Result<()> {
    stay_on(cpu)?;
    time(calls, pieces, || {
        for _ in 0..calls {
            // SAFETY: asks for a number.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        Ok(())
    })
}

pub fn stay_on(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Prints the nanoseconds that each of so many calls took, of the fastest of the pieces.
fn time(calls: u64, pieces: u64, mut make: impl FnMut() -> Result<()>) -> Result<()> {
    let mut least = Duration::MAX;
    for _ in 0..pieces {
        let start = Instant::now();
        make()?;
        least = least.min(start.elapsed());
    }
    println!("{:.1}", least.as_nanos() as f64 / calls as f64);
    Ok(())
}
