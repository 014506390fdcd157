/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * --max-rate: how many sends and receives of a queue become records in a second. Calls that are worth a look are exempt,
 * up to a ceiling for each process and call, so that no loop drowns the rest. What is left out is counted, and told with
 * the next record of the queue. Metrics hold every call.
 */
#pragma once
#include "depth.h"

#define CEILINGS 8192
/* The ceiling is so many times the rate. */
#define CEILING 10
#define NS_PER_S 1000000000

const volatile __u32 max_rate; /* 0: every call becomes a record */
const volatile __u64 slow_ns;

struct ceiling_key {
	__u32 pid;
	__u32 op;
};

/* One that is forgotten begins anew: some records too many. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CEILINGS);
	__type(key, struct ceiling_key);
	__type(value, struct limiter);
} ceilings SEC(".maps");

/* A caller that was held up since an earlier second is one of the present one's: time never goes back. */
static __always_inline bool take(struct limiter *limiter, __u32 most, __u64 second)
{
	__u64 before = *(volatile __u64 *)&limiter->taken;

	/* The first of a second; who loses against another first takes as any other does. */
	if (before >> 32 < second && compare_and_swap(&limiter->taken, before, second << 32 | 1) == before)
		return true;
	return (__u32)*(volatile __u64 *)&limiter->taken < most && (__u32)fetch_and_add(&limiter->taken, 1) < most;
}

static __always_inline bool is_message(const struct call *call)
{
	return call->op == OP_SEND || call->op == OP_RECEIVE;
}

static __always_inline struct limiter *limiter_of(const struct call *call, struct queue_state *state)
{
	return state && is_message(call) ? &state->limits[call->op == OP_RECEIVE] : 0;
}

/* Polling and being interrupted are not failing (src/telemetry/terms.rs, is_error). */
static __always_inline bool has_failed(__s64 ret)
{
	return ret < 0 && ret != -EAGAIN && ret != -ETIMEDOUT && ret != -EINTR && ret != -ERESTARTSYS;
}

static __always_inline bool is_slow(const struct call *call)
{
	if (call->op == OP_SEND)
		return call->left_ns - call->entered_ns >= slow_ns;
	return call->flags & CALL_WAIT && call->received.wait_ns >= slow_ns;
}

static __always_inline bool is_below_ceiling(const struct call *call, __u64 second)
{
	struct ceiling_key key = { call->pid, call->op };
	struct limiter *ceiling = bpf_map_lookup_elem(&ceilings, &key);

	if (!ceiling) {
		struct limiter new = {};

		bpf_map_update_elem(&ceilings, &key, &new, BPF_NOEXIST);
		ceiling = bpf_map_lookup_elem(&ceilings, &key);
	}
	return !ceiling || take(ceiling, CEILING * max_rate, second);
}

/* Inside a sampled span of the application's. Of a send that may have been decided with its message. */
static __always_inline bool is_exempt_by_context(const struct call *call)
{
	return call->flags & CALL_CONTEXT_SAMPLED && !(call->op == OP_SEND && call->flags & CALL_DECIDED);
}

/* A message is about to be sent: decides for its send, and so for its receive. */
static __always_inline bool is_limited_early(struct call *call)
{
	struct queue_key key = { call->queue_inode, call->queue_ino, call->queue_ns };
	__u64 second = call->entered_ns / NS_PER_S;
	struct limiter *limiter = 0;

	if (max_rate && call->flags & CALL_QUEUE)
		limiter = limiter_of(call, bpf_map_lookup_elem(&queues, &key));
	if (!limiter)
		return false;
	call->flags |= CALL_DECIDED;
	if (call->flags & CALL_CONTEXT_SAMPLED ? is_below_ceiling(call, second) : take(limiter, max_rate, second))
		return false;
	call->flags |= CALL_LIMITED;
	return true;
}

/* Whether the call has ended without a record for the rate's sake; `state` of its queue. Global: it is verified once. */
VERIFIED_ONCE int is_limited(struct call *call, struct queue_state *state)
{
	struct limiter *limiter;
	__u64 second;
	bool passes;

	if (!call)
		return false;
	second = call->left_ns / NS_PER_S;
	limiter = limiter_of(call, state);
	if (!is_message(call) || has_failed(call->ret) || is_slow(call) || is_exempt_by_context(call))
		passes = is_below_ceiling(call, second);
	else if (call->flags & CALL_DECIDED)
		passes = !(call->flags & CALL_LIMITED);
	else
		passes = !limiter || take(limiter, max_rate, second);
	if (passes) {
		call->flags &= ~CALL_LIMITED;
		if (is_message(call))
			((struct message_args *)call->args)->limited_calls =
				limiter ? exchange(&limiter->limited, 0) : 0;
		return false;
	}
	call->flags |= CALL_LIMITED;
	if (limiter)
		__sync_fetch_and_add(&limiter->limited, 1);
	return true;
}
