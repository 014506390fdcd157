//! `run -- CMD`: the command, started so that it waits until its calls are watched, and then is as if mqspan had not
//! started it: its environment, its signals, its descriptors.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, User, execvp, fork, initgroups, pipe2, setgid, setuid};

use super::signals::Inherited;
use crate::model::error::Error;

/// What a shell returns for a command that it does not find, and for one that it may not execute.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// What the waiting process reports when it can't become the user.
const NOT_USER: u8 = 1;

/// Waits for the end, which is still to be asked about.
const ENDED: WaitPidFlag = WaitPidFlag::WEXITED.union(WaitPidFlag::WNOWAIT);

/// The command's process.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    name: String,
    go: File,
    failure: File,
    ended: bool,
}

impl Child {
    /// Forks the process, which waits for [`Child::go`]. This thread must be the only one.
    pub fn start(command: &[OsString], user: Option<&str>, inherited: &Inherited) -> Result<Self, Error> {
        let name = command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let arguments: Vec<CString> =
            command.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>().map_err(|_| {
                Error::usage("an argument of the command holds a NUL") // the kernel's own arguments can't
            })?;
        let user = user.map(find_user).transpose()?;
        let (wait, go) = pipe()?;
        let (failure, report) = pipe()?;
        // SAFETY: there is no other thread, so that no lock can be held by one.
        match unsafe { fork() }.map_err(no_process)? {
            ForkResult::Parent { child } => Ok(Self { pid: child, name, go, failure, ended: false }),
            ForkResult::Child => {
                drop((go, failure));
                let failed = become_command(&arguments, user.as_ref(), inherited, wait);
                let (what, errno) = failed;
                let mut report = report;
                let _ = report.write_all(&[&[what][..], &(errno as i32).to_ne_bytes()].concat());
                // SAFETY: ends this process at once: what the parent's copies of buffers hold is the parent's.
                unsafe { libc::_exit(what.into()) }
            }
        }
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Lets it become the command; returns once it has, or with the exit status and why it could not.
    pub fn go(&mut self) -> Result<(), Error> {
        let told = self.go.write_all(&[1]);
        let mut report = Vec::new();
        // The other end is closed by exec, or by the process's end.
        let read = self.failure.read_to_end(&mut report);
        let (Ok(()), Ok(_), Some((what, errno))) = (told, read, report.split_first_chunk::<1>()) else {
            return Ok(());
        };
        let errno = errno.try_into().map_or(Errno::UnknownErrno, |errno| Errno::from_raw(i32::from_ne_bytes(errno)));
        let _ = waitpid(self.pid, None);
        self.ended = true;
        let Self { name, .. } = self;
        Err(match what[0] {
            NOT_USER => Error::cannot_run(
                format!("{name} can't be run as the user that --user names: {}", errno.desc()),
                "run mqspan as root, or leave out --user",
            ),
            status => Error {
                status,
                message: format!("{name}: {}", errno.desc()),
                hint: Some("after -- name a program that can be executed".into()),
            },
        })
    }

    /// Passes a signal on.
    pub fn signal(&self, signal: Signal) {
        if !self.ended {
            // It may have ended meanwhile; until it is waited for its id is nobody else's.
            let _ = kill(self.pid, signal);
        }
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) {
        while !self.ended && self.status().is_none() && waitid(Id::Pid(self.pid), ENDED).is_ok() {}
    }

    /// The exit status once it has ended, as a shell has it: 128 and the signal for one that a signal ended.
    pub fn status(&mut self) -> Option<u8> {
        let status = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => status as u8,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as u8,
            _ => return None,
        };
        self.ended = true;
        Some(status)
    }
}

fn pipe() -> Result<(File, File), Error> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(no_process)?;
    let file = |descriptor: OwnedFd| File::from(descriptor);
    Ok((file(read), file(write)))
}

fn no_process(errno: Errno) -> Error {
    Error::cannot_run(
        format!("the command can't be started: {}", errno.desc()),
        "raise the limits of processes and open files (ulimit -u, ulimit -n)",
    )
}

fn find_user(name: &str) -> Result<User, Error> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(Error::cannot_run(format!("--user: there is no user {name}"), "name one of getent passwd")),
        Err(errno) => Err(Error::cannot_run(format!("--user {name}: {}", errno.desc()), "name one of getent passwd")),
    }
}

/// Waits for the word and becomes the command; returns what could not be done.
fn become_command(arguments: &[CString], user: Option<&User>, inherited: &Inherited, mut wait: File) -> (u8, Errno) {
    let mut word = [0];
    if wait.read_exact(&mut word).is_err() {
        // mqspan has ended without a word.
        // SAFETY: as above.
        unsafe { libc::_exit(NOT_USER.into()) }
    }
    if let Some(user) = user {
        let become_user = || {
            let name = CString::new(user.name.as_bytes()).map_err(|_| Errno::EINVAL)?;
            initgroups(&name, user.gid)?;
            setgid(user.gid)?;
            setuid(user.uid)
        };
        if let Err(errno) = become_user() {
            return (NOT_USER, errno);
        }
    }
    let restored = inherited.restore();
    let errno = match (restored, arguments.first()) {
        (Ok(()), Some(program)) => match execvp(program, arguments) {
            Ok(never) => match never {},
            Err(errno) => errno,
        },
        (Err(errno), _) => errno,
        (_, None) => Errno::ENOENT,
    };
    (if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE }, errno)
}
