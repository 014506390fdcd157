//! What the metrics of the collections add up to, by queue, by process and by who uses which queue: totals since the start,
//! what came with the last collection, and how it went over time. Bounded: what finds no room is counted. Pure code.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::metrics::distribution::Distribution;
use crate::model::call::ImageKey;
use crate::model::cause::Cause;
use crate::model::reading::{Measure, QueueName, Reading};
use crate::model::resource::Resource;
use crate::model::text::printable;
use crate::model::values::Op;

/// Waits are told of the last collections, so many: of a single one they would jump.
const WAITS: usize = 10;
/// So many errnos of a queue are told apart.
const ERRNOS: usize = 32;
/// So many waiting threads are named.
const BLOCKED: usize = 1024;
/// What has gone, or makes no calls any more, is shown for so many collections more.
const LINGER: u64 = 60;

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Queues.
    pub queues: usize,
    /// Processes.
    pub processes: usize,
    /// Pairs of a process and a queue.
    pub flows: usize,
    /// Points of a queue's course over time.
    pub points: usize,
    /// Whether what has ended is kept: a summary is of all that was there, a live view of what is.
    pub keeps_ended: bool,
}

impl Bounds {
    /// What a live view remembers.
    pub const LIVE: Self = Self { queues: 1024, processes: 1024, flows: 4096, points: 240, keeps_ended: false };
    /// What a summary and a report remember.
    pub const WHOLE: Self = Self { queues: 1024, processes: 1024, flows: 4096, points: 600, keeps_ended: true };
}

/// A count since the start, and how much of it came with the last collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grown {
    /// Since the start.
    pub total: u64,
    /// With the last collection.
    pub last: u64,
}

impl Grown {
    fn add(&mut self, count: u64) {
        self.total += count;
        self.last += count;
    }
}

/// The calls of one kind on a queue.
#[derive(Clone, Debug)]
pub struct OpRecord {
    /// All of them.
    pub calls: Grown,
    /// Those that failed.
    pub failed: Grown,
    /// How long they took, since the start.
    pub durations: Distribution,
}

impl Default for OpRecord {
    fn default() -> Self {
        Self { calls: Grown::default(), failed: Grown::default(), durations: Distribution::new(0) }
    }
}

/// How a queue was over a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoursePoint {
    /// Its end, ns since 1970.
    pub time_ns: u64,
    /// The messages in it at the end; None where that is not known.
    pub depth: Option<i64>,
    /// The most since the point before.
    pub peak: Option<i64>,
    /// Messages that came since the point before, a second.
    pub sent: f64,
    /// ... that were taken.
    pub received: f64,
    /// How long it is, in seconds.
    pub seconds: f64,
}

/// What is there of a queue now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueLook {
    /// The messages in it.
    pub depth: i64,
    /// The most since the collection before.
    pub peak: i64,
    /// The most that it holds.
    pub capacity: i64,
    /// Threads that wait to send, and to receive; None where that is not known.
    pub blocked: [Option<u64>; 2],
    /// Descriptors that are open for reading, and for writing; None where that is not known.
    pub descriptors: Option<[u64; 2]>,
    /// How long the message that would be received next has waited, ns; None where that is not known.
    pub oldest_ns: Option<u64>,
    /// The container that its ipc namespace belongs to.
    pub container: Option<String>,
}

/// A queue, or a name under which calls found none.
#[derive(Clone, Debug)]
pub struct QueueRecord {
    /// Its calls, by [`Op`].
    pub ops: [OpRecord; Op::ALL.len()],
    /// Failures by call, errno and cause; the errno 0 stands for any.
    pub failures: BTreeMap<(Op, i32, Option<Cause>), Grown>,
    /// How long messages waited, since the start.
    pub waits: Distribution,
    recent_waits: VecDeque<Distribution>,
    /// What was there at the last collection; None where no queue of that name was.
    pub look: Option<QueueLook>,
    /// The most messages that were ever seen in it.
    pub peak: Option<i64>,
    /// The most that it held, also after its end.
    pub capacity: Option<i64>,
    /// How it went, the oldest point first.
    pub course: VecDeque<CoursePoint>,
    active: u64,
}

impl QueueRecord {
    fn new() -> Self {
        Self {
            ops: Default::default(),
            failures: BTreeMap::new(),
            waits: Distribution::new(0),
            recent_waits: VecDeque::new(),
            look: None,
            peak: None,
            capacity: None,
            course: VecDeque::new(),
            active: 0,
        }
    }

    /// The calls of a kind.
    pub fn op(&self, op: Op) -> &OpRecord {
        &self.ops[op as usize]
    }

    /// Messages that a call of this kind passed.
    pub fn passed(&self, op: Op) -> Grown {
        let OpRecord { calls, failed, .. } = self.op(op);
        Grown { total: calls.total - failed.total, last: calls.last - failed.last }
    }

    /// Whether any message was received with the last collections.
    pub fn was_read(&self) -> bool {
        self.course.iter().rev().take(WAITS).any(|point| point.received > 0.0)
    }

    /// How long the messages of the last collections waited.
    pub fn recent_waits(&self) -> Distribution {
        let mut all = Distribution::new(0);
        self.recent_waits.iter().for_each(|waits| all.merge(waits));
        all
    }
}

/// Who made calls. Its texts hold no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Its executable, as far as that is known.
    pub name: Option<String>,
    /// `service.name`, where the process says one.
    pub service: Option<String>,
    /// The container's id.
    pub container: Option<String>,
    /// Its calls.
    pub calls: Grown,
    /// Those that failed.
    pub failed: Grown,
    /// Messages that it sent.
    pub sent: Grown,
    /// Messages that it received.
    pub received: Grown,
    active: u64,
}

/// What a process passes through a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Messages that it sent.
    pub sent: Grown,
    /// Messages that it received.
    pub received: Grown,
    active: u64,
}

/// A thread that waits at a queue.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockedThread {
    /// Which queue; None where that can't be seen.
    #[serde(skip)]
    pub key: Option<QueueName>,
    /// Its name.
    pub queue: Option<String>,
    /// Its ipc namespace.
    pub ipc_namespace: Option<u32>,
    /// Its process, on the host.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's name.
    pub name: String,
    /// In which call.
    pub operation: &'static str,
    /// Since how long.
    pub waiting_seconds: Option<f64>,
}

/// What found no room in the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    /// Calls whose queue, or whose process and queue, have no row.
    pub calls: u64,
}

/// All that was added up.
#[derive(Debug)]
pub struct Tables {
    bounds: Bounds,
    queues: BTreeMap<Option<QueueName>, QueueRecord>,
    processes: BTreeMap<ImageKey, ProcessRecord>,
    flows: BTreeMap<(QueueName, ImageKey), Flow>,
    left_out: Unlisted,
    blocked: Vec<BlockedThread>,
    collection: u64,
    /// The last collection: since when, until when, ns since boot; and until when, ns since 1970.
    span: (u64, u64),
    time_ns: u64,
    /// Every so many collections make a point of the course.
    stride: u64,
}

impl Tables {
    /// Nothing yet, from `boot_ns` on.
    pub fn new(bounds: Bounds, boot_ns: u64) -> Self {
        Self {
            bounds,
            queues: BTreeMap::new(),
            processes: BTreeMap::new(),
            flows: BTreeMap::new(),
            left_out: Unlisted::default(),
            blocked: Vec::new(),
            collection: 0,
            span: (boot_ns, boot_ns),
            time_ns: 0,
            stride: 1,
        }
    }

    /// A collection begins: what is added until [`Self::end`] came since the one before. By both clocks, ns.
    pub fn begin(&mut self, boot_ns: u64, wall_ns: u64) {
        self.collection += 1;
        (self.span, self.time_ns) = ((self.span.1, boot_ns.max(self.span.1)), wall_ns);
        for queue in self.queues.values_mut() {
            for op in &mut queue.ops {
                (op.calls.last, op.failed.last) = (0, 0);
            }
            queue.failures.values_mut().for_each(|failures| failures.last = 0);
            queue.look = None;
            queue.recent_waits.push_back(Distribution::new(0));
            if queue.recent_waits.len() > WAITS {
                queue.recent_waits.pop_front();
            }
        }
        for process in self.processes.values_mut() {
            for count in [&mut process.calls, &mut process.failed, &mut process.sent, &mut process.received] {
                count.last = 0;
            }
        }
        self.flows.values_mut().for_each(|flow| (flow.sent.last, flow.received.last) = (0, 0));
    }

    /// Adds a series of the collection; `queue` is its queue's name, `resource` who made the calls.
    pub fn add<R: AsRef<Resource>>(
        &mut self,
        reading: &Reading,
        queue: Option<&QueueName>,
        resource: impl FnOnce(ImageKey) -> Option<R>,
    ) {
        match reading.measure {
            Measure::Duration => self.add_calls(reading, queue, resource),
            Measure::Wait => {
                if let Some(record) = self.queue(queue) {
                    record.waits.add(&reading.points);
                    if record.recent_waits.is_empty() {
                        record.recent_waits.push_back(Distribution::new(0));
                    }
                    if let Some(recent) = record.recent_waits.back_mut() {
                        recent.add(&reading.points);
                    }
                }
            }
            Measure::Size => {}
        }
    }

    fn add_calls<R: AsRef<Resource>>(
        &mut self,
        reading: &Reading,
        queue: Option<&QueueName>,
        resource: impl FnOnce(ImageKey) -> Option<R>,
    ) {
        let (count, failed, op) = (reading.points.count(), reading.errno != 0, reading.op);
        match self.queue(queue) {
            Some(record) => {
                let of_op = &mut record.ops[op as usize];
                of_op.calls.add(count);
                of_op.durations.add(&reading.points);
                if failed {
                    of_op.failed.add(count);
                    // Beyond the bound the errnos make one, which stands for any.
                    let key = (op, reading.errno, reading.cause);
                    let has_room = record.failures.contains_key(&key) || record.failures.len() < ERRNOS;
                    record.failures.entry(if has_room { key } else { (op, 0, None) }).or_default().add(count);
                }
            }
            None => self.left_out.calls += count,
        }
        let Some(image) = reading.image else { return };
        let Some(process) = self.process(image, resource) else { return };
        process.calls.add(count);
        let passed = (!failed).then_some(op);
        match passed {
            None => process.failed.add(count),
            Some(Op::MqTimedsend) => process.sent.add(count),
            Some(Op::MqTimedreceive) => process.received.add(count),
            Some(_) => {}
        }
        let (Some(queue), Some(Op::MqTimedsend | Op::MqTimedreceive)) = (queue, passed) else { return };
        let key = (queue.clone(), image);
        if !self.flows.contains_key(&key) && self.flows.len() >= self.bounds.flows && !self.forget_flow() {
            return self.left_out.calls += count;
        }
        let flow = self.flows.entry(key).or_default();
        flow.active = self.collection;
        if op == Op::MqTimedsend { flow.sent.add(count) } else { flow.received.add(count) }
    }

    /// The record of a queue, made where there is room.
    fn queue(&mut self, name: Option<&QueueName>) -> Option<&mut QueueRecord> {
        let key = name.cloned();
        if !self.queues.contains_key(&key) && self.queues.len() >= self.bounds.queues && !self.forget_queue() {
            return None;
        }
        let record = self.queues.entry(key).or_insert_with(QueueRecord::new);
        record.active = self.collection;
        Some(record)
    }

    /// Forgets the queue that has gone for longest; whether there was one.
    fn forget_queue(&mut self) -> bool {
        let gone = self.queues.iter().filter(|(_, queue)| queue.look.is_none() && queue.active < self.collection);
        let oldest = gone.min_by_key(|(_, queue)| queue.active).map(|(name, _)| name.clone());
        oldest.is_some_and(|name| !self.bounds.keeps_ended && self.queues.remove(&name).is_some())
    }

    fn forget_flow(&mut self) -> bool {
        let idle = self.flows.iter().filter(|(_, flow)| flow.active < self.collection);
        let oldest = idle.min_by_key(|(_, flow)| flow.active).map(|(key, _)| key.clone());
        oldest.is_some_and(|key| !self.bounds.keeps_ended && self.flows.remove(&key).is_some())
    }

    fn process<R: AsRef<Resource>>(
        &mut self,
        image: ImageKey,
        resource: impl FnOnce(ImageKey) -> Option<R>,
    ) -> Option<&mut ProcessRecord> {
        if !self.processes.contains_key(&image) && self.processes.len() >= self.bounds.processes {
            let idle = self.processes.iter().filter(|(_, process)| process.active < self.collection);
            let oldest = idle.min_by_key(|(_, process)| process.active).map(|(image, _)| *image);
            let image = oldest.filter(|_| !self.bounds.keeps_ended)?;
            self.processes.remove(&image);
        }
        let record = self.processes.entry(image).or_insert_with(|| ProcessRecord {
            name: None,
            service: None,
            container: None,
            calls: Grown::default(),
            failed: Grown::default(),
            sent: Grown::default(),
            received: Grown::default(),
            active: 0,
        });
        record.active = self.collection;
        if record.name.is_none()
            && let Some(resource) = resource(image)
        {
            describe(record, resource.as_ref());
        }
        Some(record)
    }

    /// What is there of a queue, at the end of the collection.
    pub fn look_at(&mut self, name: QueueName, look: QueueLook) {
        let (is_new, collection) = (!self.queues.contains_key(&Some(name.clone())), self.collection);
        if is_new && self.queues.len() >= self.bounds.queues && !self.forget_queue() {
            return;
        }
        let record = self.queues.entry(Some(name)).or_insert_with(QueueRecord::new);
        record.active = collection;
        record.peak = record.peak.max(Some(look.peak));
        record.capacity = Some(look.capacity);
        record.look = Some(look);
    }

    /// The threads that wait at queues now; those beyond the bound are in the counts of their queues only.
    pub fn set_blocked(&mut self, threads: Vec<BlockedThread>) {
        self.blocked = threads;
        self.blocked.truncate(BLOCKED);
    }

    /// The threads that waited at the last collection.
    pub fn blocked(&self) -> &[BlockedThread] {
        &self.blocked
    }

    /// The collection has ended: it becomes a point of each queue's course.
    pub fn end(&mut self) {
        let seconds = self.seconds();
        let (time_ns, points) = (self.time_ns, self.bounds.points);
        let merges = self.bounds.keeps_ended && !self.collection.is_multiple_of(self.stride);
        let mut is_full = false;
        for record in self.queues.values_mut() {
            let [sent, received] = [Op::MqTimedsend, Op::MqTimedreceive].map(|op| record.passed(op).last as f64);
            let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
            let look = record.look.as_ref();
            let point = CoursePoint {
                time_ns,
                depth: look.map(|look| look.depth),
                peak: look.map(|look| look.peak),
                sent: per_second(sent),
                received: per_second(received),
                seconds,
            };
            match record.course.back_mut() {
                Some(last) if merges => *last = joined(last, &point),
                _ => record.course.push_back(point),
            }
            if record.course.len() > points {
                if self.bounds.keeps_ended { is_full = true } else { _ = record.course.pop_front() }
            }
        }
        if is_full {
            // The whole of a run in so many points: two become one, and from now on each is of twice as long.
            self.stride *= 2;
            for record in self.queues.values_mut() {
                let pairs = record.course.make_contiguous().chunks(2);
                record.course =
                    pairs.map(|pair| pair[1..].iter().fold(pair[0], |to, next| joined(&to, next))).collect();
            }
        }
        if !self.bounds.keeps_ended {
            let since = self.collection.saturating_sub(LINGER);
            self.queues.retain(|_, queue| queue.look.is_some() || queue.active >= since);
            self.processes.retain(|_, process| process.active >= since);
            self.flows.retain(|_, flow| flow.active >= since);
        }
    }

    /// How long the last collection took, in seconds.
    pub fn seconds(&self) -> f64 {
        (self.span.1 - self.span.0) as f64 / 1e9
    }

    /// How many collections there were.
    pub fn collection(&self) -> u64 {
        self.collection
    }

    /// The end of the last collection, ns since 1970.
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// The queues; None: calls that named none.
    pub fn queues(&self) -> impl Iterator<Item = (Option<&QueueName>, &QueueRecord)> {
        self.queues.iter().map(|(name, queue)| (name.as_ref(), queue))
    }

    /// A queue.
    pub fn record_of(&self, name: &QueueName) -> Option<&QueueRecord> {
        self.queues.get(&Some(name.clone()))
    }

    /// The processes.
    pub fn processes(&self) -> impl Iterator<Item = (&ImageKey, &ProcessRecord)> {
        self.processes.iter()
    }

    /// A process.
    pub fn process_of(&self, image: &ImageKey) -> Option<&ProcessRecord> {
        self.processes.get(image)
    }

    /// Who passes messages through which queue.
    pub fn flows(&self) -> impl Iterator<Item = (&QueueName, &ImageKey, &Flow)> {
        self.flows.iter().map(|((queue, image), flow)| (queue, image, flow))
    }

    /// What found no room.
    pub fn left_out(&self) -> Unlisted {
        self.left_out
    }
}

/// Two stretches of time as one.
fn joined(first: &CoursePoint, then: &CoursePoint) -> CoursePoint {
    let seconds = first.seconds + then.seconds;
    let mean = |first_rate: f64, then_rate: f64| match seconds > 0.0 {
        true => (first_rate * first.seconds + then_rate * then.seconds) / seconds,
        false => 0.0,
    };
    CoursePoint {
        time_ns: then.time_ns,
        depth: then.depth,
        peak: first.peak.max(then.peak),
        sent: mean(first.sent, then.sent),
        received: mean(first.received, then.received),
        seconds,
    }
}

fn describe(record: &mut ProcessRecord, resource: &Resource) {
    let text = |wanted: &str| {
        let (_, value) = resource.attributes.iter().find(|(key, _)| key == wanted)?;
        value.as_text().map(|text| printable(text).into_owned())
    };
    record.name = text("process.executable.name");
    record.service = text("service.name").filter(|name| !name.starts_with("unknown_service"));
    record.container = text("container.id");
}

#[cfg(test)]
mod tests;
