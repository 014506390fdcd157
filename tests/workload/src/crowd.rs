//! Many threads that wait at many queues, until they are let go.

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicI32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::unistd::gettid;

use crate::{
    Crowd,
    abi::{Abi, Call, Low},
    kernel,
};

const MSGSIZE: usize = 8;
/// Enough for a thread that does nothing but wait.
const STACK: usize = 64 << 10;

fn send(queue: i32) -> i64 {
    kernel::mq_timedsend(queue, [0_u8; MSGSIZE].as_ptr().addr(), 1, 0, 0)
}

fn receive(queue: i32) -> i64 {
    let mut body = [0_u8; MSGSIZE];
    kernel::mq_timedreceive(queue, body.as_mut_ptr().addr(), MSGSIZE, 0, 0)
}

pub fn run(options: &Crowd) -> Result<()> {
    let attr = [0, 1, MSGSIZE as i64, 0, 0, 0, 0, 0];
    let create = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
    let names = (0..options.queues).map(|number| Ok(CString::new(format!("{}-{number}", options.name))?));
    let names = names.collect::<Result<Vec<_>>>()?;
    let queues =
        names.iter().map(|name| kernel::open_queue(name, create, &attr)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let fds: Vec<i32> = queues.iter().map(AsRawFd::as_raw_fd).collect();
    // Those of odd numbers are full: at them threads wait to send.
    for fd in fds.iter().skip(1).step_by(2) {
        ensure!(send(*fd) == 0, "room for a message");
    }
    // What they send and receive is nothing: they share a place for it.
    let body = Low::new()?.put(&[0; MSGSIZE])?;
    let threads: Vec<_> = (0..options.threads).map(|_| AtomicI32::new(0)).collect();
    thread::scope(|scope| -> Result<()> {
        for (number, id) in threads.iter().enumerate() {
            let place = number % fds.len();
            let fd = fds[place];
            let (abi, call) = (options.abi, if place.is_multiple_of(2) { Call::Receive } else { Call::Send });
            let size = if place.is_multiple_of(2) { MSGSIZE } else { 1 };
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || {
                id.store(gettid().as_raw(), Ordering::Relaxed);
                abi.call(call, [fd as usize, body, size, 0, 0])
            })?;
        }
        while !threads.iter().all(|id| waits(id.load(Ordering::Relaxed), options.abi)) {
            thread::sleep(Duration::from_millis(5));
        }
        println!("held");
        io::stdout().flush()?;
        io::copy(&mut io::stdin(), &mut io::sink())?;
        for number in 0..threads.len() {
            let place = number % fds.len();
            let done = if place.is_multiple_of(2) { send(fds[place]) } else { receive(fds[place]) };
            ensure!(done >= 0, "a thread that waits goes on");
        }
        Ok(())
    })?;
    names.iter().for_each(kernel::mq_unlink);
    Ok(())
}

fn waits(thread: i32, abi: Abi) -> bool {
    let call = fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().unwrap_or_default();
    [Call::Receive, Call::Send].iter().any(|call| number == abi.number(*call).to_string())
}
