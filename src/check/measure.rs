//! `check --measure`: what a call costs on this host with each kind of hooks, and what attaching costs the other CPUs. Rounds
//! of all kinds take turns, so that what else the host does falls on all alike.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::caller::{Caller, Timed};
use crate::kernel::configure::Config;
use crate::kernel::facts::Facts;
use crate::kernel::plan::order;
use crate::kernel::programs::Programs;
use crate::kernel::refusal::refusal;
use crate::model::values::HookKind;

/// No round begins after this: the last one ends within 20 s of the start.
const BEGUN_BY: Duration = Duration::from_secs(10);
/// As long is looked for pauses where nothing is attached.
const QUIET: Duration = Duration::from_millis(200);

/// What was measured.
#[derive(Debug, Serialize)]
pub struct MeasuredCosts {
    rounds: usize,
    /// Nothing attached, by mqspan.
    nothing: Costs,
    hooks: Vec<MeasuredKind>,
}

/// What calls took, ns each.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Costs {
    mq_open: f64,
    send_and_receive: f64,
    /// A call that is none of the family.
    other: f64,
}

/// One kind of hooks.
#[derive(Debug, Serialize)]
struct MeasuredKind {
    kind: &'static str,
    #[serde(flatten)]
    costs: Costs,
    attach_ms: f64,
    detach_ms: f64,
    /// The longest that another CPU did nothing else meanwhile, and without that; None where there is none.
    pause_us: Option<f64>,
    pause_without_us: Option<f64>,
}

/// What one round showed of one kind.
#[derive(Clone, Debug, Default)]
struct Round {
    times: [f64; 3],
    attach: f64,
    detach: f64,
    pause: Option<f64>,
}

/// Measures by each kind of hooks that works here; `config` has every call become a span and be counted in metrics, the most
/// that `run` costs. This thread must be the only one.
pub fn measure(facts: &Facts, config: &Config<'_>) -> io::Result<MeasuredCosts> {
    let mut caller = Caller::start()?;
    let spinner = Spinner::start();
    let kinds: Vec<HookKind> =
        order(facts, &[]).into_iter().filter(|kind| refusal(facts, *kind, false).is_none()).collect();
    let start = Instant::now();
    let (mut nothing, mut rounds) = (Vec::new(), kinds.iter().map(|kind| (*kind, Vec::new())).collect::<Vec<_>>());
    let quiet = spinner.as_ref().map(|spinner| {
        spinner.longest();
        thread::sleep(QUIET);
        spinner.longest()
    });
    while nothing.is_empty() || start.elapsed() < BEGUN_BY {
        nothing.push(times(&mut caller)?);
        for (kind, rounds) in &mut rounds {
            rounds.extend(round(*kind, facts, config, &mut caller, spinner.as_ref())?);
        }
    }
    let kinds = rounds.into_iter().filter(|(_, rounds)| !rounds.is_empty());
    Ok(MeasuredCosts {
        rounds: nothing.len(),
        nothing: costs(&nothing),
        hooks: kinds.map(|(kind, rounds)| MeasuredKind::of(kind, &rounds, quiet)).collect(),
    })
}

fn times(caller: &mut Caller) -> io::Result<[f64; 3]> {
    let mut times = [0.; 3];
    for (time, what) in times.iter_mut().zip(Timed::ALL) {
        *time = caller.time(what)?;
    }
    Ok(times)
}

/// None where the kernel refuses this kind.
fn round(
    kind: HookKind,
    facts: &Facts,
    config: &Config<'_>,
    caller: &mut Caller,
    spinner: Option<&Spinner>,
) -> io::Result<Option<Round>> {
    let longest = || spinner.map(Spinner::longest);
    longest();
    let start = Instant::now();
    let Ok(programs) = Programs::attach(kind, facts, config) else { return Ok(None) };
    let (attach, while_attaching) = (start.elapsed(), longest());
    let times = times(caller)?;
    longest();
    let start = Instant::now();
    drop(programs);
    let (detach, while_detaching) = (start.elapsed(), longest());
    let ms = |taken: Duration| taken.as_secs_f64() * 1e3;
    let pause = while_attaching.into_iter().chain(while_detaching).reduce(f64::max);
    Ok(Some(Round { times, attach: ms(attach), detach: ms(detach), pause }))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    // A tenth of a nanosecond is finer than any of it.
    values.get(values.len() / 2).map_or(0., |median| (median * 10.).round() / 10.)
}

fn costs(times: &[[f64; 3]]) -> Costs {
    let [mq_open, send_and_receive, other] = [0, 1, 2].map(|which| median(times.iter().map(|times| times[which])));
    Costs { mq_open, send_and_receive, other }
}

impl MeasuredKind {
    fn of(kind: HookKind, rounds: &[Round], quiet: Option<f64>) -> Self {
        let times: Vec<[f64; 3]> = rounds.iter().map(|round| round.times).collect();
        Self {
            kind: kind.name(),
            costs: costs(&times),
            attach_ms: median(rounds.iter().map(|round| round.attach)),
            detach_ms: median(rounds.iter().map(|round| round.detach)),
            pause_us: rounds.iter().filter_map(|round| round.pause).reduce(f64::max),
            pause_without_us: quiet,
        }
    }
}

impl MeasuredCosts {
    /// As a table.
    pub fn text(&self) -> String {
        let row = |name: &str, Costs { mq_open, send_and_receive, other }: Costs| {
            format!("  {name:<13} {mq_open:>9.0} {send_and_receive:>15.0} {other:>12.0}")
        };
        let mut text = format!(
            "measured, ns, median of {} rounds (each call a span and in the metrics):\n  {:<13} {:>9} {:>15} {:>12}\n",
            self.rounds, "", "mq_open", "send + receive", "other calls"
        );
        text += &(row("nothing", self.nothing) + "\n");
        for of in &self.hooks {
            let pause = of.pause_us.zip(of.pause_without_us).map_or(String::new(), |(pause, without)| {
                format!("; another CPU paused for {pause:.0} us at most meanwhile, {without:.0} us without")
            });
            let (attach, detach) = (of.attach_ms, of.detach_ms);
            text += &row(of.kind, of.costs);
            text += &format!("   attached in {attach:.0} ms, detached in {detach:.0} ms{pause}\n");
        }
        text
    }
}

/// A thread that does nothing but look at the clock: what it misses, its CPU was used for something else.
#[derive(Debug)]
struct Spinner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    longest_ns: AtomicU64,
    ends: AtomicBool,
}

impl Spinner {
    /// None where there is no CPU to spare.
    fn start() -> Option<Self> {
        thread::available_parallelism().ok().filter(|cpus| cpus.get() > 1)?;
        let shared = Arc::new(Shared::default());
        let seen = shared.clone();
        let spin = move || {
            let mut before = Instant::now();
            while !seen.ends.load(Ordering::Relaxed) {
                let now = Instant::now();
                let gap = now.duration_since(before).as_nanos().try_into().unwrap_or(u64::MAX);
                before = now;
                seen.longest_ns.fetch_max(gap, Ordering::Relaxed);
            }
        };
        let thread = thread::Builder::new().name("mqspan-spin".into()).spawn(spin).ok()?;
        Some(Self { shared, thread: Some(thread) })
    }

    /// The longest gap since this was asked last, in us.
    fn longest(&self) -> f64 {
        self.shared.longest_ns.swap(0, Ordering::Relaxed) as f64 / 1e3
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a figure from standing in another's column, and a host with one CPU from being shown pauses of another.
    #[test]
    fn each_figure_in_its_place() {
        let round = |time: f64, pause| Round { times: [time, 2. * time, 3.], attach: 40., detach: 60., pause };
        let kind =
            |pause| MeasuredKind::of(HookKind::Fentry, &[round(1., pause), round(9., pause), round(5., pause)], pause);
        let of = |pause| MeasuredCosts { rounds: 3, nothing: costs(&[[1., 2., 3.]]), hooks: vec![kind(pause)] }.text();
        assert_eq!(
            of(Some(7.)),
            "measured, ns, median of 3 rounds (each call a span and in the metrics):\n                  mq_open  send + receive  \
             other calls\n  nothing               1               2            3\n  fentry                5              10            \
             3   attached in 40 ms, detached in 60 ms; another CPU paused for 7 us at most meanwhile, 7 us without\n"
        );
        assert!(of(None).ends_with("detached in 60 ms\n"));
    }
}
