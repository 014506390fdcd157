//! Tests of the tables.

use std::sync::Arc;

use super::*;
use crate::model::buckets::{BUCKETS, duration_bounds};
use crate::model::reading::Points;
use crate::model::resource::Value;

const SECOND: u64 = 1_000_000_000;

fn image(pid: u32) -> ImageKey {
    ImageKey { pid, started_ns: 1, exec_id: 0 }
}

fn queue(name: &str) -> QueueName {
    (9, name.into())
}

fn reading(pid: u32, op: Op, errno: i32, count: u32) -> Reading {
    let mut buckets = Box::new([0; BUCKETS]);
    buckets[50] = count;
    let points = Points { sum: 0, zeros: 0, buckets };
    let (measure, comm) = (Measure::Duration, Vec::new());
    Reading { image: Some(image(pid)), name: 1, ipc_ns: 9, errno, cause: None, measure, op, comm, points }
}

fn who(_: ImageKey) -> Option<Arc<Resource>> {
    let text = |key: &str, value: &str| (key.to_owned(), Value::Text(value.into()));
    let attributes = vec![text("process.executable.name", "bil\x1bler"), text("service.name", "unknown_service:x")];
    Some(Arc::new(Resource { attributes, ..Resource::default() }))
}

fn look(depth: i64) -> QueueLook {
    QueueLook { depth, peak: depth + 1, capacity: 10, ..QueueLook::default() }
}

/// Prevents calls from being counted twice or not at all, failures from counting as messages, and what came with the last
/// collection from being mixed with what came before.
#[test]
fn collections_add_up() {
    let mut tables = Tables::new(Bounds::LIVE, 5 * SECOND);
    for round in 1..=2 {
        tables.begin((5 + 2 * round) * SECOND, round);
        for (pid, op, errno, count) in
            [(1, Op::MqTimedsend, 0, 10), (1, Op::MqTimedsend, 11, 3), (2, Op::MqTimedreceive, 0, 8)]
        {
            tables.add(&reading(pid, op, errno, count), Some(&queue("/a")), who);
        }
        tables.add(&reading(1, Op::MqOpen, 2, 1), None, who);
        let wait = Reading { measure: Measure::Wait, ..reading(2, Op::MqTimedreceive, 0, 8) };
        tables.add(&wait, Some(&queue("/a")), who);
        tables.look_at(queue("/a"), look(2));
        tables.end();
    }
    let record = tables.record_of(&queue("/a")).unwrap();
    assert_eq!(tables.seconds(), 2.0);
    assert_eq!(record.op(Op::MqTimedsend).calls, Grown { total: 26, last: 13 });
    assert_eq!(record.passed(Op::MqTimedsend), Grown { total: 20, last: 10 });
    assert_eq!(record.failures, BTreeMap::from([((Op::MqTimedsend, 11, None), Grown { total: 6, last: 3 })]));
    assert_eq!((record.waits.count(), record.recent_waits().count()), (16, 16));
    assert_eq!(record.waits.quantile(0.5, &duration_bounds()), Some(duration_bounds()[50]));
    assert_eq!((record.peak, record.look.as_ref().map(|look| look.depth)), (Some(3), Some(2)));
    let rates: Vec<_> = record.course.iter().map(|point| (point.sent, point.received, point.depth)).collect();
    assert_eq!(rates, [(5.0, 4.0, Some(2)); 2]);
    let flows: Vec<_> =
        tables.flows().map(|(_, image, flow)| (image.pid, flow.sent.total, flow.received.total)).collect();
    assert_eq!(flows, [(1, 20, 0), (2, 0, 16)]);
    let process = tables.process_of(&image(1)).unwrap();
    assert_eq!((process.calls.total, process.failed.total, process.sent.last), (28, 8, 10));
    assert_eq!((process.name.as_deref(), process.service.as_deref()), (Some("bil\\x1bler"), None));
}

/// Prevents queues, processes and errnos without end from taking memory, and what has no row from being lost without a word.
#[test]
fn bounded() {
    let bounds = Bounds { queues: 10, processes: 10, flows: 10, points: 4, keeps_ended: false };
    for keeps_ended in [false, true] {
        let mut tables = Tables::new(Bounds { keeps_ended, ..bounds }, 0);
        for round in 1..100_u32 {
            tables.begin(u64::from(round) * SECOND, 0);
            for each in 0..20 {
                let name = queue(&format!("/{round}-{each}"));
                tables.add(&reading(round * 20 + each, Op::MqTimedsend, 0, 1), Some(&name), who);
                tables.add(&reading(1, Op::MqOpen, (round % 90).cast_signed() + 1, 1), Some(&queue("/a")), who);
                tables.look_at(name, look(1));
            }
            tables.end();
            assert!(tables.queues.len() <= 10 && tables.processes.len() <= 10 && tables.flows.len() <= 10);
            assert!(
                tables
                    .queues
                    .values()
                    .all(|queue| queue.course.len() <= 4 && queue.failures.len() <= ERRNOS + Op::ALL.len())
            );
        }
        assert!(tables.left_out().calls > 0);
        let all: u64 = tables.queues().flat_map(|(_, queue)| &queue.ops).map(|op| op.calls.total).sum();
        assert!(!keeps_ended || all + tables.left_out().calls >= 99 * 40, "each call has a row or is left out");
    }
}

/// Prevents a queue that is gone from being shown for ever, or from looking as if it were empty.
#[test]
fn what_has_gone() {
    let mut tables = Tables::new(Bounds::LIVE, 0);
    tables.begin(SECOND, 0);
    tables.look_at(queue("/a"), look(1));
    tables.end();
    for round in 2..LINGER + 3 {
        tables.begin(round * SECOND, 0);
        tables.end();
        let shown = tables.record_of(&queue("/a"));
        assert_eq!(shown.is_some(), round < LINGER + 2, "{round}");
        assert!(shown.is_none_or(|queue| queue.look.is_none() && queue.course.back().unwrap().depth.is_none()));
    }
}

/// Prevents a long run's course from losing its beginning, its peaks or its messages.
#[test]
fn a_long_course() {
    let mut tables = Tables::new(Bounds { points: 8, ..Bounds::WHOLE }, 0);
    for round in 1..=100 {
        tables.begin(round * SECOND, round);
        tables.add(&reading(1, Op::MqTimedsend, 0, 3), Some(&queue("/a")), who);
        tables.look_at(queue("/a"), look(if round == 7 { 9 } else { 0 }));
        tables.end();
    }
    let course = &tables.record_of(&queue("/a")).unwrap().course;
    assert!((4..=8).contains(&course.len()), "{}", course.len());
    let sent: f64 = course.iter().map(|point| point.sent * point.seconds).sum();
    assert!((sent - 300.0).abs() < 1e-6, "{sent}");
    assert_eq!(course.iter().filter_map(|point| point.peak).max(), Some(10));
    assert_eq!(course.back().map(|point| point.time_ns), Some(100));
}
