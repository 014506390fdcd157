//! The application's own spans, by each kind of hooks: what threads publish is read at the thread pointer, which each
//! architecture keeps elsewhere, in thread-local storage, which each lays out otherwise.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{otlp, program::Tracing, wait};

use super::{Run, kinds};
use crate::MQSPAN;

/// What tests/correlation/publisher.c publishes.
const TRACE: [u8; 16] = [0xab; 16];
const SPAN: [u8; 8] = [0xcd; 8];

/// The queues and commands of programs that publish, each in another way: see tests/correlation/publishers.sh.
fn publishers() -> Result<Vec<(String, Command)>> {
    let folder = Path::new(MQSPAN).parent().context("no folder")?;
    let mut publishers = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        let is_library = name.starts_with("libpublisher-");
        if !is_library && !name.starts_with("publisher-") || name == "publisher-load" {
            continue;
        }
        let queue = format!("/{name}");
        let program = if is_library { folder.join("publisher-load") } else { file.path() };
        let mut command = Command::new(program);
        command.args(["on", &*queue]).args(is_library.then(|| file.path()));
        publishers.push((queue, command));
    }
    // Two for each library, and two without.
    ensure!(publishers.len() >= 6, "{publishers:?}");
    Ok(publishers)
}

/// Ends those that are left when a test fails.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// The spans of each queue, in the order of their beginning.
fn spans(run: &Run) -> Result<BTreeMap<String, Vec<Span>>> {
    let mut spans: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in otlp::spans(&run.mqspan.file("told"))? {
        let queue = span.text("messaging.destination.name").context("no queue")?.to_owned();
        spans.entry(queue).or_default().push(span.body);
    }
    spans.values_mut().for_each(|spans| spans.sort_by_key(|span| span.start_time_unix_nano));
    Ok(spans)
}

/// Prevents a publisher from going unseen by some kind of hooks, or on some architecture, for how its compiler and linker
/// reach thread-local storage; and from being misread.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn every_model_of_thread_local_storage() -> Result<()> {
    for kind in kinds() {
        let run = Run::new(kind)?;
        let tracing = Tracing::start(run.command(&["--signals=traces"]))?;
        let (queues, commands): (Vec<_>, Vec<_>) = publishers()?.into_iter().unzip();
        let started = commands.into_iter().map(|mut command| command.spawn()).collect::<Result<_, _>>()?;
        let running = Running(started);
        let mut left = Vec::new();
        let all = wait::until_every(Duration::from_secs(1), "all of them to be inside their spans", || {
            let spans = spans(&run)?;
            let is_inside = |span: &Span| !span.parent_span_id.is_empty();
            let is_left = |queue: &&String| !spans.get(*queue).is_some_and(|spans| spans.iter().any(is_inside));
            left = queues.iter().filter(is_left).cloned().collect();
            Ok(left.is_empty().then_some(()))
        });
        drop(running);
        // Before the queues are removed, which would be seen.
        let ended = tracing.stop();
        queues.iter().try_for_each(|queue| nix::mqueue::mq_unlink(&**queue))?;
        all.with_context(|| format!("{kind}: {left:?}"))?;
        ended?.ok()?;
        for (queue, spans) in spans(&run)? {
            let roots = spans.iter().take_while(|span| span.parent_span_id.is_empty()).count();
            let is_right = |span: &Span| span.trace_id == TRACE && span.parent_span_id == SPAN;
            let wrong = spans[roots..].iter().find(|span| !is_right(span));
            ensure!(wrong.is_none(), "{kind}, {queue}: {wrong:?}");
            println!("{kind}, {queue}: {roots} of {} before it was known", spans.len());
        }
    }
    Ok(())
}
