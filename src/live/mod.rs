//! What is there on the host now, whoever made it and when: threads that wait at queues and descriptors of queues, by the
//! kernel's own lists where it has iterators, else by /proc ([`calls`]); and which container an ipc namespace belongs to
//! ([`namespaces`]). What belongs to others may be slow to come: a thread of its own looks ([`looker`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::{fmt, io};

use nix::time::ClockId;

use self::calls::{ContainerIds, InCall};
use self::looker::Looker;
use crate::clock;
use crate::kernel::iterators::Iterators;
use crate::kernel::programs::Programs;
use crate::model::call::QueueKey;
use crate::model::container::Container;
use crate::model::live::{Attendance, LiveQueue, QueueHolder, Waiter};
use crate::model::reading::QueueName;
use crate::model::values::Op;

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
#[derive(Clone)]
pub struct Lookout {
    programs: Arc<Programs>,
    /// None: /proc has to do.
    iterators: Arc<OnceLock<Option<Iterators>>>,
    /// Queues that the kernel side was told of.
    kept: Arc<Mutex<HashSet<QueueKey>>>,
}

impl fmt::Debug for Lookout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookout").finish_non_exhaustive()
    }
}

impl Lookout {
    /// By the kernel's own lists, where it has them. It takes long to load what makes them: nobody waits for it who does not
    /// look meanwhile.
    pub fn of(programs: &Arc<Programs>) -> io::Result<Self> {
        let lookout = Self { programs: programs.clone(), iterators: Arc::default(), kept: Arc::default() };
        let loading = lookout.clone();
        thread::Builder::new().name("mqspan-lists".into()).spawn(move || _ = loading.iterators())?;
        Ok(lookout)
    }

    fn iterators(&self) -> Option<&Iterators> {
        let open = || match Iterators::open(&self.programs) {
            Ok(iterators) => Some(iterators),
            Err(error) => {
                tracing::debug!("who waits at queues is looked up in /proc: no iterators: {error}");
                None
            }
        };
        self.iterators.get_or_init(open).as_ref()
    }

    /// Whether the kernel has lists of its own.
    pub fn has_lists(&self) -> bool {
        self.iterators().is_some()
    }

    /// The threads that wait, by the kernel's own lists; None where it has none.
    pub fn waiters(&self) -> Option<Vec<Waiter>> {
        self.iterators().and_then(|iterators| iterators.waiters().ok())
    }

    /// Who has queues open, by the kernel's own lists; None where it has none.
    pub fn holders(&self) -> Option<Vec<QueueHolder>> {
        self.iterators().and_then(|iterators| iterators.holders().ok())
    }

    /// The threads that wait in a send or receive now, and how many others may not be looked at.
    pub fn in_calls(&self) -> (Vec<InCall>, u64) {
        let Some(waiters) = self.waiters() else { return calls::in_calls() };
        let now_ns = clock::now_ns(ClockId::CLOCK_MONOTONIC).max(0).unsigned_abs();
        let mut containers = ContainerIds::default();
        (waiters.into_iter().map(|waiter| InCall::of(waiter, now_ns, Some(&mut containers))).collect(), 0)
    }

    /// The threads that are in a receive now, and at which queue; None where that is not known.
    pub fn receivers(&self) -> Vec<(u32, Option<QueueName>)> {
        let receiver = |tid, op, queue: Option<LiveQueue>| {
            (op == Op::MqTimedreceive).then(|| (tid, queue.map(|queue| (queue.ipc_ns, queue.name))))
        };
        match self.waiters() {
            Some(waiters) => waiters.into_iter().filter_map(|of| receiver(of.tid, of.op, of.queue)).collect(),
            None => calls::in_calls().0.into_iter().filter_map(|of| receiver(of.tid, of.op, of.queue)).collect(),
        }
    }

    /// Looks at each thread of the host; the kernel side keeps the queues that somebody has open.
    fn look(&self) -> Surroundings {
        let mut attendance = Attendance::default();
        let mut in_calls = Vec::new();
        let mut add = |call: InCall| {
            if let Some(queue) = &call.queue {
                *attendance.threads.entry((queue.id(), call.op)).or_default() += 1;
            }
            // There may be as many as there are threads on the host.
            if in_calls.len() < IN_CALLS {
                in_calls.push(call);
            }
        };
        attendance.all_seen = match self.waiters() {
            Some(waiters) => {
                let now_ns = clock::now_ns(ClockId::CLOCK_MONOTONIC).max(0).unsigned_abs();
                waiters.into_iter().for_each(|waiter| add(InCall::of(waiter, now_ns, None)));
                true
            }
            None => {
                let (calls, hidden) = calls::in_calls();
                calls.into_iter().for_each(add);
                hidden == 0
            }
        };
        if let Some(holders) = self.holders() {
            self.keep(&holders);
            let mut descriptors = BTreeMap::new();
            for holder in holders {
                *descriptors.entry((holder.queue.id(), holder.access)).or_default() += 1;
            }
            attendance.descriptors = Some(descriptors);
        }
        Surroundings { attendance, in_calls, containers: namespaces::containers().unwrap_or_default() }
    }

    /// Has the kernel side keep the queues that somebody has open, each once.
    fn keep(&self, holders: &[QueueHolder]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let open: HashSet<QueueKey> = holders.iter().filter_map(|holder| holder.queue.key).collect();
        kept.retain(|key| open.contains(key));
        for holder in holders {
            let Some(key) = holder.queue.key else { continue };
            if kept.len() < KEPT && kept.insert(key) {
                // One that has ended meanwhile is as good.
                self.programs.keep_file(holder.file, &key);
            }
        }
    }

    /// A thread that looks when it is asked.
    pub fn looker(&self) -> io::Result<Looker<Surroundings>> {
        let lookout = self.clone();
        Looker::start(move || lookout.look())
    }
}
