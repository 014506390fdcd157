use std::thread;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::export::ledger::{Ledger, Tally};

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

fn request(ledger: &Arc<Ledger>, bytes: usize) -> Request {
    ledger.received();
    let tally = Tally::new(ledger);
    tally.add();
    Request { signal: Signal::Traces, body: vec![0; bytes].into(), share: Share::of_calls(&tally, 0, 1) }
}

fn sums(names: &[&str], temporality: AggregationTemporality) -> ExportMetricsServiceRequest {
    let metric = |name: &&str| {
        let data_points = vec![NumberDataPoint { start_time_unix_nano: 1, ..NumberDataPoint::default() }];
        let sum = Sum { data_points, aggregation_temporality: temporality as i32, is_monotonic: true };
        Metric { name: (*name).into(), data: Some(Data::Sum(sum)), ..Metric::default() }
    };
    let scope = ScopeMetrics { metrics: names.iter().map(metric).collect(), ..ScopeMetrics::default() };
    let resource_metrics = vec![ResourceMetrics { scope_metrics: vec![scope], ..ResourceMetrics::default() }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn enqueue(queue: &OutputQueue, ledger: &Arc<Ledger>, origin: Origin, request: &ExportMetricsServiceRequest) {
    let body = metrics::encode(Encoding::Protobuf, request).into();
    let share = Share::of_metrics(ledger, 0, points(request));
    let requests = vec![Request { signal: Signal::Metrics, body, share }];
    queue.enqueue_metrics(origin, Encoding::Protobuf, &Newest::of(request.clone()), requests);
}

/// Prevents the queue from growing without bound, a request larger than all of it from waiting for ever, and a
/// waiting driver from never ending.
#[test]
fn bounded_and_ended() {
    let ledger = Ledger::new(vec!["otlp.traces".into()], false);
    let runtime = runtime();
    let (queue, mut requests) = OutputQueue::new(1000, runtime.handle().clone());
    queue.enqueue(request(&ledger, 5000), WhenFull::Wait);
    let waiting = thread::spawn({
        let (queue, ledger) = (queue.clone(), ledger.clone());
        move || {
            queue.enqueue(request(&ledger, 1), WhenFull::Wait);
            queue.enqueue(request(&ledger, 5000), WhenFull::Wait);
        }
    });
    drop(runtime.block_on(requests.recv()));
    // The small one fits now, the large one behind it does not.
    let second = runtime.block_on(requests.recv());
    assert_eq!(second.as_ref().map(|queued| queued.request.body.len()), Some(1));
    queue.shutter()();
    waiting.join().unwrap();
    drop((queue, second));
    assert!(runtime.block_on(requests.recv()).is_none());
    assert_eq!(ledger.totals().lost["shutdown"], 3);
}

/// Prevents a full queue of one of several outputs from holding up the calls of all, and from dropping them uncounted.
#[test]
fn a_full_queue_of_several_drops() {
    let ledger = Ledger::new(vec!["otlp.traces".into()], false);
    let runtime = runtime();
    let (queue, mut requests) = OutputQueue::new(1000, runtime.handle().clone());
    queue.enqueue(request(&ledger, 1000), WhenFull::Drop);
    queue.enqueue(request(&ledger, 1), WhenFull::Drop);
    assert_eq!(ledger.totals().lost["queue"], 1);
    assert_eq!(ledger.totals().outputs["otlp.traces"].lost, 1);
    drop(requests.try_recv());
    queue.enqueue(request(&ledger, 1), WhenFull::Drop);
    assert!(requests.try_recv().is_some());
}

/// Prevents metrics from waiting for room, cumulative ones from piling up, a stream's last point from being dropped for
/// one of another stream or of another origin, and deltas from being dropped while there is room.
#[test]
fn metrics_never_wait() {
    use AggregationTemporality::{Cumulative, Delta};
    let ledger = Ledger::new(vec!["otlp.metrics".into()], false);
    let runtime = runtime();
    let (queue, mut requests) = OutputQueue::new(1024, runtime.handle().clone());
    enqueue(&queue, &ledger, Origin::Own, &sums(&["a"], Cumulative));
    enqueue(&queue, &ledger, Origin::Calls, &sums(&["a", "gone"], Cumulative));
    for _ in 0..100 {
        enqueue(&queue, &ledger, Origin::Calls, &sums(&["a"], Cumulative));
    }
    assert!(queue.is_waiting(Origin::Calls));
    let left: Vec<_> = std::iter::from_fn(|| requests.try_recv()).collect();
    let names = |queued: &Queued| {
        let request = metrics::decode(Encoding::Protobuf, &queued.request.body).unwrap();
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        metrics.iter().map(|metric| metric.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(left.iter().map(names).collect::<Vec<_>>(), [["a"], ["gone"], ["a"]]);
    assert!(!queue.is_waiting(Origin::Calls));
    left.into_iter().for_each(|queued| queued.settle(Outcome::Sent { rejected: 0 }));
    for _ in 0..6 {
        enqueue(&queue, &ledger, Origin::Calls, &sums(&["a"], Delta));
    }
    let totals = ledger.totals();
    let counts = &totals.outputs["otlp.metrics"];
    assert_eq!((counts.sent, counts.lost), (3, 2), "{totals:?}");
    assert_eq!(totals.lost(), 0, "calls");
}

/// Prevents what fills the queue of one signal from filling that of another before the same file.
#[test]
fn room_of_its_own() {
    let ledger = Ledger::new(vec!["file.traces".into()], false);
    let runtime = runtime();
    let (traces, mut requests) = OutputQueue::new(1000, runtime.handle().clone());
    let metrics = traces.beside();
    traces.enqueue(request(&ledger, 1000), WhenFull::Wait);
    enqueue(&metrics, &ledger, Origin::Calls, &sums(&["a"], AggregationTemporality::Delta));
    drop((traces, metrics));
    assert!(runtime.block_on(requests.recv()).is_some());
    assert!(runtime.block_on(requests.recv()).is_some());
    assert!(runtime.block_on(requests.recv()).is_none(), "ended");
}
