//! What a process publishes of itself (OTEP 4719): header, payload, and the line of its mapping.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqspan::who::process_context::{HEADER, header, mapping, payload};

fuzz_target!(|bytes: &[u8]| {
    if let Some(head) = bytes.first_chunk::<HEADER>() {
        let _ = header(head);
    }
    let _ = payload(bytes);
    if let Ok(line) = std::str::from_utf8(bytes) {
        let _ = mapping(line);
    }
});
