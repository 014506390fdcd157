//! What the kernel says of itself by its BTF: which functions it has, and whether its BPF has what mqspan rests on. Attaches
//! nothing.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Enum, Func};

/// What it says.
#[derive(Debug)]
pub struct Told {
    /// Those of its functions that were asked for. Functions that were inlined are not among them.
    pub functions: BTreeSet<String>,
    /// Whether its BPF has a ring buffer.
    pub has_ring: bool,
}

/// Reads it; no functions, and nothing said against the kernel, where it has no BTF.
pub fn told(wanted: impl Fn(&str) -> bool) -> Told {
    let Ok(btf) = Btf::from_vmlinux() else { return Told { functions: BTreeSet::new(), has_ring: true } };
    let names = btf.type_by_kind::<Func<'_>>().filter_map(|function| function.name()?.to_str().map(str::to_owned));
    let maps = btf.type_by_name::<Enum<'_>>("bpf_map_type");
    Told {
        functions: names.filter(|name| wanted(name)).collect(),
        has_ring: maps.is_none_or(|maps| maps.iter().any(|map| map.name == Some(OsStr::new("BPF_MAP_TYPE_RINGBUF")))),
    }
}
