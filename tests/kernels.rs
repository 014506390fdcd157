//! mqspan on other kernels, under qemu: `make test-kernels` runs it, `cargo test` does not. Each test here boots a kernel,
//! in which this same program runs the tests of [`guest`].

#[path = "kernels/guest/mod.rs"]
mod guest;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const MQSPAN: &str = env!("CARGO_BIN_EXE_mqspan");

/// Boots a kernel of this series with this on its command line, and runs the guest's tests.
fn passes_on(series: &str, boot_line: &str) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel.sh");
    let programs = [env::current_exe()?, PathBuf::from(MQSPAN), Path::new(MQSPAN).with_file_name("workload")];
    // What users reduce the kernel's types with.
    let bpftool = ["/usr/sbin/bpftool", "/usr/bin/bpftool"].map(Path::new).into_iter().find(|path| path.exists());
    let bpftool = bpftool.context("no bpftool: scripts/setup.sh kernels installs it")?;
    let status = Command::new(script).args(["run", series, boot_line]).args(programs).arg(bpftool).status()?;
    ensure!(status.success(), "Linux {series} {boot_line}: {status}");
    Ok(())
}

/// A test for each kernel: its series, and what is on its command line.
macro_rules! kernels {
    ($($(#[$why:meta])* $test:ident: $kernel:literal, $boot_line:literal;)*) => {
        $($(#[$why])* #[test] fn $test() -> Result<()> { passes_on($kernel, $boot_line) })*
    };
}

kernels! {
    /// Prevents the oldest kernel that is supported from being a claim.
    linux_5_10: "5.10", "";
    /// Prevents the kernel of a stable distribution from being left to others.
    linux_6_1: "6.1", "";
    /// Prevents calls from being hidden by threads that are preempted in the kernel.
    linux_6_1_preempted: "6.1", "preempt=full";
    /// Prevents a real-time kernel from being harmed, and from being told less: its task storage is not safe, and not used.
    linux_6_1_rt: "6.1-rt", "isolcpus=1";
    /// Prevents a kernel that is in wide use from being the one that nobody tried.
    linux_6_12: "6.12", "";
    /// The same, preempted at once.
    linux_6_12_preempted: "6.12", "preempt=full";
    /// Prevents a real-time kernel on which task storage is safe from being harmed, or told less.
    linux_6_12_rt: "6.12-rt", "";
    /// Prevents the kernel of `make test` from working there alone, with one kind of hooks.
    linux_6_18: "6.18", "";
    /// The same, preempted at once.
    linux_6_18_preempted: "6.18", "preempt=full";
    /// Prevents a kernel from breaking what works on those before and after it.
    linux_7_0: "7.0", "";
    /// The same, preempted at once.
    linux_7_0_preempted: "7.0", "preempt=full";
    /// Prevents a new kernel from breaking what works on old ones; its threads are preempted lazily.
    linux_7_3: "7.3", "";
    /// The same, preempted at once.
    linux_7_3_preempted: "7.3", "preempt=full";
    /// Prevents the newest real-time kernel from being harmed, or told less.
    linux_7_3_rt: "7.3-rt", "";
}
