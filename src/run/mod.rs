//! `run`: puts the parts together, waits for the end, and ends in an order in which nothing is lost.

mod child;
pub mod meter;
pub mod pipeline;
mod report;
mod signals;

use std::fs;
use std::io::IsTerminal;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Handle, Runtime};
use tracing::{debug, info, warn};

use self::child::Child;
use self::meter::Meter;
use self::pipeline::{Parts, Pipeline};
use self::signals::{Event, Signals};
use crate::clock::Clock;
use crate::config::Settings;
use crate::export::hangup::Hangup;
use crate::export::ledger::Ledger;
use crate::export::{self, Deliveries, Outputs, no_thread};
use crate::health::{self, Pulse};
use crate::internal::Internal;
use crate::kernel::driver::{Driver, Orders};
use crate::kernel::facts::Facts;
use crate::kernel::plan::plan;
use crate::live::calls;
use crate::metrics::queues::Queues;
use crate::model::error::Error;
use crate::model::resource::Resource;
use crate::model::values::{Color, CpuList, Output, Signal as CallSignal};
use crate::who::host::Host;
use crate::who::prober::Prober;
use crate::who::registry::Registry;
use crate::who::resource;

/// The end takes at most this long, all of it.
const FLUSH: Duration = Duration::from_secs(10);
/// ... of which what is not delivered has this long to be put into the spool.
const SPOOL: Duration = Duration::from_secs(3);
/// Where there is a spool, the last counts wait so long for calls that are under way; the others are told next time.
const SETTLE: Duration = Duration::from_secs(1);
/// ... and then it has this long to be counted.
const ABORT: Duration = Duration::from_secs(1);
/// What mqspan said of itself last is waited for so long, once all else is done.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Runs until the end; returns the exit status.
pub fn run(settings: Settings) -> Result<u8, Error> {
    let signals = Signals::take().map_err(no_thread)?;
    // Before there is any other thread, and before mqspan's own affinity.
    let mut child = match settings.command.is_empty() {
        true => None,
        false => Some(Child::start(&settings.command, settings.user.as_deref(), signals.mask_before())?),
    };
    if let Some(cpus) = &settings.cpus {
        stay_on(cpus)?;
    }
    let stats_file = settings.stats_file.as_deref().map(report::StatsFile::create).transpose()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("mqspan-export")
        .enable_all()
        .build()
        .map_err(no_thread)?;
    let host = Host::ask();
    let own = resource::of_mqspan(&host, settings.service_name.as_deref(), &settings.resource_attributes);
    let mut internal = Internal::start(&settings, &own, runtime.handle())?;

    let facts = Facts::gather(&settings.hooks);
    let hooks = plan(&facts, &settings.hooks)?.kind;
    let bell = signals.bell();
    let (to, signals_on, spool) = (&settings.outputs, settings.signals, settings.spool.as_ref());
    let outputs = export::start(to, signals_on, &settings.otlp, spool, runtime.handle(), move || bell.ring())?;
    internal.count(&settings, &own, &outputs);
    let pulse = Pulse::default();
    if let Some(address) = settings.health {
        health::serve(address, pulse.clone(), runtime.handle())?;
    }
    let filters = Arc::new(settings.filters);
    let Outputs { sinks, ledger, deliveries, .. } = outputs;
    let of_signal =
        |is: fn(CallSignal) -> bool| sinks.iter().filter(|sink| is(sink.signal)).cloned().collect::<Vec<_>>();
    let makes_records = settings.signals.traces || settings.signals.logs;
    let meter = settings.signals.metrics.then(|| {
        let only_matched = child.is_some() || filters.picks_callers();
        Meter::new(meter::Parts {
            sinks: of_signal(|signal| signal == CallSignal::Metrics),
            ledger: ledger.clone(),
            filters: filters.clone(),
            limits: settings.metric_limits,
            temporality: settings.temporality,
            own: Arc::new(Resource { attributes: own, ..Resource::default() }),
            queues: Queues::new(if only_matched { Vec::new() } else { calls::queues() }, only_matched),
            templates: settings.templates.clone(),
            alone: !makes_records,
        })
    });
    let clock = Clock::start().map_err(no_thread)?;
    let pipeline = Pipeline::new(Parts {
        ledger: ledger.clone(),
        sinks: of_signal(|signal| signal != CallSignal::Metrics),
        filters: filters.clone(),
        templates: settings.templates.clone(),
        registry: Registry::new(host, clock.boot_offset_ns()),
        clock,
        prober: Prober::start(makes_records).map_err(no_thread)?,
        traces: settings.signals.traces,
        receive: settings.receive,
        meter,
        pulse: pulse.clone(),
        color: is_colored(settings.color),
    });
    let orders = Orders {
        kind: hooks,
        tracefs: facts.tracefs,
        filters: filters.clone(),
        own_ipc_namespace: own_ipc_namespace(),
        tree: child.as_ref().map(Child::pid),
        makes_records,
        rate: settings.rate,
        metrics: settings.signals.metrics.then_some(settings.metric_interval),
    };
    drop(sinks);
    let driver = Driver::start(orders, pipeline).map_err(|why| {
        Error::cannot_run(
            format!("the kernel refused the programs: {why}"),
            "mqspan check says what is missing on this host",
        )
    })?;
    // Before it is said: whoever reads the line may ask at once.
    pulse.set_ready(true);
    info!("{}", report::ready(filters.call.len(), hooks, &settings.outputs));
    if child.is_none() {
        report::in_calls(&filters);
    }
    health::watch(pulse.clone(), runtime.handle());
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let started = child.as_mut().map_or(Ok(()), Child::go);

    let until = settings.duration.map(|duration| Instant::now() + duration);
    let goes_on_without_stdout = child.is_some() || settings.outputs.iter().any(|output| *output != Output::Console);
    let mut status = match &started {
        Ok(()) => watch(&signals, child.as_mut(), until, goes_on_without_stdout, &deliveries.hangup()),
        Err(error) => error.status,
    };
    pulse.set_ready(false);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);

    let running = Running { driver, internal, deliveries, ledger: ledger.clone() };
    let unmatched = finish(running, &signals, child.as_mut(), runtime.handle(), &mut status)?;
    let totals = ledger.close();
    report::end(&totals, ledger.unseen(), &unmatched, &filters);
    if let Some(file) = stats_file {
        file.write(&totals)?;
    }
    end(runtime);
    started.map(|()| status)
}

/// What has to come to an end.
struct Running {
    driver: Driver,
    internal: Internal,
    deliveries: Deliveries,
    ledger: Arc<Ledger>,
}

/// Ends in an order in which nothing is lost that can be delivered in time: driver, deliveries, the last counts. Returns
/// the filter values that no call matched.
fn finish(
    running: Running,
    signals: &Signals,
    child: Option<&mut Child>,
    runtime: &Handle,
    status: &mut u8,
) -> Result<Vec<String>, Error> {
    let Running { driver, mut internal, deliveries, ledger } = running;
    let (aborter, hurry, has_spool) = (deliveries.aborter(), deliveries.hurrier(), deliveries.has_spool());
    let (bell, handle) = (signals.bell(), runtime.clone());
    let (send, receive) = mpsc::channel();
    let at_end = ledger.clone();
    let ending = thread::Builder::new().name("mqspan-end".into()).spawn(move || {
        let unmatched = driver.stop();
        // The last counts are those of all calls, but for those that may stay in the spool.
        let patience = Instant::now() + if has_spool { SETTLE } else { FLUSH };
        while !at_end.is_settled() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(2));
        }
        internal.last_counts();
        deliveries.finish(&handle);
        let _ = send.send(unmatched);
        internal.stop();
        bell.ring();
    });
    ending.map_err(no_thread)?;
    let end = Instant::now() + FLUSH;
    let until = end - ABORT - if has_spool { SPOOL } else { Duration::ZERO };
    let mut unmatched = wait_for_end(signals, child, until, &receive, status);
    if unmatched.is_none() {
        unmatched = receive.try_recv().ok();
    }
    if unmatched.is_none() && has_spool {
        hurry();
        unmatched = receive.recv_timeout(SPOOL).ok();
    }
    if unmatched.is_none() {
        ledger.hurry();
        aborter();
        // After a second signal the driver may still have to detach, for which the kernel makes mqspan wait.
        unmatched = receive.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    }
    // The channel ends with the thread.
    let _ = receive.recv_timeout(end.saturating_duration_since(Instant::now()).min(LAST_WORDS));
    Ok(unmatched.unwrap_or_default())
}

/// Waits until the run is to end; returns the exit status so far.
fn watch(
    signals: &Signals,
    mut child: Option<&mut Child>,
    until: Option<Instant>,
    without_stdout: bool,
    hangup: &Hangup,
) -> u8 {
    let mut asked = false;
    loop {
        match signals.wait(until) {
            Event::TimeOut => return 0,
            Event::Rung if without_stdout => warn!("stdout is closed: the console output has ended"),
            Event::Rung => return 0,
            Event::Hangup => hangup.tell(),
            Event::Child => {
                if let Some(status) = child.as_mut().and_then(|child| child.status()) {
                    return status;
                }
            }
            Event::End { signal, from_terminal } => match &child {
                Some(child) if !asked => {
                    asked = true;
                    // A terminal's ^C has reached the command already.
                    if !from_terminal {
                        child.signal(signal);
                    }
                    debug!("{signal} is passed on; a second one ends mqspan");
                }
                Some(_) => return 128 + signal as u8,
                None => return 0,
            },
        }
    }
}

/// Waits until everything is delivered; None where the time was over or a second signal came.
fn wait_for_end(
    signals: &Signals,
    mut child: Option<&mut Child>,
    until: Instant,
    done: &mpsc::Receiver<Vec<String>>,
    status: &mut u8,
) -> Option<Vec<String>> {
    loop {
        match signals.wait(Some(until)) {
            Event::Rung => {
                if let Ok(unmatched) = done.try_recv() {
                    return Some(unmatched);
                }
            }
            Event::Child => *status = child.as_mut().and_then(|child| child.status()).unwrap_or(*status),
            Event::End { .. } | Event::TimeOut => return None,
            Event::Hangup => {}
        }
    }
}

/// Threads that hang in a write to a file or a terminal are left behind.
fn end(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(100));
}

fn stay_on(cpus: &CpuList) -> Result<(), Error> {
    let set = || {
        let mut set = CpuSet::new();
        cpus.0.iter().try_for_each(|cpu| set.set(*cpu))?;
        sched_setaffinity(Pid::from_raw(0), &set)
    };
    set().map_err(|errno| {
        Error::cannot_run(
            format!("--cpus: {}", errno.desc()),
            "name CPUs that are online and allowed (nproc, taskset -p $$)",
        )
    })
}

fn is_colored(color: Color) -> bool {
    match color {
        Color::Auto => std::io::stdout().is_terminal(),
        Color::Always => true,
        Color::Never => false,
    }
}

/// The number of this process's ipc namespace (namespaces(7)).
fn own_ipc_namespace() -> u32 {
    use std::os::linux::fs::MetadataExt;
    // The inode number of the link's target is the namespace's; it fits, the kernel has it as unsigned int.
    fs::metadata("/proc/self/ns/ipc").map_or(0, |file| file.st_ino() as u32)
}
