//! The same calls told the same, by whichever kind of hooks, and whichever kind of caller makes them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::otlp::{Record, Value};

use super::{Run, check, kinds};

pub type Essence = BTreeMap<String, Value>;

const WAIT: &str = "posix_mq.message.wait";
const TIMEOUT: &str = "posix_mq.timeout";
const ABI: &str = "posix_mq.syscall.abi";
/// What it says of 32-bit callers.
const COMPAT: &str = if cfg!(target_arch = "aarch64") { "arm" } else { "ia32" };
const ID: &str = "posix_mq.queue.id";
const OWNER: &str = "posix_mq.notify.owner_pid";

/// What a span says that does not depend on when it was made, by whom, and by which kind of hooks.
fn essence(span: &Record<Span>, varying: &[&str]) -> Result<Essence> {
    let (tid, pid) = (span.tid()?.to_string(), span.pid()?);
    let attributes = span.attributes.iter().filter(|(key, _)| !varying.contains(&&***key));
    let essence = attributes.map(|(key, value)| match value {
        // The workload names some queues after its threads.
        Value::Text(text) => (key.to_string(), Value::Text(text.replace(&tid, "TID"))),
        // It registers itself, and each time it has another number.
        Value::Int(owner) if &**key == OWNER => (key.to_string(), Value::Bool(*owner == i64::from(pid))),
        value => (key.to_string(), value.clone()),
    });
    let status = span.body.status.clone().unwrap_or_default();
    let own =
        [("kind", span.body.kind.to_string()), ("name", span.body.name.clone()), ("status", format!("{status:?}"))];
    Ok(essence.chain(own.map(|(key, text)| (key.into(), Value::Text(text.replace(&tid, "TID"))))).collect())
}

pub fn same(what: &str, expected: &[Essence], found: &[Essence]) -> Result<()> {
    for (number, (left, right)) in expected.iter().zip(found).enumerate() {
        if let Some(key) = left.keys().chain(right.keys()).find(|key| left.get(*key) != right.get(*key)) {
            let (left, right) = (left.get(key), right.get(key));
            bail!("call {number}, {key}: {left:?}, {what} {right:?}");
        }
    }
    ensure!(expected.len() == found.len(), "{} calls, {} {what}", expected.len(), found.len());
    Ok(())
}

/// Prevents a kind of hooks from telling anything else of the same calls than the others do.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn every_kind_tells_the_same() -> Result<()> {
    // Tracepoints infer the wait, and don't see the priority that a caller did not ask for; whether a call waits, and its
    // timeout, depends on when it comes.
    const VARYING: [&str; 6] = ["thread.id", WAIT, "posix_mq.message.priority", TIMEOUT, "posix_mq.blocked", ID];
    let mut told: Vec<(&str, Vec<Essence>)> = Vec::new();
    for kind in kinds() {
        let calls = ["calls", "--seed=5", "--calls=1500", "--threads=1", "--processes=1"];
        let run = Run::new(kind)?.of_workload(&["--signals=traces"], &calls)?;
        run.said(&format!("tracing 6 calls by {kind},"))?;
        let spans = run.all_spans()?;
        println!("{kind}: {} spans", spans.len());
        told.push((kind, spans.iter().map(|span| essence(span, &VARYING)).collect::<Result<_>>()?));
    }
    told.iter().skip(1).try_for_each(|(kind, other)| same(&format!("by {kind}"), &told[0].1, other))
}

fn double(span: &Record<Span>, key: &str) -> Option<f64> {
    match span.attributes.get(key) {
        Some(Value::Double(value)) => Some(*value),
        _ => None,
    }
}

/// The steps' spans, with all that is the same each time: also priorities, waiting, and which receive is linked to which
/// send.
pub fn steps(spans: &[Record<Span>]) -> Result<Vec<Essence>> {
    let numbers: HashMap<_, _> = spans.iter().zip(0..).map(|(span, number)| (&span.body.span_id, number)).collect();
    let of = |span: &Record<Span>| {
        let mut essence = essence(span, &["thread.id", WAIT, TIMEOUT, ABI, ID])?;
        let links: Vec<_> = span.body.links.iter().map(|link| format!("{:?}", numbers.get(&link.span_id))).collect();
        essence.insert("links".into(), Value::Texts(links));
        for key in [WAIT, TIMEOUT] {
            essence.insert(format!("has {key}"), Value::Bool(span.attributes.contains_key(key)));
        }
        Ok(essence)
    };
    spans.iter().map(of).collect()
}

/// The same where receives can't be told from whom.
fn without_messages(steps: &[Essence]) -> Vec<Essence> {
    let mut steps = steps.to_vec();
    for key in ["links", &format!("has {WAIT}")] {
        steps.iter_mut().for_each(|essence| drop(essence.remove(key)));
    }
    steps
}

/// What the steps say by themselves, whoever watches: see tests/workload/src/steps.rs.
fn check_times(spans: &[Record<Span>], knows_messages: bool) -> Result<()> {
    const REST: f64 = 0.1;
    /// How long a machine under emulation may pause.
    const PAUSE: f64 = 5.;
    let within = |value: f64, least: f64| (least..least + PAUSE).contains(&value);
    for span in spans {
        let (name, errno) = (span.text("messaging.operation.name"), span.text("posix_mq.errno"));
        let blocked = span.attributes.get("posix_mq.blocked") == Some(&Value::Bool(true));
        if let Some(timeout) = double(span, TIMEOUT) {
            let soon = errno == Some("ETIMEDOUT");
            ensure!(within(timeout, if soon { 0.05 } else { 60. } - PAUSE), "{span:?}");
            let took = Duration::from_nanos(span.body.end_time_unix_nano - span.body.start_time_unix_nano);
            ensure!(!soon || blocked && took.as_secs_f64() >= timeout - 0.011, "{span:?}");
        }
        if let (Some("mq_timedreceive"), None, Some(priority)) = (name, errno, span.int("posix_mq.message.priority")) {
            if !knows_messages {
                continue;
            }
            let wait = double(span, WAIT).with_context(|| format!("{span:?}"))?;
            match priority {
                // Handed to the receiver that waited for it.
                5 => ensure!(wait == 0. && blocked, "{span:?}"),
                6 | 7 => ensure!(within(wait, 0.), "{span:?}"),
                _ => ensure!(within(wait, REST) && !blocked, "{span:?}"),
            }
        }
    }
    let waited = |span: &&Record<Span>| span.attributes.get("posix_mq.blocked") == Some(&Value::Bool(true));
    let waited = spans.iter().filter(waited).count();
    ensure!(waited == 4, "{waited} calls waited");
    Ok(())
}

/// Prevents callers of another kind from going unseen, or being misread: 32-bit ones by functions, of both kinds of
/// timespec. And whatever has one outcome from being told otherwise by one kind of hooks: priority, waiting, timeout, wait
/// and link.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn every_caller_is_told_the_same() -> Result<()> {
    let mut first: Option<Vec<Essence>> = None;
    for kind in kinds() {
        for abi in ["native", "compat", "compat-time32"] {
            let run = Run::new(kind)?.of_caller(abi, &["--signals=traces"], &["steps"])?;
            let spans = run.all_spans()?;
            println!("{kind}, {abi}: {} spans", spans.len());
            if kind == "tracepoint" && abi != "native" {
                ensure!(spans.is_empty(), "tracepoints show {abi} callers? {:?}", spans[0]);
                continue;
            }
            let what = format!("by {kind}, {abi}");
            let expected = (abi != "native").then_some(COMPAT);
            ensure!(spans.iter().all(|span| span.text(ABI) == expected), "{what}: {ABI}");
            let knows_messages = kind != "tracepoint" || check::numbers_calls()?;
            check_times(&spans, knows_messages).context(what.clone())?;
            let told = steps(&spans)?;
            let first = first.get_or_insert_with(|| told.clone());
            match knows_messages {
                true => same(&what, first, &told)?,
                false => same(&what, &without_messages(first), &without_messages(&told))?,
            }
        }
    }
    Ok(())
}
