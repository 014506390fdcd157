//! The outputs of the signal metrics, as the meter sees them.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;

use super::meter::Outlet;
use crate::export::batch::Encoding;
use crate::export::ledger::{Ledger, Share};
use crate::export::{Form, Sink, metrics};

/// One output.
#[derive(Debug)]
pub struct SinkOutlet {
    sink: Sink,
    encoding: Encoding,
    ledger: Arc<Ledger>,
}

impl SinkOutlet {
    /// The output behind a sink, where it takes requests at all.
    pub fn of(sink: Sink, ledger: &Arc<Ledger>) -> Option<Self> {
        let Form::Otlp(encoding) = sink.form else { return None };
        Some(Self { sink, encoding, ledger: ledger.clone() })
    }
}

impl Outlet for SinkOutlet {
    fn is_waiting(&self) -> bool {
        self.sink.is_waiting()
    }

    fn enqueue(&self, request: &ExportMetricsServiceRequest, points: u64) {
        let share = Share::of_metrics(&self.ledger, self.sink.output, points);
        self.sink.enqueue_metrics(metrics::encode(self.encoding, request).into(), share);
    }
}
