//! The layout that docs/design.md shows, held against the sources: imports point downwards only, files import each other in no
//! circle, and a type's name stands for one thing.

#![allow(clippy::unwrap_used, reason = "what these helpers can't do fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// The folders and files of src, from the bottom up: each imports only those before it.
const LAYERS: [&str; 22] = [
    "model",
    "capability",
    "clock",
    "names",
    "progress",
    "kernel",
    "links",
    "who",
    "live",
    "telemetry",
    "metrics",
    "overview",
    "export",
    "cli",
    "config",
    "health",
    "internal",
    "check",
    "report",
    "top",
    "run",
    "main",
];

/// A module's path, as in `kernel::ring`.
type Module = Vec<String>;

struct Source {
    module: Module,
    /// The paths from the crate's root that it names.
    imports: BTreeSet<Module>,
    types: Vec<String>,
}

struct Collect<'a> {
    module: &'a [String],
    imports: BTreeSet<Module>,
    types: Vec<String>,
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|ident| ident == "test")
    })
}

impl Collect<'_> {
    /// A path as it is written, from the crate's root; None for one of another crate.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let ups = path.iter().take_while(|segment| *segment == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([self.module, &path[1..]].concat()),
            "super" => Some([&self.module[..self.module.len().saturating_sub(ups)], &path[ups..]].concat()),
            _ => None,
        }
    }

    fn tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.imports.extend(self.absolute(&with(&name.ident))),
            syn::UseTree::Rename(name) => self.imports.extend(self.absolute(&with(&name.ident))),
            syn::UseTree::Glob(_) => self.imports.extend(self.absolute(before)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Collect<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (attributes, name) = match item {
            syn::Item::Mod(item) => (&item.attrs, None),
            syn::Item::Fn(item) => (&item.attrs, None),
            syn::Item::Impl(item) => (&item.attrs, None),
            syn::Item::Use(item) => (&item.attrs, None),
            syn::Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Type(item) => (&item.attrs, Some(&item.ident)),
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            self.types.extend(name.map(ToString::to_string));
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.imports.extend(self.absolute(&segments));
        }
        visit::visit_path(self, path);
    }
}

/// `tests.rs`, `x_tests.rs`, and what is in a folder `tests`: compiled for tests only.
fn is_of_tests(path: &Path) -> bool {
    let is_tests = |name: &str| name == "tests" || name.ends_with("_tests") || name == "examples";
    path.with_extension("").iter().any(|part| part.to_str().is_some_and(is_tests))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !is_of_tests(&path) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
    let read = |path: PathBuf| {
        let place = path.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Module = place.iter().map(|part| part.to_str().unwrap().into()).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut collect = Collect { module: &module, imports: BTreeSet::new(), types: Vec::new() };
        collect.visit_file(&file);
        let Collect { imports, types, .. } = collect;
        Source { module, imports, types }
    };
    found.into_iter().map(read).collect()
}

/// By file, the files that it imports.
fn arrows(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeSet<&Module> = sources.iter().map(|source| &source.module).collect();
    let file_of = |path: &Module| {
        let mut path = path.clone();
        while !modules.contains(&path) {
            path.pop()?;
        }
        Some(path.join("::"))
    };
    let arrow = |source: &Source| {
        let from = source.module.join("::");
        let to = source.imports.iter().filter_map(&file_of).filter(|to| *to != from && !to.is_empty()).collect();
        (from, to)
    };
    sources.iter().map(arrow).collect()
}

/// Prevents a lower stage from coming to depend on a higher one, by which no part could be understood or tested alone.
#[test]
fn imports_point_downwards() {
    let layer = |file: &str| {
        let name = file.split("::").next().unwrap();
        LAYERS.iter().position(|layer| *layer == name).unwrap_or_else(|| panic!("{file} is in no layer"))
    };
    let mut upwards = Vec::new();
    for (from, to) in arrows(&sources()).into_iter().filter(|(from, _)| !from.is_empty()) {
        upwards.extend(to.iter().filter(|to| layer(to) > layer(&from)).map(|to| format!("{from} imports {to}")));
    }
    assert!(upwards.is_empty(), "{upwards:#?}");
}

/// Prevents files from importing each other in a circle: they would be one file in two places.
#[test]
fn no_circle_of_files() {
    let arrows = arrows(&sources());
    let reaches = |from: &String| {
        let (mut reached, mut next) = (BTreeSet::new(), arrows[from].iter().collect::<Vec<_>>());
        while let Some(file) = next.pop() {
            if reached.insert(file) {
                next.extend(&arrows[file]);
            }
        }
        reached
    };
    let circles: Vec<String> = arrows
        .iter()
        .flat_map(|(from, to)| to.iter().map(move |to| (from, to)))
        .filter(|(from, to)| reaches(to).contains(from))
        .map(|(from, to)| format!("{from} imports {to}"))
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

/// Prevents one name from standing for two things, which a reader would mix up.
#[test]
fn a_type_name_stands_for_one_thing() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Source { module, types, .. } in sources() {
        for name in types {
            places.entry(name).or_default().push(module.join("::"));
        }
    }
    places.retain(|_, places| places.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

/// Prevents libbpf and the command line from being used where they do not belong.
#[test]
fn one_user_of_libbpf() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
    let uses = |word: &str, folders: &[&str]| {
        let is_elsewhere = |path: &&PathBuf| !folders.iter().any(|folder| path.starts_with(root.join(folder)));
        let mut names: Vec<String> = Vec::new();
        for path in found.iter().filter(is_elsewhere) {
            if fs::read_to_string(path).unwrap().contains(word) {
                names.push(path.display().to_string());
            }
        }
        names
    };
    assert_eq!(uses("libbpf_rs::", &["kernel"]), [""; 0]);
    // The file's keys are the options, read by the same definition.
    assert_eq!(uses("use clap", &["cli", "config"]), [""; 0]);
}
