//! Where the threads of a process hold what they publish of their spans. Pure code.

/// How blocks of thread-local storage are found: by a vector with an entry for each module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// Where the pointer to it is, from the thread pointer.
    pub at: i32,
    /// Where its length is, from its beginning.
    pub len_at: i32,
    /// From one entry to the next.
    pub step: u32,
}

/// Where a thread holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// At this distance from the thread pointer.
    Static(i64),
    /// At this distance from the beginning of a module's block.
    Dynamic {
        /// The module's number, from 1.
        module: u32,
        /// The distance.
        offset: u32,
        /// Where the block is.
        vector: Vector,
    },
}
