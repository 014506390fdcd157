//! What the kernel side and the stages count besides the calls themselves. Pure code.

use std::collections::BTreeMap;

/// What the kernel side counted, over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pairs that a filter refused.
    pub filtered: u64,
    /// Pairs without a record for the rate's sake.
    pub limited: u64,
    /// Pairs that found the ring full.
    pub lost_ring: u64,
    /// Entries without room for their state.
    pub lost_state: u64,
    /// Entries whose exit never came.
    pub lost_no_exit: u64,
    /// Exits without an entry.
    pub unpaired: u64,
    /// Forks that found the set of traced processes full.
    pub tree_full: u64,
    /// Runs of the entry and exit programs that the kernel skipped.
    pub missed: u64,
    /// Runs of the other programs that the kernel skipped, by the functions that they are on: these add to calls, but
    /// make none.
    pub missed_inside: BTreeMap<String, u64>,
    /// Messages that found no room to be registered.
    pub untracked: u64,
    /// First calls whose image found no room in its ring: each is tried again with the next call.
    pub images: u64,
    /// Calls whose queue found no room for its state.
    pub queues: u64,
    /// Messages received whose send could not be inferred.
    pub unlinked: u64,
    /// What threads publish of their spans that could not be read.
    pub context_unreadable: u64,
    /// ... that says itself that it is not valid.
    pub context_invalid: u64,
    /// ... whose ids are zero.
    pub context_zero: u64,
    /// Files of processes that could not tell where they publish.
    pub context_files: u64,
}
