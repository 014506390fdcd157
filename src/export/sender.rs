//! Delivers the requests of one signal over OTLP: several at a time, each until it is taken, refused, or given up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{Instrument, debug, debug_span, info, warn};

use super::client::Client;
use super::hangup::Listener;
use super::ledger::{Outcome, Stage};
use super::queue::Queued;
use super::reply::Failure;
use super::retry::{Backoff, GIVE_UP_AFTER};
use crate::config::values::Signal;

/// A signal that the backend does not take is tried again after this long.
const SWITCHED_OFF: Duration = Duration::from_secs(300);
/// The same trouble is told of at most this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Delivers whatever comes, and ends when the queue has ended and its last request has come to its end.
pub async fn run(
    name: String,
    signal: Signal,
    client: Client,
    mut queue: UnboundedReceiver<Queued>,
    mut hangup: Listener,
) {
    // Points of a stream must arrive in their order; spans and log records need not.
    let at_a_time = if signal == Signal::Metrics { 1 } else { 4 };
    let slots = Arc::new(Semaphore::new(at_a_time));
    let sender = Arc::new(Sender { name, client, state: Mutex::default() });
    let mut under_way = JoinSet::new();
    while let Some(queued) = queue.recv().await {
        while under_way.try_join_next().is_some() {}
        if hangup.hears() {
            sender.state().off_until = None;
        }
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let sender = sender.clone();
        under_way.spawn(async move {
            let records = queued.request.share.records();
            sender.deliver(queued).instrument(debug_span!("export", output = sender.name, records)).await;
            drop(slot);
        });
    }
    while under_way.join_next().await.is_some() {}
}

#[derive(Debug)]
struct Sender {
    name: String,
    client: Client,
    state: Mutex<State>,
}

/// What is known of the backend.
#[derive(Debug, Default)]
struct State {
    off_until: Option<Instant>,
    failing_since: Option<Instant>,
    said: Option<(Instant, String)>,
}

impl Sender {
    async fn deliver(&self, queued: Queued) {
        let Queued { request, .. } = &queued;
        if self.is_off() {
            return queued.settle(Outcome::Lost(Stage::SwitchedOff));
        }
        let (first, mut backoff) = (Instant::now(), Backoff::default());
        let outcome = loop {
            match self.client.send(request.body.clone()).await {
                Ok(accepted) => {
                    self.works();
                    if accepted.rejected > 0 || !accepted.message.is_empty() {
                        let what = format!("the backend rejected {} records", accepted.rejected);
                        self.say(&what, &accepted.message);
                    }
                    debug!(output = self.name, bytes = request.body.len(), "delivered");
                    break Outcome::Sent { rejected: accepted.rejected };
                }
                Err(Failure::Retry { after, why }) => match backoff.next(after, first.elapsed(), rand::random()) {
                    Some(pause) => {
                        self.fails(&why);
                        sleep(pause).await;
                    }
                    None => {
                        self.say(&format!("given up after {} s", GIVE_UP_AFTER.as_secs()), &why);
                        break Outcome::Lost(Stage::GivenUp);
                    }
                },
                Err(Failure::Refused(why)) => {
                    self.say("the backend refuses what it is sent", &why);
                    break Outcome::Lost(Stage::Refused);
                }
                Err(Failure::Unimplemented(why)) => {
                    self.switch_off(&why);
                    break Outcome::Lost(Stage::SwitchedOff);
                }
            }
        };
        queued.settle(outcome);
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
            let signal = self.name.rsplit('.').next().unwrap_or_default();
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
