//! A call as OpenTelemetry shows it: what is said of it ([`view`]), with its flags as strace
//! shows them and its names as text. Pure code; who made the call is not known here.

pub mod oflag;
pub mod text;
pub mod view;
