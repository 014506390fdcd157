//! From the kernel's monotonic clock to the time of day, also after the clock was set and after a suspend: both move
//! the time of day against the monotonic clock, and a timer that the kernel cancels on such a change
//! (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET) tells of each at once. Slewing (adjtime) moves both clocks alike.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};

/// As many changes are remembered; calls older than that do not wait in the ring.
const CHANGES: usize = 64;
/// The timer never fires by itself: it is set this far in the future.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What a clock shows, in ns.
pub fn now_ns(clock: ClockId) -> i64 {
    // None of the clocks used here can fail.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// By how much the time of day is ahead of `clock`, in ns: of some tries the one with the least time in between.
pub fn offset_ns(clock: ClockId) -> i64 {
    let probe = || {
        let before = now_ns(clock);
        let wall = now_ns(ClockId::CLOCK_REALTIME);
        let after = now_ns(clock);
        (after - before, wall - before - (after - before) / 2)
    };
    (0..5).map(|_| probe()).min_by_key(|(took, _)| *took).map_or(0, |(_, offset)| offset)
}

/// From this monotonic time on, the time of day is this much ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    from_ns: i64,
    offset_ns: i64,
}

/// Turns CLOCK_MONOTONIC into the time of day.
#[derive(Clone, Debug)]
pub struct Clock {
    changes: Arc<Mutex<Vec<Change>>>,
}

impl Clock {
    /// Starts to follow the clocks, by a thread that sleeps until one is set.
    pub fn start() -> io::Result<Self> {
        let clock = Self { changes: Arc::default() };
        clock.measure();
        let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?;
        let follower = clock.clone();
        thread::Builder::new().name("mqspan-clock".into()).spawn(move || {
            loop {
                let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
                let far = Duration::from_nanos(now_ns(ClockId::CLOCK_REALTIME).unsigned_abs()) + NEVER;
                let armed = timer.set(Expiration::OneShot(far.into()), flags);
                // Between arming and waiting: a change in between ends the wait at once.
                follower.measure();
                if armed.is_err() {
                    thread::sleep(Duration::from_secs(1));
                } else {
                    let _ = timer.wait();
                }
            }
        })?;
        Ok(clock)
    }

    fn measure(&self) {
        let change =
            Change { from_ns: now_ns(ClockId::CLOCK_MONOTONIC), offset_ns: offset_ns(ClockId::CLOCK_MONOTONIC) };
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() == CHANGES {
            changes.remove(0);
        }
        changes.push(change);
    }

    /// The time of day, ns since 1970, at a CLOCK_MONOTONIC time in ns.
    pub fn wall_ns(&self, monotonic_ns: u64) -> u64 {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        wall_ns(&changes, monotonic_ns)
    }
}

fn wall_ns(changes: &[Change], monotonic_ns: u64) -> u64 {
    let monotonic_ns = monotonic_ns.cast_signed();
    let in_force = changes.iter().rev().find(|change| change.from_ns <= monotonic_ns).or(changes.first());
    in_force.map_or(0, |change| (monotonic_ns + change.offset_ns).max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents calls made before the clock was set from being shown at times after it, and the reverse.
    #[test]
    fn each_call_by_the_offset_of_its_time() {
        let changes = [(100, 1000), (200, 5000), (300, -50)].map(|(from_ns, offset_ns)| Change { from_ns, offset_ns });
        for (monotonic, wall) in [(50, 1050), (100, 1100), (199, 1199), (200, 5200), (299, 5299), (300, 250)] {
            assert_eq!(wall_ns(&changes, monotonic), wall, "{monotonic}");
        }
    }

    /// Prevents an offset of the wrong sign or clock.
    #[test]
    fn now_is_now() {
        let clock = Clock::start().unwrap();
        let wall = clock.wall_ns(now_ns(ClockId::CLOCK_MONOTONIC).unsigned_abs());
        let truth = now_ns(ClockId::CLOCK_REALTIME).unsigned_abs();
        assert!(truth.abs_diff(wall) < 1_000_000_000, "{wall} {truth}");
    }
}
