//! `top`: attaches as `run` does, with no output but the overview, and shows that in the terminal until it is ended, or
//! prints it once.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use nix::sys::signal::{Signal, raise};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::directory::SharedDirectory;
use super::meter::{Meter, MeterParts, Moment};
use super::metrics::{Collecting, MetricsStage};
use super::outlet::SinkOutlet;
use super::pipeline::{Parts, Pipeline};
use super::reader::{Reader, ReaderOptions};
use super::signals::{SignalQueue, Wakeup};
use super::{attach, find_queues, own_ipc_namespace, panics, privileged, refused};
use crate::clock::Clock;
use crate::config::top::TopSettings;
use crate::export::ledger::Ledger;
use crate::export::queue::WhenFull;
use crate::export::{Form, Sink};
use crate::health::Pulse;
use crate::kernel::aggregates::Aggregates;
use crate::kernel::configure::Config;
use crate::kernel::facts::Facts;
use crate::kernel::plan::plan;
use crate::kernel::programs::Programs;
use crate::live::Lookout;
use crate::metrics::intake::Intake;
use crate::model::error::{Error, no_thread};
use crate::model::filter::Filters;
use crate::model::glob::Templates;
use crate::model::reading::QueueName;
use crate::model::resource::Resource;
use crate::model::values::{
    Format, HistogramAggregation, HookKind, MetricLimits, Rate, Receive, Signal as CallSignal, SortKey, Temporality,
};
use crate::overview::Overview;
use crate::overview::log::CallLog;
use crate::overview::snapshot::{Health, Snapshot};
use crate::overview::tables::{Bounds, Tables};
use crate::overview::{order, text};
use crate::progress::ProgressLine;
use crate::telemetry::console::Style;
use crate::top::app::{App, Reaction};
use crate::top::content::Content;
use crate::top::paint::Theme;
use crate::top::terminal::{self, Screen};
use crate::top::view;
use crate::who::host::Host;
use crate::who::owner::first_users;
use crate::who::prober::Prober;
use crate::who::registry::{Registry, USER_NAMES};

/// So many calls have lines a second for each queue and operation: no load on a busy host, and enough to be read and for
/// waits to be inferred where no function is hooked.
const RATE: Rate = Rate { most: 100, slow: Duration::from_millis(10) };
/// So many of the latest calls are kept.
const LATEST: usize = 2000;
/// So many of mqspan's own notices are kept.
const NOTICES: usize = 20;
/// The screen is drawn no more often, and looked after at least so often.
const FRAME: Duration = Duration::from_millis(100);
/// The first collection is waited for so long beyond its interval.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows, until the end; returns the exit status.
pub fn top(settings: TopSettings) -> Result<u8, Error> {
    if settings.once.is_none() && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Error::cannot_run(
            "top needs a terminal, and this is none",
            "mqspan top --once prints one view; --format json is for scripts",
        ));
    }
    let signals = SignalQueue::take_with_job_control().map_err(no_thread)?;
    panics::watch_after(signals.bell(), terminal::restore);
    let notices = Notices::default();
    let own = Targets::new().with_target(env!("CARGO_PKG_NAME"), tracing::Level::WARN);
    // Another subscriber can only be one of a program that uses this crate.
    let _ = tracing_subscriber::registry().with(notices.clone().with_filter(own)).try_init();
    let TopSettings { filters, once, interval, sort, btf, terminal } = settings;
    let filters = Arc::new(filters);
    let Some(watching) = Watching::start(&filters, btf.as_deref(), interval, &signals, notices)? else { return Ok(0) };
    let outcome = match once {
        Some(format) => watching.print_once(format, sort, interval, &signals),
        None => watching.show(sort, Theme { kind: terminal }, &signals),
    };
    watching.end();
    if panics::happened() { Ok(1) } else { outcome }
}

/// Everything that feeds the overview.
struct Watching {
    overview: Overview,
    ledger: Arc<Ledger>,
    hooks: HookKind,
    programs: Arc<Programs>,
    reader: Reader,
    metrics: MetricsStage,
    notices: Notices,
}

impl Watching {
    /// Attaches; None where the end was asked for meanwhile.
    fn start(
        filters: &Arc<Filters>,
        btf: Option<&Path>,
        interval: Duration,
        signals: &SignalQueue,
        notices: Notices,
    ) -> Result<Option<Self>, Error> {
        let mut facts = privileged(|| Facts::gather(btf));
        plan(&facts, &[])?;
        let clock = Clock::start().map_err(no_thread)?;
        let directory =
            SharedDirectory::new(Registry::new(Host::ask(), clock.boot_offset_ns(), first_users(USER_NAMES)));
        let now = Moment::now();
        let overview = Overview::new(Tables::new(Bounds::LIVE, now.boot_ns), CallLog::new(LATEST, 0));
        let ledger = Ledger::new(vec!["top".into()], false);
        let intake = Intake::default();
        let parts = MeterParts {
            intake: intake.clone(),
            ledger: ledger.clone(),
            filters: filters.clone(),
            limits: MetricLimits::default(),
            temporality: Temporality::Delta,
            histograms: HistogramAggregation::Exponential,
            own: Arc::new(Resource::default()),
            only_matched: filters.picks_callers(),
            templates: Templates::default(),
            alone: false,
            overview: Some(overview.clone()),
        };
        let meter = Meter::new(parts, directory.clone(), Vec::<SinkOutlet>::new(), now);
        // What is logged is delivered by that.
        let sink =
            Sink { signal: CallSignal::Logs, form: Form::Lines, output: 0, queue: None, when_full: WhenFull::Drop };
        let pipeline = Pipeline::new(Parts {
            ledger: ledger.clone(),
            sinks: vec![sink],
            filters: filters.clone(),
            templates: Templates::default(),
            directory: directory.clone(),
            clock,
            prober: Prober::start(true).map_err(no_thread)?,
            traces: true,
            receive: Receive::Link,
            metrics: Some(intake),
            overview: Some(overview.clone()),
            pulse: Pulse::default(),
            style: Style::default(),
        });
        let config = Config {
            filters,
            own_ipc_namespace: own_ipc_namespace(),
            tree: None,
            makes_records: true,
            aggregates: true,
            rate: RATE,
        };
        let attaching = ProgressLine::start(true, || "attaching to the kernel".into());
        let (attached, asked_to_end) = attach(&mut facts, &[], &config, signals);
        drop(attaching);
        let (hooks, programs) = attached?;
        let programs = Arc::new(programs);
        if asked_to_end.is_some() {
            programs.detach();
            return Ok(None);
        }
        let lookout = Lookout::of(&programs).map_err(no_thread)?;
        find_queues(&programs);
        let infers = config.infers(hooks, &facts);
        let options = ReaderOptions { infers, lookout: lookout.clone(), directory, stuck: None };
        let reader = Reader::start(programs.clone(), options, pipeline).map_err(refused)?;
        let aggregates = Aggregates::of(&programs).map_err(|error| refused(error.to_string()))?;
        let collecting = Collecting { aggregates, looker: lookout.looker().map_err(no_thread)?, meter };
        let metrics = MetricsStage::start(collecting, interval, None).map_err(no_thread)?;
        Ok(Some(Self { overview, ledger, hooks, programs, reader, metrics, notices }))
    }

    /// How well mqspan sees.
    fn health(&self) -> Health {
        let totals = self.ledger.totals();
        let mut unknown = Vec::new();
        if self.hooks == HookKind::Tracepoint {
            unknown.push("32-bit callers".into());
        }
        let lost: BTreeMap<&'static str, u64> = totals.lost.into_iter().filter(|(_, calls)| *calls > 0).collect();
        Health {
            hooks: self.hooks.name(),
            captured: totals.captured,
            limited: totals.limited,
            lost,
            unknown,
            notices: self.notices.latest(),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let health = self.health();
        Snapshot::of(&self.overview.tables(), health)
    }

    /// Prints what one interval showed.
    fn print_once(
        &self,
        format: Format,
        sort: SortKey,
        interval: Duration,
        signals: &SignalQueue,
    ) -> Result<u8, Error> {
        // The first collection is of the moment of attaching.
        let (enough, patience) = (2, Instant::now() + interval * 2 + PATIENCE);
        while self.overview.tables().collection() < enough && Instant::now() < patience {
            match signals.wait(Some(Instant::now() + Duration::from_millis(20))) {
                Wakeup::End { .. } | Wakeup::Hangup => return Ok(0),
                Wakeup::Rung if panics::happened() => return Ok(1),
                _ => {}
            }
        }
        let mut snapshot = self.snapshot();
        order::sort(&mut snapshot.queues, sort, false);
        let text = match format {
            Format::Text => text::text(&snapshot),
            Format::Json => serde_json::to_string(&snapshot).map(|json| json + "\n").unwrap_or_default(),
        };
        match io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::cannot_run(format!("stdout: {error}"), "let stdout be open and its disk not full"))
            }
            _ => Ok(0),
        }
    }

    fn content(&self, open_queue: Option<&QueueName>, zone: &TimeZone) -> Content {
        let course = open_queue.and_then(|queue| {
            let tables = self.overview.tables();
            tables.record_of(queue).map(|record| record.course.iter().copied().collect())
        });
        Content { snapshot: self.snapshot(), calls: Vec::new(), course: course.unwrap_or_default(), zone: zone.clone() }
    }

    /// Draws, until the end is asked for or the terminal is gone; returns the exit status.
    fn show(&self, sort: SortKey, theme: Theme, signals: &SignalQueue) -> Result<u8, Error> {
        let bell = signals.bell();
        let mut screen = Screen::take(move || bell.ring()).map_err(|error| {
            Error::cannot_run(
                format!("the terminal can't be drawn on: {error}"),
                "mqspan top --once prints one view; --format json is for scripts",
            )
        })?;
        let zone = TimeZone::system();
        let mut app = App::new(theme, sort, self.content(None, &zone));
        let (mut drawn_at, mut is_stale): (Option<Instant>, bool) = (None, true);
        let mut shown = (0, None);
        let mut shown_calls = None;
        loop {
            let now = Instant::now();
            let again = drawn_at.map_or(now, |at| at + FRAME);
            if is_stale && now >= again {
                if screen.draw(|frame| view::draw(&mut app, frame.buffer_mut())).is_err() {
                    return Ok(0);
                }
                (drawn_at, is_stale) = (Some(now), false);
            }
            let woken = signals.wait(Some(if is_stale { again } else { now + FRAME }));
            match woken {
                Wakeup::End { .. } | Wakeup::Hangup => return Ok(0),
                Wakeup::Rung if panics::happened() => return Ok(1),
                Wakeup::Stop | Wakeup::Continue => {
                    if suspended(&mut screen, woken == Wakeup::Stop).is_err() {
                        return Ok(0);
                    }
                    is_stale = true;
                }
                Wakeup::Rung | Wakeup::Child | Wakeup::TimeOut => {}
            }
            let Ok(events) = screen.events() else { return Ok(0) };
            for event in events {
                match app.event(&event) {
                    Reaction::Quit => return Ok(0),
                    Reaction::Nothing => {}
                    Reaction::Draw => is_stale = true,
                    asked @ (Reaction::Redraw | Reaction::Suspend) => {
                        let done = match asked {
                            Reaction::Suspend => suspended(&mut screen, true),
                            _ => screen.clear(),
                        };
                        if done.is_err() {
                            return Ok(0);
                        }
                        is_stale = true;
                    }
                }
            }
            let wanted = (self.overview.tables().collection(), app.open_queue().cloned());
            if wanted != shown {
                app.update(self.content(wanted.1.as_ref(), &zone));
                (shown, is_stale) = (wanted, true);
            }
            if app.shows_calls() {
                let calls = self.overview.calls();
                if shown_calls != Some(calls.count()) {
                    (shown_calls, is_stale) = (Some(calls.count()), true);
                    app.update_calls(calls.latest().cloned().collect());
                }
            }
        }
    }

    fn end(self) {
        self.programs.close();
        self.reader.stop();
        self.metrics.stop();
        self.programs.detach();
    }
}

/// Stops this process, where it is to stop, and takes the terminal again once it goes on.
fn suspended(screen: &mut Screen, stops: bool) -> io::Result<()> {
    if stops {
        terminal::restore();
        raise(Signal::SIGSTOP)?;
    }
    screen.take_again()
}

/// What mqspan has to say while the terminal is drawn on: the latest, so many.
#[derive(Clone, Debug, Default)]
struct Notices(Arc<Mutex<VecDeque<String>>>);

impl Notices {
    fn latest(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl<S: Subscriber> Layer<S> for Notices {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut notice = NoticeText::default();
        event.record(&mut notice);
        let mut notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notices.push_back(notice.0);
        if notices.len() > NOTICES {
            notices.pop_front();
        }
    }
}

/// An event's message.
#[derive(Default)]
struct NoticeText(String);

impl Visit for NoticeText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}
