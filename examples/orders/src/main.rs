//! A shop of three processes that talk through POSIX message queues:
//!
//! ```text
//! orders ──/orders──▶ biller ──/shipments──▶ shipper
//! ```
//!
//! It makes the calls that such programs make: it creates queues, or opens them where another process was quicker
//! (`EEXIST`), tries a queue that only some installations have (`ENOENT`), sends express orders at a higher priority,
//! and unlinks its queues at the end. Watch it with `mqspan run -- orders`.

use std::{
    env,
    process::{Child, Command},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::{
    errno::Errno,
    mqueue::{MQ_OFlag, MqAttr, MqdT, mq_close, mq_open, mq_receive, mq_send, mq_unlink},
    sys::{prctl, stat::Mode},
};

const ORDERS: &str = "/orders";
const SHIPMENTS: &str = "/shipments";
/// Where an auditor wants to hear of every bill; the shop works without one.
const AUDIT: &str = "/audit";

const MAX_MESSAGES: i64 = 10;
const MESSAGE_SIZE: i64 = 64;
const ORDINARY: u32 = 0;
const EXPRESS: u32 = 5;
/// The empty message, sent last and at the lowest priority: there is nothing behind it.
const CLOSED: &[u8] = b"";

/// A small shop over POSIX message queues.
#[derive(Parser)]
struct Args {
    /// Orders to take before the shop closes
    #[arg(long, default_value_t = 10)]
    rounds: u32,

    /// Milliseconds between two orders
    #[arg(long, value_name = "MS", default_value_t = 200)]
    pause: u64,

    /// What this process does; without it, it takes the orders and starts the others
    #[arg(hide = true)]
    role: Option<Role>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Biller,
    Shipper,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.role {
        None => take_orders(args.rounds, Duration::from_millis(args.pause)),
        Some(Role::Biller) => bill(),
        Some(Role::Shipper) => ship(),
    }
}

fn take_orders(rounds: u32, pause: Duration) -> Result<()> {
    for queue in [ORDERS, SHIPMENTS] {
        unlink(queue)?; // a shop that was killed leaves its queues, and orders in them
    }
    let orders = Queue::create_or_open(ORDERS)?;
    let staff = [start("biller")?, start("shipper")?];

    for number in 1..=rounds {
        let priority = if number.is_multiple_of(3) { EXPRESS } else { ORDINARY };
        orders.send(format!("order {number}").as_bytes(), priority)?;
        thread::sleep(pause);
    }
    orders.send(CLOSED, ORDINARY)?;

    for mut worker in staff {
        let status = worker.wait()?;
        ensure!(status.success(), "a worker left the shop: {status}");
    }
    unlink(ORDERS)?;
    unlink(SHIPMENTS)?;
    eprintln!("orders: {rounds} orders taken, billed and shipped");
    Ok(())
}

fn bill() -> Result<()> {
    prctl::set_name(c"biller")?;
    let orders = Queue::create_or_open(ORDERS)?;
    let shipments = Queue::create_or_open(SHIPMENTS)?;
    loop {
        let (order, priority) = orders.receive()?;
        if order == CLOSED {
            return shipments.send(CLOSED, ORDINARY);
        }
        if let Some(audit) = Queue::open(AUDIT, MQ_OFlag::O_WRONLY)? {
            audit.send(&order, priority)?;
            audit.close()?;
        }
        shipments.send(&order, priority)?;
    }
}

fn ship() -> Result<()> {
    prctl::set_name(c"shipper")?;
    let shipments = Queue::create_or_open(SHIPMENTS)?;
    while shipments.receive()?.0 != CLOSED {}
    Ok(())
}

/// Runs this program once more, as another process of the shop.
fn start(role: &str) -> Result<Child> {
    Command::new(env::current_exe()?).arg(role).spawn().with_context(|| format!("{role}: can't be started"))
}

/// An open queue. The processes of the shop keep theirs until they end, but for the auditor's.
struct Queue {
    name: &'static str,
    descriptor: MqdT,
}

impl Queue {
    /// The process that comes first creates the queue, every other one finds it.
    fn create_or_open(name: &'static str) -> Result<Self> {
        let create = MQ_OFlag::O_RDWR | MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL;
        let mode = Mode::from_bits_truncate(0o640);
        let attr = MqAttr::new(0, MAX_MESSAGES, MESSAGE_SIZE, 0);
        match mq_open(name, create, mode, Some(&attr)) {
            Ok(descriptor) => Ok(Self { name, descriptor }),
            Err(Errno::EEXIST) => {
                Self::open(name, MQ_OFlag::O_RDWR)?.with_context(|| format!("{name}: gone before it was opened"))
            }
            Err(error) => Err(error).with_context(|| format!("{name}: can't be created")),
        }
    }

    /// `None` where there is no such queue.
    fn open(name: &'static str, access: MQ_OFlag) -> Result<Option<Self>> {
        match mq_open(name, access, Mode::empty(), None) {
            Ok(descriptor) => Ok(Some(Self { name, descriptor })),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{name}: can't be opened")),
        }
    }

    /// Waits while the queue is full.
    fn send(&self, message: &[u8], priority: u32) -> Result<()> {
        mq_send(&self.descriptor, message, priority).with_context(|| format!("{}: can't send", self.name))
    }

    /// Waits for a message; gives it with its priority, the highest in the queue.
    fn receive(&self) -> Result<(Vec<u8>, u32)> {
        let mut message = vec![0; MESSAGE_SIZE as usize];
        let mut priority = 0;
        let length = mq_receive(&self.descriptor, &mut message, &mut priority)
            .with_context(|| format!("{}: can't receive", self.name))?;
        message.truncate(length);
        Ok((message, priority))
    }

    fn close(self) -> Result<()> {
        mq_close(self.descriptor).with_context(|| format!("{}: can't be closed", self.name))
    }
}

fn unlink(name: &str) -> Result<()> {
    match mq_unlink(name) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{name}: can't be unlinked")),
    }
}
