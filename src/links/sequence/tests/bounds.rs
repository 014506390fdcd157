//! What one process does, however much, costs no other a link and no memory without bound.

use std::time::Duration;

use super::super::*;
use crate::links::{held, history, table};
use crate::model::call::Turn;
use crate::model::examples::{example, message, queue};
use crate::model::values::Op;

/// Calls, in an order of the test's own making.
struct Bench {
    sequence: Sequence,
    start: Instant,
    /// Of each place: sends and receives that have begun.
    begun: HashMap<usize, [u64; 2]>,
    /// Calls without a number so far.
    losses: [u32; 2],
    out: Vec<Call>,
}

impl Bench {
    fn new() -> Self {
        let mut sequence = Sequence::default();
        sequence.found([]);
        Self { sequence, start: Instant::now(), begun: HashMap::new(), losses: [0; 2], out: Vec::new() }
    }

    /// A call begins at that queue.
    fn enter(&mut self, side: usize, at: u64, pid: u32, is_empty: bool) -> Call {
        let mut reached = queue(b"q");
        (reached.key.inode, reached.key.number, reached.curmsgs) = (at, 0, Some(3));
        let begun = self.begun.entry(place(reached.key)).or_default();
        let empty = is_empty.then_some(*begun);
        begun[side] += 1;
        let passed = Message { size: 8, turn: Turn { number: begun[side], empty, ..Turn::default() }, ..message() };
        let (op, args) = match side {
            0 => (Op::MqTimedsend, Args::Send(passed)),
            _ => (Op::MqTimedreceive, Args::Receive(passed)),
        };
        let mut call = Call { op, args, tid: pid, queue: Some(reached), ret: 0, ..example() };
        call.image.pid = pid;
        call
    }

    /// It ends with this result, after so much time.
    fn leave(&mut self, mut call: Call, ret: i64, after: Duration) {
        call.ret = ret;
        let begun = call.queue.as_ref().map(|queue| self.begun[&place(queue.key)]).unwrap_or_default();
        if let Args::Send(message) | Args::Receive(message) = &mut call.args {
            (message.turn.begun, message.turn.losses) = (begun, self.losses);
        }
        self.sequence.offer(Box::new(call), self.start + after, &mut |call| self.out.push(*call));
    }

    /// A message is sent to an empty queue and received; returns whether that was told.
    fn pass_one(&mut self, at: u64, pid: u32) -> bool {
        let send = self.enter(0, at, pid, true);
        self.leave(send, 0, Duration::ZERO);
        let receive = self.enter(1, at, pid, false);
        self.leave(receive, 8, Duration::ZERO);
        matches!(self.out.pop(), Some(Call { args: Args::Receive(Message { sent_by: Some(_), .. }), .. }))
    }

    /// A receive that has to wait: another send, which began with its own, has not ended.
    fn wait(&mut self, at: u64, pid: u32) -> Call {
        self.wait_in(at, pid, pid)
    }

    /// The same in a thread of the process.
    fn wait_in(&mut self, at: u64, pid: u32, tid: u32) -> Call {
        let send = self.enter(0, at, pid, true);
        let other = self.enter(0, at, pid, false);
        self.leave(send, 0, Duration::ZERO);
        let receive = Call { tid, ..self.enter(1, at, pid, false) };
        self.leave(receive, 8, Duration::ZERO);
        other
    }

    fn other_call(&mut self, tid: u32, after: Duration) {
        let mut call = Call { tid, ..example() };
        call.image.pid = tid;
        self.sequence.offer(Box::new(call), self.start + after, &mut |call| self.out.push(*call));
    }

    fn opens(&self) -> usize {
        self.out.iter().filter(|call| call.op == Op::MqOpen).count()
    }
}

const LONG: Duration = Duration::from_secs(1);

/// Prevents a call that waits from holding up those of other threads, and its own thread's for longer than it may.
#[test]
fn a_call_that_waits_holds_up_its_own_thread_alone() {
    let mut bench = Bench::new();
    bench.wait(1, 7);
    assert_eq!(bench.out.pop().map(|call| call.op), Some(Op::MqTimedsend));
    bench.other_call(8, Duration::ZERO);
    bench.other_call(7, Duration::ZERO);
    assert_eq!(bench.out.drain(..).map(|call| call.tid).collect::<Vec<_>>(), [8]);
    // However many records keep coming.
    let deadline = bench.sequence.deadline().unwrap();
    assert_eq!(deadline, bench.start + PATIENCE);
    bench.sequence.expire(deadline - Duration::from_nanos(1), &mut |call| bench.out.push(*call));
    assert_eq!(bench.out.len(), 0);
    bench.sequence.expire(deadline, &mut |call| bench.out.push(*call));
    assert_eq!(bench.out.iter().map(|call| call.op).collect::<Vec<_>>(), [Op::MqTimedreceive, Op::MqOpen]);
    assert_eq!((bench.sequence.unlinked(), bench.sequence.deadline()), (1, None));
}

/// Prevents a receive from waiting in vain: the record that it waits for settles it.
#[test]
fn what_a_call_waits_for_lets_it_go() {
    let mut bench = Bench::new();
    let other = bench.wait(1, 7);
    bench.out.clear();
    bench.leave(other, -110, Duration::ZERO);
    let [Call { args: Args::Receive(message), .. }, Call { op: Op::MqTimedsend, .. }] = &bench.out[..] else {
        panic!("{:?}", bench.out)
    };
    assert!(message.sent_by.is_some() && bench.sequence.unlinked() == 0);
}

/// Prevents a thread that goes on while a receive of its own waits, and a process of thousands of such threads, from being
/// held without bound, and from taking the room of another process's.
#[test]
fn calls_that_are_held_are_bounded() {
    let mut bench = Bench::new();
    bench.wait(1, 7);
    (0..held::OF_THREAD).for_each(|_| bench.other_call(7, Duration::ZERO));
    assert_eq!((bench.opens(), bench.sequence.unlinked()), (held::OF_THREAD, 1));
    // One that waits, of another process.
    bench.wait(2, 8);
    let many = 2 * held::OF_ALL as u64;
    for at in 0..many {
        bench.wait_in(10 + at, 9, 1000 + at as u32);
    }
    assert!(bench.sequence.held.len() <= held::OF_ALL);
    assert!(bench.sequence.unlinked() > 1);
    let mine = |call: &Call| call.image.pid == 8 && call.op == Op::MqTimedreceive;
    assert!(!bench.out.iter().any(mine), "another process's call was let go of");
    bench.sequence.expire(bench.start + LONG, &mut |call| bench.out.push(*call));
    assert!(bench.out.iter().any(mine) && bench.sequence.held.len() == 0);
    assert_eq!(bench.out.iter().filter(|call| call.op == Op::MqTimedreceive).count() as u64, many + 2);
}

/// Prevents a process that makes queues without end from taking others' out of sight.
#[test]
fn queues_are_bounded_for_each_process() {
    let mut bench = Bench::new();
    let send = bench.enter(0, 1, 7, true);
    bench.leave(send, 0, Duration::ZERO);
    for at in 0..3 * table::QUEUES as u64 {
        assert!(bench.pass_one(10 + at, 8));
    }
    assert!(bench.sequence.queues.size().0 <= table::QUEUES);
    let receive = bench.enter(1, 1, 7, false);
    bench.leave(receive, 8, Duration::ZERO);
    // Calls at other queues of the same place are among them, but none is under way.
    let Some(Call { args: Args::Receive(Message { sent_by, .. }), .. }) = bench.out.pop() else { panic!() };
    assert!(sent_by.is_some());
}

/// Prevents messages that nobody receives, of every priority and in many queues, from taking memory without bound, and
/// the room of others' messages.
#[test]
fn messages_are_bounded_for_each_process() {
    let mut bench = Bench::new();
    let send = bench.enter(0, 1, 7, true);
    bench.leave(send, 0, Duration::ZERO);
    for at in 0..4 {
        for priority in 0..32_768 {
            let mut send = bench.enter(0, 10 + at, 8, priority == 0);
            if let Args::Send(message) = &mut send.args {
                message.priority = Some(priority);
            }
            bench.leave(send, 0, Duration::ZERO);
            bench.out.clear();
        }
        assert!(bench.sequence.queues.size().1 <= table::KEPT);
    }
    let receive = bench.enter(1, 1, 7, false);
    bench.leave(receive, 8, Duration::ZERO);
    let Some(Call { args: Args::Receive(Message { sent_by, .. }), .. }) = bench.out.pop() else { panic!() };
    assert!(sent_by.is_some());
}

/// Prevents receives that can't be told apart, on a queue that never runs empty, from piling up.
#[test]
fn open_receives_are_bounded() {
    let mut bench = Bench::new();
    let first = bench.enter(0, 1, 7, true);
    bench.leave(first, 0, Duration::ZERO);
    for _ in 0..10_000 {
        let send = bench.enter(0, 1, 7, false);
        bench.leave(send, 0, Duration::ZERO);
    }
    // One that is under way all the time may have taken any of them.
    let under_way = bench.enter(1, 1, 9, false);
    for _ in 0..10 * history::OPEN {
        let receive = bench.enter(1, 1, 8, false);
        bench.leave(receive, 8, LONG);
        bench.sequence.expire(bench.start + LONG + PATIENCE, &mut |call| bench.out.push(*call));
    }
    assert!(bench.sequence.queues.size().1 <= history::OPEN + 1);
    bench.leave(under_way, 8, LONG);
    assert!(bench.pass_one(1, 7), "never trusted again");
}

/// Prevents threads without end that are in a receive at the start from taking memory, and from being forgotten: with
/// more than are told apart any of them may be at any queue.
#[test]
fn early_receivers_are_bounded() {
    let mut bench = Bench::new();
    bench.sequence.found((0..100_000).map(|tid| (1000 + tid, Some((5, "/other".into())))));
    assert!(bench.sequence.early.threads.len() <= EARLY);
    // What counts alone shows is told all the same.
    assert!(bench.pass_one(1, 7));
    bench.sequence.forget(|_| true);
    assert_eq!((bench.sequence.early.threads.len(), bench.sequence.early.at.len()), (0, 0));
}

/// Prevents links across calls that disagree with what was seen, and a queue from never being trusted again.
#[test]
fn trust_ends_with_what_was_not_seen() {
    let mut bench = Bench::new();
    assert!(bench.pass_one(1, 7));
    let mut spoilt = |ret: i64, losses: [u32; 2], change: &dyn Fn(&mut Call)| {
        let send = bench.enter(0, 1, 7, true);
        bench.leave(send, 0, Duration::ZERO);
        let mut receive = bench.enter(1, 1, 7, false);
        change(&mut receive);
        bench.losses = [0, 1].map(|side| bench.losses[side] + losses[side]);
        bench.leave(receive, ret, Duration::ZERO);
        let Some(Call { args: Args::Receive(message), .. }) = bench.out.pop() else { panic!() };
        let is_linked = message.sent_by.is_some();
        (is_linked, bench.pass_one(1, 7))
    };
    // Of another size than what was sent.
    assert_eq!(spoilt(7, [0, 0], &|_| {}), (false, true));
    // One that fails so may have taken it all the same.
    assert_eq!(spoilt(-14, [0, 0], &|_| {}), (false, true));
    // The descriptor meant another queue in the end.
    assert_eq!(spoilt(8, [0, 0], &|call| call.queue.as_mut().unwrap().curmsgs = None), (false, true));
    // More messages than were seen, and fewer.
    for depth in [1, 2] {
        let deep = |call: &mut Call| {
            call.queue.as_mut().unwrap().curmsgs = Some(depth);
            let Args::Receive(message) = &mut call.args else { panic!() };
            message.turn.quiet = true;
        };
        assert_eq!(spoilt(8, [0, 0], &deep), (false, true));
    }
    // A send without a number.
    assert_eq!(spoilt(8, [1, 0], &|_| {}), (false, true));
    // A receive without one takes nothing away from what the counts show.
    assert_eq!(spoilt(8, [0, 1], &|_| {}), (true, true));
}
