//! What libbpf warns of, kept instead of printed: the last of it says why something failed, and of which program.

use std::sync::{Mutex, PoisonError};

use libbpf_rs::{PrintLevel, set_print};

/// libbpf's warnings since the last look: the last of them says why something failed.
static WARNINGS: Mutex<String> = Mutex::new(String::new());

fn keep_warning(level: PrintLevel, text: String) {
    if level == PrintLevel::Warn {
        let mut kept = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_str(&end_of(&text));
        kept.push(' ');
    }
}

/// The verifier's log may be long: its last lines before the statistics say why.
fn end_of(text: &str) -> String {
    let is_framed = |line: &&str| line.starts_with("processed ") || line.starts_with("-- END");
    let mut lines: Vec<&str> = text.lines().rev().filter(|line| !is_framed(line)).take(3).collect();
    lines.reverse();
    lines.join(" ").chars().take(300).collect()
}

/// From now on libbpf's warnings are kept, not printed; those so far are forgotten.
pub fn keep() {
    WARNINGS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    set_print(Some((PrintLevel::Warn, keep_warning)));
}

/// The program that the first warning is of.
pub fn program() -> Option<String> {
    program_in(&WARNINGS.lock().unwrap_or_else(PoisonError::into_inner)).map(Into::into)
}

/// libbpf writes `prog 'NAME': what is wrong`.
fn program_in(warnings: &str) -> Option<&str> {
    warnings.split_once("prog '")?.1.split('\'').next()
}

/// The error with what libbpf had to say, in one line.
pub fn explained(error: &libbpf_rs::Error) -> String {
    let said = std::mem::take(&mut *WARNINGS.lock().unwrap_or_else(PoisonError::into_inner));
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect();
    match said.is_empty() {
        true => error.to_string(),
        false => format!("{error} ({said})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents the reason for a refusal from being cut off behind all that was no reason.
    #[test]
    fn the_end_of_a_log() {
        let log = "-- BEGIN PROG LOAD LOG --\n0: R1=ctx()\n1: R2=0\n2: (85) call f\nR1 unbounded\nprocessed 3 insns\n-- END --";
        assert_eq!(end_of(log), "1: R2=0 2: (85) call f R1 unbounded");
        assert_eq!(end_of("one line"), "one line");
    }

    /// Prevents all hooks from being given up for one that the kernel refuses.
    #[test]
    fn the_program_that_is_refused() {
        let warnings = "libbpf: prog 'fentry_free_msg': BPF program load failed: -EINVAL libbpf: failed to load object";
        assert_eq!((program_in(warnings), program_in("libbpf: failed")), (Some("fentry_free_msg"), None));
    }
}
