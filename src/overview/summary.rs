//! What a run came to, for `--summary`: calls, failures and times of each queue and call, and who talks to whom. Pure code.

use std::fmt::Write;

use super::log::CallLog;
use super::numbers::{UNKNOWN, duration};
use super::snapshot::BOUNDS;
use super::tables::{Flow, OpRecord, QueueRecord, Tables};
use super::text::columns;
use crate::model::call::ImageKey;
use crate::model::cause::Cause;
use crate::model::reading::QueueName;
use crate::model::text::printable;
use crate::model::values::Op;
use crate::telemetry::terms::{errno_name, operation};

/// So many rows are printed of each table at most.
const ROWS: usize = 500;

/// The duration of the longest call, where it was logged: it is in the last bucket that holds any.
fn exact(record: &OpRecord, logged: Option<u64>) -> Option<u64> {
    let bound = record.durations.quantile(1.0, &BOUNDS)?;
    let below = BOUNDS.iter().rev().find(|other| **other < bound).copied().unwrap_or(0);
    logged.filter(|logged| *logged > below)
}

/// How long the longest call took: exact where it was logged, else what its bucket ends at.
pub fn longest(record: &OpRecord, logged: Option<u64>) -> Option<String> {
    let bound = record.durations.quantile(1.0, &BOUNDS)?;
    Some(exact(record, logged).map_or_else(|| format!("<={}", duration(bound)), duration))
}

/// The duration that so many of all calls do not exceed: the end of a bucket, but no more than that of the longest call.
pub fn quantile(record: &OpRecord, share: f64, logged: Option<u64>) -> Option<u64> {
    let bound = record.durations.quantile(share, &BOUNDS)?;
    Some(exact(record, logged).map_or(bound, |longest| bound.min(longest)))
}

/// `3 EAGAIN (full), 1 EINVAL (priority)`: the failures of a call, the most frequent first.
pub fn failures(record: &QueueRecord, op: Op) -> String {
    let of_call = record.failures.iter().filter(|((of, ..), _)| *of == op);
    let mut failures: Vec<_> = of_call.map(|((_, errno, cause), count)| (*errno, *cause, count.total)).collect();
    failures.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
    let text = |(errno, cause, count): &(i32, Option<Cause>, u64)| {
        let errno = if *errno == 0 { "other".into() } else { errno_name(*errno) };
        let cause = cause.map(|cause| format!(" ({})", cause.name())).unwrap_or_default();
        format!("{count} {errno}{cause}")
    };
    failures.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// How a queue is called; namespaces are named where there is more than one.
pub fn queue_text(name: Option<&QueueName>, names_namespace: bool) -> String {
    match name {
        None => "(no name)".into(),
        Some((ipc_ns, name)) if names_namespace => format!("{} ({ipc_ns})", printable(name)),
        Some((_, name)) => printable(name).into_owned(),
    }
}

/// Whether queues are of more than one ipc namespace.
pub fn names_namespace(tables: &Tables) -> bool {
    let mut namespaces = tables.queues().filter_map(|(name, _)| name.map(|(ipc_ns, _)| *ipc_ns));
    let first = namespaces.next();
    namespaces.any(|other| Some(other) != first)
}

/// `biller[1301]`.
pub fn process_text(tables: &Tables, image: &ImageKey) -> String {
    let name = tables.process_of(image).and_then(|process| process.name.as_deref()).unwrap_or(UNKNOWN);
    format!("{}[{}]", printable(name), image.pid)
}

/// Who sends through a queue to whom: each side with its messages, the most first.
pub fn sides<'a>(tables: &'a Tables, queue: &QueueName, of: impl Fn(&Flow) -> u64) -> Vec<(&'a ImageKey, u64)> {
    let flows = tables.flows().filter(|(name, ..)| *name == queue);
    let mut side: Vec<_> = flows.map(|(_, image, flow)| (image, of(flow))).filter(|(_, count)| *count > 0).collect();
    side.sort_by_key(|(image, count)| (std::cmp::Reverse(*count), **image));
    side
}

/// The whole summary.
pub fn summary(tables: &Tables, calls: &CallLog) -> String {
    let with_namespace = names_namespace(tables);
    let mut rows = Vec::new();
    for (name, record) in tables.queues() {
        for op in Op::ALL.into_iter().filter(|op| record.op(*op).calls.total > 0) {
            let of_op = record.op(op);
            let at = |share| quantile(of_op, share, calls.longest(name, op)).map_or_else(|| UNKNOWN.into(), duration);
            rows.push(vec![
                queue_text(name, with_namespace),
                operation(op).to_owned(),
                of_op.calls.total.to_string(),
                of_op.failed.total.to_string(),
                duration(of_op.durations.sum),
                at(0.5),
                at(0.99),
                longest(of_op, calls.longest(name, op)).unwrap_or_else(|| UNKNOWN.into()),
                failures(record, op),
            ]);
        }
    }
    let mut text = String::new();
    let heads = ["QUEUE", "CALL", "CALLS", "FAILED", "TOTAL", "P50", "P99", "MAX", "FAILURES"];
    let is_left = [true, true, false, false, false, false, false, false, true];
    table(&mut text, &heads, &is_left, rows, "no call");
    let mut rows = Vec::new();
    for name in tables.queues().filter_map(|(name, _)| name) {
        let (senders, receivers) =
            (sides(tables, name, |flow| flow.sent.total), sides(tables, name, |flow| flow.received.total));
        for at in 0..senders.len().max(receivers.len()) {
            let side = |side: &[(&ImageKey, u64)]| match side.get(at) {
                Some((image, count)) => [process_text(tables, image), count.to_string()],
                None => Default::default(),
            };
            let ([sender, sent], [receiver, received]) = (side(&senders), side(&receivers));
            let queue = if at == 0 { queue_text(Some(name), with_namespace) } else { String::new() };
            rows.push(vec![queue, sender, sent, receiver, received]);
        }
    }
    if !rows.is_empty() {
        text.push('\n');
        let heads = ["QUEUE", "FROM", "SENT", "TO", "RECEIVED"];
        table(&mut text, &heads, &[true, true, false, true, false], rows, "");
    }
    let left_out = tables.left_out().calls;
    if left_out > 0 {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{left_out} calls of queues or processes beyond those that are told apart");
    }
    text
}

fn table(text: &mut String, heads: &[&str], is_left: &[bool], mut rows: Vec<Vec<String>>, nothing: &str) {
    if rows.is_empty() {
        text.push_str(nothing);
        text.push('\n');
        return;
    }
    let left_out = rows.len().saturating_sub(ROWS);
    rows.truncate(ROWS);
    text.push_str(&columns(heads, is_left, &rows));
    if left_out > 0 {
        let _ = writeln!(text, "and {left_out} rows more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::buckets::BUCKETS;
    use crate::model::reading::{Measure, Points, Reading};
    use crate::model::resource::Resource;
    use crate::overview::tables::Bounds;

    fn tables(namespaces: u32) -> Tables {
        let mut tables = Tables::new(Bounds::WHOLE, 0);
        tables.begin(1_000_000_000, 0);
        let nobody = |_| None::<std::sync::Arc<Resource>>;
        for ipc_ns in 0..namespaces {
            for (pid, op, errno, count) in [
                (1, Op::MqTimedsend, 0, 120),
                (1, Op::MqTimedsend, libc::EAGAIN, 3),
                (1, Op::MqTimedsend, libc::EMSGSIZE, 5),
                (2, Op::MqTimedreceive, 0, 70),
                (3, Op::MqTimedreceive, 0, 50),
                (3, Op::MqOpen, libc::ENOENT, 1),
            ] {
                let mut buckets = Box::new([0; BUCKETS]);
                (buckets[20], buckets[24]) = (count - 1, 1);
                let points = Points { sum: u64::from(count) * 3000, zeros: 0, buckets };
                let image = Some(ImageKey { pid, started_ns: 1, exec_id: 0 });
                let comm = Vec::new();
                let reading = Reading {
                    image,
                    name: 1,
                    ipc_ns,
                    errno,
                    cause: None,
                    measure: Measure::Duration,
                    op,
                    comm,
                    points,
                };
                let name = if op == Op::MqOpen { "/no\u{1b}" } else { "/orders" };
                tables.add(&reading, Some(&(ipc_ns, name.into())), nobody);
            }
        }
        tables.end();
        tables
    }

    /// Prevents counts, failures and times from standing in the wrong row or column, and names from steering the terminal.
    #[test]
    fn table_of_calls() {
        insta::assert_snapshot!(summary(&tables(1), &CallLog::new(0, 0)));
        assert!(summary(&tables(2), &CallLog::new(0, 0)).contains("/orders (1)"));
        assert_eq!(summary(&Tables::new(Bounds::WHOLE, 0), &CallLog::new(0, 0)), "no call\n");
    }

    /// Prevents a maximum from being shown as exact where a longer call was not logged.
    #[test]
    fn the_longest() {
        let tables = tables(1);
        let record = tables.record_of(&(0, "/orders".into())).unwrap().op(Op::MqTimedsend);
        let (bound, below) = (BOUNDS[24], BOUNDS[23]);
        assert_eq!(longest(record, Some(bound - 1)), Some(duration(bound - 1)));
        assert_eq!(longest(record, Some(below)), Some(format!("<={}", duration(bound))));
        assert_eq!(longest(record, None), Some(format!("<={}", duration(bound))));
        assert_eq!(longest(&OpRecord::default(), None), None);
        assert_eq!(quantile(record, 1.0, Some(bound - 1)), Some(bound - 1), "no more than the longest");
        assert_eq!(quantile(record, 0.5, Some(below)), Some(BOUNDS[20]));
    }

    /// Prevents a summary without end.
    #[test]
    fn bounded() {
        assert_eq!(summary(&tables(400), &CallLog::new(0, 0)).lines().count(), 2 * (ROWS + 2) + 1);
    }
}
