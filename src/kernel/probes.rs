//! kprobes as events of tracefs (Documentation/trace/kprobetrace.rst). Only there can the number of calls under way that
//! a kretprobe keeps apart be given, and only there are those that it missed shown on every kernel.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;

use super::hooks::Hook;

/// The group of mqspan's events.
pub const GROUP: &str = "mqspan";
/// Calls under way that a kretprobe keeps apart: the most there can be (kernel/trace/trace_kprobe.c,
/// KRETPROBE_MAXACTIVE_MAX). By default it is ten or so, and sleeping calls would soon use them up.
const MAXACTIVE: u32 = 4096;

/// The events of this process; they go with it.
#[derive(Debug)]
pub struct Probes {
    tracefs: PathBuf,
    events: Vec<String>,
}

impl Probes {
    /// None yet. Those of processes that were killed are removed.
    pub fn new(tracefs: &Path) -> Self {
        let probes = Self { tracefs: tracefs.into(), events: Vec::new() };
        let listed = fs::read_to_string(tracefs.join("kprobe_events")).unwrap_or_default();
        for event in listed.lines().filter_map(event_of) {
            if owner(event).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                // Where it is in use after all, it stays.
                let _ = probes.write(&format!("-:{GROUP}/{event}"));
            }
        }
        probes
    }

    /// Makes the event of a hook; returns its name in the group.
    pub fn add(&mut self, hook: &Hook) -> io::Result<String> {
        let event = name(hook);
        let what = if hook.returns { format!("r{MAXACTIVE}") } else { "p".into() };
        self.write(&format!("{what}:{GROUP}/{event} {}", hook.target))?;
        self.events.push(event.clone());
        Ok(event)
    }

    fn write(&self, line: &str) -> io::Result<()> {
        File::options().append(true).open(self.tracefs.join("kprobe_events"))?.write_all(line.as_bytes())
    }

    /// What the kernel counted of all its events; [`missed`] finds a hook's in it.
    pub fn profile(&self) -> String {
        fs::read_to_string(self.tracefs.join("kprobe_profile")).unwrap_or_default()
    }
}

/// The profile shows events without their group: the name alone says whose it is.
fn name(hook: &Hook) -> String {
    let side = if hook.returns { "exit" } else { "entry" };
    format!("p{}_{side}_{}", process::id(), hook.target)
}

/// The event of a line of kprobe_events, `r4096:mqspan/p7_exit_load_msg load_msg`.
fn event_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(':')?;
    rest.strip_prefix(GROUP)?.strip_prefix('/')?.split_whitespace().next()
}

/// The process that made an event.
fn owner(event: &str) -> Option<&str> {
    event.strip_prefix('p')?.split('_').next()
}

/// How often the hook's probe was skipped: a line has the event, its hits and its misses.
pub fn missed(profile: &str, hook: &Hook) -> u64 {
    let event = name(hook);
    let mut lines = profile.lines().map(str::split_whitespace);
    let misses = lines.find_map(|mut words| (words.next() == Some(&*event)).then(|| words.nth(1)).flatten());
    misses.and_then(|misses| misses.parse().ok()).unwrap_or(0)
}

impl Drop for Probes {
    fn drop(&mut self) {
        for event in &self.events {
            // What can't be removed now is by the next that starts.
            let _ = self.write(&format!("-:{GROUP}/{event}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents misses from going uncounted, and events of other tools or of living processes from being removed.
    #[test]
    fn lines_of_tracefs() {
        let hook = Hook::of("kretprobe_load_msg", "?kretprobe/load_msg").unwrap();
        let event = name(&hook);
        assert_eq!(owner(&event), Some(&*process::id().to_string()));
        assert_eq!(event_of(&format!("r4096:mqspan/{event} load_msg")), Some(&*event));
        assert_eq!(event_of("p:other/p1_entry_x x"), None);
        let profile = format!("  p1_entry_x   7   8\n  {event}      100      3\n");
        assert_eq!(missed(&profile, &hook), 3);
        assert_eq!(missed("", &hook), 0);
    }
}
