//! otel-config/alerts.yaml: each rule fires for what it is about and is resolved when that is over, by promtool on series that
//! are named as Prometheus names mqspan's metrics, and by a real mqspan and a real Prometheus. Needs root and what
//! scripts/backends.sh builds: `make test-backends` runs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    mqueue::{MQ_OFlag, MqAttr, MqdT, mq_close, mq_open, mq_receive, mq_send, mq_unlink},
    sys::stat::Mode,
};
use serde_json::Value;
use support::{
    http::get,
    program::{Mqspan, Tracing},
    prometheus::Prometheus,
    server::program,
    wait,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn promtool(arguments: &[&str]) -> Result<String> {
    let output = Command::new(program("MQSPAN_TEST_PROMTOOL")?)
        .args(arguments)
        .current_dir(root())
        .output()
        .context("promtool")?;
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said)
}

/// The rules by name.
fn rules() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(root().join("otel-config/alerts.yaml"))?;
    Ok(text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(String::from).collect())
}

/// Prevents a rule that Prometheus refuses, that fires too early or never, stays, or says something with a gap in it.
#[test]
fn by_promtool() -> Result<()> {
    let checked = promtool(&["check", "rules", "otel-config/alerts.yaml"])?;
    ensure!(checked.contains(&format!("SUCCESS: {} rules found", rules()?.len())), "{checked}");
    promtool(&["check", "config", "otel-config/prometheus.yaml"])?;
    let tests = fs::read_to_string(root().join("tests/backends/alerts.yaml"))?;
    for rule in rules()? {
        ensure!(tests.contains(&format!("alertname: {rule}\n")), "{rule} is in no test");
    }
    promtool(&["test", "rules", "tests/backends/alerts.yaml"]).map(drop)
}

/// The alerts that fire at Prometheus, by name.
fn firing(prometheus: &Prometheus) -> Result<BTreeMap<String, Value>> {
    let answer = get(&prometheus.address, "/api/v1/alerts")?;
    let alerts = answer["data"]["alerts"].as_array().with_context(|| answer.to_string())?;
    let fires = alerts.iter().filter(|alert| alert["state"] == "firing");
    fires
        .map(|alert| {
            let name = alert["labels"]["alertname"].as_str().with_context(|| alert.to_string())?;
            Ok((name.to_owned(), alert.clone()))
        })
        .collect()
}

/// The configuration that users have, but for what makes it slow.
fn hurried(mqspan: &Mqspan) -> Result<PathBuf> {
    let write = |name: &str, changes: &[(&str, &str)]| -> Result<PathBuf> {
        let mut text = fs::read_to_string(root().join("otel-config").join(name))?;
        for (long, short) in changes {
            ensure!(text.contains(long), "{name} has no {long:?} any more");
            text = text.replace(long, short);
        }
        let path = mqspan.file(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    write(
        "alerts.yaml",
        &[("for: 5m", "for: 1s"), ("for: 1m", "for: 1s"), ("offset 5m", "offset 10s"), ("> 60", "> 1")],
    )?;
    write("prometheus.yaml", &[("evaluation_interval: 15s", "evaluation_interval: 1s")])
}

fn open(name: &str, access: MQ_OFlag, maxmsg: i64) -> nix::Result<MqdT> {
    let attr = MqAttr::new(0, maxmsg, 16, 0);
    mq_open(name, access | MQ_OFlag::O_CREAT, Mode::S_IRUSR | Mode::S_IWUSR, Some(&attr))
}

/// Prevents a rule that asks for other series than those that mqspan's metrics become: each fires for a queue that is full
/// and read by nobody, a receiver that waits at an unlinked one, an open that fails, a backend that takes no spans; and is
/// resolved once a receiver comes.
#[test]
fn by_a_real_prometheus() -> Result<()> {
    const FULL: &str = "/mqspan-test-alerts-full";
    const TWICE: &str = "/mqspan-test-alerts-twice";
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let prometheus = Prometheus::start(&mqspan, &hurried(&mqspan)?)?;
    let mut command = mqspan.command(["run", "--signals=traces,metrics", "--output=otlp"]);
    command.args(["--queue=/mqspan-test-alerts-*", "--max-rate=0"]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "500");
    command.env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", prometheus.endpoint());
    // There is nothing that takes spans.
    command.env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://{}/nothing", prometheus.address));
    let tracing = Tracing::start(command)?;

    let sends = open(FULL, MQ_OFlag::O_WRONLY, 2)?;
    (0..2).try_for_each(|_| mq_send(&sends, b"x", 0))?;
    let too_many = open("/mqspan-test-alerts-new", MQ_OFlag::O_RDWR, 1 << 20).map(drop);
    ensure!(too_many == Err(Errno::EINVAL), "{too_many:?}");
    let old = open(TWICE, MQ_OFlag::O_RDWR, 2)?;
    mq_unlink(TWICE)?;
    let new = open(TWICE, MQ_OFlag::O_RDWR, 2)?;
    let outcome = thread::scope(|scope| -> Result<BTreeMap<String, Value>> {
        scope.spawn(|| mq_send(&sends, b"waits", 0));
        scope.spawn(|| mq_receive(&old, &mut [0; 16], &mut 0));
        let mut seen = BTreeMap::new();
        // Those that are about what happened, not about what is, are resolved by themselves.
        let fired = wait::until_every(Duration::from_millis(200), "all alerts", || {
            seen.append(&mut firing(&prometheus)?);
            Ok(seen.keys().eq(&rules()?).then_some(()))
        });
        mq_send(&old, b"x", 0)?;
        let receives = open(FULL, MQ_OFlag::O_RDONLY, 2)?;
        (0..3).try_for_each(|_| mq_receive(&receives, &mut [0; 16], &mut 0).map(drop))?;
        mq_close(receives)?;
        fired.with_context(|| format!("{:?} fired", seen.keys()))?;
        Ok(seen)
    });
    let resolved = outcome.and_then(|seen| {
        let mut last = BTreeMap::new();
        wait::until_every(Duration::from_millis(200), "the end of all alerts", || {
            last = firing(&prometheus)?;
            Ok(last.is_empty().then_some(()))
        })
        .with_context(|| format!("{:?} still fire", last.keys()))?;
        Ok(seen)
    });
    [sends, old, new].into_iter().try_for_each(mq_close)?;
    [FULL, TWICE].into_iter().try_for_each(mq_unlink)?;
    for (name, alert) in resolved? {
        let summary = alert["annotations"]["summary"].as_str().context("no summary")?;
        println!("{name}: {summary}");
        let of = match &*name {
            "MqspanLosesCalls" => "switched_off",
            "PosixMqOpenFailsForLimit" => "EINVAL for the limit fs.mqueue.msg_max",
            "PosixMqReceiversOfUnlinkedQueue" => TWICE,
            _ => FULL,
        };
        ensure!(summary.contains(of) && !summary.contains("no value"), "{name}: {summary:?}");
    }
    tracing.stop()?.ok().map(drop)
}
