//! The stage of `--stuck`: looks at those who wait, several times in the duration that makes a call stuck, on a thread of its
//! own, and passes what is to be said to the reader's. Waits for nothing; where the reader is behind, what it has not taken is
//! dropped and counted.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::time::ClockId;
use tracing::warn;

use crate::clock;
use crate::live::Lookout;
use crate::live::calls::{ContainerIds, InCall};
use crate::model::filter::Filters;
use crate::model::stuck::{StuckCall, StuckTable};

/// So much may wait for the reader.
pub const WAITING: usize = 4096;
/// Looks are at least and at most so far apart.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What the stage works with.
pub struct StuckOptions {
    /// Where it looks.
    pub lookout: Lookout,
    /// Whose calls.
    pub filters: Arc<Filters>,
    /// The number of mqspan's own ipc namespace.
    pub own_ipc_namespace: u32,
    /// A call is stuck from this duration on.
    pub least: Duration,
    /// So many are said in a second of each process and operation; 0: all.
    pub most: u64,
    /// Whether a process, by its number on the host, is the command's.
    pub is_traced: Box<dyn Fn(u32) -> bool + Send>,
}

/// The running thread.
#[derive(Debug)]
pub struct StuckStage {
    thread: JoinHandle<()>,
    end: Sender<()>,
}

impl StuckStage {
    /// Looks a last time: what has ended since is told.
    pub fn stop(self) {
        // A thread that died is told of elsewhere.
        let _ = self.end.send(());
        let _ = self.thread.join();
    }
}

/// Starts the thread. `wake` has the reader look.
pub fn start(
    options: StuckOptions,
    to: SyncSender<StuckCall>,
    wake: impl Fn() + Send + 'static,
) -> io::Result<StuckStage> {
    let least_ns = u64::try_from(options.least.as_nanos()).unwrap_or(u64::MAX);
    let pause = (options.least / 8).clamp(PAUSES.0, PAUSES.1);
    let mut table = StuckTable::new(least_ns, options.most);
    let with_container = !options.filters.container.picks().is_empty();
    let (end, ended) = mpsc::channel();
    let look = move || {
        let mut dropped = 0_u64;
        let mut is_last = false;
        while !is_last {
            is_last = !matches!(ended.recv_timeout(pause), Err(RecvTimeoutError::Timeout));
            let Some(waiters) = options.lookout.waiters() else { continue };
            let now_ns = clock::now_ns(ClockId::CLOCK_MONOTONIC).max(0).unsigned_abs();
            let mut containers = with_container.then(ContainerIds::default);
            let wanted = waiters.into_iter().filter(|waiter| {
                (options.is_traced)(waiter.host_pid)
                    && InCall::of(waiter.clone(), now_ns, containers.as_mut())
                        .is_asked_for(&options.filters, options.own_ipc_namespace)
            });
            let told = table.look(now_ns, wanted.collect(), || options.lookout.holders());
            let any = !told.is_empty();
            for stuck in told {
                match to.try_send(stuck) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => dropped += 1,
                    Err(TrySendError::Disconnected(_)) => return,
                }
            }
            if any {
                wake();
            }
            if dropped > 0 {
                warn!("{dropped} calls that are stuck were not told of: too many at once");
                dropped = 0;
            }
        }
    };
    let thread = thread::Builder::new().name("mqspan-stuck".into()).spawn(look)?;
    Ok(StuckStage { thread, end })
}
