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

/* Buckets of OTLP's exponential histogram at scale 2: src/metrics/buckets.rs has the bounds. */
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
	struct points of[METRICS];
};

struct series_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERIES);
	__type(key, struct series);
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
const volatile __u64 duration_bounds[BOUNDS];
const volatile __u64 size_bounds[BOUNDS];

static const struct measures none_yet;

/*
 * The number of bounds below the value, which is the number of its bucket: the upper bound of a bucket belongs to it.
 * Without a branch, whose ways the verifier would have to follow: bounds and values are below 2^63.
 */
static __always_inline __u64 bucket_of(const volatile __u64 *bounds, __u64 value)
{
	__u64 at = 0;

	for (__u32 step = BOUNDS / 2; step; step >>= 1) {
		__u64 middle = at + step - 1;

		/* The compiler knows that it is within; older verifiers (seen on 6.1) have to see it. */
		asm volatile("" : "+r"(middle));
		at += step * ((bounds[middle % BOUNDS] - value) >> 63);
	}
	return at;
}

/* Whether the process may bring another name that led to no queue. */
static __always_inline bool may_ask(const struct series *key)
{
	__u32 pid = key->pid, one = 1, *asked = bpf_map_lookup_elem(&askers, &pid);

	if (!asked)
		return !bpf_map_update_elem(&askers, &pid, &one, BPF_ANY);
	return *asked < ASKED_NAMES && fetch_and_add(asked, 1) < ASKED_NAMES;
}

static __always_inline struct measures *insert(void *map, struct series *key, const struct call *call)
{
	bool reached = call->flags & CALL_QUEUE || call->ret >= 0;
	struct measures *measures;

	if (key->name && !reached && !may_ask(key))
		key->name = 0;
	if (key->name)
		send_name(call, key->name);
	bpf_map_update_elem(map, key, &none_yet, BPF_NOEXIST); /* fails where another caller was quicker, or for room */
	measures = bpf_map_lookup_elem(map, key);
	if (measures)
		return measures;
	struct series overflow = { .op = key->op };

	return bpf_map_lookup_elem(map, &overflow);
}

static __always_inline void add(struct points *points, const volatile __u64 *bounds, __u64 value)
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
	const struct call *call = call_of(thread);
	const struct message_args *message;
	struct measures *measures;
	__u32 first = 0;
	void *map;
	struct series key = {
		.name = thread->name,
		.process_started_ns = call->process_started_ns,
		.pid = call->pid,
		.exec_id = call->exec_id,
		.ipc_ns = call->ipc_ns,
		.errno = call->ret < 0 ? -call->ret : 0,
		.op = call->op,
		.cause = call->flags & CALL_CAUSE ? FAILURE(call)->cause : CAUSE_NONE,
	};

	if (aggregates_comm)
		__builtin_memcpy(key.comm, call->comm, sizeof(key.comm));
	map = bpf_map_lookup_elem(&series, &first);
	if (!map)
		return 0;
	measures = bpf_map_lookup_elem(map, &key);
	if (!measures)
		measures = insert(map, &key, call);
	if (!measures)
		return 0; /* user space puts the overflow points into each map before it is used */
	add(&measures->of[METRIC_DURATION], duration_bounds, call->left_ns - call->entered_ns);
	if (call->ret < 0 || (call->op != OP_SEND && call->op != OP_RECEIVE))
		return 0;
	message = (const struct message_args *)call->args;
	add(&measures->of[METRIC_SIZE], size_bounds, call->op == OP_SEND ? message->size : call->ret);
	if (call->flags & CALL_WAIT)
		add(&measures->of[METRIC_WAIT], duration_bounds, message->wait_ns);
	return 0;
}

ONCE_OF_THREAD(aggregate)
