/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The ring of calls. A wake-up for each record would cost more than everything else, so user space arms a flag before
 * it sleeps, and only the first record after that wakes it.
 */
#pragma once
#include "count.h"

#define CALLS_RING_SIZE (8 << 20)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, CALLS_RING_SIZE);
} calls SEC(".maps");

/* Set by the reader before it sleeps (src/run/reader.rs). */
__u32 armed;

static __always_inline void wake_reader(void)
{
	void *empty;

	if (!*(volatile __u32 *)&armed)
		return;
	armed = 0; /* two callers may both come this far: the second wake-up is harmless */
	empty = bpf_ringbuf_reserve(&calls, 8, 0);
	if (empty)
		bpf_ringbuf_discard(empty, BPF_RB_FORCE_WAKEUP);
}

/* Where a call's record goes on after its first word. */
static __always_inline __u32 first_section(__u32 flags)
{
	if (flags & CALL_CONTEXT)
		return __builtin_offsetof(struct call, context);
	if (flags & CALL_TIMEOUT)
		return __builtin_offsetof(struct call, timeout);
	if (flags & (CALL_WAIT | CALL_LINK | CALL_CAUSE))
		return __builtin_offsetof(struct call, received);
	if (flags & CALL_SPAN)
		return __builtin_offsetof(struct call, trace_id);
	return __builtin_offsetof(struct call, asked_len);
}

/*
 * Copies the call without the sections that it lacks, cut after its names. The record is complete before room is taken:
 * nothing comes in between. Its first word takes the place of what is left out in front.
 */
static __always_inline bool put_call(struct call *call)
{
	__u64 len = __builtin_offsetof(struct call, names) + call->asked_len + call->actual_len;
	__u64 start = first_section(call->flags) - sizeof(__u64);
	__u64 *first = (void *)call + start;

	*first = *(__u64 *)call;
	if (len > sizeof(*call))
		len = sizeof(*call);
	/* The flag is read after the record is committed (an exchange, so a full barrier): no wake-up is missed. */
	if (bpf_ringbuf_output(&calls, first, len - start, BPF_RB_NO_WAKEUP))
		return false;
	wake_reader();
	return true;
}

/* Returns whether there was room. */
static __always_inline bool send_call(struct call *call)
{
	bool sent = put_call(call);

	if (!sent)
		count(COUNT_LOST_RING);
	return sent;
}
