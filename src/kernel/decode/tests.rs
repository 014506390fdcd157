//! Records as the kernel side makes them, decoded.

use std::mem::{offset_of, size_of};

use super::super::skel::types::{cause as kernel_cause, failure as kernel_failure};
use super::*;
use crate::model::examples::message;

fn bytes<T>(value: &T) -> Vec<u8> {
    // SAFETY: a plain structure without padding, see bpf/event.h.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

/// As put_call() of bpf/output.h makes it.
fn record(raw: &call, asked: &[u8], actual: &[u8]) -> Vec<u8> {
    let mut raw = call { asked_len: asked.len() as u16, actual_len: actual.len() as u16, ..*raw };
    for (to, from) in raw.names.iter_mut().zip(asked.iter().chain(actual)) {
        *to = from.cast_signed();
    }
    let whole = bytes(&raw);
    let start = first_section(&|flag| raw.flags & flag.0 != 0);
    [&whole[..FIRST_WORD], &whole[start..NAMES + asked.len() + actual.len()]].concat()
}

fn flags(flags: &[call_flag]) -> u32 {
    flags.iter().fold(0, |all, flag| all | flag.0)
}

/// Arguments as they stand in a record.
fn raw_args<T>(args: &T) -> [u64; size_of::<message_args>() / 8] {
    let mut words = [0; _];
    for (word, bytes) in words.iter_mut().zip(bytes(args).chunks(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap());
    }
    words
}

/// Prevents names from running into each other, and an unreadable name from being taken for an empty one.
#[test]
fn names_and_flags() {
    let raw = call { pid: 7, tid: 8, entered_ns: 100, left_ns: 350, queue_curmsgs: 3, ..Default::default() };
    let reached = call { flags: call_flag::CALL_QUEUE.0, ..raw };
    let decoded = Call::decode(&record(&reached, b"ask", b"actual")).unwrap();
    assert_eq!(decoded.asked.as_deref(), Some(&b"ask"[..]));
    let queue = decoded.queue.as_ref().unwrap();
    assert_eq!((&*queue.name, queue.curmsgs), (&b"actual"[..], Some(3)));
    assert_eq!((decoded.image.pid, decoded.tid, decoded.duration_ns()), (7, 8, 250));
    let left = call { flags: flags(&[call_flag::CALL_QUEUE, call_flag::CALL_QUEUE_LEFT]), ..raw };
    assert_eq!(Call::decode(&record(&left, b"", b"q")).unwrap().queue.unwrap().curmsgs, None);
    let bad = call { flags: call_flag::CALL_NAME_BAD.0, ..raw };
    let bad = Call::decode(&record(&bad, b"", b"")).unwrap();
    assert_eq!((bad.asked, bad.queue), (None, None));
    assert_eq!(Call::decode(&record(&raw, b"", b"")).unwrap().asked, Some(Vec::new().into()));
}

/// Prevents a call's arguments from being read as another's, and what was not read from being believed.
#[test]
fn arguments_of_each_call() {
    let open = raw_args(&open_args { name_ptr: 1, attr_ptr: 2, attr: [3, 4, 5, 6], oflag: 7, mode: 8 });
    let message = raw_args(&message_args {
        size: 1,
        priority: 6,
        only_priority: 11,
        turn: 13,
        begun: [14, 18],
        begun_before: 15,
        limited_calls: 16,
        unused: 0,
    });
    let timeout = timeout { ptr: 2, s: 3, ns: 4 };
    let received = received { wait_ns: 7, trace_id: [8, 9], span_id: 10, comm: [97; 16] };
    let notify = raw_args(&notify_args { event_ptr: 1, method: 2, signo: 3 });
    let attr = |value| Passed { ptr: 2, value };
    let mut trace = [0; 16];
    trace[..8].copy_from_slice(&8u64.to_ne_bytes());
    trace[8..].copy_from_slice(&9u64.to_ne_bytes());
    let sent_by = Sender { ids: Ids { trace, span: 10u64.to_ne_bytes() }, comm: [b'a'; 16], method: Method::Message };
    let nothing = Message {
        fd: 9,
        size: 1,
        priority: None,
        timeout: Passed { ptr: 0, value: None },
        turn: Turn { number: 13, begun: [14, 18], only_priority: Some(10), losses: [12, 17], ..Turn::default() },
        limited: 16,
        ..self::message()
    };
    let everything = Message {
        priority: Some(6),
        timeout: Passed { ptr: 2, value: Some(Deadline { s: 3, ns: 4 }) },
        blocked: true,
        wait_ns: Some(7),
        sent_by: Some(sent_by),
        tracked: true,
        limited: 16,
        turn: Turn { quiet: true, empty: Some([12, 15]), ..nothing.turn },
        ..nothing
    };
    let not_read = Message { timeout: Passed { ptr: 2, value: None }, ..nothing };
    let taken = Message { turn: Turn { empty: Some([15, 12]), ..everything.turn }, ..everything };
    let opened = |attr, attr_changed| Args::Open { name_ptr: 1, oflag: 7, mode: 8, attr, attr_changed };
    let event = |value| Args::Notify { fd: 9, event: Passed { ptr: 1, value } };
    let all = flags(&[
        call_flag::CALL_ATTR,
        call_flag::CALL_DEADLINE,
        call_flag::CALL_TIMEOUT,
        call_flag::CALL_PRIORITY,
        call_flag::CALL_BLOCKED,
        call_flag::CALL_EVENT,
        call_flag::CALL_ATTR_CHANGED,
        call_flag::CALL_WAIT,
        call_flag::CALL_LINK,
        call_flag::CALL_TRACKED,
        call_flag::CALL_EMPTY,
        call_flag::CALL_QUIET,
    ]);
    for (op, args, flags, expected) in [
        (0, open, 0, opened(attr(None), false)),
        (0, open, all, opened(attr(Some([3, 4, 5, 6])), true)),
        (1, open, all, Args::Unlink { name_ptr: 1 }),
        (2, message, 0, Args::Send(nothing)),
        (2, message, call_flag::CALL_TIMEOUT.0, Args::Send(not_read)),
        (2, message, all, Args::Send(everything)),
        (3, message, all, Args::Receive(taken)),
        (4, notify, 0, event(None)),
        (4, notify, all, event(Some(Event { method: 2, signo: 3 }))),
        (5, open, 0, Args::Getsetattr { fd: 9, attr: attr(None) }),
        (5, open, all, Args::Getsetattr { fd: 9, attr: attr(Some([3, 4, 5, 6])) }),
    ] {
        let raw = call { op, args, flags, fd: 9, losses: [12, 17], timeout, received, ..Default::default() };
        assert_eq!(Call::decode(&record(&raw, b"", b"")).unwrap().args, expected, "{op} {flags:#x}");
    }
}

/// Prevents a call from being given a span that nobody said it was in, or one for another's.
#[test]
fn contexts() {
    let raw = context { trace_id: [1, 2], span_id: 3 };
    let decode = |flags: &[call_flag]| {
        let raw = call { context: raw, flags: self::flags(flags), ..Default::default() };
        Call::decode(&record(&raw, b"", b"")).unwrap().context
    };
    let ids = Ids { trace: trace_id([1, 2]), span: 3u64.to_ne_bytes() };
    let context = |source| Some(Context { ids, source });
    let [any, sampled, obi] = [call_flag::CALL_CONTEXT, call_flag::CALL_CONTEXT_SAMPLED, call_flag::CALL_CONTEXT_OBI];
    assert_eq!(decode(&[]), None);
    assert_eq!(decode(&[any]), context(Source::Thread { sampled: false }));
    assert_eq!(decode(&[any, sampled]), context(Source::Thread { sampled: true }));
    assert_eq!(decode(&[any, obi]), context(Source::Obi));
}

/// Prevents why a call failed from being taken from what a message left there, and a limit that is none from being told.
#[test]
fn failures() {
    let limit = failure { cause: 1, known: 3, owner_pid: 0, value: 100, used: 90, requested: 20 };
    let decode = |failure: kernel_failure, flags| {
        let mut raw = call { flags, ret: -24, ..Default::default() };
        // SAFETY: both are integers and arrays of them, and a failure is not the larger one.
        unsafe { (&raw mut raw.received).cast::<kernel_failure>().write(failure) };
        Call::decode(&record(&raw, b"", b"")).unwrap().failure
    };
    let told = |cause, limit, owner_pid| Some(CallFailure { cause, limit, owner_pid });
    let [known, none] = [call_flag::CALL_CAUSE.0, 0];
    let reached = |used| Some(ReachedLimit { value: 100, used, requested: 20 });
    assert_eq!(decode(limit, known), told(Cause::RlimitMsgqueue, reached(Some(90)), None));
    assert_eq!(decode(limit, none), None);
    assert_eq!(decode(failure { cause: 8, known: 1, ..limit }, known), told(Cause::Msgsize, reached(None), None));
    let registered = failure { cause: 21, known: 0, owner_pid: 7, ..limit };
    assert_eq!(decode(registered, known), told(Cause::Registered, None, Some(7)));
    assert_eq!(decode(failure { cause: 22, ..limit }, known), None);
    assert_eq!(Cause::ALL.len() as u32 + 1, kernel_cause::CAUSES.0);
}

/// Prevents a record that was cut, or lies about its lengths, from being read beyond its end.
#[test]
fn truncated_records_are_refused() {
    let sections = [
        call_flag::CALL_QUEUE,
        call_flag::CALL_SPAN,
        call_flag::CALL_CAUSE,
        call_flag::CALL_TIMEOUT,
        call_flag::CALL_CONTEXT,
    ];
    for (op, section) in (0..6).flat_map(|op| sections.map(|section| (op, section))) {
        let raw = call { op, flags: call_flag::CALL_QUEUE.0 | section.0, ..Default::default() };
        let whole = record(&raw, &[b'a'; 255], &[b'b'; 255]);
        for len in 0..whole.len() {
            assert_eq!(Call::decode(&whole[..len]), Err(Malformed(len)));
        }
        assert!(Call::decode(&whole).is_ok());
    }
    let mut lie = record(&call::default(), b"a", b"");
    lie[FIRST_WORD + 2..FIRST_WORD + 4].fill(0xff);
    assert!(Call::decode(&lie).is_err());
    assert!(Call::decode(&record(&call { op: 6, ..Default::default() }, b"a", b"")).is_err());
}

/// Prevents the fuzzer from beginning with what is refused at once, after the layout has changed.
#[test]
fn records_that_fuzzing_begins_with() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/record");
    let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let told = |path: &std::path::PathBuf| Call::decode(&std::fs::read(path).unwrap()).map(|call| call.op);
    assert_eq!((seeds.len(), seeds.iter().filter(|path| told(path).is_ok()).count()), (3, 3), "{seeds:?}");
}

/// Prevents a path from coming out in reverse, and lengths beyond the fields from being believed.
#[test]
fn images() {
    let mut raw = vec![0; size_of::<image>()];
    raw[offset_of!(image, pid)] = 9;
    raw[offset_of!(image, path)..][..10].copy_from_slice(b"x\0bin\0usr\0");
    raw[offset_of!(image, path_len)] = 10;
    raw[offset_of!(image, environ)..][..4].copy_from_slice(b"A=b\0");
    raw[offset_of!(image, environ_len)] = 4;
    let decoded = Image::decode(&raw).unwrap();
    assert_eq!(decoded.path.as_deref(), Some(&b"/usr/bin/x"[..]));
    assert_eq!(decoded.environ.as_deref(), Some(&b"A=b\0"[..]));
    assert_eq!(decoded.key.pid, 9);
    assert_eq!(Image::decode(&raw[1..]), Err(Malformed(raw.len() - 1)));
    raw[offset_of!(image, cgroup)..][..4].copy_from_slice(b"b\0a\0");
    assert_eq!(decoded.cgroup.as_deref(), Some(&b"/"[..]));
    raw[offset_of!(image, cgroup_len)] = 4;
    assert_eq!(Image::decode(&raw).unwrap().cgroup.as_deref(), Some(&b"/a/b"[..]));
    raw[offset_of!(image, environ_len) + 3] = 1;
    assert!(Image::decode(&raw).is_err());
}
