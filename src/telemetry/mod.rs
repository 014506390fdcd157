//! A call as OpenTelemetry shows it: what is said of it ([`view`]), as a span or log record ([`record`]), written as
//! OTLP ([`protobuf`], [`json`]; what many calls have in common once for all, [`common`]) or as a line ([`console`]). Pure
//! code; who made the call comes in as a Resource.

pub mod common;
pub mod console;
pub mod json;
pub mod notify;
pub mod oflag;
pub mod protobuf;
pub mod record;
pub mod stuck;
pub mod terms;
pub mod view;

#[cfg(test)]
mod tests;
