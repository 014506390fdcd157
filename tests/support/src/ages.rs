//! How old the message is that would be received next: what a gauge says, and when this process itself sent it.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mqueue::{MQ_OFlag, MqAttr, MqdT, mq_open, mq_receive, mq_send, mq_unlink},
    sys::stat::Mode,
};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};

use crate::{otlp, wait};

/// A queue is looked at somewhat before the time of its points; messages are sent further apart than that.
const BEFORE: u64 = 50_000_000;
const APART: u64 = 300_000_000;

/// What the gauge said of a queue: the time of each point, ns since 1970, and the age in seconds.
fn ages(file: &Path, name: &str) -> Result<BTreeMap<u64, f64>> {
    let mut ages = BTreeMap::new();
    let requests = otlp::metrics(file)?;
    let of_resources = requests.iter().flat_map(|request| &request.resource_metrics);
    for metric in of_resources.flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let is_it = metric.name == "posix_mq.queue.oldest_message_age";
        let Some(Data::Gauge(gauge)) = metric.data.as_ref().filter(|_| is_it) else { continue };
        ensure!(metric.unit == "s", "{:?}", metric.unit);
        for point in &gauge.data_points {
            let attributes = otlp::attributes(&point.attributes)?;
            // One of the same name that somebody still has open is another queue.
            let is_unlinked = attributes.contains_key("posix_mq.queue.unlinked");
            if otlp::text(&attributes, "messaging.destination.name") == Some(name) && !is_unlinked {
                let Some(number_data_point::Value::AsDouble(age)) = point.value else { bail!("{point:?}") };
                ages.insert(point.time_unix_nano, age);
            }
        }
    }
    Ok(ages)
}

/// A queue that is removed in the end.
struct Queue<'a> {
    queue: MqdT,
    name: &'a str,
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        let _ = mq_unlink(self.name);
    }
}

impl<'a> Queue<'a> {
    fn open(name: &'a str) -> Result<Self> {
        let attr = MqAttr::new(0, 8, 16, 0);
        let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDWR;
        Ok(Self { queue: mq_open(name, flags, Mode::S_IRUSR, Some(&attr))?, name })
    }

    /// Between which times, ns since 1970, it was sent.
    fn send(&self, priority: u32) -> Result<(u64, u64)> {
        let before = now()?;
        mq_send(&self.queue, b"x", priority)?;
        Ok((before, now()?))
    }

    fn receive(&self) -> Result<()> {
        mq_receive(&self.queue, &mut [0; 16], &mut 0)?;
        Ok(())
    }
}

fn now() -> Result<u64> {
    let now: Duration = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(now.as_nanos().try_into()?)
}

fn await_age(file: &Path, name: &str, is_right: impl Fn(u64, f64) -> bool) -> Result<()> {
    let since = now()? + APART;
    let mut last = None;
    let outcome = wait::until("the age of a message", || {
        last = ages(file, name)?.pop_last();
        Ok(last.filter(|(time, age)| *time >= since && is_right(*time, *age)).map(drop))
    });
    outcome.with_context(|| format!("at {since} {last:?}"))
}

/// Sends and receives at a new queue while mqspan writes to a file: each time the first message's age is its own, and grows
/// while nobody calls.
pub fn check(file: &Path, name: &str) -> Result<()> {
    let queue = Queue::open(name)?;
    let is_of = |(sent, done): (u64, u64)| {
        await_age(file, name, |time, age| {
            (sent.saturating_sub(BEFORE)..=done + BEFORE).contains(&time.saturating_sub((age * 1e9) as u64))
        })
        .with_context(|| format!("sent between {sent} and {done}"))
    };
    // By tracepoints, threads that were in a receive before mqspan leave the order in doubt until it was empty once.
    queue.send(1)?;
    queue.receive()?;
    let first = queue.send(1)?;
    is_of(first)?;
    let urgent = queue.send(5)?;
    is_of(urgent)?;
    let second = queue.send(1)?;
    is_of(urgent)?;
    queue.receive()?;
    is_of(first)?;
    queue.receive()?;
    is_of(second)?;
    queue.receive()?;
    await_age(file, name, |_, age| age == 0.0)
}

/// A message that was there before mqspan.
pub struct OldMessage<'a>(Queue<'a>);

impl<'a> OldMessage<'a> {
    /// In a queue of its own.
    pub fn send(name: &'a str) -> Result<Self> {
        let queue = Queue::open(name)?;
        queue.send(1)?;
        Ok(Self(queue))
    }

    /// Its age is not known, and that of none is 0 once it is received.
    pub fn check(self, file: &Path) -> Result<()> {
        let Self(queue) = self;
        let ages = ages(file, queue.name)?;
        ensure!(ages.is_empty(), "of a message whose send was not seen: {ages:?}");
        queue.receive()?;
        await_age(file, queue.name, |_, age| age == 0.0)
    }
}
