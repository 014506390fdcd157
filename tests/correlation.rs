//! The application's own spans: what each of mqspan's hangs under. Publishers are the example (by a writer that is not
//! ours, libdd-otel-thread-ctx) and C programs built in every way that thread-local storage is reached. Needs root,
//! tracefs and a C compiler.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys::bpf_map_create_opts};
use nix::{
    mount::{MsFlags, mount},
    mqueue::{MQ_OFlag, MqAttr},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};
use opentelemetry_proto::tonic::{metrics::v1::metric::Data, trace::v1::Span};
use support::{
    fed::Fed,
    otlp::{self, Record, of_operation},
    program::{Ended, Mqspan, finish, without_otel},
    wait,
};

const SAMPLED_REMOTE: u32 = 0x301;
const TRACE: [u8; 16] = [0xab; 16];
const SPAN: [u8; 8] = [0xcd; 8];
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn mqspan() -> Result<Mqspan> {
    Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))
}

fn example() -> Result<String> {
    let path = Path::new(env!("CARGO_BIN_EXE_mqspan")).with_file_name("thread-context");
    ensure!(path.exists(), "{}: cargo build --workspace first", path.display());
    Ok(path.display().to_string())
}

/// For each thread and call, the spans in which it was made, in their order.
type Truth = BTreeMap<(String, u32), Vec<(String, String)>>;

fn truth(path: &Path) -> Result<Truth> {
    let mut truth = Truth::new();
    for line in fs::read_to_string(path)?.lines() {
        let [call, tid, trace, span] = line.split('\t').collect::<Vec<_>>()[..] else { bail!("{line}") };
        truth.entry((format!("mq_timed{call}"), tid.parse()?)).or_default().push((trace.into(), span.into()));
    }
    Ok(truth)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn method(link: &opentelemetry_proto::tonic::trace::v1::span::Link) -> Result<String> {
    let attributes = otlp::attributes(&link.attributes)?;
    Ok(otlp::text(&attributes, "posix_mq.link.method").context("a link without a method")?.into())
}

/// The application's span that this one hangs under or links to, and how; none at a root.
fn inside(span: &Span) -> Result<Option<(String, String, String)>> {
    if !span.parent_span_id.is_empty() {
        ensure!(span.flags == SAMPLED_REMOTE, "{span:?}");
        return Ok(Some(("parent".into(), hex(&span.trace_id), hex(&span.parent_span_id))));
    }
    for link in &span.links {
        let method = method(link)?;
        if !["message", "sequence"].contains(&&*method) {
            return Ok(Some((method, hex(&link.trace_id), hex(&link.span_id))));
        }
    }
    Ok(None)
}

/// Prevents a sidecar from missing the threads' spans where it shares the pod's pid namespace, which is not the host's.
#[test]
fn a_sidecar_in_a_pod() -> Result<()> {
    let mqspan = mqspan()?;
    let (record, queue) = (mqspan.file("truth"), queue_of("pod"));
    let script = r#"
        "$0" run --signals=traces --queue "$4" "$3" 2> "$2/said" & tracing=$!
        until grep -q tracing "$2/said"; do sleep 0.05; done
        OTEL_TRACES_SAMPLER=always_on "$1" --orders=50 --threads=2 --pauses 2000 1 --print "$2/truth" --queue "$4"
        kill -INT "$tracing"
        wait "$tracing""#;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]);
    command.arg(mqspan.path()).arg(example()?).arg(mqspan.file("")).arg(mqspan.to_file("spans")).arg(&queue);
    without_otel(&mut command);
    command.stdin(Stdio::null());
    Ended::of(finish(command)?).ok()?;
    // Thread ids in the truth are those of the pod: what each thread did is told apart by its spans alone.
    let mut expected: Vec<_> = truth(&record)?.into_values().flatten().collect();
    let mut found = Vec::new();
    for span in otlp::spans(&mqspan.file("spans"))? {
        let passes = matches!(span.text("messaging.operation.name"), Some("mq_timedsend" | "mq_timedreceive"));
        if let Some((how, trace, id)) = inside(&span.body)?.filter(|_| passes) {
            ensure!(how == "parent", "{how}: {span:?}");
            found.push((trace, id));
        }
    }
    expected.sort();
    found.sort();
    ensure!(!expected.is_empty() && found == expected, "{} of {} in their spans", found.len(), expected.len());
    Ok(())
}

/// Runs the example for 1,000 orders by four clerks and four billers; how many calls stand where they belong, by how.
fn run_example(mqspan: &Mqspan, sampler: &str) -> Result<BTreeMap<String, usize>> {
    let record = mqspan.file("truth");
    let (file, print) = (mqspan.to_file("spans"), record.display().to_string());
    let queue = format!("--queue=/correlation-{sampler}-{}", std::process::id());
    let (variable, program) = (format!("OTEL_TRACES_SAMPLER={sampler}"), example()?);
    let options = ["--orders=1000", "--threads=4", "--pauses", "2000", "1", "--print", &print, &queue];
    let command = [&["--signals=traces", &file, "--", "env", &variable, &program][..], &options].concat();
    mqspan.run_counted(&command)?;
    ensure!(mqspan.stats()?.lost_sum() == 0, "the truth can't be joined with records that were lost");
    let spans = otlp::spans(&mqspan.file("spans"))?;
    let truth = truth(&record)?;
    let mut found = BTreeMap::new();
    let mut made: HashMap<(String, u32), Vec<Record<Span>>> = HashMap::new();
    for operation in ["mq_timedsend", "mq_timedreceive"] {
        for span in of_operation(spans.clone(), operation) {
            made.entry((operation.into(), span.tid()?)).or_default().push(span);
        }
    }
    for ((operation, tid), mut spans) in made {
        spans.sort_by_key(|span| span.body.start_time_unix_nano);
        // The main thread tells the billers that it is over, outside of any span.
        let Some(expected) = truth.get(&(operation.clone(), tid)) else {
            for span in &spans {
                ensure!(inside(&span.body)?.is_none(), "{operation} outside of any span: {span:?}");
                *found.entry("root".to_owned()).or_default() += 1;
            }
            continue;
        };
        ensure!(spans.len() == expected.len(), "{operation} of {tid}: {} and {}", spans.len(), expected.len());
        for (span, (trace, id)) in spans.iter().zip(expected) {
            let (how, found_trace, found_id) =
                inside(&span.body)?.with_context(|| format!("not in {trace}/{id}: {span:?}"))?;
            ensure!((&found_trace, &found_id) == (trace, id), "{span:?} is not in {trace}/{id}");
            *found.entry(how).or_default() += 1;
        }
    }
    println!("{sampler}: {found:?}");
    Ok(found)
}

/// Prevents a call from hanging under another span than the one that its thread was in, or under none.
#[test]
fn a_thousand_requests_under_their_own_spans() -> Result<()> {
    let found = run_example(&mqspan()?, "always_on")?;
    ensure!(found == BTreeMap::from([("parent".into(), 2004), ("root".into(), 4)]), "{found:?}");
    Ok(())
}

/// Prevents spans of a trace that nobody keeps from being lost with it.
#[test]
fn unsampled_spans_are_linked() -> Result<()> {
    let found = run_example(&mqspan()?, "always_off")?;
    ensure!(found == BTreeMap::from([("thread_context".into(), 2004), ("root".into(), 4)]), "{found:?}");
    Ok(())
}

/// Prevents calls that a kept trace needs from being left out for the rate's sake.
#[test]
fn calls_inside_sampled_spans_are_not_limited() -> Result<()> {
    for (sampler, is_limited) in [("always_on", false), ("always_off", true)] {
        let mqspan = mqspan()?;
        let queue = format!("--queue=/correlation-rate-{}", std::process::id());
        let (variable, program) = (format!("OTEL_TRACES_SAMPLER={sampler}"), example()?);
        // More sends than the rate, and no more opens, which are exempt always, than ten times as many.
        let options = ["--orders=40", "--threads=4", "--pauses", "2000", "1", &queue];
        let file = mqspan.to_file("spans");
        let traced = ["--signals=traces", "--max-rate=10", &file, "--", "env", &variable, &program];
        mqspan.run_counted(&[&traced[..], &options].concat())?;
        let stats = mqspan.stats()?;
        ensure!((stats.limited > 0) == is_limited, "{sampler}: {stats:?}");
    }
    Ok(())
}

/// OBI's map where OBI pins it, in a file system that only this thread and what it starts can see.
fn pin_obi_map(value_size: u32) -> Result<MapHandle> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)?;
    fs::create_dir("/sys/fs/bpf/otel")?;
    let options = bpf_map_create_opts { sz: size_of::<bpf_map_create_opts>() as u64, ..Default::default() };
    let mut map = MapHandle::create(MapType::LruHash, Some("traces_ctx_v1"), 8, value_size, 128, &options)?;
    map.pin("/sys/fs/bpf/otel/traces_ctx_v1")?;
    Ok(map)
}

/// Prevents what OBI knows of a thread from being left out, and a map of another form from being taken for OBI's.
#[test]
fn spans_that_obi_knows_are_linked() -> Result<()> {
    let name = queue_of("obi");
    let pid = std::process::id();
    for is_obis in [true, false] {
        let mqspan = mqspan()?;
        let map = pin_obi_map(if is_obis { 24 } else { 32 })?;
        let thread = u64::from(pid) << 32 | u64::from(nix::unistd::gettid().as_raw().cast_unsigned());
        if is_obis {
            map.update(&thread.to_ne_bytes(), &[&TRACE[..], &SPAN].concat(), MapFlags::ANY)?;
        }
        let tracing = mqspan.trace(["--signals=traces", &format!("--pid={pid}"), &mqspan.to_file("spans")])?;
        let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR;
        let queue = nix::mqueue::mq_open(&*name, flags, Mode::S_IRUSR | Mode::S_IWUSR, Some(&MqAttr::new(0, 5, 8, 0)))?;
        nix::mqueue::mq_close(queue)?;
        nix::mqueue::mq_unlink(&*name)?;
        let ended = tracing.stop()?.ok()?;
        let mut spans = otlp::spans(&mqspan.file("spans"))?;
        spans.retain(|span| span.text("messaging.destination.name") == Some(&name));
        ensure!(spans.len() == 2, "{spans:?}");
        for span in spans {
            let expected = is_obis.then(|| ("obi".to_owned(), hex(&TRACE), hex(&SPAN)));
            ensure!(inside(&span.body)? == expected, "{span:?}");
        }
        ensure!(ended.said("is not read").is_ok() != is_obis, "{:?}", ended.stderr);
    }
    Ok(())
}

/// Compiles tests/correlation/publisher.c in this way.
fn compile(mqspan: &Mqspan, name: &str, options: &[&str]) -> Result<PathBuf> {
    let output = mqspan.file(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/correlation/publisher.c");
    let status = Command::new("cc").arg("-O1").arg("-o").arg(&output).arg(source).args(options).status()?;
    ensure!(status.success(), "{name}: {options:?}");
    Ok(output)
}

/// What each program that runs beside the others is called, and the words of its command.
type Programs = Vec<(&'static str, Vec<String>)>;

/// Runs programs side by side under mqspan; the spans of each, by its queue's name, in their order.
fn run(mqspan: &Mqspan, programs: &Programs) -> Result<BTreeMap<String, Vec<Span>>> {
    let script: String =
        programs.iter().map(|(_, words)| format!("{} & pids=\"$pids $!\"; ", words.join(" "))).collect();
    let script = format!("{script} for pid in $pids; do wait $pid || exit 1; done");
    mqspan.run_counted(&["--signals=traces,metrics", &mqspan.to_file("spans"), "--", "bash", "-c", &script])?;
    let mut spans: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in otlp::spans(&mqspan.file("spans"))? {
        let name = span.text("messaging.destination.name").context("no name")?.to_owned();
        spans.entry(name).or_default().push(span.body);
    }
    for spans in spans.values_mut() {
        spans.sort_by_key(|span| span.start_time_unix_nano);
    }
    ensure!(spans.len() == programs.len(), "{:?}", spans.keys());
    Ok(spans)
}

fn queue_of(name: &str) -> String {
    format!("/correlation-{name}-{}", std::process::id())
}

/// Prevents a publisher from going unseen for how its compiler and linker reach thread-local storage.
#[test]
fn every_model_of_thread_local_storage() -> Result<()> {
    let mqspan = mqspan()?;
    let program = compile(&mqspan, "program", &["-DPUBLISHES", "-rdynamic"])?.display().to_string();
    let fixed = compile(&mqspan, "fixed", &["-DPUBLISHES", "-rdynamic", "-no-pie"])?.display().to_string();
    let loader = compile(&mqspan, "loader", &[])?.display().to_string();
    let folder = mqspan.file("").display().to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut programs: Programs = vec![
        ("local-exec", words(&[&program, "sampled", &queue_of("local-exec")])),
        ("local-exec-fixed", words(&[&fixed, "sampled", &queue_of("local-exec-fixed")])),
    ];
    let models: &[(&str, &str, &str)] = match cfg!(target_arch = "x86_64") {
        true => &[
            ("initial-exec", "late-initial-exec", "-ftls-model=initial-exec"),
            ("dtpmod", "late-dtpmod", "-mtls-dialect=gnu"),
            ("tlsdesc", "late-tlsdesc", "-mtls-dialect=gnu2"),
        ],
        false => &[
            ("initial-exec", "late-initial-exec", "-ftls-model=initial-exec"),
            ("dtpmod", "late-dtpmod", "-mtls-dialect=trad"),
            ("tlsdesc", "late-tlsdesc", "-mtls-dialect=desc"),
        ],
    };
    for (linked, late, option) in models {
        let name = format!("lib{linked}.so");
        let library = compile(&mqspan, &name, &["-DPUBLISHES", "-DLIBRARY", "-shared", "-fPIC", option])?;
        let library = library.display().to_string();
        let beside = compile(&mqspan, linked, &["-Wl,--no-as-needed", &library, &format!("-Wl,-rpath,{folder}")])?
            .display()
            .to_string();
        programs.push((linked, words(&[&beside, "sampled", &queue_of(linked)])));
        programs.push((late, words(&[&loader, "sampled", &queue_of(late), &library])));
    }
    let spans = run(&mqspan, &programs)?;
    for (name, _) in &programs {
        let spans = &spans[&queue_of(name)];
        let mut under = 0;
        for span in spans {
            let found = inside(span)?;
            let right = ("parent".into(), hex(&TRACE), hex(&SPAN));
            ensure!(found.is_none() || found == Some(right), "{name}: {found:?}");
            under += usize::from(found.is_some());
        }
        println!("{name}: {under} of {}", spans.len());
        let last = spans.last().context("no span")?;
        ensure!(inside(last)?.is_some() && under > spans.len() / 2, "{name}: {under} of {}", spans.len());
    }
    Ok(())
}

/// Prevents what an application publishes from being believed where it is none, from costing the call its record, and
/// from outliving its program.
#[test]
fn what_is_no_context_is_counted() -> Result<()> {
    let mqspan = mqspan()?;
    let program = compile(&mqspan, "program", &["-DPUBLISHES", "-rdynamic"])?.display().to_string();
    let of = |how: &'static str| (how, vec![program.clone(), how.to_owned(), queue_of(how)]);
    let environment = vec!["env".into(), format!("TRACEPARENT={TRACEPARENT}"), program.clone(), "again".into()];
    let environment = [environment, vec![queue_of("environment")]].concat();
    let programs: Programs = vec![of("invalid"), of("zero"), of("unmapped"), of("exec"), ("environment", environment)];
    let spans = run(&mqspan, &programs)?;
    for name in ["invalid", "zero", "unmapped"] {
        let spans = &spans[&queue_of(name)];
        ensure!(spans.len() == 62, "{name}: {}", spans.len());
        for span in spans {
            ensure!(inside(span)?.is_none(), "{name}: {span:?}");
        }
    }
    let linked = ("environment".into(), "0af7651916cd43dd8448eb211c80319c".into(), "b7ad6b7169203331".into());
    for span in &spans[&queue_of("environment")] {
        ensure!(inside(span)?.as_ref() == Some(&linked), "{span:?}");
    }
    let exec = &spans[&queue_of("exec")];
    ensure!(exec.len() == 1 + 60 + 1 + 60 + 1, "{}", exec.len());
    ensure!(inside(&exec[60])?.is_some(), "before the exec: {:?}", exec[60]);
    for span in &exec[61..] {
        ensure!(inside(span)?.is_none(), "after the exec: {span:?}");
    }
    let failures = failures(&mqspan.file("spans"))?;
    println!("{failures:?}");
    for reason in ["invalid", "zero_id", "unreadable"] {
        ensure!(failures.get(reason).is_some_and(|failures| *failures > 30), "{failures:?}");
    }
    Ok(())
}

/// `mqspan.context.failures` by reason, as it was told last.
fn failures(path: &Path) -> Result<BTreeMap<String, i64>> {
    let mut failures = BTreeMap::new();
    for request in otlp::metrics(path)? {
        let scopes = request.resource_metrics.into_iter().flat_map(|of| of.scope_metrics);
        for metric in scopes.flat_map(|of| of.metrics).filter(|metric| metric.name == "mqspan.context.failures") {
            let Some(Data::Sum(sum)) = metric.data else { bail!("{:?}", metric.data) };
            for point in sum.data_points {
                let attributes = otlp::attributes(&point.attributes)?;
                let reason = otlp::text(&attributes, "reason").context("no reason")?.to_owned();
                let Some(opentelemetry_proto::tonic::metrics::v1::number_data_point::Value::AsInt(value)) = point.value
                else {
                    bail!("{point:?}")
                };
                failures.insert(reason, value);
            }
        }
    }
    Ok(failures)
}

/// How often a file of spans is looked through.
const LOOK: Duration = Duration::from_millis(100);

/// The names that a process's spans so far stand under, each with how many these are.
fn services(path: &Path, pid: u32) -> Result<BTreeMap<String, usize>> {
    let mut names = BTreeMap::new();
    // The file's last line may be half written.
    for span in otlp::spans(path).unwrap_or_default() {
        if span.pid()? == pid {
            let name = otlp::text(&span.origin.resource, "service.name").context("no name")?;
            *names.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok(names)
}

/// Runs a process that is hostile in this way beside others that publish who they are: those must stand under their names,
/// from their first calls on. Returns by which names the hostile one went, and what mqspan said.
fn beside(how: &str) -> Result<(BTreeMap<String, usize>, Ended)> {
    // One at a time: each mqspan sees the processes of all tests.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mqspan = mqspan()?;
    let spans = mqspan.file("spans");
    let (hostiles, others) = ("--queue=/workload-hostile", "--queue=/workload-published");
    let tracing = mqspan.trace_counted(&["--signals=traces,metrics", hostiles, others, &mqspan.to_file("spans")])?;
    let folder = mqspan.file("mounted");
    fs::create_dir(&folder)?;
    let mut hostile = Command::new(mqspan.workload());
    hostile.args(["hostile", how]).arg(&folder).env("OTEL_SERVICE_NAME", "by-environment");
    let hostile = Fed::start(hostile, "hostile")?;
    let mut others = Vec::new();
    for number in 0..10 {
        let name = format!("other-{number}");
        let mut other = Command::new(mqspan.workload());
        other.args(["publish", &name]).env("OTEL_SERVICE_NAME", "wrong");
        let mut other = Fed::start(other, "published")?;
        other.go_on()?;
        let found = wait::until_every(LOOK, "its span", || {
            Ok(Some(services(&spans, other.pid())?).filter(|of| !of.is_empty()))
        })?;
        ensure!(found.keys().eq([&name]), "{how}: {found:?}");
        others.push((name, other));
    }
    for (_, other) in &mut others {
        other.go_on()?;
    }
    for (name, other) in others {
        let found = wait::until_every(LOOK, "the spans of all", || {
            let found = services(&spans, other.pid())?;
            Ok((found.values().sum::<usize>() >= 2).then_some(found))
        })?;
        ensure!(found.keys().eq([&name]), "{how}: {found:?}");
        other.end()?;
    }
    let names = services(&spans, hostile.pid())?;
    // With the hostile one still there: it must not hold up the end.
    let ended = tracing.stop()?.ok()?;
    ensure!(mqspan.stats()?.lost_sum() == 0, "{how}: {:?}", mqspan.stats()?);
    hostile.end()?;
    Ok((names, ended))
}

/// Prevents a process whose memory is served by another, and never comes, from being waited for by any other, or by the end.
#[test]
fn pages_that_never_come() -> Result<()> {
    let (names, ended) = beside("fuse")?;
    ensure!(names.contains_key("by-environment"), "{names:?}");
    ended.said("it lies in the mapping of a file")?;
    Ok(())
}

/// Prevents a process that holds the lock of its memory for ever from being waited for by any other, or by the end.
#[test]
fn a_lock_that_is_held() -> Result<()> {
    let (names, _) = beside("lock")?;
    ensure!(names.contains_key("by-environment"), "{names:?}");
    Ok(())
}

/// Prevents a process with as many mappings as there may be from being looked through while others wait.
#[test]
fn sixty_thousand_mappings() -> Result<()> {
    let (names, _) = beside("mappings")?;
    // Its own context is found behind or before all of them, in time or later.
    ensure!(names.keys().any(|name| name == "hostile" || name == "by-environment"), "{names:?}");
    Ok(())
}

/// Prevents a process that publishes all the time from being read all the time.
#[test]
fn a_loop_of_publications() -> Result<()> {
    let (names, _) = beside("prctl")?;
    ensure!(names.contains_key("hostile") || names.contains_key("by-environment"), "{names:?}");
    Ok(())
}

/// Prevents a context with numbers that JSON does not have from costing others their spans.
#[test]
fn numbers_that_json_does_not_have() -> Result<()> {
    let (names, _) = beside("numbers")?;
    ensure!(names.contains_key("by-environment"), "{names:?}");
    Ok(())
}
