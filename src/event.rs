//! The kernel's records, decoded: bytes to [`Call`] and [`Image`]. Pure code that takes any bytes; what is too short
//! or inconsistent is refused, never guessed. The layout is bpf/event.h's, by the types generated from it.

use std::mem::{offset_of, size_of};

use crate::bpf::skel::types::{
    call, call_flag, context, image, image_flag, message_args, name, notify_args, open_args, publication,
};
use crate::config::values::Op;

/// Which program image a process runs: the host's process id, its start and the number of its execs so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    pub name: Vec<u8>,
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

/// What was under way on the queue beside a call, by tracepoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// No other call of its kind meanwhile.
    pub alone: bool,
    /// No other call at all when the depth was read.
    pub quiet: bool,
    /// Receives at a send's exit, sends at a receive's; at most one too many.
    pub opposite: u32,
    /// Its number among the calls of its kind, on this queue rising; from 1, 0 where none was given.
    pub number: u64,
    /// Calls of the other kind that had begun at its exit, by such numbers.
    pub begun: u64,
    /// At its entry; `u64::MAX` where one was under way then.
    pub begun_before: u64,
    /// Calls of the host that were not seen whole, until now.
    pub losses: u32,
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
    /// Thread id in the caller's own pid namespace.
    pub vtid: u32,
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
    pub asked: Option<Vec<u8>>,
    /// What it was passed.
    pub args: Args,
    /// The queue that was reached.
    pub queue: Option<Queue>,
    /// Name of the thread, NUL-terminated where shorter.
    pub comm: [u8; 16],
    /// Whether a filter refused it: it is here for its message's sake alone.
    pub filtered: bool,
    /// Whether metrics hold it.
    pub measured: bool,
}

/// Who made calls: a process image, as it was at its first call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Which one.
    pub key: ImageKey,
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
}

/// A queue's name and the number that stands for it in the kernel side's metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Never 0.
    pub number: u64,
    /// As the kernel sees it, without the slash before it.
    pub bytes: Vec<u8>,
}

impl Name {
    /// Decodes a `struct name`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(bytes.len());
        if bytes.len() != size_of::<name>() {
            return Err(malformed);
        }
        let raw: name = head(bytes);
        let name = raw.bytes.get(..raw.len as usize).ok_or(malformed)?;
        Ok(Self { number: raw.hash, bytes: name.iter().map(|byte| byte.cast_unsigned()).collect() })
    }
}

impl ImageKey {
    /// Decodes a `struct publication`: which image published its process context.
    pub fn of_publication(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() != size_of::<publication>() {
            return Err(Malformed(bytes.len()));
        }
        let raw: publication = head(bytes);
        Ok(Self { pid: raw.pid, started_ns: raw.started_ns, exec_id: raw.exec_id })
    }
}

/// A record that is not one: the kernel side and this program disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {0} bytes does not hold what it says")]
pub struct Malformed(pub usize);

const CALL_HEAD: usize = offset_of!(call, names);

/// Reads a plain structure from the beginning of `bytes`, zero where they end early.
pub fn head<T: Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let len = bytes.len().min(size_of::<T>());
    // SAFETY: the generated types are repr(C) of integers and arrays of them, so that any bytes are a value; the copy
    // stays within both.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast::<u8>(), len) };
    value
}

fn trace_id([high, low]: [u64; 2]) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&high.to_ne_bytes());
    id[8..].copy_from_slice(&low.to_ne_bytes());
    id
}

/// The call by its number; None for a number that stands for none.
pub fn op_of(number: u32) -> Option<Op> {
    // Their order is that of enum op in bpf/event.h.
    const OPS: [Op; 6] =
        [Op::MqOpen, Op::MqUnlink, Op::MqTimedsend, Op::MqTimedreceive, Op::MqNotify, Op::MqGetsetattr];
    OPS.get(number as usize).copied()
}

/// The call that a record is of, and its arguments; None for a number that stands for none.
fn args(raw: &call, has: &impl Fn(call_flag) -> bool) -> Option<(Op, Args)> {
    let op = op_of(raw.op.into())?;
    let bytes = raw.args.map(u64::to_ne_bytes);
    let (fd, losses, bytes) = (raw.fd, raw.losses, bytes.as_flattened());
    let attr = |raw: &open_args| Passed { ptr: raw.attr_ptr, value: has(call_flag::CALL_ATTR).then_some(raw.attr) };
    let message = || {
        let raw: message_args = head(bytes);
        let deadline = Deadline { s: raw.deadline_s, ns: raw.deadline_ns };
        let ids = Ids { trace: trace_id(raw.sent_trace_id), span: raw.sent_span_id.to_ne_bytes() };
        Message {
            fd,
            size: raw.size,
            priority: has(call_flag::CALL_PRIORITY).then_some(raw.priority),
            timeout: Passed { ptr: raw.timeout_ptr, value: has(call_flag::CALL_DEADLINE).then_some(deadline) },
            blocked: has(call_flag::CALL_BLOCKED),
            wait_ns: has(call_flag::CALL_WAIT).then_some(raw.wait_ns),
            sent_by: has(call_flag::CALL_LINK).then_some(Sender {
                ids,
                comm: raw.sent_comm.map(i8::cast_unsigned),
                method: Method::Message,
            }),
            tracked: has(call_flag::CALL_TRACKED),
            limited: raw.limited_calls,
            turn: Turn {
                alone: has(call_flag::CALL_ALONE),
                quiet: has(call_flag::CALL_QUIET),
                opposite: raw.opposite,
                number: raw.turn,
                begun: raw.begun,
                begun_before: raw.begun_before,
                losses,
            },
        }
    };
    let args = match op {
        Op::MqOpen => {
            let raw: open_args = head(bytes);
            Args::Open {
                name_ptr: raw.name_ptr,
                oflag: raw.oflag,
                mode: raw.mode,
                attr: attr(&raw),
                attr_changed: has(call_flag::CALL_ATTR_CHANGED),
            }
        }
        Op::MqUnlink => Args::Unlink { name_ptr: head::<open_args>(bytes).name_ptr },
        Op::MqTimedsend => Args::Send(message()),
        Op::MqTimedreceive => Args::Receive(message()),
        Op::MqNotify => {
            let raw: notify_args = head(bytes);
            let event = Event { method: raw.method, signo: raw.signo };
            Args::Notify {
                fd,
                event: Passed { ptr: raw.event_ptr, value: has(call_flag::CALL_EVENT).then_some(event) },
            }
        }
        Op::MqGetsetattr => Args::Getsetattr { fd, attr: attr(&head(bytes)) },
    };
    Some((op, args))
}

fn context_of(raw: &context, has: &impl Fn(call_flag) -> bool) -> Option<Context> {
    let ids = Ids { trace: trace_id(raw.trace_id), span: raw.span_id.to_ne_bytes() };
    let source = match has(call_flag::CALL_CONTEXT_OBI) {
        true => Source::Obi,
        false => Source::Thread { sampled: has(call_flag::CALL_CONTEXT_SAMPLED) },
    };
    has(call_flag::CALL_CONTEXT).then_some(Context { ids, source })
}

impl Call {
    /// Decodes a `struct call`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(bytes.len());
        let names = bytes.get(CALL_HEAD..).ok_or(malformed)?;
        let raw: call = head(&bytes[..CALL_HEAD]);
        let (asked_len, actual_len) = (usize::from(raw.asked_len), usize::from(raw.actual_len));
        let asked = names.get(..asked_len).ok_or(malformed)?;
        let actual = names.get(asked_len..asked_len + actual_len).ok_or(malformed)?;
        let has = |flag: call_flag| raw.flags & flag.0 != 0;
        let (op, args) = args(&raw, &has).ok_or(malformed)?;
        Ok(Self {
            op,
            image: ImageKey { pid: raw.pid, started_ns: raw.process_started_ns, exec_id: raw.exec_id },
            tid: raw.tid,
            vpid: raw.vpid,
            vtid: raw.vtid,
            entered_ns: raw.entered_ns,
            left_ns: raw.left_ns,
            ret: raw.ret,
            uid: raw.uid,
            ipc_ns: raw.ipc_ns,
            abi: if raw.abi == 0 { Abi::Native } else { Abi::Compat },
            ids: Ids { trace: trace_id(raw.trace_id), span: raw.span_id.to_ne_bytes() },
            context: context_of(&raw.context, &has),
            asked: (!has(call_flag::CALL_NAME_BAD)).then(|| asked.to_vec()),
            args,
            queue: has(call_flag::CALL_QUEUE).then(|| Queue {
                key: QueueKey { inode: raw.queue_inode, number: raw.queue_ino, namespace: raw.queue_ns },
                name: actual.to_vec(),
                maxmsg: raw.queue_maxmsg,
                msgsize: raw.queue_msgsize,
                curmsgs: (!has(call_flag::CALL_QUEUE_LEFT)).then_some(raw.queue_curmsgs),
                mode: raw.queue_mode,
            }),
            comm: raw.comm.map(i8::cast_unsigned),
            filtered: has(call_flag::CALL_FILTERED),
            measured: has(call_flag::CALL_MEASURED),
        })
    }

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

    /// Forgets which span sent the message that was received, unless the sending thread's name is kept.
    pub fn drop_sender_unless(&mut self, keeps: impl Fn(&[u8]) -> bool) {
        if let Args::Receive(message) = &mut self.args {
            message.sent_by = message.sent_by.filter(|sender| keeps(unpadded(&sender.comm)));
        }
    }
}

fn unpadded(comm: &[u8]) -> &[u8] {
    comm.split(|byte| *byte == 0).next().unwrap_or_default()
}

impl Image {
    /// Decodes a `struct image`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(bytes.len());
        if bytes.len() < size_of::<image>() {
            return Err(malformed);
        }
        let number = |at: usize| bytes[at..at + 4].try_into().map(u32::from_ne_bytes).map_err(|_| malformed);
        let short = |at: usize| bytes[at..at + 2].try_into().map(u16::from_ne_bytes).map_err(|_| malformed);
        let long = |at: usize| bytes[at..at + 8].try_into().map(u64::from_ne_bytes).map_err(|_| malformed);
        let flags = u32::from(short(offset_of!(image, flags))?);
        let has = |flag: image_flag| flags & flag.0 != 0;
        let field = |at: usize, len: usize, room: usize| match len <= room {
            true => Ok(&bytes[at..at + len]),
            false => Err(malformed),
        };
        let path_len = usize::from(short(offset_of!(image, path_len))?);
        let path = field(offset_of!(image, path), path_len, offset_of!(image, cgroup) - offset_of!(image, path))?;
        let environ_len = number(offset_of!(image, environ_len))? as usize;
        let cgroup_len = number(offset_of!(image, cgroup_len))? as usize;
        let cgroup =
            field(offset_of!(image, cgroup), cgroup_len, offset_of!(image, environ) - offset_of!(image, cgroup))?;
        let comm = &bytes[offset_of!(image, comm)..][..16];
        let at = offset_of!(image, environ);
        let environ = field(at, environ_len, size_of::<image>() - at)?;
        Ok(Self {
            key: ImageKey {
                pid: number(offset_of!(image, pid))?,
                started_ns: long(offset_of!(image, started_ns))?,
                exec_id: number(offset_of!(image, exec_id))?,
            },
            vpid: number(offset_of!(image, vpid))?,
            parent_pid: number(offset_of!(image, ppid))?,
            path: (!has(image_flag::IMAGE_PATH_CUT) && !path.is_empty()).then(|| absolute(path)),
            environ: (!has(image_flag::IMAGE_ENVIRON_BAD)).then(|| environ.to_vec()),
            environ_at: long(offset_of!(image, environ_at))?,
            environ_cut: has(image_flag::IMAGE_ENVIRON_CUT),
            uid: number(offset_of!(image, uid))?,
            cgroup: (!has(image_flag::IMAGE_CGROUP_CUT)).then(|| match absolute(cgroup) {
                path if path.is_empty() => b"/".to_vec(),
                path => path,
            }),
            comm: comm.split(|byte| *byte == 0).next().unwrap_or_default().into(),
        })
    }
}

/// The path of components that come last one first, each with its NUL.
fn absolute(components: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(components.len());
    for component in components.split(|byte| *byte == 0).rev().filter(|component| !component.is_empty()) {
        path.push(b'/');
        path.extend_from_slice(component);
    }
    path
}

#[cfg(test)]
pub(crate) mod tests;
