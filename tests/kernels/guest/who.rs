//! Who made a call, by each kind of hooks: containers by the names of control groups, and process contexts in mappings of
//! each kind, with their changes.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use support::{
    otlp::{self, text},
    program::{Tracing, finish},
    wait,
};

use super::{Run, kinds};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Prevents kinds of hooks from telling containers differently.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn containers() -> Result<()> {
    let groups = Path::new("/sys/fs/cgroup");
    if !groups.join("cgroup.procs").exists() {
        let mut mount = Command::new("mount");
        mount.args(["-t", "cgroup2", "cgroup2"]).arg(groups);
        ensure!(finish(mount)?.status.success(), "cgroup2 can't be mounted");
    }
    let group = groups.join(format!("kubepods/docker-{ID}.scope"));
    fs::create_dir_all(&group)?;
    for kind in kinds() {
        let run = Run::new(kind)?;
        let tracing = Tracing::start(run.command(&["--call=mq_open", "--container=0123"]))?;
        let mut inside = Command::new("sh");
        let script = r#"echo $$ > "$1/cgroup.procs"; exec "$0" flat --calls 3"#;
        inside.args(["-c", script]).arg(run.mqspan.workload()).arg(&group);
        ensure!(finish(inside)?.status.success(), "the workload");
        let mut outside = Command::new(run.mqspan.workload());
        outside.args(["flat", "--calls", "4"]);
        ensure!(finish(outside)?.status.success(), "the workload");
        tracing.stop()?.ok()?;
        let spans = run.spans()?;
        let ids: Vec<_> = spans.iter().map(|span| text(&span.origin.resource, "container.id")).collect();
        ensure!(ids == [Some(ID); 3], "{kind}: {ids:?}");
    }
    fs::remove_dir(&group)?;
    Ok(())
}

/// Prevents a context from being missed for the kind of its mapping or of the hooks, and a change from going unseen.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn process_contexts() -> Result<()> {
    for kind in kinds() {
        for mapping in ["memfd", "private", "shared"] {
            let run = Run::new(kind)?;
            let tracing = Tracing::start(run.command(&["--signals=traces", "--call=mq_open"]))?;
            let mut publisher = Command::new(run.mqspan.workload());
            publisher.args(["publish", "one", "two", "--mapping", mapping]).env("OTEL_SERVICE_NAME", "unpublished");
            let mut publisher = publisher.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (mut stdin, stdout) = publisher.stdin.take().zip(publisher.stdout.take()).context("no pipes")?;
            let mut said = BufReader::new(stdout).lines();
            let first = said.next().context("nothing was published")??;
            // Before 6.2 the kernel names private mappings only, and where it is not built to, none.
            let is_named = mapping == "memfd" || first == "published";
            println!("{kind}, {mapping}: {first}");
            let expected = if is_named { ["one", "two"] } else { ["unpublished"; 2] };
            let called = |stdin: &mut std::process::ChildStdin, name: &str| {
                wait::until(name, || {
                    stdin.write_all(b"call\n")?;
                    let spans = otlp::spans(&run.mqspan.file("told")).unwrap_or_default();
                    let is_it = |span: &otlp::Record<_>| text(&span.origin.resource, "service.name") == Some(name);
                    Ok(spans.iter().any(is_it).then_some(()))
                })
            };
            called(&mut stdin, expected[0]).with_context(|| format!("{kind}, {mapping}"))?;
            stdin.write_all(b"\n")?;
            said.next().context("the second name was not published")??;
            called(&mut stdin, expected[1]).with_context(|| format!("{kind}, {mapping}"))?;
            drop(stdin);
            ensure!(publisher.wait()?.success(), "the workload");
            tracing.stop()?.ok()?;
        }
    }
    Ok(())
}
