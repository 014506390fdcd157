//! The kernel side's maps of metrics, decoded: series, queues and unlinked names. Pure code; the layouts are
//! bpf/aggregate.h's and bpf/depth.h's.

use super::decode::{Malformed, head, op_of};
use super::skel::types::{measures, metric, points, queue_key, queue_state, series};
use crate::model::call::{ImageKey, QueueKey};
use crate::model::cause::Cause;
use crate::model::reading::{Measure, Points, QueueLife, QueueReading, Reading};

impl Reading {
    /// Decodes a value of the map of series: what was measured at all.
    pub fn decode(value: &[u8]) -> Result<Vec<Self>, Malformed> {
        const MEASURES: [(metric, Measure); 3] = [
            (metric::METRIC_DURATION, Measure::Duration),
            (metric::METRIC_WAIT, Measure::Wait),
            (metric::METRIC_SIZE, Measure::Size),
        ];
        let malformed = Malformed(value.len());
        if value.len() != size_of::<measures>() {
            return Err(malformed);
        }
        let value: Box<measures> = Box::new(head(value));
        let key = value.series;
        let image = ImageKey { pid: key.pid, started_ns: key.process_started_ns, exec_id: key.exec_id };
        let op = op_of(key.op).ok_or(malformed)?;
        let errno = key.errno.try_into().map_err(|_| malformed)?;
        let cause = Cause::of(key.cause);
        let comm = key.comm.map(i8::cast_unsigned);
        let reading = |(number, measure): (metric, Measure)| {
            let points { sum, zeros, buckets, .. } = value.of[number.0 as usize];
            Self {
                image: (image.pid != 0).then_some(image),
                name: key.name,
                ipc_ns: key.ipc_ns,
                errno,
                cause,
                measure,
                op,
                comm: comm.split(|byte| *byte == 0).next().unwrap_or_default().into(),
                points: Points { sum, zeros: zeros.into(), buckets: Box::new(buckets) },
            }
        };
        Ok(MEASURES.into_iter().map(reading).filter(|reading| reading.points.count() > 0).collect())
    }
}

impl QueueReading {
    /// Decodes an entry of the map of queues, where `period` is the one that has just ended.
    pub fn decode(key: &[u8], value: &[u8], period: u32) -> Result<Self, Malformed> {
        let malformed = Malformed(key.len() + value.len());
        if key.len() != size_of::<queue_key>() || value.len() != size_of::<queue_state>() {
            return Err(malformed);
        }
        let (key, value): (queue_key, queue_state) = (head(key), head(value));
        let peak = value.peaks[(period & 1) as usize];
        Ok(Self {
            key: QueueKey { inode: key.inode, number: key.ino, namespace: key.ns },
            name: value.name,
            ipc_ns: value.ipc_ns,
            maxmsg: value.maxmsg,
            depth: value.depth,
            peak: (peak >> 32 == u64::from(period)).then_some((peak & 0xffff_ffff).cast_signed()),
            life: QueueLife::Named,
            matched: value.matched != 0,
            look: None,
        })
    }
}

/// The overflow points by their keys, which each map of series must hold from the start.
pub fn overflow_points() -> Vec<(u64, Vec<u8>)> {
    let points = |op: u32| {
        let empty = measures { series: series { op, ..series::default() }, ..measures::default() };
        // SAFETY: a structure of integers without padding.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const empty).cast::<u8>(), size_of::<measures>()) };
        (op.into(), bytes.to_vec())
    };
    (0..).take_while(|op| op_of(*op).is_some()).map(points).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents overflow points from being taken for a process's, and series of another layout from being believed.
    #[test]
    fn overflow_points_are_nobodys() {
        let all = overflow_points();
        assert_eq!(all.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        for (_, empty) in &all {
            assert_eq!(Reading::decode(empty).unwrap(), []);
            let mut value = empty.clone();
            value[size_of::<series>() + 8] = 3;
            value[size_of::<series>() + size_of::<points>() + 8] = 2;
            let readings = Reading::decode(&value).unwrap();
            assert!(readings.iter().all(|reading| reading.image.is_none()));
            let counts: Vec<_> = readings.iter().map(|reading| (reading.measure, reading.points.count())).collect();
            assert_eq!(counts, [(Measure::Duration, 3), (Measure::Wait, 2)]);
        }
        let (_, mut wrong) = all[0].clone();
        assert!(Reading::decode(&wrong[1..]).is_err());
        wrong[std::mem::offset_of!(series, op)] = 6;
        assert!(Reading::decode(&wrong).is_err());
    }

    /// Prevents a peak of an earlier period from being told again, and one that a queue has kept from being forgotten.
    #[test]
    fn peaks_by_period() {
        let key = [0u8; 24];
        let mut state = queue_state { depth: 3, maxmsg: 10, ..queue_state::default() };
        state.peaks = [4 << 32 | 7, 3 << 32 | 9];
        let bytes = |state: &queue_state| {
            // SAFETY: integers without padding.
            unsafe { std::slice::from_raw_parts(std::ptr::from_ref(state).cast::<u8>(), size_of::<queue_state>()) }
                .to_vec()
        };
        for (period, peak) in [(4, Some(7)), (3, Some(9)), (5, None), (2, None)] {
            assert_eq!(QueueReading::decode(&key, &bytes(&state), period).unwrap().peak, peak, "{period}");
        }
        assert!(QueueReading::decode(&key[1..], &bytes(&state), 1).is_err());
    }
}
