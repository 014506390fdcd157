//! `--max-rate` and `--template`: what is left out and said of it, and by which name queues go. Needs root and tracefs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    metrics::v1::{metric::Data, number_data_point},
    trace::v1::Span,
};
use support::{
    otlp::{self, Record, made_by, of_operation, text},
    program::{Ended, Mqspan, finish},
    stats::Stats,
};

const RATE: u64 = 10;
const CEILING: u64 = 10 * RATE;

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// What a run of the workload came to.
struct Run {
    spans: Vec<Record<Span>>,
    /// The calls that metrics counted, by operation.
    counted: BTreeMap<String, u64>,
    stats: Stats,
    /// The seconds in which the workload made its calls.
    seconds: u64,
}

impl Run {
    fn of(mqspan: &Mqspan, options: &[&str], workload: &[&str]) -> Result<Self> {
        let (file, program) = (mqspan.to_file("all"), mqspan.workload_arg());
        let ended = mqspan
            .run_counted(&[&["--signals=traces,metrics", &file], options, &["--", &program], workload].concat())?;
        let (stats, spans) = (mqspan.stats()?, otlp::spans(&mqspan.file("all"))?);
        ensure!(stats.exported == spans.len() as u64 && stats.lost_sum() == 0, "{} spans: {stats:?}", spans.len());
        let counted = counted(mqspan)?;
        // Metrics hold what spans leave out. What others do on this machine meanwhile is filtered.
        ensure!(counted.values().sum::<u64>() == stats.captured - stats.filtered, "{counted:?}: {stats:?}");
        let last = ended.lines()?.last().copied().unwrap_or_default().trim().parse::<f64>().unwrap_or_default();
        println!("{options:?} {workload:?}: {} spans, {} limited, {last}", spans.len(), stats.limited);
        Ok(Self { spans: made_by(spans, &mqspan.workload()), counted, stats, seconds: last as u64 })
    }

    fn spans_of(&self, operation: &str, is: impl Fn(&Record<Span>) -> bool) -> u64 {
        of_operation(self.spans.clone(), operation).iter().filter(|span| is(span)).count() as u64
    }
}

fn counted(mqspan: &Mqspan) -> Result<BTreeMap<String, u64>> {
    let mut last = BTreeMap::new();
    for of in otlp::metrics(&mqspan.file("all"))?.iter().flat_map(|request| &request.resource_metrics) {
        let resource = otlp::attributes(of.resource.as_ref().map(|it| &*it.attributes).unwrap_or_default())?;
        for metric in of.scope_metrics.iter().flat_map(|of| &of.metrics) {
            let Some(Data::ExponentialHistogram(data)) = &metric.data else { continue };
            for point in data.data_points.iter().filter(|_| metric.name == "messaging.client.operation.duration") {
                let attributes = otlp::attributes(&point.attributes)?;
                let operation = text(&attributes, "messaging.operation.name").context("no operation")?.to_owned();
                // Of a cumulative stream the last point is the total.
                last.insert((operation, format!("{resource:?} {attributes:?}")), point.count);
            }
        }
    }
    let mut counted = BTreeMap::new();
    for ((operation, _), count) in last {
        *counted.entry(operation).or_default() += count;
    }
    Ok(counted)
}

fn errno(span: &Record<Span>) -> Option<&str> {
    span.text("posix_mq.errno")
}

/// Prevents more spans than asked for, calls worth a look from being left out, and what is left out from going untold.
#[test]
fn what_is_limited_and_what_is_exempt() -> Result<()> {
    let mqspan = mqspan()?;
    // Below the ceiling, which all that is exempt shares.
    let calls = ["bursts", "--name=mqspan-test-rate", "--failed=20", "--slow=3", "--asked=40"];
    let run = Run::of(&mqspan, &["--max-rate=10", "--slow=10ms"], &calls)?;
    ensure!(run.seconds >= 3, "{} seconds", run.seconds);
    for (operation, errno_is, expected) in [
        ("mq_timedsend", Some("EMSGSIZE"), 40),
        ("mq_timedsend", Some("ETIMEDOUT"), 6),
        ("mq_getsetattr", None, 80),
        ("mq_open", None, 2),
        ("mq_unlink", None, 1),
    ] {
        let found = run.spans_of(operation, |span| errno(span) == errno_is);
        ensure!(found == expected, "{found} of {expected} exempt {operation}, {errno_is:?}");
    }
    // Polling is not failing: with the messages received it shares the limit.
    let is_slow = |span: &Record<Span>| match span.attributes.get("posix_mq.message.wait") {
        Some(otlp::Value::Double(seconds)) => *seconds >= 0.01,
        _ => false,
    };
    for operation in ["mq_timedsend", "mq_timedreceive"] {
        let kept = run.spans_of(operation, |span| {
            matches!(errno(span), None | Some("EAGAIN")) && !(operation == "mq_timedreceive" && is_slow(span))
        });
        // The last second has one of each; a slow receive is exempt only where the kernel side knows its wait.
        let (least, most) = (2 * RATE + 1 - 4, RATE * run.seconds);
        ensure!((least..=most).contains(&kept), "{kept} of {operation}, not {least} to {most}");
    }
    let mut limited = 0;
    for operation in ["mq_timedsend", "mq_timedreceive"] {
        let all = run.counted.get(operation).copied().unwrap_or_default();
        let spans = of_operation(run.spans.clone(), operation);
        let told = spans.iter().map(|span| span.int("posix_mq.limited_calls").unwrap_or_default()).sum::<i64>();
        ensure!(
            told.cast_unsigned() == all - spans.len() as u64,
            "{operation}: {told} told, {all} calls, {}",
            spans.len()
        );
        limited += told.cast_unsigned();
    }
    ensure!(limited == run.stats.limited, "{limited} told: {:?}", run.stats);
    let others = run.spans.iter().filter(|span| {
        !["mq_timedsend", "mq_timedreceive"].contains(&span.text("messaging.operation.name").unwrap_or_default())
    });
    ensure!(others.clone().all(|span| !span.attributes.contains_key("posix_mq.limited_calls")), "said of others, too");
    Ok(())
}

/// Prevents calls that fail in a loop, or that are always exempt, from drowning the rest.
#[test]
fn what_is_exempt_has_a_ceiling() -> Result<()> {
    let mqspan = mqspan()?;
    let calls = ["bursts", "--name=mqspan-test-ceiling", "--failed=500", "--asked=500", "--pairs=5", "--polls=0"];
    let run = Run::of(&mqspan, &["--max-rate=10"], &calls)?;
    for operation in ["mq_timedsend", "mq_getsetattr"] {
        let kept = run.spans_of(operation, |span| operation == "mq_getsetattr" || errno(span).is_some());
        let (least, most) = (2 * CEILING, CEILING * run.seconds);
        ensure!((least..=most).contains(&kept), "{kept} of {operation}, not {least} to {most}");
    }
    // The messages have a limit of their own.
    for operation in ["mq_timedsend", "mq_timedreceive"] {
        let kept = run.spans_of(operation, |span| errno(span).is_none());
        ensure!(kept == 11, "{kept} of 11 of {operation}");
    }
    Ok(())
}

/// Prevents one queue's traffic from leaving another's out, and the ceiling of one process from being another's.
#[test]
fn each_queue_and_process_has_its_own_rate() -> Result<()> {
    let mqspan = mqspan()?;
    let script = "for n in 1 2 3; do \"$0\" bursts --bursts=1 --asked=150 --name=mqspan-test-own-$n & done; wait";
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--max-rate=10", "--signals=traces", &mqspan.to_file("all"), &stats]);
    command.args(["--", "bash", "-c", script, &mqspan.workload_arg()]);
    Ended::of(finish(command)?).ok()?;
    let spans = made_by(otlp::spans(&mqspan.file("all"))?, &mqspan.workload());
    for n in 1..=3 {
        let queue = format!("/mqspan-test-own-{n}");
        let of_queue: Vec<_> =
            spans.iter().filter(|span| span.text("messaging.destination.name") == Some(&queue)).cloned().collect();
        for (operation, least) in [("mq_timedsend", RATE), ("mq_timedreceive", RATE), ("mq_getsetattr", CEILING)] {
            let kept = of_operation(of_queue.clone(), operation).len() as u64;
            ensure!((least..=2 * least + 1).contains(&kept), "{kept} spans of {operation} on {queue}");
        }
    }
    let stats = mqspan.stats()?;
    ensure!(stats.exported == spans.len() as u64 && stats.lost_sum() == 0 && stats.limited > 1000, "{stats:?}");
    Ok(())
}

/// Prevents a default that leaves calls out where nobody asked for it: with a command, and with files and consoles only.
#[test]
fn no_limit_unless_it_is_wanted() -> Result<()> {
    let mqspan = mqspan()?;
    let calls = ["bursts", "--name=mqspan-test-all", "--bursts=1", "--failed=1500", "--pairs=1500", "--polls=1"];
    for options in [&[][..], &["--max-rate=0"]] {
        let run = Run::of(&mqspan, options, &calls)?;
        ensure!(run.stats.limited == 0 && run.spans.len() > 4500, "{:?}", run.stats);
    }
    Ok(())
}

/// Prevents queues of a kind from having a span name and a metric each, and their own names from being lost.
#[test]
fn templates() -> Result<()> {
    let mqspan = mqspan()?;
    let script = "\"$0\" bursts --bursts=1 --pairs=5 --polls=0 --name=reply-$$ && \
                  \"$0\" bursts --bursts=1 --pairs=5 --polls=0 --name=reply-x$$ && \
                  \"$0\" bursts --bursts=1 --pairs=5 --polls=0 --name=other";
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--signals=traces,metrics", &mqspan.to_file("all"), &stats]);
    command.args(["--template=/reply-*", "--template=/reply-x*", "--template=/never"]);
    command.args(["--", "bash", "-c", script, &mqspan.workload_arg()]);
    Ended::of(finish(command)?).ok()?;
    let (template, name) = ("messaging.destination.template", "messaging.destination.name");
    let mut names = BTreeSet::new();
    for span in made_by(otlp::spans(&mqspan.file("all"))?, &mqspan.workload()) {
        let (operation, queue) = (span.text("messaging.operation.name"), span.text(name).context("no name")?);
        let expected = queue.starts_with("/reply-").then_some("/reply-*");
        ensure!(span.text(template) == expected, "{:?}", span.attributes);
        let title = format!("{} {}", operation.unwrap_or_default(), expected.unwrap_or(queue));
        ensure!(span.body.name == title, "{} is not {title}", span.body.name);
        names.insert(queue.to_owned());
    }
    ensure!(names.len() == 3, "{names:?}");

    let mut metrics = BTreeMap::<_, BTreeSet<_>>::new();
    let requests = otlp::metrics(&mqspan.file("all"))?;
    let of_resources = requests.iter().flat_map(|request| &request.resource_metrics);
    for metric in of_resources.flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let points: Vec<_> = match metric.data.as_ref().context("no data")? {
            Data::ExponentialHistogram(data) => data.data_points.iter().map(|point| &point.attributes).collect(),
            Data::Sum(data) => data.data_points.iter().map(|point| &point.attributes).collect(),
            Data::Gauge(data) => {
                let capacity = |value| matches!(value, Some(number_data_point::Value::AsInt(2 | 4)));
                let is_capacity = metric.name == "posix_mq.queue.capacity";
                ensure!(!is_capacity || data.data_points.iter().all(|point| capacity(point.value)), "{data:?}");
                data.data_points.iter().map(|point| &point.attributes).collect()
            }
            other => anyhow::bail!("{other:?}"),
        };
        for attributes in points {
            let attributes = otlp::attributes(attributes)?;
            let own = |key| text(&attributes, key).map(String::from);
            if let Some(by) = own(template).or(own(name)) {
                ensure!(own(template).is_none() || own(name).is_none(), "{}: {attributes:?}", metric.name);
                metrics.entry(metric.name.clone()).or_default().insert(by);
            }
        }
    }
    let expected = BTreeSet::from(["/other".to_owned(), "/reply-*".to_owned()]);
    for name in [
        "messaging.client.operation.duration",
        "messaging.client.sent.messages",
        "posix_mq.message.size",
        "posix_mq.queue.depth",
    ] {
        ensure!(metrics.get(name) == Some(&expected), "{name}: {metrics:?}");
    }
    Ok(())
}
