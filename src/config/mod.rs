//! The settings of a run: the command line over the environment over the configuration file over
//! the defaults. Reads the file and nothing else; the environment comes in as a function. Opens no
//! output, loads no certificate, asks the host nothing.

mod env;
pub mod file;
pub mod otlp;
mod pairs;
pub mod top;
mod yaml;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use self::env::Environment;
use self::file::ConfigFile;
use self::otlp::{Layer, Layers};
use self::pairs::pairs;
use crate::cli::choices::choice;
use crate::cli::{FilterArgs, RunArgs};
use crate::export::endpoint::Otlp;
use crate::export::spool;
use crate::model::error::Error;
use crate::model::filter::{Filter, Filters};
use crate::model::glob::Templates;
use crate::model::values::{
    Color, CpuList, HistogramAggregation, HookKind, MetricLimits, Op, Output, Rate, Receive, Signal, Signals,
    Temporality,
};

/// Everything that a run is told.
#[derive(Debug)]
pub struct Settings {
    /// Where telemetry goes, each output once, in the order given.
    pub outputs: Vec<Output>,
    /// Which signals are made.
    pub signals: Signals,
    /// Where OTLP goes, should it be among the outputs.
    pub otlp: Otlp,
    /// Whose calls, and which.
    pub filters: Filters,
    /// How many calls become spans or log records.
    pub rate: Rate,
    /// Where a receive span hangs.
    pub receive: Receive,
    /// A call that is under way for so long is told of.
    pub stuck: Option<Duration>,
    /// Queues that match go by these in span names and metrics.
    pub templates: Templates,
    /// The user that the command runs as.
    pub user: Option<String>,
    /// The CPUs that mqspan's own threads may run on; None: any.
    pub cpus: Option<CpuList>,
    /// When to stop, counted from the start; None: not by itself.
    pub duration: Option<Duration>,
    /// Where what can't be delivered waits.
    pub spool: Option<spool::SpoolSettings>,
    /// Where `/livez` and `/readyz` are served.
    pub health: Option<SocketAddr>,
    /// Where the counters go at exit.
    pub stats_file: Option<PathBuf>,
    /// Whether calls, failures and times are printed at the end.
    pub summary: bool,
    /// Where the page goes at the end.
    pub report: Option<PathBuf>,
    /// The kinds of hooks to choose from, in this order; empty: mqspan chooses.
    pub hooks: Vec<HookKind>,
    /// Where the kernel's types are described, if the kernel itself does not.
    pub btf: Option<PathBuf>,
    /// How much is said on stderr.
    pub verbosity: Verbosity,
    /// When the console is coloured, NO_COLOR considered.
    pub color: Color,
    /// The command to trace and its arguments; empty: the host is traced.
    pub command: Vec<OsString>,
    /// OTEL_SDK_DISABLED: mqspan's own telemetry is off.
    pub sdk_disabled: bool,
    /// OTEL_SERVICE_NAME, for mqspan itself; None with a command, whose it then is.
    pub service_name: Option<String>,
    /// OTEL_RESOURCE_ATTRIBUTES, decoded, for mqspan itself; empty with a command.
    pub resource_attributes: Vec<(String, String)>,
    /// OTEL_METRIC_EXPORT_INTERVAL.
    pub metric_interval: Duration,
    /// OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE.
    pub temporality: Temporality,
    /// OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION.
    pub histograms: HistogramAggregation,
    /// How many series and processes metrics are kept for.
    pub metric_limits: MetricLimits,
}

/// How much mqspan says on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// The lines of the contract.
    Normal,
    /// What mqspan does besides.
    Verbose,
}

impl Settings {
    /// The settings of a run with these options, after reading the file that they name. `get`
    /// looks up an environment variable, as `std::env::var_os` does.
    ///
    /// Exit status 2 for an option that is wrong by itself, else 1: the file, a variable, or an
    /// option that this version has not.
    pub fn load(command_line: RunArgs, get: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let file = match &command_line.config {
            Some(path) => ConfigFile::read(path)?,
            None => ConfigFile::default(),
        };
        Self::merge(command_line, get, file)
    }

    fn merge(command_line: RunArgs, get: &dyn Fn(&str) -> Option<OsString>, file: ConfigFile) -> Result<Self, Error> {
        let env = Environment::new(get);
        let host_wide = command_line.command.is_empty();
        if command_line.user.is_some() && host_wide {
            return Err(Error::usage("--user needs a command to run: -- CMD ARG..."));
        }
        let color = color(command_line.color, &env, file.run.color)?;
        let options = Layer::of_options(command_line.endpoint.clone(), command_line.protocol);
        let run = over(command_line, file.run);
        // With a command these variables describe the command, not mqspan.
        let signals = signals(&run.signals, host_wide.then_some(&env))?;

        let endpoint_named = options.names_endpoint() || env.names_endpoint()? || file.otlp.names_endpoint();
        let spool = spool(&run)?;
        let outputs = outputs(run.output, endpoint_named);
        if spool.is_some() && !outputs.contains(&Output::Otlp) {
            return Err(Error::usage(
                "--spool keeps what can't be sent by OTLP: add --output otlp or --endpoint URL, or leave it out",
            ));
        }
        let shows_all = outputs.iter().all(|output| matches!(output, Output::Console | Output::File(_)));
        let default_rate = if shows_all || !host_wide { 0 } else { 100 };
        let rate =
            Rate { most: run.max_rate.unwrap_or(default_rate), slow: run.slow.unwrap_or(Duration::from_millis(10)) };
        // Without this output a variable that is wrong, or meant for the command, does no harm.
        let otlp_variables = match outputs.contains(&Output::Otlp) {
            true => env.otlp()?,
            false => Layers::default(),
        };
        let own = |name| if host_wide { env.text(name) } else { Ok(None) };
        let resource_attributes = match host_wide {
            true => env.parsed("OTEL_RESOURCE_ATTRIBUTES", pairs)?,
            false => None,
        };
        Ok(Self {
            outputs,
            signals,
            otlp: Layers::resolve(&options, &otlp_variables, &file.otlp)?,
            filters: filters(run.filters),
            rate,
            stuck: run.stuck,
            templates: Templates::new(run.template),
            receive: run.receive.unwrap_or(Receive::Link),
            user: run.user,
            cpus: run.cpus,
            duration: run.duration,
            spool,
            health: run.health,
            stats_file: run.stats_file,
            summary: run.summary,
            report: run.report,
            hooks: match run.hooks.contains(&HookKind::Auto) {
                true => Vec::new(),
                false => run.hooks,
            },
            btf: run.btf,
            verbosity: match (run.quiet, run.verbose) {
                (true, _) => Verbosity::Quiet,
                (_, true) => Verbosity::Verbose,
                _ => Verbosity::Normal,
            },
            color,
            command: run.command,
            sdk_disabled: env.is_true("OTEL_SDK_DISABLED")?,
            service_name: own("OTEL_SERVICE_NAME")?,
            resource_attributes: resource_attributes.unwrap_or_default(),
            metric_interval: env
                .parsed("OTEL_METRIC_EXPORT_INTERVAL", milliseconds)?
                .unwrap_or(Duration::from_secs(60)),
            temporality: env
                .parsed("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", choice)?
                .unwrap_or(Temporality::Cumulative),
            histograms: env
                .parsed("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", choice)?
                .unwrap_or(HistogramAggregation::Exponential),
            metric_limits: file.limits,
        })
    }
}

/// Each option as the command line has it, else as the file has it.
fn over(above: RunArgs, below: RunArgs) -> RunArgs {
    let quiet_or_verbose = above.quiet || above.verbose;
    RunArgs {
        output: either(above.output, below.output),
        signals: either(above.signals, below.signals),
        // The file's are in its OTLP layer.
        endpoint: above.endpoint,
        protocol: above.protocol,
        filters: FilterArgs {
            call: either(above.filters.call, below.filters.call),
            queue: either(above.filters.queue, below.filters.queue),
            comm: either(above.filters.comm, below.filters.comm),
            pid: either(above.filters.pid, below.filters.pid),
            uid: either(above.filters.uid, below.filters.uid),
            container: either(above.filters.container, below.filters.container),
            ipc_namespace: either(above.filters.ipc_namespace, below.filters.ipc_namespace),
            failed: above.filters.failed || below.filters.failed,
            min_duration: above.filters.min_duration.or(below.filters.min_duration),
        },
        max_rate: above.max_rate.or(below.max_rate),
        slow: above.slow.or(below.slow),
        stuck: above.stuck.or(below.stuck),
        template: either(above.template, below.template),
        user: above.user.or(below.user),
        hooks: either(above.hooks, below.hooks),
        btf: above.btf.or(below.btf),
        cpus: above.cpus.or(below.cpus),
        duration: above.duration.or(below.duration),
        receive: above.receive.or(below.receive),
        spool: above.spool.or(below.spool),
        spool_size: above.spool_size.or(below.spool_size),
        spool_sync: above.spool_sync || below.spool_sync,
        health: above.health.or(below.health),
        stats_file: above.stats_file.or(below.stats_file),
        config: above.config,
        quiet: above.quiet || (below.quiet && !quiet_or_verbose),
        verbose: above.verbose || (below.verbose && !quiet_or_verbose),
        color: above.color.or(below.color),
        summary: above.summary || below.summary,
        report: above.report.or(below.report),
        command: above.command,
    }
}

fn either<T>(above: Vec<T>, below: Vec<T>) -> Vec<T> {
    if above.is_empty() { below } else { above }
}

/// The outputs that were asked for, each once, else the default.
fn outputs(asked: Vec<Output>, endpoint_named: bool) -> Vec<Output> {
    let mut outputs = Vec::new();
    for output in asked {
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
    match (outputs.is_empty(), endpoint_named) {
        (false, _) => outputs,
        (true, true) => vec![Output::Otlp],
        (true, false) => vec![Output::Console],
    }
}

/// The signals that were asked for, less those that the environment switches off.
fn signals(asked: &[Signal], env: Option<&Environment<'_>>) -> Result<Signals, Error> {
    let is_on = |signal: Signal| {
        let asked = match asked {
            [] => signal != Signal::Logs,
            asked => asked.contains(&signal),
        };
        let exporter = match env {
            Some(env) => env.text(&format!("OTEL_{}_EXPORTER", signal.name().to_uppercase()))?,
            None => None,
        };
        Ok(asked && !exporter.is_some_and(|exporter| exporter.eq_ignore_ascii_case("none")))
    };
    Ok(Signals { traces: is_on(Signal::Traces)?, logs: is_on(Signal::Logs)?, metrics: is_on(Signal::Metrics)? })
}

/// The console's colours, where NO_COLOR (<https://no-color.org>) is the environment's word.
fn color(option: Option<Color>, env: &Environment<'_>, file: Option<Color>) -> Result<Color, Error> {
    let no_color = env.text("NO_COLOR")?.map(|_| Color::Never);
    Ok(option.or(no_color).or(file).unwrap_or(Color::Auto))
}

/// The filters that these options ask for.
pub fn filters(args: FilterArgs) -> Filters {
    Filters {
        call: either(args.call, Op::ALL.into()).into_iter().collect(),
        queue: Filter::new(args.queue),
        comm: Filter::new(args.comm),
        pid: Filter::new(args.pid),
        uid: Filter::new(args.uid),
        container: Filter::new(args.container),
        ipc_namespace: Filter::new(args.ipc_namespace),
        failed: args.failed,
        min_duration: args.min_duration,
    }
}

/// Without a folder the other two options have no meaning.
fn spool(run: &RunArgs) -> Result<Option<spool::SpoolSettings>, Error> {
    match &run.spool {
        Some(folder) => Ok(Some(spool::SpoolSettings {
            folder: folder.clone(),
            bytes: run.spool_size.unwrap_or(1 << 30),
            sync: run.spool_sync,
        })),
        None if run.spool_size.is_some() || run.spool_sync => {
            Err(Error::usage("--spool-size and --spool-sync need --spool DIR"))
        }
        None => Ok(None),
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds)),
        _ => Err("not a number of milliseconds from 1".into()),
    }
}

#[cfg(test)]
mod tests;
