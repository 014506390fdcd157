//! Reads the kernel side's series on a thread of its own: taking a map waits until no program holds it any more, which
//! the driver must not wait for.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use tracing::warn;

use super::programs::Programs;
use super::readings::overflow_keys;
use crate::live::{calls, namespaces};
use crate::model::container::Container;
use crate::model::reading::Reading;
use crate::model::reading::{QueueReading, QueueState, Waiting};

/// As many series are read by one system call.
const AT_ONCE: u32 = 512;

/// What a look at the maps shows.
#[derive(Debug, Default)]
pub struct Taken {
    /// What was added to each series since the last time.
    pub series: Vec<Reading>,
    /// The state of each queue.
    pub queues: Vec<QueueReading>,
    /// Who waits at queues now.
    pub waiting: Waiting,
    /// Which container or pod an ipc namespace belongs to.
    pub containers: HashMap<u32, Container>,
}

/// The maps of series: one that the programs fill, and one that is empty; and those of queues.
struct Maps {
    programs: Arc<Programs>,
    series: MapHandle,
    askers: MapHandle,
    queues: MapHandle,
    period: MapHandle,
    number: u32,
    pair: [MapHandle; 2],
    filled: usize,
    overflow: Vec<Vec<u8>>,
}

impl Maps {
    fn of(programs: &Arc<Programs>) -> libbpf_rs::Result<Self> {
        let [series, askers, first, second, queues, period] = programs.series().map(MapHandle::try_from);
        let mut maps = Self {
            programs: programs.clone(),
            series: series?,
            askers: askers?,
            queues: queues?,
            period: period?,
            number: 0,
            pair: [first?, second?],
            filled: 0,
            overflow: overflow_keys(),
        };
        maps.begin_period(1)?;
        maps.pair.iter().try_for_each(|map| maps.put_overflow(map))?;
        Ok(maps)
    }

    /// No call is lost for want of room: these points have theirs before there is any other.
    fn put_overflow(&self, map: &MapHandle) -> libbpf_rs::Result<()> {
        let empty = vec![0; map.value_size() as usize];
        self.overflow.iter().try_for_each(|key| map.update(key, &empty, MapFlags::ANY))
    }

    fn begin_period(&mut self, number: u32) -> libbpf_rs::Result<()> {
        self.number = number;
        self.period.update(&0u32.to_ne_bytes(), &number.to_ne_bytes(), MapFlags::ANY)
    }

    /// Puts the empty map in the place of the filled one, and reads that. The update returns when no program can hold
    /// the old map any more (kernel/bpf/syscall.c, maybe_wait_bpf_programs).
    fn take_series(&mut self) -> libbpf_rs::Result<Vec<Reading>> {
        let empty = 1 - self.filled;
        let descriptor = self.pair[empty].as_fd().as_raw_fd();
        self.series.update(&0u32.to_ne_bytes(), &descriptor.to_ne_bytes(), MapFlags::ANY)?;
        let taken = &self.pair[std::mem::replace(&mut self.filled, empty)];
        let mut readings = Vec::new();
        let mut read = |key: &[u8], value: &[u8]| {
            readings.extend(Reading::decode(key, value).unwrap_or_default());
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

impl Maps {
    fn take(&mut self) -> libbpf_rs::Result<Taken> {
        let ended = self.number;
        self.begin_period(ended.wrapping_add(1).max(1))?;
        let series = self.take_series()?;
        // The programs that still saw the old period have ended by now, too.
        let queues = self.take_queues(ended)?;
        let (calls, hidden) = calls::in_calls();
        let mut waiting = Waiting { threads: BTreeMap::new(), all_seen: hidden == 0 };
        for call in calls {
            if let Some(queue) = call.queue {
                *waiting.threads.entry((queue, call.op)).or_default() += 1;
            }
        }
        let containers = namespaces::containers().unwrap_or_default();
        Ok(Taken { series, queues, waiting, containers })
    }
}

impl Maps {
    /// The queues that are still there, as they are now; of those that have ended the state goes.
    fn take_queues(&self, ended: u32) -> libbpf_rs::Result<Vec<QueueReading>> {
        let mut queues = Vec::new();
        for (key, value) in entries(&self.queues)? {
            let Ok(mut reading) = QueueReading::decode(&key, &value, ended) else { continue };
            match self.programs.look_at_queue(&reading.key) {
                QueueState::Ended => {
                    // Another of the same key can't come: it would have another number.
                    self.queues.delete(&key)?;
                    reading.unlinked = true;
                    // What calls did to it since the collection before is shown once more.
                    queues.extend(reading.peak.is_some().then_some(reading));
                }
                QueueState::There { depth, unlinked } => {
                    (reading.depth, reading.unlinked) = (depth, unlinked);
                    queues.push(reading);
                }
                QueueState::Unknown => queues.push(reading),
            }
        }
        Ok(queues)
    }
}

fn entries(map: &MapHandle) -> libbpf_rs::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let keys: Vec<_> = map.keys().collect();
    let values = keys.into_iter().map(|key| Ok(map.lookup(&key, MapFlags::ANY)?.map(|value| (key, value))));
    values.filter_map(Result::transpose).collect()
}

/// The reading thread.
#[derive(Debug)]
pub struct Aggregates {
    thread: JoinHandle<()>,
    readings: Receiver<Taken>,
    end: Sender<()>,
}

impl Aggregates {
    /// Reads every `interval`; `rings` is called when there are readings to be fetched.
    pub fn start(
        programs: &Arc<Programs>,
        interval: Duration,
        rings: impl Fn() + Send + 'static,
    ) -> Result<Self, String> {
        let mut maps = Maps::of(programs).map_err(|error| error.to_string())?;
        let ((send, readings), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let run = move || {
            // The first at once: a queue that is stuck already is what people look for.
            let mut at = Instant::now();
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
    pub fn fetch(&self) -> impl Iterator<Item = Taken> + '_ {
        self.readings.try_iter()
    }

    /// Reads a last time; the programs must be detached by now.
    pub fn stop(self) -> Vec<Taken> {
        // If the thread died its readings so far are still there.
        let _ = self.end.send(());
        let _ = self.thread.join();
        self.readings.try_iter().collect()
    }
}
