//! The documents held against what there is: links lead somewhere, tests that they name exist, no page is left out of the index.

#![allow(clippy::unwrap_used, reason = "what these helpers can't do fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of docs/, and those beside it.
fn pages() -> Vec<PathBuf> {
    let of = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    of(root().into())
        .chain(of(root().join("docs")))
        .filter(|path| path.extension().is_some_and(|ext| ext == "md"))
        .collect()
}

/// What stands behind each `before`, up to one of the `ends`.
fn after<'a>(text: &'a str, before: &'a str, ends: &'a [char]) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(ends).next())
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Prevents a page from sending its reader to where nothing is.
#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in after(&text, "](", &[')']).filter(|link| !link.contains("://") && !link.is_empty()) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !fragment.is_empty() {
                let of = fs::read_to_string(&target).unwrap();
                let has = of.lines().filter(|line| line.starts_with('#')).any(|line| {
                    let heading = line.trim_start_matches('#');
                    anchor(heading) == fragment
                });
                assert!(has, "{}: no heading for {link}", page.display());
            }
        }
    }
}

/// Prevents a page from claiming what no test shows: each that is named as `FILE::TEST` exists.
#[test]
fn tests_that_are_named_exist() {
    let mut named = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for token in text.split('`').skip(1).step_by(2) {
            let Some((file, test)) = token.split_once(".rs::") else { continue };
            let Ok(source) = fs::read_to_string(root().join(format!("{file}.rs"))) else {
                // Examples of the form, as in "`FILE::TEST`", have no path.
                panic!("{}: {token}: no such file", page.display());
            };
            assert!(source.contains(&format!("fn {test}(")), "{}: {token}: no such test", page.display());
            named += 1;
        }
    }
    assert!(named > 0);
}

/// Prevents a page that nobody finds.
#[test]
fn every_page_is_in_the_index() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for page in fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap()) {
        let name = page.file_name().into_string().unwrap();
        assert!(!name.ends_with(".md") || name == "README.md" || index.contains(&format!("]({name})")), "{name}");
    }
}
