//! Which hooks are used: from the facts and what was asked for. Pure code.
//!
//! A kind that joins later is a line in `ORDER` and a branch in `refusal`.

use super::facts::{CAPABILITIES, Facts};
use crate::config::error::Error;
use crate::config::values::HookKind;

/// The kinds that there are, the best first.
const ORDER: [HookKind; 1] = [HookKind::Tracepoint];

/// What will be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The kind of hooks.
    pub kind: HookKind,
}

/// Plans, by the kinds that were asked for, in their order; none: the best that works here. Where nothing works the
/// error names what is missing and how to mend it.
pub fn plan(facts: &Facts, asked: &[HookKind]) -> Result<Plan, Error> {
    let kinds = if asked.is_empty() { &ORDER[..] } else { asked };
    let mut first = None;
    for kind in kinds.iter().copied().filter(|kind| ORDER.contains(kind)) {
        match refusal(facts, kind) {
            None => return Ok(Plan { kind }),
            Some(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| {
        Error::cannot_run(
            "none of the kinds of hooks asked for is available",
            "leave out --hooks, or ask for tracepoint",
        )
    }))
}

/// Why a kind can't be used here.
fn refusal(facts: &Facts, kind: HookKind) -> Option<Error> {
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
    if !facts.has_btf {
        return error(
            "the kernel does not describe its types: no /sys/kernel/btf/vmlinux",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; in a container, mount the host's /sys",
        );
    }
    if kind == HookKind::Tracepoint {
        if facts.tracefs.is_none() {
            return error(
                "tracefs is not mounted, or not readable",
                "mount it: mount -t tracefs tracefs /sys/kernel/tracing; if it is mounted, CAP_DAC_READ_SEARCH lets mqspan read it",
            );
        }
        if !facts.has_tracepoints {
            return error(
                "tracefs has no readable events/syscalls/sys_enter_mq_open",
                "boot a kernel built with CONFIG_FTRACE_SYSCALLS=y; if it is, CAP_DAC_READ_SEARCH lets mqspan read it",
            );
        }
    }
    match &facts.trial {
        Some(Err(why)) => error(
            &format!("the kernel refused the programs: {why}"),
            "a security module, seccomp or kernel.perf_event_paranoid may forbid it; mqspan check --format json tells the facts",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            kernel: "6.18 x86_64".into(),
            preemption: None,
            has_queues: true,
            has_btf: true,
            capabilities: 1 << 21,
            tracefs: Some("/sys/kernel/tracing".into()),
            has_tracepoints: true,
            trial: Some(Ok(())),
        }
    }

    fn message(facts: &Facts, asked: &[HookKind]) -> String {
        plan(facts, asked).unwrap_err().to_string()
    }

    /// Prevents a missing thing from being reported as another, so that its mending would not help.
    #[test]
    fn each_missing_thing_by_its_name() {
        assert_eq!(plan(&facts(), &[]), Ok(Plan { kind: HookKind::Tracepoint }));
        assert_eq!(plan(&facts(), &[HookKind::Fentry, HookKind::Tracepoint]), Ok(Plan { kind: HookKind::Tracepoint }));
        assert!(message(&Facts { has_queues: false, ..facts() }, &[]).contains("CONFIG_POSIX_MQUEUE"));
        let unprivileged = message(&Facts { capabilities: 1 << 39, trial: None, ..facts() }, &[]);
        assert!(unprivileged.contains(": CAP_PERFMON missing"), "{unprivileged}");
        assert!(message(&Facts { capabilities: 0, ..facts() }, &[]).contains("CAP_BPF and CAP_PERFMON"));
        assert!(message(&Facts { has_btf: false, ..facts() }, &[]).contains("CONFIG_DEBUG_INFO_BTF"));
        assert!(message(&Facts { tracefs: None, ..facts() }, &[]).contains("mount -t tracefs"));
        assert!(message(&Facts { has_tracepoints: false, ..facts() }, &[]).contains("CONFIG_FTRACE_SYSCALLS"));
        assert!(
            message(&Facts { trial: Some(Err("EPERM".into())), ..facts() }, &[])
                .contains("refused the programs: EPERM")
        );
        assert!(message(&facts(), &[HookKind::Kprobe]).contains("--hooks"));
    }
}
