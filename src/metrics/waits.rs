//! How long messages lay in their queues, where that is inferred from the order of calls: the kernel side, which adds up
//! everything else, doesn't know it. Added up between two collections, bounded. Pure code.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::buckets::{BUCKETS, duration_bounds};
use crate::model::call::{ImageKey, QueueKey};
use crate::model::reading::{Measure, Points, Reading};
use crate::model::values::Op;

/// So many pairs of a process and a queue are told apart, as many as series on the kernel side.
const PAIRS: usize = 4096;

/// The waits since the collection before.
#[derive(Debug)]
pub struct Waits {
    /// The largest ns of each bucket but the last.
    bounds: Vec<u64>,
    pairs: HashMap<(ImageKey, QueueKey), Pair>,
    /// Of what found no room for a pair of its own.
    overflow: Points,
}

#[derive(Debug)]
struct Pair {
    name: Arc<str>,
    ipc_ns: u32,
    points: Points,
}

impl Default for Waits {
    fn default() -> Self {
        Self { bounds: duration_bounds()[..BUCKETS - 1].to_vec(), pairs: HashMap::new(), overflow: Points::none() }
    }
}

impl Waits {
    /// Adds the wait of a message that the process received from the queue; `name` is the queue's.
    pub fn add(
        &mut self,
        image: ImageKey,
        queue: QueueKey,
        ipc_ns: u32,
        wait_ns: u64,
        name: impl FnOnce() -> Arc<str>,
    ) {
        let Self { bounds, pairs, overflow } = self;
        let has_room = pairs.len() < PAIRS || pairs.contains_key(&(image, queue));
        let points = match has_room {
            true => {
                let pair = || Pair { name: name(), ipc_ns, points: Points::none() };
                &mut pairs.entry((image, queue)).or_insert_with(pair).points
            }
            false => overflow,
        };
        match wait_ns {
            0 => points.zeros += 1,
            ns => points.buckets[bounds.partition_point(|bound| *bound < ns)] += 1,
        }
        points.sum = points.sum.saturating_add(wait_ns);
    }

    /// Takes what was added, as readings with the names of their queues.
    pub fn take(&mut self) -> impl Iterator<Item = (Reading, Option<Arc<str>>)> {
        let reading = |image, ipc_ns, points| Reading {
            image,
            name: 0,
            ipc_ns,
            errno: 0,
            cause: None,
            measure: Measure::Wait,
            op: Op::MqTimedreceive,
            comm: Vec::new(),
            points,
        };
        let overflow = std::mem::replace(&mut self.overflow, Points::none());
        let overflow = (overflow.count() > 0).then(|| (reading(None, 0, overflow), None));
        let pairs = std::mem::take(&mut self.pairs).into_iter();
        let pairs =
            pairs.map(move |((image, _), pair)| (reading(Some(image), pair.ipc_ns, pair.points), Some(pair.name)));
        pairs.chain(overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(waits: &mut Waits, pid: u32, number: u64, wait_ns: u64) {
        let image = ImageKey { pid, started_ns: 1, exec_id: 0 };
        waits.add(image, QueueKey { inode: 1, number, namespace: 3 }, 9, wait_ns, || format!("/{number}").into());
    }

    /// Prevents a wait from falling into the bucket beside the one that the kernel side would choose, from being told
    /// twice, and queues from being mixed.
    #[test]
    fn waits_of_each_queue() {
        let mut waits = Waits::default();
        for (number, wait_ns) in [(1, 0), (1, 1_000_000_000), (1, 1_000_000_001), (2, u64::MAX)] {
            add(&mut waits, 5, number, wait_ns);
        }
        let mut taken: Vec<_> = waits.take().collect();
        taken.sort_by_key(|(_, name)| name.clone());
        let [(first, first_name), (second, _)] = &taken[..] else { panic!("{taken:?}") };
        assert_eq!(first_name.as_deref(), Some("/1"));
        let Points { zeros, sum, buckets } = &first.points;
        assert_eq!((*zeros, *sum, buckets[93], buckets[94], first.points.count()), (1, 2_000_000_001, 1, 1, 3));
        assert_eq!(second.points.buckets[BUCKETS - 1], 1);
        assert_eq!(waits.take().count(), 0);
    }

    /// Prevents ever new queues from taking memory without end, and their waits from being lost.
    #[test]
    fn what_finds_no_room_is_counted_all_the_same() {
        let mut waits = Waits::default();
        for number in 0..PAIRS as u64 + 7 {
            add(&mut waits, 5, number, 1000);
        }
        let rest: Vec<u64> = waits
            .take()
            .filter(|(reading, _)| reading.image.is_none())
            .map(|(reading, _)| reading.points.count())
            .collect();
        assert_eq!(rest, [7]);
    }
}
