//! Whether a kernel has the one kind of hooks that older ones have not.

use std::fs;

/// Whether one program may be of a function's entry and of its return: Linux 7.0 and newer (kernel/bpf/core.c,
/// bpf_jit_supports_fsession).
pub fn are_there() -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols.lines().any(|line| line.ends_with(" bpf_jit_supports_fsession"))
}
