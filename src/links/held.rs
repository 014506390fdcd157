//! Calls that wait: a receive until it is known whose message it got, and the later calls of its thread behind it. For a
//! time and up to a number of them; a process that needs more than there is room for pays itself. Pure code; the time is
//! passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::HashMap;

use crate::model::call::{Args, Call, QueueKey};

/// A receive waits for its link so long at most.
pub const PATIENCE: Duration = Duration::from_millis(20);
/// So many calls of a thread are held at most, and of all threads.
pub const OF_THREAD: usize = 64;
pub const OF_ALL: usize = 4096;

/// A receive that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Rises with each call.
    pub number: u64,
    /// The thread.
    pub tid: u32,
    /// The queue.
    pub queue: QueueKey,
}

#[derive(Debug)]
struct HeldCall {
    /// None: it is only behind one that waits.
    waits: Option<Ticket>,
    call: Box<Call>,
}

/// The calls that wait.
#[derive(Debug, Default)]
pub struct HeldCalls {
    /// Of each thread those from the first that waits on.
    threads: HashMap<u32, VecDeque<HeldCall>>,
    /// How many of each process.
    of_process: HashMap<u32, usize>,
    total: usize,
    /// When those that wait are let go, in order.
    deadlines: VecDeque<(Instant, Ticket)>,
    /// Messages received that left without what is known of their send.
    unlinked: u64,
}

impl HeldCalls {
    /// Takes a call: passes it on, or holds it where it waits or is behind one that does. Returns the receives that can't
    /// wait any more, for want of room.
    pub fn take(
        &mut self,
        call: Box<Call>,
        waits: Option<Ticket>,
        now: Instant,
        out: &mut impl FnMut(Box<Call>),
    ) -> Vec<Ticket> {
        let (tid, pid) = (call.tid, call.image.pid);
        let of_thread = if self.total > 0 { self.threads.get(&tid).map_or(0, VecDeque::len) } else { 0 };
        if waits.is_none() && of_thread == 0 {
            pass(call, &mut self.unlinked, out);
            return Vec::new();
        }
        self.threads.entry(tid).or_default().push_back(HeldCall { waits, call });
        if let Some(ticket) = waits {
            self.deadlines.push_back((now + PATIENCE, ticket));
            if self.deadlines.len() > 2 * OF_ALL {
                // Most of them have been settled since.
                self.deadlines.retain(|(_, ticket)| is_waiting(&self.threads, ticket));
            }
        }
        *self.of_process.entry(pid).or_default() += 1;
        self.total += 1;
        let mut given_up = Vec::new();
        if of_thread >= OF_THREAD {
            self.give_up(&[tid], &mut given_up, out);
        }
        if self.total > OF_ALL
            && let Some(most) = self.of_process.iter().max_by_key(|(_, count)| **count).map(|(pid, _)| *pid)
        {
            let is_of_it = |held: &VecDeque<HeldCall>| held.iter().any(|held| held.call.image.pid == most);
            let tids: Vec<u32> = self.threads.iter().filter(|(_, held)| is_of_it(held)).map(|(tid, _)| *tid).collect();
            self.give_up(&tids, &mut given_up, out);
        }
        given_up
    }

    /// It is known what became of a receive: nothing is to be waited for any more. `complete` adds the link.
    pub fn settle(&mut self, ticket: &Ticket, complete: impl FnOnce(&mut Call), out: &mut impl FnMut(Box<Call>)) {
        let Some(held) = self.threads.get_mut(&ticket.tid) else { return };
        if let Some(held) = held.iter_mut().find(|held| held.waits.is_some_and(|waits| waits.number == ticket.number)) {
            held.waits = None;
            complete(&mut held.call);
        }
        self.advance(ticket.tid, out);
    }

    /// Lets go of those whose time is over; returns the receives that waited in vain.
    pub fn expire(&mut self, now: Instant, out: &mut impl FnMut(Box<Call>)) -> Vec<Ticket> {
        let mut given_up = Vec::new();
        while let Some((deadline, ticket)) = self.deadlines.front().copied()
            && deadline <= now
        {
            self.deadlines.pop_front();
            if is_waiting(&self.threads, &ticket) {
                given_up.push(ticket);
                self.settle(&ticket, |_| {}, out);
            }
        }
        given_up
    }

    /// When the first of those that wait is to be let go.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Messages received so far that left without what is known of their send.
    pub fn unlinked(&self) -> u64 {
        self.unlinked
    }

    /// How many calls are held.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.total
    }

    /// Lets all calls of these threads go.
    fn give_up(&mut self, tids: &[u32], given_up: &mut Vec<Ticket>, out: &mut impl FnMut(Box<Call>)) {
        for tid in tids {
            let held = self.threads.get_mut(tid).into_iter().flatten();
            given_up.extend(held.filter_map(|held| held.waits.take()));
            self.advance(*tid, out);
        }
    }

    /// Passes on what need not wait, in order.
    fn advance(&mut self, tid: u32, out: &mut impl FnMut(Box<Call>)) {
        let Some(held) = self.threads.get_mut(&tid) else { return };
        while held.front().is_some_and(|held| held.waits.is_none())
            && let Some(HeldCall { call, .. }) = held.pop_front()
        {
            self.total -= 1;
            if let Some(count) = self.of_process.get_mut(&call.image.pid) {
                *count -= 1;
                if *count == 0 {
                    self.of_process.remove(&call.image.pid);
                }
            }
            pass(call, &mut self.unlinked, out);
        }
        if held.is_empty() {
            self.threads.remove(&tid);
        }
    }
}

fn is_waiting(threads: &HashMap<u32, VecDeque<HeldCall>>, ticket: &Ticket) -> bool {
    threads.get(&ticket.tid).is_some_and(|held| held.iter().any(|held| held.waits.as_ref() == Some(ticket)))
}

fn pass(call: Box<Call>, unlinked: &mut u64, out: &mut impl FnMut(Box<Call>)) {
    let is_unlinked = matches!(call.args, Args::Receive(message) if call.ret >= 0 && message.wait_ns.is_none());
    *unlinked += u64::from(is_unlinked && !call.filtered);
    out(call);
}
