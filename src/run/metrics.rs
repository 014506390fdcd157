//! The stage of metrics, on a thread of its own: takes the kernel side's maps at each interval and has the meter export
//! them as the outputs have room. It waits for the kernel (the swap of the maps, some milliseconds) and, 200 ms at most, for
//! a look at the host; never for the reader, another process or a backend.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::warn;

use super::meter::{Directory, Meter, Moment, Outlet, Pumped};
use crate::kernel::aggregates::Aggregates;
use crate::live::Surroundings;
use crate::live::looker::Looker;

/// So long a look at the host is waited for, or a quarter of the interval.
const PATIENCE: Duration = Duration::from_millis(200);
/// ... the first time: a queue that is stuck already is what people look for.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// A look that is older than three intervals and this shows nothing any more.
const MOST_AGE: Duration = Duration::from_secs(5);
/// An output without room is asked again after this long, twice as long each time up to the latter.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(200)];

/// The running thread.
#[derive(Debug)]
pub struct MetricsStage {
    thread: JoinHandle<()>,
    end: Sender<()>,
}

impl MetricsStage {
    /// Collects and exports every `interval`, at once for the first time; collects every `look` besides, where people look
    /// at it.
    pub fn start<D, O>(collecting: Collecting<D, O>, interval: Duration, look: Option<Duration>) -> io::Result<Self>
    where
        D: Directory + Send + 'static,
        O: Outlet + Send + 'static,
    {
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("mqspan-metrics".into()).spawn(move || {
            collecting.run(interval, look, |until| {
                let left = until.saturating_duration_since(Instant::now());
                !matches!(ended.recv_timeout(left), Err(RecvTimeoutError::Timeout))
            });
        })?;
        Ok(Self { thread, end })
    }

    /// Collects a last time and returns once everything is enqueued; no call may begin any more, and what the kernel has
    /// sent must have been taken.
    pub fn stop(self) {
        // A thread that died is told of elsewhere.
        let _ = self.end.send(());
        let _ = self.thread.join();
    }
}

/// What the thread works with.
pub struct Collecting<D, O> {
    /// The kernel side's maps.
    pub aggregates: Aggregates,
    /// What looks at the host.
    pub looker: Looker<Surroundings>,
    /// What makes metrics of it all.
    pub meter: Meter<D, O>,
}

impl<D: Directory, O: Outlet> Collecting<D, O> {
    /// `ends` waits until a time, or for the end, which it tells.
    fn run(mut self, interval: Duration, look: Option<Duration>, ends: impl Fn(Instant) -> bool) {
        let (mut patience, mut hangs) = (FIRST_PATIENCE, false);
        let (mut at, mut pause, mut more) = (Instant::now(), PAUSES[0], false);
        let mut look_at = look.map(|look| at + look);
        loop {
            let next = look_at.map_or(at, |look_at| look_at.min(at));
            let until = if more { next.min(Instant::now() + pause) } else { next };
            let last = ends(until);
            let exports = last || Instant::now() >= at;
            if exports || Instant::now() >= next {
                self.collect(patience, interval, exports, &mut hangs);
                patience = PATIENCE.min(look.unwrap_or(interval).min(interval) / 4);
                look_at = look.map(|look| (next + look).max(Instant::now()));
            }
            if exports {
                at = (at + interval).max(Instant::now());
            }
            let pumped = self.meter.pump();
            (more, pause) = (pumped.more, next_pause(pause, pumped));
            if last {
                break;
            }
        }
        while more {
            thread::sleep(pause);
            let pumped = self.meter.pump();
            (more, pause) = (pumped.more, next_pause(pause, pumped));
        }
    }

    fn collect(&mut self, patience: Duration, interval: Duration, exports: bool, hangs: &mut bool) {
        let most_age = MOST_AGE.max(interval * 3);
        let surroundings = self.looker.ask(patience, most_age);
        if !*hangs && self.looker.looking_for().is_some_and(|since| since > most_age) {
            *hangs = true;
            warn!("a look at /proc hangs, at a process that is stuck in the kernel: who waits at queues is not shown");
        }
        let Self { aggregates, meter, .. } = self;
        let collected = aggregates.swap().and_then(|()| {
            let queues = aggregates.take_queues()?;
            meter.collect(Moment::now(), exports, &queues, surroundings.as_deref(), |each| aggregates.take_series(each))
        });
        if let Err(error) = collected {
            warn!("metrics can't be read from the kernel: {error}");
        }
    }
}

fn next_pause(pause: Duration, pumped: Pumped) -> Duration {
    if pumped.requests > 0 || !pumped.more { PAUSES[0] } else { (pause * 2).min(PAUSES[1]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents an output that takes nothing from being asked without pause, and one that takes again from being served
    /// slowly.
    #[test]
    fn pauses_grow_while_there_is_no_room() {
        let full = Pumped { requests: 0, more: true };
        let mut pause = PAUSES[0];
        (0..20).for_each(|_| pause = next_pause(pause, full));
        assert_eq!(pause, PAUSES[1]);
        assert_eq!(next_pause(pause, Pumped { requests: 1, more: true }), PAUSES[0]);
    }
}
