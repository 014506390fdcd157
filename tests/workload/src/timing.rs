//! How long a failing mq_open takes: one that opens a queue that is missing, the cheapest call that runs all of it.

use std::time::Instant;

use anyhow::{Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::kernel;

pub fn flat(calls: u64, cpu: Option<usize>) -> Result<()> {
    stay_on(cpu)?;
    println!("{:.1}", nanoseconds_a_call(calls)?);
    Ok(())
}

pub fn rounds(calls: u64, rounds: u64, cpu: Option<usize>) -> Result<()> {
    stay_on(cpu)?;
    let mut times = (0..rounds).map(|_| nanoseconds_a_call(calls)).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    println!("median {:.1} min {:.1}", times[times.len() / 2], times[0]);
    Ok(())
}

pub fn stay_on(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn nanoseconds_a_call(calls: u64) -> Result<f64> {
    let name = c"workload-missing";
    let start = Instant::now();
    let missing =
        (0..calls).filter(|_| kernel::mq_open(name.as_ptr().addr(), 0, 0, 0) == -i64::from(libc::ENOENT)).count();
    let elapsed = start.elapsed();
    ensure!(missing as u64 == calls, "{name:?} exists");
    Ok(elapsed.as_nanos() as f64 / calls as f64)
}
