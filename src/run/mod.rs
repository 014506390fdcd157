//! `run`: puts the parts together, waits for the end, and ends in an order in which nothing is lost.

mod child;
pub mod directory;
mod end;
mod memory;
pub mod meter;
pub mod metrics;
pub mod outlet;
pub mod panics;
pub mod pipeline;
mod placement;
mod reader;
mod report;
pub mod signals;
mod stuck;
pub mod top;
mod unshown;

use std::fs;
use std::io::IsTerminal;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::runtime::{Builder, Runtime};
use tracing::{debug, info, warn};

use self::child::Child;
use self::directory::SharedDirectory;
use self::end::{Running, finish};
use self::meter::{Meter, MeterParts, Moment};
use self::metrics::{Collecting, MetricsStage};
use self::outlet::SinkOutlet;
use self::pipeline::{Parts, Pipeline};
use self::reader::{Reader, ReaderOptions};
use self::signals::{SignalQueue, Wakeup};
use self::stuck::StuckOptions;
use crate::capability::{self, DAC_OVERRIDE, DAC_READ_SEARCH};
use crate::clock::Clock;
use crate::config::{Settings, Verbosity};
use crate::export::hangup::Hangup;
use crate::export::{self, Outputs};
use crate::health::{self, Pulse};
use crate::internal::Internal;
use crate::kernel::aggregates::Aggregates;
use crate::kernel::configure::Config;
use crate::kernel::facts::Facts;
use crate::kernel::plan::plan;
use crate::kernel::programs::Programs;
use crate::kernel::trial;
use crate::live::looker::Looker;
use crate::live::{Lookout, calls};
use crate::metrics::intake::Intake;
use crate::model::error::{Error, no_thread};
use crate::model::resource::Resource;
use crate::model::values::{Color, HookKind, Output, Signal as CallSignal};
use crate::overview::log::CallLog;
use crate::overview::tables::{Bounds, Tables};
use crate::overview::{Overview, summary};
use crate::progress::ProgressLine;
use crate::report as page;
use crate::telemetry::console::Style;
use crate::who::host::Host;
use crate::who::owner::first_users;
use crate::who::prober::Prober;
use crate::who::registry::{Registry, USER_NAMES};
use crate::who::resource;

/// What is exempt from the rate is bounded by so many times it, as in bpf/limit.h.
const CEILING: u64 = 10;

/// Runs until the end; returns the exit status.
pub fn run(settings: Settings) -> Result<u8, Error> {
    memory::trim_early();
    let signals = SignalQueue::take().map_err(no_thread)?;
    panics::watch(signals.bell());
    // Before there is any other thread, and before mqspan's own placement.
    let mut child = match settings.command.is_empty() {
        true => None,
        false => Some(Child::start(&settings.command, settings.user.as_deref(), signals.inherited())?),
    };
    placement::settle(settings.cpus.as_ref())?;
    let stats_file = settings.stats_file.as_deref().map(report::StatsFile::create).transpose()?;
    let page_file = settings.report.as_deref().map(report::PageFile::create).transpose()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("mqspan-export")
        .enable_all()
        .build()
        .map_err(no_thread)?;
    let host = Host::ask();
    let own = resource::of_mqspan(&host, settings.service_name.as_deref(), &settings.resource_attributes);
    let mut internal = Internal::start(&settings, &own, runtime.handle())?;

    let mut facts = privileged(|| Facts::gather(settings.btf.as_deref()));
    plan(&facts, &settings.hooks)?;
    let bell = signals.bell();
    let (to, signals_on, spool) = (&settings.outputs, settings.signals, settings.spool.as_ref());
    let shows_progress = settings.verbosity != Verbosity::Quiet;
    let checking = ProgressLine::start(shows_progress && spool.is_some(), || "checking the spool".into());
    let outputs = export::start(to, signals_on, &settings.otlp, spool, runtime.handle(), move || bell.ring())?;
    drop(checking);
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
    let clock = Clock::start().map_err(no_thread)?;
    let directory = SharedDirectory::new(Registry::new(host, clock.boot_offset_ns(), first_users(USER_NAMES)));
    let intake = Intake::default();
    let shows = settings.summary || settings.report.is_some();
    let overview =
        shows.then(|| Overview::new(Tables::new(Bounds::WHOLE, Moment::now().boot_ns), CallLog::new(0, SLOWEST)));
    let aggregates = settings.signals.metrics || shows;
    let meter = aggregates.then(|| {
        let parts = MeterParts {
            intake: intake.clone(),
            ledger: ledger.clone(),
            filters: filters.clone(),
            limits: settings.metric_limits,
            temporality: settings.temporality,
            histograms: settings.histograms,
            own: Arc::new(Resource { attributes: own, has_schema: true, ..Resource::default() }),
            only_matched: child.is_some() || filters.picks_callers(),
            templates: settings.templates.clone(),
            alone: !makes_records && settings.signals.metrics,
            overview: overview.clone(),
        };
        let outlets = of_signal(|signal| signal == CallSignal::Metrics).into_iter();
        let outlets = outlets.filter_map(|sink| SinkOutlet::of(sink, &ledger)).collect();
        Meter::new(parts, directory.clone(), outlets, Moment::now())
    });
    let pipeline = Pipeline::new(Parts {
        ledger: ledger.clone(),
        sinks: of_signal(|signal| signal != CallSignal::Metrics),
        filters: filters.clone(),
        templates: settings.templates.clone(),
        directory: directory.clone(),
        clock,
        prober: Prober::start(makes_records).map_err(no_thread)?,
        traces: settings.signals.traces,
        receive: settings.receive,
        metrics: meter.is_some().then_some(intake),
        overview: overview.clone(),
        pulse: pulse.clone(),
        style: Style::new(is_colored(settings.color), std::io::stdout().is_terminal()),
    });
    drop(sinks);
    let own_ipc_namespace = own_ipc_namespace();
    let config = Config {
        filters: &filters,
        own_ipc_namespace,
        tree: child.as_ref().map(Child::pid),
        makes_records,
        aggregates,
        rate: settings.rate,
    };
    let attaching = ProgressLine::start(shows_progress, || "attaching to the kernel".into());
    let (attached, asked_to_end) = attach(&mut facts, &settings.hooks, &config, &signals);
    drop(attaching);
    let (hooks, programs) = attached?;
    let looking = ProgressLine::start(shows_progress, || "looking at the queues and threads that are there".into());
    let programs = Arc::new(programs);
    let lookout = Lookout::of(&programs).map_err(no_thread)?;
    if aggregates {
        find_queues(&programs);
    }
    let infers = config.infers(hooks, &facts);
    let (to_reader, from_stuck) = settings.stuck.map(|_| mpsc::sync_channel(stuck::WAITING)).unzip();
    let options = ReaderOptions { infers, lookout: lookout.clone(), stuck: from_stuck, directory };
    let reader = Reader::start(programs.clone(), options, pipeline).map_err(refused)?;
    let stuck = match settings.stuck.zip(to_reader).filter(|_| lookout.has_lists()) {
        Some((least, to_reader)) => {
            let (is_all, seen) = (child.is_none(), programs.clone());
            let options = StuckOptions {
                lookout: lookout.clone(),
                filters: filters.clone(),
                own_ipc_namespace,
                least,
                most: u64::from(settings.rate.most) * CEILING,
                is_traced: Box::new(move |pid| is_all || seen.is_in_tree(pid)),
            };
            Some(stuck::start(options, to_reader, reader.waker()).map_err(no_thread)?)
        }
        None => None,
    };
    if settings.stuck.is_some() && stuck.is_none() {
        warn!("--stuck does nothing here: the kernel has no lists of who waits (Linux 5.15)");
    }
    let metrics = meter.map(|meter| {
        let aggregates = Aggregates::of(&programs).map_err(|error| refused(error.to_string()))?;
        let collecting = Collecting { aggregates, looker: lookout.looker().map_err(no_thread)?, meter };
        MetricsStage::start(collecting, settings.metric_interval, shows.then_some(LOOK)).map_err(no_thread)
    });
    let metrics = metrics.transpose()?;
    drop(looking);
    // Before it is said: whoever reads the line may ask at once.
    pulse.set_ready(true);
    info!("{}", report::ready(filters.call.len(), hooks, &settings.outputs));
    if child.is_none() {
        report::in_calls(&lookout, &filters, own_ipc_namespace);
    }
    health::watch(pulse.clone(), runtime.handle());
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let started = match (&mut child, asked_to_end) {
        (Some(child), None) => child.go(),
        _ => Ok(()),
    };

    let until = settings.duration.map(|duration| Instant::now() + duration);
    let goes_on_without_stdout = child.is_some() || settings.outputs.iter().any(|output| *output != Output::Console);
    let mut status = match (&started, asked_to_end) {
        (Err(error), _) => error.status,
        // The command was never begun.
        (_, Some(signal)) if child.is_some() => 128 + signal as u8,
        (_, Some(_)) => 0,
        _ => watch(&signals, child.as_mut(), until, goes_on_without_stdout, &deliveries.hangup()),
    };
    pulse.set_ready(false);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);

    if let Some(stuck) = stuck {
        stuck.stop();
    }
    let (left, at_once) = (ledger.clone(), if spool.is_some() { "spools them" } else { "gives them up" });
    let delivering = ProgressLine::start(shows_progress, move || {
        format!("delivering what was captured, {} calls left; ^C {at_once}", left.under_way())
    });
    let running = Running { programs: programs.clone(), reader, metrics, internal, deliveries, ledger: ledger.clone() };
    finish(running, &signals, child.as_mut(), runtime.handle(), &mut status)?;
    drop(delivering);
    let totals = ledger.close();
    report::end(
        &totals,
        ledger.unseen(),
        facts.counts_skips(hooks),
        &programs.unmatched(&filters, own_ipc_namespace),
        &filters,
    );
    if let Some(overview) = overview.as_ref().filter(|_| settings.summary) {
        eprint!("{}", summary::summary(&overview.tables(), &overview.calls()));
    }
    let written = stats_file.map_or(Ok(()), |file| file.write(&totals));
    let written = written.and(match (page_file, &overview) {
        (Some(file), Some(overview)) => {
            let lost = |(stage, calls): (&&str, &u64)| (*calls > 0).then(|| format!("{calls} calls lost at {stage}"));
            let notes = totals.lost.iter().filter_map(lost).collect();
            file.write(page::page(&overview.tables(), &overview.calls(), &report::line(&totals), notes))
        }
        _ => Ok(()),
    });
    if panics::happened() {
        // The command is not ended for a fault of mqspan's.
        if let Some(child) = child.as_mut().filter(|_| started.is_ok()) {
            child.wait();
        }
        status = 1;
    }
    programs.detach();
    if let Err(error) = written {
        // What fails at the end takes nothing from the command's own status.
        if child.is_none() || started.is_err() {
            end(runtime);
            return Err(error);
        }
        eprintln!("mqspan: {error}");
    }
    end(runtime);
    started.map(|()| status)
}

fn refused(why: String) -> Error {
    Error::cannot_run(
        format!("the kernel refused the programs: {why}"),
        "mqspan check says what is missing on this host",
    )
}

/// What people will look at is collected so often.
const LOOK: Duration = Duration::from_secs(1);
/// So many of the slowest calls are kept for them.
const SLOWEST: usize = 100;

/// A look at the queues that are there is waited for so long at the start: mounts lead through those of other processes.
const PATIENCE: Duration = Duration::from_secs(2);

/// Has the kernel side keep the queues that are there: what is stuck already is what people look for.
fn find_queues(programs: &Arc<Programs>) {
    let programs = programs.clone();
    let look = move || {
        capability::take_up(DAC_READ_SEARCH);
        calls::each_queue(|queue| _ = programs.keep_queue(queue));
    };
    if Looker::start(look).ok().and_then(|looker| looker.ask(PATIENCE, PATIENCE)).is_none() {
        warn!("the queues that are there could not be looked at in time: each is shown from its first call on");
    }
}

/// Does it with what passes over the permissions of the kernel's own files, on a thread of its own.
fn privileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let with_capabilities = || {
        [DAC_OVERRIDE, DAC_READ_SEARCH].into_iter().for_each(capability::take_up);
        work()
    };
    match thread::scope(|scope| scope.spawn(with_capabilities).join()) {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Attaches on a thread of its own, since that may take a second; returns the signal that asked for the end meanwhile.
fn attach(
    facts: &mut Facts,
    kinds: &[HookKind],
    config: &Config<'_>,
    signals: &SignalQueue,
) -> (Result<(HookKind, Programs), Error>, Option<Signal>) {
    let mut asked = None;
    let attached = thread::scope(|scope| {
        let bell = signals.bell();
        let attaching = scope.spawn(move || {
            [DAC_OVERRIDE, DAC_READ_SEARCH].into_iter().for_each(capability::take_up);
            let attached = trial::attach(facts, kinds, config);
            bell.ring();
            attached
        });
        while !attaching.is_finished() {
            match signals.wait(None) {
                Wakeup::End { signal, .. } => asked = Some(signal),
                Wakeup::Rung => break,
                Wakeup::Hangup | Wakeup::Stop | Wakeup::Continue | Wakeup::Child | Wakeup::TimeOut => {}
            }
        }
        let died = |_| Err(Error::cannot_run("the thread that attaches the programs died", "try again"));
        attaching.join().unwrap_or_else(died)
    });
    (attached, asked)
}

/// Waits until the run is to end; returns the exit status so far.
fn watch(
    signals: &SignalQueue,
    mut child: Option<&mut Child>,
    until: Option<Instant>,
    without_stdout: bool,
    hangup: &Hangup,
) -> u8 {
    let mut asked = false;
    loop {
        match signals.wait(until) {
            Wakeup::TimeOut => return 0,
            Wakeup::Rung if panics::happened() => return 1,
            Wakeup::Rung if without_stdout => warn!("stdout is closed: the console output has ended"),
            Wakeup::Rung => return 0,
            Wakeup::Hangup => hangup.raise(),
            // Of whoever has the terminal, which a run does not take.
            Wakeup::Stop | Wakeup::Continue => {}
            Wakeup::Child => {
                if let Some(status) = child.as_mut().and_then(|child| child.status()) {
                    return status;
                }
            }
            Wakeup::End { signal, from_terminal } => match &child {
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

/// Threads that hang in a write to a file or a terminal are left behind.
fn end(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(100));
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
