// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The programs, one line each: where they attach and what they call. Which of them are loaded is user space's plan
 * (src/kernel/plan.rs).
 *
 * The way of a call: entry, exit (call.h, which pairs them by pair.h) -> the queue reached (queue.h) -> filter
 * (filter.h) -> why it failed (cause.h) -> who it was, once for each image (image.h) -> metrics (aggregate.h) -> ring (output.h).
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "call.h"
#include "look.h"
#include "publish.h"
#include "tree.h"

char LICENSE[] SEC("license") = "GPL";

/* Instances without use: they make the skeleton generate the Rust types of the records. */
const struct call call_type = {};
const struct open_args open_args_type = {};
const struct message_args message_args_type = {};
const struct notify_args notify_args_type = {};
const struct failure failure_type = {};
const struct image image_type = {};
const struct publisher publisher_type = {};
const struct name name_type = {};
const struct notice notice_type = {};
const struct image_key image_key_type = {};
const struct series series_type = {};
const struct points points_type = {};
const struct measures measures_type = {};
const struct queue_key queue_key_type = {};
const struct queue_state queue_state_type = {};
const struct rule rule_type = {};
const enum call_flag call_flag_type = 0;
const enum cause cause_type = 0;
const enum failure_flag failure_flag_type = 0;
const enum image_flag image_flag_type = 0;
const enum notice_kind notice_kind_type = 0;
const enum counter counter_type = 0;
const enum metric metric_type = 0;

/*
 * The layout of syscalls/sys_enter_* and sys_exit_* (include/trace/syscall.h), the same on every architecture. Beside the
 * number are four bytes of anything.
 */
struct sys_enter {
	__u64 common;
	__u32 nr;
	unsigned long args[6];
};

struct sys_exit {
	__u64 common;
	__u32 nr;
	long ret;
};

/* Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h). */
#ifdef __TARGET_ARCH_arm64
#define FIRST_CALL 180
#else
#define FIRST_CALL 240
#endif
enum number {
	NR_MQ_OPEN = FIRST_CALL,
	NR_MQ_UNLINK,
	NR_MQ_TIMEDSEND,
	NR_MQ_TIMEDRECEIVE,
	NR_MQ_NOTIFY,
	NR_MQ_GETSETATTR,
};

/* User space takes what a program is from its name: kind, side, call. */
#define ENTER(call)                                                                                               \
	SEC("?tracepoint/syscalls/sys_enter_" #call)                                                              \
	int tp_enter_##call(struct sys_enter *ctx) { enter_##call(ctx->args, ABI_NATIVE); return 0; }

ENTER(mq_open)
ENTER(mq_unlink)
ENTER(mq_timedsend)
ENTER(mq_timedreceive)
ENTER(mq_notify)
ENTER(mq_getsetattr)

/*
 * The exits of all calls are one program, attached to each call's tracepoint: what they have in common is verified once.
 * The entries can't be: to a tracepoint only programs are attached that read no more arguments than its call has.
 */
#define LEAVE(call) leave_##call(ctx->ret, ABI_NATIVE)

SEC("?tracepoint/syscalls/sys_exit_mq")
int tp_exit_mq(struct sys_exit *ctx)
{
	switch (ctx->nr) {
	case NR_MQ_OPEN: LEAVE(mq_open); break;
	case NR_MQ_UNLINK: LEAVE(mq_unlink); break;
	case NR_MQ_TIMEDSEND: LEAVE(mq_timedsend); break;
	case NR_MQ_TIMEDRECEIVE: LEAVE(mq_timedreceive); break;
	case NR_MQ_NOTIFY: LEAVE(mq_notify); break;
	case NR_MQ_GETSETATTR: LEAVE(mq_getsetattr); break;
	}
	return 0;
}

/* A wrapper of a system call gets the caller's registers: of a type that the oldest kernels' own description leaves out. */
#ifdef OLD
#define CALLERS_REGISTERS(regs, ctx)                                                                              \
	struct pt_regs copy = {}, *regs = 0;                                                                      \
	bpf_probe_read_kernel(&regs, sizeof(regs), ctx);                                                          \
	bpf_probe_read_kernel(&copy, sizeof(copy), regs);                                                         \
	regs = &copy
#else
#define CALLERS_REGISTERS(regs, ctx) struct pt_regs *regs = (void *)ctx[0]
#endif

/*
 * A session is a program that runs at the entry of a function and at its return; this tells the two apart. Kernels that don't
 * describe their own types have no sessions, and libbpf would refuse to look for a function's there.
 */
#ifdef PLAIN
#define RETURNS(ctx) false
#else
extern bool bpf_session_is_return(void *ctx) __ksym __weak;
/* The same before Linux 7.0, where kprobes alone have sessions. */
extern bool bpf_session_is_return___of_probe(void) __ksym __weak;
#define RETURNS(ctx)                                                                                              \
	(bpf_ksym_exists(bpf_session_is_return) ? bpf_session_is_return(ctx) : bpf_session_is_return___of_probe())
#endif

#define FUNCTIONS(name, call, symbol, abi, ARGUMENTS)                                                             \
	SEC("?fsession/" symbol)                                                                                  \
	int fsession_##name(__u64 *ctx)                                                                           \
	{                                                                                                         \
		if (RETURNS(ctx)) {                                                                               \
			leave_##call(ctx[1], abi);                                                                \
			return 0;                                                                                 \
		}                                                                                                 \
		CALLERS_REGISTERS(regs, ctx);                                                                     \
		unsigned long args[] = ARGUMENTS(regs);                                                           \
		enter_##call(args, abi);                                                                          \
		return 0;                                                                                         \
	}                                                                                                         \
	SEC("?fentry/" symbol)                                                                                    \
	int fentry_##name(__u64 *ctx)                                                                             \
	{                                                                                                         \
		CALLERS_REGISTERS(regs, ctx);                                                                     \
		unsigned long args[] = ARGUMENTS(regs);                                                           \
		enter_##call(args, abi);                                                                          \
		return 0;                                                                                         \
	}                                                                                                         \
	SEC("?fexit/" symbol)                                                                                     \
	int fexit_##name(__u64 *ctx) { leave_##call(ctx[1], abi); return 0; }                                     \
	SEC("?kprobe/" symbol)                                                                                    \
	int kprobe_##name(struct pt_regs *ctx)                                                                    \
	{                                                                                                         \
		struct pt_regs regs = {};                                                                         \
		bpf_probe_read_kernel(&regs, sizeof(regs), (void *)PARM1(ctx));                                   \
		unsigned long args[] = ARGUMENTS(&regs);                                                          \
		enter_##call(args, abi);                                                                          \
		return 0;                                                                                         \
	}                                                                                                         \
	SEC("?kretprobe/" symbol)                                                                                 \
	int kretprobe_##name(struct pt_regs *ctx) { leave_##call(RETURNED(ctx), abi); return 0; }                 \
	SEC("?kprobe.session/" symbol)                                                                            \
	int session_##name(struct pt_regs *ctx)                                                                   \
	{                                                                                                         \
		if (RETURNS(ctx)) {                                                                               \
			leave_##call(RETURNED(ctx), abi);                                                         \
			return 0;                                                                                 \
		}                                                                                                 \
		struct pt_regs regs = {};                                                                         \
		bpf_probe_read_kernel(&regs, sizeof(regs), (void *)PARM1(ctx));                                   \
		unsigned long args[] = ARGUMENTS(&regs);                                                          \
		enter_##call(args, abi);                                                                          \
		return 0;                                                                                         \
	}

#define NATIVE(call) FUNCTIONS(call, call, NATIVE_PREFIX #call, ABI_NATIVE, NATIVE_ARGS)
#define COMPAT(call, symbol) FUNCTIONS(call##_compat, call, symbol, ABI_COMPAT, COMPAT_ARGS)
#define TIME32(call, symbol) FUNCTIONS(call##_time32, call, symbol, ABI_COMPAT_TIME32, COMPAT_ARGS)

#ifdef __TARGET_ARCH_arm64
#define NATIVE_PREFIX "__arm64_sys_"
#else
#define NATIVE_PREFIX "__x64_sys_"
#endif

NATIVE(mq_open)
NATIVE(mq_unlink)
NATIVE(mq_timedsend)
NATIVE(mq_timedreceive)
NATIVE(mq_notify)
NATIVE(mq_getsetattr)

#ifdef __TARGET_ARCH_arm64
COMPAT(mq_open, "__arm64_compat_sys_mq_open")
COMPAT(mq_notify, "__arm64_compat_sys_mq_notify")
COMPAT(mq_getsetattr, "__arm64_compat_sys_mq_getsetattr")
TIME32(mq_timedsend, "__arm64_sys_mq_timedsend_time32")
TIME32(mq_timedreceive, "__arm64_sys_mq_timedreceive_time32")
#else
COMPAT(mq_open, "__ia32_compat_sys_mq_open")
COMPAT(mq_unlink, "__ia32_sys_mq_unlink")
COMPAT(mq_timedsend, "__ia32_sys_mq_timedsend")
COMPAT(mq_timedreceive, "__ia32_sys_mq_timedreceive")
COMPAT(mq_notify, "__ia32_compat_sys_mq_notify")
COMPAT(mq_getsetattr, "__ia32_compat_sys_mq_getsetattr")
TIME32(mq_timedsend, "__ia32_sys_mq_timedsend_time32")
TIME32(mq_timedreceive, "__ia32_sys_mq_timedreceive_time32")
#endif

/* What a call does inside the kernel: a function's nth argument. */
#define INSIDE(function, n)                                                                                       \
	SEC("?fentry/" #function)                                                                                 \
	int fentry_##function(__u64 *ctx) { at_##function(ctx[n - 1]); return 0; }                                \
	SEC("?kprobe/" #function)                                                                                 \
	int kprobe_##function(struct pt_regs *ctx) { at_##function(PARM##n(ctx)); return 0; }                     \
	SEC("?kprobe.multi/" #function)                                                                           \
	int multi_##function(struct pt_regs *ctx) { at_##function(PARM##n(ctx)); return 0; }

INSIDE(do_mq_open, 4)
INSIDE(wq_sleep, 1)
INSIDE(store_msg, 2)
INSIDE(free_msg, 1)

SEC("?fentry/msg_insert")
int fentry_msg_insert(__u64 *ctx) { at_msg_insert(ctx[0], ctx[1]); return 0; }

SEC("?kprobe/msg_insert")
int kprobe_msg_insert(struct pt_regs *ctx) { at_msg_insert(PARM1(ctx), PARM2(ctx)); return 0; }

SEC("?kprobe.multi/msg_insert")
int multi_msg_insert(struct pt_regs *ctx) { at_msg_insert(PARM1(ctx), PARM2(ctx)); return 0; }

SEC("?fexit/load_msg")
int fexit_load_msg(__u64 *ctx) { at_load_msg(ctx[2]); return 0; }

SEC("?kretprobe/load_msg")
int kretprobe_load_msg(struct pt_regs *ctx) { at_load_msg(RETURNED(ctx)); return 0; }

SEC("?kretprobe.multi/load_msg")
int retmulti_load_msg(struct pt_regs *ctx) { at_load_msg(RETURNED(ctx)); return 0; }

/* The one system call beside those of the family that is looked at. */
SEC("?tracepoint/syscalls/sys_enter_prctl")
int tp_enter_prctl(struct sys_enter *ctx) { enter_prctl(ctx->args); return 0; }

SEC("?fentry/" NATIVE_PREFIX "prctl")
int fentry_prctl(__u64 *ctx)
{
	CALLERS_REGISTERS(regs, ctx);
	unsigned long args[] = NATIVE_ARGS(regs);

	enter_prctl(args);
	return 0;
}

static __always_inline void probe_prctl(struct pt_regs *ctx)
{
	struct pt_regs regs = {};

	bpf_probe_read_kernel(&regs, sizeof(regs), (void *)PARM1(ctx));
	unsigned long args[] = NATIVE_ARGS(&regs);
	enter_prctl(args);
}

SEC("?kprobe/" NATIVE_PREFIX "prctl")
int kprobe_prctl(struct pt_regs *ctx) { probe_prctl(ctx); return 0; }

SEC("?kprobe.multi/" NATIVE_PREFIX "prctl")
int multi_prctl(struct pt_regs *ctx) { probe_prctl(ctx); return 0; }

/* Run by mqspan itself (BPF_PROG_TEST_RUN), attached nowhere. */
SEC("raw_tracepoint")
int see_self(struct bpf_raw_tracepoint_args *ctx) { return see_own(ctx->args[0]); }

SEC("raw_tracepoint")
int see_queue(struct bpf_raw_tracepoint_args *ctx) { return look_at_queue(ctx->args[0], ctx->args[1], ctx->args[2]); }

SEC("raw_tracepoint")
int find_queue(struct bpf_raw_tracepoint_args *ctx) { return keep_queue(ctx->args[0]); }

SEC("raw_tracepoint")
int find_file(struct bpf_raw_tracepoint_args *ctx) { return keep_file((void *)ctx->args[0], ctx->args[1]); }

SEC("raw_tracepoint/sched_process_exit")
int image_on_exit(struct bpf_raw_tracepoint_args *ctx) { end_image((void *)ctx->args[0]); return 0; }

/* Where the table holds the states of threads: one that ends, and one that takes another id as it execs. */
SEC("?raw_tracepoint/sched_process_exit")
int state_on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];

	drop_state(task, BPF_CORE_READ(task, pid));
	return 0;
}

SEC("?raw_tracepoint/sched_process_exec")
int state_on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];

	if (ctx->args[1] != BPF_CORE_READ(task, pid))
		drop_state(task, ctx->args[1]);
	return 0;
}

SEC("?raw_tracepoint/sched_process_fork")
int tree_on_fork(struct bpf_raw_tracepoint_args *ctx) { tree_fork((void *)ctx->args[0], (void *)ctx->args[1]); return 0; }

SEC("?raw_tracepoint/sched_process_exit")
int tree_on_exit(struct bpf_raw_tracepoint_args *ctx) { tree_exit((void *)ctx->args[0]); return 0; }
