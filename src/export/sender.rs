//! Delivers the requests of one signal over OTLP: several at a time, each until it is taken, refused, or given up. Where
//! there is a spool, what can't be delivered soon goes there, and comes back in order once the backend takes it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{Instrument, debug, debug_span, info, warn};

use super::batch::Encoding;
use super::client::OtlpClient;
use super::hangup::Listener;
use super::ledger::{Outcome, Stage};
use super::queue::Queued;
use super::reply::{Accepted, Failure};
use super::retry::{Backoff, GIVE_UP_AFTER};
use super::spool::Spool;
use super::traffic::Traffic;
use crate::model::values::Signal;

/// A signal that the backend does not take is tried again after this long.
const SWITCHED_OFF: Duration = Duration::from_secs(300);
/// The same trouble is told of at most this often.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// A request that is not answered by then goes into the spool, besides.
const SPOOL_AFTER: Duration = Duration::from_secs(2);

/// What a signal is delivered by.
#[derive(Debug)]
pub struct Sender {
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
    pub state: Mutex<State>,
}

/// What is known of a backend.
#[derive(Debug, Default)]
pub struct State {
    off_until: Option<Instant>,
    failing_since: Option<Instant>,
    said: Option<(Instant, String)>,
}

/// Delivers whatever comes, and ends when the queue has ended and its last request has come to its end.
pub async fn run(sender: Sender, mut queue: UnboundedReceiver<Queued>, mut hangup: Listener) {
    let sender = Arc::new(sender);
    let (closing, is_closing) = watch::channel(false);
    let drain = sender.spool.clone().map(|spool| tokio::spawn(sender.clone().drain(spool, is_closing)));
    // Points of a stream must arrive in their order; spans and log records need not.
    let at_a_time = if sender.signal == Signal::Metrics { 1 } else { 4 };
    let slots = Arc::new(Semaphore::new(at_a_time));
    let mut under_way = JoinSet::new();
    while let Some(queued) = queue.recv().await {
        while under_way.try_join_next().is_some() {}
        if hangup.hears() {
            sender.state().off_until = None;
        }
        let sender = sender.clone();
        let slot = match &sender.spool {
            None => slots.clone().acquire_owned().await,
            Some(spool) => tokio::select! {
                biased;
                () = spool.backlog(sender.signal) => {
                    if let Some(put) = sender.put_behind(spool, queued) {
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
            let span = debug_span!("export", output = sender.name, records = queued.request.share.records());
            sender.deliver(queued).instrument(span).await;
            drop(slot);
        });
    }
    while under_way.join_next().await.is_some() {}
    let _ = closing.send(true);
    if let Some(drain) = drain {
        let _ = drain.await;
    }
}

/// Returns once the flag is set.
async fn is_set(flag: &watch::Receiver<bool>) {
    // Where the other end is gone nobody will set it: mqspan has ended.
    let _ = flag.clone().wait_for(|set| *set).await;
}

impl Sender {
    /// Requests wait on disk already: this one gets its place behind them at once. What is left to do about it.
    fn put_behind(self: &Arc<Self>, spool: &Spool, queued: Queued) -> Option<impl Future<Output = ()> + Send + use<>> {
        if self.is_off() {
            queued.settle(Outcome::Lost(Stage::SwitchedOff));
            return None;
        }
        let (sender, put) = (self.clone(), spool.put(queued, self.client.encoding(), false));
        Some(async move {
            if let Err(Some(queued)) = put.await {
                sender.deliver(queued).await;
            }
        })
    }

    async fn deliver(&self, mut queued: Queued) {
        if self.is_off() {
            return queued.settle(Outcome::Lost(Stage::SwitchedOff));
        }
        let (first, mut backoff) = (Instant::now(), Backoff::default());
        let outcome = loop {
            let result = match &self.spool {
                None => {
                    let request = &queued.request;
                    self.attempt(request.share.records(), request.body.clone(), self.client.encoding()).await
                }
                Some(spool) => match self.send_or_spool(spool, queued).await {
                    Some((unspooled, result)) => {
                        queued = unspooled;
                        result
                    }
                    None => return,
                },
            };
            match self.outcome(result) {
                Ok(outcome) => break outcome,
                Err((after, why)) => {
                    if let Some(spool) = &self.spool {
                        match spool.put(queued, self.client.encoding(), false).await {
                            Err(Some(unspooled)) => queued = unspooled,
                            _ => return,
                        }
                    }
                    match backoff.next(after, first.elapsed(), rand::random()) {
                        Some(pause) => sleep(pause).await,
                        None => {
                            self.say(&format!("given up after {} s", GIVE_UP_AFTER.as_secs()), &why);
                            break Outcome::Lost(Stage::GivenUp);
                        }
                    }
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
    async fn send_or_spool(&self, spool: &Spool, queued: Queued) -> Option<(Queued, Result<Accepted, Failure>)> {
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
            result = attempt => match self.outcome(result) {
                Ok(outcome) => spool.done(id, outcome),
                Err(_) => spool.back(id),
            },
            () = is_set(&self.hurry) => spool.back(id),
        }
        None
    }

    /// Delivers what is in the spool, the oldest first. Once nothing more comes it ends with the first failure.
    async fn drain(self: Arc<Self>, spool: Spool, closing: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        loop {
            let Some(kept) = spool.next(self.signal).await else {
                tokio::select! {
                    () = spool.grown(self.signal) => continue,
                    () = is_set(&closing) => return,
                }
            };
            let result = tokio::select! {
                result = self.attempt(kept.records, kept.body, kept.encoding) => result,
                () = is_set(&self.hurry) => return spool.back(kept.id),
            };
            match self.outcome(result) {
                Ok(outcome) => {
                    backoff = Backoff::default();
                    spool.done(kept.id, outcome);
                }
                Err((after, _)) => {
                    // Meanwhile it may be thinned.
                    spool.back(kept.id);
                    // What is on disk is never given up.
                    let pause = backoff.next(after, Duration::ZERO, rand::random()).unwrap_or_default();
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = is_set(&closing) => return,
                    }
                }
            }
        }
    }

    /// What came of an attempt, and is said of it; an error where it is worth another one.
    fn outcome(&self, result: Result<Accepted, Failure>) -> Result<Outcome, (Option<Duration>, String)> {
        match result {
            Ok(Accepted { rejected, message }) => {
                self.works();
                if rejected > 0 || !message.is_empty() {
                    self.say(&format!("the backend rejected {rejected} records"), &message);
                }
                debug!(output = self.name, "delivered");
                Ok(Outcome::Sent { rejected })
            }
            Err(Failure::Retry { after, why }) => {
                self.fails(&why);
                Err((after, why))
            }
            Err(Failure::Refused(why)) => {
                self.say("the backend refuses what it is sent", &why);
                Ok(Outcome::Lost(Stage::Refused))
            }
            Err(Failure::Backend(why)) => {
                self.say("the backend takes nothing from here", &why);
                Ok(Outcome::Lost(Stage::Refused))
            }
            Err(Failure::Unimplemented(why)) => {
                self.switch_off(&why);
                Ok(Outcome::Lost(Stage::SwitchedOff))
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self) -> bool {
        self.state().off_until.is_some_and(|until| Instant::now() < until)
    }

    fn switch_off(&self, why: &str) {
        let mut state = self.state();
        let now = Instant::now();
        if state.off_until.is_none_or(|until| until <= now) {
            state.off_until = Some(now + SWITCHED_OFF);
            let signal = self.signal.name();
            warn!(
                "{}: the backend does not take {signal} ({why}): left out for {} minutes; send them elsewhere \
                 (OTEL_EXPORTER_OTLP_{}_ENDPOINT) or leave them out with --signals",
                self.name,
                SWITCHED_OFF.as_secs() / 60,
                signal.to_uppercase(),
            );
        }
    }

    fn works(&self) {
        let mut state = self.state();
        state.off_until = None;
        if let Some(since) = state.failing_since.take() {
            state.said = None;
            info!("{}: delivering again after {} s", self.name, since.elapsed().as_secs());
        }
    }

    fn fails(&self, why: &str) {
        self.state().failing_since.get_or_insert_with(Instant::now);
        self.say("the backend can't be reached or is overloaded, trying again", why);
    }

    /// Says something that may come with every request: the same only once a minute.
    fn say(&self, what: &str, why: &str) {
        let mut state = self.state();
        let now = Instant::now();
        if state.said.as_ref().is_none_or(|(at, said)| said != what || now - *at >= SAY_EVERY) {
            state.said = Some((now, what.to_owned()));
            match why.is_empty() {
                true => warn!("{}: {what}", self.name),
                false => warn!("{}: {what}: {why}", self.name),
            }
        }
    }
}
