//! The end of a run, in an order in which nothing is lost that can be delivered in time: no call begins any more, what the
//! rings hold is taken, delivered or spooled, counted. Detaching, which takes the kernel long, comes after all that.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::child::Child;
use super::metrics::MetricsStage;
use super::reader::Reader;
use super::signals::{SignalQueue, Wakeup};
use crate::export::Deliveries;
use crate::export::ledger::Ledger;
use crate::internal::Internal;
use crate::kernel::programs::Programs;
use crate::model::error::{Error, no_thread};

/// The end takes at most this long, all of it.
const FLUSH: Duration = Duration::from_secs(10);
/// ... of which what is not delivered has this long to be put into the spool.
const SPOOL: Duration = Duration::from_secs(3);
/// Where there is a spool, the last counts wait so long for calls that are under way; the others are told next time.
const SETTLE: Duration = Duration::from_secs(1);
/// ... and then it has this long to be counted.
const ABORT: Duration = Duration::from_secs(1);
/// What mqspan said of itself last is waited for so long, once all else is done.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What has to come to an end.
pub struct Running {
    /// The kernel side.
    pub programs: Arc<Programs>,
    /// The thread that takes its records.
    pub reader: Reader,
    /// The stage of metrics.
    pub metrics: Option<MetricsStage>,
    /// mqspan's own telemetry.
    pub internal: Internal,
    /// What is still to be delivered.
    pub deliveries: Deliveries,
    /// Where everything is counted.
    pub ledger: Arc<Ledger>,
}

/// Ends what runs; `status` becomes the command's where that ends meanwhile.
pub fn finish(
    running: Running,
    signals: &SignalQueue,
    child: Option<&mut Child>,
    runtime: &Handle,
    status: &mut u8,
) -> Result<(), Error> {
    let Running { programs, reader, metrics, mut internal, deliveries, ledger } = running;
    programs.close();
    let (aborter, hurry, has_spool) = (deliveries.aborter(), deliveries.hurrier(), deliveries.has_spool());
    let (bell, handle) = (signals.bell(), runtime.clone());
    let (send, done) = mpsc::channel();
    let at_end = ledger.clone();
    let ending = thread::Builder::new().name("mqspan-end".into()).spawn(move || {
        reader.stop();
        if let Some(metrics) = metrics {
            metrics.stop();
        }
        // The last counts are those of all calls, but for those that may stay in the spool.
        let patience = Instant::now() + if has_spool { SETTLE } else { FLUSH };
        while !at_end.is_settled() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(2));
        }
        internal.last_counts();
        deliveries.finish(&handle);
        let _ = send.send(());
        internal.stop();
        bell.ring();
    });
    ending.map_err(no_thread)?;
    let end = Instant::now() + FLUSH;
    let until = end - ABORT - if has_spool { SPOOL } else { Duration::ZERO };
    let mut is_done = wait(signals, child, until, &done, status);
    if !is_done && has_spool {
        hurry();
        is_done = done.recv_timeout(SPOOL).is_ok();
    }
    if !is_done {
        ledger.hurry();
        aborter();
        let _ = done.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
    // The channel ends with the thread.
    let _ = done.recv_timeout(end.saturating_duration_since(Instant::now()).min(LAST_WORDS));
    Ok(())
}

/// Waits until everything is delivered; false where the time was over or a second signal came.
fn wait(
    signals: &SignalQueue,
    mut child: Option<&mut Child>,
    until: Instant,
    done: &mpsc::Receiver<()>,
    status: &mut u8,
) -> bool {
    loop {
        match signals.wait(Some(until)) {
            Wakeup::Rung => {
                if done.try_recv().is_ok() {
                    return true;
                }
            }
            Wakeup::Child => *status = child.as_mut().and_then(|child| child.status()).unwrap_or(*status),
            Wakeup::End { .. } | Wakeup::TimeOut => return done.try_recv().is_ok(),
            Wakeup::Hangup | Wakeup::Stop | Wakeup::Continue => {}
        }
    }
}
