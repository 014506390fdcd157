//! The streams of metrics: what the kernel side's readings add up to, for each process and set of attributes. Bounded in
//! number and in bytes: what finds no room is added to overflow points. Pure code.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::distribution::Distribution;
use crate::model::call::{Ids, ImageKey};
use crate::model::cause::Cause;
use crate::model::glob::Templates;
use crate::model::reading::{Measure, Reading};
use crate::model::resource::{Resource, Value};
use crate::model::values::{MetricLimits, Op};

/// So many names that led to no queue are told apart for a process.
const ASKED_NAMES: usize = 100;
/// So many exemplars a point has at most.
const EXEMPLARS: usize = 4;
/// So many names of queues are remembered.
const KNOWN_NAMES: usize = 16_384;
/// What a map's entry takes besides key and value, about: nodes that are not full, and what the allocator adds.
const ENTRY: usize = 48;

/// How a queue is called in metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// By its name.
    Name(Arc<str>),
    /// By the template that its name matches.
    Template(Arc<str>),
}

impl Destination {
    /// The template that the name matches, else the name.
    pub fn of(name: Arc<str>, templates: &Templates) -> Self {
        match templates.of(&name) {
            Some(template) => Self::Template(template.into()),
            None => Self::Name(name),
        }
    }

    fn bytes(&self) -> usize {
        let (Self::Name(text) | Self::Template(text)) = self;
        text.len() + size_of::<(Self, usize)>() + ENTRY
    }
}

/// Whose queue, and what came of the call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttributeSet {
    /// The queue.
    pub destination: Option<Destination>,
    /// The ipc namespace.
    pub ipc_ns: u32,
    /// The positive errno of failures, else 0.
    pub errno: i32,
    /// Why the calls failed, where that is known.
    pub cause: Option<Cause>,
}

/// What tells a stream from others of its process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series {
    /// What is measured.
    pub measure: Measure,
    /// Which call.
    pub op: Op,
    /// The other attributes.
    pub set: AttributeSet,
}

/// What a stream takes, without its buckets and its name.
const SERIES: usize = size_of::<(Series, Distribution)>() + ENTRY;

/// A span that shows what is behind a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// When the call ended, ns since 1970.
    pub time_ns: u64,
    /// What was measured, in seconds.
    pub seconds: f64,
    /// The span.
    pub ids: Ids,
}

/// Whose streams: an image, which may have had another Resource before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder {
    /// None for mqspan itself, which holds what found no room elsewhere.
    pub image: Option<ImageKey>,
    /// Counts its Resources.
    pub generation: u32,
}

const OWN: Holder = Holder { image: None, generation: 0 };

/// The streams of one Resource.
#[derive(Debug)]
pub struct ImageStreams {
    /// Who.
    pub resource: Arc<Resource>,
    /// It is being found out who: nothing is exported meanwhile.
    is_provisional: bool,
    /// What it adds up to.
    pub series: BTreeMap<Series, Distribution>,
    /// What found no room for a stream of its own.
    pub overflow: BTreeMap<(Measure, Op), Distribution>,
    /// How many streams there are of each measure.
    counts: [usize; 3],
    asked: HashSet<u64>,
    /// The collection that last added to it.
    changed: u64,
    closed: Option<Closed>,
}

/// Nothing is added any more: another Resource or another time of day holds now.
#[derive(Clone, Copy, Debug)]
struct Closed {
    /// The time of the last collection that added to it, ns since 1970.
    time_ns: u64,
    /// The collection since which it is so.
    since: u64,
}

impl ImageStreams {
    fn new(resource: Arc<Resource>) -> Self {
        Self {
            resource,
            is_provisional: false,
            series: BTreeMap::new(),
            overflow: BTreeMap::new(),
            counts: [0; 3],
            asked: HashSet::new(),
            changed: 0,
            closed: None,
        }
    }

    fn bytes_without_series(&self) -> usize {
        let attribute = |(key, value): &(String, Value)| {
            key.len() + value.as_text().map_or(0, str::len) + size_of::<(String, Value)>()
        };
        let resource: usize = self.resource.attributes.iter().map(attribute).sum();
        resource + size_of::<(Holder, Self)>() + ENTRY
    }

    fn is_empty(&self) -> bool {
        self.series.is_empty() && self.overflow.is_empty()
    }
}

/// All streams.
#[derive(Debug)]
pub struct StreamTable {
    limits: MetricLimits,
    most_bytes: usize,
    cumulative: bool,
    holders: BTreeMap<Holder, ImageStreams>,
    /// Names of queues that calls have reached.
    known: HashSet<u64>,
    /// Each destination once, and how many streams have it.
    destinations: HashMap<Destination, usize>,
    exemplars: HashMap<(Holder, Series), Vec<Exemplar>>,
    bytes: usize,
    collection: u64,
    /// Up to which collection everything was exported to every output.
    settled: u64,
    since_ns: u64,
    time_ns: u64,
}

impl StreamTable {
    /// No stream yet, from `now_ns` on. Streams add up from their start where they are `cumulative`, else from one export
    /// to the next. They take `most_bytes` at most, about, and the overflow points of `own`, which are always there.
    pub fn new(limits: MetricLimits, most_bytes: usize, cumulative: bool, own: Arc<Resource>, now_ns: u64) -> Self {
        Self {
            limits,
            most_bytes,
            cumulative,
            holders: BTreeMap::from([(OWN, ImageStreams::new(own))]),
            known: HashSet::new(),
            destinations: HashMap::new(),
            exemplars: HashMap::new(),
            bytes: 0,
            collection: 0,
            settled: 0,
            since_ns: now_ns,
            time_ns: now_ns,
        }
    }

    /// Whether streams add up from their start.
    pub fn is_cumulative(&self) -> bool {
        self.cumulative
    }

    /// The number of the collection that has begun last.
    pub fn collection(&self) -> u64 {
        self.collection
    }

    /// The time of the collection that has begun last, ns since 1970.
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// What the streams take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A collection begins: what is added from now on was measured since the one before, which was exported, until
    /// `now_ns`.
    pub fn begin(&mut self, now_ns: u64) {
        self.go_on(now_ns);
        self.exemplars.clear();
    }

    /// The same, where the one before was not exported.
    pub fn go_on(&mut self, now_ns: u64) {
        self.collection += 1;
        (self.since_ns, self.time_ns) = (self.time_ns, now_ns);
    }

    /// The time of day was set: by it, the collection before was at `before_ns`. Streams begin anew, since no stream may
    /// change its start (OpenTelemetry metrics data model, "Resets and Gaps"); what they held is exported by the old time.
    pub fn clock_was_set(&mut self, before_ns: u64) {
        let current: Vec<Holder> =
            self.holders.iter().filter(|(_, streams)| streams.closed.is_none()).map(|(holder, _)| *holder).collect();
        for holder in current {
            self.close(holder, self.collection + 1);
        }
        self.time_ns = before_ns;
    }

    /// The image has another Resource from now on: its streams begin anew.
    pub fn replace(&mut self, image: &ImageKey) {
        if let Some(holder) = self.current(Some(*image))
            && self.holders.get(&holder).is_some_and(|streams| !streams.is_provisional)
        {
            self.close(holder, self.collection);
        }
    }

    /// Looks again who the images are of which that was not known.
    pub fn confirm(&mut self, resource: impl Fn(ImageKey) -> Option<Arc<Resource>>) {
        for (holder, streams) in self.holders.iter_mut().filter(|(_, streams)| streams.is_provisional) {
            if let Some(known) = holder.image.and_then(&resource) {
                self.bytes = self.bytes.saturating_sub(streams.bytes_without_series());
                (streams.resource, streams.is_provisional, streams.changed) = (known, false, self.collection);
                if let Some(closed) = &mut streams.closed {
                    closed.since = self.collection;
                }
                // What a Resource takes is bounded, and small against all streams.
                self.bytes += streams.bytes_without_series();
            }
        }
    }

    /// The images that have streams, and their Resources.
    pub fn images(&self) -> impl Iterator<Item = (ImageKey, &Arc<Resource>)> {
        let current = self.holders.iter().filter(|(_, streams)| streams.closed.is_none());
        current.filter_map(|(holder, streams)| Some((holder.image?, &streams.resource)))
    }

    /// Nothing is added to the holder from the collection `since` on.
    fn close(&mut self, holder: Holder, since: u64) {
        let Some(streams) = self.holders.get_mut(&holder) else { return };
        streams.closed = Some(Closed { time_ns: self.time_ns, since });
        let is_settled = streams.is_empty() || self.cumulative && streams.changed <= self.settled;
        if holder.image.is_none() {
            let fresh = ImageStreams::new(streams.resource.clone());
            self.holders.insert(Holder { generation: holder.generation + 1, ..holder }, fresh);
        }
        if is_settled {
            self.remove(&holder);
        }
    }

    /// Where what an image adds goes now.
    fn current(&self, image: Option<ImageKey>) -> Option<Holder> {
        let all = Holder { image, generation: 0 }..=Holder { image, generation: u32::MAX };
        let (holder, streams) = self.holders.range(all).next_back()?;
        streams.closed.is_none().then_some(*holder)
    }

    /// Adds a reading; `destination` is the queue's name or template, `resource` who an image is: None while that is being
    /// found out.
    pub fn add(
        &mut self,
        reading: &Reading,
        destination: Option<Destination>,
        resource: impl FnOnce(ImageKey) -> Option<Arc<Resource>>,
    ) {
        let Some(holder) = reading.image.and_then(|image| self.holder(image, resource)) else {
            return self.overflow(None, reading);
        };
        let asks = matches!(reading.op, Op::MqOpen | Op::MqUnlink) && reading.errno != 0;
        if !asks && self.known.len() < KNOWN_NAMES {
            self.known.insert(reading.name);
        }
        let is_known = !asks || self.known.contains(&reading.name);
        let Some(streams) = self.holders.get_mut(&holder) else { return };
        streams.changed = self.collection;
        let is_told_apart = is_known || streams.asked.contains(&reading.name) || {
            streams.asked.len() < ASKED_NAMES && streams.asked.insert(reading.name)
        };
        let destination = destination.filter(|_| is_told_apart);
        let set = AttributeSet { destination, ipc_ns: reading.ipc_ns, errno: reading.errno, cause: reading.cause };
        let series = Series { measure: reading.measure, op: reading.op, set };
        if !self.add_to(holder, series, reading) {
            self.overflow(Some(holder), reading);
        }
    }

    /// The streams of an image, made where there is room.
    fn holder(&mut self, image: ImageKey, resource: impl FnOnce(ImageKey) -> Option<Arc<Resource>>) -> Option<Holder> {
        if let Some(holder) = self.current(Some(image)) {
            return Some(holder);
        }
        if self.images().count() >= self.limits.max_processes && !self.evict() {
            return None;
        }
        let all = Holder { image: Some(image), generation: 0 }..=Holder { image: Some(image), generation: u32::MAX };
        let last = self.holders.range(all).next_back().map(|(holder, _)| holder.generation);
        let holder = Holder { image: Some(image), generation: last.map_or(0, |last| last + 1) };
        let resource = resource(image);
        let is_provisional = resource.is_none();
        let streams = ImageStreams { is_provisional, ..ImageStreams::new(resource.unwrap_or_default()) };
        let bytes = streams.bytes_without_series();
        if !self.make_room(bytes) {
            return None;
        }
        self.bytes += bytes;
        self.holders.insert(holder, streams);
        Some(holder)
    }

    /// Adds to a stream; false where it found no room.
    fn add_to(&mut self, holder: Holder, mut series: Series, reading: &Reading) -> bool {
        let Some(streams) = self.holders.get(&holder) else { return false };
        let existing = streams.series.get(&series);
        if existing.is_none() && streams.counts[series.measure as usize] >= self.limits.max_series {
            return false;
        }
        let empty = Distribution::new(self.since_ns);
        let mut bytes = existing.unwrap_or(&empty).growth(&reading.points);
        let is_new = existing.is_none();
        if is_new {
            bytes += SERIES;
            let is_first = |of: &&Destination| !self.destinations.contains_key(*of);
            bytes += series.set.destination.as_ref().filter(is_first).map_or(0, Destination::bytes);
        }
        if !self.make_room(bytes) {
            return false;
        }
        self.bytes += bytes;
        if is_new && let Some(destination) = series.set.destination.take() {
            // The same text for all that speak of it.
            let interned = self.destinations.get_key_value(&destination).map(|(interned, _)| interned.clone());
            let interned = interned.unwrap_or(destination);
            *self.destinations.entry(interned.clone()).or_default() += 1;
            series.set.destination = Some(interned);
        }
        let Some(streams) = self.holders.get_mut(&holder) else { return false };
        streams.counts[series.measure as usize] += usize::from(is_new);
        streams.series.entry(series).or_insert(empty).add(&reading.points);
        true
    }

    /// Adds to a process's overflow, or to mqspan's own, which needs no room.
    fn overflow(&mut self, holder: Option<Holder>, reading: &Reading) {
        let key = (reading.measure, reading.op);
        let empty = Distribution::new(self.since_ns);
        let of = |table: &Self, holder: Holder| {
            let streams = table.holders.get(&holder)?;
            let kept = streams.overflow.get(&key);
            Some(kept.unwrap_or(&empty).growth(&reading.points) + if kept.is_none() { SERIES } else { 0 })
        };
        let own = self.current(None).unwrap_or(OWN);
        let with_room = holder.filter(|holder| of(self, *holder).is_some_and(|bytes| self.make_room(bytes)));
        let holder = with_room.unwrap_or(own);
        self.bytes += of(self, holder).unwrap_or(0);
        let Some(streams) = self.holders.get_mut(&holder) else { return };
        streams.changed = self.collection;
        streams.overflow.entry(key).or_insert(empty).add(&reading.points);
    }

    /// Whether so much more has room, if need be in the place of images that made no calls lately.
    fn make_room(&mut self, bytes: usize) -> bool {
        while bytes > 0 && self.bytes + bytes > self.most_bytes {
            if !self.evict() {
                return false;
            }
        }
        true
    }

    /// Forgets the image whose calls are the longest ago, if all of it was exported; whether there was one.
    fn evict(&mut self) -> bool {
        let idle = |streams: &ImageStreams| {
            !streams.is_provisional
                && streams.changed < self.collection
                && (streams.is_empty() || self.cumulative && streams.changed <= self.settled)
        };
        let images = self.holders.iter().filter(|(holder, streams)| holder.image.is_some() && idle(streams));
        let Some(holder) = images.min_by_key(|(_, streams)| streams.changed).map(|(holder, _)| *holder) else {
            return false;
        };
        self.remove(&holder);
        true
    }

    fn remove(&mut self, holder: &Holder) {
        let Some(streams) = self.holders.remove(holder) else { return };
        if holder.image.is_some() {
            self.bytes = self.bytes.saturating_sub(streams.bytes_without_series());
        }
        for (series, distribution) in streams.series {
            self.forget(&series, &distribution);
        }
        for distribution in streams.overflow.values() {
            self.bytes = self.bytes.saturating_sub(SERIES + size_of_val(&*distribution.buckets));
        }
    }

    /// The stream was taken out.
    fn forget(&mut self, series: &Series, distribution: &Distribution) {
        self.bytes = self.bytes.saturating_sub(SERIES + size_of_val(&*distribution.buckets));
        let Some(destination) = &series.set.destination else { return };
        let Some(streams) = self.destinations.get_mut(destination) else { return };
        *streams -= 1;
        if *streams == 0 {
            self.destinations.remove(destination);
            self.bytes = self.bytes.saturating_sub(destination.bytes());
        }
    }

    /// Adds a span to a stream of an image, unless the stream has as many already, or there is no such stream.
    pub fn exemplify(&mut self, image: ImageKey, series: &Series, exemplar: Exemplar) {
        let Some(holder) = self.current(Some(image)) else { return };
        if !self.holders.get(&holder).is_some_and(|streams| streams.series.contains_key(series)) {
            return;
        }
        let exemplars = self.exemplars.entry((holder, series.clone())).or_default();
        if exemplars.len() < EXEMPLARS {
            exemplars.push(exemplar);
        }
    }

    /// What was there in the collection `settled` and before was exported to every output. Forgets images that have ended,
    /// once a collection passed without calls of theirs, and those that were replaced.
    pub fn settle(&mut self, settled: u64, has_ended: impl Fn(&ImageKey) -> bool) {
        self.settled = settled;
        let mut gone = Vec::new();
        let mut holders = self.holders.iter().peekable();
        while let Some((holder, streams)) = holders.next() {
            let is_exported = !streams.is_provisional
                && (streams.is_empty()
                    || match streams.closed {
                        Some(closed) => closed.since <= settled,
                        None => streams.changed <= settled,
                    });
            let Some(image) = holder.image else {
                gone.extend((streams.closed.is_some() && is_exported).then_some(*holder));
                continue;
            };
            // Another program runs in the process since.
            let successor = holders.peek().and_then(|(next, _)| next.image).is_some_and(|next| {
                (next.pid, next.started_ns) == (image.pid, image.started_ns) && next.exec_id > image.exec_id
            });
            let is_over =
                streams.closed.is_some() || streams.changed < self.collection && (successor || has_ended(&image));
            gone.extend((is_over && is_exported).then_some(*holder));
        }
        for holder in gone {
            self.remove(&holder);
        }
    }
}

/// How far a pass over all streams has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// All before this one are done.
    holder: Option<Holder>,
    /// Of this one, all up to this stream; None: not even its overflow.
    series: Option<Series>,
    overflow_done: bool,
}

/// What a pass comes to.
#[derive(Debug)]
pub enum Export<'a> {
    /// What found no room, all of it that a Resource has.
    Overflow(&'a BTreeMap<(Measure, Op), Distribution>),
    /// A stream.
    Stream(&'a Series, &'a Distribution, &'a [Exemplar]),
}

impl StreamTable {
    /// Goes on with a pass: exports what comes next to `each`, with its Resource and its time (ns since 1970), until that
    /// returns false: then it goes on behind it the next time. Returns whether the pass is at its end. What is not
    /// cumulative is forgotten as it is exported. What was replaced is left out if it was exported by the collection
    /// `exported` already.
    pub fn pass(
        &mut self,
        cursor: &mut Cursor,
        exported: u64,
        mut each: impl FnMut(&Arc<Resource>, u64, Export<'_>) -> bool,
    ) -> bool {
        loop {
            let next = match cursor.holder {
                None => self.holders.keys().next(),
                Some(holder) => self.holders.range(holder..).next().map(|(holder, _)| holder),
            };
            let Some(holder) = next.copied() else {
                *cursor = Cursor::default();
                return true;
            };
            if cursor.holder != Some(holder) {
                *cursor = Cursor { holder: Some(holder), ..Cursor::default() };
            }
            if !self.pass_holder(holder, cursor, exported, &mut each) {
                return false;
            }
            let following = (std::ops::Bound::Excluded(holder), std::ops::Bound::Unbounded);
            let Some((following, _)) = self.holders.range(following).next() else {
                *cursor = Cursor::default();
                return true;
            };
            *cursor = Cursor { holder: Some(*following), ..Cursor::default() };
        }
    }

    fn pass_holder(
        &mut self,
        holder: Holder,
        cursor: &mut Cursor,
        exported: u64,
        each: &mut impl FnMut(&Arc<Resource>, u64, Export<'_>) -> bool,
    ) -> bool {
        use std::ops::Bound::{Excluded, Unbounded};
        let (cumulative, time_ns) = (self.cumulative, self.time_ns);
        let Some(streams) = self.holders.get(&holder) else { return true };
        if streams.is_provisional || cumulative && streams.closed.is_some_and(|closed| closed.since <= exported) {
            return true;
        }
        let time_ns = streams.closed.map_or(time_ns, |closed| closed.time_ns);
        if !cursor.overflow_done {
            cursor.overflow_done = true;
            let goes_on =
                streams.overflow.is_empty() || each(&streams.resource, time_ns, Export::Overflow(&streams.overflow));
            if !cumulative {
                self.forget_overflow(&holder);
            }
            if !goes_on {
                return false;
            }
        }
        loop {
            let Some(streams) = self.holders.get_mut(&holder) else { return true };
            let next = match &cursor.series {
                Some(series) if cumulative => {
                    streams.series.range((Excluded(series), Unbounded)).next().map(|(series, _)| series.clone())
                }
                _ => streams.series.keys().next().cloned(),
            };
            let Some(series) = next else { return true };
            let exemplars = self.exemplars.get(&(holder, series.clone())).map_or(&[][..], Vec::as_slice);
            let Some(distribution) = streams.series.get(&series) else { return true };
            let goes_on = each(&streams.resource, time_ns, Export::Stream(&series, distribution, exemplars));
            if !cumulative && let Some(distribution) = streams.series.remove(&series) {
                streams.counts[series.measure as usize] -= 1;
                self.forget(&series, &distribution);
            }
            cursor.series = Some(series);
            if !goes_on {
                return false;
            }
        }
    }

    fn forget_overflow(&mut self, holder: &Holder) {
        let Some(streams) = self.holders.get_mut(holder) else { return };
        for distribution in std::mem::take(&mut streams.overflow).values() {
            self.bytes = self.bytes.saturating_sub(SERIES + size_of_val(&*distribution.buckets));
        }
    }
}

#[cfg(test)]
mod tests;
