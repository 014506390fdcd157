//! `mqspan run -- CMD`: whose calls are traced, what CMD is given, and what becomes of its end.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, User, mkfifo},
};
use support::{
    otlp::{self, made_by},
    program::{Ended, Mqspan, Tracing, finish},
    wait, workload,
};

use crate::mqspan;

/// How many spans of the workload `mqspan run -- bash -c SCRIPT` makes; `$0` is the workload, `$1` a folder.
fn spans_of(mqspan: &Mqspan, script: &str) -> Result<usize> {
    let (file, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
    let folder = mqspan.file("").display().to_string();
    mqspan.run_counted(&[
        "--signals=traces",
        "--call=mq_open",
        &file,
        "--",
        "bash",
        "-c",
        script,
        &workload,
        &folder,
    ])?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    let all = spans.len();
    let of_workload = made_by(spans, &mqspan.workload()).len();
    ensure!(all == of_workload, "{all} spans, {of_workload} of them of the traced command");
    Ok(all)
}

/// Prevents the command's first call from being missed: this one's only work is to call.
#[test]
fn a_command_is_traced_from_its_first_call_on() -> Result<()> {
    let mqspan = mqspan()?;
    for _ in 0..5 {
        let (file, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
        mqspan.run_counted(&["--signals=traces", &file, "--", &workload, "flat", "--calls", "3"])?;
        let spans = otlp::spans(&mqspan.file("spans"))?;
        ensure!(spans.len() == 3, "{} spans of 3 calls", spans.len());
    }
    Ok(())
}

/// Prevents descendants from being lost: children by fork, by vfork with exec, and those whose parents are gone.
#[test]
fn all_descendants_are_traced() -> Result<()> {
    let mqspan = mqspan()?;
    for name in ["go", "gone"] {
        mkfifo(&mqspan.file(name), Mode::S_IRWXU)?;
    }
    for (script, expected) in [
        // bash forks and execs, the workload forks.
        (r#""$0" short-lived --calls 5; "$0" flat --calls 2"#, 7),
        // Twice forked: when the second one calls the first is gone, and its child is init's.
        (r#"( ( read < "$1/go"; "$0" flat --calls 3; echo > "$1/gone" ) & ); echo > "$1/go"; read < "$1/gone""#, 3),
        // A new session, a new process group.
        (r#"setsid --wait "$0" flat --calls 4"#, 4),
        // exec in place.
        (r#"exec "$0" open --calls 8 --threads 2 --processes 0"#, 8),
        // Many at once, by vfork and several execs.
        (r#"echo {1..20} | xargs -n 1 -P 4 env env "$0" flat --calls"#, 210),
    ] {
        let found = spans_of(&mqspan, script)?;
        ensure!(found == expected, "{found} spans, not {expected}: {script}");
    }
    Ok(())
}

/// Prevents calls of other processes from being taken for the command's.
#[test]
fn nobody_else_is_traced() -> Result<()> {
    let mqspan = mqspan()?;
    let other = mqspan.copy_of_workload("other")?;
    let (file, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
    let mut command = mqspan.command(["run", "--signals=traces", &file, "--", "bash", "-c"]);
    // It calls, says so, and calls again when it is told to.
    command.args([r#""$0" flat --calls 2 >&2; echo half >&2; read; exec "$0" flat --calls 2"#, &workload]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take();
    let tracing = Tracing::watch(child)?;
    wait::until("the command's first calls", || Ok(tracing.said().iter().any(|line| line == "half").then_some(())))?;
    workload::run(&other, &["flat", "--calls", "100"])?;
    drop(stdin);
    tracing.end()?.ok()?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    ensure!(spans.len() == 4, "{} spans of 4 calls", spans.len());
    ensure!(made_by(spans, &mqspan.workload()).len() == 4, "a span of another process");
    Ok(())
}

/// Prevents scripts that rely on a command's exit status from being misled.
#[test]
fn the_exit_status_is_the_commands() -> Result<()> {
    let mqspan = mqspan()?;
    let data = mqspan.file("data");
    fs::write(&data, "no program")?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o644))?;
    let data = data.display().to_string();
    let cases: [(&[&str], i32); 8] = [
        (&["true"], 0),
        (&["bash", "-c", "exit 7"], 7),
        (&["bash", "-c", "exit 255"], 255),
        (&["bash", "-c", "kill -TERM $$"], 128 + 15),
        (&["bash", "-c", "kill -KILL $$"], 128 + 9),
        (&["mqspan-test-no-such-program"], 127),
        (&["/nonexistent/program"], 127),
        (&[&data], 126),
    ];
    for (command, status) in cases {
        let output = mqspan.output([&["run", "--output=none", "--"], command].concat())?;
        ensure!(output.status.code() == Some(status), "{command:?} gave {}, not {status}: {output:?}", output.status);
    }
    Ok(())
}

/// Prevents the command from going on when mqspan is told to end, and its status from being lost then.
#[test]
fn signals_are_passed_on() -> Result<()> {
    let mqspan = mqspan()?;
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT")] {
        // A shell that waits for its foreground command takes SIGINT for that one's, and may forget it.
        let script = format!("trap 'exit 9' {name}; echo up; while :; do sleep 0.05 & wait $!; done");
        let tracing = mqspan.trace(["--output=none", "--", "bash", "-c", &script])?;
        wait::until("the command", || Ok((tracing.console() == b"up\n").then_some(())))?;
        tracing.signal(signal)?;
        let ended = tracing.end()?;
        ensure!(ended.status.code() == Some(9), "{name}: {ended:?}");
    }
    Ok(())
}

/// Prevents a command that heeds no signal from keeping mqspan for ever.
#[test]
fn a_second_signal_ends_mqspan() -> Result<()> {
    let mqspan = mqspan()?;
    let script = "trap '' TERM; echo $$; exec 1>&- 2>&-; while :; do sleep 0.05; done";
    let tracing = mqspan.trace(["--output=none", "--", "bash", "-c", script])?;
    let line =
        wait::until("the command", || Ok(String::from_utf8(tracing.console())?.strip_suffix('\n').map(String::from)))?;
    let command = Pid::from_raw(line.parse().with_context(|| line.clone())?);
    tracing.signal(Signal::SIGTERM)?;
    // Two of the same that come at once are one.
    wait::until("the first signal's arrival", || Ok(pending_of(tracing.pid())?.then_some(())))?;
    tracing.signal(Signal::SIGTERM)?;
    let ended = tracing.end();
    kill(command, Signal::SIGKILL)?;
    ensure!(ended?.status.signal().is_none(), "it ended by itself");
    Ok(())
}

/// Whether no signal waits to be taken.
fn pending_of(pid: u32) -> Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    Ok(pending.map(str::trim).all(|bits| bits.bytes().all(|digit| digit == b'0')))
}

/// Prevents `--user` from running the command as root, and the caller from being told as another user.
#[test]
fn the_command_runs_as_the_user_asked_for() -> Result<()> {
    let mqspan = mqspan()?;
    let output = mqspan.output(["run", "--output=none", "--user=nobody", "--", "bash", "-c", "id -u; id -g; id -G"])?;
    let nobody = User::from_name("nobody")?.context("no user nobody")?;
    let (uid, gid) = (nobody.uid, nobody.gid);
    ensure!(String::from_utf8(output.stdout)? == format!("{uid}\n{gid}\n{gid}\n"), "not nobody's ids");

    let (file, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
    mqspan.run_counted(&["--signals=traces", &file, "--user=nobody", "--", &workload, "flat", "--calls", "1"])?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    let resource = &spans.first().context("no span")?.origin.resource;
    ensure!(otlp::text(resource, "process.owner") == Some("nobody"), "{resource:?}");
    ensure!(otlp::int(resource, "process.user.id") == Some(uid.as_raw().into()), "{resource:?}");

    let unknown = mqspan.output(["run", "--output=none", "--user=mqspan-test-nobody", "--", "true"])?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    Ok(())
}

/// Prevents the command from seeing another environment, folder, stdin or set of open files than without mqspan.
#[test]
fn the_command_finds_everything_as_it_was() -> Result<()> {
    let mqspan = mqspan()?;
    let script = r"env -0; pwd; cat; ls -l /proc/self/fd | sed 's/.* \([0-9]*\) -> .*/\1/'; ulimit -a; umask;
        grep -E 'Sig(Blk|Ign|Cgt)|NoNewPrivs|Cap' /proc/self/status";
    let describe = |mut command: Command| -> Result<String> {
        command.args(["bash", "-c", script]).env_clear().current_dir("/usr");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let variables =
            [("OTEL_SERVICE_NAME", "shop"), ("OTEL_TRACES_EXPORTER", "none"), ("LD_BIND_NOW", "1"), ("ODD", "a=b\n")];
        command.env("PATH", path).envs(variables).stdin(fs::File::open("/proc/version")?);
        let text = String::from_utf8(finish(command)?.stdout)?;
        let ignored = text.lines().find_map(|line| line.strip_prefix("SigIgn:")).context("no SigIgn")?;
        // Signals 32 and 33 are the C library's own; its posix_spawn leaves them ignored.
        let ignored_less_internal = u64::from_str_radix(ignored.trim(), 16)? & !(0b11 << 31);
        Ok(text.replace(&format!("SigIgn:{ignored}"), &format!("SigIgn: {ignored_less_internal:x}")))
    };
    let mut traced = Command::new(mqspan.path());
    traced.args(["run", "--output=none", "--"]);
    let mut plain = Command::new("env");
    plain.arg("--");
    let (traced, plain) = (describe(traced)?, describe(plain)?);
    ensure!(traced.contains("OTEL_SERVICE_NAME=shop") && traced.contains("SigIgn"), "{traced}");
    ensure!(traced == plain, "with mqspan:\n{traced}\nwithout:\n{plain}");
    Ok(())
}

/// Prevents a run from never ending where mqspan was started with SIGCHLD ignored, and the command from being given another
/// disposition than mqspan was.
#[test]
fn started_with_signals_ignored() -> Result<()> {
    let mqspan = mqspan()?;
    let script = r#"trap '' CHLD PIPE; exec "$0" run --output=none -- bash -c 'grep SigIgn /proc/self/status; exit 7'"#;
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(mqspan.path()).stdin(Stdio::null());
    let ended = Ended::of(finish(command)?);
    ensure!(ended.status.code() == Some(7), "{ended:?}");
    // SIGPIPE is 13, SIGCHLD 17 (signal(7)).
    let ignored = ended.lines()?.first().and_then(|line| line.split('\t').nth(1)).context("no mask")?.to_owned();
    let ignored = u64::from_str_radix(&ignored, 16)?;
    ensure!(ignored & (1 << 12 | 1 << 16) == 1 << 12 | 1 << 16, "{ignored:x}");
    Ok(())
}

/// Prevents a statistics file that can't be written at the end from taking the place of the command's own status.
#[test]
fn a_statistics_file_on_a_full_disk() -> Result<()> {
    let mqspan = mqspan()?;
    let ended =
        Ended::of(mqspan.output(["run", "--output=none", "--stats-file=/dev/full", "--", "sh", "-c", "exit 7"])?);
    ensure!(ended.status.code() == Some(7), "{ended:?}");
    ended.said("--stats-file /dev/full: ")?;
    Ok(())
}

/// Prevents what mqspan attached from staying behind it, and whoever waits for its exit from waiting for the kernel to
/// detach: another process does.
#[test]
fn nothing_stays_attached() -> Result<()> {
    let mqspan = mqspan()?;
    let detachers = || -> Result<usize> {
        let own = format!("{}\0run\0", mqspan.path().display());
        let mut count = 0;
        for process in fs::read_dir("/proc")?.flatten() {
            let read = |file: &str| fs::read(process.path().join(file)).unwrap_or_default();
            count += usize::from(read("comm") == b"mqspan-detach\n" && read("cmdline").starts_with(own.as_bytes()));
        }
        Ok(count)
    };
    Ended::of(mqspan.output(["run", "--output=none", "--", "true"])?).ok()?;
    wait::until("the kernel to have detached", || Ok((detachers()? == 0).then_some(())))?;
    let tracing = mqspan.trace(["--output=none"])?;
    tracing.signal(Signal::SIGKILL)?;
    let _ = tracing.end()?;
    ensure!(detachers()? == 0, "a killed mqspan left a process behind");
    Ok(())
}
