//! What a run says at its beginning and end, and the statistics file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::export::ledger::{Totals, Unseen};
use crate::live::Lookout;
use crate::live::calls::InCall;
use crate::live::looker::Looker;
use crate::model::error::Error;
use crate::model::filter::{Filters, Pick};
use crate::model::values::{HookKind, Output};
use crate::telemetry::console::duration;
use crate::telemetry::terms::operation;

/// The line that says that everything is attached.
pub fn ready(calls: usize, hooks: HookKind, outputs: &[Output]) -> String {
    let outputs: Vec<String> = outputs.iter().map(ToString::to_string).collect();
    let plural = if calls == 1 { "" } else { "s" };
    format!("tracing {calls} call{plural} by {}, to {}", hooks.name(), outputs.join(", "))
}

/// A look at the host's threads is waited for so long at the start: some process's /proc may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says which threads are in a call already: it has no span, as its beginning was not seen.
pub fn in_calls(lookout: &Lookout, filters: &Filters, own_ipc_namespace: u32) {
    let lookout = lookout.clone();
    let looked = Looker::start(move || lookout.in_calls()).ok().and_then(|looker| looker.ask(PATIENCE, PATIENCE));
    let Some(looked) = looked else {
        return warn!("the host's threads could not be looked at in time: which are in a call already is not known");
    };
    let (calls, hidden) = &*looked;
    if *hidden > 0 {
        debug!("{hidden} threads may not be looked at: whether these wait at a queue is not known");
    }
    for call in calls.iter().filter(|call| call.is_asked_for(filters, own_ipc_namespace)) {
        let InCall { pid, tid, comm, op, queue, waited, .. } = call;
        let waited = waited.map_or(String::new(), |waited| format!(" (for {})", duration(waited.as_nanos() as u64)));
        let name = queue.as_ref().map_or("a descriptor that is no queue", |queue| &queue.name);
        info!("{comm}[{pid}/{tid}] is in {} on {name} already{waited}", operation(*op));
    }
}

/// Says what the run came to: the totals, and what a user would not have expected; and where the kernel does not count what it
/// skips, that it may have.
pub fn end(totals: &Totals, unseen: Unseen, counts_skips: bool, unmatched: &[String], filters: &Filters) {
    for value in unmatched {
        warn!("{value} matched no call");
    }
    for (option, filter) in [("--queue", &filters.queue), ("--comm", &filters.comm)] {
        for value in filter.unmatched() {
            warn!("{option} {} matched no call", Pick::to_string(value));
        }
    }
    let Unseen { forks, skipped, untracked, unlinked, images, queues } = unseen;
    for (count, what) in [
        (forks, "processes of the command not traced, with all that descends from them: too many at once"),
        (images, "calls whose process could not be described by the kernel side: /proc had to do"),
        (queues, "calls on queues beyond those that have gauges"),
        (untracked, "messages not followed to their receives: too many at once"),
        (unlinked, "messages received whose send could not be told for certain: no link, no wait"),
    ] {
        if count > 0 {
            warn!("{count} {what}");
        }
    }
    for (function, runs) in skipped {
        warn!("{runs} runs of the program on {function} skipped by the kernel: what it adds to calls is missing");
    }
    let uncounted =
        if counts_skips { "" } else { "; calls that the kernel skipped are not counted (Linux before 6.7)" };
    info!("{}{uncounted}", line(totals));
}

/// One line of totals; it names every output that lost any.
pub fn line(totals: &Totals) -> String {
    let Totals { captured, exported, filtered, limited, .. } = totals;
    let lost = totals.lost();
    let mut line =
        format!("{captured} calls captured: {exported} exported, {filtered} filtered, {limited} limited, {lost} lost");
    let stages: Vec<String> = totals
        .lost
        .iter()
        .filter(|(_, calls)| **calls > 0)
        .map(|(stage, calls)| format!("{calls} at {stage}"))
        .collect();
    if !stages.is_empty() {
        line = format!("{line} ({})", stages.join(", "));
    }
    for (name, output) in totals.outputs.iter().filter(|(_, output)| output.rejected + output.lost > 0) {
        line = format!("{line}; {name}: {} rejected, {} lost", output.rejected, output.lost);
    }
    for (count, what) in [(totals.spooled, "left in the spool"), (totals.restored, "found in the spool at the start")] {
        if let Some(count @ 1..) = count {
            line = format!("{line}; {count} {what}");
        }
    }
    if totals.unpaired > 0 {
        line = format!("{line}; {} exits without an entry", totals.unpaired);
    }
    line
}

/// The file for the statistics, made at the start so that one that can't be written is known at once.
#[derive(Debug)]
pub struct StatsFile {
    path: PathBuf,
    file: File,
}

impl StatsFile {
    /// Makes the file.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|error| unwritable("--stats-file", path, &error))?;
        Ok(Self { path: path.into(), file })
    }

    /// Writes the counters, as one JSON object.
    pub fn write(mut self, totals: &Totals) -> Result<(), Error> {
        let written = serde_json::to_vec(totals).map_err(Into::into).and_then(|mut text| {
            text.push(b'\n');
            self.file.write_all(&text)
        });
        written.map_err(|error: std::io::Error| unwritable("--stats-file", &self.path, &error))
    }
}

/// The file for the page, made at the start so that one that can't be written is known at once.
#[derive(Debug)]
pub struct PageFile {
    path: PathBuf,
    file: File,
}

impl PageFile {
    /// Makes the file.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|error| unwritable("--report", path, &error))?;
        Ok(Self { path: path.into(), file })
    }

    /// Writes the page, or says why there is none.
    pub fn write(mut self, page: Result<String, String>) -> Result<(), Error> {
        let written = page.map_err(std::io::Error::other).and_then(|page| self.file.write_all(page.as_bytes()));
        written.map_err(|error| unwritable("--report", &self.path, &error))
    }
}

fn unwritable(option: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::cannot_run(
        format!("{option} {}: {error}", path.display()),
        "name a file that mqspan may write, in a folder that exists",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::ledger::Ledger;
    use crate::model::filter::Filter;
    use crate::model::live::LiveQueue;
    use crate::model::values::Op;

    /// Prevents the ready line from being another than scripts wait for.
    #[test]
    fn ready_lines() {
        assert_eq!(
            ready(6, HookKind::Tracepoint, &[Output::Otlp, Output::File("/x".into())]),
            "tracing 6 calls by tracepoint, to otlp, file:/x"
        );
        assert_eq!(ready(1, HookKind::Fentry, &[Output::Console]), "tracing 1 call by fentry, to console");
    }

    /// Prevents losses from being left out of the closing line.
    #[test]
    fn closing_lines() {
        let ledger = Ledger::new(vec!["otlp.traces".into()], false);
        assert_eq!(line(&ledger.totals()), "0 calls captured: 0 exported, 0 filtered, 0 limited, 0 lost");
        ledger.malformed();
        assert_eq!(
            line(&ledger.totals()),
            "1 calls captured: 0 exported, 0 filtered, 0 limited, 1 lost (1 at malformed)"
        );
    }

    /// Prevents threads that are already in a call from being named where a filter leaves their calls out.
    #[test]
    fn filters_hold_for_calls_under_way() {
        let call = InCall {
            pid: 7,
            tid: 8,
            comm: "worker".into(),
            uid: Some(1000),
            container: Some("abc1".into()),
            ipc_ns: Some(5),
            op: Op::MqTimedreceive,
            queue: Some(LiveQueue {
                ipc_ns: 5,
                name: "/orders".into(),
                number: 1,
                key: None,
                maxmsg: 0,
                msgsize: 0,
                curmsgs: 0,
            }),
            waited: None,
        };
        let all = || Filters { call: Op::ALL.into(), ..Filters::default() };
        fn of<T: std::str::FromStr>(picks: &[&str]) -> Filter<T> {
            let pick = |text: &&str| text.parse::<Pick<T>>().unwrap_or_else(|_| panic!("{text}"));
            Filter::new(picks.iter().map(pick).collect())
        }
        let passes = |filters: Filters| call.is_asked_for(&filters, 5);
        assert!(passes(all()));
        for (picks, expected) in [(&["7"][..], true), (&["8"], false), (&["!7"], false), (&["!8"], true)] {
            assert_eq!(passes(Filters { pid: of(picks), ..all() }), expected, "{picks:?}");
        }
        for (picks, expected) in [(&["1000"][..], true), (&["0"], false), (&["!1000"], false)] {
            assert_eq!(passes(Filters { uid: of(picks), ..all() }), expected, "{picks:?}");
        }
        assert!(passes(Filters { comm: of(&["w*"]), ..all() }) && !passes(Filters { comm: of(&["!w*"]), ..all() }));
        assert!(passes(Filters { container: of(&["ab"]), ..all() }));
        assert!(!passes(Filters { container: of(&["!ab"]), ..all() }));
        assert!(passes(Filters { ipc_namespace: of(&["self"]), ..all() }));
        assert!(!passes(Filters { ipc_namespace: of(&["6"]), ..all() }));
        assert!(passes(Filters { queue: of(&["/o*"]), ..all() }) && !passes(Filters { queue: of(&["/x"]), ..all() }));
        assert!(!passes(Filters { call: [Op::MqOpen].into(), ..all() }));
    }
}
