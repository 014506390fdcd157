//! A call that has been under way for long, as a log record and as a line of the console. Pure code.

use std::io::Write;

use jiff::tz::TimeZone;

use super::console::{duration, time_of_day};
use super::record::LogEntry;
use super::terms::{errno_name, is_error, operation, operation_type};
use super::view::{Attributes, COMPAT, errno, seconds_until, write_result};
use crate::model::call::{Abi, Ids};
use crate::model::live::{LiveQueue, Since};
use crate::model::stuck::StuckCall;
use crate::model::text::printable;
use crate::model::values::Op;

/// What is said of a call that has been under way for long.
#[derive(Debug)]
pub struct StuckView<'a> {
    /// The call.
    pub stuck: &'a StuckCall,
    /// Its entry, or where that was not seen when it was first found to wait, ns since 1970.
    pub start_ns: u64,
    /// What its queue goes by where that stands for many.
    pub template: Option<&'a str>,
}

impl StuckView<'_> {
    fn queue(&self) -> Option<&LiveQueue> {
        self.stuck.waiter.queue.as_ref()
    }
}

impl StuckView<'_> {
    /// What is passed, until when it waits for that, and how it has ended.
    fn give_message(&self, to: &mut impl Attributes) {
        let (waiter, end) = (&self.stuck.waiter, self.stuck.end);
        if let Some(end) = end {
            to.int("posix_mq.return_value", end.ret);
            if let Some(errno) = errno(end.ret) {
                to.text("posix_mq.errno", &errno_name(errno));
                if is_error(errno) {
                    to.text("error.type", &errno_name(errno));
                }
            }
        }
        let (size, priority) = match waiter.op {
            Op::MqTimedsend => (Some(waiter.size.cast_signed()), Some(waiter.priority)),
            _ => (end.map(|end| end.ret).filter(|ret| *ret >= 0), end.and_then(|end| end.priority)),
        };
        if let Some(size) = size {
            to.int("messaging.message.body.size", size);
        }
        if let Some(priority) = priority {
            to.int("posix_mq.message.priority", priority.into());
        }
        if let Some(timeout) = waiter.deadline.and_then(|deadline| seconds_until(deadline, self.start_ns)) {
            to.double("posix_mq.timeout", timeout);
        }
    }
}

impl LogEntry for StuckView<'_> {
    fn start_ns(&self) -> u64 {
        if self.stuck.waiter.since == Since::Entry { self.start_ns } else { self.end_ns() }
    }

    fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.stuck.duration_ns())
    }

    fn severity(&self) -> (u8, &'static str) {
        if self.stuck.has_ended { (9, "INFO") } else { (13, "WARN") }
    }

    fn event_name(&self) -> &'static str {
        "posix_mq.stuck"
    }

    fn logged_span(&self) -> Option<(Ids, u32)> {
        None
    }

    /// `mq_timedsend("/orders") under way for 5.2s: depth 10/10, peers biller[1301]`; `for more than` where its entry was not
    /// seen.
    fn body(&self) -> String {
        let name = match self.queue() {
            Some(queue) => format!("\"{}\"", printable(&queue.name)),
            None => self.stuck.waiter.fd.to_string(),
        };
        let call = format!("{}({name})", operation(self.stuck.waiter.op));
        let more = if self.stuck.waiter.since == Since::Entry { "" } else { "more than " };
        let took = format!("{more}{}", duration(self.stuck.duration_ns()));
        if self.stuck.has_ended {
            let mut line = format!("{call} ended after {took}");
            if let Some(end) = self.stuck.end {
                // Writing to a String cannot fail.
                let _ = write_result(&mut line, self.stuck.waiter.op, end.ret, end.priority);
            }
            return line;
        }
        let depth = self.queue().map_or(String::new(), |queue| format!(": depth {}/{}", queue.curmsgs, queue.maxmsg));
        let peers = match self.stuck.peers.as_deref() {
            None => String::new(),
            Some([]) => ", no peers".into(),
            Some(peers) => format!(", peers {}", printable(&peers.join(" "))),
        };
        format!("{call} under way for {took}{depth}{peers}")
    }

    fn attributes(&self, to: &mut impl Attributes) {
        let waiter = &self.stuck.waiter;
        to.text("messaging.system", "posix_mq");
        to.text("messaging.operation.name", operation(waiter.op));
        if let Some(kind) = operation_type(waiter.op) {
            to.text("messaging.operation.type", kind);
        }
        if let Some(queue) = self.queue() {
            to.text("messaging.destination.name", &queue.name);
            if let Some(template) = self.template {
                to.text("messaging.destination.template", template);
            }
            to.int("posix_mq.queue.maxmsg", queue.maxmsg);
            to.int("posix_mq.queue.msgsize", queue.msgsize);
            to.int("posix_mq.queue.curmsgs", queue.curmsgs);
        }
        self.give_message(to);
        to.boolean("posix_mq.blocked", true);
        to.int("posix_mq.ipc_namespace", self.queue().map_or(waiter.ipc_ns, |queue| queue.ipc_ns).into());
        if waiter.abi == Abi::Compat {
            to.text("posix_mq.syscall.abi", COMPAT);
        }
        if waiter.op == Op::MqTimedreceive {
            to.int("posix_mq.receive.buffer_size", waiter.size.cast_signed());
        }
        to.int("posix_mq.fd", waiter.fd.into());
        if let Some(queue) = self.queue() {
            to.int("posix_mq.queue.id", queue.number.cast_signed());
        }
        if let Some(peers) = &self.stuck.peers {
            let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
            to.texts("posix_mq.peers", &peers);
        }
        to.int("thread.id", waiter.host_tid.into());
        to.text("thread.name", &waiter.comm);
        if waiter.since == Since::Entry {
            to.double("posix_mq.duration", self.stuck.duration_ns() as f64 / 1e9);
        }
    }
}

/// Appends the line, with the time of what it says in `zone`.
pub fn line(view: &StuckView<'_>, zone: &TimeZone, out: &mut Vec<u8>) {
    let waiter = &view.stuck.waiter;
    let (time, comm) = (time_of_day(view.end_ns(), zone), printable(&waiter.comm));
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "{time} {comm}[{}/{}] {}", waiter.host_pid, waiter.host_tid, view.body());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::ImageKey;
    use crate::model::live::Waiter;
    use crate::model::stuck::CallEnd;

    /// Prevents a line that does not say on which queue, how full it is and who could help, and one of a call that has ended
    /// from saying that it is stuck.
    #[test]
    fn lines() {
        let queue =
            LiveQueue { ipc_ns: 1, name: "/orders".into(), number: 2, key: None, maxmsg: 10, msgsize: 64, curmsgs: 10 };
        let waiter = Waiter {
            image: ImageKey { pid: 7, started_ns: 1, exec_id: 0 },
            pid: 7,
            vpid: 7,
            tid: 8,
            host_pid: 7,
            host_tid: 8,
            comm: "w".into(),
            uid: 0,
            ipc_ns: 1,
            op: Op::MqTimedsend,
            fd: 3,
            size: 5,
            priority: 2,
            deadline: None,
            abi: Abi::Native,
            since_ns: 0,
            since: Since::Entry,
            switches: 0,
            queue: Some(queue),
        };
        let stuck = |peers, has_ended| StuckCall {
            waiter: waiter.clone(),
            seen_ns: 5_200_000_000,
            has_ended,
            end: None,
            peers,
        };
        let end = |ret| StuckCall { end: Some(CallEnd { ret, left_ns: 0, priority: None }), ..stuck(None, true) };
        let before = Waiter { since: Since::Look, ..waiter.clone() };
        let shown = |stuck: &StuckCall| {
            let mut out = Vec::new();
            line(&StuckView { stuck, start_ns: 0, template: None }, &TimeZone::UTC, &mut out);
            String::from_utf8(out).unwrap()
        };
        for (stuck, expected) in [
            (stuck(None, false), "mq_timedsend(\"/orders\") under way for 5.2s: depth 10/10"),
            (stuck(Some(vec![]), false), "mq_timedsend(\"/orders\") under way for 5.2s: depth 10/10, no peers"),
            (
                stuck(Some(vec!["a[1]".into(), "b[2]".into()]), false),
                "mq_timedsend(\"/orders\") under way for 5.2s: depth 10/10, peers a[1] b[2]",
            ),
            (stuck(None, true), "mq_timedsend(\"/orders\") ended after 5.2s"),
            (end(0), "mq_timedsend(\"/orders\") ended after 5.2s = 0"),
            (end(-110), "mq_timedsend(\"/orders\") ended after 5.2s = -1 ETIMEDOUT"),
            (
                StuckCall { waiter: before, ..stuck(None, false) },
                "mq_timedsend(\"/orders\") under way for more than 5.2s: depth 10/10",
            ),
            (
                StuckCall { waiter: Waiter { queue: None, ..waiter.clone() }, ..stuck(None, false) },
                "mq_timedsend(3) under way for 5.2s",
            ),
        ] {
            assert_eq!(shown(&stuck), format!("00:00:05.200000 w[7/8] {expected}\n"));
        }
    }
}
