//! What happened on a queue since it was surely empty, and which receive got the message of which send where only one
//! pairing is possible. A queue is a FIFO for each priority; a call takes effect at a moment between its entry and its
//! exit. So of the messages of a priority, those that the first k receives got are the first k: what has to be certain
//! is which receives these are, and in which order.
//!
//! - A receive got one of the messages whose send had begun when it ended. Where k receives ended before more than k
//!   sends had begun, these got the first k, whoever else waits or takes messages unseen.
//! - A receive comes before another that began after it had ended. Where k receives had ended before any other began,
//!   those under way included, these got the first k: unless someone takes messages unseen.
//! - A send is in its place where every other of its priority had ended when it began, or began when it had ended.
//!
//! Each is a sufficient condition that costs little; what they leave open has no link. Pure code.

use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;

use super::held::Ticket;
use super::records::Records;
use crate::model::call::Ids;
use crate::model::reading::QueueHead;

/// So many receives of a queue are kept whose messages are not told apart: each is looked at with each call.
pub const OPEN: usize = 16;
/// So many calls of a queue are kept that may have come after it was surely empty: the record that says so is that of
/// the first of them, which in a pool of waiting receivers is long under way.
pub const BEFORE_TRUST: usize = 64;

/// The messages of one priority take the room of so many more.
const LANE: usize = 4;

/// The records of one place: of sends, of receives.
pub type Sides = [Records; 2];

/// A message that was sent.
#[derive(Clone, Copy, Debug)]
pub struct SentMessage {
    /// Of its send.
    pub number: u64,
    /// Sends that had begun when its send ended.
    pub begun: u64,
    /// Of its send's span.
    pub ids: Ids,
    /// The sending thread's name.
    pub comm: [u8; 16],
    /// When its send ended, CLOCK_MONOTONIC in ns.
    pub left_ns: u64,
    /// Its bytes.
    pub size: u64,
    /// Whether its send has a record.
    pub is_kept: bool,
}

/// A receive that got a message.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// Its own.
    pub number: u64,
    /// Sends and receives that had begun when it ended.
    pub begun: [u64; 2],
    /// The bytes that it got.
    pub size: u64,
    /// It waits to be linked; None where it does not any more.
    pub ticket: Option<Ticket>,
}

/// Something disagrees with the calls seen.
#[derive(Debug)]
pub struct Contradiction;

/// A receive that need not wait any more, and the message that it got where that is certain.
pub type Settled = (Ticket, Option<SentMessage>);

/// The messages of one priority.
#[derive(Debug, Default)]
struct Lane {
    /// Of those that no receive is known to have got, in the order of their sends' numbers.
    sent: VecDeque<SentMessage>,
    /// Receives of these, in the order of their numbers.
    receipts: Vec<Receipt>,
    /// A send up to this number may be that of a message which was received in the place of another.
    blurred: u64,
}

/// A queue.
#[derive(Debug)]
pub struct History {
    /// By priority. The only one stays when it is empty: most queues have one, and need it again at once.
    lanes: BTreeMap<u32, Lane>,
    /// Those that have receipts: as many as receipts are kept at most.
    open: Vec<u32>,
    /// Receives that did not ask for the priority, until it is certain.
    unplaced: Vec<Receipt>,
    /// As that of lanes, for those that are gone.
    blurred: u64,
    /// All sends and receives after these numbers are known here.
    from: [u64; 2],
    /// Whether the queue was surely empty then.
    is_trusted: bool,
    /// Someone may take messages unseen, or may have until these numbers.
    has_unseen: bool,
    unseen_until: Option<[u64; 2]>,
    losses: [u32; 2],
    /// Messages and receipts that are kept.
    sent: usize,
    received: usize,
}

impl History {
    /// A queue of which nothing is known before these numbers. `has_unseen`: someone may have taken messages unseen.
    pub fn new(sides: &Sides, losses: [u32; 2], has_unseen: bool) -> Self {
        Self {
            lanes: BTreeMap::new(),
            open: Vec::new(),
            unplaced: Vec::new(),
            blurred: 0,
            from: sides.each_ref().map(Records::highest),
            is_trusted: false,
            has_unseen,
            unseen_until: None,
            losses,
            sent: 0,
            received: 0,
        }
    }

    /// How many messages and receipts are kept.
    fn len(&self) -> usize {
        self.sent + self.received
    }

    /// The room that what is kept takes, in that of messages: those of a priority of their own take more.
    pub fn room(&self) -> usize {
        self.len() + LANE * self.lanes.len()
    }

    /// Whether links can be told.
    pub fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// The receives that wait.
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        let receipts = self.lanes.values().flat_map(|lane| &lane.receipts).chain(&self.unplaced);
        receipts.filter_map(|receipt| receipt.ticket)
    }

    /// Forgets everything: the queue has to be surely empty before there are links again. Calls that began up to now do
    /// not count for that.
    pub fn distrust(&mut self, sides: &Sides, settled: &mut Vec<Settled>) {
        settled.extend(self.tickets().map(|ticket| (ticket, None)));
        *self = Self::new(sides, self.losses, self.has_unseen);
    }

    /// Calls without a number until now: sends that may have added a message, receives that may have taken one.
    pub fn lost(&mut self, losses: [u32; 2], sides: &Sides, settled: &mut Vec<Settled>) {
        let [sends, receives] = [0, 1].map(|side| losses[side] != self.losses[side]);
        self.losses = losses;
        if receives {
            self.unseen_until = Some(sides.each_ref().map(Records::highest));
        }
        if sends {
            self.distrust(sides, settled);
        }
    }

    /// Whether someone may take messages unseen now. What they took may still show in records that are late.
    pub fn watch(&mut self, has_unseen: bool, sides: &Sides) {
        if self.has_unseen && !has_unseen {
            self.unseen_until = Some(sides.each_ref().map(Records::highest));
        }
        self.has_unseen = has_unseen;
    }

    /// When so many sends and receives had begun, the queue was empty and no call on it under way.
    pub fn was_empty(&mut self, at: [u64; 2], settled: &mut Vec<Settled>) {
        if at[0] < self.from[0] || at[1] < self.from[1] {
            return;
        }
        let mut gone = Vec::new();
        for lane in self.lanes.values_mut() {
            lane.sent.retain(|sent| sent.number > at[0]);
            gone.extend(lane.receipts.extract_if(.., |receipt| receipt.number <= at[1]));
        }
        gone.extend(self.unplaced.extract_if(.., |receipt| receipt.number <= at[1]));
        settled.extend(gone.into_iter().filter_map(|receipt| receipt.ticket).map(|ticket| (ticket, None)));
        let is_only = self.lanes.len() == 1;
        self.lanes.retain(|_, lane| is_only || !lane.is_empty());
        self.open.retain(|priority| self.lanes.get(priority).is_some_and(|lane| !lane.receipts.is_empty()));
        self.sent = self.lanes.values().map(|lane| lane.sent.len()).sum();
        self.received = self.lanes.values().map(|lane| lane.receipts.len()).sum::<usize>() + self.unplaced.len();
        (self.from, self.is_trusted) = (at, true);
        self.unseen_until = self.unseen_until.filter(|until| at[0] < until[0] || at[1] < until[1]);
    }

    /// Whether a depth is what the calls leave.
    pub fn agrees(&self, depth: i64) -> bool {
        usize::try_from(depth).is_ok_and(|depth| depth + self.received == self.sent)
    }

    /// What the calls seen leave in the queue, where it is certain which message would be received next. Calls under way may
    /// have added and taken others.
    pub fn head(&self) -> Option<QueueHead> {
        let lane = self.lanes.values().rev().find(|lane| !lane.sent.is_empty());
        let lane = lane.filter(|_| self.is_trusted && self.received == 0)?;
        let first = lane.sent.front()?;
        let comes_alone = lane.sent.get(1).is_none_or(|next| next.number > first.begun);
        let is_certain = first.number > lane.blurred && comes_alone;
        let (depth, has_unseen) = (i64::try_from(self.sent).ok()?, self.has_unseen || self.unseen_until.is_some());
        is_certain.then_some(QueueHead { since_ns: first.left_ns, depth, has_unseen })
    }

    /// A message was sent.
    pub fn sent(&mut self, priority: u32, message: SentMessage) {
        if message.number > self.from[0] {
            let lane = self.lane(priority);
            let at = lane.sent.partition_point(|sent| sent.number < message.number);
            lane.sent.insert(at, message);
            self.sent += 1;
        }
    }

    /// A message was received, of this priority where that is known.
    pub fn received(&mut self, priority: Option<u32>, receipt: Receipt, settled: &mut Vec<Settled>) {
        if receipt.number <= self.from[1] {
            settled.extend(receipt.ticket.map(|ticket| (ticket, None)));
            return;
        }
        self.received += 1;
        match priority {
            None => insert(&mut self.unplaced, receipt),
            Some(priority) => self.place_in(priority, receipt),
        }
    }

    fn lane(&mut self, priority: u32) -> &mut Lane {
        let blurred = self.blurred;
        self.lanes.entry(priority).or_insert_with(|| Lane { blurred, ..Lane::default() })
    }

    fn place_in(&mut self, priority: u32, receipt: Receipt) {
        insert(&mut self.lane(priority).receipts, receipt);
        if !self.open.contains(&priority) {
            self.open.push(priority);
        }
    }

    /// A receive waits no more.
    pub fn give_up(&mut self, ticket: &Ticket) {
        let receipts = self.lanes.values_mut().flat_map(|lane| &mut lane.receipts).chain(&mut self.unplaced);
        for receipt in receipts.filter(|receipt| receipt.ticket.as_ref() == Some(ticket)) {
            receipt.ticket = None;
        }
    }

    /// Finds what is certain by now.
    pub fn settle(&mut self, sides: &Sides, settled: &mut Vec<Settled>) -> Result<(), Contradiction> {
        if !self.is_trusted {
            // What came since may be part of a history whose beginning comes with a record that is late.
            return if self.len() > BEFORE_TRUST { Err(Contradiction) } else { Ok(()) };
        }
        self.place(sides)?;
        let first_unplaced = self.unplaced.first().map(|receipt| receipt.number);
        let others = Others { sides, has_unseen: self.has_unseen || self.unseen_until.is_some(), first_unplaced };
        let mut at = 0;
        while let Some(priority) = self.open.get(at).copied() {
            let Some(lane) = self.lanes.get_mut(&priority) else { return Err(Contradiction) };
            while let Some(count) = lane.settle(&others, settled)? {
                self.sent -= count;
                self.received -= count;
            }
            match lane.receipts.is_empty() {
                true => _ = self.open.swap_remove(at),
                false => at += 1,
            }
            if lane.is_empty() && self.lanes.len() > 1 {
                // A send that comes late must find it.
                let blurred = self.lanes.remove(&priority).map_or(0, |lane| lane.blurred);
                self.blurred = blurred.max(self.blurred);
            }
        }
        if self.received > OPEN { Err(Contradiction) } else { Ok(()) }
    }

    /// Finds the priority of receives that did not ask for it: where all messages that can have been there are of one.
    fn place(&mut self, sides: &Sides) -> Result<(), Contradiction> {
        while let Some(receipt) = self.unplaced.first().copied()
            && sides[0].are_complete_until(receipt.begun[0])
        {
            let was_there = |lane: &Lane| lane.sent.front().is_some_and(|sent| sent.number <= receipt.begun[0]);
            let mut lanes = self.lanes.iter().filter(|(_, lane)| was_there(lane)).map(|(priority, _)| *priority);
            let (Some(priority), None) = (lanes.next(), lanes.next()) else { return Err(Contradiction) };
            self.place_in(priority, receipt);
            self.unplaced.remove(0);
        }
        Ok(())
    }
}

/// By number.
fn insert(receipts: &mut Vec<Receipt>, receipt: Receipt) {
    let at = receipts.partition_point(|other| other.number < receipt.number);
    receipts.insert(at, receipt);
}

/// What else may have happened on the queue.
struct Others<'a> {
    sides: &'a Sides,
    has_unseen: bool,
    first_unplaced: Option<u64>,
}

impl Others<'_> {
    /// Whether every receive that began up to this number is known, with its priority.
    fn are_known_until(&self, number: u64) -> bool {
        !self.has_unseen
            && self.first_unplaced.is_none_or(|first| first > number)
            && self.sides[1].are_complete_until(number)
    }
}

/// How certain it is that a send is in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Certainty {
    Sure,
    /// A record that is still to come decides.
    Open,
    Never,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.receipts.is_empty()
    }

    /// Takes out the fewest receives that surely got the first messages, and these; returns how many, if any.
    fn settle(&mut self, others: &Others<'_>, settled: &mut Vec<Settled>) -> Result<Option<usize>, Contradiction> {
        let by_count = self.first_by_count(others)?;
        let by_order = self.first_by_order(others);
        let Some(count) = [by_count, by_order].into_iter().flatten().min() else { return Ok(None) };
        if count > self.sent.len() {
            return Ok(None);
        }
        let sends = &others.sides[0];
        let (sent, blurred) = (&self.sent, self.blurred);
        // In the order of their numbers; by count others may stand between them.
        let is_first = |receipt: &Receipt| {
            Some(count) == by_order && receipt.number <= self.receipts[count - 1].number
                || Some(count) == by_count && most_before(sent, sends, receipt).is_some_and(|most| most <= count)
        };
        let first: SmallVec<[Receipt; 2]> = self.receipts.iter().copied().filter(is_first).collect();
        if first.len() != count {
            return Err(Contradiction);
        }
        let mut found: SmallVec<[Settled; 2]> = SmallVec::new();
        for (at, receipt) in first.iter().enumerate() {
            let comes_alone = first[..at].iter().all(|other| other.begun[1] < receipt.number)
                && first.get(at + 1).is_none_or(|next| receipt.begun[1] < next.number);
            // Its place among them is certain, or may yet be.
            let certainty = match comes_alone {
                true => certainty(sent, at, blurred, sends),
                false if sends.are_complete_until(receipt.begun[0]) => Certainty::Never,
                false => Certainty::Open,
            };
            if certainty == Certainty::Open && receipt.ticket.is_some() {
                return Ok(None);
            }
            let message = (certainty == Certainty::Sure).then_some(sent[at]);
            if message.is_some_and(|message| message.size != receipt.size) {
                return Err(Contradiction);
            }
            found.extend(receipt.ticket.map(|ticket| (ticket, message)));
        }
        settled.extend(found);
        self.receipts.retain(|receipt| first.iter().all(|first| first.number != receipt.number));
        let gone = self.sent.drain(..count).map(|sent| sent.begun).max();
        self.blurred = self.blurred.max(gone.unwrap_or(0));
        Ok(Some(count))
    }

    /// How many receives, at least, ended before more sends had begun than they are.
    fn first_by_count(&self, others: &Others<'_>) -> Result<Option<usize>, Contradiction> {
        let sends = &others.sides[0];
        let most = self.receipts.iter().filter_map(|receipt| most_before(&self.sent, sends, receipt));
        let mut most: SmallVec<[usize; OPEN]> = most.collect();
        most.sort_unstable();
        let mut first = None;
        for (at, most) in most.into_iter().enumerate() {
            match most {
                most if most <= at => return Err(Contradiction),
                most if most == at + 1 => first = first.or(Some(most)),
                _ => {}
            }
        }
        Ok(first)
    }

    /// How many receives, at least, had ended before any other began.
    fn first_by_order(&self, others: &Others<'_>) -> Option<usize> {
        let mut begun = 0;
        for (at, receipt) in self.receipts.iter().enumerate() {
            begun = receipt.begun[1].max(begun);
            if !others.are_known_until(begun) {
                return None;
            }
            if self.receipts.get(at + 1).is_none_or(|next| next.number > begun) {
                return Some(at + 1);
            }
        }
        None
    }
}

/// How many messages of the lane can have been sent before a receive ended; None where that is not known.
fn most_before(sent: &VecDeque<SentMessage>, sends: &Records, receipt: &Receipt) -> Option<usize> {
    let known = sent.partition_point(|sent| sent.number <= receipt.begun[0]);
    Some(known + sends.missing_until(receipt.begun[0])?)
}

/// Whether the message at this place is the one that was sent in it.
fn certainty(sent: &VecDeque<SentMessage>, at: usize, blurred: u64, sends: &Records) -> Certainty {
    let message = sent[at];
    let overlaps = message.number <= blurred
        || sent.iter().take(at).any(|other| other.begun >= message.number)
        || sent.get(at + 1).is_some_and(|next| next.number <= message.begun);
    match overlaps {
        true => Certainty::Never,
        false if sends.are_complete_until(message.begun) => Certainty::Sure,
        false => Certainty::Open,
    }
}
