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

/// The pauses of a backend that fails.
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
    /// How long to wait, at least what the backend asked for; `random` lies between 0 and 1.
    pub fn next(&mut self, asked: Option<Duration>, random: f64) -> Duration {
        let spread = self.pause.mul_f64(1.0 + JITTER * (2.0 * random - 1.0));
        self.pause = self.pause.mul_f64(FACTOR).min(LONGEST);
        spread.max(asked.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents pauses that do not grow or grow without end, and a backend's wish from being ignored.
    #[test]
    fn pauses() {
        let mut backoff = Backoff::default();
        let pauses: Vec<f64> = (0..7).map(|_| backoff.next(None, 0.5).as_secs_f64()).collect();
        assert_eq!(pauses, [5.0, 7.5, 11.25, 16.875, 25.3125, 30.0, 30.0]);
        let asked = Duration::from_secs(60);
        assert_eq!(Backoff::default().next(Some(asked), 0.5), asked);
        let spread = |random| Backoff::default().next(None, random).as_secs_f64();
        assert_eq!((spread(0.0), spread(1.0)), (2.5, 7.5));
    }
}
