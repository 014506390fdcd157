//! The way of a call through user space, on the reader's thread: filter, who made it, its time of day, its ids, and into
//! the batch of each output. Waits only where an output's queue is full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::tz::TimeZone;

use crate::clock::Clock;
use crate::export::batch::Batch;
use crate::export::ledger::{Ledger, OnExport, Share, Tally};
use crate::export::{Form, Sink};
use crate::health::Pulse;
use crate::metrics::intake::Intake;
use crate::metrics::reservoir::Candidates;
use crate::model::call::{Call, Identity, Image, ImageKey, Name};
use crate::model::counts::Counts;
use crate::model::filter::Filters;
use crate::model::glob::Templates;
use crate::model::resource::Resource;
use crate::model::slot::Slot;
use crate::model::stuck::{StuckCall, StuckEnds};
use crate::model::text::utf8;
use crate::model::values::{Receive, Signal};
use crate::overview::Overview;
use crate::run::directory::SharedDirectory;
use crate::run::unshown::Unshown;
use crate::telemetry::console::Style;
use crate::telemetry::record::Record;
use crate::telemetry::stuck::StuckView;
use crate::telemetry::view::View;
use crate::telemetry::{self, console};
use crate::who::prober::{Answer, Prober};
use crate::who::waiting::{PATIENCE, WaitingRoom};

/// A request goes out at this size, well below the 4 MiB that gRPC servers take.
const REQUEST: usize = 512 << 10;
/// A call waits for others at most this long.
const GATHER: Duration = Duration::from_secs(1);
/// With nothing to do there is nothing to come back for.
const IDLE: Duration = Duration::from_secs(3600);

/// The pipeline.
#[derive(Debug)]
pub struct Pipeline {
    ledger: Arc<Ledger>,
    filters: Arc<Filters>,
    templates: Templates,
    clock: Clock,
    directory: SharedDirectory,
    prober: Prober,
    /// Images that made the last calls, with their Resources: until anything changes what is known of any.
    recent: Recent,
    /// The first calls of images that are asked about.
    waiting: WaitingRoom,
    /// Where the threads of images publish their spans.
    slots: Vec<(ImageKey, Option<Slot>)>,
    traces: bool,
    receive: Receive,
    metrics: Option<Intake>,
    candidates: Candidates,
    overview: Option<Overview>,
    pulse: Pulse,
    gatherers: Vec<Gatherer>,
    /// Calls that are under way for long, until it is known who makes them.
    stuck: Vec<(Instant, StuckCall)>,
    ends: StuckEnds,
    tally: Arc<Tally>,
    since: Option<Instant>,
}

/// So many images are looked up once for many calls.
const RECENT: usize = 64;

/// A few images and their Resources, each in its place by a hash.
#[derive(Debug)]
struct Recent([Option<(ImageKey, Arc<Resource>)>; RECENT]);

impl Default for Recent {
    fn default() -> Self {
        Self([const { None }; RECENT])
    }
}

impl Recent {
    fn place(&mut self, key: &ImageKey) -> &mut Option<(ImageKey, Arc<Resource>)> {
        let hash = (key.started_ns ^ u64::from(key.pid)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &mut self.0[(hash >> 32) as usize % RECENT]
    }

    fn get(&mut self, key: &ImageKey) -> Option<&Arc<Resource>> {
        self.place(key).as_ref().filter(|(of, _)| of == key).map(|(_, resource)| resource)
    }

    /// The image's Resource.
    fn resource(&mut self, directory: &SharedDirectory, key: ImageKey) -> Arc<Resource> {
        if let Some(resource) = self.get(&key) {
            return resource.clone();
        }
        let mut registry = directory.registry();
        let resource = registry.resource(key);
        if registry.knows(&key) {
            *self.place(&key) = Some((key, resource.clone()));
        }
        resource
    }

    /// Something is known otherwise; also once in a while, so that the registry sees which images are in use.
    fn clear(&mut self) {
        self.0.fill(None);
    }
}

/// What is gathered for one sink.
#[derive(Debug)]
enum Gatherer {
    Batch(Sink, Batch),
    Lines { sink: Sink, lines: Vec<u8>, count: u64, zone: TimeZone, style: Style, unshown: Unshown },
}

/// What the pipeline is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where everything is counted.
    pub ledger: Arc<Ledger>,
    /// Where records go.
    pub sinks: Vec<Sink>,
    /// The filters that user space applies are those on names.
    pub filters: Arc<Filters>,
    /// What queues go by.
    pub templates: Templates,
    /// What makes times of day.
    pub clock: Clock,
    /// Who made a call.
    pub directory: SharedDirectory,
    /// What asks about other processes.
    pub prober: Prober,
    /// Whether spans are made: without them log records have no ids.
    pub traces: bool,
    /// Where a receive span hangs.
    pub receive: Receive,
    /// What metrics are told, where they are made.
    pub metrics: Option<Intake>,
    /// What people look at, where there is any.
    pub overview: Option<Overview>,
    /// Beats while the pipeline is at work.
    pub pulse: Pulse,
    /// How lines look.
    pub style: Style,
}

impl Pipeline {
    /// An empty pipeline.
    pub fn new(parts: Parts) -> Self {
        let Parts { ledger, sinks, filters, templates, clock, directory, prober, .. } = parts;
        let Parts { traces, receive, metrics, overview, pulse, style, .. } = parts;
        let gatherer = |sink: Sink| match sink.form {
            Form::Otlp(encoding) => Gatherer::Batch(sink.clone(), Batch::new(sink.signal, encoding)),
            Form::Lines => Gatherer::Lines {
                unshown: Unshown::new(format!("console.{}", sink.signal.name())),
                sink,
                lines: Vec::new(),
                count: 0,
                zone: TimeZone::system(),
                style: style.clone(),
            },
        };
        Self {
            tally: Tally::new(&ledger),
            ledger,
            filters,
            templates,
            clock,
            directory,
            prober,
            recent: Recent::default(),
            waiting: WaitingRoom::default(),
            slots: Vec::new(),
            traces,
            receive,
            metrics,
            candidates: Candidates::default(),
            overview,
            pulse,
            gatherers: sinks.into_iter().map(gatherer).collect(),
            stuck: Vec::new(),
            ends: StuckEnds::default(),
            since: None,
        }
    }

    /// Takes the prober's answers that have come.
    fn learn(&mut self) {
        while let Some(answer) = self.prober.answer() {
            self.take(answer);
        }
    }

    fn take(&mut self, answer: Answer) {
        self.recent.clear();
        match answer {
            Answer::Facts(key, facts) => {
                let replaced = self.directory.registry().learn(&key, facts);
                self.replaced(&key, replaced);
            }
            Answer::Published(key, published) => {
                let replaced = self.directory.registry().publish(&key, published);
                self.replaced(&key, replaced);
            }
            Answer::Described(image) => {
                let key = image.key;
                let inquiry = self.directory.registry().add(*image);
                if !inquiry.is_some_and(|inquiry| self.prober.introduce(inquiry)) {
                    self.arrived(&key);
                }
            }
            Answer::Introduced(key) => self.arrived(&key),
            Answer::Slot(key, slot) => self.slots.push((key, slot)),
            Answer::Ended(key) => self.directory.registry().ended(&key),
        }
    }

    fn replaced(&mut self, key: &ImageKey, replaced: bool) {
        if let Some(metrics) = self.metrics.as_ref().filter(|_| replaced) {
            metrics.replace(*key);
        }
    }

    /// An image's first calls wait.
    fn expect(&mut self, key: ImageKey) {
        let now = Instant::now();
        self.waiting.expect(key, now);
        self.directory.expect(key, now + PATIENCE);
    }

    /// An image's calls need not wait any more.
    fn arrived(&mut self, key: &ImageKey) {
        let mut calls = Vec::new();
        self.waiting.arrived(key, &mut calls);
        self.directory.arrived(key);
        calls.iter().for_each(|call| self.encode(call));
    }

    /// Puts a call into the batch of each output.
    fn encode(&mut self, call: &Call) {
        let Filters { queue, comm, .. } = &*self.filters;
        let start_ns = self.clock.wall_ns(call.entered_ns);
        let view = View::new(call, start_ns).received_as(self.receive).by_templates(&self.templates);
        // Both are asked, whatever the other says: each remembers which of its values matched.
        let keeps_queue = queue.is_empty() || queue.keeps_name(view.destination());
        let keeps_comm = comm.is_empty() || comm.keeps_name(Some(&utf8(call.comm())));
        if !(keeps_queue & keeps_comm) {
            return self.ledger.filtered();
        }
        let resource = self.recent.resource(&self.directory, call.image);
        let view = view.started_in(resource.started_in);
        let record = Record { view: &view, ids: self.traces.then_some(call.ids) };
        if self.metrics.is_some() {
            self.candidates.offer(&view, &record);
        }
        if let Some(overview) = &self.overview {
            overview.calls().add(&record);
        }
        for gatherer in &mut self.gatherers {
            match gatherer {
                Gatherer::Batch(_, batch) => batch.add(&resource, &record),
                Gatherer::Lines { sink, lines, count, zone, style, .. } => {
                    // A line that goes nowhere is only counted.
                    if sink.queue.is_some() {
                        console::line(&record, zone, style, lines);
                    }
                    *count += 1;
                }
            }
        }
        self.tally.add();
        self.since.get_or_insert_with(Instant::now);
        if self.is_full() {
            self.cut();
        }
    }

    fn release_all(&mut self) {
        let mut calls = Vec::new();
        self.waiting.clear(&mut calls);
        self.directory.all_arrived();
        calls.iter().for_each(|call| self.encode(call));
    }

    /// Hands over what was gathered; the calls of the batch are settled once every output is done with them.
    fn cut(&mut self) {
        self.flush_lines();
        let candidates = self.candidates.take();
        let on_export = self.metrics.clone().filter(|_| !candidates.is_empty());
        let on_export = on_export.map(|metrics| OnExport::new(move || metrics.exported(candidates)));
        for gatherer in &mut self.gatherers {
            let Gatherer::Batch(sink, batch) = gatherer else { continue };
            let Some((body, records)) = batch.take() else { continue };
            let on_export = on_export.clone().filter(|_| sink.signal == Signal::Traces);
            let share = Share::of_calls(&self.tally, sink.output, records).on_export(on_export);
            enqueue(&self.pulse, sink, body, share);
        }
        self.tally = Tally::new(&self.ledger);
        self.since = None;
        self.recent.clear();
    }

    /// Lines are shown at once.
    fn flush_lines(&mut self) {
        for gatherer in &mut self.gatherers {
            let Gatherer::Lines { sink, lines, count, .. } = gatherer else { continue };
            if *count > 0 {
                let share = Share::of_calls(&self.tally, sink.output, std::mem::take(count));
                enqueue(&self.pulse, sink, std::mem::take(lines).into(), share);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.gatherers.iter().any(|gatherer| match gatherer {
            Gatherer::Batch(_, batch) => batch.bytes() >= REQUEST,
            Gatherer::Lines { lines, .. } => lines.len() >= REQUEST,
        })
    }
}

/// May wait as long as the backend does.
fn enqueue(pulse: &Pulse, sink: &Sink, body: Bytes, share: Share) {
    pulse.wait();
    sink.enqueue(body, share);
    pulse.beat(Instant::now());
}

impl Pipeline {
    /// The reader follows what comes: `wake` has [`Self::tick`] called soon.
    pub fn started(&mut self, wake: Box<dyn Fn() + Send + Sync>) {
        self.prober.wake_with(wake);
    }

    /// What the kernel side recorded of a process image.
    pub fn image(&mut self, image: Image) {
        self.recent.clear();
        let key = image.key;
        let inquiry = self.directory.registry().add(image);
        if let Some(inquiry) = inquiry
            && self.prober.introduce(inquiry)
        {
            self.expect(key);
        }
    }

    /// An image has published its process context.
    pub fn published(&mut self, key: ImageKey) {
        let subject = self.directory.registry().subject(&key);
        if let Some(subject) = subject {
            self.prober.published(subject);
        }
    }

    /// The process of an image has ended.
    pub fn ended(&mut self, key: ImageKey) {
        self.directory.registry().ended(&key);
        self.prober.ended(key);
    }

    /// Whether the image is known.
    pub fn knows(&mut self, key: &ImageKey) -> bool {
        self.recent.get(key).is_some() || self.directory.registry().knows(key)
    }

    /// The image of this call was not recorded: the ring of images was full, or it is long forgotten.
    pub fn no_image(&mut self, of: &Identity) {
        self.recent.clear();
        self.directory.registry().add_bare(of);
        if self.prober.describe(of) {
            self.expect(of.image);
        }
    }

    /// A call that has been under way for long, or has ended after that: no call by itself.
    pub fn stuck(&mut self, stuck: StuckCall) {
        let (now, image) = (Instant::now(), stuck.image());
        let mut due = now;
        if !self.knows(&image) {
            self.no_image(&stuck.identity());
            due = now + PATIENCE;
        }
        match stuck.has_ended {
            false => self.ends.await_end(&stuck),
            // Its record may be on its way, and wait for its link.
            true if !self.ends.is_known(&stuck) => due = now + PATIENCE,
            true => {}
        }
        self.stuck.push((due, stuck));
    }

    /// A call has ended, with a record of its own or without.
    pub fn has_ended(&mut self, call: &Call) {
        self.ends.ended(call);
    }

    fn encode_stuck(&mut self, stuck: &StuckCall) {
        let resource = self.directory.registry().resource(stuck.image());
        let template = stuck.waiter.queue.as_ref().and_then(|queue| self.templates.of(&queue.name));
        let view = StuckView { stuck, start_ns: self.clock.wall_ns(stuck.waiter.since_ns), template };
        for gatherer in &self.gatherers {
            let (sink, body) = match gatherer {
                Gatherer::Batch(sink, _) if sink.signal != Signal::Logs => continue,
                Gatherer::Batch(sink, _) => {
                    let Form::Otlp(encoding) = sink.form else { continue };
                    let mut batch = Batch::new(Signal::Logs, encoding);
                    batch.add_entry(&resource, &view);
                    (sink, batch.take().map(|(body, _)| body).unwrap_or_default())
                }
                Gatherer::Lines { sink, zone, .. } => {
                    let mut line = Vec::new();
                    telemetry::stuck::line(&view, zone, &mut line);
                    (sink, line.into())
                }
            };
            // No call is told by it, and it waits for no output.
            sink.enqueue_metrics(body, Share::of_metrics(&self.ledger, sink.output, 1));
        }
    }

    /// Tells of those that are due; returns when the next one is.
    fn encode_stuck_until(&mut self, now: Instant) -> Option<Instant> {
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stuck).into_iter().partition(|(at, _)| *at <= now);
        self.stuck = rest;
        for (_, mut stuck) in due {
            if stuck.has_ended {
                self.ends.complete(&mut stuck);
            }
            self.encode_stuck(&stuck);
        }
        self.stuck.iter().map(|(at, _)| *at).min()
    }

    /// The images that are not known any more, which the kernel side is to record again.
    pub fn take_evicted(&mut self) -> Vec<ImageKey> {
        self.directory.registry().take_evicted()
    }

    /// Where the threads of images hold what they publish, as far as that has changed.
    pub fn take_slots(&mut self) -> Vec<(ImageKey, Option<Slot>)> {
        std::mem::take(&mut self.slots)
    }

    /// A call; its image came before where it could. Gives back what it stood in, where that is not needed any more.
    pub fn call(&mut self, mut call: Box<Call>) -> Option<Box<Call>> {
        if !self.ledger.received() {
            return Some(call);
        }
        // A send that is filtered here has no span to link to; its queue is the receive's.
        if !self.filters.comm.is_empty() {
            call.drop_sender_unless(|name| self.filters.comm.keeps_name(Some(&utf8(name))));
        }
        self.prober.called(&call.image, call.left_ns);
        if self.waiting.is_idle() {
            self.encode(&call);
            return Some(call);
        }
        let mut calls = Vec::new();
        self.waiting.offer(call, Instant::now(), &mut calls);
        calls.iter().for_each(|call| self.encode(call));
        None
    }

    /// The name behind a number of the kernel side's series.
    pub fn name(&mut self, name: &Name) {
        if self.metrics.is_some() {
            self.directory.learn(name);
        }
    }

    /// A receive, with a record or without, whose message's wait was inferred and is in no metric of the kernel side.
    pub fn waited(&mut self, call: &Call) {
        let (Some(metrics), Some(queue), Some(wait_ns)) = (&self.metrics, &call.queue, call.inferred_wait_ns()) else {
            return;
        };
        if self.filters.comm.keeps_name(Some(&utf8(call.comm()))) {
            let name = || format!("/{}", utf8(&queue.name)).into();
            metrics.waits().add(call.image, queue.key, call.ipc_ns, wait_ns, name);
        }
    }

    /// A record of a call that is none.
    pub fn malformed(&mut self) {
        self.ledger.malformed();
    }

    /// What the kernel side counted so far.
    pub fn counts(&mut self, counts: &Counts) {
        self.ledger.kernel(&Counts { context_files: self.prober.bad_files(), ..counts.clone() });
        for gatherer in &mut self.gatherers {
            if let Gatherer::Lines { unshown, .. } = gatherer {
                unshown.tell(&self.ledger.totals());
            }
        }
    }

    /// No more calls come: waits, not for long, for what is still to be known of those that came.
    pub fn settle(&mut self) {
        self.learn();
        while let Some(until) = self.waiting.last_deadline()
            && let Some(answer) = self.prober.answer_until(until)
        {
            self.take(answer);
        }
        self.prober.report();
        self.release_all();
    }

    /// Time has passed; returns when to come again at the latest.
    pub fn tick(&mut self, now: Instant) -> Duration {
        self.pulse.beat(now);
        self.learn();
        let mut calls = Vec::new();
        self.waiting.ready(now, &mut calls);
        calls.iter().for_each(|call| self.encode(call));
        if self.clock.stepped().is_some() {
            self.recent.clear();
            let replaced = self.directory.registry().clock_stepped(self.clock.boot_offset_ns());
            for key in replaced {
                self.replaced(&key, true);
            }
        }
        self.flush_lines();
        let stuck = self.encode_stuck_until(now);
        let next = [self.waiting.deadline(), stuck].into_iter().flatten().min();
        let again = next.map_or(IDLE, |until| until.saturating_duration_since(now));
        let Some(since) = self.since else { return again };
        let age = now.saturating_duration_since(since);
        if age >= GATHER {
            self.cut();
            return again;
        }
        again.min(GATHER - age)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.encode_stuck_until(Instant::now() + PATIENCE);
        self.release_all();
        self.cut();
    }
}
