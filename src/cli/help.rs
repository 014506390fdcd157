//! What `--help` says besides the options themselves: the screen of all that there is, and examples. Pure text.

/// Of `mqspan --help`: on one screen what people begin with, by groups. All the rest is `run --help`'s.
pub const SCREEN: &str = "\
mqspan shows what POSIX message queues do, from the kernel, as OpenTelemetry

Usage: mqspan [run] [OPTIONS] [-- CMD ARG...]
       mqspan <COMMAND> [OPTIONS]

Commands:
  run      Trace the host, or only CMD and its descendants; as no command does
  top      Show queues, calls and blocked threads live, in a terminal
  check    Say what this host offers, which hooks will be used, what is missing
  completions SHELL, man

Begin with:
  mqspan check                            Does it work here, and what mends it
  mqspan run -- CMD ARG...                CMD's calls, on this terminal
  mqspan top                              The host's queues, as they are now
  mqspan run --endpoint http://HOST:4318  All calls of this host, to a Collector

Where it goes:
  --output OUTPUT       otlp, console, file:PATH or none; repeatable
  --endpoint URL        Where OTLP goes; --protocol: grpc, http/protobuf …
  --signals SIGNAL,...  Of traces, logs and metrics
  --spool DIR           Keep what could not be sent; --spool-size, --spool-sync
  --summary             A table at the end; --report PATH: a page to pass on

Whose calls, and which:
  --queue GLOB, --comm GLOB, --pid N, --uid N, --container ID
  --ipc-namespace NS    ! in front of a value of these excludes
  --call NAME,...       As mq_open, mq_send
  --failed              Only what failed; --min-duration DURATION: what was slow
  --max-rate N          Spans a second of each queue; --slow DURATION: exempt
  --stuck DURATION      Tell of calls that are under way for longer

The run:
  --duration DURATION, --config PATH, --health ADDR, --hooks KIND,...
  --cpus LIST, --quiet, --verbose, --color WHEN, --version

mqspan run --help has every option, mqspan top --help those of top.
";

/// Of `mqspan run --help`, before all else.
pub const EXAMPLES: &str = "\
Examples:
  mqspan run -- CMD ARG...                       CMD's calls on this terminal
  mqspan run --failed --queue '/orders*'         What fails on these queues, on the host
  mqspan run --stuck 1s                          Who waits for more than a second
  mqspan run --summary --report run.html -- CMD  A table at the end, and a page
  mqspan run --output file:calls.jsonl --duration 1m   OTLP JSON, for a minute
  mqspan run --endpoint http://localhost:4318    To a Collector, until ^C
  mqspan run --endpoint http://localhost:4317 --protocol grpc --spool /var/lib/mqspan";

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Command, Exit, parse, run_options};

    fn help(line: &str) -> String {
        match parse(line.split(' ').map(OsString::from)) {
            Err(Exit::Help(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    /// Prevents the first screen from scrolling away, and from naming an option that there is not.
    #[test]
    fn a_screen_of_help() {
        for line in ["mqspan --help", "mqspan -h"] {
            assert_eq!(help(line), SCREEN);
        }
        assert!(SCREEN.lines().count() <= 40 && SCREEN.lines().all(|line| line.chars().count() <= 80));
        let options = run_options();
        let words = SCREEN.split(|c: char| c.is_whitespace() || [',', ';', ':'].contains(&c));
        for name in words.filter_map(|word| word.strip_prefix("--")).filter(|name| !name.is_empty()) {
            assert!(["help", "version"].contains(&name) || options.iter().any(|option| option.name == name), "{name}");
        }
    }

    /// Prevents an example from not working, and from being found only below all options.
    #[test]
    fn examples_come_first() {
        let text = help("mqspan run --help");
        assert!(text.starts_with(EXAMPLES), "{text}");
        for line in EXAMPLES.lines().skip(1) {
            let line = line.trim_start().split("  ").next().unwrap_or_default();
            assert!(matches!(parse(line.split(' ').map(OsString::from)), Ok(Command::Run(_))), "{line}");
        }
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what}: {text}"));
        let headings = ["Where it goes:", "What is recorded:", "Filters:"].map(at);
        assert!(headings.is_sorted(), "{text}");
    }
}
