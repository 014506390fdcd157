//! What is under way to the backend of one signal, for the `otel.sdk.exporter.*` metrics.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;

use super::reply::{Accepted, Failure};
use crate::model::values::{Protocol, Signal};

/// Of one signal.
#[derive(Debug)]
pub struct Traffic {
    /// Which.
    pub signal: Signal,
    protocol: Protocol,
    in_flight: AtomicU64,
    durations: OnceLock<Histogram<f64>>,
}

impl Traffic {
    /// Nothing is under way.
    pub fn new(signal: Signal, protocol: Protocol) -> Self {
        Self { signal, protocol, in_flight: AtomicU64::new(0), durations: OnceLock::new() }
    }

    /// From now on the duration of each attempt is recorded there.
    pub fn record_durations(&self, durations: Histogram<f64>) {
        // There is one meter only.
        let _ = self.durations.set(durations);
    }

    /// Records under way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// What tells this exporter from others.
    pub fn component(&self) -> [KeyValue; 2] {
        let protocol = match self.protocol {
            Protocol::Grpc => "grpc",
            Protocol::HttpProtobuf => "http",
            Protocol::HttpJson => "http_json",
        };
        let signal = match self.signal {
            Signal::Traces => "span",
            Signal::Logs => "log",
            Signal::Metrics => "metric",
        };
        let kind = format!("otlp_{protocol}_{signal}_exporter");
        [KeyValue::new("otel.component.name", format!("{kind}/0")), KeyValue::new("otel.component.type", kind)]
    }

    /// An attempt to deliver so many records. One that is dropped is under way no more, and has no duration.
    pub async fn attempt(
        &self,
        records: u64,
        send: impl Future<Output = Result<Accepted, Failure>>,
    ) -> Result<Accepted, Failure> {
        self.in_flight.fetch_add(records, Relaxed);
        let _under_way = UnderWay { traffic: self, records };
        let start = Instant::now();
        let result = send.await;
        if let Some(durations) = self.durations.get() {
            let error = match &result {
                Ok(_) => None,
                Err(Failure::Retry { .. }) => Some("retryable"),
                Err(Failure::Backend(_) | Failure::Refused(_)) => Some("refused"),
                Err(Failure::Unimplemented(_)) => Some("unimplemented"),
            };
            let mut attributes = self.component().to_vec();
            attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
            durations.record(start.elapsed().as_secs_f64(), &attributes);
        }
        result
    }
}

struct UnderWay<'a> {
    traffic: &'a Traffic,
    records: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.traffic.in_flight.fetch_sub(self.records, Relaxed);
    }
}
