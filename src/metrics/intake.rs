//! What other threads add to metrics between two collections: bounded, behind locks that are held for a few instructions.
//! Pure code.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::reservoir::{Candidate, Reservoir};
use super::waits::Waits;
use crate::model::call::ImageKey;

/// So many images are told apart that have another Resource.
const REPLACED: usize = 4096;

/// A handle to what is added; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Intake {
    waits: Arc<Mutex<Waits>>,
    reservoir: Arc<Mutex<Reservoir>>,
    replaced: Arc<Mutex<Replaced>>,
}

/// Images that have another Resource than before.
#[derive(Debug, PartialEq, Eq)]
pub enum Replaced {
    /// These.
    Images(HashSet<ImageKey>),
    /// More than are told apart.
    Any,
}

impl Default for Replaced {
    fn default() -> Self {
        Self::Images(HashSet::new())
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Intake {
    /// Where inferred waits are added.
    pub fn waits(&self) -> MutexGuard<'_, Waits> {
        lock(&self.waits)
    }

    /// Takes the waits that were added.
    pub fn take_waits(&self) -> Waits {
        std::mem::take(&mut *self.waits())
    }

    /// These spans were exported.
    pub fn exported(&self, candidates: Vec<Candidate>) {
        lock(&self.reservoir).exported(candidates);
    }

    /// Takes the spans that may become exemplars.
    pub fn take_candidates(&self) -> Vec<Candidate> {
        lock(&self.reservoir).take()
    }

    /// The image has another Resource from now on.
    pub fn replace(&self, image: ImageKey) {
        let mut replaced = lock(&self.replaced);
        match &mut *replaced {
            Replaced::Images(images) if images.len() < REPLACED => _ = images.insert(image),
            _ => *replaced = Replaced::Any,
        }
    }

    /// Takes what was replaced.
    pub fn take_replaced(&self) -> Replaced {
        std::mem::take(&mut lock(&self.replaced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents publications without end from taking memory, and one from being overlooked for that.
    #[test]
    fn more_images_than_are_told_apart() {
        let intake = Intake::default();
        let key = |pid| ImageKey { pid, started_ns: 1, exec_id: 0 };
        (0..100).for_each(|_| intake.replace(key(7)));
        assert_eq!(intake.take_replaced(), Replaced::Images([key(7)].into()));
        (0..=REPLACED as u32).for_each(|pid| intake.replace(key(pid)));
        assert_eq!(intake.take_replaced(), Replaced::Any);
        assert_eq!(intake.take_replaced(), Replaced::default());
    }
}
