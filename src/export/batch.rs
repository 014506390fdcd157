//! Records of one signal, gathered by Resource until they make a request. Pure code.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::buffers::Buffers;
use crate::model::resource::Resource;
use crate::model::values::Signal;
use crate::telemetry::common::CommonCache;
use crate::telemetry::record::{LogEntry, Record};
use crate::telemetry::{json, protobuf};

/// How requests are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// OTLP protobuf.
    Protobuf,
    /// OTLP JSON.
    Json,
}

/// What stands around the records of one Resource, roughly.
const AROUND: usize = 1024;
/// As many bytes of emptied buffers are kept.
const SPARE: usize = 1 << 20;

#[derive(Debug)]
struct Group {
    resource: Arc<Resource>,
    records: Vec<u8>,
}

/// The request that is being gathered.
#[derive(Debug)]
pub struct Batch {
    signal: Signal,
    encoding: Encoding,
    groups: Vec<Group>,
    /// Places in `groups` by the address of the Resource, which the group keeps alive.
    places: HashMap<usize, usize>,
    last: usize,
    bytes: usize,
    records: u64,
    /// Emptied buffers of groups, to be filled again.
    spare: Vec<Vec<u8>>,
    bodies: Buffers,
    common: CommonCache,
}

impl Batch {
    /// An empty batch.
    pub fn new(signal: Signal, encoding: Encoding) -> Self {
        Self {
            signal,
            encoding,
            groups: Vec::new(),
            places: HashMap::new(),
            last: 0,
            bytes: 0,
            records: 0,
            spare: Vec::new(),
            bodies: Buffers::default(),
            common: CommonCache::default(),
        }
    }

    /// How many bytes the request will have, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a record of a process.
    pub fn add(&mut self, resource: &Arc<Resource>, record: &Record<'_>) {
        let place = self.place(resource);
        let records = &mut self.groups[place].records;
        let before = records.len();
        match (self.signal, self.encoding) {
            (Signal::Logs, Encoding::Protobuf) => protobuf::log(record, records),
            (Signal::Logs, Encoding::Json) => json::log(record, records),
            (_, Encoding::Protobuf) => {
                protobuf::span(record, self.common.encoded(record.view, protobuf::common), records);
            }
            (_, Encoding::Json) => json::span(record, self.common.encoded(record.view, json::common), records),
        }
        self.bytes += records.len() - before;
        self.records += 1;
    }

    /// Adds a log record of a process that is no call's; the batch is of logs.
    pub fn add_entry(&mut self, resource: &Arc<Resource>, entry: &impl LogEntry) {
        let place = self.place(resource);
        let records = &mut self.groups[place].records;
        let before = records.len();
        match self.encoding {
            Encoding::Protobuf => protobuf::log(entry, records),
            Encoding::Json => json::log(entry, records),
        }
        self.bytes += records.len() - before;
        self.records += 1;
    }

    fn place(&mut self, resource: &Arc<Resource>) -> usize {
        // Calls come in runs of one process.
        if self.groups.get(self.last).is_some_and(|group| Arc::ptr_eq(&group.resource, resource)) {
            return self.last;
        }
        self.last = *self.places.entry(Arc::as_ptr(resource).addr()).or_insert_with(|| {
            self.groups.push(Group { resource: resource.clone(), records: self.spare.pop().unwrap_or_default() });
            self.bytes += AROUND;
            self.groups.len() - 1
        });
        self.last
    }

    /// The request and the number of its records, None where there are none; the batch is empty then.
    pub fn take(&mut self) -> Option<(Bytes, u64)> {
        if self.records == 0 {
            return None;
        }
        let mut body = self.bodies.take(self.bytes + AROUND);
        if self.encoding == Encoding::Json {
            json::start(self.signal, &mut body);
        }
        for mut group in self.groups.drain(..) {
            match self.encoding {
                Encoding::Protobuf => protobuf::group(&group.resource, &group.records, &mut body),
                Encoding::Json => json::group(self.signal, &group.resource, &group.records, &mut body),
            }
            group.records.clear();
            // As much as a busy host needs at a time; a burst of one process must not be paid for ever.
            let kept: usize = self.spare.iter().map(Vec::capacity).sum();
            if kept + group.records.capacity() <= SPARE {
                self.spare.push(group.records);
            }
        }
        if self.encoding == Encoding::Json {
            json::end(&mut body);
        }
        self.places.clear();
        self.last = 0;
        self.bytes = 0;
        Some((self.bodies.freeze(body), std::mem::take(&mut self.records)))
    }
}
