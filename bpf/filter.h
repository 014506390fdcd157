/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which calls are wanted, as far as that can be told from numbers: process, user, ipc namespace, result, duration and
 * the tree of the traced command. Patterns on names are user space's (src/model/filter.rs).
 */
#pragma once
#include "event.h"
#include "namespace.h"

#define RULES 1024
#define TREE_SIZE 65536

/* Values of an option are or-ed, a negated one excludes. `hit` tells user space which value never matched. */
struct rule {
	__u32 exclude;
	__u32 hit;
};

struct rules {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RULES);
	__type(key, __u32);
	__type(value, struct rule);
};
struct rules pid_rules SEC(".maps");
struct rules uid_rules SEC(".maps");
struct rules ipc_rules SEC(".maps");

/* Thread group ids of the traced command and its descendants (tree.h). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TREE_SIZE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u8);
} tree SEC(".maps");

/* What a list of rules asks for: nothing, or that only listed values pass, or that all but the excluded ones do. */
enum rules_mode { RULES_NONE, RULES_ONLY_LISTED, RULES_ALL_BUT_EXCLUDED };

const volatile __u8 pid_mode;
const volatile __u8 uid_mode;
const volatile __u8 ipc_mode;

/*
 * What mqspan can't know itself in a pid namespace of its own: its number as the kernel has it, and which namespace it
 * is in. Set by see_self(). Its own calls are none.
 */
__u32 own_pid;
__u32 own_level;
__u64 own_namespace;
/* Set by user space at the end: no call begins any more. Detaching takes long, this takes effect at once. */
__u32 closed;

const volatile bool only_tree;
const volatile bool makes_records; /* false: metrics alone */
const volatile bool only_failed;
const volatile __u64 min_duration_ns;

static __always_inline bool passes(void *rules, __u8 mode, __u32 value)
{
	struct rule *rule;

	if (mode == RULES_NONE)
		return true;
	rule = bpf_map_lookup_elem(rules, &value);
	if (!rule)
		return mode == RULES_ALL_BUT_EXCLUDED;
	if (rule->exclude)
		return false;
	rule->hit = 1;
	return true;
}

/*
 * The process's number in mqspan's own pid namespace, 0 where it has none there: what user space finds in /proc, and
 * what --pid means.
 */
static __always_inline __u32 local_number(struct task_struct *leader)
{
	return number_at(leader, own_level, own_namespace);
}

static __always_inline bool is_in_tree(__u32 pid)
{
	return !only_tree || bpf_map_lookup_elem(&tree, &pid);
}

/* The filters on whose calls, but for the tree: metrics hold those that pass. */
static __always_inline bool is_of_interest(const struct call *call)
{
	/* Each is asked, whatever the others say: a value that matched is not to be told of as one that did not. */
	bool pid = passes(&pid_rules, pid_mode, call->local_pid), uid = passes(&uid_rules, uid_mode, call->uid);
	bool ipc = passes(&ipc_rules, ipc_mode, call->ipc_ns);

	return pid && uid && ipc;
}

/* The filters on which calls become records. */
static __always_inline bool is_wanted(const struct call *call)
{
	return !(only_failed && call->ret >= 0) && call->left_ns - call->entered_ns >= min_duration_ns;
}
