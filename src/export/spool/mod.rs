//! What could not be delivered yet, on disk until it is: the file ([`store`]), and the thread that alone uses it. What is
//! handed to the thread together becomes one transaction; with `--spool-sync` there is one a second at most. Metrics
//! are thinned ([`thin`]).

pub mod store;
pub mod thin;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};
use tracing::warn;

use self::store::{NewRow, Row, SpooledRow, Store};
use self::thin::Newest;
use super::batch::Encoding;
use super::ledger::{Ledger, Outcome, Share, Stage, Tally};
use super::metrics::{self, points};
use super::queue::{Queued, Request};
use crate::model::error::{Error, no_thread};
use crate::model::values::Signal;

/// What comes in is gathered for so long. What was delivered is struck off at once: it is in the system's memory then, and
/// a kill -9 finds it so.
const GATHER: Duration = Duration::from_millis(200);
/// Where each change is synced, both are gathered for so long.
const GATHER_SYNCED: Duration = Duration::from_secs(1);
/// ... unless they are so many bytes.
const GATHER_BYTES: usize = 2 << 20;

/// As many requests on disk have their share in memory; of the others it is made again when their turn comes.
const MOST_SHARES: usize = 8192;

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
    let mut keeper = Keeper::open(settings, ledger, outputs)?;
    let backlogs = keeper.backlogs.clone();
    let (commands, orders) = channel();
    let (gather, strike) = if settings.sync { (GATHER_SYNCED, GATHER_SYNCED) } else { (GATHER, Duration::ZERO) };
    let thread = thread::Builder::new().name("mqspan-spool".into()).spawn(move || keeper.run(&orders, gather, strike));
    Ok((Spool { commands, backlogs }, thread.map_err(no_thread)?))
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
    settings: SpoolSettings,
    ledger: Arc<Ledger>,
    /// The signals that this run delivers, and their places in the ledger.
    outputs: Vec<(Signal, usize)>,
    /// What becomes of a request on disk counts for these. Others are on disk, too: those that an earlier run has left, and
    /// the oldest beyond a number. Their calls count as left in the spool until their turn comes.
    shares: BTreeMap<i64, (Signal, Share)>,
    under_way: HashSet<i64>,
    backlogs: Arc<[Backlog; Signal::ALL.len()]>,
    /// Of these, those that have come to the disk.
    on_disk: [u64; Signal::ALL.len()],
    /// The highest number that a request ever had: none has it a second time.
    last: i64,
    puts: Vec<Put>,
    /// Those that have come to their end and are still on disk.
    gone: HashSet<i64>,
    bytes: usize,
    said: bool,
}

impl Keeper {
    fn open(settings: &SpoolSettings, ledger: &Arc<Ledger>, outputs: &[(Signal, usize)]) -> Result<Self, Error> {
        let mut keeper = Self {
            store: Store::open(&settings.folder, settings.bytes, settings.sync)?,
            settings: settings.clone(),
            ledger: ledger.clone(),
            outputs: outputs.to_vec(),
            shares: BTreeMap::new(),
            under_way: HashSet::new(),
            backlogs: Arc::default(),
            on_disk: [0; Signal::ALL.len()],
            last: 0,
            puts: Vec::new(),
            gone: HashSet::new(),
            bytes: 0,
            said: false,
        };
        keeper.restore().map_err(|error| {
            Error::cannot_run(format!("--spool: it can't be read: {error}"), "name another folder, or check the disk")
        })?;
        Ok(keeper)
    }

    /// Takes the requests of an earlier run over; those of a signal that this run does not deliver stay.
    fn restore(&mut self) -> rusqlite::Result<()> {
        self.ledger.restored(self.store.calls()?);
        self.last = self.store.last()?;
        for signal in Signal::ALL {
            let requests = self.store.count(signal)?;
            self.on_disk[signal as usize] = requests;
            self.backlogs[signal as usize].requests.send_modify(|waiting| *waiting += requests);
        }
        Ok(())
    }

    fn keep(&mut self, id: i64, signal: Signal, share: Share, is_under_way: bool) {
        self.last = self.last.max(id);
        self.on_disk[signal as usize] += 1;
        self.shares.insert(id, (signal, share));
        if is_under_way {
            self.under_way.insert(id);
        }
        self.backlogs[signal as usize].grown.notify_one();
        if self.shares.len() > MOST_SHARES
            && let Some(oldest) = self.shares.keys().find(|id| !self.under_way.contains(id)).copied()
            && let Some((_, share)) = self.shares.remove(&oldest)
        {
            self.park(share);
        }
    }

    /// From now on the request is on disk only.
    fn park(&mut self, share: Share) {
        if share.uncounted_calls() == 0 {
            let _ = self.store.uncount(share.batch());
        }
        share.settle(Outcome::Spooled);
    }

    /// The share of a request that is on disk only: it takes over the calls of its batch.
    fn unpark(&mut self, signal: Signal, row: &Row) -> Share {
        let output = self.outputs.iter().find(|(of, _)| *of == signal).map_or(usize::MAX, |(_, output)| *output);
        match signal {
            Signal::Metrics => Share::of_metrics(&self.ledger, output, row.records),
            _ => {
                let _ = self.store.take_over_calls(row.batch, row.id, row.calls);
                Share::of_calls(&Tally::from_spool(&self.ledger, row.calls, row.batch), output, row.records)
            }
        }
    }

    fn end(&mut self, id: i64, signal: Signal, outcome: Outcome) {
        self.under_way.remove(&id);
        self.on_disk[signal as usize] -= 1;
        let backlog = &self.backlogs[signal as usize];
        backlog.remove();
        // One behind it may have waited for it.
        backlog.grown.notify_one();
        let Some((_, mut share)) = self.shares.remove(&id) else { return };
        // Another request of the batch may still bring its calls in.
        if matches!(outcome, Outcome::Lost(_))
            && let calls @ 1.. = share.uncounted_calls()
            && self.shares.values().all(|(_, other)| other.batch() != share.batch())
            && self.store.move_calls_to_another(share.batch(), id, calls).unwrap_or(false)
        {
            share.forfeit_calls();
            self.ledger.back_in_spool(calls);
        }
        share.settle(outcome);
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
                    self.done(id, outcome);
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

    /// A request was under way and has come to its end.
    fn done(&mut self, id: i64, outcome: Outcome) {
        if let Some(signal) = self.shares.get(&id).map(|(signal, _)| *signal) {
            self.end(id, signal, outcome);
            self.gone.insert(id);
        }
    }

    fn commit(&mut self) {
        let (puts, gone) = (std::mem::take(&mut self.puts), std::mem::take(&mut self.gone));
        self.bytes = 0;
        let removed: Vec<i64> = gone.iter().copied().collect();
        let rows: Vec<NewRow<'_>> = puts
            .iter()
            .map(|Put { queued, encoding, .. }| {
                let request = &queued.request;
                NewRow {
                    signal: request.signal,
                    encoding: *encoding,
                    batch: request.share.batch(),
                    calls: request.share.uncounted_calls(),
                    records: request.share.records(),
                    body: &request.body,
                }
            })
            .collect();
        match self.store.change(&rows, &removed) {
            Ok((ids, dropped)) => {
                self.said = false;
                let mut metrics = Vec::new();
                for (id, Put { queued, encoding, is_under_way, reply }) in ids.into_iter().zip(puts) {
                    let Request { signal, body, share } = queued.request;
                    self.keep(id, signal, share, is_under_way);
                    let _ = reply.send(Ok(id));
                    if signal == Signal::Metrics {
                        metrics.push((id, encoding, body));
                    }
                }
                if !dropped.is_empty() {
                    warn!("the spool is full: its oldest {} requests were dropped", dropped.len());
                }
                for dropped in dropped {
                    self.end_dropped(dropped);
                }
                // Last: it reads what is on disk, which may turn out to be damaged.
                for (id, encoding, body) in metrics {
                    self.thin(id, encoding, &body);
                }
                if self.backlogs.iter().all(|backlog| *backlog.requests.borrow() == 0) {
                    let _ = self.store.shrink();
                }
            }
            Err(error) if store::is_damaged(&error) => {
                self.begin_anew(&error);
                for Put { queued, reply, .. } in puts {
                    let _ = reply.send(Err(Box::new(queued)));
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

    /// A request had to make room.
    fn end_dropped(&mut self, dropped: SpooledRow) {
        let SpooledRow { id, signal, batch, calls } = dropped;
        // It has come to its end already.
        if self.gone.remove(&id) {
            return;
        }
        if calls > 0 && !self.shares.contains_key(&id) {
            self.ledger.dropped_from_spool(calls, self.store.move_calls_to_another(batch, id, calls).unwrap_or(false));
        }
        self.end(id, signal, Outcome::Lost(Stage::SpoolFull));
    }

    /// The file is damaged: it is put aside, and what was in it is lost.
    fn begin_anew(&mut self, error: &rusqlite::Error) {
        let SpoolSettings { folder, bytes, sync } = &self.settings;
        // What is under way has its number from the damaged file: no other request may get it.
        match self.store.begin_anew(folder, *bytes, *sync, self.last) {
            Ok(aside) => {
                warn!("the spool is damaged ({error}): its file is now {}, a new one is begun", aside.display())
            }
            Err(refused) => return warn!("the spool is damaged: {}", refused.message),
        }
        self.ledger.spool_damaged();
        for (_, (_, share)) in std::mem::take(&mut self.shares) {
            share.settle(Outcome::Lost(Stage::SpoolDamaged));
        }
        self.under_way.clear();
        self.gone.clear();
        // Those on their way here stay.
        for (backlog, on_disk) in self.backlogs.iter().zip(&mut self.on_disk) {
            let lost = std::mem::take(on_disk);
            backlog.requests.send_modify(|requests| *requests -= lost);
            backlog.grown.notify_one();
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
            if self.under_way.contains(&row.id) || self.gone.contains(&row.id) {
                continue;
            }
            let Some(mut earlier) = metrics::decode(row.encoding, &row.body) else { continue };
            let before = points(&earlier);
            newest.thin(&mut earlier);
            let left = points(&earlier);
            if left == 0 {
                self.end(row.id, Signal::Metrics, Outcome::Superseded);
                self.gone.insert(row.id);
            } else if left < before {
                let body = metrics::encode(row.encoding, &earlier);
                let replaced = self.store.replace(row.id, left, &body).is_ok();
                if let Some((_, share)) = self.shares.get_mut(&row.id).filter(|_| replaced) {
                    share.supersede(before - left);
                }
            }
        }
    }

    /// The oldest request of a signal after `after` that can be read; those that can't are set aside.
    fn read(&mut self, signal: Signal, mut after: i64) -> Option<Row> {
        loop {
            match self.store.after(signal, after) {
                Ok(row) => return row,
                Err(store::ReadError::Row(found)) => {
                    after = found.id;
                    if self.gone.contains(&found.id) {
                        continue;
                    }
                    warn!("a request in the spool can't be read: it is set aside, with {} calls", found.calls);
                    if self.store.set_aside(found.id).is_err() {
                        // On a full disk, say: it is struck off with the next change then.
                        self.gone.insert(found.id);
                    }
                    if !self.shares.contains_key(&found.id) {
                        let share = Share::of_calls(
                            &Tally::from_spool(&self.ledger, found.calls, found.batch),
                            usize::MAX,
                            found.calls,
                        );
                        share.settle(Outcome::Lost(Stage::SpoolDamaged));
                    }
                    self.end(found.id, signal, Outcome::Lost(Stage::SpoolDamaged));
                }
                Err(store::ReadError::File(error)) if store::is_damaged(&error) => {
                    self.begin_anew(&error);
                    return None;
                }
                Err(store::ReadError::File(error)) => {
                    warn!("the spool can't be read: {error}");
                    return None;
                }
            }
        }
    }

    fn next(&mut self, signal: Signal) -> Option<Kept> {
        let mut after = 0;
        loop {
            let row = self.read(signal, after)?;
            after = row.id;
            if self.gone.contains(&row.id) {
                continue;
            }
            if self.under_way.insert(row.id) {
                if !self.shares.contains_key(&row.id) {
                    let share = self.unpark(signal, &row);
                    self.shares.insert(row.id, (signal, share));
                }
                let records = self.shares.get(&row.id).map_or(row.records, |(_, share)| share.records());
                let Row { id, encoding, body, .. } = row;
                return Some(Kept { id, encoding, records, body: body.into() });
            }
            // The points of a stream must not overtake each other.
            if signal == Signal::Metrics {
                return None;
            }
        }
    }

    /// What is left is there for the next run, which counts the calls that no other request has brought in.
    fn close(&mut self) {
        for (_, (_, share)) in std::mem::take(&mut self.shares) {
            self.park(share);
        }
        let _ = self.store.shrink();
    }
}

#[cfg(test)]
mod tests;
