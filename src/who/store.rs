//! Values by process image, bounded in bytes: what is over that is evicted, first of images that have ended, then of the
//! user whose images take the most, the least recently used one. So no process or user pushes out what others need. Pure
//! code.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::call::ImageKey;

/// What an entry takes besides its value, about: in the table, and in the orders of use.
const ENTRY: usize = 192;
/// One that was used so lately, counted in uses of others, is not moved in its order again.
const LATELY: u64 = 64;

#[derive(Debug)]
struct Stored<T> {
    value: T,
    uid: u32,
    bytes: usize,
    /// When it was used: its place in the order of use.
    used: u64,
    has_ended: bool,
}

/// The images of one user, by when they were used.
#[derive(Debug, Default)]
struct UserShare {
    bytes: usize,
    order: BTreeMap<u64, ImageKey>,
}

/// The values.
#[derive(Debug)]
pub struct ImageStore<T> {
    most: usize,
    bytes: usize,
    /// Counts uses.
    time: u64,
    entries: HashMap<ImageKey, Stored<T>>,
    users: HashMap<u32, UserShare>,
    by_bytes: BTreeSet<(usize, u32)>,
    ended: BTreeMap<u64, ImageKey>,
    evicted: Vec<ImageKey>,
}

impl<T> ImageStore<T> {
    /// Holds so many bytes at most.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            bytes: 0,
            time: 0,
            entries: HashMap::new(),
            users: HashMap::new(),
            by_bytes: BTreeSet::new(),
            ended: BTreeMap::new(),
            evicted: Vec::new(),
        }
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is one.
    pub fn contains(&self, key: &ImageKey) -> bool {
        self.entries.contains_key(key)
    }

    /// The value of an image, which counts as used.
    pub fn get_mut(&mut self, key: &ImageKey) -> Option<&mut T> {
        let Stored { used, .. } = self.entries.get(key)?;
        if self.time - used > LATELY {
            self.order(key, false);
            self.time += 1;
            let time = self.time;
            self.entries.get_mut(key)?.used = time;
            self.order(key, true);
        }
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// Puts an entry into its order of use, or takes it out.
    fn order(&mut self, key: &ImageKey, put: bool) {
        let Some(Stored { uid, used, has_ended, .. }) = self.entries.get(key) else { return };
        let order = match has_ended {
            true => &mut self.ended,
            false => &mut self.users.entry(*uid).or_default().order,
        };
        match put {
            true => order.insert(*used, *key),
            false => order.remove(used),
        };
    }

    /// Changes what a user's images take.
    fn count(&mut self, uid: u32, added: usize, removed: usize) {
        let user = self.users.entry(uid).or_default();
        self.by_bytes.remove(&(user.bytes, uid));
        user.bytes = user.bytes + added - removed;
        self.bytes = self.bytes + added - removed;
        match user.bytes {
            0 => drop(self.users.remove(&uid)),
            bytes => drop(self.by_bytes.insert((bytes, uid))),
        }
    }

    /// Puts a value of this many bytes in the place of the one before; others may be evicted for it.
    pub fn put(&mut self, key: ImageKey, uid: u32, bytes: usize, value: T) {
        let has_ended = self.entries.get(&key).is_some_and(|entry| entry.has_ended);
        self.remove(&key);
        self.time += 1;
        let bytes = bytes + ENTRY;
        self.entries.insert(key, Stored { value, uid, bytes, used: self.time, has_ended });
        self.count(uid, bytes, 0);
        self.order(&key, true);
        while self.bytes > self.most
            && let Some(victim) = self.victim(&key)
        {
            self.remove(&victim);
            self.evicted.push(victim);
        }
    }

    /// Who has to go next; never the one that was just put.
    fn victim(&self, put: &ImageKey) -> Option<ImageKey> {
        let first = |order: &BTreeMap<u64, ImageKey>| order.values().find(|key| *key != put).copied();
        let of_users = || {
            let mut users = self.by_bytes.iter().rev().filter_map(|(_, uid)| self.users.get(uid));
            users.find_map(|user| first(&user.order))
        };
        first(&self.ended).or_else(of_users)
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &ImageKey) -> Option<T> {
        self.order(key, false);
        let Stored { value, uid, bytes, .. } = self.entries.remove(key)?;
        self.count(uid, 0, bytes);
        Some(value)
    }

    /// The image has ended: it is evicted before those that have not.
    pub fn ended(&mut self, key: &ImageKey) {
        self.order(key, false);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.has_ended = true;
            self.order(key, true);
        }
    }

    /// Whether the image has ended, or is not here.
    pub fn has_ended(&self, key: &ImageKey) -> bool {
        self.entries.get(key).is_none_or(|entry| entry.has_ended)
    }

    /// Every image.
    pub fn keys(&self) -> impl Iterator<Item = &ImageKey> {
        self.entries.keys()
    }

    /// What was evicted since this was last asked.
    pub fn take_evicted(&mut self) -> Vec<ImageKey> {
        std::mem::take(&mut self.evicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32) -> ImageKey {
        ImageKey { pid, started_ns: 7, exec_id: 0 }
    }

    fn check<T>(store: &ImageStore<T>) {
        assert!(store.bytes <= store.most, "{}", store.bytes);
        let ordered: usize = store.users.values().map(|user| user.order.len()).sum();
        assert_eq!(ordered + store.ended.len(), store.entries.len());
        assert_eq!(store.entries.values().map(|entry| entry.bytes).sum::<usize>(), store.bytes);
        assert_eq!(store.by_bytes.iter().map(|(bytes, _)| bytes).sum::<usize>(), store.bytes);
    }

    /// Prevents the table from growing with every process that ever made a call, and one that is used from being evicted.
    #[test]
    fn bounded_and_by_use() {
        let mut store = ImageStore::new(100 * (ENTRY + 8));
        for pid in 0..1000 {
            store.put(key(pid), 0, 8, pid);
            assert_eq!(store.get_mut(&key(0)), Some(&mut 0), "what is used stays");
            check(&store);
        }
        assert_eq!(store.take_evicted().len(), 900);
        assert!(store.take_evicted().is_empty() && !store.contains(&key(1)) && store.contains(&key(999)));
        store.put(key(999), 5, 80, 1);
        assert_eq!((store.remove(&key(999)), store.remove(&key(999))), (Some(1), None));
        check(&store);
    }

    /// Prevents one user's thousands of processes, or one with long values, from pushing out those of others.
    #[test]
    fn each_user_pushes_out_its_own() {
        let mut store = ImageStore::new(300 * ENTRY);
        for pid in 0..20 {
            store.put(key(pid), 1, 0, ());
        }
        for pid in 100..9100 {
            store.put(key(pid), 2, 3 * ENTRY, ());
            check(&store);
        }
        for pid in 10_000..10_100 {
            store.put(key(pid), pid, 0, ());
        }
        assert!((0..20).all(|pid| store.contains(&key(pid))), "user 1 has lost some");
        assert!(store.contains(&key(9099)), "the newest goes last");
    }

    /// Prevents living images from being evicted while there are some that have ended, and a single value that is larger
    /// than the bound from emptying the table of itself.
    #[test]
    fn ended_ones_go_first() {
        let mut store = ImageStore::new(10 * ENTRY);
        for pid in 0..10 {
            store.put(key(pid), 0, 0, ());
        }
        store.ended(&key(9));
        store.ended(&key(5));
        store.ended(&key(77));
        store.put(key(10), 0, 0, ());
        store.put(key(11), 0, 0, ());
        assert_eq!(store.take_evicted(), [key(5), key(9)]);
        store.put(key(12), 0, 0, ());
        assert_eq!(store.take_evicted(), [key(0)]);
        store.put(key(13), 3, 100 * ENTRY, ());
        assert!(store.contains(&key(13)) && store.entries.len() == 1);
    }
}
