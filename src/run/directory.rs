//! Who and what the kernel side's numbers stand for, shared between the reader, which learns it, and the metrics, which ask.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::meter::Directory;
use crate::model::call::{ImageKey, Name};
use crate::model::reading::QueueHeads;
use crate::model::resource::Resource;
use crate::model::text::utf8;
use crate::who::registry::Registry;

/// As many bytes of names are remembered, with what stands around each.
const NAMES: usize = 4 << 20;
/// What stands around a name: its number, its count of users, its place in the table.
const AROUND: usize = 64;
/// So many images are known to be asked about.
const AWAITED: usize = 8192;
/// The reader is waited for at most so long.
const CATCH_UP: Duration = Duration::from_millis(200);

/// What both know; clones share it.
#[derive(Clone)]
pub struct SharedDirectory(Arc<DirectoryState>);

struct DirectoryState {
    registry: Mutex<Registry>,
    names: Mutex<Names>,
    /// Until when the Resource of an image may change by what is being asked.
    awaited: Mutex<HashMap<ImageKey, Instant>>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    turns: Mutex<Turns>,
    caught_up: Condvar,
}

/// Names by their numbers.
#[derive(Debug, Default)]
struct Names {
    known: HashMap<u64, Arc<str>>,
    bytes: usize,
    /// Those that were dropped: the kernel side is to send them again.
    dropped: Vec<u64>,
}

impl Names {
    fn put(&mut self, number: u64, name: Arc<str>, most: usize) {
        if self.bytes >= most {
            // Streams and gauges keep those that they speak of.
            let unused = self.known.extract_if(|_, name| Arc::strong_count(name) == 1);
            for (number, name) in unused {
                self.bytes -= name.len() + AROUND;
                self.dropped.push(number);
            }
        }
        let added = name.len() + AROUND;
        // What is still too many goes to the points without a queue.
        if self.bytes < most && self.known.insert(number, name).is_none() {
            self.bytes += added;
        }
    }
}

/// How often the reader was asked to take what there is, and had done so.
#[derive(Debug, Default)]
struct Turns {
    asked: u64,
    done: u64,
    /// What the calls left in their queues when it had last.
    heads: QueueHeads,
}

impl fmt::Debug for SharedDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedDirectory").finish_non_exhaustive()
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedDirectory {
    /// Knows what the registry knows.
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(DirectoryState {
            registry: Mutex::new(registry),
            names: Mutex::default(),
            awaited: Mutex::default(),
            wake: OnceLock::new(),
            turns: Mutex::default(),
            caught_up: Condvar::new(),
        }))
    }

    /// The Resources of images.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.0.registry)
    }

    /// Remembers the name behind a number.
    pub fn learn(&self, name: &Name) {
        lock(&self.0.names).put(name.number, format!("/{}", utf8(&name.bytes)).into(), NAMES);
    }

    /// The names that are not known any more, which the kernel side is to send again.
    pub fn take_dropped_names(&self) -> Vec<u64> {
        std::mem::take(&mut lock(&self.0.names).dropped)
    }

    /// The image is asked about, at most until this time.
    pub fn expect(&self, image: ImageKey, until: Instant) {
        let mut awaited = lock(&self.0.awaited);
        if awaited.len() >= AWAITED {
            let now = Instant::now();
            awaited.retain(|_, until| *until > now);
        }
        if awaited.len() < AWAITED {
            awaited.insert(image, until);
        }
    }

    /// What was asked about the image is known, or will not come.
    pub fn arrived(&self, image: &ImageKey) {
        lock(&self.0.awaited).remove(image);
    }

    /// Nothing is asked any more.
    pub fn all_arrived(&self) {
        lock(&self.0.awaited).clear();
    }

    /// What wakes the reader.
    pub fn wake_by(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.wake.set(Box::new(wake));
    }

    /// The reader is about to take what there is; what it has to say when it has.
    pub fn turn(&self) -> u64 {
        lock(&self.0.turns).asked
    }

    /// The reader has taken what there was at this turn; `u64::MAX`: all that will ever come. `heads` says what the calls
    /// leave in their queues, and is asked only where somebody waits.
    pub fn has_taken(&self, turn: u64, heads: impl FnOnce() -> QueueHeads) {
        let mut turns = lock(&self.0.turns);
        if turns.done < turn {
            (turns.done, turns.heads) = (turn, heads());
            drop(turns);
            self.0.caught_up.notify_all();
        }
    }
}

impl Directory for SharedDirectory {
    fn catch_up(&self) -> QueueHeads {
        let mut turns = lock(&self.0.turns);
        turns.asked += 1;
        let turn = turns.asked;
        if let Some(wake) = self.0.wake.get() {
            wake();
        }
        let waited = self.0.caught_up.wait_timeout_while(turns, CATCH_UP, |turns| turns.done < turn);
        let (mut turns, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let heads = std::mem::take(&mut turns.heads);
        if timeout.timed_out() { QueueHeads::new() } else { heads }
    }

    fn name(&self, number: u64) -> Option<Arc<str>> {
        lock(&self.0.names).known.get(&number).cloned()
    }

    fn resource(&self, image: ImageKey) -> Option<Arc<Resource>> {
        let is_awaited = lock(&self.0.awaited).get(&image).is_some_and(|until| *until > Instant::now());
        (!is_awaited).then(|| self.registry().resource(image))
    }

    fn has_ended(&self, image: &ImageKey) -> bool {
        self.registry().has_ended(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents ever new names from taking memory without end, names in use from being forgotten, and one that was dropped
    /// from staying unknown.
    #[test]
    fn names_are_bounded_and_come_again() {
        let (mut names, most) = (Names::default(), 10_000);
        let used: Arc<str> = "/used".into();
        names.put(1, used.clone(), most);
        for number in 2..1000 {
            names.put(number, format!("/{number}").into(), most);
            assert!(names.bytes < most + 512 + AROUND);
        }
        assert!(names.known.contains_key(&1) && names.known.contains_key(&999));
        assert_eq!(names.known.len() + names.dropped.len(), 999, "each is known or to be sent again");
        let kept: Vec<Arc<str>> = (0..200).map(|number| format!("/kept-{number}").into()).collect();
        for (number, name) in kept.iter().enumerate() {
            names.put(2000 + number as u64, name.clone(), most);
        }
        assert!(names.bytes < most + 512 + AROUND, "also where all of them are in use");
    }
}
