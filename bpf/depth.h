/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The state of each queue that a call reached, whoever made it: how full it is, and was at the most since user space
 * looked last. Periods are told apart by a number that user space counts up; nothing has to be set back.
 */
#pragma once
#include "name.h"
#include "thread.h"
#include "filter.h"
#include "inode.h"

#define QUEUES 8192
#define PEAK_TRIES 8

struct queue_key {
	__u64 inode;
	__u64 ino;
	__u64 ns;
};

/* Records in a second, see limit.h. */
struct limiter {
	__u64 taken; /* the second above, the records below: both change at once */
	__u32 limited; /* calls without a record since the last one */
	__u32 unused;
};

struct queue_state {
	__u64 name; /* see struct name */
	__s64 maxmsg;
	__s64 depth;
	__u64 peaks[2]; /* of the period with this lowest bit: its number above, the peak below */
	struct limiter limits[2]; /* of sends, of receives */
	__u32 ipc_ns;
	__u32 matched; /* a call that passed the filters on whose calls reached it */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, QUEUES);
	__type(key, struct queue_key);
	__type(value, struct queue_state);
} queues SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} period SEC(".maps");

static __always_inline void raise_peak(struct queue_state *state, __u64 depth, __u64 before)
{
	__u32 first = 0, *number = bpf_map_lookup_elem(&period, &first);
	__u64 now, *peak;

	if (!number)
		return;
	now = *number;
	peak = &state->peaks[now & 1];
	for (int i = 0; i < PEAK_TRIES; i++) {
		__u64 old = *(volatile __u64 *)peak, most = depth;

		/* The period begins with what was in the queue. */
		if (old >> 32 != now)
			most = before > depth ? before : depth;
		else if ((__u32)old >= depth)
			return;
		if (compare_and_swap(peak, old, now << 32 | most) == old)
			return;
	}
}

/* The state of the queue that a call reached, made where there is none yet. */
static __always_inline struct queue_state *state_of(const struct call *call, __u64 name)
{
	struct queue_key key = { call->queue_inode, call->queue_ino, call->queue_ns };
	struct queue_state *state = bpf_map_lookup_elem(&queues, &key);
	struct queue_state new = {};

	if (state)
		return state;
	new.name = name;
	new.maxmsg = call->queue_maxmsg;
	new.ipc_ns = call->ipc_ns;
	bpf_map_update_elem(&queues, &key, &new, BPF_NOEXIST);
	state = bpf_map_lookup_elem(&queues, &key);
	if (!state) {
		count(COUNT_QUEUES_FULL);
		return 0;
	}
	send_name(call, name);
	state->depth = call->queue_curmsgs;
	return state;
}

/*
 * A call that reached a queue has ended; `matched` if it passed the filters on whose calls. Global: it is verified once.
 */
VERIFIED_ONCE int update_queue(const struct call *call, struct queue_state *state, bool matched)
{
	__s64 before;

	if (!call || !state)
		return 0;
	if (matched)
		state->matched = 1;
	before = state->depth;
	if (call->flags & CALL_QUEUE_LEFT)
		return 0;
	state->depth = call->queue_curmsgs;
	/* Another call may have written what it had read before this one: the last to look again is right. */
	if (!(call->flags & CALL_QUIET))
		state->depth = depth_of(call->queue_inode);
	raise_peak(state, call->queue_curmsgs, before);
	return 0;
}

/* msg_insert() is about to add a message: with it the queue is as full as it gets. */
static __always_inline void peak_at_insert(struct mqueue_inode_info *info)
{
	struct inode *inode = (void *)info + bpf_core_field_offset(struct mqueue_inode_info, vfs_inode);
	struct queue_key key = {
		.inode = (__u64)inode,
		.ino = BPF_CORE_READ(inode, i_ino),
		.ns = (__u64)BPF_CORE_READ(inode, i_sb, s_fs_info),
	};
	struct queue_state *state = bpf_map_lookup_elem(&queues, &key);

	if (state)
		raise_peak(state, BPF_CORE_READ(info, attr.mq_curmsgs) + 1, state->depth);
}
