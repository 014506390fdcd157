//! What is there now: threads that wait and descriptors that are open, from the kernel's own lists. Needs root and tracefs.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
use support::{
    otlp::{self, Value, int, text},
    program::{Mqspan, Tracing, without_otel},
    wait,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// A copy of what mqspan has written so far, without the line that it is writing.
fn written(mqspan: &Mqspan, name: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(mqspan.file(name))?;
    let copy = mqspan.file(&format!("{name}-so-far"));
    std::fs::write(&copy, text.rsplit_once('\n').map_or("", |(whole, _)| whole))?;
    Ok(copy)
}

/// A gauge by its metric, ipc namespace, queue, and operation or access.
type Key = (String, i64, String, String);

/// The gauges of the last collection in the file, of queues whose names begin so.
fn last(mqspan: &Mqspan, prefix: &str) -> Result<BTreeMap<Key, i64>> {
    let mut by_time: BTreeMap<u64, BTreeMap<Key, i64>> = BTreeMap::new();
    let requests = otlp::metrics(&written(mqspan, "metrics")?)?;
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

/// A command that sees of /proc what it may look at, which is nobody with more privileges than its own.
fn without_others() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t proc -o hidepid=ptraceable proc /proc && exec \"$@\"", "sh"]);
    command.args(["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]);
    command
}

/// Starts mqspan so that others hide from it in /proc.
fn trace_without_ptrace(mqspan: &Mqspan) -> Result<Tracing> {
    let mut command = without_others();
    command.arg(mqspan.path()).args(["run", "--signals=metrics", &mqspan.to_file("metrics")]).stdin(Stdio::null());
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
    for Crowd { child, .. } in &crowds {
        let shown = without_others().args(["test", "-e", &format!("/proc/{}", child.id())]).status()?;
        ensure!(!shown.success(), "a crowd shows in /proc");
    }
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
    // The first of those that came after may be there at mqspan's look, too.
    let waited_before = before.each_ref().map(|crowd| format!("[{}/", crowd.child.id()));
    before.into_iter().try_for_each(Crowd::let_go)?;
    let ended = tracing.stop()?.ok()?;
    let named = ended.stderr.iter().filter(|line| {
        line.contains(&format!("/{name}-"))
            && line.contains("already")
            && waited_before.iter().any(|process| line.contains(process))
    });
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

/// What is said of a call.
#[derive(Debug)]
struct Told {
    tid: u32,
    body: String,
    duration: Option<f64>,
    returned: Option<i64>,
    peers: Option<Value>,
}

/// What is said of calls that are stuck, on queues of this name.
fn stuck(mqspan: &Mqspan, queue: &str) -> Result<Vec<Told>> {
    let logs = otlp::logs(&written(mqspan, "logs")?)?;
    let of_queue = logs
        .into_iter()
        .filter(|log| log.body.event_name == "posix_mq.stuck" && log.text("messaging.destination.name") == Some(queue));
    of_queue
        .map(|log| {
            let body = otlp::body(&log.body).context("no body")?.to_owned();
            let returned = log.int("posix_mq.return_value");
            ensure!(returned.is_none_or(|bytes| log.int("messaging.message.body.size") == Some(bytes)), "{log:?}");
            ensure!(log.int("posix_mq.receive.buffer_size") == Some(16), "{log:?}");
            let duration = log.double("posix_mq.duration");
            Ok(Told { tid: log.tid()?, body, duration, returned, peers: log.attributes.get("posix_mq.peers").cloned() })
        })
        .collect()
}

/// Prevents a call that hangs from going unseen while it does, one that began before mqspan among them, from being told more
/// than once, and those who could unblock it from not being named.
#[test]
fn calls_that_are_stuck() -> Result<()> {
    let mqspan = mqspan()?;
    let (before, after) = ("mqspan-test-stuck-before", "mqspan-test-stuck-after");
    let early = support::queues::Held::start(&mqspan, before)?;
    let writer = std::fs::OpenOptions::new().write(true).open(format!("/dev/mqueue/{before}-empty"))?;
    let options = ["--signals=logs", "--stuck=400ms", "--max-rate=0", "--output=console", &mqspan.to_file("logs")];
    let tracing = mqspan.trace(options)?;
    let late = support::queues::Held::start(&mqspan, after)?;
    let queues = [before, after].map(|name| format!("/{name}-empty"));
    let told = |count: usize| {
        wait::until("what is said of them", || {
            let told = queues.iter().map(|queue| stuck(&mqspan, queue)).collect::<Result<Vec<_>>>()?;
            Ok(told.iter().all(|told| told.len() >= count).then_some(told))
        })
    };
    let begun = told(3)?;
    early.let_go()?;
    late.let_go()?;
    let ended = told(6)?;
    let own = format!("{}[{}]", std::fs::read_to_string("/proc/self/comm")?.trim_end(), std::process::id());
    for (queue, (begun, ended)) in queues.iter().zip(begun.iter().zip(&ended)) {
        ensure!(begun.len() == 3 && ended.len() == 6, "{begun:?}, {ended:?}");
        // When a call was entered that began before mqspan the kernel does not tell, nor how it ended.
        let is_before = queue.contains("before");
        for Told { tid, body, duration, peers, .. } in begun {
            let more = if is_before { "more than " } else { "" };
            let starts = format!("mq_timedreceive(\"{queue}\") under way for {more}");
            ensure!(body.starts_with(&starts) && body.contains(": depth 0/8"), "{body:?}");
            let expected = if is_before { vec![own.clone()] } else { Vec::new() };
            ensure!(*peers == Some(Value::Texts(expected)), "{peers:?}, {own}");
            let of_thread: Vec<_> = ended.iter().filter(|told| told.tid == *tid).collect();
            let ends = of_thread.last().context("no end")?;
            ensure!(of_thread.len() == 2 && ends.body.contains(") ended after "), "{of_thread:?}");
            match is_before {
                true => ensure!((duration, ends.duration, ends.returned) == (&None, None, None), "{of_thread:?}"),
                false => ensure!(
                    duration.is_some_and(|so_far| so_far >= 0.4 && ends.duration >= Some(so_far))
                        && ends.returned == Some(1)
                        && ends.body.contains(" = 1 bytes"),
                    "{of_thread:?}"
                ),
            }
        }
    }
    drop(writer);
    let shown = tracing.stop()?.ok()?;
    let lines = shown.lines()?.iter().filter(|line| line.contains(" under way for ")).count();
    ensure!(lines >= 6, "{lines} lines on the console");
    Ok(())
}

/// Prevents a thread that hung before mqspan came from looking as if it had begun to just now, or longer ago than it did.
#[test]
fn calls_that_wait_since_before() -> Result<()> {
    let mqspan = mqspan()?;
    let name = "mqspan-test-since-before";
    let started = Instant::now();
    let held = support::queues::Held::start(&mqspan, name)?;
    let asleep = Instant::now();
    wait::until("the time that they are to have waited", || {
        Ok((asleep.elapsed() >= Duration::from_secs(2)).then_some(()))
    })?;
    let least = asleep.elapsed();
    let queue = format!("/{name}-empty");
    let shown = mqspan.command(["top", "--once", "--format=json", "--interval=1s", "--queue", &queue]).output()?;
    let most = started.elapsed();
    held.let_go()?;
    let view: serde_json::Value = serde_json::from_slice(&shown.stdout).with_context(|| format!("{shown:?}"))?;
    let threads = view["blocked_threads"].as_array().context("no threads")?;
    let waits: Vec<_> = threads.iter().filter_map(|thread| thread["waiting_seconds"].as_f64()).collect();
    // What interrupts and other guests took of the CPU may be missing.
    let right = least.as_secs_f64() * 0.5..=most.as_secs_f64();
    ensure!(waits.len() == 3 && waits.iter().all(|wait| right.contains(wait)), "{waits:?} not in {right:?}: {view}");
    Ok(())
}
