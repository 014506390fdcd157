//! `--report`: one self-contained HTML page of what a run came to. Its content security policy forbids the network and every
//! script but its own, without which it shows the same; every text of others is escaped by the template
//! (templates/report.html). Rows, points and texts are bounded, so that the page stays below 2 MiB whatever was traced. Pure
//! code.

mod course;

use std::io;
use std::time::{Duration, SystemTime};

use askama::Template;
use jiff::Timestamp;

use crate::model::text::printable;
use crate::model::values::Op;
use crate::overview::log::CallLog;
use crate::overview::numbers::{UNKNOWN, count, duration};
use crate::overview::snapshot::BOUNDS;
use crate::overview::summary::{failures, longest, names_namespace, process_text, quantile, queue_text};
use crate::overview::tables::Tables;
use crate::report::course::CourseChart;
use crate::telemetry::terms::operation;

/// Rows of a table.
const ROWS: usize = 300;
/// Pairs of a process and a queue in the graph.
const FLOWS: usize = 60;
/// Queues whose course is drawn.
const CHARTS: usize = 40;
/// Characters of a name, and of a call's line.
const NAME: usize = 100;
const LINE: usize = 300;
/// Characters of a name in the graph.
const LABEL: usize = 26;

/// uPlot (templates/uplot: its release from npm, as it is there) and what draws with it, compressed.
const SCRIPT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/report.js.zst"));
/// Of the script, for the content security policy: no other script runs on the page.
const SCRIPT_HASH: &str = "sha256-MHRvKmeiSP9RP/d5/6S86Cp8+gxf5ezDJyVlgjcNWTY=";
const UPLOT_STYLE: &str = include_str!("../../templates/uplot/uPlot.min.css");

#[derive(Template)]
#[template(path = "report.html")]
struct ReportPage {
    time: String,
    totals: String,
    notes: Vec<String>,
    calls: Vec<CallRow>,
    calls_more: usize,
    waits: Vec<WaitRow>,
    waits_more: usize,
    nodes: Vec<GraphNode>,
    edges: Vec<GraphEdge>,
    graph_height: usize,
    flows_more: usize,
    charts: Vec<CourseChart>,
    charts_more: usize,
    courses: String,
    slowest: Vec<SlowRow>,
    style: &'static str,
    script: String,
    script_hash: &'static str,
}

struct CallRow {
    queue: String,
    call: &'static str,
    calls: u64,
    failed: u64,
    total: String,
    p50: String,
    p99: String,
    max: String,
    failures: String,
}

struct WaitRow {
    queue: String,
    messages: u64,
    p50: String,
    p99: String,
    peak: String,
    capacity: String,
}

struct GraphNode {
    x: usize,
    y: usize,
    label: String,
}

struct GraphEdge {
    path: String,
    x: usize,
    y: usize,
    label: String,
}

struct SlowRow {
    slowness: String,
    thread: String,
    line: String,
}

fn script() -> io::Result<String> {
    String::from_utf8(zstd::stream::decode_all(SCRIPT)?).map_err(io::Error::other)
}

/// At most so many characters.
fn cut(text: &str, most: usize) -> String {
    let text = printable(text);
    match text.char_indices().nth(most) {
        None => text.into_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The page. `totals` is the closing line of the run, `notes` what was lost. The error is the template's.
pub fn page(tables: &Tables, calls: &CallLog, totals: &str, notes: Vec<String>) -> Result<String, String> {
    let with_namespace = names_namespace(tables);
    let known = |ns: Option<u64>| ns.map_or_else(|| UNKNOWN.into(), duration);
    let mut rows = Vec::new();
    let mut waits = Vec::new();
    for (name, record) in tables.queues() {
        let queue = cut(&queue_text(name, with_namespace), NAME);
        for op in Op::ALL.into_iter().filter(|op| record.op(*op).calls.total > 0) {
            let of_op = record.op(op);
            let logged = calls.longest(name, op);
            rows.push(CallRow {
                queue: queue.clone(),
                call: operation(op),
                calls: of_op.calls.total,
                failed: of_op.failed.total,
                total: duration(of_op.durations.sum),
                p50: known(quantile(of_op, 0.5, logged)),
                p99: known(quantile(of_op, 0.99, logged)),
                max: longest(of_op, logged).unwrap_or_else(|| UNKNOWN.into()),
                failures: cut(&failures(record, op), LINE),
            });
        }
        let messages = record.passed(Op::MqTimedreceive).total;
        if record.capacity.is_some() || messages > 0 {
            waits.push(WaitRow {
                queue,
                messages,
                p50: known(record.waits.quantile(0.5, &BOUNDS)),
                p99: known(record.waits.quantile(0.99, &BOUNDS)),
                peak: record.peak.map_or_else(|| UNKNOWN.into(), |peak| peak.to_string()),
                capacity: record.capacity.map_or_else(|| UNKNOWN.into(), |capacity| capacity.to_string()),
            });
        }
    }
    let (calls_more, waits_more) = (rows.len().saturating_sub(ROWS), waits.len().saturating_sub(ROWS));
    rows.truncate(ROWS);
    waits.truncate(ROWS);
    let (nodes, edges, graph_height) = graph(tables, with_namespace);
    let drawn: Vec<_> = tables.queues().filter(|(name, record)| name.is_some() && record.capacity.is_some()).collect();
    let slowest = calls.slowest().map(|call| SlowRow {
        slowness: duration(call.slowness()),
        thread: cut(&format!("{}[{}/{}]", call.comm, call.image.pid, call.tid), NAME),
        line: cut(&format!("{} {}", call.line, call.passage), LINE),
    });
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(tables.time_ns());
    let left_out = tables.left_out().calls;
    let mut notes = notes;
    if left_out > 0 {
        notes.push(format!("{left_out} calls of queues or processes beyond those that are told apart"));
    }
    let drawn_courses = || {
        let named = |(name, record): &(_, _)| (cut(&queue_text(*name, with_namespace), NAME), *record);
        drawn.iter().take(CHARTS).map(named)
    };
    let page = ReportPage {
        time: Timestamp::try_from(at).unwrap_or_default().strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        totals: totals.to_owned(),
        notes,
        calls: rows,
        calls_more,
        waits,
        waits_more,
        nodes,
        edges,
        graph_height,
        flows_more: tables.flows().count().saturating_sub(FLOWS),
        charts_more: drawn.len().saturating_sub(CHARTS),
        charts: drawn_courses().map(|(queue, record)| CourseChart::new(queue, record)).collect(),
        courses: course::json(drawn_courses())?,
        slowest: slowest.collect(),
        style: UPLOT_STYLE,
        script: script().map_err(|error| error.to_string())?,
        script_hash: SCRIPT_HASH,
    };
    page.render().map_err(|error| error.to_string())
}

/// Three columns: senders, queues, receivers, with a curve for each pair.
fn graph(tables: &Tables, with_namespace: bool) -> (Vec<GraphNode>, Vec<GraphEdge>, usize) {
    let mut columns: [Vec<String>; 3] = Default::default();
    let mut pairs = Vec::new();
    let mut place = |column: usize, text: String| {
        let names = &mut columns[column];
        names.iter().position(|name| *name == text).unwrap_or_else(|| {
            names.push(text);
            names.len() - 1
        })
    };
    for (queue, image, flow) in tables.flows().take(FLOWS) {
        let process = process_text(tables, image);
        let queue = place(1, queue_text(Some(queue), with_namespace));
        if flow.sent.total > 0 {
            pairs.push((0, place(0, process.clone()), queue, flow.sent.total));
        }
        if flow.received.total > 0 {
            pairs.push((1, queue, place(2, process), flow.received.total));
        }
    }
    let (x, y) = (|column: usize| 10 + column * 330, |row: usize| 10 + row * 44);
    let edge = |(column, from, to, messages): (usize, usize, usize, u64)| {
        let (x0, x1, y0, y1) = (x(column) + 220, x(column + 1), y(from) + 14, y(to) + 14);
        let middle = (x0 + x1) / 2;
        let path = format!("M{x0} {y0}C{middle} {y0} {middle} {y1} {x1} {y1}");
        GraphEdge { path, x: middle, y: (y0 + y1) / 2 - 4, label: count(messages as f64) }
    };
    let height = 20 + columns.iter().map(Vec::len).max().unwrap_or(0) * 44;
    let nodes = columns.iter().enumerate().flat_map(|(column, names)| {
        names.iter().enumerate().map(move |(row, name)| GraphNode { x: x(column), y: y(row), label: cut(name, LABEL) })
    });
    let nodes = nodes.collect();
    (nodes, pairs.into_iter().map(edge).collect(), height)
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine};

    use super::*;
    use crate::model::buckets::BUCKETS;
    use crate::model::call::ImageKey;
    use crate::model::reading::{Measure, Points, Reading};
    use crate::model::resource::{Resource, Value};
    use crate::overview::tables::{Bounds, QueueLook};

    fn hostile(_: ImageKey) -> Option<std::sync::Arc<Resource>> {
        let name = Value::Text("<script>alert(1)</script>".into());
        let attributes = vec![("process.executable.name".to_owned(), name)];
        Some(std::sync::Arc::new(Resource { attributes, ..Resource::default() }))
    }

    fn tables(queues: u32, rounds: u64) -> Tables {
        let mut tables = Tables::new(Bounds::WHOLE, 0);
        for round in 1..=rounds {
            tables.begin(round * 1_000_000_000, round);
            for number in 0..queues {
                let name = (9, format!("/{}{number}", "<&\"'\u{1}".repeat(45)).into());
                for (op, errno) in [(Op::MqTimedsend, 0), (Op::MqTimedreceive, 0), (Op::MqOpen, 2)] {
                    let mut buckets = Box::new([0; BUCKETS]);
                    buckets[40] = 5;
                    let image = Some(ImageKey { pid: number, started_ns: 1, exec_id: 0 });
                    let points = Points { sum: 9, zeros: 0, buckets };
                    let (measure, comm) = (Measure::Duration, Vec::new());
                    let reading = Reading { image, name: 1, ipc_ns: 9, errno, cause: None, measure, op, comm, points };
                    tables.add(&reading, Some(&name), hostile);
                }
                tables.look_at(name, QueueLook { depth: 3, peak: 4, capacity: 10, ..QueueLook::default() });
            }
            tables.end();
        }
        tables
    }

    /// Prevents names of queues and processes from becoming markup or script, and the page from asking the network.
    #[test]
    fn hostile_names() {
        let page = page(&tables(2, 3), &CallLog::new(0, 10), "<b>", vec!["<i>".into()]).unwrap();
        assert!(page.contains(r#""queue":"/\u003c&\""#), "{page}");
        let (data, script) =
            (r#"<script type="application/json" id="courses">"#, format!("<script>{}</script>", script().unwrap()));
        assert!(page.contains(&script) && page.contains(data));
        let page = page.replacen(&script, "", 1).replacen(data, "", 1);
        for markup in ["<script", "<b>", "<i>", "<&", "\u{1}", "http://", "https://", "src="] {
            assert!(!page.contains(markup), "{markup}");
        }
        assert!(page.contains("default-src 'none'") && page.contains("\\x01") && page.contains("alert(1)"));
    }

    /// Prevents the policy from forbidding the page's own script.
    #[test]
    fn the_hash_is_of_the_script() {
        let script = script().unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, script.as_bytes());
        assert_eq!(SCRIPT_HASH, format!("sha256-{}", BASE64_STANDARD.encode(digest)));
        assert!(!script.contains("</script"));
    }

    /// Prevents a page that no browser opens any more, and one that leaves out rows without a word.
    #[test]
    fn bounded() {
        let page = page(&tables(1024, 600), &CallLog::new(0, 100), "", Vec::new()).unwrap();
        assert!(page.len() < 2 << 20, "{}", page.len());
        for more in ["and 2772 rows more", "and 724 queues more", "and 984 queues more", "pairs of a process"] {
            assert!(page.contains(more), "{more}");
        }
    }
}
