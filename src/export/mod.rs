//! Delivery: what the pipeline hands over goes to each output, and what becomes of it is counted. [`batch`] makes
//! requests, [`metrics`] encodes those of metrics, [`queue`] bounds them, [`sender`] delivers them over OTLP through [`client`], [`retry`] and [`reply`],
//! `mending` has the command that mends a failure, what can't be delivered yet waits in the [`spool`]; [`writer`] writes files and the console, [`hangup`] has both begin
//! anew, [`ledger`] counts what became of it all, and [`traffic`] what is under way.

pub mod backend;
pub mod batch;
mod buffers;
pub mod client;
pub mod endpoint;
pub mod files;
pub mod hangup;
pub mod headers;
pub mod ledger;
mod mending;
pub mod metrics;
pub mod queue;
pub mod reply;
pub mod retry;
pub mod sender;
pub mod spool;
pub mod traffic;
pub mod writer;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle as Task;

use self::backend::Backend;
use self::batch::Encoding;
use self::client::OtlpClient;
use self::endpoint::Otlp;
use self::hangup::Hangup;
use self::ledger::{Ledger, Outcome, Share};
use self::queue::{OutputQueue, Queued, Request, WhenFull};
use self::sender::Deliverer;
use self::traffic::Traffic;
use self::writer::Target;
use crate::model::error::{Error, no_thread};
use crate::model::values::Signals;
use crate::model::values::{Output, Signal};

/// Bytes that may wait for a backend, for each signal.
const OTLP_QUEUE: usize = 4 << 20;
/// Bytes that may wait for a file.
const FILE_QUEUE: usize = 4 << 20;
/// Bytes that may wait for the console.
const CONSOLE_QUEUE: usize = 1 << 20;

/// What an output is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// OTLP requests.
    Otlp(Encoding),
    /// A line for each call.
    Lines,
}

/// Where the records of one signal go.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Which signal. Lines are made of calls, whichever signal is on.
    pub signal: Signal,
    /// What it is given.
    pub form: Form,
    /// Its place in the ledger.
    pub output: usize,
    /// None for the output `none`: what is made is delivered by being dropped.
    pub queue: Option<OutputQueue>,
    /// What becomes of calls where the queue is full.
    pub when_full: WhenFull,
}

impl Sink {
    /// Enqueues a request of calls.
    pub fn enqueue(&self, body: Bytes, share: Share) {
        self.put(body, share, self.when_full);
    }

    /// Enqueues a request of metrics, which never waits.
    pub fn enqueue_metrics(&self, body: Bytes, share: Share) {
        self.put(body, share, WhenFull::Drop);
    }

    fn put(&self, body: Bytes, share: Share, when_full: WhenFull) {
        match &self.queue {
            Some(queue) => queue.enqueue(Request { signal: self.signal, body, share }, when_full),
            None => share.settle(Outcome::Sent { rejected: 0 }),
        }
    }

    /// Whether so much waits that metrics are better added up where they are.
    pub fn is_waiting(&self) -> bool {
        self.queue.as_ref().is_some_and(OutputQueue::is_waiting)
    }
}

/// The outputs, ready to be given requests.
#[derive(Debug)]
pub struct Outputs {
    /// Where the records go.
    pub sinks: Vec<Sink>,
    /// The counts of the run.
    pub ledger: Arc<Ledger>,
    /// What is under way to backends.
    pub traffic: Vec<Arc<Traffic>>,
    /// What is still to be delivered, and its end.
    pub deliveries: Deliveries,
}

/// The tasks and threads that deliver.
#[derive(Debug, Default)]
pub struct Deliveries {
    hurry: watch::Sender<bool>,
    spool: Option<JoinHandle<()>>,
    tasks: Vec<Task<()>>,
    threads: Vec<JoinHandle<()>>,
    queues: Vec<OutputQueue>,
    hangup: Hangup,
}

/// Opens every output. `closed` is called when nobody reads stdout any more.
pub fn start(
    outputs: &[Output],
    signals: Signals,
    otlp: &Otlp,
    spool: Option<&spool::SpoolSettings>,
    runtime: &Handle,
    closed: impl Fn() + Clone + Send + 'static,
) -> Result<Outputs, Error> {
    let _on_runtime = runtime.enter();
    let on: Vec<Signal> = Signal::ALL.into_iter().filter(|signal| signals.has(*signal)).collect();
    let mut starting = Starting {
        names: Vec::new(),
        sinks: Vec::new(),
        senders: Vec::new(),
        deliveries: Deliveries::default(),
        // Pressure goes back to the kernel's ring only where nothing else is held up by it.
        when_full: if outputs.len() == 1 { WhenFull::Wait } else { WhenFull::Drop },
        runtime,
    };
    for output in outputs {
        match output {
            Output::Otlp => on.iter().try_for_each(|signal| starting.otlp(*signal, otlp))?,
            Output::Console => starting.console(signals, closed.clone())?,
            Output::File(path) => {
                let name = format!("file:{}", path.display());
                let target = Target::file(path)?;
                let queue = starting.writer(FILE_QUEUE, target, || {})?;
                for signal in &on {
                    starting.sink(&name, *signal, Form::Otlp(Encoding::Json), Some(queue.clone()));
                }
            }
            Output::None => {
                on.iter().for_each(|signal| starting.sink("none", *signal, Form::Otlp(Encoding::Protobuf), None))
            }
        }
    }
    let Starting { names, sinks, senders, mut deliveries, .. } = starting;
    let spool = spool.filter(|_| !senders.is_empty());
    let ledger = Ledger::new(names.clone(), spool.is_some());
    let mut keeper = None;
    if let Some(settings) = spool {
        let of_signal: Vec<(Signal, usize)> = senders.iter().map(|sender| (sender.signal, sender.output)).collect();
        let (spool, thread) = spool::start(settings, &ledger, &of_signal)?;
        deliveries.spool = Some(thread);
        keeper = Some(spool);
    }
    let mut traffic = Vec::new();
    for Unstarted { signal, output, client, requests } in senders {
        let of_signal = Arc::new(Traffic::new(signal, otlp.of(signal).protocol));
        traffic.push(of_signal.clone());
        let deliverer = Deliverer {
            name: names.get(output).cloned().unwrap_or_default(),
            signal,
            client,
            traffic: of_signal,
            spool: keeper.clone(),
            hurry: deliveries.hurry.subscribe(),
            backend: Mutex::new(Backend::new(keeper.is_some())),
            resumed: Notify::new(),
        };
        let hangup = deliveries.hangup.listener();
        deliveries.tasks.push(runtime.spawn(sender::run(deliverer, requests, hangup)));
    }
    Ok(Outputs { sinks, ledger, traffic, deliveries })
}

/// A sender that waits for the ledger and the spool.
struct Unstarted {
    signal: Signal,
    output: usize,
    client: OtlpClient,
    requests: UnboundedReceiver<Queued>,
}

struct Starting<'a> {
    names: Vec<String>,
    sinks: Vec<Sink>,
    senders: Vec<Unstarted>,
    deliveries: Deliveries,
    when_full: WhenFull,
    runtime: &'a Handle,
}

impl Starting<'_> {
    fn sink(&mut self, output: &str, signal: Signal, form: Form, queue: Option<OutputQueue>) {
        let when_full = self.when_full;
        self.sinks.push(Sink { signal, form, output: self.names.len(), queue, when_full });
        self.names.push(format!("{output}.{}", signal.name()));
    }

    fn otlp(&mut self, signal: Signal, otlp: &Otlp) -> Result<(), Error> {
        let client = OtlpClient::new(signal, otlp.of(signal))?;
        let (queue, requests) = OutputQueue::new(OTLP_QUEUE, self.runtime.clone());
        self.deliveries.queues.push(queue.clone());
        let output = self.names.len();
        self.sink("otlp", signal, Form::Otlp(client.encoding()), Some(queue));
        self.senders.push(Unstarted { signal, output, client, requests });
        Ok(())
    }

    fn console(&mut self, signals: Signals, closed: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let queue = self.writer(CONSOLE_QUEUE, Target::stdout(), closed)?;
        let signal = if signals.traces { Signal::Traces } else { Signal::Logs };
        self.sink("console", signal, Form::Lines, Some(queue));
        Ok(())
    }

    fn writer(
        &mut self,
        bytes: usize,
        target: Target,
        closed: impl FnOnce() + Send + 'static,
    ) -> Result<OutputQueue, Error> {
        let (queue, requests) = OutputQueue::new(bytes, self.runtime.clone());
        self.deliveries.queues.push(queue.clone());
        let thread = writer::start(target, requests, self.deliveries.hangup.listener(), closed).map_err(no_thread)?;
        self.deliveries.threads.push(thread);
        Ok(queue)
    }
}

impl Deliveries {
    /// Waits until everything that was handed over is delivered or counted as lost. The sinks must be gone by now.
    pub fn finish(mut self, runtime: &Handle) {
        // Without these the queues end when their last request is taken.
        self.queues.clear();
        for task in self.tasks {
            let _ = runtime.block_on(task);
        }
        for thread in self.threads.into_iter().chain(self.spool) {
            let _ = thread.join();
        }
    }

    /// Whether there is a spool, which takes what is not delivered once it is told to hurry.
    pub fn has_spool(&self) -> bool {
        self.spool.is_some()
    }

    /// What has everything that is not delivered put into the spool.
    pub fn hurrier(&self) -> impl Fn() + Send + use<> {
        let hurry = self.hurry.clone();
        move || {
            hurry.send_replace(true);
        }
    }

    /// What tells the outputs of SIGHUP.
    pub fn hangup(&self) -> Hangup {
        self.hangup.clone()
    }

    /// What ends deliveries early: what is not done counts as lost.
    pub fn aborter(&self) -> impl FnOnce() + Send + use<> {
        let shutters: Vec<_> = self.queues.iter().map(OutputQueue::shutter).collect();
        let tasks: Vec<_> = self.tasks.iter().map(Task::abort_handle).collect();
        move || {
            shutters.iter().for_each(|shut| shut());
            tasks.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

/// Enqueues a request of metrics for each sink, as it encodes it. Readings that `add_up` from their start are replaced by the
/// next ones: they are not put behind others that wait.
pub fn enqueue_metrics(sinks: &[Sink], ledger: &Arc<Ledger>, request: &ExportMetricsServiceRequest, add_up: bool) {
    let records = metrics::points(request);
    for sink in sinks.iter().filter(|sink| !(add_up && sink.is_waiting())) {
        let Form::Otlp(encoding) = sink.form else { continue };
        let share = Share::of_metrics(ledger, sink.output, records);
        sink.enqueue_metrics(metrics::encode(encoding, request).into(), share);
    }
}
