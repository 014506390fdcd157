//! mqspan and a real OpenTelemetry Collector: what arrives is what mqspan's own file of the same run holds, and what the
//! workload recorded. Needs root and the Collector that scripts/collector.sh builds: `make test` runs it.

#[path = "collector/resources.rs"]
mod resources;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{PoisonError, RwLock},
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{metric::Data, number_data_point},
};
use support::{
    backend::{Answer, Backend},
    calls::{Form, compare},
    certificates,
    collector::{Collector, Ports, Received},
    otlp::{self, Record, made_by},
    own,
    program::{Ended, Mqspan, Tracing, finish},
    stats::Stats,
    wait, workload,
};

const CALLS: usize = 1500;
const PROTOCOLS: [&str; 3] = ["grpc", "http/protobuf", "http/json"];

/// Held for writing by what floods the host with calls: a run that watches the host captures them too, and would have to
/// lose or limit some.
static FLOOD: RwLock<()> = RwLock::new(());

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// Where and how mqspan sends, as variables.
fn variables(collector: &Collector, protocol: &str, compression: &str) -> Vec<(String, String)> {
    [("ENDPOINT", &*collector.endpoint(protocol)), ("PROTOCOL", protocol), ("COMPRESSION", compression)]
        .map(|(name, value)| (format!("OTEL_EXPORTER_OTLP_{name}"), value.to_owned()))
        .to_vec()
}

/// Runs mqspan for the host with these variables, and the workload beside it; the spans and log records go to OTLP and
/// to the file `own`.
fn run(mqspan: &Mqspan, variables: &[(String, String)], seed: usize) -> Result<Ended> {
    let _no_flood = FLOOD.read().unwrap_or_else(PoisonError::into_inner);
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command([
        "run",
        "--signals=traces,logs,metrics",
        "--call=mq_open",
        "--max-rate=0",
        "--output=otlp",
        "--verbose",
        &stats,
    ]);
    command.arg(mqspan.to_file("own")).envs(variables.iter().map(|(name, value)| (name, value)));
    let tracing = Tracing::start(command)?;
    let (calls, seed, record) = (CALLS.to_string(), seed.to_string(), mqspan.file("record").display().to_string());
    workload::run(&mqspan.workload(), &["open", "--calls", &calls, "--seed", &seed, "--print", &record])?;
    tracing.stop()?.ok()
}

/// Fails unless the records are the same, in any order but that of each thread's calls.
fn same<T: Form + Clone + PartialEq + std::fmt::Debug>(
    mqspan: &Mqspan,
    arrived: Vec<Record<T>>,
    own: Vec<Record<T>>,
    by_time: impl Fn(&Record<T>) -> u64,
) -> Result<()> {
    let workload = mqspan.workload();
    let (mut arrived, mut own) = (made_by(arrived, &workload), made_by(own, &workload));
    ensure!((arrived.len(), own.len()) == (CALLS, CALLS), "{} arrived, {} in the file", arrived.len(), own.len());
    // Requests in flight overtake each other.
    for records in [&mut arrived, &mut own] {
        records.sort_by_key(|record| (record.int("thread.id"), by_time(record)));
    }
    for (arrived, own) in arrived.iter().zip(&own) {
        ensure!(arrived == own, "arrived:\n{arrived:#?}\nin the file:\n{own:#?}");
    }
    compare(&workload::read(&mqspan.file("record"))?, &arrived)?.perfect(CALLS)
}

/// The points of the histograms of the workload's calls, with their Resource and metric; in any order.
fn points(requests: Vec<ExportMetricsServiceRequest>, workload: &Path) -> Result<Vec<String>> {
    let (path, mut points) = (workload.display().to_string(), Vec::new());
    for of_resource in requests.into_iter().flat_map(|request| request.resource_metrics) {
        let resource = otlp::attributes(&of_resource.resource.unwrap_or_default().attributes)?;
        if otlp::text(&resource, "process.executable.path") != Some(&path) {
            continue;
        }
        for metric in of_resource.scope_metrics.into_iter().flat_map(|of_scope| of_scope.metrics) {
            let Some(Data::ExponentialHistogram(histogram)) = metric.data else { continue };
            for mut point in histogram.data_points {
                // The Collector writes buckets where there are none.
                point.positive.get_or_insert_default();
                point.negative.get_or_insert_default();
                points.push(format!("{resource:?}, {}: {point:?}", metric.name));
            }
        }
    }
    points.sort_unstable();
    Ok(points)
}

/// What one run told, at the Collector and in mqspan's own file.
fn arrived(mqspan: &Mqspan, received: &Received) -> Result<()> {
    let own = mqspan.file("own");
    let mut spans = received.spans()?;
    // The Collector leaves out a status that says nothing.
    for span in &mut spans {
        span.body.status.get_or_insert_default();
    }
    same(mqspan, spans, otlp::spans(&own)?, |span| span.body.start_time_unix_nano)?;
    same(mqspan, received.logs()?, otlp::logs(&own)?, |log| log.body.time_unix_nano)?;
    let workload = mqspan.workload();
    let (arrived, own) = (points(received.metrics()?, &workload)?, points(otlp::metrics(&own)?, &workload)?);
    ensure!(!own.is_empty() && arrived == own, "points arrived:\n{arrived:#?}\nin the file:\n{own:#?}");
    let stats = mqspan.stats()?;
    ensure!(stats.lost_sum() == 0 && stats.exported == stats.captured, "{stats:?}");
    let metrics = stats.outputs.get("otlp.metrics").context("no metrics")?;
    ensure!(metrics.sent > 0 && metrics.rejected + metrics.lost == 0, "{stats:?}");
    for signal in ["traces", "logs"] {
        let output = stats.outputs.get(&format!("otlp.{signal}")).with_context(|| format!("no {signal}: {stats:?}"))?;
        ensure!(output.sent == stats.exported && output.rejected + output.lost == 0, "{signal}: {stats:?}");
    }
    Ok(())
}

/// Prevents a protocol or a compression from losing or changing anything on its way to a real receiver.
#[test]
fn every_protocol_and_compression() -> Result<()> {
    let first = mqspan()?;
    let collector = Collector::start(first.file("collector"), None)?;
    let mut runs = Vec::new();
    for protocol in PROTOCOLS {
        for compression in ["none", "gzip", "zstd"] {
            let mqspan = first.another()?;
            run(&mqspan, &variables(&collector, protocol, compression), 100 + runs.len())
                .with_context(|| format!("{protocol}, {compression}"))?;
            runs.push((protocol, compression, mqspan));
        }
    }
    let received = collector.stop()?;
    for (protocol, compression, mqspan) in runs {
        arrived(&mqspan, &received).with_context(|| format!("{protocol}, {compression}"))?;
    }
    Ok(())
}

/// The variables that name the files of a client.
fn client(certificates: &Path, with_certificate: bool) -> Vec<(String, String)> {
    let file = |variable: &str, name: &str| {
        (format!("OTEL_EXPORTER_OTLP_{variable}"), certificates.join(name).display().to_string())
    };
    let mut variables = vec![file("CERTIFICATE", "ca.pem")];
    if with_certificate {
        variables.extend([file("CLIENT_CERTIFICATE", "client.pem"), file("CLIENT_KEY", "client.key")]);
    }
    variables
}

/// Prevents TLS with a private authority and client certificates from failing, in each protocol.
#[test]
fn tls_with_client_certificates() -> Result<()> {
    let first = mqspan()?;
    let ours = first.file("certificates");
    certificates::write(&ours)?;
    let collector = Collector::start(first.file("collector"), Some(&ours))?;
    let mut runs = Vec::new();
    for protocol in PROTOCOLS {
        let mqspan = first.another()?;
        let variables = [variables(&collector, protocol, "gzip"), client(&ours, true)].concat();
        run(&mqspan, &variables, 200 + runs.len()).with_context(|| protocol)?;
        runs.push((protocol, mqspan));
    }
    let received = collector.stop()?;
    for (protocol, mqspan) in runs {
        arrived(&mqspan, &received).with_context(|| protocol)?;
    }
    Ok(())
}

/// Runs a command of `calls` calls that mqspan can't deliver; what it counted and said.
fn undelivered(mqspan: &Mqspan, variables: &[(String, String)], calls: u64) -> Result<(Stats, Ended)> {
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--signals=traces", "--output=otlp", &stats, "--"]);
    let script = format!("\"$0\" flat --calls {calls} > /dev/null; exit 3");
    command.args(["bash", "-c", &script, &mqspan.workload_arg()]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let ended = Ended::of(finish(command)?);
    // The command's own status, also when telemetry was lost.
    ensure!(ended.status.code() == Some(3), "{ended:?}");
    let stats = mqspan.stats()?;
    ensure!(stats.exported == 0 && stats.lost_sum() == calls, "{stats:?}");
    ended.said("otlp")?;
    Ok((stats, ended))
}

/// Prevents mqspan from sending to whom it can't trust, and from hiding that nothing arrived.
#[test]
fn nothing_is_sent_to_strangers() -> Result<()> {
    let mqspan = mqspan()?;
    let (ours, theirs) = (mqspan.file("certificates"), mqspan.file("others"));
    certificates::write(&ours)?;
    certificates::write(&theirs)?;
    let collector = Collector::start(mqspan.file("collector"), Some(&ours))?;
    for protocol in ["grpc", "http/protobuf"] {
        for wrong in [client(&theirs, true), client(&ours, false)] {
            let variables = [variables(&collector, protocol, "none"), wrong].concat();
            undelivered(&mqspan, &variables, 10).with_context(|| protocol)?;
        }
    }
    // Nobody listens there any more.
    let gone = [variables(&collector, "grpc", "none"), client(&ours, true)].concat();
    let received = collector.stop()?;
    ensure!(received.spans()?.is_empty(), "a span arrived");
    undelivered(&mqspan, &gone, 10).map(drop)
}

/// Prevents certificates that are renewed while mqspan runs from ending what it sends: a new authority, and a new server and
/// client under it, in the files of the old.
#[test]
fn certificates_that_are_renewed() -> Result<()> {
    for protocol in ["grpc", "http/protobuf"] {
        let mqspan = mqspan()?;
        let certificates = mqspan.file("certificates");
        certificates::write(&certificates)?;
        let ports = Ports::free()?;
        let first = Collector::start_at(ports, mqspan.file("first"), Some(&certificates))?;
        let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
        let queue = format!("/mqspan-test-renewed-{}", protocol.replace('/', "-"));
        let mut command = mqspan.command(["run", "--signals=traces", "--output=otlp", &*own::pid(), &stats]);
        command.args(["--queue", &queue, "--max-rate=0"]);
        command.envs(variables(&first, protocol, "none").into_iter().chain(client(&certificates, true)));
        let tracing = Tracing::start(command)?;
        let arrived = |collector: &Collector| collector.received().spans().map_or(0, |spans| spans.len());
        own::opens(&queue, 10)?;
        wait::until("what the old server takes", || Ok((arrived(&first) == 10).then_some(())))?;
        first.stop()?;
        certificates::write(&certificates)?;
        let second = Collector::start_at(ports, mqspan.file("second"), Some(&certificates))?;
        own::opens(&queue, 20)?;
        wait::until("what the new server takes", || Ok((arrived(&second) == 20).then_some(())))
            .with_context(|| format!("{protocol}: {:?}", tracing.said()))?;
        tracing.stop()?.ok()?;
        second.stop()?;
        let stats = mqspan.stats()?;
        ensure!((stats.exported, stats.lost_sum()) == (30, 0), "{protocol}: {stats:?}");
    }
    Ok(())
}

/// Exemplars of the metrics that a Collector has.
fn exemplars(received: &Received) -> Result<usize> {
    let mut count = 0;
    let scopes = received.metrics()?.into_iter().flat_map(|request| request.resource_metrics);
    for metric in scopes.flat_map(|of| of.scope_metrics).flat_map(|of| of.metrics) {
        if let Some(Data::ExponentialHistogram(histogram)) = metric.data {
            count += histogram.data_points.iter().map(|point| point.exemplars.len()).sum::<usize>();
        }
    }
    Ok(count)
}

/// Prevents exemplars from naming spans that no backend took.
#[test]
fn exemplars_of_spans_that_were_taken() -> Result<()> {
    for (answer, has_exemplars) in [(Answer::Taken, true), (Answer::Http(400, None), false)] {
        let mqspan = mqspan()?;
        let of_traces = Backend::start(move |_, _| answer.clone())?;
        let collector = Collector::start(mqspan.file("collector"), None)?;
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", of_traces.endpoint()));
        let mut command = mqspan.command(["run", "--signals=traces,metrics", "--output=otlp", "--"]);
        // Some collections after the spans' answers.
        command.args(["bash", "-c", "for n in {1..30}; do \"$0\" flat --calls=3; sleep 0.1; done"]);
        command.arg(mqspan.workload_arg()).envs(variables(&collector, "http/protobuf", "none")).env(traces.0, traces.1);
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "200").env("OTEL_SDK_DISABLED", "true");
        Ended::of(finish(command)?).ok()?;
        let found = exemplars(&collector.stop()?)?;
        ensure!((found > 0) == has_exemplars, "{found} exemplars, expected some: {has_exemplars}");
    }
    Ok(())
}

/// Prevents a signal's own settings from being mixed with those for all.
#[test]
fn each_signal_may_have_its_own_backend() -> Result<()> {
    let mqspan = mqspan()?;
    let all = Collector::start(mqspan.file("all"), None)?;
    let logs = Collector::start(mqspan.file("logs"), None)?;
    let mut variables = variables(&all, "grpc", "zstd");
    for (name, value) in [
        ("ENDPOINT", format!("{}/v1/logs", logs.endpoint("http/json"))),
        ("PROTOCOL", "http/json".into()),
        ("COMPRESSION", "gzip".into()),
    ] {
        variables.push((format!("OTEL_EXPORTER_OTLP_LOGS_{name}"), value));
    }
    run(&mqspan, &variables, 300)?;
    let (all, logs) = (all.stop()?, logs.stop()?);
    ensure!(all.logs()?.is_empty() && logs.spans()?.is_empty(), "a signal arrived at the other's backend");
    ensure!(logs.metrics()?.is_empty() && !all.metrics()?.is_empty(), "metrics arrived at the logs' backend");
    ensure!(made_by(all.spans()?, &mqspan.workload()).len() == CALLS, "spans");
    ensure!(made_by(logs.logs()?, &mqspan.workload()).len() == CALLS, "log records");
    Ok(())
}

/// Prevents options from yielding to variables, and records beyond what a request holds from being cut, lost uncounted
/// or sent twice. Flat out, a busy machine may lose calls in the kernel's ring: these are counted.
#[test]
fn far_more_than_a_request_holds() -> Result<()> {
    let mqspan = mqspan()?;
    let collector = Collector::start(mqspan.file("collector"), None)?;
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--signals=traces", "--output=otlp", "--protocol=grpc", &stats]);
    command.args(["--endpoint", &collector.endpoint("grpc"), "--", &mqspan.workload_arg(), "flat", "--calls=100000"]);
    // With a command this one is the command's, and the options come before the other two.
    command.env("OTEL_TRACES_EXPORTER", "none").env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    {
        let _flood = FLOOD.write().unwrap_or_else(PoisonError::into_inner);
        Ended::of(finish(command)?).ok()?;
    }
    let stats = mqspan.stats()?;
    let spans = made_by(collector.stop()?.spans()?, &mqspan.workload());
    println!("{stats:?}");
    let in_ring = stats.lost.get("ring").copied().unwrap_or_default();
    ensure!(stats.exported + in_ring == 100_000 && stats.lost_sum() == in_ring, "{stats:?}");
    ensure!(spans.len() as u64 == stats.exported, "{} spans arrived: {stats:?}", spans.len());
    // A span takes some 500 bytes, a request at most 4 MiB.
    ensure!(spans.len() > 20_000, "too few to say anything: {stats:?}");
    let mut ids: Vec<_> = spans.iter().map(|span| &span.body.span_id).collect();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == spans.len(), "spans arrived twice");
    Ok(())
}

/// The last values of mqspan's own counters, by name and, where there is one, stage or `output.signal.outcome`.
fn own_counters(requests: &[ExportMetricsServiceRequest], service: &str) -> Result<BTreeMap<String, u64>> {
    let mut counters = BTreeMap::new();
    for of_resource in requests.iter().flat_map(|request| &request.resource_metrics) {
        let resource = of_resource.resource.as_ref().map(|resource| &*resource.attributes).unwrap_or_default();
        if otlp::text(&otlp::attributes(resource)?, "service.name") != Some(service) {
            continue;
        }
        for metric in of_resource.scope_metrics.iter().flat_map(|of_scope| &of_scope.metrics) {
            let Some(Data::Sum(sum)) = &metric.data else { continue };
            ensure!(sum.is_monotonic != metric.name.ends_with(".inflight"), "{metric:?}");
            ensure!(sum.aggregation_temporality == 2, "{metric:?}");
            for point in &sum.data_points {
                let Some(number_data_point::Value::AsInt(value)) = point.value else { continue };
                let attributes = otlp::attributes(&point.attributes)?;
                let more = ["stage", "output", "signal", "outcome", "error.type"]
                    .into_iter()
                    .filter_map(|key| otlp::text(&attributes, key));
                let key = [&*metric.name].into_iter().chain(more).collect::<Vec<_>>().join(".");
                // Cumulative: the last is the greatest.
                let last: &mut u64 = counters.entry(key).or_default();
                *last = (*last).max(value.try_into()?);
            }
        }
    }
    Ok(counters)
}

/// Prevents mqspan's own telemetry from being missing, from standing under a traced process, and its counters from
/// saying anything else than the statistics.
#[test]
fn what_mqspan_says_of_itself() -> Result<()> {
    PROTOCOLS.into_iter().try_for_each(|protocol| says_of_itself(protocol).context(protocol))
}

fn says_of_itself(protocol: &str) -> Result<()> {
    let mqspan = mqspan()?;
    let collector = Collector::start(mqspan.file("collector"), None)?;
    run(&mqspan, &variables(&collector, protocol, "none"), 400)?;
    let received = collector.stop()?;
    let is_own = |resource: &otlp::Attributes| otlp::text(resource, "service.name") == Some("mqspan");

    let stats = mqspan.stats()?;
    let counters = own_counters(&received.metrics()?, "mqspan")?;
    let lost: u64 =
        counters.iter().filter(|(key, _)| key.starts_with("mqspan.calls.lost.")).map(|(_, value)| value).sum();
    for (name, expected) in [
        ("captured", stats.captured),
        ("exported", stats.exported),
        ("filtered", stats.filtered),
        ("limited", stats.limited),
        ("unpaired", stats.unpaired),
    ] {
        let found = counters.get(&format!("mqspan.calls.{name}"));
        ensure!(found == Some(&expected), "{name} is {found:?}, not {expected}: {counters:?}");
    }
    ensure!(
        lost == stats.lost_sum() && counters.keys().any(|key| key.starts_with("mqspan.calls.lost.")),
        "{counters:?}"
    );
    let sent = counters.get("mqspan.export.records.otlp.traces.sent");
    ensure!(sent == Some(&stats.exported), "{sent:?} spans: {counters:?}");
    for (kind, output) in [("span", "otlp.traces"), ("log", "otlp.logs")] {
        let output = stats.outputs.get(output).context("no such output")?;
        for (error, expected) in [("", output.sent), (".rejected", output.rejected), (".lost", output.lost)] {
            let found = counters.get(&format!("otel.sdk.exporter.{kind}.exported{error}"));
            ensure!(found == Some(&expected), "{kind}{error} is {found:?}, not {expected}: {counters:?}");
        }
    }
    for name in ["otel.sdk.exporter.span.inflight", "otel.sdk.exporter.metric_data_point.exported"] {
        ensure!(counters.contains_key(name), "no {name}: {counters:?}");
    }

    let logs: Vec<_> = received.logs()?.into_iter().filter(|log| is_own(&log.origin.resource)).collect();
    let says = |text: &str| logs.iter().any(|log| otlp::body(&log.body).is_some_and(|body| body.contains(text)));
    ensure!(says("tracing "), "the ready line is not among {} log records", logs.len());
    let spans: Vec<_> = received.spans()?.into_iter().filter(|span| is_own(&span.origin.resource)).collect();
    ensure!(!spans.is_empty(), "no span of mqspan's own");
    for origin in logs.iter().map(|log| &log.origin).chain(spans.iter().map(|span| &span.origin)) {
        let resource = &origin.resource;
        ensure!(otlp::text(resource, "service.version") == Some(env!("CARGO_PKG_VERSION")), "{resource:?}");
        ensure!(otlp::text(resource, "host.name").is_some(), "{resource:?}");
        ensure!(otlp::text(resource, "service.instance.id").is_some_and(|id| id.len() == 36), "{resource:?}");
    }
    Ok(())
}

/// Prevents OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES from naming anybody but mqspan while it traces the host, and
/// OTEL_SDK_DISABLED from switching off more than its own telemetry.
#[test]
fn variables_that_describe_mqspan() -> Result<()> {
    let mqspan = mqspan()?;
    let collector = Collector::start(mqspan.file("named"), None)?;
    let mut named = variables(&collector, "grpc", "none");
    named.push(("OTEL_SERVICE_NAME".into(), "watcher".into()));
    named.push(("OTEL_RESOURCE_ATTRIBUTES".into(), "deployment.environment.name=test".into()));
    run(&mqspan, &named, 500)?;
    let received = collector.stop()?;
    let counters = own_counters(&received.metrics()?, "watcher")?;
    ensure!(counters.contains_key("mqspan.calls.captured"), "{counters:?}");
    let logs = received.logs()?;
    let own = logs.iter().find(|log| otlp::text(&log.origin.resource, "service.name") == Some("watcher"));
    let own = &own.context("no log record of mqspan's own")?.origin.resource;
    ensure!(otlp::text(own, "deployment.environment.name") == Some("test"), "{own:?}");
    arrived(&mqspan, &received)?;

    let collector = Collector::start(mqspan.file("disabled"), None)?;
    let mut disabled = variables(&collector, "grpc", "none");
    disabled.push(("OTEL_SDK_DISABLED".into(), "true".into()));
    run(&mqspan, &disabled, 501)?;
    let received = collector.stop()?;
    ensure!(own_counters(&received.metrics()?, "mqspan")?.is_empty(), "counters");
    ensure!(made_by(received.logs()?, &mqspan.workload()).len() == CALLS, "log records");
    let logs = otlp::logs(&mqspan.file("disabled").join("logs.jsonl"))?;
    ensure!(
        logs.iter().all(|log| otlp::text(&log.origin.resource, "service.name") != Some("mqspan")),
        "own log records"
    );
    arrived(&mqspan, &received)
}

/// Prevents signals that the environment switches off from being made all the same.
#[test]
fn signals_that_are_switched_off() -> Result<()> {
    let mqspan = mqspan()?;
    let collector = Collector::start(mqspan.file("collector"), None)?;
    let mut variables = variables(&collector, "http/json", "gzip");
    variables.push(("OTEL_LOGS_EXPORTER".into(), "none".into()));
    variables.push(("OTEL_METRICS_EXPORTER".into(), "none".into()));
    run(&mqspan, &variables, 600)?;
    let received = collector.stop()?;
    ensure!(received.logs()?.is_empty() && received.metrics()?.is_empty(), "logs or metrics arrived");
    ensure!(made_by(received.spans()?, &mqspan.workload()).len() == CALLS, "spans");
    Ok(())
}

/// Prevents every other test here from failing for want of a Collector that starts.
#[test]
fn the_collector_works() -> Result<()> {
    let mqspan = mqspan()?;
    let collector = Collector::start(mqspan.file("collector"), None)?;
    let mut curl = Command::new("bash");
    let body = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"n"}]}]}]}"#;
    let port = collector.endpoint("http/json").rsplit(':').next().context("no port")?.to_owned();
    let request = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'POST /v1/traces HTTP/1.0\\r\\nContent-Type: application/json\\r\\nContent-Length: {}\\r\\n\\r\\n%s' '{body}' >&3; head -1 <&3",
        body.len()
    );
    let output = finish({
        curl.args(["-c", &request]);
        curl
    })?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains(" 200 "), "{output:?}");
    let spans = collector.stop()?.spans()?;
    ensure!(spans.len() == 1 && spans[0].body.name == "n", "{spans:?}");
    Ok(())
}
