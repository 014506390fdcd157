use super::*;

const MS: Duration = Duration::from_millis(1);

fn key(pid: u32) -> ImageKey {
    ImageKey { pid, started_ns: 5, exec_id: 1 }
}

/// Asks whose probes are their processes' numbers.
#[derive(Default)]
struct Asks {
    schedule: Schedule<u32>,
}

impl Asks {
    fn ask(&mut self, pid: u32, uid: u32, kind: Kind, now: Instant) -> Asked {
        self.schedule.ask(key(pid), uid, kind, pid, now, now)
    }

    fn start(&mut self, now: Instant) -> Option<(ProbeId, u32)> {
        self.schedule.start(now).map(|(id, _, _, pid)| (id, pid))
    }

    /// Runs probes one after the other, each of which takes so long; whose they were.
    fn run(&mut self, most: usize, cost: Duration, now: &mut Instant) -> Vec<u32> {
        let mut ran = Vec::new();
        while ran.len() < most
            && let Some((id, pid)) = self.start(*now)
        {
            *now += cost;
            self.schedule.finish(id, cost, *now);
            ran.push(pid);
        }
        ran
    }
}

/// Prevents a process that publishes in a loop from being read once for each time, and what is asked while it is read from
/// being forgotten.
#[test]
fn asks_of_a_kind_are_joined() {
    let (mut asks, now) = (Asks::default(), Instant::now());
    assert_eq!(asks.ask(1, 0, Kind::Publication, now), Asked::Queued);
    assert_eq!(asks.ask(1, 0, Kind::Publication, now), Asked::Joined);
    assert_eq!(asks.ask(1, 0, Kind::Thread, now), Asked::Queued);
    let (id, _) = asks.start(now).unwrap();
    assert_eq!(asks.start(now), None, "one at a time of each process");
    assert_eq!(asks.ask(1, 0, Kind::Publication, now), Asked::Queued);
    asks.schedule.finish(id, MS, now);
    let mut now = now;
    assert_eq!(asks.run(9, MS, &mut now).len(), 2);
}

/// Prevents an ask from being begun before its time, or from being overlooked when that has come.
#[test]
fn asks_that_are_due_later() {
    let (mut asks, now) = (Asks::default(), Instant::now());
    asks.schedule.ask(key(1), 0, Kind::Publication, 1, now + 20 * MS, now);
    assert_eq!((asks.start(now), asks.schedule.next()), (None, Some(now + 20 * MS)));
    // Another one that is due at once does not wait for it.
    asks.ask(1, 0, Kind::Thread, now);
    let (id, _) = asks.start(now).unwrap();
    asks.schedule.finish(id, MS, now + MS);
    assert_eq!((asks.start(now + MS), asks.schedule.next()), (None, Some(now + 20 * MS)));
    assert!(asks.start(now + 20 * MS).is_some());
}

/// Prevents the processes of one user, however many ask, from delaying another's, and one process from delaying others of
/// its user.
#[test]
fn users_and_processes_take_turns() {
    let (mut asks, mut now) = (Asks::default(), Instant::now());
    for pid in 0..1000 {
        for kind in [Kind::Introduction, Kind::Publication, Kind::Thread] {
            asks.ask(pid, 1, kind, now);
        }
    }
    asks.ask(5000, 2, Kind::Introduction, now);
    asks.ask(5001, 3, Kind::Introduction, now);
    let first = asks.run(4, MS, &mut now);
    assert!(first.contains(&5000) && first.contains(&5001), "{first:?}");
    asks.ask(5002, 1, Kind::Introduction, now);
    let more = asks.run(1001, MS, &mut now);
    assert!(more.contains(&5002), "after the first of each of the other thousand");
}

/// Prevents a process with tens of thousands of mappings, or one that publishes without end, from taking more than its share
/// of the time, and the others from feeling it.
#[test]
fn a_process_has_a_budget() {
    let (mut asks, start) = (Asks::default(), Instant::now());
    let (mut now, mut used, mut others) = (start, Duration::ZERO, 0);
    for step in 0..10_000 {
        asks.ask(1, 1, Kind::Publication, now);
        if step % 100 == 0 {
            asks.ask(2 + step, 1, Kind::Introduction, now);
        }
        let ran = asks.run(8, 5 * MS, &mut now);
        used += 5 * MS * ran.iter().filter(|pid| **pid == 1).count() as u32;
        others += ran.iter().filter(|pid| **pid != 1).count();
        now += MS;
    }
    let passed = now - start;
    assert!(used <= Duration::from_millis(110) + passed / 20, "{used:?} of {passed:?}");
    assert!(used >= passed / 25, "it is read all the same: {used:?} of {passed:?}");
    assert_eq!(others, 100);
}

/// Prevents a long step from holding up what else there is, a continuation from being lost, and one that is abandoned from
/// blocking its worker's place.
#[test]
fn steps_and_deadlines() {
    let (mut asks, now) = (Asks::default(), Instant::now());
    asks.ask(1, 1, Kind::Introduction, now);
    asks.ask(2, 1, Kind::Introduction, now);
    let (one, _) = asks.start(now).unwrap();
    assert!(!asks.schedule.pause(one, 101, now, MS, now + MS));
    assert_eq!(asks.ask(1, 1, Kind::Introduction, now + MS), Asked::Joined);
    let (_, second) = asks.start(now + MS).unwrap();
    let (again, first) = asks.start(now + MS).unwrap();
    assert_eq!((second, first), (2, 101), "behind the other");
    assert_eq!(asks.schedule.next(), Some(now + MS + DEADLINE));
    assert!(asks.schedule.expire(now + MS + DEADLINE - Duration::from_nanos(1)).is_empty());
    let late = now + MS + DEADLINE;
    let expired: Vec<u32> = asks.schedule.expire(late).into_iter().map(|(_, key, _)| key.pid).collect();
    assert_eq!((expired.len(), asks.schedule.expire(late).len()), (2, 0));
    asks.ask(1, 1, Kind::Thread, late);
    asks.ask(3, 1, Kind::Thread, late);
    assert_eq!(asks.start(late).unwrap().1, 3, "nothing is asked of a process that hangs");
    assert_eq!(asks.start(late), None);
    // It comes back after all, and pays for the time.
    assert!(asks.schedule.finish(again, MS, late + 10 * MS));
    assert_eq!(asks.start(late + 10 * MS).map(|(_, pid)| pid), Some(1));
}

/// Prevents processes that hang from taking every thread, from making threads without end, and asks of other users from
/// being dropped or delayed with theirs.
#[test]
fn few_may_hang() {
    let (mut asks, mut now, mut stuck, mut good) = (Asks::default(), Instant::now(), 0, 0);
    for uid in 0..3 {
        for pid in 0..10 {
            asks.ask(uid * 100 + pid, uid, Kind::Introduction, now);
        }
    }
    for round in 0..200 {
        asks.ask(9000 + round, 99, Kind::Introduction, now);
        while let Some((id, pid)) = asks.start(now) {
            if pid >= 9000 {
                asks.schedule.finish(id, MS, now);
                good += 1;
            } else {
                stuck += 1;
            }
        }
        now += DEADLINE;
        asks.schedule.expire(now);
        // Three users at once take all workers, until each has as many stuck as it may.
        assert!(good + 3 > round, "those that do not hang wait: {good} of {round}");
        let of_one = asks.schedule.users.values().map(|user| user.abandoned).max();
        assert!(of_one <= Some(MOST_ABANDONED_OF_ONE) && asks.schedule.abandoned <= MOST_ABANDONED);
    }
    let dropped = asks.schedule.take_dropped();
    assert!(dropped.iter().all(|(key, _)| key.pid < 300), "{dropped:?}");
    assert_eq!(dropped.len() + stuck, 30);

    for uid in 200..300 {
        asks.ask(uid, uid, Kind::Introduction, now);
    }
    for _ in 0..100 {
        while asks.start(now).is_some() {
            stuck += 1;
        }
        now += DEADLINE;
        asks.schedule.expire(now);
    }
    assert!(stuck <= MOST_ABANDONED + WORKERS, "{stuck} threads, however many users there are");
}

/// Prevents asks of processes beyond the bound from being kept, one user's from taking all the room, and processes from being
/// remembered that owe nothing and wait for nothing.
#[test]
fn room() {
    let (mut asks, mut now) = (Asks::default(), Instant::now());
    let queued = (0..2 * MOST as u32).filter(|pid| asks.ask(*pid, 1, Kind::Thread, now) == Asked::Queued).count();
    assert_eq!(queued, MOST_OF_ONE);
    assert_eq!(asks.ask(900_000, 2, Kind::Thread, now), Asked::Queued);
    assert_eq!(asks.run(usize::MAX, MS / 10, &mut now).len(), MOST_OF_ONE + 1);
    assert!(asks.schedule.processes.len() <= MOST_OF_ONE + 1);
    now += Duration::from_secs(60);
    assert_eq!(asks.start(now), None);
    assert!(asks.schedule.processes.is_empty() && asks.schedule.users.is_empty() && asks.schedule.later.is_empty());
    assert_eq!(asks.schedule.next(), None, "nothing to wake for");
}
