//! `check`: what this host offers, which hooks `run` would use and what they cost, what is missing and how to mend it.
//! Says it; the looking is [`facts`](crate::kernel::facts)', the judging [`plan`](mod@crate::kernel::plan)'s, the timing
//! `measure`'s.

mod caller;
mod measure;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use self::measure::MeasuredCosts;
use crate::kernel::configure::Config;
use crate::kernel::facts::{CAPABILITIES, DAC_OVERRIDE, Facts};
use crate::kernel::hooks::{CALLS, not_captured_without};
use crate::kernel::plan::order;
use crate::kernel::refusal::refusal;
use crate::kernel::trial;
use crate::kernel::types::KernelTypes;
use crate::kernel::variant::Variant;
use crate::model::error::Error;
use crate::model::filter::Filters;
use crate::model::values::{Format, HookKind, Rate};
use crate::progress::ProgressLine;

/// What is said, in the order of the object that programs read.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// Whether `run` would work.
    runs: bool,
    hooks: Option<&'static str>,
    /// What the hooks cost the host and what they can't see.
    cost: Vec<&'static str>,
    missing: Vec<Missing>,
    notes: Vec<String>,
    kernel: String,
    preemption: Option<String>,
    realtime: bool,
    isolated_cpus: String,
    lockdown: Option<String>,
    in_user_namespace: bool,
    message_queues: bool,
    btf: bool,
    /// The file that the kernel's types are from, where the kernel does not describe them itself.
    types_file: Option<String>,
    capabilities: Vec<&'static str>,
    tracefs: Option<String>,
    syscall_tracepoints: bool,
    attaching: &'static str,
    /// Functions that are not hooked here, and what is not captured for it.
    left_out: Vec<LeftOut>,
    /// Where the state of a call under way is: `task storage` or `table`.
    call_state: &'static str,
    /// Of maps in the kernel, in bytes.
    map_bytes: Option<u64>,
    /// The most that mqspan itself is resident with, in bytes.
    resident_bytes: u64,
    /// What calls cost here, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<MeasuredCosts>,
}

/// The bound on what mqspan itself holds, under any backend (docs/requirements.md).
const RESIDENT: u64 = 64 << 20;

#[derive(Debug, Serialize)]
struct LeftOut {
    function: String,
    not_captured: &'static str,
}

#[derive(Debug, Serialize)]
struct Missing {
    what: String,
    mend: String,
}

/// What attaching showed.
#[derive(Debug)]
struct Attached {
    kind: HookKind,
    map_bytes: u64,
    left_out: BTreeSet<String>,
}

/// Looks at this host and prints what it offers, `measures`: and what calls cost; returns whether `run` would work. To be
/// called while there is no other thread.
pub fn check(format: Format, measures: bool, types: Option<&Path>) -> io::Result<bool> {
    let mut facts = Facts::gather(types);
    // Before what attaching leaves to be done in the background.
    let measured = measures.then(|| measure::measure(&facts, &everything(&every_call(), 0))).transpose()?;
    let attaching = ProgressLine::start(true, || "trying what the kernel allows".into());
    let attached = attach(&mut facts);
    drop(attaching);
    let report = Report { measured, ..Report::of(&facts, attached) };
    let text = match format {
        Format::Text => report.text(),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(report.runs)
}

fn every_call() -> Filters {
    Filters { call: CALLS.iter().map(|(call, _)| *call).collect(), ..Filters::default() }
}

/// All that `run` may do; at most so many records a second, 0: every call.
fn everything(every_call: &Filters, most: u32) -> Config<'_> {
    Config {
        filters: every_call,
        own_ipc_namespace: 0,
        tree: None,
        makes_records: true,
        aggregates: true,
        rate: Rate { most, slow: Duration::ZERO },
    }
}

/// Attaches as `run` does.
fn attach(facts: &mut Facts) -> Result<Attached, Error> {
    let every_call = every_call();
    let config = everything(&every_call, 1);
    let (kind, programs) = trial::attach(facts, &[], &config)?;
    let attached = Attached { kind, map_bytes: programs.map_bytes(), left_out: programs.left_out().clone() };
    Arc::new(programs).detach();
    Ok(attached)
}

/// What a kind of hooks costs, and what it does not see (reference figures: docs/requirements.md).
fn cost(kind: HookKind) -> Vec<&'static str> {
    match kind {
        HookKind::Tracepoint => vec![
            "every system call of every process takes about 50 ns more while mqspan runs (the kernel's slow path for \
             traced system calls)",
            "calls of 32-bit programs are not seen",
        ],
        _ => vec!["no other system call is slowed"],
    }
}

/// Why other kinds of hooks are not used: those that would come first were refused, or come later as they miss calls.
fn passed_over(facts: &Facts, chosen: Option<HookKind>) -> Vec<String> {
    let before = order(facts, &[]).into_iter().take_while(|kind| chosen.is_some_and(|chosen| chosen != *kind));
    let why = |kind: HookKind| Some(format!("no {}: {}", kind.name(), refusal(facts, kind, false)?.message));
    let mut notes: Vec<String> = before.filter_map(why).collect();
    if let Some(model) = facts.preemption.as_ref().filter(|_| facts.is_preemptible()) {
        let which = match (facts.has_sessions, facts.tracepoints_are_preempted) {
            (false, false) => "fentry misses",
            (false, true) => "fentry and tracepoint miss",
            (true, false) => "fsession and fentry miss",
            (true, true) => "fsession, fentry and tracepoint miss",
        };
        notes
            .push(format!("{which} calls where threads are preempted in the kernel ({model}): other hooks come first"));
    }
    notes
}

/// What of this host a user of mqspan should know, and what to do about it.
fn about(facts: &Facts, attached: Option<&Attached>) -> Vec<String> {
    let mut notes = Vec::new();
    if facts.realtime {
        notes.push(
            "PREEMPT_RT: attaching and detaching interrupt each CPU once: start mqspan before the real-time load, and keep \
             its threads off that load's CPUs by --cpus"
                .into(),
        );
    }
    if !facts.isolated_cpus.is_empty() {
        notes.push(format!(
            "CPUs {} are isolated, or without a tick: mqspan's threads stay off them unless --cpus names them; attaching \
             and detaching interrupt them once: start mqspan before what they are kept free for",
            facts.isolated_cpus
        ));
    }
    if attached.is_some() && !facts.uses_task_storage() {
        notes.push(
            "task storage is missing or not safe on this kernel: calls under way are kept in a table of 8192 threads, a \
             quarter of it for one process at most; calls of further threads are lost and counted (stage `state`): a newer \
             kernel (6.4, for other than PREEMPT_RT 5.13) has no such bound"
                .into(),
        );
    }
    if facts.types != KernelTypes::Kernel {
        notes.push(
            "the kernel does not describe its own types (CONFIG_DEBUG_INFO_BTF): there is no fentry, a call costs more for \
             reading the kernel by a helper, and who waits at queues and has them open is looked up in /proc, of those \
             processes that mqspan may look at"
                .into(),
        );
    }
    if facts.variant == Variant::Old {
        notes.push(
            "this kernel's BPF can't number calls (Linux before 5.12): by tracepoints receives are not linked to sends, and how \
             long messages waited is not known; kprobe and fentry tell both"
                .into(),
        );
    }
    if attached.is_some_and(|attached| !facts.counts_skips(attached.kind)) {
        notes.push(
            "this kernel does not count runs that it skips while another BPF program runs on the CPU (Linux before 6.7): \
             calls may be missing without being counted where other tools trace by BPF; use fentry or a newer kernel where \
             that matters"
                .into(),
        );
    }
    let left_out = attached.iter().flat_map(|attached| &attached.left_out);
    notes.extend(left_out.map(|function| {
        let lost = not_captured_without(function);
        format!("{function} can't be hooked on this kernel: {lost}; another kind of --hooks, or kernel, may hook it")
    }));
    notes
}

impl Report {
    fn of(facts: &Facts, attached: Result<Attached, Error>) -> Self {
        let has = |number| facts.has(number);
        let kprobes_refused = facts.refused.iter().any(|(kind, _)| *kind == HookKind::Kprobe);
        let matters = |number| number != DAC_OVERRIDE || kprobes_refused;
        let wanting = |number| !has(number) && matters(number);
        let notes = CAPABILITIES[2..].iter().filter(|(_, number, _)| wanting(*number)).map(|(name, _, why)| {
            format!("without {name}, which {why}, some of that is left out: give it as the others")
        });
        let (attached, error) = match attached {
            Ok(attached) => (Some(attached), None),
            Err(error) => (None, Some(error)),
        };
        let kind = attached.as_ref().map(|attached| attached.kind);
        let left_out = attached.iter().flat_map(|attached| &attached.left_out);
        let left_out = left_out
            .map(|function| LeftOut { function: function.clone(), not_captured: not_captured_without(function) });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            runs: attached.is_some(),
            hooks: kind.map(HookKind::name),
            cost: kind.map_or(Vec::new(), cost),
            notes: notes.chain(passed_over(facts, kind)).chain(about(facts, attached.as_ref())).collect(),
            missing: error.map(missing).into_iter().collect(),
            kernel: facts.kernel.clone(),
            preemption: facts.preemption.clone(),
            realtime: facts.realtime,
            isolated_cpus: facts.isolated_cpus.clone(),
            lockdown: facts.lockdown.clone(),
            in_user_namespace: facts.in_user_namespace,
            message_queues: facts.has_queues,
            btf: facts.types == KernelTypes::Kernel,
            types_file: facts.types.file().map(|file| file.display().to_string()),
            capabilities: CAPABILITIES.iter().filter(|(_, number, _)| has(*number)).map(|(name, ..)| *name).collect(),
            tracefs: facts.tracefs.as_ref().map(|path| path.display().to_string()),
            syscall_tracepoints: facts.has_tracepoints,
            attaching: match (kind, facts.refused.is_empty()) {
                (Some(_), _) => "works",
                (None, false) => "refused",
                (None, true) => "not tried",
            },
            left_out: left_out.collect(),
            call_state: if facts.uses_task_storage() { "task storage" } else { "table" },
            map_bytes: attached.as_ref().map(|attached| attached.map_bytes),
            resident_bytes: RESIDENT,
            measured: None,
        }
    }

    fn memory(&self) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let maps = self.map_bytes.map_or("unknown".into(), |bytes| format!("{} MiB", mib(bytes)));
        format!("{maps} in the kernel, whatever the number of CPUs; at most {} MiB resident", mib(self.resident_bytes))
    }

    fn text(&self) -> String {
        let yes = |yes| if yes { "yes" } else { "no" };
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
        let capabilities = match self.capabilities.is_empty() {
            true => "none of those that matter".into(),
            false => self.capabilities.join(" "),
        };
        let mut text = format!("mqspan {} on Linux {}\n", self.version, self.kernel);
        for (what, found) in [
            ("POSIX queues", yes(self.message_queues).to_owned()),
            ("BTF", self.types_file.as_ref().map_or(yes(self.btf).into(), |file| format!("no; types from {file}"))),
            ("capabilities", capabilities),
            ("tracefs", self.tracefs.clone().unwrap_or_else(|| "not found".into())),
            ("tracepoints", yes(self.syscall_tracepoints).to_owned()),
            ("preemption", or_none(&self.preemption)),
            ("real-time", yes(self.realtime).to_owned()),
            (
                "isolated CPUs",
                Some(&self.isolated_cpus).filter(|list| !list.is_empty()).cloned().unwrap_or("none".into()),
            ),
            ("lockdown", or_none(&self.lockdown)),
            ("attaching", self.attaching.to_owned()),
            ("memory", self.memory()),
        ] {
            text += &format!("  {what:<13} {found}\n");
        }
        if let Some(hooks) = self.hooks {
            text += &format!("hooks: {hooks}; {}\n", self.cost.join("; "));
        }
        text += &self.measured.as_ref().map(MeasuredCosts::text).unwrap_or_default();
        if self.in_user_namespace {
            text += "note: this is a user namespace: capabilities in it are none of the host's\n";
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        for Missing { what, mend } in &self.missing {
            text += &format!("missing: {what}\n  {mend}\n");
        }
        text + if self.runs { "mqspan run would work\n" } else { "mqspan run would not work\n" }
    }
}

fn missing(error: Error) -> Missing {
    Missing { what: error.message, mend: error.hint.unwrap_or_default() }
}
