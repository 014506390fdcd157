//! What could not be delivered yet, on disk until it is: the file ([`store`]), and the thread that alone uses it. What is
//! handed to the thread together becomes one transaction; with `--spool-sync` there is one a second at most. Metrics
//! are thinned ([`thin`]).

pub mod store;
pub mod thin;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};
use tracing::warn;

use self::store::{Entry, Left, Row, Store};
use self::thin::Newest;
use super::batch::Encoding;
use super::ledger::{Ledger, Outcome, Share, Stage, Tally};
use super::metrics::{self, points};

use super::queue::{Queued, Request};
use crate::model::error::Error;
use crate::model::values::Signal;

/// What comes in is gathered for so long. What was delivered is struck off at once: it is in the system's memory then, and
/// a kill -9 finds it so.
const GATHER: Duration = Duration::from_millis(200);
/// Where each change is synced, both are gathered for so long.
const GATHER_SYNCED: Duration = Duration::from_secs(1);
/// ... unless they are so many bytes.
const GATHER_BYTES: usize = 2 << 20;

/// `--spool`, `--spool-size`, `--spool-sync`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// The folder.
    pub folder: PathBuf,
    /// The most bytes on disk.
    pub bytes: u64,
    /// Whether what is on disk survives a power cut.
    pub sync: bool,
}

/// A request from the spool.
#[derive(Debug)]
pub struct Kept {
    /// Its number.
    pub id: i64,
    /// Its encoding.
    pub encoding: Encoding,
    /// Its records.
    pub records: u64,
    /// The request.
    pub body: Bytes,
}

#[derive(Debug)]
enum SpoolCommand {
    Put {
        queued: Queued,
        encoding: Encoding,
        is_under_way: bool,
        reply: oneshot::Sender<Result<i64, Box<Queued>>>,
    },
    Next {
        signal: Signal,
        reply: oneshot::Sender<Option<Kept>>,
    },
    /// It is not under way any more, but still to be delivered.
    Back(i64),
    Done(i64, Outcome),
}

/// What is known of the requests of a signal without asking the thread.
#[derive(Debug, Default)]
struct Backlog {
    /// Those on disk, and on their way there.
    requests: watch::Sender<u64>,
    grown: Notify,
}

impl Backlog {
    fn add(&self) {
        self.requests.send_modify(|requests| *requests += 1);
    }

    fn remove(&self) {
        self.requests.send_modify(|requests| *requests -= 1);
    }
}

/// The senders' end of the thread.
#[derive(Clone, Debug)]
pub struct Spool {
    commands: Sender<SpoolCommand>,
    backlogs: Arc<[Backlog; Signal::ALL.len()]>,
}

impl Spool {
    /// Returns when requests of a signal wait on disk: what comes later must wait behind them.
    pub async fn backlog(&self, signal: Signal) {
        let mut requests = self.backlogs[signal as usize].requests.subscribe();
        // The sender is as old as this.
        let _ = requests.wait_for(|requests| *requests > 0).await;
    }

    /// Returns when requests of a signal may have come to wait.
    pub async fn grown(&self, signal: Signal) {
        self.backlogs[signal as usize].grown.notified().await;
    }

    /// Puts a request on disk and returns its number; gives it back where that is not possible. One that is under way
    /// is not given out by [`Self::next`] until it comes back. Its place is that of the call, not that of the await.
    pub fn put(
        &self,
        queued: Queued,
        encoding: Encoding,
        is_under_way: bool,
    ) -> impl Future<Output = Result<i64, Option<Queued>>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let backlogs = self.backlogs.clone();
        let signal = queued.request.signal as usize;
        backlogs[signal].add();
        let sent = self.commands.send(SpoolCommand::Put { queued, encoding, is_under_way, reply });
        async move {
            let failed = match sent {
                Ok(()) => match answer.await {
                    Ok(Ok(id)) => return Ok(id),
                    Ok(Err(queued)) => Some(*queued),
                    // The thread ended with it: it counts as lost.
                    Err(_) => None,
                },
                Err(SendError(SpoolCommand::Put { queued, .. })) => Some(queued),
                Err(_) => None,
            };
            backlogs[signal].remove();
            Err(failed)
        }
    }

    /// The oldest request of a signal that is not under way; it is then.
    pub async fn next(&self, signal: Signal) -> Option<Kept> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(SpoolCommand::Next { signal, reply }).ok()?;
        answer.await.ok()?
    }

    /// A request could not be delivered now.
    pub fn back(&self, id: i64) {
        // Where the thread has ended the request is on disk all the same.
        let _ = self.commands.send(SpoolCommand::Back(id));
    }

    /// A request has come to its end: it is struck off.
    pub fn done(&self, id: i64, outcome: Outcome) {
        let _ = self.commands.send(SpoolCommand::Done(id, outcome));
    }
}

/// Starts the thread on the requests that an earlier run has left. It ends when no [`Spool`] is left.
pub fn start(
    settings: &SpoolSettings,
    ledger: &Arc<Ledger>,
    outputs: &[(Signal, usize)],
) -> Result<(Spool, JoinHandle<()>), Error> {
    let store = Store::open(&settings.folder, settings.bytes, settings.sync)?;
    let left = store.left().map_err(|error| {
        Error::cannot_run(format!("--spool: it can't be read: {error}"), "name another folder, or check the disk")
    })?;
    let backlogs: Arc<[Backlog; Signal::ALL.len()]> = Arc::default();
    let (commands, orders) = channel();
    let mut keeper = Keeper {
        store,
        shares: HashMap::new(),
        under_way: HashSet::new(),
        backlogs: backlogs.clone(),
        puts: Vec::new(),
        gone: Vec::new(),
        bytes: 0,
        said: false,
    };
    keeper.restore(left, ledger, outputs);
    let (gather, strike) = if settings.sync { (GATHER_SYNCED, GATHER_SYNCED) } else { (GATHER, Duration::ZERO) };
    let thread = thread::Builder::new().name("mqspan-spool".into()).spawn(move || keeper.run(&orders, gather, strike));
    Ok((Spool { commands, backlogs }, thread.map_err(Error::no_thread)?))
}

/// A request on its way to the disk.
#[derive(Debug)]
struct Put {
    queued: Queued,
    encoding: Encoding,
    is_under_way: bool,
    reply: oneshot::Sender<Result<i64, Box<Queued>>>,
}

struct Keeper {
    store: Store,
    /// What becomes of a request on disk counts for these.
    shares: HashMap<i64, (Signal, Share)>,
    under_way: HashSet<i64>,
    backlogs: Arc<[Backlog; Signal::ALL.len()]>,
    puts: Vec<Put>,
    gone: Vec<i64>,
    bytes: usize,
    said: bool,
}

impl Keeper {
    /// Takes the requests of an earlier run over; those of a signal that this run does not deliver stay.
    fn restore(&mut self, left: Vec<Left>, ledger: &Arc<Ledger>, outputs: &[(Signal, usize)]) {
        let mut batches: HashMap<u64, Arc<Tally>> = HashMap::new();
        for Left { id, signal, batch, calls, records } in left {
            let tally = batches.entry(batch).or_insert_with(|| Tally::restored(ledger, calls, batch));
            let output = outputs.iter().find(|(of, _)| *of == signal).map_or(usize::MAX, |(_, output)| *output);
            let share = match signal {
                Signal::Metrics => Share::of_metrics(ledger, output, records),
                _ => Share::of_calls(tally, output, records),
            };
            self.backlogs[signal as usize].add();
            self.keep(id, signal, share, false);
        }
    }

    fn keep(&mut self, id: i64, signal: Signal, share: Share, is_under_way: bool) {
        self.shares.insert(id, (signal, share));
        if is_under_way {
            self.under_way.insert(id);
        }
        self.backlogs[signal as usize].grown.notify_one();
    }

    fn end(&mut self, id: i64, outcome: Outcome) {
        self.under_way.remove(&id);
        if let Some((signal, share)) = self.shares.remove(&id) {
            let backlog = &self.backlogs[signal as usize];
            backlog.remove();
            // One behind it may have waited for it.
            backlog.grown.notify_one();
            share.settle(outcome);
        }
    }

    fn run(&mut self, orders: &Receiver<SpoolCommand>, gather: Duration, strike: Duration) {
        let mut due: Option<Instant> = None;
        loop {
            let command = match due {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => orders.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match command {
                Ok(SpoolCommand::Next { signal, reply }) => {
                    let _ = reply.send(self.next(signal));
                }
                Ok(SpoolCommand::Back(id)) => {
                    self.under_way.remove(&id);
                    if let Some((signal, _)) = self.shares.get(&id) {
                        self.backlogs[*signal as usize].grown.notify_one();
                    }
                }
                Ok(SpoolCommand::Done(id, outcome)) => {
                    self.end(id, outcome);
                    self.gone.push(id);
                    let soon = Instant::now() + strike;
                    due = Some(due.map_or(soon, |due| due.min(soon)));
                }
                Ok(SpoolCommand::Put { queued, encoding, is_under_way, reply }) => {
                    self.bytes += queued.request.body.len();
                    self.puts.push(Put { queued, encoding, is_under_way, reply });
                    due.get_or_insert(Instant::now() + gather);
                    if self.bytes >= GATHER_BYTES {
                        due = Some(Instant::now());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    due = None;
                    self.commit();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.commit();
                    return self.close();
                }
            }
        }
    }

    fn commit(&mut self) {
        let (puts, gone) = (std::mem::take(&mut self.puts), std::mem::take(&mut self.gone));
        self.bytes = 0;
        let entries: Vec<Entry<'_>> = puts
            .iter()
            .map(|Put { queued, encoding, .. }| {
                let request = &queued.request;
                Entry {
                    signal: request.signal,
                    encoding: *encoding,
                    batch: request.share.batch(),
                    calls: request.share.uncounted_calls(),
                    records: request.share.records(),
                    body: &request.body,
                }
            })
            .collect();
        match self.store.change(&entries, &gone) {
            Ok((ids, dropped)) => {
                self.said = false;
                for (id, Put { queued, encoding, is_under_way, reply }) in ids.into_iter().zip(puts) {
                    let Request { signal, body, share } = queued.request;
                    self.keep(id, signal, share, is_under_way);
                    let _ = reply.send(Ok(id));
                    if signal == Signal::Metrics {
                        self.thin(id, encoding, &body);
                    }
                }
                if !dropped.is_empty() {
                    warn!("the spool is full: its oldest {} requests were dropped", dropped.len());
                }
                for id in dropped {
                    self.end(id, Outcome::Lost(Stage::SpoolFull));
                }
                if self.shares.is_empty() {
                    let _ = self.store.shrink();
                }
            }
            Err(error) => {
                // What was delivered is struck off with the next change: at worst it is sent again after a restart.
                self.gone = gone;
                if !std::mem::replace(&mut self.said, true) {
                    warn!("the spool can't be written: {error}; what should go there is kept in memory");
                }
                for Put { queued, reply, .. } in puts {
                    let _ = reply.send(Err(Box::new(queued)));
                }
            }
        }
    }

    /// Takes the points that a request of metrics stands for out of those before it that are not under way.
    fn thin(&mut self, id: i64, encoding: Encoding, body: &[u8]) {
        let Some(newest) = metrics::decode(encoding, body).map(Newest::of).filter(|newest| !newest.is_empty()) else {
            return;
        };
        let mut after = 0;
        while let Some(row) = self.read(Signal::Metrics, after).filter(|row| row.id < id) {
            after = row.id;
            if self.under_way.contains(&row.id) || !self.shares.contains_key(&row.id) {
                continue;
            }
            let Some(mut earlier) = metrics::decode(row.encoding, &row.body) else { continue };
            let before = points(&earlier);
            newest.thin(&mut earlier);
            let left = points(&earlier);
            if left == 0 {
                self.end(row.id, Outcome::Superseded);
                self.gone.push(row.id);
            } else if left < before {
                let body = metrics::encode(row.encoding, &earlier);
                let replaced = self.store.replace(row.id, left, &body).is_ok();
                if let Some((_, share)) = self.shares.get_mut(&row.id).filter(|_| replaced) {
                    share.supersede(before - left);
                }
            }
        }
    }

    fn read(&self, signal: Signal, after: i64) -> Option<Row> {
        self.store.after(signal, after).unwrap_or_else(|error| {
            warn!("the spool can't be read: {error}");
            None
        })
    }

    fn next(&mut self, signal: Signal) -> Option<Kept> {
        let mut after = 0;
        loop {
            let row = self.read(signal, after)?;
            after = row.id;
            // One that has come to its end may still be on disk.
            if let Some((_, share)) = self.shares.get(&row.id) {
                if self.under_way.insert(row.id) {
                    let Row { id, encoding, body } = row;
                    return Some(Kept { id, encoding, records: share.records(), body: body.into() });
                }
                // The points of a stream must not overtake each other.
                if signal == Signal::Metrics {
                    return None;
                }
            }
        }
    }

    /// What is left is there for the next run, which counts the calls that no other request has brought in.
    fn close(&mut self) {
        for (_, (_, share)) in self.shares.drain() {
            if share.uncounted_calls() == 0 {
                let _ = self.store.uncount(share.batch());
            }
            share.settle(Outcome::Spooled);
        }
        let _ = self.store.shrink();
    }
}
