//! Links by the message's identity, and the truth.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs,
};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::trace::v1::{Span, span::Link};
use support::otlp::{self, Record, Value, of_operation};

use super::{BY_MESSAGE, Run, begun};

const MESSAGES: usize = 20_000;

/// The spans of a side's messages by their numbers: a thread's nth success is its nth line of the ledger.
fn by_number(ledger: &str, side: &str, spans: Vec<Record<Span>>) -> Result<HashMap<String, Span>> {
    let mut of_thread: HashMap<String, VecDeque<Span>> = HashMap::new();
    for span in spans.into_iter().filter(|span| span.int("posix_mq.return_value").is_some_and(|value| value >= 0)) {
        of_thread.entry(span.tid()?.to_string()).or_default().push_back(span.body);
    }
    let mut numbered = HashMap::new();
    for line in ledger.lines() {
        let [which, number, tid, _] = line.split('\t').collect::<Vec<_>>()[..] else { bail!("{line}") };
        if which == side {
            let span = of_thread.get_mut(tid).and_then(VecDeque::pop_front).with_context(|| line.to_owned())?;
            numbered.insert(number.to_owned(), span);
        }
    }
    let left: usize = of_thread.values().map(VecDeque::len).sum();
    ensure!(left == 0, "{side}: {left} spans of messages that nobody passed");
    Ok(numbered)
}

/// The span's one link, by the message's identity.
fn link(span: &Span) -> Result<&Link> {
    let [link] = &span.links[..] else { bail!("{} links: {span:?}", span.links.len()) };
    let method = otlp::attributes(&link.attributes)?;
    ensure!(otlp::text(&method, "posix_mq.link.method") == Some("message"), "{link:?}");
    Ok(link)
}

/// Prevents a receive from being linked to another send than its own, or to none, in a crowd and in any order.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn every_receive_is_linked_to_its_send() -> Result<()> {
    for kind in begun(BY_MESSAGE) {
        let run = Run::new(kind)?;
        let ledger = run.mqspan.file("ledger");
        let (print, messages) = (format!("--print={}", ledger.display()), format!("--messages={MESSAGES}"));
        let run = run.of_workload(&["--signals=traces"], &["ledger", &print, &messages, "--pause=16000"])?;
        let (ledger, spans) = (fs::read_to_string(&ledger)?, run.all_spans()?);
        let failed = spans.iter().filter(|span| span.text("posix_mq.errno").is_some()).count();
        let is = |span: &Record<Span>, operation| span.text("messaging.operation.name") == Some(operation);
        let timed_out =
            |span: &&Record<Span>| is(span, "mq_timedsend") && span.text("posix_mq.errno") == Some("ETIMEDOUT");
        let timed_out = spans.iter().filter(timed_out).count();
        // Moved, not copied: there are many, and little memory.
        let (sent, others): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| is(span, "mq_timedsend"));
        let sent = by_number(&ledger, "send", sent)?;
        let received = by_number(&ledger, "receive", of_operation(others, "mq_timedreceive"))?;
        println!("{kind}: {} received, {failed} calls failed, {timed_out} sends timed out", received.len());
        ensure!(received.len() >= MESSAGES && failed > 0 && timed_out > 0, "{kind}: {} received", received.len());
        let unlinked: Vec<&String> =
            received.iter().filter(|(_, receive)| receive.links.is_empty()).map(|(number, _)| number).collect();
        ensure!(unlinked.is_empty(), "{kind}: no link for {unlinked:?}; {:?}", run.ended);
        for (number, receive) in received {
            let (send, link) = (&sent[&number], link(&receive).with_context(|| format!("{kind}, {number}"))?);
            let is_its = (&link.trace_id, &link.span_id) == (&send.trace_id, &send.span_id);
            ensure!(is_its, "{kind}, message {number}: {receive:?} {send:?}");
        }
        if run.said("tracing")?.contains("by kprobe") {
            break;
        }
    }
    Ok(())
}

/// Prevents the limit from tearing a message's send and receive apart, from leaving calls out of the counts, and from
/// letting more pass than it says.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn a_message_is_limited_as_a_whole() -> Result<()> {
    const RATE: u64 = 20;
    for kind in begun(BY_MESSAGE) {
        let run = Run::new(kind)?;
        let (rate, print) = (format!("--max-rate={RATE}"), format!("--print={}", run.mqspan.file("ledger").display()));
        let options = ["--signals=traces,metrics", "--slow=1h", &*rate];
        let run = run.of_workload(&options, &["ledger", &print, "--messages=20000", "--pause=2000"])?;
        let spans = run.all_spans()?;
        let stats = run.mqspan.stats()?;
        ensure!(stats.exported == run.spans()?.len() as u64 && stats.limited > 0, "{kind}: {stats:?}");

        let passed = |operation: &str| {
            let mut spans = of_operation(spans.clone(), operation);
            spans.retain(|span| span.text("posix_mq.errno").is_none());
            spans
        };
        let sent: HashSet<_> = passed("mq_timedsend").into_iter().map(|span| span.body.span_id).collect();
        let received = passed("mq_timedreceive");
        let linked: HashSet<_> =
            received.iter().map(|span| Ok(link(&span.body)?.span_id.clone())).collect::<Result<_>>().context(kind)?;
        ensure!(
            received.len() == linked.len() && sent == linked,
            "{kind}: {} sent, {} linked",
            sent.len(),
            linked.len()
        );

        let times = spans.iter().map(|span| span.body.start_time_unix_nano / 1_000_000_000);
        let seconds = 2 + times.clone().max().unwrap_or_default() - times.min().unwrap_or_default();
        println!("{kind}: {} of 20000 messages in {seconds} s; {stats:?}", sent.len());
        ensure!((1..=RATE * seconds).contains(&(sent.len() as u64)), "{kind}: {} in {seconds} s", sent.len());
        // What was left out last is told by nobody any more.
        let told: i64 = spans.iter().filter_map(|span| span.int("posix_mq.limited_calls")).sum();
        ensure!((1..=stats.limited as i64).contains(&told), "{kind}: {told} told of {stats:?}");
        ensure!(
            spans.iter().all(|span| span.attributes.get("posix_mq.limited_calls") != Some(&Value::Int(0))),
            "{kind}"
        );
        if run.said("tracing")?.contains("by kprobe") {
            break;
        }
    }
    Ok(())
}
