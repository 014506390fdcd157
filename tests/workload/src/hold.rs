//! Queues in a state that stays: one with messages in it, one that threads sleep on.

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::unistd::gettid;

use crate::{Hold, kernel};

const MSGSIZE: usize = 16;

pub fn run(options: &Hold) -> Result<()> {
    let names = ["full", "empty"].map(|kind| CString::new(format!("{}-{kind}", options.name)));
    let [full_name, empty_name] = names;
    let (full_name, empty_name) = (full_name?, empty_name?);
    let attr = [0, options.maxmsg, MSGSIZE as i64, 0, 0, 0, 0, 0];
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    let (full, empty) =
        (kernel::open_queue(&full_name, create, &attr)?, kernel::open_queue(&empty_name, create, &attr)?);
    let send = |queue| kernel::mq_timedsend(queue, [0_u8; MSGSIZE].as_ptr().addr(), 1, 0, 0);
    let receive = |queue| {
        let mut body = [0_u8; MSGSIZE];
        kernel::mq_timedreceive(queue, body.as_mut_ptr().addr(), MSGSIZE, 0, 0)
    };
    for _ in 0..options.sent {
        ensure!(send(full.as_raw_fd()) == 0, "a queue that is full");
    }
    for _ in 0..options.received {
        ensure!(receive(full.as_raw_fd()) == 1, "a queue that is empty");
    }
    let threads: Vec<_> = (0..options.waiting).map(|_| AtomicI32::new(0)).collect();
    let empty = empty.as_raw_fd();
    thread::scope(|scope| -> Result<()> {
        for thread in &threads {
            scope.spawn(|| {
                thread.store(gettid().as_raw(), Ordering::Relaxed);
                receive(empty)
            });
        }
        while !threads.iter().all(|thread| sleeps(thread.load(Ordering::Relaxed))) {
            thread::sleep(Duration::from_millis(1));
        }
        println!("held");
        io::stdout().flush()?;
        io::copy(&mut io::stdin(), &mut io::sink())?;
        for _ in &threads {
            ensure!(send(empty) == 0, "a thread that waits takes the message");
        }
        Ok(())
    })?;
    kernel::mq_unlink(&full_name);
    kernel::mq_unlink(&empty_name);
    Ok(())
}

/// How long the receiver rests between two messages: the next send has come to wait by then.
const REST: Duration = Duration::from_micros(300);

pub fn full() -> Result<()> {
    let name = CString::new(format!("always-full-{}", std::process::id()))?;
    let attr = [0, 2, MSGSIZE as i64, 0, 0, 0, 0, 0];
    let queue = kernel::open_queue(&name, (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32, &attr)?;
    kernel::mq_unlink(&name);
    let (queue, ends, senders) = (queue.as_raw_fd(), AtomicBool::new(false), AtomicI32::new(2));
    let send = || kernel::mq_timedsend(queue, [0_u8; MSGSIZE].as_ptr().addr(), 1, 0, 0);
    // These two have a certain place; the senders below are never alone.
    (0..attr[1]).for_each(|_| _ = send());
    // Without waiting: the queue is full until the senders end.
    let past = kernel::Timespec { sec: 1, nsec: 0 };
    let receive = || {
        let (mut body, deadline) = ([0_u8; MSGSIZE], (&raw const past).addr());
        kernel::mq_timedreceive(queue, body.as_mut_ptr().addr(), MSGSIZE, 0, deadline)
    };
    thread::scope(|scope| -> Result<()> {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    send();
                }
                senders.fetch_sub(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while senders.load(Ordering::Relaxed) > 0 {
                thread::sleep(REST);
                receive();
            }
        });
        println!("full");
        io::stdout().flush()?;
        io::copy(&mut io::stdin(), &mut io::sink())?;
        ends.store(true, Ordering::Relaxed);
        Ok(())
    })
}

/// Whether the thread is in mq_timedreceive, by what the kernel says of it.
fn sleeps(thread: i32) -> bool {
    let call = fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap_or_default();
    call.split(' ').next() == Some(&*libc::SYS_mq_timedreceive.to_string())
}
