//! What the contract has and this version has not: each is refused with a clear line. Whoever
//! builds a feature deletes its line here.

use crate::cli::RunArgs;
use crate::model::error::Error;
use crate::model::values::HookKind;

/// Refuses options that do not work yet; exit status 1, with what to do instead.
pub fn refuse(run: &RunArgs) -> Result<(), Error> {
    let hooks_work = |hook: &HookKind| *hook != HookKind::Fsession;
    let table = [(
        !run.hooks.is_empty() && !run.hooks.iter().any(hooks_work),
        "--hooks fsession",
        "leave it out or add fentry, kprobe or tracepoint to the list",
    )];
    match table.into_iter().find(|(asked, ..)| *asked) {
        Some((_, what, instead)) => Err(not_available(what, instead)),
        None => Ok(()),
    }
}

fn not_available(what: &str, instead: &str) -> Error {
    Error::cannot_run(format!("{what} is not available yet"), instead)
}
