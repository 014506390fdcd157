//! mqspan run as a process, and what it said and how it ended. Its environment has none of this process's OTEL_ variables.

use std::{
    env,
    ffi::OsStr,
    fs::{self, Permissions},
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{ready, stats::Stats, wait};

/// mqspan's program, and a folder for what a test writes.
pub struct Mqspan {
    program: PathBuf,
    folder: TempDir,
}

impl Mqspan {
    /// `program` is the path that cargo gives to tests. Fails where the machine is not as the tests need it.
    pub fn new(program: &str) -> Result<Self> {
        ready::machine()?;
        let this = Self { program: program.into(), folder: tempfile::tempdir()? };
        // Other users run the workload too.
        fs::set_permissions(this.folder.path(), Permissions::from_mode(0o755))?;
        this.copy_of_workload("workload")?;
        Ok(this)
    }

    /// Another folder, with a workload of its own.
    pub fn another(&self) -> Result<Self> {
        Self::new(&self.program.display().to_string())
    }

    /// A copy of the workload's program in this test's folder, by this name.
    pub fn copy_of_workload(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        // Cargo puts it beside mqspan's.
        self.copy(&self.program.with_file_name("workload"), name.as_ref())
    }

    /// The workload's program that makes calls as this kind of caller: where a 64-bit process can't call as a 32-bit one
    /// does, one of 32 bits, which stands beside mqspan's, too.
    pub fn workload_of(&self, abi: &str) -> Result<PathBuf> {
        if abi == "native" || cfg!(target_arch = "x86_64") {
            return Ok(self.workload());
        }
        // Its threads are to have the same name.
        let name = Path::new(abi).join("workload");
        fs::create_dir_all(self.file(abi))?;
        self.copy(&self.program.with_file_name("workload-compat"), &name)
    }

    fn copy(&self, built: &Path, name: &Path) -> Result<PathBuf> {
        let copy = self.folder.path().join(name);
        // By another process: a child that this one forks meanwhile would hold the copy open for writing, and it could not
        // be run.
        let status = Command::new("cp").arg(built).arg(&copy).status()?;
        ensure!(status.success(), "{}: cargo build --workspace first", built.display());
        Ok(copy)
    }

    /// The program's path.
    pub fn path(&self) -> &Path {
        &self.program
    }

    /// A path in this test's folder, which is gone with the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The workload's program: this test's own copy, by whose path its calls are told from those of other tests.
    pub fn workload(&self) -> PathBuf {
        self.file("workload")
    }

    /// The workload's program as an argument.
    pub fn workload_arg(&self) -> String {
        self.workload().display().to_string()
    }

    /// The option that writes OTLP JSON to a file in this test's folder.
    pub fn to_file(&self, name: &str) -> String {
        let path = self.file(name);
        // mqspan appends, as one that is started again by systemd should.
        let _ = fs::remove_file(&path);
        format!("--output=file:{}", path.display())
    }

    /// mqspan with these arguments, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null());
        without_otel(&mut command);
        // Tests that a script runs beside it have SIGINT ignored, and no shell that mqspan starts could trap it.
        // SAFETY: signal() may be called between fork and exec, and has no handler here.
        unsafe {
            command.pre_exec(|| {
                nix::sys::signal::signal(Signal::SIGINT, nix::sys::signal::SigHandler::SigDfl)?;
                Ok(())
            });
        }
        command
    }

    /// Runs mqspan to its end.
    pub fn output<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        finish(self.command(args))
    }

    /// Starts `mqspan run` with these arguments; returns when it says that everything is attached.
    pub fn trace<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Tracing> {
        let mut command = self.command(["run"]);
        command.args(args);
        Tracing::start(command)
    }

    /// As [`Self::trace`], with the counters; the path is for [`Self::stats`].
    pub fn trace_counted(&self, args: &[&str]) -> Result<Tracing> {
        let stats = self.stats_option();
        self.trace([&*stats].iter().chain(args))
    }

    /// Runs `mqspan run` with these arguments and the counters to its end, which must be a success.
    pub fn run_counted(&self, args: &[&str]) -> Result<Ended> {
        let stats = self.stats_option();
        let mut command = self.command(["run", &stats]);
        command.args(args);
        Ended::of(finish(command)?).ok()
    }

    /// The same with another command to trace.
    pub fn run_counted_command(&self, args: &[&str], traced: &Command) -> Result<Ended> {
        let mut command = self.command(["run", &self.stats_option()]);
        command.args(args).arg("--").arg(traced.get_program()).args(traced.get_args());
        Ended::of(finish(command)?).ok()
    }

    fn stats_option(&self) -> String {
        format!("--stats-file={}", self.file("stats.json").display())
    }

    /// The counters that [`Self::trace_counted`] left; their balance is right.
    pub fn stats(&self) -> Result<Stats> {
        Stats::read(&self.file("stats.json"))
    }
}

/// Takes OpenTelemetry's variables out of the environment that the command inherits.
pub fn without_otel(command: &mut Command) {
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
}

/// Runs a command to its end, at most as long as anything may take.
pub fn finish(mut command: Command) -> Result<Output> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (send, ended) = mpsc::channel();
    thread::spawn(move || send.send(child.wait_with_output()));
    match ended.recv_timeout(wait::LONG) {
        Ok(output) => Ok(output?),
        Err(_) => {
            kill(pid, Signal::SIGKILL)?;
            bail!("still running after {:?}: {command:?}", wait::LONG)
        }
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// All of its console output, in any bytes.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: Vec<String>,
    /// What it took of memory at the most, as far as that was watched.
    pub memory: Memory,
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident, with the files that it has mapped: VmHWM of proc_pid_status(5).
    pub resident: u64,
    /// Without files: RssAnon and RssShmem.
    pub anonymous: u64,
}

impl Memory {
    /// What the process took until now; of what is anonymous, what it takes now.
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
        };
        Ok(Self { resident: field("VmHWM")?, anonymous: field("RssAnon")? + field("RssShmem")? })
    }

    /// The higher of each.
    pub fn most(self, other: Self) -> Self {
        Self { resident: self.resident.max(other.resident), anonymous: self.anonymous.max(other.anonymous) }
    }
}

impl Ended {
    /// Of a program that ran to its end.
    pub fn of(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).lines().map(Into::into).collect();
        Self { status: output.status, stdout: output.stdout, stderr, memory: Memory::default() }
    }

    /// The console's lines; an error where they are not UTF-8, which the contract promises.
    pub fn lines(&self) -> Result<Vec<&str>> {
        Ok(std::str::from_utf8(&self.stdout).context("the console is not UTF-8")?.lines().collect())
    }

    /// Fails unless the exit status is 0.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.status.success(), "mqspan ended with {}: {:?}", self.status, self.stderr);
        Ok(self)
    }

    /// The line of stderr that contains `text`.
    pub fn said(&self, text: &str) -> Result<&str> {
        let line = self.stderr.iter().find(|line| line.contains(text));
        line.map(|line| &**line).with_context(|| format!("nothing on stderr says {text:?}: {:?}", self.stderr))
    }
}

/// mqspan while it runs. Dropped, it is killed.
pub struct Tracing {
    child: Child,
    ready: String,
    stderr: Arc<Mutex<Vec<String>>>,
    errors: JoinHandle<()>,
    console: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Tracing {
    /// Starts a command that runs mqspan; returns when mqspan says that everything is attached.
    pub fn start(mut command: Command) -> Result<Self> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Self::watch(child)
    }

    /// The same of a child whose stdout somebody else may read.
    pub fn watch(mut child: Child) -> Result<Self> {
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (send, lines) = mpsc::channel();
        let pipe = child.stderr.take().context("no stderr")?;
        let kept = stderr.clone();
        let errors = thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
                // Nobody listens any more once it is ready.
                let _ = send.send(line);
            }
        });
        let console = Arc::new(Mutex::new(Vec::new()));
        let reader = child.stdout.take().map(|mut pipe| {
            let kept = console.clone();
            thread::spawn(move || {
                let mut chunk = [0; 1 << 16];
                while let Ok(read @ 1..) = pipe.read(&mut chunk) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..read]);
                }
            })
        });
        let mut this = Self { child, ready: String::new(), stderr, errors, console, reader };
        this.ready = await_ready(&lines).map_err(|error| anyhow!("{error}; it said {:?}", this.said()))?;
        Ok(this)
    }

    /// The line that says that everything is attached.
    pub fn ready_line(&self) -> &str {
        &self.ready
    }

    /// mqspan's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub fn said(&self) -> Vec<String> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it wrote to the console so far.
    pub fn console(&self) -> Vec<u8> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Ends it as ^C does.
    pub fn stop(self) -> Result<Ended> {
        self.signal(Signal::SIGINT)?;
        self.end()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Result<Ended> {
        let mut memory = Memory::default();
        let status = wait::until("the end of mqspan", || {
            // A process that has ended has none.
            memory = memory.most(Memory::of(self.child.id()).unwrap_or_default());
            Ok(self.child.try_wait()?)
        })?;
        // Joined, so that the last words are there; a traced command that outlives mqspan may hold the pipe open.
        wait::until("the end of its stderr", || Ok(self.errors.is_finished().then_some(())))?;
        if let Some(reader) = self.reader.take() {
            wait::until("the end of its stdout", || Ok(reader.is_finished().then_some(())))?;
        }
        Ok(Ended { status, stdout: self.console(), stderr: self.said(), memory })
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // Ended already in most cases, which try_wait has seen: its id is not another's yet.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn await_ready(lines: &Receiver<String>) -> Result<String> {
    loop {
        match lines.recv_timeout(wait::LONG) {
            Ok(line) if line.starts_with("mqspan: tracing ") => return Ok(line),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => bail!("mqspan did not attach within {:?}", wait::LONG),
            Err(RecvTimeoutError::Disconnected) => bail!("mqspan ended before it attached"),
        }
    }
}
