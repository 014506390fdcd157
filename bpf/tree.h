/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * `run -- CMD`: keeps the set of processes that descend from the command. User space puts the command's own id into
 * the set before it lets it exec. A child is told by its parent's thread group at the fork itself, so that double forks
 * and parents that are gone lose nobody; a process leaves the set when its last thread exits, not its leader.
 */
#pragma once
#include "count.h"
#include "filter.h"

static __always_inline void tree_fork(struct task_struct *parent, struct task_struct *child)
{
	__u32 parent_pid = BPF_CORE_READ(parent, tgid), child_pid = BPF_CORE_READ(child, tgid);
	__u8 member = 1;

	if (parent_pid == child_pid || !bpf_map_lookup_elem(&tree, &parent_pid))
		return;
	if (bpf_map_update_elem(&tree, &child_pid, &member, BPF_ANY))
		count(COUNT_TREE_FULL);
}

static __always_inline void tree_exit(struct task_struct *task)
{
	__u32 pid = BPF_CORE_READ(task, tgid);

	if (BPF_CORE_READ(task, signal, live.counter) == 0)
		bpf_map_delete_elem(&tree, &pid);
}
