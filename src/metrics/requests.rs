//! Points gathered into OTLP requests, each of a bounded size: a Resource may go on in the next one, and so may a metric.
//! Pure code.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogram, Gauge, Histogram, Metric, ResourceMetrics, ScopeMetrics, Sum,
};
use prost::Message;

use super::otlp::{self, Instrument, Point};
use crate::model::resource::Resource;
use crate::telemetry::record::SCHEMA_URL;

/// A request is full at this many bytes of protobuf. In JSON a point takes up to six times as many (each byte of a name
/// that is a control character), so that a request stays below the 4 MiB that gRPC servers take in each encoding.
pub const REQUEST: usize = 256 << 10;
/// What stands around the metrics of a Resource, and around the points of a metric, at most.
const AROUND: usize = 256;

/// A request that is being gathered.
#[derive(Debug)]
pub struct RequestBuilder {
    temporality: AggregationTemporality,
    request: ExportMetricsServiceRequest,
    /// The address of the Resource of the last group.
    resource: usize,
    bytes: usize,
    points: u64,
}

impl RequestBuilder {
    /// An empty request, of points that add up from their start where they are `cumulative`.
    pub fn new(cumulative: bool) -> Self {
        let temporality = match cumulative {
            true => AggregationTemporality::Cumulative,
            false => AggregationTemporality::Delta,
        };
        Self { temporality, request: ExportMetricsServiceRequest::default(), resource: 0, bytes: 0, points: 0 }
    }

    /// Adds points of a Resource, which must live until the request is taken.
    pub fn add(&mut self, resource: &Resource, points: Vec<(Instrument, Point)>) {
        let address = std::ptr::from_ref(resource).addr();
        if self.request.resource_metrics.is_empty() || self.resource != address {
            self.resource = address;
            self.open(resource);
        }
        for (instrument, point) in points {
            self.push(instrument, point);
        }
    }

    /// Whether it is large enough to be sent.
    pub fn is_full(&self) -> bool {
        self.bytes >= REQUEST
    }

    /// The request and the number of its points; None where there are none.
    pub fn take(self) -> Option<(ExportMetricsServiceRequest, u64)> {
        (self.points > 0).then_some((self.request, self.points))
    }

    fn open(&mut self, of: &Resource) {
        let resource = otlp::resource(of);
        self.bytes += resource.encoded_len() + AROUND;
        self.request.resource_metrics.push(ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(otlp::scope()),
                metrics: Vec::new(),
                schema_url: SCHEMA_URL.into(),
            }],
            schema_url: if of.has_schema { SCHEMA_URL } else { "" }.into(),
        });
    }

    fn push(&mut self, instrument: Instrument, point: Point) {
        let len = match &point {
            Point::Exponential(point) => point.encoded_len(),
            Point::Explicit(point) => point.encoded_len(),
            Point::Count(point) | Point::Gauge(point) => point.encoded_len(),
        };
        // The tag and the length, which takes four bytes at most.
        self.bytes += len + 5;
        self.points += 1;
        let temporality = self.temporality.into();
        let group = self.request.resource_metrics.last_mut().and_then(|group| group.scope_metrics.last_mut());
        let Some(metrics) = group.map(|group| &mut group.metrics) else { return };
        let place = match metrics.iter().position(|metric| metric.name == instrument.name) {
            Some(place) => place,
            None => {
                self.bytes += AROUND;
                metrics.push(metric(instrument));
                metrics.len() - 1
            }
        };
        let data = &mut metrics[place].data;
        match point {
            Point::Exponential(point) => {
                let empty = || ExponentialHistogram { data_points: Vec::new(), aggregation_temporality: temporality };
                let data = data.get_or_insert_with(|| Data::ExponentialHistogram(empty()));
                if let Data::ExponentialHistogram(of) = data {
                    of.data_points.push(point);
                }
            }
            Point::Explicit(point) => {
                let empty = || Histogram { data_points: Vec::new(), aggregation_temporality: temporality };
                if let Data::Histogram(of) = data.get_or_insert_with(|| Data::Histogram(empty())) {
                    of.data_points.push(point);
                }
            }
            Point::Count(point) => {
                let empty =
                    || Sum { data_points: Vec::new(), aggregation_temporality: temporality, is_monotonic: true };
                if let Data::Sum(of) = data.get_or_insert_with(|| Data::Sum(empty())) {
                    of.data_points.push(point);
                }
            }
            Point::Gauge(point) => {
                if let Data::Gauge(of) = data.get_or_insert_with(|| Data::Gauge(Gauge::default())) {
                    of.data_points.push(point);
                }
            }
        }
    }
}

fn metric(instrument: Instrument) -> Metric {
    let Instrument { name, unit, description } = instrument;
    Metric { name: name.into(), unit: unit.into(), description: description.into(), ..Default::default() }
}
