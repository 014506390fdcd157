//! The lines that the console left out, said from time to time while calls come faster than they are shown: by the counts of
//! the run. Pure code.

use tracing::warn;

use crate::export::ledger::Totals;

/// What was left out so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gaps {
    /// For `--max-rate`'s sake.
    limited: u64,
    /// On the way to user space.
    lost: u64,
    /// As the console's queue was full, or could not be written.
    unwritten: u64,
}

impl Gaps {
    fn of(totals: &Totals, console: &str) -> Self {
        let lost = |stage: &&str| totals.lost.get(stage).copied().unwrap_or(0);
        Self {
            limited: totals.limited,
            lost: ["state", "no_exit", "missed", "ring", "malformed"].iter().map(lost).sum(),
            unwritten: totals.outputs.get(console).map_or(0, |output| output.lost),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            limited: self.limited.saturating_sub(before.limited),
            lost: self.lost.saturating_sub(before.lost),
            unwritten: self.unwritten.saturating_sub(before.unwritten),
        }
    }

    fn line(self) -> Option<String> {
        let all = self.limited + self.lost + self.unwritten;
        let reasons = [
            (self.limited, "limited by --max-rate"),
            (self.lost, "lost on the way, as they came too fast"),
            (self.unwritten, "not written, as the console was too slow"),
        ];
        let reasons: Vec<String> =
            reasons.iter().filter(|(calls, _)| *calls > 0).map(|(calls, why)| format!("{calls} {why}")).collect();
        (all > 0).then(|| format!("console: {all} lines left out: {}", reasons.join(", ")))
    }
}

/// What the console has said of it.
#[derive(Debug)]
pub struct Unshown {
    /// The console's name among the outputs.
    console: String,
    said: Gaps,
}

impl Unshown {
    /// Nothing was left out yet of what goes to the output of this name.
    pub fn new(console: String) -> Self {
        Self { console, said: Gaps::default() }
    }

    /// Says what was left out since it was said last.
    pub fn tell(&mut self, totals: &Totals) {
        if let Some(line) = self.line(totals) {
            warn!("{line}");
        }
    }

    fn line(&mut self, totals: &Totals) -> Option<String> {
        let gaps = Gaps::of(totals, &self.console);
        gaps.since(std::mem::replace(&mut self.said, gaps)).line()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::ledger::{Ledger, Outcome, Share, Stage, Tally};
    use crate::model::counts::Counts;

    /// Prevents gaps in the console from passing for calls that were not made, from being told of twice, and another output's
    /// losses from being told of as the console's.
    #[test]
    fn what_was_left_out() {
        let ledger = Ledger::new(vec!["otlp.traces".into(), "console.traces".into()], false);
        let mut unshown = Unshown::new("console.traces".into());
        let mut said = || unshown.line(&ledger.totals());
        let lose = |output, records| {
            let tally = Tally::new(&ledger);
            Share::of_calls(&tally, output, records).settle(Outcome::Lost(Stage::Queue));
        };
        lose(0, 5);
        assert_eq!(said(), None);
        ledger.kernel(&Counts { limited: 3, lost_ring: 4, lost_state: 1, ..Counts::default() });
        let expected = "console: 8 lines left out: 3 limited by --max-rate, 5 lost on the way, as they came too fast";
        assert_eq!(said().as_deref(), Some(expected));
        lose(1, 7);
        let expected = "console: 7 lines left out: 7 not written, as the console was too slow";
        assert_eq!(said().as_deref(), Some(expected));
        assert_eq!(said(), None);
    }
}
