//! Messages with their numbers in them, from several processes and threads to several others, and the truth about who
//! sent and who received which. Among the calls are such as fail before, in and after waiting: none of them passes a
//! message, and none may be taken for one that did.

use std::{
    ffi::CString,
    fmt::Write as _,
    fs::File,
    io::Write as _,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use nix::unistd::gettid;

use crate::{
    Ledger,
    kernel::{self, Timespec},
    open::{reap, spawn, wall_clock},
    rng::Rng,
};

const MAXMSG: i64 = 10;
const MSGSIZE: usize = 16;
/// From here on a number ends the receiver that gets it: there is nothing behind these messages.
const END: u64 = 1 << 63;

/// The queue: by one descriptor calls wait, by the other they don't.
struct Queue {
    waiting: OwnedFd,
    polling: OwnedFd,
}

pub fn run(options: &Ledger) -> Result<()> {
    File::create(&options.print)?;
    let name = CString::new(format!("ledger-{}", options.seed))?;
    kernel::mq_unlink(&name);
    let attr = [0, MAXMSG, MSGSIZE as i64, 0, 0, 0, 0, 0];
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    let queue = Queue {
        waiting: kernel::open_queue(&name, create, &attr)?,
        polling: kernel::open_queue(&name, (libc::O_RDWR | libc::O_NONBLOCK) as u32, &attr)?,
    };
    let side = |threads: u64, work: fn(&Ledger, &Queue, u64) -> Result<String>| {
        let processes = options.pool.map_or(options.processes, |_| 1);
        (0..processes)
            .map(|process| spawn(|| run_threads(options, &queue, process * threads..(process + 1) * threads, work)))
            .collect::<Result<Vec<_>>>()
    };
    let receivers = side(options.pool.unwrap_or(options.threads), receive)?;
    let sent = side(options.senders(), send)?.into_iter().try_for_each(reap);
    // Behind the last message, at the lowest priority.
    let mut record = String::new();
    for receiver in 0..options.pool.unwrap_or(options.processes * options.threads) {
        pass(&queue, END + receiver, 0, &mut record)?;
    }
    File::options().append(true).open(&options.print)?.write_all(record.as_bytes())?;
    let received = receivers.into_iter().try_for_each(reap);
    kernel::mq_unlink(&name);
    sent.and(received)
}

impl Ledger {
    /// Threads of each process that send.
    fn senders(&self) -> u64 {
        self.pool.map_or(self.threads, |_| 1)
    }
}

fn run_threads(
    options: &Ledger,
    queue: &Queue,
    workers: Range<u64>,
    work: fn(&Ledger, &Queue, u64) -> Result<String>,
) -> Result<()> {
    let records = thread::scope(|scope| {
        let workers: Vec<_> = workers.map(|worker| scope.spawn(move || work(options, queue, worker))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(File::options().append(true).open(&options.print)?.write_all(records.concat().as_bytes())?)
}

/// `after` milliseconds from now, which may be before.
fn deadline(after: i64) -> Result<Timespec> {
    let ns = i64::try_from(wall_clock()?)? + after * 1_000_000;
    Ok(Timespec { sec: ns / 1_000_000_000, nsec: ns % 1_000_000_000 })
}

fn send_by(queue: RawFd, number: u64, length: usize, priority: u32, deadline: &Timespec) -> i64 {
    let mut body = [0; MSGSIZE * 2];
    body[..8].copy_from_slice(&number.to_ne_bytes());
    kernel::mq_timedsend(queue, body.as_ptr().addr(), length, priority, std::ptr::from_ref(deadline).addr())
}

/// Sends the message, however often it takes.
fn pass(queue: &Queue, number: u64, priority: u32, record: &mut String) -> Result<()> {
    loop {
        match -send_by(queue.waiting.as_raw_fd(), number, 8, priority, &deadline(50)?) as i32 {
            0 => break,
            libc::ETIMEDOUT => {}
            errno => bail!("mq_timedsend: errno {errno}"),
        }
    }
    Ok(writeln!(record, "send\t{number}\t{}\t{priority}", gettid())?)
}

fn send(options: &Ledger, queue: &Queue, worker: u64) -> Result<String> {
    let workers = options.pool.map_or(options.processes, |_| 1) * options.senders();
    let mut rng = Rng::new(options.seed, worker);
    let mut record = String::new();
    let own = (0..options.messages).filter(|number| number % workers == worker);
    for (sent, number) in own.enumerate() {
        if (sent % 10 == 9 || options.pool.is_some()) && options.pause > 0 {
            thread::sleep(Duration::from_micros(options.pause));
        }
        let priority = rng.below(options.priorities.into()) as u32;
        let result = match rng.below(12) {
            _ if options.pool.is_some() => -1,
            0 => send_by(queue.waiting.as_raw_fd(), number, MSGSIZE + 1, priority, &deadline(50)?),
            1 => send_by(-1, number, 8, priority, &deadline(50)?),
            2 => send_by(queue.waiting.as_raw_fd(), number, 8, 40_000, &deadline(50)?),
            // These two pass the message where there is room.
            3 => send_by(queue.polling.as_raw_fd(), number, 8, priority, &deadline(50)?),
            4 => send_by(queue.waiting.as_raw_fd(), number, 8, priority, &deadline(-1000)?),
            _ => -1,
        };
        match result {
            0 => writeln!(record, "send\t{number}\t{}\t{priority}", gettid())?,
            _ => pass(queue, number, priority, &mut record)?,
        }
    }
    Ok(record)
}

fn receive(options: &Ledger, queue: &Queue, worker: u64) -> Result<String> {
    let mut rng = Rng::new(options.seed, !worker);
    let mut record = String::new();
    loop {
        let (mut body, mut priority) = ([0_u8; MSGSIZE], 0_u32);
        let (by, length, after) = match rng.below(12) {
            _ if options.pool.is_some() => (queue.waiting.as_raw_fd(), MSGSIZE, 60_000),
            0 => (queue.waiting.as_raw_fd(), MSGSIZE - 1, 50),
            1 => (-1, MSGSIZE, 50),
            // These two take a message where there is one.
            2 => (queue.polling.as_raw_fd(), MSGSIZE, 50),
            3 => (queue.waiting.as_raw_fd(), MSGSIZE, -1000),
            _ => (queue.waiting.as_raw_fd(), MSGSIZE, 50),
        };
        let deadline = deadline(after)?;
        let priority_at = if options.null_priority { 0 } else { (&raw mut priority).addr() };
        let body_at = body.as_mut_ptr().addr();
        match kernel::mq_timedreceive(by, body_at, length, priority_at, (&raw const deadline).addr()) {
            8 => {}
            // One that fails has taken nothing.
            ..0 => continue,
            other => bail!("a message of {other} bytes"),
        }
        let number = body[..8].try_into().map(u64::from_ne_bytes)?;
        writeln!(record, "receive\t{number}\t{}\t{priority}", gettid())?;
        if number >= END {
            return Ok(record);
        }
    }
}
