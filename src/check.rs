//! `check`: what this host offers, which hooks `run` would use and what they cost, what is missing and how to mend it.
//! Says it; the looking is [`facts`](crate::kernel::facts)', the judging [`plan`](mod@crate::kernel::plan)'s.

use std::io::{self, Write};

use serde::Serialize;

use crate::kernel::facts::{CAPABILITIES, DAC_OVERRIDE, Facts};
use crate::kernel::plan::{order, plan, refusal};
use crate::kernel::trial;
use crate::model::error::Error;
use crate::model::values::{Format, HookKind};

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
    message_queues: bool,
    btf: bool,
    capabilities: Vec<&'static str>,
    tracefs: Option<String>,
    syscall_tracepoints: bool,
    attaching: &'static str,
    /// Of maps in the kernel, in bytes.
    map_bytes: Option<u64>,
    /// The most that mqspan itself is resident with, in bytes.
    resident_bytes: u64,
}

/// The bound on what mqspan itself holds, under any backend (docs/requirements.md).
const RESIDENT: u64 = 64 << 20;

#[derive(Debug, Serialize)]
struct Missing {
    what: String,
    mend: String,
}

/// Looks at this host and prints what it offers; returns whether `run` would work.
pub fn check(format: Format) -> io::Result<bool> {
    let report = Report::of(&trial::facts(&[]));
    let text = match format {
        Format::Text => report.text(),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(report.runs)
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
fn passed_over(facts: &Facts) -> Vec<String> {
    let chosen = plan(facts, &[]).ok().map(|plan| plan.kind);
    let before = order(facts, &[]).into_iter().take_while(|kind| chosen.is_some_and(|chosen| chosen != *kind));
    let mut notes: Vec<String> =
        before.filter_map(|kind| Some(format!("no {}: {}", kind.name(), refusal(facts, kind)?.message))).collect();
    if let Some(model) = facts.preemption.as_ref().filter(|_| facts.is_preemptible()) {
        let which = if facts.tracepoints_are_preempted { "fentry and tracepoint miss" } else { "fentry misses" };
        notes
            .push(format!("{which} calls where threads are preempted in the kernel ({model}): other hooks come first"));
    }
    notes
}

impl Report {
    fn of(facts: &Facts) -> Self {
        let plan = plan(facts, &[]);
        let has = |number| facts.has(number);
        let kprobes_refused = facts.trials.iter().any(|(kind, trial)| *kind == HookKind::Kprobe && trial.is_err());
        let matters = |number| number != DAC_OVERRIDE || kprobes_refused;
        let wanting = |number| !has(number) && matters(number);
        let notes = CAPABILITIES[2..].iter().filter(|(_, number, _)| wanting(*number)).map(|(name, _, why)| {
            format!("without {name}, which {why}, some of that is left out: give it as the others")
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            runs: plan.is_ok(),
            hooks: plan.as_ref().ok().map(|plan| plan.kind.name()),
            cost: plan.as_ref().map_or(Vec::new(), |plan| cost(plan.kind)),
            notes: notes.chain(passed_over(facts)).collect(),
            missing: plan.err().map(missing).into_iter().collect(),
            kernel: facts.kernel.clone(),
            preemption: facts.preemption.clone(),
            message_queues: facts.has_queues,
            btf: facts.has_btf,
            capabilities: CAPABILITIES.iter().filter(|(_, number, _)| has(*number)).map(|(name, ..)| *name).collect(),
            tracefs: facts.tracefs.as_ref().map(|path| path.display().to_string()),
            syscall_tracepoints: facts.has_tracepoints,
            attaching: match facts.trials.last() {
                Some((_, Ok(()))) => "works",
                Some((_, Err(_))) => "refused",
                None => "not tried",
            },
            map_bytes: facts.map_bytes,
            resident_bytes: RESIDENT,
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
            ("BTF", yes(self.btf).to_owned()),
            ("capabilities", capabilities),
            ("tracefs", self.tracefs.clone().unwrap_or_else(|| "not found".into())),
            ("tracepoints", yes(self.syscall_tracepoints).to_owned()),
            ("preemption", or_none(&self.preemption)),
            ("attaching", self.attaching.to_owned()),
            ("memory", self.memory()),
        ] {
            text += &format!("  {what:<13} {found}\n");
        }
        if let Some(hooks) = self.hooks {
            text += &format!("hooks: {hooks}; {}\n", self.cost.join("; "));
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        for Missing { what, mend } in &self.missing {
            text += &format!("missing: {what}; to mend it, {mend}\n");
        }
        text + if self.runs { "mqspan run would work\n" } else { "mqspan run would not work\n" }
    }
}

fn missing(error: Error) -> Missing {
    Missing { what: error.message, mend: error.hint.unwrap_or_default() }
}
