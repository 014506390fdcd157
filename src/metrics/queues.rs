//! The state of queues: how full they are, were at the most, and can be, and who waits at them. From what the kernel
//! side keeps of each queue that a call reached, and what was found on the host. Pure code.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::streams::Destination;
use crate::model::live::{Attendance, QueueAccess};
use crate::model::reading::{QueueHeads, QueueId, QueueLife, QueueReading};
use crate::model::values::Op;

/// What is said of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePoint {
    /// Its name, with its slash.
    pub name: Arc<str>,
    /// Which queue.
    pub id: QueueId,
    /// Whether only descriptors keep it, and maybe another queue has its name.
    pub unlinked: bool,
    /// The messages in it.
    pub depth: i64,
    /// The most since the collection before.
    pub peak: i64,
    /// The most that it holds.
    pub capacity: i64,
    /// How long the message that would be received next has waited, ns; None where that is not known.
    pub oldest_ns: Option<u64>,
}

/// What is said of the queues that are there, and for the last time of those that have ended; where `only_matched`, of those
/// that a call reached that passes the filters on whose calls. `heads` is what the records of calls leave in queues; `name`
/// tells the name behind a number.
pub fn points(
    readings: &[QueueReading],
    only_matched: bool,
    heads: &QueueHeads,
    name: impl Fn(u64) -> Option<Arc<str>>,
) -> Vec<QueuePoint> {
    // Of one name there is one queue at a time; one that has ended may have had it before.
    let mut named: BTreeMap<(u32, Arc<str>), QueuePoint> = BTreeMap::new();
    let mut points = Vec::new();
    let mut readings: Vec<&QueueReading> = readings.iter().filter(|of| of.matched || !only_matched).collect();
    readings.sort_by_key(|of| (of.life != QueueLife::Ended, of.key.number));
    for of in readings {
        let Some(name) = name(of.name) else { continue };
        let point = QueuePoint {
            name: name.clone(),
            id: (of.ipc_ns, of.key.number),
            unlinked: of.life == QueueLife::Unlinked,
            depth: of.depth,
            peak: of.peak.unwrap_or(of.depth).max(of.depth),
            capacity: of.maxmsg,
            oldest_ns: of.look.and_then(|look| look.oldest_ns(heads.get(&of.key))),
        };
        match of.life {
            QueueLife::Unlinked => points.push(point),
            QueueLife::Named | QueueLife::Ended => _ = named.insert((of.ipc_ns, name), point),
        }
    }
    points.extend(named.into_values());
    points
}

/// What the gauges of a queue, or of those that go by one template, are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GaugeKey {
    /// The number of the ipc namespace.
    pub ipc_ns: u32,
    /// What they go by.
    pub destination: Destination,
    /// Whether only descriptors keep them.
    pub unlinked: bool,
    /// The inode's number of a single one that was unlinked: several may have had one name.
    pub number: Option<u64>,
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
    /// The longest that a message has waited which would be received next, ns; None where that is not known of any.
    pub oldest_ns: Option<u64>,
    /// Threads that wait to send, and to receive; None where none was seen, but not all could be.
    pub waiting: [Option<i64>; 2],
    /// Open descriptors, as in [`QueueAccess::ALL`]; None where that is not known.
    pub descriptors: Option<[i64; 3]>,
}

/// The gauges by what they are told apart by.
#[derive(Debug, Default)]
pub struct Gauges(pub BTreeMap<GaugeKey, Gauge>);

impl Gauges {
    /// Puts queues together with those who wait at them and have them open.
    pub fn new(
        points: Vec<QueuePoint>,
        attendance: &Attendance,
        destination: impl Fn(Arc<str>) -> Destination,
    ) -> Self {
        let mut gauges: BTreeMap<GaugeKey, Gauge> = BTreeMap::new();
        for point in points {
            let threads = [Op::MqTimedsend, Op::MqTimedreceive].map(|op| {
                let seen = attendance.threads.get(&(point.id, op)).map(|threads| threads.cast_signed());
                seen.or(attendance.all_seen.then_some(0))
            });
            let descriptors = attendance.descriptors.as_ref().map(|descriptors| {
                QueueAccess::ALL.map(|access| descriptors.get(&(point.id, access)).map_or(0, |open| open.cast_signed()))
            });
            let QueuePoint { name, id: (ipc_ns, number), unlinked, .. } = point;
            let destination = destination(name);
            let is_single = unlinked && matches!(destination, Destination::Name(_));
            let key = GaugeKey { ipc_ns, destination, unlinked, number: is_single.then_some(number) };
            let gauge = gauges.entry(key).or_default();
            gauge.depth += point.depth;
            gauge.peak = gauge.peak.max(point.peak);
            gauge.capacity += point.capacity;
            gauge.oldest_ns = gauge.oldest_ns.max(point.oldest_ns);
            if let Some(descriptors) = descriptors {
                let sums = gauge.descriptors.get_or_insert_default();
                sums.iter_mut().zip(descriptors).for_each(|(sum, open)| *sum += open);
            }
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
    use crate::model::glob::Templates;

    fn reading(number: u64, name: u64, depth: i64, peak: Option<i64>) -> QueueReading {
        QueueReading {
            key: QueueKey { inode: number, number, namespace: 1 },
            name,
            ipc_ns: 9,
            maxmsg: 10,
            depth,
            peak,
            life: QueueLife::Named,
            matched: true,
            look: None,
        }
    }

    fn name(number: u64) -> Option<Arc<str>> {
        Some(format!("/{number}").into())
    }

    fn depths(points: &[QueuePoint]) -> Vec<(&str, u64, bool, i64, i64)> {
        points.iter().map(|of| (&*of.name, of.id.1, of.unlinked, of.depth, of.peak)).collect()
    }

    /// Prevents a successor of the same name from being mixed with the queue that was unlinked and is still open, or that has
    /// ended, and others' queues from being shown where only some calls are of interest.
    #[test]
    fn of_one_name_and_of_others() {
        let old = QueueReading { life: QueueLife::Unlinked, ..reading(3, 5, 2, Some(3)) };
        let ended = QueueReading { life: QueueLife::Ended, ..reading(4, 5, 0, Some(9)) };
        let new = reading(2, 5, 1, Some(1));
        let (of_old, of_new) = (("/5", 3, true, 2, 3), ("/5", 2, false, 1, 1));
        let none = QueueHeads::new();
        assert_eq!(depths(&points(&[new.clone(), ended.clone(), old.clone()], false, &none, name)), [of_old, of_new]);
        assert_eq!(depths(&points(std::slice::from_ref(&old), false, &none, name)), [of_old]);
        assert_eq!(depths(&points(&[ended], false, &none, name)), [("/5", 4, false, 0, 9)]);
        let foreign = QueueReading { matched: false, ..reading(1, 6, 1, None) };
        assert_eq!(depths(&points(&[foreign.clone(), new.clone()], true, &none, name)), [of_new]);
        assert_eq!(depths(&points(&[foreign, new], false, &none, name)), [of_new, ("/6", 1, false, 1, 1)]);
    }

    fn point(name: &str, number: u64, unlinked: bool) -> QueuePoint {
        let oldest_ns = Some(number);
        QueuePoint { name: name.into(), id: (9, number), unlinked, depth: 1, peak: 2, capacity: 10, oldest_ns }
    }

    /// Prevents unlinked queues of one name from sharing a point, with each other or with their successor, and those that
    /// go by a template from having one each.
    #[test]
    fn a_point_each() {
        let all = vec![point("/1", 1, true), point("/1", 2, true), point("/1", 3, false)];
        for (templates, expected) in [
            (vec![], vec![(false, None, 1, Some(3)), (true, Some(1), 1, Some(1)), (true, Some(2), 1, Some(2))]),
            (vec!["/*".parse().unwrap()], vec![(false, None, 1, Some(3)), (true, None, 2, Some(2))]),
        ] {
            let templates = Templates::new(templates);
            let destination = |name| Destination::of(name, &templates);
            let gauges = Gauges::new(all.clone(), &Attendance::default(), destination).0;
            let told: Vec<_> =
                gauges.iter().map(|(key, of)| (key.unlinked, key.number, of.depth, of.oldest_ns)).collect();
            assert_eq!(told, expected);
        }
    }

    /// Prevents a zero where a thread that could not be looked at may wait, and one that was seen from going uncounted.
    #[test]
    fn waiting_threads() {
        let points = vec![point("/1", 1, false), point("/2", 2, false)];
        let threads = BTreeMap::from([(((9, 1), Op::MqTimedreceive), 3)]);
        let gauges = |all_seen| {
            let waiting = Attendance { threads: threads.clone(), all_seen, descriptors: None };
            let destination = |name| Destination::of(name, &Templates::default());
            let gauges = Gauges::new(points.clone(), &waiting, destination).0;
            gauges.into_values().map(|gauge| gauge.waiting).collect::<Vec<_>>()
        };
        assert_eq!(gauges(true), [[Some(0), Some(3)], [Some(0), Some(0)]]);
        assert_eq!(gauges(false), [[None, Some(3)], [None, None]]);
    }

    /// Prevents a queue that nobody reads from having no point that says so, and one whose holders are not known from having
    /// a zero.
    #[test]
    fn open_descriptors() {
        let points = vec![point("/1", 1, false), point("/2", 2, false)];
        let open = BTreeMap::from([(((9, 1), QueueAccess::Write), 3), (((8, 2), QueueAccess::Read), 1)]);
        let gauges = |descriptors| {
            let attendance = Attendance { descriptors, ..Attendance::default() };
            let destination = |name| Destination::of(name, &Templates::default());
            let gauges = Gauges::new(points.clone(), &attendance, destination).0;
            gauges.into_values().map(|gauge| gauge.descriptors).collect::<Vec<_>>()
        };
        assert_eq!(gauges(Some(open)), [Some([0, 3, 0]), Some([0, 0, 0])]);
        assert_eq!(gauges(None), [None, None]);
    }
}
