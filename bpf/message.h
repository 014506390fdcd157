/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which receive gets the message of which send, by the message's own identity: the address of its struct msg_msg. The
 * sender registers it before anyone can receive it, the receiver finds it, and it ends with the message. SysV queues
 * use the same functions: only threads inside a call of the family count.
 */
#pragma once
#include "pair.h"

#define MESSAGES 65536

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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESSAGES);
	__type(key, __u64);
	__type(value, struct message);
} messages SEC(".maps");

/* Whether msg_insert() is hooked: without it nobody knows since when a message waits. */
const volatile bool sees_insert;

/* The thread, where it is inside a call of this kind. */
static __always_inline struct thread *inside(enum op op)
{
	struct thread *thread = thread_of(bpf_get_current_task_btf());

	return thread && thread->in_flight == 1 + op ? thread : 0;
}

/* load_msg(src, len) has made the message of a send. */
static __always_inline void at_load_msg(__u64 made)
{
	struct thread *thread = inside(OP_SEND);
	struct message message;
	struct call *call;

	if (!thread || made >= -(__u64)MAX_ERRNO)
		return;
	call = call_of(thread);
	message.trace_id[0] = call->trace_id[0];
	message.trace_id[1] = call->trace_id[1];
	message.span_id = call->span_id;
	message.queue_inode = call->queue_inode;
	message.inserted_ns = 0;
	/* Where a span's record depends on how the call ends, finish_send() says so. */
	message.verdict = VERDICT_FILTERED;
	if (makes_records && slot_of(thread)->in_tree && is_of_interest(call) && !only_failed && !min_duration_ns)
		message.verdict = is_limited_early(call) ? VERDICT_LIMITED : VERDICT_KEPT;
	bpf_get_current_comm(message.comm, sizeof(message.comm));
	thread->message = made;
	if (bpf_map_update_elem(&messages, &made, &message, BPF_ANY)) {
		count(COUNT_UNTRACKED);
		thread->message = 0;
	}
}

/* msg_insert(msg, info): for a sender that waited, the receiver does this. */
static __always_inline void at_msg_insert(__u64 msg, __u64 info)
{
	struct message *message = bpf_map_lookup_elem(&messages, &msg);

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
	struct message_args *args;
	struct message *message;
	struct call *call;

	if (!thread)
		return;
	call = call_of(thread);
	args = ARGS(message_args, call);
	args->priority = BPF_CORE_READ((struct msg_msg *)msg, m_type);
	call->flags |= CALL_PRIORITY;
	message = bpf_map_lookup_elem(&messages, &msg);
	/* Another queue's: its end went unseen, and this message's beginning too. */
	if (!message || message->queue_inode != call->queue_inode)
		return;
	if (sees_insert) {
		args->wait_ns = message->inserted_ns ? now - message->inserted_ns : 0;
		call->flags |= CALL_WAIT;
	}
	if (max_rate && message->verdict != VERDICT_FILTERED)
		call->flags |= CALL_DECIDED | (message->verdict == VERDICT_LIMITED ? CALL_LIMITED : 0);
	if (message->verdict != VERDICT_KEPT)
		return;
	args->sent_trace_id[0] = message->trace_id[0];
	args->sent_trace_id[1] = message->trace_id[1];
	args->sent_span_id = message->span_id;
	__builtin_memcpy(args->sent_comm, message->comm, sizeof(args->sent_comm));
	call->flags |= CALL_LINK;
}

/* free_msg(msg): received, not sent after all, or lost with its queue. */
static __always_inline void at_free_msg(__u64 msg)
{
	bpf_map_delete_elem(&messages, &msg);
}

/* A send has ended, with a record or without: its message says so, unless it is gone already. */
static __always_inline void finish_send(struct thread *thread, bool kept)
{
	__u64 msg = thread->message;
	struct message *message;

	thread->message = 0;
	if (!msg || (kept && !min_duration_ns && !max_rate))
		return;
	message = bpf_map_lookup_elem(&messages, &msg);
	if (message && message->span_id == call_of(thread)->span_id)
		message->verdict = kept ? VERDICT_KEPT : call_of(thread)->flags & CALL_LIMITED ? VERDICT_LIMITED : VERDICT_FILTERED;
}
