//! Streams and gauges as OTLP points, by the contract's names and OpenTelemetry's conventions for messaging. Pure code.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exemplar;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;

use super::distribution::Distribution;
use super::queues::{Gauge, GaugeKey};
use super::streams::{self, AttributeSet, Destination, Export, Series};
use crate::model::buckets::{FIRST_DURATION, FIRST_SIZE, SCALE};
use crate::model::container::Container;
use crate::model::live::QueueAccess;
use crate::model::reading::Measure;
use crate::model::resource::{Resource, Value};
use crate::model::values::{HistogramAggregation, Op};
use crate::telemetry::record::{SCOPE, VERSION};
use crate::telemetry::terms::{errno_name, is_error, operation, operation_type};
use crate::who::resource::{CONTAINER_ID, POD_UID};

/// A metric by its name, unit and description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instrument {
    /// `Metric.name`.
    pub name: &'static str,
    /// `Metric.unit`.
    pub unit: &'static str,
    /// `Metric.description`.
    pub description: &'static str,
}

const fn instrument(name: &'static str, unit: &'static str, description: &'static str) -> Instrument {
    Instrument { name, unit, description }
}

const DURATION: Instrument =
    instrument("messaging.client.operation.duration", "s", "Duration of the calls, from entry to exit.");
const WAIT: Instrument = instrument("posix_mq.message.wait", "s", "How long received messages lay in the queue.");
const SIZE: Instrument = instrument("posix_mq.message.size", "By", "Size of the messages that were passed.");
const SENT: Instrument =
    instrument("messaging.client.sent.messages", "{message}", "Messages that were tried to be sent.");
const CONSUMED: Instrument =
    instrument("messaging.client.consumed.messages", "{message}", "Messages that were received.");
const DEPTH: Instrument = instrument("posix_mq.queue.depth", "{message}", "Messages in the queue.");
const PEAK: Instrument =
    instrument("posix_mq.queue.peak_depth", "{message}", "The most messages in the queue since the last collection.");
const CAPACITY: Instrument = instrument("posix_mq.queue.capacity", "{message}", "The most messages that fit.");
const BLOCKED: Instrument = instrument("posix_mq.blocked_threads", "{thread}", "Threads that wait at the queue.");
const OLDEST: Instrument = instrument(
    "posix_mq.queue.oldest_message_age",
    "s",
    "How long the message that would be received next has waited.",
);
const DESCRIPTORS: Instrument =
    instrument("posix_mq.queue.descriptors", "{descriptor}", "Open descriptors of the queue, of all processes.");

/// A point of some metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Point {
    /// Of an exponential histogram.
    Exponential(ExponentialHistogramDataPoint),
    /// Of a histogram with explicit bounds.
    Explicit(HistogramDataPoint),
    /// Of a counter.
    Count(NumberDataPoint),
    /// Of a gauge.
    Gauge(NumberDataPoint),
}

/// The points of what is exported at once, which time is its end (ns since 1970).
pub fn points(export: &Export<'_>, time_ns: u64, aggregation: HistogramAggregation) -> Vec<(Instrument, Point)> {
    match export {
        Export::Stream(series, distribution, exemplars) => {
            let (instrument, attributes) = of_series(series);
            let histogram = histogram(series.measure, distribution, attributes, exemplars, time_ns, aggregation);
            let counter = counter(series.op, series.set.errno).filter(|_| series.measure == Measure::Duration);
            let count = counter.map(|counter| (counter, count(distribution, of_call(series, false), time_ns)));
            [Some((instrument, histogram)), count].into_iter().flatten().collect()
        }
        Export::Overflow(of) => of_overflow(of, time_ns, aggregation),
    }
}

/// One point of each metric takes what found no room for one of its own.
fn of_overflow(
    of: &BTreeMap<(Measure, Op), Distribution>,
    time_ns: u64,
    aggregation: HistogramAggregation,
) -> Vec<(Instrument, Point)> {
    let total = |is: &dyn Fn(Measure, Op) -> bool| {
        let mut all = of.iter().filter(|((measure, op), _)| is(*measure, *op)).map(|(_, distribution)| distribution);
        let mut total = all.next()?.clone();
        all.for_each(|distribution| total.merge(distribution));
        Some(total)
    };
    let histograms = [(Measure::Duration, DURATION), (Measure::Wait, WAIT), (Measure::Size, SIZE)];
    let histograms = histograms.into_iter().filter_map(|(measure, instrument)| {
        let total = total(&|of, _| of == measure)?;
        Some((instrument, histogram(measure, &total, overflow(), &[], time_ns, aggregation)))
    });
    // Whether a receive succeeded is not known any more; the kernel side has no overflow point for each errno.
    let counters = [(Op::MqTimedsend, SENT), (Op::MqTimedreceive, CONSUMED)];
    let counters = counters.into_iter().filter_map(|(op, instrument)| {
        Some((instrument, count(&total(&|measure, of| measure == Measure::Duration && of == op)?, overflow(), time_ns)))
    });
    histograms.chain(counters).collect()
}

fn of_series(series: &Series) -> (Instrument, Vec<KeyValue>) {
    let AttributeSet { destination, ipc_ns, .. } = &series.set;
    match series.measure {
        Measure::Duration => (DURATION, of_call(series, true)),
        Measure::Wait => (WAIT, of_queue(destination.as_ref(), *ipc_ns)),
        Measure::Size => {
            let mut attributes = of_queue(destination.as_ref(), *ipc_ns);
            attributes.push(text("messaging.operation.name", operation(series.op)));
            (SIZE, attributes)
        }
    }
}

/// The counter that a call counts in.
fn counter(op: Op, errno: i32) -> Option<Instrument> {
    match op {
        Op::MqTimedsend => Some(SENT),
        Op::MqTimedreceive if errno == 0 => Some(CONSUMED),
        _ => None,
    }
}

fn histogram(
    measure: Measure,
    distribution: &Distribution,
    attributes: Vec<KeyValue>,
    exemplars: &[streams::Exemplar],
    time_ns: u64,
    aggregation: HistogramAggregation,
) -> Point {
    // Explicit bounds by powers of two: 2^-20 to 2^5 s, 1 B to 16 MiB.
    let (first, factor, low, high) = match measure {
        Measure::Duration | Measure::Wait => (FIRST_DURATION, 1e-9, -20, 5),
        Measure::Size => (FIRST_SIZE, 1.0, 0, 24),
    };
    let exemplars = exemplars.iter().map(exemplar).collect();
    let (count, sum) = (distribution.count(), Some(distribution.sum as f64 * factor));
    match aggregation {
        HistogramAggregation::Exponential => Point::Exponential(ExponentialHistogramDataPoint {
            attributes,
            start_time_unix_nano: distribution.start_ns,
            time_unix_nano: time_ns,
            count,
            sum,
            scale: SCALE,
            zero_count: distribution.zeros,
            exemplars,
            positive: Some(Buckets {
                offset: first + distribution.first as i32,
                bucket_counts: distribution.buckets.to_vec(),
            }),
            ..Default::default()
        }),
        HistogramAggregation::Explicit => Point::Explicit(HistogramDataPoint {
            attributes,
            start_time_unix_nano: distribution.start_ns,
            time_unix_nano: time_ns,
            count,
            sum,
            bucket_counts: distribution.between_powers_of_two(first, low, high),
            explicit_bounds: (low..=high).map(|power| f64::from(power).exp2()).collect(),
            exemplars,
            ..Default::default()
        }),
    }
}

fn count(distribution: &Distribution, attributes: Vec<KeyValue>, time_ns: u64) -> Point {
    Point::Count(NumberDataPoint {
        attributes,
        start_time_unix_nano: distribution.start_ns,
        time_unix_nano: time_ns,
        value: Some(Number::AsInt(distribution.count().cast_signed())),
        ..Default::default()
    })
}

/// The gauges of a queue and of the threads that wait at it, with the container and the pod that its ipc namespace
/// belongs to.
pub fn of_gauge(key: &GaugeKey, of: &Gauge, container: Option<&Container>, time_ns: u64) -> Vec<(Instrument, Point)> {
    let id = container.and_then(|container| Some(text(CONTAINER_ID, container.id.as_ref()?)));
    let pod_uid = container.and_then(|container| Some(text(POD_UID, container.pod_uid.as_ref()?)));
    let mut attributes: Vec<KeyValue> = of_queue(Some(&key.destination), key.ipc_ns);
    attributes.extend(id.into_iter().chain(pod_uid));
    if key.unlinked {
        attributes.push(attribute("posix_mq.queue.unlinked", Any::BoolValue(true)));
    }
    attributes.extend(key.number.map(|number| int("posix_mq.queue.id", number.cast_signed())));
    let of_number = |attributes, value| {
        Point::Gauge(NumberDataPoint { attributes, time_unix_nano: time_ns, value: Some(value), ..Default::default() })
    };
    let point = |attributes, value| of_number(attributes, Number::AsInt(value));
    let mut points = vec![
        (DEPTH, point(attributes.clone(), of.depth)),
        (PEAK, point(attributes.clone(), of.peak)),
        (CAPACITY, point(attributes.clone(), of.capacity)),
    ];
    let oldest = of.oldest_ns.map(|ns| Number::AsDouble(ns as f64 / 1e9));
    points.extend(oldest.map(|age| (OLDEST, of_number(attributes.clone(), age))));
    // A queue at which nobody waits has a real zero; one of which that is not known has no point.
    for (op, threads) in [Op::MqTimedsend, Op::MqTimedreceive].into_iter().zip(of.waiting) {
        let operation = text("messaging.operation.name", operation(op));
        let of_operation = [attributes.clone(), vec![operation]].concat();
        points.extend(threads.map(|threads| (BLOCKED, point(of_operation, threads))));
    }
    for (access, open) in QueueAccess::ALL.into_iter().zip(of.descriptors.into_iter().flatten()) {
        let of_access = [attributes.clone(), vec![text("posix_mq.access", access.name())]].concat();
        points.push((DESCRIPTORS, point(of_access, open)));
    }
    points
}

/// The instrumentation scope of everything that mqspan makes.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope { name: SCOPE.into(), version: VERSION.into(), ..Default::default() }
}

/// A Resource by the generated types.
pub fn resource(resource: &Resource) -> ProtoResource {
    let attribute = |(key, value): &(String, Value)| match value {
        Value::Text(value) => text(key, value),
        Value::Int(value) => int(key, *value),
        Value::Double(value) => attribute(key, Any::DoubleValue(*value)),
        Value::Bool(value) => attribute(key, Any::BoolValue(*value)),
    };
    ProtoResource { attributes: resource.attributes.iter().map(attribute).collect(), ..Default::default() }
}

fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Any::StringValue(value.into()))
}

fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, Any::IntValue(value))
}

fn of_queue(destination: Option<&Destination>, ipc_ns: u32) -> Vec<KeyValue> {
    let destination = destination.map(|destination| match destination {
        Destination::Name(name) => text("messaging.destination.name", name),
        Destination::Template(template) => text("messaging.destination.template", template),
    });
    destination.into_iter().chain([int("posix_mq.ipc_namespace", ipc_ns.into())]).collect()
}

fn exemplar(of: &streams::Exemplar) -> Exemplar {
    Exemplar {
        time_unix_nano: of.time_ns,
        span_id: of.ids.span.into(),
        trace_id: of.ids.trace.into(),
        value: Some(exemplar::Value::AsDouble(of.seconds)),
        ..Default::default()
    }
}

fn overflow() -> Vec<KeyValue> {
    vec![attribute("otel.metric.overflow", Any::BoolValue(true))]
}

fn of_call(series: &Series, with_type: bool) -> Vec<KeyValue> {
    let Series { op, set: AttributeSet { destination, ipc_ns, errno, cause }, .. } = series;
    let mut attributes = vec![text("messaging.system", "posix_mq"), text("messaging.operation.name", operation(*op))];
    if let Some(kind) = operation_type(*op).filter(|_| with_type) {
        attributes.push(text("messaging.operation.type", kind));
    }
    attributes.extend(of_queue(destination.as_ref(), *ipc_ns));
    if *errno != 0 {
        let name = errno_name(*errno);
        attributes.push(text("posix_mq.errno", &name));
        if is_error(*errno) {
            attributes.push(text("error.type", &name));
        }
    }
    attributes.extend(cause.map(|cause| text("posix_mq.cause", cause.name())));
    attributes
}
