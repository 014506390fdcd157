//! What the kernel says of itself by its BTF: which functions it has. Attaches nothing.

use std::collections::BTreeSet;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;

/// Those of the kernel's functions that are `wanted`; none where it has no BTF. Functions that were inlined are not
/// among them.
pub fn functions(wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let Ok(btf) = Btf::from_vmlinux() else { return BTreeSet::new() };
    let names = btf.type_by_kind::<Func<'_>>().filter_map(|function| function.name()?.to_str().map(str::to_owned));
    names.filter(|name| wanted(name)).collect()
}
