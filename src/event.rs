//! The kernel's records, decoded: bytes to [`Call`] and [`Image`]. Pure code that takes any bytes; what is too short
//! or inconsistent is refused, never guessed. The layout is bpf/event.h's, by the types generated from it.

use std::mem::{offset_of, size_of};

use crate::bpf::skel::types::{call, call_flag, image, image_flag};
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

/// What the kernel knows of the queue that a call reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name, without the slash.
    pub name: Vec<u8>,
    /// The most messages it holds.
    pub maxmsg: i64,
    /// The most bytes of a message.
    pub msgsize: i64,
    /// The messages in it when the call ended.
    pub curmsgs: i64,
    /// Permission bits.
    pub mode: u16,
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
    /// Id of the cgroup (v2).
    pub cgroup_id: u64,
    /// Number of the ipc namespace: the queue's, or the caller's where no queue was reached.
    pub ipc_ns: u32,
    /// mq_open's flags as passed.
    pub oflag: u32,
    /// mq_open's mode as passed.
    pub mode: u32,
    /// Where the name stood in the caller's memory.
    pub name_ptr: u64,
    /// The name that the caller's memory held; None where it could not be read.
    pub asked: Option<Vec<u8>>,
    /// Where the attr stood in the caller's memory; 0 for NULL.
    pub attr_ptr: u64,
    /// flags, maxmsg, msgsize and curmsgs as the caller passed them; None where not passed or not readable.
    pub attr: Option<[i64; 4]>,
    /// The queue that was reached.
    pub queue: Option<Queue>,
    /// Name of the thread, NUL-terminated where shorter.
    pub comm: [u8; 16],
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
    /// Whether the environment was longer than the kernel side reads.
    pub environ_cut: bool,
}

/// A record that is not one: the kernel side and this program disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {0} bytes does not hold what it says")]
pub struct Malformed(pub usize);

const CALL_HEAD: usize = offset_of!(call, names);

/// Reads a plain structure from the beginning of `bytes`, zero where they end early.
fn head<T: Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let len = bytes.len().min(size_of::<T>());
    // SAFETY: the generated types are repr(C) of integers and arrays of them, so that any bytes are a value; the copy
    // stays within both.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast::<u8>(), len) };
    value
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
        let has = |flag: call_flag| u32::from(raw.flags) & flag.0 != 0;
        let op = match raw.op {
            0 => Op::MqOpen,
            _ => return Err(malformed),
        };
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
            cgroup_id: raw.cgroup_id,
            ipc_ns: raw.ipc_ns,
            oflag: raw.oflag,
            mode: raw.mode,
            name_ptr: raw.name_ptr,
            asked: (!has(call_flag::CALL_NAME_BAD)).then(|| asked.to_vec()),
            attr_ptr: raw.attr_ptr,
            attr: has(call_flag::CALL_ATTR).then_some(raw.attr),
            queue: has(call_flag::CALL_QUEUE).then(|| Queue {
                name: actual.to_vec(),
                maxmsg: raw.queue_maxmsg,
                msgsize: raw.queue_msgsize,
                curmsgs: raw.queue_curmsgs,
                mode: raw.queue_mode,
            }),
            comm: raw.comm.map(i8::cast_unsigned),
        })
    }

    /// Nanoseconds from entry to exit.
    pub fn duration_ns(&self) -> u64 {
        self.left_ns.saturating_sub(self.entered_ns)
    }

    /// The thread's name, without its padding.
    pub fn comm(&self) -> &[u8] {
        self.comm.split(|byte| *byte == 0).next().unwrap_or_default()
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
        let started = bytes[offset_of!(image, started_ns)..][..8].try_into().map_err(|_| malformed)?;
        let flags = u32::from(short(offset_of!(image, flags))?);
        let has = |flag: image_flag| flags & flag.0 != 0;
        let field = |at: usize, len: usize, room: usize| match len <= room {
            true => Ok(&bytes[at..at + len]),
            false => Err(malformed),
        };
        let path_len = usize::from(short(offset_of!(image, path_len))?);
        let path = field(offset_of!(image, path), path_len, offset_of!(image, environ) - offset_of!(image, path))?;
        let environ_len = number(offset_of!(image, environ_len))? as usize;
        let at = offset_of!(image, environ);
        let environ = field(at, environ_len, size_of::<image>() - at)?;
        Ok(Self {
            key: ImageKey {
                pid: number(offset_of!(image, pid))?,
                started_ns: u64::from_ne_bytes(started),
                exec_id: number(offset_of!(image, exec_id))?,
            },
            vpid: number(offset_of!(image, vpid))?,
            parent_pid: number(offset_of!(image, ppid))?,
            path: (!has(image_flag::IMAGE_PATH_CUT) && !path.is_empty()).then(|| absolute(path)),
            environ: (!has(image_flag::IMAGE_ENVIRON_BAD)).then(|| environ.to_vec()),
            environ_cut: has(image_flag::IMAGE_ENVIRON_CUT),
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
mod tests {
    use super::*;

    fn bytes<T>(value: &T) -> Vec<u8> {
        // SAFETY: a plain structure without padding, see bpf/event.h.
        unsafe { std::slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    fn open(asked: &[u8], actual: &[u8], flags: call_flag) -> Vec<u8> {
        let mut raw = call {
            flags: flags.0 as u8,
            asked_len: asked.len() as u16,
            actual_len: actual.len() as u16,
            pid: 7,
            tid: 8,
            entered_ns: 100,
            left_ns: 350,
            ret: -2,
            ..Default::default()
        };
        for (to, from) in raw.names.iter_mut().zip(asked.iter().chain(actual)) {
            *to = from.cast_signed();
        }
        let mut bytes = bytes(&raw);
        bytes.truncate(CALL_HEAD + asked.len() + actual.len());
        bytes
    }

    /// Prevents names from running into each other, and an unreadable name from being taken for an empty one.
    #[test]
    fn names_and_flags() {
        let call = Call::decode(&open(b"ask", b"actual", call_flag::CALL_QUEUE)).unwrap();
        assert_eq!(call.asked.as_deref(), Some(&b"ask"[..]));
        assert_eq!(call.queue.as_ref().map(|queue| &*queue.name), Some(&b"actual"[..]));
        assert_eq!((call.image.pid, call.tid, call.duration_ns(), call.attr), (7, 8, 250, None));
        let bad = Call::decode(&open(b"", b"", call_flag::CALL_NAME_BAD)).unwrap();
        assert_eq!((bad.asked, bad.queue), (None, None));
        assert_eq!(Call::decode(&open(b"", b"", call_flag(0))).unwrap().asked, Some(Vec::new()));
    }

    /// Prevents a record that was cut, or lies about its lengths, from being read beyond its end.
    #[test]
    fn truncated_records_are_refused() {
        let whole = open(&[b'a'; 255], &[b'b'; 255], call_flag::CALL_QUEUE);
        for len in 0..whole.len() {
            assert_eq!(Call::decode(&whole[..len]), Err(Malformed(len)));
        }
        assert!(Call::decode(&whole).is_ok());
        let mut lie = open(b"a", b"", call_flag(0));
        lie[offset_of!(call, actual_len)] = 0xff;
        lie[offset_of!(call, actual_len) + 1] = 0xff;
        assert!(Call::decode(&lie).is_err());
        let mut other = open(b"a", b"", call_flag(0));
        other[0] = 99;
        assert!(Call::decode(&other).is_err());
    }

    /// Prevents a path from coming out in reverse, and lengths beyond the fields from being believed.
    #[test]
    fn images() {
        let mut raw = vec![0; size_of::<image>()];
        raw[offset_of!(image, pid)] = 9;
        raw[offset_of!(image, path)..][..10].copy_from_slice(b"x\0bin\0usr\0");
        raw[offset_of!(image, path_len)] = 10;
        raw[offset_of!(image, environ)..][..4].copy_from_slice(b"A=b\0");
        raw[offset_of!(image, environ_len)] = 4;
        let decoded = Image::decode(&raw).unwrap();
        assert_eq!(decoded.path.as_deref(), Some(&b"/usr/bin/x"[..]));
        assert_eq!(decoded.environ.as_deref(), Some(&b"A=b\0"[..]));
        assert_eq!(decoded.key.pid, 9);
        assert_eq!(Image::decode(&raw[1..]), Err(Malformed(raw.len() - 1)));
        raw[offset_of!(image, environ_len) + 3] = 1;
        assert!(Image::decode(&raw).is_err());
    }
}
