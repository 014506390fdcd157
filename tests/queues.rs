//! The state of queues: depth, peak, capacity and threads that wait, as the workload made it. Needs root and tracefs.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
use support::{
    otlp::{self, int, text},
    program::{Mqspan, Tracing, without_otel},
    ready, wait,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// The workload while it holds its queues: /NAME-full has 3 of 8 messages, 5 at its peak; 3 threads wait for a message of
/// /NAME-empty.
struct Held(Child);

impl Held {
    fn start(mqspan: &Mqspan, name: &str) -> Result<Self> {
        let mut command = Command::new(mqspan.workload());
        command.args(["hold", "--name", name, "--maxmsg=8", "--sent=5", "--received=2", "--waiting=3"]);
        without_otel(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        ensure!(line == "held\n", "{line:?}");
        Ok(Self(child))
    }

    fn let_go(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// The last values of the gauges, by name and queue, with the operation where there is one.
fn gauges(mqspan: &Mqspan) -> Result<BTreeMap<String, i64>> {
    let mut values = BTreeMap::new();
    let requests = otlp::metrics(&mqspan.file("metrics"))?;
    let of_resources = requests.iter().flat_map(|request| &request.resource_metrics);
    for metric in of_resources.flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let Some(Data::Gauge(gauge)) = &metric.data else { continue };
        for point in &gauge.data_points {
            let attributes = otlp::attributes(&point.attributes)?;
            let Some(queue) = text(&attributes, "messaging.destination.name") else { continue };
            ensure!(int(&attributes, "posix_mq.ipc_namespace") == Some(ready::ipc_namespace()?), "{attributes:?}");
            let operation = text(&attributes, "messaging.operation.name").map(|name| format!(" {name}"));
            let Some(number_data_point::Value::AsInt(value)) = point.value else { continue };
            let last =
                values.entry(format!("{} {queue}{}", metric.name, operation.unwrap_or_default())).or_insert(value);
            // A peak is of one interval only.
            *last = if metric.name == "posix_mq.queue.peak_depth" { value.max(*last) } else { value };
        }
    }
    Ok(values)
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
        last = gauges(mqspan)?;
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
