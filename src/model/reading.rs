//! What the kernel side shows of metrics: the values added to each series, the state of each queue, and who waits. Pure
//! code.

use std::collections::HashMap;
use std::sync::Arc;

use super::buckets::BUCKETS;
use super::call::{ImageKey, QueueKey};
use super::cause::Cause;
use super::values::Op;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// How long a call took, in ns.
    Duration,
    /// How long a received message lay in the queue, in ns.
    Wait,
    /// The size of a message that was passed, in bytes.
    Size,
}

/// A histogram as the kernel side keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    /// Of all values.
    pub sum: u64,
    /// How many values were 0.
    pub zeros: u64,
    /// How many values fell into each bucket.
    pub buckets: Box<[u32; BUCKETS]>,
}

impl Points {
    /// No value.
    pub fn none() -> Self {
        Self { sum: 0, zeros: 0, buckets: Box::new([0; BUCKETS]) }
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.zeros + self.buckets.iter().copied().map(u64::from).sum::<u64>()
    }
}

/// What was added to one series since it was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Who made the calls; None for those that found no room for a series of their own.
    pub image: Option<ImageKey>,
    /// The number of the queue's name; 0: none.
    pub name: u64,
    /// The ipc namespace.
    pub ipc_ns: u32,
    /// The positive errno of failures; 0: the calls succeeded.
    pub errno: i32,
    /// Why they failed, where that is known.
    pub cause: Option<Cause>,
    /// What is measured.
    pub measure: Measure,
    /// Which call.
    pub op: Op,
    /// The thread's name where a filter asks for it, else empty.
    pub comm: Vec<u8>,
    /// The values.
    pub points: Points,
}

/// A queue by what programs call it: its ipc namespace's number, and its name with its slash.
pub type QueueName = (u32, Arc<str>);

/// A queue among all that are there now: its ipc namespace's number, and its inode's.
pub type QueueId = (u32, u64);

/// What is left of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueLife {
    /// It has its name.
    Named,
    /// Its name is gone, or another queue's by now: only descriptors keep it.
    Unlinked,
    /// Nothing: its last name and descriptor are gone.
    Ended,
}

/// What the kernel side keeps of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReading {
    /// Which queue.
    pub key: QueueKey,
    /// The number of its name.
    pub name: u64,
    /// Its ipc namespace.
    pub ipc_ns: u32,
    /// The most messages it holds.
    pub maxmsg: i64,
    /// The messages in it when the last call on it ended.
    pub depth: i64,
    /// The most messages that were in it since the collection before; None where no call reached it since then.
    pub peak: Option<i64>,
    /// What is left of it.
    pub life: QueueLife,
    /// Whether a call that passed the filters on whose calls reached it.
    pub matched: bool,
    /// What a look at it showed.
    pub look: Option<QueueSight>,
}

/// What a look at a queue shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSight {
    /// The messages in it.
    pub depth: i64,
    /// Whether its name is gone, so that only descriptors keep it.
    pub unlinked: bool,
    /// Whether no send and no receive was under way, where they are counted: their records say what they did.
    pub at_rest: [bool; 2],
    /// When it was looked at, CLOCK_MONOTONIC in ns.
    pub at_ns: u64,
    /// Since when the message that would be received next has been in it; None where the kernel side has not seen that.
    pub oldest_since_ns: Option<u64>,
}

impl QueueSight {
    /// How long the message that would be received next has been in it, in ns: 0 where there is none; by what the records
    /// of its calls leave in it where the kernel side has not seen it; None where nothing shows it.
    pub fn oldest_ns(&self, left: Option<&QueueHead>) -> Option<u64> {
        let [no_send, no_receive] = self.at_rest;
        // What was taken unseen shows by the depth, unless a send that is under way has made up for it.
        let is_right = |left: &&QueueHead| no_receive && (no_send || !left.has_unseen) && left.depth == self.depth;
        let left = left.filter(is_right).map(|left| left.since_ns);
        match self.depth {
            0 => Some(0),
            _ => self.oldest_since_ns.or(left).map(|since| self.at_ns.saturating_sub(since)),
        }
    }
}

/// What the records of the calls on a queue leave in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueHead {
    /// When the send of the message that would be received next had ended, CLOCK_MONOTONIC in ns.
    pub since_ns: u64,
    /// The messages.
    pub depth: i64,
    /// Whether someone may have taken messages unseen.
    pub has_unseen: bool,
}

/// Of the queues where that is certain.
pub type QueueHeads = HashMap<QueueKey, QueueHead>;

/// What became of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// It is there.
    There(QueueSight),
    /// Its last name and descriptor are gone, maybe with its namespace.
    Ended,
    /// The kernel can't be asked.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents an age from being told that nothing shows, of another message, or for a queue without any.
    #[test]
    fn ages() {
        let seen = |depth, at_rest, oldest_since_ns| QueueSight {
            depth,
            unlinked: false,
            at_rest,
            at_ns: 100,
            oldest_since_ns,
        };
        let (neither, receives, both) = ([false, false], [false, true], [true, true]);
        let left = QueueHead { since_ns: 40, depth: 3, has_unseen: false };
        let unseen = QueueHead { has_unseen: true, ..left };
        for (sight, head, expected) in [
            (seen(0, neither, None), None, Some(0)),
            (seen(3, neither, Some(70)), None, Some(30)),
            (seen(3, both, None), None, None),
            (seen(3, both, None), Some(&left), Some(60)),
            (seen(3, both, None), Some(&unseen), Some(60)),
            (seen(3, receives, None), Some(&left), Some(60)),
            (seen(3, receives, None), Some(&unseen), None),
            (seen(2, both, None), Some(&left), None),
            (seen(3, [true, false], None), Some(&left), None),
            (seen(3, neither, Some(170)), None, Some(0)),
        ] {
            assert_eq!(sight.oldest_ns(head), expected, "{sight:?}, {head:?}");
        }
    }
}
