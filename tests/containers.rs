//! mqspan and real containers: who calls from inside of them, and mqspan inside of one itself, with the least capabilities.
//! Needs root, and Podman with runc: `make test-containers`.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use support::{
    container::Container,
    otlp::{self, int, made_by, text},
    program::{Ended, Mqspan, Tracing, finish, without_otel},
    ready, wait, workload,
};

/// What `run` needs of another user than root by tracepoints, in setpriv's and Podman's spelling.
const CAPABILITIES: [&str; 4] = ["bpf", "perfmon", "sys_ptrace", "dac_read_search"];

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// mqspan's program where containers and other users find it.
fn copy_of_mqspan(mqspan: &Mqspan) -> Result<PathBuf> {
    let copy = mqspan.file("mqspan");
    // By another process, as the workload is: see support::program.
    let status = Command::new("cp").arg(mqspan.path()).arg(&copy).status()?;
    ensure!(status.success(), "{status}");
    fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// Prevents a container's processes, those that live for one call too, from having no container, or another's.
#[test]
fn who_is_in_a_container() -> Result<()> {
    let mqspan = mqspan()?;
    let workload = mqspan.workload_arg();
    let long = Container::create(&mqspan, &[], &[&workload, "flat", "--calls", "3"])?;
    let short = Container::create(&mqspan, &[], &[&workload, "short-lived", "--calls", "50"])?;
    let tracing = mqspan.trace(["--call=mq_open", &mqspan.to_file("calls")])?;
    long.run()?;
    short.run()?;
    workload::run(&mqspan.workload(), &["flat", "--calls", "4"])?;
    tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("calls"))?;
    let of = |id: &str| -> Vec<_> {
        spans.iter().filter(|span| text(&span.origin.resource, "container.id") == Some(id)).collect()
    };
    ensure!((of(long.id()).len(), of(short.id()).len()) == (3, 50), "{} {}", of(long.id()).len(), of(short.id()).len());
    let own = ready::ipc_namespace()?;
    for span in of(long.id()).into_iter().chain(of(short.id())) {
        let resource = &span.origin.resource;
        let vpid = int(resource, "process.vpid").context("no process.vpid")?;
        ensure!(vpid >= 1 && vpid < 1000 && i64::from(span.pid()?) != vpid, "{resource:?}");
        let group = text(resource, "process.linux.cgroup").context("no process.linux.cgroup")?;
        ensure!([long.id(), short.id()].iter().any(|id| group.contains(id)), "{group}");
        ensure!(span.int("posix_mq.ipc_namespace").is_some_and(|number| number != own), "{span:?}");
        ensure!(text(resource, "process.executable.name") == Some("workload"), "{resource:?}");
    }
    let host = made_by(spans.clone(), &mqspan.workload());
    let host: Vec<_> = host.iter().filter(|span| span.int("posix_mq.ipc_namespace") == Some(own)).collect();
    ensure!(host.len() == 4, "{} spans of 4 calls outside", host.len());
    ensure!(host.iter().all(|span| !span.origin.resource.contains_key("container.id")), "a container outside");
    Ok(())
}

/// Prevents `--container` from passing another container's calls or the host's, in spans and in metrics.
#[test]
fn one_of_two_containers() -> Result<()> {
    let mqspan = mqspan()?;
    let workload = mqspan.workload_arg();
    for (negated, passing) in [("", [true, false, false]), ("!", [false, true, true])] {
        let asked = Container::create(&mqspan, &[], &[&workload, "flat", "--calls", "3"])?;
        let other = Container::create(&mqspan, &[], &[&workload, "flat", "--calls", "5"])?;
        // As `podman ps` shows it.
        let option = format!("--container={negated}{}", &asked.id()[..12]);
        let tracing = mqspan.trace_counted(&["--call=mq_open", &mqspan.to_file("calls"), &option])?;
        asked.run()?;
        other.run()?;
        workload::run(&mqspan.workload(), &["flat", "--calls", "7"])?;
        let ended = tracing.stop()?.ok()?;
        ensure!(ended.said("matched no call").is_err(), "{:?}", ended.stderr);
        let own = ready::ipc_namespace()?;
        let spans = otlp::spans(&mqspan.file("calls"))?;
        let container = |span: &otlp::Record<_>| text(&span.origin.resource, "container.id").map(str::to_owned);
        let inside = |id: &str| spans.iter().filter(|span| container(span).as_deref() == Some(id)).count();
        let host = made_by(spans.clone(), &mqspan.workload());
        let host = host.iter().filter(|span| span.int("posix_mq.ipc_namespace") == Some(own)).count();
        let expected = [3, 5, 7].into_iter().zip(passing).map(|(calls, passes)| if passes { calls } else { 0 });
        let expected: Vec<usize> = expected.collect();
        let found = [inside(asked.id()), inside(other.id()), host];
        ensure!(expected == found, "{option}: {found:?}, not {expected:?}");
        let in_metrics = [asked.id(), other.id()].map(|id| counts(&mqspan.file("calls"), id));
        for (counted, expected) in in_metrics.into_iter().zip(expected) {
            ensure!(counted? == expected as u64, "{option}: metrics count otherwise than {expected}");
        }
        ensure!(mqspan.stats()?.filtered >= 3, "{:?}", mqspan.stats()?);
    }
    Ok(())
}

/// How many calls of a container metrics count.
fn counts(file: &Path, container: &str) -> Result<u64> {
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    let mut sum = 0;
    for of in otlp::metrics(file)?.into_iter().flat_map(|request| request.resource_metrics) {
        let resource = otlp::attributes(&of.resource.unwrap_or_default().attributes)?;
        if text(&resource, "container.id") != Some(container) {
            continue;
        }
        for metric in of.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            if let Some(Data::ExponentialHistogram(histogram)) = metric.data {
                let is_duration = metric.name == "messaging.client.operation.duration";
                sum += histogram.data_points.iter().filter(|_| is_duration).map(|point| point.count).sum::<u64>();
            }
        }
    }
    Ok(sum)
}

/// The options under which mqspan runs in a container.
fn for_mqspan() -> Vec<String> {
    let mut options = vec!["--cap-drop=all".to_owned(), "--security-opt=seccomp=unconfined".into()];
    options.extend(CAPABILITIES.map(|name| format!("--cap-add={name}")));
    options.push("--volume=/sys/kernel/tracing:/sys/kernel/tracing".into());
    options
}

fn create<'a>(mqspan: &Mqspan, more: &[&'a str], command: &[&'a str]) -> Result<Container> {
    let options = for_mqspan();
    let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Container::create(mqspan, &options, command)
}

/// Prevents mqspan in a container with the host's pid namespace from seeing less than on the host.
#[test]
fn mqspan_in_a_container() -> Result<()> {
    let mqspan = mqspan()?;
    let (program, file) = (copy_of_mqspan(&mqspan)?.display().to_string(), mqspan.to_file("calls"));
    let inside = create(&mqspan, &["--pid=host"], &[&program, "run", "--signals=traces", "--call=mq_open", &file])?;
    let other = Container::create(&mqspan, &[], &[&mqspan.workload_arg(), "flat", "--calls", "3"])?;
    let tracing = Tracing::start(inside.start_attached())?;
    let mut named = Command::new(mqspan.workload());
    named.args(["flat", "--calls", "2"]);
    without_otel(&mut named);
    named.env("OTEL_SERVICE_NAME", "outside");
    ensure!(finish(named)?.status.success(), "the workload");
    other.run()?;
    tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("calls"))?;
    let outside = spans.iter().filter(|span| text(&span.origin.resource, "service.name") == Some("outside"));
    ensure!(outside.count() == 2, "{} spans", spans.len());
    let its = spans.iter().filter(|span| text(&span.origin.resource, "container.id") == Some(other.id()));
    ensure!(its.count() == 3, "{} spans", spans.len());
    Ok(())
}

/// Prevents a sidecar from tracing other queues than its pod's, in pid namespaces of its own and of its pod.
#[test]
fn a_sidecar() -> Result<()> {
    let mqspan = mqspan()?;
    let (program, workload) = (copy_of_mqspan(&mqspan)?.display().to_string(), mqspan.workload_arg());
    let application = Container::create(&mqspan, &["--ipc=shareable"], &["/bin/sleep", "1000"])?;
    application.start()?;
    let ipc = format!("--ipc=container:{}", application.id());
    let pid = format!("--pid=container:{}", application.id());
    for namespaces in [&[ipc.as_str()][..], &[&ipc, &pid]] {
        let file = mqspan.to_file("calls");
        let command = [&program, "run", "--call=mq_open", "--ipc-namespace=self", &file];
        let sidecar = create(&mqspan, namespaces, &command)?;
        let tracing = Tracing::start(sidecar.start_attached())?;
        application.exec(&[&workload, "flat", "--calls", "3"])?;
        workload::run(&mqspan.workload(), &["flat", "--calls", "4"])?;
        tracing.stop()?.ok()?;
        let spans = otlp::spans(&mqspan.file("calls"))?;
        let ids: Vec<_> = spans.iter().map(|span| text(&span.origin.resource, "container.id")).collect();
        ensure!(ids == [Some(application.id()); 3], "{namespaces:?}: {ids:?}");
        ensure!(counts(&mqspan.file("calls"), application.id())? == 3, "{namespaces:?}: metrics");
    }
    Ok(())
}

/// mqspan as another user than root with these capabilities only.
fn as_nobody(mqspan: &Mqspan, capabilities: &[&str], options: &[&str]) -> Result<Command> {
    let list: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args([format!("--inh-caps=-all{list}"), format!("--ambient-caps=-all{list}")]);
    command.arg(copy_of_mqspan(mqspan)?).arg("run").args(options);
    without_otel(&mut command);
    Ok(command)
}

/// Prevents a capability from being asked for that is not needed, and its want from going unsaid.
#[test]
fn each_capability_taken_away() -> Result<()> {
    let mqspan = mqspan()?;
    // Without these it does not run, and says why.
    for (missing, said) in
        [("bpf", "CAP_BPF missing"), ("perfmon", "CAP_PERFMON missing"), ("dac_read_search", "CAP_DAC_READ_SEARCH")]
    {
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
        let ended = Ended::of(finish(as_nobody(&mqspan, &rest, &["--hooks=tracepoint", "--output=none"])?)?);
        ensure!(ended.status.code() == Some(1), "without {missing}: {:?}", ended.stderr);
        ended.said(said)?;
    }
    // Without CAP_SYS_PTRACE it does, but what /proc shows of other users' processes is missing.
    let folder = mqspan.file("out");
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
    for (capabilities, expected) in
        [(&CAPABILITIES[..], "published"), (&["bpf", "perfmon", "dac_read_search"], "unknown_service:workload")]
    {
        let file = folder.join(expected);
        let output = format!("--output=file:{}", file.display());
        let tracing = Tracing::start(as_nobody(&mqspan, capabilities, &["--call=mq_open", &output])?)?;
        let mut publisher = Command::new(mqspan.workload());
        publisher.args(["publish", "published"]).stdin(Stdio::piped()).stdout(Stdio::null());
        without_otel(&mut publisher);
        let mut process = publisher.spawn()?;
        let pid = process.id();
        let mut stdin = process.stdin.take().context("no stdin")?;
        stdin.write_all(b"call\n")?;
        let name = wait::until("the call", || {
            // The file is there when something is written.
            let spans = otlp::spans(&file).unwrap_or_default();
            let its = spans.iter().find(|span| span.pid().is_ok_and(|its| its == pid));
            Ok(its.and_then(|span| text(&span.origin.resource, "service.name")).map(str::to_owned))
        })?;
        drop(stdin);
        ensure!(process.wait()?.success(), "the workload");
        tracing.stop()?.ok()?;
        ensure!(name == expected, "with {capabilities:?}: {name}");
    }
    Ok(())
}
