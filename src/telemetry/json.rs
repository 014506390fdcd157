//! OTLP as JSON, by the protobuf JSON mapping with OTLP's own rules: ids in hex, enums as numbers, 64-bit integers as
//! strings (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>). Written straight into the bytes of a
//! request; a test reads it back with opentelemetry-proto's types. Pure code.

use std::io::Write;

use super::record::{LINK_METHOD, LogEntry, Record, SCHEMA_URL, SCOPE, STATUS_ERROR, VERSION};
use super::view::{Attributes, View};
use crate::model::resource::Resource;
use crate::model::values::Signal;

/// Writing to a Vec cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { { let _ = write!($out, $($arg)*); } };
}

/// A string with its quotes (RFC 8259, section 7).
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[plain..at]);
        plain = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            _ => put!(out, "\\u{byte:04x}"),
        }
    }
    out.extend_from_slice(&text.as_bytes()[plain..]);
    out.push(b'"');
}

fn hex(out: &mut Vec<u8>, id: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in id {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

fn integer(out: &mut Vec<u8>, value: i128) {
    let mut digits = [0; 24];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs() as u64;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// A list of KeyValue, without its brackets.
struct JsonAttributes<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> JsonAttributes<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, first: true }
    }

    fn start(&mut self, key: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        self.out.extend_from_slice(b"{\"key\":");
        string(self.out, key);
        self.out.extend_from_slice(b",\"value\":{\"");
    }
}

impl Attributes for JsonAttributes<'_> {
    fn text(&mut self, key: &str, value: &str) {
        self.start(key);
        self.out.extend_from_slice(b"stringValue\":");
        string(self.out, value);
        self.out.extend_from_slice(b"}}");
    }

    fn int(&mut self, key: &str, value: i64) {
        self.start(key);
        self.out.extend_from_slice(b"intValue\":\"");
        integer(self.out, value.into());
        self.out.extend_from_slice(b"\"}}");
    }

    /// JSON has no other numbers: the mapping writes them as strings, which not every receiver reads (serde's f64), and one
    /// that is refused costs all that is in the request.
    fn double(&mut self, key: &str, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.start(key);
        // Large and small ones with an exponent: of hundreds of digits some readers make a number that is out of range.
        put!(self.out, "doubleValue\":{value:?}}}}}");
    }

    fn boolean(&mut self, key: &str, value: bool) {
        self.start(key);
        put!(self.out, "boolValue\":{value}}}}}");
    }

    fn texts(&mut self, key: &str, values: &[&str]) {
        self.start(key);
        self.out.extend_from_slice(b"arrayValue\":{\"values\":[");
        for (index, value) in values.iter().enumerate() {
            self.out.extend_from_slice(if index > 0 { b",{\"stringValue\":" } else { b"{\"stringValue\":" });
            string(self.out, value);
            self.out.push(b'}');
        }
        self.out.extend_from_slice(b"]}}}");
    }
}

fn field_ns(out: &mut Vec<u8>, name: &str, value: u64) {
    out.extend_from_slice(name.as_bytes());
    integer(out, value.into());
}

/// Appends the fields of a `Span` that calls have in common which are alike, up to the first of their attributes.
pub fn common(view: &View<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"name\":");
    string(out, &view.span_name());
    put!(out, ",\"kind\":{},\"status\":{{", view.kind());
    if let Some(error) = view.error() {
        out.extend_from_slice(b"\"message\":");
        string(out, &error);
        put!(out, ",\"code\":{STATUS_ERROR}");
    }
    out.extend_from_slice(b"},\"attributes\":[");
    view.common_attributes(&mut JsonAttributes::new(out));
}

/// Appends a `Span`; a comma parts it from one before. `common` is what [`common`] makes of its call.
pub fn span(record: &Record<'_>, common: &[u8], out: &mut Vec<u8>) {
    let Some(ids) = record.span() else { return };
    if !out.is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(b"{\"traceId\":\"");
    hex(out, &ids.trace);
    out.extend_from_slice(b"\",\"spanId\":\"");
    hex(out, &ids.span);
    if let Some(parent) = record.parent() {
        out.extend_from_slice(b"\",\"parentSpanId\":\"");
        hex(out, &parent.span);
    }
    field_ns(out, "\",\"startTimeUnixNano\":\"", record.start_ns());
    field_ns(out, "\",\"endTimeUnixNano\":\"", record.end_ns());
    out.extend_from_slice(b"\",\"flags\":");
    integer(out, record.flags().into());
    for (index, link) in record.links().enumerate() {
        out.extend_from_slice(if index > 0 { b",{\"traceId\":\"" } else { b",\"links\":[{\"traceId\":\"" });
        hex(out, &link.ids.trace);
        out.extend_from_slice(b"\",\"spanId\":\"");
        hex(out, &link.ids.span);
        out.extend_from_slice(b"\",\"attributes\":[");
        JsonAttributes::new(out).text(LINK_METHOD, link.method);
        put!(out, "],\"flags\":{}}}", link.flags);
    }
    if record.links().next().is_some() {
        out.push(b']');
    }
    out.extend_from_slice(common);
    record.view.own_attributes(&mut JsonAttributes { out, first: false });
    out.extend_from_slice(b"]}");
}

/// Appends a `LogRecord`; a comma parts it from one before.
pub fn log(record: &impl LogEntry, out: &mut Vec<u8>) {
    if !out.is_empty() {
        out.push(b',');
    }
    let (severity, severity_text) = record.severity();
    field_ns(out, "{\"timeUnixNano\":\"", record.start_ns());
    field_ns(out, "\",\"observedTimeUnixNano\":\"", record.end_ns());
    put!(out, "\",\"severityNumber\":{severity},\"severityText\":\"{severity_text}\",\"body\":{{\"stringValue\":");
    string(out, &record.body());
    out.extend_from_slice(b"},\"attributes\":[");
    record.attributes(&mut JsonAttributes::new(out));
    put!(out, "],\"eventName\":\"{}\"", record.event_name());
    if let Some((ids, flags)) = record.logged_span() {
        put!(out, ",\"flags\":{flags},\"traceId\":\"");
        hex(out, &ids.trace);
        out.extend_from_slice(b"\",\"spanId\":\"");
        hex(out, &ids.span);
        out.push(b'"');
    }
    out.push(b'}');
}

/// What stands before the first group of a request.
pub fn start(signal: Signal, out: &mut Vec<u8>) {
    out.extend_from_slice(match signal {
        Signal::Traces => b"{\"resourceSpans\":[".as_slice(),
        Signal::Logs => b"{\"resourceLogs\":[",
        Signal::Metrics => b"{\"resourceMetrics\":[",
    });
}

/// Appends the `ResourceSpans` or `ResourceLogs` of one Resource: records from [`span`] or [`log`] with what stands
/// around them.
pub fn group(signal: Signal, resource: &Resource, records: &[u8], out: &mut Vec<u8>) {
    if out.last() == Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(b"{\"resource\":{\"attributes\":[");
    resource.attributes(&mut JsonAttributes::new(out));
    let (scopes, list) = match signal {
        Signal::Logs => ("scopeLogs", "logRecords"),
        _ => ("scopeSpans", "spans"),
    };
    put!(out, "]}},\"{scopes}\":[{{\"scope\":{{\"name\":\"{SCOPE}\",\"version\":\"{VERSION}\"}},\"{list}\":[");
    out.extend_from_slice(records);
    put!(out, "],\"schemaUrl\":\"{SCHEMA_URL}\"}}]");
    if resource.has_schema {
        put!(out, ",\"schemaUrl\":\"{SCHEMA_URL}\"");
    }
    out.push(b'}');
}

/// What stands after the last group.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"]}");
}
