//! A backend as a process of its own, while a test needs it.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait;

/// A server that runs. Dropped, it is killed.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a command, what it says goes to `log`; returns when `is_ready` says so.
    pub fn start(mut command: Command, log: PathBuf, is_ready: impl Fn() -> bool) -> Result<Self> {
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut this = Self { child, log };
        wait::until_every(Duration::from_millis(50), &format!("{command:?}"), || {
            let ended = this.child.try_wait()?;
            ensure!(ended.is_none(), "{command:?} ended: {}", this.said()?);
            Ok(is_ready().then_some(()))
        })
        .with_context(|| format!("it said {:?}", this.said()))?;
        Ok(this)
    }

    /// What it said so far.
    pub fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Ends it as a service manager does; all that it said.
    pub fn stop(mut self) -> Result<String> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        wait::until("the end of a backend", || Ok(self.child.try_wait()?))?;
        self.said()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The path that a variable has, as the Makefile sets it by scripts/backends.sh.
pub fn program(variable: &str) -> Result<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .with_context(|| format!("{variable} is not set: make sets it to what scripts/backends.sh prints"))
}
