//! The state of queues: depth, peak, capacity and threads that wait, as the workload made it. Needs root and tracefs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use support::{
    program::{Mqspan, Tracing},
    queues::{Held, gauges},
    wait,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

fn trace(mqspan: &Mqspan) -> Result<Tracing> {
    let mut command = mqspan.command(["run", "--signals=metrics", &mqspan.to_file("metrics")]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    Tracing::start(command)
}

/// Waits until the gauges are as expected; the error says what they were.
fn become_as_expected(mqspan: &Mqspan, expected: &[(String, i64)]) -> Result<()> {
    let mut last = BTreeMap::new();
    let outcome = wait::until("the gauges", || {
        last = gauges(&mqspan.file("metrics"))?;
        Ok(expected.iter().all(|(key, value)| last.get(key) == Some(value)).then_some(()))
    });
    outcome.with_context(|| format!("expected {expected:?}, found {last:?}"))
}

fn state(name: &str) -> Vec<(String, i64)> {
    [
        ("posix_mq.queue.depth", "full", 3),
        ("posix_mq.queue.capacity", "full", 8),
        ("posix_mq.queue.depth", "empty", 0),
        ("posix_mq.queue.capacity", "empty", 8),
    ]
    .map(|(metric, queue, value)| (format!("{metric} /{name}-{queue}"), value))
    .into_iter()
    .chain([(format!("posix_mq.blocked_threads /{name}-empty mq_timedreceive"), 3)])
    .collect()
}

/// Prevents depth, peak, capacity and waiting threads from being other than they are.
#[test]
fn a_queue_that_is_used_while_tracing() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = trace(&mqspan)?;
    let held = Held::start(&mqspan, "mqspan-test-used")?;
    let peak = ("posix_mq.queue.peak_depth /mqspan-test-used-full".into(), 5);
    let outcome = become_as_expected(&mqspan, &[state("mqspan-test-used"), vec![peak]].concat());
    held.let_go()?;
    outcome?;
    tracing.stop()?.ok().map(drop)
}

/// Prevents a queue that is already stuck when mqspan starts from going unseen, and its threads from not being named.
#[test]
fn a_queue_that_was_there_before() -> Result<()> {
    let mqspan = mqspan()?;
    let held = Held::start(&mqspan, "mqspan-test-before")?;
    let outcome = trace(&mqspan).and_then(|tracing| {
        become_as_expected(&mqspan, &state("mqspan-test-before"))?;
        tracing.stop()?.ok()
    });
    held.let_go()?;
    let ended = outcome?;
    let named = ended.stderr.iter().filter(|line| line.contains("/mqspan-test-before-empty")).count();
    ensure!(named == 3, "{named} of 3 waiting threads were named: {:?}", ended.stderr);
    Ok(())
}
