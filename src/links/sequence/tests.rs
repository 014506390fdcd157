//! Links against what happened in a simulated kernel, against every order that a history allows, and within their bounds.

mod bounds;
mod oracle;
mod world;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use self::oracle::Oracle;
use self::world::{PAIR, Setting, World};
use super::*;

fn random_setting(random: &mut SmallRng) -> Setting {
    Setting {
        senders: random.random_range(1..5),
        receivers: random.random_range(1..5),
        priorities: random.random_range(1..4),
        asks: random.random(),
        patient: random.random_ratio(1, 4),
        capacity: *[1, 2, 3, 10].choose(random).unwrap(),
        queues: random.random_range(1..3),
    }
}

/// Prevents a wrong link, or the age of a message that is not the first, whatever the order of what happens, links and ages
/// that are sure from being missed, and calls from waiting longer than they may or overtaking others of their thread.
#[test]
fn links_are_never_wrong() {
    let mut random = SmallRng::seed_from_u64(1);
    let pairs = [PAIR, Setting { priorities: 3, ..PAIR }, Setting { asks: false, ..PAIR }];
    let pool = Setting { receivers: 4, patient: true, ..PAIR };
    let pools = [pool, Setting { asks: false, ..pool }, Setting { priorities: 3, ..pool }];
    let named = pairs.into_iter().chain(pools).map(|setting| (setting, 0.99));
    let others = (0..100).map(|_| (random_setting(&mut random), 0.0)).collect::<Vec<_>>();
    for (seed, (setting, least)) in (0..).zip(named.chain(others)) {
        let mut world = World::new(setting, seed);
        // Until the queue was surely empty for once there are no links.
        for steps in [4_000, 12_000] {
            (world.right, world.none, world.ages) = (0, 0, [0; 2]);
            (0..steps).for_each(|_| world.step());
        }
        assert_eq!(world.wrong, 0, "{setting:?} {seed}");
        let (right, all) = (world.right as f64, (world.right + world.none) as f64);
        assert!(right >= least * all, "{setting:?}: {right} of {all}");
        let (known, looks) = (world.ages[0] as f64, (world.ages[0] + world.ages[1]) as f64);
        assert!(known >= least * looks, "{setting:?}: {known} of {looks} ages");
        assert!(world.longest < PATIENCE + PATIENCE / 100, "{setting:?}: {:?}", world.longest);
    }
}

/// Prevents a link to the send of a message that a thread took whose receive began before mqspan did.
#[test]
fn early_receivers_take_messages_unseen() {
    let mut random = SmallRng::seed_from_u64(2);
    for seed in 0..100 {
        let setting = Setting { receivers: 2, capacity: random.random_range(1..4), ..PAIR };
        let mut world = World::new(setting, seed).with_early(random.random());
        (0..8_000).for_each(|_| world.step());
        assert_eq!(world.wrong, 0, "{setting:?} {seed}");
        assert!(world.right > 0, "{setting:?} {seed}: never trusted again");
    }
}

/// Prevents a link where the calls seen allow another: each link of short histories is the only one possible.
#[test]
fn no_link_leaves_a_choice() {
    let mut random = SmallRng::seed_from_u64(3);
    let mut links = 0;
    for seed in 0..1_500 {
        let setting = Setting { queues: 1, ..random_setting(&mut random) };
        let mut world = World::new(setting, seed);
        while world.calls() < 12 {
            world.step();
            for link in &world.links {
                links += 1;
                let is_open = Oracle::new(&world.records, setting.priorities, *link).allows_another();
                assert!(!is_open, "{setting:?} {seed}: {link:?} after {}", shown(&world.records));
            }
        }
    }
    assert!(links > 1_500, "{links}");
}

/// A line for each record.
fn shown(records: &[Call]) -> String {
    let line = |call: &Call| match call.args {
        Args::Send(message) | Args::Receive(message) => {
            let Message { priority, size, turn, .. } = message;
            let span = u64::from_ne_bytes(call.ids.span);
            format!("\n{:?} {span} = {}, got {}, {priority:?} {size} {turn:?}", call.op, call.ret, call.uid)
        }
        _ => String::new(),
    };
    records.iter().map(line).collect()
}
