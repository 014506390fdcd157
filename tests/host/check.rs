//! What mqspan says where it can't work, and where it is used wrongly.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use support::program::{Ended, Mqspan, finish, without_otel};

use crate::mqspan;

/// mqspan's program where every user may run it. Copied by another process: a child that some other test forks
/// meanwhile would keep a file busy that this one has open to write it.
fn program(mqspan: &Mqspan) -> Result<PathBuf> {
    let copy = mqspan.file("mqspan");
    let copied = Command::new("cp").arg(mqspan.path()).arg(&copy).status()?;
    ensure!(copied.success(), "cp: {copied}");
    Ok(copy)
}

/// Runs a shell script, `$0` is mqspan.
fn script(mqspan: &Mqspan, script: &str) -> Result<Ended> {
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(program(mqspan)?);
    without_otel(&mut command);
    Ok(Ended::of(finish(command)?))
}

/// The lines of stdout and stderr together.
fn all(ended: &Ended) -> Result<Vec<String>> {
    Ok(ended.lines()?.into_iter().map(Into::into).chain(ended.stderr.iter().cloned()).collect())
}

/// Prevents this machine, on which all other tests run mqspan, from being called unfit.
#[test]
fn all_is_well_here() -> Result<()> {
    let mqspan = mqspan()?;
    let text = Ended::of(mqspan.output(["check"])?);
    ensure!(text.status.success(), "{text:?}");
    let lines = all(&text)?.join("\n");
    ensure!(lines.contains("tracepoint"), "{lines}");
    let json = Ended::of(mqspan.output(["check", "--format=json"])?);
    ensure!(json.status.success(), "{json:?}");
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json.stdout)?;
    ensure!(!object.is_empty(), "an empty object");
    Ok(())
}

/// Prevents `check --measure` from timing nothing, or with nothing attached, and from leaving its queue or its process.
#[test]
fn what_calls_cost_here() -> Result<()> {
    let mqspan = mqspan()?;
    let json = Ended::of(mqspan.output(["check", "--measure", "--format=json"])?);
    ensure!(json.status.success(), "{json:?}");
    let report: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    let measured = &report["measured"];
    let costs = |of: &serde_json::Value| ["mq_open", "send_and_receive", "other"].map(|call| of[call].as_f64());
    let hooks = measured["hooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(hooks.iter().any(|of| of["kind"] == report["hooks"]), "{measured}");
    for of in hooks.iter().chain([&measured["nothing"]]) {
        ensure!(costs(of).iter().all(|cost| cost.is_some_and(|ns| ns > 0.)), "{measured}");
    }
    let left = std::fs::read_dir("/dev/mqueue")?.flatten();
    let left: Vec<_> = left.filter(|queue| queue.file_name().to_string_lossy().starts_with("mqspan-check")).collect();
    ensure!(left.is_empty(), "{left:?}");
    let text = Ended::of(mqspan.output(["check", "--measure"])?);
    ensure!(all(&text)?.iter().any(|line| line.starts_with("measured, ns")), "{text:?}");
    Ok(())
}

/// What is missing, made by a script that runs `"$0" check`, and what must be said: what it is and how to mend it.
const LACKS: [(&str, &str, &[&str]); 5] = [
    ("root", "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \"$0\" ", &["run as root"]),
    ("capabilities", "exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" ", &["CAP_BPF"]),
    (
        "tracefs",
        "exec unshare --mount bash -c 'umount -l /sys/kernel/tracing && exec \"$0\" \"$@\"' \"$0\" ",
        &["tracefs", "mount -t tracefs"],
    ),
    (
        "BTF",
        "exec unshare --mount bash -c 'mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"' \"$0\" ",
        &["BTF", "CONFIG_DEBUG_INFO_BTF"],
    ),
    ("the host's user namespace", "exec unshare --user --map-root-user \"$0\" ", &["user namespace", "--userns=host"]),
];

/// Prevents a user from having to guess why mqspan does not work here.
#[test]
fn check_says_what_is_missing() -> Result<()> {
    let mqspan = mqspan()?;
    for (what, make, words) in LACKS {
        let ended = script(&mqspan, &format!("{make}check"))?;
        ensure!(ended.status.code() == Some(1), "without {what}: {ended:?}");
        let lines = all(&ended)?;
        let is_said = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(is_said, "without {what} no line says {words:?}: {lines:#?}");
        let json = script(&mqspan, &format!("{make}check --format=json"))?;
        ensure!(json.status.code() == Some(1), "without {what}: {json:?}");
        let _: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json.stdout)?;
    }
    Ok(())
}

/// Prevents `run` from failing in another way than `check` says: one line why, one how to mend it, and no command run.
#[test]
fn run_says_what_is_missing() -> Result<()> {
    let mqspan = mqspan()?;
    for (what, make, words) in LACKS {
        let ended = script(&mqspan, &format!("{make}run --output=none -- echo the command ran"))?;
        ensure!(ended.status.code() == Some(1), "without {what}: {ended:?}");
        ensure!(ended.stdout.is_empty(), "without {what}: {ended:?}");
        ensure!((1..=2).contains(&ended.stderr.len()), "without {what}: {:#?}", ended.stderr);
        let said = ended.stderr.join(" ");
        ensure!(said.starts_with("mqspan: ") && words.iter().all(|word| said.contains(word)), "without {what}: {said}");
    }
    Ok(())
}

/// Prevents wrong usage from being taken for another failure, or from being explained at length.
#[test]
fn wrong_usage() -> Result<()> {
    let mqspan = mqspan()?;
    for (args, word) in [
        (&["run", "--no-such-option"][..], "--no-such-option"),
        (&["--quite"], "--quiet"),
        (&["rum"], "run"),
        (&["run", "--call=mq_opne"], "mq_open"),
        (&["run", "--output=smoke"], "smoke"),
        (&["run", "--output=file:"], "file"),
        (&["run", "--pid=self"], "self"),
        (&["run", "--min-duration=5"], "duration"),
        (&["run", "--duration=1d"], "1d"),
        (&["run", "--ipc-namespace=mine"], "mine"),
        (&["run", "--user=nobody"], "--user"),
        (&["run", "--signals=trace"], "traces"),
        (&["run", "--hooks=kprobes"], "kprobe"),
        (&["check", "--format=xml"], "json"),
        (&["completions"], "SHELL"),
        (&["run", "ls"], "--"),
    ] {
        let ended = Ended::of(mqspan.output(args)?);
        ensure!(ended.status.code() == Some(2), "{args:?}: {ended:?}");
        ensure!(ended.stdout.is_empty() && ended.stderr.len() == 1, "{args:?}: {ended:?}");
        let line = &ended.stderr[0];
        ensure!(line.starts_with("mqspan: ") && line.contains(word), "{args:?}: {line}");
    }
    Ok(())
}

/// Prevents a configuration file with a mistake from being half used.
#[test]
fn a_wrong_configuration_file() -> Result<()> {
    let mqspan = mqspan()?;
    let path = mqspan.file("mqspan.yaml");
    let option = format!("--config={}", path.display());
    let fails = |word: &str| -> Result<()> {
        let ended = Ended::of(mqspan.output(["run", "--output=none", &option, "--", "echo", "ran"])?);
        ensure!(ended.status.code() == Some(1) && ended.stdout.is_empty(), "{ended:?}");
        ensure!(ended.stderr.len() <= 2 && ended.stderr.join(" ").contains(word), "no {word}: {ended:?}");
        Ok(())
    };
    fails("mqspan.yaml")?;
    for (text, word) in
        [("ouput: [console]\n", "output"), ("failed: perhaps\n", "failed"), ("output: [\n", "mqspan.yaml")]
    {
        std::fs::write(&path, text)?;
        fails(word)?;
    }
    Ok(())
}

/// Prevents help, version, completions and man page from failing or going to stderr, also into a closed pipe.
#[test]
fn what_is_only_printed() -> Result<()> {
    let mqspan = mqspan()?;
    for (args, word) in [
        (&["--version"][..], env!("CARGO_PKG_VERSION")),
        (&["--help"], "check"),
        (&["run", "--help"], "--stats-file"),
        (&["man"], ".TH"),
        (&["completions", "bash"], "mqspan"),
        (&["completions", "fish"], "mqspan"),
        (&["completions", "zsh"], "mqspan"),
    ] {
        let ended = Ended::of(mqspan.output(args)?).ok()?;
        ensure!(String::from_utf8(ended.stdout)?.contains(word) && ended.stderr.is_empty(), "{args:?}");
    }
    let closed = script(
        &mqspan,
        r#"set -o pipefail; "$0" man | head -c 1 > /dev/null; "$0" completions zsh | head -c 1 > /dev/null"#,
    )?;
    ensure!(closed.status.success() && closed.stderr.is_empty(), "{closed:?}");
    Ok(())
}
