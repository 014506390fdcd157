//! What is tested inside the kernel that was booted. Each kind of hooks that this kernel has is asked for by name.

mod causes;
mod check;
mod clean;
mod contexts;
mod crowds;
mod links;
mod live;
mod metrics;
mod parity;
mod races;
mod types;
mod who;

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{
    otlp::{self, Record, made_by},
    program::{Ended, Mqspan, finish},
    sessions,
};

use crate::MQSPAN;

/// Those of a kernel that has all, but for sessions; MQSPAN_TEST_KINDS names them where some are missing.
const KINDS: &str = "fentry kprobe tracepoint";
/// Of which messages are told by their identity; the first is the best that misses no call here.
const BY_MESSAGE: [&str; 2] = ["auto", "kprobe"];

/// The kinds of hooks that this kernel has, each in its turn.
fn kinds() -> impl Iterator<Item = &'static str> {
    let mut named = env::var("MQSPAN_TEST_KINDS").unwrap_or(KINDS.into());
    if named == KINDS && sessions::are_there() {
        named = format!("fsession {named}");
    }
    // As long as the program, which ends soon.
    begun(Vec::leak(named.leak().split_whitespace().collect()).iter().copied())
}

/// Says of each kind that its turn has come: scripts/kernel.sh makes a line of results of that.
fn begun(kinds: impl IntoIterator<Item = &'static str>) -> impl Iterator<Item = &'static str> {
    kinds.into_iter().inspect(|kind| println!("KIND {kind}"))
}

/// A run of mqspan by one kind of hooks, and what it left.
struct Run {
    kind: &'static str,
    mqspan: Mqspan,
    /// The program that is traced.
    workload: PathBuf,
    ended: Option<Ended>,
}

impl Run {
    fn new(kind: &'static str) -> Result<Self> {
        let mqspan = Mqspan::new(MQSPAN)?;
        Ok(Self { kind, workload: mqspan.workload(), mqspan, ended: None })
    }

    /// mqspan with these options.
    fn command(&self, options: &[&str]) -> Command {
        let mut command = self.mqspan.command(["run", &format!("--hooks={}", self.kind), &self.mqspan.to_file("told")]);
        command.arg(format!("--stats-file={}", self.mqspan.file("stats.json").display())).args(options);
        // Nothing is to be added up over several collections.
        command.env("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
        command
    }

    /// Traces a command to its end.
    fn of(mut self, options: &[&str], traced: &[&str]) -> Result<Self> {
        let mut command = self.command(options);
        command.arg("--").args(traced);
        self.ended = Some(Ended::of(finish(command)?).ok().context(self.kind)?);
        Ok(self)
    }

    /// The same of the workload.
    fn of_workload(self, options: &[&str], workload: &[&str]) -> Result<Self> {
        let program = self.workload.display().to_string();
        self.of(options, &[&[&*program], workload].concat())
    }

    /// The same of a workload that calls as this kind of caller.
    fn of_caller(mut self, abi: &str, options: &[&str], workload: &[&str]) -> Result<Self> {
        self.workload = self.mqspan.workload_of(abi)?;
        let program = self.workload.display().to_string();
        self.of(options, &[&[&*program], workload, &["--abi", abi]].concat())
    }

    fn said(&self, text: &str) -> Result<&str> {
        self.ended.as_ref().context("not run")?.said(text)
    }

    fn spans(&self) -> Result<Vec<Record<Span>>> {
        otlp::spans(&self.mqspan.file("told"))
    }

    /// The workload's, in the order of their beginning, of which none is lost.
    fn all_spans(&self) -> Result<Vec<Record<Span>>> {
        let stats = self.mqspan.stats()?;
        anyhow::ensure!(stats.lost_sum() == 0, "{}: {stats:?}", self.kind);
        let mut spans = made_by(self.spans()?, &self.workload);
        spans.sort_by_key(|span| span.body.start_time_unix_nano);
        Ok(spans)
    }
}
