//! mqspan shows what POSIX message queues do, as OpenTelemetry spans and log records, with no change to the programs
//! that use them.
//!
//! The way of a call: `bpf/` makes a record of it in the kernel; [`kernel`] takes it from the ring and decodes it,
//! [`who`] says who made it, [`telemetry`] writes it as OTLP, and [`export`] delivers it. [`run`] puts these
//! together; the program in `main.rs` carries out what [`cli`] and [`config`] ask for.

pub mod capability;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod export;
pub mod health;
pub mod internal;
pub mod kernel;
pub mod links;
pub mod live;
pub mod metrics;
pub mod model;
pub mod names;
pub mod overview;
pub mod progress;
pub mod report;
pub mod run;
pub mod telemetry;
pub mod top;
pub mod who;
