//! What this host offers, found by looking, never read off version numbers, but for what is unsafe on a kernel and shows
//! by nothing else ([`hazards`]). Changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use libbpf_rs::ProgramType;
use libbpf_rs::libbpf_sys::{BPF_FUNC_ktime_get_coarse_ns, BPF_FUNC_ringbuf_output, BPF_FUNC_task_storage_get};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;

use super::hazards::{self, Hazards};
use super::hooks::{self, CALLS, Means};
use super::types::KernelTypes;
use super::variant::{Variant, helps};
use super::warnings;
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
const SYS_RESOURCE: u32 = 24;
/// The most that mqspan's maps take (docs/requirements.md), in bytes.
const MAPS: u64 = 64 << 20;

/// What `run` rests on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release and machine, as uname(2) says.
    pub kernel: String,
    /// The model of preemption, where the kernel tells it.
    pub preemption: Option<String>,
    /// Whether it is PREEMPT_RT, where also what holds a lock or serves an interrupt is preempted.
    pub realtime: bool,
    /// CPUs that the scheduler keeps free or without a tick, as lists of the kernel's: `2-3`; empty: none.
    pub isolated_cpus: String,
    /// How far the kernel is locked down against root (kernel_lockdown(7)): `none`, `integrity`, `confidentiality`.
    pub lockdown: Option<String>,
    /// Whether mqspan is in a user namespace that is not the host's: its capabilities are none of the host's.
    pub in_user_namespace: bool,
    /// What of this kernel's BPF is unsafe.
    pub hazards: Hazards,
    /// Whether programs that trace may use task storage.
    pub has_task_storage: bool,
    /// Whether the kernel has POSIX message queues (CONFIG_POSIX_MQUEUE).
    pub has_queues: bool,
    /// Whether the kernel's own file system is there (sysfs(5)).
    pub has_sysfs: bool,
    /// Where the kernel's types are described.
    pub types: KernelTypes,
    /// Which variant of the programs fits this kernel.
    pub variant: Variant,
    /// Whether its BPF has a ring buffer.
    pub has_ring: bool,
    /// Whether mqspan runs as root.
    pub is_root: bool,
    /// The effective capabilities (capabilities(7)), a bit each.
    pub capabilities: u64,
    /// Those that no program started from here can have more than.
    pub capability_bound: u64,
    /// Whether what maps take counts against a limit of mqspan's (RLIMIT_MEMLOCK, before Linux 5.11) that is too low for
    /// them and that mqspan may not raise.
    pub memory_is_limited: bool,
    /// Whether functions are not traced for anybody (kernel.ftrace_enabled=0): fentry is refused then, and kprobes are silent.
    pub functions_are_untraced: bool,
    /// Whether a seccomp filter decides about system calls.
    pub is_seccomp_filtered: bool,
    /// Where tracefs is mounted; None where it is not, or can't be read.
    pub tracefs: Option<PathBuf>,
    /// Whether it is there, maybe, but not for mqspan to see.
    pub tracefs_is_hidden: bool,
    /// Whether it has the system calls' tracepoints (CONFIG_FTRACE_SYSCALLS).
    pub has_tracepoints: bool,
    /// Whether it takes kprobes (CONFIG_KPROBE_EVENTS).
    pub has_kprobes: bool,
    /// Functions of the kernel that mqspan may hook.
    pub functions: BTreeSet<String>,
    /// Whether those are among them that the calls enter by.
    pub has_functions: bool,
    /// Whether one program may be of a function's entry and of its return (fsession).
    pub has_sessions: bool,
    /// Whether function tracing serves probes, without a bound on the calls that wait for their return.
    pub has_fprobes: bool,
    /// Whether a thread can be preempted inside the tracepoints' programs, and other threads' calls be skipped for it.
    pub tracepoints_are_preempted: bool,
    /// Kinds of hooks that the kernel refused when they were tried, and why.
    pub refused: Vec<(HookKind, String)>,
}

/// The function that a 64-bit caller's call enters by, without the call's name.
const WRAPPER: &str = if cfg!(target_arch = "aarch64") { "__arm64_sys_" } else { "__x64_sys_" };
/// Runs tracepoints' programs where they may fault and be preempted (kernel/trace/bpf_trace.c), in kernels that do.
const FAULTABLE: &str = "trace_call_bpf_faultable";
/// Whether the architecture's trampolines have sessions (kernel/bpf/core.c), in kernels that know these.
const SESSIONS: &str = "bpf_jit_supports_fsession";
/// What sees returns for probes by function tracing, where that keeps any number of calls apart (kernel/trace/fprobe.c). Before
/// it, in Linux 6.14, returned by the function graph, sleeping calls used up what was there.
const FPROBES: &str = "fprobe_return";
/// The number of the host's own user namespace (include/linux/proc_ns.h, PROC_USER_INIT_INO).
const HOST_USER_NAMESPACE: u64 = 0xeffffffd;

impl Facts {
    /// Looks at this host, and at the file of the kernel's types that was asked for; attaches nothing.
    pub fn gather(types: Option<&Path>) -> Self {
        warnings::keep();
        let uname = uname().ok();
        let word = |text: Option<&std::ffi::OsStr>| text.unwrap_or_default().to_string_lossy().into_owned();
        let tracefs = TRACEFS.iter().map(PathBuf::from).find(|root| root.join("events").is_dir());
        let has_event = |root: &PathBuf| {
            ["sys_enter_mq_open", "sys_exit_mq_open"]
                .iter()
                .all(|event| fs::read(root.join("events/syscalls").join(event).join("id")).is_ok())
        };
        let wrappers = CALLS.map(|(_, call)| format!("{WRAPPER}{call}"));
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (proc_version, release) = (read("/proc/version"), word(uname.as_ref().map(|uname| uname.release())));
        let realtime = read("/sys/kernel/realtime").trim() == "1" || proc_version.contains("PREEMPT_RT");
        let status = read("/proc/thread-self/status");
        let types = KernelTypes::find(types, &release);
        let mut functions =
            types.functions(|name| [FAULTABLE, SESSIONS, FPROBES].contains(&name) || hooks::may_be_hooked(name));
        let (has_sessions, has_fprobes) = (functions.remove(SESSIONS), functions.remove(FPROBES));
        let variant = Variant::find(types == KernelTypes::Kernel);
        let capabilities_in_effect = capabilities(&status, "CapEff:");
        let version = hazards::release(&release, &proc_version, &read("/proc/version_signature"));
        Self {
            kernel: format!("{release} {}", word(uname.as_ref().map(|uname| uname.machine()))),
            preemption: preemption(),
            realtime,
            isolated_cpus: isolated_cpus(),
            lockdown: chosen(&read("/sys/kernel/security/lockdown"), ['[', ']']),
            in_user_namespace: in_user_namespace(),
            hazards: Hazards::of(realtime, version),
            has_sessions,
            has_fprobes: has_fprobes && variant == Variant::Full,
            variant,
            has_task_storage: helps(ProgramType::Kprobe, BPF_FUNC_task_storage_get),
            // As libbpf tells those that count it (tools/lib/bpf/features.c, probe_memcg_account).
            memory_is_limited: !helps(ProgramType::SocketFilter, BPF_FUNC_ktime_get_coarse_ns)
                && capabilities_in_effect >> SYS_RESOURCE & 1 == 0
                && is_below(&read("/proc/self/limits"), MAPS),
            has_queues: Path::new("/proc/sys/fs/mqueue").is_dir(),
            has_sysfs: Path::new("/sys/kernel").is_dir(),
            types,
            has_ring: helps(ProgramType::Kprobe, BPF_FUNC_ringbuf_output),
            is_root: geteuid().is_root(),
            capabilities: capabilities_in_effect,
            capability_bound: capabilities(&status, "CapBnd:"),
            functions_are_untraced: read("/proc/sys/kernel/ftrace_enabled").trim() == "0",
            is_seccomp_filtered: field(&status, "Seccomp:").is_some_and(|mode| mode != "0"),
            tracefs_is_hidden: TRACEFS.iter().any(|root| is_hidden(&Path::new(root).join("events"))),
            has_tracepoints: tracefs.as_ref().is_some_and(has_event),
            has_kprobes: tracefs.as_ref().is_some_and(|root| root.join("kprobe_events").exists()),
            has_functions: wrappers.iter().all(|wrapper| functions.contains(wrapper)),
            tracepoints_are_preempted: functions.remove(FAULTABLE),
            functions,
            tracefs,
            refused: Vec::new(),
        }
    }

    /// Whether a thread can be preempted while it is in the kernel. Where it is not known it is assumed.
    pub fn is_preemptible(&self) -> bool {
        !matches!(self.preemption.as_deref(), None | Some("none" | "voluntary"))
    }

    /// Whether the states of calls under way are in task storage; else they are in a table that is made beforehand.
    pub fn uses_task_storage(&self) -> bool {
        self.has_task_storage && !self.hazards.task_storage && self.variant == Variant::Full
    }

    /// Whether the kernel counts the runs that it skips while another program runs on the CPU, by this kind of hooks.
    pub fn counts_skips(&self, kind: HookKind) -> bool {
        !self.hazards.uncounted_skips || matches!(kind, HookKind::Fsession | HookKind::Fentry)
    }

    /// By what hooks of a kind may be attached, the best first.
    pub fn means(&self, kind: HookKind) -> Vec<Means> {
        let may_be = |means: &Means| match means {
            Means::Fprobe => self.has_fprobes,
            Means::Kprobe => self.tracefs.is_some() && self.has_kprobes,
            _ => true,
        };
        Means::ALL.into_iter().filter(|means| means.kind() == kind).filter(may_be).collect()
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

    /// Whether a program that is started from here could have a capability.
    pub fn could_have(&self, capability: u32) -> bool {
        [capability, CAP_SYS_ADMIN].iter().any(|capability| self.capability_bound >> capability & 1 == 1)
    }

    /// Whether file systems may be mounted here.
    pub fn may_mount(&self) -> bool {
        self.has(CAP_SYS_ADMIN) && !self.in_user_namespace
    }
}

/// A field of proc_pid_status(5).
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn capabilities(status: &str, set: &str) -> u64 {
    field(status, set).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0)
}

/// Whether less memory than this may be locked, by proc_pid_limits(5): the second number counts, to which the first is raised.
fn is_below(limits: &str, bytes: u64) -> bool {
    let most = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().nth(1));
    most.and_then(|most| most.parse::<u64>().ok()).is_some_and(|most| most < bytes)
}

fn is_hidden(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn in_user_namespace() -> bool {
    use std::os::linux::fs::MetadataExt;
    fs::metadata("/proc/self/ns/user").is_ok_and(|file| file.st_ino() != HOST_USER_NAMESPACE)
}

/// CPUs that the scheduler keeps free or without a tick, `2-3,6`; empty: none.
pub fn isolated_cpus() -> String {
    lists(
        &["isolated", "nohz_full"]
            .map(|which| fs::read_to_string(Path::new("/sys/devices/system/cpu").join(which)).unwrap_or_default()),
    )
}

/// Lists of CPUs, each of which may be empty, `(null)` or the same as another, as one text.
fn lists(lists: &[String]) -> String {
    let lists: BTreeSet<&str> =
        lists.iter().map(|list| list.trim()).filter(|list| !matches!(*list, "" | "(null)")).collect();
    lists.into_iter().collect::<Vec<_>>().join(",")
}

/// The word between brackets: of several the kernel marks so the one in force.
fn chosen(words: &str, brackets: [char; 2]) -> Option<String> {
    words.split(brackets).nth(1).map(Into::into)
}

fn preemption() -> Option<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    model(&read("/sys/kernel/debug/sched/preempt"), &read("/proc/cmdline"), &read("/proc/version"))
}

/// The model in force: of a list of `models` the one in parentheses, `none voluntary (full)`; where debugfs is not
/// mounted what the kernel was booted with, else what it was built with.
fn model(models: &str, boot_line: &str, version: &str) -> Option<String> {
    const BUILT_TO_CHOOSE: &str = "PREEMPT_DYNAMIC";
    if let Some(chosen) = chosen(models, ['(', ')']) {
        return Some(chosen);
    }
    let built =
        version.split(|c: char| !c.is_ascii_uppercase() && c != '_').find(|word| word.starts_with("PREEMPT"))?;
    let booted = boot_line.split_whitespace().rev().find_map(|word| word.strip_prefix("preempt="));
    Some(booted.filter(|_| built == BUILT_TO_CHOOSE).unwrap_or(built).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::refusal::tests::facts;

    /// Prevents isolated CPUs and lockdown from being read wrongly where there are none.
    #[test]
    fn what_the_kernel_lists() {
        let of = |isolated: &str, nohz_full: &str| lists(&[isolated.into(), nohz_full.into()]);
        assert_eq!([of("\n", "(null)\n"), of("2-3\n", "2-3\n"), of("2\n", "")], ["", "2-3", "2"]);
        assert_eq!(chosen("none [integrity] confidentiality\n", ['[', ']']).as_deref(), Some("integrity"));
        assert_eq!(chosen("", ['[', ']']), None);
    }

    /// Prevents probes from being events, with their bound on calls under way, where function tracing serves them without one, and
    /// those that another kind is attached by from being tried for it.
    #[test]
    fn means_of_a_kind() {
        let facts = |has_fprobes, has_kprobes| Facts { has_fprobes, has_kprobes, ..facts() };
        for (facts, kind, expected) in [
            (facts(true, true), HookKind::Kprobe, &[Means::Fprobe, Means::Kprobe][..]),
            (facts(true, false), HookKind::Kprobe, &[Means::Fprobe]),
            (facts(false, true), HookKind::Kprobe, &[Means::Kprobe]),
            (facts(true, true), HookKind::Fsession, &[Means::Fsession]),
            (facts(true, true), HookKind::Tracepoint, &[Means::Tracepoint]),
        ] {
            assert_eq!(facts.means(kind), expected, "{kind:?}");
        }
    }

    /// Prevents a limit that allows enough from being complained of, and the lower of its two numbers from being taken.
    #[test]
    fn limits_of_memory() {
        let of = |soft: &str, hard: &str| {
            is_below(&format!("Max cpu time  1 1 s\nMax locked memory         {soft}    {hard}    bytes\n"), 64 << 20)
        };
        assert_eq!([of("65536", "65536"), of("65536", "67108864"), of("65536", "unlimited")], [true, false, false]);
    }

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
