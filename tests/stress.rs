//! stress-ng's mq stressor beside mqspan, which traces the host with its default limit: its count and mqspan's, what
//! mqspan takes, and what it leaves behind. Needs root, tracefs and stress-ng; MQSPAN_TEST_STRESS says for how many
//! seconds.

use std::{collections::BTreeMap, env, fs, process::Command};

use anyhow::{Context, Result, ensure};
use libbpf_rs::{MapCore, MapHandle, MapType};
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, metric::Data};
use support::{
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

/// The entries of mqspan's maps that grow with what is traced, by name.
fn entries(pid: u32) -> Result<BTreeMap<String, usize>> {
    let mut entries = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Some are gone again.
        let info = fs::read_to_string(file?.path()).unwrap_or_default();
        let Some(id) = info.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let map = MapHandle::from_map_id(id.trim().parse()?)?;
        if matches!(map.map_type(), MapType::Hash) {
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
