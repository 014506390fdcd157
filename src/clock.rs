//! From the kernel's monotonic clock to the time of day, also after the clock was set and after a suspend: both move
//! the time of day against the monotonic clock, and a timer that the kernel cancels on such a change
//! (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET) tells of each at once. Slewing (adjtime) moves both clocks alike.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;
use std::{fs, io};

use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};

/// As many changes are remembered; calls older than that do not wait in the ring.
const CHANGES: usize = 64;
/// The timer never fires by itself: it is set this far in the future.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);
/// A change by more than this means that the clock was wrong before: times of day that were worked out of it are worked
/// out anew. Leap seconds and the corrections of a clock that runs well are smaller.
const STEP_NS: u64 = 10_000_000_000;

/// What a clock shows, in ns.
pub fn now_ns(clock: ClockId) -> i64 {
    // None of the clocks used here can fail.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// By how much the clocks of this program's time namespace are ahead of the host's, which the kernel side's times are by
/// (time_namespaces(7)), in ns. The one place in which both are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceOffsets {
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME, and start times in /proc/PID/stat.
    pub boottime_ns: i64,
}

impl NamespaceOffsets {
    /// Those of this program, which do not change while it runs.
    pub fn own() -> Self {
        static OWN: OnceLock<NamespaceOffsets> = OnceLock::new();
        // A kernel without time namespaces has no such file.
        let read =
            || fs::read_to_string("/proc/self/timens_offsets").map_or(Self::default(), |text| Self::parse(&text));
        *OWN.get_or_init(read)
    }

    /// Lines of a clock's name (older kernels: its number), seconds and nanoseconds.
    fn parse(text: &str) -> Self {
        let mut offsets = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [clock, seconds, nanoseconds] = fields[..] else { continue };
            let (Ok(seconds), Ok(nanoseconds)) = (seconds.parse::<i64>(), nanoseconds.parse::<i64>()) else { continue };
            let ns = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
            match clock {
                "monotonic" | "1" => offsets.monotonic_ns = ns,
                "boottime" | "7" => offsets.boottime_ns = ns,
                _ => {}
            }
        }
        offsets
    }

    /// What the host's `clock` shows when this program's shows `ns`.
    fn to_host(self, clock: ClockId, ns: i64) -> i64 {
        match clock {
            ClockId::CLOCK_MONOTONIC => ns.saturating_sub(self.monotonic_ns),
            ClockId::CLOCK_BOOTTIME => ns.saturating_sub(self.boottime_ns),
            _ => ns,
        }
    }
}

/// What one of the host's clocks shows, in ns.
fn host_now_ns(clock: ClockId) -> i64 {
    NamespaceOffsets::own().to_host(clock, now_ns(clock))
}

/// By how much the time of day is ahead of the host's `clock`, in ns: of some tries the one with the least time in
/// between.
fn offset_ns(clock: ClockId) -> i64 {
    let probe = || {
        let before = host_now_ns(clock);
        let wall = now_ns(ClockId::CLOCK_REALTIME);
        let after = host_now_ns(clock);
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

/// What is measured, when it changes.
#[derive(Debug, Default)]
struct Measured {
    changes: Vec<Change>,
    /// By how much the time of day is ahead of the host's CLOCK_BOOTTIME, which no suspend stops.
    boot_ns: i64,
}

/// Turns the host's CLOCK_MONOTONIC into the time of day. Each clone tells of steps by itself.
#[derive(Clone, Debug)]
pub struct Clock {
    measured: Arc<Mutex<Measured>>,
    /// What `boot_ns` was when it was last asked for steps.
    boot_ns: i64,
}

impl Clock {
    /// Starts to follow the clocks, by a thread that sleeps until one is set.
    pub fn start() -> io::Result<Self> {
        let mut clock = Self { measured: Arc::default(), boot_ns: 0 };
        clock.measure();
        clock.boot_ns = clock.boot_offset_ns();
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
        let (from_ns, offset_ns, boot_ns) = (
            host_now_ns(ClockId::CLOCK_MONOTONIC),
            offset_ns(ClockId::CLOCK_MONOTONIC),
            offset_ns(ClockId::CLOCK_BOOTTIME),
        );
        let mut measured = self.lock();
        measured.boot_ns = match measured.changes.is_empty() {
            true => boot_ns,
            false => followed(measured.boot_ns, boot_ns),
        };
        if measured.changes.len() == CHANGES {
            measured.changes.remove(0);
        }
        measured.changes.push(Change { from_ns, offset_ns });
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of day, ns since 1970, at a time of the host's CLOCK_MONOTONIC in ns.
    pub fn wall_ns(&self, monotonic_ns: u64) -> u64 {
        wall_ns(&self.lock().changes, monotonic_ns)
    }

    /// By how much the time of day is ahead of the host's CLOCK_BOOTTIME, in ns: the same until the clock is set by more
    /// than some seconds, so that a process's creation time does not change with each small correction.
    pub fn boot_offset_ns(&self) -> i64 {
        self.lock().boot_ns
    }

    /// By how much the time of day was set, in ns, since this was last asked; None where only a little or not at all.
    /// What was worked out by the clock before is wrong then: creation times, and when streams began.
    pub fn stepped(&mut self) -> Option<i64> {
        let boot_ns = self.boot_offset_ns();
        let before = std::mem::replace(&mut self.boot_ns, boot_ns);
        (boot_ns != before).then(|| boot_ns.saturating_sub(before))
    }
}

/// The offset that is gone by from now on: a small change is none.
fn followed(before_ns: i64, now_ns: i64) -> i64 {
    if now_ns.abs_diff(before_ns) > STEP_NS { now_ns } else { before_ns }
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

    /// Prevents times of the kernel side from being shifted by the offsets of a container's time namespace, or by them
    /// twice, and another kernel's way of writing them from being taken for none.
    #[test]
    fn time_namespaces() {
        let offsets = NamespaceOffsets { monotonic_ns: -86_400_000_000_001, boottime_ns: 7_000_000_000 };
        for text in ["monotonic -86401 999999999\nboottime 7 0\n", "1 -86401 999999999\n7 7 0\n"] {
            assert_eq!(NamespaceOffsets::parse(text), offsets, "{text}");
        }
        assert_eq!(NamespaceOffsets::parse("monotonic x 0\nboottime 1\n\n"), NamespaceOffsets::default());
        assert_eq!(offsets.to_host(ClockId::CLOCK_BOOTTIME, 7_000_000_005), 5);
        assert_eq!(offsets.to_host(ClockId::CLOCK_MONOTONIC, -86_400_000_000_000), 1);
        assert_eq!(offsets.to_host(ClockId::CLOCK_REALTIME, 5), 5);
    }

    /// Prevents a clock that is set minutes after boot from leaving wrong times behind, and a leap second from having
    /// every stream begin anew. Each holder of the clock hears of a step once.
    #[test]
    fn steps() {
        let (second, year) = (1_000_000_000, 365 * 86_400_000_000_000);
        for (before, now, is_step) in
            [(5, 5 + second, false), (5, 5 - 3 * second, false), (5, year, true), (year, 5, true)]
        {
            assert_eq!(followed(before, now), if is_step { now } else { before }, "{before} {now}");
        }
        let mut one = Clock { measured: Arc::default(), boot_ns: 0 };
        let mut other = one.clone();
        one.lock().boot_ns = year;
        assert_eq!((one.stepped(), one.stepped()), (Some(year), None));
        one.lock().boot_ns = 5;
        assert_eq!((one.stepped(), other.stepped(), other.stepped()), (Some(5 - year), Some(5), None));
    }

    /// Prevents an offset of the wrong sign or clock.
    #[test]
    fn now_is_now() {
        let clock = Clock::start().unwrap();
        let wall = clock.wall_ns(host_now_ns(ClockId::CLOCK_MONOTONIC).unsigned_abs());
        let truth = now_ns(ClockId::CLOCK_REALTIME).unsigned_abs();
        assert!(truth.abs_diff(wall) < 1_000_000_000, "{wall} {truth}");
    }
}
