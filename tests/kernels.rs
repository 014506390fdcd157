//! mqspan on other kernels, under qemu: `make test-kernels` runs it, `cargo test` does not. Each test here boots a kernel,
//! in which this same program runs the tests of [`guest`].

#[path = "kernels/guest/mod.rs"]
mod guest;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const MQSPAN: &str = env!("CARGO_BIN_EXE_mqspan");

/// Where scripts/static.sh builds: what it has built looks for the others there.
const BUILT_AT: &str = "/build/aarch64-unknown-linux-gnu/debug";
/// The kinds of hooks of kernels that have not all: on arm64 6.1 loads fentry's programs, and refuses to attach them.
const KINDS_OF: [(&str, &str); 1] = [("arm64/6.1", "kprobe tracepoint")];

/// What is to be in the machine, of this one's own architecture: this program first.
fn programs() -> Result<Vec<OsString>> {
    let programs = [env::current_exe()?, PathBuf::from(MQSPAN), Path::new(MQSPAN).with_file_name("workload")];
    // What users reduce the kernel's types with.
    let bpftool = ["/usr/sbin/bpftool", "/usr/bin/bpftool"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let bpftool = bpftool.context("no bpftool: scripts/setup.sh kernels installs it")?;
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("publishers");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/correlation/publishers.sh");
    let status = Command::new(script).arg(&built).arg("cc").status()?;
    ensure!(status.success(), "tests/correlation/publishers.sh: {status}");
    let there = Path::new(MQSPAN).parent().context("no folder")?;
    let own = programs.into_iter().chain([bpftool]).map(PathBuf::into_os_string);
    Ok(own.chain(publishers(&built, there)?).collect())
}

/// Programs that publish their spans, where the guest looks for them.
fn publishers(built: &Path, there: &Path) -> Result<Vec<OsString>> {
    let files = fs::read_dir(built)?.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
    let files = files.collect::<Result<Vec<_>>>()?;
    let publishers = files.iter().filter(|name| name.contains("publisher-"));
    Ok(publishers.map(|name| format!("{}/{name}:{}/{name}", built.display(), there.display()).into()).collect())
}

/// The same for arm64; scripts/kernel.sh has bpftool for it.
fn programs_for_arm64() -> Result<Vec<OsString>> {
    let built = env::var("MQSPAN_TEST_ARM64").context("MQSPAN_TEST_ARM64: make test-kernels has them built")?;
    let programs = ["kernels", "mqspan", "workload", "workload-compat"];
    let own = programs.map(|name| format!("{built}/{name}:{BUILT_AT}/{name}").into());
    Ok(own.into_iter().chain(publishers(Path::new(&built), Path::new(BUILT_AT))?).collect())
}

/// Boots a kernel with this on its command line, and runs the guest's tests.
fn passes_on(kernel: &str, boot_line: &str) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel.sh");
    let programs = if kernel.starts_with("arm64/") { programs_for_arm64()? } else { programs()? };
    let mut machine = Command::new(script);
    machine.args(["run", kernel, boot_line]).args(programs);
    if let (Some((_, kinds)), None) = (KINDS_OF.iter().find(|(of, _)| *of == kernel), env::var_os("MQSPAN_TEST_KINDS"))
    {
        machine.env("MQSPAN_TEST_KINDS", kinds);
    }
    let status = machine.status()?;
    ensure!(status.success(), "Linux {kernel} {boot_line}: {status}");
    Ok(())
}

/// A test for each kernel: its architecture and series, and what is on its command line.
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
    /// Prevents arm64 without trampolines, where functions are hooked by kprobes alone, from being a claim.
    arm64_6_1: "arm64/6.1", "";
    /// Prevents arm64 from being built and never run: its registers, its 32-bit callers, its thread pointer.
    arm64_6_12: "arm64/6.12", "";
    /// Prevents a real-time kernel of arm64 from being harmed, or told less.
    arm64_6_12_rt: "arm64/6.12-rt", "";
    /// Prevents a new kernel from breaking what works on old ones of arm64.
    arm64_7_3: "arm64/7.3", "";
}
