/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What is there now, from the kernel's own lists, whoever may look at whose /proc: threads that wait in a send or receive,
 * and descriptors of queues. An object of its own: where the kernel has no iterators the rest works without. Programs are run
 * when user space reads (src/kernel/iterators.rs), attached to nothing that others do.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "inode.h"
#include "live.h"
#include "namespace.h"
#include "thread.h"

char LICENSE[] SEC("license") = "GPL";

/* Instances without use: they make the skeleton generate the Rust types of the records. */
const struct waiter waiter_type = {};
const struct holder holder_type = {};
const struct live_queue live_queue_type = {};

/* include/linux/sched.h */
#define TASK_INTERRUPTIBLE 1

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct seq_file;

/* include/linux/bpf.h, kernel/bpf/task_iter.c: the kernel's types of these names */
struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

/* include/linux/sched.h: of kernels before 5.14 */
struct task_struct___before_5_14 {
	volatile long state;
};

struct task_struct___state {
	unsigned int __state;
};

/* Clocks of the scheduler, ns: kernel/sched/sched.h, include/linux/sched.h. With CONFIG_FAIR_GROUP_SCHED every thread has them. */
struct rq {
	__u64 clock;
	__u64 clock_task; /* without what interrupts and other guests took of this CPU */
};

struct cfs_rq {
	struct rq *rq;
};

struct sched_entity {
	__u64 exec_start; /* of clock_task, when the thread last gave up its CPU */
	struct cfs_rq *cfs_rq;
};

struct task_struct___se {
	struct sched_entity se;
};

#ifdef __TARGET_ARCH_arm64
struct pt_regs___full {
	__u64 orig_x0;
	__s32 syscallno;
};
#else
struct pt_regs___full {
	unsigned long orig_ax;
	unsigned long cs;
};

struct task_struct___stack {
	void *stack;
};

struct thread_info___x86 {
	__u32 status;
};

struct task_struct___x86 {
	struct thread_info___x86 thread_info;
};
#endif

#pragma clang attribute pop

/* mqspan's own process and its pid namespace, as in filter.h. */
const volatile __u32 own_level;
const volatile __u64 own_namespace;

static __always_inline __u32 number_here(struct task_struct *thread)
{
	return number_at(thread, own_level, own_namespace);
}

/* A large record has no place on the stack. User space reads one list at a time. */
struct scratch {
	struct waiter waiter;
	struct holder holder;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

/* The queue of an open file; false where it is none. */
static __always_inline bool describe_queue(struct live_queue *queue, struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct ipc_namespace *ns;
	long len;

	if (!is_queue(inode))
		return false;
	len = bpf_probe_read_kernel_str(queue->name, sizeof(queue->name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	if (len < 1)
		return false;
	ns = BPF_CORE_READ(inode, i_sb, s_fs_info);
	queue->inode = (__u64)inode;
	queue->ino = BPF_CORE_READ(inode, i_ino);
	queue->ns = (__u64)ns;
	queue->ipc_ns = BPF_CORE_READ(ns, ns.inum);
	queue->name_len = len - 1;
	queue->maxmsg = BPF_CORE_READ(queue_of((__u64)inode), attr.mq_maxmsg);
	queue->msgsize = BPF_CORE_READ(queue_of((__u64)inode), attr.mq_msgsize);
	queue->curmsgs = BPF_CORE_READ(queue_of((__u64)inode), attr.mq_curmsgs);
	return true;
}

static __always_inline bool sleeps(struct task_struct *task)
{
	struct task_struct___state *now = (void *)task;
	struct task_struct___before_5_14 *before = (void *)task;

	if (bpf_core_field_exists(now->__state))
		return BPF_CORE_READ(now, __state) & TASK_INTERRUPTIBLE;
	return BPF_CORE_READ(before, state) & TASK_INTERRUPTIBLE;
}

#ifdef __TARGET_ARCH_arm64
/* include/uapi/asm-generic/unistd.h, arch/arm64/tools/syscall_32.tbl */
static __always_inline int waits_in(struct task_struct *task, void *registers, struct waiter *waiter)
{
	struct pt_regs___full *regs = registers;
	struct pt_regs *arguments = registers;
	bool is_compat = BPF_CORE_READ(task, thread_info.flags) & 1 << 22;

	waiter->is_compat = is_compat;
	waiter->fd = BPF_CORE_READ(regs, orig_x0);
	waiter->size = BPF_CORE_READ(arguments, regs[2]);
	waiter->priority = BPF_CORE_READ(arguments, regs[3]);
	switch (BPF_CORE_READ(regs, syscallno)) {
	case 182:
		return is_compat ? -1 : OP_SEND;
	case 183:
		return is_compat ? -1 : OP_RECEIVE;
	case 276:
	case 418:
		return is_compat ? OP_SEND : -1;
	case 277:
	case 419:
		return is_compat ? OP_RECEIVE : -1;
	}
	return -1;
}

static __always_inline void *registers_of(struct task_struct *task)
{
	return (void *)bpf_task_pt_regs(task);
}
#else
/* arch/x86/include/asm/page_64_types.h: THREAD_SIZE, twice that with KASAN */
#define STACK_SIZE 16384

/*
 * The registers that a thread entered the kernel with. Before Linux 5.15 no helper tells where they are: at the end of its
 * stack, where the code segment shows that these are a program's.
 */
static __always_inline void *registers_of(struct task_struct *task)
{
	struct task_struct___stack *of = (void *)task;
	struct pt_regs___full *regs;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return (void *)bpf_task_pt_regs(task);
	for (int size = STACK_SIZE; size <= 2 * STACK_SIZE; size += STACK_SIZE) {
		regs = BPF_CORE_READ(of, stack) + size - bpf_core_type_size(struct pt_regs);
		if ((BPF_CORE_READ(regs, cs) & 3) == 3)
			return regs;
	}
	return 0;
}

/* arch/x86/include/asm/thread_info.h: the system call under way came in as a 32-bit one */
#define TS_COMPAT 2

/* arch/x86/entry/syscalls/syscall_64.tbl, syscall_32.tbl */
static __always_inline int waits_in(struct task_struct *task, void *registers, struct waiter *waiter)
{
	struct pt_regs___full *regs = registers;
	struct pt_regs *arguments = registers;
	struct task_struct___x86 *x86 = (void *)task;
	bool is_compat = BPF_CORE_READ(x86, thread_info.status) & TS_COMPAT;

	waiter->is_compat = is_compat;
	waiter->fd = is_compat ? BPF_CORE_READ(arguments, bx) : BPF_CORE_READ(arguments, di);
	waiter->size = BPF_CORE_READ(arguments, dx);
	waiter->priority = is_compat ? BPF_CORE_READ(arguments, si) : BPF_CORE_READ(arguments, r10);
	switch ((__u32)BPF_CORE_READ(regs, orig_ax)) {
	case 242:
		return is_compat ? -1 : OP_SEND;
	case 243:
		return is_compat ? -1 : OP_RECEIVE;
	case 279:
	case 418:
		return is_compat ? OP_SEND : -1;
	case 280:
	case 419:
		return is_compat ? OP_RECEIVE : -1;
	}
	return -1;
}
#endif

/*
 * Since when a thread sleeps whose entry was not seen, CLOCK_MONOTONIC: the scheduler's clocks show when it gave up its CPU.
 * Interrupts since then, and the age of this CPU's own reading, make it a little late, never early: the call has lasted at
 * least so long. 0: not known.
 */
static __always_inline __u64 asleep_since(struct task_struct *task, __u64 now)
{
	struct task_struct___se *thread = (void *)task, *current = (void *)bpf_get_current_task();
	struct rq *there, *here;
	__u64 since, clock;

	if (!bpf_core_field_exists(struct cfs_rq, rq) || !bpf_core_field_exists(struct sched_entity, cfs_rq))
		return 0;
	there = BPF_CORE_READ(thread, se.cfs_rq, rq);
	here = BPF_CORE_READ(current, se.cfs_rq, rq);
	clock = BPF_CORE_READ(here, clock);
	since = BPF_CORE_READ(thread, se.exec_start) + (BPF_CORE_READ(there, clock) - BPF_CORE_READ(there, clock_task));
	return since && since < clock && clock - since < now ? now - (clock - since) : 0;
}

/* Since when and until when: by its entry, where that was seen; else since it sleeps. */
static __always_inline void date(struct waiter *waiter, struct task_struct *task)
{
	struct thread *thread = thread_of(task);
	struct call *call;
	__u64 now, asleep_ns;

	waiter->has_deadline = 0;
	if (thread && thread->in_flight == 1 + waiter->op) {
		call = call_of(thread);
		waiter->since_ns = call->entered_ns;
		waiter->since = SINCE_ENTRY;
		if (!(call->flags & CALL_DEADLINE))
			return;
		waiter->deadline_s = call->timeout.s;
		waiter->deadline_ns = call->timeout.ns;
		waiter->has_deadline = 1;
		return;
	}
	now = bpf_ktime_get_ns();
	asleep_ns = asleep_since(task, now);
	waiter->since_ns = asleep_ns ? asleep_ns : now;
	waiter->since = asleep_ns ? SINCE_SLEEP : SINCE_LOOK;
}

SEC("iter/task")
int live_waiters(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct scratch *scratch;
	struct waiter *waiter;
	struct file *file;
	__u32 first = 0;
	void *regs;
	int op;

	if (!task || !sleeps(task))
		return 0;
	regs = registers_of(task);
	if (!regs)
		return 0;
	scratch = bpf_map_lookup_elem(&scratches, &first);
	if (!scratch)
		return 0;
	waiter = &scratch->waiter;
	op = waits_in(task, regs, waiter);
	if (op < 0)
		return 0;
	__builtin_memset(&waiter->queue, 0, __builtin_offsetof(struct live_queue, name));
	waiter->pid = task->tgid;
	waiter->tid = task->pid;
	waiter->local_pid = number_here(task->group_leader);
	waiter->local_tid = number_here(task);
	waiter->uid = BPF_CORE_READ(task, cred, euid.val);
	waiter->op = op;
	waiter->switches = task->nvcsw;
	waiter->started_ns = task->group_leader->start_boottime;
	waiter->exec_id = task->self_exec_id;
	waiter->vpid = number_in_namespace(task->group_leader);
	waiter->ipc_ns = BPF_CORE_READ(task, nsproxy, ipc_ns, ns.inum);
	bpf_probe_read_kernel_str(waiter->comm, sizeof(waiter->comm), task->comm);
	date(waiter, task);
	file = file_of(task, waiter->fd);
	if (file)
		describe_queue(&waiter->queue, file);
	bpf_seq_write(ctx->meta->seq, waiter, sizeof(*waiter));
	return 0;
}

SEC("iter/task_file")
int live_holders(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct scratch *scratch;
	struct holder *holder;
	__u32 first = 0;

	if (!task || !file || file->f_inode->i_sb->s_magic != MQUEUE_MAGIC)
		return 0;
	scratch = bpf_map_lookup_elem(&scratches, &first);
	if (!scratch)
		return 0;
	holder = &scratch->holder;
	holder->mode = file->f_mode & 3;
	if (!holder->mode || !describe_queue(&holder->queue, file))
		return 0;
	holder->pid = task->tgid;
	holder->fd = ctx->fd;
	holder->file = (__u64)file;
	bpf_probe_read_kernel_str(holder->comm, sizeof(holder->comm), task->group_leader->comm);
	bpf_seq_write(ctx->meta->seq, holder, sizeof(*holder));
	return 0;
}
