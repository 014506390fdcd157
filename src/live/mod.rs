//! What is there on the host now, whoever made it and when: queues, threads that wait at them ([`calls`]), and which
//! container an ipc namespace belongs to ([`namespaces`]). All of it belongs to others and may be slow to come: a thread of
//! its own looks ([`looker`]).

use std::collections::{BTreeMap, HashMap};

use self::looker::Looker;
use crate::model::container::Container;
use crate::model::reading::Waiting;

pub mod calls;
pub mod looker;
pub mod namespaces;

/// What a look at the host shows besides the queues themselves.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Who waits at queues.
    pub waiting: Waiting,
    /// Which container or pod an ipc namespace belongs to.
    pub containers: HashMap<u32, Container>,
}

impl Surroundings {
    /// Looks at each thread of the host.
    pub fn look() -> Self {
        let (calls, hidden) = calls::in_calls();
        let mut waiting = Waiting { threads: BTreeMap::new(), all_seen: hidden == 0 };
        for call in calls {
            if let Some(queue) = call.queue {
                *waiting.threads.entry((queue.id(), call.op)).or_default() += 1;
            }
        }
        Self { waiting, containers: namespaces::containers().unwrap_or_default() }
    }

    /// A thread that looks when it is asked.
    pub fn looker() -> std::io::Result<Looker<Self>> {
        Looker::start(Self::look)
    }
}
