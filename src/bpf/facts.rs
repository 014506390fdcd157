//! What this host offers, found by looking and by trying, never read off version numbers. Changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;

use super::programs;
use crate::config::values::HookKind;

/// Where tracefs may be mounted (Documentation/trace/ftrace.rst); libbpf looks in the same places.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Capabilities by their numbers (include/uapi/linux/capability.h).
pub const CAPABILITIES: [(&str, u32, &str); 4] = [
    ("CAP_BPF", 39, "loads programs and maps"),
    ("CAP_PERFMON", 38, "attaches them and reads the callers' memory"),
    ("CAP_SYS_PTRACE", 19, "reads the control group of other users' processes"),
    ("CAP_DAC_READ_SEARCH", 2, "reads tracefs, and the control group of a process that is gone"),
];
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
    /// What came of attaching for a try; None where something above was missing already.
    pub trial: Option<Result<(), String>>,
}

impl Facts {
    /// Looks at this host.
    pub fn gather() -> Self {
        let uname = uname().ok();
        let word = |text: Option<&std::ffi::OsStr>| text.unwrap_or_default().to_string_lossy().into_owned();
        let tracefs = TRACEFS.iter().map(PathBuf::from).find(|root| root.join("events").is_dir());
        let has_event = |root: &PathBuf| {
            ["sys_enter_mq_open", "sys_exit_mq_open"]
                .iter()
                .all(|event| fs::read(root.join("events/syscalls").join(event).join("id")).is_ok())
        };
        let mut facts = Self {
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
            tracefs,
            trial: None,
        };
        if facts.missing_before_trial() {
            return facts;
        }
        facts.trial = Some(programs::try_attach(HookKind::Tracepoint));
        facts
    }

    fn missing_before_trial(&self) -> bool {
        !self.has_queues || !self.may_load() || !self.has_btf || !self.has_tracepoints
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
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// The model in force stands in parentheses: `none voluntary (full)`; without debugfs the build's is told instead.
fn preemption() -> Option<String> {
    let models = fs::read_to_string("/sys/kernel/debug/sched/preempt").ok();
    let chosen = models.as_deref().and_then(|models| models.split(['(', ')']).nth(1)).map(Into::into);
    chosen.or_else(|| {
        let version = fs::read_to_string("/proc/version").ok()?;
        version.split_whitespace().find(|word| word.starts_with("PREEMPT")).map(Into::into)
    })
}
