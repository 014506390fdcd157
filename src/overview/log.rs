//! Calls as they ended: the latest, the slowest and how long the longest of each queue and operation took. Bounded. Pure
//! code.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Display, Write};
use std::sync::Arc;

use crate::model::call::{Args, ImageKey};
use crate::model::reading::QueueName;
use crate::model::text::{printable, utf8};
use crate::model::values::Op;
use crate::telemetry::console::{self, mark};
use crate::telemetry::record::Record;
use crate::telemetry::view::Attributes;

/// The longest call of so many queues and operations is known.
const LONGEST: usize = 8192;

/// Bytes that the attributes of most calls take.
const DETAILS: usize = 768;

/// A call as a line shows it. Its texts hold no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedCall {
    /// Counts the calls that were logged, from 1.
    pub number: u64,
    /// Its entry, ns since 1970.
    pub start_ns: u64,
    /// From entry to exit, ns.
    pub duration_ns: u64,
    /// Which call.
    pub op: Op,
    /// Who made it.
    pub image: ImageKey,
    /// The thread.
    pub tid: u32,
    /// The thread's name.
    pub comm: String,
    /// The queue's name, with its ipc namespace.
    pub queue: Option<QueueName>,
    /// From the call's name to its result, as strace shows it.
    pub line: String,
    /// Depth, wait and marks, as the console shows them.
    pub passage: String,
    /// What a send and the receive of its message share.
    pub mark: Option<String>,
    /// How long the message lay in the queue, ns.
    pub wait_ns: Option<u64>,
    /// The errno's name, of every failure.
    pub errno: Option<String>,
    /// Whether the failure is an error: polling and being interrupted are not.
    pub is_error: bool,
    /// Every attribute that its span has, in order.
    pub details: Details,
}

impl LoggedCall {
    /// What is said of a call.
    pub fn of(record: &Record<'_>) -> Self {
        let (view, call) = (record.view, record.view.call);
        let mut details = Details(String::with_capacity(DETAILS));
        view.attributes(&mut details);
        let mark = match &call.args {
            Args::Send(message) if message.tracked && call.ret >= 0 => Some(mark(call.ids)),
            Args::Receive(message) => message.sent_by.map(|sender| mark(sender.ids)),
            _ => None,
        };
        Self {
            number: 0,
            start_ns: view.start_ns,
            duration_ns: call.duration_ns(),
            op: call.op,
            image: call.image,
            tid: call.tid,
            comm: shown(&utf8(call.comm())),
            queue: queue_of(record),
            line: view.line(),
            passage: console::passage(view).trim_start().to_owned(),
            mark,
            wait_ns: call.wait_ns(),
            errno: view.errno_name().map(Into::into),
            is_error: view.error().is_some(),
            details,
        }
    }

    /// How slow it was, ns: a receive by its message's wait, every other call by its duration.
    pub fn slowness(&self) -> u64 {
        slowness(self.op, self.duration_ns, self.wait_ns)
    }
}

/// Attributes as texts, without control characters: as such they stand between the parts, in one string, since most calls are
/// forgotten before anybody looks at them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details(String);

const AFTER_KEY: char = '\u{1f}';
const AFTER_VALUE: char = '\u{1e}';

impl Details {
    /// Keys and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split_terminator(AFTER_VALUE).filter_map(|part| part.split_once(AFTER_KEY))
    }

    fn push(&mut self, key: &str, value: impl Display) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{key}{AFTER_KEY}{value}{AFTER_VALUE}");
    }
}

fn shown(text: &str) -> String {
    printable(text).into_owned()
}

impl Attributes for Details {
    fn text(&mut self, key: &str, value: &str) {
        self.push(key, printable(value));
    }

    fn int(&mut self, key: &str, value: i64) {
        self.push(key, value);
    }

    fn double(&mut self, key: &str, value: f64) {
        self.push(key, value);
    }

    fn boolean(&mut self, key: &str, value: bool) {
        self.push(key, value);
    }

    fn texts(&mut self, key: &str, values: &[&str]) {
        self.push(key, printable(&values.join(", ")));
    }
}

/// The calls that are remembered.
#[derive(Debug)]
pub struct CallLog {
    most: usize,
    most_slow: usize,
    count: u64,
    latest: VecDeque<Arc<LoggedCall>>,
    /// Ascending by duration.
    slowest: Vec<Arc<LoggedCall>>,
    longest: BTreeMap<(Option<QueueName>, Op), u64>,
}

impl CallLog {
    /// Remembers so many of the latest, and so many of the slowest; where that is none, the longest are not known either.
    pub fn new(most: usize, most_slow: usize) -> Self {
        let (latest, slowest, longest) = (VecDeque::new(), Vec::new(), BTreeMap::new());
        Self { most, most_slow, count: 0, latest, slowest, longest }
    }

    /// A call has ended.
    pub fn add(&mut self, record: &Record<'_>) {
        self.count += 1;
        let call = record.view.call;
        if self.most_slow > 0 {
            let key = (queue_of(record), call.op);
            let is_known = self.longest.contains_key(&key);
            if is_known || self.longest.len() < LONGEST {
                let longest = self.longest.entry(key).or_default();
                *longest = (*longest).max(call.duration_ns());
            }
        }
        let took = slowness(call.op, call.duration_ns(), call.wait_ns());
        let is_slow = self.most_slow > 0
            && (self.slowest.len() < self.most_slow
                || self.slowest.first().is_some_and(|least| least.slowness() < took));
        if self.most == 0 && !is_slow {
            return;
        }
        let call = Arc::new(LoggedCall { number: self.count, ..LoggedCall::of(record) });
        if is_slow {
            let at = self.slowest.partition_point(|other| other.slowness() < took);
            self.slowest.insert(at, call.clone());
            if self.slowest.len() > self.most_slow {
                self.slowest.remove(0);
            }
        }
        self.latest.push_back(call);
        if self.latest.len() > self.most {
            self.latest.pop_front();
        }
    }

    /// How many calls there were so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The latest, the oldest of them first.
    pub fn latest(&self) -> impl DoubleEndedIterator<Item = &Arc<LoggedCall>> {
        self.latest.iter()
    }

    /// The slowest, the slowest first.
    pub fn slowest(&self) -> impl Iterator<Item = &Arc<LoggedCall>> {
        self.slowest.iter().rev()
    }

    /// How long the longest logged call took, ns.
    pub fn longest(&self, queue: Option<&QueueName>, op: Op) -> Option<u64> {
        self.longest.get(&(queue.cloned(), op)).copied()
    }
}

/// How slow a call is, ns. Waiting for a message is what receives are for: they are slow by how long their message lay.
fn slowness(op: Op, duration_ns: u64, wait_ns: Option<u64>) -> u64 {
    match op {
        Op::MqTimedreceive => wait_ns.unwrap_or(0),
        _ => duration_ns,
    }
}

fn queue_of(record: &Record<'_>) -> Option<QueueName> {
    record.view.destination().map(|name| (record.view.call.ipc_ns, Arc::from(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::{Call, Ids, Method, Sender};
    use crate::model::examples::{example, message, queue};
    use crate::telemetry::view::View;

    fn logged(call: &Call) -> LoggedCall {
        LoggedCall::of(&Record { view: &View::new(call, 5), ids: None })
    }

    fn send(took_ns: u64) -> Call {
        let args = Args::Send(message());
        Call { op: Op::MqTimedsend, args, left_ns: took_ns, ret: 0, queue: Some(queue(b"orders")), ..example() }
    }

    /// Prevents raw control bytes of a queue or thread from reaching the screen, and a send and the receive of its message
    /// from bearing different marks.
    #[test]
    fn what_is_said_of_a_call() {
        let mut comm = [0; 16];
        comm[..5].copy_from_slice(b"a\x1b[2J");
        let failed = logged(&Call { comm, asked: Some(b"x\x1b]0;".to_vec().into()), ..example() });
        assert_eq!((&*failed.comm, &*failed.line), ("a\\x1b[2J", "mq_open(\"/x\\x1b]0;\", O_RDONLY) = -1 ENOENT"));
        assert!(failed.is_error && failed.errno.as_deref() == Some("ENOENT") && failed.mark.is_none());
        assert!(failed.details.iter().all(|(_, value)| !value.contains('\x1b')));
        let ids = Ids { trace: [1; 16], span: [0, 0, 0, 0, 0, 0, 0xa3, 0xf9] };
        let tracked = crate::model::call::Message { tracked: true, ..message() };
        let sent = logged(&Call { args: Args::Send(tracked), ids, ..send(9) });
        let sent_by = Some(Sender { ids, comm, method: Method::Message });
        let received = crate::model::call::Message { sent_by, wait_ns: Some(7), ..message() };
        let received = Call { op: Op::MqTimedreceive, args: Args::Receive(received), ret: 3, ..send(90) };
        let received = logged(&received);
        assert_eq!((sent.mark, sent.passage), (Some("a3f9".into()), "depth 3/10 →a3f9".into()));
        assert_eq!((received.mark.clone(), received.slowness()), (Some("a3f9".into()), 7));
    }

    /// Prevents calls without end from taking memory, and the slowest and the longest from being forgotten meanwhile.
    #[test]
    fn bounded() {
        let mut log = CallLog::new(10, 3);
        for took_ns in (0..100_u64).map(|call| call * 37 % 101) {
            log.add(&Record { view: &View::new(&send(took_ns), 5), ids: None });
        }
        assert_eq!((log.count(), log.latest().count()), (100, 10));
        assert_eq!(log.latest().map(|call| call.number).collect::<Vec<_>>(), (91..=100).collect::<Vec<_>>());
        let slowest: Vec<u64> = log.slowest().map(|call| call.duration_ns).collect();
        let mut all: Vec<u64> = (0..100).map(|call| call * 37 % 101).collect();
        all.sort_unstable();
        assert_eq!(slowest, [all[99], all[98], all[97]]);
        let name = (0, Arc::from("/orders"));
        assert_eq!(log.longest(Some(&name), Op::MqTimedsend), Some(all[99]));
        for number in 0..LONGEST as u64 + 5 {
            let call = Call { queue: Some(queue(number.to_string().as_bytes())), ..send(1) };
            log.add(&Record { view: &View::new(&call, 5), ids: None });
        }
        assert_eq!(log.longest.len(), LONGEST);
    }
}
