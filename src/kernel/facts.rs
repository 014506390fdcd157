//! What this host offers, found by looking and by trying, never read off version numbers. Changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;

use super::hooks::CALLS;
use super::{btf, programs};
use crate::model::values::HookKind;

/// Where tracefs may be mounted (Documentation/trace/ftrace.rst); libbpf looks in the same places.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Capabilities by their numbers (include/uapi/linux/capability.h).
pub const CAPABILITIES: [(&str, u32, &str); 5] = [
    ("CAP_BPF", 39, "loads programs and maps"),
    ("CAP_PERFMON", 38, "attaches them and reads the callers' memory"),
    (
        "CAP_SYS_PTRACE",
        19,
        "shows what processes publish of themselves, and before Linux 5.15 which threads wait at queues",
    ),
    ("CAP_DAC_READ_SEARCH", 2, "reads tracefs"),
    ("CAP_DAC_OVERRIDE", DAC_OVERRIDE, "makes kprobes, by writing to tracefs"),
];
/// Needed for one kind of hooks only.
pub use crate::capability::DAC_OVERRIDE;
const CAP_SYS_ADMIN: u32 = 21;

/// What `run` rests on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release and machine, as uname(2) says.
    pub kernel: String,
    /// The model of preemption, where the kernel tells it.
    pub preemption: Option<String>,
    /// Whether the kernel has POSIX message queues (CONFIG_POSIX_MQUEUE).
    pub has_queues: bool,
    /// Whether the kernel describes its types (CONFIG_DEBUG_INFO_BTF).
    pub has_btf: bool,
    /// The effective capabilities (capabilities(7)), a bit each.
    pub capabilities: u64,
    /// Where tracefs is mounted; None where it is not, or can't be read.
    pub tracefs: Option<PathBuf>,
    /// Whether it has the system calls' tracepoints (CONFIG_FTRACE_SYSCALLS).
    pub has_tracepoints: bool,
    /// Whether it takes kprobes (CONFIG_KPROBE_EVENTS).
    pub has_kprobes: bool,
    /// Whether the kernel's types name the functions that the calls enter by, so that these can be hooked.
    pub has_functions: bool,
    /// Whether a thread can be preempted inside the tracepoints' programs, and other threads' calls be skipped for it.
    pub tracepoints_are_preempted: bool,
    /// What came of attaching for a try, up to the first kind of hooks that works; none where something above was
    /// missing already.
    pub trials: Vec<(HookKind, Result<(), String>)>,
    /// What the maps of those that work take in the kernel, in bytes.
    pub map_bytes: Option<u64>,
}

/// The function that a 64-bit caller's call enters by, without the call's name.
const WRAPPER: &str = if cfg!(target_arch = "aarch64") { "__arm64_sys_" } else { "__x64_sys_" };
/// Runs tracepoints' programs where they may fault and be preempted (kernel/trace/bpf_trace.c), in kernels that do.
const FAULTABLE: &str = "trace_call_bpf_faultable";

impl Facts {
    /// Looks at this host; tries nothing.
    pub fn gather() -> Self {
        programs::keep_warnings();
        let uname = uname().ok();
        let word = |text: Option<&std::ffi::OsStr>| text.unwrap_or_default().to_string_lossy().into_owned();
        let tracefs = TRACEFS.iter().map(PathBuf::from).find(|root| root.join("events").is_dir());
        let has_event = |root: &PathBuf| {
            ["sys_enter_mq_open", "sys_exit_mq_open"]
                .iter()
                .all(|event| fs::read(root.join("events/syscalls").join(event).join("id")).is_ok())
        };
        let wrappers = CALLS.map(|(_, call)| format!("{WRAPPER}{call}"));
        let functions = btf::functions(|name| name == FAULTABLE || wrappers.iter().any(|wrapper| wrapper == name));
        Self {
            kernel: format!(
                "{} {}",
                word(uname.as_ref().map(|uname| uname.release())),
                word(uname.as_ref().map(|uname| uname.machine()))
            ),
            preemption: preemption(),
            has_queues: Path::new("/proc/sys/fs/mqueue").is_dir(),
            has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            capabilities: capabilities(),
            has_tracepoints: tracefs.as_ref().is_some_and(has_event),
            has_kprobes: tracefs.as_ref().is_some_and(|root| root.join("kprobe_events").exists()),
            has_functions: wrappers.iter().all(|wrapper| functions.contains(wrapper)),
            tracepoints_are_preempted: functions.contains(FAULTABLE),
            tracefs,
            trials: Vec::new(),
            map_bytes: None,
        }
    }

    /// Whether a thread can be preempted while it is in the kernel. Where it is not known it is assumed.
    pub fn is_preemptible(&self) -> bool {
        !matches!(self.preemption.as_deref(), None | Some("none" | "voluntary"))
    }

    /// Whether a capability is effective. CAP_SYS_ADMIN stands for the first two on every kernel.
    pub fn has(&self, capability: u32) -> bool {
        let bit = |capability| self.capabilities >> capability & 1 == 1;
        bit(capability) || ([39, 38].contains(&capability) && bit(CAP_SYS_ADMIN))
    }

    /// Whether programs may be loaded and attached.
    pub fn may_load(&self) -> bool {
        self.has(39) && self.has(38)
    }
}

fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn preemption() -> Option<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    model(&read("/sys/kernel/debug/sched/preempt"), &read("/proc/cmdline"), &read("/proc/version"))
}

/// The model in force: of a list of `models` the one in parentheses, `none voluntary (full)`; where debugfs is not
/// mounted what the kernel was booted with, else what it was built with.
fn model(models: &str, boot_line: &str, version: &str) -> Option<String> {
    const BUILT_TO_CHOOSE: &str = "PREEMPT_DYNAMIC";
    if let Some(chosen) = models.split(['(', ')']).nth(1) {
        return Some(chosen.into());
    }
    let built =
        version.split(|c: char| !c.is_ascii_uppercase() && c != '_').find(|word| word.starts_with("PREEMPT"))?;
    let booted = boot_line.split_whitespace().rev().find_map(|word| word.strip_prefix("preempt="));
    Some(booted.filter(|_| built == BUILT_TO_CHOOSE).unwrap_or(built).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a preemptible kernel from being taken for one that is not: hooks would miss calls.
    #[test]
    fn models_of_preemption() {
        for (models, boot_line, version, expected) in [
            ("none voluntary (full)\n", "", "#1 SMP PREEMPT_DYNAMIC Debian", Some("full")),
            ("full (lazy)\n", "preempt=full", "", Some("lazy")),
            ("", "quiet preempt=none ro preempt=voluntary\n", "#1 SMP PREEMPT_DYNAMIC", Some("voluntary")),
            ("", "quiet", "#1 SMP PREEMPT_DYNAMIC", Some("PREEMPT_DYNAMIC")),
            ("", "preempt=none", "#1 SMP PREEMPT_RT Debian", Some("PREEMPT_RT")),
            ("", "", "#1 SMP PREEMPT Debian", Some("PREEMPT")),
            ("", "preempt=full", "#1 SMP Debian", None),
        ] {
            assert_eq!(model(models, boot_line, version).as_deref(), expected, "{models} {boot_line} {version}");
        }
    }
}
