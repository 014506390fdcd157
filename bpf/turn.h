/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What user space needs to infer whose message a receive got, where no function can be hooked (src/links/): the order
 * in which sends and receives of a queue began, and for each how many had begun when it ended. Of two calls one comes
 * before the other for certain where it had ended when the other began; a message was there for a receive where its send
 * had begun when the receive ended.
 *
 * Calls are counted by queue, in a table that queues share by hash: those of two queues in one place may seem to
 * overlap, never the reverse. So nothing has to be looked up or cleaned up, and nothing can fill.
 */
#pragma once
#include "count.h"
#include "inode.h"
#include "thread.h"

#define TURNS 4096

/* Whether it is wanted: by tracepoints, where sends and receives are both traced. */
const volatile bool infers_links;

struct turns {
	__u64 started[2]; /* sends, receives */
	__u64 ended[2];
	__u32 losses[2]; /* as those of the host (count.h), of callers whose queue is known */
	__u32 priority;	 /* of the first send, plus 1; 0: there was none */
	__u32 mixed;	 /* another send had another */
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

static __always_inline __u32 place_of(__u64 inode, __u64 ino)
{
	return (inode ^ ino) * 0x9e3779b97f4a7c15 >> 52;
}

/* The side of a call, 0 for sends: its opposite is 1 - side. */
static __always_inline __u32 side_of(enum op op)
{
	return op == OP_RECEIVE;
}

/* The reads before come before those after: x86 orders them itself. */
static __always_inline void order_reads(struct turns *all)
{
#ifdef __TARGET_ARCH_arm64
	__u64 before = fetch_and_add(&all->started[0], 0);

	asm volatile("" : : "r"(before) : "memory");
#else
	asm volatile("" : : : "memory");
#endif
}

/*
 * Sends of one priority make a receive's certain whose caller does not ask for it. Before the send counts as begun: who
 * gets its message finds it.
 */
static __always_inline void note_priority(struct turns *all, __u32 priority)
{
	volatile struct turns *now = all;
	__u32 first = now->priority;

	if (!first)
		first = compare_and_swap(&all->priority, 0, priority + 1);
	if (first && first != priority + 1 && !now->mixed)
		now->mixed = 1;
}

/* A send or receive begins, on a queue. */
static __always_inline void begin_turn(struct thread *thread, struct call *call, enum op op)
{
	__u32 place = place_of(call->queue_inode, call->queue_ino), side = side_of(op);
	struct message_args *message = ARGS(message_args, call);
	volatile struct turns *now;
	struct turns *all;
	__u64 ended, others;

	thread->turn = 0;
	if (!infers_links || !(call->flags & CALL_QUEUE))
		return;
	all = turns_at(place);
	if (!all)
		return;
	if (op == OP_SEND)
		note_priority(all, message->priority);
	thread->turn_place = place;
	thread->turn = fetch_and_add(&all->started[side], 1) + 1;
	/* Nobody else is under way, then the queue is empty, then nobody has begun meanwhile. */
	now = all;
	if (now->ended[side] + 1 != thread->turn)
		return;
	ended = now->ended[1 - side];
	order_reads(all);
	others = now->started[1 - side];
	if (others != ended || depth_of(call->queue_inode))
		return;
	order_reads(all);
	if (now->started[side] != thread->turn || now->started[1 - side] != others)
		return;
	call->flags |= CALL_EMPTY;
	message->begun_before = others;
}

/* Those of the queue of the call under way; 0: it is not counted. */
static __always_inline struct turns *turns_of(struct thread *thread)
{
	return thread->turn ? turns_at(thread->turn_place) : 0;
}

/* Whether no other call on the queue is under way, before its depth is read: only the call itself has not ended. */
static __always_inline bool is_quiet(struct thread *thread, struct turns *all, enum op op)
{
	volatile struct turns *now = all;
	__u32 side = side_of(op);
	__u64 own, others;

	if (!all)
		return false;
	own = now->ended[side];
	others = now->ended[1 - side];
	order_reads(all);
	thread->begun[side] = now->started[side];
	thread->begun[1 - side] = now->started[1 - side];
	order_reads(all);
	return thread->begun[side] == own + 1 && thread->begun[1 - side] == others;
}

/* Fills in what the order of the calls shows at the exit of one. */
static __always_inline void describe_turn(struct thread *thread, struct turns *all, struct call *call)
{
	struct message_args *message = ARGS(message_args, call);
	volatile struct turns *now = all;

	if (!all) {
		message->only_priority = 0;
		message->turn = 0;
		message->begun[0] = message->begun[1] = 0;
		call->losses[0] = call->losses[1] = 0;
		return;
	}
	order_reads(all);
	for (int i = 0; i < 2; i++)
		call->losses[i] = *(volatile __u32 *)&losses[i] + now->losses[i];
	message->only_priority = now->mixed ? 0 : now->priority;
	message->turn = thread->turn;
	message->begun[0] = now->started[0];
	message->begun[1] = now->started[1];
	if (thread->quiet && message->begun[0] == thread->begun[0] && message->begun[1] == thread->begun[1])
		call->flags |= CALL_QUIET;
}

/* After the call's record: who finds it ended finds its record in the ring. */
static __always_inline void end_turn(struct thread *thread, struct turns *all, enum op op)
{
	thread->turn = 0;
	if (all)
		add_in_order(&all->ended[side_of(op)]);
}

static __always_inline bool has_seccomp(struct task_struct *task)
{
	return bpf_core_field_exists(task->seccomp) && BPF_CORE_READ(task, seccomp.mode);
}

/* passed_fd() of pair.h: the plain programs can't find the caller's registers. */
#ifdef PLAIN
#define TELLS_PASSED_FD false
#else
#define TELLS_PASSED_FD true
#endif

/*
 * A send or receive got no number, but may pass a message. The queue is that of its descriptor, unless another thread
 * could put another one there meanwhile: then it may be any. A program with a seccomp filter can have any number of exits
 * without an entry, so that what it does is only its own queues' concern, where these can be told.
 */
static __always_inline void lose_turn(enum op op, struct task_struct *task, __s64 fd)
{
	bool confined, certain;
	struct file *file;
	struct inode *inode = 0;
	struct turns *all = 0;
	__u32 side = side_of(op);

	if (!infers_links || (op != OP_SEND && op != OP_RECEIVE))
		return;
	confined = has_seccomp(task);
	certain = confined || FOLLOW(task, files, count.counter) == 1;
	file = file_of(task, fd);
	if (file && certain)
		inode = BPF_CORE_READ(file, f_inode);
	if (inode && BPF_CORE_READ(inode, i_sb, s_magic) == MQUEUE_MAGIC)
		all = turns_at(place_of((__u64)inode, BPF_CORE_READ(inode, i_ino)));
	if (all) {
		__sync_fetch_and_add(&all->losses[side], 1);
	} else if (!confined || !TELLS_PASSED_FD) {
		add_in_order(&losses[side]);
	}
}
