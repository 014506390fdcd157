//! `mqspan top`: what it shows of a workload that knows its own rates, depths and waits. Needs root and tracefs.

use anyhow::{Context, Result, ensure};
use mqspan::{
    run::{panics, signals::SignalQueue},
    top::terminal::{self, Screen},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use support::{
    paced::Paced,
    program::Mqspan,
    pty::{self, Pty},
    queues::Held,
};

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// Messages a second.
const RATE: u32 = 50;

fn number(of: &Value, key: &str) -> Result<f64> {
    of[key].as_f64().with_context(|| format!("{key} of {of}"))
}

/// Prevents rates, depths, waits and who passes what from being other than what the workload did, and queues that nobody
/// calls on from being left out.
#[test]
fn once_as_json() -> Result<()> {
    let mqspan = mqspan()?;
    let mut paced = Paced::start(&mqspan, "mqspan-test-once-paced", RATE)?;
    let held = Held::start(&mqspan, "mqspan-test-once-held")?;
    let before = paced.sent()?;
    let output = mqspan.output(["top", "--once", "--format=json", "--queue=/mqspan-test-once-*", "--sort=name"]);
    let after = paced.sent()?;
    held.let_go()?;
    let pid = f64::from(paced.id());
    paced.end()?;
    let output = output?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let view: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(view["schema"] == "mqspan.top.v1", "{view}");
    let names: Vec<_> = view["queues"].as_array().context("no queues")?.iter().map(|row| row["name"].clone()).collect();
    ensure!(
        names == ["/mqspan-test-once-held-empty", "/mqspan-test-once-held-full", "/mqspan-test-once-paced"],
        "{names:?}"
    );
    let (empty, full, paced) = (&view["queues"][0], &view["queues"][1], &view["queues"][2]);
    for (row, depth, capacity) in [(empty, 0.0, 8.0), (full, 3.0, 8.0), (paced, 5.0, 10.0)] {
        // The paced one is looked at in the middle of passing a message, at times.
        let found = (number(row, "depth")?, number(row, "capacity")?);
        ensure!((depth..=depth + 1.0).contains(&found.0) && found.1 == capacity, "{row}");
        // An empty queue has no message that waits; how old those are that were there before is not known.
        let is_empty = row["oldest_age_seconds"].as_f64() == Some(0.0);
        ensure!(row["exists"] == true && is_empty == (depth == 0.0), "{row}");
    }
    ensure!(number(full, "sent_per_second")? == 0.0 && full["wait_seconds"].is_null(), "{full}");
    let sent = number(paced, "sent_per_second")? * number(&view, "interval_seconds")?;
    ensure!(sent > 0.5 && sent < after - before + 0.5, "{sent} of {}: {paced}", after - before);
    let received = number(paced, "received")?;
    ensure!((number(paced, "sent")? - received).abs() <= 1.0, "{paced}");
    // Five others are sent first, one each 20 ms; a busy machine makes it later, never sooner.
    // By tracepoints no wait is known of a queue that was never seen empty.
    let wait = paced["wait_seconds"]["p50"].as_f64();
    ensure!(wait.is_none_or(|wait| wait >= 0.08), "{paced}");
    let flows = view["flows"].as_array().context("no flows")?;
    ensure!(flows.len() == 1 && number(&flows[0], "pid")? == pid && flows[0]["name"] == "workload", "{flows:?}");
    ensure!(number(&flows[0], "received")? == received, "{flows:?}");
    let waiting = view["blocked_threads"].as_array().context("no threads")?;
    ensure!(waiting.len() == 3 && waiting.iter().all(|thread| thread["queue"] == names[0]), "{waiting:?}");
    Ok(())
}

/// Prevents the text from being shown other than aligned, and a terminal from being asked for where there is none.
#[test]
fn without_a_terminal() -> Result<()> {
    let mqspan = mqspan()?;
    let held = Held::start(&mqspan, "mqspan-test-top-text")?;
    let output = mqspan.output(["top", "--once", "--queue=/mqspan-test-top-text-*"]);
    held.let_go()?;
    let output = output?;
    let text = String::from_utf8(output.stdout)?;
    let lines: Vec<&str> = text.lines().collect();
    let at = |line: &str, what: &str| line.find(what).map(|at| at + what.len());
    ensure!(output.status.success() && lines.len() > 5, "{text}");
    ensure!(lines[3].starts_with("QUEUE") && lines[4].starts_with("/mqspan-test-top-text-full "), "{text}");
    ensure!(
        at(lines[3], "DEPTH") == at(lines[4], "3/8") && at(lines[3], "PEAK") == at(lines[4], "3/8     3"),
        "{text}"
    );
    let refused = mqspan.output(["top"])?;
    let said = String::from_utf8(refused.stderr)?;
    ensure!(refused.status.code() == Some(1) && said.contains("--once") && refused.stdout.is_empty(), "{said}");
    Ok(())
}

/// The live view of the queues whose name begins so, once it is drawn.
fn live(mqspan: &Mqspan, queues: &str, columns: u16, rows: u16) -> Result<Pty> {
    let filter = format!("--queue={queues}*");
    let pty = Pty::start(pty::command(mqspan.path(), ["top", &filter, "--interval=500ms"]), columns, rows)?;
    pty.until("the view", |screen| screen.contains("mqspan top"))?;
    Ok(pty)
}

/// The words of the queue's line whose name ends so.
fn line<'a>(screen: &'a str, ends: &str) -> Vec<&'a str> {
    let is_of_it =
        |line: &&str| line.starts_with('/') && line.split(' ').next().is_some_and(|name| name.ends_with(ends));
    screen.lines().find(is_of_it).map_or(Vec::new(), |line| line.split_whitespace().collect())
}

/// Prevents the screen from showing other than what the workload does: its depth, that messages come and go, that they wait,
/// who passes them; and any page from being ugly or broken at the sizes that people have (MQSPAN_TEST_SCREENS=FOLDER keeps
/// them to be looked at).
#[test]
fn a_paced_workload() -> Result<()> {
    let mqspan = mqspan()?;
    let mut pty = live(&mqspan, "/mqspan-test-live-", 80, 24)?;
    let mut paced = Paced::start(&mqspan, "mqspan-test-live-paced", RATE)?;
    let held = Held::start(&mqspan, "mqspan-test-live-held")?;
    let name = "paced";
    pty.until("the queues", |screen| screen.contains(" 3/8 ") && screen.contains(" 0/8 ") && screen.contains("5/10"))?;
    pty.press("s\u{1b}[B\r/paced\r")?;
    let screen = pty.until("its rates and waits", |screen| {
        let words = line(screen, name);
        words.len() > 6
            && words[3..5].iter().all(|rate| *rate != "0")
            && !screen.contains("held")
            && (words[6] == "?" || words[6].ends_with("ms"))
    });
    pty.keep("queues-80x24")?;
    let screen = screen?;
    let words = line(&screen, name);
    ensure!(words.contains(&"5/10") || words.contains(&"6/10"), "{screen}");
    // Enter opens the queue that the cursor is on.
    pty.press("\r")?;
    let pid = paced.id();
    let flow = format!("workload[{pid}]");
    let screen = pty
        .until("who sends to whom", |screen| screen.matches(&flow).count() == 2 && screen.contains("mq_timedsend("))?;
    pty.keep("queue-80x24")?;
    ensure!(screen.contains("peak 6") && screen.contains("/mqspan-test-live-paced"), "{screen}");
    let sent = screen.lines().find(|line| line.starts_with(" sent ")).context("no totals")?;
    let shown: f64 =
        sent.split_whitespace().nth(1).and_then(|count| count.parse().ok()).with_context(|| sent.to_owned())?;
    ensure!(shown <= paced.sent()?, "{sent}");
    for (columns, rows) in [(200, 60), (60, 15), (80, 24)] {
        pty.resize(columns, rows)?;
        pty.until_drawn("the page at another size", |screen| screen.contains("latest calls"))?;
        pty.keep(&format!("queue-{columns}x{rows}"))?;
    }
    for (key, name, holds) in
        [("c", "calls", "mq_timedreceive(\"/mqspan-"), ("p", "processes", "workload"), ("?", "help", "Help")]
    {
        pty.press(key)?;
        for (columns, rows) in [(200, 60), (60, 15), (80, 24)] {
            pty.resize(columns, rows)?;
            pty.until_drawn(name, |screen| screen.contains(holds))?;
            pty.keep(&format!("{name}-{columns}x{rows}"))?;
        }
    }
    // Any key closes the help.
    pty.press("x1")?;
    for (columns, rows) in [(200, 60), (60, 15), (80, 24)] {
        pty.resize(columns, rows)?;
        pty.until_drawn("all queues", |screen| {
            screen.contains("QUEUE") && screen.contains(" 3/8 ") && screen.contains("3 queues")
        })?;
        pty.keep(&format!("queues-{columns}x{rows}"))?;
    }
    paced.end()?;
    held.let_go()?;
    pty.until("queues that are gone", |screen| screen.matches("no queue").count() == 3)?;
    pty.press("q")?;
    pty.end_well()
}

/// Prevents the terminal from being left in a state in which it is of no use, however the view ends.
#[test]
fn the_terminal_is_given_back() -> Result<()> {
    let mqspan = mqspan()?;
    for end in ["q", "\u{3}", "SIGTERM"] {
        let mut pty = live(&mqspan, "/mqspan-test-none-", 80, 24)?;
        // Inside the filter q is text.
        pty.press("/q")?;
        pty.until("the filter", |screen| screen.contains("\n/q"))?;
        match end {
            "SIGTERM" => pty.signal(Signal::SIGTERM)?,
            "q" => pty.press("\rq")?,
            keys => pty.press(keys)?,
        }
        pty.end_well().with_context(|| format!("{end:?}"))?;
    }
    Ok(())
}

/// Prevents ^Z from leaving the shell a broken terminal, and fg from showing a broken view.
#[test]
fn stopped_and_continued() -> Result<()> {
    let mqspan = mqspan()?;
    let mut pty = live(&mqspan, "/mqspan-test-none-", 80, 24)?;
    for by_key in [true, false] {
        if by_key {
            pty.press("\u{1a}")?
        } else {
            pty.signal(Signal::SIGTSTP)?
        }
        pty.stopped()?;
        pty.is_given_back()?;
        pty.signal(Signal::SIGCONT)?;
        pty.until("the view again", |screen| screen.contains("mqspan top") && screen.contains("?:help"))?;
    }
    pty.press("q")?;
    pty.end_well()
}

/// Prevents a view whose terminal is gone from going on for ever, unseen.
#[test]
fn the_terminal_is_lost() -> Result<()> {
    let mqspan = mqspan()?;
    let mut pty = live(&mqspan, "/mqspan-test-none-", 80, 24)?;
    pty.hang_up();
    pty.end().map(drop)
}

/// Prevents a panic of any stage from leaving the terminal in a state in which its line can't be read.
#[test]
fn a_panic() -> Result<()> {
    let this = std::env::current_exe()?;
    let args = ["--ignored", "--exact", "draw_and_panic", "--nocapture"];
    let mut pty = Pty::start(pty::command(this, args), 80, 24)?;
    pty.end()?;
    pty.is_given_back()?;
    pty.until("the panic's line", |screen| screen.contains("mqspan-stage panicked")).map(drop)
}

/// Run by [`a_panic`] in a terminal: draws as `top` does, while a stage panics.
#[test]
#[ignore = "run by a_panic"]
fn draw_and_panic() -> Result<()> {
    let signals = SignalQueue::take()?;
    panics::watch_after(signals.bell(), terminal::restore);
    let mut screen = Screen::take(|| {})?;
    screen.draw(|frame| _ = frame.buffer_mut())?;
    let stage = std::thread::Builder::new().name("mqspan-stage".into()).spawn(|| panic!("of a test"))?;
    ensure!(stage.join().is_err() && panics::happened());
    Ok(())
}

/// Prevents the summary from counting other than what was done, from going to stdout, and from changing the exit status.
#[test]
fn a_summary() -> Result<()> {
    let mqspan = mqspan()?;
    let workload = mqspan.workload_arg();
    let name = "--name=mqspan-test-summary";
    let ended = mqspan.output([
        "run",
        "--summary",
        "--output=none",
        "--",
        &workload,
        "bursts",
        name,
        "--bursts=1",
        "--pairs=40",
    ])?;
    ensure!(
        ended.status.success() && ended.stdout.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    );
    let said = String::from_utf8(ended.stderr)?;
    let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    let calls = |call: &str| {
        let of = rows.iter().find(|row| row.len() > 7 && row[0] == "/mqspan-test-summary" && row[1] == call);
        of.and_then(|row| Some((row[2].parse::<u64>().ok()?, row[3].parse::<u64>().ok()?)))
    };
    let (sent, received) =
        (calls("mq_timedsend").context("no sends")?, calls("mq_timedreceive").context("no receives")?);
    ensure!(sent.0 - sent.1 == received.0 - received.1 && sent.0 - sent.1 >= 40, "{said}");
    let passed = (sent.0 - sent.1).to_string();
    let flow = rows.iter().find(|row| row.len() == 5 && row[1].starts_with("workload[")).context("no flow")?;
    ensure!(flow[2] == passed && flow[4] == passed && flow[1] == flow[3], "{said}");
    Ok(())
}

/// Prevents the page from lacking what was done, from being written elsewhere or not at all, and a run from beginning whose
/// page could not be written.
#[test]
fn a_report() -> Result<()> {
    let mqspan = mqspan()?;
    let (workload, page) = (mqspan.workload_arg(), mqspan.file("report.html"));
    let report = format!("--report={}", page.display());
    let bursts = ["bursts", "--name=mqspan-test-report", "--bursts=1", "--pairs=40"];
    let args = ["run", &report, "--output=none", "--", &workload].into_iter().chain(bursts);
    let ended = mqspan.output(args)?;
    ensure!(ended.status.success(), "{ended:?}");
    let html = std::fs::read_to_string(&page)?;
    for holds in ["/mqspan-test-report", "mq_timedreceive", "workload[", "<svg", "0 lost", "default-src", "</html>"] {
        ensure!(html.contains(holds), "no {holds} in {html}");
    }
    // Beside the page's own script, at its end, which names where it comes from, and the data for it there is none.
    let (rest, _) = html.rsplit_once("<script>").context("no script")?;
    let rest = rest.replacen(r#"<script type="application/json" id="courses">"#, "", 1);
    ensure!(!rest.contains("<script") && !rest.contains("http:") && !rest.contains("https:") && html.len() < 2 << 20);
    let refused = mqspan.output(["run", "--report=/no/such/folder/x.html", "--", "true"])?;
    ensure!(refused.status.code() == Some(1) && String::from_utf8(refused.stderr)?.contains("--report /no/such/"));
    Ok(())
}
