//! The spool: outages, restarts, kill -9. Needs root, tracefs and the Collector that scripts/collector.sh builds.
//! MQSPAN_TEST_KILLS says how often mqspan is killed.

use std::{
    collections::{BTreeSet, HashMap},
    env, fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{
    backend::{self, Answer, Arrived, Backend},
    collector::{Collector, Ports, Received},
    otlp::{Record, made_by},
    own,
    program::{Ended, Mqspan, Tracing, finish},
    stats::Stats,
    wait,
};

/// How long it may take from a call to the disk, the contract's, and from a backend's answer to its being struck off: a
/// busy machine may take its time for what is done at once.
const TO_DISK: Duration = Duration::from_secs(5);
const STRUCK_OFF: Duration = Duration::from_millis(500);

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// `mqspan run` that sends spans of calls, and nothing of itself, to an endpoint, with a spool in the test's folder.
fn command(mqspan: &Mqspan, endpoint: &str, protocol: &str, options: &[&str]) -> Command {
    let (stats, spool) = (mqspan.file("stats.json").display().to_string(), mqspan.file("spool").display().to_string());
    let mut command = mqspan.command(["run", "--signals=traces", "--output=otlp", "--max-rate=0", "--spool", &spool]);
    command.args(["--stats-file", &stats, "--endpoint", endpoint, "--protocol", protocol]).args(options);
    command.env("OTEL_SDK_DISABLED", "true");
    command
}

/// Runs it with the workload's `flat` as its command.
fn run(mqspan: &Mqspan, endpoint: &str, protocol: &str, options: &[&str], calls: u64) -> Result<(Stats, Ended)> {
    let mut command = command(mqspan, endpoint, protocol, options);
    match calls {
        0 => command.args(["--", "true"]),
        calls => command.args(["--", &mqspan.workload_arg(), "flat", "--calls", &calls.to_string()]),
    };
    let ended = Ended::of(finish(command)?).ok()?;
    Ok((mqspan.stats()?, ended))
}

/// Prevents an outage that outlasts mqspan from losing or doubling anything, also where the next run sends otherwise.
#[test]
fn an_outage_that_outlasts_mqspan() -> Result<()> {
    for (before, after, sync) in
        [("http/json", "grpc", false), ("grpc", "http/json", true), ("http/protobuf", "http/protobuf", false)]
    {
        let mqspan = mqspan()?;
        let ports = Ports::free()?;
        let options: &[&str] = if sync { &["--spool-sync"] } else { &[] };
        let (first, ended) = run(&mqspan, &ports.endpoint(before), before, options, 300)?;
        ensure!((first.captured - first.filtered, first.exported, first.spooled) == (300, 0, 300), "{first:?}");
        ended.said("300 left in the spool")?;
        let collector = Collector::start_at(ports, mqspan.file("collector"), None)?;
        let (second, ended) = run(&mqspan, &ports.endpoint(after), after, options, 100)?;
        let balance = (second.restored, second.exported, second.spooled, second.lost_sum());
        ensure!(balance == (300, 400, 0, 0), "{second:?}");
        ended.said("300 found in the spool at the start")?;
        ensure!(second.outputs["otlp.traces"].sent == 400, "{second:?}");
        let spans = made_by(collector.stop()?.spans()?, &mqspan.workload());
        let ids: BTreeSet<_> = spans.iter().map(|span| &span.body.span_id).collect();
        ensure!((spans.len(), ids.len()) == (400, 400), "{before}, {after}: {} spans, {} ids", spans.len(), ids.len());
        let (third, _) = run(&mqspan, &ports.endpoint(after), after, options, 0)?;
        ensure!((third.restored, third.exported) == (0, 0), "{third:?}");
    }
    Ok(())
}

/// The spans of this test's own calls that a Collector has written.
fn of(received: &Received, queue: &str) -> Result<Vec<Record<Span>>> {
    let mut spans = received.spans()?;
    spans.retain(|span| span.text("messaging.destination.name") == Some(queue));
    Ok(spans)
}

/// Prevents a backend that dies and comes back while mqspan runs from losing or doubling anything.
#[test]
fn a_backend_that_is_killed_in_mid_run() -> Result<()> {
    let (mqspan, ports, queue) = (mqspan()?, Ports::free()?, "/mqspan-test-mid-run");
    let options = [&*own::pid(), "--queue", queue];
    let first = Collector::start_at(ports, mqspan.file("first"), None)?;
    let tracing = Tracing::start(command(&mqspan, &ports.endpoint("grpc"), "grpc", &options))?;
    // A line may be half written.
    let arrived = |collector: &Collector| of(&collector.received(), queue).map_or(0, |spans| spans.len());
    own::opens(queue, 100)?;
    // What it has taken but not written yet would be its own loss.
    wait::until("the first spans", || Ok((arrived(&first) == 100).then_some(())))?;
    let first = first.kill()?;
    own::opens(queue, 200)?;
    wait::until("trouble", || Ok(tracing.said().iter().any(|line| line.contains("can't be reached")).then_some(())))?;
    own::opens(queue, 200)?;
    let second = Collector::start_at(ports, mqspan.file("second"), None)?;
    wait::until("the second Collector's spans", || Ok((arrived(&second) == 400).then_some(())))?;
    own::opens(queue, 100)?;
    tracing.stop()?.ok()?.said("delivering again")?;
    let spans = [of(&first, queue)?, of(&second.stop()?, queue)?].concat();
    let (ids, stats) = (spans.iter().map(|span| &span.body.span_id).collect::<BTreeSet<_>>(), mqspan.stats()?);
    ensure!((spans.len(), ids.len()) == (600, 600), "{} spans, {} ids: {stats:?}", spans.len(), ids.len());
    ensure!(stats.exported == 600 && stats.lost_sum() + stats.spooled + stats.restored == 0, "{stats:?}");
    Ok(())
}

fn kills() -> Result<u32> {
    env::var("MQSPAN_TEST_KILLS").map_or(Ok(4), |kills| Ok(kills.parse()?))
}

/// Prevents a call that is older than the contract's five seconds from being lost when mqspan is killed, whatever it does
/// then, and anything from arriving twice that no backend had got.
#[test]
fn killed_while_the_backend_is_away() -> Result<()> {
    let mqspan = mqspan()?;
    let ports = Ports::free()?;
    let (mut promised, mut made) = (BTreeSet::new(), 0);
    for round in 0..kills()? {
        // Decided in the kernel: what other tests do meanwhile does not fill the ring.
        let options = [&*own::pid(), "--queue=/mqspan-test-kill-*"];
        let tracing = Tracing::start(command(&mqspan, &ports.endpoint("grpc"), "grpc", &options))?;
        let lives = Duration::from_millis(4000 + u64::from(rand::random::<u16>()) % 4000);
        let (start, mut calls) = (Instant::now(), Vec::new());
        while start.elapsed() < lives {
            let name = format!("/mqspan-test-kill-{round}-{}", calls.len());
            own::open(&name)?;
            calls.push((name, Instant::now()));
            // Some hundred calls a second.
            thread::sleep(Duration::from_millis(2));
        }
        let killed = Instant::now();
        drop(tracing);
        made += calls.len();
        promised.extend(calls.into_iter().filter(|(_, at)| *at + TO_DISK <= killed).map(|(name, _)| name));
    }
    let collector = Collector::start_at(ports, mqspan.file("collector"), None)?;
    let (stats, _) = run(&mqspan, &ports.endpoint("grpc"), "grpc", &[], 0)?;
    let spans = collector.stop()?.spans()?;
    let arrived: BTreeSet<_> = spans.iter().filter_map(|span| span.text("messaging.destination.name")).collect();
    println!("{} kills: {made} calls, {} promised, {} arrived", kills()?, promised.len(), arrived.len());
    ensure!(!promised.is_empty(), "no round was long enough to say anything");
    ensure!(arrived.len() == spans.len(), "{} of {} spans arrived twice", spans.len() - arrived.len(), spans.len());
    let missing: Vec<_> = promised.iter().filter(|name| !arrived.contains(&***name)).collect();
    ensure!(missing.is_empty(), "{} are missing: {missing:?}", missing.len());
    ensure!((stats.restored, stats.exported) == (spans.len() as u64, spans.len() as u64), "{stats:?}");
    Ok(())
}

/// Prevents what is on disk from being lost when mqspan is killed while it delivers it, and from arriving twice but for
/// what was in flight.
#[test]
fn killed_while_it_delivers() -> Result<()> {
    let mqspan = mqspan()?;
    let port = backend::free_port()?;
    let endpoint = format!("http://127.0.0.1:{port}");
    let (filled, _) = run(&mqspan, &endpoint, "http/protobuf", &[], 50_000)?;
    ensure!(filled.spooled > 20_000 && filled.lost_sum() == filled.lost_at("ring"), "{filled:?}");
    // Slow enough to be at it at each kill: some fifty requests.
    let (pause, is_quick) = (Duration::from_millis(10) * kills()?, Arc::new(AtomicBool::new(false)));
    let last = is_quick.clone();
    let backend = Backend::start_at(port, move |_, _| match last.load(Relaxed) {
        true => Answer::Taken,
        false => Answer::TakenAfter(pause),
    })?;
    let mut killed = Vec::new();
    for _ in 0..kills()? {
        // It delivers before it is ready, too.
        let mut command = command(&mqspan, &endpoint, "http/protobuf", &["--pid=1"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let (start, lives) = (Instant::now(), Duration::from_millis(u64::from(rand::random::<u16>()) % 1500));
        let moment = wait::until("a moment", || Ok((start.elapsed() >= lives).then_some(())));
        child.kill()?;
        killed.push(Instant::now());
        child.wait()?;
        moment?;
    }
    is_quick.store(true, Relaxed);
    let (stats, _) = run(&mqspan, &endpoint, "http/protobuf", &[], 0)?;
    let (ids, again) = backend.taken();
    println!(
        "{} kills: {} spooled, {} found at last, {} arrived, {again} of them twice",
        killed.len(),
        filled.spooled,
        stats.restored,
        ids.len(),
    );
    ensure!(ids.len() as u64 == filled.spooled, "{} of {} arrived", ids.len(), filled.spooled);
    ensure!(stats.spooled + stats.lost_sum() == 0, "{stats:?}");
    let mut last = HashMap::new();
    for Arrived { at, answered, spans, .. } in backend.arrived().into_iter().filter(|request| request.taken) {
        let answered = answered.unwrap_or(at);
        for id in spans {
            let Some((at, answered)) = last.insert(id, (at, answered)) else { continue };
            let in_flight = killed.iter().any(|killed| at <= *killed && *killed <= answered + STRUCK_OFF);
            ensure!(in_flight, "a span came again that had been taken at {answered:?}; kills at {killed:?}");
        }
    }
    Ok(())
}

fn bytes_in(folder: &Path) -> Result<u64> {
    fs::read_dir(folder)?.map(|file| Ok(file?.metadata()?.len())).sum()
}

/// Prevents a long outage from filling the disk, and the newest calls from being dropped for the oldest, or uncounted.
#[test]
fn the_oldest_makes_room() -> Result<()> {
    const SIZE: u64 = 8 << 20;
    let mqspan = mqspan()?;
    let ports = Ports::free()?;
    let script = "\"$0\" flat --calls=1 && \"$0\" open --calls=150000 --seed=77 && \"$0\" flat --calls=1";
    let mut command = command(&mqspan, &ports.endpoint("grpc"), "grpc", &[&format!("--spool-size={SIZE}")]);
    command.args(["--", "bash", "-c", script, &mqspan.workload_arg()]);
    let running = thread::spawn(move || finish(command));
    let mut most = 0;
    while !running.is_finished() {
        most = most.max(bytes_in(&mqspan.file("spool")).unwrap_or_default());
        thread::sleep(Duration::from_millis(5));
    }
    Ended::of(running.join().ok().context("a thread panicked")??).ok()?;
    let stats = mqspan.stats()?;
    println!("at most {most} bytes: {stats:?}");
    ensure!(most <= SIZE, "{most} bytes of {SIZE}");
    ensure!(stats.lost_at("spool_full") > 0 && stats.spooled > 10_000, "{stats:?}");
    ensure!(stats.lost_sum() == stats.lost_at("spool_full") + stats.lost_at("ring"), "{stats:?}");
    let collector = Collector::start_at(ports, mqspan.file("collector"), None)?;
    let (next, _) = run(&mqspan, &ports.endpoint("grpc"), "grpc", &[], 0)?;
    ensure!((next.restored, next.exported) == (stats.spooled, stats.spooled), "{next:?}");
    let spans = made_by(collector.stop()?.spans()?, &mqspan.workload());
    ensure!(spans.len() as u64 == stats.spooled, "{} spans arrived: {stats:?}", spans.len());
    let marks = spans.iter().filter(|span| span.text("messaging.destination.name") == Some("/workload-missing"));
    let marks: Vec<_> = marks.map(|span| span.body.start_time_unix_nano).collect();
    ensure!(marks.len() == 1, "of the first and the last call {} were kept", marks.len());
    let before = spans.iter().filter(|span| span.body.start_time_unix_nano < marks[0]).count();
    ensure!(before + 1 == spans.len(), "the first call was kept, the last one was not");
    Ok(())
}

/// Prevents two processes from spoiling one spool, and the second from not saying why it won't run.
#[test]
fn one_process_at_a_time() -> Result<()> {
    let mqspan = mqspan()?;
    let endpoint = Ports::free()?.endpoint("grpc");
    let tracing = Tracing::start(command(&mqspan, &endpoint, "grpc", &[]))?;
    let mut second = command(&mqspan, &endpoint, "grpc", &[]);
    second.args(["--", "true"]);
    let ended = Ended::of(finish(second)?);
    ensure!(ended.status.code() == Some(1) && ended.stderr.len() <= 2, "{ended:?}");
    ended.said("another mqspan uses it")?;
    tracing.stop()?.ok().map(drop)
}

/// Prevents a damaged file from keeping mqspan from starting, and from being lost to whoever wants to look at it.
#[test]
fn a_damaged_file_is_set_aside() -> Result<()> {
    let mqspan = mqspan()?;
    let ports = Ports::free()?;
    let (protocol, file) = ("http/protobuf", mqspan.file("spool").join("spool.sqlite"));
    run(&mqspan, &ports.endpoint(protocol), protocol, &[], 300)?;
    let mut bytes = fs::read(&file)?;
    let length = bytes.len();
    ensure!(length > 3 * 4096, "{length} bytes");
    bytes[2 * 4096..].fill(0xff);
    fs::write(&file, bytes)?;
    let backend = Backend::start(|_, _| Answer::Taken)?;
    let (stats, ended) = run(&mqspan, &backend.endpoint(), protocol, &[], 100)?;
    ended.said("the spool is damaged")?;
    ensure!((stats.restored, stats.exported, stats.lost_sum()) == (0, 100, 0), "{stats:?}");
    let names = fs::read_dir(mqspan.file("spool"))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    ensure!(names.iter().any(|name| name.starts_with("spool.sqlite.damaged-")), "{names:?}");
    Ok(())
}

/// Prevents a disk that damages the spool while it is in use from ending what comes later, and from hiding what was lost.
#[test]
fn a_file_that_is_damaged_while_it_is_in_use() -> Result<()> {
    let (mqspan, port, queue) = (mqspan()?, backend::free_port()?, "/mqspan-test-damaged");
    let endpoint = format!("http://127.0.0.1:{port}");
    let (protocol, file) = ("http/protobuf", mqspan.file("spool").join("spool.sqlite"));
    let options = [&*own::pid(), "--queue", queue];
    let tracing = Tracing::start(command(&mqspan, &endpoint, protocol, &options))?;
    // More than stays in memory, each batch in requests of its own.
    for _ in 0..20 {
        own::opens(queue, 1000)?;
    }
    wait::until("calls on disk", || Ok((bytes_in(&mqspan.file("spool"))? > 100 * 4096).then_some(())))?;
    // SQLite's file and its log, but for their first pages.
    for file in [file.clone(), file.with_extension("sqlite-wal")] {
        let spoilt = fs::OpenOptions::new().write(true).open(&file)?;
        let rest = spoilt.metadata()?.len().saturating_sub(4096);
        spoilt.write_all_at(&vec![0xff; usize::try_from(rest)?], 4096)?;
    }
    let backend = Backend::start_at(port, |_, _| Answer::Taken)?;
    tracing.signal(Signal::SIGHUP)?;
    let is_said = || tracing.said().iter().any(|line| line.contains("the spool is damaged"));
    wait::until("the damage", || {
        own::opens(queue, 10)?;
        Ok(is_said().then_some(()))
    })?;
    let before = backend.taken().0.len();
    own::opens(queue, 100)?;
    wait::until("what comes later", || Ok((backend.taken().0.len() >= before + 100).then_some(())))?;
    tracing.stop()?.ok()?;
    let (stats, arrived) = (mqspan.stats()?, backend.taken().0.len() as u64);
    println!("{arrived} arrived; {stats:?}");
    ensure!(stats.lost_at("spool_damaged") > 0 && stats.spooled == 0, "{stats:?}");
    ensure!(stats.exported <= arrived, "{arrived} arrived: {stats:?}");
    Ok(())
}
