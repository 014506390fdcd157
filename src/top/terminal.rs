//! The terminal: taken, given back however the program ends, and what happens at it. The one part of the live view that
//! is not pure.

use std::io::{self, BufWriter, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, DisableMouseCapture, EnableMouseCapture, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode,
};
use ratatui::layout::Rect;
use ratatui::{Frame, Terminal};

/// Bytes of a screen that are written at once.
const SCREEN: usize = 64 << 10;
/// So many events may wait.
const EVENTS: usize = 256;

/// Whether the terminal is taken: the panic hook asks, on any thread.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the terminal: its other screen, each key as it is pressed, the mouse.
fn take() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(io::stdout(), EnterAlternateScreen, Hide, EnableMouseCapture)
}

/// Leaves the terminal as it was, once; where it is gone there is nothing to restore.
pub fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), EndSynchronizedUpdate, DisableMouseCapture, LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// The terminal, as long as it is drawn on.
#[derive(Debug)]
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    events: Receiver<Event>,
}

impl Screen {
    /// Takes the terminal; `wake` is called when something has happened at it.
    pub fn take(wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        take()?;
        let terminal = Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(SCREEN, io::stdout())));
        let (send, events) = mpsc::sync_channel(EVENTS);
        // Ends with the program: it is asleep in a read then.
        let reading = thread::Builder::new().name("mqspan-keys".into()).spawn(move || {
            while let Ok(event) = event::read() {
                if send.send(event).is_err() {
                    break;
                }
                wake();
            }
            // The channel's end says that the terminal is gone.
            drop(send);
            wake();
        });
        match (terminal, reading) {
            (Ok(terminal), Ok(_)) => Ok(Self { terminal, events }),
            (Err(error), _) | (_, Err(error)) => {
                restore();
                Err(error)
            }
        }
    }

    /// What has happened since; an error where the terminal is gone.
    pub fn events(&self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            match self.events.try_recv() {
                Ok(event) => events.push(event),
                Err(mpsc::TryRecvError::Empty) if has_hung_up() => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(mpsc::TryRecvError::Empty) => return Ok(events),
                Err(mpsc::TryRecvError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Draws; what has not changed is not written.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        execute!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        self.terminal.draw(draw)?;
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate)?;
        self.terminal.backend_mut().flush()
    }

    /// The next drawing writes all of it.
    pub fn clear(&mut self) -> io::Result<()> {
        // Not by Terminal::clear, which asks the terminal where its cursor is and waits for the answer, that the thread which
        // reads the keys would get.
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::new(0, 0, size.width, size.height))
    }

    /// The terminal is this program's again.
    pub fn take_again(&mut self) -> io::Result<()> {
        // Whoever had it meanwhile may have changed its modes: those that are to be given back are asked for anew.
        restore();
        take()?;
        self.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether nobody holds the other side of the terminal any more.
fn has_hung_up() -> bool {
    let stdin = io::stdin();
    let mut terminal = [PollFd::new(std::os::fd::AsFd::as_fd(&stdin), PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    poll(&mut terminal, PollTimeout::ZERO).is_ok()
        && terminal[0].revents().is_some_and(|events| events.intersects(gone))
}
