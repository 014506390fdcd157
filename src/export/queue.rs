//! The queue before an output, bounded in bytes; what is being sent still counts. Where it is full, calls wait if there is
//! no other output, so that they are lost only in the kernel's ring, where each is counted; else its own records are dropped,
//! and nobody waits. Metrics never wait.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::ledger::{Outcome, Share, Stage};
use crate::model::values::Signal;

/// Room is counted in units of so many bytes.
const UNIT: usize = 256;
/// Metrics are enqueued while no more bytes than this wait.
const METRICS: usize = 1 << 20;

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

/// A request with its room in the queue.
#[derive(Debug)]
pub struct Queued {
    /// The request.
    pub request: Request,
    _room: OwnedSemaphorePermit,
}

impl Queued {
    /// Counts what became of it; its room is free again.
    pub fn settle(self, outcome: Outcome) {
        self.request.share.settle(outcome);
    }
}

/// What becomes of a request that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits.
    Wait,
    /// It is dropped, and counted.
    Drop,
}

/// The producers' end.
#[derive(Clone, Debug)]
pub struct OutputQueue {
    room: Arc<Semaphore>,
    units: usize,
    sender: UnboundedSender<Queued>,
    runtime: Handle,
}

impl OutputQueue {
    /// A queue that holds about as many bytes, and its other end.
    pub fn new(bytes: usize, runtime: Handle) -> (Self, UnboundedReceiver<Queued>) {
        let (sender, receiver) = unbounded_channel();
        let units = bytes.div_ceil(UNIT);
        (Self { room: Arc::new(Semaphore::new(units)), units, sender, runtime }, receiver)
    }

    /// Puts a request in. Once the queue is shut, or its other end gone, the request is dropped: it counts as lost.
    /// Where it waits: not to be called on the runtime's own threads.
    pub fn enqueue(&self, request: Request, when_full: WhenFull) {
        let units = request.body.len().div_ceil(UNIT).clamp(1, self.units) as u32;
        let room = match (self.room.clone().try_acquire_many_owned(units), when_full) {
            (Ok(room), _) => Ok(room),
            (Err(TryAcquireError::NoPermits), WhenFull::Drop) => {
                return request.share.settle(Outcome::Lost(Stage::Queue));
            }
            (Err(_), _) => self.runtime.block_on(self.room.clone().acquire_many_owned(units)),
        };
        if let Ok(room) = room {
            // Where the receiver is gone the request comes back and is dropped here.
            let _ = self.sender.send(Queued { request, _room: room });
        }
    }

    /// Whether so much waits that metrics are better added up where they are: a request of theirs always has room else.
    pub fn is_waiting(&self) -> bool {
        let used = self.units.saturating_sub(self.room.available_permits()) * UNIT;
        !self.room.is_closed() && used > METRICS
    }

    /// What shuts the queue: nobody waits for room any more. It does not keep the queue from ending.
    pub fn shutter(&self) -> impl Fn() + Send + use<> {
        let room = self.room.clone();
        move || room.close()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::runtime::Builder;

    use super::*;
    use crate::export::ledger::{Ledger, Tally};

    fn request(ledger: &Arc<Ledger>, bytes: usize) -> Request {
        ledger.received();
        let tally = Tally::new(ledger);
        tally.add();
        Request { signal: Signal::Traces, body: vec![0; bytes].into(), share: Share::of_calls(&tally, 0, 1) }
    }

    /// Prevents the queue from growing without bound, a request larger than all of it from waiting for ever, and a
    /// waiting reader from never ending.
    #[test]
    fn bounded_and_ended() {
        let ledger = Ledger::new(vec!["otlp.traces".into()], false);
        let runtime = Builder::new_current_thread().build().unwrap();
        let (queue, mut receiver) = OutputQueue::new(1000, runtime.handle().clone());
        queue.enqueue(request(&ledger, 5000), WhenFull::Wait);
        let waiting = thread::spawn({
            let (queue, ledger) = (queue.clone(), ledger.clone());
            move || {
                queue.enqueue(request(&ledger, 1), WhenFull::Wait);
                queue.enqueue(request(&ledger, 5000), WhenFull::Wait);
            }
        });
        drop(receiver.blocking_recv());
        // The small one fits now, the large one behind it does not.
        let second = receiver.blocking_recv();
        assert_eq!(second.as_ref().map(|queued| queued.request.body.len()), Some(1));
        queue.shutter()();
        waiting.join().unwrap();
        drop((queue, second));
        assert!(receiver.blocking_recv().is_none());
        assert_eq!(ledger.totals().lost["shutdown"], 3);
    }

    /// Prevents an output that takes nothing from holding up the others, and what it costs from going uncounted.
    #[test]
    fn a_full_queue_beside_others() {
        let ledger = Ledger::new(vec!["otlp.traces".into()], false);
        let runtime = Builder::new_current_thread().build().unwrap();
        let (queue, mut receiver) = OutputQueue::new(1000, runtime.handle().clone());
        for _ in 0..5 {
            queue.enqueue(request(&ledger, 400), WhenFull::Drop);
        }
        let totals = ledger.totals();
        assert_eq!((totals.lost["queue"], totals.outputs["otlp.traces"].lost), (3, 3));
        drop(receiver.blocking_recv());
        queue.enqueue(request(&ledger, 400), WhenFull::Drop);
        assert_eq!(ledger.totals().lost["queue"], 3, "there is room again");
    }
}
