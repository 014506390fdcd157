//! A program in a terminal of its own: what it draws, as a terminal would show it, and keys for it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    num::NonZero,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, setsid},
};

use crate::wait;

/// Modes, by which a terminal that was given back is told: those of lines, and of input.
type Modes = (LocalFlags, u32, u32);

/// The program and its terminal.
pub struct Pty {
    child: Child,
    master: Option<File>,
    terminal: OwnedFd,
    parser: Arc<Mutex<vt100::Parser>>,
    recording: Arc<Mutex<Recording>>,
    before: Modes,
    rows: u16,
    /// Has the thread that reads let go of the terminal.
    ends: Arc<AtomicBool>,
}

/// A terminal's output with its times, in asciinema's format: <https://docs.asciinema.org/manual/asciicast/v2/>.
struct Recording {
    start: Instant,
    cast: String,
    /// The first bytes of a character whose others have not come yet.
    begun: Vec<u8>,
}

impl Recording {
    fn new(width: u16, height: u16) -> Self {
        let head = serde_json::json!({"version": 2, "width": width, "height": height});
        Self { start: Instant::now(), cast: format!("{head}\n"), begun: Vec::new() }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.begun) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.begun.len(),
        };
        let rest = self.begun.split_off(whole);
        let text = String::from_utf8_lossy(&self.begun).into_owned();
        let seconds = (self.start.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        self.cast += &format!("{}\n", serde_json::json!([seconds, "o", text]));
        self.begun = rest;
    }
}

fn modes(terminal: &OwnedFd) -> Result<Modes> {
    let modes = tcgetattr(terminal)?;
    Ok((modes.local_flags, modes.input_flags.bits(), modes.output_flags.bits()))
}

fn some(lines: u16) -> Result<NonZero<u16>> {
    NonZero::new(lines).context("a terminal without any")
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Pty {
    /// Starts the program, whose terminal this is.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Result<Self> {
        let pty = openpty(&size(columns, rows), None)?;
        // A copy that the program or another test's program inherited would keep the terminal.
        for side in [&pty.master, &pty.slave] {
            fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let side = || pty.slave.try_clone();
        command.stdin(side()?).stdout(side()?).stderr(side()?);
        // SAFETY: two system calls, which take no lock and no memory.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let before = modes(&pty.slave)?;
        let child = command.spawn()?;
        drop(command);
        let parser = Arc::new(Mutex::new(vt100::Parser::new(some(rows)?, some(columns)?, 0)));
        let recording = Arc::new(Mutex::new(Recording::new(columns, rows)));
        let master = File::from(pty.master);
        let (mut reading, drawn, ends) = (master.try_clone()?, parser.clone(), Arc::new(AtomicBool::new(false)));
        let recorded = recording.clone();
        let ended = ends.clone();
        thread::spawn(move || {
            let mut chunk = [0; 1 << 16];
            while !ended.load(Ordering::SeqCst) {
                let mut ready = [PollFd::new(reading.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, PollTimeout::from(20u8)).unwrap_or(0) == 0 {
                    continue;
                }
                let Ok(read @ 1..) = reading.read(&mut chunk) else { break };
                drawn.lock().unwrap_or_else(PoisonError::into_inner).process(&chunk[..read]);
                recorded.lock().unwrap_or_else(PoisonError::into_inner).add(&chunk[..read]);
            }
        });
        Ok(Self { child, master: Some(master), terminal: pty.slave, parser, recording, before, rows, ends })
    }

    fn parser(&self) -> MutexGuard<'_, vt100::Parser> {
        self.parser.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The screen, a line each.
    pub fn screen(&self) -> String {
        self.parser().screen().contents()
    }

    /// The screen as a picture.
    pub fn picture(&self, draw: fn(&vt100::Screen) -> String) -> String {
        draw(self.parser().screen())
    }

    /// All that it wrote so far, as a recording that asciinema plays.
    pub fn recording(&self) -> String {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner).cast.clone()
    }

    /// Waits until the screen is as it should be, and returns it.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&str) -> bool) -> Result<String> {
        let outcome = wait::until(what, || Ok(Some(self.screen()).filter(|screen| is_so(screen))));
        outcome.with_context(|| format!("the screen was:\n{}", self.screen()))
    }

    /// The same of a screen that is drawn to its last line.
    pub fn until_drawn(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<String> {
        self.until(what, |screen| {
            screen.lines().count() == usize::from(self.rows)
                && screen.lines().last().is_some_and(|line| line.contains("?:help"))
                && is_so(screen)
        })
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.as_mut().context("no terminal")?.write_all(keys.as_bytes())?)
    }

    /// The terminal gets another size.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        *self.parser() = vt100::Parser::new(some(rows)?, some(columns)?, 0);
        self.rows = rows;
        let size = size(columns, rows);
        let master = self.master.as_ref().context("no terminal")?;
        // SAFETY: the kernel reads the structure.
        let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        ensure!(done == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until the program has stopped.
    pub fn stopped(&self) -> Result<()> {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        wait::until("the stop", || {
            Ok(matches!(waitid(Id::Pid(self.pid()), flags)?, WaitStatus::Stopped(..)).then_some(()))
        })
    }

    /// Takes the terminal away from the program.
    pub fn hang_up(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        self.master = None;
    }

    /// Waits for the program's end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        wait::until("the end", || Ok(self.child.try_wait()?))
    }

    /// Waits for the end, which must be a success, and for the terminal to be as it was.
    pub fn end_well(&mut self) -> Result<()> {
        let status = self.end()?;
        ensure!(status.success(), "{status}, signal {:?}:\n{}", status.signal(), self.screen());
        self.is_given_back()
    }

    /// Fails where the terminal is not as it was before the program.
    pub fn is_given_back(&self) -> Result<()> {
        wait::until("the terminal as it was", || {
            let parser = self.parser();
            let screen = parser.screen();
            let is_drawn_on = screen.alternate_screen()
                || screen.hide_cursor()
                || screen.mouse_protocol_mode() != vt100::MouseProtocolMode::None;
            Ok((!is_drawn_on && modes(&self.terminal)? == self.before).then_some(()))
        })
    }

    /// Writes the screen where the developer asks for that, to be looked at.
    pub fn keep(&self, name: &str) -> Result<()> {
        if let Some(folder) = std::env::var_os("MQSPAN_TEST_SCREENS") {
            let path = PathBuf::from(folder).join(name);
            fs::write(path.with_extension("txt"), self.screen())?;
            fs::write(path.with_extension("ansi"), self.parser().screen().contents_formatted())?;
        }
        Ok(())
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Ended already in most cases, which try_wait has seen: its id is not another's yet.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A program for a terminal that shows colours and UTF-8.
pub fn command<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
    crate::program::without_otel(&mut command);
    command
}
