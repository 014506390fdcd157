//! Metrics of the calls on their way to the outputs: readings from the kernel side get their names, pass the filters
//! on names, and leave as requests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use nix::time::ClockId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clock;
use crate::export::ledger::Ledger;
use crate::export::queue::Origin;
use crate::export::{Sink, enqueue_metrics};
use crate::kernel::aggregates::Taken;
use crate::metrics::otlp;
use crate::metrics::queues::{self, Gauges};
use crate::metrics::streams::{Destination, Exemplar, Of, Stream, Streams};
use crate::metrics::waits::Waits;
use crate::model::call::{Call, Ids, ImageKey, Name};
use crate::model::filter::Filters;
use crate::model::glob::Templates;
use crate::model::reading::Measure;
use crate::model::resource::Resource;
use crate::model::text::utf8;
use crate::model::values::MetricLimits;
use crate::model::values::{Op, Temporality};
use crate::telemetry::record::Record;
use crate::telemetry::view::View;
use crate::who::host;

/// So many names are remembered; beyond them, those that were in use at the last collection.
const NAMES: usize = 16_384;

/// So many spans are kept as candidates for exemplars, drawn from all since the collection before.
const CANDIDATES: usize = 1024;

/// Collections are at least so far apart by their times, in ns: some backends keep one point of a stream for each
/// millisecond (Prometheus), and the last collection may follow right after another.
const APART: u64 = 1_000_000;

/// A span that may become an exemplar.
#[derive(Debug)]
struct Candidate {
    image: ImageKey,
    op: Op,
    name: Option<Arc<str>>,
    ipc_ns: u32,
    errno: i32,
    time_ns: u64,
    duration_ns: u64,
    wait_ns: Option<u64>,
    ids: Ids,
}

/// What makes metrics of readings.
#[derive(Debug)]
pub struct Meter {
    streams: Streams,
    waits: Waits,
    sinks: Vec<Sink>,
    ledger: Arc<Ledger>,
    filters: Arc<Filters>,
    names: HashMap<u64, Known>,
    only_matched: bool,
    templates: Templates,
    own: Arc<Resource>,
    /// Whether calls have no records, so that they are counted here.
    alone: bool,
    candidates: Vec<Candidate>,
    /// Spans since the collection before.
    spans: u64,
    /// The time of the collection before, ns since 1970.
    collected_ns: u64,
    random: SmallRng,
    /// No later collection could bring what this one leaves.
    is_ending: bool,
}

/// What a meter is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where metrics go.
    pub sinks: Vec<Sink>,
    /// Where everything is counted.
    pub ledger: Arc<Ledger>,
    /// The filters on names are applied here.
    pub filters: Arc<Filters>,
    /// How many streams there may be.
    pub limits: MetricLimits,
    /// Whether streams add up from their start.
    pub temporality: Temporality,
    /// mqspan's own Resource, under which queues stand.
    pub own: Arc<Resource>,
    /// Whether a queue is shown only once a call that passes the filters on whose calls reached it.
    pub only_matched: bool,
    /// What queues go by.
    pub templates: Templates,
    /// Whether calls have no records.
    pub alone: bool,
}

#[derive(Debug)]
struct Known {
    /// With its slash.
    name: Arc<str>,
    used: bool,
}

impl Meter {
    /// A meter that gives to its sinks.
    pub fn new(parts: Parts) -> Self {
        let Parts { sinks, ledger, filters, limits, temporality, own, only_matched, templates, alone } = parts;
        let cumulative = temporality == Temporality::Cumulative;
        Self {
            streams: Streams::new(limits, cumulative, own.clone(), now_ns()),
            waits: Waits::default(),
            sinks,
            ledger,
            filters,
            names: HashMap::new(),
            only_matched,
            templates,
            own,
            alone,
            candidates: Vec::new(),
            spans: 0,
            collected_ns: 0,
            random: SmallRng::from_os_rng(),
            is_ending: false,
        }
    }

    /// A span was made of a call: it may be drawn as an exemplar, each as likely as any other.
    pub fn offer(&mut self, view: &View<'_>, record: &Record<'_>) {
        let Some(ids) = record.span() else { return };
        self.spans += 1;
        let place = match self.candidates.len() {
            len @ 0..CANDIDATES => len,
            _ => self.random.random_range(0..self.spans) as usize,
        };
        if place >= CANDIDATES {
            return;
        }
        let call = view.call;
        let candidate = Candidate {
            image: call.image,
            op: call.op,
            name: view.destination.as_deref().map(Arc::from),
            ipc_ns: call.ipc_ns,
            errno: view.errno().unwrap_or(0),
            time_ns: record.end_ns(),
            duration_ns: call.duration_ns(),
            wait_ns: call.wait_ns(),
            ids,
        };
        match self.candidates.get_mut(place) {
            Some(old) => *old = candidate,
            None => self.candidates.push(candidate),
        }
    }

    /// Gives the drawn spans to their streams.
    fn exemplify(&mut self) {
        self.spans = 0;
        for candidate in self.candidates.drain(..) {
            let Candidate { image, op, name, ipc_ns, errno, time_ns, duration_ns, wait_ns, ids } = candidate;
            let destination = name.map(|name| Destination::of(name, &self.templates));
            let of = Of { destination, ipc_ns, errno };
            for (measure, ns) in [(Measure::Duration, Some(duration_ns)), (Measure::Wait, wait_ns)] {
                let Some(ns) = ns else { continue };
                let stream = Stream { measure, op, of: Some(of.clone()) };
                self.streams.exemplify(image, &stream, Exemplar { time_ns, seconds: ns as f64 / 1e9, ids });
            }
        }
    }

    /// The image has another Resource from now on.
    pub fn replace(&mut self, image: &ImageKey) {
        self.streams.replace(image);
    }

    /// Remembers the name behind a number.
    pub fn name(&mut self, name: Name) {
        if self.names.len() >= NAMES {
            self.names.retain(|_, known| known.used);
        }
        let known = Known { name: format!("/{}", utf8(&name.bytes)).into(), used: true };
        self.names.insert(name.number, known);
    }

    /// Adds how long the message that a receive got lay in its queue, where that was inferred.
    pub fn waited(&mut self, call: &Call) {
        let (Some(queue), Some(wait_ns)) = (&call.queue, call.inferred_wait_ns()) else { return };
        if self.filters.comm.keeps_name(Some(&utf8(call.comm()))) {
            let name = || format!("/{}", utf8(&queue.name)).into();
            self.waits.add(call.image, queue.key, call.ipc_ns, wait_ns, name);
        }
    }

    /// The next collections are the last ones.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// Whether deltas add up here until an output can take them: those of the collection before still wait everywhere.
    fn is_held_up(&self) -> bool {
        let is_waiting = |sink: &Sink| sink.is_waiting(Origin::Calls);
        !self.is_ending && !self.streams.is_cumulative() && !self.sinks.is_empty() && self.sinks.iter().all(is_waiting)
    }

    /// Takes what was added since the last time, and hands over what there is to tell.
    pub fn collect(&mut self, taken: Taken, mut resource: impl FnMut(ImageKey) -> Arc<Resource>) {
        let Taken { series, queues, waiting, containers } = taken;
        let queue_names = queues.iter().map(|queue| queue.name).collect::<HashSet<_>>();
        self.names.iter_mut().for_each(|(number, known)| known.used = queue_names.contains(number));
        for reading in &series {
            let name = self.names.get_mut(&reading.name).map(|known| {
                known.used = true;
                known.name.clone()
            });
            let Filters { queue, comm, .. } = &*self.filters;
            // What found no room for a series of its own has neither name nor thread.
            let passes = reading.image.is_none()
                || queue.keeps_name(name.as_deref()) && comm.keeps_name(Some(&utf8(&reading.comm)));
            if self.alone && reading.measure == Measure::Duration {
                self.ledger.aggregated(reading.points.count(), passes);
            }
            if passes {
                self.streams.add(reading, name.map(|name| Destination::of(name, &self.templates)), &mut resource);
            }
        }
        for (reading, name) in self.waits.take() {
            if name.is_none() || self.filters.queue.keeps_name(name.as_deref()) {
                self.streams.add(&reading, name.map(|name| Destination::of(name, &self.templates)), &mut resource);
            }
        }
        self.exemplify();
        if self.is_held_up() {
            return;
        }
        let now_ns = apart(self.collected_ns, now_ns());
        self.collected_ns = now_ns;
        let known = |number| self.names.get(&number).map(|known| known.name.clone());
        let mut points = queues::points(&queues, self.only_matched, known);
        points.retain(|(_, name), _| self.filters.queue.keeps_name(Some(name)));
        let mut request = otlp::request(&self.streams, now_ns);
        let gauges = Gauges::new(points, &waiting, |name| Destination::of(name, &self.templates));
        request.resource_metrics.extend(otlp::of_queues(&gauges, &containers, &self.own, now_ns));
        if !request.resource_metrics.is_empty() {
            enqueue_metrics(&self.sinks, &self.ledger, Origin::Calls, &[request]);
        }
        self.streams.exported(now_ns, |key| !host::is_running(key));
    }
}

/// A time [`APART`] from the one before, which it may be just behind; a clock that was set is followed.
fn apart(before_ns: u64, now_ns: u64) -> u64 {
    if now_ns.abs_diff(before_ns) < APART { before_ns.saturating_add(APART) } else { now_ns }
}

fn now_ns() -> u64 {
    clock::now_ns(ClockId::CLOCK_REALTIME).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::{APART, apart};

    /// Prevents two points of a stream from falling into one millisecond, and a clock that was set back from being ignored.
    #[test]
    fn collections_are_apart() {
        for (before, now, expected) in [
            (0, 5 * APART, 5 * APART),
            (5 * APART, 5 * APART, 6 * APART),
            (5 * APART, 5 * APART + 1, 6 * APART),
            (5 * APART + 1, 5 * APART, 6 * APART + 1),
            (5 * APART, 6 * APART, 6 * APART),
            (500 * APART, 5 * APART, 5 * APART),
        ] {
            assert_eq!(apart(before, now), expected, "{before} {now}");
        }
    }
}
