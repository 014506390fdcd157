//! What is said of a call: its names, its attributes in the order of the contract, its status, and the line that the
//! console and log records show. One description, whatever it is written as. Pure code.

use std::borrow::Cow;
use std::fmt::{self, Write};

use nix::errno::Errno;

use super::oflag::{self, O_CREAT};
use super::text::{printable, utf8};
use crate::config::values::Op;
use crate::event::Call;

/// The kernel's ERESTARTSYS (include/linux/errno.h): a signal ended the call; programs never see it.
const ERESTARTSYS: i32 = 512;

/// Takes attributes, each once, with its key.
pub trait Attributes {
    /// A string.
    fn text(&mut self, key: &str, value: &str);
    /// An integer.
    fn int(&mut self, key: &str, value: i64);
    /// A number of seconds.
    fn double(&mut self, key: &str, value: f64);
    /// An array of strings.
    fn texts(&mut self, key: &str, values: &[&str]);
}

/// A call with what follows from it.
#[derive(Debug)]
pub struct View<'a> {
    /// The call.
    pub call: &'a Call,
    /// The queue's name with its slash: the kernel's own where a queue was reached, else the one asked for.
    pub destination: Option<Cow<'a, str>>,
    requested: Option<Cow<'a, str>>,
}

/// Puts the slash before what the kernel sees.
fn slashed(name: &[u8]) -> Cow<'_, str> {
    Cow::Owned(format!("/{}", utf8(name)))
}

impl<'a> View<'a> {
    /// Looks at a call.
    pub fn new(call: &'a Call) -> Self {
        let asked = call.asked.as_deref();
        let actual = call.queue.as_ref().map(|queue| &*queue.name);
        Self {
            call,
            destination: actual.or(asked).map(slashed),
            requested: asked.filter(|asked| actual.is_some_and(|actual| actual != *asked)).map(slashed),
        }
    }

    /// The system call's name, `mq_open`.
    pub fn operation(&self) -> &'static str {
        match self.call.op {
            Op::MqOpen => "mq_open",
            Op::MqUnlink => "mq_unlink",
            Op::MqTimedsend => "mq_timedsend",
            Op::MqTimedreceive => "mq_timedreceive",
            Op::MqNotify => "mq_notify",
            Op::MqGetsetattr => "mq_getsetattr",
        }
    }

    /// `mq_open /orders`, the operation alone where there is no name.
    pub fn span_name(&self) -> String {
        match &self.destination {
            Some(name) => format!("{} {name}", self.operation()),
            None => self.operation().into(),
        }
    }

    /// The positive errno of a call that failed.
    fn errno(&self) -> Option<i32> {
        (self.call.ret < 0).then(|| i32::try_from(-self.call.ret).unwrap_or(i32::MAX))
    }

    /// The name of the errno, of every failure.
    pub fn errno_name(&self) -> Option<Cow<'static, str>> {
        self.errno().map(errno_name)
    }

    /// The errno's text where the status is Error; polling and being interrupted are not failing.
    pub fn error(&self) -> Option<String> {
        const POLLING: [i32; 4] = [libc::EAGAIN, libc::ETIMEDOUT, libc::EINTR, ERESTARTSYS];
        self.errno().filter(|errno| !POLLING.contains(errno)).map(|errno| {
            let text = std::io::Error::from_raw_os_error(errno).to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        })
    }

    fn mode(&self) -> Option<String> {
        (self.call.oflag & O_CREAT != 0).then(|| format!("0{:03o}", self.call.mode & 0xffff))
    }

    /// Gives every attribute of the call's span and log record, in the order of the contract.
    pub fn attributes(&self, to: &mut impl Attributes) {
        let call = self.call;
        to.text("messaging.system", "posix_mq");
        to.text("messaging.operation.name", self.operation());
        if let Some(name) = &self.destination {
            to.text("messaging.destination.name", name);
        }
        if let Some(name) = &self.requested {
            to.text("posix_mq.requested_name", name);
        }
        to.text("posix_mq.oflag", &oflag::decode(call.oflag));
        to.int("posix_mq.oflag_bits", call.oflag.into());
        if let Some(mode) = self.mode() {
            to.text("posix_mq.mode", &mode);
        }
        if let Some(attr) = call.attr {
            const KEYS: [&str; 4] =
                ["posix_mq.attr.flags", "posix_mq.attr.maxmsg", "posix_mq.attr.msgsize", "posix_mq.attr.curmsgs"];
            for (key, value) in KEYS.into_iter().zip(attr) {
                to.int(key, value);
            }
        }
        if let Some(queue) = &call.queue {
            to.int("posix_mq.queue.maxmsg", queue.maxmsg);
            to.int("posix_mq.queue.msgsize", queue.msgsize);
            to.int("posix_mq.queue.curmsgs", queue.curmsgs);
            to.text("posix_mq.queue.mode", &format!("0{:03o}", queue.mode));
        }
        to.int("posix_mq.return_value", call.ret);
        if let Some(name) = self.errno_name() {
            to.text("posix_mq.errno", &name);
            if self.error().is_some() {
                to.text("error.type", &name);
            }
        }
        if self.requested.is_some() {
            to.texts("posix_mq.mismatch", &["name"]);
        }
        to.int("posix_mq.ipc_namespace", call.ipc_ns.into());
        to.int("thread.id", call.tid.into());
        to.text("thread.name", &utf8(call.comm()));
    }

    /// The call as strace users know it, from its name to its result.
    pub fn line(&self) -> String {
        let mut line = String::with_capacity(96);
        // Writing to a String cannot fail.
        let _ = self.write_line(&mut line);
        line
    }

    fn write_line(&self, to: &mut String) -> fmt::Result {
        let call = self.call;
        write!(to, "{}(", self.operation())?;
        match self.requested.as_ref().or(self.destination.as_ref()) {
            Some(name) => write!(to, "\"{}\"", printable(name))?,
            None => pointer(to, call.name_ptr)?,
        }
        write!(to, ", {}", oflag::decode(call.oflag))?;
        if let Some(mode) = self.mode() {
            write!(to, ", {mode}, ")?;
            match call.attr {
                Some(attr) => write_attr(to, attr)?,
                None => pointer(to, call.attr_ptr)?,
            }
        }
        match self.errno() {
            None => write!(to, ") = {}", call.ret),
            Some(ERESTARTSYS) => write!(to, ") = ? ERESTARTSYS"),
            Some(errno) => write!(to, ") = -1 {}", errno_name(errno)),
        }
    }
}

fn pointer(to: &mut String, pointer: u64) -> fmt::Result {
    match pointer {
        0 => to.write_str("NULL"),
        pointer => write!(to, "{pointer:#x}"),
    }
}

/// maxmsg and msgsize always, what mq_open ignores only where it is set.
fn write_attr(to: &mut String, [flags, maxmsg, msgsize, curmsgs]: [i64; 4]) -> fmt::Result {
    to.push('{');
    if flags != 0 {
        write!(to, "flags={flags:#x}, ")?;
    }
    write!(to, "maxmsg={maxmsg}, msgsize={msgsize}")?;
    if curmsgs != 0 {
        write!(to, ", curmsgs={curmsgs}")?;
    }
    to.push('}');
    Ok(())
}

fn errno_name(errno: i32) -> Cow<'static, str> {
    match (errno, Errno::from_raw(errno)) {
        (ERESTARTSYS, _) => "ERESTARTSYS".into(),
        (errno, Errno::UnknownErrno) => format!("errno {errno}").into(),
        (_, known) => format!("{known:?}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ImageKey, Queue};

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
        fn texts(&mut self, key: &str, values: &[&str]) {
            self.0.push((key.into(), values.join(",")));
        }
    }

    fn open(asked: Option<&[u8]>, oflag: u32, ret: i64) -> Call {
        Call {
            op: Op::MqOpen,
            image: ImageKey { pid: 1, started_ns: 2, exec_id: 3 },
            tid: 4,
            vpid: 1,
            vtid: 4,
            entered_ns: 0,
            left_ns: 10,
            ret,
            uid: 0,
            cgroup_id: 0,
            ipc_ns: 9,
            oflag,
            mode: 0o640,
            name_ptr: 0,
            asked: asked.map(Into::into),
            attr_ptr: 0,
            attr: None,
            queue: None,
            comm: *b"orders\0\0\0\0\0\0\0\0\0\0",
        }
    }

    fn attributes(call: &Call) -> Vec<(String, String)> {
        let mut seen = Seen::default();
        View::new(call).attributes(&mut seen);
        seen.0
    }

    fn value<'a>(attributes: &'a [(String, String)], key: &str) -> Option<&'a str> {
        attributes.iter().find(|(k, _)| k == key).map(|(_, value)| &**value)
    }

    /// Prevents a line that strace users would read otherwise: NULL attr, no mode without O_CREAT, unreadable names.
    #[test]
    fn lines() {
        let mut created = open(Some(b"orders"), 0o102, 5);
        created.attr = Some([0, 10, 64, 0]);
        let mut odd = created.clone();
        odd.attr = Some([4, 1, 2, 3]);
        odd.asked = Some(b"\x1b[2J".to_vec());
        let mut bad = open(None, 0, -14);
        bad.name_ptr = 0xdead;
        for (call, expected) in [
            (&created, "mq_open(\"/orders\", O_RDWR|O_CREAT, 0640, {maxmsg=10, msgsize=64}) = 5"),
            (&odd, "mq_open(\"/\\x1b[2J\", O_RDWR|O_CREAT, 0640, {flags=0x4, maxmsg=1, msgsize=2, curmsgs=3}) = 5"),
            (&open(Some(b"missing"), 0, -2), "mq_open(\"/missing\", O_RDONLY) = -1 ENOENT"),
            (&open(Some(b""), 0o100, -512), "mq_open(\"/\", O_RDONLY|O_CREAT, 0640, NULL) = ? ERESTARTSYS"),
            (&bad, "mq_open(0xdead, O_RDONLY) = -1 EFAULT"),
        ] {
            assert_eq!(View::new(call).line(), expected);
        }
    }

    /// Prevents mode, attr, queue and errors from standing where the contract leaves them out, and the reverse.
    #[test]
    fn attributes_by_case() {
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
        swapped.queue = Some(Queue { name: b"used".to_vec(), maxmsg: 10, msgsize: 64, curmsgs: 1, mode: 0o600 });
        let seen = attributes(&swapped);
        assert_eq!(value(&seen, "messaging.destination.name"), Some("/used"));
        assert_eq!(value(&seen, "posix_mq.requested_name"), Some("/asked"));
        assert_eq!(value(&seen, "posix_mq.mismatch"), Some("name"));
        assert_eq!(value(&seen, "posix_mq.mode"), Some("0640"));
        assert_eq!(value(&seen, "posix_mq.queue.mode"), Some("0600"));
        assert_eq!(View::new(&swapped).span_name(), "mq_open /used");
        assert_eq!(View::new(&open(None, 0, -14)).error().as_deref(), Some("Bad address"));
    }
}
