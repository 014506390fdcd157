//! Clerks take orders and put them into a POSIX message queue, billers take them from it: each a thread, each order and
//! each bill a span, made with `tracing` and exported by OTLP. Beside mqspan the calls on the queue appear inside these
//! spans. [`publish`] is what that takes.

mod publish;

use std::{fs::File, io::Write, sync::Mutex, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use nix::{
    errno::Errno,
    mqueue::{MQ_OFlag, MqAttr, MqdT, mq_close, mq_open, mq_receive, mq_send, mq_unlink},
    sys::stat::Mode,
    unistd::gettid,
};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::info_span;
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

const MESSAGE_SIZE: i64 = 64;
/// The empty message: there are no more orders for the biller who gets it.
const CLOSED: &[u8] = b"";
const AUDIT: &str = "/audit";

/// Clerks and billers, whose calls on a queue appear inside their spans.
#[derive(Parser)]
struct Args {
    /// Orders to take, by all clerks together
    #[arg(long, default_value_t = 20)]
    orders: usize,

    /// Clerks, and as many billers
    #[arg(long, default_value_t = 2)]
    threads: usize,

    /// Milliseconds before the first order, and between two orders of a clerk
    #[arg(long, value_name = "MS", default_values_t = [1000, 50], num_args = 2)]
    pauses: Vec<u64>,

    /// The queue
    #[arg(long, default_value = "/thread-context")]
    queue: String,

    /// Write the span of each call on the queue to this file: call, thread, trace id, span id
    #[arg(long, value_name = "PATH")]
    print: Option<std::path::PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    publish::start();
    // The exporter's connection lives on it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _guard = runtime.enter();
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).build();
    let tracer = provider.tracer("thread-context");
    tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer)).init();
    let done = work(&args);
    // A backend that is not there is no reason to fail.
    if let Err(error) = provider.shutdown() {
        eprintln!("thread-context: spans were not delivered: {error}");
    }
    done
}

fn work(args: &Args) -> Result<()> {
    let record = Record(args.print.as_ref().map(File::create).transpose()?.map(Mutex::new));
    let attributes = MqAttr::new(0, 10, MESSAGE_SIZE, 0);
    let queue =
        mq_open(&*args.queue, MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR, Mode::S_IRUSR | Mode::S_IWUSR, Some(&attributes))
            .with_context(|| args.queue.clone())?;
    let [first, between] = [0, 1].map(|at| Duration::from_millis(args.pauses.get(at).copied().unwrap_or_default()));
    // mqspan looks at a process when it makes its first call, and knows soon after where it publishes.
    thread::sleep(first);
    let result = thread::scope(|scope| {
        let clerks: Vec<_> = (0..args.threads)
            .map(|clerk| {
                let numbers = (clerk..args.orders).step_by(args.threads);
                let (name, record) = (&*args.queue, &record);
                scope.spawn(move || take_orders(name, numbers, between, record))
            })
            .collect();
        let billers: Vec<_> = (0..args.threads).map(|_| scope.spawn(|| bill(&queue, &record))).collect();
        let joined = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        };
        let taken = clerks.into_iter().try_for_each(joined);
        for _ in 0..args.threads {
            mq_send(&queue, CLOSED, 0)?;
        }
        billers.into_iter().try_for_each(joined).and(taken)
    });
    mq_unlink(&*args.queue)?;
    result
}

fn take_orders(name: &str, numbers: impl Iterator<Item = usize>, pause: Duration, record: &Record) -> Result<()> {
    for number in numbers {
        let span = info_span!("take order", number).entered();
        // As one who takes an order now and then does.
        let queue = mq_open(name, MQ_OFlag::O_WRONLY, Mode::empty(), None)?;
        record.write("send")?;
        mq_send(&queue, format!("order {number}").as_bytes(), 0)?;
        mq_close(queue)?;
        span.exit();
        thread::sleep(pause);
    }
    Ok(())
}

fn bill(queue: &MqdT, record: &Record) -> Result<()> {
    let mut order = [0; MESSAGE_SIZE as usize];
    loop {
        let _span = info_span!("bill").entered();
        record.write("receive")?;
        let mut priority = 0;
        let length = loop {
            match mq_receive(queue, &mut order, &mut priority) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        if &order[..length] == CLOSED {
            return Ok(());
        }
        // An auditor hears of every bill, where there is one.
        match mq_open(AUDIT, MQ_OFlag::O_WRONLY, Mode::empty(), None) {
            Ok(audit) => mq_send(&audit, &order[..length], 0).and(mq_close(audit))?,
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error).context(AUDIT),
        }
    }
}

/// Which span each call was made in, for mqspan's tests.
struct Record(Option<Mutex<File>>);

impl Record {
    fn write(&self, call: &str) -> Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        let context = opentelemetry::Context::current();
        let span = context.span().span_context().clone();
        let line = format!("{call}\t{}\t{}\t{}\n", gettid(), span.trace_id(), span.span_id());
        let mut file = file.lock().map_err(|_| anyhow!("a thread panicked"))?;
        Ok(file.write_all(line.as_bytes())?)
    }
}
