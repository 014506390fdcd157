/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The pairing of entry and exit: who calls, what stays the same for each call, and what becomes of it. */
#pragma once
#include "aggregate.h"
#include "cause.h"
#include "context.h"
#include "limit.h"
#include "container.h"
#include "output.h"
#include "turn.h"

/* SplitMix64: distinct and evenly spread for each step of the state. */
static __always_inline __u64 next_id(__u64 *state)
{
	__u64 z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* Whether a message carries the ids of its send's span, which are then made before it can be received. */
const volatile bool messages_carry_ids;

/*
 * The ids of the call's span. Each thread goes on from a random state of its own; no id is 0, which means none. A sampled
 * span of the application's that the call is made in is its parent: the call's own belongs to that trace.
 */
static __always_inline void make_ids(struct thread *thread, struct call *call)
{
	if (!thread->ids[0])
		for (int i = 0; i < 3; i++)
			thread->ids[i] = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
	call->span_id = next_id(&thread->ids[2]) | 1;
	if (call->flags & CALL_CONTEXT_SAMPLED) {
		call->trace_id[0] = call->context.trace_id[0];
		call->trace_id[1] = call->context.trace_id[1];
		return;
	}
	call->trace_id[0] = next_id(&thread->ids[0]);
	call->trace_id[1] = next_id(&thread->ids[1]) | 1;
}

/* What stays the same while the thread runs one image is looked up once: exec changes all of it, even the tid. */
static __always_inline void identify_thread(struct slot *slot, struct task_struct *task)
{
	__u32 exec_id = READ(task, self_exec_id);
	struct call *call = &slot->call;

	if (slot->exec_id == exec_id + 1)
		return;
	call->pid = READ(task, tgid);
	call->tid = READ(task, pid);
	call->vpid = number_in_namespace(FOLLOW(task, group_leader));
	call->local_pid = local_number(FOLLOW(task, group_leader));
	call->process_started_ns = FOLLOW(task, group_leader, start_boottime);
	call->exec_id = exec_id;
	slot->exec_id = exec_id + 1;
	slot->image_hash = mix(mix(name_seed[0], call->process_started_ns), (__u64)call->pid << 32 | exec_id);
	slot->in_tree = is_in_tree(call->pid);
	slot->marks_age = 0;
	slot->groups = 0;
}

/* --container; another css_set is what a task gets that is moved to other control groups. */
static __always_inline void look_at_container(struct slot *slot, struct task_struct *task)
{
	__u64 groups = (__u64)FOLLOW(task, cgroups);

	if (container_mode == RULES_NONE || slot->groups == groups)
		return;
	slot->container_wanted = is_container_wanted();
	slot->groups = groups;
}

#ifdef __TARGET_ARCH_arm64
/* Some wrappers serve callers of both kinds (arch/arm64/include/asm/thread_info.h). */
#define TIF_32BIT 22

static __always_inline enum abi abi_of(struct task_struct *task, enum abi abi)
{
	return abi == ABI_NATIVE && READ(task, thread_info.flags) & 1 << TIF_32BIT ? ABI_COMPAT : abi;
}
#else
static __always_inline enum abi abi_of(struct task_struct *task, enum abi abi)
{
	return abi;
}
#endif

/* Entries and exits of mqspan's own calls: it makes one to see whether what is attached sees anything. */
__u32 own_entries;
__u32 own_exits;

static __always_inline struct thread *enter(enum op op, enum abi abi, __s32 fd, struct task_struct *task)
{
	struct thread *thread;
	struct call *call;

	if (READ(task, tgid) == own_pid) {
		__sync_fetch_and_add(&own_entries, 1);
		return 0;
	}
	if (closed)
		return 0;
	thread = make_thread(task);
	if (!thread) {
		count(COUNT_LOST_STATE);
		lose_turn(op, task, fd);
		return 0;
	}
	if (thread->in_flight) {
		count(COUNT_LOST_NO_EXIT);
		end_turn(thread, turns_of(thread), thread->in_flight - 1);
	}
	thread->in_flight = 1 + op;
	thread->slot = (__u32)fd % SLOTS;
	call = call_of(thread);
	call->op = op;
	call->abi = abi_of(task, abi);
	call->flags = 0;
	call->fd = fd;
	call->asked_len = 0;
	call->actual_len = 0;
	identify_thread(slot_of(thread), task);
	call->uid = FOLLOW(task, cred, euid.val);
	if (makes_records && has_contexts())
		read_context(call);
	if (messages_carry_ids)
		make_ids(thread, call);
	return thread;
}

/* The descriptor that the system call was passed which now ends; -1: it can't be told. */
static __always_inline __s64 passed_fd(struct task_struct *task)
{
#ifdef PLAIN
	return -1;
#else
	struct pt_regs *regs = infers_links ? (void *)bpf_task_pt_regs(task) : 0;

#ifdef __TARGET_ARCH_arm64
	return regs ? (__s32)BPF_CORE_READ((struct pt_regs___entry *)regs, orig_x0) : -1;
#else
	return regs ? (__s32)BPF_CORE_READ(regs, di) : -1;
#endif
#endif
}

/* The thread's call of this kind that is under way, now ended; 0 where its entry was not seen. */
static __always_inline struct thread *leave(enum op op, long ret, struct task_struct *task)
{
	__u64 now = bpf_ktime_get_ns();
	struct thread *thread = thread_of(task);
	struct call *call;

	if (!thread || thread->in_flight != 1 + op) {
		if (READ(task, tgid) == own_pid) {
			__sync_fetch_and_add(&own_exits, 1);
		} else if (!closed) {
			count(COUNT_UNPAIRED);
			/* One that fails passes no message, unless the caller's memory would not take it. */
			if (ret >= 0 || ret == -EFAULT)
				lose_turn(op, task, passed_fd(task));
		}
		return 0;
	}
	thread->in_flight = 0;
	call = call_of(thread);
	call->left_ns = now;
	call->ret = ret;
	return thread;
}

/* As bpf_get_current_comm() does, in a tenth of its time: where the verifier allows it, by two loads. */
static __always_inline void copy_comm(char *comm, struct task_struct *task)
{
#ifdef PLAIN
	bpf_core_read(comm, COMM_SIZE, &task->comm);
#else
	__u64 *words = (void *)comm;

	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		for (int i = 0; i < COMM_SIZE / 8; i++)
			words[i] = (__u64)pointer_at(task->comm + 8 * i);
	} else {
		bpf_core_read(comm, COMM_SIZE, &task->comm);
	}
#endif
}

/* The hash of the call's name; that of a slot's queue is worked out once. */
static __always_inline __u64 name_hash(struct slot *slot)
{
	bool kept = slot->queue_ipc_ns && slot->call.flags & CALL_QUEUE;
	__u64 hash;

	if (kept && slot->queue_hash)
		return slot->queue_hash;
	hash = hash_of_name(&slot->call);
	if (kept)
		slot->queue_hash = hash;
	return hash;
}

/* What became of a call at its exit. */
enum outcome {
	OUTCOME_NONE,  /* it has no record */
	OUTCOME_KEPT,  /* it has one */
	OUTCOME_IMAGE, /* its image is to be sent first */
};

/* Adds the call to its queue's state; returns whether it passes the filters on whose calls. */
static __always_inline bool matches(struct thread *thread)
{
	struct slot *slot = slot_of(thread);
	struct call *call = &slot->call;
	bool matched = container_mode == RULES_NONE || slot->container_wanted;
	struct queue_state *state;

	matched = slot->in_tree && is_of_interest(call) && matched;
	if (aggregates || max_rate) {
		thread->name = name_hash(slot);
		state = call->flags & CALL_QUEUE ? state_of(call, thread->name) : 0;
		if (state)
			update_queue(call, state, matched);
	}
	return matched;
}

/* The call passes these filters: counts it; returns whether it is to have a record. */
static __always_inline bool measure(struct thread *thread)
{
	struct call *call = call_of(thread);

	if (call->ret < 0)
		explain(call);
	if (aggregates) {
		call->flags |= CALL_MEASURED;
		aggregate(thread);
	}
	if (!makes_records)
		return false;
	if (!is_wanted(call)) {
		count(COUNT_FILTERED);
		return false;
	}
	if (max_rate && is_limited(call, call->flags & CALL_QUEUE ? state_of(call, thread->name) : 0)) {
		count(COUNT_LIMITED);
		return false;
	}
	return true;
}

/*
 * The call is described: where it passes the filters, and its image was sent, it is counted and sent. The programs send the
 * image themselves, and call this again: the stack is not deep enough for that in here.
 */
static __always_inline int conclude_of(struct thread *thread)
{
	struct slot *slot = slot_of(thread);
	struct call *call = &slot->call;
	bool matched = thread->matched, kept;

	thread->matched = false;
	if (!matched) {
		matched = matches(thread);
		if (!matched)
			count(COUNT_FILTERED);
		if (matched && slot->marks_age != *(volatile __u32 *)&marks_age + 1) {
			thread->matched = true;
			return OUTCOME_IMAGE;
		}
	}
	kept = matched && measure(thread);
	if (kept) {
		if (!messages_carry_ids)
			make_ids(thread, call);
		return send_call(call) ? OUTCOME_KEPT : OUTCOME_NONE;
	}
	/* Where links are inferred, they need it all the same. */
	call->flags |= CALL_FILTERED;
	if (infers_links && is_message(call) && call->flags & CALL_QUEUE)
		put_call(call);
	return OUTCOME_NONE;
}

ONCE_OF_THREAD(conclude)

/* Sends the image once; that it is marked is remembered until user space removes any mark. */
static __always_inline void send_image(struct slot *slot)
{
	__u32 age = *(volatile __u32 *)&marks_age + 1;

	if (mark_image(&slot->call))
		slot->marks_age = age;
}

/* Returns whether the call has a record. */
static __always_inline bool finish(struct thread *thread, struct task_struct *task)
{
	struct slot *slot = slot_of(thread);
	struct call *call = &slot->call;
	int outcome;

	look_at_container(slot, task);
	if (!(call->flags & CALL_QUEUE))
		call->ipc_ns = FOLLOW(task, nsproxy, ipc_ns, ns.inum);
	if (makes_records || aggregates_comm) {
		copy_comm(call->comm, task);
		call->flags |= CALL_SPAN;
	}
	outcome = conclude(thread);
	if (outcome == OUTCOME_IMAGE) {
		send_image(slot);
		outcome = conclude(thread);
	}
	return outcome == OUTCOME_KEPT;
}
