//! What is said of a call: its names, its attributes in the order of the contract, its status, and the line that the
//! console and log records show. One description, whatever it is written as. Pure code.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::{self, Write};

use super::notify::{self, SIGEV_SIGNAL};
use super::oflag::{self, O_CREAT};
use super::terms::{ERESTARTSYS, errno_name, is_error, operation, operation_type};
use crate::model::call::{Abi, Args, Attr, Call, Context, Deadline, Ids, Message, Passed, Sender, Source};
use crate::model::cause::{CallFailure, ReachedLimit};
use crate::model::glob::Templates;
use crate::model::text::{printable, utf8};
use crate::model::values::{Op, Receive};

/// `SpanKind`.
pub const KIND_INTERNAL: u8 = 1;
/// The same: asks another, here the queue, for something.
pub const KIND_CLIENT: u8 = 3;
/// The same: the context that a message is made in.
pub const KIND_PRODUCER: u8 = 4;
/// The same: goes on from a message.
pub const KIND_CONSUMER: u8 = 5;
/// Takes attributes, each once, with its key.
pub trait Attributes {
    /// A string.
    fn text(&mut self, key: &str, value: &str);
    /// An integer.
    fn int(&mut self, key: &str, value: i64);
    /// A number of seconds.
    fn double(&mut self, key: &str, value: f64);
    /// True or false.
    fn boolean(&mut self, key: &str, value: bool);
    /// An array of strings.
    fn texts(&mut self, key: &str, values: &[&str]);
}

/// A call with what follows from it.
#[derive(Debug)]
pub struct View<'a> {
    /// The call.
    pub call: &'a Call,
    /// Its entry, ns since 1970.
    pub start_ns: u64,
    /// The span that it was made in, or its process was started in.
    pub context: Option<Context>,
    /// Whether it is the child of the span that sent its message.
    pub is_child: bool,
    /// Patterns that queues go by.
    templates: Option<&'a Templates>,
    destination: OnceCell<Option<String>>,
}

/// Puts the slash before what the kernel sees.
fn slashed(name: &[u8]) -> String {
    let name = utf8(name);
    let mut slashed = String::with_capacity(1 + name.len());
    slashed.push('/');
    slashed.push_str(&name);
    slashed
}

impl<'a> View<'a> {
    /// Looks at a call that began at this time of day, ns since 1970.
    pub fn new(call: &'a Call, start_ns: u64) -> Self {
        Self { call, start_ns, context: call.context, is_child: false, templates: None, destination: OnceCell::new() }
    }

    /// The queue goes by the first of these patterns that its name matches.
    pub fn by_templates(self, templates: &'a Templates) -> Self {
        Self { templates: Some(templates), ..self }
    }

    /// The queue's name with its slash: the kernel's own where a queue was reached, else the one asked for.
    pub fn destination(&self) -> Option<&str> {
        let name = || self.call.queue.as_ref().map(|queue| &*queue.name).or(self.call.asked.as_deref());
        self.destination.get_or_init(|| name().map(slashed)).as_deref()
    }

    /// The name asked for, where the kernel used another.
    fn requested(&self) -> Option<String> {
        let actual = &*self.call.queue.as_ref()?.name;
        self.call.asked.as_deref().filter(|asked| *asked != actual).map(slashed)
    }

    /// The pattern that the queue goes by where it stands for many.
    fn template(&self) -> Option<&'a str> {
        self.templates?.of(self.destination()?)
    }

    /// Without a span of its own it is told with the one that its process was started in.
    pub fn started_in(self, ids: Option<Ids>) -> Self {
        let context = self.context.or_else(|| ids.map(|ids| Context { ids, source: Source::Environment }));
        Self { context, ..self }
    }

    /// A receive hangs as `--receive` says, unless the receiver is in a span of its own.
    pub fn received_as(self, receive: Receive) -> Self {
        let is_child = receive == Receive::Child && self.sender().is_some() && !self.is_inside();
        Self { is_child, ..self }
    }

    /// Whether the call was made inside a span of the application's.
    fn is_inside(&self) -> bool {
        self.context.is_some_and(|context| context.source != Source::Environment)
    }

    /// The span that sent the message which was received.
    pub fn sender(&self) -> Option<Sender> {
        self.message().and_then(|message| message.sent_by)
    }

    /// The system call's name, `mq_open`.
    pub fn operation(&self) -> &'static str {
        operation(self.call.op)
    }

    /// `mq_open /orders`, the operation alone where there is no name.
    pub fn span_name(&self) -> String {
        match self.template().or(self.destination()) {
            Some(name) => format!("{} {name}", self.operation()),
            None => self.operation().into(),
        }
    }

    /// `SpanKind`.
    pub fn kind(&self) -> u8 {
        match self.call.op {
            Op::MqTimedsend => KIND_PRODUCER,
            Op::MqTimedreceive if self.is_child => KIND_CONSUMER,
            Op::MqTimedreceive => KIND_CLIENT,
            _ => KIND_INTERNAL,
        }
    }

    /// The positive errno of a call that failed.
    pub fn errno(&self) -> Option<i32> {
        errno(self.call.ret)
    }

    /// The name of the errno, of every failure.
    pub fn errno_name(&self) -> Option<Cow<'static, str>> {
        self.errno().map(errno_name)
    }

    /// The errno's text where the status is Error; polling and being interrupted are not failing.
    pub fn error(&self) -> Option<String> {
        self.errno().filter(|errno| is_error(*errno)).map(|errno| {
            let text = std::io::Error::from_raw_os_error(errno).to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        })
    }

    /// The errno name where the status is Error.
    fn error_type(&self) -> Option<Cow<'static, str>> {
        self.errno().filter(|errno| is_error(*errno)).map(errno_name)
    }

    /// The message that a send or receive passed, or tried to.
    pub fn message(&self) -> Option<&'a Message> {
        match &self.call.args {
            Args::Send(message) | Args::Receive(message) => Some(message),
            _ => None,
        }
    }

    /// The descriptor as passed, of calls that take one.
    fn descriptor(&self) -> Option<i32> {
        match self.call.args {
            Args::Open { .. } | Args::Unlink { .. } => None,
            Args::Send(Message { fd, .. })
            | Args::Receive(Message { fd, .. })
            | Args::Notify { fd, .. }
            | Args::Getsetattr { fd, .. } => Some(fd),
        }
    }

    /// Bytes of the message: those that a send was to pass, those that a receive got.
    fn body_size(&self) -> Option<i64> {
        match self.call.args {
            Args::Send(message) => Some(message.size.cast_signed()),
            Args::Receive(_) => (self.call.ret >= 0).then_some(self.call.ret),
            _ => None,
        }
    }

    /// Seconds from the call to its deadline.
    fn timeout(&self) -> Option<f64> {
        seconds_until(self.message()?.timeout.value?, self.start_ns)
    }

    /// Adds every attribute of the call's span and log record.
    pub fn attributes(&self, to: &mut impl Attributes) {
        self.common_attributes(to);
        self.own_attributes(to);
    }

    /// Adds those that calls have in common which are alike: `telemetry::common` says which are.
    pub fn common_attributes(&self, to: &mut impl Attributes) {
        let call = self.call;
        to.text("messaging.system", "posix_mq");
        to.text("messaging.operation.name", self.operation());
        if let Some(kind) = operation_type(call.op) {
            to.text("messaging.operation.type", if self.is_child { "process" } else { kind });
        }
        if let Some(name) = self.destination() {
            to.text("messaging.destination.name", name);
        }
        if let Some(template) = self.template() {
            to.text("messaging.destination.template", template);
        }
        let requested = self.requested();
        if let Some(name) = &requested {
            to.text("posix_mq.requested_name", name);
        }
        match call.args {
            Args::Open { oflag, mode, attr, .. } => {
                to.text("posix_mq.oflag", &oflag::decode(oflag));
                to.int("posix_mq.oflag_bits", oflag.into());
                if oflag & O_CREAT != 0 {
                    to.text("posix_mq.mode", &octal(mode));
                    attr_attributes(to, attr);
                }
            }
            Args::Getsetattr { attr, .. } => attr_attributes(to, attr),
            _ => {}
        }
        self.queue_attributes(to);
        if let Some(errno) = self.errno() {
            to.int("posix_mq.return_value", call.ret);
            to.text("posix_mq.errno", &errno_name(errno));
        }
        if let Some(name) = self.error_type() {
            to.text("error.type", &name);
        }
        self.mismatch_attributes(to, requested.is_some());
        self.notify_attributes(to);
        to.int("posix_mq.ipc_namespace", call.ipc_ns.into());
        if call.abi == Abi::Compat {
            to.text("posix_mq.syscall.abi", COMPAT);
        }
        if let Args::Receive(message) = call.args {
            to.int("posix_mq.receive.buffer_size", message.size.cast_signed());
        }
        if let Some(fd) = self.descriptor() {
            to.int("posix_mq.fd", fd.into());
        }
        if let Some(queue) = &call.queue {
            to.int("posix_mq.queue.id", queue.key.number.cast_signed());
        }
        self.failure_attributes(to);
        to.int("thread.id", call.tid.into());
        to.text("thread.name", &utf8(call.comm()));
    }

    /// Adds those that each call has for itself.
    pub fn own_attributes(&self, to: &mut impl Attributes) {
        if let Some(curmsgs) = self.call.queue.as_ref().and_then(|queue| queue.curmsgs) {
            to.int("posix_mq.queue.curmsgs", curmsgs);
        }
        if self.call.ret >= 0 {
            to.int("posix_mq.return_value", self.call.ret);
        }
        self.message_attributes(to);
    }

    fn queue_attributes(&self, to: &mut impl Attributes) {
        let Some(queue) = &self.call.queue else { return };
        to.int("posix_mq.queue.maxmsg", queue.maxmsg);
        to.int("posix_mq.queue.msgsize", queue.msgsize);
        if self.call.op == Op::MqOpen {
            to.text("posix_mq.queue.mode", &octal(queue.mode.into()));
        }
    }

    fn failure_attributes(&self, to: &mut impl Attributes) {
        let Some(failure) = &self.call.failure else { return };
        to.text("posix_mq.cause", failure.cause.name());
        if let Some(ReachedLimit { value, used, requested }) = failure.limit {
            to.int("posix_mq.limit.value", value.cast_signed());
            if let Some(used) = used {
                to.int("posix_mq.limit.used", used.cast_signed());
            }
            to.int("posix_mq.limit.requested", requested.cast_signed());
        }
        if let Some(pid) = failure.owner_pid {
            to.int("posix_mq.notify.owner_pid", pid.into());
        }
    }

    /// What the kernel used otherwise than the caller's memory held at entry: another thread wrote there meanwhile.
    fn mismatch_attributes(&self, to: &mut impl Attributes, name_changed: bool) {
        let Args::Open { attr_changed, .. } = self.call.args else { return };
        match (name_changed, attr_changed) {
            (false, false) => {}
            (true, false) => to.texts("posix_mq.mismatch", &["name"]),
            (false, true) => to.texts("posix_mq.mismatch", &["attr"]),
            (true, true) => to.texts("posix_mq.mismatch", &["name", "attr"]),
        }
    }

    fn message_attributes(&self, to: &mut impl Attributes) {
        let Some(message) = self.message() else { return };
        if let Some(size) = self.body_size() {
            to.int("messaging.message.body.size", size);
        }
        if let Some(priority) = message.priority {
            to.int("posix_mq.message.priority", priority.into());
        }
        if let Some(wait_ns) = message.wait_ns {
            to.double("posix_mq.message.wait", wait_ns as f64 / 1e9);
        }
        if let Some(timeout) = self.timeout() {
            to.double("posix_mq.timeout", timeout);
        }
        to.boolean("posix_mq.blocked", message.blocked);
        if message.limited > 0 {
            to.int("posix_mq.limited_calls", message.limited.into());
        }
    }

    fn notify_attributes(&self, to: &mut impl Attributes) {
        let Args::Notify { event, .. } = self.call.args else { return };
        match event.value {
            Some(event) => {
                to.text("posix_mq.notify.method", &notify::method(event.method));
                if event.method == SIGEV_SIGNAL {
                    to.text("posix_mq.notify.signal", &notify::signal(event.signo));
                }
            }
            None if event.ptr == 0 => to.text("posix_mq.notify.method", "unregister"),
            None => {}
        }
    }

    /// The call as strace users know it, from its name to its result.
    pub fn line(&self) -> String {
        let mut line = String::with_capacity(96);
        // Writing to a String cannot fail.
        let _ = self.write_line(&mut line);
        line
    }

    fn write_timeout(&self, to: &mut String, message: &Message) -> fmt::Result {
        match (self.timeout(), message.timeout.ptr) {
            (Some(seconds), _) => write!(to, ", timeout {seconds:.3}s"),
            (None, 0) => Ok(()),
            (None, ptr) => write!(to, ", {ptr:#x}"),
        }
    }

    fn write_line(&self, to: &mut String) -> fmt::Result {
        let call = self.call;
        write!(to, "{}(", self.operation())?;
        match (self.requested().as_deref().or(self.destination()), call.args) {
            (Some(name), _) => write!(to, "\"{}\"", printable(name))?,
            (None, Args::Open { name_ptr, .. } | Args::Unlink { name_ptr }) => to.push_str(&pointer(name_ptr)),
            (None, _) => write!(to, "{}", self.descriptor().unwrap_or(-1))?,
        }
        match call.args {
            Args::Open { oflag, mode, attr, .. } => {
                write!(to, ", {}", oflag::decode(oflag))?;
                if oflag & O_CREAT != 0 {
                    write!(to, ", {}, {}", octal(mode), attr_text(attr))?;
                }
            }
            Args::Unlink { .. } => {}
            Args::Send(message) => {
                write!(to, ", {} bytes, prio {}", message.size, message.priority.unwrap_or(0))?;
                self.write_timeout(to, &message)?;
            }
            Args::Receive(message) => self.write_timeout(to, &message)?,
            Args::Notify { event, .. } => match event.value {
                Some(event) if event.method == SIGEV_SIGNAL => {
                    write!(to, ", {{SIGEV_SIGNAL, {}}}", notify::signal(event.signo))?;
                }
                Some(event) => write!(to, ", {{{}}}", notify::method(event.method))?,
                None => write!(to, ", {}", pointer(event.ptr))?,
            },
            Args::Getsetattr { attr, .. } => write!(to, ", {}", attr_text(attr))?,
        }
        to.push(')');
        write_result(to, call.op, call.ret, self.message().and_then(|message| message.priority))?;
        self.write_failure(to)
    }

    /// Why it failed, where the errno alone does not say it.
    fn write_failure(&self, to: &mut String) -> fmt::Result {
        let Some(CallFailure { cause, limit, owner_pid }) = self.call.failure else { return Ok(()) };
        if cause.is_plain() {
            return Ok(());
        }
        write!(to, " ({}", cause.name())?;
        if let Some(ReachedLimit { value, used, requested }) = limit {
            let used = used.map_or(String::new(), |used| format!(" {used} used,"));
            write!(to, " {value},{used} {requested} requested")?;
        }
        if let Some(pid) = owner_pid {
            write!(to, ": {pid}")?;
        }
        to.push(')');
        Ok(())
    }
}

/// The positive errno of what a call that failed returned.
pub fn errno(ret: i64) -> Option<i32> {
    (ret < 0).then(|| i32::try_from(ret.unsigned_abs()).unwrap_or(i32::MAX))
}

/// Seconds from a time, ns since 1970, to a deadline, negative where that had passed; None where the kernel takes it for no
/// time (include/linux/time64.h, timespec64_valid).
pub fn seconds_until(Deadline { s, ns }: Deadline, from_ns: u64) -> Option<f64> {
    let is_valid = s >= 0 && (0..1_000_000_000).contains(&ns);
    is_valid.then(|| (i128::from(s) * 1_000_000_000 + i128::from(ns) - i128::from(from_ns)) as f64 / 1e9)
}

/// ` = 0`, ` = 5 bytes, prio 3`, ` = -1 ENOENT`; the priority is that of a message that was received.
pub fn write_result(to: &mut String, op: Op, ret: i64, priority: Option<u32>) -> fmt::Result {
    match (errno(ret), op) {
        (None, Op::MqTimedreceive) => {
            write!(to, " = {ret} bytes")?;
            priority.map_or(Ok(()), |priority| write!(to, ", prio {priority}"))
        }
        (None, _) => write!(to, " = {ret}"),
        (Some(ERESTARTSYS), _) => write!(to, " = ? ERESTARTSYS"),
        (Some(errno), _) => write!(to, " = -1 {}", errno_name(errno)),
    }
}

/// What `posix_mq.syscall.abi` calls a 32-bit caller's.
pub const COMPAT: &str = if cfg!(target_arch = "aarch64") { "arm" } else { "ia32" };

/// The low 16 bits, which are what the kernel takes.
fn octal(mode: u32) -> String {
    format!("0{:03o}", mode & 0xffff)
}

fn pointer(pointer: u64) -> String {
    match pointer {
        0 => "NULL".into(),
        pointer => format!("{pointer:#x}"),
    }
}

fn attr_attributes(to: &mut impl Attributes, attr: Passed<Attr>) {
    const KEYS: [&str; 4] =
        ["posix_mq.attr.flags", "posix_mq.attr.maxmsg", "posix_mq.attr.msgsize", "posix_mq.attr.curmsgs"];
    for (key, value) in KEYS.into_iter().zip(attr.value.into_iter().flatten()) {
        to.int(key, value);
    }
}

/// maxmsg and msgsize always, what mq_open ignores only where it is set.
fn attr_text(attr: Passed<Attr>) -> String {
    let Some([flags, maxmsg, msgsize, curmsgs]) = attr.value else { return pointer(attr.ptr) };
    let flags = if flags != 0 { format!("flags={flags:#x}, ") } else { String::new() };
    let curmsgs = if curmsgs != 0 { format!(", curmsgs={curmsgs}") } else { String::new() };
    format!("{{{flags}maxmsg={maxmsg}, msgsize={msgsize}{curmsgs}}}")
}

#[cfg(test)]
mod tests;
