//! Who made a call: the Resource, also of processes that are gone before anyone can look.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use support::{
    fed::Fed,
    otlp::{self, Attributes, int, made_by, text},
    program::{Mqspan, finish},
    wait, workload,
};

use crate::mqspan;

/// What must hold for every process of the workload that root runs without OpenTelemetry's variables.
fn is_whole(resource: &Attributes, mqspan: &Mqspan) -> Result<()> {
    let path = mqspan.workload_arg();
    let hostname = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    for (key, expected) in [
        ("service.name", "unknown_service:workload"),
        ("process.executable.name", "workload"),
        ("process.executable.path", &path),
        ("process.owner", "root"),
        ("host.name", &hostname),
        ("os.type", "linux"),
    ] {
        ensure!(text(resource, key) == Some(expected), "{key} is {:?}, not {expected}", resource.get(key));
    }
    ensure!(int(resource, "process.user.id") == Some(0), "{resource:?}");
    ensure!(int(resource, "process.parent_pid").is_some_and(|pid| pid > 0), "{resource:?}");
    ensure!(!resource.contains_key("process.vpid"), "its pid is the same inside of its namespace: {resource:?}");
    let instance = text(resource, "service.instance.id").context("no service.instance.id")?;
    // xxxxxxxx-xxxx-5xxx-xxxx-xxxxxxxxxxxx: made from the process's identity.
    ensure!(instance.len() == 36 && instance.as_bytes()[14] == b'5', "{instance} is not a UUIDv5");
    let created = text(resource, "process.creation.time").context("no process.creation.time")?;
    ensure!(created.len() == 24 && created.ends_with('Z') && created.as_bytes()[10] == b'T', "{created}");
    Ok(())
}

fn utc(time: SystemTime) -> Result<String> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut command = std::process::Command::new("date");
    command.args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%S"]);
    Ok(String::from_utf8(finish(command)?.stdout)?.trim().to_owned())
}

/// Prevents a process that makes one call and is gone from having no Resource, or that of another.
#[test]
fn processes_of_a_single_call() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = mqspan.trace_counted(&["--signals=traces", &mqspan.to_file("spans")])?;
    let before = utc(SystemTime::now())?;
    let spans = || anyhow::Ok(made_by(otlp::spans(&mqspan.file("spans"))?, &mqspan.workload()));
    // A machine that is too busy to run mqspan has room for some ninety processes (docs/limits.md): no more are ahead of it.
    for made in [60, 120, 180, 240, 300] {
        workload::run(&mqspan.workload(), &["short-lived", "--calls", "60"])?;
        // The file's last line may be half written.
        wait::until("their spans", || Ok(spans().is_ok_and(|spans| spans.len() >= made).then_some(())))?;
    }
    let after = utc(SystemTime::now())?;
    tracing.stop()?.ok()?;
    let spans = spans()?;
    ensure!(spans.len() == 300, "{} spans of 300 processes: {:?}", spans.len(), mqspan.stats()?);
    let mut ids = Vec::new();
    for span in &spans {
        let resource = &span.origin.resource;
        is_whole(resource, &mqspan)?;
        // A process of one thread: its ids are the same.
        ensure!(span.pid()? == span.tid()?, "process {} and thread {}", span.pid()?, span.tid()?);
        let created = text(resource, "process.creation.time").context("no time")?;
        ensure!(*before <= created[..19] && created[..19] <= *after, "{created} is not in {before} to {after}");
        ids.push((span.pid()?, text(resource, "service.instance.id")));
    }
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == 300, "{} processes and instances, not 300", ids.len());
    ids.sort_unstable_by_key(|(_, instance)| *instance);
    ids.dedup_by_key(|(_, instance)| *instance);
    ensure!(ids.len() == 300, "processes share an instance id");
    Ok(())
}

/// Prevents spans of one process from standing under several Resources, and schema and scope from being left out.
#[test]
fn a_process_is_one_resource() -> Result<()> {
    let mqspan = mqspan()?;
    let tracing = mqspan.trace(["--signals=traces,logs", &mqspan.to_file("spans")])?;
    workload::run(
        &mqspan.workload(),
        &["open", "--calls", "400", "--threads", "4", "--processes", "0", "--seed", "51"],
    )?;
    tracing.stop()?.ok()?;
    let spans = made_by(otlp::spans(&mqspan.file("spans"))?, &mqspan.workload());
    let logs = made_by(otlp::logs(&mqspan.file("spans"))?, &mqspan.workload());
    let origin = &spans.first().context("no span")?.origin;
    is_whole(&origin.resource, &mqspan)?;
    ensure!(origin.scope == ("mqspan".into(), env!("CARGO_PKG_VERSION").into()), "{:?}", origin.scope);
    ensure!(origin.resource_schema.starts_with("https://opentelemetry.io/schemas/1."), "{origin:?}");
    ensure!(origin.scope_schema == origin.resource_schema, "{origin:?}");
    ensure!(spans.iter().all(|span| span.origin == *origin), "spans of one process differ in their Resource");
    ensure!(logs.iter().all(|log| log.origin == *origin), "log records have another Resource than spans");
    Ok(())
}

/// Prevents what a process says of itself from being lost, or from replacing what the kernel shows.
#[test]
fn a_process_may_say_who_it_is() -> Result<()> {
    let mqspan = mqspan()?;
    let resource_of = |variables: &[(&str, &str)]| -> Result<Attributes> {
        let file = mqspan.to_file("spans");
        let mut command = mqspan.command(["run", "--signals=traces", &file, "--"]);
        command.args([&mqspan.workload_arg(), "flat", "--calls", "1"]).envs(variables.iter().copied());
        let output = finish(command)?;
        ensure!(output.status.success(), "{output:?}");
        let spans = otlp::spans(&mqspan.file("spans"))?;
        Ok(spans.first().context("no span")?.origin.resource.clone())
    };
    let attributes = "service.name=other,service.namespace=shop,deployment.environment.name=te%20st,process.pid=1,\
                      host.name=elsewhere,service.instance.id=one";
    let resource = resource_of(&[("OTEL_SERVICE_NAME", "billing"), ("OTEL_RESOURCE_ATTRIBUTES", attributes)])?;
    for (key, expected) in [
        ("service.name", "billing"),
        ("service.namespace", "shop"),
        ("service.instance.id", "one"),
        ("deployment.environment.name", "te st"),
    ] {
        ensure!(text(&resource, key) == Some(expected), "{key}: {resource:?}");
    }
    ensure!(int(&resource, "process.pid").is_some_and(|pid| pid > 1), "{resource:?}");
    ensure!(text(&resource, "host.name") != Some("elsewhere"), "{resource:?}");
    let resource = resource_of(&[("OTEL_RESOURCE_ATTRIBUTES", attributes)])?;
    ensure!(text(&resource, "service.name") == Some("other"), "{resource:?}");
    Ok(())
}

/// Prevents a process id from being told as one inside of a pid namespace, or the one inside from being lost.
#[test]
fn inside_of_a_pid_namespace() -> Result<()> {
    let mqspan = mqspan()?;
    let (file, workload) = (mqspan.to_file("spans"), mqspan.workload_arg());
    let command = ["unshare", "--pid", "--fork", "--mount-proc", &workload, "flat", "--calls", "1"];
    mqspan.run_counted(&[&["--signals=traces", &*file, "--"], &command[..]].concat())?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    let span = spans.first().context("no span")?;
    ensure!(int(&span.origin.resource, "process.vpid") == Some(1), "{:?}", span.origin.resource);
    ensure!(span.pid()? > 1 && span.tid()? == span.pid()?, "{span:?}");
    let last: u32 = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?;
    ensure!(span.pid()? < last, "{span:?}");
    Ok(())
}

/// So many that one of them at least is forgotten where each is by one chance in ten.
const KEPT: usize = 60;

/// Prevents processes that make a call now and then from becoming others, or unknown ones, when thousands of others make calls
/// in between.
#[test]
fn nine_thousand_others() -> Result<()> {
    let mqspan = mqspan()?;
    // The others' calls are traced, too: it is they for whom these might be forgotten.
    let queues = ["--queue=/workload-published", "--queue=/short-lived-*"];
    let tracing = mqspan.trace_counted(&[&["--signals=traces", &mqspan.to_file("spans")], &queues[..]].concat())?;
    let mut kept = Vec::new();
    for number in 0..KEPT {
        let mut command = std::process::Command::new(mqspan.workload());
        command.args(["publish", "published"]).env("OTEL_SERVICE_NAME", "environment");
        // Where the kernel can't name this kind of mapping, these go by their environment.
        if number % 2 == 0 {
            command.args(["--mapping", "private"]);
        }
        kept.push(Fed::start(command, "published")?);
    }
    kept.iter_mut().try_for_each(Fed::go_on)?;
    workload::run(&mqspan.workload(), &["short-lived", "--calls", "9000"])?;
    kept.iter_mut().try_for_each(Fed::go_on)?;
    let pids: Vec<u32> = kept.iter().map(Fed::pid).collect();
    let of_kept = || {
        // The file's last line may be half written.
        let mut spans = otlp::spans(&mqspan.file("spans")).unwrap_or_default();
        spans.retain(|span| span.pid().is_ok_and(|pid| pids.contains(&pid)));
        spans
    };
    let all =
        wait::until_every(Duration::from_secs(1), "all calls", || Ok((of_kept().len() == 2 * KEPT).then_some(())));
    kept.into_iter().try_for_each(Fed::end)?;
    tracing.stop()?.ok()?;
    all.with_context(|| format!("{} of {}: {:?}", of_kept().len(), 2 * KEPT, mqspan.stats()))?;
    let mut resources: BTreeMap<u32, Vec<Attributes>> = BTreeMap::new();
    for span in of_kept() {
        let of_process = resources.entry(span.pid()?).or_default();
        if !of_process.contains(&span.origin.resource) {
            of_process.push(span.origin.resource.clone());
        }
    }
    for (pid, of_process) in &resources {
        let [resource] = &of_process[..] else { anyhow::bail!("{pid} is several: {of_process:#?}") };
        let name = text(resource, "service.name").context("no service.name")?;
        ensure!(["published", "environment"].contains(&name), "{pid}: {name}");
    }
    ensure!(resources.len() == KEPT, "{} processes", resources.len());
    Ok(())
}
