//! What mqspan adds to the lateness of a real-time thread, on a PREEMPT_RT kernel under qemu: a SCHED_FIFO thread sends a
//! message each millisecond, with nothing else, with mqspan at work, and while mqspan attaches and detaches all the time.
//!
//! Emulated, times are orders of magnitude: what runs in a second there is not what runs in one here. The rows are to be
//! compared with each other. `make bench` has it boot the kernel and print a table; `guest` is what it does in there.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Context, Result, ensure};
use support::{program::Mqspan, workload};

const MQSPAN: &str = env!("CARGO_BIN_EXE_mqspan");
const KERNEL: &str = "6.12-rt";
/// As a user would set it up: one CPU is the real-time thread's alone, the other one everybody else's.
const BOOT_LINE: &str = "isolcpus=1 rcu_nocbs=1 irqaffinity=0";
const PERIODIC: [&str; 5] = ["periodic", "--periods", "10000", "--cpu", "1"];

fn main() -> Result<()> {
    match env::args().nth(1).as_deref() {
        Some("guest") => measure(),
        _ => boot(),
    }
}

fn boot() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel.sh");
    let programs = [env::current_exe()?, PathBuf::from(MQSPAN), Path::new(MQSPAN).with_file_name("workload")];
    println!("\nLinux {KERNEL}, {BOOT_LINE}: us, of 10,000 periods\n");
    let status = Command::new(&script).args(["bench", KERNEL, BOOT_LINE]).args(programs).status()?;
    ensure!(status.success(), "Linux {KERNEL}: {status}");
    Ok(())
}

/// Prints two lines for each way.
fn measure() -> Result<()> {
    let mqspan = Mqspan::new(MQSPAN)?;
    println!("{:34} {:6} {:>8} {:>8} {:>8} {:>8}", "", "", "median", "99 %", "99.9 %", "most");
    let row = |way: &str| -> Result<()> {
        for line in workload::run(&mqspan.workload(), &PERIODIC)?.lines() {
            let (what, shares) = line.split_once('\t').context("no figures")?;
            let shares = shares.split('\t').map(|ns| Ok(ns.parse::<f64>()? / 1e3)).collect::<Result<Vec<_>>>()?;
            let shares = shares.iter().map(|us| format!(" {us:8.1}")).collect::<String>();
            println!("{way:34} {what:6}{shares}");
        }
        Ok(())
    };
    row("nothing")?;
    for kind in ["fentry", "kprobe", "tracepoint"] {
        let tracing = mqspan.trace_counted(&[&format!("--hooks={kind}"), "--output=none", "--max-rate=0"])?;
        row(&format!("at work, {kind}"))?;
        tracing.stop()?.ok()?;
        let stats = mqspan.stats()?;
        ensure!(stats.lost_sum() == 0 && stats.captured >= 20_000, "a lost call is a cheap one: {stats:?}");
    }
    for kind in ["fentry", "kprobe", "tracepoint"] {
        let (done, times) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| -> Result<()> {
            let attaching = scope.spawn(|| -> Result<()> {
                while !done.load(Relaxed) {
                    let mut command =
                        mqspan.command(["run", &format!("--hooks={kind}"), "--output=none", "--", "true"]);
                    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
                    ensure!(status.success(), "{kind}: {status}");
                    times.fetch_add(1, Relaxed);
                }
                Ok(())
            });
            let printed = row(&format!("attaching and detaching, {kind}"));
            done.store(true, Relaxed);
            attaching.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
            printed
        })?;
        println!("{:34} {} times", "", times.into_inner());
    }
    Ok(())
}
