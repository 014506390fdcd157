//! mqspan in a pid namespace that is not the first, as in containers, WSL2 and kind; and ipc namespaces that come and go.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use support::{
    otlp::{self, int, text},
    program::{Ended, Mqspan, Tracing, finish, without_otel},
    queues::Held,
    wait,
};

use crate::mqspan;

/// `mqspan run` with these arguments as the first process of a pid namespace of its own, with its /proc.
fn in_pid_namespace(mqspan: &Mqspan, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(mqspan.path()).arg("run").args(args);
    command.stdin(Stdio::null());
    without_otel(&mut command);
    command
}

/// Prevents a command from being taken for another process, by a number of another namespace: 0 of 5 calls were told.
#[test]
fn a_command_in_a_pid_namespace() -> Result<()> {
    let mqspan = mqspan()?;
    let (spans, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
    let script = "\"$0\" flat --calls 5; (\"$0\" flat --calls 2)";
    let args = ["--signals=traces", &spans, "--", "bash", "-c", script, &workload];
    Ended::of(finish(in_pid_namespace(&mqspan, &args))?).ok()?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    ensure!(spans.len() == 7, "{} spans of 7", spans.len());
    Ok(())
}

/// Prevents `--pid` from meaning the numbers of another namespace, where mqspan can't see these.
#[test]
fn a_pid_in_a_pid_namespace() -> Result<()> {
    let mqspan = mqspan()?;
    let spans = mqspan.to_file("spans");
    let script = r#"
        mkfifo "$2/go"
        (read < "$2/go"; exec "$1" flat --calls 3) & wanted=$!
        "$0" run --signals=traces --pid "$wanted" "$3" 2> "$2/said" & tracing=$!
        until grep -q tracing "$2/said"; do sleep 0.05; done
        "$1" flat --calls 4
        echo > "$2/go"
        wait "$wanted"
        kill -INT "$tracing"
        wait "$tracing""#;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]);
    command.arg(mqspan.path()).arg(mqspan.workload()).arg(mqspan.file("")).arg(spans).stdin(Stdio::null());
    without_otel(&mut command);
    Ended::of(finish(command)?).ok()?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    ensure!(spans.len() == 3, "{} spans of the 3 of that process", spans.len());
    Ok(())
}

/// A process that makes a call for each line that it is given.
struct Caller(std::process::Child);

impl Caller {
    fn start(mqspan: &Mqspan) -> Result<Self> {
        let mut command = Command::new(mqspan.workload());
        let mut child = command.args(["publish", "caller"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        Ok(Self(child))
    }

    fn call(&mut self) -> Result<()> {
        Ok(self.0.stdin.as_mut().context("no stdin")?.write_all(b"call\n")?)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It ends when its stdin does.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The cumulative counts of a process's calls, one for each collection that has it.
fn counts(mqspan: &Mqspan, pid: u32) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for of in otlp::metrics(&mqspan.file("metrics"))?.into_iter().flat_map(|request| request.resource_metrics) {
        let resource = otlp::attributes(&of.resource.unwrap_or_default().attributes)?;
        if int(&resource, "process.pid") != Some(pid.into()) {
            continue;
        }
        for metric in of.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            if let (Some(Data::ExponentialHistogram(data)), "messaging.client.operation.duration") =
                (metric.data, &*metric.name)
            {
                counts.push(data.data_points.iter().map(|point| point.count).sum());
            }
        }
    }
    Ok(counts)
}

/// Prevents the streams of a process that mqspan's /proc does not show from beginning anew after each interval without a
/// call of it: counts were 1, 1, 1, 1.
#[test]
fn streams_of_processes_outside() -> Result<()> {
    let mqspan = mqspan()?;
    let metrics = mqspan.to_file("metrics");
    let mut command = in_pid_namespace(&mqspan, &["--signals=metrics", &metrics]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let tracing = Tracing::start(command)?;
    let mut caller = Caller::start(&mqspan)?;
    let pid = caller.0.id();
    for made in 1..=4 {
        caller.call()?;
        // Then some collections without a call.
        let enough = wait::until("some collections", || {
            let found = counts(&mqspan, pid)?;
            Ok((found.iter().filter(|count| **count == made).count() >= 3).then_some(()))
        });
        enough.with_context(|| format!("{made} calls: {:?}", counts(&mqspan, pid)))?;
    }
    drop(caller);
    let found = counts(&mqspan, pid)?;
    ensure!(found.is_sorted(), "they began anew: {found:?}");
    // unshare passes on nothing; its child is the first of the namespace.
    drop(tracing);
    Ok(())
}

/// The queues that have a depth in the last collection.
fn queues(mqspan: &Mqspan) -> Result<BTreeSet<String>> {
    let (mut latest, mut queues) = (0, BTreeSet::new());
    let requests = otlp::metrics(&mqspan.file("metrics"))?;
    let of_scopes = requests.into_iter().flat_map(|request| request.resource_metrics).flat_map(|of| of.scope_metrics);
    for metric in of_scopes.flat_map(|of| of.metrics) {
        let Some(Data::Gauge(gauge)) = metric.data else { continue };
        for point in gauge.data_points {
            if point.time_unix_nano > latest {
                latest = point.time_unix_nano;
                queues.clear();
            }
            let name = text(&otlp::attributes(&point.attributes)?, "messaging.destination.name").map(str::to_owned);
            if metric.name == "posix_mq.queue.depth" && point.time_unix_nano == latest {
                queues.extend(name);
            }
        }
    }
    Ok(queues)
}

/// Prevents the gauges of a queue from going on for ever when it goes without mq_unlink: with its ipc namespace, or by
/// unlink(2).
#[test]
fn queues_that_end_without_a_call() -> Result<()> {
    let mqspan = mqspan()?;
    let metrics = mqspan.to_file("metrics");
    let mut command = mqspan.command(["run", "--signals=metrics", &metrics]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let tracing = Tracing::start(command)?;
    // One that stays, so that there is always a collection with gauges.
    let held = Held::start(&mqspan, "mqspan-test-stays")?;
    let script = r#"
        mount -t mqueue none /dev/mqueue
        coproc "$0" hold --name mqspan-test-namespace
        holder=$COPROC_PID
        read -u "${COPROC[0]}"
        echo "$REPLY"; read
        rm /dev/mqueue/mqspan-test-namespace-empty
        kill -KILL $holder; wait $holder
        echo unlinked; read"#;
    let mut holder = Command::new("unshare");
    without_otel(&mut holder);
    holder.args(["--ipc", "--mount", "bash", "-c", script]).arg(mqspan.workload());
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (mut go, mut said) =
        (holder.stdin.take().context("no stdin")?, BufReader::new(holder.stdout.take().context("")?));
    let mut line = String::new();
    let (full, empty) = ("/mqspan-test-namespace-full", "/mqspan-test-namespace-empty");
    let has = |queue: &str, expected: bool| {
        wait::until("the gauges", || Ok((queues(&mqspan)?.contains(queue) == expected).then_some(())))
            .with_context(|| format!("{queue} there: {expected}"))
    };
    said.read_line(&mut line)?;
    has(full, true)?;
    has(empty, true)?;
    go.write_all(b"\n")?;
    while !line.contains("unlinked") {
        line.clear();
        ensure!(said.read_line(&mut line)? > 0, "the holder has ended");
    }
    has(empty, false).context("unlinked by unlink(2), and held open by nobody")?;
    has(full, true).context("it has its name still")?;
    drop(go);
    holder.wait()?;
    has(full, false).context("its namespace has ended")?;
    held.let_go()?;
    tracing.stop()?.ok().map(drop)
}
