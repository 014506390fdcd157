//! The console, several outputs at once, what mqspan says on stderr, and how it ends.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mqueue::{MQ_OFlag, MqAttr, mq_open, mq_receive, mq_send, mq_unlink},
    sys::{signal::Signal, stat::Mode},
};
use support::{
    calls::Open,
    otlp::{self, made_by, of_operation},
    program::{Mqspan, Tracing, finish},
    strace, text, wait, workload,
};

use crate::mqspan;

/// A console line, in its parts.
#[derive(Debug)]
struct Line<'a> {
    /// Seconds of the day.
    time: f64,
    comm: &'a str,
    pid: u32,
    tid: u32,
    call: &'a str,
    seconds: f64,
}

/// `12:01:02.123456 orders[1234/1235] mq_open("/orders", O_RDONLY) = 5 <14.2us>`
fn line(text: &str) -> Result<Line<'_>> {
    let parts = || {
        let (time, rest) = text.split_once(' ')?;
        let (who, rest) = rest.split_once("] ")?;
        let (comm, ids) = who.rsplit_once('[')?;
        let (pid, tid) = ids.split_once('/')?;
        let (call, took) = rest.rsplit_once(" <")?;
        let [hours, minutes, seconds] = time.split(':').collect::<Vec<_>>()[..] else { return None };
        (time.len() == 15 && seconds.len() == 9).then_some(())?;
        let time =
            hours.parse::<f64>().ok()? * 3600. + minutes.parse::<f64>().ok()? * 60. + seconds.parse::<f64>().ok()?;
        let seconds = took.strip_suffix('>').and_then(duration)?;
        Some(Line { time, comm, pid: pid.parse().ok()?, tid: tid.parse().ok()?, call, seconds })
    };
    parts().with_context(|| format!("not a console line: {text:?}"))
}

fn duration(text: &str) -> Option<f64> {
    let digits = text.find(|character: char| character.is_ascii_alphabetic())?;
    let unit = match &text[digits..] {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.,
        _ => return None,
    };
    Some(text[..digits].parse::<f64>().ok()? * unit)
}

/// Prevents a line from saying anything else than what strace saw and the caller measured, and a name from steering the
/// terminal.
#[test]
fn console_lines_are_what_strace_sees() -> Result<()> {
    let mqspan = mqspan()?;
    let (log, record) = (mqspan.file("log"), mqspan.file("record"));
    let mut command = mqspan.command(["run", "--output=console", "--color=never", "--call=mq_open"]);
    command.env("TZ", "Asia/Kathmandu");
    let tracing = Tracing::start(command)?;
    let arguments = ["open", "--calls", "3000", "--seed", "41", "--print", &*record.display().to_string()];
    let output = finish(workload::under_strace("mq_open", &log, &mqspan.workload(), &arguments))?;
    ensure!(output.status.success(), "{output:?}");
    let ended = tracing.stop()?.ok()?;
    let calls = strace::parse(&fs::read_to_string(&log)?)?;
    let expected = calls.iter().map(Open::from_strace).collect::<Result<Vec<_>>>()?;
    let measured = workload::read(&record)?;
    let lines = ended.lines()?.into_iter().map(line).collect::<Result<Vec<_>>>()?;

    let mut compared = 0;
    for tid in measured.iter().map(|call| call.tid).collect::<BTreeSet<_>>() {
        let lines: Vec<_> = lines.iter().filter(|line| line.tid == tid).collect();
        let expected: Vec<_> = expected.iter().filter(|call| call.tid == tid).collect();
        let measured: Vec<_> = measured.iter().filter(|call| call.tid == tid).collect();
        ensure!(lines.len() == expected.len(), "{} lines of {} calls", lines.len(), expected.len());
        for ((line, call), measured) in lines.into_iter().zip(expected).zip(measured) {
            let text = call.line().context("strace knows all of it")?;
            ensure!(text::without_cause(line.call) == text, "{:?}, not {text:?}", line.call);
            ensure!(text::is_printable(line.call), "{:?} steers a terminal", line.call);
            ensure!((line.comm, Some(line.pid)) == ("workload", measured.pid), "{line:?}");
            let (before, after) = measured.times.context("no times")?;
            let longest = (after - before) as f64 / 1e9;
            ensure!(line.seconds <= longest * 1.06 + 1e-8, "{} s of a call within {longest} s", line.seconds);
            // Kathmandu is 5:45 ahead of UTC all year.
            let local = (before / 1_000) as f64 / 1e6 + (5. * 60. + 45.) * 60.;
            let off = (line.time - local).rem_euclid(86_400.);
            ensure!(off < longest + 0.01 || off > 86_399.99, "{off} s off: {line:?}");
            compared += 1;
        }
    }
    ensure!(compared == 3000, "{compared} lines compared");
    Ok(())
}

/// Prevents a thread's name, as a queue's, from steering the terminal, and names that are not UTF-8 from being lost.
#[test]
fn odd_thread_and_program_names() -> Result<()> {
    let mqspan = mqspan()?;
    let name = OsStr::from_bytes(b"\x1b[31m\xff\\x41");
    let odd = mqspan.copy_of_workload(name)?;
    let tracing = mqspan.trace(["--signals=traces", "--output=console", "--color=never", &mqspan.to_file("spans")])?;
    workload::run(&odd, &["flat", "--calls", "1"])?;
    let ended = tracing.stop()?.ok()?;
    let spans = made_by(otlp::spans(&mqspan.file("spans"))?, &odd);
    let span = spans.first().context("no span of the program with the odd name")?;
    let text = "\u{1b}[31m\\xff\\x5cx41";
    ensure!(span.text("thread.name") == Some(text), "{:?}", span.attributes);
    ensure!(otlp::text(&span.origin.resource, "process.executable.name") == Some(text), "{:?}", span.origin.resource);
    let lines = ended.lines()?;
    ensure!(lines.iter().any(|line| line.contains(r" \x1b[31m\xff\x5cx41[")), "{lines:?}");
    ensure!(lines.iter().all(|line| text::is_printable(line)), "{lines:?}");
    Ok(())
}

/// Prevents what others may not see from leaving the host: what a message says, and what stands in an environment besides
/// OpenTelemetry's variables.
#[test]
fn bodies_and_secrets_stay() -> Result<()> {
    let mqspan = mqspan()?;
    let (name, body, secret) = ("/mqspan-test-secrets", "the-body-of-a-message", "the-secret-of-an-environment");
    let page = mqspan.file("page.html");
    let report = format!("--report={}", page.display());
    let tracing = mqspan.trace([
        "--signals=traces,logs,metrics",
        "--output=console",
        "--max-rate=0",
        "--verbose",
        "--summary",
        &mqspan.to_file("all"),
        &report,
    ])?;
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR;
    let queue = mq_open(name, flags, Mode::from_bits_truncate(0o600), Some(&MqAttr::new(0, 4, 64, 0)))?;
    let mut received = [0; 64];
    mq_send(&queue, body.as_bytes(), 3)?;
    ensure!(mq_receive(&queue, &mut received, &mut 0)? == body.len());
    mq_unlink(name)?;
    let mut command = Command::new(mqspan.workload());
    command.args(["flat", "--calls=1"]).env("PASSWORD", secret).env("OTEL_SERVICE_NAME", "teller");
    ensure!(finish(command)?.status.success());
    let ended = tracing.stop()?.ok()?;
    let all =
        [fs::read(mqspan.file("all"))?, fs::read(page)?, ended.stdout, ended.stderr.join("\n").into_bytes()].concat();
    let all = String::from_utf8_lossy(&all);
    for (text, is_there) in [(name, true), ("teller", true), (body, false), (secret, false), ("PASSWORD", false)] {
        ensure!(all.contains(text) == is_there, "{text}: {}", !is_there);
    }
    // Neither encoded otherwise.
    ensure!(!all.contains("dGhlLWJvZHk") && !all.contains("7468652d626f6479"), "the body in base64 or hex");
    Ok(())
}

/// Prevents colour where it was not asked for or can't be shown, and its lack where it was.
#[test]
fn colour() -> Result<()> {
    let mqspan = mqspan()?;
    for (option, no_color, coloured) in
        [("always", None, true), ("never", None, false), ("auto", None, false), ("auto", Some("1"), false)]
    {
        let mut command = mqspan.command(["run", "--output=console", "--color", option, "--"]);
        command.args([&mqspan.workload_arg(), "flat", "--calls", "1"]);
        no_color.map(|value| command.env("NO_COLOR", value));
        let output = finish(command)?;
        let stdout = String::from_utf8(output.stdout)?;
        ensure!(stdout.contains("mq_open(") && stdout.contains('\x1b') == coloured, "{option}: {stdout:?}");
    }
    Ok(())
}

/// Prevents one output from taking another's calls, and calls from being counted once for each output.
#[test]
fn several_outputs_at_once() -> Result<()> {
    let mqspan = mqspan()?;
    let (a, b) = (mqspan.to_file("a"), mqspan.to_file("b"));
    let options = ["--signals=traces,logs", "--output=console", &a, &b, "--output=none"];
    let tracing = mqspan.trace_counted(&options)?;
    workload::run(&mqspan.workload(), &["open", "--calls", "1000", "--seed", "42"])?;
    let ended = tracing.stop()?.ok()?;
    let (in_a, in_b) = (otlp::spans(&mqspan.file("a"))?, otlp::spans(&mqspan.file("b"))?);
    let logs = (otlp::logs(&mqspan.file("a"))?, otlp::logs(&mqspan.file("b"))?);
    ensure!(in_a == in_b && logs.0 == logs.1, "the two files differ");
    ensure!((in_a.len(), logs.0.len()) == (in_a.len(), in_a.len()), "{} spans, {} logs", in_a.len(), logs.0.len());
    ensure!(ended.lines()?.len() == in_a.len(), "{} lines, {} spans", ended.lines()?.len(), in_a.len());
    let stats = mqspan.stats()?;
    // Floods of other tests are limited.
    let wanted = stats.captured - stats.limited;
    ensure!(stats.exported == in_a.len() as u64 && wanted == stats.exported, "{stats:?}");
    let opens = of_operation(made_by(in_a, &mqspan.workload()), "mq_open");
    ensure!(opens.len() == 1000, "{} spans of 1000 calls", opens.len());
    Ok(())
}

/// Prevents the output `none` from writing anything, or from counting its calls as lost.
#[test]
fn the_output_none() -> Result<()> {
    let mqspan = mqspan()?;
    let ended = mqspan.run_counted(&["--output=none", "--", &mqspan.workload_arg(), "flat", "--calls", "500"])?;
    let stats = mqspan.stats()?;
    ensure!(stats.exported == 500 && stats.lost_sum() == 0, "{stats:?}");
    // What the workload prints, and nothing else.
    ensure!(ended.lines()?.len() == 1, "{:?}", ended.lines());
    Ok(())
}

/// Prevents a call that is issued right after the ready line from being missed, and that line and the closing one from
/// not saying what scripts wait for.
#[test]
fn the_first_and_the_last_line() -> Result<()> {
    let mqspan = mqspan()?;
    for _ in 0..5 {
        let file = mqspan.to_file("spans");
        let tracing = mqspan.trace_counted(&["--signals=traces", &file])?;
        workload::run(&mqspan.workload(), &["flat", "--calls", "20"])?;
        let ready = tracing.ready_line().to_owned();
        let ended = tracing.stop()?.ok()?;
        let words: Vec<_> = ready.split(' ').collect();
        let ["mqspan:", "tracing", number, "calls" | "call", "by", hooks, "to", ..] = words[..] else {
            anyhow::bail!("{ready:?}");
        };
        ensure!(number.parse::<u32>().is_ok_and(|calls| calls >= 1), "{ready}");
        ensure!(["fsession,", "fentry,", "kprobe,", "tracepoint,"].contains(&hooks), "{ready}");
        ensure!(ready.contains(&mqspan.file("spans").display().to_string()), "{ready}");
        let spans = otlp::spans(&mqspan.file("spans"))?;
        let stats = mqspan.stats()?;
        ensure!(made_by(spans, &mqspan.workload()).len() == 20, "20 calls");
        let last = ended.stderr.last().context("nothing was said")?;
        ensure!(last.starts_with("mqspan: "), "{last}");
        for number in [stats.captured, stats.exported] {
            let is_said =
                last.split(|character: char| !character.is_ascii_digit()).any(|word| word == number.to_string());
            ensure!(is_said, "{number} is not in {last:?}");
        }
    }
    Ok(())
}

/// Prevents scripts from not being able to end mqspan, or from taking that for a failure.
#[test]
fn signals_end_a_run() -> Result<()> {
    let mqspan = mqspan()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let tracing = mqspan.trace_counted(&["--signals=traces", &mqspan.to_file("spans")])?;
        workload::run(&mqspan.workload(), &["flat", "--calls", "2000"])?;
        tracing.signal(signal)?;
        tracing.end()?.ok()?;
        let spans = made_by(otlp::spans(&mqspan.file("spans"))?, &mqspan.workload());
        ensure!(spans.len() == 2000, "{signal}: {} spans of 2000 calls", spans.len());
    }
    Ok(())
}

/// Prevents a run that was told to stop by itself from going on, or from stopping at once.
#[test]
fn a_duration_ends_a_run() -> Result<()> {
    let mqspan = mqspan()?;
    let start = Instant::now();
    let tracing = mqspan.trace(["--output=none", "--duration=1s"])?;
    tracing.end()?.ok()?;
    ensure!(start.elapsed() >= Duration::from_secs(1), "it ended after {:?}", start.elapsed());
    Ok(())
}

/// Starts a run whose console is read one line far and then closed, as `| head -1` does.
fn with_closed_stdout(mqspan: &Mqspan, options: &[&str]) -> Result<Tracing> {
    let mut command = mqspan.command(["run", "--output=console"]);
    let mut child = command.args(options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no stdout")?;
    let tracing = Tracing::watch(child)?;
    workload::run(&mqspan.workload(), &["flat", "--calls", "10"])?;
    let mut first = String::new();
    BufReader::new(stdout).read_line(&mut first)?;
    ensure!(first.contains("mq_open("), "{first:?}");
    Ok(tracing)
}

/// Prevents `mqspan | head -1` from hanging or failing.
#[test]
fn a_closed_stdout_ends_a_run() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = with_closed_stdout(&mqspan, &[])?;
    let pid = tracing.pid();
    // It finds out when it writes.
    let ended = wait::until("the end of mqspan", || {
        workload::run(&mqspan.workload(), &["flat", "--calls", "100"])?;
        let status = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(status.contains(") Z ").then_some(()))
    });
    ended.with_context(|| format!("{:?}", tracing.said()))?;
    tracing.end()?.ok().map(drop)
}

/// Prevents a closed stdout from ending what another output still takes.
#[test]
fn a_closed_stdout_leaves_other_outputs() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = with_closed_stdout(&mqspan, &["--signals=traces", &mqspan.to_file("spans")])?;
    for _ in 0..20 {
        workload::run(&mqspan.workload(), &["flat", "--calls", "100"])?;
    }
    tracing.stop()?.ok()?;
    let spans = made_by(otlp::spans(&mqspan.file("spans"))?, &mqspan.workload());
    ensure!(spans.len() == 2010, "{} spans of 2010 calls", spans.len());
    Ok(())
}

/// Prevents an output that can't be opened from being found out only when all is over.
#[test]
fn an_output_that_cannot_be_opened() -> Result<()> {
    let mqspan = mqspan()?;
    for option in ["--output=file:/nonexistent/folder/spans", "--output=file:/usr"] {
        let output = mqspan.output(["run", option, "--", "true"])?;
        let stderr = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{option}: {}: {stderr}", output.status);
        ensure!(stderr.starts_with("mqspan: ") && (1..=2).contains(&stderr.lines().count()), "{stderr:?}");
    }
    Ok(())
}
