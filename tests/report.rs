//! The page of `--report` in a real browser. Needs root, tracefs and Chromium: `make test-report`.

use std::{fs, path::PathBuf, process::Command, sync::Mutex};

use anyhow::{Context, Result, ensure};
use support::{
    browser::Browser,
    program::{Mqspan, finish, without_otel},
};

/// What would run or load something, if it became markup. Neither a queue's name nor a file's may have a slash in it.
const HOSTILE: &str = "<img src=x onerror=pwned=1><script>pwned=1<script>";

/// One at a time: both tests use the same queues.
static QUEUES: Mutex<()> = Mutex::new(());

/// The report of a run with hostile names of a queue and of a program, beside honest ones.
fn report(mqspan: &Mqspan) -> Result<PathBuf> {
    let page = mqspan.file("report.html");
    let program = mqspan.copy_of_workload(HOSTILE)?;
    let (report, workload) = (format!("--report={}", page.display()), mqspan.workload_arg());
    let script =
        r#""$0" bursts "--name=$1" --bursts=3 --pairs=60 && "$2" bursts --name=mqspan-test-page --bursts=3 --pairs=60"#;
    let mut command: Command = mqspan.command(["run", &report, "--output=none", "--", "bash", "-c", script]);
    command.arg(program).arg(HOSTILE).arg(workload);
    without_otel(&mut command);
    let _queues = QUEUES.lock();
    let output = finish(command)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(page)
}

/// Where the pictures go, for whoever looks at them.
fn pictures() -> Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn holds_everything(text: &str) -> Result<()> {
    for part in ["/mqspan-test-page", "<img src=x onerror=pwned=1>", "mq_timedreceive", "0 lost", "Slowest calls"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    Ok(())
}

/// Prevents a page that asks the network for something, whose script fails, that runs what a traced program is called, or that
/// does not fit a phone.
#[test]
fn in_a_browser() -> Result<()> {
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let page = report(&mqspan)?;
    let browser = Browser::start(&mqspan.file("browser"), true)?;
    browser.open(&page)?;
    holds_everything(&browser.text()?)?;
    let drawn = browser.evaluate(
        "return [document.querySelectorAll('figure').length, document.querySelectorAll('.live canvas').length,
            [...document.querySelectorAll('canvas')].every(canvas => canvas.getContext('2d')
                .getImageData(0, 0, canvas.width, canvas.height).data.some(value => value !== 0)),
            [...document.querySelectorAll('figure svg')].every(svg => getComputedStyle(svg).display === 'none'),
            document.querySelectorAll('img, iframe, object, link:not([rel=icon])').length, typeof window.pwned]",
    )?;
    let count = drawn[0].as_u64().context("no count")?;
    ensure!(count >= 2 && drawn[1] == count && drawn[2] == true && drawn[3] == true, "{drawn}");
    ensure!(drawn[4] == 0 && drawn[5] == "undefined", "{drawn}");

    let requests = browser.requests()?;
    let own = format!("file://{}", page.display());
    ensure!(requests.iter().all(|url| *url == own || url == "data:,"), "{requests:?}");

    // What a script that got in would do is refused as well. Chromium says so, the only thing that it says.
    let said = browser.console()?;
    ensure!(said.is_empty(), "{said:?}");
    browser.evaluate(
        "const script = document.createElement('script'); script.textContent = 'window.pwned = 1';
         document.body.append(script); new Image().src = 'http://127.0.0.1:9/'; return 0",
    )?;
    ensure!(browser.evaluate("return typeof window.pwned")? == "undefined");
    let said = browser.console()?;
    let refused = |what: &str| said.iter().any(|line| line.contains(what) && line.contains("Content Security Policy"));
    ensure!(said.len() == 2 && refused("inline script") && refused("the image"), "{said:?}");

    for (name, width, scheme) in [("wide", 1400, "light"), ("dark", 1400, "dark"), ("phone", 390, "light")] {
        fs::write(pictures()?.join(format!("{name}.png")), browser.picture(width, scheme)?)?;
        let wide = browser.evaluate("return document.documentElement.scrollWidth - window.innerWidth")?;
        ensure!(wide.as_i64().is_some_and(|pixels| pixels <= 0), "{name}: {wide} pixels beyond the screen");
    }
    fs::write(pictures()?.join("printed.pdf"), browser.printed()?)?;
    Ok(())
}

/// Prevents a page that shows nothing where scripts are not run.
#[test]
fn without_scripts() -> Result<()> {
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let page = report(&mqspan)?;
    let browser = Browser::start(&mqspan.file("browser"), false)?;
    browser.open(&page)?;
    holds_everything(&browser.text()?)?;
    let shown = browser.devtools(
        "Runtime.evaluate",
        &serde_json::json!({"returnByValue": true, "expression":
            "[document.querySelectorAll('canvas').length,
              [...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().height > 50).length]"}),
    )?;
    let shown = &shown["result"]["value"];
    // A queue's course each, and the graph.
    ensure!(shown[0] == 0 && shown[1].as_u64() >= Some(3), "{shown}");
    fs::write(pictures()?.join("without-scripts.png"), browser.picture(1400, "light")?)?;
    Ok(())
}
