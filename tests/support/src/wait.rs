//! Waiting for something to become true: polled to a deadline, never a fixed sleep.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything may take on a busy machine before it counts as never.
pub const LONG: Duration = Duration::from_secs(180);

const POLL: Duration = Duration::from_millis(5);

/// Asks until there is an answer; `what` says in the error what there was none of.
pub fn until<T>(what: &str, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_every(POLL, what, ask)
}

/// The same of what is asked at some cost, and so not more often than this.
pub fn until_every<T>(pause: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {LONG:?} for {what}");
        }
        thread::sleep(pause);
    }
}
