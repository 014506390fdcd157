use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::model::buckets::BUCKETS;
use crate::model::reading::Points;

const ROOM: usize = 16 << 20;

fn key(pid: u32, exec_id: u32) -> ImageKey {
    ImageKey { pid, started_ns: 1, exec_id }
}

fn reading(pid: u32, name: u64, errno: i32, values: &[(usize, u32)]) -> Reading {
    let mut buckets = Box::new([0; BUCKETS]);
    for (bucket, count) in values {
        buckets[*bucket] += count;
    }
    Reading {
        image: Some(key(pid, 0)),
        name,
        ipc_ns: 9,
        errno,
        cause: None,
        measure: Measure::Duration,
        op: Op::MqOpen,
        comm: Vec::new(),
        points: Points { sum: 7, zeros: 1, buckets },
    }
}

fn table(cumulative: bool, limits: MetricLimits) -> StreamTable {
    StreamTable::new(limits, ROOM, cumulative, Arc::default(), 100)
}

fn add(table: &mut StreamTable, reading: &Reading) {
    let name = Destination::Name(reading.name.to_string().into());
    table.add(reading, Some(name), |_| Some(Arc::default()));
}

/// Start, time and count.
type Times = (u64, u64, u64);

/// What a pass exports, overflow points first.
fn export_since(table: &mut StreamTable, exported: u64) -> (Vec<Times>, Vec<Times>) {
    let (mut overflow, mut streams) = (Vec::new(), Vec::new());
    let done = table.pass(&mut Cursor::default(), exported, |_, time_ns, export| {
        match export {
            Export::Overflow(of) => {
                overflow.extend(of.values().map(|of| (of.start_ns, time_ns, of.count())));
            }
            Export::Stream(_, of, _) => streams.push((of.start_ns, time_ns, of.count())),
        }
        true
    });
    assert!(done);
    (overflow, streams)
}

fn export(table: &mut StreamTable) -> (Vec<Times>, Vec<Times>) {
    let exported = export_since(table, 0);
    table.settle(table.collection(), |_| false);
    exported
}

/// Prevents cumulative streams from losing what came before, and others from repeating it.
#[test]
fn from_the_start_or_from_the_last_time() {
    for (cumulative, expected) in [(true, (100, 300, 6)), (false, (200, 300, 3))] {
        let mut table = table(cumulative, MetricLimits::default());
        for now in [200, 300] {
            table.begin(now);
            add(&mut table, &reading(1, 5, 0, &[(3, 2)]));
            let (overflow, streams) = export(&mut table);
            assert_eq!(overflow, []);
            assert_eq!(streams, [if now == 200 { (100, 200, 3) } else { expected }]);
        }
    }
}

/// Prevents a delta that waits from losing counts, from beginning later than what it holds, or from being exported twice.
#[test]
fn a_delta_that_waits_grows() {
    let mut table = table(false, MetricLimits::default());
    for now in [200, 300, 400] {
        table.begin(now);
        add(&mut table, &reading(1, 5, 0, &[(3, 2)]));
    }
    assert_eq!(export(&mut table).1, [(100, 400, 9)]);
    table.begin(500);
    assert_eq!(export(&mut table).1, []);
    table.begin(600);
    add(&mut table, &reading(1, 5, 0, &[]));
    assert_eq!(export(&mut table).1, [(500, 600, 1)]);
}

/// Prevents calls from vanishing when there are too many processes or sets of attributes.
#[test]
fn what_finds_no_room_is_counted_all_the_same() {
    let mut table = table(true, MetricLimits { max_series: 2, max_processes: 1 });
    table.begin(200);
    for name in 1..=5 {
        add(&mut table, &reading(1, name, 0, &[]));
    }
    add(&mut table, &reading(2, 1, 0, &[]));
    add(&mut table, &Reading { image: None, ..reading(0, 0, 0, &[]) });
    let (overflow, streams) = export(&mut table);
    assert_eq!((overflow, streams), (vec![(100, 200, 2), (100, 200, 3)], vec![(100, 200, 1); 2]));
}

/// Prevents hostile names and values from taking more memory than streams may, and their calls from being lost for that.
#[test]
fn bounded_in_bytes() {
    for cumulative in [true, false] {
        let most = 1 << 20;
        let limits = MetricLimits { max_series: 100_000, max_processes: 100_000 };
        let mut table = StreamTable::new(limits, most, cumulative, Arc::default(), 100);
        table.begin(200);
        let mut calls = 0;
        for name in 0..20_000u64 {
            let pid = 1 + name as u32 % 300;
            let reading = reading(pid, name, 0, &[(0, 1), (name as usize % BUCKETS, 1), (BUCKETS - 1, 1)]);
            calls += reading.points.count();
            let long = Destination::Name(format!("{name:0>255}").into());
            table.add(&reading, Some(long), |_| Some(Arc::default()));
        }
        let own = 18 * (SERIES + BUCKETS * 8);
        assert!(table.bytes() <= most + own, "{}", table.bytes());
        let (overflow, streams) = export(&mut table);
        assert!(streams.len() > 300, "{}", streams.len());
        let exported: u64 = overflow.iter().chain(&streams).map(|(.., count)| count).sum();
        assert_eq!(exported, calls);
    }
}

/// Prevents the room that streams took from being lost when they end, in any order of what may happen to them.
#[test]
fn room_is_given_back() {
    for seed in 0..20 {
        let mut random = SmallRng::seed_from_u64(seed);
        let cumulative = random.random();
        let limits = MetricLimits { max_series: 5, max_processes: 8 };
        let mut table = StreamTable::new(limits, 50_000, cumulative, Arc::default(), 100);
        let mut now = 100;
        for _ in 0..50 {
            now += 100;
            table.begin(now);
            for _ in 0..random.random_range(0..40) {
                let (pid, name) = (random.random_range(1..20), random.random_range(1..30));
                add(
                    &mut table,
                    &reading(pid, name, random.random_range(0..2) * 2, &[(random.random_range(0..160), 1)]),
                );
            }
            if random.random_ratio(1, 4) {
                table.replace(&key(random.random_range(1..20), 0));
            }
            if random.random_ratio(1, 10) {
                table.clock_was_set(now + 1000);
                now += 1100;
                table.begin(now);
            }
            if random.random() {
                export(&mut table);
            }
        }
        for _ in 0..2 {
            table.begin(now + 100);
            export_since(&mut table, 0);
            table.settle(table.collection(), |_| true);
        }
        assert_eq!(table.images().count(), 0, "{seed}");
        assert!(table.destinations.is_empty() && table.holders.len() == 1, "{seed}: {table:?}");
        // Overflow of mqspan's own stays where it is cumulative.
        let own: usize =
            table.holders.values().flat_map(|own| own.overflow.values()).map(|of| SERIES + of.buckets.len() * 8).sum();
        assert_eq!(table.bytes(), own, "{seed}");
    }
}

/// Prevents a table that is full from staying so for ever, and one from being emptied of what was not exported.
#[test]
fn idle_images_make_room() {
    let limits = MetricLimits { max_series: 10, max_processes: 2 };
    for (is_exported, expected) in [(true, vec![key(2, 0), key(3, 0)]), (false, vec![key(1, 0), key(2, 0)])] {
        let mut table = table(true, limits);
        for pid in [1, 2] {
            table.begin(200 + u64::from(pid));
            add(&mut table, &reading(pid, 1, 0, &[]));
        }
        if is_exported {
            export(&mut table);
        }
        table.begin(300);
        add(&mut table, &reading(3, 1, 0, &[]));
        assert_eq!(table.images().map(|(image, _)| image).collect::<Vec<_>>(), expected);
        let (overflow, streams) = export(&mut table);
        let counted: u64 = overflow.iter().chain(&streams).map(|(.., count)| count).sum();
        assert_eq!(counted, if is_exported { 2 } else { 3 });
    }
}

/// Prevents the counts under a Resource that was replaced from being lost, exported for ever, or going on under the next.
#[test]
fn another_resource() {
    let mut table = table(true, MetricLimits::default());
    table.begin(200);
    add(&mut table, &reading(1, 5, 0, &[(3, 2)]));
    table.replace(&key(1, 0));
    add(&mut table, &reading(1, 5, 0, &[]));
    assert_eq!(export_since(&mut table, 0).1, [(100, 200, 3), (100, 200, 1)]);
    assert_eq!(export_since(&mut table, 1).1, [(100, 200, 1)], "not to the same output again");
    table.begin(300);
    table.settle(1, |_| false);
    assert_eq!(export(&mut table).1, [(100, 300, 1)]);
    table.replace(&key(1, 0));
    assert_eq!(export(&mut table).1, [], "exported already, and nothing was added since");
}

/// Prevents what is added before it is known whose it is from standing under a Resource of which half is missing.
#[test]
fn whose_it_is_comes_later() {
    for cumulative in [true, false] {
        let mut table = table(cumulative, MetricLimits::default());
        table.begin(200);
        let name = || Some(Destination::Name("/1".into()));
        table.add(&reading(1, 1, 0, &[]), name(), |_| None);
        table.replace(&key(1, 0));
        assert_eq!(export(&mut table).1, []);
        table.begin(300);
        table.confirm(|_| None);
        table.add(&reading(1, 1, 0, &[]), name(), |_| None);
        assert_eq!(export_since(&mut table, 0).1, []);
        table.settle(2, |_| true);
        table.begin(400);
        let known = Arc::new(Resource { has_schema: true, ..Resource::default() });
        table.confirm(|_| Some(known.clone()));
        table.settle(2, |_| true);
        let is_it = |resource: &Arc<Resource>, time_ns, export: Export<'_>| {
            let Export::Stream(_, of, _) = export else { panic!("no stream") };
            assert!(Arc::ptr_eq(resource, &known));
            assert_eq!((of.start_ns, time_ns, of.count()), (100, 400, 2));
            true
        };
        assert!(table.pass(&mut Cursor::default(), 2, is_it));
    }
}

/// Prevents points from ending before they begin when the time of day is set, and counts from being lost or told twice.
#[test]
fn the_clock_is_set() {
    for (cumulative, now, before) in [(true, 9_000, 8_900), (true, 60, 50), (false, 9_000, 8_900), (false, 60, 50)] {
        let mut table = table(cumulative, MetricLimits::default());
        table.begin(200);
        add(&mut table, &reading(1, 5, 0, &[(3, 2)]));
        table.clock_was_set(before);
        table.begin(now);
        add(&mut table, &reading(1, 5, 0, &[]));
        assert_eq!(export(&mut table).1, [(100, 200, 3), (before, now, 1)]);
        table.begin(now + 10);
        add(&mut table, &reading(1, 5, 0, &[]));
        assert_eq!(export(&mut table).1, [if cumulative { (before, now + 10, 2) } else { (now, now + 10, 1) }]);
    }
}

/// Prevents a process that asks for ever new names from making a stream of each.
#[test]
fn names_that_lead_nowhere() {
    let mut table = table(true, MetricLimits::default());
    table.begin(200);
    add(&mut table, &reading(2, 900, 0, &[]));
    for name in 1..=1000 {
        add(&mut table, &reading(1, name, 2, &[]));
    }
    let streams = &table.holders[&Holder { image: Some(key(1, 0)), generation: 0 }];
    let named = streams.series.keys().filter(|series| series.set.destination.is_some()).count();
    assert_eq!(named, ASKED_NAMES + 1, "and the one that is known");
    assert_eq!(streams.series.values().map(Distribution::count).sum::<u64>(), 1000);
}

/// Prevents processes that have ended from being kept for ever, and from losing their last counts.
#[test]
fn the_ended_are_retired() {
    let mut table = table(true, MetricLimits::default());
    table.begin(200);
    add(&mut table, &reading(1, 1, 0, &[]));
    add(&mut table, &Reading { image: Some(key(2, 4)), ..reading(2, 1, 0, &[]) });
    let has_ended = |image: &ImageKey| image.pid == 1;
    let images = |table: &StreamTable| table.images().map(|(image, _)| image).collect::<Vec<_>>();
    table.settle(1, has_ended);
    assert_eq!(images(&table).len(), 2, "made calls in this collection");
    table.begin(300);
    add(&mut table, &Reading { image: Some(key(2, 5)), ..reading(2, 1, 0, &[]) });
    table.settle(0, has_ended);
    assert_eq!(images(&table).len(), 3, "its last counts were not exported");
    table.settle(2, has_ended);
    assert_eq!(images(&table), [key(2, 5)], "another program runs in the process");
}

/// Prevents a pass that is interrupted from leaving out or repeating anything, whatever comes and goes meanwhile.
#[test]
fn passes_in_parts() {
    let mut table = table(true, MetricLimits::default());
    table.begin(200);
    for (pid, name) in [(1, 1), (1, 2), (1, 3), (4, 1), (6, 1), (6, 2)] {
        add(&mut table, &reading(pid, name, 0, &[]));
    }
    let (mut cursor, mut seen, mut steps) = (Cursor::default(), Vec::new(), 0);
    let mut step = |table: &mut StreamTable, cursor: &mut Cursor| {
        table.pass(cursor, 0, |_, _, export| {
            if let Export::Stream(series, ..) = export {
                seen.push(series.set.destination.clone());
            }
            false
        })
    };
    while !step(&mut table, &mut cursor) {
        steps += 1;
        if steps == 2 {
            add(&mut table, &reading(1, 4, 0, &[]));
            add(&mut table, &reading(5, 8, 0, &[]));
            let gone = Holder { image: Some(key(6, 0)), generation: 0 };
            table.remove(&gone);
        }
    }
    let name = |name: u64| Some(Destination::Name(name.to_string().into()));
    assert_eq!(seen, [1, 2, 3, 4, 1, 8].map(name));
    assert_eq!(cursor, Cursor::default());
}
