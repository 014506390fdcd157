//! Metrics of the calls: the series that the kernel side adds up ([`reading`], in the [`buckets`] of OTLP) become
//! streams for each process, bounded ([`streams`]), and those a request ([`otlp`]). Pure code.

pub mod buckets;
pub mod otlp;
pub mod reading;
pub mod streams;
