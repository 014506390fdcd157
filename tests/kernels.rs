//! mqspan on other kernels, under qemu: `make test-kernels` runs it, `cargo test` does not. Each test here boots a kernel,
//! in which this same program runs the tests of [`guest`].

#[path = "kernels/guest/mod.rs"]
mod guest;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

const MQSPAN: &str = env!("CARGO_BIN_EXE_mqspan");

/// Boots a kernel of this series with this on its command line, and runs the guest's tests.
fn passes_on(series: &str, boot_line: &str) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel.sh");
    let programs = [env::current_exe()?, PathBuf::from(MQSPAN), Path::new(MQSPAN).with_file_name("workload")];
    let status = Command::new(script).args(["run", series, boot_line]).args(programs).status()?;
    ensure!(status.success(), "Linux {series} {boot_line}: {status}");
    Ok(())
}

/// Prevents the oldest kernel that is supported from being a claim.
#[test]
fn linux_6_1() -> Result<()> {
    passes_on("6.1", "")
}

/// Prevents calls from being hidden by threads that are preempted in the kernel.
#[test]
fn linux_6_1_preempted() -> Result<()> {
    passes_on("6.1", "preempt=full")
}

/// Prevents a new kernel from breaking what works on old ones; its threads are preempted lazily.
#[test]
fn linux_7_3() -> Result<()> {
    passes_on("7.3", "")
}

/// The same, preempted at once.
#[test]
fn linux_7_3_preempted() -> Result<()> {
    passes_on("7.3", "preempt=full")
}
