//! Where threads hold their context (OTEP 4947): a file that a process has mapped, and what its memory is said to hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqspan::who::elf::classify;
use mqspan::who::tls::{Libc, Memory, resolve};

/// Answers each address with some bytes of the input.
struct Words<'a>(&'a [u8]);

impl Memory for Words<'_> {
    fn word(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at % self.0.len() as u64).ok()?;
        self.0.get(at..)?.first_chunk().map(|word| u64::from_ne_bytes(*word))
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(publisher) = classify(bytes) else { return };
    let bias = u64::from(bytes[0]) << 56 | u64::from(bytes[1]);
    for libc in [Libc::Glibc, Libc::Musl] {
        let _ = resolve(&publisher, bias, libc, &Words(bytes));
    }
});
