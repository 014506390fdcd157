/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * `run -- CMD`: keeps the set of processes that descend from the command. see_self() puts the command itself into the
 * set before it execs. A child is told by its parent's thread group at the fork itself, so that double forks
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

/*
 * mqspan's own place, and its child that waits to become the command, which has this number in mqspan's pid namespace;
 * 0: there is none. Returns whether the child was found: it is among the last that mqspan got.
 */
#define OWN_CHILDREN 64

/* Global: it is verified once, not for each child. */
__noinline int local_number_of(__u64 child)
{
	return local_number((struct task_struct *)child);
}

static __always_inline int see_own(__u32 child_number)
{
	struct task_struct *task = current_task(), *leader = BPF_CORE_READ(task, group_leader);
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	struct upid *upid;
	struct list_head *first, *at;

	own_pid = READ(task, tgid);
	own_level = BPF_CORE_READ(pid, level);
	upid = (void *)pid + bpf_core_field_offset(struct pid, numbers) + own_level * bpf_core_type_size(struct upid);
	own_namespace = (__u64)BPF_CORE_READ(upid, ns);
	if (!child_number)
		return true;
	first = (void *)leader + bpf_core_field_offset(struct task_struct, children);
	at = BPF_CORE_READ(first, prev);
	for (int i = 0; i < OWN_CHILDREN && at != first; i++) {
		struct task_struct *child = (void *)at - bpf_core_field_offset(struct task_struct, sibling);

		if ((__u32)local_number_of((__u64)child) == child_number) {
			__u32 child_pid = BPF_CORE_READ(child, tgid);
			__u8 member = 1;

			return !bpf_map_update_elem(&tree, &child_pid, &member, BPF_ANY);
		}
		at = BPF_CORE_READ(at, prev);
	}
	return false;
}
