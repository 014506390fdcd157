//! Metrics of the calls: the series that the kernel side adds up become streams for each process, bounded ([`streams`]),
//! of histograms ([`distribution`]), and those points ([`otlp`]) of requests ([`requests`]), with the state of queues
//! ([`queues`]). How long messages waited is added up here where it is inferred ([`waits`]); [`reservoir`] keeps spans that
//! may show what is behind a point. [`intake`] is what other threads add to. Pure code.

pub mod distribution;
pub mod intake;
pub mod otlp;
pub mod queues;
pub mod requests;
pub mod reservoir;
pub mod streams;
pub mod waits;
