//! SIGHUP, passed to the outputs: files are opened anew, for logrotate(8), and what a backend did not take is tried again.

use tokio::sync::watch;

/// Counts the hangups.
#[derive(Clone, Debug, Default)]
pub struct Hangup(watch::Sender<u64>);

/// Notices each hangup once.
#[derive(Debug)]
pub struct Listener(watch::Receiver<u64>);

impl Hangup {
    /// There was one.
    pub fn raise(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Notices those from now on.
    pub fn listener(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

impl Listener {
    /// Whether there was one since the last time.
    pub fn noticed(&mut self) -> bool {
        let noticed = self.0.has_changed().unwrap_or(false);
        self.0.mark_unchanged();
        noticed
    }

    /// Returns at the next one; never where none can come any more.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
