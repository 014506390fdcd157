//! Which hooks are used: from the facts and what was asked for. Pure code.
//!
//! A kind that joins later is an entry in [`order`] and a branch in [`refusal`](super::refusal).

use super::facts::Facts;
use super::refusal::refusal;
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
            "leave the choice to mqspan: mqspan run --hooks auto",
        )),
        false => Err(refusals.swap_remove(tracepoints.unwrap_or(0)).1),
    }
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
