//! The thread that takes the kernel's records from their rings to the pipeline. It sleeps while the ring of calls is empty
//! and asks the kernel side for one wake-up; after that it gathers for some milliseconds, so that a wake-up is not paid for
//! each record. It waits for nothing else, but for room in the queue of the only output.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::directory::SharedDirectory;
use super::memory;
use super::pipeline::Pipeline;
use crate::capability::{self, DAC_READ_SEARCH};
use crate::kernel::contexts::Contexts;
use crate::kernel::programs::Programs;
use crate::kernel::ring::Ring;
use crate::links::sequence::{PATIENCE, Sequence};
use crate::live::Lookout;
use crate::model::call::{Call, Image, Name, Notice};
use crate::model::counts::Counts;
use crate::model::reading::{QueueHeads, QueueName};
use crate::model::stuck::StuckCall;

/// As many records are taken before anything else is looked at: what they are decoded to stays in the processor's cache.
const AT_ONCE: usize = 512;
/// How long records are gathered for: what the ring must hold meanwhile is a small part of it.
const GATHER: Duration = Duration::from_millis(5);
/// How often the kernel side's counters are read.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// An image that another CPU is still writing stands before the one that is waited for: as often, this long.
const IMAGE_TRIES: u32 = 50;
const IMAGE_PAUSE: Duration = Duration::from_micros(100);

/// What the thread works with.
#[derive(Debug)]
pub struct ReaderOptions {
    /// Whether links are inferred from the order of calls.
    pub infers: bool,
    /// Where to look for threads that are in a receive already.
    pub lookout: Lookout,
    /// Calls that are under way for long, where these are told of.
    pub stuck: Option<Receiver<StuckCall>>,
    /// What metrics ask.
    pub directory: SharedDirectory,
}

/// The running thread.
#[derive(Debug)]
pub struct Reader {
    thread: JoinHandle<()>,
    stop: Arc<Stop>,
}

#[derive(Debug)]
struct Stop {
    asked: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// Has the thread look around.
    fn wake(&self) {
        // A counter that is full wakes, too.
        let _ = self.event.write(1);
    }

    /// The thread is awake.
    fn woken(&self) {
        let _ = self.event.read();
    }
}

impl Reader {
    /// Starts the thread; returns once it follows what comes, or with why it can't.
    pub fn start(programs: Arc<Programs>, options: ReaderOptions, pipeline: Pipeline) -> Result<Self, String> {
        let event =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|error| error.to_string())?;
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), event });
        let (ready, follows) = mpsc::channel();
        let seen = stop.clone();
        let read = move || {
            // What kprobes missed stands in a file of tracefs.
            capability::take_up(DAC_READ_SEARCH);
            match Rings::open(programs, &options, pipeline, &seen) {
                Ok(rings) => rings.follow(&options, &ready),
                Err(error) => _ = ready.send(Err(error)),
            }
        };
        let thread =
            thread::Builder::new().name("mqspan-reader".into()).spawn(read).map_err(|error| error.to_string())?;
        // The thread reports before it does anything else; if it died, its sender is gone.
        follows.recv().unwrap_or_else(|_| Err("the reader's thread died".into()))?;
        Ok(Self { thread, stop })
    }

    /// What has the thread look around.
    pub fn waker(&self) -> impl Fn() + Send + use<> {
        let stop = self.stop.clone();
        move || stop.wake()
    }

    /// Takes what is left in the rings, and ends the thread. No call begins any more by then.
    pub fn stop(self) {
        self.stop.asked.store(true, Ordering::Relaxed);
        self.stop.wake();
        let _ = self.thread.join();
    }
}

struct Rings {
    programs: Arc<Programs>,
    calls: Ring,
    images: Ring,
    notices: Ring,
    sequence: Sequence,
    contexts: Contexts,
    directory: SharedDirectory,
    pipeline: Pipeline,
    stop: Arc<Stop>,
    /// What is taken at once, emptied each time.
    ready: Vec<Box<Call>>,
    /// What calls stood in, to be used again.
    spare: Vec<Box<Call>>,
}

impl Rings {
    fn open(
        programs: Arc<Programs>,
        options: &ReaderOptions,
        pipeline: Pipeline,
        stop: &Arc<Stop>,
    ) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let woken = stop.clone();
        let mut pipeline = pipeline;
        pipeline.started(Box::new(move || woken.wake()));
        let woken = stop.clone();
        options.directory.wake_by(move || woken.wake());
        Ok(Self {
            calls: programs.calls().map_err(text)?,
            images: programs.images().map_err(text)?,
            notices: programs.notices().map_err(text)?,
            sequence: Sequence::default(),
            contexts: Contexts::of(&programs).map_err(|error| error.to_string())?,
            directory: options.directory.clone(),
            pipeline,
            stop: stop.clone(),
            programs,
            ready: Vec::with_capacity(AT_ONCE),
            spare: Vec::with_capacity(AT_ONCE),
        })
    }

    /// Takes what comes, until the thread is told to stop.
    fn follow(mut self, options: &ReaderOptions, ready: &mpsc::Sender<Result<(), String>>) {
        // Links can be inferred once it is known who takes messages unseen; the ring is read meanwhile.
        let mut looked = options.infers.then(|| look(&options.lookout, &self.stop));
        if looked.is_none() {
            let _ = ready.send(Ok(()));
        }
        let mut counted = Instant::now();
        // A run that is over within a second needs none of it.
        let mut give_back: fn() = memory::settle;
        while !self.stop.asked.load(Ordering::Relaxed) {
            self.stop.woken();
            if let Some(early) = looked.as_ref().and_then(|looked| looked.try_recv().ok()) {
                looked = None;
                self.sequence.found(early);
                let _ = ready.send(Ok(()));
            }
            let (turn, until) = (self.directory.turn(), self.calls.end());
            let taken = self.take_calls();
            self.take_others();
            let Self { directory, calls, sequence, .. } = &self;
            directory.has_taken(turn, || if calls.is_past(until) { sequence.heads() } else { QueueHeads::new() });
            for stuck in options.stuck.iter().flat_map(Receiver::try_iter) {
                self.pipeline.stuck(stuck);
            }
            let now = Instant::now();
            if now - counted >= COUNT_EVERY {
                counted = now;
                self.sequence.forget(|tid| !Path::new("/proc").join(tid.to_string()).exists());
                let counts = self.counts();
                self.pipeline.counts(&counts);
                give_back();
                give_back = memory::trim;
            }
            self.expire(now);
            let again = self.pipeline.tick(now);
            for (image, slot) in self.pipeline.take_slots() {
                self.contexts.put(&image, slot);
            }
            for name in self.directory.take_dropped_names() {
                self.programs.unmark_name(name);
            }
            for image in self.pipeline.take_evicted() {
                self.programs.unmark_image(&image);
            }
            if taken >= AT_ONCE {
                continue;
            }
            if taken > 0 {
                wait(&[self.stop.event.as_fd()], GATHER);
                continue;
            }
            let expiry = self.sequence.deadline().map(|deadline| deadline.saturating_duration_since(now));
            let again = again.min(expiry.unwrap_or(COUNT_EVERY)).min(COUNT_EVERY);
            self.programs.armed().store(1, Ordering::Relaxed);
            // The kernel side writes its record and then reads the flag: whichever comes first, one of both sees the other.
            fence(Ordering::SeqCst);
            if self.take_calls() == 0 {
                let rings = [self.stop.event.as_fd(), self.calls.as_fd(), self.notices.as_fd()];
                wait(&rings, again);
            }
            self.programs.armed().store(0, Ordering::Relaxed);
        }
        for stuck in options.stuck.iter().flat_map(Receiver::try_iter) {
            self.pipeline.stuck(stuck);
        }
        self.end();
    }

    fn end(mut self) {
        while self.take_calls() > 0 {}
        // Nothing more comes that could be waited for.
        self.expire(Instant::now() + PATIENCE);
        self.take_others();
        self.pipeline.settle();
        self.directory.has_taken(u64::MAX, || self.sequence.heads());
        let counts = self.counts();
        self.pipeline.counts(&counts);
    }

    fn counts(&self) -> Counts {
        Counts { unlinked: self.sequence.unlinked(), ..self.programs.counts() }
    }

    /// How many records there were, up to [`AT_ONCE`].
    fn take_calls(&mut self) -> usize {
        let mut ready = std::mem::take(&mut self.ready);
        let Self { calls, sequence, pipeline, spare, .. } = self;
        let now = Instant::now();
        let mut boxed = |call| match spare.pop() {
            Some(mut place) => {
                *place = call;
                place
            }
            None => Box::new(call),
        };
        let taken = calls.take(AT_ONCE, |bytes| match Call::decode(bytes) {
            Ok(call) => sequence.offer(boxed(call), now, &mut |call| ready.push(call)),
            Err(_) => pipeline.malformed(),
        });
        ready.drain(..).for_each(|call| self.pass(call));
        self.ready = ready;
        taken
    }

    /// Passes on what has waited long enough for its link.
    fn expire(&mut self, now: Instant) {
        let mut ready = Vec::new();
        self.sequence.expire(now, &mut |call| ready.push(call));
        ready.into_iter().for_each(|call| self.pass(call));
    }

    fn pass(&mut self, call: Box<Call>) {
        self.pipeline.has_ended(&call);
        if call.measured && call.inferred_wait_ns().is_some() {
            self.pipeline.waited(&call);
        }
        let done = match call.filtered {
            true => Some(call),
            false => {
                self.learn(&call);
                self.pipeline.call(call)
            }
        };
        if self.spare.len() < AT_ONCE {
            self.spare.extend(done);
        }
    }

    /// Takes images until the call's is among them. Its record was complete before the call's: it is not in the ring, or
    /// stands behind one that another CPU is still writing. Where it never comes the call is described without.
    fn learn(&mut self, call: &Call) {
        for _ in 0..IMAGE_TRIES {
            if self.pipeline.knows(&call.image) {
                return;
            }
            self.take_others();
            if self.images.is_empty() {
                break;
            }
            thread::sleep(IMAGE_PAUSE);
        }
        if !self.pipeline.knows(&call.image) {
            self.pipeline.no_image(&call.identity());
        }
    }

    /// Takes images, names, and what became of them.
    fn take_others(&mut self) {
        let Self { images, notices, pipeline, .. } = self;
        images.take(usize::MAX, |bytes| {
            if let Ok(name) = Name::decode(bytes) {
                pipeline.name(&name);
            } else if let Ok(image) = Image::decode(bytes) {
                pipeline.image(image);
            }
        });
        notices.take(usize::MAX, |bytes| match Notice::decode(bytes) {
            Ok(Notice::Published(key)) => pipeline.published(key),
            Ok(Notice::Ended(key)) => pipeline.ended(key),
            Err(_) => {}
        });
    }
}

/// Looks for threads that are in a receive, on a thread of its own: there may be many to look at.
fn look(lookout: &Lookout, stop: &Arc<Stop>) -> Receiver<Vec<(u32, Option<QueueName>)>> {
    let (found, looked) = mpsc::sync_channel(1);
    let (lookout, woken) = (lookout.clone(), stop.clone());
    thread::spawn(move || {
        let _ = found.send(lookout.receivers());
        woken.wake();
    });
    looked
}

fn wait(fds: &[BorrowedFd<'_>], most: Duration) {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    // Rounded up: a rest below a millisecond must not become a busy loop.
    let most = PollTimeout::try_from(most + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    // Ended by a signal or for want of memory, it is only shorter.
    let _: Result<i32, Errno> = poll(&mut fds, most);
}
