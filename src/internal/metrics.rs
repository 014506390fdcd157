//! What mqspan counts of itself, as metrics: observed from the ledger by the SDK, and delivered with the other records
//! of the signal, to the same outputs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};

use crate::config::Settings;
use crate::export::ledger::Ledger;
use crate::export::traffic::Traffic;
use crate::export::{Outputs, Sink, enqueue_metrics};
use crate::model::values::{self, Signal};
use crate::telemetry::record::{SCHEMA_URL, SCOPE, VERSION};

/// Starts to observe and to export.
pub fn start(settings: &Settings, resource: Resource, outputs: &Outputs) -> SdkMeterProvider {
    let exporter = Exporter {
        sinks: outputs.sinks.iter().filter(|sink| sink.signal == Signal::Metrics).cloned().collect(),
        ledger: outputs.ledger.clone(),
        temporality: match settings.temporality {
            values::Temporality::Cumulative => Temporality::Cumulative,
            values::Temporality::Delta => Temporality::Delta,
            values::Temporality::LowMemory => Temporality::LowMemory,
        },
    };
    let reader = PeriodicReader::builder(exporter).with_interval(settings.metric_interval).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
    let scope = InstrumentationScope::builder(SCOPE).with_version(VERSION).with_schema_url(SCHEMA_URL).build();
    let meter = provider.meter_with_scope(scope);
    observe(&meter, &outputs.ledger);
    for traffic in &outputs.traffic {
        observe_exporter(&meter, traffic, &outputs.ledger);
    }
    provider
}

fn observe(meter: &Meter, ledger: &Arc<Ledger>) {
    type Count = fn(&Ledger) -> u64;
    let counters: [(&'static str, &'static str, Count); 5] = [
        ("mqspan.calls.captured", "Calls whose entry and exit were seen.", |ledger| ledger.totals().captured),
        ("mqspan.calls.exported", "Calls that an output accepted.", |ledger| ledger.totals().exported),
        ("mqspan.calls.filtered", "Calls that a filter refused.", |ledger| ledger.totals().filtered),
        ("mqspan.calls.limited", "Calls left out by the rate limit.", |ledger| ledger.totals().limited),
        ("mqspan.calls.unpaired", "Exits without an entry.", |ledger| ledger.totals().unpaired),
    ];
    for (name, description, count) in counters {
        counter(meter, ledger, (name, "{call}", description), move |ledger, observe| observe(count(ledger), &[]));
    }
    let lost = ("mqspan.calls.lost", "{call}", "Calls lost, by the stage of their way.");
    counter(meter, ledger, lost, |ledger, observe| {
        for (stage, calls) in ledger.totals().lost {
            observe(calls, &[KeyValue::new("stage", stage)]);
        }
    });
    let failures = "Spans that applications published and that could not be taken, by the reason.";
    counter(meter, ledger, ("mqspan.context.failures", "{failure}", failures), |ledger, observe| {
        for (reason, failures) in ledger.context_failures() {
            observe(failures, &[KeyValue::new("reason", reason)]);
        }
    });
    let records = "Spans, log records and metric points, by what became of them.";
    counter(meter, ledger, ("mqspan.export.records", "{record}", records), |ledger, observe| {
        for (name, totals) in ledger.totals().outputs {
            let (output, signal) = name.rsplit_once('.').unwrap_or((&name, ""));
            for (outcome, count) in [("sent", totals.sent), ("rejected", totals.rejected), ("lost", totals.lost)] {
                let attributes = [
                    KeyValue::new("output", output.to_owned()),
                    KeyValue::new("signal", signal.to_owned()),
                    KeyValue::new("outcome", outcome),
                ];
                observe(count, &attributes);
            }
        }
    });
}

/// A counter that is observed from the ledger, by its name, unit and description.
fn counter(
    meter: &Meter,
    ledger: &Arc<Ledger>,
    (name, unit, description): (&'static str, &'static str, &'static str),
    observe: impl Fn(&Ledger, &mut dyn FnMut(u64, &[KeyValue])) + Send + Sync + 'static,
) {
    let ledger = ledger.clone();
    meter
        .u64_observable_counter(name)
        .with_unit(unit)
        .with_description(description)
        .with_callback(move |observer| observe(&ledger, &mut |count, attributes| observer.observe(count, attributes)))
        .build();
}

/// The conventions' metrics of SDK components, of the exporter of a signal. The processors' queues are bounded in bytes,
/// not in records, and so have none.
fn observe_exporter(meter: &Meter, traffic: &Arc<Traffic>, ledger: &Arc<Ledger>) {
    let (signal, unit) = match traffic.signal {
        Signal::Traces => ("span", "{span}"),
        Signal::Logs => ("log", "{log_record}"),
        Signal::Metrics => ("metric_data_point", "{data_point}"),
    };
    let (component, in_flight) = (traffic.component(), traffic.clone());
    meter
        .i64_observable_up_down_counter(format!("otel.sdk.exporter.{signal}.inflight"))
        .with_unit(unit)
        .with_description("Records that were passed to the exporter, and are not settled yet.")
        .with_callback(move |observer| observer.observe(in_flight.in_flight().cast_signed(), &component))
        .build();
    let (component, ledger, output) = (traffic.component(), ledger.clone(), format!("otlp.{}", traffic.signal.name()));
    meter
        .u64_observable_counter(format!("otel.sdk.exporter.{signal}.exported"))
        .with_unit(unit)
        .with_description("Records whose export has ended, with error.type where it failed.")
        .with_callback(move |observer| {
            let totals = ledger.totals();
            let Some(totals) = totals.outputs.get(&output) else { return };
            observer.observe(totals.sent, &component);
            for (error, count) in [("rejected", totals.rejected), ("lost", totals.lost)] {
                let [name, kind] = component.clone();
                observer.observe(count, &[name, kind, KeyValue::new("error.type", error)]);
            }
        })
        .build();
    let durations = meter
        .f64_histogram("otel.sdk.exporter.operation.duration")
        .with_unit("s")
        .with_description("How long an attempt to export took.")
        .with_boundaries(vec![0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0])
        .build();
    traffic.record_durations(durations);
}

/// Gives what the SDK collected to the sinks of the signal.
struct Exporter {
    sinks: Vec<Sink>,
    ledger: Arc<Ledger>,
    temporality: Temporality,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("sinks", &self.sinks).finish_non_exhaustive()
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let request = ExportMetricsServiceRequest::from(metrics);
        enqueue_metrics(&self.sinks, &self.ledger, &request, self.temporality == Temporality::Cumulative);
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        self.temporality
    }
}
