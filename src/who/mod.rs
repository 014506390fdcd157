//! Who made a call: the Resource of each process image, made at its first call, from what the kernel recorded then
//! ([`resource`]), what this host says ([`host`]) and what the process has published ([`contexts`]); a later publication
//! replaces it. Asks nothing that can wait for a network.

pub mod cgroup;
pub mod contexts;
pub mod elf;
pub mod environment;
pub mod host;
mod owner;
pub mod process_context;
pub mod publishers;
pub mod resource;
pub mod tls;

use std::collections::HashMap;
use std::sync::Arc;

use self::environment::Said;
use self::host::Host;
use self::owner::Owners;
use self::process_context::Published;
use crate::model::call::{Call, Image, ImageKey};
use crate::model::resource::Resource;

/// Images of one generation; two generations are kept.
const GENERATION: usize = 2048;

/// The Resources of the images that made calls lately, bounded.
#[derive(Debug)]
pub struct Registry {
    host: Host,
    owners: Owners,
    images: Generations<Known>,
    resources: Generations<Arc<Resource>>,
}

/// What a Resource is made of.
#[derive(Debug)]
struct Known {
    /// Without its environment.
    image: Image,
    said: Said,
    published: Published,
}

impl Registry {
    /// An empty registry on this host.
    pub fn new(host: Host) -> Self {
        Self { host, owners: Owners::default(), images: Generations::default(), resources: Generations::default() }
    }

    /// Takes what the kernel recorded of an image; its first call follows.
    pub fn add(&mut self, mut image: Image) {
        let said = resource::said(&image);
        // What is not asked for any more is not kept: environments are large, and their calls may all be filtered.
        image.environ = None;
        self.images.put(image.key, Known { image, said, published: Published::default() });
    }

    /// What is known of an image.
    pub fn image(&mut self, key: &ImageKey) -> Option<&Image> {
        self.images.get(key).map(|known| &known.image)
    }

    /// Takes what an image has published; returns whether that replaces a Resource that was in use.
    pub fn publish(&mut self, key: ImageKey, published: Published) -> bool {
        let Some(known) = self.images.get_mut(&key) else { return false };
        known.published = published;
        let Some(before) = self.resources.remove(&key) else { return false };
        *self.resource(key) != *before
    }

    /// Makes do with what /proc tells of the caller: the kernel's record of its image was lost or is long forgotten.
    pub fn add_from_proc(&mut self, call: &Call) {
        self.add(host::image_of_caller(call));
    }

    /// Whether the image is known, so that [`Registry::resource`] has more than the call itself to go by.
    pub fn knows(&mut self, key: &ImageKey) -> bool {
        self.resources.get(key).is_some() || self.images.get(key).is_some()
    }

    /// The Resource of an image.
    pub fn resource(&mut self, key: ImageKey) -> Arc<Resource> {
        if let Some(resource) = self.resources.get(&key) {
            return resource.clone();
        }
        if self.images.get(&key).is_none() {
            self.add(host::image(key));
        }
        let process = |key: &ImageKey| (key.pid, key.started_ns);
        let is_taken = |id: &str| {
            self.resources.iter().any(|(other, resource)| {
                process(other) != process(&key)
                    && resource::instance_id(resource) == Some(id)
                    && host::is_running(other)
            })
        };
        let of = self.images.young.get(&key).map(|Known { image, said, published }| {
            let owner = self.owners.name(image.uid);
            resource::build(&self.host, image, said, published, owner, cgroup::path(image), is_taken)
        });
        let resource = Arc::new(of.unwrap_or_default());
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
        self.get_mut(key).map(|value| &*value)
    }

    fn get_mut(&mut self, key: &ImageKey) -> Option<&mut T> {
        if let Some(value) = self.old.remove(key) {
            self.put(*key, value);
        }
        self.young.get_mut(key)
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
