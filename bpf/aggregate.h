/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Metrics, exact at any rate: every call is added to its series before the ring and the limits. User space takes a
 * whole map of series at a time: it puts the empty one in its place, and reads the old one when no program can still
 * hold it (kernel/bpf/syscall.c, maybe_wait_bpf_programs). Nothing is lost, no caller waits.
 */
#pragma once
#include "name.h"
#include "count.h"
#include "once.h"

#define SERIES 4096
#define ASKERS 4096
/* So many names that led to no queue may a process bring into one map of series. */
#define ASKED_NAMES 100

/* Buckets of OTLP's exponential histogram at scale 2, four for each doubling: src/model/buckets.rs has the bounds. */
#define PER_DOUBLING 4
#define BOUNDS 256

enum metric {
	METRIC_DURATION, /* ns; counts the calls, too */
	METRIC_WAIT,	 /* ns that a received message lay in the queue */
	METRIC_SIZE,	 /* bytes of a message that was passed */
	METRICS,
};

/* What a series is of; all zero but op: what found no room for a series of its own. */
struct series {
	__u64 name; /* of the queue, by its hash (struct name); 0: none */
	__u64 process_started_ns;
	__u32 pid;
	__u32 exec_id;
	__u32 ipc_ns;
	__u32 errno; /* 0: the call succeeded */
	__u32 op;
	__u32 cause; /* enum cause */
	char comm[COMM_SIZE]; /* only where a filter asks for it */
};

/* The count is the sum of the buckets. */
struct points {
	__u64 sum;
	__u32 zeros;
	__u32 buckets[POINT_BUCKETS];
	__u32 unused;
};

/* All that is measured of a call, so that one look-up does for it. */
struct measures {
	struct series series;
	struct points of[METRICS];
};

/*
 * A series by the hash of what it is of, which takes a third of the time that a look-up by all of it takes. Random, as the
 * numbers of names: nobody can make two series meet.
 */
#define SERIES_ID (1ULL << 63) /* set in each; the points of what found no room go by their op alone */

struct series_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERIES);
	__type(key, __u64);
	__type(value, struct measures);
};
struct series_map series_a SEC(".maps");
struct series_map series_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct series_map);
} series SEC(".maps") = { .values = { &series_a } };

/* Names that led to no queue, for each process; user space empties it with each map of series. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ASKERS);
	__type(key, __u32);
	__type(value, __u32);
} askers SEC(".maps");

const volatile bool aggregates;
const volatile bool aggregates_comm;
/* Upper bounds of buckets, those from 2^n to below 2^(n+1) from PER_DOUBLING * n on; of these `none` come before the first. */
struct bounds {
	__u64 upper[BOUNDS];
	__u64 none;
};
const volatile struct bounds duration_bounds;
const volatile struct bounds size_bounds;

static const struct measures none_yet;

/* n of 2^n <= value < 2^(n+1). Without a branch, whose ways the verifier would have to follow: values are below 2^63. */
static __always_inline __u64 exponent_of(__u64 value)
{
	__u64 exponent = 0, shift;

	for (int width = 32; width >= 4; width /= 2) {
		shift = ((1ULL << width) - 1 - value) >> 63;
		shift *= width;
		value >>= shift;
		exponent += shift;
	}
	return exponent + (0x3333333322221100ULL >> value * 4 & 0xf);
}

/* The number of the value's bucket, to which its upper bound belongs. */
static __always_inline __u64 bucket_of(const volatile struct bounds *bounds, __u64 value)
{
	__u64 first = exponent_of(value) * PER_DOUBLING, at;

	/* The compiler knows that it is within; older verifiers (seen on 6.1) have to see it. */
	asm volatile("" : "+r"(first));
	first &= BOUNDS - PER_DOUBLING;
	at = first;
	for (int i = 0; i < PER_DOUBLING; i++)
		at += (bounds->upper[first + i] - value) >> 63;
	return at > bounds->none ? at - bounds->none : 0;
}

/* Whether the process may bring another name that led to no queue. */
static __always_inline bool may_ask(__u32 pid)
{
	__u32 one = 1, *asked = bpf_map_lookup_elem(&askers, &pid);

	if (!asked)
		return !bpf_map_update_elem(&askers, &pid, &one, BPF_ANY);
	return *asked < ASKED_NAMES && fetch_and_add(asked, 1) < ASKED_NAMES;
}

static __always_inline __u32 errno_of(const struct call *call)
{
	return call->ret < 0 ? -call->ret : 0;
}

static __always_inline __u32 cause_of(const struct call *call)
{
	return call->flags & CALL_CAUSE ? FAILURE(call)->cause : CAUSE_NONE;
}

/* The series of a call whose name has this hash. */
static __always_inline __u64 series_id(const struct slot *slot, __u64 name)
{
	const struct call *call = &slot->call;
	__u64 what = (__u64)call->ipc_ns << 32 | cause_of(call) << 16 | errno_of(call) << 4 | call->op;
	__u64 id = mix(mix(slot->image_hash, name), what);

	if (aggregates_comm) {
		__u64 words[2];

		__builtin_memcpy(words, call->comm, sizeof(words));
		id = mix(mix(id, words[0]), words[1]);
	}
	return id * 0xd6e8feb86659fd93 | SERIES_ID;
}

/* Adds the series of the thread's call. */
static __always_inline int add_series_of(struct thread *thread)
{
	const struct slot *slot = slot_of(thread);
	const struct call *call = &slot->call;
	struct measures *measures;
	__u32 first = 0;
	__u64 id;
	void *map;

	map = bpf_map_lookup_elem(&series, &first);
	if (!map)
		return 0;
	if (thread->name)
		send_name(call, thread->name);
	id = series_id(slot, thread->name);
	bpf_map_update_elem(map, &id, &none_yet, BPF_NOEXIST); /* fails where another caller was quicker, or for room */
	measures = bpf_map_lookup_elem(map, &id);
	if (!measures)
		return 0;
	measures->series.name = thread->name;
	measures->series.process_started_ns = call->process_started_ns;
	measures->series.pid = call->pid;
	measures->series.exec_id = call->exec_id;
	measures->series.ipc_ns = call->ipc_ns;
	measures->series.errno = errno_of(call);
	measures->series.op = call->op;
	measures->series.cause = cause_of(call);
	if (aggregates_comm)
		__builtin_memcpy(measures->series.comm, call->comm, sizeof(call->comm));
	return 0;
}

ONCE_OF_THREAD(add_series)

static __always_inline struct measures *insert(void *map, struct thread *thread)
{
	const struct slot *slot = slot_of(thread);
	const struct call *call = &slot->call;
	bool reached = call->flags & CALL_QUEUE || call->ret >= 0;
	struct measures *measures;
	__u64 id;

	if (thread->name && !reached && !may_ask(call->pid))
		thread->name = 0;
	add_series(thread);
	id = series_id(slot, thread->name);
	measures = bpf_map_lookup_elem(map, &id);
	if (measures)
		return measures;
	id = call->op;
	return bpf_map_lookup_elem(map, &id);
}

static __always_inline void add(struct points *points, const volatile struct bounds *bounds, __u64 value)
{
	__u64 bucket;

	if (!value) {
		__sync_fetch_and_add(&points->zeros, 1);
		return;
	}
	__sync_fetch_and_add(&points->sum, value);
	bucket = bucket_of(bounds, value);
	asm volatile("" : "+r"(bucket)); /* as above: compared as a whole, not in halves */
	if (bucket >= POINT_BUCKETS)
		bucket = POINT_BUCKETS - 1;
	__sync_fetch_and_add(&points->buckets[bucket], 1);
}

/* Adds a call that passes the filters on whose calls. */
static __always_inline int aggregate_of(struct thread *thread)
{
	const struct slot *slot = slot_of(thread);
	const struct call *call = &slot->call;
	const struct message_args *message;
	struct measures *measures;
	__u32 first = 0;
	__u64 id;
	void *map;

	map = bpf_map_lookup_elem(&series, &first);
	if (!map)
		return 0;
	id = series_id(slot, thread->name);
	measures = bpf_map_lookup_elem(map, &id);
	if (!measures)
		measures = insert(map, thread);
	if (!measures)
		return 0; /* user space puts the overflow points into each map before it is used */
	add(&measures->of[METRIC_DURATION], &duration_bounds, call->left_ns - call->entered_ns);
	if (call->ret < 0 || (call->op != OP_SEND && call->op != OP_RECEIVE))
		return 0;
	message = (const struct message_args *)call->args;
	add(&measures->of[METRIC_SIZE], &size_bounds, call->op == OP_SEND ? message->size : call->ret);
	if (call->flags & CALL_WAIT)
		add(&measures->of[METRIC_WAIT], &duration_bounds, call->received.wait_ns);
	return 0;
}

ONCE_OF_THREAD(aggregate)
