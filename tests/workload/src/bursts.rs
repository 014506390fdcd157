//! Calls that a limit on their rate treats in different ways, so many in each second, by one thread.

use std::{
    collections::BTreeSet,
    ffi::CString,
    os::fd::{AsRawFd, RawFd},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};

use crate::{
    Bursts,
    kernel::{self, Timespec},
    open::wall_clock,
};

const MSGSIZE: usize = 16;

pub fn run(options: &Bursts) -> Result<()> {
    let mut seconds = BTreeSet::new();
    let name = CString::new(&*options.name)?;
    kernel::mq_unlink(&name);
    let attr = [0, 2, MSGSIZE as i64, 0, 0, 0, 0, 0];
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    let queue = kernel::open_queue(&name, create, &attr)?;
    let polling = kernel::open_queue(&name, (libc::O_RDWR | libc::O_NONBLOCK) as u32, &attr)?;
    let (queue, polling) = (queue.as_raw_fd(), polling.as_raw_fd());
    for _ in 0..options.bursts {
        seconds.insert(next_second(&seconds)?);
        for _ in 0..options.failed {
            ensure!(send(queue, MSGSIZE + 1, 0) == -i64::from(libc::EMSGSIZE), "a message that is too large");
        }
        for _ in 0..options.asked {
            ensure!(kernel::mq_getsetattr(queue, 0, 0) == 0, "mq_getsetattr");
        }
        slow_sends(queue, options.slow)?;
        for _ in 0..options.pairs {
            ensure!(send(queue, MSGSIZE, 0) == 0 && receive(queue) == MSGSIZE as i64, "a message");
        }
        for _ in 0..options.polls {
            ensure!(receive(polling) == -i64::from(libc::EAGAIN), "an empty queue");
        }
        seconds.insert(now()?);
    }
    // With these it is told what was left out before.
    seconds.insert(next_second(&seconds)?);
    ensure!(send(queue, MSGSIZE, 0) == 0 && receive(queue) == MSGSIZE as i64, "a message");
    kernel::mq_unlink(&name);
    println!("{}", seconds.len());
    Ok(())
}

/// The queue is full, and stays so until the deadline.
fn slow_sends(queue: RawFd, times: u64) -> Result<()> {
    if times == 0 {
        return Ok(());
    }
    ensure!(send(queue, MSGSIZE, 0) == 0 && send(queue, MSGSIZE, 0) == 0, "an empty queue");
    for _ in 0..times {
        let ns = i64::try_from(wall_clock()?)? + 20_000_000;
        let deadline = Timespec { sec: ns / 1_000_000_000, nsec: ns % 1_000_000_000 };
        let result = send(queue, MSGSIZE, std::ptr::from_ref(&deadline).addr());
        ensure!(result == -i64::from(libc::ETIMEDOUT), "a full queue: {result}");
    }
    ensure!(receive(queue) > 0 && receive(queue) > 0, "a full queue");
    Ok(())
}

fn send(queue: RawFd, length: usize, deadline: usize) -> i64 {
    kernel::mq_timedsend(queue, [0_u8; 2 * MSGSIZE].as_ptr().addr(), length, 0, deadline)
}

fn receive(queue: RawFd) -> i64 {
    let mut body = [0_u8; MSGSIZE];
    kernel::mq_timedreceive(queue, body.as_mut_ptr().addr(), MSGSIZE, 0, 0)
}

/// A second of the clock that mqspan counts by.
fn now() -> Result<i64> {
    Ok(kernel::wide(clock_gettime(ClockId::CLOCK_MONOTONIC)?.tv_sec()))
}

/// Waits for a second after all these.
fn next_second(seconds: &BTreeSet<i64>) -> Result<i64> {
    let last = seconds.last().copied().unwrap_or(now()?);
    loop {
        match now()? {
            now if now > last => return Ok(now),
            _ => thread::sleep(Duration::from_millis(1)),
        }
    }
}
