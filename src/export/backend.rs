//! What is known of the backend of one signal by its answers, and what follows: to send, to pause, to leave the signal out.
//! Pure code; the time is handed in.

use std::time::{Duration, Instant};

use super::ledger::{Outcome, Stage};
use super::reply::{Accepted, Failure};
use super::retry::{Backoff, GIVE_UP_AFTER};

/// A signal that the backend does not take is tried again after this long.
const SWITCHED_OFF: Duration = Duration::from_secs(300);
/// What the backend says of itself is not asked again before this; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// ... and this at the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A backend's wish is kept to up to this: what asks for more has lost its clock.
const LONGEST_WISH: Duration = Duration::from_secs(24 * 3600);
/// The same trouble is told of at most this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What is to be done with a request after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has come to its end.
    Settle(Outcome),
    /// It is to be tried again, once there is no pause any more.
    Again,
}

/// What is to be said, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// A warning.
    Warning(String),
    /// That the backend does not take the signal, and what it said.
    NotTaken(String),
    /// That all is well again.
    Works(String),
}

/// A backend, as one signal has it.
#[derive(Debug, Default)]
pub struct Backend {
    /// Whether requests are kept on disk until it takes them.
    keeps: bool,
    /// Whether it has ever taken a request of this signal.
    taken: bool,
    off_until: Option<Instant>,
    pause_until: Option<Instant>,
    /// What the backend itself asked for: a success of a request beside that one does not end it.
    wish_until: Option<Instant>,
    pause: Option<Duration>,
    backoff: Backoff,
    failing_since: Option<Instant>,
    said: Option<(Instant, String)>,
    /// What it warned of last: that is said once.
    warned: Option<String>,
}

impl Backend {
    /// Nothing is known yet; `keeps` where there is a spool.
    pub fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// Whether the signal is left out: what comes now goes nowhere.
    pub fn is_off(&self, now: Instant) -> bool {
        self.off_until.is_some_and(|until| now < until)
    }

    /// Until when nothing is to be sent, whoever asks.
    pub fn pause(&self, now: Instant) -> Option<Instant> {
        self.pause_until.max(self.wish_until).filter(|until| now < *until)
    }

    /// Somebody says that it is to be tried at once.
    pub fn try_at_once(&mut self) {
        self.wish_until = None;
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        (self.off_until, self.pause_until, self.pause, self.backoff) = (None, None, None, Backoff::default());
    }

    /// What comes of an attempt of a request that was first tried at `first`; `random` lies between 0 and 1.
    pub fn answered(
        &mut self,
        answer: Result<Accepted, Failure>,
        first: Instant,
        now: Instant,
        random: f64,
    ) -> (Next, Vec<Remark>) {
        let (next, said) = match answer {
            Ok(Accepted { rejected, message }) => {
                let works = self.works(now);
                let warning = match rejected {
                    0 if message.is_empty() || self.warned.as_ref() == Some(&message) => None,
                    0 => {
                        self.warned = Some(message.clone());
                        Some(Remark::Warning(format!("the backend warns: {message}")))
                    }
                    _ => self.say(&format!("the backend rejected {rejected} records"), &message, now),
                };
                return (Next::Settle(Outcome::Sent { rejected }), works.into_iter().chain(warning).collect());
            }
            Err(Failure::Retry { after, why }) => self.retry(after, &why, first, now, random),
            Err(Failure::Backend(why)) if self.keeps => self.wait_for_mending(&why, now),
            Err(Failure::Backend(why) | Failure::Refused(why)) => {
                let said = self.say("the backend refuses what it is sent", &why, now);
                (Next::Settle(Outcome::Lost(Stage::Refused)), said)
            }
            Err(Failure::Unimplemented(why)) if self.keeps && self.taken => self.wait_for_mending(&why, now),
            Err(Failure::Unimplemented(why)) => self.switch_off(&why, now),
        };
        (next, said.into_iter().collect())
    }

    fn works(&mut self, now: Instant) -> Option<Remark> {
        self.begin_anew();
        self.taken = true;
        let since = self.failing_since.take()?;
        self.said = None;
        Some(Remark::Works(format!("delivering again after {} s", now.saturating_duration_since(since).as_secs())))
    }

    fn retry(
        &mut self,
        after: Option<Duration>,
        why: &str,
        first: Instant,
        now: Instant,
        random: f64,
    ) -> (Next, Option<Remark>) {
        self.failing_since.get_or_insert(now);
        let said = self.say("the backend can't be reached or is overloaded, trying again", why, now);
        let wish = after.map(|after| after.min(LONGEST_WISH));
        // Several requests under way may fail together: they are one failure, and the longest wish holds for all.
        let pause = match self.pause(now) {
            Some(_) => wish.unwrap_or_default(),
            None => self.backoff.next(wish, random),
        };
        self.wish_until = self.wish_until.max(wish.map(|wish| now + wish));
        self.pause_until = self.pause_until.max(Some(now + pause));
        let until = self.pause_until.max(self.wish_until).unwrap_or(now);
        let given_up = !self.keeps && until.saturating_duration_since(first) > GIVE_UP_AFTER;
        match given_up {
            false => (Next::Again, said),
            true => {
                let given_up = self.say(&format!("given up after {} s", GIVE_UP_AFTER.as_secs()), why, now);
                (Next::Settle(Outcome::Lost(Stage::GivenUp)), given_up.or(said))
            }
        }
    }

    /// Nothing is given up for what the backend says of itself: who runs it may mend it.
    fn wait_for_mending(&mut self, why: &str, now: Instant) -> (Next, Option<Remark>) {
        self.failing_since.get_or_insert(now);
        if self.pause(now).is_none() {
            let pause = self.pause.map_or(FIRST_PAUSE, |pause| (2 * pause).min(LONGEST_PAUSE));
            self.pause = Some(pause);
            self.pause_until = Some(now + pause);
        }
        let said = self.say("the backend takes nothing, what it is sent is kept in the spool", why, now);
        (Next::Again, said)
    }

    /// The signal is left out; what is on disk already stays there, and is tried again after a pause.
    fn switch_off(&mut self, why: &str, now: Instant) -> (Next, Option<Remark>) {
        let was_off = self.is_off(now);
        if !was_off {
            self.off_until = Some(now + SWITCHED_OFF);
        }
        if self.keeps {
            let _ = self.wait_for_mending(why, now);
        }
        (Next::Settle(Outcome::Lost(Stage::SwitchedOff)), (!was_off).then(|| Remark::NotTaken(why.into())))
    }

    /// Something that may come with every request is said once a minute only.
    fn say(&mut self, what: &str, why: &str, now: Instant) -> Option<Remark> {
        let is_new = self.said.as_ref().is_none_or(|(at, said)| said != what || now - *at >= SAY_EVERY);
        is_new.then(|| {
            self.said = Some((now, what.to_owned()));
            Remark::Warning(if why.is_empty() { what.into() } else { format!("{what}: {why}") })
        })
    }
}

/// For how long a signal is left out.
pub fn switched_off_for() -> Duration {
    SWITCHED_OFF
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Test {
        backend: Backend,
        start: Instant,
    }

    impl Test {
        fn new(keeps: bool) -> Self {
            Self { backend: Backend::new(keeps), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// What becomes of a request that was first tried at the start, and the seconds until the next one may be sent.
        fn answer(&mut self, seconds: u64, answer: Result<Accepted, Failure>) -> (Next, u64) {
            let now = self.at(seconds);
            let (next, _) = self.backend.answered(answer, self.start, now, 0.5);
            (next, self.backend.pause(now).map_or(0, |until| (until - now).as_secs()))
        }
    }

    fn retry(after: Option<u64>) -> Result<Accepted, Failure> {
        Err(Failure::Retry { after: after.map(Duration::from_secs), why: "busy".into() })
    }

    fn of_itself() -> Result<Accepted, Failure> {
        Err(Failure::Backend("401".into()))
    }

    fn unimplemented() -> Result<Accepted, Failure> {
        Err(Failure::Unimplemented("404".into()))
    }

    const LOST: fn(Stage) -> Next = |stage| Next::Settle(Outcome::Lost(stage));
    const TAKEN: Next = Next::Settle(Outcome::Sent { rejected: 0 });

    /// Prevents a backend's wish from being ignored, from the first answer on and by the requests beside, and a request from
    /// being tried for ever where nothing keeps it.
    #[test]
    fn wishes_are_kept_to() {
        for keeps in [false, true] {
            let mut test = Test::new(keeps);
            assert_eq!(test.answer(0, retry(Some(100))), (Next::Again, 100));
            assert_eq!(test.answer(0, retry(None)), (Next::Again, 100), "a request beside it");
            assert_eq!(test.answer(1, Ok(Accepted::default())), (TAKEN, 99), "one that was sent before the wish came");
            assert_eq!(test.answer(100, Ok(Accepted::default())), (TAKEN, 0));
            let expected = if keeps { Next::Again } else { LOST(Stage::GivenUp) };
            assert_eq!(test.answer(101, retry(Some(400))), (expected, 400));
            assert_eq!(test.answer(600, retry(Some(u64::MAX))).1, LONGEST_WISH.as_secs());
        }
    }

    /// Prevents pauses that do not grow, and that grow on after the backend has worked.
    #[test]
    fn pauses_of_a_backend_to_be_mended() {
        let mut test = Test::new(true);
        let mut at = 0;
        for pause in [30, 60, 120, 240, 300, 300] {
            assert_eq!(test.answer(at, of_itself()), (Next::Again, pause));
            assert_eq!(test.answer(at + 1, of_itself()), (Next::Again, pause - 1), "one that was under way");
            at += pause;
        }
        test.backend.try_at_once();
        assert_eq!(test.backend.pause(test.at(at)), None);
        assert_eq!(test.answer(at, of_itself()), (Next::Again, 30), "begins anew at SIGHUP");
        assert_eq!(test.answer(at + 30, Ok(Accepted::default())), (TAKEN, 0));
        assert_eq!(test.answer(at + 31, of_itself()), (Next::Again, 30));
    }

    /// Prevents requests from being kept that nothing can keep, and one that is wrong by itself from blocking the others.
    #[test]
    fn what_is_refused() {
        let refused = || Err(Failure::Refused("400".into()));
        assert_eq!(Test::new(false).answer(0, of_itself()), (LOST(Stage::Refused), 0));
        for keeps in [false, true] {
            assert_eq!(Test::new(keeps).answer(0, refused()), (LOST(Stage::Refused), 0));
        }
    }

    /// Prevents a signal that the backend has taken from being thrown away for an answer of a proxy's, and one that it never
    /// takes from filling the disk.
    #[test]
    fn signals_that_are_not_taken() {
        let mut test = Test::new(true);
        assert_eq!(test.answer(0, unimplemented()), (LOST(Stage::SwitchedOff), 30), "what is on disk waits");
        assert!(test.backend.is_off(test.at(299)) && !test.backend.is_off(test.at(300)));
        assert_eq!(test.answer(300, Ok(Accepted::default())), (TAKEN, 0));
        assert_eq!(test.answer(301, unimplemented()), (Next::Again, 30));
        assert!(!test.backend.is_off(test.at(301)));

        let mut test = Test::new(false);
        assert_eq!(test.answer(0, Ok(Accepted::default())).0, TAKEN);
        assert_eq!(test.answer(1, unimplemented()), (LOST(Stage::SwitchedOff), 0));
        test.backend.try_at_once();
        assert!(!test.backend.is_off(test.at(1)), "SIGHUP");
    }

    /// Prevents the same line from coming with every request.
    #[test]
    fn told_once_a_minute() {
        let mut test = Test::new(false);
        let mut said = |seconds| {
            let (start, now) = (test.start, test.at(seconds));
            !test.backend.answered(retry(None), start, now, 0.5).1.is_empty()
        };
        assert_eq!([said(0), said(1), said(59), said(60)], [true, false, false, true]);
        let now = test.at(70);
        let (_, works) = test.backend.answered(Ok(Accepted::default()), now, now, 0.5);
        assert_eq!(works, [Remark::Works("delivering again after 70 s".into())]);
        let warns = || Ok(Accepted { rejected: 0, message: "careful".into() });
        let mut said = || test.backend.answered(warns(), now, now, 0.5).1;
        assert_eq!([said().len(), said().len()], [1, 0], "a warning is said once");
    }
}
