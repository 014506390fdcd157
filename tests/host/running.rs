//! mqspan as a service: told to be quiet, kept on some CPUs, asked how it is, its files taken away by logrotate.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libbpf_rs::query::ProgInfoIter;
use nix::sys::signal::Signal;
use support::{
    otlp::{self, made_by},
    program::{Ended, Tracing, finish},
    wait, workload,
};

use crate::mqspan;

/// Prevents anything but errors from being said to those who asked for quiet.
#[test]
fn quiet_and_verbose() -> Result<()> {
    let mqspan = mqspan()?;
    let quiet =
        Ended::of(mqspan.output(["run", "--quiet", "--output=none", "--queue=/nothing", "--", "true"])?).ok()?;
    ensure!(quiet.stderr.is_empty() && quiet.stdout.is_empty(), "{quiet:?}");
    let normal = Ended::of(mqspan.output(["run", "--output=none", "--", "true"])?).ok()?;
    let verbose = Ended::of(mqspan.output(["run", "--verbose", "--output=none", "--", "true"])?).ok()?;
    ensure!(verbose.stderr.len() >= normal.stderr.len(), "{verbose:?}");
    let failed = Ended::of(mqspan.output(["run", "--quiet", "--output=file:/nonexistent/x", "--", "true"])?);
    ensure!(failed.status.code() == Some(1) && !failed.stderr.is_empty(), "{failed:?}");
    Ok(())
}

/// Prevents mqspan from taking a real-time program's CPU, where it was started with its priority, and the command from
/// losing that.
#[test]
fn no_real_time_priority() -> Result<()> {
    let mqspan = mqspan()?;
    let option = format!("--output=file:{}", mqspan.file("policies").display());
    // The policy is the 41st word of stat; the name before it has no space here.
    let script = "cut -d' ' -f41 /proc/self/stat /proc/$PPID/task/*/stat | sort | uniq -c";
    let mut command = Command::new("chrt");
    command.args(["--fifo", "5"]).arg(mqspan.path()).args(["run", &option, "--", "bash", "-c", script]);
    let ended = Ended::of(finish(command)?).ok()?;
    let counts: Vec<Vec<&str>> = ended.lines()?.iter().map(|line| line.split_whitespace().collect()).collect();
    let [ordinary, real_time] = &counts[..] else { anyhow::bail!("{counts:?}") };
    ensure!(ordinary[1] == "0" && ordinary[0] != "1", "mqspan's threads: {counts:?}");
    ensure!(real_time[..] == ["1", "1"], "the command: {counts:?}");
    Ok(())
}

/// The numbers of the programs that a process holds, as its descriptors say.
fn programs(pid: u32) -> Vec<u32> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let infos = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    let number = |info: String| info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    infos.filter_map(number).collect()
}

/// Prevents programs from staying in the kernel when mqspan has ended, however it did: while it attached, at work, while
/// it detached, killed or not.
#[test]
fn nothing_stays_attached() -> Result<()> {
    let mqspan = mqspan()?;
    let mut held: BTreeSet<u32> = BTreeSet::new();
    for pause in [0, 20, 50, 100, 200, 400] {
        let mut command = mqspan.command(["run", "--output=none", "--quiet"]);
        let mut child = command.spawn()?;
        // How far it comes differs: each moment is one to be killed at.
        let seen = wait::until("a program", || Ok(Some(programs(child.id())).filter(|held| !held.is_empty())))?;
        held.extend(seen);
        std::thread::sleep(Duration::from_millis(pause));
        held.extend(programs(child.id()));
        child.kill()?;
        child.wait()?;
    }
    let tracing = mqspan.trace(["--output=none"])?;
    held.extend(programs(tracing.pid()));
    tracing.stop()?.ok()?;
    ensure!(held.len() > 20, "{held:?}");
    wait::until("the programs' end", || {
        let left = ProgInfoIter::default().filter(|program| held.contains(&program.id)).count();
        Ok((left == 0).then_some(()))
    })
}

/// Prevents mqspan's threads from running where real-time work does, and the command from being kept there.
#[test]
fn only_on_some_cpus() -> Result<()> {
    let mqspan = mqspan()?;
    let allowed = |path: &str| -> Result<String> {
        let status = fs::read_to_string(path).with_context(|| path.to_owned())?;
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Ok(line.context("no Cpus_allowed_list")?.trim().to_owned())
    };
    let own = allowed("/proc/self/status")?;
    ensure!(own != "0", "one CPU shows nothing: run the tests on more");
    let tracing = mqspan.trace(["--output=none", "--cpus=0"])?;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", tracing.pid()))? {
        let path = thread?.path();
        // Some of a start's threads end at any moment.
        let Ok(list) = allowed(&path.join("status").display().to_string()) else { continue };
        ensure!(list == "0", "{} may run on {list}", fs::read_to_string(path.join("comm"))?);
        threads += 1;
    }
    ensure!(threads > 1, "{threads} thread");
    tracing.stop()?.ok()?;
    let script = "grep Cpus_allowed_list /proc/self/status";
    let ended = Ended::of(mqspan.output(["run", "--output=none", "--cpus=0", "--", "bash", "-c", script])?).ok()?;
    ensure!(ended.lines()?.join("").ends_with(&format!("\t{own}")), "{ended:?}");
    Ok(())
}

/// Prevents logrotate from losing or doubling what is written while it takes the file away.
#[test]
fn files_are_opened_anew() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = mqspan.trace_counted(&["--signals=traces", &mqspan.to_file("spans")])?;
    let (path, rotated) = (mqspan.file("spans"), mqspan.file("spans.1"));
    workload::run(&mqspan.workload(), &["flat", "--calls=500"])?;
    wait::until("the first spans", || Ok((fs::metadata(&path)?.len() > 0).then_some(())))?;
    fs::rename(&path, &rotated)?;
    tracing.signal(Signal::SIGHUP)?;
    wait::until("the new file", || {
        workload::run(&mqspan.workload(), &["flat", "--calls=1"])?;
        Ok(fs::metadata(&path).is_ok_and(|file| file.len() > 0).then_some(()))
    })?;
    workload::run(&mqspan.workload(), &["flat", "--calls=500"])?;
    tracing.stop()?.ok()?;
    let (before, after) = (otlp::spans(&rotated)?, otlp::spans(&path)?);
    let stats = mqspan.stats()?;
    ensure!((before.len() + after.len()) as u64 == stats.exported && stats.lost_sum() == 0, "{stats:?}");
    let of_workload = made_by(before, &mqspan.workload()).len() + made_by(after, &mqspan.workload()).len();
    ensure!(of_workload > 1000, "{of_workload} spans of more than 1000 calls");
    Ok(())
}

/// The status of an answer over HTTP.
fn get(port: u16, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).with_context(|| answer.clone())?;
    Ok(status.parse()?)
}

/// Prevents an orchestrator from ending a healthy mqspan, and anybody from asking where it was not told to answer.
#[test]
fn health_over_http() -> Result<()> {
    let mqspan = mqspan()?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let tracing = mqspan.trace(["--output=none", &format!("--health={port}")])?;
    ensure!(get(port, "/livez")? == 200 && get(port, "/readyz")? == 200, "not healthy");
    ensure!(get(port, "/")? == 404, "an answer to any path");
    // Loopback only, unless told: its own address is not the loopback's.
    let listening = fs::read_to_string("/proc/net/tcp")?;
    let suffix = format!(":{port:04X}");
    let addresses: Vec<_> = listening
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|at| at.ends_with(&suffix))
        .collect();
    ensure!(!addresses.is_empty() && addresses.iter().all(|at| at.starts_with("0100007F")), "{addresses:?}");
    tracing.stop()?.ok().map(drop)
}

/// Prevents systemd from taking mqspan for ready before it is, or for hanging while it works.
#[test]
fn systemd_is_told() -> Result<()> {
    let mqspan = mqspan()?;
    let path = mqspan.file("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(wait::LONG))?;
    let mut command = mqspan.command(["run", "--output=none"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000");
    let tracing = Tracing::start(command)?;
    let mut told = String::new();
    // WATCHDOG_PID is not set: then the watchdog is for whoever reads it.
    while !(told.contains("READY=1") && told.matches("WATCHDOG=1").count() >= 2) {
        let mut message = [0; 512];
        let length = socket.recv(&mut message).with_context(|| told.clone())?;
        told += std::str::from_utf8(&message[..length])?;
        told.push('\n');
    }
    tracing.stop()?.ok()?;
    let mut command = mqspan.command(["run", "--output=none", "--", "true"]);
    command.env("NOTIFY_SOCKET", mqspan.file("nobody"));
    Ended::of(finish(command)?).ok().map(drop)
}
