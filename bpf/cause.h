/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Why a call failed, where its errno has more than one cause: what the kernel checked (ipc/mqueue.c), found again in the
 * kernel's own state at the exit, of calls that failed alone. What the state does not prove is not said: the state may
 * have changed since the check.
 */
#pragma once
#include "container.h"
#include "inode.h"
#include "once.h"

/* include/uapi/asm-generic/errno-base.h */
#define EPERM 1
#define ENOENT 2
#define EBADF 9
#define EACCES 13
#define EBUSY 16
#define EINVAL 22
#define ENFILE 23
#define EMFILE 24
#define ENOSPC 28
#define EMSGSIZE 90

/* include/uapi/asm-generic/fcntl.h; O_DIRECT is an architecture's own */
#define O_ACCMODE 3
#ifdef __TARGET_ARCH_arm64
#define O_DIRECT 0200000
#else
#define O_DIRECT 040000
#endif
/* include/linux/fs.h */
#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_PATH (1 << 14)
/* include/uapi/asm-generic/resource.h, include/uapi/linux/capability.h */
#define RLIMIT_NOFILE 7
#define RLIMIT_MSGQUEUE 12
#define CAP_SYS_RESOURCE 24
/* include/linux/ipc_namespace.h: what holds for those who may pass over the limits of the namespace */
#define HARD_MSGMAX 65536
#define HARD_MSGSIZEMAX (16 << 20)
/* include/uapi/linux/mqueue.h */
#define MQ_PRIO_MAX 32768
/* include/uapi/asm-generic/siginfo.h, signal.h */
#define SIGEV_SIGNAL 0
#define SIGEV_NONE 1
#define SIGEV_THREAD 2
#define SIGNALS 64

/* User namespaces are nested no deeper (kernel/user_namespace.c), and there is the first one. */
#define USER_NAMESPACES 33
/* Descriptors are counted one by one in tables up to this size, in words of 64. */
#define DESCRIPTOR_WORDS 1024
/* ... without bpf_loop(), before Linux 5.17: the verifier follows each turn, and 1,024 descriptors are the usual limit. */
#define DESCRIPTOR_WORDS_UNROLLED 16

static __always_inline void blame(struct failure *why, enum cause cause)
{
	why->cause = cause;
}

/* A limit of which nothing is in use: it bounds what one call may ask for. */
static __always_inline void blame_bound(struct failure *why, enum cause cause, __u64 value, __u64 requested)
{
	why->cause = cause;
	why->known = FAILURE_LIMIT;
	why->value = value;
	why->requested = requested;
}

static __always_inline void blame_limit(struct failure *why, enum cause cause, __u64 value, __u64 used, __u64 requested)
{
	blame_bound(why, cause, value, requested);
	why->known = FAILURE_LIMIT | FAILURE_USED;
	why->used = used;
}

/* capable(CAP_SYS_RESOURCE): in the first user namespace. */
static __always_inline bool passes_over_limits(struct task_struct *task)
{
	const struct cred *cred = BPF_CORE_READ(task, cred);
	__u32 low = 0; /* of the set's 64 bits, which older kernels have as two words */

	bpf_core_read(&low, sizeof(low), &cred->cap_effective);
	return !BPF_CORE_READ(cred, user_ns, level) && low & 1 << CAP_SYS_RESOURCE;
}

/* What the new queue was to be like; false: the kernel may have seen something else than is known. */
static __always_inline bool asked_attr(const struct call *call, struct ipc_namespace *ns, __s64 *maxmsg, __s64 *msgsize)
{
	const struct open_args *args = ARGS(open_args, call);
	__u32 most, usual;

	if (args->attr_ptr) {
		*maxmsg = args->attr[1];
		*msgsize = args->attr[2];
		return call->flags & CALL_ATTR && !(call->flags & CALL_ATTR_CHANGED);
	}
	most = BPF_CORE_READ(ns, mq_msg_max);
	usual = BPF_CORE_READ(ns, mq_msg_default);
	*maxmsg = most < usual ? most : usual;
	most = BPF_CORE_READ(ns, mq_msgsize_max);
	usual = BPF_CORE_READ(ns, mq_msgsize_default);
	*msgsize = most < usual ? most : usual;
	return true;
}

static __always_inline void explain_attr(const struct call *call, struct failure *why)
{
	struct task_struct *task = current_task();
	struct ipc_namespace *ns = BPF_CORE_READ(task, nsproxy, ipc_ns);
	__u32 oflag = ARGS(open_args, call)->oflag;
	__s64 maxmsg, msgsize, most_messages, most_bytes;

	/* Of a queue that was there already these two are refused, and its attr is not looked at. */
	if (!(oflag & O_CREAT) || (oflag & O_ACCMODE) == O_ACCMODE || oflag & O_DIRECT)
		return;
	if (!asked_attr(call, ns, &maxmsg, &msgsize))
		return;
	if (maxmsg <= 0) {
		blame(why, CAUSE_MAXMSG);
		return;
	}
	if (msgsize <= 0) {
		blame(why, CAUSE_MSGSIZE);
		return;
	}
	most_messages = HARD_MSGMAX;
	most_bytes = HARD_MSGSIZEMAX;
	if (!passes_over_limits(task)) {
		most_messages = BPF_CORE_READ(ns, mq_msg_max);
		most_bytes = BPF_CORE_READ(ns, mq_msgsize_max);
	}
	if (maxmsg > most_messages)
		blame_bound(why, CAUSE_MSG_MAX, most_messages, maxmsg);
	else if (msgsize > most_bytes)
		blame_bound(why, CAUSE_MSGSIZE_MAX, most_bytes, msgsize);
}

static __always_inline void explain_queues_max(struct failure *why)
{
	struct task_struct *task = current_task();
	struct ipc_namespace *ns = BPF_CORE_READ(task, nsproxy, ipc_ns);
	__u32 most = BPF_CORE_READ(ns, mq_queues_max), used = BPF_CORE_READ(ns, mq_queues_count);

	if (used >= most)
		blame_limit(why, CAUSE_QUEUES_MAX, most, used, 1);
}

/* Bytes that the users of these counts have in queues. */
static __always_inline __s64 queue_bytes(struct ucounts *counts)
{
	__u32 offset = bpf_core_field_exists(counts->rlimit) ?
			       bpf_core_field_offset(struct ucounts, rlimit) +
				       8 * bpf_core_enum_value(enum rlimit_type, UCOUNT_RLIMIT_MSGQUEUE) :
			       bpf_core_field_offset(struct ucounts___before_6_0, ucount) +
				       8 * bpf_core_enum_value(enum ucount_type___before_6_0, UCOUNT_RLIMIT_MSGQUEUE___before_6_0);
	__s64 bytes = 0;

	bpf_core_read(&bytes, sizeof(bytes), (void *)counts + offset);
	return bytes;
}

/* The limit that a user namespace sets to all that is in it, as it was for its creator when it was made. */
static __always_inline __s64 most_queue_bytes(struct user_namespace *ns)
{
	__u32 offset = bpf_core_field_exists(ns->rlimit_max) ?
			       bpf_core_field_offset(struct user_namespace, rlimit_max) +
				       8 * bpf_core_enum_value(enum rlimit_type, UCOUNT_RLIMIT_MSGQUEUE) :
			       bpf_core_field_offset(struct user_namespace___before_6_0, ucount_max) +
				       8 * bpf_core_enum_value(enum ucount_type___before_6_0, UCOUNT_RLIMIT_MSGQUEUE___before_6_0);
	__s64 most = 0;

	bpf_core_read(&most, sizeof(most), (void *)ns + offset);
	return most;
}

/* RLIMIT_MSGQUEUE, of the user and of each that its user namespaces belong to (kernel/ucount.c, inc_rlimit_ucounts). */
static __always_inline void explain_queue_bytes(const struct call *call, struct failure *why)
{
	struct task_struct *task = current_task();
	__u64 limit = BPF_CORE_READ(task, signal, rlim[RLIMIT_MSGQUEUE].rlim_cur);
	__s64 maxmsg, msgsize;
	__u64 requested;
	struct ucounts *counts;

	if (!(ARGS(open_args, call)->oflag & O_CREAT) || !bpf_core_type_exists(struct posix_msg_tree_node))
		return;
	if (!asked_attr(call, BPF_CORE_READ(task, nsproxy, ipc_ns), &maxmsg, &msgsize) || maxmsg <= 0 || msgsize <= 0)
		return;
	/* ipc/mqueue.c, mqueue_get_inode() */
	requested = maxmsg * (msgsize + bpf_core_type_size(struct msg_msg)) +
		    (maxmsg < MQ_PRIO_MAX ? maxmsg : MQ_PRIO_MAX) * bpf_core_type_size(struct posix_msg_tree_node);
	if (!bpf_core_field_exists(struct cred, ucounts)) {
		struct user_struct___before_5_14 *user = (void *)BPF_CORE_READ(task, cred, user);
		__u64 used = BPF_CORE_READ(user, mq_bytes);

		if (used + requested > limit)
			blame_limit(why, CAUSE_RLIMIT_MSGQUEUE, limit, used, requested);
		return;
	}
	counts = BPF_CORE_READ(task, cred, ucounts);
	for (int i = 0; i < USER_NAMESPACES && counts; i++) {
		struct user_namespace *ns = BPF_CORE_READ(counts, ns);
		__u64 used = queue_bytes(counts);

		if (used + requested > limit) {
			blame_limit(why, CAUSE_RLIMIT_MSGQUEUE, limit, used, requested);
			return;
		}
		limit = most_queue_bytes(ns);
		counts = BPF_CORE_READ(ns, ucounts);
	}
}

struct descriptors {
	unsigned long *open; /* a bit for each */
	__u64 limit;
	__u64 used;
	bool is_free; /* one below the limit */
};

static long count_descriptors(__u32 word, struct descriptors *of)
{
	__u64 bits = 0, first = (__u64)word * 64, wanted;

	bpf_probe_read_kernel(&bits, sizeof(bits), of->open + word);
	of->used += __builtin_popcountll(bits);
	if (first < of->limit) {
		wanted = of->limit - first < 64 ? (1ULL << (of->limit - first)) - 1 : ~0ULL;
		if (~bits & wanted)
			of->is_free = true;
	}
	return 0;
}

/* Counts those of a table of so many words; false: they are too many. */
static __always_inline bool count_all_descriptors(struct descriptors *of, __u32 words)
{
#ifndef OLD
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_loop))
		return words <= DESCRIPTOR_WORDS && bpf_loop(words, count_descriptors, of, 0) >= 0;
#endif
	if (words > DESCRIPTOR_WORDS_UNROLLED)
		return false;
	for (__u32 word = 0; word < DESCRIPTOR_WORDS_UNROLLED && word < words; word++)
		count_descriptors(word, of);
	return true;
}

/* RLIMIT_NOFILE: it is the reason where no descriptor below it is free; returns whether it is. */
static __always_inline bool explain_descriptors(struct failure *why)
{
	struct task_struct *task = current_task();
	__u64 limit = BPF_CORE_READ(task, signal, rlim[RLIMIT_NOFILE].rlim_cur);
	struct files_struct *files = BPF_CORE_READ(task, files);
	struct fdtable *table = BPF_CORE_READ(files, fdt);
	__u32 size = BPF_CORE_READ(table, max_fds);
	struct descriptors of = { .open = BPF_CORE_READ(table, open_fds), .limit = limit };

	if (!count_all_descriptors(&of, size / 64)) {
		/* All below the next one are taken (fs/file.c, alloc_fd). */
		if (BPF_CORE_READ(files, next_fd) < limit)
			return false;
		of.used = limit;
	} else if (of.is_free || size < limit) {
		return false;
	}
	blame_limit(why, CAUSE_RLIMIT_NOFILE, limit, of.used, 1);
	return true;
}

/* Names that no queue can have: with a slash, or those of folders. Global: its turns are verified once. */
VERIFIED_ONCE int is_bad_name(const struct call *call)
{
	__u64 slashes = 0;
	__u32 len;

	if (!call)
		return false;
	len = call->asked_len;
	if (call->names[0] == '.' && (len == 1 || (len == 2 && call->names[1] == '.')))
		return true;
	/* Eight characters at a time, of which those behind the end do not count. */
	for (__u32 i = 0; i < NAME_SIZE && i < len; i += 8) {
		__u64 left = len - i, word = *(const __u64 *)(call->names + (i & (NAME_SIZE - 1)));

		slashes |= between(word, '/', '/') & ((1ULL << (left & 7)) - 1 | -(__u64)(left > 7));
	}
	return slashes != 0;
}

/* EACCES and ENOENT of calls that take a name. */
static __always_inline void explain_name(const struct call *call, struct failure *why)
{
	bool is_create = call->op == OP_OPEN && ARGS(open_args, call)->oflag & O_CREAT;

	if (call->flags & CALL_NAME_BAD)
		return;
	if (call->ret == -ENOENT) {
		if (!call->asked_len)
			blame(why, CAUSE_NAME);
		else if (!is_create)
			blame(why, CAUSE_MISSING);
	} else if (is_bad_name(call)) {
		blame(why, CAUSE_NAME);
	} else if (call->asked_len && call->asked_len < NAME_SIZE - 1) { /* a longer one may go on with a slash */
		blame(why, CAUSE_PERMISSION);
	}
}

static __always_inline void explain_open(const struct call *call, struct failure *why)
{
	switch (-call->ret) {
	case EMFILE:
		/* A descriptor is taken first, and free again at the exit. */
		if (!explain_descriptors(why))
			explain_queue_bytes(call, why);
		break;
	case ENFILE:
		blame(why, CAUSE_FILE_MAX);
		break;
	case ENOSPC:
		explain_queues_max(why);
		break;
	case EINVAL:
		explain_attr(call, why);
		break;
	case EACCES:
	case ENOENT:
		explain_name(call, why);
		break;
	}
}

static __always_inline void explain_unlink(const struct call *call, struct failure *why)
{
	if (call->ret == -EPERM)
		blame(why, CAUSE_PERMISSION);
	else if (call->ret == -EACCES || call->ret == -ENOENT)
		explain_name(call, why);
}

/* EBADF; `mode` is what the descriptor must have been opened for. */
static __always_inline void explain_descriptor(const struct call *call, struct failure *why, __u32 mode)
{
	bool was_queue = call->flags & CALL_QUEUE;
	struct file *file = file_of(current_task(), call->fd);
	struct inode *inode;
	__u32 has;

	if (!file) {
		if (!was_queue)
			blame(why, CAUSE_CLOSED);
		return;
	}
	has = BPF_CORE_READ(file, f_mode);
	inode = (struct inode *)inode_of(file);
	/* One of O_PATH is there and yet not open. */
	if (has & FMODE_PATH)
		return;
	if (!is_queue(inode)) {
		if (!was_queue)
			blame(why, CAUSE_NOT_A_QUEUE);
	} else if (was_queue && (__u64)inode == call->queue_inode && mode && !(has & mode)) {
		blame(why, CAUSE_ACCESS_MODE);
	}
}

static __always_inline bool has_bad_deadline(const struct call *call)
{
	return call->flags & CALL_DEADLINE &&
	       (call->timeout.s < 0 || call->timeout.ns < 0 || call->timeout.ns >= 1000000000);
}

static __always_inline void explain_message(const struct call *call, struct failure *why)
{
	const struct message_args *args = ARGS(message_args, call);
	bool sends = call->op == OP_SEND;
	__u64 msgsize = call->queue_msgsize;

	switch (-call->ret) {
	case EBADF:
		explain_descriptor(call, why, sends ? FMODE_WRITE : FMODE_READ);
		break;
	case EMSGSIZE:
		if (call->flags & CALL_QUEUE && (sends ? args->size > msgsize : args->size < msgsize))
			blame_bound(why, CAUSE_MSGSIZE, msgsize, args->size);
		break;
	case EINVAL:
		/* The deadline is looked at first. */
		if (has_bad_deadline(call))
			blame(why, CAUSE_TIMEOUT);
		else if (sends && args->priority >= MQ_PRIO_MAX)
			blame(why, CAUSE_PRIORITY);
		break;
	case EAGAIN:
		blame(why, sends ? CAUSE_FULL : CAUSE_EMPTY);
		break;
	}
}

static __always_inline void explain_notify(const struct call *call, struct failure *why)
{
	struct task_struct *task = current_task();
	const struct notify_args *args = ARGS(notify_args, call);
	bool is_known = !args->event_ptr || call->flags & CALL_EVENT;
	bool by_thread = call->flags & CALL_EVENT && args->method == SIGEV_THREAD;
	struct mqueue_inode_info *info = queue_of(call->queue_inode);

	switch (-call->ret) {
	case EBADF:
		/* By thread it may be that of the socket, which is looked at first. */
		if (is_known && (!by_thread || file_of(task, args->signo)))
			explain_descriptor(call, why, 0);
		break;
	case EINVAL:
		if (call->flags & CALL_EVENT && args->method == SIGEV_SIGNAL && (__u32)args->signo > SIGNALS)
			blame(why, CAUSE_SIGNAL);
		break;
	case EBUSY:
		blame(why, CAUSE_REGISTERED);
		if ((call->flags & (CALL_QUEUE | CALL_QUEUE_LEFT)) == CALL_QUEUE)
			why->owner_pid = BPF_CORE_READ(info, notify_owner, numbers[0].nr);
		break;
	}
}

static __always_inline void explain_getsetattr(const struct call *call, struct failure *why)
{
	const struct open_args *args = ARGS(open_args, call);

	if (call->ret == -EBADF)
		explain_descriptor(call, why, 0);
	else if (call->ret == -EINVAL && call->flags & CALL_ATTR && args->attr[0] & ~(__s64)O_NONBLOCK)
		blame(why, CAUSE_FLAGS);
}

/* Says of a call that has just failed why, where that is known. */
static __always_inline int explain_of(struct call *call)
{
	struct failure *why = FAILURE(call);

	why->cause = CAUSE_NONE;
	why->known = 0;
	why->owner_pid = 0;
	switch (call->op) {
	case OP_OPEN:
		explain_open(call, why);
		break;
	case OP_UNLINK:
		explain_unlink(call, why);
		break;
	case OP_SEND:
	case OP_RECEIVE:
		explain_message(call, why);
		break;
	case OP_NOTIFY:
		explain_notify(call, why);
		break;
	case OP_GETSETATTR:
		explain_getsetattr(call, why);
		break;
	}
	if (why->cause)
		call->flags |= CALL_CAUSE;
	return 0;
}

ONCE_OF_CALL(explain)
