//! What this host shows of queues and of threads at them, whoever they belong to: the queues that are there, and the
//! threads that are in a call of the family now. Reads /proc and mqueue mounts; changes nothing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind::PermissionDenied;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statfs::{FsType, statfs};

use crate::model::container::Container;
use crate::model::filter::Filters;
use crate::model::live::{LiveQueue, Since, Waiter};
use crate::model::text::utf8;
use crate::model::values::{Namespace, Op};
use crate::who::cgroup;

/// A thread that is in a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InCall {
    /// Its process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its name.
    pub comm: String,
    /// Effective user id, as this process's user namespace has it; None where it can't be seen.
    pub uid: Option<u32>,
    /// The container's id.
    pub container: Option<String>,
    /// The number of the ipc namespace.
    pub ipc_ns: Option<u32>,
    /// Which call.
    pub op: Op,
    /// On which queue; None where the descriptor is none, or can't be seen.
    pub queue: Option<LiveQueue>,
    /// How long it has waited, at least; None where that is not known.
    pub waited: Option<Duration>,
}

/// The containers of processes, each looked up once: a process may have thousands of threads, and its control group is behind
/// a lock of the whole host.
#[derive(Debug, Default)]
pub struct ContainerIds(HashMap<u32, Option<String>>);

impl ContainerIds {
    fn of_process(&mut self, pid: u32) -> Option<String> {
        let look = || cgroup::of_process(pid).and_then(|path| Container::of_path(&path).id);
        self.0.entry(pid).or_insert_with(look).clone()
    }
}

impl InCall {
    /// The same of a thread that the kernel's own lists show, at the time `now_ns` of CLOCK_MONOTONIC.
    /// Its container is looked up in /proc where that is asked.
    pub fn of(waiter: Waiter, now_ns: u64, containers: Option<&mut ContainerIds>) -> Self {
        let container = containers.and_then(|containers| containers.of_process(waiter.pid));
        Self {
            pid: waiter.pid,
            tid: waiter.tid,
            comm: waiter.comm,
            uid: Some(waiter.uid),
            container,
            ipc_ns: Some(waiter.queue.as_ref().map_or(waiter.ipc_ns, |queue| queue.ipc_ns)),
            op: waiter.op,
            queue: waiter.queue,
            waited: (waiter.since != Since::Look).then(|| Duration::from_nanos(now_ns.saturating_sub(waiter.since_ns))),
        }
    }

    /// Whether it passes the filters; what can't be seen passes those that only exclude.
    pub fn is_asked_for(&self, filters: &Filters, own_ipc_namespace: u32) -> bool {
        let Self { pid, comm, uid, container, ipc_ns, op, queue, .. } = self;
        let namespace = |pick: &Namespace| match pick {
            Namespace::All => true,
            Namespace::Own => *ipc_ns == Some(own_ipc_namespace),
            Namespace::Number(number) => *ipc_ns == Some(*number),
        };
        filters.call.contains(op)
            && filters.pid.passes(|pick| pick == pid)
            && filters.uid.passes(|pick| Some(*pick) == *uid)
            && filters.comm.passes_name(Some(comm))
            && filters.container.passes(|pick| container.as_ref().is_some_and(|id| id.starts_with(pick)))
            && filters.ipc_namespace.passes(namespace)
            && filters.queue.passes_name(queue.as_ref().map(|queue| &*queue.name))
    }
}

/// The entries of a folder that are numbers, ascending.
pub fn numbers(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

fn ipc_namespace(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}/ns/ipc")).ok().map(|file| file.st_ino() as u32)
}

/// The threads that sleep in a send or receive now, where the kernel has no lists of its own (proc_pid_syscall(5)), and how many others may not be looked at: that
/// takes CAP_SYS_PTRACE, and a sandbox may hide some from those who have it. Those of 32-bit programs are not seen.
pub fn in_calls() -> (Vec<InCall>, u64) {
    let (mut found, mut hidden, mut containers) = (Vec::new(), 0, ContainerIds::default());
    for pid in numbers(Path::new("/proc")) {
        for tid in numbers(&PathBuf::from(format!("/proc/{pid}/task"))) {
            let call = match fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) {
                Ok(call) => call,
                // Any other failure is that of a thread which has just ended.
                Err(error) => {
                    hidden += u64::from(error.kind() == PermissionDenied);
                    continue;
                }
            };
            let Some((op, fd)) = parse_call(&call) else { continue };
            let comm = fs::read(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
            let queue = queue_at(pid, fd);
            let comm = utf8(comm.trim_ascii_end()).into_owned();
            let container = containers.of_process(pid);
            let ipc_ns = queue.as_ref().map(|queue| queue.ipc_ns).or_else(|| ipc_namespace(pid));
            found.push(InCall {
                pid,
                tid,
                comm,
                uid: effective_uid(pid, tid),
                container,
                ipc_ns,
                op,
                queue,
                waited: None,
            });
        }
    }
    (found, hidden)
}

/// Of proc_pid_status(5): real, effective, saved, of the file system.
fn effective_uid(pid: u32, tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The number of the system call and its first argument, in hex; `running` for a thread that does not sleep.
fn parse_call(text: &str) -> Option<(Op, i32)> {
    let mut words = text.split_ascii_whitespace();
    let op = match words.next()?.parse::<libc::c_long>().ok()? {
        libc::SYS_mq_timedsend => Op::MqTimedsend,
        libc::SYS_mq_timedreceive => Op::MqTimedreceive,
        _ => return None,
    };
    let fd = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    Some((op, fd as u32 as i32))
}

/// The queue that a descriptor of a process is. Its link is the name as the queue's own mount has it.
fn queue_at(pid: u32, fd: i32) -> Option<LiveQueue> {
    let link = format!("/proc/{pid}/fd/{fd}");
    let path = fs::read_link(&link).ok()?.into_os_string().into_encoded_bytes();
    let number = fs::metadata(&link).ok()?.st_ino();
    let name = path.rsplit(|byte| *byte == b'/').next()?;
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Some(LiveQueue {
        ipc_ns: ipc_namespace(pid)?,
        name: Arc::from(format!("/{}", utf8(name))),
        number,
        key: None,
        maxmsg: 0,
        msgsize: 0,
        curmsgs: 0,
    })
}

/// Opens each queue of every ipc namespace that has an mqueue mount somewhere, for as long as `each` looks at it.
pub fn each_queue(mut each: impl FnMut(BorrowedFd<'_>)) {
    let mut seen = HashSet::new();
    for pid in numbers(Path::new("/proc")) {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for mount in mounts.lines().filter_map(mqueue_mount) {
            let folder = PathBuf::from(format!("/proc/{pid}/root{mount}"));
            let Ok(device) = fs::metadata(&folder).map(|folder| folder.st_dev()) else { continue };
            // Another file system may be mounted over it.
            if is_mqueue(&folder) && seen.insert(device) {
                each_queue_in(&folder, &mut each);
            }
        }
    }
}

/// Where a line of mountinfo (proc_pid_mountinfo(5)) says that an mqueue file system is mounted.
fn mqueue_mount(line: &str) -> Option<&str> {
    let (mount, source) = line.split_once(" - ")?;
    source.starts_with("mqueue ").then(|| mount.split(' ').nth(4))?
}

fn is_mqueue(folder: &Path) -> bool {
    /// include/uapi/linux/magic.h
    const MQUEUE_MAGIC: FsType = FsType(0x1980_0202);
    statfs(folder).is_ok_and(|about| about.filesystem_type() == MQUEUE_MAGIC)
}

fn each_queue_in(folder: &Path, each: &mut impl FnMut(BorrowedFd<'_>)) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
        let options = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).clone();
        if let Ok(queue) = options.open(entry.path()) {
            each(queue.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents other calls, and threads that run, from being taken for waiting ones.
    #[test]
    fn calls() {
        let receive = libc::SYS_mq_timedreceive;
        assert_eq!(
            parse_call(&format!("{receive} 0x7 0x1 0x2 0x0 0x0 0x0 0x7f 0x7f\n")),
            Some((Op::MqTimedreceive, 7))
        );
        assert_eq!(parse_call("running\n"), None);
        assert_eq!(parse_call("-1 0x7f 0x7f\n"), None);
        assert_eq!(parse_call("0 0x3 0x1\n"), None);
    }

    /// Prevents another file system's mount from being searched for queues.
    #[test]
    fn mounts() {
        let line = "36 25 0:32 / /dev/mqueue rw,relatime shared:14 - mqueue mqueue rw";
        assert_eq!(mqueue_mount(line), Some("/dev/mqueue"));
        assert_eq!(mqueue_mount("36 25 0:32 / /mqueue rw - tmpfs mqueue rw"), None);
    }
}
