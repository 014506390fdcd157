//! What a traced call costs its caller, and what a million of them cost mqspan. Figures, no verdict: `make bench`.
//!
//! The cheapest call that runs all of mq_open, that of a missing queue, and small messages that nobody waits for are timed
//! with nothing attached, with programs that do nothing on the same hooks, and with mqspan. These take turns, so that what
//! else the machine does falls on all alike; the caller has one CPU, mqspan the others.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use support::{
    program::{Memory, Mqspan},
    stats::Stats,
    workload,
};

const ROUNDS: usize = 15;
/// In a round: short pieces, of which the fastest is the one that nothing else fell into; as many as the ring holds while
/// mqspan is busy, since lost calls would be cheaper ones.
const PIECES: u64 = 100;
const CALLS: u64 = 1000;
const FLAT_OUT: u64 = 1_000_000;

fn main() -> Result<()> {
    // cargo bench passes --bench.
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let cpus = thread::available_parallelism()?.get();
    let caller = cpus - 1;
    let others = if cpus > 1 { format!("--cpus=0-{}", cpus - 2) } else { "--cpus=0".into() };
    println!("{cpus} CPUs, the caller on CPU {caller}, mqspan with {others}");
    for (what, workload) in [("mq_open of a missing queue", "flat"), ("mq_timedsend and mq_timedreceive", "pass")] {
        overhead(&mqspan, (what, workload), caller, &others)?;
    }
    flat_out(&mqspan, caller, &others)?;
    idle(&mqspan)
}

/// Nanoseconds of one of the workload's calls, now.
fn time(mqspan: &Mqspan, workload: &str, cpu: usize) -> Result<f64> {
    let [calls, pieces, cpu] = [CALLS, PIECES, cpu as u64].map(|number| number.to_string());
    let arguments = [workload, "--calls", &calls, "--pieces", &pieces, "--cpu", &cpu];
    let printed = workload::run(&mqspan.workload(), &arguments)?;
    printed.trim().parse().with_context(|| printed.clone())
}

/// Every call as a span; as a span and in the metrics; and as a host is traced by default, where a loop is limited.
const WAYS: [(&str, &[&str]); 4] = [
    ("mqspan, spans", &["--signals=traces", "--max-rate=0"]),
    ("mqspan, spans and metrics", &["--max-rate=0"]),
    ("mqspan, metrics", &["--signals=metrics"]),
    ("mqspan, by default", &[]),
];

fn overhead(mqspan: &Mqspan, (what, workload): (&str, &str), cpu: usize, others: &str) -> Result<()> {
    let [mut bare, mut empty] = [const { Vec::new() }; 2];
    let mut traced = WAYS.map(|_| Vec::new());
    let mut lost = 0;
    for _ in 0..ROUNDS {
        bare.push(time(mqspan, workload, cpu)?);

        let attached = empty::attach("tracepoint")?;
        empty.push(time(mqspan, workload, cpu)?);
        drop(attached);

        for ((_, options), times) in WAYS.iter().zip(&mut traced) {
            let options = [&["--output=none", "--hooks=tracepoint", others], *options].concat();
            let tracing = mqspan.trace_counted(&options)?;
            times.push(time(mqspan, workload, cpu)?);
            tracing.stop()?.ok()?;
            lost += mqspan.stats()?.lost_sum();
        }
    }
    println!("\nns of {what}, the fastest of {PIECES} pieces of {CALLS} calls, {ROUNDS} rounds, tracepoints");
    println!("{:30} {:>8} {:>8} {:>10} {:>10}", "", "median", "least", "to nothing", "to empty");
    let (_, bare_least) = middle_and_least(&mut bare);
    let (_, empty_least) = middle_and_least(&mut empty);
    let ways = WAYS.iter().map(|(what, _)| *what).zip(traced);
    for (what, mut times) in [("nothing attached", bare), ("empty programs", empty)].into_iter().chain(ways) {
        let (median, least) = middle_and_least(&mut times);
        println!("{what:30} {median:8.1} {least:8.1} {:10.2} {:10.2}", least / bare_least, least / empty_least);
    }
    println!(
        "{lost} of {} calls were lost with mqspan; a lost call is a cheap one",
        PIECES * CALLS * (ROUNDS * WAYS.len()) as u64
    );
    Ok(())
}

fn middle_and_least(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

fn flat_out(mqspan: &Mqspan, cpu: usize, others: &str) -> Result<()> {
    println!("\n{FLAT_OUT} mq_open flat out on one CPU, OTLP JSON to /dev/null");
    let tracing =
        mqspan.trace_counted(&["--output=file:/dev/null", "--signals=traces", "--hooks=tracepoint", others])?;
    let (calls, cpu) = (FLAT_OUT.to_string(), cpu.to_string());
    let printed = workload::run(&mqspan.workload(), &["flat", "--calls", &calls, "--cpu", &cpu])?;
    let peak = Memory::of(tracing.pid())?.resident;
    // mqspan is the one child that has not been waited for yet.
    let before = children_seconds()?;
    tracing.stop()?.ok()?;
    let seconds = children_seconds()? - before;
    let stats = mqspan.stats()?;
    let Stats { captured, exported, .. } = stats;
    ensure!(captured >= FLAT_OUT, "{stats:?}");
    println!(
        "{} ns a call; {captured} captured, {exported} exported, {} lost: {:?}",
        printed.trim(),
        stats.lost_sum(),
        stats.lost
    );
    println!(
        "mqspan: {seconds:.2} s of CPU, {:.0} ns a call; {peak} kB resident at most",
        seconds * 1e9 / captured as f64
    );
    Ok(())
}

/// What mqspan takes where nobody calls.
fn idle(mqspan: &Mqspan) -> Result<()> {
    const LONG: Duration = Duration::from_secs(20);
    let tracing = mqspan.trace(["--output=none"])?;
    let pid = tracing.pid();
    let (switches, ticks) = (switches(pid)?, ticks(pid)?);
    let begun = Instant::now();
    thread::sleep(LONG);
    let seconds = begun.elapsed().as_secs_f64();
    let (switches, ticks) = (self::switches(pid)? - switches, self::ticks(pid)? - ticks);
    let Memory { resident, anonymous } = Memory::of(pid)?;
    tracing.stop()?.ok()?;
    println!(
        "\nidle for {seconds:.0} s: {:.1} switches a second over all threads, {:.2} % of a CPU, {resident} kB resident, {anonymous} kB \
         of it without files and rings",
        switches as f64 / seconds,
        ticks as f64 / seconds
    );
    Ok(())
}

/// Context switches of all threads so far.
fn switches(pid: u32) -> Result<u64> {
    let mut all = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let counts = status.lines().filter(|line| line.contains("_ctxt_switches:"));
        all += counts.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(all)
}

/// Hundredths of a second of CPU so far (proc_pid_stat(5)).
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2).flat_map(str::parse::<u64>).sum())
}

/// User and system time of the children that were waited for.
fn children_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}
