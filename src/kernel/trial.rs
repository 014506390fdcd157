//! Tries the kinds of hooks that the facts allow, since some kernels load what they can't attach.

use super::facts::Facts;
use super::{plan, programs};
use crate::model::values::HookKind;

/// The facts about this host, with what came of trying the kinds that are asked for, in their order, up to the first that
/// works; none asked for: any.
pub fn facts(asked: &[HookKind]) -> Facts {
    let mut facts = Facts::gather();
    for kind in plan::order(&facts, asked) {
        if plan::refusal(&facts, kind).is_some() {
            continue;
        }
        let trial = programs::try_attach(kind, facts.tracefs.as_deref());
        facts.map_bytes = trial.as_ref().ok().copied();
        facts.trials.push((kind, trial.map(drop)));
        if facts.map_bytes.is_some() {
            break;
        }
    }
    facts
}
