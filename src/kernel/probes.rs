//! kprobes as events of tracefs (Documentation/trace/kprobetrace.rst). Only there can the number of calls under way that
//! a kretprobe keeps apart be given, and only there are those that it missed shown on every kernel.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::hooks::Hook;

/// The group of mqspan's events.
pub const GROUP: &str = "mqspan";
/// Calls under way that a kretprobe keeps apart: the most there can be (kernel/trace/trace_kprobe.c,
/// KRETPROBE_MAXACTIVE_MAX). By default it is ten or so, and sleeping calls would soon use them up.
const MAXACTIVE: u32 = 4096;

/// Two mqspans must not remove each other's events between making and attaching them: waits so often, so long.
const LOCK_TRIES: u32 = 600;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The events of this process; they go with it.
#[derive(Debug)]
pub struct Probes {
    tracefs: PathBuf,
    /// Drawn at random: that of no other mqspan in any container.
    number: u32,
    /// Whether what the kernel counts as missed was.
    counts_misses: bool,
    events: Vec<String>,
    /// Held until all events are attached.
    lock: Option<Flock<File>>,
}

impl Probes {
    /// None yet. Those that nobody uses are removed: their process was killed.
    pub fn new(tracefs: &Path, counts_misses: bool) -> io::Result<Self> {
        let (tracefs, number) = (tracefs.into(), rand::random());
        let mut probes = Self { tracefs, number, counts_misses, events: Vec::new(), lock: None };
        probes.lock = Some(lock(&probes.file())?);
        for event in fs::read_to_string(probes.file())?.lines().filter_map(event_of) {
            // The kernel refuses it for those that are in use.
            let _ = probes.write(&removal(event));
        }
        Ok(probes)
    }

    /// Makes the event of a hook. A name that a module has, too, is refused: the kernel's own function goes by its address.
    pub fn add(&mut self, hook: &Hook) -> io::Result<()> {
        let event = self.event(hook);
        let what = if hook.returns { format!("r{MAXACTIVE}") } else { "p".into() };
        let make = |at: &str| self.write(&format!("{what}:{GROUP}/{event} {at}"));
        match make(&hook.target) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                let symbols = fs::read_to_string("/proc/kallsyms")?;
                make(&format!("0x{}", address(&symbols, &hook.target).ok_or(error)?))?;
            }
            made => made?,
        }
        self.events.push(event);
        Ok(())
    }

    /// The name of a hook's event in the group.
    pub fn event(&self, hook: &Hook) -> String {
        name(self.number, hook)
    }

    /// All events are in use now.
    pub fn attached(&mut self) {
        self.lock = None;
    }

    fn write(&self, line: &str) -> io::Result<()> {
        File::options().append(true).open(self.file())?.write_all(line.as_bytes())
    }

    /// What the kernel counted of all its events; [`Self::missed`] finds a hook's in it. Empty where the counts tell nothing.
    pub fn profile(&self) -> String {
        if !self.counts_misses {
            return String::new();
        }
        fs::read_to_string(self.tracefs.join("kprobe_profile")).unwrap_or_default()
    }

    /// How often the hook's probe was skipped.
    pub fn missed(&self, profile: &str, hook: &Hook) -> u64 {
        missed(profile, &self.event(hook))
    }

    /// The file of events, and the lines that remove these, once they are not in use any more.
    pub fn removal(&self) -> (PathBuf, Vec<String>) {
        (self.file(), self.events.iter().map(|event| removal(event)).collect())
    }

    fn file(&self) -> PathBuf {
        self.tracefs.join("kprobe_events")
    }
}

fn lock(file: &Path) -> io::Result<Flock<File>> {
    let mut file = File::open(file)?;
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(errno.into()),
        }
        thread::sleep(LOCK_PAUSE);
    }
    Err(io::Error::other("another mqspan has been attaching its kprobes for thirty seconds"))
}

/// The profile shows events without their group: the name alone says whose it is.
fn name(number: u32, hook: &Hook) -> String {
    let side = if hook.returns { "exit" } else { "entry" };
    format!("p{number}_{side}_{}", hook.target)
}

/// Where the kernel's own function of this name is, in hex; None where there are several, or no addresses are
/// shown. A line has address, type, name, and of a module's the module.
fn address<'a>(symbols: &'a str, function: &str) -> Option<&'a str> {
    let own = symbols.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (address, _, name) = (words.next()?, words.next()?, words.next()?);
        (name == function && words.next().is_none()).then_some(address)
    });
    match own.collect::<Vec<_>>()[..] {
        [only] if only.bytes().any(|digit| digit != b'0') => Some(only),
        _ => None,
    }
}

/// The line that removes an event.
fn removal(event: &str) -> String {
    format!("-:{GROUP}/{event}")
}

/// The event of a line of kprobe_events, `r4096:mqspan/p7_exit_load_msg load_msg`.
fn event_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(':')?;
    rest.strip_prefix(GROUP)?.strip_prefix('/')?.split_whitespace().next()
}

/// A line has the event, its hits and its misses.
fn missed(profile: &str, event: &str) -> u64 {
    let mut lines = profile.lines().map(str::split_whitespace);
    let misses = lines.find_map(|mut words| (words.next() == Some(event)).then(|| words.nth(1)).flatten());
    misses.and_then(|misses| misses.parse().ok()).unwrap_or(0)
}

impl Drop for Probes {
    fn drop(&mut self) {
        for line in self.removal().1 {
            // What can't be removed now is by the next that starts.
            let _ = self.write(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a module's function from being hooked in the kernel's place.
    #[test]
    fn a_name_that_exists_twice() {
        let symbols = "ffffffff81000010 T free_msg\nffffffffc0000010 t free_msg\t[mpi]\nffffffff81000020 t twice\n\
                       ffffffff81000030 t twice\n0000000000000000 T hidden\n";
        let of = |function| address(symbols, function);
        assert_eq!(
            [of("free_msg"), of("twice"), of("hidden"), of("none")],
            [Some("ffffffff81000010"), None, None, None]
        );
    }

    /// Prevents misses from going uncounted, and events of other tools from being removed.
    #[test]
    fn lines_of_tracefs() {
        let hook = Hook::all_of("kretprobe_load_msg", "?kretprobe/load_msg").remove(0);
        let event = name(7, &hook);
        assert_eq!(event_of(&format!("r4096:mqspan/{event} load_msg")), Some(&*event));
        assert_eq!(event_of("p:other/p1_entry_x x"), None);
        let profile = format!("  p1_entry_x   7   8\n  {event}      100      3\n");
        assert_eq!((missed(&profile, &event), missed("", &event)), (3, 0));
    }
}
