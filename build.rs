//! Compiles bpf/mqspan.bpf.c and live.bpf.c and writes their Rust skeletons into `OUT_DIR`, and says what `mqspan --version`
//! says beside the version; touches nothing else.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    // The objects name their sources: from here on, so that they are the same wherever they are built.
    let prefix = format!("-ffile-prefix-map={}/=", env::current_dir()?.display());
    for object in ["mqspan", "live"] {
        SkeletonBuilder::new()
            .source(format!("bpf/{object}.bpf.c"))
            .clang_args(["-I", "bpf", "-Wall", "-Werror", "-mcpu=v3", &prefix])
            .build_and_generate(folder.join(format!("{object}.skel.rs")))?;
    }
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rustc-env=MQSPAN_COMMIT={}", commit());
    println!("cargo::rustc-env=MQSPAN_TARGET={}", env::var("TARGET")?);
    let features = env::var("CARGO_CFG_FEATURE").unwrap_or_default();
    println!("cargo::rustc-env=MQSPAN_FEATURES={}", if features.is_empty() { "none" } else { &features });
    Ok(())
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
