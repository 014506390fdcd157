//! mqspan's own telemetry, by the OpenTelemetry SDK as any application has it: what it says goes to stderr and, where
//! the signal is on, to the backend as log records; what it does, as spans at debug level; what it counts, as metrics
//! under its own Resource. The event path of the traced calls has no part in it.

mod http;
mod metrics;
mod renewed;
mod stderr;

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{LogExporter as _, SdkLoggerProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanExporter as _};
use tokio::runtime::Handle;
use tonic::metadata::MetadataMap;
use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::http::OnRuntime;
use self::renewed::Renewed;
use crate::config::{Settings, Verbosity};
use crate::export::endpoint::Endpoint;
use crate::export::{Outputs, client};
use crate::model::error::Error;
use crate::model::resource::Value;
use crate::model::values::{Output, Protocol};
use crate::telemetry::record::SCHEMA_URL;

/// How long the SDK may take to hand over its last.
const LAST: Duration = Duration::from_secs(3);

/// The SDK's providers, until the end of the run.
#[derive(Debug, Default)]
pub struct Internal {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Internal {
    /// Begins to say what there is to say. `resource` describes mqspan itself.
    pub fn start(settings: &Settings, resource: &[(String, Value)], runtime: &Handle) -> Result<Self, Error> {
        let _on_runtime = runtime.enter();
        let on = settings.outputs.contains(&Output::Otlp) && !settings.sdk_disabled;
        let mut internal = Self::default();
        if on && settings.signals.logs {
            let exporter = log_exporter(&settings.otlp.logs, sdk_resource(resource), runtime)?;
            let provider = SdkLoggerProvider::builder().with_batch_exporter(exporter);
            internal.logs = Some(provider.with_resource(sdk_resource(resource)).build());
        }
        if on && settings.signals.traces && settings.verbosity == Verbosity::Verbose {
            let exporter = span_exporter(&settings.otlp.traces, sdk_resource(resource), runtime)?;
            let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
            internal.traces = Some(provider.with_resource(sdk_resource(resource)).build());
        }
        let level = match settings.verbosity {
            Verbosity::Quiet => Level::ERROR,
            Verbosity::Normal => Level::INFO,
            Verbosity::Verbose => Level::DEBUG,
        };
        // Only what mqspan itself says: what the libraries that deliver it say would have to be delivered again.
        let own = |level| Targets::new().with_target(env!("CARGO_PKG_NAME"), level);
        let logs = internal
            .logs
            .as_ref()
            .map(|provider| OpenTelemetryTracingBridge::new(provider).with_filter(own(level.max(Level::INFO))));
        let traces = internal.traces.as_ref().map(|provider| {
            tracing_opentelemetry::layer().with_tracer(provider.tracer("mqspan")).with_filter(own(Level::DEBUG))
        });
        // Another subscriber can only be one of a program that uses this crate.
        let _ = tracing_subscriber::registry()
            .with(stderr::Lines.with_filter(own(level)))
            .with(logs)
            .with(traces)
            .try_init();
        Ok(internal)
    }

    /// Begins to count for the backends.
    pub fn count(&mut self, settings: &Settings, resource: &[(String, Value)], outputs: &Outputs) {
        if settings.signals.metrics && !settings.sdk_disabled {
            self.metrics = Some(metrics::start(settings, sdk_resource(resource), outputs));
        }
    }

    /// Hands over the last counts. Their sinks are free after that.
    pub fn last_counts(&mut self) {
        if let Some(metrics) = self.metrics.take() {
            let _ = metrics.shutdown_with_timeout(LAST);
        }
    }

    /// Hands over the last spans and log records.
    pub fn stop(self) {
        if let Some(traces) = self.traces {
            let _ = traces.shutdown_with_timeout(LAST);
        }
        if let Some(logs) = self.logs {
            let _ = logs.shutdown_with_timeout(LAST);
        }
    }
}

fn sdk_resource(attributes: &[(String, Value)]) -> Resource {
    let pairs = attributes.iter().map(|(key, value)| match value {
        Value::Text(text) => KeyValue::new(key.clone(), text.clone()),
        Value::Int(int) => KeyValue::new(key.clone(), *int),
        Value::Double(double) => KeyValue::new(key.clone(), *double),
        Value::Bool(bool) => KeyValue::new(key.clone(), *bool),
    });
    Resource::builder_empty().with_schema_url(pairs, SCHEMA_URL).build()
}

fn failed(error: ExporterBuildError) -> Error {
    Error::cannot_run(format!("OTLP of mqspan's own telemetry: {error}"), "OTEL_SDK_DISABLED=true leaves it out")
}

/// Headers as the SDK's HTTP exporters take them.
fn headers(endpoint: &Endpoint) -> Result<HashMap<String, String>, Error> {
    let text = |(name, value): (&::http::HeaderName, &::http::HeaderValue)| {
        Some((name.to_string(), value.to_str().ok()?.to_owned()))
    };
    Ok(client::headers_of(endpoint)?.iter().filter_map(text).collect())
}

fn protocol(endpoint: &Endpoint) -> opentelemetry_otlp::Protocol {
    match endpoint.protocol {
        Protocol::Grpc => opentelemetry_otlp::Protocol::Grpc,
        Protocol::HttpProtobuf => opentelemetry_otlp::Protocol::HttpBinary,
        Protocol::HttpJson => opentelemetry_otlp::Protocol::HttpJson,
    }
}

/// The builders of the two exporters have the same methods, but no trait in common.
macro_rules! exporter {
    ($exporter:ident, $endpoint:expr, $runtime:expr) => {
        match $endpoint.protocol {
            Protocol::Grpc => $exporter::builder()
                .with_tonic()
                .with_channel(client::grpc($endpoint)?)
                .with_metadata(MetadataMap::from_headers(client::headers_of($endpoint)?))
                .with_timeout($endpoint.timeout)
                .build(),
            _ => $exporter::builder()
                .with_http()
                .with_http_client(OnRuntime::new(client::http($endpoint)?, $endpoint.timeout, $runtime.clone()))
                .with_protocol(protocol($endpoint))
                .with_endpoint(&$endpoint.url)
                .with_headers(headers($endpoint)?)
                .with_timeout($endpoint.timeout)
                .build(),
        }
        .map_err(failed)
    };
}

fn log_exporter(endpoint: &Endpoint, resource: Resource, runtime: &Handle) -> Result<Renewed<LogExporter>, Error> {
    let (to, runtime) = (endpoint.clone(), runtime.clone());
    let make = move |resource: &Resource| -> Result<LogExporter, Error> {
        let _on_runtime = runtime.enter();
        let mut exporter = exporter!(LogExporter, &to, runtime)?;
        exporter.set_resource(resource);
        Ok(exporter)
    };
    Renewed::new(endpoint, resource, Box::new(make))
}

fn span_exporter(endpoint: &Endpoint, resource: Resource, runtime: &Handle) -> Result<Renewed<SpanExporter>, Error> {
    let (to, runtime) = (endpoint.clone(), runtime.clone());
    let make = move |resource: &Resource| -> Result<SpanExporter, Error> {
        let _on_runtime = runtime.enter();
        let mut exporter = exporter!(SpanExporter, &to, runtime)?;
        exporter.set_resource(resource);
        Ok(exporter)
    };
    Renewed::new(endpoint, resource, Box::new(make))
}
