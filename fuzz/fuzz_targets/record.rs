//! Records of the kernel side, and all that is said of the call that one decodes to.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqspan::model::call::{Call, Image, Name};
use mqspan::telemetry::record::Record;
use mqspan::telemetry::view::View;
use mqspan::telemetry::{json, protobuf};

fuzz_target!(|bytes: &[u8]| {
    let _ = (Image::decode(bytes), Name::decode(bytes));
    let Ok(call) = Call::decode(bytes) else { return };
    let view = View::new(&call, 1_700_000_000_000_000_000);
    let record = Record { view: &view, ids: Some(call.ids) };
    let [mut protobuf, mut text, mut protobuf_common, mut json_common] = [const { Vec::new() }; 4];
    protobuf::common(&view, &mut protobuf_common);
    protobuf::span(&record, &protobuf_common, &mut protobuf);
    protobuf::log(&record, &mut protobuf);
    json::common(&view, &mut json_common);
    json::span(&record, &json_common, &mut text);
    let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert!(read.is_object());
});
