/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The state of a call in flight is the record itself, built in the storage of the thread that makes the call: a thread
 * is in one call at a time, its storage goes with it, and no other thread can touch it. Where the kernel has no task
 * storage, or allocates it where that is unsafe (src/kernel/hazards.rs), a preallocated table by thread id stands in.
 */
#pragma once
#include "event.h"
#include "count.h"

/*
 * A record with what stays the same from one call to the next and is not looked up again: who the thread is, and the
 * queue, which costs ten reads of kernel memory to describe and three to recognise.
 */
struct slot {
	__u32 exec_id;	    /* the image that the record names, plus 1; 0: none yet */
	__u32 queue_ipc_ns; /* the queue that the record describes, 0: none */
	__u32 queue_len;    /* of its name, at the beginning of the record's names */
	__u32 in_tree;	    /* whether the process descends from the traced command, which never changes */
	__u32 marks_age;    /* the image was marked as sent at this age of the marks, plus 1; 0: not known */
	__u32 unused;
	__u64 queue_hash;   /* of the queue's name, 0: not worked out yet */
	__u64 image_hash;   /* of the image, for its series (aggregate.h) */
	__u64 groups;	    /* the task's css_set when container_wanted was worked out, 0: not yet */
	bool container_wanted;
	struct call call;
};

/* Places of the table of states, and of the counts of who holds them. */
#define STATES 8192
#define STATE_HOLDERS 4096

/* Descriptors side by side take different slots, so that a thread that reads one queue and writes another keeps both. */
#define SLOTS 2

struct thread {
	__u32 in_flight; /* 1 + op, 0 where no call is under way */
	__u32 slot;	 /* ... of the call under way */
	__u64 ids[3];	 /* where the thread's trace and span ids come from; 0: not seeded */
	__u64 switches;	 /* voluntary context switches at entry */
	__u64 message;	 /* that the send under way has made, see message.h */
	__u64 priority_ptr; /* where the receive under way wants the priority */
	__u64 turn;	 /* number of the call under way among those of its kind on the queue, from 1; see turn.h */
	__u64 begun[2];	 /* sends and receives on the queue that had begun when it ended */
	__u32 turn_place;
	bool quiet; /* none of them was under way then */
	bool matched; /* the call that has just ended passed the filters, but its image has yet to be sent, see pair.h */
	__u64 name;	 /* the hash of the name of the call under way */
	__u64 started_ns; /* of the thread, in the table: ids are used again */
	struct slot slots[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/* Whether states are in task storage; else they are in the table. */
const volatile bool has_task_storage;

/* User space cuts the table to one place where it is not used. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STATES);
	__type(key, __u32);
	__type(value, struct thread);
} thread_states SEC(".maps");

/*
 * How many states there are, and those of each process, by a hash of its id: above three quarters of all a state is
 * given up with its call, and no process holds more than a quarter, so that none takes the room of the others. Both may be
 * a few too many for a moment.
 */
__u32 states;
__u32 states_of[STATE_HOLDERS];

static const struct thread no_call;

static __always_inline __u32 *states_held(struct task_struct *task)
{
	return &states_of[(__u32)BPF_CORE_READ(task, tgid) % STATE_HOLDERS];
}

/* The current thread's state, 0: it has none. */
static __always_inline struct thread *thread_of(struct task_struct *task)
{
	struct thread *thread;
	__u32 tid;

	if (has_task_storage)
		return bpf_task_storage_get(&threads, task, 0, 0);
	tid = READ(task, pid);
	thread = bpf_map_lookup_elem(&thread_states, &tid);
	return thread && thread->started_ns == READ(task, start_boottime) ? thread : 0;
}

/* The same, made where there is none; 0: there is no room. */
static __always_inline struct thread *make_thread(struct task_struct *task)
{
	struct thread *thread;
	__u32 tid, *held;

	if (has_task_storage)
		return bpf_task_storage_get(&threads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	tid = READ(task, pid);
	thread = bpf_map_lookup_elem(&thread_states, &tid);
	if (!thread) {
		held = states_held(task);
		if (*(volatile __u32 *)held >= STATES / 4 || bpf_map_update_elem(&thread_states, &tid, &no_call, BPF_NOEXIST))
			return 0;
		__sync_fetch_and_add(held, 1);
		__sync_fetch_and_add(&states, 1);
		thread = bpf_map_lookup_elem(&thread_states, &tid);
		if (!thread)
			return 0;
	} else if (thread->started_ns != READ(task, start_boottime)) {
		/* The end of the thread that had this id went unseen. */
		thread->in_flight = 0;
		thread->slots[0].exec_id = thread->slots[1].exec_id = 0;
		thread->slots[0].queue_ipc_ns = thread->slots[1].queue_ipc_ns = 0;
	}
	thread->started_ns = READ(task, start_boottime);
	return thread;
}

static __always_inline void drop_state(struct task_struct *task, __u32 tid)
{
	if (has_task_storage || bpf_map_delete_elem(&thread_states, &tid))
		return;
	__sync_fetch_and_add(states_held(task), -1);
	__sync_fetch_and_add(&states, -1);
}

/* A call has ended, and nothing of it is looked at any more. */
static __always_inline void release_thread(struct task_struct *task)
{
	if (!has_task_storage && *(volatile __u32 *)&states > STATES / 4 * 3)
		drop_state(task, READ(task, pid));
}

static __always_inline struct slot *slot_of(struct thread *thread)
{
	return &thread->slots[thread->slot % SLOTS];
}

static __always_inline struct call *call_of(struct thread *thread)
{
	return &slot_of(thread)->call;
}

#define ARGS(type, call) ((struct type *)(call)->args)

/*
 * A task's number inside its own pid namespace (kernel/pid.c, pid_nr_ns). The pointer is read, not followed: older
 * verifiers (seen on 6.1) take no arithmetic with a variable on a pointer that they know.
 */
static __always_inline __u32 number_in_namespace(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	struct upid *last = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			    BPF_CORE_READ(pid, level) * bpf_core_type_size(struct upid);

	return BPF_CORE_READ(last, nr);
}
