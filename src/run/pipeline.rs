//! The way of a call through user space, on the driver thread: filter, who made it, its time of day, its ids, and into
//! the batch of each output. Waits only where an output's queue is full.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::tz::TimeZone;

use crate::clock::Clock;
use crate::export::batch::Batch;
use crate::export::ledger::{Ledger, Share, Tally};
use crate::export::{Form, Sink};
use crate::health::Pulse;
use crate::kernel::aggregates::Taken;
use crate::model::call::{Call, Image, ImageKey, Name};
use crate::model::counts::Counts;
use crate::model::filter::Filters;
use crate::model::glob::Templates;
use crate::model::text::utf8;
use crate::model::values::Receive;
use crate::run::meter::Meter;
use crate::telemetry::console;
use crate::telemetry::record::Record;
use crate::telemetry::view::View;
use crate::who::Registry;
use crate::who::contexts::Contexts;
use crate::who::process_context::Published;

/// A request goes out at this size, well below the 4 MiB that gRPC servers take.
const REQUEST: usize = 512 << 10;
/// A call waits for others at most this long.
const GATHER: Duration = Duration::from_secs(1);
/// As many calls at most wait for what their process has published.
const HELD: usize = 4096;
/// How often these are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// With nothing to do there is nothing to come back for.
const IDLE: Duration = Duration::from_secs(3600);

/// The pipeline.
#[derive(Debug)]
pub struct Pipeline {
    ledger: Arc<Ledger>,
    filters: Arc<Filters>,
    templates: Templates,
    clock: Clock,
    registry: Registry,
    contexts: Contexts,
    /// The first calls of images of which it is not known yet what they have published, in their order.
    held: HashMap<ImageKey, Vec<Call>>,
    /// How many these are.
    holding: usize,
    traces: bool,
    receive: Receive,
    meter: Option<Meter>,
    pulse: Pulse,
    gatherers: Vec<Gatherer>,
    tally: Arc<Tally>,
    since: Option<Instant>,
}

/// What is gathered for one sink.
#[derive(Debug)]
enum Gatherer {
    Batch(Sink, Batch),
    Lines { sink: Sink, lines: Vec<u8>, count: u64, zone: TimeZone, color: bool },
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
    pub registry: Registry,
    /// What processes publish.
    pub contexts: Contexts,
    /// Whether spans are made: without them log records have no ids.
    pub traces: bool,
    /// Where a receive span hangs.
    pub receive: Receive,
    /// What makes metrics, where they are made.
    pub meter: Option<Meter>,
    /// Beats while the pipeline is at work.
    pub pulse: Pulse,
    /// Whether lines are coloured.
    pub color: bool,
}

impl Pipeline {
    /// An empty pipeline.
    pub fn new(parts: Parts) -> Self {
        let Parts { ledger, sinks, filters, templates, clock, registry, contexts, .. } = parts;
        let Parts { traces, receive, meter, pulse, color, .. } = parts;
        let gatherer = |sink: Sink| match sink.form {
            Form::Otlp(encoding) => Gatherer::Batch(sink.clone(), Batch::new(sink.signal, encoding)),
            Form::Lines => Gatherer::Lines { sink, lines: Vec::new(), count: 0, zone: TimeZone::system(), color },
        };
        Self {
            tally: Tally::new(&ledger),
            ledger,
            filters,
            templates,
            clock,
            registry,
            contexts,
            held: HashMap::new(),
            holding: 0,
            traces,
            receive,
            meter,
            pulse,
            gatherers: sinks.into_iter().map(gatherer).collect(),
            since: None,
        }
    }

    /// Takes what processes have published: their Resources are others from now on.
    fn learn(&mut self, answers: Vec<(ImageKey, Published)>) {
        for (image, published) in answers {
            let replaced = self.registry.publish(image, published);
            if let Some(meter) = self.meter.as_mut().filter(|_| replaced) {
                meter.replace(&image);
            }
        }
    }

    /// Lets calls go on that need not wait any more.
    fn release(&mut self, all: bool) {
        let ready = self.held.extract_if(|image, _| all || !self.contexts.awaits(image));
        for (_, calls) in ready.collect::<Vec<_>>() {
            self.tell_all(&calls);
        }
    }

    /// Calls that waited.
    fn tell_all(&mut self, calls: &[Call]) {
        self.holding -= calls.len();
        calls.iter().for_each(|call| self.tell(call));
    }

    /// Puts a call into the batch of each output.
    fn tell(&mut self, call: &Call) {
        let Filters { queue, comm, .. } = &*self.filters;
        let start_ns = self.clock.wall_ns(call.entered_ns);
        let view = View::new(call, start_ns).received_as(self.receive).by_template(&self.templates);
        if !(queue.keeps_name(view.destination.as_deref()) && comm.keeps_name(Some(&utf8(call.comm())))) {
            return self.ledger.filtered();
        }
        let resource = self.registry.resource(call.image);
        let view = view.started_in(resource.started_in);
        let record = Record { view: &view, ids: self.traces.then_some(call.ids) };
        if let Some(meter) = &mut self.meter {
            meter.offer(&view, &record);
        }
        for gatherer in &mut self.gatherers {
            match gatherer {
                Gatherer::Batch(_, batch) => batch.add(&resource, &record),
                Gatherer::Lines { lines, count, zone, color, .. } => {
                    console::line(&record, zone, *color, lines);
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

    /// Hands over what was gathered; the calls of the batch are settled once every output is done with them.
    fn cut(&mut self) {
        self.flush_lines();
        for gatherer in &mut self.gatherers {
            let Gatherer::Batch(sink, batch) = gatherer else { continue };
            let Some((body, records)) = batch.take() else { continue };
            let share = Share::of_calls(&self.tally, sink.output, records);
            enqueue(&self.pulse, sink, body, share);
        }
        self.tally = Tally::new(&self.ledger);
        self.since = None;
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
    /// What the kernel side recorded of a process image.
    pub fn image(&mut self, image: Image) {
        self.contexts.first_call(&image);
        self.registry.add(image);
    }

    /// An image has published its process context.
    pub fn published(&mut self, key: ImageKey) {
        if let Some(image) = self.registry.image(&key) {
            self.contexts.published(image);
        }
    }

    /// Whether the image is known.
    pub fn knows(&mut self, key: &ImageKey) -> bool {
        self.registry.knows(key)
    }

    /// The image of this call was not recorded: the ring of images was full, or it is long forgotten.
    pub fn no_image(&mut self, call: &Call) {
        self.registry.add_from_proc(call);
    }

    /// A call; its image came before where it could.
    pub fn call(&mut self, mut call: Call) {
        if !self.ledger.received() {
            return;
        }
        // A send that is filtered here has no span to link to; its queue is the receive's.
        call.drop_sender_unless(|name| self.filters.comm.keeps_name(Some(&utf8(name))));
        if self.contexts.awaits(&call.image) {
            let answers = self.contexts.answers();
            self.learn(answers);
            if self.contexts.awaits(&call.image) && self.holding < HELD {
                self.holding += 1;
                return self.held.entry(call.image).or_default().push(call);
            }
        }
        if self.holding > 0
            && let Some(earlier) = self.held.remove(&call.image)
        {
            self.tell_all(&earlier);
        }
        self.tell(&call);
    }

    /// The name behind a number of the kernel side's series.
    pub fn name(&mut self, name: Name) {
        if let Some(meter) = &mut self.meter {
            meter.name(name);
        }
    }

    /// A receive, with a record or without, whose message's wait was inferred and is in no metric of the kernel side.
    pub fn waited(&mut self, call: &Call) {
        if let Some(meter) = &mut self.meter {
            meter.waited(call);
        }
    }

    /// What the kernel side's metrics show.
    pub fn metrics(&mut self, taken: Taken) {
        let Some(meter) = &mut self.meter else { return };
        self.pulse.wait();
        meter.collect(taken, |key| self.registry.resource(key));
        self.pulse.beat(Instant::now());
    }

    /// A record of a call that is none.
    pub fn malformed(&mut self) {
        self.ledger.malformed();
    }

    /// What the kernel side counted so far.
    pub fn counts(&mut self, counts: &Counts) {
        self.ledger.kernel(counts);
    }

    /// No more calls come: waits, not for long, for what is still to be known of those that came.
    pub fn settle(&mut self) {
        let answers = self.contexts.settle();
        self.learn(answers);
        self.release(true);
        if let Some(meter) = &mut self.meter {
            meter.end();
        }
    }

    /// Time has passed; returns when to come again at the latest.
    pub fn tick(&mut self, now: Instant) -> Duration {
        self.pulse.beat(now);
        let answers = self.contexts.answers();
        self.learn(answers);
        self.release(false);
        self.flush_lines();
        let again = if self.held.is_empty() { IDLE } else { LOOK };
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
        self.release(true);
        self.cut();
    }
}
