//! Reads the kernel side's series on a thread of its own: taking a map waits until no program holds it any more, which
//! the driver must not wait for.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use tracing::warn;

use super::programs::Programs;
use crate::metrics::reading::{Reading, overflow_keys};

/// As many series are read by one system call.
const AT_ONCE: u32 = 512;

/// The maps of series: one that the programs fill, and one that is empty.
#[derive(Debug)]
struct Maps {
    series: MapHandle,
    askers: MapHandle,
    pair: [MapHandle; 2],
    filled: usize,
    overflow: Vec<Vec<u8>>,
}

impl Maps {
    fn of(programs: &Programs<'_>) -> libbpf_rs::Result<Self> {
        let [series, askers, first, second] = programs.series().map(MapHandle::try_from);
        let maps =
            Self { series: series?, askers: askers?, pair: [first?, second?], filled: 0, overflow: overflow_keys() };
        maps.pair.iter().try_for_each(|map| maps.put_overflow(map))?;
        Ok(maps)
    }

    /// No call is lost for want of room: these points have theirs before there is any other.
    fn put_overflow(&self, map: &MapHandle) -> libbpf_rs::Result<()> {
        let empty = vec![0; map.value_size() as usize];
        self.overflow.iter().try_for_each(|key| map.update(key, &empty, MapFlags::ANY))
    }

    /// Puts the empty map in the place of the filled one, and reads that. The update returns when no program can hold
    /// the old map any more (kernel/bpf/syscall.c, maybe_wait_bpf_programs).
    fn take(&mut self) -> libbpf_rs::Result<Vec<Reading>> {
        let empty = 1 - self.filled;
        let descriptor = self.pair[empty].as_fd().as_raw_fd();
        self.series.update(&0u32.to_ne_bytes(), &descriptor.to_ne_bytes(), MapFlags::ANY)?;
        let taken = &self.pair[std::mem::replace(&mut self.filled, empty)];
        let mut readings = Vec::new();
        let mut read = |key: &[u8], value: &[u8]| {
            readings.extend(Reading::decode(key, value).ok().filter(|reading| reading.points.count() > 0));
        };
        for (key, value) in taken.lookup_and_delete_batch(AT_ONCE, MapFlags::ANY, MapFlags::ANY)? {
            read(&key, &value);
        }
        // What a batch left behind, if it did: each for itself.
        for key in taken.keys().collect::<Vec<_>>() {
            if let Some(value) = taken.lookup(&key, MapFlags::ANY)? {
                read(&key, &value);
            }
            taken.delete(&key)?;
        }
        self.put_overflow(taken)?;
        for asker in self.askers.keys().collect::<Vec<_>>() {
            // One that made a call meanwhile begins anew, as it should.
            let _ = self.askers.delete(&asker);
        }
        Ok(readings)
    }
}

/// The reading thread.
#[derive(Debug)]
pub struct Aggregates {
    thread: JoinHandle<()>,
    readings: Receiver<Vec<Reading>>,
    end: Sender<()>,
}

impl Aggregates {
    /// Reads every `interval`; `rings` is called when there are readings to be fetched.
    pub fn start(
        programs: &Programs<'_>,
        interval: Duration,
        rings: impl Fn() + Send + 'static,
    ) -> Result<Self, String> {
        let mut maps = Maps::of(programs).map_err(|error| error.to_string())?;
        let ((send, readings), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let run = move || {
            let mut at = Instant::now() + interval;
            loop {
                let last = match ended.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => false,
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
                };
                match maps.take() {
                    Ok(readings) => {
                        let _ = send.send(readings);
                        rings();
                    }
                    Err(error) => warn!("metrics can't be read from the kernel: {error}"),
                }
                if last {
                    return;
                }
                at = (at + interval).max(Instant::now());
            }
        };
        let thread = thread::Builder::new().name("mqspan-metrics".into()).spawn(run);
        Ok(Self { thread: thread.map_err(|error| error.to_string())?, readings, end })
    }

    /// What was read since the last time.
    pub fn fetch(&self) -> impl Iterator<Item = Vec<Reading>> + '_ {
        self.readings.try_iter()
    }

    /// Reads a last time; the programs must be detached by now.
    pub fn stop(self) -> Vec<Vec<Reading>> {
        // If the thread died its readings so far are still there.
        let _ = self.end.send(());
        let _ = self.thread.join();
        self.readings.try_iter().collect()
    }
}
