//! Streams as an OTLP request, by the contract's names and OpenTelemetry's conventions for messaging. Pure code.

use std::collections::{BTreeMap, HashMap};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exemplar;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;

use super::queues::{self, Gauges};
use super::streams::{self, Destination, Of, Process, Stream, Streams, Total};
use crate::model::buckets::{FIRST_DURATION, FIRST_SIZE, SCALE};
use crate::model::container::Container;
use crate::model::reading::Measure;
use crate::model::resource::{Resource, Value};
use crate::model::values::Op;
use crate::telemetry::record::{SCHEMA_URL, SCOPE, VERSION};
use crate::telemetry::terms::{errno_name, is_error, operation, operation_type};
use crate::who::resource::{CONTAINER_ID, POD_UID};

/// A request of all current streams. `now_ns` is the time of the collection.
pub fn request(streams: &Streams, now_ns: u64) -> ExportMetricsServiceRequest {
    let resource_metrics = streams.current().map(|process| of_process(process, streams, now_ns)).collect();
    ExportMetricsServiceRequest { resource_metrics }
}

/// The gauges of queues and of the threads that wait at them; None where there is no queue to tell of.
/// They carry the container and the pod that an ipc namespace belongs to.
pub fn of_queues(
    gauges: &Gauges,
    containers: &HashMap<u32, Container>,
    own: &Resource,
    now_ns: u64,
) -> Option<ResourceMetrics> {
    let point = |attributes, value| NumberDataPoint {
        attributes,
        time_unix_nano: now_ns,
        value: Some(Number::AsInt(value)),
        ..Default::default()
    };
    let gauge = |name: &str, unit: &str, description: &str, data_points: Vec<NumberDataPoint>| Metric {
        name: name.into(),
        unit: unit.into(),
        description: description.into(),
        data: Some(Data::Gauge(Gauge { data_points })),
        ..Default::default()
    };
    let attributes = |(ipc_ns, destination): &(u32, Destination)| {
        let container = containers.get(ipc_ns);
        let id = container.and_then(|container| Some(text(CONTAINER_ID, container.id.as_ref()?)));
        let pod_uid = container.and_then(|container| Some(text(POD_UID, container.pod_uid.as_ref()?)));
        of_queue(Some(destination), *ipc_ns).into_iter().chain(id).chain(pod_uid).collect::<Vec<_>>()
    };
    let of_each = |value: fn(&queues::Gauge) -> i64| {
        gauges.0.iter().map(|(queue, gauge)| point(attributes(queue), value(gauge))).collect::<Vec<_>>()
    };
    // A queue at which nobody waits has a real zero; one of which that is not known has no point.
    let waiting = gauges.0.iter().flat_map(|(queue, gauge)| {
        [Op::MqTimedsend, Op::MqTimedreceive].into_iter().zip(gauge.waiting).filter_map(move |(op, threads)| {
            let operation = text("messaging.operation.name", operation(op));
            Some(point([attributes(queue), vec![operation]].concat(), threads?))
        })
    });
    let mut metrics = vec![
        gauge("posix_mq.queue.depth", "{message}", "Messages in the queue.", of_each(|queue| queue.depth)),
        gauge(
            "posix_mq.queue.peak_depth",
            "{message}",
            "The most messages in the queue since the last collection.",
            of_each(|queue| queue.peak),
        ),
        gauge("posix_mq.queue.capacity", "{message}", "The most messages that fit.", of_each(|queue| queue.capacity)),
        gauge("posix_mq.blocked_threads", "{thread}", "Threads that wait at the queue.", waiting.collect()),
    ];
    metrics.retain(|metric| !matches!(&metric.data, Some(Data::Gauge(gauge)) if gauge.data_points.is_empty()));
    (!gauges.0.is_empty()).then(|| ResourceMetrics {
        resource: Some(resource(own)),
        scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: SCHEMA_URL.into() }],
        schema_url: String::new(),
    })
}

/// The points of one process, by metric.
struct Points<'a> {
    process: &'a Process,
    cumulative: bool,
    since_ns: u64,
    now_ns: u64,
}

fn of_process(process: &Process, streams: &Streams, now_ns: u64) -> ResourceMetrics {
    let points = Points { process, cumulative: streams.is_cumulative(), since_ns: streams.since_ns(), now_ns };
    let schema_url = if process.resource.has_schema { SCHEMA_URL } else { "" };
    ResourceMetrics {
        resource: Some(resource(&process.resource)),
        scope_metrics: vec![ScopeMetrics {
            scope: Some(scope()),
            metrics: points.metrics(),
            schema_url: SCHEMA_URL.into(),
        }],
        schema_url: schema_url.into(),
    }
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

/// An attribute with a string.
pub fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Any::StringValue(value.into()))
}

/// An attribute with an integer.
pub fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, Any::IntValue(value))
}

/// The queue's attributes.
pub fn of_queue(destination: Option<&Destination>, ipc_ns: u32) -> Vec<KeyValue> {
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

/// One point takes what found no room for one of its own.
fn overflow() -> Vec<KeyValue> {
    vec![attribute("otel.metric.overflow", Any::BoolValue(true))]
}

fn of_call(op: Op, of: &Of, with_type: bool) -> Vec<KeyValue> {
    let mut attributes = vec![text("messaging.system", "posix_mq"), text("messaging.operation.name", operation(op))];
    if let Some(kind) = operation_type(op).filter(|_| with_type) {
        attributes.push(text("messaging.operation.type", kind));
    }
    attributes.extend(of_queue(of.destination.as_ref(), of.ipc_ns));
    if of.errno != 0 {
        let name = errno_name(of.errno);
        attributes.push(text("posix_mq.errno", &name));
        if is_error(of.errno) {
            attributes.push(text("error.type", &name));
        }
    }
    attributes
}

impl Points<'_> {
    fn metrics(&self) -> Vec<Metric> {
        [
            self.histogram(
                ("messaging.client.operation.duration", "s", "Duration of the calls, from entry to exit."),
                (Measure::Duration, FIRST_DURATION, 1e-9),
                |stream, of| of_call(stream.op, of, true),
            ),
            self.histogram(
                ("posix_mq.message.wait", "s", "How long received messages lay in the queue."),
                (Measure::Wait, FIRST_DURATION, 1e-9),
                |_, of| of_queue(of.destination.as_ref(), of.ipc_ns),
            ),
            self.histogram(
                ("posix_mq.message.size", "By", "Size of the messages that were passed."),
                (Measure::Size, FIRST_SIZE, 1.0),
                |stream, of| {
                    let mut attributes = of_queue(of.destination.as_ref(), of.ipc_ns);
                    attributes.push(text("messaging.operation.name", operation(stream.op)));
                    attributes
                },
            ),
            self.counter(("messaging.client.sent.messages", "Messages that were tried to be sent."), |stream| {
                stream.op == Op::MqTimedsend
            }),
            self.counter(("messaging.client.consumed.messages", "Messages that were received."), |stream| {
                stream.op == Op::MqTimedreceive && stream.of.as_ref().is_none_or(|of| of.errno == 0)
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn start_ns(&self, total: &Total) -> u64 {
        if self.cumulative { total.start_ns } else { self.since_ns }
    }

    fn temporality(&self) -> i32 {
        let temporality = match self.cumulative {
            true => AggregationTemporality::Cumulative,
            false => AggregationTemporality::Delta,
        };
        temporality.into()
    }

    /// The streams of a measure, those without attributes of their own in one.
    fn totals(&self, measure: Measure, of_interest: impl Fn(&Stream) -> bool) -> BTreeMap<Option<&Stream>, Total> {
        let mut totals: BTreeMap<Option<&Stream>, Total> = BTreeMap::new();
        for (stream, total) in &self.process.streams {
            if stream.measure == measure && of_interest(stream) {
                let key = stream.of.is_some().then_some(stream);
                totals.entry(key).and_modify(|sum| sum.merge(total)).or_insert_with(|| total.clone());
            }
        }
        totals
    }

    fn histogram(
        &self,
        (name, unit, description): (&str, &str, &str),
        (measure, first, factor): (Measure, i32, f64),
        attributes: impl Fn(&Stream, &Of) -> Vec<KeyValue>,
    ) -> Option<Metric> {
        let totals = self.totals(measure, |_| true);
        let point = |(stream, total): (Option<&Stream>, Total)| ExponentialHistogramDataPoint {
            attributes: match stream.and_then(|stream| Some((stream, stream.of.as_ref()?))) {
                Some((stream, of)) => attributes(stream, of),
                None => overflow(),
            },
            start_time_unix_nano: self.start_ns(&total),
            time_unix_nano: self.now_ns,
            count: total.count(),
            sum: Some(total.sum as f64 * factor),
            scale: SCALE,
            zero_count: total.zeros,
            exemplars: stream
                .and_then(|stream| self.process.exemplars.get(stream))
                .map_or(Vec::new(), |exemplars| exemplars.iter().map(exemplar).collect()),
            positive: Some(Buckets { offset: first + total.first as i32, bucket_counts: total.buckets }),
            ..Default::default()
        };
        let data_points: Vec<_> = totals.into_iter().map(point).collect();
        (!data_points.is_empty()).then(|| Metric {
            name: name.into(),
            unit: unit.into(),
            description: description.into(),
            data: Some(Data::ExponentialHistogram(ExponentialHistogram {
                data_points,
                aggregation_temporality: self.temporality(),
            })),
            ..Default::default()
        })
    }

    fn counter(&self, (name, description): (&str, &str), of_interest: impl Fn(&Stream) -> bool) -> Option<Metric> {
        let totals = self.totals(Measure::Duration, of_interest);
        let point = |(stream, total): (Option<&Stream>, Total)| NumberDataPoint {
            attributes: match stream.and_then(|stream| Some((stream.op, stream.of.as_ref()?))) {
                Some((op, of)) => of_call(op, of, false),
                None => overflow(),
            },
            start_time_unix_nano: self.start_ns(&total),
            time_unix_nano: self.now_ns,
            value: Some(Number::AsInt(total.count().cast_signed())),
            ..Default::default()
        };
        let data_points: Vec<_> = totals.into_iter().map(point).collect();
        (!data_points.is_empty()).then(|| Metric {
            name: name.into(),
            unit: "{message}".into(),
            description: description.into(),
            data: Some(Data::Sum(Sum { data_points, aggregation_temporality: self.temporality(), is_monotonic: true })),
            ..Default::default()
        })
    }
}
