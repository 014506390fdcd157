//! SIGHUP, told to the outputs: files are opened anew, for logrotate(8), and what a backend did not take is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Tells of each hangup.
#[derive(Clone, Debug, Default)]
pub struct Hangup(Arc<AtomicU64>);

/// Hears of each hangup once.
#[derive(Debug)]
pub struct Listener {
    hangup: Hangup,
    heard: u64,
}

impl Hangup {
    /// There was one.
    pub fn tell(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Hears of those from now on.
    pub fn listener(&self) -> Listener {
        Listener { hangup: self.clone(), heard: self.0.load(Relaxed) }
    }
}

impl Listener {
    /// Whether there was one since the last time.
    pub fn hears(&mut self) -> bool {
        let told = self.hangup.0.load(Relaxed);
        std::mem::replace(&mut self.heard, told) != told
    }
}
