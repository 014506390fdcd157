//! Whose calls, and which: what passes each filter, and that the counters agree.

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{
    calls::Outcome,
    otlp::{self, Record, made_by, of_operation},
    program::Mqspan,
    ready, workload,
};

use crate::mqspan;

/// Runs a script under mqspan with these options; the workload is `$0`. Its spans, and the counters' balance is right.
fn spans(mqspan: &Mqspan, options: &[&str], script: &str) -> Result<Vec<Record<Span>>> {
    let (file, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
    let command = ["--signals=traces", "--call=mq_open", &file, "--", "bash", "-c", script, &workload];
    mqspan.run_counted(&[options, &command].concat())?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    let stats = mqspan.stats()?;
    ensure!(stats.exported == spans.len() as u64, "{} spans: {stats:?}", spans.len());
    Ok(spans)
}

/// Expects so many spans and at least so many calls that the filter left out.
fn expect(mqspan: &Mqspan, options: &[&str], script: &str, passing: usize, filtered: u64) -> Result<()> {
    let found = spans(mqspan, options, script)?.len();
    let stats = mqspan.stats()?;
    ensure!(found == passing, "{options:?}: {found} spans, not {passing}: {stats:?}");
    ensure!(stats.filtered >= filtered, "{options:?}: {filtered} calls were to be filtered: {stats:?}");
    Ok(())
}

/// Prevents globs on queues from matching too much or too little.
#[test]
fn queues() -> Result<()> {
    let mqspan = mqspan()?;
    for (options, passing) in [
        (&["--queue=/short-lived-7"][..], 1),
        (&["--queue=short-lived-7"], 1),
        (&["--queue=/short-lived-1?"], 10),
        (&["--queue=/short-lived-1*"], 11),
        (&["--queue=*[3-5]"], 6),
        (&["--queue=short-lived-3", "--queue=short-lived-4"], 2),
        (&["--queue=!*7"], 18),
        (&["--queue=/short-lived-1?", "--queue=!*5"], 9),
        (&["--queue=!short-lived-3", "--queue=!short-lived-4"], 18),
    ] {
        expect(&mqspan, options, r#""$0" short-lived --calls 20"#, passing, 20 - passing as u64)?;
    }
    Ok(())
}

/// Prevents a call without a readable name from passing a filter that asks for one, or from failing one that only
/// excludes.
#[test]
fn a_call_without_a_name() -> Result<()> {
    let mqspan = mqspan()?;
    let record = mqspan.file("record").display().to_string();
    let script = format!("\"$0\" open --calls 300 --threads 1 --processes 0 --seed 31 --print {record}");
    let unnamed =
        |spans: &[Record<Span>]| spans.iter().filter(|span| span.text("messaging.destination.name").is_none()).count();
    let all = spans(&mqspan, &[], &script)?;
    ensure!(all.len() == 300 && unnamed(&all) > 10, "{} of {} calls have no name", unnamed(&all), all.len());
    let excluding = spans(&mqspan, &["--queue=!/workload-*"], &script)?;
    ensure!(unnamed(&excluding) == unnamed(&all), "a filter that only excludes left out calls without a name");
    let asking = spans(&mqspan, &["--queue=*"], &script)?;
    ensure!(asking.len() == 300 - unnamed(&all), "* matches names only: {}", asking.len());
    Ok(())
}

/// Prevents threads from being told apart by another name than theirs.
#[test]
fn thread_names() -> Result<()> {
    let mqspan = mqspan()?;
    let other = mqspan.copy_of_workload("other")?;
    let script = format!("\"$0\" flat --calls 3; {} flat --calls 4", other.display());
    for (options, passing) in [
        (&["--comm=workload"][..], 3),
        (&["--comm=o*"], 4),
        (&["--comm=!workload"], 4),
        (&["--comm=w*", "--comm=o*"], 7),
    ] {
        expect(&mqspan, options, &script, passing, 7 - passing as u64)?;
    }
    // Both filters must be passed.
    expect(&mqspan, &["--comm=workload", "--queue=/nothing"], &script, 0, 7)
}

/// A program that waits to be told to go on, so that its ids are known before it calls.
struct Waiting(Child);

impl Waiting {
    fn start(prefix: &[&str], program: &Path, args: &str) -> Result<Self> {
        let mut command = Command::new("env");
        command.args(prefix).args(["bash", "-c", &format!("read; exec \"$0\" {args}")]).arg(program);
        Ok(Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?))
    }

    fn go(mut self) -> Result<()> {
        self.0.stdin.take().context("no stdin")?.write_all(b"\n")?;
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// Prevents a process's threads from being left out, and its children from being let in.
#[test]
fn processes_with_their_threads() -> Result<()> {
    let mqspan = mqspan()?;
    let workload = mqspan.workload();
    let threads = Waiting::start(&[], &workload, "open --calls 40 --threads 4 --processes 0 --seed 32")?;
    let children = Waiting::start(&[], &workload, "open --calls 40 --threads 4 --processes 2 --seed 33")?;
    let rest = Waiting::start(&[], &workload, "flat --calls 5")?;
    let asked = [&threads, &children].map(|process| format!("--pid={}", process.0.id()));
    let tracing = mqspan.trace_counted(&["--signals=traces", &mqspan.to_file("spans"), &asked[0], &asked[1]])?;
    let pid = threads.0.id();
    threads.go()?;
    children.go()?;
    rest.go()?;
    let ended = tracing.stop()?.ok()?;
    let opens = of_operation(otlp::spans(&mqspan.file("spans"))?, "mq_open");
    ensure!(opens.len() == 40, "{} spans of 40 calls", opens.len());
    ensure!(opens.iter().all(|span| span.pid().is_ok_and(|its| its == pid)), "a span of another process");
    let stats = mqspan.stats()?;
    ensure!(stats.filtered >= 45, "{stats:?}; {:?}", ended.stderr);
    Ok(())
}

/// Prevents an excluded process from being traced.
#[test]
fn processes_excluded() -> Result<()> {
    let mqspan = mqspan()?;
    let excluded = Waiting::start(&[], &mqspan.workload(), "flat --calls 5")?;
    let pid = format!("--pid=!{}", excluded.0.id());
    let tracing = mqspan.trace_counted(&["--signals=traces", &mqspan.to_file("spans"), &pid])?;
    excluded.go()?;
    workload::run(&mqspan.workload(), &["flat", "--calls", "4"])?;
    tracing.stop()?.ok()?;
    let found = made_by(otlp::spans(&mqspan.file("spans"))?, &mqspan.workload()).len();
    ensure!(found == 4, "{found} spans of 4 calls that were not excluded");
    Ok(())
}

/// Prevents users from being mixed up.
#[test]
fn users() -> Result<()> {
    let mqspan = mqspan()?;
    let script = r#""$0" flat --calls 3; setpriv --reuid 65534 --regid 65534 --clear-groups "$0" flat --calls 4"#;
    for (options, passing) in [(&["--uid=65534"][..], 4), (&["--uid=!65534"], 3), (&["--uid=0", "--uid=65534"], 7)] {
        expect(&mqspan, options, script, passing, 7 - passing as u64)?;
    }
    Ok(())
}

/// Prevents ipc namespaces, which may hold queues of the same names, from being mixed.
#[test]
fn ipc_namespaces() -> Result<()> {
    let mqspan = mqspan()?;
    let script = r#""$0" flat --calls 3; unshare --ipc "$0" flat --calls 4"#;
    let own = ready::ipc_namespace()?;
    let (number, not_number) = (format!("--ipc-namespace={own}"), format!("--ipc-namespace=!{own}"));
    for (option, passing) in [
        ("--ipc-namespace=self", 3),
        ("--ipc-namespace=!self", 4),
        ("--ipc-namespace=all", 7),
        (&number, 3),
        (&not_number, 4),
    ] {
        expect(&mqspan, &[option], script, passing, 7 - passing as u64)?;
    }

    let elsewhere = Waiting::start(&["unshare", "--ipc"], &mqspan.workload(), "flat --calls 5")?;
    let link = format!("/proc/{}/ns/ipc", elsewhere.0.id());
    let other = support::wait::until("another ipc namespace", || {
        let number = ready::namespace_number(Path::new(&link))?;
        Ok((number != own).then_some(number))
    })?;
    let option = format!("--ipc-namespace={other}");
    let tracing = mqspan.trace(["--signals=traces", &mqspan.to_file("spans"), &option])?;
    elsewhere.go()?;
    workload::run(&mqspan.workload(), &["flat", "--calls", "4"])?;
    tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    ensure!(spans.len() == 5, "{} spans of 5 calls", spans.len());
    ensure!(spans.iter().all(|span| span.int("posix_mq.ipc_namespace") == Some(other)), "another namespace's number");
    Ok(())
}

/// Prevents failures from being lost, and successes from passing.
#[test]
fn failures_only() -> Result<()> {
    let mqspan = mqspan()?;
    let record = mqspan.file("record");
    let script = format!("\"$0\" open --calls 600 --seed 34 --print {}", record.display());
    let found = spans(&mqspan, &["--failed"], &script)?;
    let calls = workload::read(&record)?;
    let failed = calls.iter().filter(|call| matches!(call.outcome, Outcome::Failed { .. })).count();
    ensure!(failed > 100 && failed < 600, "{failed} of 600 calls failed: they show nothing");
    ensure!(found.len() == failed, "{} spans of {failed} failures", found.len());
    ensure!(found.iter().all(|span| span.int("posix_mq.return_value").is_some_and(|value| value < 0)), "a success");
    ensure!(mqspan.stats()?.filtered >= 600 - failed as u64, "{:?}", mqspan.stats()?);
    Ok(())
}

/// Prevents the least duration from being taken in another unit, or as a most.
#[test]
fn durations() -> Result<()> {
    let mqspan = mqspan()?;
    for (option, passing) in [("--min-duration=1ns", 50), ("--min-duration=1h", 0)] {
        expect(&mqspan, &[option], r#""$0" flat --calls 50"#, passing, 50 - passing as u64)?;
    }
    // 20 sends wait for 20 ms, and of the 200 that do not wait some are shorter than 10 ms on any machine.
    let (file, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
    let command = ["--signals=traces", "--call=mq_timedsend", "--min-duration=10ms", &file, "--", &workload];
    let bursts = ["bursts", "--name=mqspan-test-durations", "--bursts=1", "--pairs=200", "--polls=0", "--slow=20"];
    mqspan.run_counted(&[&command[..], &bursts].concat())?;
    let slow = otlp::spans(&mqspan.file("spans"))?;
    let waited = slow.iter().filter(|span| span.text("posix_mq.errno") == Some("ETIMEDOUT")).count();
    ensure!(waited > 0 && waited <= 20 && slow.len() < 200, "{waited} of {} spans waited", slow.len());
    let shortest = slow.iter().map(|span| span.body.end_time_unix_nano - span.body.start_time_unix_nano).min();
    ensure!(shortest >= Some(10_000_000), "at least 10 ms, but a span of {shortest:?} ns");
    Ok(())
}

/// Prevents a typing error in a filter from looking like a quiet host.
#[test]
fn a_filter_that_matched_nothing_says_so() -> Result<()> {
    let mqspan = mqspan()?;
    let none = ["--output=none"];
    for (option, value) in [
        ("--queue", "/mqspan-test-nothing"),
        ("--comm", "mqspan-nothing"),
        ("--pid", "4194303"),
        ("--uid", "4294967290"),
        ("--container", "0123abc"),
        ("--ipc-namespace", "1"),
    ] {
        let tracing = mqspan.trace_counted(&[&none[..], &[option, value]].concat())?;
        workload::run(&mqspan.workload(), &["flat", "--calls", "3"])?;
        let ended = tracing.stop()?.ok()?;
        let said = ended.said(&format!("{option} {value}"))?;
        ensure!(said.starts_with("mqspan: "), "{said}");
    }
    let tracing = mqspan.trace(["--output=none", "--comm=workload", "--queue=workload-miss*"])?;
    workload::run(&mqspan.workload(), &["flat", "--calls", "3"])?;
    let ended = tracing.stop()?.ok()?;
    ensure!(ended.said("--comm").is_err() && ended.said("--queue").is_err(), "both matched: {:?}", ended.stderr);
    Ok(())
}
