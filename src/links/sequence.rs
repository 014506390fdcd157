//! Takes the calls of the host in the order of their records and gives them back, receives with their links. A receive
//! waits for its link at most [`PATIENCE`], and holds up later calls of its own thread alone. What
//! is certain of a queue, and when, is in `history`.
//!
//! Trust in a queue begins where it was surely empty: no message in it and no other call under way, at the entry or at
//! the exit of a call. It ends with whatever disagrees: a depth, a size, more messages received than sent; a receive that
//! failed with EFAULT and may have taken one; a descriptor that meant another queue when the call had ended; a send that
//! was not numbered.

use std::collections::HashMap;
use std::time::Instant;

pub use super::held::PATIENCE;
use super::held::{HeldCalls, Ticket};
use super::history::{History, Receipt, SentMessage, Settled, Sides};
use super::table::QueueTable;
use crate::model::call::{Args, Call, Message, Method, Queue, QueueKey, Sender};
use crate::model::reading::{QueueHeads, QueueName};
use crate::model::text::utf8;

/// Where the kernel side counts the calls of a queue (TURNS of bpf/turn.h).
const PLACES: usize = 4096;
/// So many threads in a receive since before their calls were followed are told apart at most.
const EARLY: usize = 16_384;

fn place(key: QueueKey) -> usize {
    ((key.inode ^ key.number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
}

/// Links receives to sends, and keeps the order of each thread's calls.
#[derive(Debug)]
pub struct Sequence {
    queues: QueueTable,
    /// Where the kernel side counts, by [`place`].
    places: Vec<Sides>,
    held: HeldCalls,
    early: EarlyReceivers,
    /// Of the next call that waits.
    next_ticket: u64,
    /// What a call settles, emptied each time.
    settled: Vec<Settled>,
}

/// Threads that are in a receive since before their calls were followed: what they take does not show.
#[derive(Debug, Default)]
struct EarlyReceivers {
    /// At which queue; None where that is not known.
    threads: HashMap<u32, Option<QueueName>>,
    /// How many at each.
    at: HashMap<Option<QueueName>, usize>,
    /// They have been looked for, and there were not more than are told apart.
    are_known: bool,
    /// There were some.
    were_there: bool,
}

impl EarlyReceivers {
    fn add(&mut self, tid: u32, queue: Option<QueueName>) {
        self.were_there = true;
        self.are_known &= self.threads.len() < EARLY;
        if self.are_known && self.threads.insert(tid, queue.clone()).is_none() {
            *self.at.entry(queue).or_default() += 1;
        }
    }

    fn remove(&mut self, tid: u32) {
        if !self.threads.is_empty()
            && let Some(queue) = self.threads.remove(&tid)
            && let Some(count) = self.at.get_mut(&queue)
        {
            *count -= 1;
            if *count == 0 {
                self.at.remove(&queue);
            }
        }
    }

    /// Whether one of them may be at this queue.
    fn are_at(&self, ipc_ns: u32, queue: &Queue) -> bool {
        let is_at = |queue: &Queue| {
            let name = format!("/{}", utf8(&queue.name));
            self.at.contains_key(&None) || self.at.contains_key(&Some((ipc_ns, name.into())))
        };
        !self.are_known || !self.at.is_empty() && is_at(queue)
    }
}

impl Default for Sequence {
    fn default() -> Self {
        Self {
            queues: QueueTable::default(),
            places: (0..PLACES).map(|_| Sides::default()).collect(),
            held: HeldCalls::default(),
            early: EarlyReceivers::default(),
            next_ticket: 0,
            settled: Vec::new(),
        }
    }
}

impl Sequence {
    /// These threads are in a receive whose beginning was not seen, and no others.
    pub fn found(&mut self, early: impl IntoIterator<Item = (u32, Option<QueueName>)>) {
        self.early.are_known = true;
        for (tid, queue) in early {
            self.early.add(tid, queue);
        }
    }

    /// Threads that are gone, as `is_gone` says, are in no receive any more.
    pub fn forget(&mut self, is_gone: impl Fn(u32) -> bool) {
        let gone: Vec<u32> = self.early.threads.keys().copied().filter(|tid| is_gone(*tid)).collect();
        gone.into_iter().for_each(|tid| self.early.remove(tid));
    }

    /// Takes a call at the time `now`; gives back those that are ready.
    pub fn offer(&mut self, mut call: Box<Call>, now: Instant, out: &mut impl FnMut(Box<Call>)) {
        // Another call of the thread: the one that was not seen has ended.
        self.early.remove(call.tid);
        let mut waits = None;
        if let (Args::Send(message) | Args::Receive(message), Some(queue)) = (call.args, &call.queue)
            && message.turn.number > 0
        {
            let ticket = Ticket { number: self.next_ticket, tid: call.tid, queue: queue.key };
            self.next_ticket += 1;
            let is_receipt = call.ret >= 0 && matches!(call.args, Args::Receive(_));
            waits = is_receipt.then_some(ticket);
            let mut settled = std::mem::take(&mut self.settled);
            let is_tracked = self.follow(&call, message, ticket, &mut settled);
            if let Args::Send(message) = &mut call.args {
                message.tracked = is_tracked;
            }
            // This call is not held yet, so that it is completed here.
            settled.retain(|(of, message)| {
                if *of == ticket {
                    waits = None;
                    link(&mut call, message.as_ref());
                }
                *of != ticket
            });
            self.complete(&mut settled, out);
            self.settled = settled;
        }
        let given_up = self.held.take(call, waits, now, out);
        self.give_up(given_up, out);
    }

    /// The time is `now`: gives back the calls that have waited long enough.
    pub fn expire(&mut self, now: Instant, out: &mut impl FnMut(Box<Call>)) {
        let given_up = self.held.expire(now, out);
        self.give_up(given_up, out);
    }

    /// When [`Self::expire`] has something to do again, unless a call is offered before.
    pub fn deadline(&self) -> Option<Instant> {
        self.held.deadline()
    }

    /// What the calls so far leave in their queues, where it is certain which message would be received next.
    pub fn heads(&self) -> QueueHeads {
        self.queues.heads()
    }

    /// Messages received so far whose send could not be told.
    pub fn unlinked(&self) -> u64 {
        self.held.unlinked()
    }

    /// Follows what a call did to its queue; returns whether the receiver of what it sent can be told, as far as is known
    /// by now.
    fn follow(&mut self, call: &Call, message: Message, ticket: Ticket, settled: &mut Vec<Settled>) -> bool {
        let (turn, Some(queue)) = (message.turn, &call.queue) else { return false };
        let has_unseen = self.early.are_at(call.ipc_ns, queue);
        let had_unseen = has_unseen || self.early.were_there;
        let sides = &mut self.places[place(queue.key)];
        let (history, given_up) =
            self.queues.enter(queue.key, call.image.pid, || History::new(sides, turn.losses, had_unseen));
        let before = history.room();
        sides[0].begun(turn.begun[0]);
        sides[1].begun(turn.begun[1]);
        history.watch(has_unseen, sides);
        history.lost(turn.losses, sides, settled);
        if let Some(at) = turn.empty {
            was_empty(history, sides, at, settled);
        }
        let side = usize::from(matches!(call.args, Args::Receive(_)));
        sides[side].came(turn.number);
        let is_sure = take_effect(history, call, message, ticket, settled);
        // Nothing of what came disagrees, as far as the depth shows.
        let is_latest = [0, 1].map(|side| sides[side].highest()) == turn.begun;
        let is_complete = [0, 1].iter().all(|side| sides[*side].are_complete_until(turn.begun[*side]));
        let depth = queue.curmsgs.filter(|_| turn.quiet && is_latest);
        let agrees = depth.is_none_or(|depth| !history.is_trusted() || !is_complete || history.agrees(depth));
        if !is_sure || !agrees || history.settle(sides, settled).is_err() {
            history.distrust(sides, settled);
        }
        if turn.quiet && queue.curmsgs == Some(0) {
            was_empty(history, sides, turn.begun, settled);
        }
        let is_tracked = call.ret >= 0 && history.is_trusted() && sides[0].are_complete_until(turn.begun[0]);
        if side == 1 && !history.is_trusted() {
            // Its queue may be trusted by a record that comes later, but it does not wait for that.
            history.give_up(&ticket);
            settled.push((ticket, None));
        }
        let changed = history.room() != before;
        settled.extend(given_up.into_iter().map(|ticket| (ticket, None)));
        if changed {
            let given_up = self.queues.changed(&queue.key, before);
            settled.extend(given_up.into_iter().map(|ticket| (ticket, None)));
        }
        is_tracked
    }

    fn complete(&mut self, settled: &mut Vec<Settled>, out: &mut impl FnMut(Box<Call>)) {
        for (ticket, message) in settled.drain(..) {
            self.held.settle(&ticket, |call| link(call, message.as_ref()), out);
        }
    }

    /// These receives wait no more: others of their queues may have waited for them.
    fn give_up(&mut self, given_up: Vec<Ticket>, out: &mut impl FnMut(Box<Call>)) {
        for ticket in given_up {
            let Some(history) = self.queues.get(&ticket.queue) else { continue };
            let (sides, before, mut settled) = (&self.places[place(ticket.queue)], history.room(), Vec::new());
            history.give_up(&ticket);
            if history.settle(sides, &mut settled).is_err() {
                history.distrust(sides, &mut settled);
            }
            settled.extend(self.queues.changed(&ticket.queue, before).into_iter().map(|ticket| (ticket, None)));
            self.complete(&mut settled, out);
        }
    }
}

/// When so many had begun, the queue was empty and nobody else at it.
fn was_empty(history: &mut History, sides: &mut Sides, at: [u64; 2], settled: &mut Vec<Settled>) {
    sides.iter_mut().zip(at).for_each(|(records, number)| records.all_ended(number));
    history.was_empty(at, settled);
}

/// Adds what a call did; returns whether that is known.
fn take_effect(
    history: &mut History,
    call: &Call,
    message: Message,
    ticket: Ticket,
    settled: &mut Vec<Settled>,
) -> bool {
    let turn = message.turn;
    let failed_late = call.ret == -i64::from(libc::EFAULT) && matches!(call.args, Args::Receive(_));
    if call.ret < 0 {
        return !failed_late;
    }
    match (call.args, message.priority) {
        (Args::Send(_), Some(priority)) => history.sent(
            priority,
            SentMessage {
                number: turn.number,
                begun: turn.begun[0],
                ids: call.ids,
                comm: call.comm,
                left_ns: call.left_ns,
                size: message.size,
                is_kept: !call.filtered,
            },
        ),
        (Args::Receive(_), priority) => {
            let size = call.ret.cast_unsigned();
            let receipt = Receipt { number: turn.number, begun: turn.begun, size, ticket: Some(ticket) };
            history.received(priority.or(turn.only_priority), receipt, settled);
        }
        _ => {}
    }
    // The descriptor must have meant this queue all the time.
    call.queue.as_ref().is_some_and(|queue| queue.curmsgs.is_some())
}

/// Tells a receive whose message it got.
fn link(receive: &mut Call, sent: Option<&SentMessage>) {
    let entered_ns = receive.entered_ns;
    if let (Args::Receive(message), Some(sent)) = (&mut receive.args, sent) {
        // Without seeing the message: from when it was surely there until when someone was there to take it.
        message.wait_ns = Some(entered_ns.saturating_sub(sent.left_ns));
        message.sent_by = sent.is_kept.then_some(Sender { ids: sent.ids, comm: sent.comm, method: Method::Sequence });
    }
}

#[cfg(test)]
mod tests;
