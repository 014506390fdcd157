//! Who made a call: the Resource of each process image, made once, at its first call, from what the kernel recorded
//! then ([`resource`]) and what this host says ([`host`]). Asks nothing that can wait for a network.

pub mod calls;
mod cgroup;
pub mod elf;
mod environment;
pub mod host;
mod owner;
pub mod publishers;
pub mod resource;
pub mod tls;

use std::collections::HashMap;
use std::sync::Arc;

use self::cgroup::Cgroups;
use self::environment::Said;
use self::host::Host;
use self::owner::Owners;
use crate::event::{Call, Ids, Image, ImageKey};
use crate::telemetry::record::Resource;

/// Images of one generation; two generations are kept.
const GENERATION: usize = 2048;

/// The Resources of the images that made calls lately, bounded.
#[derive(Debug)]
pub struct Registry {
    host: Host,
    owners: Owners,
    cgroups: Cgroups,
    /// What the kernel recorded of images whose first call has not come yet.
    images: Generations<(Image, Said)>,
    resources: Generations<Arc<Resource>>,
    /// The spans that images were started in, by their environment.
    started_in: Generations<Ids>,
}

impl Registry {
    /// An empty registry on this host.
    pub fn new(host: Host) -> Self {
        Self {
            host,
            owners: Owners::default(),
            cgroups: Cgroups::default(),
            images: Generations::default(),
            resources: Generations::default(),
            started_in: Generations::default(),
        }
    }

    /// Takes what the kernel recorded of an image; its first call follows.
    pub fn add(&mut self, mut image: Image) {
        let said = resource::said(&image);
        if let Some(ids) = said.started_in {
            self.started_in.put(image.key, ids);
        }
        // What is not asked for any more is not kept: environments are large, and their calls may all be filtered.
        image.environ = None;
        self.images.put(image.key, (image, said));
    }

    /// Makes do with what /proc tells of the caller: the kernel's record of its image was lost or is long forgotten.
    pub fn add_from_proc(&mut self, call: &Call) {
        self.add(host::image_of_caller(call));
    }

    /// Whether the image is known, so that [`Registry::resource`] has more than the call itself to go by.
    pub fn knows(&mut self, key: &ImageKey) -> bool {
        self.resources.get(key).is_some() || self.images.get(key).is_some()
    }

    /// The span that an image was started in, by its environment.
    pub fn started_in(&mut self, key: &ImageKey) -> Option<Ids> {
        self.started_in.get(key).copied()
    }

    /// The Resource of an image.
    pub fn resource(&mut self, key: ImageKey) -> Arc<Resource> {
        if let Some(resource) = self.resources.get(&key) {
            return resource.clone();
        }
        let (image, said) = self.images.remove(&key).unwrap_or_else(|| (host::image(key), Said::default()));
        let process = |key: &ImageKey| (key.pid, key.started_ns);
        let is_taken = |id: &str| {
            self.resources.iter().any(|(other, resource)| {
                process(other) != process(&key)
                    && resource::instance_id(resource) == Some(id)
                    && host::is_running(other)
            })
        };
        let owner = self.owners.name(image.uid);
        let cgroup = self.cgroups.path(&image);
        let resource = Arc::new(resource::build(&self.host, &image, said, owner, cgroup, is_taken));
        self.resources.put(key, resource.clone());
        resource
    }
}

/// A map that forgets what was not looked at for at least [`GENERATION`] new entries.
#[derive(Debug)]
struct Generations<T> {
    young: HashMap<ImageKey, T>,
    old: HashMap<ImageKey, T>,
}

impl<T> Default for Generations<T> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<T> Generations<T> {
    fn get(&mut self, key: &ImageKey) -> Option<&T> {
        if let Some(value) = self.old.remove(key) {
            self.put(*key, value);
        }
        self.young.get(key)
    }

    fn put(&mut self, key: ImageKey, value: T) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: &ImageKey) -> Option<T> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    fn iter(&self) -> impl Iterator<Item = (&ImageKey, &T)> {
        self.young.iter().chain(&self.old)
    }
}

#[cfg(test)]
mod tests;
