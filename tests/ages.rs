//! How old the message is that would be received next. By itself: by tracepoints, threads of other tests whose receive began before
//! mqspan leave the order of calls in doubt when they end. Needs root and tracefs.

use anyhow::Result;
use support::{
    ages::{self, OldMessage},
    program::{Mqspan, Tracing},
};

/// Prevents the age of the message that would be received next from being that of another, from standing still when nobody
/// calls any more, and from being claimed where no send was seen.
#[test]
fn the_oldest_message() -> Result<()> {
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let early = OldMessage::send("/mqspan-test-oldest-before")?;
    let mut command = mqspan.command(["run", "--signals=metrics", &mqspan.to_file("metrics")]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let tracing = Tracing::start(command)?;
    let outcome = ages::check(&mqspan.file("metrics"), "/mqspan-test-oldest");
    outcome.and_then(|()| early.check(&mqspan.file("metrics")))?;
    tracing.stop()?.ok().map(drop)
}
