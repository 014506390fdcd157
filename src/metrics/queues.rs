//! The state of queues: how full they are, were at the most, and can be, and who waits at them. From what the kernel
//! side keeps of each queue that a call reached, and what was found on the host. Pure code.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::streams::Destination;
use crate::model::call::QueueKey;
use crate::model::reading::{Found, QueueName, QueueReading, Unlinked, Waiting};
use crate::model::values::Op;

/// What is said of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePoint {
    /// The messages in it.
    pub depth: i64,
    /// The most since the collection before.
    pub peak: i64,
    /// The most that it holds.
    pub capacity: i64,
}

/// The queues of the host.
#[derive(Debug)]
pub struct Queues {
    /// Those that no call has reached so far; empty where only matching callers' queues are told of.
    found: HashMap<QueueName, Found>,
    unlinked: HashSet<QueueKey>,
    /// Whether a queue is told of only once a call that passes the filters on whose calls reached it.
    only_matched: bool,
}

impl Queues {
    /// Begins with the queues that were found.
    pub fn new(found: Vec<Found>, only_matched: bool) -> Self {
        let found = if only_matched { Vec::new() } else { found };
        let found = found.into_iter().map(|found| (found.name.clone(), found)).collect();
        Self { found, unlinked: HashSet::new(), only_matched }
    }

    /// What there is to say now, and the queues that the kernel side need not keep any more: unlinked before, and not
    /// reached since. `name` tells the name behind a number.
    pub fn collect(
        &mut self,
        readings: &[QueueReading],
        unlinked: &[Unlinked],
        name: impl Fn(u64) -> Option<Arc<str>>,
    ) -> (BTreeMap<QueueName, QueuePoint>, Vec<QueueKey>) {
        let gone = |reading: &&QueueReading| self.unlinked.contains(&reading.key) && reading.peak.is_none();
        let (gone, current): (Vec<_>, Vec<_>) = readings.iter().partition(gone);
        let gone: Vec<QueueKey> = gone.into_iter().map(|reading| reading.key).collect();
        for key in &gone {
            self.unlinked.remove(key);
        }
        for unlinked in unlinked {
            if let Some(name) = name(unlinked.name) {
                self.found.remove(&(unlinked.ipc_ns, name));
            }
            let was_unlinked = |reading: &&&QueueReading| {
                (reading.name, reading.ipc_ns) == (unlinked.name, unlinked.ipc_ns) && reading.first_ns <= unlinked.at_ns
            };
            self.unlinked.extend(current.iter().filter(was_unlinked).map(|reading| reading.key));
        }
        let mut points = BTreeMap::new();
        for found in self.found.values() {
            let Found { name, maxmsg, depth } = found.clone();
            points.insert(name, QueuePoint { depth, peak: depth, capacity: maxmsg });
        }
        // Two queues of one name are an unlinked one that is still open and its successor, which comes later: its number
        // is greater.
        let mut current = current;
        current.sort_by_key(|reading| (!self.unlinked.contains(&reading.key), reading.key.number));
        for reading in current {
            let Some(name) = name(reading.name).filter(|_| reading.matched || !self.only_matched) else { continue };
            let name = (reading.ipc_ns, name);
            self.found.remove(&name);
            let QueueReading { depth, maxmsg, .. } = *reading;
            points.insert(name, QueuePoint { depth, peak: reading.peak.unwrap_or(depth).max(depth), capacity: maxmsg });
        }
        (points, gone)
    }
}

/// Who waits at queues.
/// The gauges of a queue, or of those that go by one template together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    /// The messages in them.
    pub depth: i64,
    /// The most that were in one of them since the collection before.
    pub peak: i64,
    /// The most that they hold.
    pub capacity: i64,
    /// Threads that wait to send, and to receive; None where none was seen, but not all could be.
    pub waiting: [Option<i64>; 2],
}

/// The gauges by ipc namespace and by what queues go by.
#[derive(Debug, Default)]
pub struct Gauges(pub BTreeMap<(u32, Destination), Gauge>);

impl Gauges {
    /// Puts queues together with those who wait at them.
    pub fn new(
        points: BTreeMap<QueueName, QueuePoint>,
        waiting: &Waiting,
        destination: impl Fn(Arc<str>) -> Destination,
    ) -> Self {
        let mut gauges: BTreeMap<(u32, Destination), Gauge> = BTreeMap::new();
        for (queue, point) in points {
            let threads = [Op::MqTimedsend, Op::MqTimedreceive].map(|op| {
                let seen = waiting.threads.get(&(queue.clone(), op)).map(|threads| threads.cast_signed());
                seen.or(waiting.all_seen.then_some(0))
            });
            let (ipc_ns, name) = queue;
            let gauge = gauges.entry((ipc_ns, destination(name))).or_default();
            gauge.depth += point.depth;
            gauge.peak = gauge.peak.max(point.peak);
            gauge.capacity += point.capacity;
            for (sum, threads) in gauge.waiting.iter_mut().zip(threads) {
                *sum = threads.map_or(*sum, |threads| Some(sum.unwrap_or(0) + threads));
            }
        }
        Self(gauges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(number: u64, name: u64, depth: i64, peak: Option<i64>) -> QueueReading {
        QueueReading {
            key: QueueKey { inode: number, number, namespace: 1 },
            name,
            ipc_ns: 9,
            maxmsg: 10,
            depth,
            peak,
            first_ns: number * 100,
            matched: true,
        }
    }

    fn name(number: u64) -> Option<Arc<str>> {
        Some(format!("/{number}").into())
    }

    fn depths(points: &BTreeMap<QueueName, QueuePoint>) -> Vec<(&str, i64, i64)> {
        points.iter().map(|((_, name), point)| (&**name, point.depth, point.peak)).collect()
    }

    /// Prevents queues from being told of for ever, from vanishing while they are used, and a successor of the same
    /// name from being taken for the one that was unlinked.
    #[test]
    fn until_it_is_gone() {
        let mut queues = Queues::new(Vec::new(), false);
        let old = reading(1, 5, 2, Some(3));
        assert_eq!(depths(&queues.collect(std::slice::from_ref(&old), &[], name).0), [("/5", 2, 3)]);
        let unlinked = Unlinked { name: 5, ipc_ns: 9, at_ns: 150 };
        let new = reading(2, 5, 1, Some(1));
        let (points, gone) = queues.collect(&[new.clone(), old.clone()], &[unlinked], name);
        assert_eq!((depths(&points), gone.len()), (vec![("/5", 1, 1)], 0));
        let idle = QueueReading { peak: None, ..old };
        let (points, gone) = queues.collect(&[idle.clone(), QueueReading { peak: None, ..new }], &[], name);
        assert_eq!((depths(&points), gone), (vec![("/5", 1, 1)], vec![idle.key]));
    }

    /// Prevents queues that no call reaches from being overlooked, and others' queues from being told of where only some
    /// calls are of interest.
    #[test]
    fn found_ones_and_others() {
        let found = Found { name: (9, "/7".into()), maxmsg: 10, depth: 10 };
        let mut queues = Queues::new(vec![found.clone()], false);
        assert_eq!(depths(&queues.collect(&[], &[], name).0), [("/7", 10, 10)]);
        assert_eq!(depths(&queues.collect(&[reading(1, 7, 4, Some(10))], &[], name).0), [("/7", 4, 10)]);
        assert!(queues.collect(&[], &[], name).0.is_empty(), "the kernel side knows it now");

        let mut queues = Queues::new(vec![found], true);
        let foreign = QueueReading { matched: false, ..reading(1, 6, 1, None) };
        assert_eq!(depths(&queues.collect(&[foreign, reading(2, 8, 1, None)], &[], name).0), [("/8", 1, 1)]);
    }

    /// Prevents a zero where a thread that could not be looked at may wait, and one that was seen from going uncounted.
    #[test]
    fn waiting_threads() {
        let point = QueuePoint { depth: 0, peak: 0, capacity: 10 };
        let points: BTreeMap<QueueName, QueuePoint> =
            [((9, "/1".into()), point.clone()), ((9, "/2".into()), point)].into();
        let threads = BTreeMap::from([(((9, "/1".into()), Op::MqTimedreceive), 3)]);
        let gauges = |all_seen| {
            let waiting = Waiting { threads: threads.clone(), all_seen };
            let destination = |name| Destination::of(name, &crate::model::glob::Templates::default());
            Gauges::new(points.clone(), &waiting, destination)
                .0
                .into_values()
                .map(|gauge| gauge.waiting)
                .collect::<Vec<_>>()
        };
        assert_eq!(gauges(true), [[Some(0), Some(3)], [Some(0), Some(0)]]);
        assert_eq!(gauges(false), [[None, Some(3)], [None, None]]);
    }
}
