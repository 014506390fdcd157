//! What this host says of itself, and mqspan's own place on it. Reads nothing of other processes.

use std::fs;
use std::os::linux::fs::MetadataExt;

use nix::sys::stat::{major, minor};
use nix::unistd::{SysconfVar, gethostname, sysconf};

use crate::clock::NamespaceOffsets;
use crate::model::call::Root;

/// This host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// `host.name`.
    pub name: String,
    /// `host.id`: /etc/machine-id (machine-id(5)).
    pub id: Option<String>,
    /// Changes with each boot (random(4)).
    pub boot_id: String,
    /// What no other mqspan of this boot is told by: the number of its pid namespace, its process id there, which is 1 in
    /// every container, and when it started, in ticks.
    pub own: (u64, u32, u64),
    /// What mqspan sees as `/`.
    pub root: Root,
}

impl Host {
    /// Asks the host.
    pub fn ask() -> Self {
        let line =
            |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let pid_namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |file| file.st_ino());
        let started = line("/proc/self/stat").and_then(|text| Stat::parse(&text)).map_or(0, |stat| stat.started);
        Self {
            name: gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            id: line("/etc/machine-id").or_else(|| line("/var/lib/dbus/machine-id")),
            boot_id: line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            own: (pid_namespace, std::process::id(), started),
            root: own_root().unwrap_or_default(),
        }
    }
}

fn own_root() -> Option<Root> {
    let root = fs::metadata("/").ok()?;
    let mount_namespace = u32::try_from(fs::metadata("/proc/self/ns/mnt").ok()?.st_ino()).ok()?;
    let device = [major(root.st_dev()), minor(root.st_dev())].map(|number| u32::try_from(number).ok());
    let [Some(major), Some(minor)] = device else { return None };
    Some(Root { mount_namespace, device: (major, minor), inode: root.st_ino() })
}

fn ticks_of(ns: u64) -> u64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100, i64::unsigned_abs);
    ns / (1_000_000_000 / per_second)
}

/// A start time in ticks, by the host's CLOCK_BOOTTIME: the same in every container.
pub fn ticks(started_ns: u64) -> u64 {
    ticks_of(started_ns)
}

/// A start time as this program's /proc/PID/stat shows it (proc_pid_stat(5), starttime): by the clock of its own time
/// namespace.
pub fn shown_ticks(started_ns: u64) -> u64 {
    ticks_of(started_ns.saturating_add_signed(NamespaceOffsets::own().boottime_ns))
}

/// Of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process id of the parent, as /proc shows it.
    pub parent: u32,
    /// In ticks, as [`shown_ticks`].
    pub started: u64,
    /// Where the environment is; 0 for who may not know.
    pub environ_at: u64,
}

impl Stat {
    /// The name in parentheses may hold spaces and parentheses itself: the fields are those after its last one.
    pub fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        Some(Self { parent, started, environ_at: fields.nth(27)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a process's name from shifting the fields.
    #[test]
    fn stat_with_an_odd_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(
            Stat::parse(&format!("1 (a) R (b) {}", fields.join(" "))),
            Some(Stat { parent: 4, started: 22, environ_at: 50 })
        );
        assert_eq!(Stat::parse("1 (a) 3 4"), None);
    }

    /// Prevents two mqspans in two containers of one host, which both have the process id 1 there, from being taken for one.
    #[test]
    fn no_other_is_told_by_the_same() {
        let Host { own: (namespace, pid, started), .. } = Host::ask();
        assert!(namespace > 0 && started > 0 && pid == std::process::id());
    }
}
