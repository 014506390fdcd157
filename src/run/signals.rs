//! The signals that end a run or are passed on, taken one at a time from a descriptor; and other threads' word that
//! something has happened.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// siginfo_t.si_code of a signal that the kernel sent (sigaction(2)), such as by a terminal's ^C: all of the foreground
/// group gets it.
const SI_KERNEL: i32 = 0x80;

/// What woke the waiting thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// SIGINT or SIGTERM.
    End {
        /// Which.
        signal: Signal,
        /// Whether a terminal sent it to the whole foreground group.
        from_terminal: bool,
    },
    /// SIGHUP.
    Hangup,
    /// SIGTSTP: the terminal is wanted back for a while.
    Stop,
    /// SIGCONT: the terminal is this program's again.
    Continue,
    /// A child changed its state.
    Child,
    /// Another thread said so.
    Rung,
    /// The time is over.
    TimeOut,
}

/// Set where SIGPIPE was ignored when mqspan was started: Rust ignores it before `main`.
static IGNORED_SIGPIPE: AtomicBool = AtomicBool::new(false);

/// Remembers what Rust's start changes; to be called before it, from the program's initialisers.
pub extern "C" fn remember() {
    // SAFETY: asks only; the structure is filled by the call.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action);
        action
    };
    IGNORED_SIGPIPE.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
}

/// What mqspan was started with, for a command that it runs.
#[derive(Debug)]
pub struct Inherited {
    mask: SigSet,
    ignores_child: bool,
}

impl Inherited {
    /// Gives this process the mask and the dispositions that mqspan was started with.
    pub fn restore(&self) -> nix::Result<()> {
        set_ignored(Signal::SIGPIPE, IGNORED_SIGPIPE.load(Ordering::Relaxed))?;
        set_ignored(Signal::SIGCHLD, self.ignores_child)?;
        self.mask.thread_set_mask()
    }
}

/// Ignores a signal, or not; returns whether it was ignored.
fn set_ignored(signal: Signal, ignored: bool) -> nix::Result<bool> {
    let handler = if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
    // SAFETY: no handler of ours is set.
    let before = unsafe { sigaction(signal, &SigAction::new(handler, SaFlags::empty(), SigSet::empty())) }?;
    Ok(matches!(before.handler(), SigHandler::SigIgn))
}

/// The signals, kept from interrupting anything.
#[derive(Debug)]
pub struct SignalQueue {
    descriptor: SignalFd,
    inherited: Inherited,
    bell: Bell,
}

/// Wakes the thread that waits for signals.
#[derive(Clone, Debug)]
pub struct Bell(Arc<EventFd>);

impl Bell {
    /// Rings; twice is as once.
    pub fn ring(&self) {
        // A counter that is full is one that has been rung.
        let _ = self.0.write(1);
    }
}

impl SignalQueue {
    /// Blocks the signals in this thread and in those that it starts from now on.
    pub fn take() -> io::Result<Self> {
        Self::take_all(&[])
    }

    /// The same, and the job control of whoever has the terminal: [`Wakeup::Stop`] and [`Wakeup::Continue`].
    pub fn take_with_job_control() -> io::Result<Self> {
        Self::take_all(&[Signal::SIGTSTP, Signal::SIGCONT])
    }

    fn take_all(more: &[Signal]) -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].iter().chain(more) {
            signals.add(*signal);
        }
        let mask = SigSet::thread_get_mask()?;
        // Ignored, a child's end would tell nobody its status.
        let ignores_child = set_ignored(Signal::SIGCHLD, false)?;
        signals.thread_block()?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { descriptor, inherited: Inherited { mask, ignores_child }, bell: Bell(Arc::new(bell)) })
    }

    /// What mqspan was started with.
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// What wakes the waiting thread.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Waits for the next event, until `until` where there is one.
    pub fn wait(&self, until: Option<Instant>) -> Wakeup {
        loop {
            if let Ok(Some(info)) = self.descriptor.read_signal() {
                match Signal::try_from(info.ssi_signo.cast_signed()) {
                    Ok(Signal::SIGCHLD) => return Wakeup::Child,
                    Ok(Signal::SIGHUP) => return Wakeup::Hangup,
                    Ok(Signal::SIGTSTP) => return Wakeup::Stop,
                    Ok(Signal::SIGCONT) => return Wakeup::Continue,
                    Ok(signal) => return Wakeup::End { signal, from_terminal: info.ssi_code == SI_KERNEL },
                    Err(_) => continue,
                }
            }
            if self.bell.0.read().is_ok() {
                return Wakeup::Rung;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Wakeup::TimeOut;
            }
            wait(&[self.descriptor.as_fd(), self.bell.0.as_fd()], left);
        }
    }
}

fn wait(descriptors: &[BorrowedFd<'_>], most: Option<Duration>) {
    let mut descriptors: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN)).collect();
    let most = match most {
        // Rounded up: a rest below a millisecond must not become a busy loop.
        Some(most) => PollTimeout::try_from(most + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    // Ended by a signal or for want of memory, it is only shorter.
    let _: Result<i32, Errno> = poll(&mut descriptors, most);
}
