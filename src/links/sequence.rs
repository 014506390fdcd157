//! Links inferred from the order of calls, where the kernel side sees no message itself. A queue is a FIFO for each
//! priority, so the nth receive of a priority gets the nth send of it; but when a call took effect between its entry and
//! its exit does not show. So a link is made only where no other pairing is possible:
//!
//! - A call that had no other of its kind beside it on the queue ("alone", bpf/turn.h) has a certain number: all before
//!   it have ended, and their records come before its own.
//! - A receive that was not alone is certain where only one message can have been there for it.
//! - A message may be received before its send's record comes: that receive waits for it, for some milliseconds.
//! - A receive that did not ask for the priority is taken for the one priority that there is, and waits until the sends
//!   under way beside it have shown theirs.
//!
//! A queue is trusted from when it was surely empty: no message in it and no other call under way. A call that was not
//! seen whole ends all trust, as does a depth, a size or an order of records that does not agree with the calls seen. A
//! thread that is in a receive since before mqspan attached keeps its queue from being trusted: what it takes does not
//! show.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::model::call::{Args, Call, Ids, Message, Method, QueueKey, Sender, Turn};
use crate::model::reading::QueueName;
use crate::model::text::utf8;

/// Queues that are followed at a time; more than that and all are begun anew.
const QUEUES: usize = 4096;
/// Messages of a queue that are remembered: the kernel's own limit (ipc/mqueue.c, HARD_MSGMAX).
const MESSAGES: usize = 65_536;

/// Where the kernel side counts the calls of a queue (TURNS of bpf/turn.h).
const PLACES: usize = 4096;

fn place(key: QueueKey) -> usize {
    ((key.inode ^ key.number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
}

/// What is known of the records of one place.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The highest number of the sends, and of the receives, whose records came.
    highest: [u64; 2],
    /// The records of all sends up to this number came.
    known: u64,
}

impl Place {
    /// Takes a record; returns whether that of a later call of its kind came before.
    fn take(&mut self, turn: Turn, is_receive: bool) -> bool {
        let highest = &mut self.highest[usize::from(is_receive)];
        let is_late = turn.number < *highest;
        *highest = turn.number.max(*highest);
        let known = match is_receive {
            true if turn.opposite == 0 => turn.begun,
            false if turn.alone => turn.number,
            _ => 0,
        };
        self.known = self.known.max(known);
        is_late
    }
}

/// Stands for a priority until the first send shows it; no message has it (include/linux/mqueue.h, MQ_PRIO_MAX).
const UNKNOWN: u32 = u32::MAX;

/// A message whose place in the queue is certain.
#[derive(Clone, Copy, Debug)]
struct Sent {
    ids: Ids,
    comm: [u8; 16],
    left_ns: u64,
    size: u64,
    /// Whether its send has a record.
    is_kept: bool,
}

/// The messages of one priority.
#[derive(Debug, Default)]
struct Lane {
    /// Sent and not received, the oldest first; None where the order of its send among others is not certain.
    sent: VecDeque<Option<Sent>>,
    /// Received before the record of their send came; the receive's number, None where its order is not certain.
    received: VecDeque<Option<u64>>,
    /// Whether the receives so far need not have taken the first messages: one under way may have taken one of these.
    is_mixed: bool,
}

/// A trusted queue.
#[derive(Debug, Default)]
struct Queue {
    /// By priority.
    lanes: BTreeMap<u32, Lane>,
    /// The most sends that had begun when one of the receives so far ended.
    begun: u64,
    /// Until all sends that had begun by this number have shown their priority, links are not certain.
    doubt: Option<u64>,
    /// Receives that wait for that, what they got, and the number of the send that they wait for; in its order.
    doubted: VecDeque<(u64, Sent, u64)>,
}

/// Something disagrees with the calls seen.
struct Distrusted;

/// Takes all calls in the order of their records and gives them back in it, receives with their links.
#[derive(Debug)]
pub struct Sequence {
    queues: HashMap<QueueKey, Queue>,
    /// Where the kernel side counts, by [`place`].
    places: Vec<Place>,
    losses: u32,
    stream: Stream,
    /// Threads in a receive since before their calls were followed, and at which queue: its ipc namespace and name; None
    /// where that is not known.
    early: HashMap<u32, Option<QueueName>>,
}

/// The calls on their way through, numbered.
#[derive(Debug, Default)]
struct Stream {
    /// Calls from the first that waits on.
    held: VecDeque<Call>,
    /// The number of the first of them.
    first: u64,
    /// The numbers of those that wait.
    waiting: BTreeSet<u64>,
    /// Messages received whose send could not be told.
    unlinked: u64,
}

impl Default for Sequence {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            places: vec![Place::default(); PLACES],
            losses: 0,
            stream: Stream::default(),
            early: HashMap::new(),
        }
    }
}

impl Sequence {
    /// These threads are in a receive whose beginning was not seen.
    pub fn found(&mut self, early: impl IntoIterator<Item = (u32, Option<QueueName>)>) {
        self.early.extend(early);
    }

    /// Threads that are gone, as `is_gone` says, are in no receive any more.
    pub fn forget(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.early.retain(|tid, _| !is_gone(*tid));
    }

    /// Takes a call; gives back those that are ready.
    pub fn offer(&mut self, mut call: Call, out: &mut impl FnMut(Call)) {
        // Another call of the thread: the one that was not seen has ended.
        self.early.remove(&call.tid);
        if let (Args::Send(message) | Args::Receive(message), Some(queue)) = (call.args, &call.queue)
            && message.turn.number > 0
        {
            if message.turn.losses != self.losses {
                self.losses = message.turn.losses;
                self.distrust_all();
            }
            let (key, depth) = (queue.key, queue.curmsgs);
            self.follow(&mut call, message, key, depth);
        }
        self.stream.held.push_back(call);
        self.stream.give(out);
    }

    /// Gives back everything: nothing more has come for a while.
    pub fn release(&mut self, out: &mut impl FnMut(Call)) {
        self.stream.waiting.clear();
        self.stream.give(out);
    }

    /// Messages received so far whose send could not be told.
    pub fn unlinked(&self) -> u64 {
        self.stream.unlinked
    }

    /// Whether a thread may take messages of the call's queue unseen.
    fn has_early(&self, call: &Call) -> bool {
        let is_here = |(ipc_ns, name): &QueueName| {
            *ipc_ns == call.ipc_ns
                && call.queue.as_ref().is_some_and(|queue| **name == *format!("/{}", utf8(&queue.name)))
        };
        self.early.values().any(|queue| queue.as_ref().is_none_or(is_here))
    }

    fn distrust_all(&mut self) {
        self.queues.clear();
        self.stream.waiting.clear();
    }

    fn distrust(&mut self, key: QueueKey) {
        let Some(queue) = self.queues.remove(&key) else { return };
        let received = queue.lanes.into_values().flat_map(|lane| lane.received).flatten();
        for number in received.chain(queue.doubted.into_iter().map(|(number, ..)| number)) {
            self.stream.waiting.remove(&number);
        }
    }

    /// Follows what a call did to its queue. Between its last look at the others and its record the call may have been
    /// held up: where records of others came first that it did not see begin, what it saw is stale.
    fn follow(&mut self, call: &mut Call, message: Message, key: QueueKey, depth: Option<i64>) {
        let turn = message.turn;
        let is_receive = matches!(call.args, Args::Receive(_));
        let place = &mut self.places[place(key)];
        let is_late = place.take(turn, is_receive);
        let is_fresh = turn.quiet && !is_late && place.highest[usize::from(!is_receive)] <= turn.begun;
        let (known, depth) = (place.known, depth.filter(|_| is_fresh));
        if is_late && turn.alone {
            self.distrust(key);
        }
        let is_trusted = self.queues.get_mut(&key).map(|queue| {
            queue.follow(call, message, known, &mut self.stream).is_ok()
                && depth.is_none_or(|depth| queue.agrees(depth))
        });
        if is_trusted == Some(true) {
            return;
        }
        self.distrust(key);
        // A single message is this send's, unless a receive meanwhile left another's.
        let is_undisturbed = turn.begun == turn.begun_before;
        let is_first = depth == Some(1) && is_undisturbed && call.ret >= 0 && matches!(call.args, Args::Send(_));
        if (depth == Some(0) || is_first) && !self.has_early(call) {
            if self.queues.len() >= QUEUES {
                self.distrust_all();
            }
            let queue = self.queues.entry(key).or_default();
            if is_first {
                // The first message of a queue agrees with whatever was seen.
                let _ = queue.follow(call, message, known, &mut self.stream);
            }
        }
    }
}

impl Stream {
    fn give(&mut self, out: &mut impl FnMut(Call)) {
        while !self.waiting.contains(&self.first)
            && let Some(call) = self.held.pop_front()
        {
            self.first += 1;
            let is_unlinked = matches!(call.args, Args::Receive(Message { wait_ns: None, .. }) if call.ret >= 0);
            self.unlinked += u64::from(is_unlinked && !call.filtered);
            out(call);
        }
    }

    /// The number of the call that is taken just now.
    fn next(&self) -> u64 {
        self.first + self.held.len() as u64
    }

    /// Links a receive that waited, unless it was released.
    fn link(&mut self, number: u64, sent: &Sent) -> Result<(), Distrusted> {
        let held = number.checked_sub(self.first).and_then(|at| self.held.get_mut(at as usize));
        match held.filter(|_| self.waiting.remove(&number)) {
            Some(receive) => link(receive, sent),
            None => Ok(()),
        }
    }
}

impl Queue {
    /// Whether a depth, read when nothing else was under way, is what the calls so far leave.
    fn agrees(&self, depth: i64) -> bool {
        let count: usize = self.lanes.values().map(|lane| lane.sent.len()).sum();
        self.lanes.values().all(|lane| lane.received.is_empty()) && usize::try_from(depth) == Ok(count)
    }

    /// `known`: the records of all sends up to this number came.
    fn follow(&mut self, call: &mut Call, message: Message, known: u64, stream: &mut Stream) -> Result<(), Distrusted> {
        if let Args::Receive(_) = call.args {
            self.settle(known, stream)?;
            return match call.ret {
                0.. => self.receive(call, message, known, stream),
                // One that fails so may have taken a message all the same.
                ret if ret == -i64::from(libc::EFAULT) => Err(Distrusted),
                _ => Ok(()),
            };
        }
        if call.ret >= 0 {
            self.send(call, message, stream)?;
        }
        self.settle(known, stream)
    }

    /// All sends up to this number have shown their priority.
    fn settle(&mut self, known: u64, stream: &mut Stream) -> Result<(), Distrusted> {
        if self.doubt.is_some() && self.lanes.len() > 1 {
            return Err(Distrusted);
        }
        while let Some((number, sent, until)) = self.doubted.front().copied()
            && until <= known
        {
            self.doubted.pop_front();
            stream.link(number, &sent)?;
        }
        self.doubt = self.doubt.filter(|doubt| *doubt > known);
        Ok(())
    }

    fn send(&mut self, call: &mut Call, message: Message, stream: &mut Stream) -> Result<(), Distrusted> {
        let priority = message.priority.ok_or(Distrusted)?;
        if let Some(lane) = self.lanes.remove(&UNKNOWN) {
            self.lanes.insert(priority, lane);
        }
        let lane = self.lanes.entry(priority).or_default();
        let sent = message.turn.alone.then_some(Sent {
            ids: call.ids,
            comm: call.comm,
            left_ns: call.left_ns,
            size: message.size,
            is_kept: !call.filtered,
        });
        if let Args::Send(message) = &mut call.args {
            message.tracked = sent.is_some();
        }
        match (lane.received.pop_front(), sent) {
            (None, _) => lane.sent.push_back(sent),
            (Some(Some(number)), Some(sent)) => match self.doubt {
                None => stream.link(number, &sent)?,
                Some(until) => self.doubted.push_back((number, sent, until)),
            },
            (Some(Some(number)), None) => _ = stream.waiting.remove(&number),
            (Some(None), _) => {}
        }
        if lane.sent.len() > MESSAGES { Err(Distrusted) } else { Ok(()) }
    }

    fn receive(
        &mut self,
        call: &mut Call,
        message: Message,
        known: u64,
        stream: &mut Stream,
    ) -> Result<(), Distrusted> {
        let Turn { alone, begun, opposite, .. } = message.turn;
        // Whether sends that may have passed the message are still to show.
        let under_way = if known >= begun { 0 } else { opposite as usize };
        let priority = match message.priority {
            Some(priority) => priority,
            None => self.only_priority(begun, under_way).ok_or(Distrusted)?,
        };
        let lane = self.lanes.entry(priority).or_default();
        let is_only_one = !lane.is_mixed && lane.sent.len() + under_way == 1 && lane.received.is_empty();
        let is_certain = alone || is_only_one;
        let number = stream.next();
        match lane.sent.pop_front() {
            Some(Some(sent)) if is_certain => match self.doubt {
                None => link(call, &sent)?,
                Some(until) => {
                    stream.waiting.insert(number);
                    self.doubted.push_back((number, sent, until));
                }
            },
            Some(_) => {}
            None => {
                lane.received.push_back(is_certain.then_some(number));
                if is_certain {
                    stream.waiting.insert(number);
                }
            }
        }
        // Where all messages that the receives so far can have taken are known, and as many as they: they took these.
        let is_even = under_way == 0 && begun >= self.begun && lane.sent.is_empty() && lane.received.is_empty();
        lane.is_mixed = !is_certain && !is_even;
        self.begun = self.begun.max(begun);
        let early: usize = self.lanes.values().map(|lane| lane.received.len()).sum();
        if early > under_way { Err(Distrusted) } else { Ok(()) }
    }

    /// The priority of a message whose receiver did not ask for it: where all that can have been there are of one. What
    /// is under way is taken to be of that one, until it has shown its own.
    fn only_priority(&mut self, begun: u64, under_way: usize) -> Option<u32> {
        let mut with_messages = self.lanes.iter().filter(|(_, lane)| !lane.sent.is_empty());
        if under_way == 0
            && let (Some((priority, _)), None) = (with_messages.next(), with_messages.next())
        {
            return Some(*priority);
        }
        let mut all = self.lanes.keys();
        let priority = match (all.next(), all.next()) {
            (first, None) => *first.unwrap_or(&UNKNOWN),
            _ => return None,
        };
        self.doubt = self.doubt.max(Some(begun));
        Some(priority)
    }
}

/// Links a receive to the send of its message; the size must be the same.
fn link(receive: &mut Call, sent: &Sent) -> Result<(), Distrusted> {
    let (ret, entered_ns) = (receive.ret, receive.entered_ns);
    let Args::Receive(message) = &mut receive.args else { return Err(Distrusted) };
    if u64::try_from(ret) != Ok(sent.size) {
        return Err(Distrusted);
    }
    // Without seeing the message: from when it was surely there until when someone was there to take it.
    message.wait_ns = Some(entered_ns.saturating_sub(sent.left_ns));
    message.sent_by = sent.is_kept.then_some(Sender { ids: sent.ids, comm: sent.comm, method: Method::Sequence });
    Ok(())
}

#[cfg(test)]
mod tests;
