/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The state of a call in flight is the record itself, built in the storage of the thread that makes the call: a thread
 * is in one call at a time, its storage goes with it, and no other thread can touch it.
 */
#pragma once
#include "event.h"

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
	__u64 groups;	    /* the task's css_set when container_wanted was worked out, 0: not yet */
	bool container_wanted;
	struct call call;
};

/* Descriptors side by side take different slots, so that a thread that reads one queue and writes another keeps both. */
#define SLOTS 2

struct thread {
	__u32 in_flight; /* 1 + op, 0 where no call is under way */
	__u32 slot;	 /* ... of the call under way */
	__u64 ids[3];	 /* where the thread's trace and span ids come from; 0: not seeded */
	__u64 switches;	 /* voluntary context switches at entry */
	__u64 message;	 /* that the send under way has made, see message.h */
	__u64 turn;	 /* number of the call under way among those of its kind on the queue, from 1; see turn.h */
	__u64 begun[2];	 /* sends and receives on the queue that had begun when it ended */
	__u32 turn_place;
	bool quiet; /* none of them was under way then */
	struct slot slots[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

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
