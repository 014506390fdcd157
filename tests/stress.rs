//! stress-ng's mq stressor beside mqspan, which traces the host with its default limit: its count and mqspan's, what
//! mqspan takes, and what it leaves behind; then whatever else could grow in mqspan, all at once. Needs root, tracefs and stress-ng; MQSPAN_TEST_STRESS says for how many
//! seconds.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use libbpf_rs::{MapCore, MapHandle, MapType};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, metric::Data};
use support::{
    backend::{Answer, Backend},
    fed::Fed,
    otlp::{self, text},
    program::{Memory, Mqspan, Tracing},
    ready, wait,
};

const WORKERS: u64 = 2;

/// Runs the stressor; what it counts: messages sent.
fn stress(mqspan: &Mqspan, seconds: u64) -> Result<u64> {
    let report = mqspan.file("stress.yaml");
    let mut command = Command::new("stress-ng");
    command.args(["--mq", &WORKERS.to_string(), "--timeout", &seconds.to_string(), "--metrics", "--verify", "--yaml"]);
    let output = command.arg(&report).output()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let report = fs::read_to_string(report)?;
    let count = report.lines().find_map(|line| line.trim().strip_prefix("bogo-ops: ")).context("no bogo-ops")?;
    Ok(count.trim().parse()?)
}

/// The entries of mqspan's maps that grow with what is traced, by name. Marks of names stay for as long as user space
/// has room for the names: they are not among them.
fn entries(pid: u32) -> Result<BTreeMap<String, usize>> {
    let mut entries = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Some are gone again.
        let info = fs::read_to_string(file?.path()).unwrap_or_default();
        let Some(id) = info.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let map = MapHandle::from_map_id(id.trim().parse()?)?;
        if matches!(map.map_type(), MapType::Hash) && map.name() != "named" {
            entries.insert(map.name().to_string_lossy().into_owned(), map.keys().count());
        }
    }
    Ok(entries)
}

/// The successful calls of stress-ng that metrics have, by operation.
fn counted(mqspan: &Mqspan) -> Result<BTreeMap<String, u64>> {
    let mut counted = BTreeMap::new();
    for of in otlp::metrics(&mqspan.file("all"))?.iter().flat_map(|request| &request.resource_metrics) {
        let resource = otlp::attributes(of.resource.as_ref().map(|it| &*it.attributes).unwrap_or_default())?;
        if text(&resource, "process.executable.name") != Some("stress-ng") {
            continue;
        }
        for metric in of.scope_metrics.iter().flat_map(|of| &of.metrics) {
            let Some(Data::ExponentialHistogram(data)) = &metric.data else { continue };
            if metric.name != "messaging.client.operation.duration" {
                continue;
            }
            ensure!(data.aggregation_temporality() == AggregationTemporality::Delta, "{data:?}");
            for point in &data.data_points {
                let attributes = otlp::attributes(&point.attributes)?;
                let operation = text(&attributes, "messaging.operation.name").context("no operation")?;
                let errno = text(&attributes, "posix_mq.errno").unwrap_or("ok");
                *counted.entry(format!("{operation} {errno}")).or_default() += point.count;
            }
        }
    }
    Ok(counted)
}

/// Prevents calls from going uncounted at any rate, and mqspan from growing with what it watches.
#[test]
fn a_stressor_of_queues() -> Result<()> {
    ready::program("stress-ng")?;
    let seconds = env::var("MQSPAN_TEST_STRESS").map_or(Ok(60), |seconds| seconds.parse::<u64>())?;
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command =
        mqspan.command(["run", "--signals=traces,metrics", "--max-rate=100", &stats, &mqspan.to_file("all")]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "1000");
    command.env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
    let tracing = Tracing::start(command)?;
    let before = entries(tracing.pid())?;
    let sent = stress(&mqspan, seconds)?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", tracing.pid()))?;
    let ticks: u64 =
        stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2).flat_map(str::parse::<u64>).sum();
    let Memory { resident, anonymous } = Memory::of(tracing.pid())?;
    let mut after = BTreeMap::new();
    let forgotten = wait::until("the end of what was kept of the stressor", || {
        after = entries(tracing.pid())?;
        let is_small = |(name, count): (&String, &usize)| *count <= before.get(name).copied().unwrap_or(0);
        Ok(after.iter().all(is_small).then_some(()))
    });
    tracing.stop()?.ok()?;
    let (counted, stats) = (counted(&mqspan)?, mqspan.stats()?);
    println!("{seconds} s: {sent} messages; {counted:?}");
    println!("{stats:?}");
    println!(
        "CPU {:.1} % of one; {resident} KiB at most, {anonymous} KiB without files",
        ticks as f64 / seconds as f64
    );
    println!("maps before {before:?}, after {after:?}");
    forgotten.with_context(|| format!("before {before:?}, after {after:?}"))?;
    // A worker that ends sends one message more than it counts.
    let found = counted.get("mq_timedsend ok").copied().unwrap_or_default();
    ensure!((sent..=sent + WORKERS).contains(&found), "{found} sends, stress-ng has {sent}");
    let all: u64 = counted.values().sum();
    ensure!(stats.captured >= all, "{} captured, {all} in metrics", stats.captured);
    ensure!(anonymous <= 64 << 10, "{anonymous} KiB");
    Ok(())
}

/// Loads that each would have a table, queue or wait of mqspan grow, as shell commands: `$0` is the workload. Each goes on
/// until it is killed.
const LOADS: [&str; 7] = [
    // Series and names.
    "while :; do for each in {1..16}; do OTEL_SERVICE_NAME=$RANDOM \"$0\" names & done; wait; done",
    // Processes.
    "while :; do \"$0\" short-lived --calls 9000; done",
    // Links that stay open.
    "while :; do \"$0\" ledger --messages 20000 --threads 8 --priorities 32768 --print /dev/null; done",
    // Whose message, again and again: never empty.
    "sleep infinity | \"$0\" full",
    // Queues, in namespaces that end with them.
    "while :; do unshare --ipc \"$0\" open --calls 2000 --seed $RANDOM; done",
    // Descriptions of processes of 64 KiB, and of others.
    "while :; do X=$(head -c 100000 /dev/zero | tr '\\0' x) OTEL_RESOURCE_ATTRIBUTES=a=$X \"$0\" flat --calls 1; done",
    // Calls.
    "while :; do \"$0\" flat; done",
];

/// A shell with all that it started; dropped, they are killed.
struct Load(Child);

impl Load {
    fn start(mqspan: &Mqspan, script: &str) -> Result<Self> {
        let mut command = Command::new("bash");
        command.args(["-c", script]).arg(mqspan.workload()).process_group(0);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(quiet.spawn()?))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Prevents processes that are hostile to each part of mqspan, all at once, with a backend that hangs, from having it take
/// more memory than the contract allows.
#[test]
fn everything_at_once() -> Result<()> {
    let seconds = env::var("MQSPAN_TEST_STRESS").map_or(Ok(60), |seconds| seconds.parse::<u64>())?;
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let backend = Backend::start(|_, _| Answer::Nothing)?;
    let spool = format!("--spool={}", mqspan.file("spool").display());
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--signals=traces,logs,metrics", "--max-rate=0", "--output=otlp"]);
    command.args([&*spool, "--spool-size=64MiB", &*stats, "--endpoint", &*backend.endpoint()]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "1000");
    let tracing = Tracing::start(command)?;
    let quiet = Memory::of(tracing.pid())?;
    let mut loads = Vec::new();
    for load in LOADS {
        loads.push(Load::start(&mqspan, load)?);
    }
    let mut hostile = Vec::new();
    for how in ["fuse", "lock", "mappings", "prctl", "numbers"] {
        let folder = mqspan.file(how);
        fs::create_dir(&folder)?;
        let mut command = Command::new(mqspan.workload());
        command.args(["hostile", how]).arg(folder);
        hostile.push(Fed::start(command, "hostile")?);
    }
    let start = Instant::now();
    let mut most = quiet;
    while start.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(Duration::from_millis(100));
        most = most.most(Memory::of(tracing.pid())?);
    }
    drop(loads);
    hostile.into_iter().try_for_each(Fed::end)?;
    tracing.stop()?.ok()?;
    println!("{seconds} s: idle {quiet:?}, at most {most:?} KiB; {:?}", mqspan.stats()?);
    ensure!(most.resident <= 64 << 10, "{most:?} KiB");
    Ok(())
}
