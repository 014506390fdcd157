//! What is there on the host now: threads that wait at queues, and who has queues open. Pure code.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::call::{Abi, Deadline, ImageKey, QueueKey};
use super::reading::QueueId;
use super::values::Op;

/// A queue that somebody is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveQueue {
    /// The number of its ipc namespace.
    pub ipc_ns: u32,
    /// Its name, with its slash.
    pub name: Arc<str>,
    /// Its inode's number.
    pub number: u64,
    /// Which one, where the kernel's own lists show it.
    pub key: Option<QueueKey>,
    /// The most messages it holds; 0 where only /proc shows it, as what follows.
    pub maxmsg: i64,
    /// The most bytes of a message.
    pub msgsize: i64,
    /// The messages in it.
    pub curmsgs: i64,
}

impl LiveQueue {
    /// Which queue.
    pub fn id(&self) -> QueueId {
        (self.ipc_ns, self.number)
    }
}

/// A thread that waits in a send or receive, by the kernel's own lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The image that its process runs.
    pub image: ImageKey,
    /// Its process, in mqspan's own pid namespace; 0: it has no number there.
    pub pid: u32,
    /// The same, inside its own pid namespace.
    pub vpid: u32,
    /// The thread, in mqspan's own pid namespace.
    pub tid: u32,
    /// Its process on the host.
    pub host_pid: u32,
    /// The thread on the host.
    pub host_tid: u32,
    /// Its name.
    pub comm: String,
    /// Effective user id, in the initial user namespace.
    pub uid: u32,
    /// The number of its own ipc namespace.
    pub ipc_ns: u32,
    /// Which call.
    pub op: Op,
    /// The descriptor.
    pub fd: i32,
    /// Bytes of a send's message, or those that a receive has room for.
    pub size: u64,
    /// Of a send.
    pub priority: u32,
    /// Until when it waits, where its entry was seen.
    pub deadline: Option<Deadline>,
    /// How its arguments are laid out.
    pub abi: Abi,
    /// CLOCK_MONOTONIC in ns: what `since` says.
    pub since_ns: u64,
    /// What is known of the call's beginning.
    pub since: Since,
    /// How often the thread has given up the CPU: where that is the same later, it has not run since.
    pub switches: u64,
    /// On which queue; None where the descriptor is none.
    pub queue: Option<LiveQueue>,
}

/// What is known of the beginning of a call that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Nothing: the time is that of the look.
    Look,
    /// The call was under way when its thread fell asleep.
    Sleep,
    /// Its entry was seen.
    Entry,
}

/// What a descriptor of a queue was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QueueAccess {
    /// Receiving.
    Read,
    /// Sending.
    Write,
    /// Both.
    ReadWrite,
}

impl QueueAccess {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::ReadWrite];

    /// What `posix_mq.access` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "read_write",
        }
    }
}

/// An open descriptor of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueHolder {
    /// Whose it is, on the host.
    pub host_pid: u32,
    /// The name of its first thread.
    pub comm: String,
    /// Its number.
    pub fd: i32,
    /// What it was opened for.
    pub access: QueueAccess,
    /// The address of its file.
    pub file: u64,
    /// The queue.
    pub queue: LiveQueue,
}

/// Who waits at queues now, and who has them open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    /// How many threads wait, in which call on which queue.
    pub threads: BTreeMap<(QueueId, Op), u64>,
    /// Whether every thread of the host could be looked at: else nobody seen does not mean nobody there.
    pub all_seen: bool,
    /// How many descriptors are open; None where that is not known.
    pub descriptors: Option<BTreeMap<(QueueId, QueueAccess), u64>>,
}
