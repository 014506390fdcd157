//! What mqspan says where it can't work, and where it is used wrongly.

use std::{
    fs::{self, Permissions},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
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
    let left = fs::read_dir("/dev/mqueue")?.flatten();
    let left: Vec<_> = left.filter(|queue| queue.file_name().to_string_lossy().starts_with("mqspan-check")).collect();
    ensure!(left.is_empty(), "{left:?}");
    let text = Ended::of(mqspan.output(["check", "--measure"])?);
    ensure!(all(&text)?.iter().any(|line| line.starts_with("measured, ns")), "{text:?}");
    Ok(())
}

/// What is missing, made by a script that runs `"$0" check`, and what must be said: why it does not work, and on the next line
/// the command that mends it.
const LACKS: [(&str, &str, &str, &str); 9] = [
    (
        "root",
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \"$0\" ",
        "CAP_BPF and CAP_PERFMON missing",
        "run as root: sudo mqspan run",
    ),
    (
        "capabilities, as in a container",
        "exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" ",
        "CAP_BPF and CAP_PERFMON missing",
        ": podman run --cap-add=bpf --cap-add=perfmon ",
    ),
    (
        "tracefs",
        "exec unshare --mount bash -c 'umount -l /sys/kernel/tracing && exec \"$0\" \"$@\"' \"$0\" ",
        "tracefs is not mounted",
        "mount it: mount -t tracefs tracefs /sys/kernel/tracing",
    ),
    (
        "the right to read tracefs",
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+bpf,+perfmon \
         --ambient-caps=-all,+bpf,+perfmon \"$0\" ",
        "CAP_DAC_READ_SEARCH missing",
        ": setcap cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search+ep \"$(command -v mqspan)\"",
    ),
    (
        "BTF",
        "exec unshare --mount bash -c 'mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"' \"$0\" ",
        "no BTF",
        "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, or make a file of its types (docs/no-btf.md) and name it: mqspan run --btf FILE",
    ),
    (
        "sysfs",
        "exec unshare --mount bash -c 'mount -t tmpfs none /sys && exec \"$0\" \"$@\"' \"$0\" ",
        "no BTF",
        "mount sysfs: mount -t sysfs sysfs /sys",
    ),
    (
        "a kernel that shows its memory",
        "exec unshare --mount bash -c 'mount -t tmpfs none /sys/kernel/security &&
         echo \"none integrity [confidentiality]\" > /sys/kernel/security/lockdown && exec \"$0\" \"$@\"' \"$0\" ",
        "locked down (confidentiality)",
        "lockdown=integrity ",
    ),
    (
        "POSIX queues",
        "exec unshare --mount bash -c 'mount -t tmpfs none /proc/sys/fs && exec \"$0\" \"$@\"' \"$0\" ",
        "no POSIX message queues",
        ": grep -l CONFIG_POSIX_MQUEUE=y /boot/config-*",
    ),
    (
        "the host's user namespace",
        "exec unshare --user --map-root-user \"$0\" ",
        "refused the programs",
        ": podman run --userns=host IMAGE",
    ),
];

/// Prevents a user from having to guess why mqspan does not work here.
#[test]
fn check_says_what_is_missing() -> Result<()> {
    let mqspan = mqspan()?;
    for (what, make, why, mend) in LACKS {
        let ended = script(&mqspan, &format!("{make}check"))?;
        ensure!(ended.status.code() == Some(1), "without {what}: {ended:?}");
        let lines = all(&ended)?;
        let is_said = lines.windows(2).any(|lines| {
            lines[0].starts_with("missing: ")
                && lines[0].contains(why)
                && lines[1].starts_with("  ")
                && lines[1].contains(mend)
        });
        ensure!(is_said, "without {what} it does not say {why:?} and {mend:?}: {lines:#?}");
        let json = script(&mqspan, &format!("{make}check --format=json"))?;
        ensure!(json.status.code() == Some(1), "without {what}: {json:?}");
        let _: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json.stdout)?;
    }
    Ok(())
}

/// Fails unless a run was refused in two lines, why and how to mend it, and no command run.
fn refused(ended: &Ended, why: &str, mend: &str) -> Result<()> {
    ensure!(ended.status.code() == Some(1) && ended.stdout.is_empty(), "{ended:?}");
    let [first, second] = &ended.stderr[..] else { bail!("not two lines: {:#?}", ended.stderr) };
    ensure!(first.starts_with("mqspan: ") && first.contains(why), "no {why:?}: {first}");
    ensure!(second.starts_with("  ") && second.contains(mend), "no {mend:?}: {second}");
    Ok(())
}

/// Prevents `run` from failing in another way than `check` says: one line why, one how to mend it, and no command run.
#[test]
fn run_says_what_is_missing() -> Result<()> {
    let mqspan = mqspan()?;
    for (what, make, why, mend) in LACKS {
        let ended = script(&mqspan, &format!("{make}run --output=none -- echo the command ran"))?;
        refused(&ended, why, mend).with_context(|| format!("without {what}"))?;
    }
    Ok(())
}

/// Has bpf(2) fail with EPERM in the program that this process becomes, as a container's profile does.
fn forbid_bpf() -> std::io::Result<()> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let (load, jump_if_equal, answer) = (0x20, 0x15, 0x06);
    let mut filter = [
        // The number of the call is the first word of struct seccomp_data.
        step(load, 0, 0, 0),
        step(jump_if_equal, 0, 1, libc::SYS_bpf as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads the program, which lives until then. root needs no PR_SET_NO_NEW_PRIVS.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Prevents a container's seccomp profile from passing for a kernel that can't do it.
#[test]
fn a_seccomp_profile() -> Result<()> {
    let mqspan = mqspan()?;
    let mut command = mqspan.command(["run", "--output=none", "--", "echo", "the command ran"]);
    // SAFETY: a system call, with memory of the stack alone.
    unsafe { command.pre_exec(forbid_bpf) };
    refused(&Ended::of(finish(command)?), "refused the programs", " --security-opt=seccomp=unconfined ")
}

/// Prevents a port that another program has from being told of without one to take instead.
#[test]
fn a_port_that_is_taken() -> Result<()> {
    let mqspan = mqspan()?;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let _taken = TcpListener::bind(taken)?;
    let health = format!("--health={taken}");
    let ended = Ended::of(mqspan.output(["run", "--output=none", &health, "--", "echo", "the command ran"])?);
    let other = format!(": mqspan run --health 127.0.0.1:{}", taken.port() + 1);
    refused(&ended, &format!("--health {taken}: Address already in use"), &other)
}

/// Prevents a program that was given capabilities, and runs for whoever may execute it, from reading and writing files that its
/// user may not.
#[test]
fn capabilities_lend_no_files() -> Result<()> {
    let mqspan = mqspan()?;
    let private = mqspan.file("private");
    fs::write(&private, "output: [console]\n")?;
    fs::set_permissions(&private, Permissions::from_mode(0o600))?;
    let give = "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+bpf,+perfmon,+dac_read_search \
                --ambient-caps=-all,+bpf,+perfmon,+dac_read_search \"$0\" ";
    let path = private.display();
    for option in [format!("--config={path}"), format!("--stats-file={path}"), format!("--output=file:{path}")] {
        let ended = script(&mqspan, &format!("{give}run {option} --duration=1ms"))?;
        ensure!(ended.status.code() == Some(1), "{option}: {ended:?}");
        ended.said("Permission denied")?;
    }
    ensure!(fs::read_to_string(&private)? == "output: [console]\n", "it was written");
    Ok(())
}

/// Prevents others from reading what waits for a backend.
#[test]
fn a_spool_is_its_owners() -> Result<()> {
    let mqspan = mqspan()?;
    let folder = mqspan.file("spool");
    let spool = format!("--spool={}", folder.display());
    let options = ["run", "--output=otlp", "--endpoint=http://127.0.0.1:9", "--duration=1ms", &spool];
    Ended::of(mqspan.output(options)?).ok()?;
    let mode = fs::metadata(&folder)?.permissions().mode();
    ensure!(mode & 0o077 == 0, "{mode:o}");
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
        (&["run", "--endpoint=localhost:4318"], "as http://localhost:4318 does"),
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
        fs::write(&path, text)?;
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
