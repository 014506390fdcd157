//! The kernel's records, decoded. Takes any bytes; what is too short or inconsistent is refused, never guessed. The layout
//! is bpf/event.h's, by the types generated from it. Pure code.

use std::mem::{offset_of, size_of};

use super::skel::types::{
    call, call_flag, context, failure, failure_flag, image, image_flag, message_args, name, notice, notice_kind,
    notify_args, open_args, received, timeout,
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

/// Where the names of a call stand.
const NAMES: usize = offset_of!(call, names);
/// What a record begins with, and what every record has from there on.
const FIRST_WORD: usize = offset_of!(call, context);
const CORE: usize = offset_of!(call, asked_len);

/// Where a call's record goes on after its first word: first_section() of bpf/output.h.
fn first_section(has: &impl Fn(call_flag) -> bool) -> usize {
    if has(call_flag::CALL_CONTEXT) {
        offset_of!(call, context)
    } else if has(call_flag::CALL_TIMEOUT) {
        offset_of!(call, timeout)
    } else if has(call_flag::CALL_WAIT) || has(call_flag::CALL_LINK) || has(call_flag::CALL_CAUSE) {
        offset_of!(call, received)
    } else if has(call_flag::CALL_SPAN) {
        offset_of!(call, trace_id)
    } else {
        CORE
    }
}

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

/// Reads the field that stands at `at`, whose type is that of what `of` gives.
///
/// # Safety
///
/// All of its bytes are there, and any bytes are a value of it.
unsafe fn field<T: Copy>(bytes: &[u8], at: usize, _of: fn(&call) -> &T) -> T {
    debug_assert!(at + size_of::<T>() <= bytes.len());
    // SAFETY: as the caller says.
    unsafe { bytes.as_ptr().add(at).cast::<T>().read_unaligned() }
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

/// A call's arguments, but for those of a send or receive.
fn args(op: Op, fd: i32, bytes: &[u8], has: &impl Fn(call_flag) -> bool) -> Option<Args> {
    let attr = |raw: &open_args| Passed { ptr: raw.attr_ptr, value: has(call_flag::CALL_ATTR).then_some(raw.attr) };
    Some(match op {
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
        Op::MqNotify => {
            let raw: notify_args = head(bytes);
            let event = Event { method: raw.method, signo: raw.signo };
            Args::Notify {
                fd,
                event: Passed { ptr: raw.event_ptr, value: has(call_flag::CALL_EVENT).then_some(event) },
            }
        }
        Op::MqGetsetattr => Args::Getsetattr { fd, attr: attr(&head(bytes)) },
        Op::MqTimedsend | Op::MqTimedreceive => return None,
    })
}

/// The message of a send or receive; its deadline, and what is known of one that was received, stand elsewhere.
fn message(op: Op, fd: i32, losses: [u32; 2], bytes: &[u8], has: &impl Fn(call_flag) -> bool) -> Message {
    let raw: message_args = head(bytes);
    let before = raw.turn.saturating_sub(1);
    let before = if op == Op::MqTimedsend { [before, raw.begun_before] } else { [raw.begun_before, before] };
    Message {
        fd,
        size: raw.size,
        priority: has(call_flag::CALL_PRIORITY).then_some(raw.priority),
        timeout: Passed { ptr: 0, value: None },
        blocked: has(call_flag::CALL_BLOCKED),
        wait_ns: None,
        sent_by: None,
        tracked: has(call_flag::CALL_TRACKED),
        limited: raw.limited_calls,
        turn: Turn {
            number: raw.turn,
            begun: raw.begun,
            quiet: has(call_flag::CALL_QUIET),
            empty: has(call_flag::CALL_EMPTY).then_some(before),
            only_priority: raw.only_priority.checked_sub(1),
            losses,
        },
    }
}

fn context_of(raw: &context, has: &impl Fn(call_flag) -> bool) -> Context {
    let ids = Ids { trace: trace_id(raw.trace_id), span: raw.span_id.to_ne_bytes() };
    let source = match has(call_flag::CALL_CONTEXT_OBI) {
        true => Source::Obi,
        false => Source::Thread { sampled: has(call_flag::CALL_CONTEXT_SAMPLED) },
    };
    Context { ids, source }
}

fn timeout_of(raw: &timeout, has: &impl Fn(call_flag) -> bool) -> Passed<Deadline> {
    let deadline = Deadline { s: raw.s, ns: raw.ns };
    Passed { ptr: raw.ptr, value: has(call_flag::CALL_DEADLINE).then_some(deadline) }
}

fn sender_of(raw: &received) -> Sender {
    let ids = Ids { trace: trace_id(raw.trace_id), span: raw.span_id.to_ne_bytes() };
    Sender { ids, comm: raw.comm.map(i8::cast_unsigned), method: Method::Message }
}

/// Why a call failed; None where that is not known.
fn failure_of(raw: &failure) -> Option<CallFailure> {
    let &failure { cause, known, owner_pid, value, used, requested } = raw;
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
    /// Decodes the record of a `struct call`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(bytes.len());
        let first: &[u8; FIRST_WORD] = bytes.first_chunk().ok_or(malformed)?;
        let flags = u32::from_ne_bytes([first[4], first[5], first[6], first[7]]);
        let has = |flag: call_flag| flags & flag.0 != 0;
        // What follows the first word is the structure from here on.
        let start = first_section(&has);
        let rest = &bytes[FIRST_WORD..];
        let names = rest.get(NAMES - start..).ok_or(malformed)?;
        // Only what is looked at is read: the record is large.
        macro_rules! field {
            ($field:ident) => {{
                let at = const {
                    assert!(offset_of!(call, $field) >= CORE && offset_of!(call, $field) < NAMES);
                    offset_of!(call, $field)
                };
                // SAFETY: all of the structure from `start`, which is not behind CORE, to its names is there.
                unsafe { field(rest, at - start, |raw| &raw.$field) }
            }};
        }
        // The sections: each is there where its flag says so, and then `start` is not behind it.
        macro_rules! section {
            ($field:ident as $type:ty) => {
                head::<$type>(&rest[offset_of!(call, $field) - start..])
            };
        }
        let (asked_len, actual_len) = (usize::from(field!(asked_len)), usize::from(field!(actual_len)));
        let asked = names.get(..asked_len).ok_or(malformed)?;
        let actual = names.get(asked_len..asked_len + actual_len).ok_or(malformed)?;
        let op = op_of(first[offset_of!(call, op)].into()).ok_or(malformed)?;
        let fd = field!(fd);
        let args_bytes = &rest[offset_of!(call, args) - start..NAMES - start];
        let args = match args(op, fd, args_bytes, &has) {
            Some(args) => args,
            None => {
                let mut message = message(op, fd, field!(losses), args_bytes, &has);
                if has(call_flag::CALL_TIMEOUT) {
                    message.timeout = timeout_of(&section!(timeout as timeout), &has);
                }
                if has(call_flag::CALL_WAIT) || has(call_flag::CALL_LINK) {
                    let raw = section!(received as received);
                    message.wait_ns = has(call_flag::CALL_WAIT).then_some(raw.wait_ns);
                    message.sent_by = has(call_flag::CALL_LINK).then(|| sender_of(&raw));
                }
                if op == Op::MqTimedsend { Args::Send(message) } else { Args::Receive(message) }
            }
        };
        let (ids, comm) = match has(call_flag::CALL_SPAN) {
            true => {
                let trace = trace_id(section!(trace_id as [u64; 2]));
                (Ids { trace, span: section!(span_id as [u8; 8]) }, section!(comm as [u8; 16]))
            }
            false => (Ids { trace: [0; 16], span: [0; 8] }, [0; 16]),
        };
        let mode = u16::from_ne_bytes([first[offset_of!(call, queue_mode)], first[offset_of!(call, queue_mode) + 1]]);
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
            abi: if first[offset_of!(call, abi)] == 0 { Abi::Native } else { Abi::Compat },
            ids,
            context: has(call_flag::CALL_CONTEXT).then(|| context_of(&section!(context as context), &has)),
            asked: (!has(call_flag::CALL_NAME_BAD)).then(|| NameBytes::from_slice(asked)),
            args,
            queue: has(call_flag::CALL_QUEUE).then(|| Queue {
                key: QueueKey { inode: field!(queue_inode), number: field!(queue_ino), namespace: field!(queue_ns) },
                name: NameBytes::from_slice(actual),
                maxmsg: field!(queue_maxmsg).into(),
                msgsize: field!(queue_msgsize).into(),
                curmsgs: (!has(call_flag::CALL_QUEUE_LEFT)).then_some(field!(queue_curmsgs).into()),
                mode,
            }),
            comm,
            failure: match has(call_flag::CALL_CAUSE) {
                true => failure_of(&section!(received as failure)),
                false => None,
            },
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
