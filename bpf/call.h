/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What is particular to each call of the family: its arguments, taken at entry, and what its exit adds. Memory that is
 * not there at entry is read again at exit, when the kernel has read it itself.
 */
#pragma once
#include "message.h"
#include "queue.h"

/* Names longer than this are read twice. */
#define SHORT_NAME 32

static __always_inline void read_name(struct call *call)
{
	void *name = (void *)ARGS(open_args, call)->name_ptr;
	/* The longer the most, the longer the helper takes, whatever the name's length. */
	long len = bpf_probe_read_user_str(call->names, SHORT_NAME, name);

	if (len == SHORT_NAME)
		len = bpf_probe_read_user_str(call->names, NAME_SIZE, name);
	/* Of an empty one the helper returns 1, on older kernels (seen on 6.1) 0. */
	if (len >= 0) {
		call->asked_len = len ? len - 1 : 0;
		call->flags &= ~CALL_NAME_BAD;
	} else {
		call->flags |= CALL_NAME_BAD;
	}
}

static __always_inline void read_name_late(struct call *call)
{
	if (!(call->flags & CALL_NAME_BAD))
		return;
	read_name(call);
	if (!(call->flags & CALL_NAME_BAD))
		call->flags |= CALL_NAME_LATE;
}

/* The kernel copies all of the caller's struct mq_attr, reserved fields too: one that ends early is EFAULT to both. */
static __always_inline void read_attr(struct call *call, enum abi abi)
{
	struct open_args *args = ARGS(open_args, call);

	if (abi == ABI_NATIVE) {
		struct mq_attr_user attr;

		if (bpf_probe_read_user(&attr, sizeof(attr), (void *)args->attr_ptr))
			return;
		__builtin_memcpy(args->attr, attr.shown, sizeof(args->attr));
	} else {
		struct compat_mq_attr_user attr;

		if (bpf_probe_read_user(&attr, sizeof(attr), (void *)args->attr_ptr))
			return;
		for (int i = 0; i < 4; i++)
			args->attr[i] = attr.shown[i];
	}
	call->flags |= CALL_ATTR;
}

static __always_inline void read_attr_late(struct call *call, enum abi abi)
{
	if (call->flags & CALL_ATTR)
		return;
	read_attr(call, abi);
	if (call->flags & CALL_ATTR)
		call->flags |= CALL_ATTR_LATE;
}

static __always_inline bool passes_attr(const struct call *call)
{
	return ARGS(open_args, call)->oflag & O_CREAT && ARGS(open_args, call)->attr_ptr;
}

/* The entry of a call that takes a name: it goes where the name of a queue would be kept. */
static __always_inline struct call *enter_named(enum op op, enum abi abi)
{
	struct thread *thread = enter(op, abi, 0, current_task());

	if (!thread)
		return 0;
	slot_of(thread)->queue_ipc_ns = 0;
	return call_of(thread);
}

static __always_inline void enter_mq_open(const unsigned long *args, enum abi abi)
{
	struct call *call = enter_named(OP_OPEN, abi);
	struct open_args *open;

	if (!call)
		return;
	open = ARGS(open_args, call);
	open->name_ptr = args[0];
	open->oflag = args[1];
	open->mode = args[2];
	open->attr_ptr = args[3];
	read_name(call);
	if (passes_attr(call))
		read_attr(call, abi);
	call->entered_ns = bpf_ktime_get_ns(); /* last: the duration is the kernel's, not ours */
}

/* do_mq_open(u_name, oflag, mode, attr): attr is the kernel's own copy, or NULL. */
static __always_inline void at_do_mq_open(__u64 copy)
{
	struct thread *thread = inside(OP_OPEN);
	struct mq_attr_user used;
	struct open_args *args;
	struct call *call;

	if (!thread || bpf_probe_read_kernel(&used, sizeof(used), (void *)copy))
		return;
	call = call_of(thread);
	args = ARGS(open_args, call);
	if (!passes_attr(call))
		return;
	if (!(call->flags & CALL_ATTR)) {
		__builtin_memcpy(args->attr, used.shown, sizeof(args->attr));
		call->flags |= CALL_ATTR;
		return;
	}
	for (int i = 0; i < 4; i++)
		if (args->attr[i] != used.shown[i])
			call->flags |= CALL_ATTR_CHANGED;
}

static __always_inline void leave_mq_open(long ret, enum abi abi)
{
	struct task_struct *task = current_task();
	struct thread *thread = leave(OP_OPEN, ret, task);
	struct call *call;
	struct file *file;

	if (!thread)
		return;
	call = call_of(thread);
	read_name_late(call);
	if (passes_attr(call))
		read_attr_late(call, abi);
	file = file_of(task, ret);
	if (file)
		read_queue(call, file, call->asked_len);
	finish(thread, task);
	release_thread(task);
}

static __always_inline void enter_mq_unlink(const unsigned long *args, enum abi abi)
{
	struct call *call = enter_named(OP_UNLINK, abi);

	if (!call)
		return;
	ARGS(open_args, call)->name_ptr = args[0];
	read_name(call);
	call->entered_ns = bpf_ktime_get_ns();
}

static __always_inline void leave_mq_unlink(long ret, enum abi abi)
{
	struct task_struct *task = current_task();
	struct thread *thread = leave(OP_UNLINK, ret, task);

	if (!thread)
		return;
	read_name_late(call_of(thread));
	finish(thread, task);
	release_thread(task);
}

/* Whether wq_sleep() is hooked, which tells that a call waits; else a voluntary switch must. */
const volatile bool sees_sleep;

static __always_inline void at_wq_sleep(__u64 info)
{
	struct thread *thread = thread_of(current_task());

	if (thread && thread->in_flight)
		call_of(thread)->flags |= CALL_BLOCKED;
}

/* The entry of a call that takes a descriptor. */
static __always_inline struct thread *enter_on_queue(enum op op, enum abi abi, __s32 fd)
{
	struct task_struct *task = current_task();
	struct thread *thread = enter(op, abi, fd, task);
	struct slot *slot;

	if (!thread)
		return 0;
	thread->switches = READ(task, nvcsw);
	slot = slot_of(thread);
	slot->call.flags |= CALL_NAME_BAD;
	enter_queue(slot, task);
	return thread;
}

static __always_inline void look_at_queue_again(struct thread *thread, struct task_struct *task)
{
	leave_queue(call_of(thread), task, sees_sleep ? 0 : READ(task, nvcsw) - thread->switches);
}

static __always_inline struct thread *leave_on_queue(enum op op, long ret, struct task_struct *task)
{
	struct thread *thread = leave(op, ret, task);

	if (thread)
		look_at_queue_again(thread, task);
	return thread;
}

static __always_inline void read_deadline(struct call *call, enum abi abi)
{
	struct timeout *timeout = &call->timeout;

	if (!(call->flags & CALL_TIMEOUT) || call->flags & CALL_DEADLINE)
		return;
	if (abi == ABI_COMPAT_TIME32) {
		__s32 deadline[2];

		if (bpf_probe_read_user(deadline, sizeof(deadline), (void *)timeout->ptr))
			return;
		timeout->s = deadline[0];
		timeout->ns = deadline[1];
	} else {
		__s64 deadline[2];

		if (bpf_probe_read_user(deadline, sizeof(deadline), (void *)timeout->ptr))
			return;
		timeout->s = deadline[0];
		/* The upper half is padding to a 32-bit caller (kernel/time/time.c, get_timespec64). */
		timeout->ns = call->abi == ABI_COMPAT ? (__u32)deadline[1] : deadline[1];
	}
	call->flags |= CALL_DEADLINE;
}

/* mq_timedsend and mq_timedreceive: descriptor, message, size, priority or where it goes, deadline */
static __always_inline void enter_message(enum op op, const unsigned long *args, enum abi abi)
{
	struct thread *thread = enter_on_queue(op, abi, args[0]);
	struct message_args *message;
	struct call *call;

	if (!thread)
		return;
	call = call_of(thread);
	message = ARGS(message_args, call);
	message->size = args[2];
	message->limited_calls = 0;
	if (args[4]) {
		call->timeout.ptr = args[4];
		call->flags |= CALL_TIMEOUT;
	}
	if (op == OP_SEND) {
		message->priority = args[3];
		call->flags |= CALL_PRIORITY;
	} else {
		thread->priority_ptr = args[3];
	}
	read_deadline(call, abi);
	thread->message = 0;
	begin_turn(thread, call, op);
	call->entered_ns = bpf_ktime_get_ns();
}

static __always_inline void leave_message(enum op op, long ret, enum abi abi)
{
	struct task_struct *task = current_task();
	struct thread *thread = leave(op, ret, task);
	struct message_args *message;
	struct turns *turns;
	struct call *call;
	bool kept;

	if (!thread)
		return;
	call = call_of(thread);
	turns = turns_of(thread);
	thread->quiet = is_quiet(thread, turns, op);
	look_at_queue_again(thread, task);
	message = ARGS(message_args, call);
	read_deadline(call, abi);
	if (op == OP_SEND) {
		if (thread->message)
			call->flags |= CALL_TRACKED;
	} else if (ret < 0) {
		call->flags &= ~(CALL_PRIORITY | CALL_WAIT | CALL_LINK);
	} else if (!(call->flags & CALL_PRIORITY) && thread->priority_ptr &&
		   !bpf_probe_read_user(&message->priority, sizeof(message->priority), (void *)thread->priority_ptr)) {
		call->flags |= CALL_PRIORITY;
	}
	describe_turn(thread, turns, call);
	kept = finish(thread, task);
	if (op == OP_SEND)
		finish_send(thread, kept);
	end_turn(thread, turns, op);
	release_thread(task);
}

static __always_inline void enter_mq_timedsend(const unsigned long *args, enum abi abi)
{
	enter_message(OP_SEND, args, abi);
}

static __always_inline void leave_mq_timedsend(long ret, enum abi abi)
{
	leave_message(OP_SEND, ret, abi);
}

static __always_inline void enter_mq_timedreceive(const unsigned long *args, enum abi abi)
{
	enter_message(OP_RECEIVE, args, abi);
}

static __always_inline void leave_mq_timedreceive(long ret, enum abi abi)
{
	leave_message(OP_RECEIVE, ret, abi);
}

static __always_inline void read_event(struct call *call, enum abi abi)
{
	struct notify_args *args = ARGS(notify_args, call);
	/* sigev_signo and sigev_notify stand after sigev_value, a pointer (include/uapi/asm-generic/siginfo.h). */
	__u64 at = args->event_ptr + (abi == ABI_NATIVE ? 8 : 4);
	__s32 event[2];

	if (!args->event_ptr || call->flags & CALL_EVENT || bpf_probe_read_user(event, sizeof(event), (void *)at))
		return;
	args->signo = event[0];
	args->method = event[1];
	call->flags |= CALL_EVENT;
}

static __always_inline void enter_mq_notify(const unsigned long *args, enum abi abi)
{
	struct thread *thread = enter_on_queue(OP_NOTIFY, abi, args[0]);
	struct call *call;

	if (!thread)
		return;
	call = call_of(thread);
	ARGS(notify_args, call)->event_ptr = args[1];
	read_event(call, abi);
	call->entered_ns = bpf_ktime_get_ns();
}

static __always_inline void leave_mq_notify(long ret, enum abi abi)
{
	struct task_struct *task = current_task();
	struct thread *thread = leave_on_queue(OP_NOTIFY, ret, task);
	struct call *call;

	if (!thread)
		return;
	call = call_of(thread);
	read_event(call, abi);
	finish(thread, task);
	release_thread(task);
}

static __always_inline void enter_mq_getsetattr(const unsigned long *args, enum abi abi)
{
	struct thread *thread = enter_on_queue(OP_GETSETATTR, abi, args[0]);
	struct call *call;

	if (!thread)
		return;
	call = call_of(thread);
	ARGS(open_args, call)->attr_ptr = args[1];
	if (args[1])
		read_attr(call, abi);
	call->entered_ns = bpf_ktime_get_ns();
}

static __always_inline void leave_mq_getsetattr(long ret, enum abi abi)
{
	struct task_struct *task = current_task();
	struct thread *thread = leave_on_queue(OP_GETSETATTR, ret, task);
	struct call *call;

	if (!thread)
		return;
	call = call_of(thread);
	if (ARGS(open_args, call)->attr_ptr)
		read_attr_late(call, abi);
	finish(thread, task);
	release_thread(task);
}
