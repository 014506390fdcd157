//! All six calls on this machine's kernel: every field as strace and the caller saw it. Needs root, tracefs and strace:
//! `make test` runs it.

use std::fs;

use anyhow::{Result, ensure};
use support::{
    family,
    otlp::{self, made_by},
    program::Mqspan,
    ready, strace, workload,
};

const CALLS: usize = 12_000;

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// Prevents a span of any of the six from being missing, invented, or wrong in any field.
#[test]
fn spans_are_what_strace_sees() -> Result<()> {
    let mqspan = mqspan()?;
    let (log, record) = (mqspan.file("strace.log"), mqspan.file("record"));
    let (calls, path) = (CALLS.to_string(), record.display().to_string());
    let arguments =
        ["calls", "--calls", &calls, "--seed", "61", "--threads", "4", "--processes", "2", "--print", &path];
    let strace = workload::under_strace("/^mq_", &log, &mqspan.workload(), &arguments);
    mqspan.run_counted_command(&["--signals=traces", &mqspan.to_file("spans")], &strace)?;

    let calls = family::join(&strace::parse(&fs::read_to_string(&log)?)?, &record)?;
    let spans = made_by(otlp::spans(&mqspan.file("spans"))?, &mqspan.workload());
    let stats = mqspan.stats()?;
    ensure!(stats.lost_sum() == 0 && stats.exported == calls.len() as u64, "{} calls: {stats:?}", calls.len());
    family::compare(&calls, &spans, ready::ipc_namespace()?)?.perfect(CALLS)
}
