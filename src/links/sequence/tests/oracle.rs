//! Every order in which the calls of a short history can have taken effect, tried one after the other: whether a receive
//! can have got another message than the one that it was linked to. Knows nothing of how links are inferred.

use std::collections::HashSet;
use std::ops::Range;

use crate::model::call::{Args, Call, Message};

/// A call that has passed a message, or that is under way and may have.
struct Event<'a> {
    side: usize,
    number: u64,
    /// None: under way.
    record: Option<(&'a Call, Message)>,
}

/// A message in the queue: its priority and the event that sent it.
type InQueue = (u32, usize);

pub struct Oracle<'a> {
    events: Vec<Event<'a>>,
    priorities: u32,
    /// The receive in question and the send that it is linked to.
    link: (u64, u64),
    tried: HashSet<(u32, Vec<InQueue>)>,
}

fn passed(call: &Call) -> (usize, Message) {
    match call.args {
        Args::Send(message) => (0, message),
        Args::Receive(message) => (1, message),
        _ => unreachable!(),
    }
}

impl<'a> Oracle<'a> {
    /// `records` since the queue was empty; `link`: the numbers of a receive, and of the message that its link says.
    pub fn new(records: &'a [Call], priorities: u32, link: (u64, u64)) -> Self {
        let known: Vec<_> = records.iter().map(|call| (passed(call), call)).collect();
        let mut events = Vec::new();
        for side in [0, 1] {
            let begun = known.iter().map(|((_, message), _)| message.turn.begun[side]).max().unwrap_or(0);
            for number in 1..=begun {
                let is_it =
                    |((of, message), _): &&((usize, Message), &Call)| (*of, message.turn.number) == (side, number);
                match known.iter().find(is_it) {
                    None => events.push(Event { side, number, record: None }),
                    Some(((_, message), call)) if call.ret >= 0 => {
                        events.push(Event { side, number, record: Some((call, *message)) });
                    }
                    Some(_) => {}
                }
            }
        }
        Self { events, priorities, link, tried: HashSet::new() }
    }

    /// Whether the receive can have got another message.
    pub fn allows_another(&mut self) -> bool {
        assert!(self.events.len() <= 32);
        self.search(0, &mut Vec::new(), false)
    }

    /// `done`: a bit for each event that has taken effect; `is_other`: the receive got another message.
    fn search(&mut self, done: u32, queue: &mut Vec<InQueue>, is_other: bool) -> bool {
        let is_left = |(at, event): (usize, &Event<'_>)| event.record.is_some() && done & 1 << at == 0;
        if is_other && !self.events.iter().enumerate().any(is_left) {
            return true;
        }
        if !self.tried.insert((done | u32::from(is_other) << 31, queue.clone())) {
            return false;
        }
        for at in 0..self.events.len() {
            if done & 1 << at != 0 || !self.may_be_next(at, done) {
                continue;
            }
            let Event { side, number, record } = self.events[at];
            if side == 0 {
                let priorities = match record {
                    Some((_, message)) => message.priority.unwrap()..message.priority.unwrap() + 1,
                    None => self.possible(number),
                };
                for priority in priorities {
                    queue.push((priority, at));
                    if self.search(done | 1 << at, queue, is_other) {
                        return true;
                    }
                    queue.pop();
                }
                continue;
            }
            let Some(highest) = queue.iter().map(|(priority, _)| *priority).max() else { continue };
            let first = queue.iter().position(|(priority, _)| *priority == highest).unwrap();
            let got = &self.events[queue[first].1];
            let fits = record.is_none_or(|(call, message)| {
                let has_size = got.record.is_none_or(|(_, sent)| sent.size == call.ret.cast_unsigned());
                message.priority.is_none_or(|priority| priority == highest) && has_size
            });
            if !fits {
                continue;
            }
            let sent = got.record.map(|(call, _)| u64::from_ne_bytes(call.ids.span));
            let is_linked = number == self.link.0;
            if is_linked && sent == Some(self.link.1) {
                // The link is right in this order.
                continue;
            }
            let taken = queue.remove(first);
            if self.search(done | 1 << at, queue, is_other || is_linked) {
                return true;
            }
            queue.insert(first, taken);
        }
        false
    }

    /// The priorities that a send which is under way can have.
    fn possible(&self, number: u64) -> Range<u32> {
        let passed = self.events.iter().filter_map(|event| event.record).map(|(_, message)| message.turn);
        let only = passed.filter(|turn| turn.begun[0] >= number).find_map(|turn| turn.only_priority);
        only.map_or(0..self.priorities, |only| only..only + 1)
    }

    /// Whether everything that had surely ended when this one began has taken effect.
    fn may_be_next(&self, at: usize, done: u32) -> bool {
        let next = &self.events[at];
        self.events.iter().enumerate().all(|(other, event)| {
            let is_before = event.record.is_some_and(|(_, message)| message.turn.begun[next.side] < next.number);
            !is_before || done & 1 << other != 0
        })
    }
}
