//! The queue before an output, bounded in bytes for each signal. Calls wait for room where theirs is the only output for
//! calls, so that the pressure reaches the kernel's ring, and are dropped and counted where there are others. Metrics
//! never wait: a newer cumulative point takes the place of one that still waits. What is being sent still counts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::batch::Encoding;
use super::ledger::{Outcome, Share, Stage};
use super::metrics::{self, points};
use super::spool::thin::Newest;
use crate::model::values::Signal;

/// Room is counted in units of so many bytes.
const UNIT: usize = 256;

/// What an output gets: a whole OTLP request, or lines.
#[derive(Debug)]
pub struct Request {
    /// What it carries.
    pub signal: Signal,
    /// As it goes out, before compression.
    pub body: Bytes,
    /// The records in it.
    pub share: Share,
}

/// Who made metrics: what one made does not stand for what the other did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Those of calls and queues.
    Calls,
    /// mqspan's own.
    Own,
}

/// What a call's request does where there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits: this is the only output for calls.
    Wait,
    /// It is lost to this output.
    Drop,
}

/// A request with its room in the queue.
#[derive(Debug)]
pub struct Queued {
    /// The request.
    pub request: Request,
    /// For metrics, who made them.
    origin: Option<Origin>,
    room: OwnedSemaphorePermit,
}

impl Queued {
    /// Counts what became of it; its room is free again.
    pub fn settle(self, outcome: Outcome) {
        self.request.share.settle(outcome);
    }
}

/// What both ends share.
#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Queued>,
    /// Queues that may still add to them.
    producers: usize,
    /// The other end takes no more.
    is_closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The producers' end.
#[derive(Debug)]
pub struct OutputQueue {
    room: Arc<Semaphore>,
    units: usize,
    shared: Arc<Shared>,
    runtime: Handle,
}

impl Clone for OutputQueue {
    fn clone(&self) -> Self {
        self.shared.lock().producers += 1;
        let Self { room, units, shared, runtime } = self;
        Self { room: room.clone(), units: *units, shared: shared.clone(), runtime: runtime.clone() }
    }
}

impl Drop for OutputQueue {
    fn drop(&mut self) {
        self.shared.lock().producers -= 1;
        self.shared.changed.notify_one();
    }
}

impl OutputQueue {
    /// A queue that holds about as many bytes, and its other end.
    pub fn new(bytes: usize, runtime: Handle) -> (Self, Requests) {
        let shared = Arc::new(Shared::default());
        shared.lock().producers = 1;
        let units = bytes.div_ceil(UNIT);
        let room = Arc::new(Semaphore::new(units));
        (Self { room, units, shared: shared.clone(), runtime }, Requests(shared))
    }

    /// Another queue with the same other end and as much room of its own: what fills this one does not fill that.
    pub fn beside(&self) -> Self {
        let mut beside = self.clone();
        beside.room = Arc::new(Semaphore::new(self.units));
        beside
    }

    fn units_of(&self, body: &Bytes) -> u32 {
        body.len().div_ceil(UNIT).clamp(1, self.units) as u32
    }

    /// Adds a request of calls. Once the queue is shut, or its other end gone, the request is dropped: it counts as
    /// lost. Not to be called on the runtime's own threads.
    pub fn enqueue(&self, request: Request, when_full: WhenFull) {
        let units = self.units_of(&request.body);
        let room = match self.room.clone().try_acquire_many_owned(units) {
            Ok(room) => room,
            Err(_) if self.room.is_closed() => return,
            Err(_) if when_full == WhenFull::Drop => return request.share.settle(Outcome::Lost(Stage::Queue)),
            Err(_) => match self.runtime.block_on(self.room.clone().acquire_many_owned(units)) {
                Ok(room) => room,
                Err(_) => return,
            },
        };
        self.add(Queued { request, origin: None, room });
    }

    /// Adds metrics, without waiting. `newest` are the cumulative points of their collection: those that wait for the
    /// same streams are superseded. What finds no room then is lost at [`Stage::Queue`].
    pub fn enqueue_metrics(&self, origin: Origin, encoding: Encoding, newest: &Newest, requests: Vec<Request>) {
        if !newest.is_empty() {
            self.supersede(origin, encoding, newest);
        }
        for request in requests {
            match self.room.clone().try_acquire_many_owned(self.units_of(&request.body)) {
                Ok(room) => self.add(Queued { request, origin: Some(origin), room }),
                Err(_) if self.room.is_closed() => {}
                Err(_) => request.share.settle(Outcome::Lost(Stage::Queue)),
            }
        }
    }

    fn add(&self, queued: Queued) {
        let mut waiting = self.shared.lock();
        if !waiting.is_closed {
            waiting.requests.push_back(queued);
            self.shared.changed.notify_one();
        }
    }

    fn supersede(&self, origin: Origin, encoding: Encoding, newest: &Newest) {
        let mut waiting = self.shared.lock();
        let earlier = std::mem::take(&mut waiting.requests);
        for mut queued in earlier {
            let decoded = (queued.origin == Some(origin)).then(|| metrics::decode(encoding, &queued.request.body));
            if let Some(mut decoded) = decoded.flatten() {
                let before = points(&decoded);
                newest.replace(&mut decoded);
                let left = points(&decoded);
                if left == 0 {
                    queued.settle(Outcome::Superseded);
                    continue;
                }
                if left < before {
                    queued.request.share.supersede(before - left);
                    queued.request.body = metrics::encode(encoding, &decoded).into();
                    let needed = self.units_of(&queued.request.body) as usize;
                    // What it needs no more is free again.
                    drop(queued.room.num_permits().checked_sub(needed).and_then(|spare| queued.room.split(spare)));
                }
            }
            waiting.requests.push_back(queued);
        }
    }

    /// Whether metrics that were enqueued before still wait.
    pub fn is_waiting(&self, origin: Origin) -> bool {
        self.shared.lock().requests.iter().any(|queued| queued.origin == Some(origin))
    }

    /// What shuts the queue: nobody waits for room any more. It does not keep the queue from ending.
    pub fn shutter(&self) -> impl Fn() + Send + use<> {
        let room = self.room.clone();
        move || room.close()
    }
}

/// The output's end.
#[derive(Debug)]
pub struct Requests(Arc<Shared>);

impl Requests {
    /// The oldest request, None once the queue has ended. Nothing is lost where the wait is dropped.
    pub async fn recv(&mut self) -> Option<Queued> {
        loop {
            {
                let mut waiting = self.0.lock();
                match waiting.requests.pop_front() {
                    Some(queued) => return Some(queued),
                    None if waiting.producers == 0 || waiting.is_closed => return None,
                    None => {}
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// The oldest request, where there is one now.
    pub fn try_recv(&mut self) -> Option<Queued> {
        self.0.lock().requests.pop_front()
    }

    /// Takes no more: what is enqueued from now on is dropped.
    pub fn close(&mut self) {
        self.0.lock().is_closed = true;
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.is_closed = true;
        // Their shares count them as lost, with no lock held.
        let left = std::mem::take(&mut waiting.requests);
        drop(waiting);
        drop(left);
    }
}

#[cfg(test)]
mod tests;
