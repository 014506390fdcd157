//! What the kernel side adds up, and the calls that were made.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{metric::Data, number_data_point},
    trace::v1::Span,
};
use support::{
    otlp::{self, Record, text},
    program::Tracing,
    queues::{Held, gauges},
    wait,
};

use super::{BY_MESSAGE, Run, begun, kinds};

/// Metric, operation and errno.
type Key = (&'static str, Option<String>, Option<String>);

const DURATION: &str = "messaging.client.operation.duration";
const SENT: &str = "messaging.client.sent.messages";
const CONSUMED: &str = "messaging.client.consumed.messages";
const SIZE: &str = "posix_mq.message.size";
const WAIT: &str = "posix_mq.message.wait";

/// How much was counted, over all points.
fn counted(run: &Run) -> Result<BTreeMap<Key, u64>> {
    let mut counts = BTreeMap::new();
    let requests = otlp::metrics(&run.mqspan.file("told"))?;
    let of_resources = requests.iter().flat_map(|request| &request.resource_metrics);
    for metric in of_resources.flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let Some(name) = [DURATION, SENT, CONSUMED, SIZE, WAIT].into_iter().find(|name| *name == metric.name) else {
            continue;
        };
        let mut add = |attributes: &[KeyValue], count: u64| -> Result<()> {
            let attributes = otlp::attributes(attributes)?;
            let own = |key| text(&attributes, key).map(String::from);
            *counts.entry((name, own("messaging.operation.name"), own("posix_mq.errno"))).or_default() += count;
            Ok(())
        };
        match metric.data.as_ref().context("no data")? {
            Data::ExponentialHistogram(of) => {
                of.data_points.iter().try_for_each(|point| add(&point.attributes, point.count))?;
            }
            Data::Sum(of) => of.data_points.iter().try_for_each(|point| match point.value {
                Some(number_data_point::Value::AsInt(count)) => add(&point.attributes, count.try_into()?),
                _ => anyhow::bail!("{point:?}"),
            })?,
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(counts)
}

fn of_spans(spans: &[Record<Span>]) -> BTreeMap<Key, u64> {
    let mut counts = BTreeMap::new();
    for span in spans {
        let own = |key| span.text(key).map(String::from);
        let (operation, errno) = (own("messaging.operation.name"), own("posix_mq.errno"));
        let (sends, receives) =
            (span.body.name.starts_with("mq_timedsend"), span.body.name.starts_with("mq_timedreceive"));
        let passed = errno.is_none();
        for (metric, counts_here) in
            [(DURATION, true), (SENT, sends), (CONSUMED, receives && passed), (SIZE, (sends || receives) && passed)]
        {
            if counts_here {
                *counts.entry((metric, operation.clone(), errno.clone())).or_default() += 1;
            }
        }
        if span.attributes.contains_key(WAIT) {
            *counts.entry((WAIT, None, None)).or_default() += 1;
        }
    }
    counts
}

/// Prevents a call from being counted otherwise by one kind of hooks, and the queue's own numbers from being wrong.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn every_call_is_counted() -> Result<()> {
    let mut first = None;
    for kind in kinds() {
        let run = Run::new(kind)?.of_workload(&["--signals=traces,metrics"], &["steps"])?;
        let (counts, expected) = (counted(&run)?, of_spans(&run.all_spans()?));
        println!("{kind}: {} series of {} calls", counts.len(), run.all_spans()?.len());
        ensure!(counts == expected, "{kind}: {counts:?}, not {expected:?}");
        if kind == "tracepoint" {
            continue;
        }
        ensure!(counts == *first.get_or_insert_with(|| counts.clone()), "{kind}: {counts:?}, not {first:?}");
        let gauges = gauges(&run.mqspan.file("told"))?;
        for (gauge, expected) in [("peak_depth", 4), ("capacity", 4), ("depth", 0)] {
            let value = gauges.get(&format!("posix_mq.queue.{gauge} /steps"));
            ensure!(value == Some(&expected), "{kind}: {gauge} {value:?}");
        }
    }
    Ok(())
}

/// Prevents a peak from being overlooked: a message that is taken before its send has ended was in the queue all the same,
/// where its insertion is seen.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn every_peak_is_seen() -> Result<()> {
    // Sender and receiver are hurried: fentry only where it misses nothing then.
    for kind in begun(BY_MESSAGE.into_iter().chain(["tracepoint"])) {
        let run = Run::new(kind)?.of_workload(&["--signals=metrics"], &["snatch", "--queues=40"])?;
        let gauges = gauges(&run.mqspan.file("told"))?;
        let peak = |queue: i32| gauges.get(&format!("posix_mq.queue.peak_depth /snatch-{queue}")).copied();
        let peaks: Vec<_> = (0..40).filter_map(peak).collect();
        println!("{kind}: {} of {} peaks seen", peaks.iter().sum::<i64>(), peaks.len());
        ensure!(peaks.len() == 40 && peaks.iter().all(|peak| *peak <= 1), "{kind}: {peaks:?}");
        ensure!(kind == "tracepoint" || peaks.iter().all(|peak| *peak == 1), "{kind}: {peaks:?}");
    }
    Ok(())
}

/// Prevents queues and waiting threads from being shown otherwise than they are.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn queues_are_shown_as_they_are() -> Result<()> {
    for kind in kinds() {
        let run = Run::new(kind)?;
        let mut command = run.command(&["--signals=metrics"]);
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "200");
        let tracing = Tracing::start(command)?;
        let held = Held::start(&run.mqspan, "held")?;
        let expected = [
            ("queue.depth /held-full", 3),
            ("queue.capacity /held-full", 8),
            ("queue.depth /held-empty", 0),
            ("blocked_threads /held-empty mq_timedreceive", 3),
        ];
        let mut last = BTreeMap::new();
        let outcome = wait::until("the gauges", || {
            last = gauges(&run.mqspan.file("told"))?;
            let is = |(key, value): &(&str, i64)| last.get(&format!("posix_mq.{key}")) == Some(value);
            Ok(expected.iter().all(is).then_some(()))
        });
        held.let_go()?;
        outcome.with_context(|| format!("{kind}: {last:?}"))?;
        tracing.stop()?.ok()?;
        let peak = gauges(&run.mqspan.file("told"))?.remove("posix_mq.queue.peak_depth /held-full");
        ensure!(peak == Some(5), "{kind}: {peak:?}");
        println!("{kind}: {last:?}");
    }
    Ok(())
}
