//! Publishes the span that each thread is in (OTEP 4947), as often as OpenTelemetry's context changes. To copy: this
//! file, build.rs, and the dependencies on libdd-otel-thread-ctx and opentelemetry's `experimental_context_observer`.

use std::sync::Arc;

use libdd_otel_thread_ctx::linux::OwnedThreadContext;
use opentelemetry::{
    Context,
    context::{ContextObserver, GlobalContextObserver},
    trace::TraceContextExt,
};

struct Publisher;

impl Publisher {
    fn publish(context: &Context) {
        let span = context.span();
        let span = span.span_context();
        if span.is_valid() {
            let (trace_id, span_id) = (span.trace_id().to_bytes(), span.span_id().to_bytes());
            OwnedThreadContext::update(trace_id, span_id, span.trace_flags().to_u8(), span_id, &[]);
        } else {
            drop(OwnedThreadContext::detach());
        }
    }
}

impl ContextObserver for Publisher {
    fn on_context_enter(&self, _from: &Context, to: &Context) {
        Self::publish(to);
    }

    fn on_context_exit(&self, _from: &Context, to: &Context) {
        Self::publish(to);
    }
}

/// From now on every thread publishes its span.
pub fn start() {
    GlobalContextObserver::set(Arc::new(Publisher));
}
