//! The order of the rows: by any column, what is not known behind what is. Pure code.

use std::cmp::Ordering;

use super::snapshot::QueueRow;
use crate::model::values::SortKey;

/// Whether a column's order begins with the greatest: numbers do, names do not.
pub fn begins_with_greatest(key: SortKey) -> bool {
    !matches!(key, SortKey::Name | SortKey::Namespace)
}

/// Sorts the rows, or the other way round where it is `inverted`; rows that are equal stay in the order of their names.
pub fn sort(rows: &mut [QueueRow], key: SortKey, inverted: bool) {
    rows.sort_by(|a, b| {
        let by_name = || a.key.as_ref().map(|(ns, name)| (name, ns)).cmp(&b.key.as_ref().map(|(ns, name)| (name, ns)));
        let order = match key {
            SortKey::Name => turned(by_name(), inverted),
            SortKey::Namespace => {
                let place = |row: &QueueRow| (row.container_id.clone(), row.ipc_namespace);
                turned(place(a).cmp(&place(b)), inverted)
            }
            _ => match (value(a, key), value(b, key)) {
                (Some(a), Some(b)) => turned(b.total_cmp(&a), inverted),
                (a, b) => b.is_some().cmp(&a.is_some()),
            },
        };
        order.then_with(by_name)
    });
}

fn turned(order: Ordering, inverted: bool) -> Ordering {
    if inverted { order.reverse() } else { order }
}

/// What a row is sorted by; None where it is not known.
fn value(row: &QueueRow, key: SortKey) -> Option<f64> {
    match key {
        SortKey::Name | SortKey::Namespace => None,
        // Of queues that are as full, the one with more messages first.
        SortKey::Depth => {
            let (depth, capacity) = (row.depth? as f64, row.capacity? as f64);
            Some(if capacity > 0.0 { depth / capacity + depth / 1e12 } else { depth / 1e12 })
        }
        SortKey::In => Some(row.sent_per_second),
        SortKey::Out => Some(row.received_per_second),
        SortKey::Oldest => row.oldest_age_seconds,
        SortKey::Wait50 => row.wait_seconds.map(|waits| waits.p50),
        SortKey::Wait99 => row.wait_seconds.map(|waits| waits.p99),
        SortKey::Failures => Some(row.failures_per_second),
        SortKey::Open => row.descriptors.map(|open| (open.read + open.write) as f64),
        SortKey::Blocked => match (row.blocked.send, row.blocked.receive) {
            (None, None) => None,
            (send, receive) => Some((send.unwrap_or(0) + receive.unwrap_or(0)) as f64),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reading::QueueName;
    use crate::overview::snapshot::{Blocked, Health, Snapshot};
    use crate::overview::tables::{Bounds, QueueLook, Tables};

    /// Prevents what is not known from being sorted as if it were the least or the most, and equal rows from changing
    /// places from one view to the next.
    #[test]
    fn the_unknown_comes_last() {
        let mut tables = Tables::new(Bounds::LIVE, 0);
        tables.begin(1, 1);
        for (name, depth, capacity) in [("/b", 5, 10), ("/a", 5, 10), ("/c", 9, 100), ("/d", 10, 20), ("/e", 0, 10)] {
            let look = QueueLook { depth, peak: depth, capacity, ..QueueLook::default() };
            tables.look_at(QueueName::from((1, name.into())), look);
        }
        let mut rows = Snapshot::of(&tables, Health::default()).queues;
        rows[4].depth = None;
        (rows[0].blocked, rows[1].blocked) =
            (Blocked { send: Some(1), receive: None }, Blocked { send: Some(0), receive: Some(0) });
        let mut names = |key, inverted| {
            sort(&mut rows, key, inverted);
            rows.iter().map(|row| row.name.clone().unwrap_or_default()).collect::<String>()
        };
        assert_eq!(names(SortKey::Depth, false), "/d/a/b/c/e");
        assert_eq!(names(SortKey::Depth, true), "/c/a/b/d/e");
        assert_eq!(names(SortKey::Name, true), "/e/d/c/b/a");
        assert_eq!(names(SortKey::Blocked, false), "/a/b/c/d/e");
        assert_eq!(names(SortKey::Blocked, true), "/b/a/c/d/e");
        assert_eq!(names(SortKey::Oldest, true), "/a/b/c/d/e");
    }
}
