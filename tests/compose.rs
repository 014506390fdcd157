//! docker-compose.yml as it is, by podman-compose, with images made here of the real programs: what a user sees after
//! `docker compose up`. Tempo and Grafana can't be had from a registry of packages; their services are not started, the
//! dashboard's queries are put to Prometheus. Needs root, podman and the programs that `make test-compose` builds.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use support::http::{escaped, get};
use support::wait::until_every;

/// What is started; the others' images can't be made here.
const SERVICES: [&str; 5] = ["mqspan", "application", "collector", "jaeger", "prometheus"];
/// How often a server is asked.
const PAUSE: Duration = Duration::from_millis(250);
const JAEGER: &str = "127.0.0.1:16686";
const PROMETHEUS: &str = "127.0.0.1:9090";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn named(variable: &str) -> Result<PathBuf> {
    env::var_os(variable).map(PathBuf::from).with_context(|| format!("{variable} is not set: run make test-compose"))
}

/// The services; they end with it.
struct Compose {
    program: PathBuf,
}

impl Compose {
    fn up() -> Result<Self> {
        let mqspan = PathBuf::from(env!("CARGO_BIN_EXE_mqspan"));
        let made = Command::new(root().join("scripts/images.sh"))
            .arg(&mqspan)
            .arg(mqspan.with_file_name("thread-context"))
            .args([named("MQSPAN_TEST_COLLECTOR")?, named("MQSPAN_TEST_JAEGER")?, named("MQSPAN_TEST_PROMETHEUS")?])
            .status()?;
        ensure!(made.success(), "scripts/images.sh: {made}");
        let compose = Self { program: named("MQSPAN_TEST_PODMAN_COMPOSE")? };
        // What a run that was killed left behind.
        compose.run(&["down"])?;
        compose.run(&[&["up", "--no-build", "--detach"], &SERVICES[..]].concat())?;
        Ok(compose)
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .current_dir(root())
            .env("CONTAINERS_CONF", root().join("tests/compose/containers.conf"))
            .args(["--in-pod", "false", "--project-name", "mqspan-test"])
            .args(args)
            .output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "podman-compose {args:?}: {out}{err}");
        Ok(format!("{out}{err}"))
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{:?}", self.run(&["logs"]));
        }
        if let Err(error) = self.run(&["down"]) {
            println!("{error:#}");
        }
    }
}

/// A span as Jaeger tells it.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    scope: String,
    name: String,
    id: String,
    parent: String,
    links: Vec<String>,
}

/// The spans of the latest traces that the service takes part in, by their ids.
fn spans(service: &str) -> Result<BTreeMap<String, Span>> {
    let found = get(JAEGER, &format!("/api/traces?service={service}&limit=100&lookback=1h"))?;
    let mut spans = BTreeMap::new();
    for trace in found["data"].as_array().context("no traces")? {
        for span in trace["spans"].as_array().context("no spans")? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let references = span["references"].as_array().into_iter().flatten();
            let (parents, links): (Vec<_>, Vec<_>) = references.partition(|to| to["refType"] == "CHILD_OF");
            let scope = span["tags"].as_array().into_iter().flatten().find(|tag| tag["key"] == "otel.scope.name");
            let process = text(&span["processID"]);
            let span = Span {
                service: text(&trace["processes"][&process]["serviceName"]),
                scope: scope.map(|tag| text(&tag["value"])).unwrap_or_default(),
                name: text(&span["operationName"]),
                id: text(&span["spanID"]),
                parent: parents.first().map(|to| text(&to["spanID"])).unwrap_or_default(),
                links: links.iter().map(|to| text(&to["spanID"])).collect(),
            };
            spans.insert(span.id.clone(), span);
        }
    }
    Ok(spans)
}

/// The application's trace: its own span, and under it a send; the receive of that message under the consumer's span,
/// linked to the send.
fn is_told(spans: &BTreeMap<String, Span>) -> bool {
    let under_the_application = |span: &Span| {
        let parent = spans.get(&span.parent);
        span.scope == "mqspan"
            && parent.is_some_and(|parent| parent.scope != "mqspan" && parent.service == span.service)
    };
    spans.values().filter(|span| span.name.starts_with("mq_timedreceive") && under_the_application(span)).any(
        |receive| {
            receive.links.iter().filter_map(|link| spans.get(link)).any(|send| {
                send.name.starts_with("mq_timedsend")
                    && under_the_application(send)
                    && spans.contains_key(&receive.parent)
            })
        },
    )
}

/// The dashboard's queries, as Grafana would put them.
fn queries() -> Result<Vec<String>> {
    let dashboard = std::fs::read(root().join("otel-config/grafana/dashboards/queues.json"))?;
    let dashboard: Value = serde_json::from_slice(&dashboard)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.filter_map(|target| target["expr"].as_str());
    Ok(queries.map(|query| query.replace("$queue", ".*").replace("$__rate_interval", "1m")).collect())
}

/// Prevents a compose file that starts but shows nothing: no spans inside the application's traces, no data behind a
/// panel, exemplars that lead nowhere.
#[test]
fn one_command_shows_a_trace() -> Result<()> {
    let compose = Compose::up()?;
    let told = until_every(PAUSE, "the application's trace", || Ok(spans("shop").ok().filter(is_told)));
    let told = told.with_context(|| compose.run(&["logs"]).unwrap_or_default())?;
    println!("{} spans of traces of the application", told.len());
    for span in told.values().filter(|span| span.scope == "mqspan") {
        ensure!(span.service == "shop", "{span:?}");
    }

    for query in queries()? {
        let path = format!("/api/v1/query?query={}", escaped(&query));
        let answer = until_every(PAUSE, &query, || {
            let answer = get(PROMETHEUS, &path)?;
            Ok(answer["data"]["result"].as_array().filter(|series| !series.is_empty()).map(Vec::len))
        });
        println!("{} series: {query}", answer?);
    }

    // An exemplar's trace is one that Jaeger has.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let metric = escaped("messaging_client_operation_duration_seconds");
    let path = format!("/api/v1/query_exemplars?query={metric}&start={}&end={}", now - 600, now + 600);
    until_every(PAUSE, "an exemplar that leads to a trace", || {
        let answer = get(PROMETHEUS, &path)?;
        let series = answer["data"].as_array().context("no exemplars")?;
        let traces = series.iter().flat_map(|series| series["exemplars"].as_array().into_iter().flatten());
        let mut ids = traces.filter_map(|exemplar| exemplar["labels"]["trace_id"].as_str());
        Ok(ids.any(|id| get(JAEGER, &format!("/api/traces/{id}")).is_ok()).then_some(()))
    })
}

/// Prevents a file that Grafana would not take: each data source that a panel names is provisioned, each has an id of
/// its own, and no two panels share theirs.
#[test]
fn grafana_finds_what_it_is_given() -> Result<()> {
    let sources = std::fs::read_to_string(root().join("otel-config/grafana/provisioning/datasources/mqspan.yaml"))?;
    let dashboard = std::fs::read(root().join("otel-config/grafana/dashboards/queues.json"))?;
    let dashboard: Value = serde_json::from_slice(&dashboard)?;
    let mut ids = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        ids.push(panel["id"].as_u64().context("a panel without an id")?);
        for target in panel["targets"].as_array().context("a panel without targets")? {
            let uid = target["datasource"]["uid"].as_str().context("a target without a data source")?;
            ensure!(sources.contains(&format!("uid: {uid}\n")), "{uid} is not provisioned");
        }
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == count && count > 0, "panels share ids: {ids:?}");
    for key in ["uid", "title", "schemaVersion", "templating"] {
        if dashboard[key].is_null() {
            bail!("the dashboard has no {key}");
        }
    }
    Ok(())
}
