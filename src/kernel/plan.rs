//! Which hooks are used: from the facts and what was asked for. Pure code.

use super::facts::Facts;
use super::refusal::refusal;
use crate::model::error::Error;
use crate::model::values::HookKind;

/// The kinds to choose from, the best first: those that were asked for, else those that this kernel knows. First those
/// that miss no call here, then the cheaper: trampolines (fsession, fentry) slow no other call and see 32-bit callers, as
/// kprobes do; tracepoints slow every system call. Where threads are preempted in the kernel, one that is inside a
/// trampoline's program, or on newer kernels a tracepoint's, makes the kernel skip it for the others on that CPU, and a
/// session's program is one for both sides of a call; in a kprobe nobody is preempted.
pub fn order(facts: &Facts, asked: &[HookKind]) -> Vec<HookKind> {
    use HookKind::{Fentry, Fsession, Kprobe, Tracepoint};
    let best = match (facts.is_preemptible(), facts.tracepoints_are_preempted) {
        _ if !asked.is_empty() => return asked.into(),
        (false, _) => [Fsession, Fentry, Kprobe, Tracepoint],
        (true, false) => [Kprobe, Tracepoint, Fentry, Fsession],
        (true, true) => [Kprobe, Fentry, Tracepoint, Fsession],
    };
    best.into_iter().filter(|kind| *kind != Fsession || facts.has_sessions).collect()
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
    Err(refusals.swap_remove(tracepoints.unwrap_or(0)).1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::hazards::Hazards;
    use crate::kernel::refusal::tests::facts;

    fn refused(kinds: &[HookKind]) -> Vec<(HookKind, String)> {
        kinds.iter().map(|kind| (*kind, "EPERM".into())).collect()
    }

    /// Prevents what may hang the kernel from being used unless it is asked for by its name.
    #[test]
    fn what_is_unsafe() {
        let unsafe_ring = Facts { hazards: Hazards { ring: true, ..Hazards::default() }, ..facts() };
        assert!(plan(&unsafe_ring, &[]).unwrap_err().message.contains("ring buffer"));
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
        let old = || Facts { has_sessions: false, ..facts() };
        use HookKind::{Fentry, Fsession, Kprobe, Tracepoint};
        for (facts, asked, expected) in [
            (facts(), &[][..], Fsession),
            (old(), &[], Fentry),
            (old(), &[Fsession, Kprobe], Kprobe),
            (without(&[Fsession], facts()), &[], Fentry),
            (without(&[Kprobe, Tracepoint], preempted("lazy", false)), &[], Fentry),
            (without(&[Kprobe, Tracepoint, Fentry], preempted("lazy", true)), &[], Fsession),
            (preempted("voluntary", true), &[], Fsession),
            (preempted("full", false), &[], Kprobe),
            (preempted("PREEMPT_RT", false), &[], Kprobe),
            (preempted("lazy", true), &[], Kprobe),
            (without(&[Kprobe], preempted("lazy", false)), &[], Tracepoint),
            (without(&[Kprobe], preempted("lazy", true)), &[], Fentry),
            (without(&[Fentry], old()), &[], Kprobe),
            (without(&[Fsession, Fentry, Kprobe], facts()), &[], Tracepoint),
            (Facts { tracefs: None, ..facts() }, &[], Fsession),
            (Facts { has_functions: false, ..facts() }, &[], Tracepoint),
            (facts(), &[Tracepoint, Fentry], Tracepoint),
            (Facts { tracefs: None, has_fprobes: true, ..preempted("lazy", true) }, &[], Kprobe),
            (without(&[Kprobe], facts()), &[Kprobe, Tracepoint], Tracepoint),
        ] {
            assert_eq!(plan(&facts, asked), Ok(Plan { kind: expected }), "{facts:?} {asked:?}");
        }
    }
}
