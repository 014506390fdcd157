//! What each stage of mqspan takes for a call, on one CPU and without a kernel side: `cargo bench --bench stages`. A batch is
//! of sends and receives of one thread through one queue, as the ring holds them.

use std::{collections::HashMap, hint::black_box, mem::offset_of, sync::Arc, time::Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mqspan::{
    export::batch::{Batch, Encoding},
    kernel::skel::types::{call, call_flag, message_args},
    links::sequence::Sequence,
    model::{
        call::{Call, Image, Root},
        resource::Resource,
        values::Signal,
    },
    telemetry::{record::Record, view::View},
    who::{host::Host, registry::Registry},
};

/// Pairs of a send and a receive.
const PAIRS: u64 = 500;
const NAME: &[u8] = b"orders";

/// A record as the kernel side writes it: of no section but that of the span.
fn record(raw: &call) -> Vec<u8> {
    let mut raw = *raw;
    raw.actual_len = NAME.len() as u16;
    for (to, from) in raw.names.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    // SAFETY: a plain structure of integers without padding, see bpf/event.h.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const raw).cast::<u8>(), size_of::<call>()) };
    [&bytes[..offset_of!(call, context)], &bytes[offset_of!(call, trace_id)..offset_of!(call, names) + NAME.len()]]
        .concat()
}

fn raw_args(args: &message_args) -> [u64; size_of::<message_args>() / 8] {
    // SAFETY: both are integers of the same size in all.
    unsafe { (&raw const *args).cast::<[u64; size_of::<message_args>() / 8]>().read_unaligned() }
}

/// Sends and receives in turns, each found alone on the queue.
fn records() -> Vec<Vec<u8>> {
    let raw = call { pid: 70, tid: 70, process_started_ns: 5, queue_inode: 1, queue_ino: 2, ..call::default() };
    let seen = call_flag::CALL_QUEUE.0
        | call_flag::CALL_NAME_BAD.0
        | call_flag::CALL_QUIET.0
        | call_flag::CALL_PRIORITY.0
        | call_flag::CALL_SPAN.0;
    let pair = |number: u64| {
        let args = |receives| message_args { turn: number, begun: [number, receives], size: 16, ..Default::default() };
        let common = call {
            trace_id: [1, number],
            entered_ns: number * 1000,
            left_ns: number * 1000 + 400,
            flags: seen,
            queue_maxmsg: 10,
            queue_msgsize: 64,
            comm: *b"workload\0\0\0\0\0\0\0\0".map(|byte: u8| byte.cast_signed()).first_chunk().unwrap_or(&[0; 16]),
            ..raw
        };
        let sends = message_args { begun_before: number - 1, ..args(number - 1) };
        let empty = call_flag::CALL_EMPTY.0;
        let send = call {
            op: 2,
            span_id: 2 * number,
            flags: seen | empty,
            args: raw_args(&sends),
            queue_curmsgs: 1,
            ..common
        };
        let receive = call { op: 3, span_id: 2 * number + 1, ret: 16, args: raw_args(&args(number)), ..common };
        [record(&send), record(&receive)]
    };
    (1..=PAIRS).flat_map(pair).collect()
}

fn stages(criterion: &mut Criterion) {
    let records = records();
    let calls: Vec<Call> = records.iter().filter_map(|bytes| Call::decode(bytes).ok()).collect();
    assert_eq!(calls.len(), records.len());
    let resource = Arc::new(Resource::default());
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Elements(records.len() as u64));

    group.bench_function("decode", |bencher| {
        bencher.iter(|| records.iter().for_each(|bytes| _ = black_box(Box::new(Call::decode(bytes)))));
    });

    group.bench_function("links", |bencher| {
        let fresh = || {
            let mut sequence = Sequence::default();
            sequence.found([]);
            (sequence, calls.iter().cloned().map(Box::new).collect::<Vec<_>>())
        };
        let now = Instant::now();
        let follow = |(mut sequence, calls): (Sequence, Vec<Box<Call>>)| {
            let mut linked = 0;
            let mut out = |call: Box<Call>| {
                linked += u64::from(call.wait_ns().is_some());
                drop(black_box(call));
            };
            calls.into_iter().for_each(|call| sequence.offer(call, now, &mut out));
            assert_eq!(linked, PAIRS);
            sequence
        };
        bencher.iter_batched(fresh, follow, BatchSize::LargeInput);
    });

    let mut registry = Registry::new(Host::default(), 0, HashMap::new());
    registry.add(Image {
        key: calls[0].image,
        local_pid: 70,
        vpid: 70,
        parent_pid: 1,
        path: Some(b"/usr/bin/workload".to_vec()),
        environ: Some(b"OTEL_SERVICE_NAME=shop\0".to_vec()),
        environ_at: 0,
        environ_cut: false,
        uid: 1000,
        cgroup: None,
        comm: b"workload".to_vec(),
        root: Root::default(),
    });
    group.bench_function("enrich", |bencher| {
        bencher.iter(|| calls.iter().for_each(|call| drop(black_box(registry.resource(call.image)))));
    });

    let encode = |batch: &mut Batch| {
        for call in &calls {
            let view = View::new(call, call.entered_ns);
            batch.add(&resource, &Record { view: &view, ids: Some(call.ids) });
        }
        batch.take()
    };
    for (name, encoding) in [("encode protobuf", Encoding::Protobuf), ("encode json", Encoding::Json)] {
        let mut batch = Batch::new(Signal::Traces, encoding);
        group.bench_function(name, |bencher| bencher.iter(|| black_box(encode(&mut batch))));
    }

    let body = encode(&mut Batch::new(Signal::Traces, Encoding::Protobuf)).map(|(body, _)| body).unwrap_or_default();
    group.bench_function("compress zstd", |bencher| bencher.iter(|| black_box(zstd::bulk::compress(&body, 1))));
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
