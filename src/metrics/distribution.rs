//! One histogram: how values are spread over the kernel side's buckets, and the same in buckets with explicit bounds.
//! Pure code.

use crate::model::buckets::BUCKETS;
use crate::model::reading::Points;

/// What was added to a series since a time, in the kernel side's buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Since when, ns since 1970.
    pub start_ns: u64,
    /// Of all values.
    pub sum: u64,
    /// How many values were 0.
    pub zeros: u64,
    /// The first bucket that holds any.
    pub first: usize,
    /// How many values fell into this bucket and those behind it.
    pub buckets: Box<[u64]>,
}

impl Distribution {
    /// Nothing yet.
    pub fn new(start_ns: u64) -> Self {
        Self { start_ns, sum: 0, zeros: 0, first: 0, buckets: Box::default() }
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.zeros + self.buckets.iter().sum::<u64>()
    }

    /// How many bytes its buckets take once the points are added, beyond those that they take now.
    pub fn growth(&self, points: &Points) -> usize {
        let (_, len) = self.span(|bucket| points.buckets[bucket] > 0);
        (len - self.buckets.len()) * size_of::<u64>()
    }

    /// Adds what the kernel side read.
    pub fn add(&mut self, points: &Points) {
        self.add_buckets(points.sum, points.zeros, |bucket| points.buckets[bucket].into());
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        self.start_ns = self.start_ns.min(other.start_ns);
        self.add_buckets(other.sum, other.zeros, |bucket| {
            bucket.checked_sub(other.first).and_then(|at| other.buckets.get(at)).copied().unwrap_or(0)
        });
    }

    /// The first bucket and the number of buckets, were those added that hold any.
    fn span(&self, holds: impl Fn(usize) -> bool) -> (usize, usize) {
        let Some(first) = (0..BUCKETS).find(|bucket| holds(*bucket)) else { return (self.first, self.buckets.len()) };
        let end = (first..BUCKETS).rev().find(|bucket| holds(*bucket)).map_or(first, |last| last + 1);
        match self.buckets.len() {
            0 => (first, end - first),
            len => (self.first.min(first), end.max(self.first + len) - self.first.min(first)),
        }
    }

    fn add_buckets(&mut self, sum: u64, zeros: u64, count: impl Fn(usize) -> u64) {
        self.sum = self.sum.saturating_add(sum);
        self.zeros += zeros;
        let (first, len) = self.span(|bucket| count(bucket) > 0);
        if len > self.buckets.len() {
            let mut grown = vec![0; len];
            let at = self.first.saturating_sub(first).min(len - self.buckets.len());
            grown[at..at + self.buckets.len()].copy_from_slice(&self.buckets);
            self.buckets = grown.into();
        }
        self.first = first;
        for (at, bucket) in self.buckets.iter_mut().enumerate() {
            *bucket += count(first + at);
        }
    }

    /// The value below which so many of all values lie, `share` from 0 to 1: the upper bound of its bucket, so at most 19 %
    /// too much; `bounds` are the kernel side's. None without values.
    pub fn quantile(&self, share: f64, bounds: &[u64]) -> Option<u64> {
        let rank = ((self.count() as f64 * share).ceil() as u64).clamp(1, self.count().max(1));
        let mut below = self.zeros;
        if self.count() == 0 || below >= rank {
            return (below > 0).then_some(0);
        }
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        bounds.get(self.first + bucket).copied()
    }

    /// The same counts between bounds at powers of two, from 2^`low` to 2^`high`: how many values lie above each bound but
    /// the last and not above the next, first those up to the first bound, last those above the last. Exact, since each
    /// fourth bound of the kernel side's buckets is a power of two; `first` is the OTLP index of its first bucket.
    pub fn between_powers_of_two(&self, first: i32, low: i32, high: i32) -> Vec<u64> {
        let mut counts = vec![0; (high - low + 2).unsigned_abs() as usize];
        counts[0] = self.zeros;
        for (index, count) in (first + self.first as i32..).zip(&self.buckets) {
            // The bucket ends at 2^((index + 1) / 4); the first power of two that is no less is its upper bound.
            let power = (index + 4).div_euclid(4).clamp(low, high + 1);
            counts[(power - low).unsigned_abs() as usize] += count;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::buckets::{FIRST_DURATION, FIRST_SIZE, duration_bounds, size_bounds};

    fn points(values: &[(usize, u32)]) -> Points {
        let mut buckets = Box::new([0; BUCKETS]);
        for (bucket, count) in values {
            buckets[*bucket] += count;
        }
        Points { sum: 7, zeros: 1, buckets }
    }

    /// Prevents counts from moving to another bucket when a histogram grows at either end, and its growth from being
    /// reckoned as another.
    #[test]
    fn grows_at_both_ends() {
        let mut total = Distribution::new(5);
        for values in [&[(50, 2), (52, 1)][..], &[(49, 1), (60, 4)], &[], &[(51, 0)]] {
            let (points, before) = (points(values), total.buckets.len());
            let growth = total.growth(&points);
            total.add(&points);
            assert_eq!((total.buckets.len() - before) * 8, growth, "{values:?}");
        }
        assert_eq!((total.first, total.count(), total.sum), (49, 12, 28));
        assert_eq!(*total.buckets, [1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4]);
        let mut other = Distribution::new(3);
        other.add(&points(&[(159, 1)]));
        other.merge(&total);
        assert_eq!((other.first, other.buckets.len(), other.count(), other.start_ns), (49, 111, 14, 3));
    }

    /// Prevents a quantile from being that of another bucket, and one of nothing from being a number.
    #[test]
    fn quantiles() {
        let bounds = duration_bounds();
        let of = |share| {
            let mut total = Distribution::new(0);
            total.add(&points(&[(50, 97), (60, 1), (61, 1)]));
            total.quantile(share, &bounds)
        };
        // One of the hundred values is 0.
        assert_eq!([of(0.0), of(0.01), of(0.5), of(0.98)], [0, 0, bounds[50], bounds[50]].map(Some));
        assert_eq!([of(0.99), of(1.0)], [bounds[60], bounds[61]].map(Some));
        assert_eq!(Distribution::new(0).quantile(0.5, &bounds), None);
    }

    /// Prevents a value from falling on the other side of a power of two than it lies, at the bounds and beyond them.
    #[test]
    fn powers_of_two_are_exact() {
        let seconds = |ns: u64| (-20..=5).position(|power| ns as f64 / 1e9 <= f64::from(power).exp2()).unwrap_or(26);
        let bytes = |bytes: u64| (0..=24).position(|power| bytes <= 1 << power).unwrap_or(25);
        let values = (0..63).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        let near_seconds = (-21i32..7).flat_map(|power| {
            let ns = (f64::from(power).exp2() * 1e9) as u64;
            [ns - 1, ns, ns + 1]
        });
        for value in values.chain(near_seconds).filter(|value| *value > 0) {
            for (bounds, first, low, high, expected) in [
                (duration_bounds(), FIRST_DURATION, -20, 5, seconds(value)),
                (size_bounds(), FIRST_SIZE, 0, 24, bytes(value)),
            ] {
                let mut total = Distribution::new(0);
                let bucket = bounds[..BUCKETS - 1].partition_point(|bound| *bound < value);
                total.add(&Points { zeros: 0, ..points(&[(bucket, 3)]) });
                let counts = total.between_powers_of_two(first, low, high);
                assert_eq!(counts.iter().position(|count| *count == 3), Some(expected), "{value}");
                assert_eq!(counts.len() as i32, high - low + 2);
            }
        }
        let mut zeros = Distribution::new(0);
        zeros.add(&points(&[]));
        assert_eq!(zeros.between_powers_of_two(FIRST_SIZE, 0, 24)[0], 1);
    }
}
