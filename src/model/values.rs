//! The types of option values and how each is written: durations, sizes, CPU lists and names from
//! fixed lists. The same for the command line, the environment and the file. Pure code.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A system call of the family, and what glibc calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// mq_open(3).
    MqOpen,
    /// mq_unlink(3).
    MqUnlink,
    /// mq_timedsend(3), mq_send(3).
    MqTimedsend,
    /// mq_timedreceive(3), mq_receive(3).
    MqTimedreceive,
    /// mq_notify(3).
    MqNotify,
    /// mq_getattr(3), mq_setattr(3).
    MqGetsetattr,
}

impl Op {
    /// All of the family, in the order of their numbers in records.
    pub const ALL: [Self; 6] =
        [Self::MqOpen, Self::MqUnlink, Self::MqTimedsend, Self::MqTimedreceive, Self::MqNotify, Self::MqGetsetattr];
}

/// A signal of OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A span for each call.
    Traces,
    /// A log record for each call.
    Logs,
    /// Counts, durations and the state of queues.
    Metrics,
}

impl Signal {
    /// All signals; the order of their numbers (`signal as usize`).
    pub const ALL: [Self; 3] = [Self::Traces, Self::Logs, Self::Metrics];

    /// As in URLs and keys: `traces`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
        }
    }
}

/// How OTLP is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP, binary.
    HttpProtobuf,
    /// OTLP/HTTP, JSON.
    HttpJson,
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As the specification has it.
    Gzip,
    /// Beyond the specification; the Collector takes it.
    Zstd,
}

/// OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temporality {
    /// All from the start.
    Cumulative,
    /// Counters and histograms from one export to the next.
    Delta,
    /// Delta for counters and histograms that are counted up, cumulative for those that are observed.
    LowMemory,
}

/// OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramAggregation {
    /// Exponential histograms of one fixed scale.
    Exponential,
    /// Histograms with bounds at powers of two.
    Explicit,
}

/// A kind of hook, see `--hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// The best that the host offers.
    Auto,
    /// Entry and exit in one program, Linux 7.0 and newer.
    Fsession,
    /// fentry and fexit trampolines.
    Fentry,
    /// kprobes with a return side.
    Kprobe,
    /// The tracepoints of the system calls.
    Tracepoint,
}

impl HookKind {
    /// As `--hooks` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fsession => "fsession",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// Where a receive span without a parent of its own hangs, see `--receive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// It links to the sending span.
    Link,
    /// It is the sending span's child.
    Child,
}

/// When the console is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// Where it goes to a terminal.
    Auto,
    /// Also into files and pipes.
    Always,
    /// Not at all.
    Never,
}

/// The form of what `check` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs, one object.
    Json,
}

/// Where telemetry goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To an OTLP backend.
    Otlp,
    /// To stdout, a line a call.
    Console,
    /// OTLP JSON, a request a line.
    File(PathBuf),
    /// Nowhere; records are made and encoded all the same.
    None,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "otlp" => Ok(Self::Otlp),
            "console" => Ok(Self::Console),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("file:") {
                Some("") => Err("file: needs a path".into()),
                Some(path) => Ok(Self::File(path.into())),
                None => Err("neither otlp, console, file:PATH nor none".into()),
            },
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Otlp => f.write_str("otlp"),
            Self::Console => f.write_str("console"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::None => f.write_str("none"),
        }
    }
}

/// Which ipc namespace a caller is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Any of the host's.
    All,
    /// That of mqspan itself.
    Own,
    /// The one with this number, as in `/proc/PID/ns/ipc`.
    Number(u32),
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Own => f.write_str("self"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "self" => Ok(Self::Own),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| "neither all, self nor the number of an ipc namespace".into()),
        }
    }
}

/// A DURATION: a number with ns, us, ms, s, m or h, and sums of these (`1m30s`, `1.5ms`).
pub fn duration(text: &str) -> Result<Duration, String> {
    let form = || String::from("a duration is a number with ns, us, ms, s, m or h, as in 1m30s");
    if text.is_empty() {
        return Err(form());
    }
    let mut rest = text;
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, tail) = rest.split_at(number_end.ok_or_else(form)?);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, tail) = tail.split_at(unit_end.unwrap_or(tail.len()));
        rest = tail;
        let unit: u128 = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(form()),
        };
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        if decimals.len() > 9 {
            return Err("more than nine decimals".into());
        }
        let whole: u64 = whole.parse().map_err(|_| form())?;
        let fraction: u64 = decimals.parse().map_err(|_| form())?;
        let scale = 10_u128.pow(decimals.len() as u32);
        let fraction = u128::from(fraction) * unit;
        if !fraction.is_multiple_of(scale) {
            return Err("a nanosecond is the smallest unit".into());
        }
        nanoseconds = nanoseconds.saturating_add(u128::from(whole) * unit + fraction / scale);
    }
    u64::try_from(nanoseconds).map(Duration::from_nanos).map_err(|_| "too long".into())
}

/// A number of bytes, plain or with KiB, MiB, GiB or TiB.
pub fn size(text: &str) -> Result<u64, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(number_end.unwrap_or(text.len()));
    let shift = match unit {
        "" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    shift
        .zip(number.parse::<u64>().ok())
        .and_then(|(shift, number)| number.checked_mul(1 << shift))
        .ok_or_else(|| "a size is a number of bytes, or one with KiB, MiB, GiB or TiB".into())
}

/// An address to serve on: `HOST_ADDRESS:PORT`, or a port alone, which means loopback.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    port.parse()
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .or_else(|_| text.parse())
        .map_err(|_| "an address is a port, or an IP address and a port".into())
}

/// CPUs as the kernel lists them, `0,2-3`: ascending, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The largest NR_CPUS that a kernel can be built with: bounds what a range can hold.
        const MOST: usize = 8192;
        let cpu = |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < MOST);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (cpu(first), cpu(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err("CPUs are numbers and ranges, as in 0,2-3".into()),
            }
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

/// `--max-rate` and `--slow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Spans or log records a second for each queue and operation of send and receive; 0: every call.
    pub most: u32,
    /// Sends that took as long, and receives whose message lay as long, are exempt.
    pub slow: Duration,
}

/// What the queues of `top` are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SortKey {
    /// Their name.
    Name,
    /// The ipc namespace or container.
    Namespace,
    /// How full they are.
    Depth,
    /// Messages that come.
    In,
    /// Messages that are taken.
    Out,
    /// The age of the oldest message.
    Oldest,
    /// The median wait.
    Wait50,
    /// The wait that one of a hundred messages exceeds.
    Wait99,
    /// Failures.
    Failures,
    /// Descriptors that can receive and send.
    Open,
    /// Threads that wait.
    Blocked,
}

impl SortKey {
    /// All of them, in the order of the columns.
    pub const ALL: [Self; 11] = [
        Self::Name,
        Self::Namespace,
        Self::Depth,
        Self::In,
        Self::Out,
        Self::Oldest,
        Self::Wait50,
        Self::Wait99,
        Self::Failures,
        Self::Open,
        Self::Blocked,
    ];
}

/// Which signals are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// A span for each call.
    pub traces: bool,
    /// A log record for each call.
    pub logs: bool,
    /// Metrics of calls, queues and mqspan itself.
    pub metrics: bool,
}

impl Signals {
    /// Whether a signal is made.
    pub fn has(self, signal: Signal) -> bool {
        match signal {
            Signal::Traces => self.traces,
            Signal::Logs => self.logs,
            Signal::Metrics => self.metrics,
        }
    }
}

/// The section `metrics` of the file: what lies beyond goes to one overflow point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricLimits {
    /// Attribute sets for each metric and Resource.
    pub max_series: usize,
    /// Processes with a Resource of their own.
    pub max_processes: usize,
}

impl Default for MetricLimits {
    fn default() -> Self {
        Self { max_series: 2000, max_processes: 1000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a bare number from being taken for some unit, floating-point dust in sums, and
    /// overflow.
    #[test]
    fn durations() {
        for (text, expected) in [
            ("0s", Some(0)),
            ("1ns", Some(1)),
            ("20us", Some(20_000)),
            ("10ms", Some(10_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1h1m1s1ms1us1ns", Some(3_661_001_001_001)),
            ("1.5ms", Some(1_500_000)),
            ("0.1s", Some(100_000_000)),
            ("584y", None),
            ("600000h", Some(2_160_000_000_000_000_000)),
            ("6000000h", None),
            ("18446744073709551615h", None),
            ("18446744073709551616ns", None),
            ("18446744073709551615.999999999h", None),
            ("1.5ns", None),
            ("1.0000000001s", None),
            ("", None),
            ("10", None),
            ("1m30", None),
            ("ms", None),
            (".s", None),
            ("1.2.3s", None),
            ("-1s", None),
            ("1 s", None),
            ("1S", None),
            ("5 parsecs", None),
        ] {
            let parsed = duration(text).ok();
            assert_eq!(parsed, expected.map(Duration::from_nanos), "{text:?}");
        }
    }

    /// Prevents decimal units from being taken for binary ones, and overflow.
    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64MiB", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("1GB", None),
            ("", None),
            ("GiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("18446744073709551615TiB", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text:?}");
        }
    }

    /// Prevents a list that silently leaves out a CPU or allocates for four billion of them.
    #[test]
    fn cpu_lists() {
        for (text, expected) in [
            ("0", Some(vec![0])),
            ("0,2-3", Some(vec![0, 2, 3])),
            ("3,1-3,1", Some(vec![1, 2, 3])),
            ("3-1", None),
            ("", None),
            ("1,", None),
            ("a", None),
            ("0-4000000000", None),
        ] {
            let parsed = text.parse::<CpuList>().ok().map(|list| list.0);
            assert_eq!(parsed, expected, "{text:?}");
        }
    }

    /// Prevents wrong outputs and addresses from passing as something else.
    #[test]
    fn outputs_and_addresses() {
        assert_eq!("file:a:b".parse(), Ok(Output::File("a:b".into())));
        assert!("file:".parse::<Output>().is_err() && "Otlp".parse::<Output>().is_err());
        for (text, expected) in [
            ("8080", Some("127.0.0.1:8080")),
            (":8080", Some("127.0.0.1:8080")),
            ("0.0.0.0:80", Some("0.0.0.0:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("70000", None),
            ("host:80", None),
        ] {
            let parsed = address(text).ok().map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text:?}");
        }
    }
}
