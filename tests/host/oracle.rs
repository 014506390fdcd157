//! Every mq_open, and every field of it, as strace and the caller itself saw them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use support::{
    calls::{Comparison, Form, Open, compare},
    otlp::{self, Record, made_by, of_operation},
    program::{Ended, Mqspan, finish},
    strace, workload,
};

use crate::mqspan;

const CALLS: usize = 4000;

/// The workload's calls, by both oracles.
struct Seen {
    by_strace: Vec<Open>,
    by_caller: Vec<Open>,
}

impl Seen {
    /// Reads both records; what only the caller knows, the queue's limits and the times, is added to strace's calls.
    fn read(log: &Path, record: &Path) -> Result<Self> {
        let log = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
        let by_caller = workload::read(record)?;
        let mut rest = by_caller.clone();
        let mut by_strace = strace::parse(&log)?.iter().map(Open::from_strace).collect::<Result<Vec<_>>>()?;
        for call in &mut by_strace {
            let its = rest.iter().position(|other| other.tid == call.tid);
            let its = rest.remove(its.with_context(|| format!("only strace saw {call:?}"))?);
            ensure!(its.oflag == call.oflag, "the oracles disagree: {its:?} and {call:?}");
            (call.pid, call.limits, call.times) = (its.pid, its.limits, its.times);
        }
        ensure!(rest.is_empty(), "strace did not see {rest:?}");
        Ok(Self { by_strace, by_caller })
    }
}

fn arguments<'a>(seed: &'a str, calls: &'a str, record: &'a str) -> [&'a str; 11] {
    ["open", "--calls", calls, "--threads", "4", "--processes", "3", "--seed", seed, "--print", record]
}

/// Runs the workload under strace.
fn run_under_strace(mqspan: &Mqspan, seed: &str) -> Result<Seen> {
    let (log, record) = (mqspan.file("strace.log"), mqspan.file("record"));
    let (calls, path) = (CALLS.to_string(), record.display().to_string());
    let output = finish(workload::under_strace("mq_open", &log, &mqspan.workload(), &arguments(seed, &calls, &path)))?;
    ensure!(output.status.success(), "strace: {}", Ended::of(output).stderr.join("\n"));
    Seen::read(&log, &record)
}

fn perfect<T: Form>(mqspan: &Mqspan, calls: &[Open], records: Vec<Record<T>>) -> Result<Comparison> {
    let stats = mqspan.stats()?;
    ensure!(stats.lost_sum() == 0, "{stats:?}");
    // Calls of others on this host are in the balance too, which reading the counters has checked.
    ensure!(stats.exported >= calls.len() as u64, "{stats:?}");
    let records = of_operation(made_by(records, &mqspan.workload()), "mq_open");
    let comparison = compare(calls, &records)?;
    comparison.perfect(calls.len())?;
    Ok(comparison)
}

/// Prevents a span from being missing, invented, or wrong in any field, while the whole host is traced.
#[test]
fn spans_of_the_host_are_what_strace_sees() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = mqspan.trace_counted(&["--signals=traces", &mqspan.to_file("spans")])?;
    let seen = run_under_strace(&mqspan, "11")?;
    let ended = tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    let (stats, all) = (mqspan.stats()?, spans.len() as u64);
    ensure!(stats.exported == all, "{all} spans were written: {stats:?}");
    ensure!(stats.filtered + stats.limited == 0, "nothing was to be left out: {stats:?}");
    perfect(&mqspan, &seen.by_strace, spans).with_context(|| ended.stderr.join("\n")).map(drop)
}

/// Prevents a log record from being missing, invented, or wrong in any field or in its line; and calls of the traced
/// command from being told otherwise than those of the host.
#[test]
fn log_records_of_a_command_are_what_strace_sees() -> Result<()> {
    let mqspan = mqspan()?;
    let (log, record) = (mqspan.file("strace.log"), mqspan.file("record"));
    let (calls, path) = (CALLS.to_string(), record.display().to_string());
    let strace = workload::under_strace("mq_open", &log, &mqspan.workload(), &arguments("12", &calls, &path));
    mqspan.run_counted_command(&["--signals=logs", "--call=mq_open", &mqspan.to_file("logs")], &strace)?;
    let seen = Seen::read(&log, &record)?;
    let logs = otlp::logs(&mqspan.file("logs"))?;
    ensure!(logs.len() == CALLS, "{} log records of a command that makes {CALLS} calls", logs.len());
    perfect(&mqspan, &seen.by_strace, logs).map(drop)
}

/// Prevents names and attr from being lost whose page is not in memory at the call's entry: strace's own reading brings
/// such pages in, so that here the caller alone is the oracle.
#[test]
fn pages_that_are_not_in_memory_are_read_all_the_same() -> Result<()> {
    let mqspan = mqspan()?;
    let record = mqspan.file("record");
    let tracing = mqspan.trace_counted(&["--signals=traces", &mqspan.to_file("spans")])?;
    workload::run(&mqspan.workload(), &arguments("13", "6000", &record.display().to_string()))?;
    tracing.stop()?.ok()?;
    perfect(&mqspan, &workload::read(&record)?, otlp::spans(&mqspan.file("spans"))?).map(drop)
}

/// Prevents span and log record of a call from not finding each other where both are made.
#[test]
fn a_log_record_names_the_span_of_its_call() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = mqspan.trace_counted(&["--signals=traces,logs", "--call=mq_open", &mqspan.to_file("both")])?;
    let seen = run_under_strace(&mqspan, "14")?;
    tracing.stop()?.ok()?;
    let (spans, logs) = (otlp::spans(&mqspan.file("both"))?, otlp::logs(&mqspan.file("both"))?);
    ensure!(mqspan.stats()?.exported == spans.len() as u64, "a call with two records counts once");
    let (spans, logs) = (made_by(spans, &mqspan.workload()), made_by(logs, &mqspan.workload()));
    ensure!(seen.by_caller.len() == CALLS, "the caller recorded {} calls", seen.by_caller.len());
    ensure!((spans.len(), logs.len()) == (CALLS, CALLS), "{} spans, {} log records", spans.len(), logs.len());
    let mut ids: Vec<_> = spans
        .iter()
        .map(|span| (span.body.trace_id.clone(), span.body.span_id.clone(), span.body.start_time_unix_nano))
        .collect();
    let mut named: Vec<_> =
        logs.iter().map(|log| (log.body.trace_id.clone(), log.body.span_id.clone(), log.body.time_unix_nano)).collect();
    ids.sort();
    named.sort();
    ensure!(ids == named, "log records name other spans");
    ids.dedup_by(|a, b| a.1 == b.1);
    ensure!(ids.len() == CALLS, "span ids come twice");
    perfect(&mqspan, &seen.by_strace, logs).map(drop)
}
