//! What is there now, from the kernel's own lists (bpf/live.bpf.c): threads that wait in a send or receive, and descriptors of
//! queues, whoever may look at whose /proc. A list is made by the reading thread itself, in a few milliseconds, and waits for
//! no other process.

use std::io::{self, BufRead, BufReader, Read};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, Link, OpenObject};

use super::decode::{Malformed, head, op_of};
use super::live_skel::types::{holder, live_queue, waiter};
use super::live_skel::{LiveSkel, LiveSkelBuilder};
use super::programs::Programs;
use super::warnings;
use crate::model::call::{Abi, Deadline, ImageKey, QueueKey, unpadded};
use crate::model::live::{LiveQueue, QueueAccess, QueueHolder, Since, Waiter};
use crate::model::text::utf8;

/// The kernel makes so many bytes of a list at a time (kernel/bpf/bpf_iter.c, bpf_seq_read).
const AT_ONCE: usize = 32 << 10;

/// The programs that make the lists.
pub struct Iterators {
    links: Mutex<Lists>,
    // After the links.
    _skel: LiveSkel<'static>,
}

/// One is read at a time: the programs have room for one record.
struct Lists {
    waiters: Link,
    holders: Link,
}

impl Iterators {
    /// Loads them; an error where the kernel has none (before Linux 5.15) or refuses them.
    pub fn open(programs: &Arc<Programs>) -> libbpf_rs::Result<Self> {
        warnings::keep();
        // As large as a pointer; it is never freed, so that the programs can go from thread to thread.
        let storage = Box::leak(Box::new(MaybeUninit::<OpenObject>::uninit()));
        let mut open = LiveSkelBuilder::default().open(storage)?;
        // Of the two places for calls in flight there is one only.
        let (in_task_storage, states) = programs.thread_states();
        let (used, unused) = match in_task_storage {
            true => (&mut open.maps.threads, &mut open.maps.thread_states),
            false => (&mut open.maps.thread_states, &mut open.maps.threads),
        };
        used.reuse_fd(states.as_fd())?;
        unused.set_autocreate(false)?;
        if let Some(rodata) = &mut open.maps.rodata_data {
            (rodata.own_level, rodata.own_namespace) = programs.own_pid_namespace();
            rodata.has_task_storage = in_task_storage;
        }
        let skel = open.load()?;
        let links = Lists { waiters: skel.progs.live_waiters.attach()?, holders: skel.progs.live_holders.attach()? };
        Ok(Self { links: Mutex::new(links), _skel: skel })
    }

    fn links(&self) -> MutexGuard<'_, Lists> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The threads that wait in a send or receive.
    pub fn waiters(&self) -> io::Result<Vec<Waiter>> {
        let links = self.links();
        records(&links.waiters, size_of::<waiter>(), Waiter::decode)
    }

    /// The descriptors of queues that processes have open, with the addresses of their files.
    pub fn holders(&self) -> io::Result<Vec<QueueHolder>> {
        let links = self.links();
        records(&links.holders, size_of::<holder>(), QueueHolder::decode)
    }
}

/// Makes a list, and reads it to its end: record by record, since there may be as many as there are threads.
fn records<T>(link: &Link, size: usize, decode: impl Fn(&[u8]) -> Result<T, Malformed>) -> io::Result<Vec<T>> {
    let list = Iter::new(link).map_err(io::Error::other)?;
    let (mut list, mut record, mut all) = (BufReader::with_capacity(AT_ONCE, list), vec![0; size], Vec::new());
    while !list.fill_buf()?.is_empty() {
        list.read_exact(&mut record)?;
        all.push(decode(&record).map_err(io::Error::other)?);
    }
    Ok(all)
}

/// The queue of a record; None where the descriptor is none.
fn queue_of(raw: &live_queue) -> Result<Option<LiveQueue>, Malformed> {
    if raw.ino == 0 {
        return Ok(None);
    }
    let name = raw.name.get(..raw.name_len as usize).ok_or(Malformed(size_of::<live_queue>()))?;
    let name: Vec<u8> = name.iter().map(|byte| byte.cast_unsigned()).collect();
    Ok(Some(LiveQueue {
        ipc_ns: raw.ipc_ns,
        name: format!("/{}", utf8(&name)).into(),
        number: raw.ino,
        key: Some(QueueKey { inode: raw.inode, number: raw.ino, namespace: raw.ns }),
        maxmsg: raw.maxmsg,
        msgsize: raw.msgsize,
        curmsgs: raw.curmsgs,
    }))
}

/// The queue at the end of a record.
fn queue_at(bytes: &[u8], at: usize) -> Result<Option<LiveQueue>, Malformed> {
    let raw: live_queue = read(bytes.get(at..).unwrap_or_default())?;
    queue_of(&raw)
}

/// A plain structure that is there as a whole.
fn read<T: Default>(bytes: &[u8]) -> Result<T, Malformed> {
    if bytes.len() < size_of::<T>() { Err(Malformed(bytes.len())) } else { Ok(head(bytes)) }
}

impl Waiter {
    /// Decodes a `struct waiter`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let raw: waiter = read(bytes)?;
        Ok(Self {
            image: ImageKey { pid: raw.pid, started_ns: raw.started_ns, exec_id: raw.exec_id },
            pid: raw.local_pid,
            vpid: raw.vpid,
            tid: raw.local_tid,
            comm: utf8(unpadded(&raw.comm.map(i8::cast_unsigned))).into_owned(),
            uid: raw.uid,
            ipc_ns: raw.ipc_ns,
            op: op_of(raw.op).ok_or(Malformed(bytes.len()))?,
            fd: raw.fd,
            size: raw.size,
            priority: raw.priority,
            deadline: (raw.has_deadline != 0).then_some(Deadline { s: raw.deadline_s, ns: raw.deadline_ns }),
            abi: if raw.is_compat != 0 { Abi::Compat } else { Abi::Native },
            since_ns: raw.since_ns,
            host_pid: raw.pid,
            host_tid: raw.tid,
            since: match raw.since {
                2 => Since::Entry,
                1 => Since::Sleep,
                _ => Since::Look,
            },
            switches: raw.switches,
            queue: queue_at(bytes, offset_of!(waiter, queue))?,
        })
    }
}

impl QueueHolder {
    /// Decodes a `struct holder`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(bytes.len());
        let raw: holder = read(bytes)?;
        Ok(Self {
            host_pid: raw.pid,
            comm: utf8(unpadded(&raw.comm.map(i8::cast_unsigned))).into_owned(),
            fd: raw.fd,
            access: match raw.mode {
                1 => QueueAccess::Read,
                2 => QueueAccess::Write,
                3 => QueueAccess::ReadWrite,
                _ => return Err(malformed),
            },
            file: raw.file,
            queue: queue_at(bytes, offset_of!(holder, queue))?.ok_or(malformed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::values::Op;

    fn bytes<T>(value: &T) -> Vec<u8> {
        // SAFETY: a plain structure without padding, see bpf/live.h.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    fn queue(name: &[u8]) -> live_queue {
        let mut raw =
            live_queue { inode: 1, ino: 2, ns: 3, ipc_ns: 4, name_len: name.len() as u32, ..live_queue::default() };
        raw.name.iter_mut().zip(name).for_each(|(to, from)| *to = from.cast_signed());
        raw
    }

    /// Prevents a record that was cut from being read beyond its end, one of another layout from being believed, and a
    /// thread whose descriptor is no queue from being given one.
    #[test]
    fn records_of_the_lists() {
        let raw =
            waiter { pid: 7, tid: 8, local_pid: 9, local_tid: 10, op: 3, queue: queue(b"q"), ..waiter::default() };
        let seen = Waiter::decode(&bytes(&raw)).unwrap();
        assert_eq!((seen.pid, seen.tid, seen.host_tid, seen.op), (9, 10, 8, Op::MqTimedreceive));
        let of_queue = seen.queue.unwrap();
        assert_eq!((&*of_queue.name, of_queue.id()), ("/q", (4, 2)));
        assert_eq!(of_queue.key, Some(QueueKey { inode: 1, number: 2, namespace: 3 }));
        let none = waiter { queue: live_queue::default(), ..raw };
        assert_eq!(Waiter::decode(&bytes(&none)).unwrap().queue, None);
        assert!(
            Waiter::decode(&bytes(&raw)[1..]).is_err() && Waiter::decode(&bytes(&waiter { op: 6, ..raw })).is_err()
        );
        let too_long = waiter { queue: live_queue { name_len: 300, ..queue(b"q") }, ..raw };
        assert!(Waiter::decode(&bytes(&too_long)).is_err());
        for (mode, access) in [(1, QueueAccess::Read), (2, QueueAccess::Write), (3, QueueAccess::ReadWrite)] {
            let raw = holder { mode, queue: queue(b"q"), ..holder::default() };
            assert_eq!(QueueHolder::decode(&bytes(&raw)).unwrap().access, access);
        }
        assert!(QueueHolder::decode(&bytes(&holder { queue: queue(b"q"), ..holder::default() })).is_err());
        assert!(QueueHolder::decode(&bytes(&holder { mode: 1, ..holder::default() })).is_err());
    }
}
