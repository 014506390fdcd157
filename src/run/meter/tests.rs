use std::cell::{Cell, RefCell};
use std::rc::Rc;

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::export::batch::Encoding;
use crate::export::metrics::{decode, encode, points};
use crate::model::buckets::BUCKETS;
use crate::model::call::QueueKey;
use crate::model::filter::Filter;
use crate::model::reading::{Points, QueueLife};
use crate::model::resource::Value as Attribute;
use crate::model::values::Op;

/// What every request must stay below.
const MOST: usize = 4 << 20;
const SECOND: u64 = 1_000_000_000;

/// Names that are 255 bytes long, of the most hostile kind, where `long`.
#[derive(Clone, Default)]
struct Names {
    long: bool,
}

impl Directory for Names {
    fn catch_up(&self) -> QueueHeads {
        QueueHeads::new()
    }

    fn name(&self, number: u64) -> Option<Arc<str>> {
        let digits = number.to_string();
        let filler = if self.long { 254 - digits.len() } else { 0 };
        (number != 0).then(|| format!("/{}{digits}", "\u{1}".repeat(filler)).into())
    }

    fn resource(&self, image: ImageKey) -> Option<Arc<Resource>> {
        let attributes = vec![("process.pid".into(), Attribute::Int(image.pid.into()))];
        Some(Arc::new(Resource { attributes, has_schema: image.pid.is_multiple_of(2), started_in: None }))
    }

    fn has_ended(&self, _: &ImageKey) -> bool {
        false
    }
}

/// Keeps what it is given, while it has room.
#[derive(Clone)]
struct Kept {
    room: Rc<Cell<u64>>,
    requests: Rc<RefCell<Vec<ExportMetricsServiceRequest>>>,
}

impl Kept {
    fn new(room: u64) -> Self {
        Self { room: Rc::new(Cell::new(room)), requests: Rc::default() }
    }

    fn take(&self) -> Vec<ExportMetricsServiceRequest> {
        self.requests.take()
    }
}

impl Outlet for Kept {
    fn is_waiting(&self) -> bool {
        self.room.get() == 0
    }

    fn enqueue(&self, request: &ExportMetricsServiceRequest, count: u64) {
        assert!(!self.is_waiting() && count == points(request));
        self.room.set(self.room.get() - 1);
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let body = encode(encoding, request);
            assert!(body.len() < MOST, "{encoding:?}: {} bytes", body.len());
            // Large ones take a debug build long to read.
            assert!(body.len() > 100_000 || decode(encoding, &body).as_ref().map(points) == Some(count));
        }
        self.requests.borrow_mut().push(request.clone());
    }
}

fn parts(temporality: Temporality, histograms: HistogramAggregation) -> MeterParts {
    let filters = Filters {
        call: Op::ALL.into(),
        queue: Filter::new(Vec::new()),
        comm: Filter::new(Vec::new()),
        pid: Filter::new(Vec::new()),
        uid: Filter::new(Vec::new()),
        container: Filter::new(Vec::new()),
        ipc_namespace: Filter::new(Vec::new()),
        failed: false,
        min_duration: None,
    };
    MeterParts {
        intake: Intake::default(),
        ledger: Ledger::new(Vec::new(), false),
        filters: Arc::new(filters),
        limits: MetricLimits::default(),
        temporality,
        histograms,
        own: Arc::new(Resource { has_schema: true, ..Resource::default() }),
        only_matched: false,
        templates: Templates::default(),
        alone: false,
        overview: None,
    }
}

const START: Moment = Moment { wall_ns: 1_000 * SECOND, boot_ns: 50 * SECOND };

fn after(seconds: u64) -> Moment {
    Moment { wall_ns: START.wall_ns + seconds * SECOND, boot_ns: START.boot_ns + seconds * SECOND }
}

fn meter(temporality: Temporality, long: bool, outlets: &[&Kept]) -> Meter<Names, Kept> {
    let outlets = outlets.iter().map(|outlet| (*outlet).clone()).collect();
    Meter::new(parts(temporality, HistogramAggregation::Exponential), Names { long }, outlets, START)
}

fn reading(pid: u32, name: u64, op: Op, errno: i32, calls: u32) -> Reading {
    let mut buckets = Box::new([0; BUCKETS]);
    buckets[40] = calls;
    Reading {
        image: Some(ImageKey { pid, started_ns: 1, exec_id: 0 }),
        name,
        ipc_ns: 9,
        errno,
        cause: None,
        measure: Measure::Duration,
        op,
        comm: Vec::new(),
        points: Points { sum: u64::from(calls) * 1000, zeros: 0, buckets },
    }
}

fn collect(meter: &mut Meter<Names, Kept>, now: Moment, readings: &[Reading]) {
    collect_all(meter, now, readings, &[], None);
}

fn collect_all(
    meter: &mut Meter<Names, Kept>,
    now: Moment,
    readings: &[Reading],
    queues: &[QueueReading],
    surroundings: Option<&Surroundings>,
) {
    let all = |each: &mut dyn FnMut(&Reading)| -> Result<(), ()> {
        readings.iter().for_each(each);
        Ok(())
    };
    meter.collect(now, true, queues, surroundings, all).unwrap();
}

/// A point of a histogram or counter: its metric, what it is of, its interval and its count.
#[derive(Clone, Debug, PartialEq)]
struct Flat {
    metric: String,
    of: String,
    start: u64,
    time: u64,
    count: u64,
    exemplars: usize,
}

fn flat(requests: &[ExportMetricsServiceRequest]) -> Vec<Flat> {
    let mut all = Vec::new();
    for of_resource in requests.iter().flat_map(|request| &request.resource_metrics) {
        let who = format!("{:?}", of_resource.resource.as_ref().unwrap().attributes);
        for metric in &of_resource.scope_metrics[0].metrics {
            let mut push = |attributes: &dyn fmt::Debug, start, time, count, exemplars| {
                let of = format!("{who} {attributes:?}");
                all.push(Flat { metric: metric.name.clone(), of, start, time, count, exemplars });
            };
            match metric.data.as_ref().unwrap() {
                Data::ExponentialHistogram(of) => of.data_points.iter().for_each(|point| {
                    let (start, time) = (point.start_time_unix_nano, point.time_unix_nano);
                    push(&point.attributes, start, time, point.count, point.exemplars.len());
                }),
                Data::Sum(of) => of.data_points.iter().for_each(|point| {
                    let Some(Value::AsInt(count)) = point.value else { panic!("{point:?}") };
                    let (start, time) = (point.start_time_unix_nano, point.time_unix_nano);
                    push(&point.attributes, start, time, count as u64, 0);
                }),
                _ => {}
            }
        }
    }
    all
}

const DURATION: &str = "messaging.client.operation.duration";

fn total(points: &[Flat]) -> u64 {
    points.iter().filter(|point| point.metric == DURATION).map(|point| point.count).sum()
}

/// Prevents deltas from being lost or told twice while outputs have no room now and then, one less than the other, and
/// their intervals from overlapping.
#[test]
fn deltas_are_exact_whenever_there_is_room() {
    for seed in 0..5 {
        let mut random = SmallRng::seed_from_u64(seed);
        let outlets = [Kept::new(0), Kept::new(0)];
        let mut meter = meter(Temporality::Delta, seed == 0, &[&outlets[0], &outlets[1]]);
        let mut truth = 0;
        let mut last: [HashMap<(String, String), u64>; 2] = Default::default();
        let mut sums = [0, 0];
        for second in 1..60 {
            let readings: Vec<Reading> = (0..random.random_range(0..60))
                .map(|_| {
                    let (pid, name) = (random.random_range(1..30), random.random_range(1..40));
                    reading(pid, name, Op::MqTimedsend, random.random_range(0..2) * 11, random.random_range(1..5))
                })
                .collect();
            truth += readings.iter().map(|reading| reading.points.count()).sum::<u64>();
            collect(&mut meter, after(second), &readings);
            outlets[0].room.set(if second == 59 { u64::MAX } else { random.random_range(0..3) });
            outlets[1].room.set(if second < 59 { 0 } else { u64::MAX });
            let pumped = meter.pump();
            assert_eq!(pumped.more, outlets[1].is_waiting() || pumped.more);
            for ((outlet, last), sum) in outlets.iter().zip(&mut last).zip(&mut sums) {
                let points = flat(&outlet.take());
                *sum += total(&points);
                for Flat { metric, of, start, time, .. } in points {
                    let before = last.insert((metric, of), time);
                    assert!(start < time && before.is_none_or(|before| before <= start), "{before:?} {start} {time}");
                }
            }
        }
        assert_eq!(sums, [truth, truth], "{seed}");
    }
}

/// Prevents an output that takes nothing from delaying another, and what it gets once it takes some from being old.
#[test]
fn newer_cumulative_readings_replace_those_that_wait() {
    let (quick, slow) = (Kept::new(u64::MAX), Kept::new(0));
    let mut meter = meter(Temporality::Cumulative, false, &[&quick, &slow]);
    for second in 1..=10 {
        collect(&mut meter, after(second), &[reading(1, 5, Op::MqOpen, 0, 3)]);
        assert!(meter.pump().more);
        let points = flat(&quick.take());
        assert_eq!((points.len(), points[0].count), (1, second * 3));
    }
    slow.room.set(1);
    assert!(!meter.pump().more);
    let points = flat(&slow.take());
    assert_eq!(points.iter().map(|point| (point.count, point.time)).collect::<Vec<_>>(), [(30, after(10).wall_ns)]);
    slow.room.set(1);
    assert!(!meter.pump().more && slow.take().is_empty());
}

/// Prevents a request from being larger than a backend takes, in either encoding: 304 processes that ask for 100 names
/// each, 255 bytes long.
#[test]
fn thirty_thousand_series_of_long_names() {
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let outlet = Kept::new(u64::MAX);
        let mut meter = meter(temporality, true, &[&outlet]);
        let readings: Vec<Reading> =
            (0..304 * 100).map(|at| reading(1 + at / 100, u64::from(at) + 1, Op::MqOpen, libc::ENOENT, 2)).collect();
        collect(&mut meter, after(1), &readings);
        assert!(!meter.pump().more);
        let requests = outlet.take();
        let points = flat(&requests);
        // Those that find no room are added to overflow points.
        let named = points.iter().filter(|point| point.of.contains("destination"));
        assert!(requests.len() > 10 && named.clone().count() > 10_000, "{} of {}", points.len(), requests.len());
        assert!(named.clone().all(|point| point.count == 2) && total(&points) == 2 * 30_400);
        println!("{temporality:?}: {} requests, {} bytes of streams", requests.len(), meter.accounts[0].table.bytes());
    }
}

/// Prevents one Resource with many series from making a request that is too large, and memory from growing with what
/// hostile processes do: the calls are all counted.
#[test]
fn one_resource_and_more_than_fits() {
    let outlet = Kept::new(u64::MAX);
    let mut meter = meter(Temporality::Cumulative, true, &[&outlet]);
    collect(&mut meter, after(1), &(1..=2500).map(|name| reading(7, name, Op::MqTimedsend, 0, 1)).collect::<Vec<_>>());
    meter.pump();
    let points = flat(&outlet.take());
    assert_eq!((points.len(), total(&points)), (2 * 2001, 2500));

    let mut calls = 2500;
    for second in 2..6 {
        let readings: Vec<Reading> = (0..10_000u64)
            .map(|at| reading((at % 900) as u32, second * 10_000 + at, Op::MqTimedreceive, 0, 1))
            .collect();
        calls += 10_000;
        collect(&mut meter, after(second), &readings);
    }
    assert!(meter.accounts[0].table.bytes() < STREAM_BYTES + (64 << 10));
    meter.pump();
    assert_eq!(total(&flat(&outlet.take())), calls);
}

/// Prevents the gauges of many queues from making a request that is too large, and one from being left out.
#[test]
fn gauges_of_many_queues() {
    let outlet = Kept::new(0);
    let mut meter = meter(Temporality::Cumulative, true, &[&outlet]);
    let queue = |number: u64| QueueReading {
        key: QueueKey { inode: number, number, namespace: 1 },
        name: number,
        ipc_ns: 9,
        maxmsg: 10,
        depth: 1,
        peak: None,
        life: QueueLife::Named,
        matched: true,
        look: None,
    };
    let queues: Vec<QueueReading> = (1..=3000).map(queue).collect();
    let surroundings =
        Surroundings { attendance: Attendance { all_seen: true, ..Attendance::default() }, ..Surroundings::default() };
    collect_all(&mut meter, after(1), &[], &queues, Some(&surroundings));
    let mut sent = 0;
    while meter.pump().more {
        outlet.room.set(1);
    }
    for request in outlet.take() {
        assert!(request.resource_metrics.iter().all(|of| of.schema_url == of.scope_metrics[0].schema_url));
        sent += points(&request);
    }
    assert_eq!(sent, 3000 * 5);
    collect_all(&mut meter, after(2), &[], &[queue(1)], None);
    outlet.room.set(1);
    meter.pump();
    assert_eq!(points(&outlet.take()[0]), 3, "who waits is not known");
}

/// Prevents points from ending before they begin, or calls from being lost, when the time of day is set: on a board without
/// a clock minutes after boot, or back.
#[test]
fn the_time_of_day_is_set() {
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        for step in [50 * 365 * 86_400, 3600, 2, 1, 0, -1, -2, -900i64] {
            let outlet = Kept::new(u64::MAX);
            let mut meter = meter(temporality, false, &[&outlet]);
            let set = |moment: Moment| Moment {
                wall_ns: moment.wall_ns.saturating_add_signed(step * SECOND.cast_signed()),
                ..moment
            };
            let mut all = Vec::new();
            for second in 1..20 {
                let now = if second < 10 { after(second) } else { set(after(second)) };
                collect(&mut meter, now, &[reading(1, 5, Op::MqOpen, 0, 1)]);
                meter.pump();
                let points = flat(&outlet.take());
                let distance = points.last().unwrap().time.abs_diff(now.wall_ns);
                assert!(distance <= SECOND + 100 * APART, "{step}: a point is {distance} ns off");
                all.extend(points);
            }
            assert!(all.iter().all(|point| point.start < point.time), "{step}: {all:?}");
            let sum = match temporality {
                Temporality::Delta => total(&all),
                // Sequences, each from its start: the last of each counts.
                _ => all.iter().map(|point| (point.start, point.count)).collect::<HashMap<_, _>>().into_values().sum(),
            };
            assert_eq!(sum, 19, "{temporality:?} {step}: {all:?}");
        }
    }
}

/// Prevents bounds that are no powers of two, counts that differ from the exponential ones, and exponential points beside
/// them.
#[test]
fn explicit_buckets() {
    let outlet = Kept::new(u64::MAX);
    let parts = parts(Temporality::Cumulative, HistogramAggregation::Explicit);
    let mut meter = Meter::new(parts, Names::default(), vec![outlet.clone()], START);
    let size = Reading { measure: Measure::Size, ..reading(1, 5, Op::MqTimedsend, 0, 4) };
    collect(&mut meter, after(1), &[reading(1, 5, Op::MqTimedsend, 0, 4), size]);
    meter.pump();
    let requests = outlet.take();
    let metrics = &requests[0].resource_metrics[0].scope_metrics[0].metrics;
    let mut seen = Vec::new();
    for metric in metrics {
        match metric.data.as_ref().unwrap() {
            Data::Histogram(of) => {
                let point = &of.data_points[0];
                let (bounds, counts) = (&point.explicit_bounds, &point.bucket_counts);
                assert!(counts.len() == bounds.len() + 1 && counts.iter().sum::<u64>() == point.count);
                let at = counts.iter().position(|count| *count == 4).unwrap();
                seen.push((&*metric.name, bounds[0], bounds[bounds.len() - 1], bounds[at]));
            }
            Data::Sum(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let expected =
        [(DURATION, 1.0 / 1_048_576.0, 32.0, 2f64.powi(-13)), ("posix_mq.message.size", 1.0, 16_777_216.0, 1024.0)];
    assert_eq!(seen, expected);
}

/// Prevents spans from being shown as exemplars that no output took, and one from being shown twice.
#[test]
fn exemplars_of_exported_spans() {
    use crate::export::ledger::{OnExport, Outcome, Share, Stage, Tally};
    use crate::metrics::reservoir::Candidates;
    use crate::model::call::Ids;
    use crate::model::examples::example;
    use crate::telemetry::record::Record;
    use crate::telemetry::view::View;

    let image = ImageKey { pid: 1, started_ns: 1, exec_id: 0 };
    let mut call = example();
    (call.image, call.ipc_ns, call.asked) = (image, 9, Some(b"5".to_vec().into()));
    for (outcome, expected) in [
        (Outcome::Sent { rejected: 0 }, 1),
        (Outcome::Sent { rejected: 1 }, 0),
        (Outcome::Lost(Stage::Refused), 0),
        (Outcome::Spooled, 0),
    ] {
        let outlet = Kept::new(u64::MAX);
        let mut meter = meter(Temporality::Cumulative, false, &[&outlet]);
        let view = View::new(&call, 5);
        let mut candidates = Candidates::default();
        candidates.offer(&view, &Record { view: &view, ids: Some(Ids { trace: [1; 16], span: [1; 8] }) });
        let (intake, taken) = (meter.parts.intake.clone(), candidates.take());
        let ledger = Ledger::new(vec!["otlp.traces".into(), "file:/x.traces".into()], false);
        let (tally, on_export) = (Tally::new(&ledger), OnExport::new(move || intake.exported(taken)));
        let share = |output| Share::of_calls(&tally, output, 1).on_export(Some(on_export.clone()));
        let (first, second) = (share(0), share(1));
        first.settle(outcome);
        for (second, expected) in [(None, expected), (Some(second), 1 - expected), (None, 0)] {
            if let Some(second) = second {
                // Another output has it: that counts, but not twice.
                second.settle(Outcome::Sent { rejected: 0 });
            }
            let seconds = 1 + meter.accounts[0].table.collection();
            collect(&mut meter, after(seconds), &[reading(1, 5, Op::MqOpen, libc::ENOENT, 1)]);
            meter.pump();
            let exemplars: usize = flat(&outlet.take()).iter().map(|point| point.exemplars).sum();
            assert_eq!(exemplars, expected, "{outcome:?} {seconds}");
        }
    }
}

/// Prevents an image that has another Resource from going on under the old one, also where it is not known which have.
#[test]
fn replaced_resources() {
    let outlet = Kept::new(u64::MAX);
    let mut meter = meter(Temporality::Cumulative, false, &[&outlet]);
    let image = ImageKey { pid: 1, started_ns: 1, exec_id: 0 };
    for second in 1..=3 {
        collect(&mut meter, after(second), &[reading(1, 5, Op::MqOpen, 0, 1)]);
        meter.pump();
        let counts: Vec<u64> = flat(&outlet.take()).iter().map(|point| point.count).collect();
        assert_eq!(counts, [if second == 3 { 1 } else { second }], "{second}");
        if second == 2 {
            meter.parts.intake.replace(image);
        }
    }
    (0..5000).for_each(|pid| meter.parts.intake.replace(ImageKey { pid, ..image }));
    collect(&mut meter, after(4), &[reading(1, 5, Op::MqOpen, 0, 1)]);
    meter.pump();
    assert_eq!(flat(&outlet.take())[0].count, 2, "more were replaced than are told apart, but not this one");
}

/// Prevents the peak between two exports from being lost where people look at the queues more often than that, and such a
/// look from being exported.
#[test]
fn looks_between_exports() {
    let mut meter = Meter::new(
        parts(Temporality::Cumulative, HistogramAggregation::Exponential),
        Names::default(),
        Vec::new(),
        START,
    );
    let queue = |peak| QueueReading {
        key: QueueKey { inode: 1, number: 1, namespace: 1 },
        name: 1,
        ipc_ns: 9,
        maxmsg: 10,
        depth: 1,
        peak: Some(peak),
        life: QueueLife::Named,
        matched: true,
        look: None,
    };
    let mut second = 0;
    let mut peak = |meter: &mut Meter<Names, Kept>, exports, peak| {
        second += 1;
        let now = Moment { wall_ns: START.wall_ns + second * SECOND, boot_ns: START.boot_ns + second * SECOND };
        let nothing = |_: &mut dyn FnMut(&Reading)| -> Result<(), ()> { Ok(()) };
        meter.collect(now, exports, &[queue(peak)], None, nothing).unwrap();
        meter.gauges.0.values().next().map(|gauge| gauge.peak)
    };
    let exported = [(true, 3), (false, 7), (false, 2), (true, 4), (true, 2)];
    let peaks = exported.map(|(exports, reached)| peak(&mut meter, exports, reached));
    assert_eq!(peaks, [3, 7, 7, 7, 2].map(Some));
}
