//! mqspan on this machine's kernel. Needs root, tracefs and strace: `make test` runs it, `cargo test` does not. What the
//! kernel shows to strace and what the workload records of its own calls are the oracles.

#[path = "host/check.rs"]
mod check;
#[path = "host/command.rs"]
mod command;
#[path = "host/containers.rs"]
mod containers;
#[path = "host/filters.rs"]
mod filters;
#[path = "host/namespaces.rs"]
mod namespaces;
#[path = "host/oracle.rs"]
mod oracle;
#[path = "host/outputs.rs"]
mod outputs;
#[path = "host/resources.rs"]
mod resources;
#[path = "host/running.rs"]
mod running;

use anyhow::Result;
use support::program::Mqspan;

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// Prevents every other test from failing, or passing, for want of what it needs.
#[test]
fn the_machine_is_as_the_tests_need_it() -> Result<()> {
    mqspan().map(drop)
}
