//! Why a call failed, where its errno has more than one cause. Pure code.

/// What the kernel checked. Their order is that of enum cause in bpf/event.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The user has more bytes in queues than this lets, with the new one.
    RlimitMsgqueue,
    /// The process has as many descriptors as it may.
    RlimitNofile,
    /// The host has as many open files as it may.
    FileMax,
    /// The ipc namespace has as many queues as it may.
    QueuesMax,
    /// More messages than a queue of the namespace may hold.
    MsgMax,
    /// Longer messages than a queue of the namespace may hold.
    MsgsizeMax,
    /// No messages at all.
    Maxmsg,
    /// Longer than the queue's messages, a buffer that is shorter than them, or a new queue of messages without a byte.
    Msgsize,
    /// No queue can have such a name.
    Name,
    /// The permissions of the queue or of the folder that it is in.
    Permission,
    /// No queue has this name.
    Missing,
    /// The descriptor is not open.
    Closed,
    /// The descriptor is some other file.
    NotAQueue,
    /// The descriptor was not opened for this.
    AccessMode,
    /// Higher than the highest.
    Priority,
    /// A deadline that is no time.
    Timeout,
    /// Others than can be set.
    Flags,
    /// Not the number of one.
    Signal,
    /// No room in the queue.
    Full,
    /// No message in the queue.
    Empty,
    /// Another process is to be notified already.
    Registered,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::RlimitMsgqueue,
        Self::RlimitNofile,
        Self::FileMax,
        Self::QueuesMax,
        Self::MsgMax,
        Self::MsgsizeMax,
        Self::Maxmsg,
        Self::Msgsize,
        Self::Name,
        Self::Permission,
        Self::Missing,
        Self::Closed,
        Self::NotAQueue,
        Self::AccessMode,
        Self::Priority,
        Self::Timeout,
        Self::Flags,
        Self::Signal,
        Self::Full,
        Self::Empty,
        Self::Registered,
    ];

    /// By its number in bpf/event.h; None for 0, which stands for no cause, and for a number that stands for none.
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.get((number as usize).checked_sub(1)?).copied()
    }

    /// What `posix_mq.cause` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RlimitMsgqueue => "RLIMIT_MSGQUEUE",
            Self::RlimitNofile => "RLIMIT_NOFILE",
            Self::FileMax => "fs.file-max",
            Self::QueuesMax => "fs.mqueue.queues_max",
            Self::MsgMax => "fs.mqueue.msg_max",
            Self::MsgsizeMax => "fs.mqueue.msgsize_max",
            Self::Maxmsg => "maxmsg",
            Self::Msgsize => "msgsize",
            Self::Name => "name",
            Self::Permission => "permission",
            Self::Missing => "missing",
            Self::Closed => "closed",
            Self::NotAQueue => "not_a_queue",
            Self::AccessMode => "access_mode",
            Self::Priority => "priority",
            Self::Timeout => "timeout",
            Self::Flags => "flags",
            Self::Signal => "signal",
            Self::Full => "full",
            Self::Empty => "empty",
            Self::Registered => "registered",
        }
    }

    /// Whether the errno alone says it.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Missing | Self::Permission | Self::Full | Self::Empty)
    }
}

/// A limit that was reached, in its own unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReachedLimit {
    /// In force for the caller.
    pub value: u64,
    /// In use when the call ended; None of a limit to what one call may ask for.
    pub used: Option<u64>,
    /// What the call asked for.
    pub requested: u64,
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallFailure {
    /// What the kernel checked.
    pub cause: Cause,
    /// Where that is a limit.
    pub limit: Option<ReachedLimit>,
    /// Who is registered for notification: a process on the host, where that is in the way and known.
    pub owner_pid: Option<u32>,
}
