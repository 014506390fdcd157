//! What is there now: threads that wait and descriptors that are open, from the kernel's own lists. Needs root and tracefs.

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
    wait,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// A gauge by its metric, ipc namespace, queue, and operation or access.
type Key = (String, i64, String, String);

/// The gauges of the last collection in the file, of queues whose names begin so.
fn last(mqspan: &Mqspan, prefix: &str) -> Result<BTreeMap<Key, i64>> {
    let mut by_time: BTreeMap<u64, BTreeMap<Key, i64>> = BTreeMap::new();
    let requests = otlp::metrics(&mqspan.file("metrics"))?;
    let of_resources = requests.iter().flat_map(|request| &request.resource_metrics);
    for metric in of_resources.flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let Some(Data::Gauge(gauge)) = &metric.data else { continue };
        for point in &gauge.data_points {
            let attributes = otlp::attributes(&point.attributes)?;
            let Some(queue) = text(&attributes, "messaging.destination.name").filter(|name| name.starts_with(prefix))
            else {
                continue;
            };
            let which = text(&attributes, "messaging.operation.name").or(text(&attributes, "posix_mq.access"));
            let namespace = int(&attributes, "posix_mq.ipc_namespace").context("no namespace")?;
            let key = (metric.name.clone(), namespace, queue.to_owned(), which.unwrap_or_default().to_owned());
            let Some(number_data_point::Value::AsInt(value)) = point.value else { continue };
            by_time.entry(point.time_unix_nano).or_default().insert(key, value);
        }
    }
    Ok(by_time.pop_last().map(|(_, last)| last).unwrap_or_default())
}

/// The workload while its threads wait; in an ipc namespace of its own where `apart`.
struct Crowd {
    child: Child,
    namespace: i64,
}

const QUEUES: i64 = 34;
const THREADS: i64 = 334;

impl Crowd {
    fn start(mqspan: &Mqspan, name: &str, apart: bool) -> Result<Self> {
        let mut command = match apart {
            true => Command::new("unshare"),
            false => Command::new(mqspan.workload()),
        };
        if apart {
            command.arg("--ipc").arg(mqspan.workload());
        }
        command.args(["crowd", "--name", name]);
        command.args([format!("--queues={QUEUES}"), format!("--threads={THREADS}")]);
        without_otel(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        ensure!(line.trim_end() == "held", "{line:?}");
        let link = std::fs::read_link(format!("/proc/{}/ns/ipc", child.id()))?;
        let number = link.to_string_lossy().chars().filter(char::is_ascii_digit).collect::<String>();
        Ok(Self { child, namespace: number.parse()? })
    }

    /// What the gauges must be while it waits; nothing waits where it has been let go but keeps its queues.
    fn expected(&self, name: &str) -> BTreeMap<Key, i64> {
        let mut all = BTreeMap::new();
        for number in 0..QUEUES {
            let waiting = THREADS / QUEUES + i64::from(number < THREADS % QUEUES);
            let [send, receive] = if number % 2 == 1 { [waiting, 0] } else { [0, waiting] };
            let key = |metric: &str, which: &str| {
                (format!("posix_mq.{metric}"), self.namespace, format!("/{name}-{number}"), which.to_owned())
            };
            all.insert(key("blocked_threads", "mq_timedsend"), send);
            all.insert(key("blocked_threads", "mq_timedreceive"), receive);
            all.insert(key("queue.descriptors", "read_write"), 1);
            all.insert(key("queue.descriptors", "read"), 0);
            all.insert(key("queue.descriptors", "write"), 0);
            all.insert(key("queue.depth", ""), number % 2);
        }
        all
    }

    fn let_go(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

fn await_gauges(mqspan: &Mqspan, prefix: &str, expected: &BTreeMap<Key, i64>) -> Result<()> {
    let mut found = BTreeMap::new();
    let outcome = wait::until("the gauges", || {
        found = last(mqspan, prefix)?;
        Ok(expected.iter().all(|(key, value)| found.get(key) == Some(value)).then_some(()))
    });
    outcome.with_context(|| {
        let wrong: Vec<_> = expected.iter().filter(|(key, value)| found.get(*key) != Some(value)).take(5).collect();
        format!("{} gauges; wrong: {wrong:?}, {:?}", found.len(), wrong.first().and_then(|(key, _)| found.get(*key)))
    })
}

/// Starts mqspan so that it may look at nobody's /proc but its own kind's.
fn trace_without_ptrace(mqspan: &Mqspan) -> Result<Tracing> {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]).arg(mqspan.path());
    command.args(["run", "--signals=metrics", &mqspan.to_file("metrics")]).stdin(Stdio::null());
    without_otel(&mut command);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "300");
    Tracing::start(command)
}

/// Prevents a thread that waits, or a descriptor, from being missed or counted twice: a thousand threads at a hundred queues
/// in three ipc namespaces, whose /proc mqspan may not look at; and what is over from being shown for ever.
#[test]
fn a_thousand_threads() -> Result<()> {
    let mqspan = mqspan()?;
    let name = "mqspan-test-crowd";
    let before = [Crowd::start(&mqspan, name, false)?, Crowd::start(&mqspan, name, true)?];
    let tracing = trace_without_ptrace(&mqspan)?;
    let after = Crowd::start(&mqspan, name, true)?;
    let crowds: Vec<&Crowd> = before.iter().chain([&after]).collect();
    let expected = crowds.iter().flat_map(|crowd| crowd.expected(name)).collect();
    await_gauges(&mqspan, &format!("/{name}-"), &expected)?;
    let namespaces: Vec<_> = crowds.iter().map(|crowd| crowd.namespace).collect();
    ensure!(namespaces[0] != namespaces[1] && namespaces[1] != namespaces[2], "{namespaces:?}");
    after.let_go()?;
    // Its queues are gone, with all that was said of them.
    wait::until("the end of its queues", || {
        let found = last(&mqspan, &format!("/{name}-"))?;
        Ok((!found.is_empty() && found.keys().all(|key| key.1 != namespaces[2])).then_some(()))
    })?;
    before.into_iter().try_for_each(Crowd::let_go)?;
    let ended = tracing.stop()?.ok()?;
    let named = ended.stderr.iter().filter(|line| line.contains(&format!("/{name}-")) && line.contains("already"));
    // In no way limited by whose /proc may be looked at.
    let named = named.count() as i64;
    ensure!(named == 2 * THREADS, "{named} threads were named at the start");
    Ok(())
}

/// Prevents threads that were seen to wait from being shown as waiting when they do no more, and a queue that nobody reads
/// from looking like one that somebody does.
#[test]
fn back_to_zero() -> Result<()> {
    let mqspan = mqspan()?;
    let name = "mqspan-test-zero";
    let held = support::queues::Held::start(&mqspan, name)?;
    let writer = std::fs::OpenOptions::new().write(true).open(format!("/dev/mqueue/{name}-full"))?;
    let tracing = trace_without_ptrace(&mqspan)?;
    let namespace = support::ready::ipc_namespace()?;
    let key = |metric: &str, queue: &str, which: &str| {
        (format!("posix_mq.{metric}"), namespace, format!("/{name}-{queue}"), which.to_owned())
    };
    let waiting = key("blocked_threads", "empty", "mq_timedreceive");
    let [both, only_writes] = ["read_write", "write"].map(|access| key("queue.descriptors", "full", access));
    let mut expected = BTreeMap::from([(waiting.clone(), 3), (both.clone(), 1), (only_writes.clone(), 1)]);
    await_gauges(&mqspan, &format!("/{name}-"), &expected)?;
    // Its queues stay.
    held.kill()?;
    expected.extend([(waiting, 0), (both, 0)]);
    await_gauges(&mqspan, &format!("/{name}-"), &expected)?;
    drop(writer);
    expected.extend([(only_writes, 0)]);
    await_gauges(&mqspan, &format!("/{name}-"), &expected)?;
    for queue in ["full", "empty"] {
        nix::mqueue::mq_unlink(&*format!("/{name}-{queue}"))?;
    }
    tracing.stop()?.ok().map(drop)
}
