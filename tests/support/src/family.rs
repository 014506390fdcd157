//! Calls of all six as strace saw them and the caller knows them, and what the contract makes of them.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::{
    calls::{CAUSES, Comparison, Open, POLLING, errno_of},
    expect::{Expect, Expected, differences},
    otlp::{Attributes, Record, Value, text},
    strace::{Arg, Returned, Syscall},
    text::destination,
};

/// The queue that a descriptor is.
#[derive(Clone, Debug)]
pub struct Queue {
    name: String,
    maxmsg: i64,
    msgsize: i64,
    nonblocking: bool,
}

/// What only the caller knows of its call.
#[derive(Clone, Debug)]
pub struct Known {
    name: String,
    queue: Option<Queue>,
    before_ns: u64,
    after_ns: u64,
    pid: u32,
}

/// A call, by both oracles.
#[derive(Clone, Debug)]
pub struct Call {
    seen: Syscall,
    /// None for the process that makes and removes the queues.
    known: Option<Known>,
}

/// Joins strace's log with the record of `workload calls`.
pub fn join(log: &[Syscall], record: &Path) -> Result<Vec<Call>> {
    let mut by_thread: BTreeMap<u32, VecDeque<Known>> = BTreeMap::new();
    for line in fs::read_to_string(record)?.lines() {
        let (tid, known) = known(line).with_context(|| line.to_owned())?;
        by_thread.entry(tid).or_default().push_back(known);
    }
    let calls = log.iter().enumerate().map(|(index, seen)| {
        let known = match by_thread.get_mut(&seen.tid) {
            Some(thread) => {
                let known = thread.front().with_context(|| format!("only strace saw {seen:?}"))?.clone();
                let next = log[index + 1..].iter().find(|next| next.tid == seen.tid);
                if !next.is_some_and(|next| is_restart(seen, next)) {
                    thread.pop_front();
                }
                Some(known)
            }
            None => None,
        };
        ensure!(
            known.as_ref().is_none_or(|known| known.name == seen.name),
            "the oracles disagree: {known:?}, {seen:?}"
        );
        Ok(Call { seen: seen.clone(), known })
    });
    let calls = calls.collect::<Result<_>>()?;
    ensure!(by_thread.values().all(VecDeque::is_empty), "calls that strace did not see");
    Ok(calls)
}

/// Whether the kernel makes the call again, after a signal without a handler, and the caller never knows. Two calls of
/// the workload have never the same deadline.
fn is_restart(call: &Syscall, next: &Syscall) -> bool {
    let same = |index| call.args.get(index) == next.args.get(index);
    matches!(call.returned, Returned::Unknown(_)) && call.name == next.name && [0, 2, 4].into_iter().all(same)
}

fn known(line: &str) -> Result<(u32, Known)> {
    let [tid, name, queue, before, after, _, pid] = line.split('\t').collect::<Vec<_>>()[..] else { bail!("fields") };
    let queue = match queue.split(',').collect::<Vec<_>>()[..] {
        ["-"] => None,
        [name, maxmsg, msgsize, nonblocking] => Some(Queue {
            name: name.into(),
            maxmsg: maxmsg.parse()?,
            msgsize: msgsize.parse()?,
            nonblocking: nonblocking.parse()?,
        }),
        _ => bail!("a queue"),
    };
    let (before_ns, after_ns) = (before.parse()?, after.parse()?);
    Ok((tid.parse()?, Known { name: name.into(), queue, before_ns, after_ns, pid: pid.parse()? }))
}

/// The kernel's number for what a signal ended; programs never see it.
const ERESTARTSYS: i64 = 512;

/// How far clocks may be apart: the contract's 10 ms.
const CLOCK_NS: u64 = 10_000_000;

impl Call {
    /// The thread that made it.
    pub fn tid(&self) -> u32 {
        self.seen.tid
    }

    fn arg(&self, index: usize) -> Result<&Arg> {
        self.seen.args.get(index).with_context(|| format!("no argument {index}"))
    }

    fn errno(&self) -> Option<&str> {
        match &self.seen.returned {
            Returned::Value(_) => None,
            Returned::Error(name, _) | Returned::Unknown(name) => Some(name),
        }
    }

    /// Attributes that it may have besides.
    fn more(&self) -> &'static [&'static str] {
        if self.errno().is_some() { &CAUSES } else { &[] }
    }

    fn queue(&self) -> Option<&Queue> {
        self.known.as_ref()?.queue.as_ref()
    }

    /// What metrics tell calls apart by: the process, and the values of these attributes.
    pub fn series(&self, keys: [&str; 3]) -> Result<(i64, [Option<String>; 3])> {
        // The process that makes and removes the queues has one thread.
        let pid = self.known.as_ref().map_or(self.seen.tid, |known| known.pid);
        let expected = self.expected(0)?;
        let value = |key| match expected.get(key) {
            None => Ok(None),
            Some(Expect::Is(Value::Text(text))) => Ok(Some(text.clone())),
            other => bail!("{key} is {other:?} of {:?}", self.seen),
        };
        let [first, second, third] = keys;
        Ok((pid.into(), [value(first)?, value(second)?, value(third)?]))
    }

    fn expected(&self, ipc_namespace: i64) -> Result<Expected> {
        let name = &*self.seen.name;
        if name == "mq_open" {
            let attributes = Open::from_strace(&self.seen)?.attributes(ipc_namespace);
            let known = |value: Option<Value>| value.map_or(Expect::Present, Expect::Is);
            return Ok(attributes.into_iter().map(|(key, value)| (key, known(value))).collect());
        }
        let mut all = Expected::from([
            ("messaging.system", "posix_mq".into()),
            ("messaging.operation.name", name.into()),
            ("posix_mq.ipc_namespace", ipc_namespace.into()),
            ("thread.id", i64::from(self.seen.tid).into()),
            ("thread.name", "workload".into()),
        ]);
        match &self.seen.returned {
            Returned::Value(value) => all.insert("posix_mq.return_value", (*value).into()),
            Returned::Error(name, _) => {
                let errno = errno_of(name).with_context(|| name.clone())?;
                all.insert("posix_mq.return_value", i64::from(-errno).into())
            }
            Returned::Unknown(name) => {
                ensure!(name == "ERESTARTSYS", "{:?}", self.seen);
                all.insert("posix_mq.return_value", (-ERESTARTSYS).into())
            }
        };
        if let Some(errno) = self.errno() {
            all.insert("posix_mq.errno", errno.into());
            if !POLLING.contains(&errno) {
                all.insert("error.type", errno.into());
            }
        }
        if let Some(Queue { name, maxmsg, msgsize, .. }) = self.queue() {
            all.insert("messaging.destination.name", destination(name.as_bytes()).into());
            all.insert("posix_mq.queue.maxmsg", (*maxmsg).into());
            all.insert("posix_mq.queue.msgsize", (*msgsize).into());
            all.insert("posix_mq.queue.curmsgs", Expect::Between(0, *maxmsg));
            all.insert("posix_mq.queue.id", Expect::Present);
        }
        if name != "mq_unlink" {
            all.insert("posix_mq.fd", i64::try_from(self.arg(0)?.number()?)?.into());
        }
        match name {
            "mq_unlink" => self.expect_unlink(&mut all)?,
            "mq_timedsend" => self.expect_send(&mut all)?,
            "mq_timedreceive" => self.expect_receive(&mut all)?,
            "mq_notify" => self.expect_notify(&mut all)?,
            "mq_getsetattr" => self.expect_getsetattr(&mut all)?,
            other => bail!("{other} is none of the six"),
        }
        Ok(all)
    }

    fn expect_unlink(&self, all: &mut Expected) -> Result<()> {
        if let Arg::Text(name, false) = self.arg(0)? {
            all.insert("messaging.destination.name", destination(name).into());
        }
        for key in ["posix_mq.queue.maxmsg", "posix_mq.queue.msgsize", "posix_mq.queue.curmsgs"] {
            all.insert(key, Expect::Maybe);
        }
        Ok(())
    }

    fn expect_send(&self, all: &mut Expected) -> Result<()> {
        all.insert("messaging.operation.type", "send".into());
        all.insert("messaging.message.body.size", i64::try_from(self.arg(2)?.number()?)?.into());
        all.insert("posix_mq.message.priority", i64::try_from(self.arg(3)?.number()?)?.into());
        self.expect_waiting(all)
    }

    fn expect_receive(&self, all: &mut Expected) -> Result<()> {
        all.insert("messaging.operation.type", "receive".into());
        // As OTLP's integers are: the longest buffer of all is -1.
        all.insert("posix_mq.receive.buffer_size", u64::try_from(self.arg(2)?.number()?)?.cast_signed().into());
        if let Returned::Value(size) = self.seen.returned {
            all.insert("messaging.message.body.size", size.into());
            let priority = match self.arg(3)? {
                Arg::List(list) => i64::try_from(list.first().context("no priority")?.number()?)?.into(),
                _ => Expect::Maybe,
            };
            all.insert("posix_mq.message.priority", priority);
            all.insert("posix_mq.message.wait", Expect::Seconds { least: 0., most: 600., optional: true });
        }
        self.expect_waiting(all)
    }

    /// What a call that may sleep says: whether it did, and the deadline as far as it is one.
    fn expect_waiting(&self, all: &mut Expected) -> Result<()> {
        let known = self.known.as_ref().context("no record")?;
        let deadline = match self.arg(4)? {
            deadline @ Arg::Struct(_) => {
                let field = |name| deadline.field(name).context("no field")?.number();
                let (seconds, nanoseconds) = (field("tv_sec")?, field("tv_nsec")?);
                // strace writes the nanoseconds without their sign.
                let valid = seconds >= 0 && (0..1_000_000_000).contains(&nanoseconds);
                valid.then_some(seconds * 1_000_000_000 + nanoseconds)
            }
            _ => None,
        };
        if let Some(deadline) = deadline {
            let until = |from: u64| (deadline - i128::from(from)) as f64 / 1e9;
            let (least, most) = (until(known.after_ns + CLOCK_NS), until(known.before_ns - CLOCK_NS));
            all.insert("posix_mq.timeout", Expect::Seconds { least, most, optional: false });
        }
        let far = deadline.is_some_and(|deadline| deadline > i128::from(known.before_ns) + 100_000_000);
        let slept = match (self.queue(), self.errno()) {
            (None, _) | (Some(Queue { nonblocking: true, .. }), _) => Some(false),
            (_, Some("EBADF" | "EINVAL" | "EMSGSIZE" | "EAGAIN")) => Some(false),
            // A deadline that is near may be over, as a signal may be there, before the call looks.
            (_, Some("ETIMEDOUT")) if far => Some(true),
            _ => None,
        };
        all.insert("posix_mq.blocked", slept.map_or(Expect::Present, |slept| Expect::Is(Value::Bool(slept))));
        Ok(())
    }

    fn expect_notify(&self, all: &mut Expected) -> Result<()> {
        match self.arg(1)? {
            Arg::Null => {
                all.insert("posix_mq.notify.method", "unregister".into());
            }
            event @ Arg::Struct(_) => {
                let field = |name: &str| event.field(name).with_context(|| name.to_owned())?.number();
                let method = match field("sigev_notify")? {
                    0 => "SIGEV_SIGNAL".into(),
                    1 => "SIGEV_NONE".into(),
                    2 => "SIGEV_THREAD".into(),
                    other => format!("{other:#x}"),
                };
                if method == "SIGEV_SIGNAL" {
                    let signal = match field("sigev_signo")? {
                        10 => "SIGUSR1",
                        37 => "SIGRTMIN+3",
                        other => bail!("signal {other}"),
                    };
                    all.insert("posix_mq.notify.signal", signal.into());
                }
                all.insert("posix_mq.notify.method", method.into());
            }
            _ => {}
        }
        Ok(())
    }

    fn expect_getsetattr(&self, all: &mut Expected) -> Result<()> {
        let new = self.arg(1)?;
        if !matches!(new, Arg::Struct(_)) {
            return Ok(());
        }
        for (key, field) in [
            ("posix_mq.attr.flags", "mq_flags"),
            ("posix_mq.attr.maxmsg", "mq_maxmsg"),
            ("posix_mq.attr.msgsize", "mq_msgsize"),
            ("posix_mq.attr.curmsgs", "mq_curmsgs"),
        ] {
            let number = new.field(field).with_context(|| field.to_owned())?.number()?;
            // strace writes the flags without their sign.
            let number = i64::try_from(number).or_else(|_| u64::try_from(number).map(u64::cast_signed))?;
            all.insert(key, number.into());
        }
        Ok(())
    }

    /// What of the span is not in its attributes.
    fn differs(&self, span: &Span, attributes: &Attributes) -> Vec<String> {
        let name = match text(attributes, "messaging.destination.name") {
            Some(name) => format!("{} {name}", self.seen.name),
            None => self.seen.name.clone(),
        };
        let kind = match &*self.seen.name {
            "mq_timedsend" => 4,
            "mq_timedreceive" => 3,
            _ => 1,
        };
        let status = match &self.seen.returned {
            Returned::Error(name, text) if !POLLING.contains(&&**name) => (2, &**text),
            _ => (0, ""),
        };
        let found = span.status.clone().unwrap_or_default();
        let received = self.seen.name == "mq_timedreceive" && self.errno().is_none();
        let mut all = Vec::new();
        let mut check = |holds: bool, what: String| all.extend((!holds).then_some(what));
        check(span.name == name, format!("the name is {:?}, not {name:?}", span.name));
        check(span.kind == kind, format!("the kind is {}, not {kind}", span.kind));
        check((found.code, &*found.message) == status, format!("the status is {found:?}, not {status:?}"));
        check(span.links.is_empty() || received, "a link, but no message was received".into());
        check(span.links.len() <= 1, format!("{} links", span.links.len()));
        check(span.parent_span_id.is_empty(), "a parent".into());
        if let Some(Known { before_ns, after_ns, .. }) = self.known {
            let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
            let within = start + CLOCK_NS >= before_ns && start <= end && end <= after_ns + CLOCK_NS;
            check(within, format!("{start} to {end} is not within {before_ns} to {after_ns}"));
        }
        all
    }
}

/// Joins the oracles' calls with mqspan's spans, thread by thread in their order.
pub fn compare(calls: &[Call], spans: &[Record<Span>], ipc_namespace: i64) -> Result<Comparison> {
    let mut by_thread: BTreeMap<u32, (Vec<&Call>, Vec<&Record<Span>>)> = BTreeMap::new();
    for call in calls {
        by_thread.entry(call.tid()).or_default().0.push(call);
    }
    for span in spans {
        by_thread.entry(span.tid()?).or_default().1.push(span);
    }
    let mut comparison = Comparison::default();
    for (tid, (calls, spans)) in by_thread {
        comparison.missing += calls.len().saturating_sub(spans.len());
        comparison.extra += spans.len().saturating_sub(calls.len());
        for (number, (call, span)) in calls.into_iter().zip(spans).enumerate() {
            comparison.compared += 1;
            let mut found = differences(&call.expected(ipc_namespace)?, &span.attributes, call.more());
            found.extend(call.differs(&span.body, &span.attributes));
            if let Some(known) = &call.known {
                let pid = span.pid()?;
                found.extend((pid != known.pid).then(|| format!("process {pid}, not {}", known.pid)));
            }
            if !found.is_empty() {
                comparison.differing.push(format!("call {number} of thread {tid}: {}: {call:?}", found.join("; ")));
            }
        }
    }
    Ok(comparison)
}
