//! A machine of its own to install packages on: a Debian that systemd starts, or a folder with one program.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use support::{
    program::{finish, without_otel},
    ready, wait,
};

/// A machine that runs. Dropped, it is gone with all that was written in it.
pub struct Machine {
    script: Child,
    /// Its first process, as the host numbers it.
    first: String,
}

impl Machine {
    /// Starts systemd in a copy of this root, and waits until it has started all of its units.
    pub fn boot(root: &Path, packages: &Path) -> Result<Self> {
        let this = Self::start(root, packages, &["/sbin/init"])?;
        let state = wait::until("the start of systemd", || {
            let asked = this.try_run(&["systemctl", "is-system-running", "--wait"])?;
            let state = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
            Ok((!["", "offline", "initializing", "starting"].contains(&state.as_str())).then_some(state))
        })?;
        // Of a machine without a kernel of its own some units fail, as the one that loads modules does on Debian 13.
        ensure!(["running", "degraded"].contains(&state.as_str()), "systemd is {state}");
        Ok(this)
    }

    /// Starts a program in a copy of this root.
    pub fn start(root: &Path, packages: &Path, program: &[&str]) -> Result<Self> {
        ["busybox", "nsenter", "pivot_root"].into_iter().try_for_each(ready::program)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packages/machine.sh");
        let mut command = Command::new(script);
        command.arg(root).arg(packages).args(program).stdin(Stdio::null()).stdout(Stdio::piped());
        without_otel(&mut command);
        let mut script = command.spawn()?;
        let stdout = script.stdout.take();
        let mut this = Self { script, first: String::new() };
        let mut parent = String::new();
        BufReader::new(stdout.context("no stdout")?).read_line(&mut parent)?;
        let parent = parent.trim();
        this.first = wait::until("the machine's first process", || {
            let ended = this.script.try_wait()?;
            ensure!(ended.is_none(), "the machine ended: {ended:?}");
            let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            Ok(children.split_whitespace().next().map(str::to_owned))
        })?;
        let program = program.first().context("no program")?;
        wait::until("the machine's root", || {
            let name = std::fs::read_to_string(format!("/proc/{}/cmdline", this.first))?;
            Ok(name.starts_with(program).then_some(()))
        })?;
        Ok(this)
    }

    /// A command in it, not started yet.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut enter =
            command_of(&["nsenter", "--target", &self.first, "--mount", "--uts", "--ipc", "--pid", "--cgroup"]);
        enter.args(["--root", "--wd"]).args(command).env_clear();
        enter.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        enter.stdin(Stdio::null());
        enter
    }

    /// Runs a command in it.
    pub fn try_run(&self, command: &[&str]) -> Result<Output> {
        finish(self.command(command))
    }

    /// The same of a command that must succeed: what it printed.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let output = self.try_run(command)?;
        ensure!(output.status.success(), "{command:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A path in it, as the host sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The first process takes all others with it; the script then clears the control groups.
        let (signal, process) = match &*self.first {
            "" => ("-TERM", &self.script.id().to_string()),
            first => ("-KILL", &first.to_owned()),
        };
        let _ = Command::new("kill").args([signal, process]).status();
        let _ = self.script.wait();
    }
}

fn command_of(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}
