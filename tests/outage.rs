//! Outages beyond those of one backend's answers: a Collector without memory, full disks, a signal that is not taken for
//! a while, metrics that wait, and a backend that is up and down at random. Needs root, tracefs and the Collector that
//! scripts/collector.sh builds. MQSPAN_TEST_OUTAGE says how many seconds the last one takes.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{collector::metrics::v1::ExportMetricsServiceRequest, metrics::v1::metric::Data};
use support::{
    backend::{self, Answer, Arrived, Backend},
    collector::{Collector, Ports},
    otlp::{self, made_by},
    own,
    program::{Ended, Mqspan, Tracing, finish},
    wait,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// `mqspan run` that sends what calls make to an endpoint, and nothing of itself.
fn command(mqspan: &Mqspan, endpoint: &str, options: &[&str]) -> Command {
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command =
        mqspan.command(["run", "--max-rate=0", "--output=otlp", "--protocol=grpc", "--endpoint", endpoint]);
    command.arg(stats).args(options).env("OTEL_SDK_DISABLED", "true");
    command
}

fn said(tracing: &Tracing, text: &str) -> Result<()> {
    wait::until(text, || Ok(tracing.said().iter().any(|line| line.contains(text)).then_some(())))
}

/// A small disk. Dropped, it is gone.
struct Disk(PathBuf);

impl Disk {
    fn new(folder: PathBuf, size: &str) -> Result<Self> {
        std::fs::create_dir(&folder)?;
        let disk = Self(folder);
        disk.mount(&format!("size={size}"))?;
        Ok(disk)
    }

    fn mount(&self, options: &str) -> Result<()> {
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", options, "mqspan-test"]).arg(&self.0).status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(())
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Prevents a Collector that is short of memory from losing what would be taken later.
#[test]
fn a_collector_without_memory() -> Result<()> {
    let (mqspan, ports, queue) = (mqspan()?, Ports::free()?, "/mqspan-test-memory");
    let refusing = Collector::start_refusing(ports, mqspan.file("refusing"))?;
    let options = ["--signals=traces", &*own::pid(), "--queue", queue];
    let tracing = Tracing::start(command(&mqspan, &ports.endpoint("grpc"), &options))?;
    own::opens(queue, 20)?;
    said(&tracing, "overloaded")?;
    let why = tracing.said();
    ensure!(why.iter().any(|line| line.contains("memory")), "{why:?}");
    refusing.stop()?;
    let collector = Collector::start_at(ports, mqspan.file("collector"), None)?;
    said(&tracing, "delivering again")?;
    tracing.stop()?.ok()?;
    let (stats, spans) = (mqspan.stats()?, collector.stop()?.spans()?);
    ensure!((spans.len(), stats.exported, stats.lost_sum()) == (20, 20, 0), "{} spans: {stats:?}", spans.len());
    Ok(())
}

/// Prevents SIGHUP from leaving a signal switched off that the backend takes by now.
#[test]
fn a_signal_is_tried_again_at_sighup() -> Result<()> {
    let (mqspan, queue, is_taken) = (mqspan()?, "/mqspan-test-sighup", Arc::new(AtomicBool::new(false)));
    let script = is_taken.clone();
    let backend = Backend::start(move |_, _| match script.load(Relaxed) {
        true => Answer::Taken,
        false => Answer::Grpc(tonic::Code::Unimplemented, None),
    })?;
    let options = ["--signals=traces", &*own::pid(), "--queue", queue];
    let tracing = Tracing::start(command(&mqspan, &backend.endpoint(), &options))?;
    own::opens(queue, 5)?;
    said(&tracing, "does not take traces")?;
    is_taken.store(true, Relaxed);
    tracing.signal(Signal::SIGHUP)?;
    // The hangup may be heard after some of these.
    wait::until("spans", || {
        own::open(queue)?;
        Ok((!backend.taken().0.is_empty()).then_some(()))
    })?;
    tracing.stop()?.ok()?;
    let (stats, (taken, again)) = (mqspan.stats()?, backend.taken());
    ensure!((taken.len() as u64, again) == (stats.exported, 0) && stats.lost_at("switched_off") >= 5, "{stats:?}");
    ensure!(stats.lost_sum() == stats.lost_at("switched_off"), "{stats:?}");
    Ok(())
}

/// Prevents a full disk from ending mqspan or its command, from spoiling the spool, and from losing anything uncounted.
#[test]
fn the_spool_on_a_full_disk() -> Result<()> {
    let (mqspan, ports) = (mqspan()?, Ports::free()?);
    let disk = Disk::new(mqspan.file("disk"), "3m")?;
    let spool = disk.file("spool");
    let options = ["--signals=traces", "--spool", &*spool, "--spool-size=64MiB"];
    let run = |calls: &str| -> Result<Ended> {
        let mut command = command(&mqspan, &ports.endpoint("grpc"), &options);
        command.args(["--", &mqspan.workload_arg(), "open", "--seed=5", "--calls", calls]);
        Ended::of(finish(command)?).ok()
    };
    let ended = run("120000")?;
    let full = mqspan.stats()?;
    println!("full: {full:?}");
    ended.said("the spool can't be written")?;
    ensure!(full.spooled > 0 && full.lost_sum() > full.lost_at("ring"), "{full:?}");
    // The disk is as full as before.
    let collector = Collector::start_at(ports, mqspan.file("collector"), None)?;
    run("100")?;
    let after = mqspan.stats()?;
    println!("after: {after:?}");
    ensure!((after.restored, after.spooled, after.lost_sum()) == (full.spooled, 0, 0), "{after:?}");
    // What was delivered may still stand in a spool that could not be written.
    disk.mount("remount,size=32m")?;
    run("1")?;
    let (last, spans) = (mqspan.stats()?, made_by(collector.stop()?.spans()?, &mqspan.workload()));
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.body.span_id).collect();
    println!("last: {last:?}");
    ensure!(last.spooled + last.lost_sum() == 0, "{last:?}");
    let once = (after.exported + last.exported - last.restored) as usize;
    ensure!(ids.len() == once, "{} spans arrived, not {once}: {after:?}, {last:?}", ids.len());
    Ok(())
}

/// Prevents a full disk from ending mqspan, and what the file does not hold from counting as exported.
#[test]
fn a_file_on_a_full_disk() -> Result<()> {
    let mqspan = mqspan()?;
    let disk = Disk::new(mqspan.file("disk"), "1m")?;
    let file = disk.file("calls.jsonl");
    let mut command = mqspan.command(["run", "--signals=traces", "--stats-file"]);
    command.arg(mqspan.file("stats.json")).arg(format!("--output=file:{file}"));
    command.args(["--", &mqspan.workload_arg(), "flat", "--calls=20000"]);
    let ended = Ended::of(finish(command)?).ok()?;
    ended.said("can't be written")?;
    let stats = mqspan.stats()?;
    println!("{stats:?}");
    ensure!(stats.lost_at("write") > 0 && stats.exported > 0, "{stats:?}");
    // The last line may be torn.
    let text = std::fs::read_to_string(&file)?;
    let whole = mqspan.file("whole");
    std::fs::write(&whole, &text[..text.rfind('\n').map_or(0, |end| end + 1)])?;
    let spans = otlp::spans(&whole)?.len() as u64;
    ensure!(spans == stats.exported, "{spans} spans in the file: {stats:?}");
    Ok(())
}

/// The counts of this process's calls on a queue, request by request as they arrived.
fn counts(requests: &[ExportMetricsServiceRequest], queue: &str) -> Result<Vec<(u64, u64)>> {
    let mut counts = Vec::new();
    let of_scope = requests.iter().flat_map(|request| &request.resource_metrics).flat_map(|of| &of.scope_metrics);
    for metric in of_scope.flat_map(|of| &of.metrics) {
        let Some(Data::ExponentialHistogram(histogram)) = &metric.data else { continue };
        for point in histogram.data_points.iter().filter(|_| metric.name == "messaging.client.operation.duration") {
            if otlp::text(&otlp::attributes(&point.attributes)?, "messaging.destination.name") == Some(queue) {
                counts.push((point.time_unix_nano, point.count));
            }
        }
    }
    Ok(counts)
}

/// Prevents metrics that wait from overtaking each other, a stream's last point from being lost with those that it stands
/// for, and a delta from being lost at all.
#[test]
fn metrics_that_wait() -> Result<()> {
    const ROUNDS: u64 = 8;
    for temporality in ["cumulative", "delta"] {
        let (mqspan, ports) = (mqspan()?, Ports::free()?);
        let (often, once) = (format!("/mqspan-test-often-{temporality}"), format!("/mqspan-test-once-{temporality}"));
        let spool = mqspan.file("spool").display().to_string();
        let options = ["--signals=metrics", &*own::pid(), "--queue=/mqspan-test-o*", "--spool", &*spool];
        let start = || {
            let mut command = command(&mqspan, &ports.endpoint("grpc"), &options);
            command.env("OTEL_METRIC_EXPORT_INTERVAL", "300");
            command.env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality);
            Tracing::start(command)
        };
        let tracing = start()?;
        own::open(&once)?;
        for _ in 0..ROUNDS {
            own::opens(&often, 10)?;
            thread::sleep(Duration::from_millis(350));
        }
        tracing.stop()?.ok()?;
        let collector = Collector::start_at(ports, mqspan.file("collector"), None)?;
        let tracing = start()?;
        wait::until("metrics", || {
            Ok(counts(&collector.received().metrics()?, &once).map(|of| !of.is_empty())?.then_some(()))
        })?;
        tracing.stop()?.ok()?;
        let requests = collector.stop()?.metrics()?;
        let (often, once) = (counts(&requests, &often)?, counts(&requests, &once)?);
        println!("{temporality}: often {often:?}, once {once:?}");
        ensure!(often.is_sorted(), "out of order: {often:?}");
        match temporality {
            // An attempt that is under way is not thinned.
            "cumulative" => ensure!(
                often.len() <= 2
                    && often.last().is_some_and(|(_, count)| *count == ROUNDS * 10)
                    && once.len() <= 2
                    && once.last().is_some_and(|(_, count)| *count == 1),
                "{often:?}, {once:?}"
            ),
            _ => {
                let sum = |of: &[(u64, u64)]| of.iter().map(|(_, count)| count).sum::<u64>();
                ensure!((sum(&often), sum(&once)) == (ROUNDS * 10, 1), "{often:?}, {once:?}");
                ensure!(often.len() > 2, "not all deltas of their own: {often:?}");
            }
        }
    }
    Ok(())
}

fn seconds() -> Result<Duration> {
    Ok(Duration::from_secs(env::var("MQSPAN_TEST_OUTAGE").map_or(Ok(20), |seconds| seconds.parse())?))
}

/// How often each span arrived.
type Taken = HashMap<Vec<u8>, usize>;

fn add(taken: &mut Taken, arrived: Vec<Arrived>) {
    for id in arrived.into_iter().filter(|request| request.taken).flat_map(|request| request.spans) {
        *taken.entry(id).or_default() += 1;
    }
}

/// A backend that is up for some seconds and down for some, until it is over; half of the times it hangs before it goes.
fn up_and_down(port: u16, over: &AtomicBool) -> Result<(Taken, u32)> {
    let (mut taken, mut outages) = (Taken::new(), 0);
    let some_time = |most: u64| Duration::from_millis(500 + rand::random::<u64>() % most);
    while !over.load(Relaxed) {
        let hangs = Arc::new(AtomicBool::new(false));
        let script = hangs.clone();
        let backend = Backend::start_at(port, move |_, _| match script.load(Relaxed) {
            true => Answer::Nothing,
            false => Answer::Taken,
        })?;
        thread::sleep(some_time(8000));
        if rand::random() {
            hangs.store(true, Relaxed);
            thread::sleep(some_time(3000));
        }
        add(&mut taken, backend.stop());
        outages += 1;
        thread::sleep(some_time(8000));
    }
    Ok((taken, outages))
}

/// Calls at a steady rate meanwhile. With a spool the backend is up at the end, without one it is not.
fn steady(with_spool: bool, queue: &str) -> Result<String> {
    let (mqspan, port, time) = (mqspan()?, backend::free_port()?, seconds()?);
    let (pid, queues) = (own::pid(), format!("--queue={queue}"));
    let spool = mqspan.file("spool").display().to_string();
    let mut options = vec!["--signals=traces", &pid, &queues];
    if with_spool {
        options.extend(["--spool", &spool]);
    }
    let tracing = Tracing::start(command(&mqspan, &format!("http://127.0.0.1:{port}"), &options))?;
    let over = Arc::new(AtomicBool::new(false));
    let backend = thread::spawn({
        let over = over.clone();
        move || up_and_down(port, &over)
    });
    let (start, mut made) = (Instant::now(), 0);
    while start.elapsed() < time {
        own::open(queue)?;
        made += 1;
        // Some hundred calls a second.
        thread::sleep(Duration::from_millis(5));
    }
    over.store(true, Relaxed);
    let (mut taken, outages) = backend.join().map_err(|_| anyhow!("a thread panicked"))??;
    if with_spool {
        let last = Backend::start_at(port, |_, _| Answer::Taken)?;
        // At the latest after the longest pause between two attempts, 45 s.
        let all = wait::until("all spans", || {
            let mut all = taken.clone();
            add(&mut all, last.arrived());
            Ok((all.len() >= made).then_some(()))
        });
        tracing.stop()?.ok()?;
        add(&mut taken, last.stop());
        all.with_context(|| format!("{} of {made}: {:?}", taken.len(), mqspan.stats()))?;
    } else {
        tracing.stop()?.ok()?;
    }
    let (stats, twice) = (mqspan.stats()?, taken.values().filter(|times| **times > 1).count());
    let figures = format!(
        "spool: {with_spool}; {outages} outages, {made} calls, {} arrived, {twice} of them twice; {stats:?}",
        taken.len()
    );
    let sent = stats.exported as usize;
    ensure!(sent + stats.lost_sum() as usize == made, "{figures}");
    // One whose answer was cut off has arrived, and mqspan can't know.
    ensure!(taken.len() >= sent, "{figures}");
    ensure!(!with_spool || (sent == made && stats.spooled == 0), "{figures}");
    Ok(figures)
}

/// Prevents a backend that comes and goes from costing anything where there is a spool, and anything uncounted where
/// there is none.
#[test]
fn up_and_down_at_random() -> Result<()> {
    thread::scope(|scope| {
        let runs = [(true, "/mqspan-test-steady-spool"), (false, "/mqspan-test-steady")]
            .map(|(with_spool, queue)| scope.spawn(move || steady(with_spool, queue)));
        runs.into_iter().try_for_each(|run| {
            println!("{}", run.join().map_err(|_| anyhow!("a thread panicked"))??);
            Ok(())
        })
    })
}
