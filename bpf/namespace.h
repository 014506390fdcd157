/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The numbers of threads in pid namespaces. */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/*
 * A thread's number in a pid namespace and at its level, 0 where it has none there. The pointers are read, not followed:
 * see number_in_namespace().
 */
static __always_inline __u32 number_at(struct task_struct *thread, __u32 level, __u64 namespace)
{
	struct pid *pid = BPF_CORE_READ(thread, thread_pid);
	struct upid *upid = (void *)pid + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid);

	if (BPF_CORE_READ(pid, level) < level || (__u64)BPF_CORE_READ(upid, ns) != namespace)
		return 0;
	return BPF_CORE_READ(upid, nr);
}
