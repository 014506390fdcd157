//! What is there now, from this kernel's own lists: threads that wait, of each kind of caller, and open descriptors.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use support::{
    ages::{self, OldMessage},
    program::Tracing,
    queues::{Held, gauges},
    wait,
};

use super::{Run, check, kinds};

const QUEUES: u64 = 4;
const THREADS: u64 = 22;
/// Of a machine under emulation, which takes long to read what is written each time.
const INTERVAL: &str = "2000";

/// What is shown of a crowd while it waits: receivers at the queues of even numbers, senders at the others.
fn expected(name: &str) -> BTreeMap<String, i64> {
    let of_queue = |number: u64| {
        let waiting = (THREADS / QUEUES + u64::from(number < THREADS % QUEUES)).cast_signed();
        let [send, receive] = if number % 2 == 1 { [waiting, 0] } else { [0, waiting] };
        [
            ("blocked_threads", " mq_timedsend", send),
            ("blocked_threads", " mq_timedreceive", receive),
            ("queue.descriptors", " read_write", 1),
            ("queue.descriptors", " read", 0),
            ("queue.depth", "", (number % 2).cast_signed()),
        ]
        .map(|(metric, which, value)| (format!("posix_mq.{metric} /{name}-{number}{which}"), value))
    };
    (0..QUEUES).flat_map(of_queue).collect()
}

/// Prevents waiting threads from being missed or counted twice: of 32-bit programs too, and since before mqspan; and from being
/// shown for ever.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn everyone_who_waits() -> Result<()> {
    for kind in kinds() {
        let run = Run::new(kind)?;
        let early = Held::crowd(&run.mqspan, "early", "compat", QUEUES, THREADS)?;
        let mut command = run.command(&["--signals=metrics"]);
        command.env("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL);
        let tracing = Tracing::start(command)?;
        let late = ["native", "compat-time32"].map(|abi| Held::crowd(&run.mqspan, abi, abi, QUEUES, THREADS));
        let late = late.into_iter().collect::<Result<Vec<_>>>()?;
        let await_all = |expected: &BTreeMap<String, i64>| {
            let mut wrong = None;
            let outcome = wait::until_every(Duration::from_millis(500), "the gauges", || {
                let found = gauges(&run.mqspan.file("told"))?;
                let differs = |(key, value): &(&String, &i64)| found.get(*key) != Some(value);
                wrong =
                    expected.iter().find(differs).map(|(key, value)| (key.clone(), *value, found.get(key).copied()));
                Ok(wrong.is_none().then_some(()))
            });
            outcome.with_context(|| format!("{kind}: {wrong:?}"))
        };
        let mut all: BTreeMap<_, _> = ["early", "native", "compat-time32"].into_iter().flat_map(expected).collect();
        await_all(&all)?;
        // Its queues stay.
        early.kill()?;
        for (key, value) in all.iter_mut().filter(|(key, _)| key.contains("/early-")) {
            *value = if key.contains("depth") { *value } else { 0 };
        }
        await_all(&all)?;
        late.into_iter().try_for_each(Held::let_go)?;
        (0..QUEUES).try_for_each(|number| nix::mqueue::mq_unlink(&*format!("/early-{number}")))?;
        let ended = tracing.stop()?.ok()?;
        let named = ended.stderr.iter().filter(|line| line.contains(" on /early-")).count() as u64;
        ensure!(named == THREADS, "{kind}: {named} of {THREADS} were named at the start: {:?}", ended.stderr);
        println!("{kind}: {} gauges", all.len());
    }
    Ok(())
}

/// Prevents the age of the message that would be received next from being another's by some kind of hooks.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn the_oldest_message() -> Result<()> {
    let knows_ages = |kind: &&str| *kind != "tracepoint" || check::numbers_calls().unwrap_or(true);
    for kind in kinds().filter(knows_ages) {
        let run = Run::new(kind)?;
        let early = OldMessage::send("/early")?;
        let mut command = run.command(&["--signals=metrics"]);
        command.env("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL);
        let tracing = Tracing::start(command)?;
        let file = run.mqspan.file("told");
        ages::check(&file, "/oldest").and_then(|()| early.check(&file)).context(kind)?;
        tracing.stop()?.ok()?;
    }
    Ok(())
}
