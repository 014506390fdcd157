//! Requests of metrics as bytes. Pure code.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use prost::Message;
use serde_json::Value;

use super::batch::Encoding;

/// Encodes a request.
pub fn encode(encoding: Encoding, request: &ExportMetricsServiceRequest) -> Vec<u8> {
    match encoding {
        Encoding::Protobuf => request.encode_to_vec(),
        Encoding::Json => {
            // What is made of integers, strings and floats has no value that JSON lacks.
            let mut value = serde_json::to_value(request).unwrap_or_default();
            drop_nulls(&mut value);
            serde_json::to_vec(&value).unwrap_or_default()
        }
    }
}

/// The other way; None where it can't be read.
pub fn decode(encoding: Encoding, body: &[u8]) -> Option<ExportMetricsServiceRequest> {
    match encoding {
        Encoding::Json => serde_json::from_slice(body).ok(),
        Encoding::Protobuf => ExportMetricsServiceRequest::decode(body).ok(),
    }
}

/// Leaves out what is not there: the Collector (seen with 0.165) refuses a request for the nulls that protobuf's JSON
/// mapping has for it.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// How many points a request carries.
pub fn points(request: &ExportMetricsServiceRequest) -> u64 {
    let metrics = request.resource_metrics.iter().flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics);
    let points = metrics.map(|metric| match &metric.data {
        Some(Data::Gauge(data)) => data.data_points.len(),
        Some(Data::Sum(data)) => data.data_points.len(),
        Some(Data::Histogram(data)) => data.data_points.len(),
        Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
        Some(Data::Summary(data)) => data.data_points.len(),
        None => 0,
    });
    points.sum::<usize>() as u64
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::metrics::v1::{
        ExponentialHistogram, ExponentialHistogramDataPoint, Metric, ResourceMetrics, ScopeMetrics,
    };

    use super::*;

    /// Prevents a receiver from refusing metrics in JSON for what they leave out, and either encoding from changing any.
    #[test]
    fn each_encoding_and_back() {
        let point = ExponentialHistogramDataPoint { count: u64::MAX, sum: Some(0.1), scale: 2, ..Default::default() };
        let histogram = ExponentialHistogram { data_points: vec![point], aggregation_temporality: 2 };
        let metric =
            Metric { name: "m".into(), data: Some(Data::ExponentialHistogram(histogram)), ..Default::default() };
        let of_scope = ScopeMetrics { metrics: vec![metric], ..Default::default() };
        let of_resource = ResourceMetrics { scope_metrics: vec![of_scope], ..Default::default() };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![of_resource] };
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let body = encode(encoding, &request);
            assert_eq!(decode(encoding, &body), Some(request.clone()), "{encoding:?}");
            assert!(encoding == Encoding::Protobuf || !body.windows(4).any(|bytes| bytes == b"null"), "{body:?}");
        }
        assert_eq!(points(&request), 1);
    }
}
