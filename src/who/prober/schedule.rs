//! Which probe is next: a turn for each user and within that for each process, a budget of time for each process, asks of
//! the same kind joined, and a deadline, after which a probe is left to itself. Pure code; time is handed in.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::call::ImageKey;

/// As many probes run at a time, and as many of one user's processes: who holds up one leaves room for others.
pub const WORKERS: usize = 3;
const WORKERS_OF_ONE: usize = 2;
/// A probe that has not made its step in this time hangs: it is abandoned, and its worker replaced.
pub const DEADLINE: Duration = Duration::from_millis(50);
/// As many abandoned ones there may be, each a thread that is stuck: of one user's processes, and in all.
pub const MOST_ABANDONED_OF_ONE: usize = 3;
pub const MOST_ABANDONED: usize = 9;
/// An ask that can't be begun for this long, since its user's processes have left too many stuck, is dropped.
const PATIENCE: Duration = Duration::from_secs(1);
/// As many processes are known at a time, and as many of one user's.
const MOST: usize = 4096;
const MOST_OF_ONE: usize = 3072;
/// What one process may cost: this much time at once, and then so much of each second.
const BURST_NS: i64 = 100_000_000;
const SHARE: i64 = 20;
/// No probe, however long it hung, has its process wait longer for the next than this share makes good.
const MOST_DEBT_NS: i64 = 500_000_000;

/// Asks of one process that are of the same kind are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Who it is, at its first call.
    Introduction,
    /// What /proc says of it, where its record was lost.
    Description,
    /// What it has published anew.
    Publication,
    /// Where its threads publish their spans.
    Thread,
    /// Whether those that were looked at are still there: of no process.
    Sweep,
}

/// What became of an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It waits for its turn.
    Queued,
    /// One of its kind waits already.
    Joined,
    /// There is no room for its process.
    Dropped,
}

/// A probe that runs.
pub type ProbeId = u64;

#[derive(Debug)]
struct WaitingProbe<P> {
    kind: Kind,
    due: Instant,
    probe: P,
}

#[derive(Debug)]
struct Scheduled<P> {
    uid: u32,
    /// At most one of each kind.
    waiting: Vec<WaitingProbe<P>>,
    /// The time that it may cost, at `credited`.
    credit_ns: i64,
    credited: Instant,
    place: Standing,
}

/// Where a process stands; the time is when to look at it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Later(Instant),
    /// In its user's queue, since then.
    Ready(Instant),
    Running,
}

#[derive(Debug, Default)]
struct UserTurns {
    processes: usize,
    queue: VecDeque<ImageKey>,
    running: usize,
    abandoned: usize,
}

#[derive(Debug)]
struct RunningProbe {
    key: ImageKey,
    uid: u32,
    kind: Kind,
    began: Instant,
    is_abandoned: bool,
}

/// The schedule of probes.
#[derive(Debug)]
pub struct Schedule<P> {
    processes: HashMap<ImageKey, Scheduled<P>>,
    users: HashMap<u32, UserTurns>,
    /// Users with a queue, in the order of their turns.
    turns: VecDeque<u32>,
    later: BTreeSet<(Instant, u32, u64, u32)>,
    running: BTreeMap<ProbeId, RunningProbe>,
    abandoned: usize,
    last: ProbeId,
    /// Asks that were dropped, with what they were for: taken by [`Self::take_dropped`].
    dropped: Vec<(ImageKey, Kind)>,
}

impl<P> Default for Schedule<P> {
    fn default() -> Self {
        Self {
            processes: HashMap::new(),
            users: HashMap::new(),
            turns: VecDeque::new(),
            later: BTreeSet::new(),
            running: BTreeMap::new(),
            abandoned: 0,
            last: 0,
            dropped: Vec::new(),
        }
    }
}

fn in_time(at: Instant, key: &ImageKey) -> (Instant, u32, u64, u32) {
    (at, key.pid, key.started_ns, key.exec_id)
}

impl<P> Scheduled<P> {
    /// Adds what time has brought.
    fn credit(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.credited).as_nanos().min(i64::MAX as u128) as i64;
        self.credit_ns = self.credit_ns.saturating_add(passed / SHARE).min(BURST_NS);
        self.credited = self.credited.max(now);
    }

    /// When it may cost anything again.
    fn solvent(&self) -> Instant {
        let missing = (1 - self.credit_ns).max(0).unsigned_abs();
        self.credited + Duration::from_nanos(missing * SHARE.unsigned_abs())
    }

    /// When its next probe may begin; without one, when it can be forgotten, since it owes nothing.
    fn next(&self) -> Instant {
        match self.waiting.iter().map(|waiting| waiting.due).min() {
            Some(due) => due.max(self.solvent()),
            None => {
                let missing = (BURST_NS - self.credit_ns).max(0).unsigned_abs();
                self.credited + Duration::from_nanos(missing * SHARE.unsigned_abs())
            }
        }
    }
}

impl<P> Schedule<P> {
    /// Takes an ask, not to be begun before `due`.
    pub fn ask(&mut self, key: ImageKey, uid: u32, kind: Kind, probe: P, due: Instant, now: Instant) -> Asked {
        if let Some(process) = self.processes.get_mut(&key) {
            if process.waiting.iter().any(|waiting| waiting.kind == kind) {
                return Asked::Joined;
            }
            process.waiting.push(WaitingProbe { kind, due, probe });
        } else {
            let user = self.users.get(&uid).map_or(0, |user| user.processes);
            if self.processes.len() >= MOST || user >= MOST_OF_ONE {
                return Asked::Dropped;
            }
            let waiting = vec![WaitingProbe { kind, due, probe }];
            let place = Standing::Running;
            self.processes.insert(key, Scheduled { uid, waiting, credit_ns: BURST_NS, credited: now, place });
            self.users.entry(uid).or_default().processes += 1;
            self.place(&key, now);
            return Asked::Queued;
        }
        if let Some(Scheduled { place: Standing::Later(at), .. }) = self.processes.get(&key) {
            self.later.remove(&in_time(*at, &key));
            self.place(&key, now);
        }
        Asked::Queued
    }

    /// Puts a process that is nowhere where it belongs.
    fn place(&mut self, key: &ImageKey, now: Instant) {
        let Some(process) = self.processes.get_mut(key) else { return };
        process.credit(now);
        let at = process.next();
        if at > now {
            process.place = Standing::Later(at);
            self.later.insert(in_time(at, key));
            return;
        }
        let uid = process.uid;
        if process.waiting.is_empty() {
            self.processes.remove(key);
            return self.left(uid, |user| user.processes -= 1);
        }
        process.place = Standing::Ready(now);
        let user = self.users.entry(uid).or_default();
        if user.queue.is_empty() {
            self.turns.push_back(uid);
        }
        user.queue.push_back(*key);
    }

    /// Changes what is known of a user, who is forgotten with his last process.
    fn left(&mut self, uid: u32, change: impl FnOnce(&mut UserTurns)) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        change(user);
        if (user.processes, user.running, user.abandoned) == (0, 0, 0) {
            self.users.remove(&uid);
        }
    }

    /// Brings what has become due into the queues.
    fn advance(&mut self, now: Instant) {
        while let Some((at, pid, started_ns, exec_id)) = self.later.first().copied()
            && at <= now
        {
            self.later.pop_first();
            self.place(&ImageKey { pid, started_ns, exec_id }, now);
        }
    }

    /// The next probe to run, if one may.
    pub fn start(&mut self, now: Instant) -> Option<(ProbeId, ImageKey, Kind, P)> {
        self.advance(now);
        for _ in 0..self.turns.len() {
            if self.running.len() - self.abandoned >= WORKERS {
                return None;
            }
            let uid = self.turns.pop_front()?;
            let is_stuck = self.is_stuck(uid);
            let user = self.users.get_mut(&uid)?;
            let key = user.queue.front().copied()?;
            if is_stuck || user.running >= WORKERS_OF_ONE {
                self.turns.push_back(uid);
                if is_stuck {
                    self.drop_late(uid, now);
                }
                continue;
            }
            user.queue.pop_front();
            user.running += 1;
            if !user.queue.is_empty() {
                self.turns.push_back(uid);
            }
            let process = self.processes.get_mut(&key)?;
            process.place = Standing::Running;
            let due = |(_, waiting): &(usize, &WaitingProbe<P>)| waiting.due;
            let (first, _) = process.waiting.iter().enumerate().min_by_key(due)?;
            let WaitingProbe { kind, probe, .. } = process.waiting.remove(first);
            self.last += 1;
            self.running.insert(self.last, RunningProbe { key, uid, kind, began: now, is_abandoned: false });
            return Some((self.last, key, kind, probe));
        }
        None
    }

    /// Whether no probe of a user's processes may begin, for those of them that are stuck.
    fn is_stuck(&self, uid: u32) -> bool {
        let abandoned = self.users.get(&uid).map_or(0, |user| user.abandoned);
        abandoned >= MOST_ABANDONED_OF_ONE || abandoned > 0 && self.abandoned >= MOST_ABANDONED / 2
    }

    /// Drops what has waited too long behind probes that are stuck. Its user stands last in the order of turns.
    fn drop_late(&mut self, uid: u32, now: Instant) {
        while let Some(key) = self.users.get(&uid).and_then(|user| user.queue.front().copied()) {
            let Some(process) = self.processes.get_mut(&key) else { return };
            let Standing::Ready(since) = process.place else { return };
            if now < since + PATIENCE {
                return;
            }
            self.dropped.extend(process.waiting.drain(..).map(|waiting| (key, waiting.kind)));
            if let Some(user) = self.users.get_mut(&uid) {
                user.queue.pop_front();
                if user.queue.is_empty() {
                    self.turns.retain(|turn| *turn != uid);
                }
            }
            self.place(&key, now);
        }
    }

    /// A probe has made a step and has more to do, not before `due`: it is put back, behind the others. Otherwise as
    /// [`Self::finish`].
    pub fn pause(&mut self, id: ProbeId, probe: P, due: Instant, cost: Duration, now: Instant) -> bool {
        let Some(RunningProbe { key, kind, .. }) = self.running.get(&id) else { return false };
        let (key, kind) = (*key, *kind);
        if let Some(process) = self.processes.get_mut(&key) {
            // What was asked for meanwhile is answered by this one, which goes on reading.
            process.waiting.retain(|waiting| waiting.kind != kind || kind == Kind::Publication);
            if process.waiting.iter().all(|waiting| waiting.kind != kind) {
                process.waiting.push(WaitingProbe { kind, due, probe });
            }
        }
        self.finish(id, cost, now)
    }

    /// A probe has come to its end, or its step to it, and took so much of a CPU; one that had been abandoned is charged the
    /// time that it hung. Returns whether it had been.
    pub fn finish(&mut self, id: ProbeId, cost: Duration, now: Instant) -> bool {
        let Some(RunningProbe { key, uid, began, is_abandoned, .. }) = self.running.remove(&id) else { return false };
        if let Some(process) = self.processes.get_mut(&key) {
            process.credit(now);
            let cost = if is_abandoned { now.saturating_duration_since(began) } else { cost };
            let cost = cost.as_nanos().min(i64::MAX as u128) as i64;
            process.credit_ns = process.credit_ns.saturating_sub(cost).max(-MOST_DEBT_NS);
            self.place(&key, now);
        }
        self.abandoned -= usize::from(is_abandoned);
        self.left(uid, |user| match is_abandoned {
            true => user.abandoned -= 1,
            false => user.running -= 1,
        });
        is_abandoned
    }

    /// Leaves probes that hang to themselves; returns them. Their processes are asked nothing until they come back.
    pub fn expire(&mut self, now: Instant) -> Vec<(ProbeId, ImageKey, Kind)> {
        let mut expired = Vec::new();
        for (id, running) in &mut self.running {
            let is_late = !running.is_abandoned && now >= running.began + DEADLINE;
            if is_late && self.abandoned < MOST_ABANDONED {
                running.is_abandoned = true;
                self.abandoned += 1;
                if let Some(user) = self.users.get_mut(&running.uid) {
                    user.running -= 1;
                    user.abandoned += 1;
                }
                expired.push((*id, running.key, running.kind));
            }
        }
        expired
    }

    /// When there is something to do, unless something comes before; None where there is nothing.
    pub fn next(&self) -> Option<Instant> {
        let deadline =
            self.running.values().filter(|running| !running.is_abandoned).map(|running| running.began + DEADLINE);
        let deadline = deadline.min().filter(|_| self.abandoned < MOST_ABANDONED);
        // Otherwise a probe that ends is what comes next.
        let has_worker = self.running.len() - self.abandoned < WORKERS;
        let patience =
            self.turns.iter().filter(|uid| has_worker && self.is_stuck(**uid)).filter_map(|uid| {
                match self.processes.get(self.users.get(uid)?.queue.front()?)?.place {
                    Standing::Ready(since) => Some(since + PATIENCE),
                    _ => None,
                }
            });
        let later = self.later.first().map(|(at, ..)| *at);
        [deadline, patience.min(), later].into_iter().flatten().min()
    }

    /// The asks that were dropped since this was last asked.
    pub fn take_dropped(&mut self) -> Vec<(ImageKey, Kind)> {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
