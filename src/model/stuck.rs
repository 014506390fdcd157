//! Calls that are under way for long: which threads wait, since when, and what is to be said of them and when. Pure code.

use std::collections::{HashMap, HashSet};

use super::call::{Args, Call, Identity, ImageKey};
use super::live::{QueueAccess, QueueHolder, Since, Waiter};
use super::values::Op;

/// So many processes' lines are counted, for each second; those beyond are said without a bound of their own.
const CEILINGS: usize = 4096;
/// As many calls are followed at a time.
const FOLLOWED: usize = 65_536;
/// At most so many processes are named.
const PEERS: usize = 8;

/// A call that has been under way for long, or has ended after that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckCall {
    /// The thread.
    pub waiter: Waiter,
    /// When this was seen, CLOCK_MONOTONIC in ns.
    pub seen_ns: u64,
    /// Whether it has ended by then.
    pub has_ended: bool,
    /// How, where its record says it.
    pub end: Option<CallEnd>,
    /// Those who could unblock it, as `comm[pid]`: at most eight; None where it is not known who has the queue open.
    pub peers: Option<Vec<String>>,
}

impl StuckCall {
    /// The caller's image.
    pub fn image(&self) -> ImageKey {
        self.waiter.image
    }

    /// Who makes it.
    pub fn identity(&self) -> Identity {
        let Waiter { image, pid, vpid, uid, ref comm, .. } = self.waiter;
        Identity { image, local_pid: pid, vpid, uid, comm: comm.clone().into_bytes() }
    }

    /// How long it has been under way, in ns.
    pub fn duration_ns(&self) -> u64 {
        self.seen_ns.saturating_sub(self.waiter.since_ns)
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallEnd {
    /// As the kernel returned it; negative errno on failure.
    pub ret: i64,
    /// Its exit, CLOCK_MONOTONIC in ns.
    pub left_ns: u64,
    /// Of the message that it passed.
    pub priority: Option<u32>,
}

/// How calls ended that were said to be stuck, from their own records until it is said.
#[derive(Debug, Default)]
pub struct StuckEnds(HashMap<(u32, u64), Option<CallEnd>>);

impl StuckEnds {
    /// By its thread and its entry; None where that was not seen.
    fn key(stuck: &StuckCall) -> Option<(u32, u64)> {
        let Waiter { host_tid, since_ns, since, .. } = stuck.waiter;
        (since == Since::Entry).then_some((host_tid, since_ns))
    }

    /// The call is said to be stuck: its record will be of interest.
    pub fn await_end(&mut self, stuck: &StuckCall) {
        if let Some(key) = Self::key(stuck).filter(|_| self.0.len() < FOLLOWED) {
            self.0.entry(key).or_default();
        }
    }

    /// A call's record.
    pub fn ended(&mut self, call: &Call) {
        if self.0.is_empty() {
            return;
        }
        if let (Some(end), Args::Send(message) | Args::Receive(message)) =
            (self.0.get_mut(&(call.tid, call.entered_ns)), call.args)
        {
            *end = Some(CallEnd { ret: call.ret, left_ns: call.left_ns, priority: message.priority });
        }
    }

    /// Whether the call's record has come, or will not.
    pub fn is_known(&self, stuck: &StuckCall) -> bool {
        Self::key(stuck).and_then(|key| self.0.get(&key)).is_none_or(Option::is_some)
    }

    /// Adds how the call has ended to what is said of that, for once.
    pub fn complete(&mut self, stuck: &mut StuckCall) {
        stuck.end = Self::key(stuck).and_then(|key| self.0.remove(&key)).flatten();
        stuck.seen_ns = stuck.end.map_or(stuck.seen_ns, |end| end.left_ns);
    }
}

/// A call that is followed.
#[derive(Debug)]
struct FollowedCall {
    /// As it was seen first.
    since_ns: u64,
    since: Since,
    switches: u64,
    is_long: bool,
    /// What was said of it; None where it was not yet, or the ceiling left it out.
    said: Option<StuckCall>,
}

impl FollowedCall {
    fn is(&self, waiter: &Waiter) -> bool {
        match self.since == Since::Entry && waiter.since == Since::Entry {
            true => self.since_ns == waiter.since_ns,
            false => self.switches == waiter.switches,
        }
    }
}

/// Follows the calls that are under way, from one look to the next.
#[derive(Debug)]
pub struct StuckTable {
    /// A call is stuck from this duration on, in ns.
    least_ns: u64,
    /// So many are said in a second of each process and operation; 0: all.
    most: u64,
    /// By thread on the host.
    followed: HashMap<u32, FollowedCall>,
    /// What was said in this second.
    second: u64,
    said: HashMap<(u32, Op), u64>,
}

impl StuckTable {
    /// No call yet.
    pub fn new(least_ns: u64, most: u64) -> Self {
        Self { least_ns, most, followed: HashMap::new(), second: 0, said: HashMap::new() }
    }

    /// Those who wait, as seen at `now_ns`: returns what is to be said, each call once when it has been under way for long and
    /// once when it has ended. `holders` tells who has queues open, and is asked only where something is to be said.
    pub fn look(
        &mut self,
        now_ns: u64,
        waiters: Vec<Waiter>,
        holders: impl FnOnce() -> Option<Vec<QueueHolder>>,
    ) -> Vec<StuckCall> {
        let mut told = Vec::new();
        let threads: HashMap<u32, &Waiter> = waiters.iter().map(|waiter| (waiter.host_tid, waiter)).collect();
        self.followed.retain(|tid, followed| {
            let goes_on = threads.get(tid).is_some_and(|waiter| followed.is(waiter));
            if !goes_on && let Some(said) = followed.said.take() {
                told.push(StuckCall { seen_ns: now_ns, has_ended: true, ..said });
            }
            goes_on
        });
        let mut begun = Vec::new();
        for mut waiter in waiters {
            let tid = waiter.host_tid;
            if !self.followed.contains_key(&tid) && self.followed.len() >= FOLLOWED {
                continue;
            }
            let Waiter { since_ns, since, switches, .. } = waiter;
            let first = FollowedCall { since_ns, since, switches, is_long: false, said: None };
            let followed = self.followed.entry(tid).or_insert(first);
            waiter.since_ns = followed.since_ns;
            if followed.is_long || now_ns.saturating_sub(followed.since_ns) < self.least_ns {
                continue;
            }
            followed.is_long = true;
            if !self.has_room(now_ns, &waiter) {
                continue;
            }
            let stuck = StuckCall { waiter, seen_ns: now_ns, has_ended: false, end: None, peers: None };
            if let Some(followed) = self.followed.get_mut(&tid) {
                followed.said = Some(stuck.clone());
            }
            begun.push(stuck);
        }
        if !begun.is_empty() {
            let holders = holders();
            for stuck in &mut begun {
                stuck.peers = holders.as_deref().map(|holders| peers(&stuck.waiter, holders));
                if let Some(said) = self.followed.get_mut(&stuck.waiter.host_tid).and_then(|of| of.said.as_mut()) {
                    said.peers.clone_from(&stuck.peers);
                }
            }
        }
        told.append(&mut begun);
        told
    }

    /// Whether the process has not said too much in this second.
    fn has_room(&mut self, now_ns: u64, waiter: &Waiter) -> bool {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            (self.second, self.said) = (second, HashMap::new());
        }
        if self.most == 0 || self.said.len() >= CEILINGS {
            return self.most == 0;
        }
        let said = self.said.entry((waiter.host_pid, waiter.op)).or_default();
        *said += 1;
        *said <= self.most
    }
}

/// The processes that have the queue open so that they could go on with the other side, but the one that waits.
fn peers(waiter: &Waiter, holders: &[QueueHolder]) -> Vec<String> {
    let Some(queue) = &waiter.queue else { return Vec::new() };
    let other = match waiter.op {
        Op::MqTimedsend => QueueAccess::Read,
        _ => QueueAccess::Write,
    };
    let mut seen = HashSet::new();
    holders
        .iter()
        .filter(|holder| holder.queue.key == queue.key && holder.host_pid != waiter.host_pid)
        .filter(|holder| holder.access == other || holder.access == QueueAccess::ReadWrite)
        .filter(|holder| seen.insert(holder.host_pid))
        .take(PEERS)
        .map(|holder| format!("{}[{}]", holder.comm, holder.host_pid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::{Abi, Message, QueueKey};
    use crate::model::examples::{example, message};
    use crate::model::live::LiveQueue;

    fn queue(number: u64) -> LiveQueue {
        let key = Some(QueueKey { inode: number, number, namespace: 1 });
        LiveQueue { ipc_ns: 1, name: "/q".into(), number, key, maxmsg: 10, msgsize: 64, curmsgs: 10 }
    }

    fn waiter(tid: u32, since_ns: u64) -> Waiter {
        Waiter {
            image: ImageKey { pid: 7, started_ns: 1, exec_id: 0 },
            pid: 7,
            vpid: 7,
            tid,
            host_pid: 7,
            host_tid: tid,
            comm: "w".into(),
            uid: 0,
            ipc_ns: 1,
            op: Op::MqTimedsend,
            fd: 3,
            size: 1,
            priority: 0,
            deadline: None,
            abi: Abi::Native,
            since_ns,
            since: Since::Entry,
            switches: 0,
            queue: Some(queue(2)),
        }
    }

    fn holder(pid: u32, access: QueueAccess, number: u64) -> QueueHolder {
        QueueHolder { host_pid: pid, comm: format!("h{pid}"), fd: 1, access, file: 1, queue: queue(number) }
    }

    const SECOND: u64 = 1_000_000_000;

    fn said(told: &[StuckCall]) -> Vec<(u32, bool, u64)> {
        told.iter().map(|of| (of.waiter.host_tid, of.has_ended, of.duration_ns() / SECOND)).collect()
    }

    /// Prevents a call from being told twice, too early or never, and the next one of its thread from passing for the same.
    #[test]
    fn once_when_it_is_stuck_and_once_when_it_ends() {
        let mut table = StuckTable::new(5 * SECOND, 0);
        let none = || None;
        assert!(table.look(104 * SECOND, vec![waiter(1, 100 * SECOND)], none).is_empty());
        let told = table.look(106 * SECOND, vec![waiter(1, 100 * SECOND), waiter(2, 105 * SECOND)], none);
        assert_eq!(said(&told), [(1, false, 6)]);
        assert!(table.look(107 * SECOND, vec![waiter(1, 100 * SECOND), waiter(2, 105 * SECOND)], none).is_empty());
        // Another call of the first thread; the second thread's is long by now.
        let told = table.look(112 * SECOND, vec![waiter(1, 111 * SECOND), waiter(2, 105 * SECOND)], none);
        assert_eq!(said(&told), [(1, true, 12), (2, false, 7)]);
        assert_eq!(said(&table.look(113 * SECOND, vec![waiter(1, 111 * SECOND)], none)), [(2, true, 8)]);
        assert_eq!(said(&table.look(120 * SECOND, vec![waiter(1, 111 * SECOND)], none)), [(1, false, 9)]);
        assert_eq!(said(&table.look(121 * SECOND, vec![], none)), [(1, true, 10)]);
        assert!(table.look(122 * SECOND, vec![], none).is_empty() && table.followed.is_empty());
    }

    /// Prevents a call that began before mqspan, whose start is not known, from being told again at
    /// each look, and the next call of its thread from passing for it.
    #[test]
    fn calls_that_began_before() {
        let mut table = StuckTable::new(5 * SECOND, 0);
        let before = |since_ns, switches| Waiter { since: Since::Look, switches, ..waiter(1, since_ns) };
        assert_eq!(said(&table.look(106 * SECOND, vec![before(100 * SECOND, 4)], || None)), [(1, false, 6)]);
        assert!(table.look(107 * SECOND, vec![before(101 * SECOND, 4)], || None).is_empty());
        assert_eq!(
            said(&table.look(108 * SECOND, vec![before(101 * SECOND, 5)], || None)),
            [(1, true, 8), (1, false, 7)]
        );
    }

    /// Prevents a process whose threads wait by the thousand from drowning the rest, and what was left out from being said
    /// to have ended.
    #[test]
    fn the_ceiling_holds() {
        let mut table = StuckTable::new(SECOND, 3);
        let crowd = || (1..=10).map(|tid| waiter(tid, 100 * SECOND)).collect::<Vec<_>>();
        assert_eq!(table.look(110 * SECOND, crowd(), || None).len(), 3);
        assert!(table.look(111 * SECOND, crowd(), || None).is_empty());
        assert_eq!(table.look(112 * SECOND, vec![], || None).len(), 3);
    }

    /// Prevents those from being named who could not unblock it: others' queues, the same side, the one that waits.
    #[test]
    fn who_could_unblock_it() {
        use QueueAccess::{Read, ReadWrite, Write};
        let holders = vec![
            holder(7, ReadWrite, 2),
            holder(8, Read, 2),
            holder(8, Read, 2),
            holder(9, Write, 2),
            holder(10, ReadWrite, 2),
            holder(11, Read, 3),
        ];
        let told = StuckTable::new(SECOND, 0).look(9 * SECOND, vec![waiter(1, 0)], || Some(holders));
        assert_eq!(told[0].peers.as_deref(), Some(&["h8[8]".to_owned(), "h10[10]".to_owned()][..]));
    }

    /// Prevents the end of another call of the thread from being taken for the one that was stuck, ends that nobody asks for
    /// from being kept, and a call whose entry was not seen from being waited for.
    #[test]
    fn how_it_ended() {
        let stuck = |since_ns, since| StuckCall {
            waiter: Waiter { since, ..waiter(8, since_ns) },
            seen_ns: 900,
            has_ended: true,
            end: None,
            peers: None,
        };
        let args = Args::Receive(Message { priority: Some(3), ..message() });
        let record = |entered_ns, ret| Call { tid: 8, entered_ns, left_ns: 700, ret, args, ..example() };
        let mut ends = StuckEnds::default();
        ends.ended(&record(100, 1));
        assert!(ends.0.is_empty() && ends.is_known(&stuck(100, Since::Entry)));
        ends.await_end(&stuck(200, Since::Entry));
        ends.await_end(&stuck(300, Since::Look));
        ends.ended(&record(100, 1));
        assert!(!ends.is_known(&stuck(200, Since::Entry)) && ends.is_known(&stuck(300, Since::Look)));
        ends.ended(&record(200, -4));
        let mut told = stuck(200, Since::Entry);
        ends.complete(&mut told);
        assert_eq!(told.end, Some(CallEnd { ret: -4, left_ns: 700, priority: Some(3) }));
        assert_eq!((told.duration_ns(), ends.0.len()), (500, 0));
        ends.complete(&mut told);
        assert_eq!(told.end, None);
    }
}
