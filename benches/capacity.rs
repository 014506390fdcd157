//! What mqspan holds, and what it takes for it: calls as fast as they can be made, from one CPU and from all, to an OTLP
//! receiver; how soon a call is seen; how long a start and an end take; what it takes where nobody calls; how it grows with
//! queues, processes and threads. Figures, no verdict: `make bench`.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
    unistd::Pid,
};
use support::{
    own,
    paced::Paced,
    program::{Memory, Mqspan, Tracing},
    pty::{self, Pty},
    queues::Held,
    stats::Stats,
    wait, workload,
};

/// Looks and starts that a median is of.
const TIMES: usize = 15;

fn main() -> Result<()> {
    // cargo bench passes --bench.
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let cpus = thread::available_parallelism()?.get();
    println!("{cpus} CPUs");
    flat_out(&mqspan, cpus)?;
    latency(&mqspan)?;
    start_and_end(&mqspan)?;
    idle(&mqspan)?;
    top(&mqspan)?;
    growth(&mqspan)
}

/// An OTLP/HTTP receiver that reads requests, answers each with success, and keeps nothing.
struct Receiver {
    endpoint: String,
    bytes: Arc<AtomicU64>,
    /// The times at which requests for traces were there as a whole.
    came: mpsc::Receiver<Instant>,
}

impl Receiver {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let bytes = Arc::new(AtomicU64::new(0));
        let (send, came) = mpsc::channel();
        let counted = bytes.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (send, counted) = (send.clone(), counted.clone());
                // A connection that ends has its reader end.
                thread::spawn(move || serve(stream, &send, &counted));
            }
        });
        Ok(Self { endpoint, bytes, came })
    }
}

fn serve(stream: TcpStream, came: &mpsc::Sender<Instant>, counted: &AtomicU64) -> Result<()> {
    let (mut reader, mut writer) = (BufReader::with_capacity(1 << 18, stream.try_clone()?), stream);
    let mut body = Vec::new();
    loop {
        let (mut length, mut is_traces, mut line) = (0, false, String::new());
        loop {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "the connection ended");
            let lower = line.trim_end().to_ascii_lowercase();
            is_traces |= lower.starts_with("post /v1/traces");
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if lower.is_empty() {
                break;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        counted.fetch_add(length as u64, Ordering::Relaxed);
        if is_traces {
            // Nobody may ask for the times.
            let _ = came.send(Instant::now());
        }
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")?;
    }
}

/// The user and system time of the children that were waited for.
fn children_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

/// Has this process's later threads and children stay on these CPUs.
fn stay_on(cpus: impl Iterator<Item = usize>) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn flat_out(mqspan: &Mqspan, cpus: usize) -> Result<()> {
    println!("\nflat out, every call a span, OTLP/HTTP with protobuf to a receiver that keeps nothing");
    println!(
        "{:26} {:>9} {:>9} {:>9} {:>8} {:>9} {:>10} {:>8} {:>9}",
        "callers", "ns/call", "captured", "lost", "lost %", "CPU s", "ns/span", "of a CPU", "peak KiB"
    );
    let last = cpus - 1;
    let calls = |calls: u64, workload: &'static str| (workload, calls.to_string());
    for (workload, calls) in [calls(1_000_000, "flat"), calls(4_000_000, "pass")] {
        for all in [false, true] {
            // The receiver is where mqspan is.
            stay_on(if all { 0..cpus } else { 0..last.max(1) })?;
            let receiver = Receiver::start()?;
            let endpoint = format!("--endpoint={}", receiver.endpoint);
            let options = ["--output=otlp", "--protocol=http/protobuf", &endpoint, "--signals=traces", "--max-rate=0"];
            let tracing = mqspan.trace_counted(&options)?;
            stay_on(0..cpus)?;
            let callers: Vec<_> = if all { (0..cpus).collect() } else { vec![last] };
            let begun = Instant::now();
            let printed = thread::scope(|scope| -> Result<Vec<String>> {
                let start = |cpu: &usize| {
                    let (program, calls, cpu) = (mqspan.workload(), calls.clone(), cpu.to_string());
                    scope.spawn(move || workload::run(&program, &[workload, "--calls", &calls, "--cpu", &cpu]))
                };
                let threads: Vec<_> = callers.iter().map(start).collect();
                let printed = |thread: thread::ScopedJoinHandle<'_, Result<String>>| {
                    thread.join().map_err(|_| anyhow!("a caller's thread died"))?
                };
                threads.into_iter().map(printed).collect()
            })?;
            let peak = Memory::of(tracing.pid())?.resident;
            // mqspan is the one child that has not been waited for yet.
            let before = children_seconds()?;
            tracing.stop()?.ok()?;
            let (seconds, took) = (children_seconds()? - before, begun.elapsed().as_secs_f64());
            let stats = mqspan.stats()?;
            let (Stats { captured, .. }, lost) = (&stats, stats.lost_sum());
            ensure!(*captured >= calls.parse::<u64>()? * callers.len() as u64, "{stats:?}");
            println!(
                "{:26} {:>9} {captured:>9} {lost:>9} {:>8.2} {seconds:>9.2} {:>10.0} {:>8.2} {peak:>9}",
                format!("{workload}, {} CPU{}", callers.len(), if all && cpus > 1 { "s (all)" } else { "" }),
                printed[0].trim(),
                lost as f64 * 100.0 / *captured as f64,
                seconds * 1e9 / (captured - lost) as f64,
                seconds / took,
            );
            ensure!(receiver.bytes.load(Ordering::Relaxed) > 0, "nothing came");
        }
    }
    Ok(())
}

fn spread(mut of: Vec<f64>) -> String {
    of.sort_by(f64::total_cmp);
    format!("{:8.1} {:8.1} {:8.1}", of[0], of[of.len() / 2], of[of.len() - 1])
}

fn latency(mqspan: &Mqspan) -> Result<()> {
    println!("\nms from a call on an idle host until it is seen, of {TIMES}: least, median, most");
    let mut command =
        mqspan.command(["run", "--output=console", "--signals=traces", "--max-rate=0", "--queue=/bench-*"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut said = BufReader::new(child.stderr.take().context("no stderr")?);
    await_line(&mut said, "tracing")?;
    let mut times = Vec::new();
    for number in 0..TIMES {
        pause(number);
        let called = Instant::now();
        own::open(&format!("/bench-{number}"))?;
        await_line(&mut lines, "mq_open")?;
        times.push(called.elapsed().as_secs_f64() * 1e3);
    }
    end(&mut child)?;
    println!("console   {}", spread(times));

    let receiver = Receiver::start()?;
    let options =
        [&format!("--endpoint={}", receiver.endpoint), "--output=otlp", "--signals=traces", "--queue=/bench-*"];
    let tracing = mqspan.trace([&options[..], &["--protocol=http/protobuf", "--max-rate=0"]].concat())?;
    let mut times = Vec::new();
    for number in 0..TIMES {
        pause(number);
        // mqspan's own first spans may be among what came.
        while receiver.came.try_recv().is_ok() {}
        let called = Instant::now();
        own::open(&format!("/bench-{number}"))?;
        let came = receiver.came.recv_timeout(wait::LONG)?;
        times.push((came - called).as_secs_f64() * 1e3);
    }
    tracing.stop()?.ok()?;
    println!("OTLP      {}", spread(times));
    Ok(())
}

/// Long enough for everything to be asleep, and never the same share of a batch's second.
fn pause(number: usize) {
    thread::sleep(Duration::from_millis(300 + 37 * number as u64 % 200));
}

fn await_line(lines: &mut impl BufRead, with: &str) -> Result<()> {
    let mut line = String::new();
    while !line.contains(with) {
        line.clear();
        ensure!(lines.read_line(&mut line)? > 0, "it ended before {with:?}");
    }
    Ok(())
}

fn end(child: &mut std::process::Child) -> Result<()> {
    nix::sys::signal::kill(Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGINT)?;
    ensure!(child.wait()?.success(), "mqspan failed");
    Ok(())
}

fn start_and_end(mqspan: &Mqspan) -> Result<()> {
    println!("\nms of `run --output none -- date +%s.%N`, of {TIMES}: least, median, most");
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let command = || -> Command { mqspan.command(["run", "--output=none", "--", "date", "+%s.%N"]) };
        let called = SystemTime::now();
        let output = command().output()?;
        let ended = SystemTime::now();
        ensure!(output.status.success(), "{output:?}");
        let seconds =
            |time: SystemTime| -> Result<f64> { Ok(time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64()) };
        let there: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
        starts.push((there - seconds(called)?) * 1e3);
        ends.push((seconds(ended)? - there) * 1e3);
    }
    println!("start (until the command prints)   {}", spread(starts));
    println!("end (from there on)                {}", spread(ends));
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
    let now = resident_now(pid)?;
    tracing.stop()?.ok()?;
    println!(
        "\nidle for {seconds:.0} s: {:.1} switches a second over all threads, {:.2} % of a CPU, {now} KiB resident, {anonymous} KiB of it \
         without files and rings ({resident} KiB at most, while it started)",
        switches as f64 / seconds,
        ticks as f64 / seconds
    );
    Ok(())
}

/// What the live view takes beside a host that is at work.
fn top(mqspan: &Mqspan) -> Result<()> {
    const LONG: Duration = Duration::from_secs(10);
    const QUEUES: usize = 20;
    println!("\n% of a CPU that `top` takes, of {} s", LONG.as_secs());
    for rate in [0, 10, 100] {
        let mut pty = Pty::start(pty::command(mqspan.path(), ["top"]), 110, 30)?;
        pty.until("the view", |screen| screen.contains("mqspan top"))?;
        let queues = 0..if rate > 0 { QUEUES } else { 0 };
        let start = |number| Paced::start(mqspan, &format!("bench-top-{number}"), rate);
        let crowd = queues.map(start).collect::<Result<Vec<_>>>()?;
        thread::sleep(Duration::from_secs(2));
        let before = ticks(pty.id())?;
        thread::sleep(LONG);
        let taken = ticks(pty.id())? - before;
        crowd.into_iter().try_for_each(Paced::end)?;
        pty.press("q")?;
        pty.end_well()?;
        let percent = taken as f64 / LONG.as_secs_f64();
        println!("{QUEUES} queues, {rate:3} messages a second through each {percent:8.2}");
    }
    Ok(())
}

/// What is resident now, KiB (proc_pid_status(5)).
fn resident_now(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
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

fn growth(mqspan: &Mqspan) -> Result<()> {
    println!("\ngrowth, spans and metrics to nowhere, a collection each second");
    println!("{:34} {:>9} {:>7} {:>10} {:>9}", "", "captured", "lost", "CPU us each", "peak KiB");
    for number in [10, 1_000, 100_000] {
        let names = number.to_string();
        grow(mqspan, &format!("{number} queues, one after the other"), number, || {
            workload::run(&mqspan.workload(), &["names", "--names", &names]).map(drop)
        })?;
    }
    for number in [10, 1_000, 100_000] {
        let calls = number.to_string();
        grow(mqspan, &format!("{number} processes of one call each"), number, || {
            workload::run(&mqspan.workload(), &["short-lived", "--calls", &calls]).map(drop)
        })?;
    }
    // More than these take more mappings than a process may have.
    for number in [10, 1_000, 10_000] {
        grow(mqspan, &format!("{number} threads that wait"), number, || {
            let crowd = Held::crowd(mqspan, "bench-crowd", "native", (number / 100).clamp(1, 200), number)?;
            // They are looked at each second.
            thread::sleep(Duration::from_secs(5));
            crowd.let_go()
        })?;
    }
    Ok(())
}

fn grow(mqspan: &Mqspan, what: &str, number: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut command = mqspan.command(["run", "--output=none", "--max-rate=0"]);
    command.arg(format!("--stats-file={}", mqspan.file("stats.json").display()));
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "1000");
    let tracing = Tracing::start(command)?;
    let before = ticks(tracing.pid())?;
    work()?;
    let taken = ticks(tracing.pid())? - before;
    let peak = Memory::of(tracing.pid())?.resident;
    tracing.stop()?.ok()?;
    let stats = mqspan.stats()?;
    let (captured, lost) = (stats.captured, stats.lost_sum());
    println!("{what:34} {captured:>9} {lost:>7} {:>10.1} {peak:>9}", taken as f64 * 1e4 / number as f64);
    Ok(())
}
