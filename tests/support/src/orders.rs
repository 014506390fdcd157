//! examples/orders as the traced command: few calls, of several kinds, how many is known from its source.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Result, ensure};
use opentelemetry_proto::tonic::{logs::v1::LogRecord, trace::v1::Span};

use crate::{
    otlp::{self, Record, made_by},
    program::{Ended, Mqspan, finish},
};

const ROUNDS: u64 = 10;

/// Its calls by operation and queue.
pub fn calls() -> BTreeMap<(String, String), u64> {
    let passed = ROUNDS + 1;
    [
        // One process creates, the other finds that it is there and opens.
        ("mq_open", "/orders", 3),
        ("mq_open", "/shipments", 3),
        ("mq_open", "/audit", ROUNDS),
        // At the beginning and at the end.
        ("mq_unlink", "/orders", 2),
        ("mq_unlink", "/shipments", 2),
        ("mq_timedsend", "/orders", passed),
        ("mq_timedreceive", "/orders", passed),
        ("mq_timedsend", "/shipments", passed),
        ("mq_timedreceive", "/shipments", passed),
    ]
    .map(|(operation, queue, count)| ((operation.to_owned(), queue.to_owned()), count))
    .into()
}

/// All of them.
pub fn sum() -> u64 {
    calls().values().sum()
}

/// Its program, built with mqspan's.
pub fn program(mqspan: &Mqspan) -> PathBuf {
    mqspan.path().with_file_name("orders")
}

/// Runs mqspan with it as the command, and with these options and variables. Spans, log records and metrics go to OTLP
/// and to the file `own`; every call became a span and a log record there.
pub fn run(mqspan: &Mqspan, args: &[&str], variables: &[(&str, &str)]) -> Result<Ended> {
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--signals=traces,logs,metrics", "--output=otlp", &stats]);
    command.arg(mqspan.to_file("own")).args(args).envs(variables.iter().copied());
    // Its queues have fixed names: in a namespace of its own they are nobody else's.
    command.args(["--", "unshare", "--ipc"]).arg(program(mqspan));
    command.args(["--rounds", &ROUNDS.to_string(), "--pause", "5"]);
    let ended = Ended::of(finish(command)?).ok()?;
    let stats = mqspan.stats()?;
    ensure!(stats.exported == sum() && stats.lost_sum() == 0, "{stats:?}: {ended:?}");
    let mut counted = BTreeMap::new();
    for span in spans(mqspan)? {
        let name = |key| span.text(key).unwrap_or_default().to_owned();
        *counted.entry((name("messaging.operation.name"), name("messaging.destination.name"))).or_default() += 1;
    }
    ensure!(counted == calls(), "{counted:?}");
    ensure!(logs(mqspan)?.len() as u64 == sum(), "log records");
    Ok(ended)
}

/// Its spans in mqspan's own file of the run.
pub fn spans(mqspan: &Mqspan) -> Result<Vec<Record<Span>>> {
    Ok(made_by(otlp::spans(&mqspan.file("own"))?, &program(mqspan)))
}

/// Its log records there.
pub fn logs(mqspan: &Mqspan) -> Result<Vec<Record<LogRecord>>> {
    Ok(made_by(otlp::logs(&mqspan.file("own"))?, &program(mqspan)))
}
