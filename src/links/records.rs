//! Which calls have begun whose records have not come: they are under way, on their way, or lost. Calls of a kind are
//! numbered without gaps in the order in which they began (bpf/turn.h), so each that is missing shows. Pure code.

use std::collections::VecDeque;

/// As many missing numbers are remembered for each kind of call and place; beyond that, only that there are older ones.
const MISSING: usize = 128;

/// The calls of one kind that were counted in one place.
#[derive(Debug, Default)]
pub struct Records {
    /// The highest number that was given, as far as seen.
    highest: u64,
    /// Those up to it whose records have not come, ascending.
    missing: VecDeque<u64>,
    /// Up to this number there may be more.
    forgotten: u64,
}

impl Records {
    /// Calls up to this number have begun.
    pub fn begun(&mut self, highest: u64) {
        if highest <= self.highest {
            return;
        }
        let first = (self.highest + 1).max(highest.saturating_sub(MISSING as u64 - 1));
        if first > self.highest + 1 {
            self.missing.clear();
            self.forgotten = first - 1;
        }
        self.missing.extend(first..=highest);
        self.highest = highest;
        while self.missing.len() > MISSING {
            self.forgotten = self.missing.pop_front().unwrap_or(self.forgotten);
        }
    }

    /// The record of this call has come.
    pub fn came(&mut self, number: u64) {
        self.begun(number);
        if let Ok(at) = self.missing.binary_search(&number) {
            self.missing.remove(at);
        }
    }

    /// When so many had begun, none of them was under way: those that are missing were lost.
    pub fn all_ended(&mut self, number: u64) {
        while self.missing.front().is_some_and(|missing| *missing <= number) {
            self.missing.pop_front();
        }
        if self.forgotten <= number {
            self.forgotten = 0;
        }
    }

    /// How many up to this number are missing; None where that is not known.
    pub fn missing_until(&self, number: u64) -> Option<usize> {
        match self.forgotten {
            0 => Some(self.missing.partition_point(|missing| *missing <= number)),
            _ => None,
        }
    }

    /// Whether none up to this number is missing.
    pub fn are_complete_until(&self, number: u64) -> bool {
        self.missing_until(number) == Some(0)
    }

    /// The highest number seen.
    pub fn highest(&self) -> u64 {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a call that is still under way from being overlooked.
    #[test]
    fn what_is_missing_shows() {
        let mut records = Records::default();
        records.came(1);
        records.came(4);
        assert_eq!([1, 2, 3, 9].map(|number| records.missing_until(number)), [0, 1, 2, 2].map(Some));
        records.begun(6);
        records.came(2);
        assert_eq!(records.missing_until(6), Some(3));
        records.all_ended(4);
        assert!(records.are_complete_until(4) && !records.are_complete_until(5));
    }

    /// Prevents thousands of waiting callers, or of lost records, from taking memory, and what was forgotten from being
    /// taken for complete.
    #[test]
    fn many_missing_ones_are_bounded() {
        let mut records = Records::default();
        (1..100_000).for_each(|number| records.came(number * 2));
        records.begun(10_000_000_000);
        assert_eq!((records.missing.len(), records.missing_until(1)), (MISSING, None));
        records.all_ended(9_999_999_999);
        assert_eq!([9_999_999_999, 10_000_000_000].map(|number| records.missing_until(number)), [0, 1].map(Some));
    }
}
