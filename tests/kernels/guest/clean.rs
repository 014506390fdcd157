//! What must be true after each test: mqspan has harmed nothing and left nothing behind.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use libbpf_rs::query::ProgInfoIter;
use support::wait;

/// Words of the kernel's log that tell of harm.
const HARM: [&str; 6] = ["BUG", "WARNING", "Call Trace", "cut here", "blocked for more than", "stall"];

/// Prevents programs and probes from staying attached, and the kernel from being harmed: its log is read, and emptied for
/// the next time.
#[test]
#[ignore = "scripts/kernel.sh runs it after each other test"]
fn nothing_is_left() -> Result<()> {
    wait::until("the programs' end", || Ok(ProgInfoIter::default().next().is_none().then_some(())))?;
    let probes = || fs::read_to_string("/sys/kernel/tracing/kprobe_events");
    wait::until("the probes' end", || Ok(probes()?.is_empty().then_some(())))?;
    let log = String::from_utf8_lossy(&Command::new("dmesg").arg("-c").output()?.stdout).into_owned();
    let harm: Vec<&str> = log.lines().filter(|line| HARM.iter().any(|word| line.contains(word))).collect();
    ensure!(harm.is_empty(), "{log}");
    let taint = fs::read_to_string("/proc/sys/kernel/tainted")?;
    ensure!(taint.trim() == "0", "tainted: {taint}");
    Ok(())
}
