//! An mq_open as an oracle saw it, what the contract makes of it, and the comparison with mqspan's spans and log records.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::{logs::v1::LogRecord, trace::v1::Span};

use crate::{
    expect::{Expect, differences},
    otlp::{self, Attributes, Record, Value},
    ready,
    strace::{Arg, Returned, Syscall},
    text,
};

/// What an argument points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readable<T> {
    /// It can be read.
    Yes(T),
    /// It can't: the pointer, 0 for NULL, where the oracle knows it.
    No(Option<u64>),
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a number.
    Returned(i64),
    /// With an errno, its text where the oracle knows it.
    Failed {
        /// `ENOENT`
        name: String,
        /// `No such file or directory`
        text: Option<String>,
    },
}

/// What the opened queue says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most messages it holds.
    pub maxmsg: i64,
    /// The most bytes of a message.
    pub msgsize: i64,
    /// The messages in it.
    pub curmsgs: i64,
    /// Permission bits.
    pub mode: u32,
}

/// One mq_open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The thread.
    pub tid: u32,
    /// The process, where the oracle knows it.
    pub pid: Option<u32>,
    /// The name as passed.
    pub name: Readable<Vec<u8>>,
    /// Whether the name was in memory when the call began.
    pub resident: bool,
    /// The flags as passed.
    pub oflag: u32,
    /// The flags by name, where the oracle knows them.
    pub flags: Option<String>,
    /// The mode's low 16 bits, with O_CREAT.
    pub mode: Option<u16>,
    /// flags, maxmsg, msgsize, curmsgs, with O_CREAT.
    pub attr: Option<Readable<[i64; 4]>>,
    /// How it ended.
    pub outcome: Outcome,
    /// Of the queue that it opened, where the oracle knows them.
    pub limits: Option<Limits>,
    /// CLOCK_REALTIME in ns before and after, where the oracle knows it.
    pub times: Option<(u64, u64)>,
}

impl Open {
    /// An mq_open of strace's log.
    pub fn from_strace(call: &Syscall) -> Result<Self> {
        ensure!(call.name == "mq_open", "{call:?}");
        let (name, oflag) = match &call.args[..] {
            [name, oflag, ..] => (name, oflag),
            _ => bail!("{call:?}"),
        };
        let Arg::Number(bits, Some(flags)) = oflag else { bail!("no flags by name: {call:?}") };
        Ok(Self {
            tid: call.tid,
            pid: None,
            name: match name {
                // strace reads no further than the kernel does: PATH_MAX.
                Arg::Text(bytes, more) if !more || bytes.len() >= 4095 => Readable::Yes(bytes.clone()),
                name => Readable::No(Some(pointer(name)?)),
            },
            // strace has read it.
            resident: true,
            oflag: u32::try_from(*bits)?,
            flags: Some(flags.clone()),
            mode: call.args.get(2).map(|mode| anyhow::Ok(u16::try_from(mode.number()?)?)).transpose()?,
            attr: call.args.get(3).map(attr).transpose()?,
            outcome: match &call.returned {
                Returned::Value(value) => Outcome::Returned(*value),
                Returned::Error(name, text) => Outcome::Failed { name: name.clone(), text: Some(text.clone()) },
                Returned::Unknown(_) => bail!("mq_open does not sleep: {call:?}"),
            },
            limits: None,
            times: None,
        })
    }

    /// What the contract makes of it; None stands for a value that the oracle doesn't know but that must be there.
    pub(crate) fn attributes(&self, ipc_namespace: i64) -> BTreeMap<&'static str, Option<Value>> {
        let mut all = BTreeMap::from([
            ("messaging.system", Some("posix_mq".into())),
            ("messaging.operation.name", Some("mq_open".into())),
            ("posix_mq.oflag", self.flags.clone().map(Value::Text)),
            ("posix_mq.oflag_bits", Some(i64::from(self.oflag).into())),
            ("posix_mq.ipc_namespace", Some(ipc_namespace.into())),
            ("thread.id", Some(i64::from(self.tid).into())),
            ("thread.name", Some("workload".into())),
        ]);
        if let Readable::Yes(name) = &self.name {
            all.insert("messaging.destination.name", Some(text::destination(name).into()));
        }
        if let Some(mode) = self.mode {
            all.insert("posix_mq.mode", Some(octal(mode.into()).into()));
        }
        if let Some(Readable::Yes([flags, maxmsg, msgsize, curmsgs])) = self.attr {
            all.insert("posix_mq.attr.flags", Some(flags.into()));
            all.insert("posix_mq.attr.maxmsg", Some(maxmsg.into()));
            all.insert("posix_mq.attr.msgsize", Some(msgsize.into()));
            all.insert("posix_mq.attr.curmsgs", Some(curmsgs.into()));
        }
        match &self.outcome {
            Outcome::Returned(value) => {
                all.insert("posix_mq.return_value", Some((*value).into()));
                all.insert("posix_mq.queue.maxmsg", self.limits.map(|limits| limits.maxmsg.into()));
                all.insert("posix_mq.queue.msgsize", self.limits.map(|limits| limits.msgsize.into()));
                all.insert("posix_mq.queue.curmsgs", self.limits.map(|limits| limits.curmsgs.into()));
                all.insert("posix_mq.queue.id", None);
                all.insert("posix_mq.queue.mode", self.limits.map(|limits| octal(limits.mode).into()));
            }
            Outcome::Failed { name, .. } => {
                let errno = errno_of(name).map(|errno| i64::from(-errno).into());
                all.insert("posix_mq.return_value", errno);
                all.insert("posix_mq.errno", Some(name.clone().into()));
                if !POLLING.contains(&&**name) {
                    all.insert("error.type", Some(name.clone().into()));
                }
            }
        }
        all
    }

    /// The call as strace users know it, where the oracle knows all of it.
    pub fn line(&self) -> Option<String> {
        let name = match &self.name {
            Readable::Yes(name) => format!("\"{}\"", printable(&text::destination(name))),
            Readable::No(pointer) => show_pointer((*pointer)?),
        };
        let create = match (self.mode, &self.attr) {
            (Some(mode), Some(attr)) => {
                let attr = match attr {
                    Readable::Yes(attr) => show_attr(attr),
                    Readable::No(pointer) => show_pointer((*pointer)?),
                };
                format!(", {}, {attr}", octal(mode.into()))
            }
            _ => String::new(),
        };
        let result = match &self.outcome {
            Outcome::Returned(value) => value.to_string(),
            Outcome::Failed { name, .. } => format!("-1 {name}"),
        };
        Some(format!("mq_open({name}, {}{create}) = {result}", self.flags.as_ref()?))
    }

    /// Whether the name may be left out although it can be read: it was not in memory at entry, and the kernel, which
    /// looks at attr first, failed before it read it.
    fn may_lack_its_name(&self) -> bool {
        let faulted = matches!(&self.outcome, Outcome::Failed { name, .. } if name == "EFAULT");
        !self.resident && faulted
    }

    fn is_error(&self) -> bool {
        matches!(&self.outcome, Outcome::Failed { name, .. } if !POLLING.contains(&&**name))
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.name {
            Readable::Yes(name) => format!("{:?}", text::utf8(name)),
            Readable::No(pointer) => format!("{pointer:?}"),
        };
        let Self { oflag, mode, attr, outcome, limits, .. } = self;
        write!(f, "mq_open({name}, {oflag:#x}, {mode:?}, {attr:?}) = {outcome:?} {limits:?}")
    }
}

/// Their status stays Unset: polling is not failing.
pub(crate) const POLLING: [&str; 4] = ["EAGAIN", "ETIMEDOUT", "EINTR", "ERESTARTSYS"];

/// `0640`, and a zero before fewer than three digits too.
fn octal(bits: u32) -> String {
    format!("0{bits:03o}")
}

pub(crate) fn errno_of(name: &str) -> Option<i32> {
    (1..200).find(|errno| format!("{:?}", nix::errno::Errno::from_raw(*errno)) == name)
}

fn pointer(arg: &Arg) -> Result<u64> {
    Ok(u64::try_from(arg.number()?)?)
}

fn attr(arg: &Arg) -> Result<Readable<[i64; 4]>> {
    if !matches!(arg, Arg::Struct(_)) {
        return Ok(Readable::No(Some(pointer(arg)?)));
    }
    let field = |name: &str| {
        let number = arg.field(name).with_context(|| format!("no {name} in {arg:?}"))?.number()?;
        // strace writes the flags without their sign.
        anyhow::Ok(i64::try_from(number).or_else(|_| u64::try_from(number).map(u64::cast_signed))?)
    };
    Ok(Readable::Yes([field("mq_flags")?, field("mq_maxmsg")?, field("mq_msgsize")?, field("mq_curmsgs")?]))
}

fn show_pointer(pointer: u64) -> String {
    if pointer == 0 { "NULL".into() } else { format!("{pointer:#x}") }
}

fn show_attr([flags, maxmsg, msgsize, curmsgs]: &[i64; 4]) -> String {
    let flags = if *flags == 0 { String::new() } else { format!("flags={flags:#x}, ") };
    let curmsgs = if *curmsgs == 0 { String::new() } else { format!(", curmsgs={curmsgs}") };
    format!("{{{flags}maxmsg={maxmsg}, msgsize={msgsize}{curmsgs}}}")
}

fn printable(text: &str) -> String {
    text.chars()
        .map(|character| match u32::from(character) {
            _ if text::is_printable(&character.to_string()) => character.to_string(),
            code @ ..0x80 => format!("\\x{code:02x}"),
            code => format!("\\u{{{code:x}}}"),
        })
        .collect()
}

/// A span or a log record: what one says besides the attributes that both have.
pub trait Form {
    /// The attributes that only this form has.
    const MORE: &[&str];

    /// What differs from the call.
    fn differences(&self, call: &Open, attributes: &Attributes) -> Vec<String>;
}

/// A difference between two values, if there is one.
fn differs<T: PartialEq + fmt::Debug>(what: &str, found: &T, expected: &T) -> Option<String> {
    (found != expected).then(|| format!("{what} is {found:?}, not {expected:?}"))
}

/// How far the clocks may be apart: the contract's 10 ms.
const CLOCK_NS: u64 = 10_000_000;

fn outside(call: &Open, start: u64, end: u64) -> Option<String> {
    let (before, after) = call.times?;
    let inside = start + CLOCK_NS >= before && start <= end && end <= after + CLOCK_NS;
    (!inside).then(|| format!("{start} to {end} is not within {before} to {after}"))
}

impl Form for Span {
    const MORE: &[&str] = &[];

    fn differences(&self, call: &Open, _: &Attributes) -> Vec<String> {
        let name = match &call.name {
            Readable::Yes(name) => format!("mq_open {}", text::destination(name)),
            Readable::No(_) => "mq_open".into(),
        };
        let status = self.status.clone().unwrap_or_default();
        let message = match &call.outcome {
            Outcome::Failed { text: Some(text), .. } if call.is_error() => text.clone(),
            Outcome::Failed { text: None, .. } => status.message.clone(),
            _ => String::new(),
        };
        [
            differs("name", &self.name, &name),
            differs("kind", &self.kind, &1),
            differs("status", &status.code, &if call.is_error() { 2 } else { 0 }),
            differs("status message", &status.message, &message),
            differs("flags", &self.flags, &0x101),
            differs("trace id's length", &self.trace_id.len(), &16),
            differs("span id's length", &self.span_id.len(), &8),
            differs("zero trace id", &self.trace_id.iter().all(|byte| *byte == 0), &false),
            differs("zero span id", &self.span_id.iter().all(|byte| *byte == 0), &false),
            differs("parent", &self.parent_span_id.len(), &0),
            differs("links", &self.links.len(), &0),
            outside(call, self.start_time_unix_nano, self.end_time_unix_nano),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Form for LogRecord {
    const MORE: &[&str] = &["posix_mq.duration"];

    fn differences(&self, call: &Open, attributes: &Attributes) -> Vec<String> {
        let (number, word) = if call.is_error() { (13, "WARN") } else { (9, "INFO") };
        let seconds = match attributes.get("posix_mq.duration") {
            Some(Value::Double(seconds)) => *seconds,
            _ => f64::NAN,
        };
        let measured = self.observed_time_unix_nano.saturating_sub(self.time_unix_nano) as f64 / 1e9;
        let body = text::without_cause(otlp::body(self).unwrap_or_default()).to_owned();
        [
            differs("event name", &&*self.event_name, &"posix_mq.open"),
            differs("severity", &(self.severity_number, &*self.severity_text), &(number, word)),
            call.line().and_then(|line| differs("body", &body, &line)),
            differs("duration is exit less entry", &((seconds - measured).abs() < 1e-9), &true),
            outside(call, self.time_unix_nano, self.observed_time_unix_nano),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Calls compared.
    pub compared: usize,
    /// Calls of the oracle that mqspan does not have.
    pub missing: usize,
    /// Records of mqspan that the oracle has no call for.
    pub extra: usize,
    /// What differs, a line a call.
    pub differing: Vec<String>,
}

impl Comparison {
    /// Fails unless nothing is missing, extra or different, of at least so many calls.
    pub fn perfect(&self, least: usize) -> Result<()> {
        println!("{self}");
        ensure!(self.compared >= least, "too few calls to say anything: {self}");
        ensure!(self.missing + self.extra + self.differing.len() == 0, "{self}");
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compared, missing, extra, differing } = self;
        write!(f, "{compared} calls compared: {missing} missing, {extra} extra, {} differing", differing.len())?;
        differing.iter().take(10).try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Joins the oracle's calls with mqspan's records, thread by thread in their order.
pub fn compare<T: Form>(calls: &[Open], records: &[Record<T>]) -> Result<Comparison> {
    let ipc_namespace = ready::ipc_namespace()?;
    let mut by_thread: BTreeMap<u32, (Vec<&Open>, Vec<&Record<T>>)> = BTreeMap::new();
    for call in calls {
        by_thread.entry(call.tid).or_default().0.push(call);
    }
    for record in records {
        by_thread.entry(record.tid()?).or_default().1.push(record);
    }
    let mut comparison = Comparison::default();
    for (tid, (calls, records)) in by_thread {
        comparison.missing += calls.len().saturating_sub(records.len());
        comparison.extra += records.len().saturating_sub(calls.len());
        for (number, (call, record)) in calls.into_iter().zip(records).enumerate() {
            comparison.compared += 1;
            let lacks_its_name = call.may_lack_its_name() && record.text("messaging.destination.name").is_none();
            let call = &if lacks_its_name { Open { name: Readable::No(None), ..call.clone() } } else { call.clone() };
            let mut found = differing_attributes(call, record, ipc_namespace);
            found.extend(record.body.differences(call, &record.attributes));
            if let (Some(pid), Ok(recorded)) = (call.pid, record.pid()) {
                found.extend(differs("process.pid", &recorded, &pid));
            }
            if !found.is_empty() {
                comparison.differing.push(format!("call {number} of thread {tid}, {call}: {}", found.join("; ")));
            }
        }
    }
    Ok(comparison)
}

fn differing_attributes<T: Form>(call: &Open, record: &Record<T>, ipc_namespace: i64) -> Vec<String> {
    let known = |value: Option<Value>| value.map_or(Expect::Present, Expect::Is);
    let expected = call.attributes(ipc_namespace).into_iter().map(|(key, value)| (key, known(value))).collect();
    let more = if matches!(call.outcome, Outcome::Failed { .. }) { &CAUSES[..] } else { &[] };
    differences(&expected, &record.attributes, &[T::MORE, more].concat())
}

/// What failed calls may say besides; tests/causes.rs knows what.
pub(crate) const CAUSES: [&str; 5] = [
    "posix_mq.cause",
    "posix_mq.limit.value",
    "posix_mq.limit.used",
    "posix_mq.limit.requested",
    "posix_mq.notify.owner_pid",
];
