//! What is wrong with a setting, in the two lines that the user gets to see, and the exit status
//! that goes with it. Where a value came from decides all three. Prints nothing itself.

use std::path::PathBuf;
use std::{fmt, io};

/// Why mqspan cannot run as asked.
///
/// `Display` gives the message and, on a line of its own, the hint; the caller puts `mqspan: ` in
/// front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The exit status: 1 cannot run, 2 wrong usage.
    pub status: u8,
    /// What is wrong, in one line.
    pub message: String,
    /// How to mend it, in one line; wrong usage has none.
    pub hint: Option<String>,
}

impl Error {
    /// Wrong usage: exit status 2, a single line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { status: 2, message: message.into(), hint: None }
    }

    /// mqspan cannot run: exit status 1, with how to mend it.
    pub fn cannot_run(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: 1, message: message.into(), hint: Some(hint.into()) }
    }
}

/// What stands in the way of a thread.
pub fn no_thread(error: io::Error) -> Error {
    Error::cannot_run(format!("no thread could be started: {error}"), "raise the limit of tasks (ulimit -u, TasksMax=)")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An option of the command line, with its dashes.
    Option(&'static str),
    /// An environment variable.
    Variable(String),
    /// A key of the configuration file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// As in `otlp.traces.timeout`.
        key: String,
    },
}

impl Origin {
    /// The error for a wrong value from here. `why` must not repeat a value that may be secret.
    pub fn error(&self, why: impl fmt::Display) -> Error {
        match self {
            Self::Option(name) => Error::usage(format!("{name}: {why}")),
            Self::Variable(name) => {
                Error::cannot_run(format!("{name}: {why}"), format!("correct it, or leave it out: unset {name}"))
            }
            Self::File { path, line, key } => Error::cannot_run(
                format!("{}:{line}: {key}: {why}", path.display()),
                format!("correct `{key}` there, or start without --config"),
            ),
        }
    }
}
