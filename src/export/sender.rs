//! Delivers the requests of one signal over OTLP: several at a time, each until it is taken, refused, or given up. Where
//! there is a spool, what can't be delivered soon goes there, and comes back in order once the backend takes it. What an
//! answer leads to is decided in [`backend`](super::backend).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{Instrument, debug, debug_span, info, warn};

use super::backend::{Backend, Next, Remark, switched_off_for};
use super::batch::Encoding;
use super::client::OtlpClient;
use super::hangup::Listener;
use super::ledger::{Outcome, Stage};
use super::queue::Queued;
use super::reply::{Accepted, Failure};
use super::spool::Spool;
use super::traffic::Traffic;
use crate::model::values::Signal;

/// A request that is not answered by then goes into the spool, besides.
const SPOOL_AFTER: Duration = Duration::from_secs(2);

/// What a signal is delivered by.
#[derive(Debug)]
pub struct Deliverer {
    /// As the statistics name it, `otlp.traces`.
    pub name: String,
    /// Which signal.
    pub signal: Signal,
    /// The connection to its backend.
    pub client: OtlpClient,
    /// What is under way to it.
    pub traffic: Arc<Traffic>,
    /// Where there is one.
    pub spool: Option<Spool>,
    /// True once mqspan is about to end: what is not delivered goes into the spool at once.
    pub hurry: watch::Receiver<bool>,
    /// What is known of the backend.
    pub backend: Mutex<Backend>,
    /// Tells those that pause that the pause is over.
    pub resumed: Notify,
}

/// Delivers whatever comes, and ends when the queue has ended and its last request has come to its end.
pub async fn run(deliverer: Deliverer, mut queue: UnboundedReceiver<Queued>, mut hangup: Listener) {
    let deliverer = Arc::new(deliverer);
    let (closing, is_closing) = watch::channel(false);
    let drain = deliverer.spool.clone().map(|spool| tokio::spawn(deliverer.clone().drain(spool, is_closing)));
    // It keeps nothing: what is aborted must let go of the spool.
    let resuming = Arc::downgrade(&deliverer);
    let resumer = tokio::spawn(async move {
        loop {
            hangup.next().await;
            let Some(deliverer) = resuming.upgrade() else { return };
            deliverer.client.reload();
            deliverer.resume();
        }
    });
    // Points of a stream must arrive in their order; spans and log records need not.
    let at_a_time = if deliverer.signal == Signal::Metrics { 1 } else { 4 };
    let slots = Arc::new(Semaphore::new(at_a_time));
    let mut under_way = JoinSet::new();
    loop {
        // Without a spool what comes meanwhile waits in the queue, and is given up for nothing that was said before.
        if deliverer.spool.is_none() {
            deliverer.pause_over().await;
        }
        let Some(queued) = queue.recv().await else { break };
        while under_way.try_join_next().is_some() {}
        let deliverer = deliverer.clone();
        let slot = match &deliverer.spool {
            None => slots.clone().acquire_owned().await,
            Some(spool) => tokio::select! {
                biased;
                () = spool.backlog(deliverer.signal) => {
                    if let Some(put) = deliverer.put_behind(spool, queued) {
                        under_way.spawn(put);
                    }
                    continue;
                }
                slot = slots.clone().acquire_owned() => slot,
            },
        };
        // The semaphore is never closed.
        let Ok(slot) = slot else { return };
        under_way.spawn(async move {
            let span = debug_span!("export", output = deliverer.name, records = queued.request.share.records());
            deliverer.deliver(queued).instrument(span).await;
            drop(slot);
        });
    }
    while under_way.join_next().await.is_some() {}
    let _ = closing.send(true);
    if let Some(drain) = drain {
        let _ = drain.await;
    }
    resumer.abort();
}

/// Returns once the flag is set.
async fn is_set(flag: &watch::Receiver<bool>) {
    // Where the other end is gone nobody will set it: mqspan has ended.
    let _ = flag.clone().wait_for(|set| *set).await;
}

impl Deliverer {
    /// Requests wait on disk already: this one gets its place behind them at once. What is left to do about it.
    fn put_behind(self: &Arc<Self>, spool: &Spool, queued: Queued) -> Option<impl Future<Output = ()> + Send + use<>> {
        if self.is_off() {
            queued.settle(Outcome::Lost(Stage::SwitchedOff));
            return None;
        }
        let (deliverer, put) = (self.clone(), spool.put(queued, self.client.encoding(), false));
        Some(async move {
            if let Err(Some(queued)) = put.await {
                deliverer.deliver(queued).await;
            }
        })
    }

    async fn deliver(&self, mut queued: Queued) {
        if self.is_off() {
            return queued.settle(Outcome::Lost(Stage::SwitchedOff));
        }
        // It may have waited for its slot while the backend asked for a pause.
        if self.spool.is_none() {
            self.pause_over().await;
        }
        let first = Instant::now();
        let outcome = loop {
            let result = match &self.spool {
                None => {
                    let request = &queued.request;
                    self.attempt(request.share.records(), request.body.clone(), self.client.encoding()).await
                }
                Some(spool) => match self.send_or_spool(spool, queued, first).await {
                    Some((unspooled, result)) => {
                        queued = unspooled;
                        result
                    }
                    None => return,
                },
            };
            match self.answered(result, first) {
                Next::Settle(outcome) => break outcome,
                Next::Again => {
                    if let Some(spool) = &self.spool {
                        match spool.put(queued, self.client.encoding(), false).await {
                            Err(Some(unspooled)) => queued = unspooled,
                            _ => return,
                        }
                    }
                    self.pause_over().await;
                }
            }
        };
        queued.settle(outcome);
    }

    async fn attempt(&self, records: u64, body: Bytes, encoding: Encoding) -> Result<Accepted, Failure> {
        self.traffic.attempt(records, self.client.send(body, encoding)).await
    }

    /// One attempt; where it takes too long the request goes into the spool meanwhile. None: the spool has it, and
    /// knows what came of the attempt.
    async fn send_or_spool(
        &self,
        spool: &Spool,
        queued: Queued,
        first: Instant,
    ) -> Option<(Queued, Result<Accepted, Failure>)> {
        let encoding = self.client.encoding();
        let attempt = self.attempt(queued.request.share.records(), queued.request.body.clone(), encoding);
        tokio::pin!(attempt);
        tokio::select! {
            result = &mut attempt => return Some((queued, result)),
            () = sleep(SPOOL_AFTER) => {}
            () = is_set(&self.hurry) => {}
        }
        let id = match spool.put(queued, encoding, true).await {
            Ok(id) => id,
            Err(Some(queued)) => return Some((queued, attempt.await)),
            Err(None) => return None,
        };
        tokio::select! {
            result = attempt => match self.answered(result, first) {
                Next::Settle(outcome) => spool.done(id, outcome),
                Next::Again => spool.back(id),
            },
            () = is_set(&self.hurry) => spool.back(id),
        }
        None
    }

    /// Delivers what is in the spool, the oldest first. Once nothing more comes it ends with the first failure.
    async fn drain(self: Arc<Self>, spool: Spool, closing: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                // At the end, too, all is delivered that a backend takes: only a pause is not waited for.
                biased;
                () = self.pause_over() => {}
                () = is_set(&closing) => return,
            }
            let Some(kept) = spool.next(self.signal).await else {
                tokio::select! {
                    () = spool.grown(self.signal) => continue,
                    () = is_set(&closing) => return,
                }
            };
            let first = Instant::now();
            let result = tokio::select! {
                result = self.attempt(kept.records, kept.body, kept.encoding) => result,
                () = is_set(&self.hurry) => return spool.back(kept.id),
            };
            match self.answered(result, first) {
                // Left out of what comes now; what is on disk is tried again.
                Next::Settle(Outcome::Lost(Stage::SwitchedOff)) | Next::Again => {
                    spool.back(kept.id);
                    if *closing.borrow() {
                        return;
                    }
                }
                Next::Settle(outcome) => spool.done(kept.id, outcome),
            }
        }
    }

    /// Returns once the backend may be asked.
    async fn pause_over(&self) {
        loop {
            let resumed = self.resumed.notified();
            let Some(until) = self.backend().pause(Instant::now()) else { return };
            tokio::select! {
                () = sleep_until(until.into()) => {}
                () = resumed => {}
            }
        }
    }

    /// What is to be done after an attempt; says what is to be said.
    fn answered(&self, answer: Result<Accepted, Failure>, first: Instant) -> Next {
        let mend = answer.as_ref().err().and_then(|failure| self.client.mend(failure));
        let (next, said) = self.backend().answered(answer, first, Instant::now(), rand::random());
        if let Next::Settle(Outcome::Sent { .. }) = next {
            debug!(output = self.name, "delivered");
        }
        for said in said {
            match said {
                Remark::Works(line) => {
                    info!("{}: {line}", self.name);
                    self.resumed.notify_waiters();
                }
                Remark::NotTaken(why) => warn!(
                    "{}: the backend does not take {signal} ({why}): left out for {} minutes; send them elsewhere \
                     (OTEL_EXPORTER_OTLP_{}_ENDPOINT) or leave them out with --signals",
                    self.name,
                    switched_off_for().as_secs() / 60,
                    self.signal.name().to_uppercase(),
                    signal = self.signal.name(),
                ),
                Remark::Warning(line) => warn!(mend, "{}: {line}", self.name),
            }
        }
        next
    }

    fn resume(&self) {
        self.backend().try_at_once();
        self.resumed.notify_waiters();
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self) -> bool {
        self.backend().is_off(Instant::now())
    }
}
