/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What user space needs to infer whose message a receive got, where no function can be hooked (src/links/sequence.rs):
 * which calls had no other of their kind on the queue under way beside them, so that their order is certain.
 *
 * Calls are counted by queue, in a table that queues share by hash: those of two queues in one place may seem to
 * overlap, never the reverse. So nothing has to be looked up or cleaned up, and nothing can fill.
 */
#pragma once
#include "count.h"
#include "thread.h"

#define TURNS 4096

/* Whether it is wanted: by tracepoints, where sends and receives are both traced. */
const volatile bool infers_links;

struct turns {
	__u64 started[2]; /* sends, receives */
	__u64 ended[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TURNS);
	__type(key, __u32);
	__type(value, struct turns);
} turns SEC(".maps");

static __always_inline struct turns *turns_at(__u32 place)
{
	return bpf_map_lookup_elem(&turns, &place);
}

/* The side of a call, 0 for sends: its opposite is 1 - side. */
static __always_inline __u32 side_of(enum op op)
{
	return op == OP_RECEIVE;
}

/* A send or receive begins, on a queue. */
static __always_inline void begin_turn(struct thread *thread, struct call *call, enum op op)
{
	__u32 place = (call->queue_inode ^ call->queue_ino) * 0x9e3779b97f4a7c15 >> 52, side = side_of(op);
	volatile struct turns *now;
	struct turns *all;
	__u64 ended;

	thread->turn = 0;
	if (!infers_links || !(call->flags & CALL_QUEUE))
		return;
	all = turns_at(place);
	if (!all)
		return;
	thread->turn_place = place;
	thread->turn = __sync_fetch_and_add(&all->started[side], 1) + 1;
	/* An earlier one that is under way, or a later one that began just now: describe_turn() sees the latter. */
	now = all;
	thread->alone = now->ended[side] + 1 == thread->turn;
	ended = now->ended[1 - side];
	ARGS(message_args, call)->begun_before = now->started[1 - side] == ended ? ended : ~0ULL;
}

/* Whether no other call on the queue is under way, before its depth is read. */
static __always_inline bool is_quiet(struct thread *thread, enum op op)
{
	volatile struct turns *now = thread->turn ? turns_at(thread->turn_place) : 0;
	__u32 side = side_of(op);
	__u64 ended;

	if (!now || !thread->alone)
		return false;
	ended = now->ended[1 - side];
	thread->others = now->started[1 - side];
	return now->started[side] == thread->turn && thread->others == ended;
}

/* Fills in what the order of the calls shows at the exit of one. */
static __always_inline void describe_turn(struct thread *thread, struct call *call, enum op op)
{
	volatile struct turns *now = thread->turn ? turns_at(thread->turn_place) : 0;
	struct message_args *message = ARGS(message_args, call);
	__u32 side = side_of(op);
	__u64 ended, started;

	message->turn = 0;
	if (!now)
		return;
	call->losses = *(volatile __u32 *)&losses;
	if (thread->alone && now->started[side] == thread->turn)
		call->flags |= CALL_ALONE;
	/* In this order: at worst one too many are under way. */
	ended = now->ended[1 - side];
	started = now->started[1 - side];
	if (thread->quiet && call->flags & CALL_ALONE && started == thread->others)
		call->flags |= CALL_QUIET;
	message->opposite = started - ended;
	message->turn = thread->turn;
	message->begun = started;
}

/* After the call's record: who finds it ended finds its record in the ring, or its loss counted. */
static __always_inline void end_turn(struct thread *thread, enum op op)
{
	struct turns *all = thread->turn ? turns_at(thread->turn_place) : 0;

	thread->turn = 0;
	if (all)
		add_in_order(&all->ended[side_of(op)]);
}
