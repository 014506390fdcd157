//! Metrics of the calls on their way to the outputs: readings from the kernel side get their names, pass the filters
//! on names, and leave as requests.

use std::collections::HashMap;
use std::sync::Arc;

use nix::time::ClockId;
use prost::Message;

use crate::clock;
use crate::config::MetricLimits;
use crate::config::filter::Filters;
use crate::config::values::Temporality;
use crate::event::{ImageKey, Name};
use crate::export::Sink;
use crate::export::batch::Encoding;
use crate::export::ledger::{Ledger, Share};
use crate::export::{Form, points};
use crate::metrics::otlp;
use crate::metrics::reading::{Measure, Reading};
use crate::metrics::streams::{Destination, Streams};
use crate::process::host;
use crate::telemetry::record::Resource;
use crate::telemetry::text::utf8;

/// So many names are remembered; beyond them, those that were in use at the last collection.
const NAMES: usize = 16_384;

/// What makes metrics of readings.
#[derive(Debug)]
pub struct Meter {
    streams: Streams,
    sinks: Vec<Sink>,
    ledger: Arc<Ledger>,
    filters: Arc<Filters>,
    names: HashMap<u64, Known>,
    /// Whether calls have no records, so that they are counted here.
    alone: bool,
}

#[derive(Debug)]
struct Known {
    /// With its slash.
    name: Arc<str>,
    used: bool,
}

impl Meter {
    /// A meter that gives to these sinks. `own` is mqspan's Resource; `alone` where calls make no records.
    pub fn new(
        sinks: Vec<Sink>,
        ledger: Arc<Ledger>,
        filters: Arc<Filters>,
        limits: MetricLimits,
        temporality: Temporality,
        own: Arc<Resource>,
        alone: bool,
    ) -> Self {
        let cumulative = temporality == Temporality::Cumulative;
        Self {
            streams: Streams::new(limits, cumulative, own, now_ns()),
            sinks,
            ledger,
            filters,
            names: HashMap::new(),
            alone,
        }
    }

    /// Remembers the name behind a number.
    pub fn name(&mut self, name: Name) {
        if self.names.len() >= NAMES {
            self.names.retain(|_, known| known.used);
        }
        let known = Known { name: format!("/{}", utf8(&name.bytes)).into(), used: true };
        self.names.insert(name.number, known);
    }

    /// Takes what was added since the last time, and hands over what there is to tell.
    pub fn collect(&mut self, readings: Vec<Reading>, mut resource: impl FnMut(ImageKey) -> Arc<Resource>) {
        self.names.values_mut().for_each(|known| known.used = false);
        for reading in readings {
            let name = self.names.get_mut(&reading.name).map(|known| {
                known.used = true;
                known.name.clone()
            });
            let Filters { queue, comm, .. } = &*self.filters;
            // What found no room for a series of its own has neither name nor thread.
            let passes = reading.image.is_none()
                || queue.keeps_name(name.as_deref()) && comm.keeps_name(Some(&utf8(&reading.comm)));
            if self.alone && reading.measure == Measure::Duration {
                self.ledger.aggregated(reading.points.count(), passes);
            }
            if passes {
                self.streams.add(&reading, name.map(Destination::Name), &mut resource);
            }
        }
        let now_ns = now_ns();
        if let Some(request) = otlp::request(&self.streams, now_ns) {
            let records = points(&request);
            for sink in &self.sinks {
                let body = match sink.form {
                    // What is made of integers, strings and floats has no value that JSON lacks.
                    Form::Otlp(Encoding::Json) => serde_json::to_vec(&request).unwrap_or_default(),
                    _ => request.encode_to_vec(),
                };
                sink.hand_over(body.into(), Share::of_metrics(&self.ledger, sink.output, records));
            }
        }
        self.streams.exported(now_ns, |key| !host::is_running(key));
    }
}

fn now_ns() -> u64 {
    clock::now_ns(ClockId::CLOCK_REALTIME).unsigned_abs()
}
