//! Backends in trouble, played by a scripted one: what arrives, what is tried again and when, and what is counted. Needs
//! root and tracefs. TLS with the Collector is in tests/collector.rs, restarts and outages are in tests/spool.rs.

use std::{
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use support::{
    backend::{self, Answer, Arrived, Backend},
    certificates, otlp, own,
    program::{Ended, Memory, Mqspan, Tracing, finish},
    stats::{Output, Stats},
    wait, workload,
};
use tonic::Code;

const CALLS: u64 = 20;
/// The first back-off is 5 s, spread by half of it.
const BACK_OFF: [f64; 2] = [2.4, 8.0];
/// A backend that asks for more than any first back-off, but for less than flushing at the end may take.
const ASKED: u64 = 8;
/// Flushing at the end takes at most this long; attaching and ending come on top.
const FLUSH: Duration = Duration::from_secs(10);
/// The bound on memory, KiB.
const MEMORY: u64 = 64 << 10;

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

/// `mqspan run` that sends what calls make, and nothing of itself.
fn command(mqspan: &Mqspan, endpoint: &str, protocol: &str, options: &[&str]) -> std::process::Command {
    let stats = format!("--stats-file={}", mqspan.file("stats.json").display());
    let mut command = mqspan.command(["run", "--output=otlp", "--max-rate=0", &stats]);
    command.args(["--endpoint", endpoint, "--protocol", protocol]).args(options);
    command.env("OTEL_SDK_DISABLED", "true").env("OTEL_EXPORTER_OTLP_TIMEOUT", "1000");
    command
}

/// What becomes of some calls whose first request gets this answer, and every later one that.
struct Fault {
    name: &'static str,
    protocol: &'static str,
    first: Answer,
    then: Answer,
    /// Requests, the seconds between the first two, calls exported, the stage of the rest.
    expected: (usize, Option<[f64; 2]>, u64, &'static str),
}

/// A fault that is over at the second attempt.
fn passes(name: &'static str, protocol: &'static str, first: Answer, pause: [f64; 2]) -> Fault {
    Fault { name, protocol, first, then: Answer::Taken, expected: (2, Some(pause), CALLS, "") }
}

/// One that no second attempt would mend.
fn stays(name: &'static str, protocol: &'static str, first: Answer, exported: u64, stage: &'static str) -> Fault {
    Fault { name, protocol, first, then: Answer::Taken, expected: (1, None, exported, stage) }
}

fn faults() -> Vec<Fault> {
    let asked = Some(Duration::from_secs(ASKED));
    let patient = [ASKED as f64 - 0.1, FLUSH.as_secs_f64()];
    let (http, grpc) = ("http/protobuf", "grpc");
    vec![
        passes("429", http, Answer::Http(429, None), BACK_OFF),
        passes("502", "http/json", Answer::Http(502, None), BACK_OFF),
        passes("503", http, Answer::Http(503, None), BACK_OFF),
        passes("504", http, Answer::Http(504, None), BACK_OFF),
        passes("429, Retry-After", http, Answer::Http(429, Some(ASKED)), patient),
        passes("503, Retry-After", "http/json", Answer::Http(503, Some(ASKED)), patient),
        passes("UNAVAILABLE", grpc, Answer::Grpc(Code::Unavailable, None), BACK_OFF),
        passes("UNAVAILABLE, RetryInfo", grpc, Answer::Grpc(Code::Unavailable, asked), patient),
        passes("RESOURCE_EXHAUSTED, RetryInfo", grpc, Answer::Grpc(Code::ResourceExhausted, asked), patient),
        passes("cut", http, Answer::Cut, BACK_OFF),
        passes("cut", grpc, Answer::Cut, BACK_OFF),
        // The timeout of 1 s comes on top.
        passes("hangs once", http, Answer::Nothing, [BACK_OFF[0] + 1.0, FLUSH.as_secs_f64()]),
        stays("slow", http, Answer::TakenAfter(Duration::from_millis(700)), CALLS, ""),
        stays("slow", grpc, Answer::TakenAfter(Duration::from_millis(700)), CALLS, ""),
        stays("RESOURCE_EXHAUSTED", grpc, Answer::Grpc(Code::ResourceExhausted, None), 0, "refused"),
        stays("INVALID_ARGUMENT", grpc, Answer::Grpc(Code::InvalidArgument, None), 0, "refused"),
        stays("400", http, Answer::Http(400, None), 0, "refused"),
        stays("500", http, Answer::Http(500, None), 0, "refused"),
        stays("a page", http, Answer::Page, 0, "refused"),
        stays("a page", "http/json", Answer::Page, 0, "refused"),
        stays("partial success", http, Answer::Partial(5), CALLS - 5, "rejected"),
        stays("partial success", grpc, Answer::Partial(5), CALLS - 5, "rejected"),
        stays("404", http, Answer::Http(404, None), 0, "switched_off"),
        stays("UNIMPLEMENTED", grpc, Answer::Grpc(Code::Unimplemented, None), 0, "switched_off"),
    ]
}

impl Fault {
    fn happen(&self) -> Result<String> {
        let (first, then) = (self.first.clone(), self.then.clone());
        let backend = Backend::start(move |number, _| if number == 0 { first.clone() } else { then.clone() })?;
        let mqspan = mqspan()?;
        let mut command = command(&mqspan, &backend.endpoint(), self.protocol, &["--signals=traces"]);
        command.args(["--", &mqspan.workload_arg(), "flat", "--calls", &CALLS.to_string()]);
        let ended = Tracing::start(command)?.end()?.ok()?;
        let (stats, arrived, memory) = (mqspan.stats()?, backend.arrived(), ended.memory);
        let found = self
            .is_as_expected(&stats, &arrived, &backend)
            .with_context(|| format!("{stats:?}, {:?}", ended.stderr))?;
        ensure!((1..=MEMORY).contains(&memory.anonymous), "{}: {memory:?}", self.name);
        Ok(format!("{found}; at most {} KiB, {} without files", memory.resident, memory.anonymous))
    }

    fn is_as_expected(&self, stats: &Stats, arrived: &[Arrived], backend: &Backend) -> Result<String> {
        let (requests, pause, exported, stage) = self.expected;
        ensure!(arrived.len() == requests, "{} requests, not {requests}", arrived.len());
        let paused = arrived.get(1).map(|second| (second.at - arrived[0].at).as_secs_f64());
        if let (Some([least, most]), Some(paused)) = (pause, paused) {
            ensure!((least..=most).contains(&paused), "tried again after {paused} s, not {least} to {most}");
        }
        let lost = CALLS - exported;
        ensure!(stats.exported == exported && stats.lost_sum() == lost, "{exported} exported, {lost} lost");
        ensure!(stage.is_empty() || stats.lost_at(stage) == lost, "not {lost} at {stage}");
        let (rejected, lost) = if stage == "switched_off" { (0, lost) } else { (lost, 0) };
        let expected = Output { sent: exported, rejected, lost };
        ensure!(stats.outputs.get("otlp.traces") == Some(&expected), "not {expected:?}");
        let (taken, again) = backend.taken();
        ensure!(again == 0 && (exported == 0) == taken.is_empty(), "{} taken, {again} again", taken.len());
        let again = paused.map_or(String::new(), |paused| format!(", again after {paused:.1} s"));
        Ok(format!(
            "{}, {}: {} requests{again}, {exported} exported, {:?}",
            self.name, self.protocol, requests, expected
        ))
    }
}

/// Prevents what can be mended from being given up, what can't from being sent again, a backend's wish for patience from
/// being ignored, and either from being counted as something else.
#[test]
fn each_fault_is_answered_as_it_should() -> Result<()> {
    // Most of the time they wait.
    for some in faults().chunks(8) {
        thread::scope(|scope| {
            let under_way: Vec<_> = some.iter().map(|fault| (fault, scope.spawn(|| fault.happen()))).collect();
            under_way.into_iter().try_for_each(|(fault, outcome)| {
                let outcome = outcome.join().map_err(|_| anyhow!("a thread panicked"))?;
                println!("{}", outcome.with_context(|| format!("{}, {}", fault.name, fault.protocol))?);
                anyhow::Ok(())
            })
        })?;
    }
    Ok(())
}

/// Prevents a backend that comes up later than mqspan from getting nothing.
#[test]
fn nobody_listens_at_first() -> Result<()> {
    for protocol in ["grpc", "http/protobuf"] {
        let (mqspan, port) = (mqspan()?, backend::free_port()?);
        let options = ["--signals=traces", &own::pid()];
        let tracing = Tracing::start(command(&mqspan, &format!("http://127.0.0.1:{port}"), protocol, &options))?;
        own::opens("/mqspan-test-early", CALLS)?;
        wait::until("trouble", || {
            Ok(tracing.said().iter().any(|line| line.contains("can't be reached")).then_some(()))
        })?;
        let backend = Backend::start_at(port, |_, _| Answer::Taken)?;
        wait::until("the spans", || Ok((backend.taken().0.len() as u64 >= CALLS).then_some(())))?;
        tracing.stop()?.ok()?.said("delivering again")?;
        let (stats, (taken, again)) = (mqspan.stats()?, backend.taken());
        ensure!((taken.len() as u64, again, stats.lost_sum()) == (stats.exported, 0, 0), "{again} again: {stats:?}");
    }
    Ok(())
}

/// Prevents a wrong endpoint or certificate from leaving a user to guess: a line says why, and the next one has the command
/// that mends it.
#[test]
fn what_mends_it_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    for folder in [&ours, &theirs] {
        certificates::write(folder)?;
    }
    let secured = Backend::start_tls(&ours, "server", |_, _| Answer::Taken)?;
    let nobody = format!("http://127.0.0.1:{}", backend::free_port()?);
    let runs = ["grpc", "http/protobuf"].into_iter().flat_map(|protocol| {
        [
            (protocol, &*nobody, "Connection refused", ": mqspan run --endpoint http://HOST:43"),
            (protocol, "", "invalid peer certificate", ": OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem mqspan run"),
        ]
    });
    thread::scope(|scope| {
        let run = |(protocol, url, why, mend): (&str, &str, &str, &str)| -> Result<()> {
            let (mqspan, secured) = (mqspan()?, secured.endpoint());
            let endpoint = if url.is_empty() { &secured } else { url };
            let mut command = command(&mqspan, endpoint, protocol, &["--signals=traces"]);
            command.env("OTEL_EXPORTER_OTLP_CERTIFICATE", theirs.join("ca.pem"));
            command.args(["--", &mqspan.workload_arg(), "flat", "--calls=1"]);
            let said = Ended::of(finish(command)?).ok()?.stderr;
            let is_said = said.windows(2).any(|lines| {
                lines[0].starts_with("mqspan: otlp.traces: ")
                    && [endpoint, why].iter().all(|word| lines[0].contains(word))
                    && lines[1].starts_with("  ")
                    && lines[1].contains(mend)
            });
            ensure!(is_said, "{protocol}, {endpoint}: {said:#?}");
            Ok(())
        };
        let runs: Vec<_> = runs.map(|of| scope.spawn(move || run(of))).collect();
        runs.into_iter().try_for_each(|run| run.join().map_err(|_| anyhow!("a run panicked"))?)
    })
}

/// Prevents OTLP/HTTP from passing by the proxy that leads to the backend, from asking one that is not to be asked, and
/// OTLP/gRPC from being told to strangers.
#[test]
fn by_the_proxy_of_the_environment() -> Result<()> {
    let taking = || Backend::start(|_, _| Answer::Taken);
    let send = |endpoint: &str, protocol: &str, proxy: &Backend, not_for: &str| -> Result<()> {
        let mqspan = mqspan()?;
        let mut command = command(&mqspan, endpoint, protocol, &["--signals=traces"]);
        command.env("HTTP_PROXY", proxy.endpoint()).env("NO_PROXY", not_for);
        command.args(["--", &mqspan.workload_arg(), "flat", "--calls", &CALLS.to_string()]);
        Ended::of(finish(command)?).ok()?;
        let stats = mqspan.stats()?;
        ensure!(stats.exported == CALLS, "{endpoint}, {protocol}: {stats:?}");
        Ok(())
    };
    let proxy = taking()?;
    for protocol in ["http/protobuf", "http/json"] {
        send("http://backend.invalid:4318", protocol, &proxy, "127.0.0.1")?;
    }
    ensure!(proxy.taken().0.len() as u64 == 2 * CALLS, "by the proxy: {:?}", proxy.arrived());
    let (backend, unused) = (taking()?, taking()?);
    send(&backend.endpoint(), "http/protobuf", &unused, "127.0.0.1")?;
    send(&backend.endpoint(), "grpc", &unused, "")?;
    ensure!(backend.taken().0.len() as u64 == 2 * CALLS && unused.arrived().is_empty(), "{:?}", unused.arrived());
    Ok(())
}

/// Prevents a backend that hangs from keeping mqspan or its command, from growing its memory without bound, and from
/// hiding what was lost.
#[test]
fn a_backend_that_hangs_for_ever() -> Result<()> {
    for protocol in ["grpc", "http/protobuf"] {
        let (mqspan, backend) = (mqspan()?, Backend::start(|_, _| Answer::Nothing)?);
        let tracing = Tracing::start(command(&mqspan, &backend.endpoint(), protocol, &["--signals=traces,logs"]))?;
        let start = Instant::now();
        workload::run(&mqspan.workload(), &["flat", "--calls=300000"])?;
        let (memory, took) = (Memory::of(tracing.pid())?, start.elapsed());
        let start = Instant::now();
        let ended = tracing.stop()?.ok()?;
        let (stats, ending) = (mqspan.stats()?, start.elapsed());
        println!("{protocol}: {memory:?} KiB; 300000 calls in {took:?}, the end in {ending:?}; {stats:?}");
        ensure!(stats.exported == 0 && stats.lost_sum() >= 300_000, "{stats:?}");
        ensure!(memory.anonymous <= MEMORY, "{memory:?}");
        ensure!(ending <= FLUSH + Duration::from_secs(2), "the end took {ending:?}");
        ended.said("lost")?;
    }
    Ok(())
}

/// Prevents a backend that takes one signal only from costing the other, or from being asked for ever.
#[test]
fn a_signal_that_is_not_taken() -> Result<()> {
    for (protocol, answer) in
        [("http/protobuf", Answer::Http(404, None)), ("grpc", Answer::Grpc(Code::Unimplemented, None))]
    {
        let mqspan = mqspan()?;
        let script = move |_: usize, path: &str| match path.to_lowercase().contains("metrics") {
            true => answer.clone(),
            false => Answer::Taken,
        };
        let backend = Backend::start(script)?;
        let mut command = command(&mqspan, &backend.endpoint(), protocol, &["--signals=traces,metrics"]);
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "200");
        command.args(["--", "bash", "-c", "for n in 1 2 3 4; do \"$0\" flat --calls=5; sleep 0.3; done"]);
        command.arg(mqspan.workload_arg());
        let ended = Ended::of(finish(command)?).ok()?;
        let (stats, arrived) = (mqspan.stats()?, backend.arrived());
        let asked = arrived.iter().filter(|request| request.path.to_lowercase().contains("metrics")).count();
        ensure!(asked == 1 && stats.exported == CALLS && stats.lost_sum() == 0, "{asked} requests: {stats:?}");
        let metrics = stats.outputs.get("otlp.metrics").context("no metrics")?;
        ensure!(metrics.sent == 0 && metrics.lost > 0, "{stats:?}");
        let said = ended.stderr.iter().filter(|line| line.contains("does not take metrics")).count();
        ensure!(said == 1, "said {said} times: {:?}", ended.stderr);
        ended.said("otlp.metrics: ")?;
    }
    Ok(())
}

/// A run with a spool that makes some calls, each in a request of its own, while the backend answers as `script` says by
/// the seconds since the first request; at `sighup` it is told to try again. What arrived, and the counters.
fn spooled(
    script: impl Fn(f64) -> Answer + Send + Sync + 'static,
    protocol: &str,
    sighup: Duration,
    enough: impl Fn(&Backend) -> bool,
) -> Result<(Vec<Arrived>, Stats)> {
    let first = Arc::new(OnceLock::new());
    let asked = first.clone();
    let backend = Backend::start(move |_, _| script(asked.get_or_init(Instant::now).elapsed().as_secs_f64()))?;
    let mqspan = mqspan()?;
    let spool = format!("--spool={}", mqspan.file("spool").display());
    let mut command = command(&mqspan, &backend.endpoint(), protocol, &["--signals=traces", &spool]);
    // It ends as it is told to, with 0.
    let script = r#"trap 'exit 0' INT; "$0" flat --calls "$1"; while :; do sleep 0.05; done"#;
    command.args(["--", "bash", "-c", script, &mqspan.workload_arg(), &CALLS.to_string()]);
    let tracing = Tracing::start(command)?;
    let is_time = || first.get().is_some_and(|first: &Instant| first.elapsed() >= sighup);
    wait::until("the time to try again", || Ok(is_time().then_some(())))?;
    tracing.signal(nix::sys::signal::Signal::SIGHUP)?;
    wait::until("what is to arrive", || Ok(enough(&backend).then_some(())))?;
    tracing.stop()?.ok()?;
    Ok((backend.stop(), mqspan.stats()?))
}

/// Prevents requests on disk from being given up for what the backend says of itself: 0 of 40 calls arrived after a 404, 401
/// or 500 that was over in 4 s.
#[test]
fn what_a_backend_says_of_itself_costs_nothing_with_a_spool() -> Result<()> {
    let cases = [
        ("http/protobuf", Answer::Http(404, None)),
        ("http/protobuf", Answer::Http(401, None)),
        ("http/json", Answer::Http(403, None)),
        ("http/protobuf", Answer::Http(500, None)),
        ("http/protobuf", Answer::Page),
        ("grpc", Answer::Grpc(Code::Unauthenticated, None)),
        ("grpc", Answer::Grpc(Code::Internal, None)),
        ("grpc", Answer::Grpc(Code::Unimplemented, None)),
    ];
    let runs = cases.into_iter().map(|(protocol, answer)| {
        thread::spawn(move || -> Result<()> {
            // Down first, so that everything is on disk; then in trouble; then well.
            let script = {
                let answer = answer.clone();
                move |at| match at {
                    ..4.0 => Answer::Cut,
                    ..9.0 => answer.clone(),
                    _ => Answer::Taken,
                }
            };
            let taken = |backend: &Backend| backend.arrived().iter().any(|request| request.taken);
            let (_, stats) = spooled(script, protocol, Duration::from_secs(10), taken)
                .with_context(|| format!("{protocol}: {answer:?}"))?;
            ensure!(stats.exported == CALLS && stats.lost_sum() == 0, "{protocol}: {answer:?}: {stats:?}");
            Ok(())
        })
    });
    runs.collect::<Vec<_>>().into_iter().try_for_each(|run| run.join().map_err(|_| anyhow!("a run panicked"))?)
}

/// Prevents a backend's wish from being ignored where there is a spool: 3,984 requests came in 7 s to one that asked for 400 s.
#[test]
fn a_long_wish_is_kept_to_with_a_spool() -> Result<()> {
    let start = Instant::now();
    let script = |_| Answer::Http(503, Some(400));
    // Time enough for thousands.
    let enough = move |_: &Backend| start.elapsed() > Duration::from_secs(8);
    let (arrived, stats) = spooled(script, "http/protobuf", Duration::from_millis(1), enough)?;
    // The first, what was under way beside it, and one try after SIGHUP.
    ensure!((1..=6).contains(&arrived.len()), "{} requests", arrived.len());
    ensure!(stats.lost_sum() == 0, "{stats:?}");
    Ok(())
}

/// Prevents an output that takes nothing from costing the records of another: 2,680 calls were lost at the ring while the
/// reader waited for the queue of metrics.
#[test]
fn an_output_that_hangs_beside_a_file() -> Result<()> {
    let hangs = Backend::start(|_, _| Answer::Nothing)?;
    for signals in ["--signals=traces,metrics", "--signals=traces"] {
        let mqspan = mqspan()?;
        let spans = mqspan.to_file("spans");
        let mut command = command(&mqspan, &hangs.endpoint(), "http/protobuf", &[signals, &spans]);
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "50");
        // No burst is more than the kernel's ring holds; each is written before the next.
        let script = r#"for burst in 1 2 3 4; do
            "$0" flat --calls 8000
            for try in {1..60}; do
                [ "$(grep -o '"spanId"' "$1" | wc -l)" -ge $((burst * 8000)) ] && break
                sleep 0.5
            done
        done"#;
        let file = mqspan.file("spans").display().to_string();
        command.args(["--", "bash", "-c", script, &mqspan.workload_arg(), &file]);
        Tracing::start(command)?.end()?.ok()?;
        let (stats, found) = (mqspan.stats()?, otlp::spans(&mqspan.file("spans"))?.len() as u64);
        // Other tests' calls are filtered.
        let wanted = stats.captured - stats.filtered;
        ensure!(found == wanted && stats.exported == found, "{signals}: {found} spans in the file: {stats:?}");
        ensure!(stats.lost_sum() == 0, "{signals}: {stats:?}");
    }
    Ok(())
}

/// Prevents a host without certificate authorities from refusing to send where no TLS is used.
#[test]
fn plain_http_without_authorities() -> Result<()> {
    for protocol in ["http/protobuf", "grpc"] {
        let backend = Backend::start(|_, _| Answer::Taken)?;
        let mqspan = mqspan()?;
        let mut command = command(&mqspan, &backend.endpoint(), protocol, &["--signals=traces"]);
        // mqspan's own exporters, too.
        command
            .env_remove("OTEL_SDK_DISABLED")
            .env("SSL_CERT_FILE", "/nonexistent")
            .env("SSL_CERT_DIR", "/nonexistent");
        command.args(["--", &mqspan.workload_arg(), "flat", "--calls", "3"]);
        Tracing::start(command)?.end()?.ok().context(protocol)?;
        ensure!(mqspan.stats()?.exported == 3, "{protocol}: {:?}", mqspan.stats()?);
    }
    Ok(())
}
