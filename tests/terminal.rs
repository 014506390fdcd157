//! What `run` shows on a terminal and what it does not where there is none: progress of what takes long, lines that are
//! aligned, how many the console left out. Needs root and tracefs.

use std::{fs, io::Read, process::Stdio};

use anyhow::{Context, Result, ensure};
use support::{
    backend::{Answer, Backend},
    own,
    program::{Ended, Mqspan, Tracing, finish},
    pty::{self, Pty},
    wait,
};

const CALLS: usize = 20;

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// A run that makes some calls, and whose backend never answers.
fn undeliverable(mqspan: &Mqspan, backend: &Backend) -> Vec<String> {
    let arguments = ["run", "--output=otlp", "--signals=traces", "--max-rate=0"].map(Into::into);
    let endpoint = ["--endpoint".into(), backend.endpoint(), "--".into()];
    let workload = [mqspan.workload_arg(), "flat".into(), format!("--calls={CALLS}")];
    arguments.into_iter().chain(endpoint).chain(workload).collect()
}

/// Prevents people from wondering at a terminal why mqspan does not end, what is left to do, and how to end it now; and the line
/// from being left behind.
#[test]
fn delivering_at_the_end() -> Result<()> {
    let (mqspan, backend) = (mqspan()?, Backend::start(|_, _| Answer::Nothing)?);
    let mut pty = Pty::start(pty::command(mqspan.path(), undeliverable(&mqspan, &backend)), 100, 24)?;
    let line = format!("mqspan: delivering what was captured, {CALLS} calls left; ^C gives them up (");
    let screen = pty.until("progress", |screen| screen.contains(&line))?;
    ensure!(screen.lines().filter(|line| line.contains("delivering")).count() == 1, "{screen}");
    pty.press("\u{3}")?;
    let screen = pty.until("the end", |screen| screen.contains(&format!("{CALLS} lost ({CALLS} at shutdown)")))?;
    ensure!(!screen.contains("delivering what") && !screen.contains("attaching"), "{screen}");
    pty.end_well()
}

/// Prevents files and pipes from being filled with what only a terminal can take away again.
#[test]
fn no_progress_without_a_terminal() -> Result<()> {
    let (mqspan, backend) = (mqspan()?, Backend::start(|_, _| Answer::Nothing)?);
    let ended = Ended::of(finish(mqspan.command(undeliverable(&mqspan, &backend)))?).ok()?;
    let is_plain = |line: &String| !line.contains('\u{1b}') && !line.contains('\r') && !line.contains("delivering");
    ensure!(ended.stderr.iter().all(is_plain), "{:?}", ended.stderr);
    Ok(())
}

/// Prevents lines on a terminal from being askew, and those that are piped from being other than scripts expect.
#[test]
fn aligned_on_a_terminal() -> Result<()> {
    let mqspan = mqspan()?;
    let names = ["/mqspan-test-aligned-long", "/mqspan-test-aligned", "/mqspan-test-aligned-longer"];
    let arguments = ["run", "--call=mq_open", "--queue=/mqspan-test-aligned*", &own::pid()].map(str::to_owned);
    let calls =
        |text: &str| text.lines().filter(|line| line.contains("] mq_")).map(Into::into).collect::<Vec<String>>();
    let mut pty = Pty::start(pty::command(mqspan.path(), &arguments), 200, 50)?;
    pty.until("the start", |screen| screen.contains("tracing 1 call"))?;
    names.iter().try_for_each(|name| own::open(name))?;
    pty.until("the lines", |screen| calls(screen).len() == names.len())?;
    let shown = calls(&pty.screen());
    let results: Vec<_> = shown.iter().map(|line| line.rfind(" = ")).collect();
    ensure!(results[1] == results[0] && results[2] > results[1], "{shown:#?}");
    pty.press("\u{3}")?;
    pty.end_well()?;

    let tracing = Tracing::start(mqspan.command(&arguments))?;
    names.iter().try_for_each(|name| own::open(name))?;
    let ended = tracing.stop()?.ok()?;
    let piped = calls(std::str::from_utf8(&ended.stdout)?);
    ensure!(piped.len() == names.len(), "{piped:?}");
    ensure!(piped.iter().all(|line| !line.contains("  ") && !line.contains('\u{1b}')), "{piped:?}");
    Ok(())
}

/// What stderr says was left out in all, where the reason has this word.
fn left_out(said: &[String], why: &str) -> Result<u64> {
    let mut sum = 0;
    for line in said.iter().filter_map(|line| line.strip_prefix("mqspan: console: ")) {
        let (_, reasons) = line.split_once("lines left out: ").context("no reasons")?;
        for reason in reasons.split(", ").filter(|reason| reason.contains(why)) {
            sum += reason.split(' ').next().unwrap_or_default().parse::<u64>().with_context(|| line.to_owned())?;
        }
    }
    Ok(sum)
}

/// Prevents gaps between lines from passing for calls that were not made.
#[test]
fn limited_lines_are_counted_on_stderr() -> Result<()> {
    let mqspan = mqspan()?;
    let workload = mqspan.workload_arg();
    let ended = mqspan.run_counted(&[
        "--output=console",
        "--max-rate=5",
        "--slow=1h",
        "--",
        &workload,
        "bursts",
        "--name=mqspan-test-left-out",
        "--bursts=1",
        "--pairs=40",
    ])?;
    let (stats, lines) = (mqspan.stats()?, ended.lines()?.iter().filter(|line| line.contains("] mq_")).count());
    ensure!(stats.limited > 0 && lines as u64 == stats.exported, "{lines} lines: {stats:?}");
    let said = left_out(&ended.stderr, "limited by --max-rate")?;
    ensure!(said == stats.limited, "{said} said, {stats:?}: {:?}", ended.stderr);
    Ok(())
}

/// The same of a console that nobody reads for a while, beside a file that takes every call.
#[test]
fn a_slow_console() -> Result<()> {
    let mqspan = mqspan()?;
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let file = mqspan.to_file("spans");
    let options = ["run", "--output=console", "--signals=traces", "--call=mq_open"];
    let mut command = mqspan.command(options.into_iter().chain([&*file, &*stats, &*own::pid()]));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let tracing = Tracing::watch(child)?;
    wait::until("lines that are left out", || {
        own::opens("/mqspan-test-slow-console", 500)?;
        Ok(tracing.said().iter().any(|line| line.contains("the console was too slow")).then_some(()))
    })?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let ended = tracing.stop()?.ok()?;
    let text = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let stats = mqspan.stats()?;
    let console = stats.outputs.get("console.traces").context("no console")?;
    ensure!(text.lines().count() as u64 == console.sent, "{} lines: {stats:?}", text.lines().count());
    ensure!(left_out(&ended.stderr, "not written")? == console.lost, "{stats:?}: {:?}", ended.stderr);
    fs::remove_file(mqspan.file("spans"))?;
    Ok(())
}
