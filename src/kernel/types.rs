//! Where the kernel's types are described, to which the programs are fitted when they are loaded, and which functions the
//! kernel has. Attaches nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;

/// Where the kernel itself describes them (CONFIG_DEBUG_INFO_BTF).
const OWN: &str = "/sys/kernel/btf/vmlinux";
/// Where else libbpf looks (tools/lib/bpf/btf.c, btf__load_vmlinux_btf), around the kernel's release.
const USUAL: [(&str, &str); 7] = [
    ("/boot/vmlinux-", ""),
    ("/lib/modules/", "/vmlinux-"),
    ("/lib/modules/", "/build/vmlinux"),
    ("/usr/lib/modules/", "/kernel/vmlinux"),
    ("/usr/lib/debug/boot/vmlinux-", ""),
    ("/usr/lib/debug/boot/vmlinux-", ".debug"),
    ("/usr/lib/debug/lib/modules/", "/vmlinux"),
];

/// Where the kernel's types are described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelTypes {
    /// By the kernel itself: its verifier knows them, too.
    Kernel,
    /// In a file alone.
    File(PathBuf),
    /// Nowhere.
    Nowhere,
}

impl KernelTypes {
    /// By the kernel, else in the file that was asked for, else where such files usually are.
    pub fn find(asked: Option<&Path>, release: &str) -> Self {
        if Path::new(OWN).exists() {
            return Self::Kernel;
        }
        let usual = || usual(release).find(|path| path.exists());
        asked.map(PathBuf::from).or_else(usual).map_or(Self::Nowhere, Self::File)
    }

    /// The file, where they are in one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            _ => None,
        }
    }

    /// Those of the kernel's functions that are wanted; functions that were inlined are not among them. A file may be reduced
    /// to the types that are needed: then the kernel's own table of symbols says which there are.
    pub fn functions(&self, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let Some(btf) = Some(self).filter(|types| **types == Self::Kernel).and_then(|_| Btf::from_vmlinux().ok())
        else {
            return own_functions(&fs::read_to_string("/proc/kallsyms").unwrap_or_default(), wanted);
        };
        let names = btf.type_by_kind::<Func<'_>>().filter_map(|function| function.name()?.to_str().map(str::to_owned));
        names.filter(|name| wanted(name)).collect()
    }
}

fn usual(release: &str) -> impl Iterator<Item = PathBuf> {
    USUAL.into_iter().map(move |(before, after)| {
        let release_again = if after.ends_with('-') { release } else { "" };
        format!("{before}{release}{after}{release_again}").into()
    })
}

/// A line has address, type, name, and of a module's symbol the module.
fn own_functions(symbols: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        let (kind, name) = (words.nth(1)?, words.next()?);
        (["t", "T"].contains(&kind) && words.next().is_none() && wanted(name)).then(|| name.to_owned())
    };
    symbols.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a module's function, or a variable, from being taken for the kernel's function.
    #[test]
    fn the_kernels_own_functions() {
        let symbols = "0000000000000000 T free_msg\n0000000000000000 t store_msg\n0000000000000000 t load_msg\t[other]\n\
                       0000000000000000 D msg_insert\n0000000000000000 t load_msg.cold\n";
        let functions = own_functions(symbols, |name| name.contains("msg"));
        assert_eq!(Vec::from_iter(functions), ["free_msg", "load_msg.cold", "store_msg"]);
    }

    /// Prevents a file from being looked for where nobody puts it.
    #[test]
    fn usual_places() {
        let places: Vec<PathBuf> = usual("5.10.0").collect();
        let expected = [
            "/boot/vmlinux-5.10.0",
            "/lib/modules/5.10.0/vmlinux-5.10.0",
            "/lib/modules/5.10.0/build/vmlinux",
            "/usr/lib/modules/5.10.0/kernel/vmlinux",
            "/usr/lib/debug/boot/vmlinux-5.10.0",
            "/usr/lib/debug/boot/vmlinux-5.10.0.debug",
            "/usr/lib/debug/lib/modules/5.10.0/vmlinux",
        ];
        assert_eq!(places, expected.map(PathBuf::from));
    }
}
