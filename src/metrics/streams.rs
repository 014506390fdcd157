//! The streams of metrics: what the kernel side's readings add up to, for each process and set of attributes, bounded.
//! Pure code.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::model::buckets::BUCKETS;
use crate::model::call::{Ids, ImageKey};
use crate::model::glob::Templates;
use crate::model::reading::{Measure, Points, Reading};
use crate::model::resource::Resource;
use crate::model::values::MetricLimits;
use crate::model::values::Op;

/// So many names that led to no queue are told apart for a process.
const ASKED_NAMES: usize = 100;
/// So many exemplars a point has at most.
const EXEMPLARS: usize = 4;
/// So many names of queues are remembered.
const KNOWN_NAMES: usize = 16_384;

/// How a queue is called in metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// By its name.
    Name(Arc<str>),
    /// By the template that its name matches.
    Template(Arc<str>),
}

impl Destination {
    /// The template that the name matches, else the name.
    pub fn of(name: Arc<str>, templates: &Templates) -> Self {
        match templates.of(&name) {
            Some(template) => Self::Template(template.into()),
            None => Self::Name(name),
        }
    }
}

/// What tells a stream from others of its process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    /// What is measured.
    pub measure: Measure,
    /// Which call.
    pub op: Op,
    /// The other attributes; None for what found no room for a stream of its own.
    pub of: Option<Of>,
}

/// Whose queue, and what came of the call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Of {
    /// The queue.
    pub destination: Option<Destination>,
    /// The ipc namespace.
    pub ipc_ns: u32,
    /// The positive errno of failures, else 0.
    pub errno: i32,
}

/// A histogram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    /// Since when, ns since 1970.
    pub start_ns: u64,
    /// Of all values.
    pub sum: u64,
    /// How many values were 0.
    pub zeros: u64,
    /// The first bucket that holds any.
    pub first: usize,
    /// How many values fell into this bucket and those behind it.
    pub buckets: Vec<u64>,
}

impl Total {
    /// Nothing yet.
    pub fn new(start_ns: u64) -> Self {
        Self { start_ns, sum: 0, zeros: 0, first: 0, buckets: Vec::new() }
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.zeros + self.buckets.iter().sum::<u64>()
    }

    fn add(&mut self, points: &Points) {
        self.add_buckets(points.sum, points.zeros, |bucket| points.buckets[bucket].into());
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        self.start_ns = self.start_ns.min(other.start_ns);
        self.add_buckets(other.sum, other.zeros, |bucket| {
            bucket.checked_sub(other.first).and_then(|at| other.buckets.get(at)).copied().unwrap_or(0)
        });
    }

    fn add_buckets(&mut self, sum: u64, zeros: u64, count: impl Fn(usize) -> u64) {
        self.sum = self.sum.saturating_add(sum);
        self.zeros += zeros;
        let Some(first) = (0..BUCKETS).find(|bucket| count(*bucket) > 0) else { return };
        let end = (0..BUCKETS).rev().find(|bucket| count(*bucket) > 0).map_or(first, |last| last + 1);
        if self.buckets.is_empty() {
            self.first = first;
        }
        let (low, high) = (self.first.min(first), end.max(self.first + self.buckets.len()));
        self.buckets.splice(..0, std::iter::repeat_n(0, self.first - low));
        self.buckets.resize(high - low, 0);
        self.first = low;
        for (at, bucket) in self.buckets.iter_mut().enumerate() {
            *bucket += count(low + at);
        }
    }
}

/// A span that shows what is behind a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// When the call ended, ns since 1970.
    pub time_ns: u64,
    /// What was measured, in seconds.
    pub seconds: f64,
    /// The span.
    pub ids: Ids,
}

/// The streams of one Resource.
#[derive(Debug)]
pub struct Process {
    /// Who.
    pub resource: Arc<Resource>,
    /// What it adds up to.
    pub streams: HashMap<Stream, Total>,
    /// Spans of the calls since the collection before.
    pub exemplars: HashMap<Stream, Vec<Exemplar>>,
    asked: HashSet<u64>,
    touched: bool,
}

impl Process {
    fn new(resource: Arc<Resource>) -> Self {
        Self { resource, streams: HashMap::new(), exemplars: HashMap::new(), asked: HashSet::new(), touched: false }
    }

    fn add(&mut self, stream: Stream, points: &Points, since_ns: u64, most: usize) {
        self.touched = true;
        let has_room = self.streams.contains_key(&stream)
            || self.streams.keys().filter(|other| other.measure == stream.measure && other.of.is_some()).count() < most;
        let stream = if has_room { stream } else { Stream { of: None, ..stream } };
        self.streams.entry(stream).or_insert_with(|| Total::new(since_ns)).add(points);
    }
}

/// All streams.
#[derive(Debug)]
pub struct Streams {
    limits: MetricLimits,
    cumulative: bool,
    /// The streams of what found no room elsewhere stand under mqspan's own Resource.
    own: Process,
    processes: HashMap<ImageKey, Process>,
    /// Those that have another Resource now: told once more.
    replaced: Vec<Process>,
    known: HashSet<u64>,
    since_ns: u64,
}

impl Streams {
    /// No stream yet, from `now_ns` on. Streams add up from their start where they are `cumulative`, else from one
    /// collection to the next.
    pub fn new(limits: MetricLimits, cumulative: bool, own: Arc<Resource>, now_ns: u64) -> Self {
        Self {
            limits,
            cumulative,
            own: Process::new(own),
            processes: HashMap::new(),
            replaced: Vec::new(),
            known: HashSet::new(),
            since_ns: now_ns,
        }
    }

    /// Adds a reading; `destination` is the queue's name or template, `resource` who an image is.
    pub fn add(
        &mut self,
        reading: &Reading,
        destination: Option<Destination>,
        resource: impl FnOnce(ImageKey) -> Arc<Resource>,
    ) {
        let Self { limits, own, processes, known, since_ns, .. } = self;
        let Reading { measure, op, .. } = *reading;
        let has_room = |key: &ImageKey| processes.contains_key(key) || processes.len() < limits.max_processes;
        let Some(image) = reading.image.filter(has_room) else {
            return own.add(Stream { measure, op, of: None }, &reading.points, *since_ns, limits.max_series);
        };
        let process = processes.entry(image).or_insert_with_key(|key| Process::new(resource(*key)));
        let asks = matches!(op, Op::MqOpen | Op::MqUnlink) && reading.errno != 0;
        if !asks && known.len() < KNOWN_NAMES {
            known.insert(reading.name);
        }
        let is_told_apart = !asks || known.contains(&reading.name) || {
            process.asked.len() < ASKED_NAMES && process.asked.insert(reading.name)
                || process.asked.contains(&reading.name)
        };
        let of =
            Of { destination: destination.filter(|_| is_told_apart), ipc_ns: reading.ipc_ns, errno: reading.errno };
        process.add(Stream { measure, op, of: Some(of) }, &reading.points, *since_ns, limits.max_series);
    }

    /// Adds a span to a stream of an image, unless the stream has as many already, or is none of its own.
    pub fn exemplify(&mut self, image: ImageKey, stream: &Stream, exemplar: Exemplar) {
        let Some(process) = self.processes.get_mut(&image).filter(|process| process.streams.contains_key(stream))
        else {
            return;
        };
        let exemplars = process.exemplars.entry(stream.clone()).or_default();
        if exemplars.len() < EXEMPLARS {
            exemplars.push(exemplar);
        }
    }

    /// The image has another Resource from now on: its streams begin anew.
    pub fn replace(&mut self, image: &ImageKey) {
        self.replaced.extend(self.processes.remove(image));
    }

    /// Since when what was added is new, ns since 1970.
    pub fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// Whether streams add up from their start.
    pub fn is_cumulative(&self) -> bool {
        self.cumulative
    }

    /// Those that are to be exported now: where not cumulative, there is no other.
    pub fn current(&self) -> impl Iterator<Item = &Process> {
        self.processes.values().chain(&self.replaced).chain([&self.own]).filter(|process| !process.streams.is_empty())
    }

    /// They were exported. An image that is gone, as `is_gone` says, had its last counts then; one that made calls
    /// since the collection before has them once more.
    pub fn exported(&mut self, now_ns: u64, is_gone: impl Fn(&ImageKey) -> bool) {
        self.since_ns = now_ns;
        self.replaced.clear();
        let execs: HashMap<(u32, u64), u32> = self.processes.keys().fold(HashMap::new(), |mut execs, key| {
            let latest = execs.entry((key.pid, key.started_ns)).or_default();
            *latest = key.exec_id.max(*latest);
            execs
        });
        let is_replaced =
            |key: &ImageKey| execs.get(&(key.pid, key.started_ns)).is_some_and(|last| *last > key.exec_id);
        self.processes.retain(|key, process| process.touched || !(is_replaced(key) || is_gone(key)));
        for process in self.processes.values_mut().chain([&mut self.own]) {
            process.touched = false;
            process.exemplars.clear();
            if !self.cumulative {
                process.streams.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32, exec_id: u32) -> ImageKey {
        ImageKey { pid, started_ns: 1, exec_id }
    }

    fn points(values: &[(usize, u32)]) -> Points {
        let mut buckets = Box::new([0; BUCKETS]);
        for (bucket, count) in values {
            buckets[*bucket] += count;
        }
        Points { sum: 7, zeros: 1, buckets }
    }

    fn reading(pid: u32, name: u64, errno: i32, values: &[(usize, u32)]) -> Reading {
        Reading {
            image: Some(key(pid, 0)),
            name,
            ipc_ns: 9,
            errno,
            measure: Measure::Duration,
            op: Op::MqOpen,
            comm: Vec::new(),
            points: points(values),
        }
    }

    fn streams(cumulative: bool, limits: MetricLimits) -> Streams {
        Streams::new(limits, cumulative, Arc::default(), 100)
    }

    fn add(streams: &mut Streams, reading: &Reading) {
        let name = Destination::Name(reading.name.to_string().into());
        streams.add(reading, Some(name), |_| Arc::default());
    }

    fn counts(streams: &Streams) -> Vec<u64> {
        let totals = streams.current().flat_map(|process| process.streams.values());
        let mut counts: Vec<u64> = totals.map(Total::count).collect();
        counts.sort();
        counts
    }

    /// Prevents counts from moving to another bucket when a histogram grows at either end.
    #[test]
    fn histograms_grow_at_both_ends() {
        let mut total = Total::new(5);
        total.add(&points(&[(50, 2), (52, 1)]));
        total.add(&points(&[(49, 1), (60, 4)]));
        total.add(&points(&[]));
        assert_eq!((total.first, total.count(), total.sum), (49, 11, 21));
        assert_eq!(total.buckets, [1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4]);
        let mut other = Total::new(3);
        other.add(&points(&[(159, 1)]));
        other.merge(&total);
        assert_eq!((other.first, other.buckets.len(), other.count(), other.start_ns), (49, 111, 13, 3));
    }

    /// Prevents cumulative streams from losing what came before, and others from repeating it.
    #[test]
    fn from_the_start_or_from_the_last_time() {
        for (cumulative, expected) in [(true, 6), (false, 3)] {
            let mut streams = streams(cumulative, MetricLimits::default());
            for now in [200, 300] {
                add(&mut streams, &reading(1, 5, 0, &[(3, 2)]));
                if now == 200 {
                    streams.exported(now, |_| false);
                }
            }
            assert_eq!(counts(&streams), [expected]);
            assert_eq!(streams.since_ns(), 200);
        }
    }

    /// Prevents calls from vanishing when there are too many processes, sets of attributes or names.
    #[test]
    fn what_finds_no_room_is_counted_all_the_same() {
        let mut streams = streams(true, MetricLimits { max_series: 2, max_processes: 1 });
        for name in 1..=5 {
            add(&mut streams, &reading(1, name, 0, &[]));
        }
        add(&mut streams, &reading(2, 1, 0, &[]));
        add(&mut streams, &Reading { image: None, ..reading(0, 0, 0, &[]) });
        assert_eq!(counts(&streams), [1, 1, 2, 3]);
        let overflow: Vec<u64> = streams
            .current()
            .flat_map(|process| process.streams.iter().filter(|(stream, _)| stream.of.is_none()))
            .map(|(_, total)| total.count())
            .collect();
        assert_eq!(overflow.iter().sum::<u64>(), 5);
    }

    /// Prevents the counts under a Resource that was replaced from being lost, told for ever, or going on under the next.
    #[test]
    fn another_resource() {
        let mut streams = streams(true, MetricLimits::default());
        add(&mut streams, &reading(1, 5, 0, &[(3, 2)]));
        streams.exported(200, |_| false);
        streams.replace(&key(1, 0));
        add(&mut streams, &reading(1, 5, 0, &[]));
        assert_eq!(counts(&streams), [1, 3]);
        let begun: Vec<u64> = streams
            .processes
            .values()
            .flat_map(|process| process.streams.values())
            .map(|total| total.start_ns)
            .collect();
        assert_eq!(begun, [200]);
        streams.exported(300, |_| false);
        assert_eq!(counts(&streams), [1]);
    }

    /// Prevents a process that asks for ever new names from making a stream of each.
    #[test]
    fn names_that_lead_nowhere() {
        let mut streams = streams(true, MetricLimits::default());
        add(&mut streams, &reading(2, 900, 0, &[]));
        for name in 1..=1000 {
            add(&mut streams, &reading(1, name, 2, &[]));
        }
        let process = streams.processes.get(&key(1, 0)).unwrap();
        let named = process.streams.keys().filter(|stream| stream.of.as_ref().unwrap().destination.is_some()).count();
        assert_eq!(named, ASKED_NAMES + 1, "and the one that is known");
        assert_eq!(process.streams.values().map(Total::count).sum::<u64>(), 1000);
    }

    /// Prevents processes that are gone from being kept for ever, and from losing their last counts.
    #[test]
    fn the_gone_are_retired() {
        let mut streams = streams(true, MetricLimits::default());
        add(&mut streams, &reading(1, 1, 0, &[]));
        add(&mut streams, &Reading { image: Some(key(2, 4)), ..reading(2, 1, 0, &[]) });
        streams.exported(200, |key| key.pid == 1);
        assert_eq!(counts(&streams).len(), 2, "made calls since the collection before");
        add(&mut streams, &Reading { image: Some(key(2, 5)), ..reading(2, 1, 0, &[]) });
        streams.exported(300, |key| key.pid == 1);
        let left: Vec<ImageKey> = streams.processes.keys().copied().collect();
        assert_eq!(left, [key(2, 5)], "another program runs in the process");
    }
}
