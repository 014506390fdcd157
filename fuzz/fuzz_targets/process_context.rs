//! What a process publishes of itself (OTEP 4719): header, payload, and its mapping's name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqspan::who::process_context::{HEADER, header, is_name, payload};

fuzz_target!(|bytes: &[u8]| {
    if let Some(head) = bytes.first_chunk::<HEADER>() {
        let _ = header(head);
    }
    let _ = payload(bytes);
    let _ = is_name(bytes);
});
