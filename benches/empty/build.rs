//! Compiles src/empty.bpf.c into `OUT_DIR`.

use std::{env, path::PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let object = PathBuf::from(env::var("OUT_DIR")?).join("empty.bpf.o");
    SkeletonBuilder::new().source("src/empty.bpf.c").obj(object).build()?;
    println!("cargo::rerun-if-changed=src/empty.bpf.c");
    Ok(())
}
