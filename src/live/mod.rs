//! What is there on the host now, whoever made it and when: queues, threads that wait at them ([`calls`]), and which
//! container an ipc namespace belongs to ([`namespaces`]). All of it belongs to others and may be slow to come: a thread of
//! its own looks ([`looker`]).

use std::collections::{BTreeMap, HashMap};

use self::calls::InCall;
use self::looker::Looker;
use crate::model::container::Container;
use crate::model::reading::Waiting;

pub mod calls;
pub mod looker;
pub mod namespaces;

/// So many waiting threads are kept one by one.
const IN_CALLS: usize = 4096;

/// What a look at the host shows besides the queues themselves.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Who waits at queues.
    pub waiting: Waiting,
    /// The same thread by thread, so many at most.
    pub in_calls: Vec<InCall>,
    /// Which container or pod an ipc namespace belongs to.
    pub containers: HashMap<u32, Container>,
}

impl Surroundings {
    /// Looks at each thread of the host.
    pub fn look() -> Self {
        let (calls, hidden) = calls::in_calls();
        let mut waiting = Waiting { threads: BTreeMap::new(), all_seen: hidden == 0 };
        for call in &calls {
            if let Some(queue) = &call.queue {
                *waiting.threads.entry((queue.clone(), call.op)).or_default() += 1;
            }
        }
        let mut in_calls = calls;
        in_calls.truncate(IN_CALLS);
        Self { waiting, in_calls, containers: namespaces::containers().unwrap_or_default() }
    }

    /// A thread that looks when it is asked.
    pub fn looker() -> std::io::Result<Looker<Self>> {
        Looker::start(Self::look)
    }
}
