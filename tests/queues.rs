//! The state of queues: depth, peak, capacity and threads that wait, as the workload made it. Needs root and tracefs.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use nix::mqueue::mq_unlink;
use support::{
    otlp::{self, Value},
    program::{Mqspan, Tracing},
    queues::{Held, gauges},
    wait,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

fn trace(mqspan: &Mqspan, signals: &str) -> Result<Tracing> {
    let mut command = mqspan.command(["run", signals, &mqspan.to_file("metrics")]);
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
    let tracing = trace(&mqspan, "--signals=metrics")?;
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
    let outcome = trace(&mqspan, "--signals=metrics").and_then(|tracing| {
        become_as_expected(&mqspan, &state("mqspan-test-before"))?;
        tracing.stop()?.ok()
    });
    held.let_go()?;
    let ended = outcome?;
    let named = ended.stderr.iter().filter(|line| line.contains("/mqspan-test-before-empty")).count();
    ensure!(named == 3, "{named} of 3 waiting threads were named: {:?}", ended.stderr);
    Ok(())
}

/// The gauges of the last collection alone.
fn last_gauges(mqspan: &Mqspan) -> Result<BTreeMap<String, i64>> {
    let (all, last) = (mqspan.file("metrics"), mqspan.file("last"));
    let text = fs::read_to_string(all)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = whole.lines().rfind(|line| line.contains("posix_mq.queue.depth"));
    fs::write(&last, line.map(|line| format!("{line}\n")).unwrap_or_default())?;
    gauges(&last)
}

/// Prevents threads that are killed where they wait from being shown as waiting for ever, and their calls from having no
/// span.
#[test]
fn threads_that_are_killed() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = trace(&mqspan, "--signals=traces,metrics")?;
    let held = Held::start(&mqspan, "mqspan-test-killed")?;
    let waiting = become_as_expected(&mqspan, &state("mqspan-test-killed"));
    held.kill()?;
    let outcome = waiting.and_then(|()| {
        wait::until("a collection without them", || {
            let last = last_gauges(&mqspan)?;
            let blocked = last.get("posix_mq.blocked_threads /mqspan-test-killed-empty mq_timedreceive");
            let is_told = last.contains_key("posix_mq.queue.depth /mqspan-test-killed-empty");
            // Where some thread of the host may not be looked at there is no zero.
            Ok((is_told && blocked.is_none_or(|threads| *threads == 0)).then_some(()))
        })
    });
    for queue in ["full", "empty"] {
        mq_unlink(&*format!("/mqspan-test-killed-{queue}"))?;
    }
    outcome?;
    tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("metrics"))?;
    let ended: Vec<_> = spans
        .iter()
        .filter(|span| span.body.name == "mq_timedreceive /mqspan-test-killed-empty")
        .map(|span| (span.text("posix_mq.errno"), span.attributes.get("posix_mq.blocked")))
        .collect();
    ensure!(ended == [(Some("ERESTARTSYS"), Some(&Value::Bool(true))); 3], "{ended:?}");
    Ok(())
}
