/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The application's own span that a call is made in, read on the calling thread itself: what the process publishes in
 * thread-local storage (OTEP 4947, where user space has found out where: src/who/publishers.rs), else what OBI's
 * map says. All of it is the application's word, and nothing but where the span hangs is decided on it.
 */
#pragma once
#include "count.h"

#define PUBLISHERS 4096
/* No process has more modules with thread-local storage than this. */
#define MODULES 65536

/* Where the threads of a process hold the pointer to what they publish. */
struct publisher {
	__u64 started_ns; /* with exec_id: the image that it is true of, see struct call */
	__u32 exec_id;
	__u32 module;	   /* 0: the offset is from the thread pointer; else from the block of this module */
	__s64 offset;
	__s32 dtv_at;	   /* where the pointer to the vector of blocks is, from the thread pointer */
	__s32 dtv_len_at;  /* where its length is, from its beginning */
	__u32 dtv_step;	   /* from one module's entry to the next */
	__u32 unused;
};

/* By process. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PUBLISHERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct publisher);
} publishers SEC(".maps");

/* How many there are: where nobody publishes, nobody is looked up. Of an array, since a look-up in it costs nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} publishing SEC(".maps");

/* What a thread publishes. */
struct published {
	__u64 trace_id[2];
	__u64 span_id;
	__u8 valid; /* only 1 is */
	__u8 trace_flags;
	__u16 attributes_len;
};
#define PUBLISHED_SIZE 28

/* OBI's map: user space puts the pinned one here where there is one. libbpf takes its name, too, so it must be the same. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct context);
} traces_ctx_v1 SEC(".maps");

const volatile bool reads_obi;

#ifdef __TARGET_ARCH_arm64
static __always_inline __u64 thread_pointer(struct task_struct *task)
{
	return BPF_CORE_READ(task, thread.uw.tp_value);
}
#else
static __always_inline __u64 thread_pointer(struct task_struct *task)
{
	return BPF_CORE_READ(task, thread.fsbase);
}
#endif

static __always_inline bool read_word(__u64 *word, __u64 at)
{
	return !bpf_probe_read_user(word, sizeof(*word), (void *)at);
}

/* The pointer in thread-local storage; 0: the thread publishes nothing. */
static __always_inline __u64 read_pointer(const struct publisher *publisher, __u64 thread_pointer)
{
	__u64 dtv, len, block, pointer, at = thread_pointer;

	if (publisher->module) {
		if (!read_word(&dtv, thread_pointer + publisher->dtv_at) || !read_word(&len, dtv + publisher->dtv_len_at) ||
		    publisher->module > len || len > MODULES ||
		    !read_word(&block, dtv + (__u64)publisher->module * publisher->dtv_step))
			return 0;
		/* The thread has not touched the module's storage yet. */
		if (!block || block == -1ULL)
			return 0;
		at = block;
	}
	if (read_word(&pointer, at + publisher->offset))
		return pointer;
	count(COUNT_CONTEXT_UNREADABLE);
	return 0;
}

static __always_inline bool is_none(const struct context *context)
{
	return !(context->trace_id[0] | context->trace_id[1]) || !context->span_id;
}

static __always_inline bool read_published(struct call *call, struct task_struct *task)
{
	__u32 pid = call->pid;
	struct published published = {};
	struct publisher *publisher;
	__u64 pointer;

	publisher = bpf_map_lookup_elem(&publishers, &pid);
	/* Another process had this id before, or this one another program. */
	if (!publisher || publisher->started_ns != call->process_started_ns || publisher->exec_id != call->exec_id)
		return false;
	pointer = read_pointer(publisher, thread_pointer(task));
	if (!pointer)
		return false;
	if (bpf_probe_read_user(&published, PUBLISHED_SIZE, (void *)pointer)) {
		count(COUNT_CONTEXT_UNREADABLE);
		return false;
	}
	if (published.valid != 1) {
		count(COUNT_CONTEXT_INVALID);
		return false;
	}
	call->context.trace_id[0] = published.trace_id[0];
	call->context.trace_id[1] = published.trace_id[1];
	call->context.span_id = published.span_id;
	if (is_none(&call->context)) {
		count(COUNT_CONTEXT_ZERO);
		return false;
	}
	call->flags |= CALL_CONTEXT;
	if (published.trace_flags & 1)
		call->flags |= CALL_CONTEXT_SAMPLED;
	return true;
}

static __always_inline void read_obi(struct call *call)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct context *context = bpf_map_lookup_elem(&traces_ctx_v1, &thread);

	if (!context || is_none(context))
		return;
	call->context = *context;
	call->flags |= CALL_CONTEXT | CALL_CONTEXT_OBI;
}

/* Finds the span that the call is made in. */
static __always_inline int read_context_of(struct call *call)
{
	if (!read_published(call, current_task()) && reads_obi)
		read_obi(call);
	return 0;
}

ONCE_OF_CALL(read_context)

/* Whether there can be such a span. */
static __always_inline bool has_contexts(void)
{
	__u32 first = 0, *any = bpf_map_lookup_elem(&publishing, &first);

	return reads_obi || (any && *any);
}
