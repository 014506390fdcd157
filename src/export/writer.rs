//! Writes to a file or to stdout, on a thread of its own: a slow disk or a terminal that is held stops the queue, not
//! the reader. Knows nothing of what it writes.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc::UnboundedReceiver;
use tracing::warn;

use super::hangup::Listener;
use super::ledger::{Outcome, Stage};
use super::queue::Queued;
use crate::model::error::Error;
use crate::progress;

/// Where it is written.
#[derive(Debug)]
pub enum Target {
    /// A file, as it is named.
    File {
        /// Its name.
        path: PathBuf,
        /// Opened for appending.
        file: File,
        /// Whether it ends in the middle of a line: mqspan was killed, or the disk was full.
        torn: bool,
    },
    /// Standard output.
    Stdout {
        /// Whether people look at it.
        is_terminal: bool,
    },
}

impl Target {
    /// Standard output as it is.
    pub fn stdout() -> Self {
        Self::Stdout { is_terminal: io::stdout().is_terminal() }
    }

    /// Opens a file to append to it: a service that is started anew must not lose what it wrote before.
    pub fn file(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
            Error::cannot_run(
                format!("--output file:{}: {error}", path.display()),
                "name a file that mqspan may write, in a folder that exists",
            )
        })?;
        Ok(Self::File { path: path.into(), torn: ends_torn(path, &file), file })
    }

    /// Opens the file that has the name now. Where that is not possible the old one goes on.
    fn reopen(&mut self) {
        if let Self::File { path, .. } = self {
            match Self::file(path) {
                Ok(opened) => *self = opened,
                Err(error) => warn!("{}; the file that was open goes on", error.message),
            }
        }
    }

    fn write(&mut self, body: &[u8]) -> io::Result<()> {
        match self {
            Self::File { file, torn, .. } => {
                let before: &[u8] = if *torn { b"\n" } else { b"" };
                let written = file.write_all(&[before, body, b"\n"].concat());
                *torn = written.is_err();
                written
            }
            Self::Stdout { is_terminal } => {
                if *is_terminal {
                    progress::make_room();
                }
                io::stdout().lock().write_all(body).and_then(|()| io::stdout().lock().flush())
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Stdout { .. } => "stdout".into(),
        }
    }
}

/// A pipe without a reader, or a terminal that is gone.
fn nobody_reads(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO)
}

/// Whether a file has a last line that never ended. What is no file, such as a pipe, has none.
fn ends_torn(path: &Path, appended: &File) -> bool {
    let last = || {
        appended.metadata().ok().filter(|meta| meta.is_file() && meta.len() > 0)?;
        let mut file = File::open(path).ok()?;
        file.seek(SeekFrom::End(-1)).ok()?;
        let mut last = [0];
        file.read_exact(&mut last).ok()?;
        Some(last[0])
    };
    last().is_some_and(|last| last != b'\n')
}

/// Starts the thread. It ends when the queue has ended, or calls `closed` and ends when nobody reads stdout any more.
pub fn start(
    mut target: Target,
    mut queue: UnboundedReceiver<Queued>,
    mut hangup: Listener,
    closed: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("mqspan-writer".into()).spawn(move || {
        let mut said = false;
        while let Some(queued) = queue.blocking_recv() {
            if hangup.noticed() {
                target.reopen();
            }
            match target.write(&queued.request.body) {
                Ok(()) => {
                    said = false;
                    queued.settle(Outcome::Sent { rejected: 0 });
                }
                Err(error) => {
                    queued.settle(Outcome::Lost(Stage::Write));
                    if matches!(target, Target::Stdout { .. }) && nobody_reads(&error) {
                        queue.close();
                        closed();
                        break;
                    }
                    // Once until it works again: a full disk fails every write.
                    if !std::mem::replace(&mut said, true) {
                        warn!("{} can't be written: {error}; what should go there is lost until it can", target.name());
                    }
                }
            }
        }
        while let Ok(queued) = queue.try_recv() {
            queued.settle(Outcome::Lost(Stage::Write));
        }
    })
}
