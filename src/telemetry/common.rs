//! What the spans of calls that are alike have in common: everything but their ids, links, times and numbers. Each thread
//! makes the same few calls again and again, so that this is encoded once and then copied. Bounded; pure code.

use super::view::View;
use crate::model::call::{Abi, Args, Attr, Event, Passed};
use crate::model::cause::CallFailure;
use crate::model::values::Op;

/// So many are kept: at most 3 KiB each, where names are as long as they may be and all of it has to be escaped.
const ENTRIES: usize = 512;

/// What was passed, as far as it is alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommonArgs {
    Open { oflag: u32, mode: u32, attr: Passed<Attr>, attr_changed: bool },
    Unlink,
    Send { fd: i32 },
    Receive { fd: i32, room: u64 },
    Notify { fd: i32, event: Passed<Event> },
    Getsetattr { fd: i32, attr: Passed<Attr> },
}

impl CommonArgs {
    fn of(args: &Args) -> Self {
        match *args {
            Args::Open { oflag, mode, attr, attr_changed, .. } => Self::Open { oflag, mode, attr, attr_changed },
            Args::Unlink { .. } => Self::Unlink,
            Args::Send(message) => Self::Send { fd: message.fd },
            Args::Receive(message) => Self::Receive { fd: message.fd, room: message.size },
            Args::Notify { fd, event } => Self::Notify { fd, event },
            Args::Getsetattr { fd, attr } => Self::Getsetattr { fd, attr },
        }
    }

    fn fd(&self) -> i32 {
        match *self {
            Self::Open { .. } | Self::Unlink => 0,
            Self::Send { fd } | Self::Receive { fd, .. } | Self::Notify { fd, .. } | Self::Getsetattr { fd, .. } => fd,
        }
    }
}

/// What [`View::common_attributes`], the span's name, its kind and its status follow from, but for the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Likeness {
    op: Op,
    abi: Abi,
    is_child: bool,
    tid: u32,
    comm: [u8; 16],
    ipc_ns: u32,
    args: CommonArgs,
    /// Its inode's number, limits and mode.
    queue: Option<(u64, i64, i64, u16)>,
    /// 0 where it succeeded.
    error: i64,
    failure: Option<CallFailure>,
    is_asked_known: bool,
}

impl Likeness {
    fn of(view: &View<'_>) -> Self {
        let call = view.call;
        Self {
            op: call.op,
            abi: call.abi,
            is_child: view.is_child,
            tid: call.tid,
            comm: call.comm,
            ipc_ns: call.ipc_ns,
            args: CommonArgs::of(&call.args),
            queue: call.queue.as_ref().map(|queue| (queue.key.number, queue.maxmsg, queue.msgsize, queue.mode)),
            error: call.ret.min(0),
            failure: call.failure,
            is_asked_known: call.asked.is_some(),
        }
    }

    /// Threads that make several kinds of calls, on several descriptors, find each at a place of its own.
    fn place(&self) -> usize {
        let number = u64::from(self.tid) << 32 ^ u64::from(self.args.fd().cast_unsigned()) << 3 ^ self.op as u64;
        (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % ENTRIES
    }
}

/// As `==`, which for empty slices has memcmp(3) look at addresses that are none: where it is made for AVX-512 the processor
/// takes more than 100 ns for that.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && (one.is_empty() || one == other)
}

#[derive(Debug)]
struct Entry {
    likeness: Likeness,
    asked: Vec<u8>,
    name: Vec<u8>,
    encoded: Vec<u8>,
}

/// What was encoded lately.
#[derive(Debug)]
pub struct CommonCache {
    entries: Vec<Option<Box<Entry>>>,
}

impl Default for CommonCache {
    fn default() -> Self {
        Self { entries: (0..ENTRIES).map(|_| None).collect() }
    }
}

impl CommonCache {
    /// What `encode` makes of what the call has in common with those like it; `encode` is always the same.
    pub fn encoded(&mut self, view: &View<'_>, encode: impl FnOnce(&View<'_>, &mut Vec<u8>)) -> &[u8] {
        let (likeness, call) = (Likeness::of(view), view.call);
        let asked = call.asked.as_deref().unwrap_or_default();
        let name = call.queue.as_ref().map_or(&[][..], |queue| &queue.name);
        let entry = &mut self.entries[likeness.place()];
        let is_alike =
            |entry: &Entry| entry.likeness == likeness && is_same(&entry.asked, asked) && is_same(&entry.name, name);
        if !entry.as_deref().is_some_and(is_alike) {
            let mut encoded = entry.take().map(|entry| entry.encoded).unwrap_or_default();
            encoded.clear();
            encode(view, &mut encoded);
            encoded.shrink_to(2 * encoded.len());
            *entry = Some(Box::new(Entry { likeness, asked: asked.into(), name: name.into(), encoded }));
        }
        entry.as_ref().map_or(&[], |entry| &entry.encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::Call;
    use crate::model::examples::{example, message, queue};

    /// Calls that differ in each thing that their spans may have in common, and in nothing else.
    fn calls() -> Vec<Call> {
        let base = || {
            let (op, args) = (Op::MqTimedreceive, Args::Receive(message()));
            Call { op, args, ret: 8, asked: None, queue: Some(queue(b"a")), ..example() }
        };
        let mut other_size = message();
        other_size.size += 1;
        let mut other_fd = message();
        other_fd.fd += 1;
        let mut longer = queue(b"a");
        longer.maxmsg += 1;
        vec![
            base(),
            Call { tid: base().tid + 1, ..base() },
            Call { comm: [b'x'; 16], ..base() },
            Call { abi: Abi::Compat, ..base() },
            Call { ipc_ns: base().ipc_ns + 1, ..base() },
            Call { ret: -9, ..base() },
            Call { ret: -11, ..base() },
            Call { asked: Some(b"b".to_vec().into()), ..base() },
            Call { asked: Some(Vec::new().into()), ..base() },
            Call { queue: None, ..base() },
            Call { queue: Some(queue(b"b")), ..base() },
            Call { queue: Some(longer), ..base() },
            Call { args: Args::Receive(other_size), ..base() },
            Call { args: Args::Receive(other_fd), ..base() },
            Call { op: Op::MqTimedsend, args: Args::Send(message()), ..base() },
        ]
    }

    /// Prevents a call from being described by another's words, and calls that are alike from being encoded anew.
    #[test]
    fn only_what_is_alike_is_copied() {
        let (mut cache, mut encoded) = (CommonCache::default(), 0);
        let calls = calls();
        for call in calls.iter().flat_map(|call| [call, call]).chain(calls.iter().rev()) {
            let view = View::new(call, 0);
            let mut expected = Vec::new();
            crate::telemetry::protobuf::common(&view, &mut expected);
            let got = cache.encoded(&view, |view, out| {
                encoded += 1;
                crate::telemetry::protobuf::common(view, out);
            });
            assert_eq!(got, expected, "{call:?}");
        }
        assert!(encoded < 3 * calls.len(), "each twice in a row: {encoded}");
    }
}
