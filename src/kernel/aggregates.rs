//! The kernel side's maps of metrics, read: taking a map of series waits until no program holds it any more, some
//! milliseconds, and for nothing else.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::programs::Programs;
use super::readings::overflow_points;
use crate::model::reading::{QueueLife, QueueReading, QueueState, Reading};

/// As many series are read by one system call.
const AT_ONCE: u32 = 512;

/// The maps of series: one that the programs fill, and one that is empty; and those of queues.
pub struct Aggregates {
    programs: Arc<Programs>,
    series: MapHandle,
    askers: MapHandle,
    queues: MapHandle,
    period: MapHandle,
    /// The numbers of the period and of the one before.
    number: u32,
    before: u32,
    pair: [MapHandle; 2],
    filled: usize,
    overflow: Vec<(u64, Vec<u8>)>,
}

impl Aggregates {
    /// Opens the maps of the programs, in which no call was added so far.
    pub fn of(programs: &Arc<Programs>) -> libbpf_rs::Result<Self> {
        let [series, askers, first, second, queues, period] = programs.series().map(MapHandle::try_from);
        let mut maps = Self {
            programs: programs.clone(),
            series: series?,
            askers: askers?,
            queues: queues?,
            period: period?,
            number: 0,
            before: 0,
            pair: [first?, second?],
            filled: 0,
            overflow: overflow_points(),
        };
        maps.begin_period(1)?;
        maps.pair.iter().try_for_each(|map| maps.put_overflow(map))?;
        Ok(maps)
    }

    /// No call is lost for want of room: these points have theirs before there is any other.
    fn put_overflow(&self, map: &MapHandle) -> libbpf_rs::Result<()> {
        self.overflow.iter().try_for_each(|(key, empty)| map.update(&key.to_ne_bytes(), empty, MapFlags::ANY))
    }

    fn begin_period(&mut self, number: u32) -> libbpf_rs::Result<()> {
        (self.before, self.number) = (self.number, number);
        self.period.update(&0u32.to_ne_bytes(), &number.to_ne_bytes(), MapFlags::ANY)
    }

    /// A collection begins: what is added from now on belongs to the next one. Puts the empty map of series in the place of
    /// the filled one; the update returns when no program can hold the old map any more (kernel/bpf/syscall.c,
    /// maybe_wait_bpf_programs). What [`Self::take_series`] reads speaks only of images and names that are in their ring by
    /// then.
    pub fn swap(&mut self) -> libbpf_rs::Result<()> {
        // Programs that still see the old period end before the update of the map returns.
        self.begin_period(self.number.wrapping_add(1).max(1))?;
        let empty = 1 - self.filled;
        let descriptor = self.pair[empty].as_fd().as_raw_fd();
        self.series.update(&0u32.to_ne_bytes(), &descriptor.to_ne_bytes(), MapFlags::ANY)?;
        self.filled = empty;
        Ok(())
    }

    /// Takes what was added to each series before the last swap.
    pub fn take_series(&self, mut each: impl FnMut(&Reading)) -> libbpf_rs::Result<()> {
        let taken = &self.pair[1 - self.filled];
        let mut read = |value: &[u8]| Reading::decode(value).unwrap_or_default().iter().for_each(&mut each);
        for (_, value) in taken.lookup_and_delete_batch(AT_ONCE, MapFlags::ANY, MapFlags::ANY)? {
            read(&value);
        }
        // What a batch left behind, if it did: each for itself.
        for key in taken.keys().collect::<Vec<_>>() {
            if let Some(value) = taken.lookup(&key, MapFlags::ANY)? {
                read(&value);
            }
            taken.delete(&key)?;
        }
        self.put_overflow(taken)?;
        for asker in self.askers.keys().collect::<Vec<_>>() {
            // One that made a call meanwhile begins anew, as it should.
            let _ = self.askers.delete(&asker);
        }
        Ok(())
    }

    /// The queues that are still there, as they are now, with the peaks until the last swap; of those that have ended the
    /// state goes.
    pub fn take_queues(&self) -> libbpf_rs::Result<Vec<QueueReading>> {
        let ended = self.before;
        let mut queues = Vec::new();
        for (key, value) in entries(&self.queues)? {
            let Ok(mut reading) = QueueReading::decode(&key, &value, ended) else { continue };
            match self.programs.look_at_queue(&reading.key) {
                QueueState::Ended => {
                    // Another of the same key can't come: it would have another number.
                    self.queues.delete(&key)?;
                    reading.life = QueueLife::Ended;
                    // What calls did to it since the collection before is shown once more.
                    queues.extend(reading.peak.is_some().then_some(reading));
                }
                QueueState::There(sight) => {
                    reading.depth = sight.depth;
                    reading.life = if sight.unlinked { QueueLife::Unlinked } else { QueueLife::Named };
                    reading.look = Some(sight);
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
