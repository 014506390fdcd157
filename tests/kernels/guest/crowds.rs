//! Calls that others might hide: callers that sleep, and callers that are preempted.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    mqueue::{MQ_OFlag, MqAttr, mq_open, mq_receive, mq_send, mq_unlink},
    sys::stat::Mode,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{
    otlp::{Record, Value, made_by, of_operation},
    wait,
};

use super::{BY_MESSAGE, Run, begun, check, kinds};
use crate::MQSPAN;

/// As many threads wait in one call each.
const SLEEPERS: usize = 200;
/// As many threads call at once, as often each.
const CALLERS: usize = 8;
const CALLS: usize = 1_000;
const MANY_CALLS: usize = 20_000;
/// More threads of one process in calls than the table of states has places for one (bpf/thread.h).
const THRONG: usize = 2_048 + 100;
/// Calls that the workload's steps make.
const STEPS: usize = 51;

/// This program as a command to trace: one of its tests is what makes the calls.
fn itself(test: &str) -> Result<[String; 5]> {
    let program = env::current_exe()?.display().to_string();
    Ok([program, "--ignored".into(), "--exact".into(), format!("guest::crowds::{test}"), "--quiet".into()])
}

/// Prevents sleeping calls from using up what keeps calls apart, so that later ones go unseen.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn sleepers_hide_no_call() -> Result<()> {
    for kind in kinds() {
        let traced = itself("traced_sleepers")?;
        let run = Run::new(kind)?.of(&["--signals=traces"], &traced.each_ref().map(|word| &**word))?;
        let received = of_operation(run.spans()?, "mq_timedreceive");
        let sent = of_operation(run.spans()?, "mq_timedsend");
        let missed = run.mqspan.stats()?.lost.get("missed").copied().unwrap_or_default() as usize;
        println!("{kind}: {} sent, {} received, {missed} missed", sent.len(), received.len());
        let seen = sent.len() + received.len();
        // Where threads are preempted in the kernel some kinds miss calls, which is why they are not chosen there: counted,
        // then, at most one too many for each side of a call.
        ensure!((2 * SLEEPERS..=2 * SLEEPERS + missed).contains(&(seen + missed)), "{kind}: {missed} missed");
        let misses_inside = run.said("skipped by the kernel").is_ok();
        if kind != "kprobe" && (missed > 0 || misses_inside) {
            continue;
        }
        let waited = |span: &&Record<Span>| span.attributes.get("posix_mq.blocked") == Some(&Value::Bool(true));
        let blocked = received.iter().filter(waited).count();
        let linked = received.iter().filter(|span| span.body.links.len() == 1).count();
        ensure!(blocked == SLEEPERS, "{kind}: {blocked} waited");
        ensure!(linked == SLEEPERS || kind == "tracepoint", "{kind}: {linked} linked");
    }
    Ok(())
}

/// Makes [`SLEEPERS`] receive calls wait at once.
#[test]
#[ignore = "is traced by sleepers_hide_no_call"]
fn traced_sleepers() -> Result<()> {
    let attr = MqAttr::new(0, 10, 8, 0);
    let queue = mq_open("/sleepers", MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR, Mode::S_IRWXU, Some(&attr))?;
    thread::scope(|scope| {
        let receive = || mq_receive(&queue, &mut [0; 8], &mut 0);
        let threads: Vec<_> = (0..SLEEPERS).map(|_| scope.spawn(receive)).collect();
        // Slow machines take their time to start threads; one that does not wait yet does so soon.
        thread::sleep(Duration::from_secs(3));
        (0..SLEEPERS).try_for_each(|_| mq_send(&queue, &[1; 8], 0))?;
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(Errno::EIO)).map(drop))
    })?;
    Ok(mq_unlink("/sleepers")?)
}

/// Prevents calls from being hidden by others on the same CPU: by the hooks that mqspan chooses, none is.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn callers_hide_no_call() -> Result<()> {
    for kind in begun(BY_MESSAGE) {
        let traced = itself("traced_callers")?;
        let run = Run::new(kind)?.of(&["--signals=traces"], &traced.each_ref().map(|word| &**word))?;
        let spans = of_operation(run.spans()?, "mq_timedreceive");
        println!("{kind}: {:?}: {} of {}", run.said("tracing")?, spans.len(), CALLERS * CALLS);
        ensure!(spans.len() == CALLERS * CALLS, "{kind}: {:?}", run.ended);
    }
    Ok(())
}

/// Prevents calls that the kernel skips from going uncounted, by whichever kind of hooks, and shows how many each kind
/// misses here.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn skipped_calls_are_counted() -> Result<()> {
    const CALLED: u64 = (CALLERS * MANY_CALLS) as u64;
    for kind in kinds() {
        let traced = itself("traced_crowd")?;
        let traced = traced.each_ref().map(|word| &**word);
        let run = Run::new(kind)?.of(&["--signals=traces", "--call=mq_timedreceive"], &traced)?;
        let stats = run.mqspan.stats()?;
        let (missed, no_exit) = (stats.lost_at("missed"), stats.lost_at("no_exit"));
        // A call whose exit alone was skipped counts there, and once more when its thread begins the next.
        let seen = stats.captured - missed - no_exit;
        println!("MISSES {kind}: {missed} of {CALLED} calls, {seen} seen, {no_exit} of them without exit: {stats:?}");
        ensure!((seen + missed.div_ceil(2)..=seen + missed).contains(&CALLED), "{kind}: {stats:?}");
    }
    Ok(())
}

/// Makes [`CALLERS`] threads call as fast as they can: receive from an empty queue that does not wait.
#[test]
#[ignore = "is traced by callers_hide_no_call"]
fn traced_callers() -> Result<()> {
    call_at_once(CALLS)
}

/// The same, more often.
#[test]
#[ignore = "is traced by skipped_calls_are_counted"]
fn traced_crowd() -> Result<()> {
    call_at_once(MANY_CALLS)
}

fn call_at_once(times: usize) -> Result<()> {
    let attr = MqAttr::new(0, 10, 8, 0);
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR | MQ_OFlag::O_NONBLOCK;
    let queue = mq_open("/callers", flags, Mode::S_IRWXU, Some(&attr))?;
    thread::scope(|scope| {
        let call = || (0..times).all(|_| mq_receive(&queue, &mut [0; 8], &mut 0) == Err(Errno::EAGAIN));
        let threads: Vec<_> = (0..CALLERS).map(|_| scope.spawn(call)).collect();
        let empty = threads.into_iter().all(|thread| thread.join().unwrap_or(false));
        ensure!(empty, "the queue was not empty");
        Ok(())
    })?;
    mq_unlink("/callers").context("/callers")
}

/// Prevents one process's threads from taking the room of all others' calls, and calls without room from going uncounted.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn states_of_threads_are_bounded() -> Result<()> {
    let has_table = check::said()?["call_state"] == "table";
    let traced = itself("traced_throng")?;
    let run = Run::new("auto")?.of(&["--signals=traces"], &traced.each_ref().map(|word| &**word))?;
    let (spans, stats) = (run.spans()?, run.mqspan.stats()?);
    let others = made_by(spans.clone(), &workload()).len();
    let received = spans.iter().filter(|span| span.text("messaging.destination.name") == Some("/throng")).count();
    println!("{received} of {THRONG}, {others} of another process; {stats:?}");
    ensure!(others == STEPS, "{others} of another process");
    ensure!((stats.lost["state"] > 0) == has_table && stats.lost_sum() == stats.lost["state"], "{stats:?}");
    // One call made the queue.
    ensure!(received as u64 + stats.lost["state"] == THRONG as u64 + 1, "{received} seen");
    Ok(())
}

fn workload() -> PathBuf {
    Path::new(MQSPAN).with_file_name("workload")
}

/// Has [`THRONG`] threads wait in a receive, and another process make its calls meanwhile.
#[test]
#[ignore = "is traced by states_of_threads_are_bounded"]
fn traced_throng() -> Result<()> {
    let attr = MqAttr::new(0, 10, 8, 0);
    let queue = mq_open("/throng", MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR, Mode::S_IRWXU, Some(&attr))?;
    thread::scope(|scope| {
        for _ in 0..THRONG {
            let receive = || mq_receive(&queue, &mut [0; 8], &mut 0);
            thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, receive)?;
        }
        // Slow machines take their time to start threads.
        wait::until("all threads to wait", || {
            // Where in the kernel a thread sleeps, wchan, is not known to 5.10.
            let tasks = fs::read_dir("/proc/self/task")?.filter_map(|task| Some(task.ok()?.path().join("syscall")));
            let waits = |syscall: &PathBuf| {
                let now = fs::read_to_string(syscall).unwrap_or_default();
                now.split_whitespace().next().and_then(|number| number.parse().ok()) == Some(libc::SYS_mq_timedreceive)
            };
            Ok((tasks.filter(waits).count() >= THRONG).then_some(()))
        })?;
        ensure!(Command::new(workload()).args(["steps", "--abi", "native"]).status()?.success(), "the workload");
        // Ends the threads.
        std::process::exit(0)
    })
}
