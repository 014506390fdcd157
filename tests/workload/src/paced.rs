//! Messages at an even pace through a queue that keeps its depth, so that rates, depth and waits are known: each message
//! waits until as many others were sent as stay in the queue.

use std::{
    ffi::CString,
    io::{self, BufRead, Write as _},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{Paced, kernel};

const MSGSIZE: usize = 16;

pub fn run(options: &Paced) -> Result<()> {
    let name = CString::new(options.name.clone())?;
    let attr = [0, options.maxmsg, MSGSIZE as i64, 0, 0, 0, 0, 0];
    let queue = kernel::open_queue(&name, (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32, &attr)?;
    let (queue, sent, ends) = (queue.as_raw_fd(), AtomicU64::new(0), AtomicBool::new(false));
    let send = || {
        sent.fetch_add(1, Ordering::SeqCst);
        kernel::mq_timedsend(queue, [0_u8; MSGSIZE].as_ptr().addr(), 1, 0, 0)
    };
    let receive = || {
        let mut body = [0_u8; MSGSIZE];
        kernel::mq_timedreceive(queue, body.as_mut_ptr().addr(), MSGSIZE, 0, 0)
    };
    for _ in 0..options.depth {
        ensure!(send() == 0, "a queue that is full");
    }
    let outcome = thread::scope(|scope| -> Result<()> {
        let passing = scope.spawn(|| {
            let mut next = Instant::now();
            while !ends.load(Ordering::SeqCst) {
                ensure!(send() == 0 && receive() == 1, "a message that was not passed");
                next = (next + Duration::from_secs(1) / options.rate).max(Instant::now());
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        });
        println!("paced");
        io::stdout().flush()?;
        for line in io::stdin().lock().lines() {
            line?;
            println!("{}", sent.load(Ordering::SeqCst));
            io::stdout().flush()?;
        }
        ends.store(true, Ordering::SeqCst);
        passing.join().map_err(|_| anyhow::anyhow!("the passing thread died"))?
    });
    kernel::mq_unlink(&name);
    outcome
}
