//! Metrics of the calls: the series that the kernel side adds up ([`reading`], in the [`buckets`] of OTLP) become
//! streams for each process, bounded ([`streams`]), and those a request ([`otlp`]), with the state of queues
//! ([`queues`]). How long messages waited is added up here where it is inferred ([`waits`]). Pure code.

pub mod otlp;
pub mod queues;
pub mod streams;
pub mod waits;
