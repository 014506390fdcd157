//! The kernel's records, decoded. Takes any bytes; what is too short or inconsistent is refused, never guessed. The layout
//! is bpf/event.h's, by the types generated from it. Pure code.

use std::mem::{offset_of, size_of};

use super::skel::types::{
    call, call_flag, context, failure, failure_flag, image, image_flag, message_args, name, notice, notice_kind,
    notify_args, open_args,
};
use crate::model::call::{
    Abi, Args, Call, Context, Deadline, Event, Ids, Image, ImageKey, Message, Method, Name, NameBytes, Notice, Passed,
    Queue, QueueKey, Root, Sender, Source, Turn, unpadded,
};
use crate::model::cause::{CallFailure, Cause, ReachedLimit};
use crate::model::values::Op;

/// A record that is not one: the kernel side and this program disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {0} bytes does not hold what it says")]
pub struct Malformed(pub usize);

/// What stands before the names of a call.
pub(super) const CALL_HEAD: usize = offset_of!(call, names);

/// Reads a plain structure from the beginning of `bytes`, zero where they end early.
pub fn head<T: Default>(bytes: &[u8]) -> T {
    if bytes.len() >= size_of::<T>() {
        // SAFETY: the generated types are repr(C) of integers and arrays of them, so that any bytes are a value, of which
        // there are enough.
        return unsafe { bytes.as_ptr().cast::<T>().read_unaligned() };
    }
    let mut value = T::default();
    let len = bytes.len().min(size_of::<T>());
    // SAFETY: the generated types are repr(C) of integers and arrays of them, so that any bytes are a value; the copy
    // stays within both.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast::<u8>(), len) };
    value
}

/// The two halves of a trace id.
pub(super) fn trace_id([high, low]: [u64; 2]) -> [u8; 16] {
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

/// A call's arguments.
fn args(op: Op, fd: i32, losses: u32, bytes: &[u8], has: &impl Fn(call_flag) -> bool) -> Args {
    let attr = |raw: &open_args| Passed { ptr: raw.attr_ptr, value: has(call_flag::CALL_ATTR).then_some(raw.attr) };
    let message = || {
        let raw: message_args = head(bytes);
        let before = raw.turn.saturating_sub(1);
        let before = if op == Op::MqTimedsend { [before, raw.begun_before] } else { [raw.begun_before, before] };
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
                number: raw.turn,
                begun: raw.begun,
                quiet: has(call_flag::CALL_QUIET),
                empty: has(call_flag::CALL_EMPTY).then_some(before),
                only_priority: raw.only_priority.checked_sub(1),
                losses: [losses, raw.lost_receives],
            },
        }
    };
    match op {
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
    }
}

fn context_of(raw: &context, has: &impl Fn(call_flag) -> bool) -> Option<Context> {
    let ids = Ids { trace: trace_id(raw.trace_id), span: raw.span_id.to_ne_bytes() };
    let source = match has(call_flag::CALL_CONTEXT_OBI) {
        true => Source::Obi,
        false => Source::Thread { sampled: has(call_flag::CALL_CONTEXT_SAMPLED) },
    };
    has(call_flag::CALL_CONTEXT).then_some(Context { ids, source })
}

/// Where a call that failed has why: in the place of what a message would be described by.
const FAILURE: usize = offset_of!(message_args, wait_ns);

/// Why a call failed; None where that is not known.
fn failure_of(args: &[u8], has: &impl Fn(call_flag) -> bool) -> Option<CallFailure> {
    if !has(call_flag::CALL_CAUSE) {
        return None;
    }
    let failure { cause, known, owner_pid, value, used, requested } = head(args.get(FAILURE..)?);
    let knows = |flag: failure_flag| u32::from(known) & flag.0 != 0;
    let limit = ReachedLimit { value, used: knows(failure_flag::FAILURE_USED).then_some(used), requested };
    Some(CallFailure {
        cause: Cause::of(cause.into())?,
        limit: knows(failure_flag::FAILURE_LIMIT).then_some(limit),
        owner_pid: (owner_pid != 0).then_some(owner_pid),
    })
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

impl Notice {
    /// Decodes a `struct notice`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(bytes.len());
        if bytes.len() != size_of::<notice>() {
            return Err(malformed);
        }
        let raw: notice = head(bytes);
        let key = ImageKey { pid: raw.image.pid, started_ns: raw.image.started_ns, exec_id: raw.image.exec_id };
        match notice_kind(raw.kind) {
            notice_kind::NOTICE_PUBLISHED => Ok(Self::Published(key)),
            notice_kind::NOTICE_ENDED => Ok(Self::Ended(key)),
            _ => Err(malformed),
        }
    }
}

impl Call {
    /// Decodes a `struct call`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(bytes.len());
        let names = bytes.get(CALL_HEAD..).ok_or(malformed)?;
        let raw = bytes.as_ptr().cast::<call>();
        // Only what is looked at is read: the record is large, and is cut after its names.
        macro_rules! field {
            ($field:ident) => {{
                const { assert!(offset_of!(call, $field) < CALL_HEAD) };
                // SAFETY: it stands within the CALL_HEAD bytes that are there; integers and arrays of them.
                unsafe { (&raw const (*raw).$field).read_unaligned() }
            }};
        }
        let (asked_len, actual_len) = (usize::from(field!(asked_len)), usize::from(field!(actual_len)));
        let asked = names.get(..asked_len).ok_or(malformed)?;
        let actual = names.get(asked_len..asked_len + actual_len).ok_or(malformed)?;
        let flags = field!(flags);
        let has = |flag: call_flag| flags & flag.0 != 0;
        let op = op_of(field!(op).into()).ok_or(malformed)?;
        let args_bytes = &bytes[offset_of!(call, args)..CALL_HEAD];
        Ok(Self {
            op,
            image: ImageKey { pid: field!(pid), started_ns: field!(process_started_ns), exec_id: field!(exec_id) },
            tid: field!(tid),
            vpid: field!(vpid),
            local_pid: field!(local_pid),
            entered_ns: field!(entered_ns),
            left_ns: field!(left_ns),
            ret: field!(ret),
            uid: field!(uid),
            ipc_ns: field!(ipc_ns),
            abi: if field!(abi) == 0 { Abi::Native } else { Abi::Compat },
            ids: Ids { trace: trace_id(field!(trace_id)), span: field!(span_id).to_ne_bytes() },
            context: context_of(&field!(context), &has),
            asked: (!has(call_flag::CALL_NAME_BAD)).then(|| NameBytes::from_slice(asked)),
            args: args(op, field!(fd), field!(losses), args_bytes, &has),
            queue: has(call_flag::CALL_QUEUE).then(|| Queue {
                key: QueueKey { inode: field!(queue_inode), number: field!(queue_ino), namespace: field!(queue_ns) },
                name: NameBytes::from_slice(actual),
                maxmsg: field!(queue_maxmsg),
                msgsize: field!(queue_msgsize),
                curmsgs: (!has(call_flag::CALL_QUEUE_LEFT)).then_some(field!(queue_curmsgs)),
                mode: field!(queue_mode),
            }),
            comm: field!(comm).map(i8::cast_unsigned),
            failure: failure_of(args_bytes, &has),
            filtered: has(call_flag::CALL_FILTERED),
            measured: has(call_flag::CALL_MEASURED),
        })
    }
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
            local_pid: number(offset_of!(image, local_pid))?,
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
            comm: unpadded(comm).into(),
            root: Root {
                mount_namespace: number(offset_of!(image, mnt_ns))?,
                // The kernel's own dev_t: twelve bits and twenty.
                device: (number(offset_of!(image, root_dev))? >> 20, number(offset_of!(image, root_dev))? & 0xf_ffff),
                inode: long(offset_of!(image, root_ino))?,
            },
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
mod tests;
