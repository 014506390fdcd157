//! What the tables hold at a moment, as rows: what `top` draws and `top --once --format json` prints. Null and None mean
//! not known, zero means zero. docs/top.md describes the JSON; a change of meaning changes [`SCHEMA`]. Pure code.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::Serialize;

use super::numbers::{UNKNOWN, time};
use super::tables::{BlockedThread, Flow, Grown, OpRecord, ProcessRecord, QueueRecord, Tables};
use crate::metrics::distribution::Distribution;
use crate::model::buckets::duration_bounds;
use crate::model::call::ImageKey;
use crate::model::cause::Cause;
use crate::model::reading::QueueName;
use crate::model::values::Op;
use crate::telemetry::terms::{errno_name, is_error, operation};

/// What the JSON calls itself.
pub const SCHEMA: &str = "mqspan.top.v1";

/// The bounds of durations, made once.
pub static BOUNDS: LazyLock<Box<[u64]>> = LazyLock::new(|| Box::from(duration_bounds()));

/// All that is shown at a moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// When, in RFC 3339.
    pub time: String,
    /// What "a second" is an average of, in seconds.
    pub interval_seconds: f64,
    /// How well mqspan sees.
    pub health: Health,
    /// Queues, and names under which calls found none.
    pub queues: Vec<QueueRow>,
    /// Processes that make calls.
    pub processes: Vec<ProcessRow>,
    /// Who passes messages through which queue.
    pub flows: Vec<FlowRow>,
    /// Threads that wait at queues.
    pub blocked_threads: Vec<BlockedThread>,
    /// Calls whose queue or process found no row.
    pub calls_left_out: u64,
}

/// How well mqspan sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The kind of hooks.
    pub hooks: &'static str,
    /// Calls since the start whose entry and exit were seen.
    pub captured: u64,
    /// Those that are in the numbers and have no line, for the rate's sake.
    pub limited: u64,
    /// Those that were lost, by stage; stages that lost none are left out.
    pub lost: BTreeMap<&'static str, u64>,
    /// What is not known on this host, and why.
    pub unknown: Vec<String>,
    /// What mqspan had to say of itself lately.
    pub notices: Vec<String>,
}

/// A queue.
#[derive(Clone, Debug, Serialize)]
pub struct QueueRow {
    /// Which; None: calls that named none.
    #[serde(skip)]
    pub key: Option<QueueName>,
    /// Its name; null: calls that named none.
    pub name: Option<String>,
    /// Its ipc namespace.
    pub ipc_namespace: Option<u32>,
    /// The container that its ipc namespace belongs to.
    pub container_id: Option<String>,
    /// Whether there is a queue of that name, as far as mqspan knows.
    pub exists: bool,
    /// The messages in it.
    pub depth: Option<i64>,
    /// The most that it holds.
    pub capacity: Option<i64>,
    /// The most that were in it since mqspan started.
    pub peak: Option<i64>,
    /// Messages that came, a second.
    pub sent_per_second: f64,
    /// Messages that were taken, a second.
    pub received_per_second: f64,
    /// Messages that came, since the start.
    pub sent: u64,
    /// Messages that were taken, since the start.
    pub received: u64,
    /// How long the message that would be received next has waited.
    pub oldest_age_seconds: Option<f64>,
    /// How long messages waited that were received lately; null where none was, or that is not known.
    pub wait_seconds: Option<Quantiles>,
    /// Whether messages were received lately, so that the lack of waits means that they are not known.
    #[serde(skip)]
    pub was_read: bool,
    /// All calls since the start.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Failures, a second.
    pub failures_per_second: f64,
    /// Failures by call and errno, the most frequent first.
    pub errnos: Vec<ErrnoRow>,
    /// Open descriptors.
    pub descriptors: Option<Descriptors>,
    /// Threads that wait at it.
    pub blocked: Blocked,
}

/// Of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median, in seconds.
    pub p50: f64,
    /// What one of a hundred exceeds.
    pub p99: f64,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ErrnoRow {
    /// The call.
    pub operation: &'static str,
    /// The errno's name.
    pub errno: String,
    /// Why, as `posix_mq.cause` has it; null where that is not known, or the errno has one cause only.
    pub cause: Option<&'static str>,
    /// Whether it is an error: polling and being interrupted are not.
    pub is_error: bool,
    /// Since the start.
    pub total: u64,
    /// A second.
    pub per_second: f64,
}

/// Open descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Descriptors {
    /// That can receive.
    pub read: u64,
    /// That can send.
    pub write: u64,
}

/// Threads that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// For room.
    pub send: Option<u64>,
    /// For a message.
    pub receive: Option<u64>,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessRow {
    /// Which image.
    #[serde(skip)]
    pub image: ImageKey,
    /// Its id on the host.
    pub pid: u32,
    /// Its executable.
    pub name: Option<String>,
    /// `service.name`, where it says one.
    pub service: Option<String>,
    /// The container's id.
    pub container_id: Option<String>,
    /// Calls, a second.
    pub calls_per_second: f64,
    /// Failures, a second.
    pub failures_per_second: f64,
    /// Messages that it sent, a second.
    pub sent_per_second: f64,
    /// Messages that it received, a second.
    pub received_per_second: f64,
    /// Calls since the start.
    pub calls: u64,
    /// Failures since the start.
    pub failures: u64,
    /// Messages that it sent since the start.
    pub sent: u64,
    /// Messages that it received since the start.
    pub received: u64,
}

/// What a process passes through a queue.
#[derive(Clone, Debug, Serialize)]
pub struct FlowRow {
    /// Which queue.
    #[serde(skip)]
    pub key: QueueName,
    /// Its name.
    pub queue: String,
    /// Its ipc namespace.
    pub ipc_namespace: u32,
    /// The process.
    pub pid: u32,
    /// Its executable.
    pub name: Option<String>,
    /// Messages that it sent, a second.
    pub sent_per_second: f64,
    /// Messages that it received, a second.
    pub received_per_second: f64,
    /// Messages that it sent since the start.
    pub sent: u64,
    /// Messages that it received since the start.
    pub received: u64,
}

/// ns as seconds.
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

impl QueueRow {
    /// How long messages waited: `-` where none was received lately, `?` where it is not known.
    pub fn wait(&self, of: impl FnOnce(&Quantiles) -> f64) -> String {
        match (&self.wait_seconds, self.was_read) {
            (Some(waits), _) => time(of(waits)),
            (None, true) => UNKNOWN.into(),
            (None, false) => "-".into(),
        }
    }
}

/// The median and the 99th percentile; None without values.
pub fn quantiles(of: &Distribution) -> Option<Quantiles> {
    Some(Quantiles { p50: seconds(of.quantile(0.5, &BOUNDS)?), p99: seconds(of.quantile(0.99, &BOUNDS)?) })
}

impl Snapshot {
    /// What the tables hold.
    pub fn of(tables: &Tables, health: Health) -> Self {
        let elapsed = tables.seconds();
        let rate = move |count: Grown| if elapsed > 0.0 { count.last as f64 / elapsed } else { 0.0 };
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(tables.time_ns());
        Self {
            schema: SCHEMA,
            time: Timestamp::try_from(at).unwrap_or_default().to_string(),
            interval_seconds: elapsed,
            health,
            queues: tables.queues().map(|(name, record)| queue_row(name, record, rate)).collect(),
            processes: tables.processes().map(|(image, record)| process_row(image, record, rate)).collect(),
            flows: tables.flows().map(|(queue, image, flow)| flow_row(tables, queue, image, flow, rate)).collect(),
            blocked_threads: tables.blocked().to_vec(),
            calls_left_out: tables.left_out().calls,
        }
    }
}

fn queue_row(name: Option<&QueueName>, record: &QueueRecord, rate: impl Fn(Grown) -> f64) -> QueueRow {
    let [sent, received] = [Op::MqTimedsend, Op::MqTimedreceive].map(|op| record.passed(op));
    let sum = |of: fn(&OpRecord) -> Grown| {
        record
            .ops
            .iter()
            .map(of)
            .fold(Grown::default(), |sum, count| Grown { total: sum.total + count.total, last: sum.last + count.last })
    };
    let (calls, failed) = (sum(|op| op.calls), sum(|op| op.failed));
    let errno = |((op, errno, cause), failures): (&(Op, i32, Option<Cause>), &Grown)| ErrnoRow {
        operation: operation(*op),
        cause: cause.map(Cause::name),
        // Those beyond the errnos that are told apart.
        errno: if *errno == 0 { "other".into() } else { errno_name(*errno).into() },
        is_error: *errno == 0 || is_error(*errno),
        total: failures.total,
        per_second: rate(*failures),
    };
    let mut errnos: Vec<ErrnoRow> = record.failures.iter().map(errno).collect();
    errnos.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then(b.total.cmp(&a.total)));
    let look = record.look.as_ref();
    QueueRow {
        key: name.cloned(),
        name: name.map(|(_, name)| name.to_string()),
        ipc_namespace: name.map(|(ipc_ns, _)| *ipc_ns),
        container_id: look.and_then(|look| look.container.clone()),
        exists: look.is_some(),
        depth: look.map(|look| look.depth),
        capacity: look.map(|look| look.capacity),
        peak: record.peak,
        sent_per_second: rate(sent),
        received_per_second: rate(received),
        sent: sent.total,
        received: received.total,
        oldest_age_seconds: look.and_then(|look| look.oldest_ns).map(seconds),
        wait_seconds: quantiles(&record.recent_waits()),
        was_read: record.was_read(),
        calls: calls.total,
        failures: failed.total,
        failures_per_second: rate(failed),
        errnos,
        descriptors: look.and_then(|look| look.descriptors).map(|[read, write]| Descriptors { read, write }),
        blocked: Blocked {
            send: look.and_then(|look| look.blocked[0]),
            receive: look.and_then(|look| look.blocked[1]),
        },
    }
}

fn process_row(image: &ImageKey, record: &ProcessRecord, rate: impl Fn(Grown) -> f64) -> ProcessRow {
    let ProcessRecord { name, service, container, calls, failed, sent, received, .. } = record;
    ProcessRow {
        image: *image,
        pid: image.pid,
        name: name.clone(),
        service: service.clone(),
        container_id: container.clone(),
        calls_per_second: rate(*calls),
        failures_per_second: rate(*failed),
        sent_per_second: rate(*sent),
        received_per_second: rate(*received),
        calls: calls.total,
        failures: failed.total,
        sent: sent.total,
        received: received.total,
    }
}

fn flow_row(tables: &Tables, queue: &QueueName, image: &ImageKey, flow: &Flow, rate: impl Fn(Grown) -> f64) -> FlowRow {
    FlowRow {
        key: queue.clone(),
        queue: queue.1.to_string(),
        ipc_namespace: queue.0,
        pid: image.pid,
        name: tables.process_of(image).and_then(|process| process.name.clone()),
        sent_per_second: rate(flow.sent),
        received_per_second: rate(flow.received),
        sent: flow.sent.total,
        received: flow.received.total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::buckets::BUCKETS;
    use crate::model::reading::{Measure, Points, Reading};
    use crate::overview::tables::{Bounds, QueueLook};

    /// Prevents the JSON from changing without its schema, a zero where nothing is known, and null where it is zero.
    #[test]
    fn json() {
        let mut tables = Tables::new(Bounds::LIVE, 0);
        tables.begin(2_000_000_000, 1_795_595_484_000_000_000);
        let name: QueueName = (9, "/or\u{1b}ders".into());
        let image = ImageKey { pid: 5, started_ns: 1, exec_id: 0 };
        let reading = |op, errno, measure, count: u32| {
            let mut buckets = Box::new([0; BUCKETS]);
            buckets[93] = count;
            let points = Points { sum: 0, zeros: 0, buckets };
            Reading {
                image: Some(image),
                name: 1,
                ipc_ns: 9,
                errno,
                cause: None,
                measure,
                op,
                comm: Vec::new(),
                points,
            }
        };
        let nobody = |_| None::<std::sync::Arc<crate::model::resource::Resource>>;
        tables.add(&reading(Op::MqTimedsend, 0, Measure::Duration, 4), Some(&name), nobody);
        tables.add(&reading(Op::MqTimedsend, libc::EAGAIN, Measure::Duration, 3), Some(&name), nobody);
        tables.add(&reading(Op::MqTimedreceive, 0, Measure::Wait, 2), Some(&name), nobody);
        tables.add(&reading(Op::MqOpen, libc::ENOENT, Measure::Duration, 1), Some(&(9, "/no".into())), nobody);
        let blocked = [None, Some(0)];
        tables.look_at(name.clone(), QueueLook { depth: 0, peak: 3, capacity: 10, blocked, ..QueueLook::default() });
        tables.set_blocked(vec![BlockedThread {
            key: Some(name),
            queue: Some("/orders".into()),
            ipc_namespace: Some(9),
            pid: 7,
            tid: 8,
            name: "billing".into(),
            operation: "mq_timedreceive",
            waiting_seconds: None,
        }]);
        tables.end();
        let lost = BTreeMap::from([("ring", 2)]);
        let health = Health { hooks: "tracepoint", captured: 10, lost, ..Health::default() };
        let json = serde_json::to_string_pretty(&Snapshot::of(&tables, health)).unwrap();
        insta::assert_snapshot!(json);
    }
}
