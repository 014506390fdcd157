//! Which receive got the message of which send: mqspan's links and the truth that the workload writes. Needs root and
//! tracefs.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{
    fed::Fed,
    otlp::{self, Record, Value, made_by, of_operation},
    program::Mqspan,
    queues::Held,
    ready, workload,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// A message's number, for each thread in the order of its calls.
#[derive(Default)]
struct Truth {
    sent: BTreeMap<u32, Vec<u64>>,
    received: BTreeMap<u32, Vec<u64>>,
}

impl Truth {
    fn read(path: &Path) -> Result<Self> {
        let mut truth = Self::default();
        for line in fs::read_to_string(path)?.lines() {
            let [side, number, tid, _] = line.split('\t').collect::<Vec<_>>()[..] else { bail!("{line}") };
            let side = match side {
                "send" => &mut truth.sent,
                "receive" => &mut truth.received,
                _ => bail!("{line}"),
            };
            side.entry(tid.parse()?).or_default().push(number.parse()?);
        }
        Ok(truth)
    }
}

/// What the links of a run are worth.
#[derive(Debug, Default)]
struct Verdict {
    received: usize,
    right: usize,
    wrong: usize,
    methods: BTreeMap<String, usize>,
    /// Receives whose wait is not what their send and they themselves allow.
    bad_waits: usize,
}

impl Verdict {
    /// Of all receives, those that are linked.
    fn recall(&self) -> f64 {
        self.right as f64 / self.received as f64
    }
}

/// The spans of the messages that were passed, by number: a thread's n-th success is its n-th in the truth.
fn by_number(
    spans: &[Record<Span>],
    operation: &str,
    returned: i64,
    truth: &BTreeMap<u32, Vec<u64>>,
) -> Result<HashMap<u64, Record<Span>>> {
    let mut by_thread: BTreeMap<u32, Vec<Record<Span>>> = BTreeMap::new();
    for span in of_operation(spans.to_vec(), operation) {
        if span.int("posix_mq.return_value") == Some(returned) {
            by_thread.entry(span.tid()?).or_default().push(span);
        }
    }
    let found: Vec<_> = by_thread.iter().map(|(tid, spans)| (*tid, spans.len())).collect();
    let expected: Vec<_> = truth.iter().map(|(tid, numbers)| (*tid, numbers.len())).collect();
    ensure!(found == expected, "{operation}: thread and messages {found:?}, in truth {expected:?}");
    let numbered =
        truth.iter().flat_map(|(tid, numbers)| numbers.iter().copied().zip(by_thread.remove(tid).unwrap_or_default()));
    Ok(numbered.collect())
}

/// Runs a command under mqspan; its spans, of which none is lost.
fn trace(mqspan: &Mqspan, command: &[&str]) -> Result<Vec<Record<Span>>> {
    let file = mqspan.to_file("spans");
    let ended = mqspan.run_counted(&[&["--signals=traces", &*file, "--"], command].concat())?;
    println!("{:?}", ended.stderr.last());
    let stats = mqspan.stats()?;
    ensure!(stats.lost_sum() == 0, "the truth can't be joined with records that were lost: {stats:?}");
    Ok(made_by(otlp::spans(&mqspan.file("spans"))?, &mqspan.workload()))
}

/// Runs the workload with these options, and judges the links.
fn judge(mqspan: &Mqspan, options: &[&str]) -> Result<Verdict> {
    let record = mqspan.file("truth");
    let (workload, print) = (mqspan.workload_arg(), record.display().to_string());
    let spans = trace(mqspan, &[&[&*workload, "ledger", "--print", &print], options].concat())?;
    verdict(&format!("{options:?}"), &spans, &Truth::read(&record)?)
}

fn verdict(what: &str, spans: &[Record<Span>], truth: &Truth) -> Result<Verdict> {
    let sent = by_number(spans, "mq_timedsend", 0, &truth.sent)?;
    let received = by_number(spans, "mq_timedreceive", 8, &truth.received)?;
    let mut verdict = Verdict::default();
    for (number, receive) in &received {
        verdict.received += 1;
        let send = sent.get(number).with_context(|| format!("message {number} was never sent"))?;
        let span = &receive.body;
        let link = match &span.links[..] {
            [] => continue,
            [link] => link,
            links => bail!("{} links: {links:?}", links.len()),
        };
        let method = otlp::attributes(&link.attributes)?;
        let method = otlp::text(&method, "posix_mq.link.method").context("a link without a method")?;
        *verdict.methods.entry(method.into()).or_default() += 1;
        let is_right = (&link.trace_id, &link.span_id) == (&send.body.trace_id, &send.body.span_id);
        *if is_right { &mut verdict.right } else { &mut verdict.wrong } += 1;
        // No message waits longer than from its send's start to its receive's end.
        let most = span.end_time_unix_nano.saturating_sub(send.body.start_time_unix_nano) as f64 / 1e9;
        let wait = receive.attributes.get("posix_mq.message.wait");
        let is_possible = matches!(wait, Some(Value::Double(wait)) if (0. ..=most + 1e-6).contains(wait));
        verdict.bad_waits += usize::from(!is_possible);
    }
    println!("{what}: {verdict:?}, recall {:.3}", verdict.recall());
    ensure!(verdict.wrong == 0, "wrong links: {verdict:?}");
    ensure!(verdict.bad_waits == 0, "impossible waits: {verdict:?}");
    let by_message = verdict.methods.get("message").copied().unwrap_or_default();
    ensure!(
        by_message == 0 || verdict.recall() == 1.,
        "by the message's identity every receive is linked: {verdict:?}"
    );
    Ok(verdict)
}

/// Prevents a link from being wrong in a crowd: two processes of two threads on each side, three priorities.
#[test]
fn no_link_is_wrong_in_a_crowd() -> Result<()> {
    let verdict = judge(&mqspan()?, &["--messages=50000", "--seed=71", "--pause=5000"])?;
    ensure!(verdict.received >= 50_000, "{verdict:?}");
    Ok(())
}

/// Prevents links from being left out where only one order is possible: one sender, one receiver.
#[test]
fn one_sender_and_one_receiver_are_linked() -> Result<()> {
    let options = ["--messages=20000", "--seed=72", "--processes=1", "--threads=1", "--pause=1000"];
    let verdict = judge(&mqspan()?, &options)?;
    ensure!(verdict.recall() >= 0.99, "{verdict:?}");
    Ok(())
}

/// Prevents links from being left out for a pool of workers: receivers that all wait, and mostly one message at a time. Two
/// that are late together, as on a machine with other work, have no order that shows: alone it is 0.996 and more.
#[test]
fn a_pool_of_receivers_that_wait_is_linked() -> Result<()> {
    let mqspan = mqspan()?;
    let options = ["--messages=3000", "--seed=76", "--pool=4", "--pause=2000"];
    for options in [&options[..], &[&options[..], &["--priorities=1", "--null-priority"]].concat()] {
        let verdict = judge(&mqspan, options)?;
        ensure!(verdict.recall() >= 0.95, "{verdict:?}");
    }
    Ok(())
}

/// Prevents a receive that waits for its link from holding up other processes' calls: a queue that is always full, so that
/// whose message it got stays open for as long as records keep coming.
#[test]
fn a_queue_that_is_always_full_delays_nobody() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = mqspan.trace(["--signals=traces", "--comm=other", &*mqspan.to_file("spans")])?;
    let full = Held::full(&mqspan)?;
    // Records come without a pause: a wait that ends only with one has no end.
    let mut paced = std::process::Command::new(mqspan.workload());
    paced.args(["paced", "--name=mqspan-test-links-paced", "--rate=5000"]);
    let paced = Fed::start(paced, "paced")?;
    let other = mqspan.copy_of_workload("other")?;
    for calls in 1..=5 {
        workload::run(&other, &["flat", "--calls=4"])?;
        // A batch is sent after a second at the latest.
        let deadline = Instant::now() + Duration::from_secs(10);
        while made_by(otlp::spans(&mqspan.file("spans"))?, &other).len() < 4 * calls {
            ensure!(Instant::now() < deadline, "another process's calls wait");
            thread::sleep(Duration::from_millis(50));
        }
    }
    paced.end()?;
    full.let_go()?;
    tracing.stop()?;
    Ok(())
}

/// Prevents links from being left out for most programs: they pass NULL for the priority and use one.
#[test]
fn receivers_that_do_not_ask_for_the_priority_are_linked() -> Result<()> {
    let options = [
        "--messages=20000",
        "--seed=73",
        "--processes=1",
        "--threads=1",
        "--priorities=1",
        "--null-priority",
        "--pause=1000",
    ];
    let verdict = judge(&mqspan()?, &options)?;
    ensure!(verdict.recall() >= 0.99, "{verdict:?}");
    Ok(())
}

/// Prevents a message of another priority from being taken for the one received, where the priority can't be read.
#[test]
fn no_link_is_wrong_where_priorities_are_unknown() -> Result<()> {
    judge(&mqspan()?, &["--messages=20000", "--seed=74", "--null-priority", "--pause=5000"]).map(drop)
}

/// Prevents queues of the same name in two ipc namespaces from being taken for one.
#[test]
fn namespaces_are_not_mixed() -> Result<()> {
    let mqspan = mqspan()?;
    let truths = [mqspan.file("here"), mqspan.file("there")];
    let script = "options='ledger --messages=10000 --seed=75 --processes=1 --threads=1 --pause=1000 --print'
        unshare --ipc \"$0\" $options \"$2\" & there=$!; \"$0\" $options \"$1\"; wait $there";
    let paths = truths.each_ref().map(|path| path.display().to_string());
    let spans = trace(&mqspan, &["bash", "-c", script, &mqspan.workload_arg(), &paths[0], &paths[1]])?;
    let own = ready::ipc_namespace()?;
    let (here, there): (Vec<_>, Vec<_>) =
        spans.into_iter().partition(|span| span.int("posix_mq.ipc_namespace") == Some(own));
    for (what, spans, truth) in [("here", here, &truths[0]), ("there", there, &truths[1])] {
        let verdict = verdict(what, &spans, &Truth::read(truth)?)?;
        ensure!(verdict.received > 10_000 && verdict.recall() >= 0.99, "{verdict:?}");
    }
    Ok(())
}
