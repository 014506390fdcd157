//! Calls that fail, each for a cause that is known because it was made here: limits are set, users changed, queues filled. In
//! an ipc namespace of its own, as a user that nobody else is, so that what is in use is its own alone.

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::LazyLock,
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Uid, fork, gettid, pipe, setresuid},
};

use crate::{
    Causes,
    abi::{Abi, Call, Low},
    rng::Rng,
};

/// Of the namespace.
const MSG_MAX: i64 = 20;
const MSGSIZE_MAX: i64 = 4096;
const DEFAULTS: (i64, i64) = (7, 512);
const QUEUES_MAX: i64 = 9;
/// A user that nobody else is on this host: children are the same.
static USER: LazyLock<u32> = LazyLock::new(|| 1_900_000_000 + std::process::id());
/// Of the queues that messages go through.
const MAXMSG: i64 = 2;
const MSGSIZE: i64 = 16;
/// What the user may have in queues.
const BYTES: libc::rlim_t = 40_000;

const CREATE: i32 = libc::O_CREAT | libc::O_RDWR;
const POLL: i32 = libc::O_NONBLOCK;
/// Bytes that the kernel counts for each message and for each priority (struct msg_msg, struct posix_msg_tree_node).
const PER_MESSAGE: i64 = 48 + 48;
const PRIORITIES: usize = 32_768;

/// Why a call fails; an empty cause: that is not said.
#[derive(Clone, Debug, Default)]
struct Why {
    cause: &'static str,
    value: Option<i64>,
    used: Option<i64>,
    requested: Option<i64>,
    owner: Option<u32>,
}

fn nothing() -> Why {
    Why::default()
}

fn because(cause: &'static str) -> Why {
    Why { cause, ..Why::default() }
}

fn bound(cause: &'static str, value: i64, requested: i64) -> Why {
    Why { value: Some(value), requested: Some(requested), ..because(cause) }
}

fn limit(cause: &'static str, value: i64, used: i64, requested: i64) -> Why {
    Why { used: Some(used), ..bound(cause, value, requested) }
}

/// What a queue takes of RLIMIT_MSGQUEUE (below 32,768 messages).
fn bytes(maxmsg: i64, msgsize: i64) -> i64 {
    maxmsg * (msgsize + PER_MESSAGE)
}

/// Those of user and of root, whose privileges come and go with the effective one.
fn become_user(real: u32, effective: u32) -> Result<()> {
    Ok(setresuid(Uid::from_raw(real), Uid::from_raw(effective), Uid::from_raw(0))?)
}

fn lower(resource: Resource, to: libc::rlim_t) -> Result<()> {
    let (_, hard) = getrlimit(resource)?;
    Ok(setrlimit(resource, to.min(hard), hard)?)
}

/// Whether the limits of the namespace do not hold for this process while it is root.
fn passes_over_limits() -> Result<bool> {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(effective.trim(), 16)? >> CAP_SYS_RESOURCE & 1 == 1)
}

/// How many there are from this one on.
fn descriptors(from: i32) -> Result<i64> {
    let listed = fs::read_dir("/proc/self/fd")?.flatten();
    let numbers: Vec<i32> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // One more was open while they were listed.
    let is_open = |fd: &&i32| **fd >= from && fs::read_link(format!("/proc/self/fd/{fd}")).is_ok();
    Ok(numbers.iter().filter(is_open).count() as i64)
}

struct Failing {
    abi: Abi,
    memory: Low,
    rows: usize,
}

impl Failing {
    fn name(&mut self, name: &str) -> Result<usize> {
        self.memory.put(CString::new(name)?.as_bytes_with_nul())
    }

    fn attr(&mut self, maxmsg: i64, msgsize: i64) -> Result<usize> {
        let attr = self.abi.longs(&[0, maxmsg, msgsize, 0, 0, 0, 0, 0]);
        self.memory.put(&attr)
    }

    fn deadline(&mut self, sec: i64, nsec: i64) -> Result<usize> {
        let deadline = self.abi.raw_timespec(sec, nsec);
        self.memory.put(&deadline)
    }

    fn event(&mut self, method: i32, signal: i32) -> Result<usize> {
        let event = self.abi.event(method, signal);
        self.memory.put(&event)
    }

    /// A queue, kept open.
    fn open(&mut self, name: &str, oflag: i32, mode: u32, maxmsg: i64, msgsize: i64) -> Result<OwnedFd> {
        let args = [self.name(name)?, oflag as usize, mode as usize, self.attr(maxmsg, msgsize)?, 0];
        let result = i32::try_from(self.abi.call(Call::Open, args))?;
        ensure!(result >= 0, "{name}: {result}");
        // SAFETY: the call has just returned this descriptor, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }

    fn unlink(&mut self, name: &str) -> Result<()> {
        let args = [self.name(name)?, 0, 0, 0, 0];
        ensure!(self.abi.call(Call::Unlink, args) == 0, "{name}");
        Ok(())
    }

    /// Makes a call that fails.
    fn fails(&mut self, call: Call, args: [usize; 5], errno: i32, expected: Why) -> Result<()> {
        let result = self.abi.call(call, args);
        ensure!(result == i64::from(-errno), "{call:?} {args:x?} returned {result}, not {}: {expected:?}", -errno);
        self.told(errno, &expected)
    }

    fn told(&mut self, errno: i32, expected: &Why) -> Result<()> {
        let or_dash = |number: Option<i64>| number.map_or("-".into(), |number| number.to_string());
        let Why { cause, value, used, requested, owner } = expected;
        let cause = if cause.is_empty() { "-" } else { cause };
        let numbers = [*value, *used, *requested, owner.map(i64::from)].map(or_dash).join("\t");
        writeln!(io::stdout(), "{}\t{errno}\t{cause}\t{numbers}", gettid())?;
        self.rows += 1;
        // Each row has a page of its own for what it passes.
        self.memory = Low::new()?;
        Ok(())
    }

    fn open_fails(&mut self, name: &str, oflag: i32, attr: Option<(i64, i64)>, errno: i32, why: Why) -> Result<()> {
        let attr = attr.map_or(Ok(0), |(maxmsg, msgsize)| self.attr(maxmsg, msgsize))?;
        let args = [self.name(name)?, oflag as usize, 0o600, attr, 0];
        self.fails(Call::Open, args, errno, why)
    }

    fn unlink_fails(&mut self, name: &str, errno: i32, why: Why) -> Result<()> {
        let args = [self.name(name)?, 0, 0, 0, 0];
        self.fails(Call::Unlink, args, errno, why)
    }
}

/// The queues and other files that calls are made on.
struct Targets {
    /// As full as it gets, by four descriptors.
    full: [OwnedFd; 3],
    /// Without a message.
    empty: [OwnedFd; 3],
    others: Vec<OwnedFd>,
    /// Of which another process is to be notified, and which.
    watched: OwnedFd,
    owner: u32,
    _alive: OwnedFd,
}

/// For reading, for writing, for both.
const ACCESS: [i32; 3] = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR];

fn write_limit(name: &str, value: i64) -> Result<()> {
    fs::write(format!("/proc/sys/fs/mqueue/{name}"), value.to_string()).with_context(|| name.to_owned())
}

pub fn run(options: &Causes) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("mqueue"), "/dev/mqueue", Some("mqueue"), MsFlags::empty(), None::<&str>)?;
    for (name, value) in [
        ("msg_max", MSG_MAX),
        ("msgsize_max", MSGSIZE_MAX),
        ("msg_default", DEFAULTS.0),
        ("msgsize_default", DEFAULTS.1),
        ("queues_max", QUEUES_MAX),
    ] {
        write_limit(name, value)?;
    }
    let mut caller = Failing { abi: options.abi, memory: Low::new()?, rows: 0 };
    let files = files(&mut caller)?;
    match options.random {
        0 => {
            names(&mut caller)?;
            attributes(&mut caller)?;
            queues(&mut caller)?;
            bytes_in_queues(&mut caller)?;
            user_namespaces(&mut caller)?;
            too_many_descriptors(&mut caller)?;
            messages(&mut caller, &files)?;
            notifications(&mut caller, &files)?;
            other_errors(&mut caller, &files)?;
            if options.file_max {
                too_many_files(&mut caller)?;
            }
        }
        calls => random(&mut caller, &files, options.seed, calls)?,
    }
    io::stdout().flush()?;
    Ok(())
}

fn files(caller: &mut Failing) -> Result<Targets> {
    let mut queue = |name: &str| -> Result<[OwnedFd; 3]> {
        drop(caller.open(name, CREATE, 0o600, MAXMSG, MSGSIZE)?);
        let mut open = |access: i32| caller.open(name, access | POLL, 0, 1, 1);
        Ok([open(ACCESS[0])?, open(ACCESS[1])?, open(ACCESS[2])?])
    };
    let (full, empty) = (queue("causes-full")?, queue("causes-empty")?);
    let body = caller.memory.put(&[0; MSGSIZE as usize])?;
    for _ in 0..MAXMSG {
        let args = [full[2].as_raw_fd() as usize, body, 1, 0, 0];
        ensure!(caller.abi.call(Call::Send, args) == 0, "a queue that is full");
    }
    let folder = open("/dev/mqueue", OFlag::O_RDONLY, Mode::empty())?;
    let (read, write) = pipe()?;
    let null = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
    let watched = caller.open("causes-watched", CREATE, 0o600, MAXMSG, MSGSIZE)?;
    let (owner, alive) = watch(caller, &watched)?;
    Ok(Targets { full, empty, others: vec![folder, read, write, null], watched, owner, _alive: alive })
}

/// Another process is to be notified of the queue, as long as this one lives.
fn watch(caller: &mut Failing, queue: &OwnedFd) -> Result<(u32, OwnedFd)> {
    let event = caller.event(libc::SIGEV_NONE, 0)?;
    let ((told, tell), (end, alive)) = (pipe()?, pipe()?);
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(alive);
            let result = caller.abi.call(Call::Notify, [queue.as_raw_fd() as usize, event, 0, 0, 0]);
            let _ = nix::unistd::write(&tell, &[u8::from(result == 0)]);
            // Nothing is ever written: it ends with the last one that could.
            let _ = nix::unistd::read(&end, &mut [0]);
            std::process::exit(0)
        }
        ForkResult::Parent { child } => {
            let mut answer = [0];
            nix::unistd::read(&told, &mut answer)?;
            ensure!(answer == [1], "the other process registered");
            Ok((child.as_raw().cast_unsigned(), alive))
        }
    }
}

fn names(caller: &mut Failing) -> Result<()> {
    let names =
        [("", libc::ENOENT), ("a/b", libc::EACCES), ("/x", libc::EACCES), (".", libc::EACCES), ("..", libc::EACCES)];
    for (name, errno) in names {
        caller.open_fails(name, libc::O_RDWR, None, errno, because("name"))?;
        caller.open_fails(name, CREATE, None, errno, because("name"))?;
        caller.unlink_fails(name, errno, because("name"))?;
    }
    caller.open_fails("causes-missing", libc::O_RDONLY, None, libc::ENOENT, because("missing"))?;
    caller.unlink_fails("causes-missing", libc::ENOENT, because("missing"))?;
    // Of root's, for others to read.
    let readable = caller.open("causes-readable", CREATE, 0o644, 1, 1)?;
    become_user(*USER, *USER)?;
    caller.open_fails("causes-readable", libc::O_RDWR, None, libc::EACCES, because("permission"))?;
    caller.open_fails("causes-readable", libc::O_WRONLY, None, libc::EACCES, because("permission"))?;
    caller.open_fails("causes-full", libc::O_RDONLY, None, libc::EACCES, because("permission"))?;
    // Those of others stay in a folder with the sticky bit.
    caller.unlink_fails("causes-readable", libc::EPERM, because("permission"))?;
    become_user(0, 0)?;
    fs::set_permissions("/dev/mqueue", std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    become_user(*USER, *USER)?;
    caller.open_fails("causes-new", CREATE, None, libc::EACCES, because("permission"))?;
    caller.unlink_fails("causes-readable", libc::EACCES, because("permission"))?;
    become_user(0, 0)?;
    fs::set_permissions("/dev/mqueue", std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    drop(readable);
    caller.unlink("causes-readable")
}

fn attributes(caller: &mut Failing) -> Result<()> {
    let invalid = libc::EINVAL;
    // Whoever passes over them is held by the kernel's own limits.
    let (most, longest) = if passes_over_limits()? { (65_536, 16 << 20) } else { (MSG_MAX, MSGSIZE_MAX) };
    let too_many = bound("fs.mqueue.msg_max", most, most + 1);
    caller.open_fails("causes-new", CREATE, Some((most + 1, 1)), invalid, too_many)?;
    let too_long = bound("fs.mqueue.msgsize_max", longest, longest + 1);
    caller.open_fails("causes-new", CREATE, Some((1, longest + 1)), invalid, too_long)?;
    become_user(*USER, *USER)?;
    for (attr, expected) in [
        ((MSG_MAX + 1, 1), bound("fs.mqueue.msg_max", MSG_MAX, MSG_MAX + 1)),
        ((65_536, 1), bound("fs.mqueue.msg_max", MSG_MAX, 65_536)),
        ((i32::MAX.into(), i32::MAX.into()), bound("fs.mqueue.msg_max", MSG_MAX, i32::MAX.into())),
        ((1, MSGSIZE_MAX + 1), bound("fs.mqueue.msgsize_max", MSGSIZE_MAX, MSGSIZE_MAX + 1)),
        ((MSG_MAX, 1 << 24), bound("fs.mqueue.msgsize_max", MSGSIZE_MAX, 1 << 24)),
        ((0, 1), because("maxmsg")),
        ((-1, 1), because("maxmsg")),
        ((0, 0), because("maxmsg")),
        ((1, 0), because("msgsize")),
        ((MSG_MAX + 1, -5), because("msgsize")),
    ] {
        caller.open_fails("causes-new", CREATE, Some(attr), invalid, expected)?;
    }
    become_user(0, 0)
}

fn queues(caller: &mut Failing) -> Result<()> {
    // Three are there already; mqueue counts those that have a name.
    let (least, used) = (1, 3);
    write_limit("queues_max", least)?;
    become_user(*USER, *USER)?;
    let why = limit("fs.mqueue.queues_max", least, used, 1);
    caller.open_fails("causes-new", CREATE, None, libc::ENOSPC, why.clone())?;
    caller.open_fails("causes-new", CREATE, Some((1, 1)), libc::ENOSPC, why)?;
    become_user(0, 0)?;
    write_limit("queues_max", used)?;
    become_user(*USER, *USER)?;
    caller.open_fails("causes-new", CREATE, None, libc::ENOSPC, limit("fs.mqueue.queues_max", used, used, 1))?;
    become_user(0, 0)?;
    write_limit("queues_max", QUEUES_MAX)
}

fn bytes_in_queues(caller: &mut Failing) -> Result<()> {
    become_user(*USER, *USER)?;
    lower(Resource::RLIMIT_MSGQUEUE, BYTES)?;
    let most = BYTES as i64;
    let msgqueue = |used, requested| limit("RLIMIT_MSGQUEUE", most, used, requested);
    let too_large = bytes(MSG_MAX, MSGSIZE_MAX);
    caller.open_fails("causes-new", CREATE, Some((MSG_MAX, MSGSIZE_MAX)), libc::EMFILE, msgqueue(0, too_large))?;
    let kept = caller.open("causes-kept", CREATE, 0o600, 10, 3500)?;
    let used = bytes(10, 3500);
    let by_default = bytes(DEFAULTS.0, DEFAULTS.1);
    caller.open_fails("causes-new", CREATE, None, libc::EMFILE, msgqueue(used, by_default))?;
    let attr = (2, MSGSIZE_MAX);
    caller.open_fails("causes-new", CREATE, Some(attr), libc::EMFILE, msgqueue(used, bytes(2, MSGSIZE_MAX)))?;
    // Unlinked, it takes its bytes until it is closed.
    caller.unlink("causes-kept")?;
    caller.open_fails("causes-new", CREATE | libc::O_EXCL, Some((10, 3500)), libc::EMFILE, msgqueue(used, used))?;
    drop(kept);
    lower(Resource::RLIMIT_MSGQUEUE, 0)?;
    let none = limit("RLIMIT_MSGQUEUE", 0, 0, bytes(1, 1));
    caller.open_fails("causes-new", CREATE, Some((1, 1)), libc::EMFILE, none)?;
    lower(Resource::RLIMIT_MSGQUEUE, libc::rlim_t::MAX)?;
    become_user(0, 0)
}

/// Whether a user namespace sets a limit to all that is in it: since Linux 5.14.
fn has_limits_by_namespace() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(|number| number.parse::<u32>());
    Ok((numbers.next().context("no version")??, numbers.next().context("no second number")??) >= (5, 14))
}

/// In a child, which is in another user namespace from then on.
fn user_namespaces(caller: &mut Failing) -> Result<()> {
    if !has_limits_by_namespace()? {
        return Ok(());
    }
    io::stdout().flush()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let done = in_user_namespace(caller);
            if let Err(error) = &done {
                eprintln!("in a user namespace: {error:#}");
            }
            io::stdout().flush()?;
            std::process::exit(i32::from(done.is_err()))
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None)?;
            ensure!(status == WaitStatus::Exited(child, 0), "{status:?}");
            // As many as the child had more.
            caller.rows += 2;
            Ok(())
        }
    }
}

fn in_user_namespace(caller: &mut Failing) -> Result<()> {
    // Of the user outside: what it has in queues there counts against what its namespace may have.
    setresuid(Uid::from_raw(*USER), Uid::from_raw(*USER), Uid::from_raw(*USER))?;
    let kept = caller.open("causes-outside", CREATE, 0o600, 4, 256)?;
    let outside = bytes(4, 256);
    lower(Resource::RLIMIT_MSGQUEUE, BYTES)?;
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let (attr, requested) = ((10, 4000), bytes(10, 4000));
    let own = limit("RLIMIT_MSGQUEUE", BYTES as i64, 0, requested);
    caller.open_fails("causes-inside", CREATE, Some(attr), libc::EMFILE, own)?;
    // Its own limit would let it now, that of its namespace does not.
    lower(Resource::RLIMIT_MSGQUEUE, libc::rlim_t::MAX)?;
    let namespaces = limit("RLIMIT_MSGQUEUE", BYTES as i64, outside, requested);
    caller.open_fails("causes-inside", CREATE, Some(attr), libc::EMFILE, namespaces)?;
    drop(kept);
    Ok(())
}

fn too_many_files(caller: &mut Failing) -> Result<()> {
    const LIMIT: &str = "/proc/sys/fs/file-max";
    let before = fs::read_to_string(LIMIT)?;
    fs::write(LIMIT, "1")?;
    // Root passes over it.
    become_user(*USER, *USER)?;
    let failed = [CREATE, libc::O_RDWR]
        .into_iter()
        .try_for_each(|oflag| caller.open_fails("causes-new", oflag, None, libc::ENFILE, because("fs.file-max")));
    become_user(0, 0)?;
    fs::write(LIMIT, before)?;
    failed
}

fn too_many_descriptors(caller: &mut Failing) -> Result<()> {
    let (before, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let mut held: Vec<OwnedFd> = vec![open("/dev/null", OFlag::O_RDWR, Mode::empty())?];
    for most in [64 as libc::rlim_t, 200] {
        lower(Resource::RLIMIT_NOFILE, before)?;
        let above = descriptors(most as i32)?;
        lower(Resource::RLIMIT_NOFILE, most)?;
        while let Ok(descriptor) = held[0].try_clone() {
            held.push(descriptor);
        }
        let why = limit("RLIMIT_NOFILE", most as i64, most as i64 + above, 1);
        caller.open_fails("causes-full", libc::O_RDONLY, None, libc::EMFILE, why.clone())?;
        caller.open_fails("causes-new", CREATE, Some((1, 1)), libc::EMFILE, why.clone())?;
        // One that was closed and is open again, far below the last one.
        held.remove(10);
        held.insert(10, held[0].try_clone()?);
        caller.open_fails("causes-full", libc::O_RDONLY, None, libc::EMFILE, why)?;
    }
    // More are open than the limit lets.
    lower(Resource::RLIMIT_NOFILE, before)?;
    held.truncate(100);
    let open = descriptors(0)?;
    lower(Resource::RLIMIT_NOFILE, 10)?;
    caller.open_fails("causes-full", libc::O_RDONLY, None, libc::EMFILE, limit("RLIMIT_NOFILE", 10, open, 1))?;
    lower(Resource::RLIMIT_NOFILE, before)
}

/// Descriptors that are not open, that are something else, and that are a queue.
const CLOSED: [usize; 2] = [usize::MAX, 900];

fn messages(caller: &mut Failing, files: &Targets) -> Result<()> {
    let body = |caller: &mut Failing| caller.memory.put(&[0; 64]);
    for call in [Call::Send, Call::Receive] {
        let (right, wrong) = match call {
            Call::Send => (&files.full[1], &files.full[0]),
            _ => (&files.empty[0], &files.empty[1]),
        };
        let (right, wrong) = (right.as_raw_fd() as usize, wrong.as_raw_fd() as usize);
        let usual = if matches!(call, Call::Send) { 1 } else { MSGSIZE as usize };
        let priority = 0;
        let bad = CLOSED.into_iter().map(|fd| (fd, "closed"));
        let others = files.others.iter().map(|fd| (fd.as_raw_fd() as usize, "not_a_queue"));
        for (fd, cause) in bad.chain(others).chain([(wrong, "access_mode")]) {
            let args = [fd, body(caller)?, usual, priority, 0];
            caller.fails(call, args, libc::EBADF, because(cause))?;
        }
        let sizes =
            if matches!(call, Call::Send) { [MSGSIZE as usize + 1, 1 << 30] } else { [0, MSGSIZE as usize - 1] };
        for size in sizes {
            let args = [right, body(caller)?, size, priority, 0];
            caller.fails(call, args, libc::EMSGSIZE, bound("msgsize", MSGSIZE, size as i64))?;
        }
        for (sec, nsec) in [(1, 1_000_000_000), (1, -1), (-1, 0)] {
            let args = [right, body(caller)?, usual, priority, caller.deadline(sec, nsec)?];
            caller.fails(call, args, libc::EINVAL, because("timeout"))?;
        }
        let args = [right, body(caller)?, usual, priority, 0];
        let state = if matches!(call, Call::Send) { "full" } else { "empty" };
        caller.fails(call, args, libc::EAGAIN, because(state))?;
    }
    let full = files.full[2].as_raw_fd() as usize;
    for priority in [PRIORITIES, u32::MAX as usize] {
        let args = [full, body(caller)?, 1, priority, 0];
        caller.fails(Call::Send, args, libc::EINVAL, because("priority"))?;
    }
    let args = [full, body(caller)?, 1, PRIORITIES, caller.deadline(-1, 0)?];
    caller.fails(Call::Send, args, libc::EINVAL, because("timeout"))
}

fn notifications(caller: &mut Failing, files: &Targets) -> Result<()> {
    let (queue, other) = (files.watched.as_raw_fd() as usize, files.empty[2].as_raw_fd() as usize);
    let bad = CLOSED.into_iter().map(|fd| (fd, "closed"));
    for (fd, cause) in bad.chain(files.others.iter().map(|fd| (fd.as_raw_fd() as usize, "not_a_queue"))) {
        caller.fails(Call::Notify, [fd, 0, 0, 0, 0], libc::EBADF, because(cause))?;
        let event = caller.event(libc::SIGEV_NONE, 0)?;
        caller.fails(Call::Notify, [fd, event, 0, 0, 0], libc::EBADF, because(cause))?;
        caller.fails(Call::Getsetattr, [fd, 0, 0, 0, 0], libc::EBADF, because(cause))?;
    }
    for signal in [65, -1, i32::MAX] {
        let event = caller.event(libc::SIGEV_SIGNAL, signal)?;
        caller.fails(Call::Notify, [queue, event, 0, 0, 0], libc::EINVAL, because("signal"))?;
    }
    let registered = |owner| Why { owner: Some(owner), ..because("registered") };
    let event = caller.event(libc::SIGEV_SIGNAL, libc::SIGUSR1)?;
    caller.fails(Call::Notify, [queue, event, 0, 0, 0], libc::EBUSY, registered(files.owner))?;
    let event = caller.event(libc::SIGEV_NONE, 0)?;
    ensure!(caller.abi.call(Call::Notify, [other, event, 0, 0, 0]) == 0, "nobody was registered");
    caller.fails(Call::Notify, [other, event, 0, 0, 0], libc::EBUSY, registered(std::process::id()))?;
    ensure!(caller.abi.call(Call::Notify, [other, 0, 0, 0, 0]) == 0, "registered");
    for flags in [1, -1, i64::from(libc::O_NONBLOCK | libc::O_APPEND)] {
        let new = caller.abi.longs(&[flags, 0, 0, 0, 0, 0, 0, 0]);
        let new = caller.memory.put(&new)?;
        caller.fails(Call::Getsetattr, [queue, new, 0, 0, 0], libc::EINVAL, because("flags"))?;
    }
    Ok(())
}

/// Failures whose cause the errno says, or the kernel's state does not prove.
fn other_errors(caller: &mut Failing, files: &Targets) -> Result<()> {
    const NOWHERE: usize = 16;
    caller.fails(Call::Open, [NOWHERE, 0, 0, 0, 0], libc::EFAULT, nothing())?;
    caller.open_fails("causes-full", CREATE | libc::O_EXCL, None, libc::EEXIST, nothing())?;
    caller.open_fails(&"n".repeat(256), libc::O_RDONLY, None, libc::ENAMETOOLONG, nothing())?;
    // Of a queue that is there, attr is not looked at.
    caller.open_fails("causes-full", libc::O_CREAT | 3, Some((-1, -1)), libc::EINVAL, nothing())?;
    caller.open_fails("causes-full", CREATE | libc::O_DIRECT, Some((-1, -1)), libc::EINVAL, nothing())?;
    let event = caller.event(77, 0)?;
    caller.fails(Call::Notify, [files.watched.as_raw_fd() as usize, event, 0, 0, 0], libc::EINVAL, nothing())?;
    let fd = files.full[2].as_raw_fd() as usize;
    caller.fails(Call::Send, [fd, NOWHERE, 1, 0, 0], libc::EFAULT, nothing())?;
    caller.fails(Call::Receive, [fd, NOWHERE, MSGSIZE as usize, 0, NOWHERE], libc::EFAULT, nothing())
}

/// Calls drawn at random, of which the failing ones are told.
fn random(caller: &mut Failing, files: &Targets, seed: u64, calls: u64) -> Result<()> {
    let mut rng = Rng::new(seed, 0);
    become_user(*USER, *USER)?;
    lower(Resource::RLIMIT_MSGQUEUE, BYTES)?;
    let kept = caller.open("causes-kept", CREATE, 0o444, 10, 3000)?;
    while caller.rows < calls as usize {
        caller.memory = Low::new()?;
        match rng.below(6) {
            0 | 1 => random_open(caller, &mut rng)?,
            2 | 3 => random_message(caller, files, &mut rng)?,
            4 => random_notify(caller, files, &mut rng)?,
            _ => random_getsetattr(caller, files, &mut rng)?,
        }
    }
    drop(kept);
    become_user(0, 0)
}

fn random_open(caller: &mut Failing, rng: &mut Rng) -> Result<()> {
    let name = rng.pick(&["", ".", "..", "/", "a/b", "causes-full", "causes-kept", "causes-new", "causes-new"]);
    let access = rng.pick(&[ACCESS[0], ACCESS[1], ACCESS[2], ACCESS[2], 3]);
    let more = rng.pick(&[0, libc::O_CREAT, libc::O_CREAT, libc::O_CREAT | libc::O_EXCL]);
    let number = |rng: &mut Rng, most: i64| match rng.below(4) {
        0 => rng.pick(&[-1, 0, most + 1, 1 << 20]),
        _ => 1 + rng.below(most as u64) as i64,
    };
    let attr = (!rng.one_in(4)).then(|| (number(rng, MSG_MAX), number(rng, MSGSIZE_MAX)));
    let attr_at = attr.map_or(Ok(0), |(maxmsg, msgsize)| caller.attr(maxmsg, msgsize))?;
    let args = [caller.name(name)?, (access | more) as usize, 0o600, attr_at, 0];
    let result = i32::try_from(caller.abi.call(Call::Open, args))?;
    if result >= 0 {
        // SAFETY: the call has just returned this descriptor, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
        return if name == "causes-new" { caller.unlink(name) } else { Ok(()) };
    }
    let (maxmsg, msgsize) = attr.unwrap_or(DEFAULTS);
    let expected = match -result {
        libc::ENOENT => because(if name.is_empty() { "name" } else { "missing" }),
        libc::EACCES => because(if name.contains('/') || name.starts_with('.') { "name" } else { "permission" }),
        libc::EINVAL if access == 3 => nothing(),
        libc::EINVAL if maxmsg <= 0 => because("maxmsg"),
        libc::EINVAL if msgsize <= 0 => because("msgsize"),
        libc::EINVAL if maxmsg > MSG_MAX => bound("fs.mqueue.msg_max", MSG_MAX, maxmsg),
        libc::EINVAL => bound("fs.mqueue.msgsize_max", MSGSIZE_MAX, msgsize),
        libc::EMFILE => limit("RLIMIT_MSGQUEUE", BYTES as i64, bytes(10, 3000), bytes(maxmsg, msgsize)),
        _ => nothing(),
    };
    caller.told(-result, &expected)
}

/// A descriptor, what is wrong with it, and the queue that it is: its number among the access modes, and whether it is full.
fn random_descriptor(files: &Targets, rng: &mut Rng) -> (usize, &'static str, Option<(usize, bool)>) {
    match rng.below(8) {
        0 => (rng.pick(&CLOSED), "closed", None),
        1 => (files.others[rng.below(files.others.len() as u64) as usize].as_raw_fd() as usize, "not_a_queue", None),
        _ => {
            let (access, is_full) = (rng.below(3) as usize, rng.one_in(2));
            let queue = if is_full { &files.full } else { &files.empty };
            (queue[access].as_raw_fd() as usize, "access_mode", Some((access, is_full)))
        }
    }
}

fn random_message(caller: &mut Failing, files: &Targets, rng: &mut Rng) -> Result<()> {
    let call = rng.pick(&[Call::Send, Call::Receive]);
    let sends = matches!(call, Call::Send);
    let (fd, wrong, queue) = random_descriptor(files, rng);
    let size = if rng.one_in(4) { rng.below(40) } else { MSGSIZE as u64 } as usize;
    let priority = if !sends { 0 } else { rng.pick(&[0, 1, PRIORITIES - 1, PRIORITIES, 99_999]) };
    let deadline = rng.pick(&[None, Some((1, 5)), Some((1, -1)), Some((1, 1_000_000_000)), Some((-7, 0))]);
    let deadline_at = deadline.map_or(Ok(0), |(sec, nsec)| caller.deadline(sec, nsec))?;
    let body = caller.memory.put(&[0; 64])?;
    let result = caller.abi.call(call, [fd, body, size, priority, deadline_at]);
    if result >= 0 {
        // As it was before.
        let queue = queue.map(|(_, is_full)| if is_full { &files.full } else { &files.empty }).context("no queue")?;
        let fd = queue[2].as_raw_fd() as usize;
        let (back, size) = if sends { (Call::Receive, MSGSIZE as usize) } else { (Call::Send, 1) };
        ensure!(caller.abi.call(back, [fd, body, size, 0, 0]) >= 0, "{back:?}");
        return Ok(());
    }
    let bad_deadline = deadline.is_some_and(|(sec, nsec)| sec < 0 || !(0..1_000_000_000).contains(&nsec));
    let errno = i32::try_from(-result)?;
    let expected = match errno {
        libc::EBADF => because(wrong),
        libc::EMSGSIZE => bound("msgsize", MSGSIZE, size as i64),
        libc::EINVAL if bad_deadline => because("timeout"),
        libc::EINVAL => because("priority"),
        libc::EAGAIN => because(if sends { "full" } else { "empty" }),
        _ => nothing(),
    };
    caller.told(errno, &expected)
}

fn random_notify(caller: &mut Failing, files: &Targets, rng: &mut Rng) -> Result<()> {
    let (fd, wrong, _) = random_descriptor(files, rng);
    let watched = files.watched.as_raw_fd() as usize;
    let fd = if rng.one_in(2) { watched } else { fd };
    let (method, signal) = rng.pick(&[(0, 10), (0, 64), (0, 65), (0, -3), (1, 0), (77, 0)]);
    let event = caller.event(method, signal)?;
    let result = caller.abi.call(Call::Notify, [fd, event, 0, 0, 0]);
    if result == 0 {
        ensure!(caller.abi.call(Call::Notify, [fd, 0, 0, 0, 0]) == 0, "registered");
        return Ok(());
    }
    let errno = i32::try_from(-result)?;
    let expected = match errno {
        libc::EBADF => because(wrong),
        libc::EINVAL if method == libc::SIGEV_SIGNAL => because("signal"),
        libc::EBUSY => Why { owner: Some(files.owner), ..because("registered") },
        _ => nothing(),
    };
    caller.told(errno, &expected)
}

fn random_getsetattr(caller: &mut Failing, files: &Targets, rng: &mut Rng) -> Result<()> {
    let (fd, wrong, _) = random_descriptor(files, rng);
    let flags = rng.pick(&[POLL.into(), 1, -1]);
    let new = caller.abi.longs(&[flags, 0, 0, 0, 0, 0, 0, 0]);
    let new = caller.memory.put(&new)?;
    let result = caller.abi.call(Call::Getsetattr, [fd, new, 0, 0, 0]);
    if result == 0 {
        return Ok(());
    }
    let errno = i32::try_from(-result)?;
    caller.told(errno, &if errno == libc::EBADF { because(wrong) } else { because("flags") })
}
