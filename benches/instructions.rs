//! What a traced call costs its caller on other kernels, in instructions: a machine under qemu has one CPU whose clock counts
//! them, so that the figures are the same whatever else the host does. The least of many short pieces is taken, in which
//! nothing but the calls ran.
//!
//! `make bench` has it boot the kernels and print a table. `compare` (`make test-kernels`) boots the first and fails where a
//! call costs more than benches/instructions.tsv allows; `record` writes that file: a change that costs more says so in it.
//! `guest` is what it does in there.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use libbpf_rs::query::ProgInfoIter;
use support::{program::Mqspan, sessions, wait, workload};

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

/// What the counts may be, by kernel, hooks, way and call, a line each.
const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.tsv");
/// Another build of the same kernel, or of the compiler, may differ by so much.
const SLACK: f64 = 1.03;

type Counts = BTreeMap<[String; 4], f64>;

fn main() -> Result<()> {
    match env::args().nth(1).as_deref() {
        Some("guest") => count(),
        Some("compare") => compare(&counts(&KERNELS[..1])?),
        Some("record") => record(&counts(&KERNELS[..1])?),
        _ => counts(&KERNELS).map(|_| ()),
    }
}

/// Boots the kernels, and shows what is counted there.
fn counts(kernels: &[&str]) -> Result<Counts> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel.sh");
    let mut counts = Counts::new();
    for kernel in kernels {
        println!("\nLinux {kernel}, instructions");
        let programs = [env::current_exe()?, PathBuf::from(MQSPAN), Path::new(MQSPAN).with_file_name("workload")];
        let mut machine =
            Command::new(&script).args(["count", kernel]).args(programs).stdout(Stdio::piped()).spawn()?;
        for line in BufReader::new(machine.stdout.take().context("no stdout")?).lines() {
            let line = line?;
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["COUNT", kind, way, call, count] => {
                    counts.insert([*kernel, kind, way, call].map(String::from), count.parse()?);
                }
                _ => println!("{line}"),
            }
        }
        let status = machine.wait()?;
        ensure!(status.success(), "Linux {kernel}: {status}");
    }
    Ok(counts)
}

fn record(counts: &Counts) -> Result<()> {
    let lines = counts.iter().map(|(of, count)| format!("{}\t{count:.0}\n", of.join("\t")));
    Ok(fs::write(BUDGET, lines.collect::<String>())?)
}

fn compare(counts: &Counts) -> Result<()> {
    let mut over = Vec::new();
    for line in fs::read_to_string(BUDGET)?.lines() {
        let [kernel, kind, way, call, most] = line.split('\t').collect::<Vec<_>>()[..] else { continue };
        let count =
            counts.get(&[kernel, kind, way, call].map(String::from)).with_context(|| format!("not counted: {line}"))?;
        if *count > most.parse::<f64>()? * SLACK {
            over.push(format!("{line}, now {count:.0}"));
        }
    }
    ensure!(
        over.is_empty(),
        "a call costs more than benches/instructions.tsv allows; where it must, `record` says so: {over:#?}"
    );
    println!("none costs more than benches/instructions.tsv allows");
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
        for kind in sessions::are_there().then_some("fsession").into_iter().chain(KINDS) {
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
                println!("COUNT\t{kind}\t{way}\t{what}\t{count:.0}");
            }
        }
    }
    Ok(())
}
