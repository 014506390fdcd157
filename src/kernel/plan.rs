//! Which hooks are used: from the facts and what was asked for. Pure code.
//!
//! A kind that joins later is an entry in [`order`] and a branch in [`refusal`].

use super::facts::{CAPABILITIES, Facts};
use crate::model::error::Error;
use crate::model::values::HookKind;

/// The kinds to choose from, the best first: those that were asked for, else those that there are. First those that
/// miss no call here, then the cheaper: trampolines (fentry) slow no other call and see 32-bit callers, as kprobes do;
/// tracepoints slow every system call. Where threads are preempted in the kernel, one that is inside a trampoline's
/// program, or on newer kernels a tracepoint's, makes the kernel skip it for the others on that CPU; in a kprobe nobody
/// is preempted.
pub fn order(facts: &Facts, asked: &[HookKind]) -> Vec<HookKind> {
    let best = match (facts.is_preemptible(), facts.tracepoints_are_preempted) {
        (false, _) => [HookKind::Fentry, HookKind::Kprobe, HookKind::Tracepoint],
        (true, false) => [HookKind::Kprobe, HookKind::Tracepoint, HookKind::Fentry],
        (true, true) => [HookKind::Kprobe, HookKind::Fentry, HookKind::Tracepoint],
    };
    match asked.is_empty() {
        true => best.into(),
        false => asked.iter().copied().filter(|kind| best.contains(kind)).collect(),
    }
}

/// What will be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The kind of hooks.
    pub kind: HookKind,
}

/// Plans, by the kinds that were asked for, in their order; none: the best that works here. Where nothing works the
/// error names what is missing and how to mend it, for the kind that asks least of a host.
pub fn plan(facts: &Facts, asked: &[HookKind]) -> Result<Plan, Error> {
    let mut refusals = Vec::new();
    for kind in order(facts, asked) {
        match refusal(facts, kind, asked.contains(&kind)) {
            None => return Ok(Plan { kind }),
            Some(error) => refusals.push((kind, error)),
        }
    }
    let tracepoints = refusals.iter().position(|(kind, _)| *kind == HookKind::Tracepoint);
    match refusals.is_empty() {
        true => Err(Error::cannot_run(
            "none of the kinds of hooks asked for is available",
            "leave out --hooks, or ask for fentry, kprobe or tracepoint",
        )),
        false => Err(refusals.swap_remove(tracepoints.unwrap_or(0)).1),
    }
}

/// Why a kind can't be used here; one that was asked for by its name is used also where that is not safe.
pub fn refusal(facts: &Facts, kind: HookKind, by_name: bool) -> Option<Error> {
    let error = |message: &str, hint: &str| Some(Error::cannot_run(message, hint));
    if !facts.has_queues {
        return error("this kernel has no POSIX message queues", "boot a kernel built with CONFIG_POSIX_MQUEUE=y");
    }
    if !facts.may_load() {
        let missing: Vec<&str> =
            CAPABILITIES[..2].iter().filter(|(_, number, _)| !facts.has(*number)).map(|(name, ..)| *name).collect();
        return error(
            &format!("not allowed to load and attach programs: {} missing", missing.join(" and ")),
            "run as root, or give the capabilities (setcap, systemd's AmbientCapabilities=, the container's securityContext)",
        );
    }
    if facts.lockdown.as_deref() == Some("confidentiality") {
        return error(
            "the kernel is locked down (confidentiality): it lets no program read its memory",
            "boot with lockdown=integrity, which refuses nothing that mqspan needs",
        );
    }
    if facts.hazards.ring && !by_name {
        return error(
            "PREEMPT_RT before 6.1.115, 6.11.6 and 6.12: the kernel's ring buffer may sleep where it must not",
            "update the kernel; --hooks with the name of a kind uses it all the same",
        );
    }
    if !facts.has_btf {
        return error(
            "the kernel does not describe its types: no /sys/kernel/btf/vmlinux",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; in a container, mount the host's /sys",
        );
    }
    if kind != HookKind::Tracepoint && !facts.has_functions {
        return error(
            "the kernel's types do not name the functions of the calls",
            "leave out --hooks, or ask for tracepoint",
        );
    }
    if kind != HookKind::Fentry {
        if facts.tracefs.is_none() {
            return error(
                "tracefs is not mounted, or not readable",
                "mount it: mount -t tracefs tracefs /sys/kernel/tracing; if it is mounted, CAP_DAC_READ_SEARCH lets mqspan read it",
            );
        }
        if kind == HookKind::Kprobe && !facts.has_kprobes {
            return error("tracefs has no kprobe_events", "boot a kernel built with CONFIG_KPROBE_EVENTS=y");
        }
        if kind == HookKind::Tracepoint && !facts.has_tracepoints {
            return error(
                "tracefs has no readable events/syscalls/sys_enter_mq_open",
                "boot a kernel built with CONFIG_FTRACE_SYSCALLS=y; if it is, CAP_DAC_READ_SEARCH lets mqspan read it",
            );
        }
    }
    let (_, why) = facts.refused.iter().find(|(refused, _)| *refused == kind)?;
    let hint = match facts.in_user_namespace {
        true => {
            "mqspan is in a user namespace, where capabilities are none of the host's: start it in the host's \
             (podman run --userns=host; docker without userns-remap; Kubernetes: hostUsers: true)"
        }
        false => {
            "a security module, seccomp or kernel.perf_event_paranoid may forbid it; mqspan check --format json tells the facts"
        }
    };
    error(&format!("the kernel refused the programs: {why}"), hint)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kernel::hazards::Hazards;

    fn facts() -> Facts {
        Facts {
            kernel: "6.18 x86_64".into(),
            preemption: None,
            realtime: false,
            isolated_cpus: String::new(),
            lockdown: None,
            in_user_namespace: false,
            hazards: Hazards::default(),
            has_task_storage: true,
            functions: BTreeSet::new(),
            has_queues: true,
            has_btf: true,
            capabilities: 1 << 21,
            tracefs: Some("/sys/kernel/tracing".into()),
            has_tracepoints: true,
            has_kprobes: true,
            has_functions: true,
            tracepoints_are_preempted: false,
            refused: Vec::new(),
        }
    }

    const ALL: [HookKind; 3] = [HookKind::Fentry, HookKind::Kprobe, HookKind::Tracepoint];

    fn refused(kinds: &[HookKind]) -> Vec<(HookKind, String)> {
        kinds.iter().map(|kind| (*kind, "EPERM".into())).collect()
    }

    fn message(facts: &Facts, asked: &[HookKind]) -> String {
        plan(facts, asked).unwrap_err().to_string()
    }

    /// Prevents a missing thing from being reported as another, so that its mending would not help.
    #[test]
    fn each_missing_thing_by_its_name() {
        assert!(message(&Facts { has_queues: false, ..facts() }, &[]).contains("CONFIG_POSIX_MQUEUE"));
        let unprivileged = message(&Facts { capabilities: 1 << 39, ..facts() }, &[]);
        assert!(unprivileged.contains(": CAP_PERFMON missing"), "{unprivileged}");
        assert!(message(&Facts { capabilities: 0, ..facts() }, &[]).contains("CAP_BPF and CAP_PERFMON"));
        assert!(message(&Facts { has_btf: false, ..facts() }, &[]).contains("CONFIG_DEBUG_INFO_BTF"));
        let no_functions = Facts { has_functions: false, ..facts() };
        assert!(message(&Facts { tracefs: None, ..no_functions.clone() }, &[]).contains("mount -t tracefs"));
        assert!(message(&Facts { has_tracepoints: false, ..no_functions }, &[]).contains("CONFIG_FTRACE_SYSCALLS"));
        assert!(message(&Facts { refused: refused(&ALL), ..facts() }, &[]).contains("refused the programs: EPERM"));
        let in_namespace = Facts { refused: refused(&ALL), in_user_namespace: true, ..facts() };
        assert!(message(&in_namespace, &[]).contains("user namespace"));
        let locked = |level: &str| Facts { lockdown: Some(level.into()), ..facts() };
        assert!(message(&locked("confidentiality"), &[]).contains("lockdown=integrity"));
        assert!(plan(&locked("integrity"), &[]).is_ok());
        let kprobe = [HookKind::Kprobe];
        assert!(message(&Facts { has_kprobes: false, ..facts() }, &kprobe).contains("CONFIG_KPROBE_EVENTS"));
        assert!(message(&Facts { refused: refused(&kprobe), ..facts() }, &kprobe).contains("refused the programs"));
        assert!(message(&facts(), &[HookKind::Fsession]).contains("--hooks"));
    }

    /// Prevents what may hang the kernel from being used unless it is asked for by its name.
    #[test]
    fn what_is_unsafe() {
        let unsafe_ring = Facts { hazards: Hazards { ring: true, ..Hazards::default() }, ..facts() };
        assert!(message(&unsafe_ring, &[]).contains("ring buffer"));
        assert_eq!(plan(&unsafe_ring, &[HookKind::Kprobe]), Ok(Plan { kind: HookKind::Kprobe }));
    }

    /// Prevents hooks that miss calls here from being preferred, and one refusal from ending all.
    #[test]
    fn the_best_that_works() {
        let preempted = |model: &str, tracepoints_are_preempted| Facts {
            preemption: Some(model.into()),
            tracepoints_are_preempted,
            ..facts()
        };
        let without = |kinds: &[HookKind], facts: Facts| Facts { refused: refused(kinds), ..facts };
        use HookKind::{Fentry, Kprobe, Tracepoint};
        for (facts, asked, expected) in [
            (facts(), &[][..], Fentry),
            (preempted("voluntary", true), &[], Fentry),
            (preempted("full", false), &[], Kprobe),
            (preempted("PREEMPT_RT", false), &[], Kprobe),
            (preempted("lazy", true), &[], Kprobe),
            (without(&[Kprobe], preempted("lazy", false)), &[], Tracepoint),
            (without(&[Kprobe], preempted("lazy", true)), &[], Fentry),
            (without(&[Fentry], facts()), &[], Kprobe),
            (without(&[Fentry, Kprobe], facts()), &[], Tracepoint),
            (Facts { tracefs: None, ..facts() }, &[], Fentry),
            (Facts { has_functions: false, ..facts() }, &[], Tracepoint),
            (facts(), &[Tracepoint, Fentry], Tracepoint),
            (without(&[Kprobe], facts()), &[Kprobe, Tracepoint], Tracepoint),
            (facts(), &[HookKind::Fsession, Kprobe], Kprobe),
        ] {
            assert_eq!(plan(&facts, asked), Ok(Plan { kind: expected }), "{facts:?} {asked:?}");
        }
    }
}
