//! What a traced call costs its caller. Figures, no verdict: `make bench`.
//!
//! The cheapest call that runs all of mq_open, that of a missing queue, small messages that nobody waits for, such that two
//! processes answer each other, and a call that is none of these are timed with nothing attached, with programs that do nothing
//! on the same hooks, and with mqspan; with that of MQSPAN_BENCH_BEFORE, too, a path of another version's program beside a
//! workload. These take turns, so that what else the machine does falls on all alike; the caller has one CPU, mqspan the
//! others.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{program::Mqspan, wait, workload};

const ROUNDS: usize = 15;
/// In a round: short pieces, of which the fastest is the one that nothing else fell into; as many as the ring holds while
/// mqspan is busy, since lost calls would be cheaper ones.
const PIECES: u64 = 100;
const CALLS: u64 = 1000;
const PEER_ROUNDS: usize = 3;

fn main() -> Result<()> {
    // cargo bench passes --bench.
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let cpus = thread::available_parallelism()?.get();
    let caller = cpus - 1;
    let others = if cpus > 1 { format!("--cpus=0-{}", cpus - 2) } else { "--cpus=0".into() };
    println!("{cpus} CPUs, the caller on CPU {caller}, mqspan with {others}");
    // Another version's program in a folder with a workload, to be measured in the same run.
    let before = env::var("MQSPAN_BENCH_BEFORE").ok().map(|program| Mqspan::new(&program)).transpose()?;
    for timed in TIMED {
        // Where there are targets.
        let before = before.as_ref().filter(|_| timed.2.iter().any(Option::is_some));
        overhead(&mqspan, before, timed, caller, &others)?;
    }
    peers(&mqspan, caller)
}

/// What is timed, the workload that does it, and how much of the empty programs' time each of [`WAYS`] may take at most.
type Timed = (&'static str, &'static str, [Option<f64>; 4]);
const TIMED: [Timed; 4] = [
    ("mq_open of a missing queue", "flat", [Some(1.30), Some(1.40), None, None]),
    ("mq_timedsend and mq_timedreceive", "pass", [Some(1.40), Some(1.65), Some(1.35), None]),
    ("the same between two processes that wait for each other", "ping", [None; 4]),
    ("getppid, which is no call of the family", "unrelated", [None; 4]),
];

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

fn overhead(
    mqspan: &Mqspan,
    before: Option<&Mqspan>,
    (what, workload, targets): Timed,
    cpu: usize,
    others: &str,
) -> Result<()> {
    let [mut bare, mut empty] = [const { Vec::new() }; 2];
    let own = WAYS.iter().map(|(what, options)| ((*what).to_owned(), mqspan, *options));
    let of_before = before.into_iter().flat_map(|before| {
        WAYS[..3].iter().map(move |(what, options)| (what.replace("mqspan", "before"), before, *options))
    });
    let ways: Vec<_> = own.chain(of_before).collect();
    let mut traced = vec![Vec::new(); ways.len()];
    let mut lost = 0;
    for _ in 0..ROUNDS {
        bare.push(time(mqspan, workload, cpu)?);

        let attached = empty::attach("tracepoint")?;
        empty.push(time(mqspan, workload, cpu)?);
        drop(attached);

        for ((_, program, options), times) in ways.iter().zip(&mut traced) {
            let options = [&["--output=none", "--hooks=tracepoint", others], *options].concat();
            let tracing = program.trace_counted(&options)?;
            times.push(time(mqspan, workload, cpu)?);
            tracing.stop()?.ok()?;
            await_detached(program)?;
            lost += program.stats()?.lost_sum();
        }
    }
    println!("\nns of {what}, the fastest of {PIECES} pieces of {CALLS} calls, {ROUNDS} rounds, tracepoints");
    println!("{:30} {:>8} {:>8} {:>10} {:>10} {:>8}", "", "median", "least", "to nothing", "to empty", "target");
    let (_, bare_least) = middle_and_least(&mut bare);
    let (_, empty_least) = middle_and_least(&mut empty);
    let targets = targets.into_iter().chain(std::iter::repeat(None));
    let names = ways.iter().map(|(what, ..)| &**what);
    let others = [(("nothing attached", bare), None), (("empty programs", empty), None)];
    for ((what, mut times), target) in others.into_iter().chain(names.zip(traced).zip(targets)) {
        let (median, least) = middle_and_least(&mut times);
        let target = target.map_or(String::new(), |target| format!("{target:.2}"));
        println!(
            "{what:30} {median:8.1} {least:8.1} {:10.2} {:10.2} {target:>8}",
            least / bare_least,
            least / empty_least
        );
    }
    println!(
        "{lost} of {} calls were lost with mqspan; a lost call is a cheap one",
        PIECES * CALLS * (ROUNDS * ways.len()) as u64
    );
    Ok(())
}

/// Waits until the kernel has detached mqspan's programs: another process of its does, after its end.
fn await_detached(mqspan: &Mqspan) -> Result<()> {
    let own = format!("{}\0", mqspan.path().display());
    wait::until("the end of detaching", || {
        let processes = fs::read_dir("/proc")?.flatten();
        let is_there = processes
            .into_iter()
            .any(|process| fs::read(process.path().join("cmdline")).is_ok_and(|line| line.starts_with(own.as_bytes())));
        Ok((!is_there).then_some(()))
    })
}

fn middle_and_least(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// The same calls under other tools that see every one of them, each as a package has it: strace, ftrace (into its ring of the
/// kernel, which nobody reads) and bpftrace with a histogram of the calls' durations.
fn peers(mqspan: &Mqspan, cpu: usize) -> Result<()> {
    println!(
        "\nns of a call under other tools, the fastest of {PIECES} pieces, {PEER_ROUNDS} rounds: least, to nothing"
    );
    for (what, workload, _) in &TIMED[..2] {
        let mut times = [const { Vec::new() }; 5];
        for _ in 0..PEER_ROUNDS {
            times[0].push(time(mqspan, workload, cpu)?);
            let tracing = mqspan.trace_counted(&["--output=none", "--hooks=tracepoint", "--max-rate=0"])?;
            times[1].push(time(mqspan, workload, cpu)?);
            tracing.stop()?.ok()?;
            await_detached(mqspan)?;
            times[2].push(with_ftrace(|| time(mqspan, workload, cpu))?);
            times[3].push(with_bpftrace(|| time(mqspan, workload, cpu))?);
            times[4].push(under_strace(mqspan, workload, cpu)?);
        }
        println!("{what}");
        let tools =
            ["nothing", "mqspan, spans and metrics", "ftrace, syscalls/ events", "bpftrace, a histogram", "strace"];
        let (_, bare) = middle_and_least(&mut times[0].clone());
        for (tool, mut times) in tools.iter().zip(times) {
            let (_, least) = middle_and_least(&mut times);
            println!("  {tool:28} {least:9.1} {:8.2}", least / bare);
        }
    }
    Ok(())
}

/// With the kernel's own events of these calls switched on.
fn with_ftrace(time: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let switch = |on: &str| {
        FAMILY.iter().flat_map(|call| [format!("sys_enter_{call}"), format!("sys_exit_{call}")]).try_for_each(|event| {
            let path = format!("/sys/kernel/tracing/events/syscalls/{event}/enable");
            fs::write(&path, on).with_context(|| path)
        })
    };
    switch("1")?;
    let taken = time();
    switch("0")?;
    taken
}

const FAMILY: [&str; 3] = ["mq_open", "mq_timedsend", "mq_timedreceive"];

fn with_bpftrace(time: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let probes = |side: &str| FAMILY.map(|call| format!("tracepoint:syscalls:sys_{side}_{call}")).join(",");
    let script = format!(
        "BEGIN {{ printf(\"ready\\n\"); }} {} {{ @start[tid] = nsecs; }} {} /@start[tid]/ {{ @took[probe, args->ret] = hist(nsecs - @start[tid]); \
         delete(@start[tid]); }} END {{ clear(@start); clear(@took); }}",
        probes("enter"),
        probes("exit")
    );
    let mut child =
        Command::new("bpftrace").args(["-e", &script]).stdout(Stdio::piped()).spawn().context("bpftrace")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let is_ready = lines.by_ref().map_while(Result::ok).any(|line| line == "ready");
    let taken = time();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
    child.wait()?;
    ensure!(is_ready, "bpftrace ended before it was ready");
    taken
}

fn under_strace(mqspan: &Mqspan, workload: &str, cpu: usize) -> Result<f64> {
    let program = mqspan.workload();
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "trace=mq_open,mq_timedsend,mq_timedreceive"]).arg(program);
    command.args([workload, "--calls=1000", "--pieces=5", "--cpu", &cpu.to_string()]);
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout)?;
    printed.trim().parse().with_context(|| printed.clone())
}
