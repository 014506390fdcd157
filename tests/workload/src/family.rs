//! Randomised calls of all six over processes and threads: on full and empty queues, by every kind of descriptor, with
//! every kind of argument that is wrong.

use std::{
    ffi::CString,
    fs::File,
    io::Write as _,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    fcntl::{OFlag, open},
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        stat::Mode,
    },
    unistd::{dup, getpid, gettid, pipe},
};

use crate::{
    Calls,
    kernel::{self, Timespec},
    memory::{Place, Region},
    open::{reap, spawn, wall_clock},
    rng::Rng,
};

const QUEUES: u64 = 6;
/// More than any queue's messages take.
const LONGEST: usize = 512;

/// A descriptor, and what it is.
#[derive(Clone)]
struct Descriptor {
    fd: RawFd,
    /// Name, maxmsg, msgsize; None where it is no queue.
    queue: Option<(String, u64, u64)>,
    /// Whether calls by it never sleep; where they may, they need a deadline.
    nonblocking: bool,
}

pub fn run(options: &Calls) -> Result<()> {
    if let Some(path) = &options.print {
        File::create(path)?;
    }
    extern "C" fn interrupt(_: i32) {}
    // Without SA_RESTART: a call that it ends is not made again behind the caller's back.
    let handler = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe {
        sigaction(Signal::SIGUSR2, &handler)?;
        sigaction(Signal::SIGUSR1, &ignore)?;
    }
    kernel::ignore_signal(libc::SIGRTMIN() + 3);

    let (descriptors, _open) = descriptors(options.seed)?;
    let children = (0..options.processes).map(|process| spawn(|| run_threads(options, process, &descriptors)));
    let outcome = children.collect::<Result<Vec<_>>>()?.into_iter().try_for_each(reap);
    for number in 0..QUEUES {
        kernel::mq_unlink(&CString::new(name(options.seed, number))?);
    }
    outcome
}

fn name(seed: u64, number: u64) -> String {
    format!("family-{seed}-{number}")
}

/// What the children inherit: several descriptors of each queue, and some that are none.
fn descriptors(seed: u64) -> Result<(Vec<Descriptor>, Vec<OwnedFd>)> {
    let (mut all, mut open_fds) = (Vec::new(), Vec::new());
    for number in 0..QUEUES {
        let (maxmsg, msgsize): (u64, u64) = (1 + number % 4, [8, 16, 64, 200][number as usize % 4]);
        let name = name(seed, number);
        let passed = CString::new(&*name)?;
        kernel::mq_unlink(&passed);
        let attr = [0, maxmsg.cast_signed(), msgsize.cast_signed(), 0, 0, 0, 0, 0];
        let create = (libc::O_CREAT | libc::O_EXCL) as u32;
        let mut add = |fd: OwnedFd, nonblocking| {
            all.push(Descriptor { fd: fd.as_raw_fd(), queue: Some((name.clone(), maxmsg, msgsize)), nonblocking });
            open_fds.push(fd);
        };
        let blocking = kernel::open_queue(&passed, libc::O_RDWR as u32 | create, &attr)?;
        let copy = dup(&blocking)?;
        add(blocking, false);
        add(copy, false);
        for access in [libc::O_RDWR, libc::O_RDWR, libc::O_RDONLY, libc::O_WRONLY] {
            add(kernel::open_queue(&passed, (access | libc::O_NONBLOCK) as u32, &attr)?, true);
        }
        // As any file, under the mounted file system.
        add(open(&*format!("/dev/mqueue/{name}"), OFlag::O_RDWR, Mode::empty()).context("/dev/mqueue")?, false);
    }
    let (read, write) = pipe()?;
    let null = OwnedFd::from(File::open("/dev/null")?);
    for fd in [read, write, null] {
        all.push(Descriptor { fd: fd.as_raw_fd(), queue: None, nonblocking: true });
        open_fds.push(fd);
    }
    // Never opened: no thread can come by their numbers meanwhile.
    for fd in [-1, 900, i32::MAX, i32::MIN] {
        all.push(Descriptor { fd, queue: None, nonblocking: true });
    }
    Ok((all, open_fds))
}

fn run_threads(options: &Calls, process: u64, descriptors: &[Descriptor]) -> Result<()> {
    let threads: Vec<_> = (0..options.threads).map(|_| AtomicI32::new(0)).collect();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|thread| {
                let (number, threads) = (process * options.threads + thread, &threads);
                scope.spawn(move || {
                    threads[thread as usize].store(gettid().as_raw(), Ordering::Relaxed);
                    Worker::new(options, number, threads, descriptors)?.run()
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

struct Worker<'a> {
    options: &'a Calls,
    calls: u64,
    rng: Rng,
    threads: &'a [AtomicI32],
    descriptors: &'a [Descriptor],
    /// Of this thread alone: its flags may be changed.
    own: (Descriptor, OwnedFd),
    memory: Region,
    body: [u8; LONGEST],
    record: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(options: &'a Calls, number: u64, threads: &'a [AtomicI32], descriptors: &'a [Descriptor]) -> Result<Self> {
        let workers = options.threads * options.processes;
        let shared = &descriptors[0];
        let path = format!("/dev/mqueue/{}", shared.queue.as_ref().map(|queue| &*queue.0).unwrap_or_default());
        let own = open(&*path, OFlag::O_RDWR, Mode::empty()).context(path)?;
        Ok(Self {
            options,
            calls: options.calls / workers + u64::from(number < options.calls % workers),
            rng: Rng::new(options.seed, number),
            threads,
            descriptors,
            own: (Descriptor { fd: own.as_raw_fd(), ..shared.clone() }, own),
            memory: Region::new()?,
            body: [7; LONGEST],
            record: Vec::new(),
        })
    }

    fn run(mut self) -> Result<()> {
        for _ in 0..self.calls {
            match self.rng.below(100) {
                0..8 => self.open()?,
                8..16 => self.unlink()?,
                16..50 => self.send()?,
                50..80 => self.receive()?,
                80..88 => self.notify()?,
                _ => self.getsetattr()?,
            }
            if self.rng.one_in(8) {
                let other = self.rng.below(self.threads.len() as u64) as usize;
                kernel::interrupt(self.threads[other].load(Ordering::Relaxed));
            }
        }
        if let Some(path) = &self.options.print {
            File::options().append(true).open(path)?.write_all(&self.record)?;
        }
        Ok(())
    }

    fn descriptor(&mut self) -> Descriptor {
        match self.rng.below(12) {
            0 => self.own.0.clone(),
            // One in a handful is no queue.
            1 => self.descriptors[self.descriptors.len() - 1 - self.rng.below(7) as usize].clone(),
            _ => self.descriptors[self.rng.below(self.descriptors.len() as u64 - 7) as usize].clone(),
        }
    }

    /// Makes the call and notes it, with the queue that its descriptor is.
    fn make(&mut self, name: &str, by: Option<&Descriptor>, call: impl FnOnce() -> i64) -> Result<i64> {
        let before = wall_clock()?;
        let result = call();
        let after = wall_clock()?;
        let queue =
            match by.and_then(|descriptor| descriptor.queue.as_ref().map(|queue| (queue, descriptor.nonblocking))) {
                Some(((name, maxmsg, msgsize), nonblocking)) => format!("{name},{maxmsg},{msgsize},{nonblocking}"),
                None => "-".into(),
            };
        writeln!(self.record, "{}\t{name}\t{queue}\t{before}\t{after}\t{result}\t{}", gettid(), getpid())?;
        Ok(result)
    }

    /// An address that can't be read or written, NULL among them.
    fn wild(&mut self) -> usize {
        self.rng.pick(&[0, 1, 0x10, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, usize::MAX])
    }

    fn open(&mut self) -> Result<()> {
        let name = CString::new(match self.rng.below(4) {
            0 => "family-missing".into(),
            1 => format!("family-{}-own-{}", self.options.seed, gettid()),
            _ => name(self.options.seed, self.rng.below(QUEUES)),
        })?;
        let place = self.rng.pick(&[Place::Resident, Place::Resident, Place::Edge, Place::Null, Place::Wild(0x10)]);
        let at = self.memory.put(name.as_bytes_with_nul(), place)?;
        let attr = [0, 3, 32, 0, 0, 0, 0, 0_i64];
        let attr_at = if self.rng.one_in(8) { self.wild() } else { attr.as_ptr().addr() };
        let create = name.to_bytes().starts_with(format!("family-{}-own", self.options.seed).as_bytes());
        let more = if create { libc::O_CREAT } else { 0 } | if self.rng.one_in(3) { libc::O_NONBLOCK } else { 0 };
        let oflag = (self.rng.pick(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR]) | more) as u32;
        let result = self.make("mq_open", None, || kernel::mq_open(at, oflag, 0o600, attr_at))?;
        if let Ok(descriptor @ 0..) = i32::try_from(result) {
            // SAFETY: the call has just returned this descriptor, and nothing else owns it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        if create {
            let at = name.as_ptr().addr();
            self.make("mq_unlink", None, || kernel::mq_unlink_at(at))?;
        }
        Ok(())
    }

    fn unlink(&mut self) -> Result<()> {
        let name = self.rng.pick(&["family-missing", "", "inner/slash", "\u{1b}[31m", "Größe", "..", "."]);
        let place =
            self.rng.pick(&[Place::Resident, Place::Absent, Place::Torn, Place::Edge, Place::Null, Place::Wild(0x10)]);
        let at = self.memory.put(CString::new(name)?.as_bytes_with_nul(), place)?;
        self.make("mq_unlink", None, || kernel::mq_unlink_at(at)).map(drop)
    }

    /// A deadline that suits the descriptor: by one that may sleep, it comes soon or is refused.
    fn deadline(&mut self, by: &Descriptor) -> Result<(Timespec, Option<usize>)> {
        let now = i64::try_from(wall_clock()?)?;
        // Some leave time enough for the call to sleep, whatever else the machine does.
        let ahead = if self.rng.one_in(16) { 120_000_000 } else { self.rng.between(200_000, 8_000_000) };
        let soon = now + i64::try_from(ahead)?;
        let split = |ns: i64| Timespec { sec: ns / 1_000_000_000, nsec: ns % 1_000_000_000 };
        Ok(match self.rng.below(12) {
            0 => (split(now - 5_000_000_000), None),
            1 => (Timespec { sec: 0, nsec: 0 }, None),
            2 => (Timespec { sec: now / 1_000_000_000 + 9, nsec: 1_000_000_000 }, None),
            3 => (Timespec { sec: now / 1_000_000_000 + 9, nsec: -1 }, None),
            4 => (Timespec { sec: -1, nsec: 5 }, None),
            5 => (split(soon), Some(self.rng.pick(&[1, 0x10, 0xffff_8000_0000_0000]))),
            6..9 if by.nonblocking => (split(soon), Some(0)),
            _ => (split(soon), None),
        })
    }

    fn send(&mut self) -> Result<()> {
        let by = self.descriptor();
        let (deadline, elsewhere) = self.deadline(&by)?;
        let deadline_at = elsewhere.unwrap_or((&raw const deadline).addr());
        let most = by.queue.as_ref().map_or(16, |queue| queue.2) as usize;
        let length = match self.rng.below(10) {
            0 => 0,
            1 => most,
            2 => most + 1,
            3 => self.rng.pick(&[1_u64 << 20, 1 << 40, 1 << 62]) as usize,
            _ => self.rng.below(most as u64 + 1) as usize,
        };
        let body = if self.rng.one_in(12) { self.wild() } else { self.body.as_ptr().addr() };
        let priority = match self.rng.below(10) {
            0 => self.rng.pick(&[32_767, 32_768, u32::MAX]),
            _ => self.rng.pick(&[0, 1, 5]),
        };
        self.make("mq_timedsend", Some(&by), || kernel::mq_timedsend(by.fd, body, length, priority, deadline_at))
            .map(drop)
    }

    fn receive(&mut self) -> Result<()> {
        let by = self.descriptor();
        let (deadline, elsewhere) = self.deadline(&by)?;
        let deadline_at = elsewhere.unwrap_or((&raw const deadline).addr());
        let length = match self.rng.below(10) {
            0 => self.rng.below(8) as usize,
            1 => usize::MAX,
            _ => LONGEST,
        };
        let mut body = [0; LONGEST];
        let body_at = if self.rng.one_in(16) { self.wild() } else { body.as_mut_ptr().addr() };
        let mut priority = 0_u32;
        let priority_at = match self.rng.below(12) {
            0 => self.wild(),
            1 | 2 => 0,
            _ => (&raw mut priority).addr(),
        };
        let call = || kernel::mq_timedreceive(by.fd, body_at, length, priority_at, deadline_at);
        self.make("mq_timedreceive", Some(&by), call).map(drop)
    }

    fn notify(&mut self) -> Result<()> {
        let by = self.descriptor();
        let method = self.rng.pick(&[libc::SIGEV_SIGNAL, libc::SIGEV_SIGNAL, libc::SIGEV_NONE, libc::SIGEV_THREAD, 77]);
        let signal = self.rng.pick(&[libc::SIGUSR1, libc::SIGRTMIN() + 3]);
        // SIGEV_THREAD takes a socket's descriptor for the signal, and reads a cookie: neither is one here.
        let event = kernel::Event::new(method, signal);
        let at = match self.rng.below(6) {
            0 | 1 => 0,
            2 => self.rng.pick(&[1, 0xffff_8000_0000_0000]),
            _ => (&raw const event).addr(),
        };
        self.make("mq_notify", Some(&by), || kernel::mq_notify(by.fd, at)).map(drop)
    }

    fn getsetattr(&mut self) -> Result<()> {
        let by = self.descriptor();
        let is_own = by.fd == self.own.0.fd;
        // Other threads' calls would sleep without a deadline if a shared descriptor lost its O_NONBLOCK.
        let flags = match (is_own, by.nonblocking) {
            (true, _) => self.rng.pick(&[0, i64::from(libc::O_NONBLOCK), 1, -1]),
            (false, true) => self.rng.pick(&[i64::from(libc::O_NONBLOCK), 1, -1]),
            (false, false) => self.rng.pick(&[0, 1, -1]),
        };
        let new = [flags, self.rng.next().cast_signed(), -3, 9, 0, 0, 0, 0];
        let mut old = [0_i64; 8];
        let new_at = match self.rng.below(4) {
            0 => new.as_ptr().addr(),
            1 => self.rng.pick(&[1, 0x10]),
            _ => 0,
        };
        let old_at = match self.rng.below(4) {
            0 => 0,
            1 => self.rng.pick(&[1, 0x10]),
            _ => old.as_mut_ptr().addr(),
        };
        let result = self.make("mq_getsetattr", Some(&by), || kernel::mq_getsetattr(by.fd, new_at, old_at))?;
        ensure!(result != 0 || old_at == 0 || by.queue.is_some(), "a queue that is none");
        // EFAULT from the old attr comes after the new one is in force.
        if is_own && new_at == new.as_ptr().addr() && (result == 0 || result == -i64::from(libc::EFAULT)) {
            self.own.0.nonblocking = flags & i64::from(libc::O_NONBLOCK) != 0;
        }
        Ok(())
    }
}
