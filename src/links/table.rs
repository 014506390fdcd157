//! The queues that are followed, by whom: a process that uses more of them, or leaves more messages in them, than there
//! is room for, pays itself. Pure code.

use std::collections::VecDeque;

use foldhash::HashMap;

use super::held::Ticket;
use super::history::History;
use crate::model::call::QueueKey;
use crate::model::reading::QueueHeads;

/// So many queues are followed at most.
pub const QUEUES: usize = 4096;
/// So many messages and receives are kept of all of them: as many as the kernel lets one queue hold (HARD_MSGMAX).
pub const KEPT: usize = 65_536;

#[derive(Debug)]
struct Followed {
    /// The process whose call was the first to be seen.
    owner: u32,
    history: History,
}

/// What a process has us keep.
#[derive(Debug, Default)]
struct ProcessShare {
    /// In the order in which they were first seen.
    queues: VecDeque<QueueKey>,
    kept: usize,
}

/// The queues by key.
#[derive(Debug, Default)]
pub struct QueueTable {
    queues: HashMap<QueueKey, Followed>,
    shares: HashMap<u32, ProcessShare>,
    kept: usize,
}

impl QueueTable {
    /// The history of a queue, made where there is none yet. Returns the receives too that waited for a queue which had
    /// to make room.
    pub fn enter(&mut self, key: QueueKey, owner: u32, new: impl FnOnce() -> History) -> (&mut History, Vec<Ticket>) {
        let mut given_up = Vec::new();
        if self.queues.len() >= QUEUES && !self.queues.contains_key(&key) {
            given_up = self.evict(|share| share.queues.len());
        }
        let followed = self.queues.entry(key).or_insert_with(|| {
            self.shares.entry(owner).or_default().queues.push_back(key);
            Followed { owner, history: new() }
        });
        (&mut followed.history, given_up)
    }

    /// The history of a queue.
    pub fn get(&mut self, key: &QueueKey) -> Option<&mut History> {
        self.queues.get_mut(key).map(|followed| &mut followed.history)
    }

    /// What the calls seen leave in the queues, where it is certain which message would be received next.
    pub fn heads(&self) -> QueueHeads {
        self.queues.iter().filter_map(|(key, followed)| Some((*key, followed.history.head()?))).collect()
    }

    /// The history of a queue kept `before` so much, and has changed. Returns the receives that waited for queues which
    /// had to make room.
    pub fn changed(&mut self, key: &QueueKey, before: usize) -> Vec<Ticket> {
        let Some(followed) = self.queues.get(key) else { return Vec::new() };
        let after = followed.history.room();
        if let Some(share) = self.shares.get_mut(&followed.owner) {
            share.kept = share.kept + after - before;
        }
        self.kept = self.kept + after - before;
        let mut given_up = Vec::new();
        while self.kept > KEPT {
            given_up.append(&mut self.evict(|share| share.kept));
        }
        given_up
    }

    /// Forgets the oldest queue of the process that takes most.
    fn evict(&mut self, takes: impl Fn(&ProcessShare) -> usize) -> Vec<Ticket> {
        let most = self.shares.iter().max_by_key(|(_, share)| takes(share)).map(|(owner, _)| *owner);
        let Some((owner, share)) = most.and_then(|owner| Some((owner, self.shares.get_mut(&owner)?))) else {
            return Vec::new();
        };
        let oldest = share.queues.pop_front().and_then(|key| self.queues.remove(&key));
        let kept = oldest.as_ref().map_or(0, |followed| followed.history.room());
        share.kept -= kept;
        self.kept -= kept;
        if share.queues.is_empty() {
            self.shares.remove(&owner);
        }
        oldest.map_or_else(Vec::new, |followed| followed.history.tickets().collect())
    }

    /// How many queues there are, and how much is kept of them.
    #[cfg(test)]
    pub fn size(&self) -> (usize, usize) {
        (self.queues.len(), self.kept)
    }
}
