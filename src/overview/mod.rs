//! What is shown of queues, processes and calls by `top`, `--summary` and `--report`: one model, fed with the exact
//! metrics of each collection ([`tables`]) and with calls as they end ([`log`]), and looked at as a [`snapshot`]. Every
//! table is bounded; what finds no room is counted. Pure code: it draws nothing, asks the host nothing, and keeps no clock.

pub mod log;
pub mod numbers;
pub mod order;
pub mod snapshot;
pub mod summary;
pub mod tables;
pub mod text;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::log::CallLog;
use self::tables::Tables;

/// What the metrics' thread and the reader add to and others look at; clones share it. Each part has a lock of its own, so
/// that the reader never waits for a look at the tables.
#[derive(Clone, Debug)]
pub struct Overview {
    tables: Arc<Mutex<Tables>>,
    calls: Arc<Mutex<CallLog>>,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Overview {
    /// Made of these.
    pub fn new(tables: Tables, calls: CallLog) -> Self {
        Self { tables: Arc::new(Mutex::new(tables)), calls: Arc::new(Mutex::new(calls)) }
    }

    /// What the metrics of each collection add up to.
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// The calls as they ended.
    pub fn calls(&self) -> MutexGuard<'_, CallLog> {
        lock(&self.calls)
    }
}
