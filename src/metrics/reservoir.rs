//! Spans that may become exemplars: a sample of those of each batch, which counts once the batch was exported, and of those
//! a sample of bounded size until the next collection. Pure code.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::streams::{AttributeSet, Destination, Exemplar, Series};
use crate::model::call::{Ids, ImageKey};
use crate::model::cause::Cause;
use crate::model::glob::Templates;
use crate::model::reading::Measure;
use crate::model::values::Op;
use crate::telemetry::record::Record;
use crate::telemetry::view::View;

/// So many spans are kept of a batch.
const OF_BATCH: usize = 64;
/// So many spans are kept of all since the collection before.
const MOST: usize = 1024;

/// A span that may become an exemplar.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    image: ImageKey,
    op: Op,
    name: Option<Arc<str>>,
    ipc_ns: u32,
    errno: i32,
    cause: Option<Cause>,
    time_ns: u64,
    duration_ns: u64,
    wait_ns: Option<u64>,
    ids: Ids,
}

impl Candidate {
    fn of(view: &View<'_>, record: &Record<'_>, ids: Ids) -> Self {
        let call = view.call;
        Self {
            image: call.image,
            op: call.op,
            name: view.destination().map(Arc::from),
            ipc_ns: call.ipc_ns,
            errno: view.errno().unwrap_or(0),
            cause: call.failure.map(|failure| failure.cause),
            time_ns: record.end_ns(),
            duration_ns: call.duration_ns(),
            wait_ns: call.wait_ns(),
            ids,
        }
    }

    /// The streams that it may stand for, with what was measured.
    pub fn exemplars(&self, templates: &Templates) -> impl Iterator<Item = (ImageKey, Series, Exemplar)> {
        let Self { image, op, ipc_ns, errno, cause, time_ns, ids, .. } = *self;
        let destination = self.name.clone().map(|name| Destination::of(name, templates));
        let set = AttributeSet { destination, ipc_ns, errno, cause };
        let of = move |(measure, ns): (Measure, Option<u64>)| {
            let exemplar = Exemplar { time_ns, seconds: ns? as f64 / 1e9, ids };
            Some((image, Series { measure, op, set: set.clone() }, exemplar))
        };
        [(Measure::Duration, Some(self.duration_ns)), (Measure::Wait, self.wait_ns)].into_iter().filter_map(of)
    }
}

/// A sample of bounded size in which each that was offered is as likely as any other.
#[derive(Debug)]
struct Sample<T> {
    most: usize,
    offered: u64,
    kept: Vec<T>,
    random: SmallRng,
}

impl<T> Sample<T> {
    fn new(most: usize, random: SmallRng) -> Self {
        Self { most, offered: 0, kept: Vec::new(), random }
    }

    fn offer(&mut self, make: impl FnOnce() -> T) {
        self.offered += 1;
        if self.kept.len() < self.most {
            self.kept.push(make());
            return;
        }
        let place = self.random.random_range(0..self.offered) as usize;
        if let Some(kept) = self.kept.get_mut(place) {
            *kept = make();
        }
    }

    fn take(&mut self) -> Vec<T> {
        self.offered = 0;
        std::mem::take(&mut self.kept)
    }
}

/// Those of the batch that is being gathered.
#[derive(Debug)]
pub struct Candidates(Sample<Candidate>);

impl Default for Candidates {
    fn default() -> Self {
        Self(Sample::new(OF_BATCH, SmallRng::from_os_rng()))
    }
}

impl Candidates {
    /// A span was made of a call.
    pub fn offer(&mut self, view: &View<'_>, record: &Record<'_>) {
        if let Some(ids) = record.span() {
            self.0.offer(|| Candidate::of(view, record, ids));
        }
    }

    /// Those of the batch, which ends here.
    pub fn take(&mut self) -> Vec<Candidate> {
        self.0.take()
    }
}

/// Those that were exported since the collection before.
#[derive(Debug)]
pub struct Reservoir(Sample<Candidate>);

impl Default for Reservoir {
    fn default() -> Self {
        Self(Sample::new(MOST, SmallRng::from_os_rng()))
    }
}

impl Reservoir {
    /// A batch was exported, and these spans with it.
    pub fn exported(&mut self, candidates: Vec<Candidate>) {
        for candidate in candidates {
            self.0.offer(|| candidate);
        }
    }

    /// Takes what is kept; it begins anew.
    pub fn take(&mut self) -> Vec<Candidate> {
        self.0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents spans from taking memory without end between two collections, and the first or the last of them from being
    /// the only ones that are shown.
    #[test]
    fn bounded_and_drawn_from_all() {
        let mut sample = Sample::new(100, SmallRng::seed_from_u64(5));
        (0..10_000).for_each(|number| sample.offer(|| number));
        let kept = sample.take();
        assert_eq!(kept.len(), 100);
        let early = kept.iter().filter(|number| **number < 5000).count();
        assert!((25..75).contains(&early), "{early} of the first half");
        sample.offer(|| 1);
        assert_eq!(sample.take(), [1], "begins anew");
    }
}
