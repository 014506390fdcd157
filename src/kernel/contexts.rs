//! Tells the kernel side where the threads of a process hold what they publish of their spans (bpf/context.h).

use std::collections::HashSet;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::programs::Programs;
use super::skel::types::publisher;
use crate::model::call::ImageKey;
use crate::model::slot::Slot;

/// The map of publishers, and the one that says whether there are any.
#[derive(Debug)]
pub struct Contexts {
    publishers: MapHandle,
    publishing: MapHandle,
    pids: HashSet<u32>,
}

impl Contexts {
    /// The maps of these programs.
    pub fn of(programs: &Programs) -> libbpf_rs::Result<Self> {
        let [publishers, publishing] = programs.contexts().map(MapHandle::try_from);
        Ok(Self { publishers: publishers?, publishing: publishing?, pids: HashSet::new() })
    }

    /// From now on the image's threads are looked at, or none of its process any more. What finds no room is as good
    /// as not published.
    pub fn put(&mut self, image: &ImageKey, slot: Option<Slot>) {
        let pid = image.pid.to_ne_bytes();
        let is_put = match slot {
            Some(slot) => self.publishers.update(&pid, &value(image, slot), MapFlags::ANY).is_ok(),
            None => {
                // It may be gone already.
                let _ = self.publishers.delete(&pid);
                false
            }
        };
        if is_put {
            self.pids.insert(image.pid);
        } else {
            self.pids.remove(&image.pid);
        }
        let count = u32::try_from(self.pids.len()).unwrap_or(u32::MAX);
        // An update of an array's entry that exists fails for nothing.
        let _ = self.publishing.update(&0u32.to_ne_bytes(), &count.to_ne_bytes(), MapFlags::ANY);
    }
}

/// A `struct publisher`.
fn value(image: &ImageKey, slot: Slot) -> Vec<u8> {
    let mut raw = publisher { started_ns: image.started_ns, exec_id: image.exec_id, ..Default::default() };
    match slot {
        Slot::Static(offset) => raw.offset = offset,
        Slot::Dynamic { module, offset, vector } => {
            raw.module = module;
            raw.offset = offset.into();
            (raw.dtv_at, raw.dtv_len_at, raw.dtv_step) = (vector.at, vector.len_at, vector.step);
        }
    }
    // SAFETY: a plain structure of integers without padding, see bpf/context.h.
    unsafe { std::slice::from_raw_parts((&raw const raw).cast::<u8>(), size_of::<publisher>()) }.to_vec()
}
