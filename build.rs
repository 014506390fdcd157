//! Compiles bpf/mqspan.bpf.c and writes its Rust skeleton into `OUT_DIR`; touches nothing else.

use std::{env, ffi::OsStr, path::PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let skeleton = PathBuf::from(env::var("OUT_DIR")?).join("mqspan.skel.rs");
    SkeletonBuilder::new()
        .source("bpf/mqspan.bpf.c")
        .clang_args(["-I", "bpf", "-Wall", "-Werror", "-mcpu=v3"].map(OsStr::new))
        .build_and_generate(&skeleton)?;
    println!("cargo::rerun-if-changed=bpf");
    Ok(())
}
