/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Exact counters of what did not become a record. The ordinary way of a call touches none of them. */
#pragma once
#include "event.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Sends and receives without a number (turn.h), so far: each may have passed a message that nobody accounts for. */
__u32 losses[2];

static __always_inline void count(__u32 counter)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &counter);

	/* Atomic although per CPU: on preemptible kernels another thread's program may run in between. */
	if (n)
		__sync_fetch_and_add(n, 1);
}

/* Adds 1 after everything before: the kernel orders an addition only where its result is used (arm64). */
#define add_in_order(number)                                                                                      \
	({                                                                                                        \
		__u64 before = fetch_and_add(number, 1);                                                          \
		asm volatile("" : : "r"(before));                                                                 \
	})
