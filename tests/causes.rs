//! Why calls failed, as the program that made them fail knows it: it sets the limits itself. Needs root and tracefs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{logs::v1::LogRecord, metrics::v1::metric::Data, trace::v1::Span};
use support::{
    causes::{self, Failed, Told, compare},
    otlp::{self, made_by, text},
    program::Mqspan,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// Runs the workload; what it says, by thread.
fn run(mqspan: &Mqspan, options: &[&str], arguments: &[&str]) -> Result<Told> {
    let (file, program) = (mqspan.to_file("all"), mqspan.workload_arg());
    let ended =
        mqspan.run_counted(&[options, &[&*file, "--max-rate=0", "--", &*program, "causes"], arguments].concat())?;
    let told = causes::told(ended.lines()?)?;
    let stats = mqspan.stats()?;
    ensure!(stats.lost_sum() == 0, "{stats:?}");
    Ok(told)
}

/// What the metric says of failed calls: how many, by errno and cause.
fn counted(mqspan: &Mqspan) -> Result<BTreeMap<(String, Option<String>), u64>> {
    let mut counts = BTreeMap::new();
    let requests = otlp::metrics(&mqspan.file("all"))?;
    for of in requests.iter().flat_map(|request| &request.resource_metrics) {
        let resource = otlp::attributes(of.resource.as_ref().map(|it| &*it.attributes).unwrap_or_default())?;
        if text(&resource, "process.executable.path") != mqspan.workload().to_str() {
            continue;
        }
        let pid = resource.get("process.pid").map(|pid| format!("{pid:?}"));
        for metric in of.scope_metrics.iter().flat_map(|of| &of.metrics) {
            let Some(Data::ExponentialHistogram(data)) = &metric.data else { continue };
            for point in data.data_points.iter().filter(|_| metric.name == "messaging.client.operation.duration") {
                let attributes = otlp::attributes(&point.attributes)?;
                let Some(errno) = text(&attributes, "posix_mq.errno") else { continue };
                let cause = text(&attributes, "posix_mq.cause").map(str::to_owned);
                // Cumulative: the last point of a stream counts.
                let stream = (pid.clone(), format!("{attributes:?}"));
                counts.insert(stream, ((errno.to_owned(), cause), point.count));
            }
        }
    }
    let mut sums = BTreeMap::new();
    for (key, count) in counts.into_values() {
        *sums.entry(key).or_default() += count;
    }
    Ok(sums)
}

/// Prevents a cause from being wrong, a limit from having other numbers than those that the program set, and spans, log
/// records and metrics from saying different things of the same calls.
#[test]
fn every_cause() -> Result<()> {
    let mqspan = mqspan()?;
    let told = run(&mqspan, &["--signals=traces,logs,metrics"], &[])?;
    let spans = made_by::<Span>(otlp::spans(&mqspan.file("all"))?, &mqspan.workload());
    let logs = made_by::<LogRecord>(otlp::logs(&mqspan.file("all"))?, &mqspan.workload());
    let compared = compare(&told, &spans)?;
    ensure!(compare(&told, &logs)? == compared && compared >= 100, "{compared} calls");
    let causes: BTreeSet<_> = told.values().flatten().filter_map(|failed| failed.cause.as_deref()).collect();
    println!("{compared} ways to fail, {} causes: {causes:?}", causes.len());
    // The one beyond is the host's (`fs.file-max`), which no test may take from others.
    ensure!(causes.len() == 20, "{causes:?}");
    for log in &logs {
        let Some(failed) = Failed::seen(log) else { continue };
        let ends = format!(" = -1 {}{}", failed.errno, failed.bracket());
        let body = otlp::body(&log.body).context("no body")?;
        ensure!(body.ends_with(&ends), "{body:?} does not end with {ends:?}");
    }
    let mut expected: BTreeMap<(String, Option<String>), u64> = BTreeMap::new();
    for failed in told.into_values().flatten() {
        *expected.entry((failed.errno, failed.cause)).or_default() += 1;
    }
    let found = counted(&mqspan)?;
    ensure!(found == expected, "{found:?}, not {expected:?}");
    Ok(())
}

/// Prevents a cause from being claimed that was none, in 10,000 failing calls that were drawn at random.
#[test]
fn random_calls() -> Result<()> {
    let mqspan = mqspan()?;
    let told = run(&mqspan, &["--signals=traces"], &["--random=10000", "--seed=15"])?;
    let spans = made_by::<Span>(otlp::spans(&mqspan.file("all"))?, &mqspan.workload());
    let compared = compare(&told, &spans)?;
    let failed = told.values().flatten();
    let known = failed.filter(|failed| failed.cause.is_some()).count();
    println!("{compared} failed calls, {known} with a cause");
    ensure!(compared >= 10_000 && known > 5_000, "{compared}, {known}");
    Ok(())
}
