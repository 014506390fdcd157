//! What a traced call costs its caller on other kernels, in instructions: a machine under qemu has one CPU whose clock counts
//! them, so that the figures are the same whatever else the host does. `make instructions` runs it; the least of many short
//! pieces is taken, in which nothing but the calls ran.
//!
//! Without arguments it boots the kernels and prints a table; `guest` is what it does there.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use libbpf_rs::query::ProgInfoIter;
use support::{program::Mqspan, wait, workload};

const MQSPAN: &str = env!("CARGO_BIN_EXE_mqspan");
const KERNELS: [&str; 2] = ["6.12", "7.3"];
const KINDS: [&str; 3] = ["fentry", "kprobe", "tracepoint"];
/// Calls in a piece, and pieces: together less than the ring holds.
const PIECES: [&str; 4] = ["--calls", "32", "--pieces", "200"];
const CALLED: u64 = 32 * 200;
/// What is timed: name, the workload that does it, how many calls of one make up one of what is named.
const CALLS: [(&str, &str, f64); 2] = [("mq_open", "flat", 1.0), ("send + receive", "pass", 2.0)];
/// Every call as a span; as a span and in the metrics; in the metrics alone.
const WAYS: [(&str, &[&str]); 3] = [
    ("spans", &["--signals=traces", "--max-rate=0"]),
    ("spans and metrics", &["--max-rate=0"]),
    ("metrics", &["--signals=metrics"]),
];

fn main() -> Result<()> {
    match env::args().nth(1).as_deref() {
        Some("guest") => count(),
        _ => kernels(),
    }
}

fn kernels() -> Result<()> {
    let named = env::var("MQSPAN_BENCH_KERNELS").unwrap_or(KERNELS.join(" "));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel.sh");
    for kernel in named.split_whitespace() {
        println!("\nLinux {kernel}, instructions");
        let programs = [env::current_exe()?, PathBuf::from(MQSPAN), Path::new(MQSPAN).with_file_name("workload")];
        let status = Command::new(&script).args(["count", kernel]).args(programs).status()?;
        ensure!(status.success(), "Linux {kernel}: {status}");
    }
    Ok(())
}

/// Prints a line for each kind of hooks, way and call, with its ratio to that of nothing and of empty programs.
fn count() -> Result<()> {
    let mqspan = Mqspan::new(MQSPAN)?;
    // The kernel takes its time to detach: a function that still has two users takes another way to both.
    let detached =
        || wait::until("the end of what was attached", || Ok(ProgInfoIter::default().next().is_none().then_some(())));
    let least = |workload: &str, times: f64| -> Result<f64> {
        let printed = workload::run(&mqspan.workload(), &[&[workload], &PIECES[..]].concat())?;
        Ok(printed.trim().parse::<f64>()? * times)
    };
    println!("{:10} {:18} {:14} {:>8} {:>7} {:>7}", "hooks", "", "", "count", "nothing", "empty");
    for (what, workload, times) in CALLS {
        detached()?;
        let nothing = least(workload, times)?;
        println!("{:10} {:18} {what:14} {nothing:8.0}", "-", "nothing");
        for kind in KINDS {
            detached()?;
            let attached = empty::attach(kind)?;
            let empty = least(workload, times)?;
            drop(attached);
            println!("{kind:10} {:18} {what:14} {empty:8.0} {:7.2}", "empty programs", empty / nothing);
            for (way, options) in WAYS {
                detached()?;
                let tracing =
                    mqspan.trace_counted(&[&[&*format!("--hooks={kind}"), "--output=none"], options].concat())?;
                let count = least(workload, times)?;
                tracing.stop()?.ok()?;
                let stats = mqspan.stats()?;
                ensure!(stats.lost_sum() == 0 && stats.captured >= CALLED, "a lost call is a cheap one: {stats:?}");
                println!("{kind:10} {way:18} {what:14} {count:8.0} {:7.2} {:7.2}", count / nothing, count / empty);
            }
        }
    }
    Ok(())
}
