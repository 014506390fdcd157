//! The OpenTelemetry Collector.
