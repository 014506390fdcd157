//! The command line: commands, options and their help, shell completions and the man page. Every
//! option is checked here for its form; what follows from the options together with environment
//! and file is `config`'s. Reads no environment, writes to nothing but the writer it is given.

pub mod choices;
mod help;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::model::filter::{self, Pick};
use crate::model::glob::Glob;
use crate::model::values::{
    self, Color, CpuList, Format, HookKind, Namespace, Op, Output, Protocol, Receive, Signal, SortKey,
};

const RULES: &str = "Values of one filter are or-ed, filters and-ed; ! in front of a value excludes what matches. \
     Globs match the whole name; * and ? match every character.";

/// What `--version` says, where `-V` says the version alone.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("MQSPAN_COMMIT"),
    "\ntarget: ",
    env!("MQSPAN_TARGET"),
    "\nfeatures: ",
    env!("MQSPAN_FEATURES"),
);

/// The groups of `run`'s options in its help.
const OUTPUT: &str = "Where it goes";
const RECORDS: &str = "What is recorded";
const RUN: &str = "The run";

/// Traces POSIX message queues from the kernel, and exports OpenTelemetry.
#[derive(Debug, Parser)]
#[command(name = "mqspan", bin_name = "mqspan", version, long_version = VERSION, args_conflicts_with_subcommands = true, override_help = help::SCREEN)]
#[command(override_usage = "mqspan [run] [OPTIONS] [-- CMD ARG...]\n       mqspan <COMMAND>")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace the host, or only CMD and its descendants; the same as no command
    #[command(override_usage = "mqspan run [OPTIONS] [-- CMD ARG...]", before_help = help::EXAMPLES, after_help = RULES)]
    Run(Box<RunArgs>),
    /// Show queues, calls and blocked threads live, in a terminal
    Top(Box<TopArgs>),
    /// Say what this host offers, which hooks will be used, and what is missing
    Check {
        /// How it is printed
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// Time calls with each kind of hooks, and what attaching costs the other CPUs: 20 s at most
        #[arg(long)]
        measure: bool,
        /// The kernel's types (BTF) from this file, where the kernel does not describe them itself
        #[arg(long, value_name = "PATH")]
        btf: Option<PathBuf>,
    },
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the man page
    Man,
}

/// The options of `run`, as given in one place: on the command line or in the configuration file.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct RunArgs {
    /// Where telemetry goes: otlp, console, file:PATH (OTLP JSON, a request a line) or none;
    /// repeatable [default: otlp if an endpoint is configured, else console]
    #[arg(long, value_name = "OUTPUT", help_heading = OUTPUT)]
    pub output: Vec<Output>,
    /// Which signals [default: traces,metrics]
    #[arg(long, value_name = "SIGNAL,...", value_delimiter = ',', help_heading = OUTPUT)]
    pub signals: Vec<Signal>,
    /// Where OTLP goes, as OTEL_EXPORTER_OTLP_ENDPOINT [default: http://localhost:4318]
    #[arg(long, value_name = "URL", value_parser = NonEmptyStringValueParser::new(), help_heading = OUTPUT)]
    pub endpoint: Option<String>,
    /// How OTLP goes, as OTEL_EXPORTER_OTLP_PROTOCOL [default: http/protobuf]
    #[arg(long, help_heading = OUTPUT)]
    pub protocol: Option<Protocol>,
    /// Spans or log records a second for each queue and operation of send and receive, 0: every call
    /// [default: 100; 0 with a command, or where the only outputs are console and files]
    #[arg(long, value_name = "N", help_heading = RECORDS)]
    pub max_rate: Option<u32>,
    /// Exempt from --max-rate: sends that took as long, receives whose message waited as long
    /// [default: 10ms]
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = RECORDS)]
    pub slow: Option<Duration>,
    /// Tell of calls that are still under way after this long, and when they end
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = RECORDS)]
    pub stuck: Option<Duration>,
    /// Queues that match go by this pattern in span names and metrics; repeatable
    #[arg(long, value_name = "GLOB", value_parser = filter::template, help_heading = RECORDS)]
    pub template: Vec<Glob>,
    /// A receive span links to the sending span, or is its child [default: link]
    #[arg(long, help_heading = RECORDS)]
    pub receive: Option<Receive>,
    /// CMD runs as this user
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new(), help_heading = RUN)]
    pub user: Option<String>,
    /// The kinds of hooks to choose from, a list; the first that works is used [default: auto]
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', help_heading = RUN)]
    pub hooks: Vec<HookKind>,
    /// The kernel's types (BTF) from this file, where the kernel does not describe them itself
    #[arg(long, value_name = "PATH", help_heading = RUN)]
    pub btf: Option<PathBuf>,
    /// The CPUs that mqspan's own threads may run on, as in 0,2-3
    #[arg(long, value_name = "LIST", help_heading = RUN)]
    pub cpus: Option<CpuList>,
    /// Stop after this long: a number with ns, us, ms, s, m or h, or a sum, as in 1m30s
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = RUN)]
    pub duration: Option<Duration>,
    /// Keep what could not be sent in this directory
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub spool: Option<PathBuf>,
    /// The most that the spool holds [default: 1GiB]
    #[arg(long, value_name = "BYTES", value_parser = values::size, help_heading = OUTPUT)]
    pub spool_size: Option<u64>,
    /// Make the spool survive a power cut
    #[arg(long, help_heading = OUTPUT)]
    pub spool_sync: bool,
    /// Serve /livez and /readyz here; a port alone is on loopback
    #[arg(long, value_name = "ADDR", value_parser = values::address, help_heading = RUN)]
    pub health: Option<SocketAddr>,
    /// Write the counters to this file at exit, as one JSON object
    #[arg(long, value_name = "PATH", help_heading = OUTPUT)]
    pub stats_file: Option<PathBuf>,
    /// At the end, print calls, failures and times for each queue and operation
    #[arg(long, help_heading = OUTPUT)]
    pub summary: bool,
    /// At the end, write one self-contained HTML page
    #[arg(long, value_name = "PATH", help_heading = OUTPUT)]
    pub report: Option<PathBuf>,
    /// Read the configuration file
    #[arg(long, value_name = "PATH", help_heading = RUN)]
    pub config: Option<PathBuf>,
    /// Print errors only
    #[arg(long, conflicts_with = "verbose", help_heading = RUN)]
    pub quiet: bool,
    /// Print more
    #[arg(long, help_heading = RUN)]
    pub verbose: bool,
    /// When the console is coloured [default: auto]
    #[arg(long, value_name = "WHEN", help_heading = RUN)]
    pub color: Option<Color>,
    /// The command to trace, with its arguments; mqspan exits with its status
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
    // clap keeps a heading for what follows, so the group comes last.
    /// Whose calls, and which
    #[command(flatten)]
    pub filters: FilterArgs,
}

/// The options of `top`.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct TopArgs {
    /// Print one view, of one interval, and end: for scripts and runbooks
    #[arg(long)]
    pub once: bool,
    /// How --once prints it [default: text]
    #[arg(long, value_enum, requires = "once")]
    pub format: Option<Format>,
    /// How often the view is renewed, and what its rates are an average of [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub interval: Option<Duration>,
    /// What the queues are sorted by [default: depth]
    #[arg(long, value_name = "COLUMN")]
    pub sort: Option<SortKey>,
    /// The kernel's types (BTF) from this file, where the kernel does not describe them itself
    #[arg(long, value_name = "PATH")]
    pub btf: Option<PathBuf>,
    /// Whose calls, and which
    #[command(flatten)]
    pub filters: FilterArgs,
}

/// Whose calls, and which.
#[derive(Args, Clone, Debug, Default, PartialEq)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Only these calls, also by glibc's names (mq_send, mq_receive, mq_getattr, mq_setattr)
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub call: Vec<Op>,
    /// Only queues whose name matches; repeatable
    #[arg(long, value_name = "[!]GLOB", value_parser = filter::queue)]
    pub queue: Vec<Pick<Glob>>,
    /// Only threads whose name matches; repeatable
    #[arg(long, value_name = "[!]GLOB")]
    pub comm: Vec<Pick<Glob>>,
    /// Only this process, with all its threads, without its children; repeatable
    #[arg(long, value_name = "[!]N", value_parser = filter::number)]
    pub pid: Vec<Pick<u32>>,
    /// Only processes of this effective user id; repeatable
    #[arg(long, value_name = "[!]N", value_parser = filter::number)]
    pub uid: Vec<Pick<u32>>,
    /// Only the container whose id begins so; repeatable
    #[arg(long, value_name = "[!]ID", value_parser = filter::container)]
    pub container: Vec<Pick<String>>,
    /// Only this ipc namespace: all, self (mqspan's own) or its number; repeatable [default: all]
    #[arg(long, value_name = "[!]NS", value_parser = filter::namespace)]
    pub ipc_namespace: Vec<Pick<Namespace>>,
    /// Only calls that failed
    #[arg(long)]
    pub failed: bool,
    /// Only calls at least this long
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub min_duration: Option<Duration>,
}

/// Why there is no command to carry out.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// Help or version was asked for: this text belongs on stdout, the exit status is 0.
    Help(String),
    /// Wrong usage: one line for stderr without the leading `mqspan: `, the exit status is 2.
    Usage(String),
}

/// Reads a command line, the program's name first.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(cli.command.unwrap_or_else(|| Command::Run(Box::new(cli.run)))),
        Err(error) => Err(match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Help(error.to_string()),
            ErrorKind::UnknownArgument => Exit::Usage(one_line(&error) + where_words_go(&error)),
            _ => Exit::Usage(one_line(&error)),
        }),
    }
}

/// The options of `run` without a command line around them.
fn options() -> clap::Command {
    RunArgs::augment_args(
        clap::Command::new("file").no_binary_name(true).disable_help_flag(true).disable_version_flag(true),
    )
}

/// An option of `run`, as a configuration file needs to know it.
#[derive(Clone, Debug)]
pub struct RunOption {
    /// Without dashes.
    pub name: String,
    /// May be given more than once.
    pub is_repeatable: bool,
    /// Is not a mere switch.
    pub takes_value: bool,
}

/// All options of `run`.
pub fn run_options() -> Vec<RunOption> {
    let options = options();
    let option = |option: &clap::Arg| {
        Some(RunOption {
            name: option.get_long()?.into(),
            is_repeatable: matches!(option.get_action(), clap::ArgAction::Append),
            takes_value: option.get_action().takes_values(),
        })
    };
    options.get_arguments().filter_map(option).collect()
}

/// Reads options of `run`. The error is the option's name without dashes, empty where it is about none, and what is
/// wrong with it, in one line.
pub fn parse_options(arguments: &[String]) -> Result<RunArgs, (String, String)> {
    let run = options().try_get_matches_from_mut(arguments).and_then(|matches| RunArgs::from_arg_matches(&matches));
    run.map_err(|error| {
        let option = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(usage)) => usage.trim_start_matches("--"),
            _ => "",
        };
        (option.split([' ', '=']).next().unwrap_or_default().into(), one_line(&error))
    })
}

/// What clap has to say about a wrong option, with its tips, but without the usage, in one line.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let end = text.find("\n\nUsage:").or(text.find("\n\nFor more information"));
    let lines = text[..end.unwrap_or(text.len())].lines().map(str::trim);
    // No option of mqspan takes another option's name for a value.
    lines
        .filter(|line| !line.is_empty() && !line.starts_with("tip: to pass"))
        .collect::<Vec<_>>()
        .join(" ")
        .replace(" tip: ", "; ")
}

/// What to add where a word stands that is no option: clap takes it for one too many.
fn where_words_go(error: &clap::Error) -> &'static str {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if !word.starts_with('-') => {
            "; a command (run, top, check, completions, man) comes first, a program to trace after --"
        }
        _ => "",
    }
}

/// Writes the completions for `shell`.
pub fn completions(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // Into memory first: clap_complete panics where its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mqspan", &mut script);
    out.write_all(&script)
}

/// Writes the man page, in roff.
pub fn man(out: &mut dyn Write) -> io::Result<()> {
    // The page is the same whatever it is built for.
    clap_mangen::Man::new(Cli::command().long_version(env!("CARGO_PKG_VERSION"))).render(&mut &mut *out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, Exit> {
        parse(line.split(' ').map(OsString::from))
    }

    fn run(line: &str) -> RunArgs {
        match parsed(line) {
            Ok(Command::Run(run)) => *run,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Prevents mistakes in the derive attributes that clap finds only at run time.
    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// Prevents a command after `--` from being taken for mqspan's, and bare options from meaning
    /// something else than `run`.
    #[test]
    fn bare_is_run() {
        assert_eq!(run("mqspan"), run("mqspan run"));
        assert_eq!(run("mqspan --quiet --failed"), run("mqspan run --quiet --failed"));
        assert_eq!(run("mqspan -- top -x"), run("mqspan run -- top -x"));
        assert_eq!(run("mqspan --quiet -- top").command, ["top"]);
        assert!(matches!(parsed("mqspan top --pid 1"), Ok(Command::Top(_))));
        assert!(matches!(parsed("mqspan top --once --format json --sort in --interval 2s"), Ok(Command::Top(_))));
        assert!(matches!(parsed("mqspan top --format json"), Err(Exit::Usage(text)) if text.contains("--once")));
        let check = parsed("mqspan check --format json --measure");
        assert!(matches!(check, Ok(Command::Check { format: Format::Json, measure: true, .. })));
    }

    /// Prevents repeatable options and comma lists from keeping only their last value.
    #[test]
    fn lists_and_repetitions() {
        let run = run("mqspan --output otlp --output file:/x --signals traces,logs \
             --call mq_open,mq_send --call mq_unlink --queue a --queue !b --pid !7 --hooks auto");
        assert_eq!(run.output, [Output::Otlp, Output::File("/x".into())]);
        assert_eq!(run.signals, [Signal::Traces, Signal::Logs]);
        assert_eq!(run.filters.call, [Op::MqOpen, Op::MqTimedsend, Op::MqUnlink]);
        let queues: Vec<String> = run.filters.queue.iter().map(Pick::to_string).collect();
        assert_eq!(queues, ["/a", "!/b"]);
        assert_eq!(run.filters.pid[0].to_string(), "!7");
    }

    /// Prevents an option of the contract from being unknown.
    #[test]
    fn every_option_is_known() {
        for options in [
            "--output none --signals metrics --endpoint http://x --protocol http/json",
            "--call mq_notify --queue /q --comm x --pid 1 --uid 0 --container ab",
            "--ipc-namespace self --failed --min-duration 5ms --max-rate 5 --slow 1s",
            "--template /reply-* --receive child --spool /s --spool-size 1GiB --spool-sync",
            "--user nobody --hooks fentry,kprobe --cpus 0,2-3 --health 8080 --duration 1m30s",
            "--stats-file /x --summary --report /r --config /c --quiet --color never",
            "--verbose",
        ] {
            run(&format!("mqspan {options}"));
        }
    }

    /// Prevents wrong usage from taking several lines, and the nearest option from being left out.
    #[test]
    fn wrong_usage_is_one_line() {
        for (line, says) in [
            ("mqspan --colr never", "similar argument exists: '--color'"),
            ("mqspan run --colr never", "similar argument exists: '--color'"),
            ("mqspan rum", "'rum' found; a command (run, top"),
            ("mqspan --color red", "possible values: auto, always, never"),
            ("mqspan --call mq_opne", "similar value exists: 'mq_open'"),
            ("mqspan --min-duration 5", "a duration is a number with"),
            ("mqspan --output file:", "needs a path"),
            ("mqspan --pid x", "not a number"),
            ("mqspan --pid", "a value is required"),
            ("mqspan --quiet --verbose", "cannot be used with"),
            ("mqspan --quiet check", "comes first"),
            ("mqspan run ls", "a program to trace after --"),
            ("mqspan completions", "not provided"),
            ("mqspan --spool-size 1GB", "KiB"),
            ("mqspan --health nowhere", "an address is"),
        ] {
            match parsed(line) {
                Err(Exit::Usage(text)) => {
                    assert!(text.contains(says), "{line}: {text}");
                    assert!(!text.contains('\n') && !text.contains("Usage"), "{line}: {text}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    /// Prevents help, completions and man page from breaking or lacking an option.
    #[test]
    fn help_completions_and_man() {
        let lines = |line| match parsed(line) {
            Err(Exit::Help(text)) => {
                text.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
            }
            other => panic!("{line}: {other:?}"),
        };
        let said: [Vec<String>; 2] = [lines("mqspan -V"), lines("mqspan --version")];
        assert_eq!(said, [vec!["mqspan"], vec!["mqspan", "commit:", "target:", "features:"]]);
        assert!(matches!(parsed("mqspan run --help"), Err(Exit::Help(text)) if text.contains("--stats-file")));
        let mut man_page = Vec::new();
        man(&mut man_page).unwrap();
        assert!(String::from_utf8(man_page).unwrap().contains("stats\\-file"));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            completions(shell, &mut script).unwrap();
            assert!(String::from_utf8(script).unwrap().contains("stats-file"), "{shell}");
        }
    }
}
