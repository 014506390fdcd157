//! The settings of `top`: its options, and what the environment says of the terminal. Opens nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::env::Environment;
use super::filters;
use crate::cli::TopArgs;
use crate::model::error::Error;
use crate::model::filter::Filters;
use crate::model::values::{Format, SortKey};

/// The view is renewed no more often: a reading of the kernel's maps takes some milliseconds.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// Everything that `top` is told.
#[derive(Debug)]
pub struct TopSettings {
    /// Whose calls, and which.
    pub filters: Filters,
    /// Print one view so, and end.
    pub once: Option<Format>,
    /// How often the view is renewed.
    pub interval: Duration,
    /// What the queues are sorted by.
    pub sort: SortKey,
    /// Where the kernel's types are described, if the kernel itself does not.
    pub btf: Option<PathBuf>,
    /// How the terminal is drawn on.
    pub terminal: TerminalKind,
}

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalKind {
    /// Colours.
    pub color: bool,
    /// Nothing but ASCII: the Linux console's font and serial lines have no more.
    pub ascii: bool,
}

impl TopSettings {
    /// The settings with these options; `get` looks up an environment variable. Exit status 2 for an option that is wrong.
    pub fn load(args: TopArgs, get: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let interval = args.interval.unwrap_or(Duration::from_secs(1));
        if interval < LEAST_INTERVAL {
            return Err(Error::usage("--interval is 100ms at the least"));
        }
        Ok(Self {
            filters: filters(args.filters),
            once: args.once.then(|| args.format.unwrap_or(Format::Text)),
            interval,
            sort: args.sort.unwrap_or(SortKey::Depth),
            btf: args.btf,
            terminal: terminal(&Environment::new(get))?,
        })
    }
}

/// By NO_COLOR (<https://no-color.org>), TERM, and the first of the locale's variables that is set (setlocale(3)).
fn terminal(env: &Environment<'_>) -> Result<TerminalKind, Error> {
    let term = env.text("TERM")?.unwrap_or_default();
    let mut locale = None;
    for name in ["LC_ALL", "LC_CTYPE", "LANG"] {
        locale = locale.or(env.text(name)?);
    }
    // Without a locale it is C, whose programs nevertheless mostly run where UTF-8 is shown: containers set none.
    let is_utf8 = locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    });
    let plain = ["dumb", "vt52", "vt100", "vt102", "vt220", "ansi"].contains(&&*term);
    Ok(TerminalKind { color: env.text("NO_COLOR")?.is_none() && !plain, ascii: plain || term == "linux" || !is_utf8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(variables: &[(&str, &str)]) -> TerminalKind {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value));
        TopSettings::load(TopArgs::default(), &get).unwrap().terminal
    }

    /// Prevents colours where none are wanted, and characters that a terminal has not.
    #[test]
    fn what_a_terminal_shows() {
        let shown = |color, ascii| TerminalKind { color, ascii };
        assert_eq!(kind(&[("TERM", "xterm-256color"), ("LANG", "de_DE.UTF-8")]), shown(true, false));
        assert_eq!(kind(&[("TERM", "xterm")]), shown(true, false));
        assert_eq!(kind(&[("TERM", "xterm"), ("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]), shown(true, true));
        assert_eq!(kind(&[("TERM", "xterm"), ("NO_COLOR", "1"), ("LANG", "en_US.utf8")]), shown(false, false));
        assert_eq!(kind(&[("TERM", "linux")]), shown(true, true));
        assert_eq!(kind(&[("TERM", "vt220")]), shown(false, true));
    }

    /// Prevents an interval in which nothing but reading would be done.
    #[test]
    fn intervals() {
        let load = |ms| {
            let args = TopArgs { interval: Some(Duration::from_millis(ms)), ..TopArgs::default() };
            TopSettings::load(args, &|_| None).map(|settings| settings.interval.as_millis())
        };
        assert_eq!(load(100), Ok(100));
        assert_eq!(load(99).map_err(|error| error.status), Err(2));
    }
}
