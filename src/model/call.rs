//! What the kernel side tells: [`Call`]s and the [`Image`]s that made them. Pure code.

use smallvec::SmallVec;

use super::cause::CallFailure;
use super::values::Op;

/// A name as the kernel sees it, without the slash before it: most are short enough to need no memory of their own.
pub type NameBytes = SmallVec<[u8; 32]>;

/// Which program image a process runs: the host's process id, its start and the number of its execs so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey {
    /// Process id (thread group) on the host.
    pub pid: u32,
    /// When the process started, CLOCK_BOOTTIME in ns (`task_struct.start_boottime`).
    pub started_ns: u64,
    /// `task_struct.self_exec_id`: changes with each exec.
    pub exec_id: u32,
}

/// Where a span is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ids {
    /// Of its trace; never all zero.
    pub trace: [u8; 16],
    /// Of the span; never all zero.
    pub span: [u8; 8],
}

/// Which queue, for as long as the kernel runs: a name may be that of another queue later, or in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueueKey {
    /// Address of its inode.
    pub inode: u64,
    /// The inode's number.
    pub number: u64,
    /// Address of its ipc namespace.
    pub namespace: u64,
}

/// What the kernel knows of the queue that a call reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Which one.
    pub key: QueueKey,
    /// Its name, without the slash.
    pub name: NameBytes,
    /// The most messages it holds.
    pub maxmsg: i64,
    /// The most bytes of a message.
    pub msgsize: i64,
    /// The messages in it when the call ended; None where the descriptor meant another file by then.
    pub curmsgs: Option<i64>,
    /// Permission bits.
    pub mode: u16,
}

/// A structure that a call was passed by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed<T> {
    /// Where it stood in the caller's memory; 0 for NULL.
    pub ptr: u64,
    /// What it held; None for NULL, for what the call does not look at, and for what could not be read.
    pub value: Option<T>,
}

/// flags, maxmsg, msgsize and curmsgs of a `struct mq_attr`.
pub type Attr = [i64; 4];

/// A `struct timespec`: the CLOCK_REALTIME time until which a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Seconds.
    pub s: i64,
    /// Nanoseconds.
    pub ns: i64,
}

/// What mq_notify looks at of a `struct sigevent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// sigev_notify: `SIGEV_SIGNAL` and so on.
    pub method: i32,
    /// sigev_signo.
    pub signo: i32,
}

/// The arguments of mq_timedsend and mq_timedreceive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The descriptor.
    pub fd: i32,
    /// Bytes: those to send, or those that there is room for.
    pub size: u64,
    /// As passed to a send, or as received; None where a receive failed, or its caller did not ask.
    pub priority: Option<u32>,
    /// The deadline.
    pub timeout: Passed<Deadline>,
    /// Whether the call waited for room or for a message.
    pub blocked: bool,
    /// How long a message that was received lay in the queue, in ns; 0 where it was handed to a waiting receiver.
    pub wait_ns: Option<u64>,
    /// The span that sent the message which was received.
    pub sent_by: Option<Sender>,
    /// Whether the receive of a message that was sent is told by whose it is.
    pub tracked: bool,
    /// What was under way beside it.
    pub turn: Turn,
    /// Calls of this queue and operation that had no record since the last one, for the rate's sake.
    pub limited: u32,
}

/// The span that sent a message, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The span.
    pub ids: Ids,
    /// Name of the thread that sent it, NUL-terminated where shorter.
    pub comm: [u8; 16],
    /// How.
    pub method: Method,
}

/// How a link was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By the message's identity in the kernel.
    Message,
    /// Inferred from the order of calls.
    Sequence,
}

/// When a send or receive began and ended, among the others of its queue, by tracepoints. Pairs are of sends and of
/// receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Its number among the calls of its kind, in the order in which they began: from 1 without gaps on the queue and
    /// those that share its counters; 0 where it was not counted.
    pub number: u64,
    /// How many had begun at its exit.
    pub begun: [u64; 2],
    /// No other call was under way when the depth was read.
    pub quiet: bool,
    /// At its entry the queue was empty and no other call on it under way: how many had begun before it.
    pub empty: Option<[u64; 2]>,
    /// The priority of all sends that had begun at its exit, where they have one in common.
    pub only_priority: Option<u32>,
    /// Calls until its exit that may have passed a message and got no number.
    pub losses: [u32; 2],
}

/// What a call was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Args {
    /// mq_open's.
    Open {
        /// Where the name stood in the caller's memory.
        name_ptr: u64,
        /// The flags.
        oflag: u32,
        /// The mode.
        mode: u32,
        /// The attributes asked for.
        attr: Passed<Attr>,
        /// Whether the kernel used others than the caller's memory held at entry.
        attr_changed: bool,
    },
    /// mq_unlink's.
    Unlink {
        /// Where the name stood in the caller's memory.
        name_ptr: u64,
    },
    /// mq_timedsend's.
    Send(Message),
    /// mq_timedreceive's.
    Receive(Message),
    /// mq_notify's.
    Notify {
        /// The descriptor.
        fd: i32,
        /// How to notify.
        event: Passed<Event>,
    },
    /// mq_getsetattr's.
    Getsetattr {
        /// The descriptor.
        fd: i32,
        /// The new attributes.
        attr: Passed<Attr>,
    },
}

/// The application's own span that a call was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The span.
    pub ids: Ids,
    /// Who said so.
    pub source: Source,
}

/// Who said in which span a call was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The thread itself.
    Thread {
        /// Whether the span is sampled.
        sampled: bool,
    },
    /// OBI's map.
    Obi,
    /// The environment that the process was started with.
    Environment,
}

/// How a caller lays out its arguments, where not as this program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// As the kernel itself.
    Native,
    /// With 32 bits.
    Compat,
}

/// One system call: its entry and its exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which one.
    pub op: Op,
    /// The caller's image.
    pub image: ImageKey,
    /// Thread id on the host.
    pub tid: u32,
    /// Process id in the caller's own pid namespace.
    pub vpid: u32,
    /// Process id in mqspan's own pid namespace, by which it is found in /proc; 0 where it has none there.
    pub local_pid: u32,
    /// Entry, CLOCK_MONOTONIC in ns.
    pub entered_ns: u64,
    /// Exit, CLOCK_MONOTONIC in ns.
    pub left_ns: u64,
    /// As the kernel returned it; negative errno on failure.
    pub ret: i64,
    /// Effective user id in the initial user namespace.
    pub uid: u32,
    /// Number of the ipc namespace: the queue's, or the caller's where no queue was reached.
    pub ipc_ns: u32,
    /// How its arguments were laid out.
    pub abi: Abi,
    /// The ids of its span: in the application's trace where its span is the parent.
    pub ids: Ids,
    /// The application's span that it was made in.
    pub context: Option<Context>,
    /// The name that the caller's memory held, of calls that take one; None where it could not be read.
    pub asked: Option<NameBytes>,
    /// What it was passed.
    pub args: Args,
    /// The queue that was reached.
    pub queue: Option<Queue>,
    /// Name of the thread, NUL-terminated where shorter.
    pub comm: [u8; 16],
    /// Why it failed, where that is known and its errno has more than one cause.
    pub failure: Option<CallFailure>,
    /// Whether a filter refused it: it is here for its message's sake alone.
    pub filtered: bool,
    /// Whether metrics hold it.
    pub measured: bool,
}

/// What a call carries of who made it, where its image's record was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The image.
    pub image: ImageKey,
    /// Process id in mqspan's own pid namespace; 0 where it has none there.
    pub local_pid: u32,
    /// Process id in its own pid namespace.
    pub vpid: u32,
    /// Effective user id in the initial user namespace.
    pub uid: u32,
    /// Name of the thread.
    pub comm: Vec<u8>,
}

/// Who made calls: a process image, as it was at its first call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Which one.
    pub key: ImageKey,
    /// Process id in mqspan's own pid namespace, by which it is found in /proc; 0 where it has none there.
    pub local_pid: u32,
    /// Process id in its own pid namespace.
    pub vpid: u32,
    /// Process id of the parent on the host.
    pub parent_pid: u32,
    /// Absolute path of the executable; None where it was too long to be read.
    pub path: Option<Vec<u8>>,
    /// The environment given at exec, `NAME=value` each with its NUL; None where it could not be read.
    pub environ: Option<Vec<u8>>,
    /// Its address, by which the image is told from a later one of the process; 0 where it is not known.
    pub environ_at: u64,
    /// Whether the environment was longer than the kernel side reads.
    pub environ_cut: bool,
    /// Effective user id of the first call, in the initial user namespace.
    pub uid: u32,
    /// Path of its control group, in the hierarchy that names its container, else in the unified one; None where it was
    /// not read or too long.
    pub cgroup: Option<Vec<u8>>,
    /// Name of the thread that made the first call.
    pub comm: Vec<u8>,
    /// What it sees as `/`.
    pub root: Root,
}

/// What a process sees as `/`: all zero where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// The number of its mount namespace.
    pub mount_namespace: u32,
    /// The device, as major and minor number.
    pub device: (u32, u32),
    /// The inode's number.
    pub inode: u64,
}

/// What became of an image that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It has published its process context.
    Published(ImageKey),
    /// Its process has ended.
    Ended(ImageKey),
}

/// A queue's name and the number that stands for it in the kernel side's metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Never 0.
    pub number: u64,
    /// As the kernel sees it, without the slash before it.
    pub bytes: Vec<u8>,
}

impl Call {
    /// Nanoseconds from entry to exit.
    pub fn duration_ns(&self) -> u64 {
        self.left_ns.saturating_sub(self.entered_ns)
    }

    /// How long the message that a receive got lay in the queue, in ns.
    pub fn wait_ns(&self) -> Option<u64> {
        match &self.args {
            Args::Receive(message) => message.wait_ns,
            _ => None,
        }
    }

    /// The same where it was inferred from the order of calls, in ns.
    pub fn inferred_wait_ns(&self) -> Option<u64> {
        match &self.args {
            Args::Receive(message) if message.turn.number > 0 => message.wait_ns,
            _ => None,
        }
    }

    /// The thread's name, without its padding.
    pub fn comm(&self) -> &[u8] {
        unpadded(&self.comm)
    }

    /// Who made it.
    pub fn identity(&self) -> Identity {
        let Self { image, local_pid, vpid, uid, .. } = *self;
        Identity { image, local_pid, vpid, uid, comm: self.comm().into() }
    }

    /// Forgets which span sent the message that was received, unless the sending thread's name is kept.
    pub fn drop_sender_unless(&mut self, keeps: impl Fn(&[u8]) -> bool) {
        if let Args::Receive(message) = &mut self.args {
            message.sent_by = message.sent_by.filter(|sender| keeps(unpadded(&sender.comm)));
        }
    }
}

/// A thread's name, up to its first NUL.
pub fn unpadded(comm: &[u8]) -> &[u8] {
    comm.split(|byte| *byte == 0).next().unwrap_or_default()
}
