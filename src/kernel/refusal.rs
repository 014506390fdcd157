//! Why a kind of hooks can't be used on this host: one line why, and one line with the one command that mends it. Pure code,
//! from the facts alone.

use super::facts::{CAPABILITIES, Facts};
use super::types::KernelTypes;
use crate::model::error::Error;
use crate::model::values::HookKind;

/// Starts a container with what mqspan needs in it (docs/sidecar.md).
const IN_CONTAINER: &str = "podman run --cap-add=bpf --cap-add=perfmon --cap-add=sys_ptrace --cap-add=dac_read_search \
                            --security-opt=seccomp=unconfined --volume=/sys/kernel/tracing:/sys/kernel/tracing IMAGE";
/// Updates the kernel, on what most hosts run.
const UPDATE: &str = "apt-get update && apt-get full-upgrade && reboot (where there is dnf: dnf upgrade && reboot)";

/// Why a kind can't be used here; one that was asked for by its name is used also where that is not safe.
pub fn refusal(facts: &Facts, kind: HookKind, by_name: bool) -> Option<Error> {
    let tracefs = || match kind {
        HookKind::Fsession | HookKind::Fentry => None,
        HookKind::Kprobe if facts.has_fprobes => None,
        _ => of_tracefs(facts, kind),
    };
    of_kernel(facts, by_name).or_else(|| of_functions(facts, kind)).or_else(tracefs).or_else(|| of_trial(facts, kind))
}

fn error(why: impl Into<String>, mend: impl Into<String>) -> Option<Error> {
    Some(Error::cannot_run(why, mend))
}

/// How to boot a kernel that was built with an option.
fn boot_with(option: &str) -> String {
    format!("boot a kernel built with {option}=y; of those installed here: grep -l {option}=y /boot/config-*")
}

/// What no kind of hooks can do without.
fn of_kernel(facts: &Facts, by_name: bool) -> Option<Error> {
    if !facts.has_queues {
        return error("this kernel has no POSIX message queues", boot_with("CONFIG_POSIX_MQUEUE"));
    }
    if !facts.may_load() {
        let wanting = CAPABILITIES[..2].iter().filter(|(_, number, _)| !facts.has(*number));
        let missing: Vec<&str> = wanting.clone().map(|(name, ..)| *name).collect();
        let is_bounded = wanting.clone().any(|(_, number, _)| !facts.could_have(*number));
        return error(
            format!("not allowed to load and attach programs: {} missing", missing.join(" and ")),
            match is_bounded || facts.is_root {
                true => {
                    format!("give the container, or the unit (AmbientCapabilities=), what is missing: {IN_CONTAINER}")
                }
                false => "run as root: sudo mqspan run".into(),
            },
        );
    }
    if facts.lockdown.as_deref() == Some("confidentiality") {
        return error(
            "the kernel is locked down (confidentiality): it lets no program read its memory",
            "boot with lockdown=integrity, which refuses nothing that mqspan needs: sed -i \
             's/^GRUB_CMDLINE_LINUX=\"/&lockdown=integrity /' /etc/default/grub && update-grub && reboot",
        );
    }
    if facts.hazards.ring && !by_name {
        return error(
            "PREEMPT_RT before 6.1.115, 6.11.6 and 6.12: the kernel's ring buffer may sleep where it must not",
            format!("update the kernel (--hooks with the name of a kind uses it all the same): {UPDATE}"),
        );
    }
    if facts.types == KernelTypes::Nowhere {
        return error(
            "the kernel does not describe its types: no BTF at /sys/kernel/btf/vmlinux",
            match (facts.has_sysfs, facts.may_mount()) {
                (true, _) => {
                    "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, or make a file of its types (docs/no-btf.md) \
                              and name it: mqspan run --btf FILE"
                        .to_owned()
                }
                (false, true) => "mount sysfs: mount -t sysfs sysfs /sys".into(),
                (false, false) => "give the container the host's: podman run --volume=/sys:/sys:ro IMAGE".into(),
            },
        );
    }
    if !facts.has_ring {
        return error(
            "this kernel is too old: its BPF has no ring buffer, which came with Linux 5.8",
            format!("update the kernel: {UPDATE}"),
        );
    }
    if facts.memory_is_limited {
        return error(
            "RLIMIT_MEMLOCK is too low for mqspan's maps, which count against it before Linux 5.11: CAP_SYS_RESOURCE missing",
            "raise it (a unit: LimitMEMLOCK=infinity; a container: podman run --ulimit=memlock=-1:-1): ulimit -l unlimited",
        );
    }
    None
}

fn of_functions(facts: &Facts, kind: HookKind) -> Option<Error> {
    const ANOTHER: &str = "leave out --hooks, or ask for another kind: mqspan run --hooks tracepoint";
    match kind {
        HookKind::Fsession | HookKind::Fentry if facts.types != KernelTypes::Kernel => error(
            format!("the kernel does not describe its own types (CONFIG_DEBUG_INFO_BTF), which {} needs", kind.name()),
            ANOTHER,
        ),
        HookKind::Fsession if !facts.has_sessions => {
            error("the kernel's BPF has no sessions (fsession), which came with Linux 7.0", ANOTHER)
        }
        HookKind::Fsession | HookKind::Fentry | HookKind::Kprobe if !facts.has_functions => {
            error("the kernel does not name the functions of the calls", ANOTHER)
        }
        _ => None,
    }
}

/// What kprobes and tracepoints can't do without.
fn of_tracefs(facts: &Facts, kind: HookKind) -> Option<Error> {
    if facts.tracefs.is_none() {
        return match (facts.tracefs_is_hidden, facts.may_mount()) {
            (true, _) => error(
                "tracefs may not be read: CAP_DAC_READ_SEARCH missing",
                "run as root, or give mqspan what is missing: setcap \
                 cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search+ep \"$(command -v mqspan)\"",
            ),
            (false, true) => error("tracefs is not mounted", "mount it: mount -t tracefs tracefs /sys/kernel/tracing"),
            (false, false) => {
                error("tracefs is not mounted", format!("give the container the host's tracefs: {IN_CONTAINER}"))
            }
        };
    }
    if kind == HookKind::Kprobe && !facts.has_kprobes {
        return error("tracefs has no kprobe_events", boot_with("CONFIG_KPROBE_EVENTS"));
    }
    if kind == HookKind::Tracepoint && !facts.has_tracepoints {
        return error("tracefs has no readable events/syscalls/sys_enter_mq_open", boot_with("CONFIG_FTRACE_SYSCALLS"));
    }
    None
}

/// What the kernel refused when it was tried.
fn of_trial(facts: &Facts, kind: HookKind) -> Option<Error> {
    let (_, why) = facts.refused.iter().find(|(refused, _)| *refused == kind)?;
    error(
        format!("the kernel refused the programs: {why}"),
        match (facts.in_user_namespace, facts.is_seccomp_filtered) {
            _ if facts.functions_are_untraced && kind != HookKind::Tracepoint => {
                "functions are not traced on this host; switch that on: sysctl -w kernel.ftrace_enabled=1".into()
            }
            (true, _) => {
                "mqspan is in a user namespace, where capabilities are none of the host's; start it in the host's \
                          (docker: without userns-remap; Kubernetes: hostUsers: true): podman run --userns=host IMAGE"
                    .into()
            }
            (false, true) => format!("a seccomp filter may forbid bpf(2): start the container without: {IN_CONTAINER}"),
            (false, false) => {
                "a security module or kernel.perf_event_paranoid may forbid it; what there is here: mqspan \
                               check --format json"
                    .into()
            }
        },
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kernel::hazards::Hazards;
    use crate::kernel::plan::plan;
    use crate::kernel::variant::Variant;

    /// A host on which every kind of hooks works.
    pub fn facts() -> Facts {
        Facts {
            kernel: "6.18 x86_64".into(),
            preemption: None,
            realtime: false,
            isolated_cpus: String::new(),
            lockdown: None,
            in_user_namespace: false,
            hazards: Hazards::default(),
            has_task_storage: true,
            functions: Default::default(),
            has_queues: true,
            has_sysfs: true,
            types: KernelTypes::Kernel,
            variant: Variant::Full,
            memory_is_limited: false,
            has_ring: true,
            is_root: true,
            capabilities: u64::MAX,
            capability_bound: u64::MAX,
            functions_are_untraced: false,
            is_seccomp_filtered: false,
            tracefs: Some("/sys/kernel/tracing".into()),
            tracefs_is_hidden: false,
            has_tracepoints: true,
            has_kprobes: true,
            has_functions: true,
            has_sessions: true,
            has_fprobes: false,
            tracepoints_are_preempted: false,
            refused: Vec::new(),
        }
    }

    const ALL: [HookKind; 4] = [HookKind::Fsession, HookKind::Fentry, HookKind::Kprobe, HookKind::Tracepoint];
    /// CAP_BPF, CAP_PERFMON, CAP_DAC_READ_SEARCH.
    const SOME: u64 = 1 << 39 | 1 << 38 | 1 << 2;

    fn refused() -> Vec<(HookKind, String)> {
        ALL.map(|kind| (kind, "EPERM".into())).into()
    }

    /// Prevents a missing thing from being reported as another, and a user from being left without the one command that mends
    /// it: what is said ends in it.
    #[test]
    fn each_missing_thing_with_the_command_that_mends_it() {
        let unprivileged = || Facts { is_root: false, capabilities: 0, ..facts() };
        let contained = || Facts { capabilities: SOME, capability_bound: SOME, ..facts() };
        let no_functions = || Facts { has_functions: false, ..facts() };
        let locked = |level: &str| Facts { lockdown: Some(level.into()), ..facts() };
        let unmounted = |facts| Facts { tracefs: None, has_functions: false, ..facts };
        let no_sysfs = |facts| Facts { has_sysfs: false, types: KernelTypes::Nowhere, ..facts };
        for (facts, asked, why, mend) in [
            (unprivileged(), &[][..], "CAP_BPF and CAP_PERFMON missing", "sudo mqspan run"),
            (Facts { capabilities: 1 << 39, ..unprivileged() }, &[], ": CAP_PERFMON missing", "sudo mqspan run"),
            (Facts { capabilities: 0, capability_bound: 0, ..facts() }, &[], "CAP_BPF and CAP_PERFMON", IN_CONTAINER),
            (Facts { capability_bound: 0, ..unprivileged() }, &[], "CAP_BPF and CAP_PERFMON missing", IN_CONTAINER),
            (unmounted(facts()), &[], "tracefs is not mounted", "mount -t tracefs tracefs /sys/kernel/tracing"),
            (unmounted(contained()), &[], "tracefs is not mounted", IN_CONTAINER),
            (
                unmounted(Facts { tracefs_is_hidden: true, is_root: false, capabilities: SOME, ..facts() }),
                &[],
                "tracefs may not be read",
                "setcap cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search+ep \"$(command -v mqspan)\"",
            ),
            (Facts { types: KernelTypes::Nowhere, ..facts() }, &[], "BTF", "mqspan run --btf FILE"),
            (
                Facts { types: KernelTypes::File("types".into()), ..facts() },
                &[HookKind::Fentry],
                "which fentry needs",
                "mqspan run --hooks tracepoint",
            ),
            (Facts { memory_is_limited: true, ..facts() }, &[], "CAP_SYS_RESOURCE missing", "ulimit -l unlimited"),
            (no_sysfs(facts()), &[], "BTF", "mount -t sysfs sysfs /sys"),
            (no_sysfs(contained()), &[], "BTF", "podman run --volume=/sys:/sys:ro IMAGE"),
            (locked("confidentiality"), &[], "locked down", "/etc/default/grub && update-grub && reboot"),
            (Facts { has_queues: false, ..facts() }, &[], "no POSIX", "grep -l CONFIG_POSIX_MQUEUE=y /boot/config-*"),
            (Facts { has_ring: false, ..facts() }, &[], "too old", UPDATE),
            (Facts { hazards: Hazards { ring: true, ..Hazards::default() }, ..facts() }, &[], "PREEMPT_RT", UPDATE),
            (
                Facts { has_tracepoints: false, ..no_functions() },
                &[],
                "sys_enter_mq_open",
                "grep -l CONFIG_FTRACE_SYSCALLS=y /boot/config-*",
            ),
            (
                Facts { has_kprobes: false, ..facts() },
                &[HookKind::Kprobe],
                "kprobe_events",
                "grep -l CONFIG_KPROBE_EVENTS=y /boot/config-*",
            ),
            (no_functions(), &[HookKind::Fentry], "does not name the functions", "mqspan run --hooks tracepoint"),
            (Facts { refused: refused(), ..facts() }, &[], "refused the programs: EPERM", "mqspan check --format json"),
            (
                Facts { refused: refused(), in_user_namespace: true, ..facts() },
                &[],
                "refused the programs: EPERM",
                "podman run --userns=host IMAGE",
            ),
            (Facts { refused: refused(), is_seccomp_filtered: true, ..facts() }, &[], "refused", IN_CONTAINER),
            (
                Facts { refused: refused(), functions_are_untraced: true, ..facts() },
                &[HookKind::Fentry],
                "refused",
                "sysctl -w kernel.ftrace_enabled=1",
            ),
            (
                Facts { has_sessions: false, ..facts() },
                &[HookKind::Fsession],
                "no sessions (fsession), which came with Linux 7.0",
                "mqspan run --hooks tracepoint",
            ),
            (
                Facts { types: KernelTypes::File("types".into()), ..facts() },
                &[HookKind::Fsession],
                "which fsession needs",
                "mqspan run --hooks tracepoint",
            ),
        ] {
            let Error { status, message, hint } = plan(&facts, asked).unwrap_err();
            let hint = hint.unwrap_or_default();
            assert!(status == 1 && message.contains(why), "{message}: no {why}");
            assert!(hint.ends_with(mend) && !hint.contains('\n') && !message.contains('\n'), "{hint}: no {mend}");
        }
        assert!(plan(&locked("integrity"), &[]).is_ok());
        assert!(plan(&contained(), &[]).is_ok());
    }
}
