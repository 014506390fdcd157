//! A real-time thread that sends a message each millisecond, and how late it was: what it is woken and what its call takes.

use std::{ffi::CString, os::fd::AsRawFd, process, time::Duration};

use anyhow::{Result, ensure};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep},
};

use crate::{kernel, timing};

/// How often, and at which priority.
#[derive(clap::Args)]
pub struct Periodic {
    /// Milliseconds, of which each sees a message sent
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    periods: u64,

    /// The priority of SCHED_FIFO
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(i32).range(1..=99))]
    priority: i32,

    /// Stay on this CPU
    #[arg(long)]
    cpu: Option<usize>,
}

const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;
const PERIOD: Duration = Duration::from_millis(1);
/// The shares of the periods whose most is printed, in thousandths.
const SHARES: [usize; 4] = [500, 990, 999, 1000];
const SIZE: usize = 64;

/// Prints two lines, of the lateness of the waking and of the time from then to the end of the send, in ns: their median, what
/// 99 % and 99.9 % are below, and the most.
pub fn run(Periodic { periods, priority, cpu }: Periodic) -> Result<()> {
    timing::stay_on(cpu)?;
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: passes a structure of this function's own.
    let is_set = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } == 0;
    ensure!(is_set, "SCHED_FIFO: not root?");
    // What is not in memory would have to be waited for.
    // SAFETY: passes numbers.
    let is_locked = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } == 0;
    ensure!(is_locked, "memory can't be locked");
    let name = CString::new(format!("workload-periodic-{}", process::id()))?;
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    let queue = kernel::open_queue(&name, create, &[0, 2, SIZE as i64, 0, 0, 0, 0, 0])?;
    kernel::mq_unlink(&name);
    let (queue, mut body) = (queue.as_raw_fd(), [0_u8; SIZE]);
    let (mut late, mut took) = (Vec::with_capacity(periods as usize), Vec::with_capacity(periods as usize));
    let mut next = now()?;
    for _ in 0..periods {
        next += PERIOD;
        clock_nanosleep(CLOCK, ClockNanosleepFlags::TIMER_ABSTIME, &TimeSpec::from_duration(next))?;
        let woken = now()?;
        ensure!(kernel::mq_timedsend(queue, body.as_ptr().addr(), SIZE, 0, 0) == 0, "a send failed");
        let sent = now()?;
        late.push(woken - next);
        took.push(sent - woken);
        ensure!(
            kernel::mq_timedreceive(queue, body.as_mut_ptr().addr(), SIZE, 0, 0) == SIZE as i64,
            "a receive failed"
        );
        // What took longer than a period is one lateness, not one of each period that it has taken.
        next = next.max(now()? - PERIOD);
    }
    for (what, mut of) in [("late", late), ("send", took)] {
        of.sort_unstable();
        let shares = SHARES.map(|share| of[(of.len() * share).div_ceil(1000).max(1) - 1].as_nanos().to_string());
        println!("{what}\t{}", shares.join("\t"));
    }
    Ok(())
}

fn now() -> Result<Duration> {
    Ok(clock_gettime(CLOCK)?.into())
}
