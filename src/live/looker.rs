//! Looks at what belongs to other processes on a thread of its own, since that may wait for them: their /proc takes locks
//! that they can hold, and paths lead through their mounts. Whoever asks takes an answer that is there, or goes on without.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A thread that looks when it is asked. There is never more than one look under way, however long it takes.
#[derive(Debug)]
pub struct Looker<T> {
    shared: Arc<LookerState<T>>,
}

#[derive(Debug)]
struct LookerState<T> {
    state: Mutex<Looking<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Looking<T> {
    is_asked: bool,
    /// Since when a look is under way.
    looking: Option<Instant>,
    answer: Option<Sight<T>>,
    /// How many answers there were.
    answers: u64,
    is_over: bool,
}

#[derive(Debug)]
struct Sight<T> {
    asked_at: Instant,
    what: Arc<T>,
}

impl<T> LookerState<T> {
    fn state(&self) -> MutexGuard<'_, Looking<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + Sync + 'static> Looker<T> {
    /// Starts the thread; `look` is what it does.
    pub fn start(look: impl Fn() -> T + Send + 'static) -> io::Result<Self> {
        let state = Looking { is_asked: false, looking: None, answer: None, answers: 0, is_over: false };
        let shared = Arc::new(LookerState { state: Mutex::new(state), changed: Condvar::new() });
        let seen = shared.clone();
        thread::Builder::new().name("mqspan-live".into()).spawn(move || {
            loop {
                let asleep = |state: &mut Looking<T>| !state.is_asked && !state.is_over;
                let state = seen.changed.wait_while(seen.state(), asleep);
                let mut state = state.unwrap_or_else(PoisonError::into_inner);
                if state.is_over {
                    return;
                }
                let asked_at = Instant::now();
                (state.is_asked, state.looking) = (false, Some(asked_at));
                drop(state);
                let what = Arc::new(look());
                let mut state = seen.state();
                (state.looking, state.answer) = (None, Some(Sight { asked_at, what }));
                state.answers += 1;
                drop(state);
                seen.changed.notify_all();
            }
        })?;
        Ok(Self { shared })
    }

    /// Asks for a look, unless one is under way, and returns its answer if that comes within `patience`, else the last one,
    /// if it is no older than `most`.
    pub fn ask(&self, patience: Duration, most: Duration) -> Option<Arc<T>> {
        let mut state = self.shared.state();
        if state.looking.is_none() {
            state.is_asked = true;
            self.shared.changed.notify_all();
        }
        let before = state.answers;
        let is_the_last = |state: &mut Looking<T>| state.answers == before;
        // A look that takes longer than this one's patience will not become quicker by waiting for it each time.
        let patience =
            if state.looking.is_some_and(|since| since.elapsed() > patience) { Duration::ZERO } else { patience };
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, patience, is_the_last)
            .unwrap_or_else(PoisonError::into_inner);
        let answer = state.answer.as_ref().filter(|answer| answer.asked_at.elapsed() <= most)?;
        Some(answer.what.clone())
    }

    /// Since how long a look is under way.
    pub fn looking_for(&self) -> Option<Duration> {
        self.shared.state().looking.map(|since| since.elapsed())
    }
}

impl<T> Drop for Looker<T> {
    /// A look that never ends is left behind.
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Prevents a look at a process that hangs from stopping whoever asks, from being begun again and again, and what was
    /// seen long ago from being shown for ever.
    #[test]
    fn a_look_that_hangs() {
        let (go_on, gate) = mpsc::channel();
        let (began, begun) = mpsc::channel();
        let looker = Looker::start(move || {
            began.send(()).unwrap();
            gate.recv().unwrap_or(0)
        })
        .unwrap();
        go_on.send(1).unwrap();
        assert_eq!(looker.ask(LONG, LONG).as_deref(), Some(&1));
        begun.recv().unwrap();
        assert_eq!(looker.ask(Duration::ZERO, LONG).as_deref(), Some(&1), "the one before, for now");
        begun.recv().unwrap();
        for _ in 0..100 {
            assert_eq!(looker.ask(Duration::ZERO, LONG).as_deref(), Some(&1));
            assert_eq!(looker.ask(Duration::ZERO, Duration::ZERO), None, "too old");
        }
        assert!(looker.looking_for().is_some() && begun.try_recv().is_err(), "one look at a time");
        go_on.send(2).unwrap();
        go_on.send(3).unwrap();
        while looker.ask(LONG, LONG).as_deref() != Some(&3) {}
    }
}
