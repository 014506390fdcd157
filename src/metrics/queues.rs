//! The state of queues: how full they are, were at the most, and can be, and who waits at them. From what the kernel
//! side keeps of each queue that a call reached, and what was found on the host. Pure code.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::streams::Destination;
use crate::model::reading::{QueueName, QueueReading, Waiting};
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

/// What is said of the queues that are there; where `only_matched`, of those that a call reached that passes the filters on
/// whose calls. `name` tells the name behind a number.
pub fn points(
    readings: &[QueueReading],
    only_matched: bool,
    name: impl Fn(u64) -> Option<Arc<str>>,
) -> BTreeMap<QueueName, QueuePoint> {
    // Two queues of one name are an unlinked one that is still open and its successor, which comes later.
    let mut current: Vec<&QueueReading> = readings.iter().filter(|reading| reading.matched || !only_matched).collect();
    current.sort_by_key(|reading| (!reading.unlinked, reading.key.number));
    let mut points = BTreeMap::new();
    for QueueReading { name: number, ipc_ns, depth, maxmsg, peak, .. } in current {
        let Some(name) = name(*number) else { continue };
        let peak = peak.unwrap_or(*depth).max(*depth);
        points.insert((*ipc_ns, name), QueuePoint { depth: *depth, peak, capacity: *maxmsg });
    }
    points
}

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
    use crate::model::call::QueueKey;

    fn reading(number: u64, name: u64, depth: i64, peak: Option<i64>) -> QueueReading {
        QueueReading {
            key: QueueKey { inode: number, number, namespace: 1 },
            name,
            ipc_ns: 9,
            maxmsg: 10,
            depth,
            peak,
            unlinked: false,
            matched: true,
        }
    }

    fn name(number: u64) -> Option<Arc<str>> {
        Some(format!("/{number}").into())
    }

    fn depths(points: &BTreeMap<QueueName, QueuePoint>) -> Vec<(&str, i64, i64)> {
        points.iter().map(|((_, name), point)| (&**name, point.depth, point.peak)).collect()
    }

    /// Prevents a successor of the same name from being taken for the queue that was unlinked and is still open, and others'
    /// queues from being shown where only some calls are of interest.
    #[test]
    fn of_one_name_and_of_others() {
        let old = QueueReading { unlinked: true, ..reading(3, 5, 2, Some(3)) };
        let new = reading(2, 5, 1, Some(1));
        assert_eq!(depths(&points(&[new.clone(), old.clone()], false, name)), [("/5", 1, 1)]);
        assert_eq!(depths(&points(&[old], false, name)), [("/5", 2, 3)]);
        let foreign = QueueReading { matched: false, ..reading(1, 6, 1, None) };
        assert_eq!(depths(&points(&[foreign.clone(), new.clone()], true, name)), [("/5", 1, 1)]);
        assert_eq!(depths(&points(&[foreign, new], false, name)), [("/5", 1, 1), ("/6", 1, 1)]);
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
