//! What became of each call: exported, filtered, or lost and where. The calls of a batch go to several outputs, each in
//! requests of its own; a call counts once, as exported where any output took it. Pure counting.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::model::counts::Counts;

/// Where calls are lost on their way from the kernel's hook to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// No room for the state of a call in flight.
    State,
    /// The exit of the call never came.
    NoExit,
    /// The kernel skipped a program (`recursion_misses`).
    Missed,
    /// The kernel's ring was full.
    Ring,
    /// A record that does not hold what it says.
    Malformed,
    /// An output's queue was full, and there is another output.
    Queue,
    /// The backend took the request but not this part (OTLP partial success).
    Rejected,
    /// The backend refused the request for good.
    Refused,
    /// The backend could not be reached, or asked for patience, until the time for retries was over.
    GivenUp,
    /// The backend does not take this signal.
    SwitchedOff,
    /// It had to make room in the spool.
    SpoolFull,
    /// It could not be read from the spool any more.
    SpoolDamaged,
    /// A file or stdout could not be written.
    Write,
    /// mqspan ended before the call was delivered.
    Shutdown,
}

impl Stage {
    /// All of them, in the order of the way.
    pub const ALL: [Self; 14] = [
        Self::State,
        Self::NoExit,
        Self::Missed,
        Self::Ring,
        Self::Malformed,
        Self::Queue,
        Self::Rejected,
        Self::Refused,
        Self::GivenUp,
        Self::SwitchedOff,
        Self::SpoolFull,
        Self::SpoolDamaged,
        Self::Write,
        Self::Shutdown,
    ];

    /// As the statistics and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::NoExit => "no_exit",
            Self::Missed => "missed",
            Self::Ring => "ring",
            Self::Malformed => "malformed",
            Self::Queue => "queue",
            Self::Rejected => "rejected",
            Self::Refused => "refused",
            Self::GivenUp => "given_up",
            Self::SwitchedOff => "switched_off",
            Self::SpoolFull => "spool_full",
            Self::SpoolDamaged => "spool_damaged",
            Self::Write => "write",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What became of the records of one signal at one output.
#[derive(Debug, Default)]
pub struct OutputCounts {
    sent: AtomicU64,
    rejected: AtomicU64,
    lost: AtomicU64,
}

/// The counts of a whole run, shared by everything that counts.
#[derive(Debug)]
pub struct Ledger {
    received: AtomicU64,
    hurries: AtomicBool,
    filtered: AtomicU64,
    exported: AtomicU64,
    spool: Option<Spooled>,
    lost: [AtomicU64; Stage::ALL.len()],
    kernel: KernelCounts,
    outputs: Vec<(String, OutputCounts)>,
}

/// Calls that went to another run, and that came from one.
#[derive(Debug, Default)]
struct Spooled {
    spooled: AtomicU64,
    restored: AtomicU64,
}

/// Why what a thread publishes could not be taken: it could not be read, says that it is not valid, has ids of zeros, or
/// the process's files do not tell where it is.
const CONTEXT_FAILURES: [&str; 4] = ["unreadable", "invalid", "zero_id", "file"];

/// The kernel side's counts as they were read last.
#[derive(Debug, Default)]
struct KernelCounts {
    filtered: AtomicU64,
    limited: AtomicU64,
    unpaired: AtomicU64,
    tree_full: AtomicU64,
    skipped: Mutex<BTreeMap<String, u64>>,
    untracked: AtomicU64,
    images: AtomicU64,
    queues: AtomicU64,
    unlinked: AtomicU64,
    contexts: [AtomicU64; CONTEXT_FAILURES.len()],
}

/// What the kernel side did not see, besides calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Forks that found the set of traced processes full: with each, a subtree of the command went unseen.
    pub forks: u64,
    /// Runs of programs inside calls that the kernel skipped, by the functions that they are on.
    pub skipped: BTreeMap<String, u64>,
    /// Messages that found no room to be followed.
    pub untracked: u64,
    /// Calls whose process the kernel side had no room to describe: /proc had to do.
    pub images: u64,
    /// Calls on queues beyond those that are kept: these have no gauges.
    pub queues: u64,
    /// Messages received whose send could not be told.
    pub unlinked: u64,
}

impl Ledger {
    /// Nothing has been counted yet; `outputs` are named as the statistics name them,
    /// `otlp.traces`.
    pub fn new(outputs: Vec<String>, has_spool: bool) -> Arc<Self> {
        Arc::new(Self {
            received: AtomicU64::new(0),
            hurries: AtomicBool::new(false),
            filtered: AtomicU64::new(0),
            exported: AtomicU64::new(0),
            spool: has_spool.then(Spooled::default),
            lost: Default::default(),
            kernel: KernelCounts::default(),
            outputs: outputs.into_iter().map(|name| (name, OutputCounts::default())).collect(),
        })
    }

    /// A record came out of the ring. False: there is only time left to count it.
    pub fn received(&self) -> bool {
        self.received.fetch_add(1, Relaxed);
        let hurries = self.hurries.load(Relaxed);
        if hurries {
            // At once: the end waits for what has not come to its end.
            self.lose(Stage::Shutdown, 1);
        }
        !hurries
    }

    /// The time for deliveries is over: what comes now is counted, and lost.
    pub fn hurry(&self) {
        self.hurries.store(true, Relaxed);
    }

    /// So many calls were found in the spool at the start: until they are under way they count as left in it.
    pub fn restored(&self, calls: u64) {
        if let Some(spool) = &self.spool {
            spool.restored.fetch_add(calls, Relaxed);
            spool.spooled.fetch_add(calls, Relaxed);
        }
    }

    /// These calls are with another request that is left in the spool.
    pub fn back_in_spool(&self, calls: u64) {
        if let Some(spool) = &self.spool {
            spool.spooled.fetch_add(calls, Relaxed);
        }
    }

    /// A request that counted as left in the spool had to make room, and its calls are lost, unless another request
    /// `still` carries them.
    pub fn dropped_from_spool(&self, calls: u64, still: bool) {
        if let (Some(spool), false) = (&self.spool, still) {
            spool.spooled.fetch_sub(calls, Relaxed);
            self.lose(Stage::SpoolFull, calls);
        }
    }

    /// What is left in the spool can't be read any more.
    pub fn spool_damaged(&self) {
        let calls = self.spool.as_ref().map_or(0, |spool| spool.spooled.swap(0, Relaxed));
        self.lose(Stage::SpoolDamaged, calls);
    }

    /// A filter of user space refused a call.
    pub fn filtered(&self) {
        self.filtered.fetch_add(1, Relaxed);
    }

    /// Calls were aggregated that make no records: with metrics alone they are exported by that, unless a filter of
    /// user space refused them.
    pub fn aggregated(&self, calls: u64, passed: bool) {
        self.received.fetch_add(calls, Relaxed);
        let to = if passed { &self.exported } else { &self.filtered };
        to.fetch_add(calls, Relaxed);
    }

    /// A record was not one.
    pub fn malformed(&self) {
        self.received.fetch_add(1, Relaxed);
        self.lose(Stage::Malformed, 1);
    }

    fn lose(&self, stage: Stage, calls: u64) {
        self.lost[stage as usize].fetch_add(calls, Relaxed);
    }

    /// Spans of applications that were published and could not be taken, by the reason.
    pub fn context_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.kernel.contexts.each_ref().map(|count| count.load(Relaxed));
        CONTEXT_FAILURES.into_iter().zip(counts)
    }

    /// Takes the kernel side's counts: totals since the start.
    pub fn kernel(&self, counts: &Counts) {
        self.kernel.filtered.store(counts.filtered, Relaxed);
        self.kernel.limited.store(counts.limited, Relaxed);
        self.kernel.unpaired.store(counts.unpaired, Relaxed);
        self.kernel.tree_full.store(counts.tree_full, Relaxed);
        self.kernel.skipped.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&counts.missed_inside);
        self.kernel.untracked.store(counts.untracked, Relaxed);
        self.kernel.images.store(counts.images, Relaxed);
        let Counts { context_unreadable, context_invalid, context_zero, context_files, .. } = *counts;
        let contexts = [context_unreadable, context_invalid, context_zero, context_files];
        for (kept, count) in self.kernel.contexts.iter().zip(contexts) {
            kept.store(count, Relaxed);
        }
        self.kernel.queues.store(counts.queues, Relaxed);
        self.kernel.unlinked.store(counts.unlinked, Relaxed);
        for (stage, total) in [
            (Stage::State, counts.lost_state),
            (Stage::NoExit, counts.lost_no_exit),
            (Stage::Missed, counts.missed),
            (Stage::Ring, counts.lost_ring),
        ] {
            self.lost[stage as usize].store(total, Relaxed);
        }
    }

    /// What `records` of the output's signal came to.
    fn settle_output(&self, output: usize, records: u64, outcome: Outcome) {
        let Some((_, output)) = self.outputs.get(output) else { return };
        match outcome {
            Outcome::Sent { rejected } => {
                let rejected = rejected.min(records);
                output.sent.fetch_add(records - rejected, Relaxed);
                output.rejected.fetch_add(rejected, Relaxed);
            }
            Outcome::Lost(Stage::Refused) => {
                output.rejected.fetch_add(records, Relaxed);
            }
            Outcome::Lost(_) => {
                output.lost.fetch_add(records, Relaxed);
            }
            Outcome::Spooled | Outcome::Superseded => {}
        }
    }

    /// The counts as they stand. While calls are under way in user space, captured exceeds the sum of the others.
    pub fn totals(&self) -> Totals {
        let lost: BTreeMap<&'static str, u64> =
            Stage::ALL.iter().map(|stage| (stage.name(), self.lost[*stage as usize].load(Relaxed))).collect();
        let in_kernel: u64 = [Stage::State, Stage::NoExit, Stage::Missed, Stage::Ring]
            .iter()
            .map(|stage| self.lost[*stage as usize].load(Relaxed))
            .sum();
        let filtered_in_kernel = self.kernel.filtered.load(Relaxed);
        let limited = self.kernel.limited.load(Relaxed);
        Totals {
            captured: self.received.load(Relaxed) + filtered_in_kernel + limited + in_kernel,
            exported: self.exported.load(Relaxed),
            filtered: self.filtered.load(Relaxed) + filtered_in_kernel,
            spooled: self.spool.as_ref().map(|spool| spool.spooled.load(Relaxed)),
            restored: self.spool.as_ref().map(|spool| spool.restored.load(Relaxed)),
            limited,
            lost,
            unpaired: self.kernel.unpaired.load(Relaxed),
            outputs: self
                .outputs
                .iter()
                .map(|(name, output)| {
                    let count = |of: &AtomicU64| of.load(Relaxed);
                    let totals = OutputTotals {
                        sent: count(&output.sent),
                        rejected: count(&output.rejected),
                        lost: count(&output.lost),
                    };
                    (name.clone(), totals)
                })
                .collect(),
        }
    }

    /// Whether every call that was captured has come to its end.
    pub fn is_settled(&self) -> bool {
        self.under_way() == 0
    }

    /// Calls that have not come to their end yet.
    pub fn under_way(&self) -> u64 {
        self.totals().missing()
    }

    /// What the kernel side did not see, besides calls.
    pub fn unseen(&self) -> Unseen {
        let KernelCounts { tree_full, skipped, untracked, unlinked, images, queues, .. } = &self.kernel;
        let [forks, untracked, unlinked, images, queues] =
            [tree_full, untracked, unlinked, images, queues].map(|count| count.load(Relaxed));
        let skipped = skipped.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Unseen { forks, skipped, untracked, unlinked, images, queues }
    }

    /// The end: what an output still holds now is lost. Until then nothing is counted for it.
    pub fn close(&self) -> Totals {
        self.lose(Stage::Shutdown, self.under_way());
        self.totals()
    }
}

/// All counts, as `--stats-file` has them.
#[derive(Debug, Serialize)]
pub struct Totals {
    /// Calls whose entry and exit were seen, also those lost in the kernel.
    pub captured: u64,
    /// Calls that an output or backend accepted.
    pub exported: u64,
    /// Calls that a filter refused.
    pub filtered: u64,
    /// Calls left out by `--max-rate`.
    pub limited: u64,
    /// Calls left in the spool at the end, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spooled: Option<u64>,
    /// Calls found in the spool at the start, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<u64>,
    /// Calls lost, by stage.
    pub lost: BTreeMap<&'static str, u64>,
    /// Exits without an entry: outside of captured and lost.
    pub unpaired: u64,
    /// Records for each output and signal.
    pub outputs: BTreeMap<String, OutputTotals>,
}

impl Totals {
    /// Calls that have not come to their end.
    fn missing(&self) -> u64 {
        let settled = self.exported + self.filtered + self.limited + self.spooled.unwrap_or(0) + self.lost();
        (self.captured + self.restored.unwrap_or(0)).saturating_sub(settled)
    }

    /// Calls lost at any stage.
    pub fn lost(&self) -> u64 {
        self.lost.values().sum()
    }
}

/// Records (spans, log records, lines, metric points) of one output and signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OutputTotals {
    /// Accepted.
    pub sent: u64,
    /// Refused by the backend.
    pub rejected: u64,
    /// Never delivered.
    pub lost: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Delivered, but for the records that the backend says it rejected.
    Sent {
        /// How many.
        rejected: u64,
    },
    /// Not delivered.
    Lost(Stage),
    /// Left in the spool, for another run to deliver.
    Spooled,
    /// Points of cumulative streams for which a later one stands.
    Superseded,
}

/// The calls of one batch, until every request that carries them has come to its end: dropping the last part of it
/// settles them.
#[derive(Debug)]
pub struct Tally {
    ledger: Arc<Ledger>,
    calls: AtomicU64,
    accepted: Vec<AtomicU64>,
    spooled: AtomicBool,
    stage: AtomicU8,
    /// Tells it from others, also in another run.
    batch: u64,
}

impl Tally {
    /// A batch without calls.
    pub fn new(ledger: &Arc<Ledger>) -> Arc<Self> {
        Self::of(ledger, 0, rand::random())
    }

    /// A batch that comes back from the spool: its calls, which count as left in it so far, are under way again.
    pub fn from_spool(ledger: &Arc<Ledger>, calls: u64, batch: u64) -> Arc<Self> {
        if let Some(spool) = &ledger.spool {
            spool.spooled.fetch_sub(calls, Relaxed);
        }
        Self::of(ledger, calls, batch)
    }

    fn of(ledger: &Arc<Ledger>, calls: u64, batch: u64) -> Arc<Self> {
        Arc::new(Self {
            ledger: ledger.clone(),
            calls: AtomicU64::new(calls),
            accepted: ledger.outputs.iter().map(|_| AtomicU64::new(0)).collect(),
            spooled: AtomicBool::new(false),
            stage: AtomicU8::new(Stage::Shutdown as u8),
            batch,
        })
    }

    /// One call more.
    pub fn add(&self) {
        self.calls.fetch_add(1, Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let calls = *self.calls.get_mut();
        // A call is exported if any output took it. Which ones a partial success leaves out is not told.
        let exported = self.accepted.iter_mut().map(|accepted| *accepted.get_mut()).max().unwrap_or(0).min(calls);
        self.ledger.exported.fetch_add(exported, Relaxed);
        let rest = match &self.ledger.spool {
            Some(spool) if *self.spooled.get_mut() => &spool.spooled,
            _ => &self.ledger.lost[usize::from(*self.stage.get_mut())],
        };
        rest.fetch_add(calls - exported, Relaxed);
    }
}

/// What is to be done once an output has all records of a batch; done once, whichever output is the first.
pub struct OnExport(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl OnExport {
    /// `what` is done on the thread that settles.
    pub fn new(what: impl FnOnce() + Send + 'static) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Box::new(what)))))
    }

    fn run(&self) {
        let what = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(what) = what {
            what();
        }
    }
}

impl fmt::Debug for OnExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnExport").finish_non_exhaustive()
    }
}

/// Some records of one signal on their way to one output. One that is dropped on its way is lost at the end.
#[derive(Debug)]
pub struct Share {
    tally: Option<Arc<Tally>>,
    ledger: Arc<Ledger>,
    output: usize,
    records: u64,
    on_export: Option<Arc<OnExport>>,
}

impl Share {
    /// `records` of the calls of `tally`, for an output by its place in the ledger.
    pub fn of_calls(tally: &Arc<Tally>, output: usize, records: u64) -> Self {
        Self { tally: Some(tally.clone()), ledger: tally.ledger.clone(), output, records, on_export: None }
    }

    /// Records that are no calls.
    pub fn of_metrics(ledger: &Arc<Ledger>, output: usize, records: u64) -> Self {
        Self { tally: None, ledger: ledger.clone(), output, records, on_export: None }
    }

    /// `what` is done if the output takes all of them.
    pub fn on_export(mut self, what: Option<Arc<OnExport>>) -> Self {
        self.on_export = what;
        self
    }

    /// How many records.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Which batch they are of; 0 for none.
    pub fn batch(&self) -> u64 {
        self.tally.as_ref().map_or(0, |tally| tally.batch)
    }

    /// The calls of the batch, 0 once an output took them.
    pub fn uncounted_calls(&self) -> u64 {
        let Some(tally) = &self.tally else { return 0 };
        let is_counted = tally.accepted.iter().any(|accepted| accepted.load(Relaxed) > 0);
        if is_counted { 0 } else { tally.calls.load(Relaxed) }
    }

    /// Its calls are counted with another request of their batch.
    pub fn forfeit_calls(&mut self) {
        if let Some(tally) = &self.tally {
            tally.calls.store(0, Relaxed);
        }
    }

    /// A later point stands for so many.
    pub fn supersede(&mut self, records: u64) {
        self.records = self.records.saturating_sub(records);
    }

    /// Counts what became of them.
    pub fn settle(mut self, outcome: Outcome) {
        self.count(outcome);
    }

    fn count(&mut self, outcome: Outcome) {
        let records = std::mem::take(&mut self.records);
        self.ledger.settle_output(self.output, records, outcome);
        // Which records a partial success leaves out is not told.
        if let Some(what) = self.on_export.take().filter(|_| outcome == Outcome::Sent { rejected: 0 }) {
            what.run();
        }
        let Some(tally) = self.tally.take() else { return };
        match outcome {
            Outcome::Sent { rejected } => {
                let rejected = rejected.min(records);
                if let Some(accepted) = tally.accepted.get(self.output) {
                    accepted.fetch_add(records - rejected, Relaxed);
                }
                if rejected > 0 {
                    tally.stage.store(Stage::Rejected as u8, Relaxed);
                }
            }
            Outcome::Lost(stage) => tally.stage.store(stage as u8, Relaxed),
            Outcome::Spooled => tally.spooled.store(true, Relaxed),
            // Metrics carry no calls.
            Outcome::Superseded => {}
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.records > 0 {
            self.count(Outcome::Lost(Stage::Shutdown));
        }
    }
}

#[cfg(test)]
mod tests;
