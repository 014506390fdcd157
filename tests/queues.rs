//! The state of queues: depth, peak, capacity and threads that wait, as the workload made it. Needs root and tracefs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{fd::AsRawFd, linux::fs::MetadataExt},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mqueue::{MQ_OFlag, MqAttr, MqdT, mq_open, mq_send, mq_unlink},
    sys::stat::Mode,
};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
use support::{
    otlp::{self, Value},
    program::{Mqspan, Tracing},
    queues::{Held, gauges},
    wait,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

fn trace(mqspan: &Mqspan, signals: &str) -> Result<Tracing> {
    let mut command = mqspan.command(["run", signals, &mqspan.to_file("metrics")]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    Tracing::start(command)
}

/// Waits until the gauges are as expected; the error says what they were.
fn become_as_expected(mqspan: &Mqspan, expected: &[(String, i64)]) -> Result<()> {
    let mut last = BTreeMap::new();
    let outcome = wait::until("the gauges", || {
        last = gauges(&mqspan.file("metrics"))?;
        Ok(expected.iter().all(|(key, value)| last.get(key) == Some(value)).then_some(()))
    });
    outcome.with_context(|| format!("expected {expected:?}, found {last:?}"))
}

fn state(name: &str) -> Vec<(String, i64)> {
    [
        ("posix_mq.queue.depth", "full", 3),
        ("posix_mq.queue.capacity", "full", 8),
        ("posix_mq.queue.depth", "empty", 0),
        ("posix_mq.queue.capacity", "empty", 8),
    ]
    .map(|(metric, queue, value)| (format!("{metric} /{name}-{queue}"), value))
    .into_iter()
    .chain([(format!("posix_mq.blocked_threads /{name}-empty mq_timedreceive"), 3)])
    .collect()
}

/// Prevents depth, peak, capacity and waiting threads from being other than they are.
#[test]
fn a_queue_that_is_used_while_tracing() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = trace(&mqspan, "--signals=metrics")?;
    let held = Held::start(&mqspan, "mqspan-test-used")?;
    let peak = ("posix_mq.queue.peak_depth /mqspan-test-used-full".into(), 5);
    let outcome = become_as_expected(&mqspan, &[state("mqspan-test-used"), vec![peak]].concat());
    held.let_go()?;
    outcome?;
    tracing.stop()?.ok().map(drop)
}

/// Prevents a queue that is already stuck when mqspan starts from going unseen, and its threads from not being named.
#[test]
fn a_queue_that_was_there_before() -> Result<()> {
    let mqspan = mqspan()?;
    let held = Held::start(&mqspan, "mqspan-test-before")?;
    let outcome = trace(&mqspan, "--signals=metrics").and_then(|tracing| {
        become_as_expected(&mqspan, &state("mqspan-test-before"))?;
        tracing.stop()?.ok()
    });
    held.let_go()?;
    let ended = outcome?;
    let named = ended.stderr.iter().filter(|line| line.contains("/mqspan-test-before-empty")).count();
    ensure!(named == 3, "{named} of 3 waiting threads were named: {:?}", ended.stderr);
    Ok(())
}

/// The depths that were said of queues of this name: the value, and with what number a queue was said to be unlinked.
fn depths(mqspan: &Mqspan, name: &str) -> Result<BTreeSet<(i64, Option<i64>)>> {
    let mut depths = BTreeSet::new();
    let requests = otlp::metrics(&mqspan.file("metrics"))?;
    let of_resources = requests.iter().flat_map(|request| &request.resource_metrics);
    for metric in of_resources.flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let Some(Data::Gauge(gauge)) = metric.data.as_ref().filter(|_| metric.name == "posix_mq.queue.depth") else {
            continue;
        };
        for point in &gauge.data_points {
            let attributes = otlp::attributes(&point.attributes)?;
            if otlp::text(&attributes, "messaging.destination.name") != Some(name) {
                continue;
            }
            let number = otlp::int(&attributes, "posix_mq.queue.id");
            let unlinked = attributes.get("posix_mq.queue.unlinked");
            ensure!(unlinked == number.map(|_| &Value::Bool(true)), "{attributes:?}");
            if let Some(number_data_point::Value::AsInt(value)) = point.value {
                depths.insert((value, number));
            }
        }
    }
    Ok(depths)
}

/// A queue with so many messages, and its inode's number.
fn queue_with(name: &str, messages: usize) -> Result<(MqdT, i64)> {
    let attr = MqAttr::new(0, 8, 16, 0);
    let queue = mq_open(name, MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDWR, Mode::S_IRUSR, Some(&attr))?;
    (0..messages).try_for_each(|_| mq_send(&queue, b"x", 0))?;
    let number = fs::metadata(format!("/proc/self/fd/{}", queue.as_raw_fd()))?.st_ino();
    Ok((queue, number.cast_signed()))
}

/// Prevents a queue that was unlinked and is still open, and its successor of the same name, from being taken for one: in the
/// gauges and in spans.
#[test]
fn a_queue_and_its_successor() -> Result<()> {
    const NAME: &str = "/mqspan-test-successor";
    let mqspan = mqspan()?;
    let tracing = trace(&mqspan, "--signals=traces,metrics")?;
    let (_old, old_number) = queue_with(NAME, 2)?;
    mq_unlink(NAME)?;
    let (_new, new_number) = queue_with(NAME, 1)?;
    let both = [(1, None), (2, Some(old_number))];
    let outcome = wait::until("a point each", || {
        let depths = depths(&mqspan, NAME)?;
        Ok(both.iter().all(|point| depths.contains(point)).then_some(()))
    });
    mq_unlink(NAME)?;
    outcome.with_context(|| format!("{both:?}"))?;
    tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("metrics"))?;
    let sends = spans.iter().filter(|span| span.body.name == format!("mq_timedsend {NAME}"));
    let numbers: Vec<_> = sends.map(|span| span.int("posix_mq.queue.id")).collect();
    ensure!(numbers == [old_number, old_number, new_number].map(Some), "{numbers:?}");
    Ok(())
}

/// The gauges of the last collection alone.
fn last_gauges(mqspan: &Mqspan) -> Result<BTreeMap<String, i64>> {
    let (all, last) = (mqspan.file("metrics"), mqspan.file("last"));
    let text = fs::read_to_string(all)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = whole.lines().rfind(|line| line.contains("posix_mq.queue.depth"));
    fs::write(&last, line.map(|line| format!("{line}\n")).unwrap_or_default())?;
    gauges(&last)
}

/// Prevents threads that are killed where they wait from being shown as waiting for ever, and their calls from having no
/// span.
#[test]
fn threads_that_are_killed() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = trace(&mqspan, "--signals=traces,metrics")?;
    let held = Held::start(&mqspan, "mqspan-test-killed")?;
    let waiting = become_as_expected(&mqspan, &state("mqspan-test-killed"));
    held.kill()?;
    let outcome = waiting.and_then(|()| {
        wait::until("a collection without them", || {
            let last = last_gauges(&mqspan)?;
            let blocked = last.get("posix_mq.blocked_threads /mqspan-test-killed-empty mq_timedreceive");
            let is_told = last.contains_key("posix_mq.queue.depth /mqspan-test-killed-empty");
            // Where some thread of the host may not be looked at there is no zero.
            Ok((is_told && blocked.is_none_or(|threads| *threads == 0)).then_some(()))
        })
    });
    for queue in ["full", "empty"] {
        mq_unlink(&*format!("/mqspan-test-killed-{queue}"))?;
    }
    outcome?;
    tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("metrics"))?;
    let ended: Vec<_> = spans
        .iter()
        .filter(|span| span.body.name == "mq_timedreceive /mqspan-test-killed-empty")
        .map(|span| (span.text("posix_mq.errno"), span.attributes.get("posix_mq.blocked")))
        .collect();
    ensure!(ended == [(Some("ERESTARTSYS"), Some(&Value::Bool(true))); 3], "{ended:?}");
    Ok(())
}
