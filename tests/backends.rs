//! mqspan and the backends that its users run: Jaeger, Prometheus and VictoriaLogs. What their query APIs answer is what
//! mqspan's own file of the same run holds. Needs root and what scripts/backends.sh builds: `make test-backends` runs it.

use std::{collections::BTreeMap, fs, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use support::{
    collector::free_ports,
    http::{ask, escaped, get},
    orders,
    otlp::{self, Attributes, Origin, Record},
    program::Mqspan,
    prometheus::Prometheus,
    rotel::hex,
    server::{Server, program},
    wait,
};

/// How often a backend is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// Often enough for several collections within a run.
const INTERVAL: (&str, &str) = ("OTEL_METRIC_EXPORT_INTERVAL", "20");

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_ready(server: &str, path: &str) -> bool {
    ask(server, path).is_ok_and(|(status, _)| status == 200)
}

/// The text at a JSON pointer.
fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer}: {value}"))
}

/// The array at a JSON pointer.
fn array<'a>(value: &'a Value, pointer: &str) -> Result<&'a [Value]> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map(|array| &**array)
        .with_context(|| format!("{pointer}: {value}"))
}

/// Jaeger with the configuration of docker-compose.yml, but for the ports.
struct Jaeger {
    _server: Server,
    grpc: String,
    http: String,
    query: String,
}

impl Jaeger {
    fn start(mqspan: &Mqspan) -> Result<Self> {
        let [grpc, http, query] = free_ports()?;
        let mut command = Command::new(program("MQSPAN_TEST_JAEGER")?);
        for config in ["otel-config/jaeger.yaml", "tests/backends/jaeger.yaml"] {
            command.arg("--config").arg(root().join(config));
        }
        for (name, port) in [("GRPC", grpc), ("HTTP", http), ("QUERY", query)] {
            command.env(format!("MQSPAN_TEST_{name}_PORT"), port.to_string());
        }
        let query = format!("127.0.0.1:{query}");
        let server = Server::start(command, mqspan.file("jaeger"), || is_ready(&query, "/api/services"))?;
        let [grpc, http] = [grpc, http].map(|port| format!("http://127.0.0.1:{port}"));
        Ok(Self { _server: server, grpc, http, query })
    }

    /// Where it takes a protocol.
    fn endpoint(&self, protocol: &str) -> &str {
        if protocol == "grpc" { &self.grpc } else { &self.http }
    }

    /// The spans of all traces that these are of, once there are as many; as Jaeger answers, in `file`.
    fn same_traces(&self, file: &Path, own: &[Record<Span>]) -> Result<Vec<Record<Span>>> {
        let mut traces: Vec<_> = own.iter().map(|span| hex(&span.body.trace_id)).collect();
        traces.sort();
        traces.dedup();
        wait::until_every(PAUSE, "the spans at Jaeger", || {
            let mut lines = String::new();
            for trace in &traces {
                let (status, body) = ask(&self.query, &format!("/api/v3/traces/{trace}"))?;
                if status == 404 {
                    return Ok(None);
                }
                let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
                // The result is a request as OTLP JSON has it.
                let result = answer.get("result").with_context(|| body.clone())?;
                lines.push_str(&format!("{result}\n"));
            }
            fs::write(file, lines)?;
            let spans = otlp::spans(file)?;
            Ok((spans.len() >= own.len()).then_some(spans))
        })
    }
}

/// In the order of their ids, with what Jaeger does not keep taken away: the schemas' addresses.
fn as_jaeger_keeps(spans: Vec<Record<Span>>) -> Vec<Record<Span>> {
    let mut spans: Vec<_> = spans
        .into_iter()
        .map(|mut span| {
            let origin = (*span.origin).clone();
            span.origin = Arc::new(Origin { resource_schema: String::new(), scope_schema: String::new(), ..origin });
            span.body.status.get_or_insert_default();
            span
        })
        .collect();
    spans.sort_by(|one, other| one.body.span_id.cmp(&other.body.span_id));
    spans
}

/// Prevents kinds, status, attributes, links or parents from being other than sent once a user looks at them in Jaeger,
/// and the signals that it doesn't take from being lost in silence, or told of again and again.
#[test]
fn jaeger() -> Result<()> {
    let first = mqspan()?;
    let jaeger = Jaeger::start(&first)?;
    for (protocol, receive) in [("grpc", "link"), ("http/protobuf", "child"), ("http/json", "link")] {
        let options = ["--endpoint", jaeger.endpoint(protocol), "--protocol", protocol, "--receive", receive];
        // By tracepoints links are inferred: on a busy machine a run may have none that is certain.
        let (mqspan, ended) = wait::until_every(PAUSE, "a run with links", || {
            let mqspan = first.another()?;
            let ended = orders::run(&mqspan, &options, &[INTERVAL])?;
            let has_links = orders::spans(&mqspan)?.iter().any(|span| !span.body.links.is_empty());
            Ok(has_links.then_some((mqspan, ended)))
        })?;
        for signal in ["metrics", "logs"] {
            let refused = format!("mqspan: otlp.{signal}: the backend does not take {signal} ");
            let lines = ended.stderr.iter().filter(|line| line.starts_with(&refused)).count();
            ensure!(lines == 1, "{protocol}: {lines} lines {refused:?}: {:#?}", ended.stderr);
            let output = &mqspan.stats()?.outputs[&format!("otlp.{signal}")];
            ensure!(output.sent == 0 && output.lost >= orders::sum(), "{protocol}, {signal}: {output:?}");
        }
        let own = as_jaeger_keeps(orders::spans(&mqspan)?);
        let has_parents = own.iter().any(|span| !span.body.parent_span_id.is_empty());
        ensure!(has_parents == (receive == "child"), "{protocol}: parents by --receive {receive}");
        let arrived = as_jaeger_keeps(jaeger.same_traces(&mqspan.file("arrived"), &own)?);
        ensure!(arrived.len() == own.len(), "{protocol}: {} spans arrived of {}", arrived.len(), own.len());
        for (arrived, own) in arrived.iter().zip(&own) {
            ensure!(arrived == own, "{protocol}: arrived:\n{arrived:#?}\nin the file:\n{own:#?}");
        }
    }
    Ok(())
}

/// The value of an expression at Prometheus by operation and queue.
fn values(prometheus: &Prometheus, expression: &str) -> Result<BTreeMap<(String, String), f64>> {
    let by = format!("sum by (messaging_operation_name, messaging_destination_name) ({expression})");
    let answer = get(&prometheus.address, &format!("/api/v1/query?query={}", escaped(&by)))?;
    let mut values = BTreeMap::new();
    for series in array(&answer, "/data/result")? {
        let label = |name| series["metric"][name].as_str().unwrap_or_default().to_owned();
        let value = text(series, "/value/1")?.parse()?;
        values.insert((label("messaging_operation_name"), label("messaging_destination_name")), value);
    }
    Ok(values)
}

/// These, of the operations that have one of the names.
fn of_operations(calls: &BTreeMap<(String, String), f64>, names: &[&str]) -> BTreeMap<(String, String), f64> {
    let is_one = |operation: &str| names.contains(&operation);
    calls.iter().filter(|((operation, _), _)| is_one(operation)).map(|(key, value)| (key.clone(), *value)).collect()
}

fn seconds(span: &Record<Span>) -> f64 {
    (span.body.end_time_unix_nano - span.body.start_time_unix_nano) as f64 / 1e9
}

/// Prevents Prometheus from refusing what mqspan sends, or from counting other than the calls that were made, cumulative
/// or as differences; and exemplars from naming anything but a span of that duration.
#[test]
fn prometheus() -> Result<()> {
    for temporality in ["cumulative", "delta"] {
        let mqspan = mqspan()?;
        let prometheus = Prometheus::start(&mqspan, &root().join("otel-config/prometheus.yaml"))?;
        let endpoint = prometheus.endpoint();
        // Only metrics have where to go.
        let variables = [
            INTERVAL,
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &*endpoint),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &endpoint),
        ];
        let exemplars = counts_and_exemplars(&mqspan, &prometheus, &variables).context(temporality)?;
        // Where Prometheus adds up differences it keeps the exemplars of each series' first point, which may have none.
        ensure!(exemplars > 0 || temporality == "delta", "no exemplar");
    }
    Ok(())
}

/// Compares all that Prometheus has with mqspan's own file of the run; the number of exemplars.
fn counts_and_exemplars(mqspan: &Mqspan, prometheus: &Prometheus, variables: &[(&str, &str)]) -> Result<u32> {
    let ended = orders::run(mqspan, &[], variables)?;
    let stats = mqspan.stats()?;
    let output = &stats.outputs["otlp.metrics"];
    ensure!(output.sent > 0 && output.rejected + output.lost == 0, "{output:?}: {ended:?}");

    let calls: BTreeMap<_, _> = orders::calls().into_iter().map(|(key, count)| (key, count as f64)).collect();
    const DURATION: &str = "messaging_client_operation_duration_seconds";
    // What was taken last is there once it can be asked for.
    wait::until_every(PAUSE, "the counts at Prometheus", || {
        let counts = values(prometheus, &format!("histogram_count({DURATION})"))?;
        let is_more = counts.iter().any(|(key, count)| calls.get(key).is_none_or(|made| count > made));
        ensure!(!is_more, "more than were made: {counts:?}");
        Ok((counts == calls).then_some(()))
    })?;
    let passed = |operation| of_operations(&calls, &[operation]);
    let both = of_operations(&calls, &["mq_timedsend", "mq_timedreceive"]);
    for (expression, expected) in [
        ("messaging_client_sent_messages_total", passed("mq_timedsend")),
        ("messaging_client_consumed_messages_total", passed("mq_timedreceive")),
        ("histogram_count(posix_mq_message_size_bytes)", both),
    ] {
        let found = values(prometheus, expression)?;
        ensure!(found == expected, "{expression}: {found:?}, not {expected:?}");
    }
    let spans = orders::spans(mqspan)?;
    let sum: f64 = values(prometheus, &format!("histogram_sum({DURATION})"))?.values().sum();
    let expected: f64 = spans.iter().map(seconds).sum();
    ensure!((sum - expected).abs() < 1e-6, "{sum} s in calls, not {expected} s");
    let captured = get(&prometheus.address, "/api/v1/query?query=mqspan_calls_captured_total")?;
    ensure!(text(&captured, "/data/result/0/value/1")? == stats.captured.to_string(), "{captured}");

    let path = format!("/api/v1/query_exemplars?query={DURATION}&start=0&end=9999999999");
    let answer = get(&prometheus.address, &path)?;
    let mut exemplars = 0;
    for series in array(&answer, "/data")? {
        for exemplar in array(series, "/exemplars")? {
            let (trace, id) = (text(exemplar, "/labels/trace_id")?, text(exemplar, "/labels/span_id")?);
            let is_it = |span: &&Record<Span>| hex(&span.body.trace_id) == trace && hex(&span.body.span_id) == id;
            let span = spans.iter().find(is_it).with_context(|| format!("of no span: {exemplar}"))?;
            let value: f64 = text(exemplar, "/value")?.parse()?;
            ensure!((value - seconds(span)).abs() < 1e-9, "{exemplar}: the span took {}", seconds(span));
            ensure!(
                series["seriesLabels"]["messaging_operation_name"].as_str() == span.text("messaging.operation.name"),
                "{series}: {span:?}"
            );
            exemplars += 1;
        }
    }
    Ok(exemplars)
}

/// A log record as VictoriaLogs keeps it: each field a text.
type Fields = BTreeMap<String, String>;

fn fields_of(attributes: &Attributes) -> impl Iterator<Item = (String, String)> {
    attributes.iter().map(|(key, value)| {
        let value = match value {
            otlp::Value::Text(text) => text.clone(),
            otlp::Value::Int(number) => number.to_string(),
            otlp::Value::Double(number) => number.to_string(),
            otlp::Value::Bool(is) => is.to_string(),
            otlp::Value::Texts(texts) => format!("{texts:?}"),
        };
        (key.clone(), value)
    })
}

/// The records of the calls that mqspan's own file holds, in the order of their spans.
fn own_fields(mqspan: &Mqspan) -> Result<Vec<Fields>> {
    let mut records = Vec::new();
    for log in orders::logs(mqspan)? {
        let body = &log.body;
        let mut fields: Fields = fields_of(&log.origin.resource).chain(fields_of(&log.attributes)).collect();
        fields.extend(
            [
                ("_msg", otlp::body(body).context("no body")?.to_owned()),
                ("event_name", body.event_name.clone()),
                ("severity_text", body.severity_text.clone()),
                ("severity_number", body.severity_number.to_string()),
                ("trace_id", hex(&body.trace_id)),
                ("span_id", hex(&body.span_id)),
                ("scope.name", log.origin.scope.0.clone()),
                ("scope.version", log.origin.scope.1.clone()),
                ("_time", body.time_unix_nano.to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        // A field without a text is none.
        fields.retain(|_, value| !value.is_empty());
        to_nanoseconds(&mut fields)?;
        records.push(fields);
    }
    records.sort_by(|one, other| one["span_id"].cmp(&other["span_id"]));
    Ok(records)
}

/// Cuts seconds after the nanoseconds: VictoriaLogs keeps a column of numbers as floats, and is off in the 17th digit.
fn to_nanoseconds(fields: &mut Fields) -> Result<()> {
    for key in ["posix_mq.duration", "posix_mq.message.wait"] {
        if let Some(seconds) = fields.get_mut(key) {
            *seconds = format!("{:.9}", seconds.parse::<f64>()?);
        }
    }
    Ok(())
}

/// Nanoseconds of a time as VictoriaLogs writes it, by `date`.
fn nanoseconds(time: &str) -> Result<String> {
    let output = Command::new("date").args(["--utc", "--date", time, "+%s%N"]).output()?;
    ensure!(output.status.success(), "{time}: {output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Prevents a field of a log record from being lost, or changed, once a user looks for it in VictoriaLogs.
#[test]
fn victoria_logs() -> Result<()> {
    let mqspan = mqspan()?;
    let [port] = free_ports()?;
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(program("MQSPAN_TEST_VICTORIA_LOGS")?);
    command.arg(format!("-httpListenAddr={address}"));
    command.arg(format!("-storageDataPath={}", mqspan.file("stored").display()));
    let _server = Server::start(command, mqspan.file("victoria-logs"), || is_ready(&address, "/health"))?;
    let endpoint = format!("http://{address}/insert/opentelemetry/v1/logs");
    for compression in ["none", "gzip", "zstd"] {
        let mqspan = mqspan.another()?;
        let variables = [
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &*endpoint),
            ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", compression),
            // Nothing takes traces and metrics there.
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}")),
        ];
        orders::run(&mqspan, &[], &variables)?;
        let output = &mqspan.stats()?.outputs["otlp.logs"];
        ensure!(output.sent == orders::sum() && output.rejected + output.lost == 0, "{compression}: {output:?}");
        let own = own_fields(&mqspan)?;
        let of_processes: Vec<_> = own.iter().map(|fields| format!("{:?}", fields["service.instance.id"])).collect();
        let query = format!("\"service.instance.id\":in({})", of_processes.join(","));
        let path = format!("/select/logsql/query?query={}", escaped(&query));
        let answer = wait::until_every(PAUSE, "the log records at VictoriaLogs", || {
            let (status, body) = ask(&address, &path)?;
            ensure!(status == 200, "{status}: {body}");
            Ok((body.lines().count() >= own.len()).then_some(body))
        })?;
        let mut found: Vec<Fields> = answer.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        for fields in &mut found {
            // Made by VictoriaLogs out of others.
            fields.retain(|key, _| !key.starts_with("_stream"));
            let time = fields.get_mut("_time").context("no time")?;
            *time = nanoseconds(time)?;
            to_nanoseconds(fields)?;
        }
        found.sort_by(|one, other| one.get("span_id").cmp(&other.get("span_id")));
        ensure!(found.len() == own.len(), "{compression}: {} arrived of {}", found.len(), own.len());
        for (found, own) in found.iter().zip(&own) {
            ensure!(found == own, "{compression}: arrived:\n{found:#?}\nin the file:\n{own:#?}");
        }
    }
    Ok(())
}
