//! What is written by hand, read back with opentelemetry-proto's types.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_proto::tonic::trace::v1::span::Link;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

use super::record::{Record, SCHEMA_URL, VERSION};
use super::view::{Attributes, View};
use super::{json, protobuf};
use crate::model::call::Ids;
use crate::model::call::{Args, Call, Context, Deadline, Message, Method, Passed, Sender, Source};
use crate::model::examples::{example, message, queue};
use crate::model::resource::{Resource, Value};
use crate::model::values::{Op, Receive, Signal};

fn call(name: &[u8]) -> Call {
    Call {
        tid: 70_001,
        entered_ns: 1000,
        left_ns: 15_200,
        ipc_ns: 4_026_531_839,
        ids: IDS,
        asked: Some(name.into()),
        args: Args::Open {
            name_ptr: 0,
            oflag: 0xffff_ffff,
            mode: 0o640,
            attr: Passed { ptr: 1, value: Some([i64::MIN, -1, 0, i64::MAX]) },
            attr_changed: true,
        },
        queue: Some(queue(b"used")),
        comm: *b"a\"b\\c\0\0\0\0\0\0\0\0\0\0\0",
        ..example()
    }
}

/// A send that waited and failed: numbers with a fraction, and true.
fn send() -> Call {
    let deadline = Deadline { s: START as i64 / 1_000_000_000, ns: 5 };
    let timeout = Passed { ptr: 1, value: Some(deadline) };
    let message = Message { size: 8192, priority: Some(32_767), timeout, blocked: true, ..message() };
    Call { op: Op::MqTimedsend, asked: None, args: Args::Send(message), ..call(b"") }
}

/// A receive whose send is known.
fn receive() -> Call {
    let ids = Ids { trace: [7; 16], span: [8; 8] };
    let sent_by = Some(Sender { ids, comm: [0; 16], method: Method::Message });
    let message = Message { sent_by, wait_ns: Some(1), ..message() };
    Call { op: Op::MqTimedreceive, asked: None, args: Args::Receive(message), ..call(b"") }
}

/// A receive inside a span of the application's.
fn inside(source: Source) -> Call {
    Call { context: Some(Context { ids: OWN, source }), ..receive() }
}

/// The attributes by the generated types.
#[derive(Default)]
struct Proto(Vec<KeyValue>);

impl Proto {
    fn push(&mut self, key: &str, value: Any) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.into(), value, ..Default::default() });
    }
}

impl Attributes for Proto {
    fn text(&mut self, key: &str, value: &str) {
        self.push(key, Any::StringValue(value.into()));
    }
    fn int(&mut self, key: &str, value: i64) {
        self.push(key, Any::IntValue(value));
    }
    fn double(&mut self, key: &str, value: f64) {
        self.push(key, Any::DoubleValue(value));
    }
    fn boolean(&mut self, key: &str, value: bool) {
        self.push(key, Any::BoolValue(value));
    }
    fn texts(&mut self, key: &str, values: &[&str]) {
        let text = |value: &&str| AnyValue { value: Some(Any::StringValue((*value).into())) };
        self.push(key, Any::ArrayValue(ArrayValue { values: values.iter().map(text).collect() }));
    }
}

fn resource() -> Resource {
    Resource {
        attributes: vec![
            ("service.name".into(), Value::Text("bill\u{1}\"er\\ ü".into())),
            ("process.pid".into(), Value::Int(70_000)),
        ],
        has_schema: true,
        started_in: None,
    }
}

fn proto_resource() -> Option<ProtoResource> {
    let mut attributes = Proto::default();
    resource().attributes(&mut attributes);
    Some(ProtoResource { attributes: attributes.0, ..Default::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: "mqspan".into(), version: VERSION.into(), ..Default::default() })
}

const IDS: Ids = Ids { trace: [0xab; 16], span: [1, 2, 3, 4, 5, 6, 7, 8] };
/// The application's own span.
const OWN: Ids = Ids { trace: [0x0f; 16], span: [0xf0; 8] };
const START: u64 = 1_790_000_000_123_456_789;

fn expected_span(record: &Record<'_>) -> Span {
    let mut attributes = Proto::default();
    record.view.attributes(&mut attributes);
    let sender = record.view.sender().map(|sender| sender.ids);
    let source = record.view.context.map(|context| context.source);
    let (own_parent, own_link) = match source {
        None => (None, None),
        Some(Source::Thread { sampled: true }) => (Some(OWN), None),
        Some(Source::Thread { sampled: false }) => (None, Some("thread_context")),
        Some(Source::Obi) => (None, Some("obi")),
        Some(Source::Environment) => (None, Some("environment")),
    };
    let parent = own_parent.or(sender.filter(|_| record.view.is_child));
    let link = |(ids, method, flags): (Ids, &str, u32)| {
        let mut attributes = Proto::default();
        attributes.text("posix_mq.link.method", method);
        let (trace_id, span_id) = (ids.trace.into(), ids.span.into());
        Link { trace_id, span_id, attributes: attributes.0, flags, ..Default::default() }
    };
    let sent = sender.map(|ids| (ids, "message", 0x301));
    let links = sent.into_iter().chain(own_link.map(|method| (OWN, method, 0x300)));
    Span {
        trace_id: parent.map_or(IDS.trace, |parent| parent.trace).into(),
        span_id: IDS.span.into(),
        parent_span_id: parent.map_or(Vec::new(), |parent| parent.span.into()),
        links: links.map(link).collect(),
        name: record.view.span_name(),
        kind: record.view.kind().into(),
        start_time_unix_nano: START,
        end_time_unix_nano: START + 14_200,
        attributes: attributes.0,
        status: Some(Status { message: "No such file or directory".into(), code: 2 }),
        flags: if parent.is_some() { 0x301 } else { 0x101 },
        ..Default::default()
    }
}

fn expected_log(record: &Record<'_>) -> LogRecord {
    let mut attributes = Proto::default();
    record.log_attributes(&mut attributes);
    assert_eq!(attributes.0.last().map(|last| &*last.key), Some("posix_mq.duration"));
    // Without a span of its own the application's: not the one that its process was started in.
    let context = record.view.context;
    let named = record.span().map(|ids| (ids, 1)).or(match context.map(|context| context.source) {
        Some(Source::Thread { sampled }) => Some((OWN, u32::from(sampled))),
        Some(Source::Obi) => Some((OWN, 0)),
        None | Some(Source::Environment) => None,
    });
    LogRecord {
        time_unix_nano: START,
        observed_time_unix_nano: START + 14_200,
        severity_number: 13,
        severity_text: "WARN".into(),
        body: Some(AnyValue { value: Some(Any::StringValue(record.view.line())) }),
        attributes: attributes.0,
        event_name: record.event_name().into(),
        flags: named.map_or(0, |(_, flags)| flags),
        trace_id: named.map_or(Vec::new(), |(ids, _)| ids.trace.into()),
        span_id: named.map_or(Vec::new(), |(ids, _)| ids.span.into()),
        ..Default::default()
    }
}

fn spans(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { scope: scope(), spans, schema_url: SCHEMA_URL.into() }];
    let group = ResourceSpans { resource: proto_resource(), scope_spans, schema_url: SCHEMA_URL.into() };
    ExportTraceServiceRequest { resource_spans: vec![group.clone(), group] }
}

fn logs(log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let scope_logs = vec![ScopeLogs { scope: scope(), log_records, schema_url: SCHEMA_URL.into() }];
    let group = ResourceLogs { resource: proto_resource(), scope_logs, schema_url: SCHEMA_URL.into() };
    ExportLogsServiceRequest { resource_logs: vec![group.clone(), group] }
}

fn as_json(signal: Signal, records: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    json::start(signal, &mut out);
    json::group(signal, &resource(), records, &mut out);
    json::group(signal, &resource(), records, &mut out);
    json::end(&mut out);
    out
}

fn as_protobuf(records: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    protobuf::group(&resource(), records, &mut out);
    protobuf::group(&resource(), records, &mut out);
    out
}

/// Prevents a hand-written request from saying anything else than the generated types would: every kind of value,
/// names that need escapes, and lengths around those where a varint grows.
#[test]
fn written_by_hand_read_by_the_generated_types() {
    let mut names: Vec<Vec<u8>> = vec![b"".to_vec(), b"q\x1b\"\\\x7f".to_vec(), b"\xff\xfe".to_vec(), "ü/€".into()];
    names.extend((1..=255).map(|len| vec![b'n'; len]));
    let hang = [Receive::Link, Receive::Child];
    let sampled = [true, false].map(|sampled| Source::Thread { sampled });
    let contexts = sampled.into_iter().chain([Source::Obi, Source::Environment]).map(inside);
    let calls = names.iter().map(|name| call(name)).chain([send(), receive()]).chain(contexts);
    for (call, receive) in calls.flat_map(|call| hang.map(|receive| (call.clone(), receive))) {
        let view = View::new(&call, START).received_as(receive);
        for ids in [Some(IDS), None] {
            let record = Record { view: &view, ids };
            let (mut proto_span, mut json_span, mut proto_log, mut json_log) = Default::default();
            let [mut proto_common, mut json_common] = [const { Vec::new() }; 2];
            protobuf::common(&view, &mut proto_common);
            json::common(&view, &mut json_common);
            for _ in 0..2 {
                protobuf::span(&record, &proto_common, &mut proto_span);
                json::span(&record, &json_common, &mut json_span);
                protobuf::log(&record, &mut proto_log);
                json::log(&record, &mut json_log);
            }
            if ids.is_some() {
                let expected = spans(vec![expected_span(&record); 2]);
                assert_eq!(ExportTraceServiceRequest::decode(&*as_protobuf(&proto_span)).unwrap(), expected);
                let json = as_json(Signal::Traces, &json_span);
                let read: ExportTraceServiceRequest = serde_json::from_slice(&json).unwrap();
                assert_eq!(read, expected);
            }
            let expected = logs(vec![expected_log(&record); 2]);
            assert_eq!(ExportLogsServiceRequest::decode(&*as_protobuf(&proto_log)).unwrap(), expected);
            let read: ExportLogsServiceRequest = serde_json::from_slice(&as_json(Signal::Logs, &json_log)).unwrap();
            assert_eq!(read, expected);
        }
    }
}

/// Prevents a receive from leaving the trace that its thread is in, where it was to be its sender's child.
#[test]
fn a_receiver_with_a_span_of_its_own_is_no_child() {
    let child = |call: &Call| View::new(call, START).received_as(Receive::Child).is_child;
    assert!(child(&receive()));
    assert!(child(&inside(Source::Environment)), "which names where the process began, not what it does");
    for source in [Source::Thread { sampled: true }, Source::Thread { sampled: false }, Source::Obi] {
        assert!(!child(&inside(source)), "{source:?}");
    }
}
