//! Every call in every way that has one outcome, one after the other: always the same, whoever makes and watches them.

use std::{
    fs, mem,
    sync::atomic::{AtomicI32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use nix::unistd::gettid;

use crate::{
    Steps,
    abi::{Abi, Call, Low},
    open::wall_clock,
};

/// As many messages does the queue hold.
const MAXMSG: i64 = 4;
const MSGSIZE: usize = 16;
/// How long messages lie in the queue, at least.
const REST: Duration = Duration::from_millis(100);
/// Where nothing can be read.
const NOWHERE: usize = 16;
const MS: i64 = 1_000_000;

struct Caller {
    abi: Abi,
    memory: Low,
    body: usize,
    priority: usize,
}

impl Caller {
    fn new(abi: Abi) -> Result<Self> {
        let mut memory = Low::new()?;
        let (body, priority) = (memory.put(&[7; MSGSIZE])?, memory.put(&[0; 4])?);
        Ok(Self { abi, memory, body, priority })
    }

    /// The address of a deadline so many nanoseconds from now.
    fn deadline(&mut self, after: i64) -> Result<usize> {
        let deadline = self.abi.timespec(i64::try_from(wall_clock()?)? + after);
        self.memory.put(&deadline)
    }

    fn call(&self, call: Call, args: [usize; 5], expected: i32) -> Result<()> {
        let result = self.abi.call(call, args);
        ensure!(result == expected.into(), "{call:?} {args:x?} returned {result}, not {expected}");
        Ok(())
    }

    fn open(&mut self, oflag: i32) -> Result<i64> {
        let (name, attr) = (self.memory.put(b"steps\0")?, self.abi.longs(&[0, MAXMSG, MSGSIZE as i64, 0, 0, 0, 0, 0]));
        let attr = self.memory.put(&attr)?;
        Ok(self.abi.call(Call::Open, [name, oflag as usize, 0o600, attr, 0]))
    }

    fn send(&self, queue: usize, priority: usize, deadline: usize, expected: i32) -> Result<()> {
        self.call(Call::Send, [queue, self.body, 8, priority, deadline], expected)
    }

    fn receive(&self, queue: usize, deadline: usize, expected: i32) -> Result<()> {
        self.call(Call::Receive, [queue, self.body, MSGSIZE, self.priority, deadline], expected)
    }
}

pub fn run(options: &Steps) -> Result<()> {
    let mut caller = Caller::new(options.abi)?;
    let create = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let waiting = usize::try_from(caller.open(create)?)?;
    let polling = usize::try_from(caller.open(libc::O_RDWR | libc::O_NONBLOCK)?)?;
    ensure!(caller.open(create)? == i64::from(-libc::EEXIST), "the queue is there");
    let name = caller.memory.put(b"steps-missing\0")?;
    caller.call(Call::Open, [name, libc::O_RDONLY as usize, 0, 0, 0], -libc::ENOENT)?;
    caller.call(Call::Open, [NOWHERE, libc::O_RDONLY as usize, 0, 0, 0], -libc::EFAULT)?;
    caller.call(Call::Open, [name, create as usize, 0o600, NOWHERE, 0], -libc::EFAULT)?;

    attributes(&mut caller, waiting)?;
    notifications(&mut caller, waiting)?;
    messages(&mut caller, waiting, polling)?;
    wait_and_pass(&mut caller, waiting)?;

    caller.call(Call::Unlink, [name, 0, 0, 0, 0], -libc::ENOENT)?;
    caller.call(Call::Unlink, [NOWHERE, 0, 0, 0, 0], -libc::EFAULT)?;
    let name = caller.memory.put(b"steps\0")?;
    caller.call(Call::Unlink, [name, 0, 0, 0, 0], 0)
}

fn attributes(caller: &mut Caller, queue: usize) -> Result<()> {
    let new = caller.abi.longs(&[0, 77, 88, 99, 0, 0, 0, 0]);
    let (new, old) = (caller.memory.put(&new)?, caller.memory.put(&[0; 64])?);
    for (args, expected) in [
        ([queue, new, old], 0),
        ([queue, 0, old], 0),
        ([queue, 0, 0], 0),
        ([queue, NOWHERE, 0], -libc::EFAULT),
        ([usize::MAX, 0, old], -libc::EBADF),
    ] {
        caller.call(Call::Getsetattr, [args[0], args[1], args[2], 0, 0], expected)?;
    }
    Ok(())
}

fn notifications(caller: &mut Caller, queue: usize) -> Result<()> {
    for (method, signal, expected) in
        [(libc::SIGEV_SIGNAL, libc::SIGUSR1, 0), (libc::SIGEV_NONE, 0, -libc::EBUSY), (77, 0, -libc::EINVAL)]
    {
        let event = caller.abi.event(method, signal);
        let event = caller.memory.put(&event)?;
        caller.call(Call::Notify, [queue, event, 0, 0, 0], expected)?;
    }
    caller.call(Call::Notify, [queue, 0, 0, 0, 0], 0)?;
    caller.call(Call::Notify, [queue, NOWHERE, 0, 0, 0], -libc::EFAULT)
}

fn messages(caller: &mut Caller, waiting: usize, polling: usize) -> Result<()> {
    let later = caller.deadline(60_000 * MS)?;
    for (priority, deadline) in [(3, later), (1, 0), (32_767, later), (0, 0)] {
        caller.send(waiting, priority, deadline, 0)?;
    }
    caller.send(polling, 1, 0, -libc::EAGAIN)?;
    let soon = caller.deadline(50 * MS)?;
    caller.send(waiting, 1, soon, -libc::ETIMEDOUT)?;
    let invalid = caller.abi.raw_timespec(1, 1_000_000_000);
    let invalid = caller.memory.put(&invalid)?;
    let before = caller.abi.raw_timespec(1, -1);
    let before = caller.memory.put(&before)?;
    for (args, expected) in [
        ([waiting, caller.body, MSGSIZE + 1, 1, later], -libc::EMSGSIZE),
        ([waiting, caller.body, 8, 40_000, 0], -libc::EINVAL),
        ([waiting, caller.body, 8, 1, invalid], -libc::EINVAL),
        ([waiting, caller.body, 8, 1, before], -libc::EINVAL),
        ([waiting, caller.body, 8, 1, NOWHERE], -libc::EFAULT),
        ([waiting, NOWHERE, 8, 1, 0], -libc::EFAULT),
        ([usize::MAX, caller.body, 8, 1, 0], -libc::EBADF),
    ] {
        caller.call(Call::Send, args, expected)?;
    }
    thread::sleep(REST);
    caller.call(Call::Receive, [waiting, caller.body, 8, 0, 0], -libc::EMSGSIZE)?;
    for deadline in [later, 0, 0, 0] {
        caller.receive(waiting, deadline, 8)?;
    }
    caller.receive(polling, 0, -libc::EAGAIN)?;
    let soon = caller.deadline(50 * MS)?;
    caller.receive(waiting, soon, -libc::ETIMEDOUT)
}

/// A receiver that waits gets a message, and a sender that waits gets room.
fn wait_and_pass(caller: &mut Caller, queue: usize) -> Result<()> {
    let abi = caller.abi;
    beside(abi, Call::Receive, move |other| other.receive(queue, 0, 8), || caller.send(queue, 5, 0, 0))?;
    (0..MAXMSG).try_for_each(|_| caller.send(queue, 6, 0, 0))?;
    beside(abi, Call::Send, move |other| other.send(queue, 7, 0, 0), || caller.receive(queue, 0, 8))?;
    (0..MAXMSG).try_for_each(|_| caller.receive(queue, 0, 8))
}

/// Does `then` once another thread sleeps in the call that it makes.
fn beside(
    abi: Abi,
    call: Call,
    waits: impl FnOnce(&Caller) -> Result<()> + Send,
    then: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut caller = Caller::new(abi)?;
    let id = AtomicI32::new(0);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            id.store(gettid().as_raw(), Ordering::Relaxed);
            waits(&mut caller)
        });
        let number = abi.number(call).to_string();
        let sleeps = || {
            let path = format!("/proc/self/task/{}/syscall", id.load(Ordering::Relaxed));
            fs::read_to_string(path).is_ok_and(|line| line.split(' ').next() == Some(&number))
        };
        while !sleeps() && !waiting.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let done = then();
        waiting.join().map_err(|_| anyhow!("a thread panicked"))?.and(done)
    })
}

/// Queues whose one message is taken as soon as it is there.
pub fn snatch(queues: u64) -> Result<()> {
    let mut kept = Vec::new();
    for number in 0..queues {
        let name = std::ffi::CString::new(format!("snatch-{number}"))?;
        let oflag = (libc::O_RDWR | libc::O_CREAT | libc::O_NONBLOCK) as u32;
        let queue = crate::kernel::open_queue(&name, oflag, &[0, 8, MSGSIZE as i64, 0, 0, 0, 0, 0])?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&queue) as usize;
        let (receiver, sender) = (Caller::new(Abi::Native)?, Caller::new(Abi::Native)?);
        thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                let args = [fd, receiver.body, MSGSIZE, 0, 0];
                while Abi::Native.call(Call::Receive, args) == i64::from(-libc::EAGAIN) {}
            });
            sender.send(fd, 0, 0, 0)?;
            receiver.join().map_err(|_| anyhow!("a thread panicked"))
        })?;
        kept.push((name, queue));
    }
    mem::take(&mut kept).iter().for_each(|(name, _)| crate::kernel::mq_unlink(name));
    Ok(())
}
