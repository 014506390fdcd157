//! Requests with metrics that wait: of a cumulative stream a later point says all that an earlier one did, so that only
//! the last one need be kept. Deltas and gauges are kept as they are. Pure code.

use std::collections::{HashMap, HashSet};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric};
use prost::Message;

/// Cumulative streams, by their Resource. A stream that began anew is another one.
#[derive(Debug, Default)]
pub struct Newest(HashMap<Vec<u8>, HashSet<Vec<u8>>>);

impl Newest {
    /// Those that a request has points of.
    pub fn of(mut request: ExportMetricsServiceRequest) -> Self {
        let mut streams = Self::default();
        each_point(&mut request, |resource, stream| {
            streams.0.entry(resource.to_vec()).or_default().insert(stream);
            true
        });
        streams
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the points of these streams out of an earlier request, and whatever is empty then.
    pub fn thin(&self, earlier: &mut ExportMetricsServiceRequest) {
        each_point(earlier, |resource, stream| !self.0.get(resource).is_some_and(|of| of.contains(&stream)));
        for of_resource in &mut earlier.resource_metrics {
            for of_scope in &mut of_resource.scope_metrics {
                of_scope.metrics.retain(|metric| !is_empty(metric));
            }
            of_resource.scope_metrics.retain(|of_scope| !of_scope.metrics.is_empty());
        }
        earlier.resource_metrics.retain(|of_resource| !of_resource.scope_metrics.is_empty());
    }
}

/// Keeps each cumulative point for which `keep`, given its Resource and its stream, says so.
fn each_point(request: &mut ExportMetricsServiceRequest, mut keep: impl FnMut(&[u8], Vec<u8>) -> bool) {
    const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;
    for of_resource in &mut request.resource_metrics {
        let resource = of_resource.resource.as_ref().map(Message::encode_to_vec).unwrap_or_default();
        for of_scope in &mut of_resource.scope_metrics {
            let scope = of_scope.scope.as_ref().map(Message::encode_to_vec).unwrap_or_default();
            for Metric { name, data, .. } in &mut of_scope.metrics {
                let mut keep =
                    |start: u64, attributes: &[KeyValue]| keep(&resource, stream(&scope, name, start, attributes));
                match data {
                    Some(Data::Sum(sum)) if sum.aggregation_temporality == CUMULATIVE => {
                        sum.data_points.retain(|point| keep(point.start_time_unix_nano, &point.attributes));
                    }
                    Some(Data::Histogram(of)) if of.aggregation_temporality == CUMULATIVE => {
                        of.data_points.retain(|point| keep(point.start_time_unix_nano, &point.attributes));
                    }
                    Some(Data::ExponentialHistogram(of)) if of.aggregation_temporality == CUMULATIVE => {
                        of.data_points.retain(|point| keep(point.start_time_unix_nano, &point.attributes));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// What tells a stream from the others of its Resource.
fn stream(scope: &[u8], name: &str, start: u64, attributes: &[KeyValue]) -> Vec<u8> {
    let mut key = [&start.to_le_bytes()[..], &(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
    key.extend_from_slice(&(scope.len() as u64).to_le_bytes());
    key.extend_from_slice(scope);
    for attribute in attributes {
        // With its length in front: no two lists look the same.
        key.extend(attribute.encode_length_delimited_to_vec());
    }
    key
}

fn is_empty(metric: &Metric) -> bool {
    match &metric.data {
        Some(Data::Gauge(of)) => of.data_points.is_empty(),
        Some(Data::Sum(of)) => of.data_points.is_empty(),
        Some(Data::Histogram(of)) => of.data_points.is_empty(),
        Some(Data::ExponentialHistogram(of)) => of.data_points.is_empty(),
        Some(Data::Summary(of)) => of.data_points.is_empty(),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value};
    use opentelemetry_proto::tonic::metrics::v1::{Gauge, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum};
    use opentelemetry_proto::tonic::resource::v1::Resource;

    use super::*;
    use crate::export::batch::Encoding;
    use crate::export::metrics::{decode, encode, points};

    fn attributes(value: &str) -> Vec<KeyValue> {
        let value = AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
        vec![KeyValue { key: "key".into(), value: Some(value), ..KeyValue::default() }]
    }

    fn point(attribute: &str, start: u64) -> NumberDataPoint {
        NumberDataPoint { attributes: attributes(attribute), start_time_unix_nano: start, ..NumberDataPoint::default() }
    }

    fn sum(name: &str, temporality: AggregationTemporality, data_points: Vec<NumberDataPoint>) -> Metric {
        let sum = Sum { data_points, aggregation_temporality: temporality as i32, is_monotonic: true };
        Metric { name: name.into(), data: Some(Data::Sum(sum)), ..Metric::default() }
    }

    fn gauge(data_points: Vec<NumberDataPoint>) -> Metric {
        Metric { name: "depth".into(), data: Some(Data::Gauge(Gauge { data_points })), ..Metric::default() }
    }

    fn of(resource: &str, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
        let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
        let resource = Some(Resource { attributes: attributes(resource), ..Resource::default() });
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }],
        }
    }

    /// Prevents the last point of a stream from being dropped for one of another stream (another Resource, metric or
    /// attribute, or one that began anew), deltas and gauges from being dropped at all, and the rest from being kept.
    #[test]
    fn the_last_point_of_each_cumulative_stream() {
        use AggregationTemporality::{Cumulative, Delta};
        let earlier = of(
            "one",
            vec![
                sum("sent", Cumulative, vec![point("a", 1), point("b", 1), point("c", 1)]),
                sum("received", Cumulative, vec![point("a", 1)]),
                sum("deltas", Delta, vec![point("a", 1)]),
                gauge(vec![point("a", 0)]),
            ],
        );
        let later = of(
            "one",
            vec![
                sum("sent", Cumulative, vec![point("a", 1), point("b", 2)]),
                sum("deltas", Delta, vec![point("a", 1)]),
                gauge(vec![point("a", 0)]),
            ],
        );
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let again = |request| decode(encoding, &encode(encoding, request)).unwrap();
            let (mut earlier, mut other) = (again(&earlier), again(&earlier));
            let streams = Newest::of(again(&later));
            streams.thin(&mut earlier);
            assert_eq!(points(&earlier), 5);
            let metrics = &earlier.resource_metrics[0].scope_metrics[0].metrics;
            assert_eq!(metrics[0], sum("sent", Cumulative, vec![point("b", 1), point("c", 1)]));

            other.resource_metrics[0].resource.get_or_insert_default().attributes = attributes("two");
            let before = other.clone();
            streams.thin(&mut other);
            assert_eq!(other, before);
        }
        let mut all = of("one", vec![sum("sent", Cumulative, vec![point("a", 1)])]);
        Newest::of(later).thin(&mut all);
        assert!(all.resource_metrics.is_empty(), "{all:?}");
        assert!(Newest::of(of("one", vec![gauge(vec![point("a", 0)])])).is_empty());
    }
}
