//! Whether a kernel has what older ones have not to hook functions.

use std::fs;

/// Whether one program may be of a function's entry and of its return: Linux 7.0 and newer (kernel/bpf/core.c,
/// bpf_jit_supports_fsession).
pub fn are_there() -> bool {
    has("bpf_jit_supports_fsession")
}

/// Whether function tracing serves probes at returns, of any number of calls: Linux 6.14 and newer (kernel/trace/fprobe.c).
pub fn are_of_probes() -> bool {
    has("fprobe_return")
}

fn has(function: &str) -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols.lines().any(|line| line.split_whitespace().nth(2) == Some(function))
}
