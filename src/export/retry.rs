//! When to try again: the Collector's exporters' way (exporterhelper, `retry_on_failure`). Pure code.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_secs(5);
/// Each pause is as much longer than the one before.
const FACTOR: f64 = 1.5;
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);
/// A pause is spread by this part of it to either side, so that many senders do not come back at once.
const JITTER: f64 = 0.5;
/// After this long in all a request is given up.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// The pauses of one request.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST }
    }
}

impl Backoff {
    /// How long to wait, at least what the backend asked for; None once the time is over. `elapsed` counts from the
    /// first attempt, `random` lies between 0 and 1.
    pub fn next(&mut self, asked: Option<Duration>, elapsed: Duration, random: f64) -> Option<Duration> {
        let spread = self.pause.mul_f64(1.0 + JITTER * (2.0 * random - 1.0));
        self.pause = self.pause.mul_f64(FACTOR).min(LONGEST);
        let pause = spread.max(asked.unwrap_or_default());
        (elapsed + pause <= GIVE_UP_AFTER).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents pauses that do not grow or grow without end, a request that is tried for ever, and a backend's wish
    /// from being ignored.
    #[test]
    fn pauses() {
        let (mut backoff, mut elapsed) = (Backoff::default(), Duration::ZERO);
        let mut pauses = Vec::new();
        while let Some(pause) = backoff.next(None, elapsed, 0.5) {
            elapsed += pause;
            pauses.push(pause.as_secs_f64());
        }
        assert_eq!(pauses[..6], [5.0, 7.5, 11.25, 16.875, 25.3125, 30.0]);
        assert_eq!(pauses.len(), 12, "95.9 s for these, and 30 s each for the rest");

        let asked = Some(Duration::from_secs(60));
        assert_eq!(Backoff::default().next(asked, Duration::ZERO, 0.5), asked);
        assert_eq!(Backoff::default().next(Some(2 * GIVE_UP_AFTER), Duration::ZERO, 0.5), None);
        assert_eq!(Backoff::default().next(None, GIVE_UP_AFTER, 0.5), None);
        let spread = |random| Backoff::default().next(None, Duration::ZERO, random).map(|pause| pause.as_secs_f64());
        assert_eq!((spread(0.0), spread(1.0)), (Some(2.5), Some(7.5)));
    }
}
