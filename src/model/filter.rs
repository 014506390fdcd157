//! Whose calls are kept: the values of a filter option, and which of them ever matched. Values of
//! one option are or-ed, those with a `!` exclude. Pure code: applying the filters to a call, in
//! the kernel or after it, is done elsewhere.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::glob::Glob;
use super::values::{Namespace, Op};

/// One value of a filter option, `!` in front negates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick<T> {
    /// What is picked.
    pub value: T,
    /// Whether it is excluded rather than included.
    pub exclude: bool,
}

impl<T: FromStr> FromStr for Pick<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        let (value, exclude) = match text.strip_prefix('!') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        Ok(Self { value: value.parse()?, exclude })
    }
}

impl<T: fmt::Display> fmt::Display for Pick<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.exclude { "!" } else { "" };
        write!(f, "{mark}{}", self.value)
    }
}

/// All values of one filter option. An empty filter keeps everything.
#[derive(Debug)]
pub struct Filter<T> {
    picks: Vec<Pick<T>>,
    // One for each pick. Atomic only so that settings can be shared between threads.
    matched: Vec<AtomicBool>,
}

impl<T> Default for Filter<T> {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<T> Filter<T> {
    /// A filter with these values; none of them has matched yet.
    pub fn new(picks: Vec<Pick<T>>) -> Self {
        let matched = picks.iter().map(|_| AtomicBool::new(false)).collect();
        Self { picks, matched }
    }

    /// The values, in the order they were given.
    pub fn picks(&self) -> &[Pick<T>] {
        &self.picks
    }

    /// Whether it keeps everything.
    pub fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }

    /// Whether a call is kept, where `matches` says which values it matches: none that excludes,
    /// and one that includes unless all exclude. Remembers every value that matched.
    pub fn keeps(&self, matches: impl Fn(&T) -> bool) -> bool {
        let (mut included, mut excluded, mut only_excludes) = (false, false, true);
        for (pick, matched) in self.picks.iter().zip(&self.matched) {
            only_excludes &= pick.exclude;
            if matches(&pick.value) {
                matched.store(true, Ordering::Relaxed);
                *(if pick.exclude { &mut excluded } else { &mut included }) = true;
            }
        }
        !excluded && (included || only_excludes)
    }

    /// As [`Self::keeps`], for what is no call: nothing is remembered.
    pub fn passes(&self, matches: impl Fn(&T) -> bool) -> bool
    where
        T: Clone,
    {
        Self::new(self.picks.clone()).keeps(matches)
    }

    /// The including values that no call has matched so far, for the line that says so at the end.
    pub fn unmatched(&self) -> impl Iterator<Item = &Pick<T>> {
        self.picks
            .iter()
            .zip(&self.matched)
            .filter(|(pick, matched)| !pick.exclude && !matched.load(Ordering::Relaxed))
            .map(|(pick, _)| pick)
    }
}

impl Filter<Glob> {
    /// As [`Self::keeps_name`], for what is no call: nothing is remembered.
    pub fn passes_name(&self, name: Option<&str>) -> bool {
        self.passes(|glob| name.is_some_and(|name| glob.matches(name)))
    }

    /// Whether a call with this name is kept; one without a name passes a filter that only
    /// excludes.
    pub fn keeps_name(&self, name: Option<&str>) -> bool {
        self.keeps(|glob| name.is_some_and(|name| glob.matches(name)))
    }
}

/// The filter options; a call must pass all of them. By default every call does, but none is traced.
#[derive(Debug, Default)]
pub struct Filters {
    /// `--call`: the calls that are traced; all six unless some are named.
    pub call: BTreeSet<Op>,
    /// `--queue`: the queue's name with its leading slash.
    pub queue: Filter<Glob>,
    /// `--comm`: the thread's name.
    pub comm: Filter<Glob>,
    /// `--pid`: the process (thread group) as the host numbers it.
    pub pid: Filter<u32>,
    /// `--uid`: the effective user id in the initial user namespace.
    pub uid: Filter<u32>,
    /// `--container`: how the id of the container begins.
    pub container: Filter<String>,
    /// `--ipc-namespace`.
    pub ipc_namespace: Filter<Namespace>,
    /// `--failed`: only calls that returned a negative value.
    pub failed: bool,
    /// `--min-duration`: only calls at least this long, from entry to exit.
    pub min_duration: Option<Duration>,
}

impl Filters {
    /// Whether only some callers are of interest.
    pub fn picks_callers(&self) -> bool {
        let Self { comm, pid, uid, container, ipc_namespace, .. } = self;
        !(comm.picks.is_empty()
            && pid.picks.is_empty()
            && uid.picks.is_empty()
            && container.picks.is_empty()
            && ipc_namespace.picks.is_empty())
    }
}

/// An ipc namespace; `!all` is refused, nothing would be left.
pub fn namespace(text: &str) -> Result<Pick<Namespace>, String> {
    match text {
        "!all" => Err("!all leaves no call to trace".into()),
        _ => text.parse(),
    }
}

/// A process or user id.
pub fn number(text: &str) -> Result<Pick<u32>, String> {
    text.parse().map_err(|_| "not a number".into())
}

/// The beginning of a container's id.
pub fn container(text: &str) -> Result<Pick<String>, String> {
    let pick: Pick<String> = text.parse().map_err(|_| "not an id")?;
    let is_id = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    match pick.value.len() {
        1..=64 if pick.value.bytes().all(is_id) => Ok(pick),
        _ => Err("not the beginning of a container's id: digits 0 to f, at most 64".into()),
    }
}

/// A queue pattern: where it begins with none of `/ * ? [` it gets the slash that every name has.
pub fn queue(text: &str) -> Result<Pick<Glob>, String> {
    let Pick { value, exclude } = text.parse::<Pick<Glob>>()?;
    let text = value.to_string();
    let value = if text.starts_with(['/', '*', '?', '[']) { value } else { format!("/{text}").parse()? };
    Ok(Pick { value, exclude })
}

/// A template, written as a queue pattern is.
pub fn template(text: &str) -> Result<Glob, String> {
    let Pick { value, exclude } = queue(text)?;
    match exclude {
        true => Err("a template can't be negated".into()),
        false => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter<T: FromStr>(values: &[&str]) -> Filter<T>
    where
        T::Err: fmt::Debug,
    {
        Filter::new(values.iter().map(|v| v.parse().unwrap()).collect())
    }

    /// Prevents and-ing the values of an option, an exclusion that a later value undoes, and the
    /// loss of calls without a name under a filter that only excludes.
    #[test]
    fn values_are_ored_and_exclusions_win() {
        for (values, name, expected) in [
            (&[] as &[&str], None, true),
            (&[], Some("/a"), true),
            (&["/a", "/b"], Some("/b"), true),
            (&["/a", "/b"], Some("/c"), false),
            (&["/a"], None, false),
            (&["*"], None, false),
            (&["!/a"], Some("/a"), false),
            (&["!/a"], Some("/b"), true),
            (&["!/a"], None, true),
            (&["/*", "!/a"], Some("/a"), false),
            (&["!/a", "/*"], Some("/a"), false),
            (&["!/a", "/*"], Some("/b"), true),
            (&["!/a", "/*"], None, false),
        ] {
            let keeps = filter::<Glob>(values).keeps_name(name);
            assert_eq!(keeps, expected, "{values:?} on {name:?}");
        }
    }

    /// Prevents a value that did match from being reported as useless, because another value was
    /// looked at first, and exclusions from being reported at all.
    #[test]
    fn every_value_that_matched_is_remembered() {
        let queue = filter::<Glob>(&["/a*", "/ab", "/z", "!/abc", "!/y"]);
        queue.keeps_name(Some("/ab"));
        queue.keeps_name(None);
        let unmatched: Vec<String> = queue.unmatched().map(Pick::to_string).collect();
        assert_eq!(unmatched, ["/z"]);

        let pid = filter::<u32>(&["7", "8"]);
        assert!(pid.keeps(|p| *p == 8) && !pid.keeps(|p| *p == 9));
        assert_eq!(pid.unmatched().map(|p| p.value).collect::<Vec<_>>(), [7]);
    }

    /// Prevents a queue pattern without its slash from matching nothing, and a second slash where
    /// the pattern already has its beginning.
    #[test]
    fn queue_patterns_get_their_slash() {
        for (text, expected) in [
            ("orders", "/orders"),
            ("/orders", "/orders"),
            ("!orders", "!/orders"),
            ("!/orders", "!/orders"),
            ("*orders", "*orders"),
            ("?orders", "?orders"),
            ("[/]orders", "[/]orders"),
            (".x", "/.x"),
        ] {
            assert_eq!(queue(text).unwrap().to_string(), expected);
        }
        assert!(queue("!").is_err() && queue("").is_err());
    }

    /// Prevents a namespace that leaves nothing to trace, and words that are none.
    #[test]
    fn namespaces() {
        assert_eq!(namespace("!self").unwrap().to_string(), "!self");
        assert!(namespace("!all").is_err() && namespace("ipc").is_err());
    }
}
