//! Compiles bpf/mqspan.bpf.c, in three variants, and live.bpf.c, and writes their Rust skeletons into `OUT_DIR`; compresses the
//! script of the report's page; says what `mqspan --version` says beside the version. Touches nothing else.

use std::error::Error;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use libbpf_cargo::SkeletonBuilder;

/// The variants of mqspan.bpf.c, and what is asked of the compiler for each: bpf/kernel.h says what they are for. Code for
/// `v2` has no atomic operation that the oldest kernels would refuse.
const VARIANTS: [(&str, &[&str]); 3] =
    [("full", &["-mcpu=v3"]), ("plain", &["-mcpu=v3", "-DPLAIN"]), ("old", &["-mcpu=v2", "-DPLAIN", "-DOLD"])];

/// What the generated skeleton has, a line each, and what it is to have: which variant is opened is the caller's choice, and
/// none is in the skeleton, where it would take ten times the room.
const CHOICE: [(&str, &str); 5] = [
    ("fn build_skel_config()", "fn build_skel_config(object: &'static [u8])"),
    ("ObjectSkeletonConfigBuilder::new(&DATA)", "ObjectSkeletonConfigBuilder::new(object)"),
    ("= build_skel_config()?", "= build_skel_config(self.object)?"),
    (
        "pub obj_builder: libbpf_rs::ObjectBuilder,",
        "pub obj_builder: libbpf_rs::ObjectBuilder,\n        pub object: &'static [u8],",
    ),
    ("#[unsafe(link_section = \".bpf.objs\")]", "#[cfg(any())]"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    compile("live", &folder.join("live.bpf.o"), &["-mcpu=v3"])?;
    let (mut skeletons, mut objects) = (Vec::new(), Vec::new());
    for (variant, arguments) in VARIANTS {
        let of_variant = folder.join(variant);
        fs::create_dir_all(&of_variant)?;
        let object = of_variant.join("mqspan.bpf.o");
        skeletons.push(compile("mqspan", &object, arguments)?);
        objects.push((of_variant.join("mqspan.bpf.o.zst"), fs::read(&object)?));
    }
    // The others differ from the first in little: it is the dictionary that they are compressed with.
    for (number, (path, object)) in objects.iter().enumerate() {
        let dictionary = if number == 0 { &[][..] } else { &objects[0].1 };
        fs::write(path, compressed(object, dictionary)?)?;
    }
    if skeletons.iter().any(|skeleton| shape(skeleton) != shape(&skeletons[0])) {
        return Err("the variants of bpf/mqspan.bpf.c differ in more than their code".into());
    }
    let mut skeleton = skeletons.swap_remove(0);
    for (generated, wanted) in CHOICE {
        if skeleton.matches(generated).count() != 1 {
            return Err(format!("libbpf-cargo generates another skeleton than expected: not once {generated}").into());
        }
        skeleton = skeleton.replace(generated, wanted);
    }
    fs::write(folder.join("mqspan.skel.rs"), skeleton)?;
    let script = fs::read("templates/uplot/uPlot.iife.min.js")?.into_iter().chain(fs::read("templates/report.js")?);
    fs::write(folder.join("report.js.zst"), compressed(&script.collect::<Vec<_>>(), &[])?)?;
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-changed=templates");
    println!("cargo::rustc-env=MQSPAN_COMMIT={}", commit());
    println!("cargo::rustc-env=MQSPAN_TARGET={}", env::var("TARGET")?);
    let features = env::var("CARGO_CFG_FEATURE").unwrap_or_default();
    println!("cargo::rustc-env=MQSPAN_FEATURES={}", if features.is_empty() { "none" } else { &features });
    Ok(())
}

/// Far enough back for a whole dictionary, as a power of two, and less than unpacking asks to be allowed for.
const WINDOW: u32 = 23;

fn compressed(bytes: &[u8], dictionary: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::with_dictionary(Vec::new(), 19, dictionary)?;
    encoder.window_log(WINDOW)?;
    encoder.long_distance_matching(true)?;
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// What must be the same for one skeleton to serve several objects: their variables, place by place, and which maps and
/// programs there are, in whatever order.
fn shape(skeleton: &str) -> Vec<&str> {
    let mut is_variable = false;
    let (variables, mut others): (Vec<&str>, Vec<&str>) = skeleton
        .lines()
        .map(str::trim)
        .filter(|line| {
            is_variable = ["pub struct rodata {", "pub struct bss {"].contains(line) || is_variable && *line != "}";
            is_variable || [".map(", ".prog("].iter().any(|call| line.starts_with(call))
        })
        .partition(|line| !line.starts_with('.'));
    others.sort_unstable();
    [variables, others].concat()
}

/// Compiles `bpf/NAME.bpf.c`; returns its skeleton, which is also written beside the object.
fn compile(name: &str, object: &Path, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let skeleton = object.with_file_name(format!("{name}.skel.rs"));
    // The objects name their sources: from here on, so that they are the same wherever they are built.
    let prefix = format!("-ffile-prefix-map={}/=", env::current_dir()?.display());
    SkeletonBuilder::new()
        .source(format!("bpf/{name}.bpf.c"))
        .obj(object)
        .reference_obj(true)
        .clang_args(["-I", "bpf", "-Wall", "-Werror", &prefix].iter().chain(arguments).map(OsStr::new))
        .build_and_generate(&skeleton)?;
    Ok(fs::read_to_string(skeleton)?)
}

/// What is built: as `MQSPAN_COMMIT` says, else git, where this is a checkout. `-modified` is as of the last commit or change of
/// branch: what is changed after it is not looked for, since each look would mean to build all anew.
fn commit() -> String {
    println!("cargo::rerun-if-env-changed=MQSPAN_COMMIT");
    if let Ok(commit) = env::var("MQSPAN_COMMIT") {
        return commit;
    }
    // Not of a repository that this folder, unpacked from an archive, happens to lie in; nor for the tests, which each commit would
    // have built anew.
    if !Path::new(".git").exists() || env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return "unknown".into();
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-modified"])
        .unwrap_or_else(|| "unknown".into())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
