//! mqspan shows what POSIX message queues do, as OpenTelemetry spans and log records, with no change to the programs
//! that use them.
//!
//! The way of a call: `bpf/` makes a record of it in the kernel; [`bpf`] takes it from the ring, [`event`] decodes it,
//! [`process`] says who made it, [`telemetry`] writes it as OTLP, and [`export`] delivers it. [`pipeline`] puts these
//! together; the program in `main.rs` carries out what [`cli`] and [`config`] ask for.

pub mod bpf;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod event;
pub mod export;
pub mod health;
pub mod internal;
pub mod links;
pub mod meter;
pub mod metrics;
pub mod pipeline;
pub mod process;
pub mod run;
pub mod telemetry;
