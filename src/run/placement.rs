//! Where and how urgently mqspan's own threads run: never at a real-time priority that it was started with, and off the CPUs
//! that are kept for others. To be called before there are threads, and after the traced command was forked, which keeps
//! what mqspan was given.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tracing::debug;

use crate::kernel::facts::isolated_cpus;
use crate::model::error::Error;
use crate::model::values::CpuList;

/// Gives up a real-time policy, and stays on these CPUs; None: on those it may run on, without the isolated ones.
pub fn settle(cpus: Option<&CpuList>) -> Result<(), Error> {
    give_up_real_time();
    match cpus {
        Some(cpus) => stay_on(&cpus.0).map_err(|errno| {
            Error::cannot_run(
                format!("--cpus: {}", errno.desc()),
                "name CPUs that are online and allowed (nproc, taskset -p $$)",
            )
        }),
        None => {
            if let Err(errno) = avoid_isolated() {
                debug!("the isolated CPUs could not be left: {errno}");
            }
            Ok(())
        }
    }
}

/// A thread that spins for a backend must not keep a real-time program from its CPU. Everybody may lower their own.
fn give_up_real_time() {
    let ordinary = libc::sched_param { sched_priority: 0 };
    // SAFETY: asks for and sets this thread's policy; the parameter is read only.
    unsafe {
        if libc::sched_getscheduler(0) != libc::SCHED_OTHER {
            libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ordinary);
        }
    }
}

fn avoid_isolated() -> Result<(), Errno> {
    let Ok(isolated) = isolated_cpus().parse::<CpuList>() else { return Ok(()) };
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let allowed: Vec<usize> = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
    match without(&allowed, &isolated.0) {
        Some(rest) => stay_on(&rest),
        None => Ok(()),
    }
}

/// The allowed CPUs that are not isolated; None where nothing changes, or where none would be left: somebody put mqspan there.
fn without(allowed: &[usize], isolated: &[usize]) -> Option<Vec<usize>> {
    let rest: Vec<usize> = allowed.iter().copied().filter(|cpu| !isolated.contains(cpu)).collect();
    Some(rest).filter(|rest| !rest.is_empty() && rest.len() < allowed.len())
}

fn stay_on(cpus: &[usize]) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents mqspan from running on isolated CPUs unasked, and from being left without any.
    #[test]
    fn off_the_isolated_cpus() {
        for (allowed, isolated, expected) in [
            (&[0, 1, 2, 3][..], &[2, 3][..], Some(vec![0, 1])),
            (&[0, 1], &[2, 3], None),
            (&[2, 3], &[2, 3], None),
            (&[0, 1], &[], None),
        ] {
            assert_eq!(without(allowed, isolated), expected, "{allowed:?} {isolated:?}");
        }
    }
}
