//! A kernel that does not describe its own types, as far as mqspan can see: they are in a file, whole or reduced to what
//! mqspan's programs need, which is named or where such files usually are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;
use support::program::{Ended, Mqspan, finish};

use super::{Run, check, kinds, parity};
use crate::MQSPAN;

const OWN: &str = "/sys/kernel/btf/vmlinux";
/// What the programs of kernels without types need of them is so little, in bytes.
const REDUCED: u64 = 64 << 10;

/// Takes the kernel's own description out of the sight of this thread, and of what it starts from now on.
fn hide_types() -> Result<()> {
    const EMPTY: &str = "/tmp/empty";
    fs::create_dir_all(EMPTY)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let folder = Path::new(OWN).parent().context("no folder")?;
    Ok(mount(Some(EMPTY), folder, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Reduces the kernel's types as docs/no-btf.md says, for the objects that mqspan was built with.
fn reduce(mqspan: &Mqspan, whole: &Path) -> Result<PathBuf> {
    let objects = [
        ("plain.bpf.o", &include_bytes!(concat!(env!("OUT_DIR"), "/plain/mqspan.bpf.o"))[..]),
        ("old.bpf.o", &include_bytes!(concat!(env!("OUT_DIR"), "/old/mqspan.bpf.o"))[..]),
    ];
    let reduced = mqspan.file("reduced");
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["gen", "min_core_btf"]).args([whole, &reduced]);
    for (name, object) in objects {
        fs::write(mqspan.file(name), object)?;
        bpftool.arg(mqspan.file(name));
    }
    let output = finish(bpftool)?;
    ensure!(output.status.success(), "{output:?}");
    let size = fs::metadata(&reduced)?.len();
    println!("reduced from {} to {size} bytes", fs::metadata(whole)?.len());
    ensure!(size < REDUCED, "{size} bytes");
    Ok(reduced)
}

/// What `check` says with these options, and whether `run` would work.
fn said(options: &[&str]) -> Result<(bool, Value)> {
    let ended = Ended::of(Mqspan::new(MQSPAN)?.output([&["check", "--format=json"], options].concat())?);
    Ok((ended.status.success(), serde_json::from_slice(&ended.stdout)?))
}

/// Prevents a kernel without its own types from being traced worse than it must be, or otherwise: calls are told the same by
/// kprobes and tracepoints, whichever file the types are from; and the user is told what is missing.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn types_from_a_file() -> Result<()> {
    let kinds: Vec<&str> = kinds().filter(|kind| !["fsession", "fentry"].contains(kind)).collect();
    let steps = |kind, btf: Option<&Path>| {
        let btf = btf.map(|path| format!("--btf={}", path.display()));
        let options: Vec<&str> = ["--signals=traces"].into_iter().chain(btf.as_deref()).collect();
        let run = Run::new(kind)?.of_workload(&options, &["steps"])?;
        parity::steps(&run.all_spans()?)
    };
    let own = kinds.iter().map(|kind| steps(kind, None)).collect::<Result<Vec<_>>>()?;
    let folder = Mqspan::new(MQSPAN)?;
    let whole = folder.file("whole");
    fs::copy(OWN, &whole)?;
    let reduced = reduce(&folder, &whole)?;
    hide_types()?;

    let (works, without) = said(&[])?;
    ensure!(!works && without["missing"][0]["mend"].as_str().is_some_and(|mend| mend.contains("--btf")), "{without}");
    for file in [&whole, &reduced] {
        let file_name = file.display().to_string();
        let (works, with) = said(&[&format!("--btf={file_name}")])?;
        ensure!(
            works && with["btf"] == false && with["types_file"] == file_name && with["call_state"] == "table",
            "{with}"
        );
        ensure!(with["hooks"] == kinds[0] && with["left_out"].as_array().is_some_and(Vec::is_empty), "{with}");
        let notes = with["notes"].as_array().context("no notes")?;
        ensure!(
            notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains("looked up in /proc"))),
            "{with}"
        );
        for (kind, own) in kinds.iter().zip(&own) {
            parity::same(&format!("by {kind}, {file_name}"), own, &steps(kind, Some(file))?)?;
        }
    }
    let run = Run::new("fentry")?;
    let fentry = Ended::of(finish(run.command(&[&format!("--btf={}", reduced.display()), "--", "true"]))?);
    ensure!(fentry.status.code() == Some(1), "{fentry:?}");
    fentry.said("which fentry needs")?;

    let usual = format!("/boot/vmlinux-{}", check::release()?);
    fs::create_dir_all("/boot")?;
    fs::copy(&reduced, &usual)?;
    let (works, found) = said(&[])?;
    ensure!(works && found["types_file"] == usual, "{found}");
    Ok(fs::remove_file(usual)?)
}
