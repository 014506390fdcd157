//! Who made the calls, as a backend gets it: processes that say nothing of themselves, that say it in their environment or
//! publish it, that say something else later, and that become another program.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use support::{
    collector::Collector,
    otlp::{self, Attributes, int, text},
    program::{Mqspan, Tracing, finish, without_otel},
    wait,
};

use super::{mqspan, variables};

/// A process that publishes who it is.
struct Publisher {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Publisher {
    /// Returns when it has published the first name.
    fn start(mqspan: &Mqspan, args: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(mqspan.workload());
        command.arg("publish").args(args);
        without_otel(&mut command);
        command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        let mut this = Self { child, stdin, stdout: BufReader::new(stdout) };
        this.published()?;
        Ok(this)
    }

    fn published(&mut self) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(line.starts_with("published"), "{line:?}");
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        Ok(self.stdin.write_all(b"call\n")?)
    }

    /// Publishes the next name.
    fn next(&mut self) -> Result<()> {
        self.stdin.write_all(b"\n")?;
        self.published()
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// There is no name any more.
    fn end(mut self) -> Result<()> {
        self.stdin.write_all(b"\n")?;
        drop(self.stdin);
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// Runs a workload of one call; its process id.
fn run(mqspan: &Mqspan, prefix: &[&str], environment: &[(&str, &str)]) -> Result<u32> {
    let mut command = Command::new("env");
    command.args(prefix).args(["bash", "-c", r#"echo $$; exec "$0" flat --calls 1 >/dev/null"#]).arg(mqspan.workload());
    without_otel(&mut command);
    command.envs(environment.iter().copied());
    let output = finish(command)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The Resources of a process's calls in spans, each once, in the order of the calls.
fn of_spans(spans: &[otlp::Record<opentelemetry_proto::tonic::trace::v1::Span>], pid: u32) -> Vec<Attributes> {
    let mut its: Vec<_> = spans.iter().filter(|span| span.pid().is_ok_and(|other| other == pid)).collect();
    its.sort_by_key(|span| span.body.start_time_unix_nano);
    let mut resources: Vec<Attributes> = its.into_iter().map(|span| span.origin.resource.clone()).collect();
    resources.dedup();
    resources
}

/// Prevents a process from going by another's name, by one that it had before, or by none, in any signal.
#[test]
fn everybody_by_their_own_name() -> Result<()> {
    let mqspan = mqspan()?;
    let collector = Collector::start(mqspan.file("collector"), None)?;
    let mut command = mqspan.command(["run", "--call=mq_open", "--output=otlp"]);
    command.arg(mqspan.to_file("own")).envs(variables(&collector, "grpc", "none"));
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "500");
    // One that has published before mqspan starts.
    let mut early = Publisher::start(&mqspan, &["early"], &[])?;
    let tracing = Tracing::start(command)?;

    let silent = run(&mqspan, &[], &[])?;
    let environment =
        [("OTEL_SERVICE_NAME", "by-environment"), ("OTEL_RESOURCE_ATTRIBUTES", "team=a,service.instance.id=e-1")];
    let by_environment = run(&mqspan, &[], &environment)?;
    let other_user = run(&mqspan, &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"], &[])?;
    early.call()?;
    // At once: the first call comes before anybody can have looked.
    let mut both = Publisher::start(&mqspan, &["both"], &environment)?;
    both.call()?;

    let mut changing = Publisher::start(&mqspan, &["one", "two"], &[])?;
    changing.call()?;
    wait::until("the first name in metrics", || {
        Ok(named_in_metrics(&collector, changing.pid())?.contains("one").then_some(()))
    })?;
    changing.next()?;
    wait::until("the second name", || {
        changing.call()?;
        let resources = of_spans(&collector.received().spans()?, changing.pid());
        Ok(resources.iter().any(|resource| text(resource, "service.name") == Some("two")).then_some(()))
    })?;

    let mut becoming = Publisher::start(&mqspan, &["becoming", "--exec"], &environment)?;
    becoming.call()?;
    // What it has published goes with its image.
    wait::until("what it was", || {
        let resources = of_spans(&collector.received().spans()?, becoming.pid());
        Ok(resources.iter().any(|resource| text(resource, "service.name") == Some("becoming")).then_some(()))
    })?;
    let pids = [early.pid(), both.pid(), changing.pid(), becoming.pid()];
    for publisher in [early, both, changing, becoming] {
        publisher.end()?;
    }
    tracing.stop()?.ok()?;
    let received = collector.stop()?;
    let spans = received.spans()?;
    let one = |pid: u32| -> Result<Attributes> {
        let resources = of_spans(&spans, pid);
        let [resource] = &resources[..] else { anyhow::bail!("{} Resources of {pid}: {resources:?}", resources.len()) };
        Ok(resource.clone())
    };
    let expect = |resource: &Attributes, name: &str, instance: Option<&str>| {
        ensure!(text(resource, "service.name") == Some(name), "{name}: {resource:?}");
        let its = text(resource, "service.instance.id").context("no service.instance.id")?;
        ensure!(instance.map_or(its.len() == 36, |instance| its == instance), "{name}: {its}");
        Ok(())
    };
    let silent = one(silent)?;
    expect(&silent, "unknown_service:workload", None)?;
    ensure!(!silent.contains_key("team") && int(&silent, "process.user.id") == Some(0), "{silent:?}");
    let by_environment = one(by_environment)?;
    expect(&by_environment, "by-environment", Some("e-1"))?;
    ensure!(text(&by_environment, "team") == Some("a"), "{by_environment:?}");
    let other_user = one(other_user)?;
    ensure!(int(&other_user, "process.user.id") == Some(65534), "{other_user:?}");
    ensure!(text(&other_user, "process.owner") == Some("nobody"), "{other_user:?}");
    let [early, both, changing, becoming] = pids;
    expect(&one(early)?, "early", Some("early-1"))?;
    let both = one(both)?;
    expect(&both, "both", Some("both-1"))?;
    ensure!(text(&both, "team") == Some("a"), "what only the environment says stays: {both:?}");

    let [first, second] = &of_spans(&spans, changing)[..] else { anyhow::bail!("one name, or more than two") };
    expect(first, "one", Some("one-1"))?;
    expect(second, "two", Some("two-1"))?;
    let resources = of_spans(&spans, becoming);
    let [before, after] = &resources[..] else { anyhow::bail!("not two images: {resources:#?}") };
    expect(before, "becoming", Some("becoming-1"))?;
    expect(after, "by-environment", Some("e-1"))?;
    for key in ["process.pid", "process.creation.time"] {
        ensure!(before.get(key) == after.get(key), "another process: {before:?} and {after:?}");
    }

    let in_metrics: Vec<String> = named_in(&received.metrics()?, changing)?.into_iter().collect();
    ensure!(in_metrics == ["one", "two"], "{in_metrics:?}");
    let counted = counted(&received.metrics()?, changing)?;
    let called = spans.iter().filter(|span| span.pid().is_ok_and(|pid| pid == changing)).count() as u64;
    ensure!(counted.values().sum::<u64>() == called, "{called} calls, in metrics {counted:?}");
    Ok(())
}

fn named_in_metrics(collector: &Collector, pid: u32) -> Result<BTreeSet<String>> {
    // Where nothing has come yet there is no file.
    named_in(&collector.received().metrics().unwrap_or_default(), pid)
}

type Metrics = opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;

/// By which names a process goes in metrics.
fn named_in(requests: &[Metrics], pid: u32) -> Result<BTreeSet<String>> {
    Ok(counted(requests, pid)?.into_keys().map(|(name, _)| name).collect())
}

/// How many calls of a process the last points count: for each name and start of a stream.
fn counted(requests: &[Metrics], pid: u32) -> Result<BTreeMap<(String, u64), u64>> {
    let mut counted = BTreeMap::new();
    for of in requests.iter().flat_map(|request| &request.resource_metrics) {
        let resource = otlp::attributes(&of.resource.clone().unwrap_or_default().attributes)?;
        if int(&resource, "process.pid") != Some(pid.into()) {
            continue;
        }
        let name = text(&resource, "service.name").context("no name")?;
        for metric in of.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
            if let (Some(Data::ExponentialHistogram(histogram)), "messaging.client.operation.duration") =
                (&metric.data, metric.name.as_str())
            {
                for point in &histogram.data_points {
                    counted.insert((name.to_owned(), point.start_time_unix_nano), point.count);
                }
            }
        }
    }
    Ok(counted)
}
