//! The one stage that touches memory, files and /proc entries of other processes, each of which may hold up whoever looks at
//! it for as long as its owner likes. So it is done by threads that can be left behind: the reader asks and goes on, and
//! takes the answers when they are there. What is next is decided by `schedule`, what is looked at again by `watch`;
//! `probe` reads.

mod called;
pub mod files;
mod findings;
mod maps;
mod probe;
mod schedule;
mod threads;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tracing::warn;

use self::called::Called;
use self::findings::{Found, Progress, Remembered};
use self::probe::{PAUSE, Probe};
use self::schedule::{Asked, Kind, ProbeId, Schedule};
use self::watch::Watch;
use super::process_context::{Published, Unreadable};
use super::registry::{ImageFacts, Inquiry, Subject};
use crate::capability::{self, DAC_READ_SEARCH};
use crate::model::call::{Identity, Image, ImageKey};
use crate::model::slot::Slot;

/// As many asks wait to be scheduled.
const ASKS: usize = 4096;
/// As many answers wait to be taken, of 10 KiB at most; meanwhile no probe begins.
const ANSWERS: usize = 256;
/// How soon it is tried again to give an answer for which there was no room.
const RETRY: Duration = Duration::from_millis(5);
/// A probe goes on for so long before others have their turn.
const SLICE: Duration = Duration::from_millis(5);
/// A worker's stack: a file's symbols are looked up in tens of KiB.
const STACK: usize = 256 << 10;
/// Sweeps are of no process and no user.
const NOBODY: (ImageKey, u32) = (ImageKey { pid: 0, started_ns: 0, exec_id: 0 }, u32::MAX);

/// What the reader is told.
#[derive(Debug)]
pub enum Answer {
    /// ImageFacts about an image: [`super::registry::Registry::learn`].
    Facts(ImageKey, ImageFacts),
    /// What an image has published: [`super::registry::Registry::publish`].
    Published(ImageKey, Published),
    /// What /proc says of an image whose record was lost: [`super::registry::Registry::add`].
    Described(Box<Image>),
    /// All that was asked about an image at its first call was answered, or will not be: its calls need not wait.
    Introduced(ImageKey),
    /// Where an image's threads publish their spans; None: nowhere, or not any more.
    Slot(ImageKey, Option<Slot>),
    /// The process of an image has ended, or runs another.
    Ended(ImageKey),
}

enum ProberMessage {
    Introduce(Inquiry),
    Describe(Subject, Vec<u8>),
    Published(Subject),
    Called(ImageKey),
    Ended(ImageKey),
    Stepped(Stepped),
    Stop,
}

/// What a worker has done.
struct Stepped {
    id: ProbeId,
    key: ImageKey,
    kind: Kind,
    /// What is left to do, and after what time.
    next: Option<(Probe, Duration)>,
    cost: Duration,
    found: Vec<Found>,
}

type Wake = Box<dyn Fn() + Send + Sync>;

/// The stage, as the reader sees it.
#[derive(Debug)]
pub struct Prober {
    asks: SyncSender<Box<ProberMessage>>,
    answers: Receiver<Answer>,
    counts: Arc<ProbeCounts>,
    waker: Waker,
    called: Called,
}

#[derive(Clone, Default)]
struct Waker(Arc<OnceLock<Wake>>);

impl std::fmt::Debug for Waker {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Waker")
    }
}

/// What is counted.
#[derive(Debug, Default)]
struct ProbeCounts {
    /// Files that contradict themselves, and images beyond those whose threads are watched.
    files: AtomicU64,
    /// Contexts that could not be read, by the reason.
    unreadable: [AtomicU64; Unreadable::ALL.len()],
}

impl ProbeCounts {
    fn unreadable(&self, why: Unreadable) {
        self.unreadable[why as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Prober {
    /// Starts the stage; its threads end when this is gone, those that are stuck with the program. `threads`: whether it is
    /// found out where threads publish their spans.
    pub fn start(threads: bool) -> std::io::Result<Self> {
        let (asks, messages) = mpsc::sync_channel(ASKS);
        let (send, answers) = mpsc::sync_channel(ANSWERS);
        let (counts, waker) = (Arc::new(ProbeCounts::default()), Waker::default());
        let dispatcher = Dispatcher {
            schedule: Schedule::default(),
            watch: Watch::default(),
            threads,
            workers: Workers::default(),
            answers: send,
            undelivered: VecDeque::new(),
            counts: counts.clone(),
            waker: waker.clone(),
        };
        let stack = thread::Builder::new().name("mqspan-prober".into()).stack_size(STACK);
        let from_workers = asks.clone();
        stack.spawn(move || dispatcher.run(&messages, &from_workers))?;
        Ok(Self { asks, answers, counts, waker, called: Called::new() })
    }

    /// Has this called whenever there are answers; the first time counts.
    pub fn wake_with(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.0.set(Box::new(wake));
    }

    fn ask(&self, message: ProberMessage) -> bool {
        // Where the stage is gone, which it is not before this, nothing is read.
        self.asks.try_send(Box::new(message)).is_ok()
    }

    /// An image has made its first call. Whether its calls are to wait until it is [`Answer::Introduced`].
    pub fn introduce(&self, inquiry: Inquiry) -> bool {
        self.asks_about(&inquiry.subject, ProberMessage::Introduce(inquiry))
    }

    /// A call has come whose image is not known. Whether it is to wait until that is [`Answer::Introduced`].
    pub fn describe(&self, of: &Identity) -> bool {
        let subject = Subject { image: of.image, local_pid: of.local_pid, uid: of.uid, environ_at: 0 };
        self.asks_about(&subject, ProberMessage::Describe(subject, of.comm.clone()))
    }

    /// An image has published something.
    pub fn published(&self, subject: Subject) {
        self.asks_about(&subject, ProberMessage::Published(subject));
    }

    fn asks_about(&self, subject: &Subject, message: ProberMessage) -> bool {
        if subject.local_pid == 0 {
            self.counts.unreadable(Unreadable::Invisible);
            return false;
        }
        let is_asked = self.ask(message);
        if !is_asked {
            self.counts.unreadable(Unreadable::Dropped);
        }
        is_asked
    }

    /// An image makes calls, at this time of the kernel's clock, in ns: cheap enough for each of them.
    pub fn called(&mut self, key: &ImageKey, now_ns: u64) {
        if self.called.is_due(key, now_ns) {
            // One that finds no room is told with a later call.
            let _ = self.asks.try_send(Box::new(ProberMessage::Called(*key)));
        }
    }

    /// An image has ended, by the kernel side's word.
    pub fn ended(&self, key: ImageKey) {
        self.ask(ProberMessage::Ended(key));
    }

    /// The next answer, if there is one.
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// Waits until then for the next answer.
    pub fn answer_until(&self, until: Instant) -> Option<Answer> {
        self.answers.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
    }

    /// Files that contradict themselves, and images beyond those that are watched.
    pub fn bad_files(&self) -> u64 {
        self.counts.files.load(Ordering::Relaxed)
    }

    /// Says which contexts could not be read, and forgets it.
    pub fn report(&self) {
        for (why, count) in Unreadable::ALL.iter().zip(&self.counts.unreadable) {
            let count = count.swap(0, Ordering::Relaxed);
            if count > 0 {
                warn!("{count} times a process context counted as not published: {why}");
            }
        }
    }
}

/// The thread that hands out probes.
struct Dispatcher {
    schedule: Schedule<Probe>,
    watch: Watch,
    /// Whether it is found out where threads publish.
    threads: bool,
    workers: Workers,
    answers: SyncSender<Answer>,
    undelivered: VecDeque<Answer>,
    counts: Arc<ProbeCounts>,
    waker: Waker,
}

/// What a worker is given.
type Job = (ProbeId, ImageKey, Kind, Probe);

/// The threads that may be left behind.
#[derive(Default)]
struct Workers {
    idle: Vec<Sender<Job>>,
    busy: BTreeMap<ProbeId, Sender<Job>>,
    remembered: Arc<Remembered>,
}

impl Workers {
    /// Gives a probe to a worker; false where there is none and none can be started.
    fn run(&mut self, job: Job, messages: &SyncSender<Box<ProberMessage>>) -> bool {
        let (id, ..) = job;
        let worker = self.idle.pop().or_else(|| {
            let (jobs, coming) = mpsc::channel();
            let (messages, remembered) = (messages.clone(), self.remembered.clone());
            let stack = thread::Builder::new().name("mqspan-probe".into()).stack_size(STACK);
            let work = move || {
                // Other users' files may be closed to this one.
                capability::take_up(DAC_READ_SEARCH);
                work(&coming, &messages, &remembered);
            };
            stack.spawn(work).ok().map(|_| jobs)
        });
        let Some(worker) = worker else { return false };
        let is_sent = worker.send(job).is_ok();
        self.busy.insert(id, worker);
        is_sent
    }

    /// A worker has made its step. One that was left behind ends, another has its place.
    fn ran(&mut self, id: ProbeId, was_abandoned: bool) {
        if let Some(worker) = self.busy.remove(&id).filter(|_| !was_abandoned) {
            self.idle.push(worker);
        }
    }
}

/// The CPU time that this thread has used.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn work(jobs: &Receiver<Job>, messages: &SyncSender<Box<ProberMessage>>, remembered: &Arc<Remembered>) {
    while let Ok((id, key, kind, probe)) = jobs.recv() {
        let (began, before, mut found) = (Instant::now(), used(), Vec::new());
        let mut next = Some((probe, Duration::ZERO));
        // Most probes are over sooner than others could be given a turn.
        while let Some((probe, after)) = next.take() {
            if !after.is_zero() || began.elapsed() > SLICE {
                next = Some((probe, after));
                break;
            }
            if let (Some(probe), Progress::More(after)) = probe.step(remembered, &mut |one| found.push(one)) {
                next = Some((probe, after));
            }
        }
        let cost = used().saturating_sub(before);
        if messages.send(Box::new(ProberMessage::Stepped(Stepped { id, key, kind, next, cost, found }))).is_err() {
            return;
        }
    }
}

impl Dispatcher {
    fn run(mut self, messages: &Receiver<Box<ProberMessage>>, asks: &SyncSender<Box<ProberMessage>>) {
        loop {
            let now = Instant::now();
            self.look_around(now, asks);
            let Ok(had_some) = self.deliver() else { return };
            if had_some && let Some(wake) = self.waker.0.get() {
                wake();
            }
            let wait = match self.undelivered.is_empty() {
                true => self.next().map(|at| at.saturating_duration_since(Instant::now())),
                false => Some(RETRY),
            };
            let first = match wait {
                Some(wait) => messages.recv_timeout(wait),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let more = match first {
                Ok(message) => iter::once(message).chain(messages.try_iter().take(ASKS)),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            for message in more {
                if matches!(*message, ProberMessage::Stop) {
                    return;
                }
                self.take(*message, Instant::now());
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        [self.schedule.next(), self.watch.next()].into_iter().flatten().min()
    }

    /// Gives the answers that there is room for; whether there were any. An error where nobody takes them any more.
    fn deliver(&mut self) -> Result<bool, ()> {
        let mut had_some = false;
        while let Some(answer) = self.undelivered.pop_front() {
            match self.answers.try_send(answer) {
                Ok(()) => had_some = true,
                Err(TrySendError::Full(answer)) => {
                    self.undelivered.push_front(answer);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Err(()),
            }
        }
        Ok(had_some)
    }

    /// Leaves behind what hangs, and begins what is due.
    fn look_around(&mut self, now: Instant, asks: &SyncSender<Box<ProberMessage>>) {
        for (_, key, kind) in self.schedule.expire(now) {
            self.ended(key, kind);
        }
        for subject in self.watch.due(now).into_iter().filter(|_| self.threads) {
            let Subject { image, uid, .. } = subject;
            if self.schedule.ask(image, uid, Kind::Thread, Probe::Thread(subject), now, now) == Asked::Dropped {
                self.counts.files.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(subjects) = self.watch.sweep(now).filter(|subjects| !subjects.is_empty()) {
            let (nothing, nobody) = NOBODY;
            self.schedule.ask(nothing, nobody, Kind::Sweep, Probe::Sweep(subjects), now, now);
        }
        while self.undelivered.is_empty()
            && let Some((id, key, kind, probe)) = self.schedule.start(now)
        {
            if !self.workers.run((id, key, kind, probe), asks) {
                self.schedule.finish(id, Duration::ZERO, now);
                self.dropped(key, kind);
            }
        }
        for (key, kind) in self.schedule.take_dropped() {
            self.dropped(key, kind);
        }
    }

    /// Nobody need wait any more for what was asked.
    fn ended(&mut self, key: ImageKey, kind: Kind) {
        if matches!(kind, Kind::Introduction | Kind::Description) {
            self.undelivered.push_back(Answer::Introduced(key));
        }
    }

    fn dropped(&mut self, key: ImageKey, kind: Kind) {
        self.counts.unreadable(Unreadable::Dropped);
        self.ended(key, kind);
    }

    fn ask(&mut self, subject: Subject, probe: Probe, due: Instant, now: Instant) {
        let (key, kind) = (subject.image, probe.kind());
        if self.schedule.ask(key, subject.uid, kind, probe, due, now) == Asked::Dropped {
            self.dropped(key, kind);
        }
    }

    fn take(&mut self, message: ProberMessage, now: Instant) {
        match message {
            ProberMessage::Introduce(inquiry) => {
                self.watch(inquiry.subject, now);
                self.ask(inquiry.subject, Probe::Introduction(inquiry), now, now);
            }
            ProberMessage::Describe(subject, comm) => self.ask(subject, Probe::Description { subject, comm }, now, now),
            ProberMessage::Published(subject) => self.ask(subject, Probe::Publication(subject), now + PAUSE, now),
            ProberMessage::Called(key) => self.watch.called(&key, now),
            ProberMessage::Ended(key) => self.forget(key),
            ProberMessage::Stepped(stepped) => self.stepped(stepped, now),
            ProberMessage::Stop => {}
        }
    }

    fn watch(&mut self, subject: Subject, now: Instant) {
        let (before, has_room) = self.watch.add(subject, now);
        if let Some(before) = before {
            self.undelivered.push_back(Answer::Slot(before, None));
        }
        if !has_room && self.threads {
            self.counts.files.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn forget(&mut self, key: ImageKey) {
        if self.watch.forget(&key) {
            self.undelivered.push_back(Answer::Slot(key, None));
        }
    }

    fn stepped(&mut self, stepped: Stepped, now: Instant) {
        let Stepped { id, key, kind, next, cost, found } = stepped;
        let is_done = next.is_none();
        let was_abandoned = match next {
            Some((probe, after)) => self.schedule.pause(id, probe, now + after, cost, now),
            None => self.schedule.finish(id, cost, now),
        };
        self.workers.ran(id, was_abandoned);
        let mut was_described = false;
        for found in found {
            let answer = match found {
                Found::Facts(key, facts) => Answer::Facts(key, facts),
                Found::Context(key, Some(published)) => Answer::Published(key, published),
                Found::Context(_, None) => continue,
                Found::Described(image) => {
                    was_described = true;
                    Answer::Described(image)
                }
                Found::Ended(key) => {
                    self.forget(key);
                    Answer::Ended(key)
                }
                Found::Slot(key, slot, mapped) => match self.watch.found(&key, slot, mapped) {
                    true => Answer::Slot(key, slot),
                    false => continue,
                },
                Found::Swept(swept) => {
                    self.watch.swept(&swept, now);
                    continue;
                }
                Found::Unreadable(why) => {
                    self.counts.unreadable(why);
                    continue;
                }
                Found::BadFile => {
                    self.counts.files.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            self.undelivered.push_back(answer);
        }
        // What was described is introduced next.
        if is_done && !was_described {
            self.ended(key, kind);
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        // Where there is no room the stage ends with the next answer that nobody takes.
        let _ = self.asks.try_send(Box::new(ProberMessage::Stop));
    }
}

#[cfg(test)]
mod tests;
