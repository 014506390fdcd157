//! Metrics: what the kernel side added up, compared with the spans of the same run, which tests/family.rs compares with
//! strace. Needs root and tracefs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{ExponentialHistogramDataPoint, NumberDataPoint, metric::Data, number_data_point},
    trace::v1::Span,
};
use support::{
    backend::{Answer, Backend},
    family,
    otlp::{self, Attributes, Record, int, made_by, text},
    program::{Ended, Mqspan, finish},
    strace, workload,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

const DELTA: i32 = 1;
const CUMULATIVE: i32 = 2;
/// Of durations and waits: 84 ns.
const FIRST_BUCKET: i32 = -94;

/// What a point of a metric is about: process, operation, queue and errno, as far as the metric tells them apart.
type Key = (i64, Option<String>, Option<String>, Option<String>);

fn key(pid: i64, attributes: &Attributes) -> Key {
    let own = |key| text(attributes, key).map(String::from);
    (pid, own("messaging.operation.name"), own("messaging.destination.name"), own("posix_mq.errno"))
}

fn stream_key(pid: i64, attributes: &Attributes) -> (Key, Option<String>) {
    (key(pid, attributes), text(attributes, "posix_mq.cause").map(String::from))
}

/// Numbers that were added up: how many, their sum, and how many in each bucket of an exponential histogram.
#[derive(Clone, Debug, Default, PartialEq)]
struct Total {
    count: u64,
    sum: f64,
    zeros: u64,
    buckets: BTreeMap<i32, u64>,
}

impl Total {
    fn add(&mut self, value: f64, scale: i32) {
        self.count += 1;
        self.sum += value;
        match value {
            0. => self.zeros += 1,
            // (base^i, base^(i+1)] is bucket i; the first takes what is less (docs/attributes.md).
            _ => {
                let bucket = (value.log2() * f64::from(scale).exp2()).ceil() as i32 - 1;
                *self.buckets.entry(bucket.max(FIRST_BUCKET)).or_default() += 1;
            }
        }
    }

    fn of(point: &ExponentialHistogramDataPoint) -> Result<Self> {
        ensure!(point.negative.as_ref().is_none_or(|negative| negative.bucket_counts.is_empty()), "{point:?}");
        let positive = point.positive.clone().unwrap_or_default();
        ensure!(positive.bucket_counts.len() <= 160, "{} buckets", positive.bucket_counts.len());
        let buckets = (positive.offset..).zip(positive.bucket_counts).filter(|(_, count)| *count > 0).collect();
        let total = Self { count: point.count, sum: point.sum.context("no sum")?, zeros: point.zero_count, buckets };
        let in_buckets: u64 = total.buckets.values().sum();
        ensure!(total.count == total.zeros + in_buckets, "a count that is not its buckets' sum: {point:?}");
        Ok(total)
    }

    fn take(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.zeros += other.zeros;
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
    }

    /// The same numbers, added up in another order.
    fn is(&self, other: &Self) -> bool {
        let close = (self.sum - other.sum).abs() <= 1e-9 * self.sum.abs().max(1e-9) + 1e-9 * self.count as f64;
        self.count == other.count && close && self.zeros == other.zeros && self.buckets == other.buckets
    }
}

/// A metric's streams: for each key and cause (tests/causes.rs looks at these) the interval that the last point covered, and
/// the total so far; and the totals of those that began anew, once, where it turned out late who the process is.
#[derive(Default)]
struct Streams(BTreeMap<(Key, Option<String>), (u64, u64, Total)>, BTreeMap<(Key, Option<String>), Total>);

impl Streams {
    fn point(
        &mut self,
        key: (Key, Option<String>),
        temporality: i32,
        start: u64,
        time: u64,
        total: Total,
    ) -> Result<()> {
        ensure!(start < time, "{key:?} covers nothing: {start} to {time}");
        match self.0.get_mut(&key) {
            None => {
                self.0.insert(key, (start, time, total));
            }
            Some((_, last, so_far)) if temporality == DELTA => {
                ensure!(start >= *last, "{key:?}: an interval from {start} overlaps one that ended at {last}");
                so_far.take(&total);
                *last = time;
            }
            Some((begun, last, so_far)) if start >= *last && !self.1.contains_key(&key) => {
                self.1.insert(key, std::mem::replace(so_far, total));
                (*begun, *last) = (start, time);
            }
            Some((begun, last, so_far)) => {
                ensure!(start == *begun && time > *last, "{key:?}: {start} to {time} after {begun} to {last}");
                ensure!(total.count >= so_far.count, "{key:?} went down");
                (*last, *so_far) = (time, total);
            }
        }
        Ok(())
    }

    fn totals(&self) -> BTreeMap<Key, Total> {
        let mut totals: BTreeMap<Key, Total> = BTreeMap::new();
        for ((key, _), (.., total)) in &self.0 {
            totals.entry(key.clone()).or_default().take(total);
        }
        for ((key, _), ended) in &self.1 {
            totals.entry(key.clone()).or_default().take(ended);
        }
        totals
    }
}

/// The metrics of a run, by name.
#[derive(Default)]
struct Metrics {
    streams: BTreeMap<String, Streams>,
    /// The scale of each histogram.
    scales: BTreeMap<String, i32>,
}

impl Metrics {
    fn read(requests: &[ExportMetricsServiceRequest], temporality: i32) -> Result<Self> {
        let mut all = Self::default();
        for of_resource in requests.iter().flat_map(|request| &request.resource_metrics) {
            let resource = of_resource.resource.as_ref().map(|resource| &*resource.attributes).unwrap_or_default();
            let resource = otlp::attributes(resource)?;
            let pid = int(&resource, "process.pid").unwrap_or_default();
            for metric in of_resource.scope_metrics.iter().flat_map(|of_scope| &of_scope.metrics) {
                all.metric(pid, &metric.name, metric.data.as_ref().context("no data")?, temporality)
                    .with_context(|| metric.name.clone())?;
            }
        }
        Ok(all)
    }

    fn metric(&mut self, pid: i64, name: &str, data: &Data, temporality: i32) -> Result<()> {
        match data {
            Data::ExponentialHistogram(histogram) => {
                ensure!(histogram.aggregation_temporality == temporality, "{histogram:?}");
                for point in &histogram.data_points {
                    let scale = *self.scales.entry(name.into()).or_insert(point.scale);
                    ensure!(scale == point.scale, "the scale changes");
                    let (start, time) = (point.start_time_unix_nano, point.time_unix_nano);
                    let key = stream_key(pid, &otlp::attributes(&point.attributes)?);
                    let streams = self.streams.entry(name.into()).or_default();
                    streams.point(key, temporality, start, time, Total::of(point)?)?;
                }
            }
            Data::Sum(sum) => {
                ensure!(sum.aggregation_temporality == temporality && sum.is_monotonic, "{sum:?}");
                for point in &sum.data_points {
                    let attributes = otlp::attributes(&point.attributes)?;
                    // Those that mqspan counts of itself differ in other attributes.
                    if name.starts_with("messaging.") {
                        let (start, time) = (point.start_time_unix_nano, point.time_unix_nano);
                        let total = Total { count: number(point)?.try_into()?, ..Total::default() };
                        let streams = self.streams.entry(name.into()).or_default();
                        streams.point(stream_key(pid, &attributes), temporality, start, time, total)?;
                    }
                }
            }
            // tests/queues.rs looks at these.
            Data::Gauge(_) => {}
            other => bail!("{other:?}"),
        }
        Ok(())
    }

    fn totals(&self, name: &str) -> Result<BTreeMap<Key, Total>> {
        Ok(self.streams.get(name).with_context(|| format!("no {name}"))?.totals())
    }
}

fn number(point: &NumberDataPoint) -> Result<i64> {
    match point.value {
        Some(number_data_point::Value::AsInt(value)) => Ok(value),
        other => bail!("{other:?} is not an integer"),
    }
}

/// Adds up what the spans say; None where a span has no part in the metric.
fn of_spans(
    spans: &[Record<Span>],
    scale: Option<i32>,
    value: impl Fn(&Record<Span>) -> Option<(Key, f64)>,
) -> BTreeMap<Key, Total> {
    let mut totals: BTreeMap<Key, Total> = BTreeMap::new();
    for (key, value) in spans.iter().filter_map(value) {
        let total = totals.entry(key).or_default();
        match scale {
            Some(scale) => total.add(value, scale),
            None => total.count += 1,
        }
    }
    totals
}

fn same(what: &str, found: &BTreeMap<Key, Total>, expected: &BTreeMap<Key, Total>) -> Result<()> {
    let calls: u64 = expected.values().map(|total| total.count).sum();
    println!("{what}: {} series of {calls} calls", expected.len());
    for (key, expected) in expected {
        let found = found.get(key).with_context(|| format!("{what}: nothing of {key:?}: {expected:?}"))?;
        ensure!(found.is(expected), "{what} {key:?}:\n{found:?}, not\n{expected:?}");
    }
    let extra = found.keys().find(|key| !expected.contains_key(key));
    ensure!(extra.is_none(), "{what}: {extra:?} comes from nowhere");
    Ok(())
}

/// Runs the workload with traces and metrics, and compares every series with the spans.
fn metrics_are_what_spans_say(preference: &str, temporality: i32) -> Result<()> {
    let mqspan = mqspan()?;
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let (file, record) = (mqspan.to_file("all"), mqspan.file("record").display().to_string());
    let mut command = mqspan.command(["run", "--signals=traces,metrics", &file, &stats, "--"]);
    // Both temporalities are tried at once: the names of the queues come from the seed.
    let seed = format!("--seed=81{temporality}");
    command.args([&*mqspan.workload_arg(), "calls", "--calls=10000", &seed, "--print", &record]);
    // Several collections while the workload runs, and each longer than a record takes to arrive: an inferred wait that
    // comes two of them after its process has ended begins a stream anew.
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    command.env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference);
    Ended::of(finish(command)?).ok()?;
    let stats = mqspan.stats()?;
    ensure!(stats.lost_sum() == 0, "spans that were lost say nothing: {stats:?}");

    let spans = made_by(otlp::spans(&mqspan.file("all"))?, &mqspan.workload());
    ensure!(spans.len() >= 10_000, "{} spans", spans.len());
    let requests = otlp::metrics(&mqspan.file("all"))?;
    ensure!(requests.len() > 1, "one collection only shows no temporality");
    let metrics = Metrics::read(&requests, temporality)?;

    let pid = |span: &Record<Span>| int(&span.origin.resource, "process.pid").unwrap_or_default();
    let full = |span: &Record<Span>| key(pid(span), &span.attributes);
    let is = |span: &Record<Span>, operation| span.text("messaging.operation.name") == Some(operation);
    let succeeded = |span: &Record<Span>| span.text("posix_mq.errno").is_none();

    let name = "messaging.client.operation.duration";
    let durations = of_spans(&spans, metrics.scales.get(name).copied(), |span| {
        let seconds = (span.body.end_time_unix_nano - span.body.start_time_unix_nano) as f64 / 1e9;
        Some((full(span), seconds))
    });
    same(name, &metrics.totals(name)?, &durations)?;

    let name = "messaging.client.sent.messages";
    let sent = of_spans(&spans, None, |span| is(span, "mq_timedsend").then(|| (full(span), 1.)));
    same(name, &metrics.totals(name)?, &sent)?;

    let name = "messaging.client.consumed.messages";
    let consumed =
        of_spans(&spans, None, |span| (is(span, "mq_timedreceive") && succeeded(span)).then(|| (full(span), 1.)));
    same(name, &metrics.totals(name)?, &consumed)?;

    let name = "posix_mq.message.size";
    let sizes = of_spans(&spans, metrics.scales.get(name).copied(), |span| {
        let passed = (is(span, "mq_timedsend") || is(span, "mq_timedreceive")) && succeeded(span);
        passed.then(|| (full(span), span.int("messaging.message.body.size").unwrap_or(-1) as f64))
    });
    same(name, &metrics.totals(name)?, &sizes)?;

    let name = "posix_mq.message.wait";
    let waits = of_spans(&spans, metrics.scales.get(name).copied(), |span| {
        let queue = span.text("messaging.destination.name").map(String::from);
        Some(((pid(span), None, queue, None), span.double("posix_mq.message.wait")?))
    });
    ensure!(!waits.is_empty(), "no message waited");
    same(name, &metrics.totals(name)?, &waits)
}

/// Runs the workload under strace while most calls have no span, and compares the counts with strace's.
fn metrics_are_what_strace_sees(preference: &str, temporality: i32) -> Result<()> {
    let mqspan = mqspan()?;
    let (log, record) = (mqspan.file("strace.log"), mqspan.file("record"));
    let path = record.display().to_string();
    let seed = format!("--seed=82{temporality}");
    let arguments = ["calls", "--calls=10000", &seed, "--threads=4", "--processes=2", "--print", &path];
    let strace = workload::under_strace("/^mq_", &log, &mqspan.workload(), &arguments);
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let options = ["run", "--signals=traces,metrics", "--max-rate=10", &mqspan.to_file("all"), &stats, "--"];
    let mut command = mqspan.command(options);
    command.arg(strace.get_program()).args(strace.get_args());
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    command.env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference);
    Ended::of(finish(command)?).ok()?;
    let stats = mqspan.stats()?;
    ensure!(stats.limited > 0 && stats.lost.values().all(|lost| *lost == 0), "no limit was felt: {stats:?}");

    let calls = family::join(&strace::parse(&std::fs::read_to_string(&log)?)?, &record)?;
    let mut expected: BTreeMap<Key, u64> = BTreeMap::new();
    for call in &calls {
        let keys = ["messaging.operation.name", "messaging.destination.name", "posix_mq.errno"];
        let (pid, [operation, queue, errno]) = call.series(keys)?;
        *expected.entry((pid, operation, queue, errno)).or_default() += 1;
    }
    let metrics = Metrics::read(&otlp::metrics(&mqspan.file("all"))?, temporality)?;
    let found = metrics.totals("messaging.client.operation.duration")?;
    let found: BTreeMap<Key, u64> = found.into_iter().map(|(key, total)| (key, total.count)).collect();
    println!("{} calls, {} of them limited; {} series", calls.len(), stats.limited, expected.len());
    let differing = expected.iter().find(|(key, count)| found.get(key) != Some(count));
    ensure!(differing.is_none(), "{differing:?}, not {:?}", differing.and_then(|(key, _)| found.get(key)));
    let extra = found.keys().find(|key| !expected.contains_key(key));
    ensure!(extra.is_none(), "{extra:?} comes from nowhere");
    Ok(())
}

/// Prevents calls without a span from being missing in the counts, from one export to the next.
#[test]
fn limited_calls_are_counted_delta() -> Result<()> {
    metrics_are_what_strace_sees("delta", DELTA)
}

/// The same of totals from the start.
#[test]
fn limited_calls_are_counted_cumulative() -> Result<()> {
    metrics_are_what_strace_sees("cumulative", CUMULATIVE)
}

/// Prevents a call from being counted twice, not at all or in the wrong series or bucket, from one export to the next.
#[test]
fn delta() -> Result<()> {
    metrics_are_what_spans_say("delta", DELTA)
}

/// The same of totals from the start.
#[test]
fn cumulative() -> Result<()> {
    metrics_are_what_spans_say("cumulative", CUMULATIVE)
}

/// Prevents a metrics backend that takes requests and never answers from costing calls, or other outputs their metrics.
#[test]
fn a_metrics_backend_that_never_answers() -> Result<()> {
    let mqspan = mqspan()?;
    let backend = Backend::start(|_, path| match path.to_lowercase().contains("metrics") {
        true => Answer::Nothing,
        false => Answer::Taken,
    })?;
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--signals=traces,metrics", "--output=otlp", "--endpoint"]);
    command.args([&*backend.endpoint(), &*mqspan.to_file("all"), &stats, "--max-rate=0", "--"]);
    command.args([&*mqspan.workload_arg(), "calls", "--calls=5000", "--seed=83"]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "50").env("OTEL_SDK_DISABLED", "true");
    Ended::of(finish(command)?).ok()?;
    let stats = mqspan.stats()?;
    ensure!(stats.lost_sum() == 0, "{stats:?}");
    let spans = made_by(otlp::spans(&mqspan.file("all"))?, &mqspan.workload());
    let metrics = Metrics::read(&otlp::metrics(&mqspan.file("all"))?, CUMULATIVE)?;
    let durations = metrics.totals("messaging.client.operation.duration")?;
    let counted: u64 = durations.values().map(|total| total.count).sum();
    println!("{counted} calls counted, {} spans", spans.len());
    ensure!(counted as usize >= spans.len() && spans.len() >= 5_000, "{counted} of {}", spans.len());
    Ok(())
}

/// Prevents series without number and with long names from making requests that no backend takes: 7.3 MB, 170,392 points
/// rejected for good, and nothing that said so.
#[test]
fn thirty_thousand_series_of_long_names() -> Result<()> {
    // Each name has one of mq_open and one of mq_unlink.
    const SERIES: u64 = 16 * 2 * 950;
    // What a receiver of gRPC takes, unless told otherwise.
    const LIMIT: usize = 4 << 20;
    for protocol in ["grpc", "http/json"] {
        let mqspan = mqspan()?;
        let backend = Backend::start(|_, _| Answer::Taken)?;
        let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
        let mut command = mqspan.command(["run", "--signals=metrics", "--output=otlp", &stats, "--protocol", protocol]);
        command.args(["--endpoint", &*backend.endpoint(), &*mqspan.to_file("all"), "--"]);
        command.args(["bash", "-c", "for each in {1..16}; do \"$0\" names --names 950 & done; wait; sleep 1"]);
        command.arg(mqspan.workload_arg());
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "1000").env("OTEL_SDK_DISABLED", "true");
        let ended = Ended::of(finish(command)?).ok()?;
        let largest = backend.arrived().iter().map(|request| request.size).max().context("no request")?;
        let output = mqspan.stats()?.outputs.remove("otlp.metrics").context("no metrics")?;
        let totals = Metrics::read(&otlp::metrics(&mqspan.file("all"))?, CUMULATIVE)?
            .totals("messaging.client.operation.duration")?;
        let counted: u64 = totals.values().map(|total| total.count).sum();
        println!("{protocol}: {} series, {counted} calls, at most {largest} bytes: {output:?}", totals.len());
        ensure!(counted == SERIES, "{counted} calls: {:?}", ended.stderr);
        ensure!(largest <= LIMIT, "{largest} bytes");
        ensure!(output.sent > 0 && output.rejected == 0 && output.lost == 0, "{output:?}");
    }
    Ok(())
}

/// Prevents a call from being on the wrong side of an explicit bound.
#[test]
fn explicit_buckets() -> Result<()> {
    let mqspan = mqspan()?;
    let mut command = mqspan.command(["run", "--signals=traces,metrics", &mqspan.to_file("all"), "--"]);
    command.args([&*mqspan.workload_arg(), "calls", "--calls=5000", "--seed=84"]);
    command.env("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram");
    command.env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
    Ended::of(finish(command)?).ok()?;
    let spans = made_by(otlp::spans(&mqspan.file("all"))?, &mqspan.workload());
    let (mut found, mut expected) = (vec![0; 27], vec![0; 27]);
    for span in &spans {
        let seconds = (span.body.end_time_unix_nano - span.body.start_time_unix_nano) as f64 / 1e9;
        let bound = (-20..=5).position(|power| seconds <= f64::from(power).exp2());
        expected[bound.unwrap_or(26)] += 1;
    }
    let requests = otlp::metrics(&mqspan.file("all"))?;
    let metrics = requests.iter().flat_map(|request| &request.resource_metrics).flat_map(|of| &of.scope_metrics);
    let of_calls = metrics.flat_map(|of| &of.metrics).filter(|of| of.name == "messaging.client.operation.duration");
    for data in of_calls.filter_map(|metric| metric.data.as_ref()) {
        let Data::Histogram(histogram) = data else { bail!("{data:?}") };
        for point in &histogram.data_points {
            ensure!(point.explicit_bounds.len() == 26 && point.bucket_counts.len() == 27, "{point:?}");
            found.iter_mut().zip(&point.bucket_counts).for_each(|(sum, count)| *sum += count);
        }
    }
    println!("{} calls: {found:?}", spans.len());
    ensure!(found == expected, "{found:?}, not {expected:?}");
    Ok(())
}

/// Prevents waits from being left out where neither spans nor log records are made, and the calls that are followed for that
/// from being counted as anything else than exported.
#[test]
fn waits_with_metrics_alone() -> Result<()> {
    let mqspan = mqspan()?;
    let (truth, workload) = (mqspan.file("truth").display().to_string(), mqspan.workload_arg());
    // In the file, and by no other: one sender and one receiver at a time leave one pairing only.
    let ledger = ["ledger", "--processes=1", "--threads=1", "--messages=4000", "--seed=85", "--print", &truth];
    let options = ["--signals=metrics", &mqspan.to_file("all"), "--", &workload];
    mqspan.run_counted(&[&options[..], &ledger].concat())?;
    let stats = mqspan.stats()?;
    // Other tests' calls are filtered.
    ensure!(stats.captured == stats.exported + stats.filtered && stats.lost_sum() + stats.limited == 0, "{stats:?}");
    let metrics = Metrics::read(&otlp::metrics(&mqspan.file("all"))?, CUMULATIVE)?;
    let sum = |name: &str| -> Result<(u64, f64)> {
        let totals = metrics.totals(name)?;
        Ok(totals.values().fold((0, 0.0), |(count, sum), total| (count + total.count, sum + total.sum)))
    };
    let ((waits, waited), (received, _)) = (sum("posix_mq.message.wait")?, sum("messaging.client.consumed.messages")?);
    println!("{waits} waits of {received} messages, {waited} s in all");
    ensure!(received == 4001 && waits * 100 >= received * 95 && waits <= received, "{waits} of {received}");
    Ok(())
}
