//! Metrics of the calls on their way to the outputs: readings from the kernel side get their names, pass the filters on
//! names, add up to streams, and leave as requests, one at a time and only where an output has room. What waits for room is
//! no request but the streams themselves: so a newer reading replaces the older one, and a delta grows. Waits for nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use nix::time::ClockId;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;

use crate::clock;
use crate::export::ledger::Ledger;
use crate::live::Surroundings;
use crate::metrics::intake::{Intake, Replaced};
use crate::metrics::otlp;
use crate::metrics::queues::{self, Gauge, GaugeKey, Gauges, QueuePoint};
use crate::metrics::requests::RequestBuilder;
use crate::metrics::streams::{Cursor, Destination, StreamTable};
use crate::model::call::ImageKey;
use crate::model::container::Container;
use crate::model::filter::Filters;
use crate::model::glob::Templates;
use crate::model::live::{Attendance, QueueAccess};
use crate::model::reading::{Measure, QueueHeads, QueueId, QueueReading, Reading};
use crate::model::resource::Resource;
use crate::model::text::utf8;
use crate::model::values::{HistogramAggregation, MetricLimits, Op, Temporality};
use crate::overview::Overview;
use crate::overview::tables::{BlockedThread, QueueLook};
use crate::telemetry::terms::operation;

/// All streams take so many bytes at most, about.
pub const STREAM_BYTES: usize = 8 << 20;

/// Collections are at least so far apart by their times, in ns: some backends keep one point of a stream for each
/// millisecond (Prometheus), and the last collection may follow right after another.
const APART: u64 = 1_000_000;

/// A time of day that moves by more than this against the time since boot was set, in ns: slewing moves it by 30 ms a
/// minute.
const STEP: u64 = 1_000_000_000;

/// Who and what the kernel side's numbers stand for.
pub trait Directory {
    /// Takes what the kernel has sent: images, names and calls. Returns what the calls leave in their queues, where links are
    /// inferred and all were taken.
    fn catch_up(&self) -> QueueHeads;
    /// The name of a queue, with its slash.
    fn name(&self, number: u64) -> Option<Arc<str>>;
    /// The Resource of an image; None while it is being found out.
    fn resource(&self, image: ImageKey) -> Option<Arc<Resource>>;
    /// Whether its process has ended.
    fn has_ended(&self, image: &ImageKey) -> bool;
}

/// Where requests go.
pub trait Outlet {
    /// Whether it has no room for another request now.
    fn is_waiting(&self) -> bool;
    /// Takes a request with so many points; never waits. Called only where there is room.
    fn enqueue(&self, request: &ExportMetricsServiceRequest, points: u64);
}

/// A moment by both clocks, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since 1970.
    pub wall_ns: u64,
    /// Since boot, suspended or not.
    pub boot_ns: u64,
}

impl Moment {
    /// Now: of some tries the one with the least time between the clocks.
    pub fn now() -> Self {
        let read = |id| clock::now_ns(id).max(0).unsigned_abs();
        let look = |_| {
            let boot_ns = read(ClockId::CLOCK_BOOTTIME);
            let wall_ns = read(ClockId::CLOCK_REALTIME);
            (read(ClockId::CLOCK_BOOTTIME).saturating_sub(boot_ns), Self { wall_ns, boot_ns })
        };
        let best = (0..5).map(look).min_by_key(|(took, _)| *took);
        best.map_or(Self { wall_ns: 0, boot_ns: 0 }, |(_, moment)| moment)
    }
}

/// What a meter is made of.
#[derive(Debug)]
pub struct MeterParts {
    /// What other threads add to.
    pub intake: Intake,
    /// Where everything is counted.
    pub ledger: Arc<Ledger>,
    /// The filters on names are applied here.
    pub filters: Arc<Filters>,
    /// How many streams there may be.
    pub limits: MetricLimits,
    /// Whether streams add up from their start.
    pub temporality: Temporality,
    /// What histograms look like.
    pub histograms: HistogramAggregation,
    /// mqspan's own Resource, under which queues stand.
    pub own: Arc<Resource>,
    /// Whether a queue is shown only once a call that passes the filters on whose calls reached it.
    pub only_matched: bool,
    /// What queues go by.
    pub templates: Templates,
    /// Whether calls have no records, so that they are counted here.
    pub alone: bool,
    /// What people look at, where there is any.
    pub overview: Option<Overview>,
}

/// What makes metrics of readings.
pub struct Meter<D, O> {
    parts: MeterParts,
    directory: D,
    accounts: Vec<Account<O>>,
    gauges: Gauges,
    containers: HashMap<u32, Container>,
    /// The greatest depths since the last export, of collections that were not exported.
    peaks: HashMap<QueueId, i64>,
    /// Whether the collection before was exported.
    exports: bool,
    /// The collection before.
    before: Moment,
    /// Its time as points have it, ns since 1970.
    time_ns: u64,
}

impl<D, O> fmt::Debug for Meter<D, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("parts", &self.parts).field("time_ns", &self.time_ns).finish_non_exhaustive()
    }
}

/// Streams and the outputs that they go to. Cumulative ones are the same for all; of deltas each output has its own, since
/// one may be slower than another.
struct Account<O> {
    table: StreamTable,
    passes: Vec<Pass<O>>,
}

/// How far an output has come with the streams.
struct Pass<O> {
    outlet: O,
    phase: Phase,
    /// The collection at which it began.
    began: u64,
    /// Everything up to this collection was exported.
    exported: u64,
    /// There was another collection since it began.
    again: bool,
}

enum Phase {
    Idle,
    Streams(Cursor),
    /// The gauges behind this one.
    Gauges(Option<GaugeKey>),
}

/// What [`Meter::pump`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pumped {
    /// Requests that were enqueued.
    pub requests: u64,
    /// Whether more is to be enqueued once there is room.
    pub more: bool,
}

impl<D: Directory, O: Outlet> Meter<D, O> {
    /// A meter with these outputs, from `now` on.
    pub fn new(parts: MeterParts, directory: D, outlets: Vec<O>, now: Moment) -> Self {
        let cumulative = parts.temporality == Temporality::Cumulative;
        let pass = |outlet| Pass { outlet, phase: Phase::Idle, began: 0, exported: 0, again: false };
        let passes: Vec<Vec<Pass<O>>> = match cumulative {
            true => vec![outlets.into_iter().map(pass).collect()],
            false => outlets.into_iter().map(|outlet| vec![pass(outlet)]).collect(),
        };
        let bytes = STREAM_BYTES / passes.len().max(1);
        let table = || StreamTable::new(parts.limits, bytes, cumulative, parts.own.clone(), now.wall_ns);
        let accounts = passes.into_iter().map(|passes| Account { table: table(), passes }).collect();
        let (gauges, containers) = (Gauges::default(), HashMap::new());
        let peaks = HashMap::new();
        Self { parts, directory, accounts, gauges, containers, peaks, exports: true, before: now, time_ns: now.wall_ns }
    }

    /// Takes what was added since the collection before: `series` calls back with each reading. What it finds is exported
    /// by [`Self::pump`], where it `exports`; else it is added up, and people can look at it. Without `surroundings` it is
    /// not known who waits at queues.
    pub fn collect<E>(
        &mut self,
        now: Moment,
        exports: bool,
        queues: &[QueueReading],
        surroundings: Option<&Surroundings>,
        series: impl FnOnce(&mut dyn FnMut(&Reading)) -> Result<(), E>,
    ) -> Result<(), E> {
        let heads = self.directory.catch_up();
        self.begin(now);
        if let Some(overview) = &self.parts.overview {
            overview.tables().begin(now.boot_ns, now.wall_ns);
        }
        self.replace();
        let result = series(&mut |reading| self.add_series(reading));
        for (reading, name) in self.parts.intake.take_waits().take() {
            if name.is_none() || self.parts.filters.queue.keeps_name(name.as_deref()) {
                self.add(&reading, name);
            }
        }
        for (image, series, exemplar) in
            self.parts.intake.take_candidates().iter().flat_map(|candidate| candidate.exemplars(&self.parts.templates))
        {
            self.accounts.iter_mut().for_each(|account| account.table.exemplify(image, &series, exemplar));
        }
        self.look_at_queues(queues, &heads, surroundings, exports);
        if let Some(overview) = &self.parts.overview {
            overview.tables().end();
        }
        self.exports = exports;
        for account in &mut self.accounts {
            for pass in account.passes.iter_mut().filter(|_| exports) {
                match pass.phase {
                    Phase::Idle => pass.phase = Phase::Streams(Cursor::default()),
                    _ => pass.again = true,
                }
            }
        }
        result
    }

    /// A collection begins. Where the time of day was set since the one before, streams begin anew.
    fn begin(&mut self, now: Moment) {
        let elapsed = now.boot_ns.saturating_sub(self.before.boot_ns).max(APART);
        let was_set = now.wall_ns.abs_diff(self.before.wall_ns.saturating_add(elapsed)) > STEP + APART
            || self.time_ns > now.wall_ns.saturating_add(STEP);
        if was_set {
            self.time_ns = now.wall_ns.saturating_sub(elapsed);
            self.accounts.iter_mut().for_each(|account| account.table.clock_was_set(self.time_ns));
        }
        self.time_ns = now.wall_ns.max(self.time_ns.saturating_add(APART));
        self.before = now;
        for Account { table, .. } in &mut self.accounts {
            if self.exports {
                table.begin(self.time_ns)
            } else {
                table.go_on(self.time_ns)
            }
            table.confirm(|image| self.directory.resource(image));
        }
    }

    fn replace(&mut self) {
        let Self { parts, directory, accounts, .. } = self;
        let replaced = parts.intake.take_replaced();
        for Account { table, .. } in accounts {
            let images: Vec<ImageKey> = match &replaced {
                Replaced::Images(images) => images.iter().copied().collect(),
                Replaced::Any => {
                    let is_other = |(image, before): &(ImageKey, &Arc<Resource>)| {
                        directory.resource(*image).as_ref() != Some(before)
                    };
                    table.images().filter(is_other).map(|(image, _)| image).collect()
                }
            };
            images.iter().for_each(|image| table.replace(image));
        }
    }

    fn add_series(&mut self, reading: &Reading) {
        let name = self.directory.name(reading.name);
        let Filters { queue, comm, .. } = &*self.parts.filters;
        // What found no room for a series of its own has neither name nor thread. Else both are asked, whatever the other
        // says: each remembers which of its values matched.
        let passes =
            reading.image.is_none() || queue.keeps_name(name.as_deref()) & comm.keeps_name(Some(&utf8(&reading.comm)));
        if self.parts.alone && reading.measure == Measure::Duration {
            self.parts.ledger.aggregated(reading.points.count(), passes);
        }
        if passes {
            self.add(reading, name);
        }
    }

    fn add(&mut self, reading: &Reading, name: Option<Arc<str>>) {
        if let Some(overview) = &self.parts.overview {
            let queue = name.as_ref().map(|name| (reading.ipc_ns, name.clone()));
            overview.tables().add(reading, queue.as_ref(), |image| self.directory.resource(image));
        }
        let destination = name.map(|name| Destination::of(name, &self.parts.templates));
        for account in &mut self.accounts {
            account.table.add(reading, destination.clone(), |image| self.directory.resource(image));
        }
    }

    fn look_at_queues(
        &mut self,
        queues: &[QueueReading],
        heads: &QueueHeads,
        surroundings: Option<&Surroundings>,
        exports: bool,
    ) {
        let mut points = queues::points(queues, self.parts.only_matched, heads, |number| self.directory.name(number));
        points.retain(|point| self.parts.filters.queue.keeps_name(Some(&point.name)));
        let nobody_seen = Attendance::default();
        let attendance = surroundings.map_or(&nobody_seen, |surroundings| &surroundings.attendance);
        if let Some(overview) = &self.parts.overview {
            show_queues(overview, &points, attendance, surroundings);
        }
        // The peak that is exported is that since the last export.
        for point in &mut points {
            point.peak = point.peak.max(self.peaks.get(&point.id).copied().unwrap_or(point.peak));
        }
        self.peaks = match exports {
            true => HashMap::new(),
            false => points.iter().map(|point| (point.id, point.peak)).collect(),
        };
        self.gauges = Gauges::new(points, attendance, |name| Destination::of(name, &self.parts.templates));
        if let Some(surroundings) = surroundings {
            self.containers.clone_from(&surroundings.containers);
        }
    }

    /// Enqueues what the last collection found, as far as the outputs have room. To be called again while there is more.
    pub fn pump(&mut self) -> Pumped {
        let mut pumped = Pumped::default();
        let gauges = GaugeSource {
            gauges: &self.gauges.0,
            containers: &self.containers,
            own: &self.parts.own,
            time_ns: self.time_ns,
        };
        for Account { table, passes } in &mut self.accounts {
            for pass in &mut *passes {
                while !matches!(pass.phase, Phase::Idle) && !pass.outlet.is_waiting() {
                    pumped.requests += u64::from(pass.advance(table, &gauges, self.parts.histograms));
                }
                pumped.more |= !matches!(pass.phase, Phase::Idle);
            }
            let settled = passes.iter().map(|pass| pass.exported).min().unwrap_or(table.collection());
            table.settle(settled, |image| self.directory.has_ended(image));
        }
        pumped
    }
}

/// Shows people the queues that are there, who waits at them and who has them open. Where an unlinked queue is still open
/// beside its successor the name is the successor's, which comes later.
fn show_queues(
    overview: &Overview,
    points: &[QueuePoint],
    attendance: &Attendance,
    surroundings: Option<&Surroundings>,
) {
    let mut tables = overview.tables();
    for point in points {
        let threads = |op| attendance.threads.get(&(point.id, op)).copied().or(attendance.all_seen.then_some(0));
        let descriptors = attendance.descriptors.as_ref().map(|descriptors| {
            let [read, write, both] =
                QueueAccess::ALL.map(|access| descriptors.get(&(point.id, access)).copied().unwrap_or(0));
            [read + both, write + both]
        });
        let container = surroundings.and_then(|surroundings| surroundings.containers.get(&point.id.0));
        let look = QueueLook {
            depth: point.depth,
            peak: point.peak,
            capacity: point.capacity,
            blocked: [Op::MqTimedsend, Op::MqTimedreceive].map(threads),
            descriptors,
            oldest_ns: point.oldest_ns,
            container: container.and_then(|container| container.id.clone()),
        };
        tables.look_at((point.id.0, point.name.clone()), look);
    }
    let shown: HashSet<QueueId> = points.iter().map(|point| point.id).collect();
    let in_calls = surroundings.into_iter().flat_map(|surroundings| &surroundings.in_calls);
    let blocked = in_calls.filter_map(|call| {
        let queue = call.queue.as_ref().filter(|queue| shown.contains(&queue.id()))?;
        Some(BlockedThread {
            key: Some((queue.ipc_ns, queue.name.clone())),
            queue: Some(queue.name.to_string()),
            ipc_namespace: Some(queue.ipc_ns),
            pid: call.pid,
            tid: call.tid,
            name: call.comm.clone(),
            operation: operation(call.op),
            waiting_seconds: call.waited.map(|waited| waited.as_secs_f64()),
        })
    });
    tables.set_blocked(blocked.collect());
}

/// The gauges of a collection.
struct GaugeSource<'a> {
    gauges: &'a BTreeMap<GaugeKey, Gauge>,
    containers: &'a HashMap<u32, Container>,
    own: &'a Resource,
    time_ns: u64,
}

impl<O: Outlet> Pass<O> {
    /// Enqueues the next request; returns whether there was one.
    fn advance(&mut self, table: &mut StreamTable, source: &GaugeSource<'_>, histograms: HistogramAggregation) -> bool {
        let mut builder = RequestBuilder::new(table.is_cumulative());
        if let Phase::Streams(cursor) = &mut self.phase {
            if *cursor == Cursor::default() {
                (self.began, self.again) = (table.collection(), false);
            }
            let is_done = table.pass(cursor, self.exported, |resource, time_ns, export| {
                builder.add(resource, otlp::points(&export, time_ns, histograms));
                !builder.is_full()
            });
            if is_done {
                self.phase = Phase::Gauges(None);
            }
        }
        if let Phase::Gauges(after) = &mut self.phase {
            let mut rest = source.gauges.range((after.clone().map_or(Unbounded, Excluded), Unbounded));
            while !builder.is_full() {
                let Some((queue, gauge)) = rest.next() else { break };
                let container = source.containers.get(&queue.ipc_ns);
                builder.add(source.own, otlp::of_gauge(queue, gauge, container, source.time_ns));
                *after = Some(queue.clone());
            }
            if !builder.is_full() {
                self.end();
            }
        }
        let Some((request, points)) = builder.take() else { return false };
        self.outlet.enqueue(&request, points);
        true
    }

    /// All that there was when the pass began was exported.
    fn end(&mut self) {
        self.exported = self.began;
        self.phase = match std::mem::take(&mut self.again) {
            true => Phase::Streams(Cursor::default()),
            false => Phase::Idle,
        };
    }
}

#[cfg(test)]
mod tests;
