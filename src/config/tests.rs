//! Tests of the merge: command line, environment, file, defaults, and what this version refuses.

use super::*;
use crate::cli::{Command, parse};
use std::path::Path;

/// Loads `mqspan` with these arguments (separated by blanks), variables and file.
fn load(arguments: &str, variables: &[(&str, &str)], yaml: &str) -> Result<Settings, Error> {
    let arguments = format!("mqspan {arguments}");
    let run = match parse(arguments.split_whitespace().map(OsString::from)) {
        Ok(Command::Run(run)) => *run,
        other => panic!("{arguments}: {other:?}"),
    };
    let get = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into());
    Settings::merge(run, &get, ConfigFile::from_text(Path::new("m.yaml"), yaml)?)
}

fn loaded(arguments: &str, variables: &[(&str, &str)], yaml: &str) -> Settings {
    load(arguments, variables, yaml).unwrap_or_else(|error| panic!("{arguments} {variables:?} {yaml}: {error}"))
}

/// Prevents an endpoint that is configured anywhere from being ignored, and console output from
/// vanishing where there is none.
#[test]
fn default_output() {
    use Output::{Console, Otlp};
    for (arguments, variables, yaml, expected) in [
        ("", &[][..], "", Console),
        ("--endpoint http://c", &[], "", Otlp),
        ("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")], "", Otlp),
        ("", &[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://c")], "", Otlp),
        ("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], "", Console),
        ("", &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "", Console),
        ("", &[], "endpoint: http://c", Otlp),
        ("", &[], "otlp: {traces: {endpoint: 'http://c'}}", Otlp),
        ("--output console", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")], "output: otlp", Console),
        ("", &[], "output: otlp", Otlp),
    ] {
        assert_eq!(loaded(arguments, variables, yaml).outputs, [expected], "{arguments} {variables:?} {yaml}");
    }
    assert_eq!(loaded("--output otlp --output console --output otlp", &[], "").outputs, [Otlp, Console]);
}

/// Prevents the file from adding to a list of the command line, or from undoing `--verbose`.
#[test]
fn the_command_line_wins() {
    let yaml = "queue: /file\nmin-duration: 1s\nquiet: true\nfailed: true\ncpus: 1\nstats-file: /s\n";
    let settings = loaded("--queue a --queue b --verbose --cpus 0", &[], yaml);
    let queues: Vec<String> = settings.filters.queue.picks().iter().map(ToString::to_string).collect();
    assert_eq!(queues, ["/a", "/b"]);
    assert_eq!(settings.verbosity, Verbosity::Verbose);
    assert_eq!(settings.cpus, Some(CpuList(vec![0])));
    assert!(settings.filters.failed);
    assert_eq!(settings.filters.min_duration, Some(Duration::from_secs(1)));
    assert_eq!(settings.stats_file, Some("/s".into()));
    assert_eq!(loaded("", &[], yaml).verbosity, Verbosity::Quiet);
}

/// Prevents colours that NO_COLOR or an option forbids.
#[test]
fn colours() {
    let no_color = [("NO_COLOR", "1")];
    for (arguments, variables, yaml, expected) in [
        ("", &[][..], "", Color::Auto),
        ("", &no_color, "", Color::Never),
        ("", &[("NO_COLOR", "")], "", Color::Auto),
        ("", &no_color, "color: always", Color::Never),
        ("--color always", &no_color, "color: never", Color::Always),
        ("", &[], "color: always", Color::Always),
    ] {
        assert_eq!(loaded(arguments, variables, yaml).color, expected, "{arguments} {variables:?} {yaml}");
    }
}

/// Prevents a signal from staying on that the environment switches off, and the variables of a
/// command from being taken for mqspan's own.
#[test]
fn the_environment_of_a_command_is_the_commands() {
    let variables = [
        ("OTEL_TRACES_EXPORTER", "None"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_SERVICE_NAME", "tracer"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b,zone=1"),
        ("OTEL_SDK_DISABLED", "TRUE"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "LowMemory"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram"),
    ];
    let host = loaded("--signals traces,logs,metrics", &variables, "");
    assert_eq!(host.signals, Signals { traces: false, logs: true, metrics: true });
    assert_eq!(host.service_name.as_deref(), Some("tracer"));
    assert_eq!(host.resource_attributes, [("team".into(), "a b".into()), ("zone".into(), "1".into())]);

    let command = loaded("-- true -x", &variables, "");
    assert_eq!(command.command, ["true", "-x"]);
    assert_eq!(command.signals, Signals { traces: true, logs: false, metrics: true });
    assert_eq!(command.service_name, None);
    assert!(command.resource_attributes.is_empty());
    assert!(command.sdk_disabled);
    assert_eq!(command.metric_interval, Duration::from_millis(1500));
    assert_eq!(command.temporality, Temporality::LowMemory);
    assert_eq!(command.histograms, HistogramAggregation::Explicit);
}

/// Prevents defaults from drifting away from the contract's.
#[test]
fn defaults() {
    let settings = loaded("", &[], "");
    assert_eq!(settings.signals, Signals { traces: true, logs: false, metrics: true });
    assert_eq!(settings.filters.call.len(), 6);
    assert_eq!(settings.metric_interval, Duration::from_secs(60));
    assert_eq!(settings.temporality, Temporality::Cumulative);
    assert_eq!(settings.histograms, HistogramAggregation::Exponential);
    assert_eq!(settings.metric_limits, MetricLimits { max_series: 2000, max_processes: 1000 });
    assert_eq!(settings.verbosity, Verbosity::Normal);
    assert!(settings.hooks.is_empty() && !settings.sdk_disabled && settings.rate.most == 0);
    for (arguments, most) in [
        ("", 0),
        ("--output otlp", 100),
        ("--output none", 100),
        ("--output console --output otlp", 100),
        ("--output file:/x --output console", 0),
        ("--output otlp -- true", 0),
        ("--output otlp --max-rate 7 -- true", 7),
        ("--output console --max-rate 7", 7),
    ] {
        let rate = Rate { most, slow: Duration::from_millis(10) };
        assert_eq!(loaded(arguments, &[], "").rate, rate, "{arguments}");
    }
    assert_eq!(loaded("--slow 1s", &[], "").rate.slow, Duration::from_secs(1));
    assert!(loaded("--hooks tracepoint,auto", &[], "").hooks.is_empty());
    let hooks = loaded("--hooks fentry,tracepoint", &[], "").hooks;
    assert_eq!(hooks, [HookKind::Fentry, HookKind::Tracepoint]);
}

/// Prevents a wrong exit status, an error that does not say where the value came from, and
/// variables for another output or for the command from stopping a run.
#[test]
fn wrong_values() {
    let endpoint = |value| [("OTEL_EXPORTER_OTLP_ENDPOINT", value)];
    for (arguments, variables, yaml, status, says) in [
        ("--endpoint c:1", &[][..], "", 2, "--endpoint: the URL must begin"),
        ("--spool /s", &[], "", 2, "--spool keeps what can't be sent by OTLP"),
        ("--endpoint http://c --output none", &[], "spool: /s", 2, "--spool keeps what can't be sent by OTLP"),
        ("--user nobody", &[], "", 2, "--user needs a command"),
        ("", &endpoint("c:1"), "", 1, "OTEL_EXPORTER_OTLP_ENDPOINT: the URL must begin"),
        ("", &[], "\nendpoint: c:1", 1, "m.yaml:2: endpoint: the URL must begin"),
        ("", &[("OTEL_METRIC_EXPORT_INTERVAL", "1s")], "", 1, "OTEL_METRIC_EXPORT_INTERVAL: "),
        ("", &[("OTEL_RESOURCE_ATTRIBUTES", "a")], "", 1, "OTEL_RESOURCE_ATTRIBUTES: entry 1"),
        (
            "",
            &[("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit")],
            "",
            1,
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION: ",
        ),
        ("--output otlp", &[("OTEL_EXPORTER_OTLP_COMPRESSION", "lz4")], "", 1, "none of none, gzip, zstd"),
    ] {
        let error = load(arguments, variables, yaml).expect_err(says);
        assert_eq!(error.status, status, "{error}");
        assert!(error.message.contains(says), "{error}");
        assert_eq!(error.hint.is_some(), status == 1, "{error}");
    }
    loaded("--output console", &endpoint("c:1"), "");
    loaded("-- true", &[("OTEL_RESOURCE_ATTRIBUTES", "a")], "");
    loaded("", &endpoint("c:1"), "output: none");
}

/// Prevents what works from being refused.
#[test]
fn options_that_work() {
    for arguments in [
        "--receive link",
        "--receive child",
        "--max-rate 0",
        "--hooks auto",
        "--hooks fsession",
        "--hooks kprobe",
        "--call mq_send,mq_unlink",
        "--signals metrics",
    ] {
        loaded(arguments, &[], "");
    }
}
