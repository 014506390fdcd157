//! Attaches by the kinds of hooks that the facts allow, the best first, since some kernels load what they can't attach: the
//! attach that `run` works with is the trial.

use super::configure::Config;
use super::facts::Facts;
use super::plan::{order, plan};
use super::programs::Programs;
use super::refusal::refusal;
use crate::model::error::Error;
use crate::model::values::HookKind;

/// Attaches by the first of the kinds that were asked for that works here, none: of all, and says which. Notes in the facts
/// what the kernel refused.
pub fn attach(facts: &mut Facts, asked: &[HookKind], config: &Config<'_>) -> Result<(HookKind, Programs), Error> {
    for kind in order(facts, asked) {
        if refusal(facts, kind, asked.contains(&kind)).is_some() {
            continue;
        }
        match Programs::attach(kind, facts, config) {
            Ok(programs) => return Ok((kind, programs)),
            Err(why) => facts.refused.push((kind, why)),
        }
    }
    // Nothing is left to plan with: it says what is missing.
    plan(facts, asked)
        .and_then(|plan| Err(Error::cannot_run(format!("{} did not work", plan.kind.name()), "try again")))
}
