//! What this host says: of itself, and of a process while it lives.

use std::fs;
use std::io::Read;

use nix::unistd::{SysconfVar, gethostname, sysconf};

use crate::model::call::{Call, Image, ImageKey};

/// As much of a file of /proc is read at most.
const MOST: u64 = 1 << 20;

/// This host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// `host.name`.
    pub name: String,
    /// `host.id`: /etc/machine-id (machine-id(5)).
    pub id: Option<String>,
    /// Changes with each boot (random(4)).
    pub boot_id: String,
}

impl Host {
    /// Asks the host.
    pub fn ask() -> Self {
        let line =
            |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        Self {
            name: gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            id: line("/etc/machine-id").or_else(|| line("/var/lib/dbus/machine-id")),
            boot_id: line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        }
    }
}

/// A start time as /proc/PID/stat has it, in ticks (proc_pid_stat(5), starttime).
pub fn ticks(started_ns: u64) -> u64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100, i64::unsigned_abs);
    started_ns / (1_000_000_000 / per_second)
}

/// When the process that has this id now started, in ns, to the tick.
#[cfg(test)]
pub fn started_ns(pid: u32) -> Option<u64> {
    Some(stat(pid)?.started * (1_000_000_000 / ticks(1_000_000_000)))
}

/// Where the environment of the process is that has this id now.
#[cfg(test)]
pub fn environ_at(pid: u32) -> Option<u64> {
    Some(stat(pid)?.environ_at)
}

/// Whether the process that has the id now is still the one that made the call.
pub fn is_running(image: &ImageKey) -> bool {
    stat(image.pid).is_some_and(|stat| stat.started == ticks(image.started_ns))
}

/// Whether the process that has this id now runs the image, whose environment is at this address: the kernel draws
/// another one at each exec.
pub fn is_image(pid: u32, image: &ImageKey, environ_at: u64) -> bool {
    let is_it = |stat: Stat| stat.started == ticks(image.started_ns) && stat.environ_at == environ_at;
    stat(pid).is_some_and(is_it)
}

/// Of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// In ticks.
    started: u64,
    /// 0 for who may not know.
    environ_at: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold spaces and parentheses itself: the fields are those after its last one.
fn parse_stat(stat: &str) -> Option<Stat> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat { parent, started, environ_at: fields.nth(27)?.parse().ok()? })
}

/// What the call and /proc tell of a caller whose image the kernel's record does not describe: not its environment,
/// which may be that of a later image.
pub fn image_of_caller(call: &Call) -> Image {
    Image { vpid: call.vpid, uid: call.uid, comm: call.comm().into(), ..image(call.image) }
}

/// What /proc tells of an image, which may be nothing.
pub fn image(key: ImageKey) -> Image {
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", key.pid)).ok();
    let status = read("status");
    let path = fs::read_link(format!("/proc/{}/exe", key.pid)).ok();
    let parent = stat(key.pid).filter(|stat| stat.started == ticks(key.started_ns)).map(|stat| stat.parent);
    let status = status.filter(|_| parent.is_some()).unwrap_or_default();
    let field = |name: &str, number: usize| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().nth(number).map(str::to_owned)
    };
    let number = |name, at| field(name, at).and_then(|text| text.parse().ok());
    Image {
        key,
        local_pid: key.pid,
        vpid: status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:")?.split_ascii_whitespace().last()?.parse().ok())
            .unwrap_or(key.pid),
        parent_pid: parent.unwrap_or(0),
        path: path.filter(|_| parent.is_some()).map(|path| path.into_os_string().into_encoded_bytes()),
        environ: None,
        environ_at: 0,
        environ_cut: false,
        uid: number("Uid:", 1).unwrap_or(0),
        cgroup: None,
        comm: field("Name:", 0).unwrap_or_default().into_bytes(),
    }
}

/// The whole environment of a process, if it begins with `known`, which was cut: so it is that of the same image.
pub fn whole_environment(key: &ImageKey, known: &[u8]) -> Option<Vec<u8>> {
    let mut environ = Vec::new();
    fs::File::open(format!("/proc/{}/environ", key.pid)).ok()?.take(MOST).read_to_end(&mut environ).ok()?;
    (is_running(key) && environ.starts_with(known)).then_some(environ)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a process's name from shifting the fields.
    #[test]
    fn stat_with_an_odd_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(
            parse_stat(&format!("1 (a) R (b) {}", fields.join(" "))),
            Some(Stat { parent: 4, started: 22, environ_at: 50 })
        );
        assert_eq!(parse_stat("1 (a) 3 4"), None);
    }

    /// Prevents a start time in ticks that does not agree with /proc's.
    #[test]
    fn this_process_runs() {
        let pid = std::process::id();
        let started = started_ns(pid).unwrap();
        let key = |started_ns| ImageKey { pid, started_ns, exec_id: 0 };
        assert!(is_running(&key(started)));
        assert!(!is_running(&key(started - 1)));
    }
}
