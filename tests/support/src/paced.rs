//! Messages at an even pace, for what looks at a host that is at work.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::program::{Mqspan, without_otel};

/// The workload while it passes messages at an even pace. Dropped, it is killed.
pub struct Paced {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Paced {
    /// So many a second, through a queue of this name that keeps five of ten; returns once it passes them.
    pub fn start(mqspan: &Mqspan, name: &str, rate: u32) -> Result<Self> {
        let mut command = Command::new(mqspan.workload());
        command.args(["paced", "--name", name, "--maxmsg=10", "--depth=5"]).arg(format!("--rate={rate}"));
        without_otel(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut this = Self { child, stdin, stdout };
        let line = this.line()?;
        ensure!(line == "paced", "{line:?}");
        Ok(this)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().into())
    }

    /// How many messages it has sent, or begun to send.
    pub fn sent(&mut self) -> Result<f64> {
        writeln!(self.stdin.as_mut().context("no stdin")?)?;
        Ok(self.line()?.parse()?)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has it remove its queue and end.
    pub fn end(mut self) -> Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        // Ended already in most cases, which try_wait has seen: its id is not another's yet.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
