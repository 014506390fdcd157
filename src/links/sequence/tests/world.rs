//! A queue or several, their callers and the kernel side's counters, simulated step by step in random order. Whatever can
//! be between two steps of a caller is, as on a machine that is never in a hurry.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::super::*;
use crate::model::call::Turn;
use crate::model::examples::{example, message, queue};
use crate::model::reading::QueueSight;
use crate::model::values::Op;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub senders: usize,
    pub receivers: usize,
    pub priorities: u32,
    /// Whether receivers ask for the priority.
    pub asks: bool,
    /// Whether a sender begins only when all receivers wait.
    pub patient: bool,
    pub capacity: usize,
    /// These share their counters.
    pub queues: usize,
}

/// One of each, always about to call.
pub const PAIR: Setting =
    Setting { senders: 1, receivers: 1, priorities: 1, asks: true, patient: false, capacity: 10, queues: 1 };

/// Where a caller is; its step is taken at a random time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Away,
    Entered,
    /// Asleep in the kernel: another wakes it, or its time is over.
    Waiting,
    Done,
    /// The depth is read, the counters are not.
    Measured,
    Described,
}

struct Caller {
    side: usize,
    step: Step,
    call: Call,
    queue: usize,
    /// Its calls are not seen, until it has ended one.
    is_early: bool,
    got: u64,
}

/// Priority, number and size.
type Letter = (u32, u64, u64);

pub struct World {
    setting: Setting,
    random: SmallRng,
    /// Since the beginning.
    now: Duration,
    start: Instant,
    /// As struct turns of bpf/turn.h.
    started: [u64; 2],
    ended: [u64; 2],
    losses: [u32; 2],
    priorities: Vec<u32>,
    queues: Vec<Vec<Letter>>,
    callers: Vec<Caller>,
    sequence: Sequence,
    sent: u64,
    /// When a call was offered, by its number, and the last one of each thread that came out.
    offered: HashMap<u32, Duration>,
    last: HashMap<u32, u32>,
    calls: u32,
    pub right: u64,
    pub wrong: u64,
    pub none: u64,
    /// Of looks at a queue with messages in it and no call under way: those that showed since when its first one is there, and
    /// those that did not.
    pub ages: [u64; 2],
    /// By the time at which a send ended, its message's number.
    left: HashMap<u64, u64>,
    pub most_held: usize,
    pub longest: Duration,
    /// The records so far, and the links that came out with the last of them: a receive's number and a send's.
    pub records: Vec<Call>,
    pub links: Vec<(u64, u64)>,
}

fn passed(call: &mut Call) -> &mut Message {
    match &mut call.args {
        Args::Send(message) | Args::Receive(message) => message,
        _ => unreachable!(),
    }
}

/// Other keys, the same place.
fn reached(queue_at: usize) -> Queue {
    let mut reached = queue(if queue_at == 0 { b"q" } else { b"other" });
    reached.key.namespace = queue_at as u64;
    reached
}

impl World {
    pub fn new(setting: Setting, seed: u64) -> Self {
        let mut sequence = Sequence::default();
        sequence.found([]);
        let caller = |side| Caller { side, step: Step::Away, call: example(), queue: 0, is_early: false, got: 0 };
        let callers = (0..setting.senders).map(|_| caller(0)).chain((0..setting.receivers).map(|_| caller(1)));
        Self {
            setting,
            random: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            start: Instant::now(),
            started: [0; 2],
            ended: [0; 2],
            losses: [0; 2],
            priorities: Vec::new(),
            queues: vec![Vec::new(); setting.queues],
            callers: callers.collect(),
            sequence,
            sent: 0,
            offered: HashMap::new(),
            last: HashMap::new(),
            calls: 0,
            right: 0,
            wrong: 0,
            none: 0,
            ages: [0; 2],
            left: HashMap::new(),
            most_held: 0,
            longest: Duration::ZERO,
            records: Vec::new(),
            links: Vec::new(),
        }
    }

    /// The last caller is in a receive already: neither its beginning nor what it takes is seen.
    pub fn with_early(mut self, is_known: bool) -> Self {
        let tid = self.callers.len() as u32;
        let early = self.callers.last_mut().unwrap();
        let passed = Message { turn: Turn::default(), ..message() };
        early.call = Call { op: Op::MqTimedreceive, args: Args::Receive(passed), tid, ..example() };
        (early.step, early.is_early) = (Step::Waiting, true);
        let at = is_known.then(|| (early.call.ipc_ns, "/q".into()));
        self.sequence.found([(tid, at)]);
        self
    }

    pub fn calls(&self) -> u32 {
        self.calls
    }

    pub fn step(&mut self) {
        self.now += Duration::from_micros(self.random.random_range(1..20));
        let now = self.start + self.now;
        self.links.clear();
        if self.sequence.deadline().is_some_and(|deadline| deadline <= now) {
            let mut out = Vec::new();
            self.sequence.expire(now, &mut |call| out.push(*call));
            out.into_iter().for_each(|call| self.check(&call));
        }
        let at = self.random.random_range(0..self.callers.len());
        match self.callers[at].step {
            Step::Away => self.enter(at),
            Step::Entered => self.take_effect(at),
            Step::Waiting => self.time_out(at),
            Step::Done => self.measure(at),
            Step::Measured => self.describe(at),
            Step::Described => self.leave(at),
        }
        self.most_held = self.most_held.max(self.sequence.held.len());
        self.look();
    }

    /// As a collection does: the message that would be received next is the one that is said to be.
    fn look(&mut self) {
        let heads = self.sequence.heads();
        for (at, letters) in self.queues.iter().enumerate() {
            let highest = letters.iter().map(|(priority, ..)| *priority).max();
            let Some((_, number, _)) = letters.iter().find(|(priority, ..)| Some(*priority) == highest) else {
                continue;
            };
            let (at_ns, depth) = (u64::MAX, letters.len() as i64);
            let at_rest = [0, 1].map(|side| self.started[side] == self.ended[side]);
            let sight = QueueSight { depth, unlinked: false, at_rest, at_ns, oldest_since_ns: None };
            let head = heads.get(&reached(at).key).filter(|head| sight.oldest_ns(Some(head)).is_some());
            if let Some(head) = head {
                assert_eq!(self.left[&head.since_ns], *number, "{:?}", self.setting);
            }
            if at_rest == [true, true] {
                self.ages[usize::from(head.is_none())] += 1;
            }
        }
    }

    fn enter(&mut self, at: usize) {
        let side = self.callers[at].side;
        let waiting = self.callers.iter().filter(|caller| caller.side == 1 && caller.step == Step::Waiting).count();
        let is_idle = self.callers.iter().all(|caller| matches!(caller.step, Step::Away | Step::Waiting));
        if self.setting.patient && side == 0 && !(waiting == self.setting.receivers && is_idle) {
            return;
        }
        let (size, priority) = (self.random.random_range(1..4), self.random.random_range(0..self.setting.priorities));
        let queue_at = self.random.random_range(0..self.setting.queues);
        if side == 0 && !self.priorities.contains(&priority) {
            self.priorities.push(priority);
        }
        let is_empty = self.started == self.ended && self.queues[queue_at].is_empty();
        let turn = Turn { number: self.started[side] + 1, empty: is_empty.then_some(self.started), ..Turn::default() };
        self.started[side] += 1;
        self.calls += 1;
        let passed = Message { size, priority: (side == 0).then_some(priority), turn, ..message() };
        let (op, args) = match side {
            0 => (Op::MqTimedsend, Args::Send(passed)),
            _ => (Op::MqTimedreceive, Args::Receive(passed)),
        };
        let (tid, entered_ns, vpid) = (at as u32 + 1, self.now.as_nanos() as u64, self.calls);
        let call = Call { op, args, tid, vpid, entered_ns, queue: Some(reached(queue_at)), ret: 0, ..example() };
        let caller = &mut self.callers[at];
        (caller.call, caller.step, caller.queue) = (call, Step::Entered, queue_at);
    }

    /// As ipc/mqueue.c: who waits is served by who comes.
    fn take_effect(&mut self, at: usize) {
        let (side, queue) = (self.callers[at].side, self.callers[at].queue);
        let waiting: Vec<usize> = (0..self.callers.len())
            .filter(|other| {
                let other = &self.callers[*other];
                (other.side, other.queue, other.step) == (1 - side, queue, Step::Waiting)
            })
            .collect();
        let other = waiting.choose(&mut self.random).copied();
        if side == 0 {
            if self.queues[queue].len() >= self.setting.capacity {
                self.callers[at].step = Step::Waiting;
                return;
            }
            self.send(at);
            if let Some(other) = other {
                self.receive(other);
            }
        } else {
            if self.queues[queue].is_empty() {
                self.callers[at].step = Step::Waiting;
                return;
            }
            self.receive(at);
            if let Some(other) = other {
                self.send(other);
            }
        }
    }

    fn send(&mut self, at: usize) {
        self.sent += 1;
        let caller = &mut self.callers[at];
        caller.call.ids.span = self.sent.to_ne_bytes();
        caller.step = Step::Done;
        let message = passed(&mut caller.call);
        self.queues[caller.queue].push((message.priority.unwrap(), self.sent, message.size));
    }

    fn receive(&mut self, at: usize) {
        let (caller, asks) = (&mut self.callers[at], self.setting.asks);
        let letters = &mut self.queues[caller.queue];
        let highest = letters.iter().map(|(priority, ..)| *priority).max().unwrap();
        let first = letters.iter().position(|(priority, ..)| *priority == highest).unwrap();
        let (priority, number, size) = letters.remove(first);
        (caller.got, caller.step, caller.call.ret) = (number, Step::Done, size as i64);
        passed(&mut caller.call).priority = asks.then_some(priority);
    }

    fn time_out(&mut self, at: usize) {
        if !self.callers[at].is_early && !self.setting.patient && self.random.random_ratio(1, 50) {
            (self.callers[at].call.ret, self.callers[at].step) = (-110, Step::Done);
        }
    }

    fn measure(&mut self, at: usize) {
        let depth = self.queues[self.callers[at].queue].len() as i64;
        let (side, started, ended) = (self.callers[at].side, self.started, self.ended);
        let caller = &mut self.callers[at];
        caller.step = Step::Measured;
        if caller.is_early {
            return;
        }
        caller.call.queue.as_mut().unwrap().curmsgs = Some(depth);
        let turn = &mut passed(&mut caller.call).turn;
        turn.quiet = started[side] == ended[side] + 1 && started[1 - side] == ended[1 - side];
        turn.begun = started;
    }

    fn describe(&mut self, at: usize) {
        let (started, losses, now) = (self.started, self.losses, self.now.as_nanos() as u64);
        let only_priority = self.priorities.first().copied().filter(|_| self.priorities.len() == 1);
        let caller = &mut self.callers[at];
        caller.call.left_ns = now;
        let turn = &mut passed(&mut caller.call).turn;
        turn.quiet &= turn.begun == started;
        (turn.begun, turn.only_priority, turn.losses) = (started, only_priority, losses);
        caller.step = Step::Described;
    }

    fn leave(&mut self, at: usize) {
        let caller = &mut self.callers[at];
        caller.step = Step::Away;
        if caller.is_early {
            // An exit without an entry, and the end of the thread.
            let tid = caller.call.tid;
            self.losses[1] += 1;
            self.callers.pop();
            self.sequence.forget(|gone| gone == tid);
            return;
        }
        // What a receive got goes along where nothing looks.
        caller.call.uid = std::mem::take(&mut caller.got) as u32;
        let (call, side) = (caller.call.clone(), caller.side);
        self.offered.insert(call.vpid, self.now);
        self.records.push(call.clone());
        if side == 0 && call.ret == 0 {
            self.left.insert(call.left_ns, u64::from_ne_bytes(call.ids.span));
        }
        let mut out = Vec::new();
        self.sequence.offer(Box::new(call), self.start + self.now, &mut |call| out.push(*call));
        self.ended[side] += 1;
        out.into_iter().for_each(|call| self.check(&call));
    }

    fn check(&mut self, call: &Call) {
        let waited = self.now - self.offered.remove(&call.vpid).unwrap();
        self.longest = self.longest.max(waited);
        let before = self.last.insert(call.tid, call.vpid);
        assert!(before < Some(call.vpid), "calls of a thread out of order");
        let Args::Receive(message) = call.args else { return };
        if call.ret < 0 {
            return;
        }
        match message.sent_by {
            None => self.none += 1,
            Some(sender) => {
                let number = u64::from_ne_bytes(sender.ids.span);
                *if number == u64::from(call.uid) { &mut self.right } else { &mut self.wrong } += 1;
                self.links.push((message.turn.number, number));
            }
        }
    }
}
