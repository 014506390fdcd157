//! Progress on a terminal: one line on stderr while something takes long. It is drawn anew a few times a second at most, and
//! gone once that is done. What is written to the same terminal meanwhile makes room first. Knows nothing of what takes long.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What takes less is not worth a line.
const PATIENCE: Duration = Duration::from_millis(500);
/// The line is drawn so often, and not sooner after something else was written.
const AGAIN: Duration = Duration::from_millis(250);

/// The terminal's last line, of which there is one.
static LAST: Mutex<LastLine> = Mutex::new(LastLine { is_drawn: false, free_from: None });

/// What stands in the terminal's last line.
#[derive(Debug)]
struct LastLine {
    is_drawn: bool,
    /// Until then it belongs to somebody else.
    free_from: Option<Instant>,
}

impl LastLine {
    fn of_all() -> MutexGuard<'static, Self> {
        LAST.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is longer than the terminal is wide is cut: what wraps could not be taken away again.
    fn draw(&mut self, to: &mut impl Write, text: &str, columns: usize, now: Instant) {
        if self.free_from.is_none_or(|from| now >= from) {
            let shown: String = text.chars().take(columns.saturating_sub(1)).collect();
            // Where the terminal is gone there is nobody to tell.
            let _ = write!(to, "\r{shown}\x1b[K").and_then(|()| to.flush());
            self.is_drawn = true;
        }
    }

    fn erase(&mut self, to: &mut impl Write) {
        if std::mem::take(&mut self.is_drawn) {
            let _ = write!(to, "\r\x1b[K").and_then(|()| to.flush());
        }
    }
}

/// How wide the terminal on stderr is; as most are where it does not say.
fn columns() -> usize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel fills the structure, which lives until then.
    match unsafe { libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, &raw mut size) } {
        0 if size.ws_col > 0 => size.ws_col.into(),
        _ => 80,
    }
}

/// Something is about to be written where the line may stand.
pub fn make_room() {
    let mut last = LastLine::of_all();
    if last.is_drawn {
        last.erase(&mut io::stderr());
        last.free_from = Some(Instant::now() + AGAIN);
    }
}

/// Shows that something is under way, until it is dropped.
#[derive(Debug)]
pub struct ProgressLine {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ProgressLine {
    /// Shows what `text` says, with the seconds it has taken, once it has taken long; nothing where it is not `wanted`, and
    /// where stderr is no terminal that can draw a line anew.
    pub fn start(wanted: bool, text: impl Fn() -> String + Send + 'static) -> Self {
        let can_draw = || io::stderr().is_terminal() && env::var_os("TERM").is_some_and(|name| name != "dumb");
        if !(wanted && can_draw()) {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("mqspan-progress".into()).spawn(move || {
            let since = Instant::now();
            let mut pause = PATIENCE;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let line = format!("mqspan: {} ({} s)", text(), since.elapsed().as_secs());
                LastLine::of_all().draw(&mut io::stderr(), &line, columns(), Instant::now());
                pause = AGAIN;
            }
            LastLine::of_all().erase(&mut io::stderr());
        });
        // Without a thread there is no line, and all else goes on.
        Self { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents what is written beside the line from standing in the middle of it, and the line from being left behind.
    #[test]
    fn one_line_that_goes() {
        let now = Instant::now();
        let mut last = LastLine { is_drawn: false, free_from: None };
        let mut terminal = vt100::Parser::new(3.try_into().unwrap(), 20.try_into().unwrap(), 0);
        let mut shown = |last: &mut LastLine, act: &dyn Fn(&mut LastLine, &mut Vec<u8>)| {
            let mut out = Vec::new();
            act(last, &mut out);
            terminal.process(&out);
            terminal.screen().contents()
        };
        assert_eq!(shown(&mut last, &|last, out| last.erase(out)), "", "there is none yet");
        assert_eq!(shown(&mut last, &|last, out| last.draw(out, "attaching (1 s)", 20, now)), "attaching (1 s)");
        let long = "one that is longer than that (2 s)";
        assert_eq!(shown(&mut last, &|last, out| last.draw(out, long, 20, now)), &long[..19]);
        assert_eq!(shown(&mut last, &|last, out| last.draw(out, "shorter", 20, now)), "shorter");
        assert_eq!(shown(&mut last, &|last, out| last.erase(out)), "");
        last.free_from = Some(now + AGAIN);
        assert_eq!(shown(&mut last, &|_, out| out.extend(b"a line\r\n")), "a line");
        assert_eq!(shown(&mut last, &|last, out| last.draw(out, "attaching", 20, now)), "a line", "too soon");
        assert_eq!(shown(&mut last, &|last, out| last.draw(out, "on", 20, now + AGAIN)), "a line\non");
    }

    /// Prevents anything from being drawn where nobody asked for it, or stderr is not a terminal.
    #[test]
    fn not_where_it_is_not_wanted() {
        let progress = ProgressLine::start(false, || unreachable!("nobody asked"));
        assert!(progress.thread.is_none() && !LastLine::of_all().is_drawn);
    }
}
