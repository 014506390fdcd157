//! Randomised calls over processes and threads, and processes of a single call.

use std::{
    ffi::CString,
    fmt::Write as _,
    fs::File,
    io::Write as _,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process, thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    errno::Errno,
    sys::{
        stat::fstat,
        wait::{WaitStatus, waitpid},
    },
    time::{ClockId, clock_gettime},
    unistd::{ForkResult, Pid, fork, getpid, gettid},
};

use crate::{
    Open,
    call::{Attr, Call, shared_names},
    kernel,
    memory::{Place, Region},
    rng::Rng,
};

pub fn run(options: &Open) -> Result<()> {
    if let Some(path) = &options.print {
        File::create(path).with_context(|| path.display().to_string())?;
    }
    let outcome = match options.processes {
        0 => run_threads(options, 0),
        processes => {
            let children = (0..processes).map(|process| spawn(|| run_threads(options, process)));
            children.collect::<Result<Vec<_>>>()?.into_iter().try_for_each(reap)
        }
    };
    for name in shared_names(options.seed) {
        kernel::mq_unlink(&CString::new(name)?);
    }
    outcome
}

/// Makes and removes queues, each of another name of NAME_MAX bytes.
pub fn names(names: u64) -> Result<()> {
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    for number in 0..names {
        let name = CString::new(format!("{:0>245}{number:010}", process::id()))?;
        drop(kernel::open_queue(&name, create, &[0, 1, 1, 0, 0, 0, 0, 0])?);
        kernel::mq_unlink(&name);
    }
    Ok(())
}

pub fn short_lived(calls: u64) -> Result<()> {
    (0..calls).try_for_each(|number| {
        let name = CString::new(format!("short-lived-{number}"))?;
        reap(spawn(|| {
            kernel::mq_open(name.as_ptr().addr(), 0, 0, 0);
            Ok(())
        })?)
    })
}

/// Runs `work` in a child process, which ends with it.
pub fn spawn(work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: this process has a single thread, so that no lock can be held by another one.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let outcome = work();
            if let Err(error) = &outcome {
                eprintln!("workload: {error:#}");
            }
            process::exit(i32::from(outcome.is_err()));
        }
    }
}

pub fn reap(child: Pid) -> Result<()> {
    let status = waitpid(child, None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "a process failed: {status:?}");
    Ok(())
}

fn run_threads(options: &Open, process: u64) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|thread| scope.spawn(move || make_calls(options, process * options.threads + thread)))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// The calls of one thread, in an order that depends on nothing but the options.
fn make_calls(options: &Open, worker: u64) -> Result<()> {
    let workers = options.threads * options.processes.max(1);
    let calls = options.calls / workers + u64::from(worker < options.calls % workers);
    let mut rng = Rng::new(options.seed, worker);
    let (name_memory, attr_memory) = (Region::new()?, Region::new()?);
    let mut record = String::new();
    for number in 0..calls {
        let call = Call::random(&mut rng, options.seed, number + worker);
        let name = CString::new(call.name.as_slice())?;
        let name_at = name_memory.put(name.as_bytes_with_nul(), call.name_at)?;
        let attr_at = attr_memory.put(&call.attr.map(i64::to_ne_bytes).concat(), call.attr_at)?;

        let before = wall_clock()?;
        let result = kernel::mq_open(name_at, call.oflag, call.mode, attr_at);
        let after = wall_clock()?;

        // SAFETY: the call has just returned this descriptor, and nothing else owns it.
        let queue = i32::try_from(result).ok().filter(|fd| *fd >= 0).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let limits = queue.filter(|_| options.print.is_some()).map(limits).transpose()?;
        // The kernel refuses O_DIRECT with EINVAL when it has made the queue already.
        if call.unlink && (result >= 0 || result == -i64::from(libc::EINVAL)) {
            kernel::mq_unlink(&name);
        }
        if options.print.is_some() {
            describe(&mut record, &call, result)?;
            writeln!(record, "\t{}\t{before}\t{after}\t{}", limits.as_deref().unwrap_or("-"), getpid())?;
        }
    }
    if let Some(path) = &options.print {
        File::options().append(true).open(path)?.write_all(record.as_bytes())?;
    }
    Ok(())
}

fn describe(record: &mut String, call: &Call, result: i64) -> Result<()> {
    let tid = gettid();
    let name = readable(call.name_at, || {
        let digits: String = call.name.iter().map(|byte| format!("{byte:02x}")).collect();
        if call.name_at.resident() { digits } else { format!("~{digits}") }
    });
    let attr = readable(call.attr_at, || {
        let [flags, maxmsg, msgsize, curmsgs, ..]: Attr = call.attr;
        format!("{flags},{maxmsg},{msgsize},{curmsgs}")
    });
    Ok(write!(record, "{tid}\t{name}\t{:#x}\t{:#o}\t{attr}\t{result}", call.oflag, call.mode)?)
}

/// What the queue itself says: maxmsg, msgsize, curmsgs and, in octal, its permission bits.
fn limits(queue: OwnedFd) -> Result<String> {
    let attr = match kernel::mq_getattr(queue.as_fd()) {
        // Opened with O_PATH, it answers nothing itself.
        Err(Errno::EBADF) => kernel::mq_getattr(File::open(format!("/proc/self/fd/{}", queue.as_raw_fd()))?.as_fd()),
        attr => attr,
    };
    let [_, maxmsg, msgsize, curmsgs, ..] = attr?;
    let mode = fstat(&queue)?.st_mode & 0o7777;
    Ok(format!("{maxmsg},{msgsize},{curmsgs},{mode:#o}"))
}

/// CLOCK_REALTIME in nanoseconds.
pub fn wall_clock() -> Result<u128> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?).as_nanos())
}

fn readable(place: Place, text: impl FnOnce() -> String) -> String {
    match place {
        Place::Null => "NULL".into(),
        place if place.readable() => text(),
        _ => "-".into(),
    }
}
