//! A snapshot as plain text, for `top --once`: aligned columns without colours, the same whoever reads it. Pure code.

use std::fmt::Write;

use super::numbers::{UNKNOWN, count, known, rate, time};
use super::snapshot::{Health, QueueRow, Snapshot};
use crate::model::text::printable;

/// The leading failure, as `EAGAIN`; empty where none came lately.
pub fn leading_errno(row: &QueueRow) -> &str {
    row.errnos.first().filter(|errno| errno.per_second > 0.0).map_or("", |errno| &errno.errno)
}

/// How a queue is called in a row.
pub fn queue_name(row: &QueueRow) -> String {
    row.name.as_deref().map_or_else(|| "(no name)".into(), |name| printable(name).into_owned())
}

/// Columns, as wide as their widest cell; the first and those that hold words stand on the left.
pub fn columns(heads: &[&str], is_left: &[bool], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    let head: Vec<String> = heads.iter().map(ToString::to_string).collect();
    for row in [&head].into_iter().chain(rows) {
        let mut line = String::new();
        for ((cell, width), is_left) in row.iter().zip(&widths).zip(is_left) {
            // Writing to a String cannot fail.
            let _ = if *is_left { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One line of how well mqspan sees.
pub fn health(health: &Health) -> String {
    let Health { hooks, captured, limited, lost, unknown, .. } = health;
    let mut line = format!("{captured} calls captured by {hooks}");
    if *limited > 0 {
        let _ = write!(line, ", {limited} without a line");
    }
    match lost.values().sum::<u64>() {
        0 => line.push_str(", 0 lost"),
        sum => {
            let stages: Vec<String> = lost.iter().map(|(stage, calls)| format!("{calls} at {stage}")).collect();
            let _ = write!(line, ", {sum} LOST ({})", stages.join(", "));
        }
    }
    for what in unknown {
        let _ = write!(line, "; not known: {what}");
    }
    line
}

/// The whole snapshot.
pub fn text(snapshot: &Snapshot) -> String {
    let mut text = format!(
        "mqspan top, {}, rates over {:.1}s\n{}\n\n",
        snapshot.time,
        snapshot.interval_seconds,
        health(&snapshot.health)
    );
    let row = |row: &QueueRow| {
        vec![
            queue_name(row),
            known(row.ipc_namespace, |number| number.to_string()),
            match row.exists {
                true => format!(
                    "{}/{}",
                    known(row.depth, |depth| depth.to_string()),
                    known(row.capacity, |capacity| capacity.to_string())
                ),
                false => "-".into(),
            },
            known(row.peak, |peak| peak.to_string()),
            rate(row.sent_per_second),
            rate(row.received_per_second),
            if row.exists { known(row.oldest_age_seconds, time) } else { "-".into() },
            row.wait(|waits| waits.p50),
            row.wait(|waits| waits.p99),
            rate(row.failures_per_second),
            leading_errno(row).to_owned(),
            known(row.descriptors, |open| format!("{}/{}", open.read, open.write)),
            format!("{}/{}", blocked(row.blocked.send), blocked(row.blocked.receive)),
        ]
    };
    let heads = [
        "QUEUE",
        "IPC NS",
        "DEPTH",
        "PEAK",
        "IN/S",
        "OUT/S",
        "OLDEST",
        "WAIT50",
        "WAIT99",
        "FAIL/S",
        "ERRNO",
        "RD/WR",
        "BLOCKED S/R",
    ];
    let mut is_left = [false; 13];
    (is_left[0], is_left[10]) = (true, true);
    let rows: Vec<Vec<String>> = snapshot.queues.iter().map(row).collect();
    text += &columns(&heads, &is_left, &rows);
    if !snapshot.processes.is_empty() {
        let rows: Vec<Vec<String>> = snapshot
            .processes
            .iter()
            .map(|row| {
                vec![
                    row.name.clone().unwrap_or_else(|| UNKNOWN.into()),
                    row.pid.to_string(),
                    rate(row.calls_per_second),
                    rate(row.sent_per_second),
                    rate(row.received_per_second),
                    rate(row.failures_per_second),
                    count(row.calls as f64),
                ]
            })
            .collect();
        let heads = ["PROCESS", "PID", "CALLS/S", "SENT/S", "RECEIVED/S", "FAIL/S", "CALLS"];
        text += &format!("\n{}", columns(&heads, &[true, false, false, false, false, false, false], &rows));
    }
    if !snapshot.blocked_threads.is_empty() {
        text.push('\n');
    }
    for thread in &snapshot.blocked_threads {
        let queue = thread.queue.as_deref().map_or(UNKNOWN.into(), printable);
        let waits = known(thread.waiting_seconds, time);
        let _ = writeln!(
            text,
            "{}[{}/{}] waits in {} on {queue} for {waits}",
            printable(&thread.name),
            thread.pid,
            thread.tid,
            thread.operation,
        );
    }
    if snapshot.calls_left_out > 0 {
        let _ = writeln!(text, "\n{} calls of queues or processes beyond those shown", snapshot.calls_left_out);
    }
    text
}

fn blocked(threads: Option<u64>) -> String {
    known(threads, |threads| threads.to_string())
}
