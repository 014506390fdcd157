//! Makes the pictures of the documents, of the real program in a real terminal: `make pictures`. Needs root and tracefs.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{
    picture,
    program::{Mqspan, without_otel},
    pty::{self, Pty},
    wait,
};

/// The process of this name below a process.
fn child(of: u32, name: &str) -> Result<Pid> {
    let children = format!("/proc/{of}/task/{of}/children");
    let pids = wait::until(name, || {
        let pids = fs::read_to_string(&children)?;
        let is_it = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        Ok(pids.split_whitespace().find(is_it).map(str::to_owned))
    })?;
    Ok(Pid::from_raw(pids.parse()?))
}

/// `top` of the shop of the README whose biller hangs: what is full, who waits, what fails.
#[test]
fn top() -> Result<()> {
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let arguments = ["top", "--queue=/orders", "--queue=/shipments", "--queue=/audit"];
    let mut pty = Pty::start(pty::command(mqspan.path(), arguments), 110, 12)?;
    pty.until("the view", |screen| screen.contains("mqspan top"))?;
    let mut command = Command::new(mqspan.path().with_file_name("orders"));
    command.args(["--rounds=100000", "--pause=10"]).stdin(Stdio::null());
    without_otel(&mut command);
    let mut shop = command.spawn().context("cargo build --workspace first")?;
    let done = (|| {
        pty.until("calls", |screen| screen.contains("/audit") && screen.contains("/shipments"))?;
        let biller = child(shop.id(), "biller")?;
        kill(biller, Signal::SIGSTOP)?;
        let screen = pty.until("a full queue", |screen| screen.contains("10/10") && screen.contains("1s"))?;
        println!("{screen}");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
        fs::write(folder.join("top.svg"), pty.picture(picture::svg))?;
        kill(biller, Signal::SIGKILL)?;
        kill(child(shop.id(), "shipper")?, Signal::SIGKILL)?;
        pty.press("q")?;
        pty.end_well()
    })();
    shop.kill()?;
    shop.wait()?;
    done
}
