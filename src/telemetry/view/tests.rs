//! Calls described: by tables, a row for each thing that could be said wrongly.

use super::*;
use crate::model::call::{Event, Method, Queue};
use crate::model::cause::Cause;
use crate::model::examples::{self, example, queue};
use crate::model::values::Receive;

const START: u64 = 1_000_000_000;

#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Attributes for Seen {
    fn text(&mut self, key: &str, value: &str) {
        self.0.push((key.into(), value.into()));
    }
    fn int(&mut self, key: &str, value: i64) {
        self.0.push((key.into(), value.to_string()));
    }
    fn double(&mut self, key: &str, value: f64) {
        self.0.push((key.into(), value.to_string()));
    }
    fn boolean(&mut self, key: &str, value: bool) {
        self.0.push((key.into(), value.to_string()));
    }
    fn texts(&mut self, key: &str, values: &[&str]) {
        self.0.push((key.into(), values.join(",")));
    }
}

const NULL: Passed<Attr> = Passed { ptr: 0, value: None };

fn open(asked: Option<&[u8]>, oflag: u32, ret: i64) -> Call {
    let args = Args::Open { name_ptr: 0xdead, oflag, mode: 0o640, attr: NULL, attr_changed: false };
    Call { tid: 4, ret, asked: asked.map(Into::into), args, ..example() }
}

/// A call that takes a descriptor, on a queue unless it failed with EBADF.
fn on_queue(op: Op, args: Args, ret: i64) -> Call {
    let reached = (ret != -9).then(|| queue(b"orders"));
    Call { op, args, ret, asked: None, queue: reached, ..example() }
}

fn message(priority: Option<u32>, timeout: Passed<Deadline>) -> Message {
    Message { priority, timeout, ..examples::message() }
}

fn deadline(s: i64, ns: i64) -> Passed<Deadline> {
    Passed { ptr: 0xbeef, value: Some(Deadline { s, ns }) }
}

const FOREVER: Passed<Deadline> = Passed { ptr: 0, value: None };

fn send(timeout: Passed<Deadline>, ret: i64) -> Call {
    on_queue(Op::MqTimedsend, Args::Send(message(Some(5), timeout)), ret)
}

fn receive(priority: Option<u32>, timeout: Passed<Deadline>, ret: i64) -> Call {
    on_queue(Op::MqTimedreceive, Args::Receive(message(priority, timeout)), ret)
}

fn notify(ptr: u64, event: Option<(i32, i32)>) -> Call {
    let event = Passed { ptr, value: event.map(|(method, signo)| Event { method, signo }) };
    on_queue(Op::MqNotify, Args::Notify { fd: 7, event }, 0)
}

fn getsetattr(attr: Passed<Attr>) -> Call {
    on_queue(Op::MqGetsetattr, Args::Getsetattr { fd: 7, attr }, 0)
}

fn attributes(call: &Call) -> Vec<(String, String)> {
    let mut seen = Seen::default();
    View::new(call, START).attributes(&mut seen);
    seen.0
}

fn value<'a>(attributes: &'a [(String, String)], key: &str) -> Option<&'a str> {
    attributes.iter().find(|(k, _)| k == key).map(|(_, value)| &**value)
}

/// Prevents a line that strace users would read otherwise: NULL attr, no mode without O_CREAT, unreadable names.
#[test]
fn lines() {
    let mut created = open(Some(b"orders"), 0, 5);
    let attr = Passed { ptr: 1, value: Some([0, 10, 64, 0]) };
    created.args = Args::Open { name_ptr: 1, oflag: 0o102, mode: 0o640, attr, attr_changed: false };
    let mut odd = open(Some(b"\x1b[2J"), 0, 5);
    let attr = Passed { ptr: 1, value: Some([4, 1, 2, 3]) };
    odd.args = Args::Open { name_ptr: 1, oflag: 0o102, mode: 0o640, attr, attr_changed: false };
    let unlink = Call { op: Op::MqUnlink, args: Args::Unlink { name_ptr: 0 }, ret: 0, ..example() };
    let unlink_null = Call { asked: None, ret: -14, ..unlink.clone() };
    for (call, expected) in [
        (created, "mq_open(\"/orders\", O_RDWR|O_CREAT, 0640, {maxmsg=10, msgsize=64}) = 5"),
        (odd, "mq_open(\"/\\x1b[2J\", O_RDWR|O_CREAT, 0640, {flags=0x4, maxmsg=1, msgsize=2, curmsgs=3}) = 5"),
        (open(Some(b"missing"), 0, -2), "mq_open(\"/missing\", O_RDONLY) = -1 ENOENT"),
        (open(Some(b""), 0o100, -512), "mq_open(\"/\", O_RDONLY|O_CREAT, 0640, NULL) = ? ERESTARTSYS"),
        (open(None, 0, -14), "mq_open(0xdead, O_RDONLY) = -1 EFAULT"),
        (unlink, "mq_unlink(\"/orders\") = 0"),
        (unlink_null, "mq_unlink(NULL) = -1 EFAULT"),
        (send(FOREVER, 0), "mq_timedsend(\"/orders\", 64 bytes, prio 5) = 0"),
        (
            send(deadline(3, 500_000_000), -110),
            "mq_timedsend(\"/orders\", 64 bytes, prio 5, timeout 2.500s) = -1 ETIMEDOUT",
        ),
        (send(deadline(3, -1), -22), "mq_timedsend(\"/orders\", 64 bytes, prio 5, 0xbeef) = -1 EINVAL"),
        (send(FOREVER, -9), "mq_timedsend(7, 64 bytes, prio 5) = -1 EBADF"),
        (receive(Some(5), FOREVER, 64), "mq_timedreceive(\"/orders\") = 64 bytes, prio 5"),
        (receive(None, FOREVER, 0), "mq_timedreceive(\"/orders\") = 0 bytes"),
        (receive(None, FOREVER, -11), "mq_timedreceive(\"/orders\") = -1 EAGAIN"),
        (receive(None, deadline(0, 0), -512), "mq_timedreceive(\"/orders\", timeout -1.000s) = ? ERESTARTSYS"),
        (notify(0, None), "mq_notify(\"/orders\", NULL) = 0"),
        (notify(1, None), "mq_notify(\"/orders\", 0x1) = 0"),
        (notify(1, Some((0, 10))), "mq_notify(\"/orders\", {SIGEV_SIGNAL, SIGUSR1}) = 0"),
        (notify(1, Some((2, 10))), "mq_notify(\"/orders\", {SIGEV_THREAD}) = 0"),
        (getsetattr(NULL), "mq_getsetattr(\"/orders\", NULL) = 0"),
        (
            getsetattr(Passed { ptr: 1, value: Some([0o4000, 0, 0, 0]) }),
            "mq_getsetattr(\"/orders\", {flags=0x800, maxmsg=0, msgsize=0}) = 0",
        ),
    ] {
        assert_eq!(View::new(&call, START).line(), expected);
    }
}

/// Prevents a failure from going without its cause, a limit without its numbers, and a line from saying twice what the errno
/// says.
#[test]
fn failures() {
    let limit = |used| Some(ReachedLimit { value: 819_200, used, requested: 33_296 });
    for (cause, limit, owner_pid, bracket, expected) in [
        (
            Cause::RlimitMsgqueue,
            limit(Some(815_104)),
            None,
            " (RLIMIT_MSGQUEUE 819200, 815104 used, 33296 requested)",
            [Some("RLIMIT_MSGQUEUE"), Some("819200"), Some("815104"), Some("33296"), None],
        ),
        (
            Cause::Msgsize,
            limit(None),
            None,
            " (msgsize 819200, 33296 requested)",
            [Some("msgsize"), Some("819200"), None, Some("33296"), None],
        ),
        (Cause::AccessMode, None, None, " (access_mode)", [Some("access_mode"), None, None, None, None]),
        (Cause::Registered, None, Some(7), " (registered: 7)", [Some("registered"), None, None, None, Some("7")]),
        (Cause::Permission, None, None, "", [Some("permission"), None, None, None, None]),
    ] {
        let failed = Call { failure: Some(CallFailure { cause, limit, owner_pid }), ..open(Some(b"x"), 0, -24) };
        assert_eq!(View::new(&failed, START).line(), format!("mq_open(\"/x\", O_RDONLY) = -1 EMFILE{bracket}"));
        let seen = attributes(&failed);
        let keys = ["cause", "limit.value", "limit.used", "limit.requested", "notify.owner_pid"];
        assert_eq!(keys.map(|key| value(&seen, &format!("posix_mq.{key}"))), expected);
    }
}

/// Prevents mode, attr, queue and errors from standing where the contract leaves them out, and the reverse.
#[test]
fn attributes_of_opens() {
    let failed = attributes(&open(Some(b"/x"), 0, -2));
    assert_eq!(value(&failed, "messaging.destination.name"), Some("//x"));
    assert_eq!(value(&failed, "posix_mq.errno"), Some("ENOENT"));
    assert_eq!(value(&failed, "error.type"), Some("ENOENT"));
    for key in ["posix_mq.mode", "posix_mq.attr.flags", "posix_mq.queue.mode", "posix_mq.requested_name"] {
        assert_eq!(value(&failed, key), None, "{key}");
    }
    let polled = attributes(&open(None, 0, -11));
    assert_eq!((value(&polled, "posix_mq.errno"), value(&polled, "error.type")), (Some("EAGAIN"), None));
    assert_eq!(value(&polled, "messaging.destination.name"), None);

    let mut swapped = open(Some(b"asked"), 0o102, 5);
    swapped.queue = Some(queue(b"used"));
    let seen = attributes(&swapped);
    assert_eq!(value(&seen, "messaging.destination.name"), Some("/used"));
    assert_eq!(value(&seen, "posix_mq.requested_name"), Some("/asked"));
    assert_eq!(value(&seen, "posix_mq.mismatch"), Some("name"));
    let Args::Open { attr_changed, .. } = &mut swapped.args else { unreachable!() };
    *attr_changed = true;
    assert_eq!(value(&attributes(&swapped), "posix_mq.mismatch"), Some("name,attr"));
    assert_eq!(value(&seen, "posix_mq.mode"), Some("0640"));
    assert_eq!(value(&seen, "posix_mq.queue.mode"), Some("0600"));
    assert_eq!(View::new(&swapped, START).span_name(), "mq_open /used");
    assert_eq!(View::new(&open(None, 0, -14), START).error().as_deref(), Some("Bad address"));
}

/// Prevents an attribute of one call, or of one outcome, from standing on another.
#[test]
fn attributes_by_call() {
    let compat = Call { abi: Abi::Compat, ..send(FOREVER, 0) };
    let mut left = send(FOREVER, 0);
    left.queue = left.queue.map(|queue| Queue { curmsgs: None, ..queue });
    let mut waited = message(Some(1), FOREVER);
    waited.blocked = true;
    waited.wait_ns = Some(1_500_000_000);
    let waited = on_queue(Op::MqTimedreceive, Args::Receive(waited), 1);
    for (call, key, expected) in [
        (send(FOREVER, 0), "messaging.operation.type", Some("send")),
        (send(FOREVER, 0), "messaging.message.body.size", Some("64")),
        (send(FOREVER, -9), "messaging.message.body.size", Some("64")),
        (send(FOREVER, -9), "posix_mq.message.priority", Some("5")),
        (send(FOREVER, -9), "messaging.destination.name", None),
        (send(FOREVER, 0), "posix_mq.queue.curmsgs", Some("3")),
        (send(FOREVER, 0), "posix_mq.queue.mode", None),
        (send(FOREVER, 0), "posix_mq.timeout", None),
        (send(FOREVER, 0), "posix_mq.syscall.abi", None),
        (send(deadline(1, 250_000_000), 0), "posix_mq.timeout", Some("0.25")),
        (send(deadline(0, 0), -110), "posix_mq.timeout", Some("-1")),
        (send(deadline(0, 0), -110), "error.type", None),
        (send(deadline(0, 1_000_000_000), -22), "posix_mq.timeout", None),
        (send(deadline(-1, 0), -22), "posix_mq.timeout", None),
        (left, "posix_mq.queue.curmsgs", None),
        (send(FOREVER, 0), "posix_mq.fd", Some("7")),
        (send(FOREVER, -9), "posix_mq.fd", Some("7")),
        (open(Some(b"orders"), 0, 5), "posix_mq.fd", None),
        (send(FOREVER, 0), "posix_mq.queue.id", Some("2")),
        (send(FOREVER, -9), "posix_mq.queue.id", None),
        (send(FOREVER, 0), "posix_mq.receive.buffer_size", None),
        (receive(Some(5), FOREVER, 8), "posix_mq.receive.buffer_size", Some("64")),
        (receive(None, FOREVER, -11), "posix_mq.receive.buffer_size", Some("64")),
        (notify(0, None), "posix_mq.fd", Some("7")),
        (getsetattr(NULL), "posix_mq.fd", Some("7")),
        (receive(Some(5), FOREVER, 8), "messaging.operation.type", Some("receive")),
        (receive(Some(5), FOREVER, 8), "messaging.message.body.size", Some("8")),
        (receive(Some(5), FOREVER, 8), "posix_mq.message.priority", Some("5")),
        (receive(Some(5), FOREVER, 8), "posix_mq.blocked", Some("false")),
        (receive(Some(5), FOREVER, 8), "posix_mq.message.wait", None),
        (waited.clone(), "posix_mq.message.wait", Some("1.5")),
        (waited, "posix_mq.blocked", Some("true")),
        (receive(None, FOREVER, -11), "messaging.message.body.size", None),
        (receive(None, FOREVER, -11), "posix_mq.message.priority", None),
        (notify(0, None), "posix_mq.notify.method", Some("unregister")),
        (notify(1, None), "posix_mq.notify.method", None),
        (notify(1, Some((0, 37))), "posix_mq.notify.method", Some("SIGEV_SIGNAL")),
        (notify(1, Some((0, 37))), "posix_mq.notify.signal", Some("SIGRTMIN+3")),
        (notify(1, Some((2, 10))), "posix_mq.notify.signal", None),
        (notify(1, Some((9, 10))), "posix_mq.notify.method", Some("0x9")),
        (notify(0, None), "posix_mq.blocked", None),
        (getsetattr(NULL), "posix_mq.attr.flags", None),
        (getsetattr(Passed { ptr: 1, value: Some([2048, 0, 0, 0]) }), "posix_mq.attr.flags", Some("2048")),
    ] {
        assert_eq!(value(&attributes(&call), key), expected, "{key} of {call:?}");
    }
    let mut linked = receive(Some(5), FOREVER, 8);
    let sent_by = Some(Sender { ids: linked.ids, comm: linked.comm, method: Method::Message });
    linked.args = Args::Receive(Message { sent_by, ..examples::message() });
    for (call, kind) in [(&linked, "process"), (&receive(Some(5), FOREVER, 8), "receive")] {
        let mut seen = Seen::default();
        View::new(call, START).received_as(Receive::Child).attributes(&mut seen);
        assert_eq!(value(&seen.0, "messaging.operation.type"), Some(kind));
    }
    assert!(value(&attributes(&compat), "posix_mq.syscall.abi").is_some());
}
