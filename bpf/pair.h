/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The pairing of entry and exit. The state of a call in flight is the record itself, built in the storage of the thread
 * that makes the call: a thread is in one call at a time, its storage goes with it, and no other thread can touch it.
 */
#pragma once
#include "filter.h"
#include "image.h"
#include "output.h"
#include "queue.h"

struct thread {
	__u32 in_flight; /* 1 + op, 0 where no call is under way */
	__u32 exec_id;	 /* the image that the fields below belong to, plus 1; 0: none yet */
	struct call call;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

static __always_inline struct thread *enter(enum op op)
{
	struct thread *thread =
		bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!thread) {
		count(COUNT_LOST_STATE);
		return 0;
	}
	if (thread->in_flight)
		count(COUNT_LOST_NO_EXIT);
	thread->in_flight = 1 + op;
	thread->call.op = op;
	thread->call.flags = 0;
	thread->call.asked_len = 0;
	thread->call.actual_len = 0;
	return thread;
}

/* The thread's call of this kind that is under way, now ended; 0 where its entry was not seen. */
static __always_inline struct thread *leave(enum op op, struct task_struct *task)
{
	struct thread *thread = bpf_task_storage_get(&threads, task, 0, 0);

	if (!thread || thread->in_flight != 1 + op) {
		count(COUNT_UNPAIRED);
		return 0;
	}
	thread->in_flight = 0;
	return thread;
}

/* A task's number inside its own pid namespace (kernel/pid.c, pid_nr_ns). */
static __always_inline __u32 number_in_namespace(struct task_struct *task)
{
	struct pid *pid = task->thread_pid;
	struct upid *last = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			    pid->level * bpf_core_type_size(struct upid);

	return BPF_CORE_READ(last, nr);
}

/* What stays the same while the thread runs one image is looked up once: exec changes all of it, even the tid. */
static __always_inline void identify_thread(struct thread *thread, struct task_struct *task)
{
	__u32 exec_id = task->self_exec_id;
	struct call *call = &thread->call;

	if (thread->exec_id == exec_id + 1)
		return;
	call->pid = task->tgid;
	call->tid = task->pid;
	call->vpid = number_in_namespace(task->group_leader);
	call->vtid = number_in_namespace(task);
	call->process_started_ns = task->group_leader->start_boottime;
	call->exec_id = exec_id;
	thread->exec_id = exec_id + 1;
}

static __always_inline void read_name(struct call *call)
{
	long len = bpf_probe_read_user_str(call->names, NAME_SIZE, (void *)call->name_ptr);

	if (len > 0) {
		call->asked_len = len - 1;
		call->flags &= ~CALL_NAME_BAD;
	} else {
		call->flags |= CALL_NAME_BAD;
	}
}

/* The kernel copies all of the caller's struct mq_attr, reserved fields too: one that ends early is EFAULT to both. */
static __always_inline void read_attr(struct call *call)
{
	struct mq_attr_user attr;

	if (bpf_probe_read_user(&attr, sizeof(attr), (void *)call->attr_ptr))
		return;
	__builtin_memcpy(call->attr, attr.shown, sizeof(call->attr));
	call->flags |= CALL_ATTR;
}

static __always_inline bool passes_attr(const struct call *call)
{
	return call->oflag & O_CREAT && call->attr_ptr;
}

static __always_inline void enter_open(const unsigned long *args)
{
	struct thread *thread = enter(OP_OPEN);
	struct call *call;

	if (!thread)
		return;
	call = &thread->call;
	call->name_ptr = args[0];
	call->oflag = args[1];
	call->mode = args[2];
	call->attr_ptr = args[3];
	read_name(call);
	if (passes_attr(call))
		read_attr(call);
	call->entered_ns = bpf_ktime_get_ns(); /* last: the duration is the kernel's, not ours */
}

static __always_inline void leave_open(long ret)
{
	__u64 now = bpf_ktime_get_ns();
	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread = leave(OP_OPEN, task);
	struct call *call;

	if (!thread)
		return;
	call = &thread->call;
	call->left_ns = now;
	call->ret = ret;
	identify_thread(thread, task);
	call->uid = task->cred->euid.val;
	call->ipc_ns = task->nsproxy->ipc_ns->ns.inum;
	if (call->flags & CALL_NAME_BAD) {
		read_name(call);
		if (!(call->flags & CALL_NAME_BAD))
			call->flags |= CALL_NAME_LATE;
	}
	if (passes_attr(call) && !(call->flags & CALL_ATTR)) {
		read_attr(call);
		if (call->flags & CALL_ATTR)
			call->flags |= CALL_ATTR_LATE;
	}
	if (ret >= 0)
		read_queue(call, task, ret);
	if (!wanted(call)) {
		count(COUNT_FILTERED);
		return;
	}
	call->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(call->comm, sizeof(call->comm));
	send_image(call, task);
	send_call(call);
}
