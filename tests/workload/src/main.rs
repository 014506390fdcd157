//! Makes calls of the family for mqspan's tests and benchmarks to watch: by the raw system call, so that they arrive in the
//! kernel as they are written here, without glibc's checks and without its removing the slash.

#![cfg_attr(
    target_pointer_width = "32",
    allow(overflowing_literals, reason = "addresses that only the calls of 64-bit programs pass")
)]

mod abi;
mod bursts;
mod call;
mod causes;
mod crowd;
mod family;
mod fuse;
mod hold;
mod hostile;
mod kernel;
mod ledger;
mod memory;
mod open;
mod paced;
mod periodic;
mod publish;
mod race;
mod rng;
mod steps;
mod timing;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, Parser};

/// Makes calls of the family for mqspan's tests and benchmarks to watch
#[derive(Parser)]
enum Workload {
    /// Makes randomised calls, the same ones for the same seed, threads and processes
    Open(Open),

    /// Makes randomised calls of all six
    Calls(Calls),

    /// Passes numbered messages through one queue, with failures among the calls; writes who sent and who received which
    Ledger(Ledger),

    /// Leaves a queue with messages in it and threads asleep on another, says `held`, and lets go when stdin ends
    Hold(Hold),

    /// Passes messages at an even pace through a queue that keeps its depth, says `paced`, and for each line on stdin how many
    /// it has sent; removes the queue and ends when stdin ends
    Paced(Paced),

    /// Has threads wait at queues, to receive at those of even numbers, to send at the others; says `held`, and lets go when
    /// stdin ends
    Crowd(Crowd),

    /// Keeps a queue full, with two senders that wait for room and a receiver that asks for no priority, says `full` and ends
    /// when stdin ends
    Full,

    /// In each of some seconds makes calls of each kind that a limit on their rate tells apart, and a second later one pair
    /// more; prints in how many seconds of CLOCK_MONOTONIC that was
    Bursts(Bursts),

    /// Makes every call in every way that has one outcome, always the same
    Steps(Steps),

    /// Passes one message through each queue, to a receiver that asks all the time: /snatch-0 and so on
    Snatch {
        #[arg(long, default_value_t = 50)]
        queues: u64,
    },

    /// Opens queues while another thread changes the arguments; writes what the kernel used
    Race(Race),

    /// Makes calls that fail, each for a cause that it sets up; prints a line for each, a tab between the fields: thread id,
    /// errno, cause, the limit's value, what is in use, what is asked for, who is registered; `-` where there is none
    Causes(Causes),

    /// Publishes process contexts, one after the other, and calls when it is told to on stdin
    Publish(Publish),

    /// Makes calls as a process that would hold up whoever looks at it
    Hostile(hostile::Hostile),

    /// Opens a missing queue flat out; prints the nanoseconds that a call took
    Flat(timing::Pieces),

    /// Sends messages to itself flat out, each received before the next; prints the nanoseconds that a call took
    Pass(timing::Pieces),

    /// Sends messages to another process, which answers each; prints the nanoseconds that a call took
    Ping(timing::Pieces),

    /// Sends a message each millisecond at a real-time priority; prints how late it was woken and what the send took
    Periodic(periodic::Periodic),

    /// Makes a system call that has nothing to do with queues; prints the nanoseconds that it took
    Unrelated(timing::Pieces),

    /// Makes and removes queues of different names, each as long as a name may be
    Names {
        #[arg(long, default_value_t = 950)]
        names: u64,
    },

    /// Starts processes, one after the other, that make one call each and are gone
    ShortLived {
        #[arg(long, default_value_t = 100)]
        calls: u64,
    },
}

#[derive(Args)]
struct Publish {
    /// Services
    names: Vec<String>,

    /// Where they are
    #[arg(long, value_enum, default_value = "memfd")]
    mapping: publish::Mapping,

    /// Then become a program that makes one call more
    #[arg(long)]
    exec: bool,
}

#[derive(Args)]
struct Open {
    /// How many, over all threads of all processes
    #[arg(long, default_value_t = 3000)]
    calls: u64,

    /// Of all that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// In each process
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    threads: u64,

    /// Children that make the calls; 0: this process itself
    #[arg(long, default_value_t = 2)]
    processes: u64,

    /// Write every call to this file, a tab between the fields: thread id, name in hex (after `~` where it was not in
    /// memory when the call began), oflag, mode, attr, result, the queue's own maxmsg, msgsize, curmsgs and mode, the
    /// time before and after in ns, process id; `-` where memory can't be read or no queue was opened
    #[arg(long, value_name = "PATH")]
    print: Option<PathBuf>,
}

#[derive(Args)]
struct Calls {
    /// How many, over all threads of all processes; those that make and remove the queues come on top
    #[arg(long, default_value_t = 10_000)]
    calls: u64,

    /// Of all that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// In each process
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    threads: u64,

    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    processes: u64,

    /// Write every call of the threads to this file, a tab between the fields: thread id, name, the queue that the
    /// descriptor is (its name, maxmsg, msgsize, and whether calls by it never sleep), the time before and after in ns,
    /// result, process id; `-` where it is no queue
    #[arg(long, value_name = "PATH")]
    print: Option<PathBuf>,
}

#[derive(Args)]
struct Ledger {
    #[arg(long, default_value_t = 50_000)]
    messages: u64,

    /// Of all that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Processes on each side
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    processes: u64,

    /// In each process
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    threads: u64,

    /// 0 to one below this
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=32_768))]
    priorities: u32,

    /// Receivers pass NULL for the priority, as most programs do
    #[arg(long)]
    null_priority: bool,

    /// Microseconds that each sender sleeps after every tenth message
    #[arg(long, default_value_t = 0)]
    pause: u64,

    /// One sender, which sleeps after each message, and so many receivers, in one process; they do nothing but wait
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["processes", "threads"])]
    pool: Option<u64>,

    /// The truth, a tab between the fields: send or receive, the message's number, thread id, priority; a thread's in
    /// the order of its calls
    #[arg(long, value_name = "PATH")]
    print: PathBuf,
}

#[derive(Args)]
struct Hold {
    /// The queues are /NAME-full and /NAME-empty
    #[arg(long)]
    name: String,

    /// Of each queue
    #[arg(long, default_value_t = 8)]
    maxmsg: i64,

    /// Messages sent to the one queue
    #[arg(long, default_value_t = 5)]
    sent: u64,

    /// Of these, received again
    #[arg(long, default_value_t = 2)]
    received: u64,

    /// Threads that wait for a message of the other queue
    #[arg(long, default_value_t = 3)]
    waiting: u64,
}

#[derive(Args)]
struct Paced {
    /// Of the queue
    #[arg(long)]
    name: String,

    #[arg(long, default_value_t = 10)]
    maxmsg: i64,

    /// Messages that stay in it
    #[arg(long, default_value_t = 5)]
    depth: u64,

    /// Messages a second
    #[arg(long, default_value_t = 50)]
    rate: u32,
}

#[derive(Args)]
struct Bursts {
    /// Of the queue
    #[arg(long)]
    name: String,

    #[arg(long, default_value_t = 2)]
    bursts: u64,

    /// In each burst: a message sent and received
    #[arg(long, default_value_t = 200)]
    pairs: u64,

    /// In each burst: receives that find nothing
    #[arg(long, default_value_t = 200)]
    polls: u64,

    /// In each burst: sends that fail
    #[arg(long, default_value_t = 0)]
    failed: u64,

    /// In each burst: sends that wait for 20 ms
    #[arg(long, default_value_t = 0)]
    slow: u64,

    /// In each burst: mq_getsetattr
    #[arg(long, default_value_t = 0)]
    asked: u64,
}

#[derive(Args)]
struct Steps {
    /// As which kind of caller
    #[arg(long, value_enum, default_value = "native")]
    abi: abi::Abi,
}

#[derive(Args)]
struct Crowd {
    /// The queues are /NAME-0 and so on
    #[arg(long)]
    name: String,

    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    queues: u64,

    #[arg(long, default_value_t = 100)]
    threads: u64,

    /// As which kind of caller they wait
    #[arg(long, value_enum, default_value = "native")]
    abi: abi::Abi,
}

#[derive(Args)]
struct Causes {
    /// As which kind of caller
    #[arg(long, value_enum, default_value = "native")]
    abi: abi::Abi,

    /// As many that are drawn at random, in place of the table
    #[arg(long, default_value_t = 0)]
    random: u64,

    /// That no file may be opened any more on the whole machine, too: for one that nobody else uses
    #[arg(long)]
    file_max: bool,

    /// Of all that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct Race {
    /// While the name changes, and as many while attr does
    #[arg(long, default_value_t = 50)]
    calls: u64,

    /// Each call that succeeded: `name` or `attr`, and the queue's own
    #[arg(long, value_name = "PATH")]
    print: PathBuf,
}

fn main() -> Result<()> {
    let workload = Workload::parse();
    // The others lay out their arguments as 64-bit programs do.
    let lays_out = matches!(workload, Workload::Steps(_) | Workload::Crowd(_) | Workload::Causes(_));
    ensure!(lays_out || cfg!(target_pointer_width = "64"), "not as a 32-bit program");
    match workload {
        Workload::Open(options) => open::run(&options),
        Workload::Calls(options) => family::run(&options),
        Workload::Ledger(options) => ledger::run(&options),
        Workload::Hold(options) => hold::run(&options),
        Workload::Paced(options) => paced::run(&options),
        Workload::Full => hold::full(),
        Workload::Bursts(options) => bursts::run(&options),
        Workload::Steps(options) => steps::run(&options),
        Workload::Snatch { queues } => steps::snatch(queues),
        Workload::Crowd(options) => crowd::run(&options),
        Workload::Causes(options) => causes::run(&options),
        Workload::Race(options) => race::run(&options),
        Workload::Publish(options) => publish::run(&options),
        Workload::Hostile(options) => hostile::run(&options),
        Workload::Flat(pieces) => timing::flat(pieces),
        Workload::Pass(pieces) => timing::pass(pieces),
        Workload::Ping(pieces) => timing::ping(pieces),
        Workload::Periodic(periodic) => periodic::run(periodic),
        Workload::Unrelated(pieces) => timing::unrelated(pieces),
        Workload::Names { names } => open::names(names),
        Workload::ShortLived { calls } => open::short_lived(calls),
    }
}
