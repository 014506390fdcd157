//! The thread that takes the kernel's records and hands them on. It sleeps while the ring is empty and asks the kernel
//! side for one wake-up; after that it gathers for some milliseconds, so that a wake-up is not paid for each record.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libbpf_rs::{RingBuffer, RingBufferBuilder};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::aggregates::{Aggregates, Taken};
use super::contexts::Contexts;
use super::programs::{Config, Counts, Programs};
use crate::config::Rate;
use crate::config::filter::Filters;
use crate::config::values::{HookKind, Op};
use crate::event::{Call, Image, ImageKey, Name, QueueKey};
use crate::links::sequence::{PATIENCE, Sequence};
use crate::metrics::queues::QueueName;
use crate::process::calls;
use crate::process::publishers::Publishers;

/// As many records are taken before anything else is looked at.
const AT_ONCE: usize = 4096;
/// How long records are gathered for: what the ring must hold meanwhile is a small part of it.
const GATHER: Duration = Duration::from_millis(5);
/// How often the kernel side's counters are read.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// An image that another CPU is still writing stands before the one that is waited for: as often, this long.
const IMAGE_TRIES: u32 = 50;
const IMAGE_PAUSE: Duration = Duration::from_micros(100);

/// Where the records go.
pub trait Records {
    /// What the kernel side recorded of a process image.
    fn image(&mut self, image: Image);
    /// An image has published its process context.
    fn published(&mut self, key: ImageKey);
    /// Whether the image is known.
    fn knows(&mut self, key: &ImageKey) -> bool;
    /// The image of this call was not recorded: the ring of images was full, or it is long forgotten.
    fn no_image(&mut self, call: &Call);
    /// A call; its image came before where it could.
    fn call(&mut self, call: Call);
    /// A receive, with a record or without, whose message's wait was inferred and is in no metric of the kernel side.
    fn waited(&mut self, call: &Call);
    /// A record of a call that is none.
    fn malformed(&mut self);
    /// The name behind a number of the kernel side's series.
    fn name(&mut self, name: Name);
    /// What the kernel side's metrics show; returns the queues that it need not keep any more.
    fn metrics(&mut self, taken: Taken) -> Vec<QueueKey>;
    /// What the kernel side counted so far.
    fn counts(&mut self, counts: Counts);
    /// No more calls come: waits, not for long, for what is still to be known of those that came.
    fn settle(&mut self);
    /// Time has passed; returns when to come again at the latest.
    fn tick(&mut self, now: Instant) -> Duration;
}

/// What the thread is told.
#[derive(Debug)]
pub struct Orders {
    /// The kind of hooks.
    pub kind: HookKind,
    /// Where tracefs is mounted.
    pub tracefs: Option<PathBuf>,
    /// The filters.
    pub filters: Arc<Filters>,
    /// The number of mqspan's own ipc namespace.
    pub own_ipc_namespace: u32,
    /// The process of the traced command.
    pub tree: Option<u32>,
    /// Whether calls become records.
    pub makes_records: bool,
    /// How many calls become records.
    pub rate: Rate,
    /// How often metrics are read; None: there are none.
    pub metrics: Option<Duration>,
}

/// The running thread.
#[derive(Debug)]
pub struct Driver {
    thread: JoinHandle<Vec<String>>,
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

impl Driver {
    /// Starts the thread; returns once everything is attached, or with why it could not be.
    pub fn start(orders: Orders, records: impl Records + Send + 'static) -> Result<Self, String> {
        let event =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|error| error.to_string())?;
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), event });
        let (ready, attached) = mpsc::channel();
        let seen = stop.clone();
        let thread = thread::Builder::new()
            .name("mqspan-driver".into())
            .spawn(move || drive(&orders, records, &seen, &ready))
            .map_err(|error| error.to_string())?;
        // The thread reports before it does anything else; if it died, its sender is gone.
        attached.recv().unwrap_or_else(|_| Err("the driver thread died".into()))?;
        Ok(Self { thread, stop })
    }

    /// Detaches, takes what is left in the ring, and ends the thread; returns the filter values that no call matched.
    pub fn stop(self) -> Vec<String> {
        self.stop.asked.store(true, Ordering::Relaxed);
        self.stop.wake();
        self.thread.join().unwrap_or_default()
    }
}

fn drive(
    orders: &Orders,
    records: impl Records,
    stop: &Arc<Stop>,
    ready: &mpsc::Sender<Result<(), String>>,
) -> Vec<String> {
    let mut storage = MaybeUninit::uninit();
    let Orders { kind, ref tracefs, ref filters, own_ipc_namespace, tree, makes_records, rate, metrics } = *orders;
    let aggregates = metrics.is_some();
    let tracefs = tracefs.as_deref();
    let config = Config { kind, tracefs, filters, own_ipc_namespace, tree, makes_records, aggregates, rate };
    let mut programs = match Programs::attach(&mut storage, &config) {
        Ok(programs) => programs,
        Err(error) => {
            let _ = ready.send(Err(error));
            return Vec::new();
        }
    };
    let records = RefCell::new(records);
    let sequence = RefCell::new(Sequence::default());
    let infers = kind == HookKind::Tracepoint && makes_records;
    let publishers = match makes_records.then(|| watch_publishers(&programs)).transpose() {
        Ok(publishers) => publishers,
        Err(error) => {
            let _ = ready.send(Err(error));
            return Vec::new();
        }
    };
    let parts = Parts { programs: &programs, sequence: &sequence, records: &records, publishers: publishers.as_ref() };
    let aggregates = match follow(&parts, stop, metrics, infers, ready) {
        Ok(aggregates) => aggregates,
        Err(error) => {
            let _ = ready.send(Err(error));
            return Vec::new();
        }
    };
    // The rings outlive the links: what is committed until now is still there.
    programs.detach();
    let parts = Parts { programs: &programs, sequence: &sequence, records: &records, publishers: publishers.as_ref() };
    if let Ok(rings) = Rings::open(&parts) {
        while take(&rings.calls) > 0 {}
        // Nothing more comes that could be waited for.
        rings.expire(Instant::now() + PATIENCE);
        rings.images.consume_raw();
        records.borrow_mut().settle();
        for taken in aggregates.map(Aggregates::stop).unwrap_or_default() {
            take_metrics(&rings, taken);
        }
    }
    records.borrow_mut().counts(parts.counts());
    programs.unmatched(filters, own_ipc_namespace)
}

fn watch_publishers(programs: &Programs<'_>) -> Result<Publishers, String> {
    let mut contexts = Contexts::of(programs).map_err(|error| error.to_string())?;
    Publishers::start(move |image, slot| contexts.put(image, slot)).map_err(|error| error.to_string())
}

/// What the thread works with.
struct Parts<'a, 'obj, R> {
    programs: &'a Programs<'obj>,
    sequence: &'a RefCell<Sequence>,
    records: &'a RefCell<R>,
    publishers: Option<&'a Publishers>,
}

impl<R> Parts<'_, '_, R> {
    fn counts(&self) -> Counts {
        Counts {
            unlinked: self.sequence.borrow().unlinked(),
            context_files: self.publishers.map_or(0, Publishers::failures),
            ..self.programs.counts()
        }
    }
}

/// Hands on what comes, until it is told to stop.
fn follow(
    parts: &Parts<'_, '_, impl Records>,
    stop: &Arc<Stop>,
    metrics: Option<Duration>,
    infers: bool,
    ready: &mpsc::Sender<Result<(), String>>,
) -> Result<Option<Aggregates>, String> {
    let Parts { programs, records, .. } = *parts;
    let rings = Rings::open(parts).map_err(|error| error.to_string())?;
    let woken = stop.clone();
    let start = |interval| Aggregates::start(programs, interval, move || woken.wake());
    let aggregates = metrics.map(start).transpose()?;
    // Links can be inferred once it is known who takes messages unseen; the ring is read meanwhile.
    let mut looked = infers.then(|| look(stop));
    if looked.is_none() {
        let _ = ready.send(Ok(()));
    }
    let mut counted = Instant::now();
    loop {
        stop.woken();
        if let Some(early) = looked.as_ref().and_then(|looked| looked.try_recv().ok()) {
            looked = None;
            parts.sequence.borrow_mut().found(early);
            let _ = ready.send(Ok(()));
        }
        if stop.asked.load(Ordering::Relaxed) {
            // Before detaching, which takes its time: the less is left to count if there is none.
            while take(&rings.calls) >= AT_ONCE {}
            return Ok(aggregates);
        }
        let taken = take(&rings.calls);
        rings.images.consume_raw();
        if let Some(aggregates) = &aggregates {
            for taken in aggregates.fetch() {
                aggregates.forget(&take_metrics(&rings, taken));
            }
        }
        let now = Instant::now();
        if now - counted >= COUNT_EVERY {
            counted = now;
            parts.sequence.borrow_mut().forget(|tid| !Path::new("/proc").join(tid.to_string()).exists());
            records.borrow_mut().counts(parts.counts());
        }
        rings.expire(now);
        let again = records.borrow_mut().tick(now);
        if taken >= AT_ONCE {
            continue;
        }
        if taken > 0 {
            wait(&[stop.event.as_fd()], GATHER);
            continue;
        }
        let expiry = parts.sequence.borrow().deadline().map(|deadline| deadline.saturating_duration_since(now));
        let again = again.min(expiry.unwrap_or(COUNT_EVERY)).min(COUNT_EVERY);
        programs.armed().store(1, Ordering::Relaxed);
        // The kernel side writes its record and then reads the flag: whichever comes first, one of both sees the other.
        fence(Ordering::SeqCst);
        if take(&rings.calls) == 0 {
            wait(&[stop.event.as_fd(), rings.fd(), rings.images_fd()], again);
        }
        programs.armed().store(0, Ordering::Relaxed);
    }
}

/// Looks for threads that are in a receive, on a thread of its own: there may be many to look at.
fn look(stop: &Arc<Stop>) -> mpsc::Receiver<Vec<(u32, Option<QueueName>)>> {
    let (found, looked) = mpsc::sync_channel(1);
    let woken = stop.clone();
    thread::spawn(move || {
        let (calls, _) = calls::in_calls();
        let early = calls.into_iter().filter(|call| call.op == Op::MqTimedreceive).map(|call| (call.tid, call.queue));
        let _ = found.send(early.collect());
        woken.wake();
    });
    looked
}

/// The images and names that the readings speak of came before them.
fn take_metrics<R: Records>(rings: &Rings<'_, R>, taken: Taken) -> Vec<QueueKey> {
    rings.images.consume_raw();
    rings.records.borrow_mut().metrics(taken)
}

/// How many records there were, up to [`AT_ONCE`].
fn take(ring: &RingBuffer<'_>) -> usize {
    // The callbacks never fail.
    ring.consume_raw_n(AT_ONCE).try_into().unwrap_or(0)
}

struct Rings<'a, R> {
    calls: RingBuffer<'a>,
    images: Rc<RingBuffer<'a>>,
    sequence: &'a RefCell<Sequence>,
    records: &'a RefCell<R>,
}

impl<'a, R: Records> Rings<'a, R> {
    fn open(parts: &Parts<'a, '_, R>) -> libbpf_rs::Result<Self> {
        let Parts { programs, sequence, records, publishers } = *parts;
        let mut images = RingBufferBuilder::new();
        images.add(programs.images(), move |bytes| {
            if let Ok(name) = Name::decode(bytes) {
                records.borrow_mut().name(name);
            } else if let Ok(image) = Image::decode(bytes) {
                if let Some(publishers) = publishers {
                    publishers.offer(image.key);
                }
                records.borrow_mut().image(image);
            }
            0
        })?;
        images.add(programs.publications(), |bytes| {
            if let Ok(key) = ImageKey::of_publication(bytes) {
                records.borrow_mut().published(key);
            }
            0
        })?;
        let images = Rc::new(images.build()?);
        let images_of_calls = images.clone();
        let mut calls = RingBufferBuilder::new();
        calls.add(programs.calls(), move |bytes| {
            match Call::decode(bytes) {
                Ok(call) => {
                    let out = &mut |call| hand_on(call, &images_of_calls, records);
                    sequence.borrow_mut().offer(call, Instant::now(), out);
                }
                Err(_) => records.borrow_mut().malformed(),
            }
            0
        })?;
        Ok(Self { calls: calls.build()?, images, sequence, records })
    }

    /// Hands on what has waited long enough for its link.
    fn expire(&self, now: Instant) {
        self.sequence.borrow_mut().expire(now, &mut |call| hand_on(call, &self.images, self.records));
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's own epoll descriptor, open as long as the ring is.
        unsafe { BorrowedFd::borrow_raw(self.calls.epoll_fd()) }
    }

    /// Images and names wake nobody, publications do.
    fn images_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: as above.
        unsafe { BorrowedFd::borrow_raw(self.images.epoll_fd()) }
    }
}

fn hand_on(call: Call, images: &RingBuffer<'_>, records: &RefCell<impl Records>) {
    if call.measured && call.inferred_wait_ns().is_some() {
        records.borrow_mut().waited(&call);
    }
    if !call.filtered {
        learn(&call, images, records);
        records.borrow_mut().call(call);
    }
}

/// Takes images until the call's is among them. Its record was complete before the call's; where the ring of images
/// was full it never comes, and the call is told without.
fn learn(call: &Call, images: &RingBuffer<'_>, records: &RefCell<impl Records>) {
    for attempt in 0..IMAGE_TRIES {
        if records.borrow_mut().knows(&call.image) {
            return;
        }
        if attempt > 0 {
            thread::sleep(IMAGE_PAUSE);
        }
        images.consume_raw();
    }
    records.borrow_mut().no_image(call);
}

fn wait(fds: &[BorrowedFd<'_>], most: Duration) {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    // Rounded up: a rest below a millisecond must not become a busy loop.
    let most = PollTimeout::try_from(most + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    // Ended by a signal or for want of memory, it is only shorter.
    let _: Result<i32, Errno> = poll(&mut fds, most);
}
