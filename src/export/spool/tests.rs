use std::fs;

use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::export::queue::{OutputQueue, WhenFull};

/// A keeper without its thread, and where requests come from.
struct KeeperTest {
    keeper: Keeper,
    ledger: Arc<Ledger>,
    runtime: Runtime,
}

/// The senders' end of a request on its way to the disk.
type Reply = oneshot::Receiver<Result<i64, Box<Queued>>>;

impl KeeperTest {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("mqspan-keeper-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let ledger = Ledger::new(vec!["otlp.traces".into()], true);
        let settings = SpoolSettings { folder, bytes: store::LEAST, sync: false };
        let keeper = Keeper::open(&settings, &ledger, &[(Signal::Traces, 0)]).unwrap();
        Self { keeper, ledger, runtime: Builder::new_current_thread().build().unwrap() }
    }

    /// A request with one call comes to the keeper, as [`Spool::put`] brings it.
    fn put(&mut self, is_under_way: bool) -> Reply {
        self.ledger.received();
        let tally = Tally::new(&self.ledger);
        tally.add();
        let (queue, mut queued) = OutputQueue::new(1 << 20, self.runtime.handle().clone());
        let share = Share::of_calls(&tally, 0, 1);
        queue.enqueue(Request { signal: Signal::Traces, body: b"request"[..].into(), share }, WhenFull::Drop);
        let queued = queued.blocking_recv().unwrap();
        let (reply, answer) = oneshot::channel();
        self.keeper.backlogs[Signal::Traces as usize].add();
        self.keeper.puts.push(Put { queued, encoding: Encoding::Json, is_under_way, reply });
        answer
    }

    /// The same, on disk; its number.
    fn put_on_disk(&mut self, is_under_way: bool) -> i64 {
        let mut reply = self.put(is_under_way);
        self.keeper.commit();
        reply.try_recv().unwrap().unwrap()
    }

    fn waiting(&self) -> u64 {
        *self.keeper.backlogs[Signal::Traces as usize].requests.borrow()
    }

    fn next(&mut self) -> Option<i64> {
        self.keeper.next(Signal::Traces).map(|kept| kept.id)
    }
}

impl Drop for KeeperTest {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.keeper.settings.folder);
    }
}

/// Prevents a file that turns out to be damaged from taking along what is on its way to it, and an answer to a request of
/// the damaged file from striking off one of the new file.
#[test]
fn damaged_while_it_is_in_use() {
    let mut test = KeeperTest::new("damaged");
    let (under_way, _) = (test.put_on_disk(true), test.put_on_disk(false));
    let mut coming = test.put(false);
    test.keeper.begin_anew(&rusqlite::Error::InvalidQuery);
    assert_eq!((test.waiting(), test.ledger.totals().lost["spool_damaged"]), (1, 2));
    test.keeper.commit();
    let id = coming.try_recv().unwrap().unwrap();
    test.keeper.done(under_way, Outcome::Sent { rejected: 0 });
    assert_eq!((test.waiting(), test.next()), (1, Some(id)));
    assert_ne!(id, under_way);
    test.keeper.done(id, Outcome::Sent { rejected: 0 });
    assert_eq!((test.waiting(), test.ledger.totals().exported), (0, 1));
    assert!(test.ledger.is_settled());
}

/// Prevents a request that can't be read from blocking those behind it, and from counting each time that it is met, where
/// the disk is full and it can't be set aside.
#[test]
fn unreadable_on_a_full_disk() {
    for is_full in [false, true] {
        let mut test = KeeperTest::new("unreadable");
        let (spoilt, behind) = (test.put_on_disk(false), test.put_on_disk(false));
        test.keeper.store.spoil(spoilt);
        if is_full {
            test.keeper.store.refuse_writes();
        }
        for _ in 0..3 {
            assert_eq!(test.next(), Some(behind), "full: {is_full}");
            test.keeper.under_way.clear();
        }
        assert_eq!((test.waiting(), test.ledger.totals().lost["spool_damaged"]), (1, 1), "full: {is_full}");
        test.keeper.done(behind, Outcome::Sent { rejected: 0 });
        assert_eq!((test.waiting(), test.ledger.totals().exported), (0, 1));
        assert!(test.ledger.is_settled());
    }
}

/// Prevents the requests of a long outage from having their shares in memory without bound, and from counting twice or never.
#[test]
fn shares_in_memory_are_bounded() {
    let mut test = KeeperTest::new("shares");
    let requests = MOST_SHARES as u64 + 100;
    for _ in 0..requests {
        drop(test.put(false));
    }
    test.keeper.commit();
    assert_eq!((test.keeper.shares.len(), test.waiting()), (MOST_SHARES, requests));
    while let Some(id) = test.next() {
        assert!(test.keeper.shares.len() <= MOST_SHARES + 1);
        test.keeper.done(id, Outcome::Sent { rejected: 0 });
        // As the thread does soon after: what is struck off need not be passed over.
        if test.keeper.gone.len() == 16 {
            test.keeper.commit();
        }
    }
    let totals = test.ledger.totals();
    assert_eq!((test.waiting(), totals.exported, totals.spooled), (0, requests, Some(0)));
    assert!(test.ledger.is_settled());
}
