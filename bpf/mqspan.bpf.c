// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The programs, one line each: where they attach and what they call. Which of them are loaded is user space's plan
 * (src/bpf/plan.rs).
 *
 * The way of a call: entry, exit (call.h, which pairs them by pair.h) -> the queue reached (queue.h) -> filter
 * (filter.h) -> who it was, once for each image (image.h) -> metrics (aggregate.h) -> ring (output.h).
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "call.h"
#include "tree.h"

char LICENSE[] SEC("license") = "GPL";

/* Instances without use: they make the skeleton generate the Rust types of the records. */
const struct call call_type = {};
const struct open_args open_args_type = {};
const struct message_args message_args_type = {};
const struct notify_args notify_args_type = {};
const struct image image_type = {};
const struct name name_type = {};
const struct series series_type = {};
const struct points points_type = {};
const struct rule rule_type = {};
const enum call_flag call_flag_type = 0;
const enum image_flag image_flag_type = 0;
const enum counter counter_type = 0;
const enum metric metric_type = 0;

/* The layout of syscalls/sys_enter_* and sys_exit_* (include/trace/syscall.h), the same on every architecture. */
struct sys_enter {
	__u64 common;
	__u64 nr;
	unsigned long args[6];
};

struct sys_exit {
	__u64 common;
	__u64 nr;
	long ret;
};

/* User space takes what a program is from its name: kind, side, call. */
#define TRACEPOINTS(call)                                                                                         \
	SEC("?tracepoint/syscalls/sys_enter_" #call)                                                              \
	int tp_enter_##call(struct sys_enter *ctx) { enter_##call(ctx->args, ABI_NATIVE); return 0; }             \
	SEC("?tracepoint/syscalls/sys_exit_" #call)                                                               \
	int tp_exit_##call(struct sys_exit *ctx) { leave_##call(ctx->ret, ABI_NATIVE); return 0; }

TRACEPOINTS(mq_open)
TRACEPOINTS(mq_unlink)
TRACEPOINTS(mq_timedsend)
TRACEPOINTS(mq_timedreceive)
TRACEPOINTS(mq_notify)
TRACEPOINTS(mq_getsetattr)

SEC("?raw_tracepoint/sched_process_fork")
int tree_on_fork(struct bpf_raw_tracepoint_args *ctx) { tree_fork((void *)ctx->args[0], (void *)ctx->args[1]); return 0; }

SEC("?raw_tracepoint/sched_process_exit")
int tree_on_exit(struct bpf_raw_tracepoint_args *ctx) { tree_exit((void *)ctx->args[0]); return 0; }
