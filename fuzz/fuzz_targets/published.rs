//! What any process publishes, says in its environment and is called by, as OTLP in both forms: valid, and the same in both.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqspan::model::call::{Image, ImageKey, Root};
use mqspan::model::values::Signal;
use mqspan::telemetry::{json, protobuf};
use mqspan::who::host::Host;
use mqspan::who::resource::Made;
use mqspan::who::{environment, process_context};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

fuzz_target!(|parts: (&[u8], &[u8], &[u8], &str)| {
    let (payload, environ, path, cgroup) = parts;
    let published = process_context::payload(payload).unwrap_or_default();
    assert!(published.attributes.len() <= 64);
    let image = Image {
        key: ImageKey { pid: 7, started_ns: 7, exec_id: 0 },
        vpid: 1,
        local_pid: 7,
        parent_pid: 1,
        path: Some(path.to_vec()),
        environ: None,
        environ_at: 0,
        environ_cut: false,
        uid: 0,
        cgroup: None,
        comm: Vec::new(),
        root: Root::default(),
    };
    let (host, said) = (Host::default(), environment::read(environ));
    let made = Made {
        host: &host,
        boot_offset_ns: 0,
        image: &image,
        said: &said,
        published: &published,
        owner: None,
        cgroup: Some(cgroup.to_owned()),
        owns_id: true,
    };
    let resource = made.build();
    let (mut as_json, mut as_protobuf) = (Vec::new(), Vec::new());
    json::start(Signal::Traces, &mut as_json);
    json::group(Signal::Traces, &resource, &[], &mut as_json);
    json::end(&mut as_json);
    protobuf::group(&resource, &[], &mut as_protobuf);
    let by_json: ExportTraceServiceRequest = serde_json::from_slice(&as_json).unwrap();
    assert_eq!(by_json, ExportTraceServiceRequest::decode(&*as_protobuf).unwrap());
});
