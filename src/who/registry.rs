//! The Resources of the images that make calls, made of what the kernel side recorded of them, of what the prober has found
//! out, and of the calls themselves. Bounded in bytes; asks nobody and reads nothing. Pure code.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::mem::take;
use std::sync::Arc;

use super::cgroup;
use super::environment::Said;
use super::host::Host;
use super::process_context::Published;
use super::resource::{self, Made};
use super::store::ImageStore;
use crate::model::call::{Identity, Image, ImageKey, Root, unpadded};
use crate::model::resource::{Resource, Value};

/// As many bytes of what Resources are made of.
const SEEDS: usize = 3 << 20;
/// As many bytes of Resources, which can be made again.
const RESOURCES: usize = 4 << 20;
/// As many images are remembered, of those that were evicted, with what can't be read a second time; and as many
/// processes by the instance id that their environment names. Twice as many at most.
const REMEMBERED: usize = 4096;
/// As many users' names are remembered.
pub const USER_NAMES: usize = 1024;
/// As many evicted images are told of by their keys.
const EVICTED: usize = 16_384;

/// What a Resource is made of.
#[derive(Debug)]
struct Seed {
    /// Without its environment.
    image: Image,
    said: Said,
    published: Published,
    cgroup: Option<String>,
    owner: Option<String>,
    /// Whether it was made of a call alone.
    is_bare: bool,
}

/// What is decided at an image's first call, and stays.
#[derive(Clone, Copy, Debug)]
struct Decided {
    uid: u32,
    parent_pid: u32,
    comm: [u8; 16],
    /// Whether it goes by the instance id that its environment names.
    owns_id: bool,
}

/// A process: all its images.
type ProcessKey = (u32, u64);

fn process(key: &ImageKey) -> ProcessKey {
    (key.pid, key.started_ns)
}

/// Whom the prober is to ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Which image.
    pub image: ImageKey,
    /// As /proc shows it; 0 where it does not.
    pub local_pid: u32,
    /// Whose it is.
    pub uid: u32,
    /// Where its environment is, by which the image is told from a later one; 0 where that is not known.
    pub environ_at: u64,
}

impl Subject {
    /// The image that was recorded.
    pub fn of(image: &Image) -> Self {
        let Image { key, local_pid, uid, environ_at, .. } = *image;
        Self { image: key, local_pid, uid, environ_at }
    }
}

/// What is to be found out of a new image besides what the record of it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Whom to ask about.
    pub subject: Subject,
    /// Its environment was too long to be recorded.
    pub environ: bool,
    /// Its control group was not recorded.
    pub cgroup: bool,
    /// It sees the same `/` as this program, and so the same /etc/passwd; otherwise that is to be found out.
    pub shares_root: bool,
    /// The process that goes by the instance id that this one names: whether it has ended.
    pub rival: Option<Subject>,
}

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageFacts {
    /// What it says of itself in its environment, where that was asked for.
    pub said: Option<Said>,
    /// Its control group's path, where that was asked for.
    pub cgroup: Option<String>,
    /// The name of its user, where it sees the same /etc/passwd as this program.
    pub owner: Option<String>,
}

/// The images that made calls lately.
#[derive(Debug)]
pub struct Registry {
    host: Host,
    /// By how much the time of day is ahead of CLOCK_BOOTTIME.
    boot_offset_ns: i64,
    seeds: ImageStore<Seed>,
    resources: ImageStore<Arc<Resource>>,
    decided: Generations<ImageKey, Decided>,
    /// The names of users of processes with this program's root: at first those of /etc/passwd, then as it was found to be.
    user_names: HashMap<u32, String>,
    /// Who goes by the instance ids that environments name, by their hashes.
    owners: Generations<u64, Subject>,
    hasher: RandomState,
    evicted: Vec<ImageKey>,
}

impl Registry {
    /// An empty registry on this host; `boot_offset_ns` is [`crate::clock::Clock::boot_offset_ns`].
    /// `user_names` are [`super::owner::first_users`] of [`USER_NAMES`].
    pub fn new(host: Host, boot_offset_ns: i64, user_names: HashMap<u32, String>) -> Self {
        Self {
            host,
            boot_offset_ns,
            seeds: ImageStore::new(SEEDS),
            resources: ImageStore::new(RESOURCES),
            decided: Generations::default(),
            user_names,
            owners: Generations::default(),
            hasher: RandomState::new(),
            evicted: Vec::new(),
        }
    }

    /// Takes what the kernel side recorded of an image, or what /proc says of it. Returns what is to be found out besides;
    /// None where the image is known already.
    pub fn add(&mut self, mut image: Image) -> Option<Inquiry> {
        let key = image.key;
        // Once a Resource was made of a call alone, it stays.
        let is_made = self.resources.contains(&key) || self.decided.get(&key).is_some();
        if self.seeds.get_mut(&key).is_some_and(|seed| !seed.is_bare || is_made) {
            return None;
        }
        let said = resource::said(&image);
        // What is not asked for any more is not kept: environments are large, and their calls may all be filtered.
        let environ = take(&mut image.environ_cut) && image.environ.take().is_some();
        image.environ = None;
        let cgroup = cgroup::recorded(&image);
        let rival =
            said.instance_id().and_then(|id| self.owner_of(id)).filter(|owner| process(&owner.image) != process(&key));
        let inquiry = Inquiry {
            subject: Subject::of(&image),
            environ,
            cgroup: cgroup.as_ref().is_none_or(|path| path == "/"),
            shares_root: image.root == self.host.root && image.root != Root::default(),
            rival,
        };
        // Known of another process of the user: the call need not wait for it.
        let owner = self.user_names.get(&image.uid).filter(|_| inquiry.shares_root).cloned();
        self.put(Seed { image, said, published: Published::default(), cgroup, owner, is_bare: false });
        Some(inquiry)
    }

    /// Makes do with what a call carries: the record of its image was lost. It is to be sent again with the next one.
    pub fn add_bare(&mut self, of: &Identity) {
        let image = Image {
            key: of.image,
            vpid: of.vpid,
            local_pid: of.local_pid,
            parent_pid: 0,
            path: None,
            environ: None,
            environ_at: 0,
            environ_cut: false,
            uid: of.uid,
            cgroup: None,
            comm: of.comm.clone(),
            root: Root::default(),
        };
        let (said, published) = Default::default();
        self.put(Seed { image, said, published, cgroup: None, owner: None, is_bare: true });
        self.unmark([of.image]);
    }

    fn put(&mut self, seed: Seed) {
        let bytes = seed.bytes();
        self.seeds.put(seed.image.key, seed.image.uid, bytes, seed);
        self.forget_evicted();
    }

    fn forget_evicted(&mut self) {
        let evicted = self.seeds.take_evicted();
        for key in &evicted {
            self.resources.remove(key);
        }
        self.unmark(evicted);
    }

    fn unmark(&mut self, keys: impl IntoIterator<Item = ImageKey>) {
        self.evicted.extend(keys);
        let excess = self.evicted.len().saturating_sub(EVICTED);
        self.evicted.drain(..excess);
    }

    /// The images that are known no more, or were not: the kernel side is to send them again with their next calls.
    pub fn take_evicted(&mut self) -> Vec<ImageKey> {
        take(&mut self.evicted)
    }

    /// Takes what the prober found out; returns whether that replaces a Resource that was in use.
    pub fn learn(&mut self, key: &ImageKey, facts: ImageFacts) -> bool {
        let ImageFacts { said, cgroup, owner } = facts;
        let sees_this_root = |seed: &Seed| (seed.image.root == self.host.root).then_some(seed.image.uid);
        if let Some(name) = &owner
            && let Some(uid) = self.seeds.get_mut(key).and_then(|seed| sees_this_root(seed))
        {
            if self.user_names.len() >= USER_NAMES {
                self.user_names.clear();
            }
            self.user_names.insert(uid, name.clone());
        }
        self.change(key, |seed| {
            if let Some(said) = said {
                seed.said = said;
            }
            seed.cgroup = cgroup.or(seed.cgroup.take());
            seed.owner = owner;
        })
    }

    /// Takes what an image has published; returns whether that replaces a Resource that was in use.
    pub fn publish(&mut self, key: &ImageKey, published: Published) -> bool {
        self.change(key, |seed| seed.published = published)
    }

    fn change(&mut self, key: &ImageKey, change: impl FnOnce(&mut Seed)) -> bool {
        let Some(mut seed) = self.seeds.remove(key) else { return false };
        change(&mut seed);
        self.put(seed);
        let Some(before) = self.resources.remove(key) else { return false };
        *self.resource(*key) != *before
    }

    /// Whether the image is known.
    pub fn knows(&self, key: &ImageKey) -> bool {
        self.seeds.contains(key)
    }

    /// Whom to ask about an image that is known.
    pub fn subject(&mut self, key: &ImageKey) -> Option<Subject> {
        self.seeds.get_mut(key).map(|seed| Subject::of(&seed.image))
    }

    /// The process of this image has ended, or it runs another: what is known of it goes first when there is no room, and
    /// its instance id is free.
    pub fn ended(&mut self, key: &ImageKey) {
        self.seeds.ended(key);
        self.resources.ended(key);
        let said = self.seeds.get_mut(key).and_then(|seed| seed.said.instance_id().map(|id| self.hasher.hash_one(id)));
        if let Some(id) = said
            && self.owners.get(&id).is_some_and(|owner| owner.image == *key)
        {
            self.owners.remove(&id);
        }
    }

    /// Whether the image has ended, or is known no more.
    pub fn has_ended(&self, key: &ImageKey) -> bool {
        self.seeds.has_ended(key)
    }

    /// The time of day was set: creation times that were told are wrong. Returns the images whose Resources are others
    /// from now on.
    pub fn clock_stepped(&mut self, boot_offset_ns: i64) -> Vec<ImageKey> {
        self.boot_offset_ns = boot_offset_ns;
        let replaced: Vec<ImageKey> = self.resources.keys().copied().collect();
        for key in &replaced {
            self.resources.remove(key);
        }
        replaced
    }

    fn owner_of(&mut self, id: &str) -> Option<Subject> {
        let id = self.hasher.hash_one(id);
        self.owners.get(&id).copied()
    }

    /// The Resource of an image; one without a process's attributes for an image that is not known.
    pub fn resource(&mut self, key: ImageKey) -> Arc<Resource> {
        if let Some(resource) = self.resources.get_mut(&key) {
            return resource.clone();
        }
        let decided = self.decide(&key);
        let (Some(seed), Some(decided)) = (self.seeds.get_mut(&key), decided) else { return Arc::default() };
        let Seed { image, said, published, cgroup, owner, .. } = seed;
        let uid = image.uid;
        let made = Made {
            host: &self.host,
            boot_offset_ns: self.boot_offset_ns,
            image,
            said,
            published,
            owner: owner.as_deref(),
            cgroup: cgroup.clone(),
            owns_id: decided.owns_id,
        };
        let resource = Arc::new(made.build());
        self.resources.put(key, uid, bytes_of(&resource), resource.clone());
        // These can be made again.
        self.resources.take_evicted();
        resource
    }

    /// What was decided at the image's first call, or is now.
    fn decide(&mut self, key: &ImageKey) -> Option<Decided> {
        let seed = self.seeds.get_mut(key)?;
        let subject = Subject::of(&seed.image);
        let id = seed.said.instance_id().map(|id| self.hasher.hash_one(id));
        if let Some(decided) = self.decided.get(key) {
            let (decided, seed) = (*decided, self.seeds.get_mut(key)?);
            // The image was evicted meanwhile, and these may have changed since its first call.
            (seed.image.uid, seed.image.parent_pid) = (decided.uid, decided.parent_pid);
            seed.image.comm = unpadded(&decided.comm).to_vec();
            if let Some(id) = id.filter(|_| decided.owns_id) {
                self.owners.put(id, subject);
            }
            return Some(decided);
        }
        let mut is_free = |id: &u64| self.owners.get(id).is_none_or(|owner| process(&owner.image) == process(key));
        let owned = id.filter(|id| is_free(id));
        if let Some(id) = owned {
            self.owners.put(id, subject);
        }
        let Image { uid, parent_pid, ref comm, .. } = self.seeds.get_mut(key)?.image;
        let mut padded = [0; 16];
        padded.iter_mut().zip(comm).for_each(|(to, byte)| *to = *byte);
        let decided = Decided { uid, parent_pid, comm: padded, owns_id: owned.is_some() };
        self.decided.put(*key, decided);
        Some(decided)
    }
}

impl Seed {
    fn bytes(&self) -> usize {
        let Self { image, said, published, cgroup, owner, .. } = self;
        let texts = [cgroup, owner, &said.service_name].into_iter().flatten().map(String::len).sum::<usize>();
        let image =
            image.path.as_ref().map_or(0, Vec::len) + image.cgroup.as_ref().map_or(0, Vec::len) + image.comm.len();
        let said: usize = said.attributes.iter().map(|(key, value)| key.len() + value.len() + 48).sum();
        size_of::<Self>() + image + texts + said + attributes_bytes(&published.attributes)
    }
}

fn attributes_bytes(attributes: &[(String, Value)]) -> usize {
    let bytes = |(key, value): &(String, Value)| key.len() + value.as_text().map_or(0, str::len);
    attributes.iter().map(|attribute| bytes(attribute) + size_of::<(String, Value)>()).sum()
}

/// What a Resource takes.
fn bytes_of(resource: &Resource) -> usize {
    size_of::<Resource>() + attributes_bytes(&resource.attributes)
}

/// A map that forgets what was not looked at for at least [`REMEMBERED`] new entries.
#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: Eq + std::hash::Hash + Copy, V> Generations<K, V> {
    fn get(&mut self, key: &K) -> Option<&V> {
        if let Some(value) = self.old.remove(key) {
            self.put(*key, value);
        }
        self.young.get(key)
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= REMEMBERED {
            self.old = take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
