//! What is there on the host now, whoever made it and when: threads that wait at queues and descriptors of queues, by the
//! kernel's own lists where it has iterators, else by /proc ([`calls`]); and which container an ipc namespace belongs to
//! ([`namespaces`]). What belongs to others may be slow to come: a thread of its own looks ([`looker`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use nix::time::ClockId;

use self::calls::InCall;
use self::looker::Looker;
use crate::clock;
use crate::kernel::iterators::Iterators;
use crate::kernel::programs::Programs;
use crate::model::call::QueueKey;
use crate::model::container::Container;
use crate::model::live::{Attendance, QueueHolder, Waiter};

pub mod calls;
pub mod looker;
pub mod namespaces;

/// So many waiting threads are kept one by one.
const IN_CALLS: usize = 4096;
/// So many queues are remembered as kept: as many as the kernel side keeps the state of.
const KEPT: usize = 8192;

/// What a look at the host shows besides the queues themselves.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Who waits at queues, and who has them open.
    pub attendance: Attendance,
    /// The threads that wait one by one, so many at most.
    pub in_calls: Vec<InCall>,
    /// Which container or pod an ipc namespace belongs to.
    pub containers: HashMap<u32, Container>,
}

/// Where a look at the host is taken; clones share it.
#[derive(Clone, Debug)]
pub struct Lookout {
    /// None: /proc has to do.
    iterators: Option<Arc<Iterators>>,
    /// Queues that the kernel side was told of.
    kept: Arc<Mutex<HashSet<QueueKey>>>,
}

impl Lookout {
    /// By the kernel's own lists, where it has them.
    pub fn of(programs: &Arc<Programs>) -> Self {
        match Iterators::open(programs) {
            Ok(iterators) => Self::with(Some(Arc::new(iterators))),
            Err(error) => {
                tracing::debug!("who waits at queues is looked up in /proc: no iterators: {error}");
                Self::with(None)
            }
        }
    }

    fn with(iterators: Option<Arc<Iterators>>) -> Self {
        Self { iterators, kept: Arc::default() }
    }

    /// Whether the kernel has lists of its own.
    pub fn has_lists(&self) -> bool {
        self.iterators.is_some()
    }

    /// The threads that wait, by the kernel's own lists; None where it has none.
    pub fn waiters(&self) -> Option<Vec<Waiter>> {
        self.iterators.as_ref().and_then(|iterators| iterators.waiters().ok())
    }

    /// Who has queues open, by the kernel's own lists; None where it has none.
    pub fn holders(&self) -> Option<Vec<QueueHolder>> {
        self.iterators.as_ref().and_then(|iterators| iterators.holders().ok())
    }

    /// The threads that wait in a send or receive now, and how many others may not be looked at.
    pub fn in_calls(&self) -> (Vec<InCall>, u64) {
        let Some(waiters) = self.waiters() else { return calls::in_calls() };
        let now_ns = clock::now_ns(ClockId::CLOCK_MONOTONIC).max(0).unsigned_abs();
        (waiters.into_iter().map(|waiter| InCall::of(waiter, now_ns, true)).collect(), 0)
    }

    /// Looks at each thread of the host; `programs` keep the queues that somebody has open.
    fn look(&self, programs: &Programs) -> Surroundings {
        let mut attendance = Attendance::default();
        let (mut in_calls, hidden) = match self.waiters() {
            Some(waiters) => {
                let now_ns = clock::now_ns(ClockId::CLOCK_MONOTONIC).max(0).unsigned_abs();
                (waiters.into_iter().map(|waiter| InCall::of(waiter, now_ns, false)).collect(), 0)
            }
            None => calls::in_calls(),
        };
        attendance.all_seen = hidden == 0;
        for (queue, op) in in_calls.iter().filter_map(|of| Some((of.queue.as_ref()?, of.op))) {
            *attendance.threads.entry((queue.id(), op)).or_default() += 1;
        }
        in_calls.truncate(IN_CALLS);
        if let Some(holders) = self.holders() {
            self.keep(programs, &holders);
            let mut descriptors = BTreeMap::new();
            for holder in holders {
                *descriptors.entry((holder.queue.id(), holder.access)).or_default() += 1;
            }
            attendance.descriptors = Some(descriptors);
        }
        Surroundings { attendance, in_calls, containers: namespaces::containers().unwrap_or_default() }
    }

    /// Has the kernel side keep the queues that somebody has open, each once.
    fn keep(&self, programs: &Programs, holders: &[QueueHolder]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let open: HashSet<QueueKey> = holders.iter().filter_map(|holder| holder.queue.key).collect();
        kept.retain(|key| open.contains(key));
        for holder in holders {
            let Some(key) = holder.queue.key else { continue };
            if kept.len() < KEPT && kept.insert(key) {
                // One that has ended meanwhile is as good.
                programs.keep_file(holder.file, &key);
            }
        }
    }

    /// A thread that looks when it is asked.
    pub fn looker(&self, programs: &Arc<Programs>) -> std::io::Result<Looker<Surroundings>> {
        let (lookout, programs) = (self.clone(), programs.clone());
        Looker::start(move || lookout.look(&programs))
    }
}
