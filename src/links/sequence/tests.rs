//! A queue, its callers and the kernel side's counters, simulated step by step in random order: what is linked is
//! compared with what happened.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::model::examples::{example, message, queue};
use crate::model::values::Op;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
struct Setting {
    senders: usize,
    receivers: usize,
    priorities: u32,
    /// Whether receivers ask for the priority.
    asks: bool,
    /// Whether a sender begins only when the queue is empty and all receivers wait.
    patient: bool,
    capacity: usize,
}

/// Where a caller is between entry and exit; its step is taken at a random time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Away,
    Entered,
    Done,
    Described,
}

struct Caller {
    side: usize,
    step: Step,
    call: Call,
    alone: bool,
    got: Option<u64>,
}

struct World {
    setting: Setting,
    random: SmallRng,
    now: u64,
    /// As struct turns of bpf/turn.h.
    started: [u64; 2],
    ended: [u64; 2],
    /// Priority, number and size of each message.
    messages: Vec<(u32, u64, u64)>,
    callers: Vec<Caller>,
    sequence: Sequence,
    losses: u32,
    sent: u64,
    right: u64,
    wrong: u64,
    none: u64,
}

impl World {
    fn new(setting: Setting, seed: u64) -> Self {
        let caller = |side| Caller { side, step: Step::Away, call: example(), alone: false, got: None };
        let callers = (0..setting.senders).map(|_| caller(0)).chain((0..setting.receivers).map(|_| caller(1)));
        Self {
            setting,
            random: SmallRng::seed_from_u64(seed),
            now: 0,
            started: [0; 2],
            ended: [0; 2],
            messages: Vec::new(),
            callers: callers.collect(),
            sequence: Sequence::default(),
            losses: 0,
            sent: 0,
            right: 0,
            wrong: 0,
            none: 0,
        }
    }

    /// The last caller is in a receive already: neither its beginning nor what it takes is seen.
    fn with_early(mut self) -> Self {
        let tid = self.callers.len() as u32;
        let early = self.callers.last_mut().unwrap();
        let passed = Message { turn: Turn::default(), ..message() };
        early.call = Call { op: Op::MqTimedreceive, args: Args::Receive(passed), tid, queue: None, ..example() };
        early.step = Step::Entered;
        self.sequence.found([(tid, Some((early.call.ipc_ns, "/q".into())))]);
        self
    }

    fn step(&mut self) {
        self.now += 1;
        let at = self.random.random_range(0..self.callers.len());
        match self.callers[at].step {
            Step::Away => self.enter(at),
            Step::Entered => self.take_effect(at),
            Step::Done => self.describe(at),
            Step::Described => self.leave(at),
        }
    }

    fn enter(&mut self, at: usize) {
        let side = self.callers[at].side;
        let waiting = self.callers.iter().filter(|caller| caller.side == 1 && caller.step == Step::Entered).count();
        let quiet = self.callers.iter().all(|caller| caller.step == Step::Away || caller.step == Step::Entered);
        // With a receiver waiting at any time the queue is never surely empty: at first there is one, which pauses.
        let receivers = if self.sent < 3 { 1 } else { self.setting.receivers };
        let ready = waiting == receivers && self.messages.is_empty() && quiet;
        if self.setting.patient && (side == 0 && !ready || at > self.setting.senders && receivers == 1) {
            return;
        }
        let size = self.random.random_range(1..4);
        let priority = self.random.random_range(0..self.setting.priorities);
        let (started, ended) = (self.started, self.ended);
        let opposite_idle = started[1 - side] == ended[1 - side];
        self.started[side] += 1;
        let caller = &mut self.callers[at];
        caller.alone = ended[side] == started[side];
        caller.step = Step::Entered;
        let turn = Turn {
            number: started[side] + 1,
            begun_before: if opposite_idle { started[1 - side] } else { u64::MAX },
            ..Turn::default()
        };
        let passed = Message { size, priority: (side == 0).then_some(priority), turn, ..message() };
        let (op, args) = match side {
            0 => (Op::MqTimedsend, Args::Send(passed)),
            _ => (Op::MqTimedreceive, Args::Receive(passed)),
        };
        let tid = at as u32 + 1;
        caller.call = Call { op, args, tid, entered_ns: self.now, queue: Some(queue(b"q")), ret: 0, ..example() };
    }

    fn take_effect(&mut self, at: usize) {
        let caller = &mut self.callers[at];
        match &mut caller.call.args {
            Args::Send(message) => {
                if self.messages.len() >= self.setting.capacity {
                    return;
                }
                self.sent += 1;
                caller.call.ids.span = self.sent.to_ne_bytes();
                self.messages.push((message.priority.unwrap_or(0), self.sent, message.size));
            }
            Args::Receive(message) => {
                let Some(highest) = self.messages.iter().map(|(priority, ..)| *priority).max() else { return };
                let first = self.messages.iter().position(|(priority, ..)| *priority == highest).unwrap_or(0);
                let (priority, number, size) = self.messages.remove(first);
                caller.got = Some(number);
                caller.call.ret = size as i64;
                message.priority = self.setting.asks.then_some(priority);
            }
            _ => unreachable!(),
        }
        caller.step = Step::Done;
    }

    /// The exit program's look at depth and counters, all at once: what it does step by step is only more careful.
    fn describe(&mut self, at: usize) {
        let (started, ended, depth) = (self.started, self.ended, self.messages.len());
        let caller = &mut self.callers[at];
        let (side, other) = (caller.side, 1 - caller.side);
        let (Args::Send(message) | Args::Receive(message)) = &mut caller.call.args else { unreachable!() };
        let turn = &mut message.turn;
        turn.alone = caller.alone && started[side] == turn.number;
        turn.quiet = turn.alone && started[other] == ended[other];
        turn.opposite = (started[other] - ended[other]) as u32;
        turn.begun = started[other];
        turn.losses = self.losses;
        caller.call.left_ns = self.now;
        if let Some(queue) = &mut caller.call.queue {
            queue.curmsgs = Some(depth as i64);
        }
        caller.step = Step::Described;
    }

    fn leave(&mut self, at: usize) {
        let caller = &mut self.callers[at];
        caller.step = Step::Away;
        if caller.call.queue.is_none() {
            // An exit without an entry, and the end of the thread.
            let tid = caller.call.tid;
            self.losses += 1;
            self.callers.pop();
            self.sequence.forget(|gone| gone == tid);
            return;
        }
        let mut call = caller.call.clone();
        // What a receive got goes along where nothing looks.
        call.uid = caller.got.take().map_or(0, |number| number as u32);
        let side = caller.side;
        let mut out = Vec::new();
        self.sequence.offer(call, &mut |call| out.push(call));
        self.ended[side] += 1;
        if self.random.random_ratio(1, 1000) {
            self.sequence.release(&mut |call| out.push(call));
        }
        for call in out {
            let Args::Receive(message) = call.args else { continue };
            match message.sent_by {
                None => self.none += 1,
                Some(sender) if sender.ids.span == u64::from(call.uid).to_ne_bytes() => self.right += 1,
                Some(_) => self.wrong += 1,
            }
        }
    }
}

const PAIR: Setting = Setting { senders: 1, receivers: 1, priorities: 1, asks: true, patient: false, capacity: 10 };

/// Prevents a wrong link, whatever the order of what happens, and links that are sure from being missed.
#[test]
fn links_are_never_wrong() {
    let mut worst = SmallRng::seed_from_u64(1);
    let pairs = [PAIR, Setting { priorities: 3, ..PAIR }, Setting { asks: false, ..PAIR }];
    let waiting = Setting { receivers: 4, patient: true, ..PAIR };
    let named = pairs.into_iter().map(|setting| (setting, 0.95)).chain([(waiting, 0.5)]);
    let random = (0..100).map(|_| {
        let setting = Setting {
            senders: worst.random_range(1..5),
            receivers: worst.random_range(1..5),
            priorities: worst.random_range(1..4),
            asks: worst.random(),
            patient: worst.random_ratio(1, 4),
            capacity: *[1, 2, 3, 10].choose(&mut worst).unwrap(),
        };
        (setting, 0.0)
    });
    for (seed, (setting, least)) in (0..).zip(named.chain(random)) {
        let mut world = World::new(setting, seed);
        // Until the queue was surely empty for once there are no links.
        for steps in [4_000, 8_000] {
            (world.right, world.none) = (0, 0);
            (0..steps).for_each(|_| world.step());
        }
        assert_eq!(world.wrong, 0, "{setting:?} {seed}");
        let recall = world.right as f64 / (world.right + world.none) as f64;
        assert!(recall >= least, "{setting:?}: {recall}");
    }
}

/// Prevents a link to the send of a message that a thread took whose receive began before mqspan did.
#[test]
fn early_receivers_take_messages_unseen() {
    let mut random = SmallRng::seed_from_u64(2);
    for seed in 0..300 {
        let setting = Setting { receivers: 2, capacity: random.random_range(1..4), ..PAIR };
        let mut world = World::new(setting, seed).with_early();
        (0..8_000).for_each(|_| world.step());
        assert_eq!(world.wrong, 0, "{setting:?} {seed}");
        assert!(world.right > 0, "{setting:?} {seed}: never trusted again");
    }
}

/// Prevents links across calls that were not seen whole, and a message that failed to arrive from moving all others.
#[test]
fn trust_ends_with_what_was_not_seen() {
    let turn = |number, begun| Turn { alone: true, quiet: true, number, begun, begun_before: begun, ..Turn::default() };
    let mut seen = Vec::new();
    let mut sequence = Sequence::default();
    let mut offer = |side: usize, turn: Turn, ret: i64, depth: i64, span: u8| {
        let passed = Message { size: 3, turn, ..message() };
        let (op, args) = match side {
            0 => (Op::MqTimedsend, Args::Send(passed)),
            _ => (Op::MqTimedreceive, Args::Receive(passed)),
        };
        let mut call = Call { op, args, ret, queue: Some(queue(b"q")), ..example() };
        call.ids.span = [span; 8];
        call.queue = call.queue.map(|queue| crate::model::call::Queue { curmsgs: Some(depth), ..queue });
        sequence.offer(call, &mut |call| {
            if let Args::Receive(message) = call.args {
                seen.push(message.sent_by.map(|sender| sender.ids.span[0]));
            }
        });
    };
    // The first message of all, and its receive.
    offer(0, turn(1, 0), 0, 1, 1);
    offer(1, turn(1, 1), 3, 0, 0);
    // Of another size than what was sent.
    offer(0, turn(2, 1), 0, 1, 2);
    offer(1, turn(2, 2), 2, 0, 0);
    // One call was lost between send and receive.
    offer(0, turn(3, 2), 0, 1, 3);
    offer(1, Turn { losses: 1, ..turn(3, 3) }, 3, 0, 0);
    // A depth that the calls do not explain, of one who was not seen.
    offer(0, Turn { losses: 1, ..turn(4, 3) }, 0, 2, 4);
    offer(1, Turn { losses: 1, ..turn(4, 4) }, 3, 1, 0);
    offer(1, Turn { losses: 1, ..turn(5, 4) }, 3, 0, 0);
    // A receive that fails may have taken it.
    offer(0, Turn { losses: 1, ..turn(5, 5) }, 0, 1, 5);
    offer(1, Turn { losses: 1, quiet: false, ..turn(6, 5) }, -14, 0, 0);
    offer(0, Turn { losses: 1, quiet: false, ..turn(6, 6) }, 0, 1, 6);
    offer(1, Turn { losses: 1, ..turn(7, 6) }, 3, 0, 0);
    // And trusted again.
    offer(0, Turn { losses: 1, ..turn(7, 7) }, 0, 1, 7);
    offer(1, Turn { losses: 1, ..turn(8, 7) }, 3, 0, 0);
    assert_eq!(seen, [Some(1), None, None, None, None, None, None, Some(7)]);
}
