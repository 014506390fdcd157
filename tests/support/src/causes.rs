//! Why calls failed: what the workload's `causes` says of the calls that it made, and what a record says of them.

use std::{collections::BTreeMap, str::FromStr};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use crate::otlp::Record;

/// Failed calls, by thread in their order.
pub type Told = BTreeMap<u32, Vec<Failed>>;

/// A failed call, by what the workload says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failed {
    /// The errno's name.
    pub errno: String,
    /// What the kernel checked; None: that is not said.
    pub cause: Option<String>,
    /// The limit's value, what is in use, what is asked for, who is registered.
    pub numbers: [Option<i64>; 4],
}

const NUMBERS: [&str; 4] =
    ["posix_mq.limit.value", "posix_mq.limit.used", "posix_mq.limit.requested", "posix_mq.notify.owner_pid"];

impl Failed {
    /// A line of the workload's, with the thread.
    pub fn told(line: &str) -> Result<(u32, Self)> {
        let fields: Vec<_> = line.split('\t').collect();
        let [tid, errno, cause, value, used, requested, owner] = fields[..] else { anyhow::bail!("{line:?}") };
        let known = |field: &str| (field != "-").then(|| i64::from_str(field)).transpose();
        Ok((
            tid.parse()?,
            Self {
                errno: format!("{:?}", Errno::from_raw(errno.parse()?)),
                cause: (cause != "-").then(|| cause.to_owned()),
                numbers: [known(value)?, known(used)?, known(requested)?, known(owner)?],
            },
        ))
    }

    /// What a record says of a call, if it failed.
    pub fn seen<T>(record: &Record<T>) -> Option<Self> {
        Some(Self {
            errno: record.text("posix_mq.errno")?.to_owned(),
            cause: record.text("posix_mq.cause").map(Into::into),
            numbers: NUMBERS.map(|key| record.int(key)),
        })
    }

    /// What stands in brackets behind the errno.
    pub fn bracket(&self) -> String {
        let Some(cause) = &self.cause else { return String::new() };
        match (&**cause, self.numbers) {
            ("missing" | "permission" | "full" | "empty", _) => String::new(),
            (cause, [Some(value), Some(used), Some(requested), _]) => {
                format!(" ({cause} {value}, {used} used, {requested} requested)")
            }
            (cause, [Some(value), None, Some(requested), _]) => format!(" ({cause} {value}, {requested} requested)"),
            (cause, [.., Some(owner)]) => format!(" ({cause}: {owner})"),
            (cause, _) => format!(" ({cause})"),
        }
    }
}

/// What the workload says, by thread.
pub fn told<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Told> {
    let mut told = Told::new();
    for line in lines {
        let (tid, failed) = Failed::told(line)?;
        told.entry(tid).or_default().push(failed);
    }
    Ok(told)
}

/// Compares the failed calls of each thread with what was exported of them; how many there were.
pub fn compare<T>(told: &Told, records: &[Record<T>]) -> Result<usize> {
    let mut seen: BTreeMap<u32, Vec<Failed>> = BTreeMap::new();
    for record in records {
        if let Some(failed) = Failed::seen(record) {
            seen.entry(record.tid()?).or_default().push(failed);
        }
    }
    let mut compared = 0;
    for (tid, told) in told {
        let seen = seen.get(tid).with_context(|| format!("nothing of thread {tid}"))?;
        ensure!(told.len() == seen.len(), "{} failed calls, {} exported", told.len(), seen.len());
        for (number, (told, seen)) in told.iter().zip(seen).enumerate() {
            ensure!(told == seen, "call {number} of {tid}: {seen:?}, not {told:?}");
            compared += 1;
        }
    }
    Ok(compared)
}
