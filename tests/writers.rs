//! Whatever a process publishes or names, what mqspan writes of it is OTLP, in both forms and the same in both. Needs no
//! root: the payload is made here.

#![allow(clippy::unwrap_used, reason = "what these helpers can't do fails the test")]

use mqspan::{
    model::{
        call::{Image, ImageKey, Root},
        resource::Resource,
        values::Signal,
    },
    telemetry::{json, protobuf},
    who::{environment, host::Host, process_context, resource::Made},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value},
    resource::v1::Resource as ProtoResource,
};
use prost::Message;
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// `ProcessContext` of OTEP 4719.
#[derive(Clone, PartialEq, Message)]
struct ProcessContext {
    #[prost(message, optional, tag = "1")]
    resource: Option<ProtoResource>,
}

fn text(random: &mut SmallRng) -> String {
    let len = random.random_range(0..40);
    let odd =
        ['\0', '"', '\\', '\n', '\u{7f}', '\u{2028}', '\u{202e}', '\u{feff}', '\u{10ffff}', 'é', '{', '}', 'a', 'b'];
    (0..len).map(|_| odd[random.random_range(0..odd.len())]).collect()
}

fn value(random: &mut SmallRng, depth: u32) -> Option<Value> {
    let doubles = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, f64::MAX, -0.0, 5e-324, 0.1];
    let integers = [i64::MIN, i64::MAX, -1, 0];
    let inner = |random: &mut SmallRng| AnyValue { value: value(random, depth + 1) };
    Some(match random.random_range(0..if depth < 20 { 9 } else { 6 }) {
        0 => Value::StringValue(text(random)),
        1 => Value::StringValue("x".repeat(random.random_range(0..6000))),
        2 => Value::BoolValue(random.random()),
        3 => Value::IntValue(integers[random.random_range(0..integers.len())]),
        4 => Value::DoubleValue(doubles[random.random_range(0..doubles.len())]),
        5 => Value::BytesValue(vec![0xff; random.random_range(0..20)]),
        6 => Value::ArrayValue(ArrayValue { values: (0..random.random_range(0..3)).map(|_| inner(random)).collect() }),
        7 => Value::KvlistValue(KeyValueList {
            values: vec![KeyValue { key: text(random), value: Some(inner(random)), ..Default::default() }],
        }),
        _ => return None,
    })
}

fn attribute(random: &mut SmallRng) -> KeyValue {
    let keys = ["service.name", "service.instance.id", "process.pid", "", "a", "a"];
    let key = match random.random_range(0..keys.len() + 4) {
        at if at < keys.len() => keys[at].to_owned(),
        _ => text(random),
    };
    let value = random.random_bool(0.95).then(|| AnyValue { value: value(random, 0) });
    KeyValue { key, value, ..Default::default() }
}

fn request(resource: &Resource) -> (Vec<u8>, Vec<u8>) {
    let (mut as_json, mut as_protobuf) = (Vec::new(), Vec::new());
    json::start(Signal::Traces, &mut as_json);
    json::group(Signal::Traces, resource, &[], &mut as_json);
    json::end(&mut as_json);
    protobuf::group(resource, &[], &mut as_protobuf);
    (as_json, as_protobuf)
}

/// Writes the Resource in both forms and reads it back; its attributes.
fn read_back(resource: &Resource) -> Vec<KeyValue> {
    let (as_json, as_protobuf) = request(resource);
    let by_json: ExportTraceServiceRequest = serde_json::from_slice(&as_json).unwrap();
    let by_protobuf = ExportTraceServiceRequest::decode(&*as_protobuf).unwrap();
    assert_eq!(by_json, by_protobuf);
    by_json.resource_spans[0].resource.clone().unwrap().attributes
}

fn made(published: &process_context::Published, environ: &[u8], path: Vec<u8>) -> Resource {
    let image = Image {
        key: ImageKey { pid: 7, started_ns: u64::MAX, exec_id: 0 },
        vpid: 1,
        local_pid: 7,
        parent_pid: 1,
        path: Some(path),
        environ: None,
        environ_at: 0,
        environ_cut: false,
        uid: u32::MAX,
        cgroup: None,
        comm: Vec::new(),
        root: Root::default(),
    };
    let (host, said) = (Host::default(), environment::read(environ));
    let made = Made {
        host: &host,
        boot_offset_ns: i64::MAX,
        image: &image,
        said: &said,
        published,
        owner: None,
        cgroup: Some("\u{1}\"/".into()),
        owns_id: true,
    };
    made.build()
}

/// Prevents one process's published context, or the name of its program, from making a request that no backend can read, by
/// which the spans of everybody in it are lost.
#[test]
fn anything_published_is_valid_in_both_forms() {
    let mut random = SmallRng::seed_from_u64(12);
    let mut read = 0;
    for _ in 0..3000 {
        let attributes = (0..random.random_range(0..90)).map(|_| attribute(&mut random)).collect();
        let context = ProcessContext { resource: Some(ProtoResource { attributes, ..Default::default() }) };
        let mut bytes = context.encode_to_vec();
        if random.random_bool(0.3) && !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        let Ok(published) = process_context::payload(&bytes) else { continue };
        read += 1;
        assert!(published.attributes.len() <= 64);
        let size = |key: &str, value: Option<&str>| key.len() + value.map_or(8, str::len);
        let bytes: usize = published.attributes.iter().map(|(key, value)| size(key, value.as_text())).sum();
        assert!(bytes <= 4096, "cut when it is read: {bytes}");
        let path = (0..random.random_range(0..30)).map(|_| random.random()).collect();
        let environ = format!("OTEL_RESOURCE_ATTRIBUTES=a=%00%22,b={}\0", text(&mut random).replace('\0', ""));
        let attributes = read_back(&made(&published, environ.as_bytes(), path));
        let mut keys: Vec<&str> = attributes.iter().map(|attribute| &*attribute.key).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all, "a key twice: {attributes:?}");
        assert!(!keys.contains(&""));
    }
    assert!(read > 1000, "{read}");
}

/// Prevents the incident: a context with a number that JSON does not have made the whole request none.
#[test]
fn numbers_that_json_does_not_have() {
    let attribute = |key: &str, value: f64| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::DoubleValue(value)) }),
        ..Default::default()
    };
    let attributes = vec![
        attribute("nan", f64::NAN),
        attribute("infinite", f64::INFINITY),
        attribute("negative", f64::NEG_INFINITY),
        attribute("finite", 1.5),
    ];
    let context = ProcessContext { resource: Some(ProtoResource { attributes, ..Default::default() }) };
    let published = process_context::payload(&context.encode_to_vec()).unwrap();
    let read = read_back(&made(&published, b"", b"/x".to_vec()));
    let own: Vec<&str> = read.iter().map(|attribute| &*attribute.key).filter(|key| !key.contains('.')).collect();
    assert_eq!(own, ["finite"]);
}
