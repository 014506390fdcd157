/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which receive gets the message of which send, by the message's own identity: the address of its struct msg_msg. The
 * sender registers it before anyone can receive it, the receiver finds it, and it ends with the message. SysV queues
 * use the same functions: only threads inside a call of the family count.
 */
#pragma once
#include "pair.h"

/*
 * Messages have their places in sets by a hash of their address: found by a few comparisons, without a lock and without
 * a helper. Where a set is full the message goes to a table beside.
 */
#define SETS 16384
#define PLACES 4
#define BESIDE 16384

/* Whether a send has a record, and so, unless it is exempt, the receive of its message. */
enum verdict { VERDICT_FILTERED, VERDICT_KEPT, VERDICT_LIMITED };

struct message {
	__u64 trace_id[2]; /* of the span that sent it */
	__u64 span_id;
	__u64 queue_inode;
	__u64 inserted_ns; /* into the queue; 0: not yet, or handed to a waiting receiver */
	__u64 verdict;	   /* enum verdict, of its send */
	char comm[COMM_SIZE];
};

struct message_set {
	__u64 msg[PLACES]; /* whose place it is, 0: nobody's */
	struct message of[PLACES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SETS);
	__type(key, __u32);
	__type(value, struct message_set);
} message_sets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BESIDE);
	__type(key, __u64);
	__type(value, struct message);
} messages_beside SEC(".maps");

/* How many are beside: mostly none, so that nobody looks. */
__u32 beside;

static const struct message no_message;

#ifdef OLD
/* No place can be taken without a comparison and an exchange at once: all are in the table beside. */
static __always_inline struct message *find_message(__u64 msg)
{
	return bpf_map_lookup_elem(&messages_beside, &msg);
}

static __always_inline struct message *place_message(__u64 msg)
{
	bpf_map_update_elem(&messages_beside, &msg, &no_message, BPF_NOEXIST);
	return bpf_map_lookup_elem(&messages_beside, &msg);
}

static __always_inline void drop_message(__u64 msg)
{
	bpf_map_delete_elem(&messages_beside, &msg);
}
#else
static __always_inline struct message_set *message_set_of(__u64 msg)
{
	__u64 low;
	__u32 set;

	/* A function's argument is a pointer to the verifier, which allows no arithmetic with it: its lower half is a number. */
	asm volatile("r1 = %1; w0 = w1; %0 = r0" : "=r"(low) : "r"(msg) : "r0", "r1");
	set = (__u32)low * 0x9e3779b1 >> 18;
	return bpf_map_lookup_elem(&message_sets, &set);
}

/* The place of a message that is known; 0: it is not. */
static __always_inline struct message *find_message(__u64 msg)
{
	struct message_set *set = message_set_of(msg);

	if (!set)
		return 0;
	for (int i = 0; i < PLACES; i++)
		if (set->msg[i] == msg)
			return &set->of[i];
	return *(volatile __u32 *)&beside ? bpf_map_lookup_elem(&messages_beside, &msg) : 0;
}

/* A place for a message that nobody else knows yet; 0: there is none. Its end may have gone unseen, so that it has one. */
static __always_inline struct message *place_message(__u64 msg)
{
	struct message *known = find_message(msg);
	struct message_set *set = message_set_of(msg);

	if (known || !set)
		return known;
	for (int i = 0; i < PLACES; i++)
		if (!*(volatile __u64 *)&set->msg[i] && !__sync_val_compare_and_swap(&set->msg[i], 0, msg))
			return &set->of[i];
	if (bpf_map_update_elem(&messages_beside, &msg, &no_message, BPF_NOEXIST))
		return 0;
	__sync_fetch_and_add(&beside, 1);
	return bpf_map_lookup_elem(&messages_beside, &msg);
}

/* The message is gone; what was read of its place was read before that. */
static __always_inline void drop_message(__u64 msg)
{
	struct message_set *set = message_set_of(msg);

	if (!set)
		return;
	for (int i = 0; i < PLACES; i++) {
		if (set->msg[i] != msg)
			continue;
#ifdef __TARGET_ARCH_arm64
		__sync_lock_test_and_set(&set->msg[i], 0);
#else
		*(volatile __u64 *)&set->msg[i] = 0;
#endif
		return;
	}
	if (*(volatile __u32 *)&beside && !bpf_map_delete_elem(&messages_beside, &msg))
		__sync_fetch_and_add(&beside, -1);
}
#endif

/* Whether msg_insert() is hooked: without it nobody knows since when a message waits. */
const volatile bool sees_insert;

/* The thread, where it is inside a call of this kind. */
static __always_inline struct thread *inside(enum op op)
{
	struct thread *thread = thread_of(current_task());

	return thread && thread->in_flight == 1 + op ? thread : 0;
}

/* load_msg(src, len) has made the message of a send. */
static __always_inline void at_load_msg(__u64 made)
{
	struct thread *thread = inside(OP_SEND);
	struct message *message;
	struct call *call;

	if (!thread || made >= -(__u64)MAX_ERRNO)
		return;
	message = place_message(made);
	if (!message) {
		count(COUNT_UNTRACKED);
		return;
	}
	call = call_of(thread);
	message->trace_id[0] = call->trace_id[0];
	message->trace_id[1] = call->trace_id[1];
	message->span_id = call->span_id;
	message->queue_inode = call->queue_inode;
	message->inserted_ns = 0;
	/* Where a span's record depends on how the call ends, finish_send() says so. */
	message->verdict = VERDICT_FILTERED;
	if (makes_records && slot_of(thread)->in_tree && is_of_interest(call) && !only_failed && !min_duration_ns)
		message->verdict = is_limited_early(call) ? VERDICT_LIMITED : VERDICT_KEPT;
	copy_comm(message->comm, current_task());
	thread->message = made;
}

/* msg_insert(msg, info): for a sender that waited, the receiver does this. */
static __always_inline void at_msg_insert(__u64 msg, __u64 info)
{
	struct message *message = find_message(msg);

	if (message)
		message->inserted_ns = bpf_ktime_get_ns();
	if (aggregates)
		peak_at_insert((void *)info);
}

/* store_msg(dest, msg, len) copies the message to its receiver, who has taken it from the queue just before. */
static __always_inline void at_store_msg(__u64 msg)
{
	__u64 now = bpf_ktime_get_ns();
	struct thread *thread = inside(OP_RECEIVE);
	struct received *received;
	struct message *message;
	struct call *call;

	if (!thread)
		return;
	call = call_of(thread);
	received = &call->received;
	ARGS(message_args, call)->priority = BPF_CORE_READ((struct msg_msg *)msg, m_type);
	call->flags |= CALL_PRIORITY;
	message = find_message(msg);
	/* Another queue's: its end went unseen, and this message's beginning too. */
	if (!message || message->queue_inode != call->queue_inode)
		return;
	if (sees_insert) {
		received->wait_ns = message->inserted_ns ? now - message->inserted_ns : 0;
		call->flags |= CALL_WAIT;
	}
	if (max_rate && message->verdict != VERDICT_FILTERED)
		call->flags |= CALL_DECIDED | (message->verdict == VERDICT_LIMITED ? CALL_LIMITED : 0);
	if (message->verdict != VERDICT_KEPT)
		return;
	received->trace_id[0] = message->trace_id[0];
	received->trace_id[1] = message->trace_id[1];
	received->span_id = message->span_id;
	__builtin_memcpy(received->comm, message->comm, sizeof(received->comm));
	call->flags |= CALL_LINK;
}

/* free_msg(msg): received, not sent after all, or lost with its queue. */
static __always_inline void at_free_msg(__u64 msg)
{
	drop_message(msg);
}

/* A send has ended, with a record or without: its message says so, unless it is gone already. */
static __always_inline void finish_send(struct thread *thread, bool kept)
{
	__u64 msg = thread->message;
	struct message *message;

	thread->message = 0;
	if (!msg || (kept && !min_duration_ns && !max_rate))
		return;
	message = find_message(msg);
	if (message && message->span_id == call_of(thread)->span_id)
		message->verdict = kept ? VERDICT_KEPT : call_of(thread)->flags & CALL_LIMITED ? VERDICT_LIMITED : VERDICT_FILTERED;
}
