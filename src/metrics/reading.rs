//! The kernel side's series, decoded: bytes to [`Reading`]. Pure code; the layout is bpf/aggregate.h's.

use crate::bpf::skel::types::{measures, metric, points, series};
use crate::config::values::Op;
use crate::event::{ImageKey, Malformed, head, op_of};
use crate::metrics::buckets::BUCKETS;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// How long a call took, in ns.
    Duration,
    /// How long a received message lay in the queue, in ns.
    Wait,
    /// The size of a message that was passed, in bytes.
    Size,
}

/// A histogram as the kernel side keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    /// Of all values.
    pub sum: u64,
    /// How many values were 0.
    pub zeros: u64,
    /// How many values fell into each bucket.
    pub buckets: Box<[u32; BUCKETS]>,
}

impl Points {
    /// No value.
    pub fn none() -> Self {
        Self { sum: 0, zeros: 0, buckets: Box::new([0; BUCKETS]) }
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.zeros + self.buckets.iter().copied().map(u64::from).sum::<u64>()
    }
}

/// What was added to one series since it was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Who made the calls; None for those that found no room for a series of their own.
    pub image: Option<ImageKey>,
    /// The number of the queue's name; 0: none.
    pub name: u64,
    /// The ipc namespace.
    pub ipc_ns: u32,
    /// The positive errno of failures; 0: the calls succeeded.
    pub errno: i32,
    /// What is measured.
    pub measure: Measure,
    /// Which call.
    pub op: Op,
    /// The thread's name where a filter asks for it, else empty.
    pub comm: Vec<u8>,
    /// The values.
    pub points: Points,
}

impl Reading {
    /// Decodes an entry of the map of series: what was measured at all.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Vec<Self>, Malformed> {
        const MEASURES: [(metric, Measure); 3] = [
            (metric::METRIC_DURATION, Measure::Duration),
            (metric::METRIC_WAIT, Measure::Wait),
            (metric::METRIC_SIZE, Measure::Size),
        ];
        let malformed = Malformed(key.len() + value.len());
        if key.len() != size_of::<series>() || value.len() != size_of::<measures>() {
            return Err(malformed);
        }
        let (key, value): (series, Box<measures>) = (head(key), Box::new(head(value)));
        let image = ImageKey { pid: key.pid, started_ns: key.process_started_ns, exec_id: key.exec_id };
        let op = op_of(key.op).ok_or(malformed)?;
        let errno = key.errno.try_into().map_err(|_| malformed)?;
        let comm = key.comm.map(i8::cast_unsigned);
        let reading = |(number, measure): (metric, Measure)| {
            let points { sum, zeros, buckets, .. } = value.of[number.0 as usize];
            Self {
                image: (image.pid != 0).then_some(image),
                name: key.name,
                ipc_ns: key.ipc_ns,
                errno,
                measure,
                op,
                comm: comm.split(|byte| *byte == 0).next().unwrap_or_default().into(),
                points: Points { sum, zeros: zeros.into(), buckets: Box::new(buckets) },
            }
        };
        Ok(MEASURES.into_iter().map(reading).filter(|reading| reading.points.count() > 0).collect())
    }
}

/// The keys of the overflow points, which each map of series must hold from the start.
pub fn overflow_keys() -> Vec<Vec<u8>> {
    let key = |op: u32| {
        let key = series { op, ..series::default() };
        // SAFETY: a structure of integers without padding.
        unsafe { std::slice::from_raw_parts((&raw const key).cast::<u8>(), size_of::<series>()) }.to_vec()
    };
    (0..).take_while(|op| op_of(*op).is_some()).map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents overflow points from being taken for a process's, and series of another layout from being believed.
    #[test]
    fn overflow_points_are_nobodys() {
        let keys = overflow_keys();
        assert_eq!(keys.len(), 6);
        let mut value = vec![0; size_of::<measures>()];
        value[8] = 3;
        value[size_of::<points>() + 8] = 2;
        for key in &keys {
            let readings = Reading::decode(key, &value).unwrap();
            assert!(readings.iter().all(|reading| reading.image.is_none()));
            let counts: Vec<_> = readings.iter().map(|reading| (reading.measure, reading.points.count())).collect();
            assert_eq!(counts, [(Measure::Duration, 3), (Measure::Wait, 2)]);
        }
        assert!(Reading::decode(&keys[0][1..], &value).is_err());
        assert!(Reading::decode(&keys[0], &value[1..]).is_err());
        let mut wrong = keys[0].clone();
        wrong[std::mem::offset_of!(series, op)] = 6;
        assert!(Reading::decode(&wrong, &value).is_err());
    }
}
