//! A program that is told by its stdin when to go on.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::wait;

/// The program. Dropped, it sees the end of its stdin.
pub struct Fed {
    child: Child,
    stdin: ChildStdin,
}

impl Fed {
    /// Starts it; returns once it has said this.
    pub fn start(mut command: Command, said: &str) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, mut line) = (child.stdin.take().context("no stdin")?, String::new());
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let this = Self { child, stdin };
        ensure!(line.starts_with(said), "it said {line:?}");
        Ok(this)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it go on: one line.
    pub fn go_on(&mut self) -> Result<()> {
        Ok(self.stdin.write_all(b"x\n")?)
    }

    /// Ends its stdin, and waits for its end.
    pub fn end(self) -> Result<()> {
        let Self { mut child, stdin } = self;
        drop(stdin);
        wait::until("its end", || Ok(child.try_wait()?)).map(drop)
    }
}
