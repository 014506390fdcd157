//! Compiles bpf/mqspan.bpf.c and live.bpf.c and writes their Rust skeletons into `OUT_DIR`; touches nothing else.

use std::{env, ffi::OsStr, path::PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    for object in ["mqspan", "live"] {
        SkeletonBuilder::new()
            .source(format!("bpf/{object}.bpf.c"))
            .clang_args(["-I", "bpf", "-Wall", "-Werror", "-mcpu=v3"].map(OsStr::new))
            .build_and_generate(folder.join(format!("{object}.skel.rs")))?;
    }
    println!("cargo::rerun-if-changed=bpf");
    Ok(())
}
