//! What a process's environment says of it: bounded, whatever stands there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqspan::who::environment;

fuzz_target!(|bytes: &[u8]| {
    let said = environment::read(bytes);
    assert!(said.attributes.len() <= 64);
    let size: usize = said.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(size <= 4096);
});
