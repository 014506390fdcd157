//! OTLP as protobuf, written straight into the bytes of a request: field numbers are those of opentelemetry-proto's
//! trace.proto, logs.proto, common.proto and resource.proto, with whose generated types a test reads it back. Pure
//! code.

use super::record::{LINK_METHOD, LogEntry, Record, SCHEMA_URL, SCOPE, STATUS_ERROR, VERSION};
use super::view::{Attributes, View};
use crate::model::resource::Resource;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn tag(out: &mut Vec<u8>, field: u8, wire: u8) {
    varint(out, u64::from(field) << 3 | u64::from(wire));
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    tag(out, field, BYTES);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn fixed64(out: &mut Vec<u8>, field: u8, value: u64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

fn fixed32(out: &mut Vec<u8>, field: u8, value: u32) {
    tag(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

/// A message whose length is known once it is written: two bytes are kept for it, and the rare longer one is moved.
fn nested(out: &mut Vec<u8>, field: u8, write: impl FnOnce(&mut Vec<u8>)) {
    const ROOM: usize = 2;
    tag(out, field, BYTES);
    let at = out.len();
    out.extend_from_slice(&[0; ROOM]);
    write(out);
    let len = out.len() - at - ROOM;
    let need = varint_len(len);
    if need > ROOM {
        out.splice(at..at, std::iter::repeat_n(0, need - ROOM));
    }
    let width = need.max(ROOM);
    for (index, byte) in out[at..at + width].iter_mut().enumerate() {
        // A varint may be longer than it needs to be: the high bit says that more follows, if only zeros.
        *byte = (len >> (7 * index)) as u8 & 0x7f | if index + 1 < width { 0x80 } else { 0 };
    }
}

/// `repeated KeyValue attributes`, as this field of the message that is being written.
struct ProtobufAttributes<'a> {
    out: &'a mut Vec<u8>,
    field: u8,
}

impl ProtobufAttributes<'_> {
    /// A KeyValue whose AnyValue takes `len` bytes.
    fn start(&mut self, key: &str, len: usize) {
        tag(self.out, self.field, BYTES);
        let key_len = 1 + varint_len(key.len()) + key.len();
        varint(self.out, (key_len + 1 + varint_len(len) + len) as u64);
        bytes(self.out, 1, key.as_bytes());
        tag(self.out, 2, BYTES);
        varint(self.out, len as u64);
    }
}

impl Attributes for ProtobufAttributes<'_> {
    fn text(&mut self, key: &str, value: &str) {
        self.start(key, 1 + varint_len(value.len()) + value.len());
        bytes(self.out, 1, value.as_bytes());
    }

    fn int(&mut self, key: &str, value: i64) {
        let value = value.cast_unsigned();
        self.start(key, 1 + varint_len(value as usize));
        number(self.out, 3, value);
    }

    fn double(&mut self, key: &str, value: f64) {
        self.start(key, 9);
        fixed64(self.out, 4, value.to_bits());
    }

    fn boolean(&mut self, key: &str, value: bool) {
        self.start(key, 2);
        number(self.out, 2, value.into());
    }

    fn texts(&mut self, key: &str, values: &[&str]) {
        nested(self.out, self.field, |out| {
            bytes(out, 1, key.as_bytes());
            nested(out, 2, |out| {
                nested(out, 5, |out| {
                    for value in values {
                        nested(out, 1, |out| bytes(out, 1, value.as_bytes()));
                    }
                });
            });
        });
    }
}

/// Appends the fields of a `Span` that calls have in common which are alike.
pub fn common(view: &View<'_>, out: &mut Vec<u8>) {
    bytes(out, 5, view.span_name().as_bytes());
    number(out, 6, view.kind().into());
    view.common_attributes(&mut ProtobufAttributes { out, field: 9 });
    if let Some(error) = view.error() {
        nested(out, 15, |out| {
            bytes(out, 2, error.as_bytes());
            number(out, 3, STATUS_ERROR.into());
        });
    }
}

/// Appends a `Span`, as a field of `ScopeSpans`; `common` is what [`common`] makes of its call.
pub fn span(record: &Record<'_>, common: &[u8], out: &mut Vec<u8>) {
    let Some(ids) = record.span() else { return };
    nested(out, 2, |out| {
        bytes(out, 1, &ids.trace);
        bytes(out, 2, &ids.span);
        if let Some(parent) = record.parent() {
            bytes(out, 4, &parent.span);
        }
        fixed64(out, 7, record.start_ns());
        fixed64(out, 8, record.end_ns());
        out.extend_from_slice(common);
        record.view.own_attributes(&mut ProtobufAttributes { out, field: 9 });
        for link in record.links() {
            nested(out, 13, |out| {
                bytes(out, 1, &link.ids.trace);
                bytes(out, 2, &link.ids.span);
                ProtobufAttributes { out, field: 4 }.text(LINK_METHOD, link.method);
                fixed32(out, 6, link.flags);
            });
        }
        fixed32(out, 16, record.flags());
    });
}

/// Appends a `LogRecord`, as a field of `ScopeLogs`.
pub fn log(record: &impl LogEntry, out: &mut Vec<u8>) {
    let (severity, severity_text) = record.severity();
    nested(out, 2, |out| {
        fixed64(out, 1, record.start_ns());
        number(out, 2, severity.into());
        bytes(out, 3, severity_text.as_bytes());
        nested(out, 5, |out| bytes(out, 1, record.body().as_bytes()));
        record.attributes(&mut ProtobufAttributes { out, field: 6 });
        if let Some((ids, flags)) = record.logged_span() {
            fixed32(out, 8, flags);
            bytes(out, 9, &ids.trace);
            bytes(out, 10, &ids.span);
        }
        fixed64(out, 11, record.end_ns());
        bytes(out, 12, record.event_name().as_bytes());
    });
}

/// Appends the `ResourceSpans` or `ResourceLogs` of one Resource, as a field of a request: records from [`span`] or
/// [`log`] with what stands around them. The layout is the same for both.
pub fn group(resource: &Resource, records: &[u8], out: &mut Vec<u8>) {
    nested(out, 1, |out| {
        nested(out, 1, |out| resource.attributes(&mut ProtobufAttributes { out, field: 1 }));
        nested(out, 2, |out| {
            nested(out, 1, |out| {
                bytes(out, 1, SCOPE.as_bytes());
                bytes(out, 2, VERSION.as_bytes());
            });
            out.extend_from_slice(records);
            bytes(out, 3, SCHEMA_URL.as_bytes());
        });
        if resource.has_schema {
            bytes(out, 3, SCHEMA_URL.as_bytes());
        }
    });
}
