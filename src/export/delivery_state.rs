//! What is known of the backend of one signal, and what follows from each answer: deliver, pause, keep, switch off. The
//! time is handed in. Pure code: it sends nothing and says nothing.

use std::time::{Duration, Instant};

use super::ledger::{Outcome, Stage};
use super::reply::{Accepted, Failure};

/// A signal that the backend does not take is tried again after this long.
pub const SWITCHED_OFF: Duration = Duration::from_secs(300);
/// The first pause after an answer that says something of the backend itself, where there is a spool.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest such pause: each is twice as long as the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What an answer comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request has come to its end.
    Settled(Outcome),
    /// It is worth another attempt, not before [`DeliveryState::paused_until`].
    Again {
        /// What the backend asked for.
        after: Option<Duration>,
        /// In a few words.
        why: String,
    },
}

/// The state of one signal's deliveries.
#[derive(Debug)]
pub struct DeliveryState {
    has_spool: bool,
    /// Whether the backend has ever taken the signal.
    was_taken: bool,
    off_until: Option<Instant>,
    paused_until: Option<Instant>,
    next_pause: Duration,
}

impl DeliveryState {
    /// Nothing is known yet.
    pub fn new(has_spool: bool) -> Self {
        Self { has_spool, was_taken: false, off_until: None, paused_until: None, next_pause: FIRST_PAUSE }
    }

    /// Whether the signal is switched off now: it is neither sent nor kept.
    pub fn is_off(&self, now: Instant) -> bool {
        self.off_until.is_some_and(|until| now < until)
    }

    /// Until when nothing is sent to this backend, None where it may be now.
    pub fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| now < *until)
    }

    /// SIGHUP: the next request is tried at once.
    pub fn hangup(&mut self) {
        (self.off_until, self.paused_until, self.next_pause) = (None, None, FIRST_PAUSE);
    }

    /// What an answer that came at `now` comes to.
    pub fn answered(&mut self, now: Instant, answer: Result<Accepted, Failure>) -> Verdict {
        match answer {
            Ok(Accepted { rejected, .. }) => {
                self.works();
                Verdict::Settled(Outcome::Sent { rejected })
            }
            Err(Failure::Retry { after, why }) => {
                if let Some(after) = after {
                    self.pause(now, after);
                }
                Verdict::Again { after, why }
            }
            Err(Failure::Refused(_)) => Verdict::Settled(Outcome::Lost(Stage::Refused)),
            Err(Failure::Unimplemented(why)) if self.has_spool && self.was_taken => self.keep(now, why),
            Err(Failure::Unimplemented(_)) => {
                if !self.is_off(now) {
                    self.off_until = now.checked_add(SWITCHED_OFF);
                }
                Verdict::Settled(Outcome::Lost(Stage::SwitchedOff))
            }
            Err(Failure::Backend(why)) if self.has_spool => self.keep(now, why),
            Err(Failure::Backend(_)) => Verdict::Settled(Outcome::Lost(Stage::Refused)),
        }
    }

    fn works(&mut self) {
        self.was_taken = true;
        self.hangup();
    }

    /// Nothing is given up for what the backend says of itself: the request is kept, and draining pauses.
    fn keep(&mut self, now: Instant, why: String) -> Verdict {
        // The answers to what was under way together are one.
        if self.paused_until(now).is_none() {
            self.pause(now, self.next_pause);
            self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
        }
        Verdict::Again { after: None, why }
    }

    /// The longest wish stands. One beyond all time is a pause of some years.
    fn pause(&mut self, now: Instant, pause: Duration) {
        let until = now.checked_add(pause).or_else(|| now.checked_add(Duration::from_secs(u32::MAX.into())));
        self.paused_until = self.paused_until.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn backend() -> Result<Accepted, Failure> {
        Err(Failure::Backend("401".into()))
    }

    fn unimplemented() -> Result<Accepted, Failure> {
        Err(Failure::Unimplemented("404".into()))
    }

    fn settled(stage: Stage) -> Verdict {
        Verdict::Settled(Outcome::Lost(stage))
    }

    fn left(state: &DeliveryState, now: Instant) -> u64 {
        state.paused_until(now).map_or(0, |until| (until - now).as_secs())
    }

    /// Prevents what a backend says of itself from costing what is on disk, pauses that do not grow or grow without end,
    /// answers of one moment from doubling the pause, and a pause that outlasts success or SIGHUP.
    #[test]
    fn with_a_spool_the_backend_is_waited_for() {
        let (mut state, mut now) = (DeliveryState::new(true), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..6 {
            for _ in 0..4 {
                assert!(matches!(state.answered(now, backend()), Verdict::Again { after: None, .. }));
            }
            pauses.push(left(&state, now));
            now += Duration::from_secs(left(&state, now));
        }
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300]);
        state.answered(now, backend());
        state.hangup();
        assert_eq!(left(&state, now), 0);
        state.answered(now, backend());
        assert_eq!(left(&state, now), 30);
        state.answered(now, Ok(Accepted::default()));
        assert_eq!(left(&state, now), 0);
        assert!(matches!(state.answered(now, unimplemented()), Verdict::Again { .. }), "it has taken it before");
        assert_eq!((left(&state, now), state.is_off(now)), (30, false));
    }

    /// Prevents a signal that a backend never takes from filling the disk, and one that is switched off from staying so.
    #[test]
    fn switched_off_and_on() {
        for has_spool in [false, true] {
            let (mut state, now) = (DeliveryState::new(has_spool), Instant::now());
            assert_eq!(state.answered(now, unimplemented()), settled(Stage::SwitchedOff));
            assert!(state.is_off(now) && state.is_off(now + SWITCHED_OFF - SECOND));
            assert!(!state.is_off(now + SWITCHED_OFF));
            state.hangup();
            assert!(!state.is_off(now));
            state.answered(now, unimplemented());
            state.answered(now + SWITCHED_OFF, Ok(Accepted::default()));
            assert!(!state.is_off(now));
        }
    }

    /// Prevents a request from being tried again for ever where nothing keeps it, and one that is refused itself from
    /// stopping those behind it.
    #[test]
    fn what_is_refused() {
        let now = Instant::now();
        let refused = || Err(Failure::Refused("400".into()));
        for has_spool in [false, true] {
            let mut state = DeliveryState::new(has_spool);
            assert_eq!(state.answered(now, refused()), settled(Stage::Refused));
            assert_eq!(left(&state, now), 0);
        }
        let mut state = DeliveryState::new(false);
        assert_eq!(state.answered(now, backend()), settled(Stage::Refused));
        state.answered(now, Ok(Accepted::default()));
        assert_eq!(state.answered(now, unimplemented()), settled(Stage::SwitchedOff));
    }

    /// Prevents the other requests of a signal from ignoring the pause that the backend asked one for, and a shorter or
    /// an endless wish from doing harm.
    #[test]
    fn the_pause_is_the_backends() {
        let now = Instant::now();
        let retry = |seconds| {
            let after = Some(Duration::from_secs(seconds));
            Err(Failure::Retry { after, why: "503".into() })
        };
        for has_spool in [false, true] {
            let mut state = DeliveryState::new(has_spool);
            state.answered(now, retry(400));
            state.answered(now, retry(10));
            assert_eq!(left(&state, now), 400);
            assert_eq!(left(&state, now + 400 * SECOND), 0);
            state.answered(now, retry(u64::MAX));
            assert!(left(&state, now) > 1 << 30);
            state.hangup();
            state.answered(now, Err(Failure::Retry { after: None, why: "cut".into() }));
            assert_eq!(left(&state, now), 0, "each request has a back-off of its own");
        }
    }
}
