//! Why calls fail, by each kind of hooks and for each kind of caller, as the program that made them fail knows it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use support::causes;

use super::{Run, kinds};

/// Prevents a cause, or a number of a limit, from being another by some kind of hooks or for some kind of caller.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn every_cause() -> Result<()> {
    for kind in kinds() {
        for abi in ["native", "compat", "compat-time32"] {
            let what = format!("{kind}, {abi}");
            // Nobody else opens files here.
            let workload = ["causes", "--file-max"];
            let run = Run::new(kind)?.of_caller(abi, &["--signals=traces", "--max-rate=0"], &workload)?;
            let told = causes::told(run.ended.as_ref().context("not run")?.lines()?)?;
            if kind == "tracepoint" && abi != "native" {
                // Which show no 32-bit callers.
                continue;
            }
            let compared = causes::compare(&told, &run.all_spans()?).context(what.clone())?;
            let causes: BTreeSet<_> = told.values().flatten().filter_map(|failed| failed.cause.as_deref()).collect();
            println!("{what}: {compared} ways to fail, {} causes", causes.len());
            ensure!(compared >= 100 && causes.len() == 21, "{what}: {compared}: {causes:?}");
        }
    }
    Ok(())
}
