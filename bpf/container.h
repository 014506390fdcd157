/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The caller's container, by the names of its control groups: decided here, so that metrics and short lives are right,
 * and user space need not know a group before its first call. src/model/container.rs reads the same names; a test
 * compares both. Cgroup v1, v2, or both: the unified hierarchy first, then those of the controllers.
 */
#pragma once
#include "filter.h"

/* Longest id; of names, the rest is prefix and suffix. */
#define ID_SIZE 64
/* So many groups are looked at, from the innermost outwards, and so many hierarchies. */
#define NESTED 16
#define HIERARCHIES 16

struct container {
	__u64 cgroup; /* of the hierarchy that names the container, else of the unified one */
	__u32 unused;
	__u32 bits;	  /* of the id; 0: in none */
	char id[ID_SIZE]; /* with its bits: a key of container_rules */
};

struct container_key {
	__u32 bits;
	char id[ID_SIZE];
};

/* By the longest prefix; user space has each rule say what those that it goes on from say, too. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, RULES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct container_key);
	__type(value, struct rule);
} container_rules SEC(".maps");

/* What a group's name says; of the oldest kernels alone. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct container);
} container_read SEC(".maps");

const volatile __u8 container_mode;

/*
 * Of eight characters those from `least` to `most`, a bit each: bit 7 of each byte says so, and a multiplication gathers
 * these. Without branches, whose ways the verifier would have to follow for each character of an id.
 */
static __always_inline __u64 between(__u64 word, __u64 least, __u64 most)
{
	const __u64 each = 0x0101010101010101;
	__u64 low = word & each * 0x7f;
	__u64 in = (low + each * (0x80 - least)) & ~(low + each * (0x7f - most)) & ~word & each * 0x80;

	return in * 0x0002040810204081 >> 56;
}

/* The places of an id that hold digits, hexadecimal digits, dashes: a bit each. */
struct places {
	__u64 digits;
	__u64 hex;
	__u64 dashes;
};

static __always_inline struct places places_of(const struct container *container)
{
	const __u64 *words = (const __u64 *)container->id;
	struct places places = {};

	/* A loop: what eight steps side by side keep would not fit on the stack of older kernels (seen on 6.1). */
#pragma clang loop unroll(disable)
	for (int i = 0; i < ID_SIZE / 8; i++) {
		places.digits |= between(words[i], '0', '9') << 8 * i;
		places.hex |= between(words[i], 'a', 'f') << 8 * i;
		places.dashes |= between(words[i], '-', '-') << 8 * i;
	}
	places.hex |= places.digits;
	return places;
}

static __always_inline bool begins_with(const char *name, const char *text, int len)
{
	for (int i = 0; i < len; i++)
		if (name[i] != text[i])
			return false;
	return true;
}

/* Names that are ids as a whole: 32 digits, a dash and decimals (ECS), or 8-4-4-4-4 digits (Garden). */
static __always_inline bool is_short_id(const struct container *container, __u64 len)
{
	const __u64 first = (1ULL << 32) - 1, dash = 1ULL << 32, garden = (1ULL << 28) - 1;
	const __u64 dashes = 1 << 8 | 1 << 13 | 1 << 18 | 1 << 23;
	struct places places = places_of(container);
	__u64 all;

	if (len == 28)
		return (places.dashes & garden) == dashes && (places.hex & garden) == (garden & ~dashes);
	if (len < 34 || len >= ID_SIZE)
		return false;
	all = (1ULL << len) - 1;
	return (places.hex & first) == first && places.dashes & dash && !(all & ~(first | dash) & ~places.digits);
}

/* Whether a group of this name is a container, and its id. */
static __always_inline int read_id_of(__u64 name, struct container *to)
{
	char end[8] = {}, before[8] = {};
	__u64 len = 0;

	for (int i = 0; i <= NAME_SIZE / ID_SIZE; i++) {
		long part = bpf_probe_read_kernel_str(to->id, ID_SIZE, (void *)name + len);

		if (part < 1)
			return false;
		len += part - 1;
		if (part < ID_SIZE)
			break;
	}
	if (len < ID_SIZE) {
		to->bits = len * 8;
		return is_short_id(to, len);
	}
	if (!bpf_probe_read_kernel(end, 6, (void *)name + len - 6) && begins_with(end, ".scope", 6))
		len -= 6;
	if (len < ID_SIZE || bpf_probe_read_kernel(to->id, ID_SIZE, (void *)name + len - ID_SIZE) || ~places_of(to).hex)
		return false;
	to->bits = ID_SIZE * 8;
	if (len == ID_SIZE)
		return true;
	if (bpf_probe_read_kernel(before, 1, (void *)name + len - ID_SIZE - 1) || (before[0] != '-' && before[0] != ':'))
		return false;
	/* A container's monitor has a group of its own, named after the container: libpod-conmon-ID.scope. */
	return len < ID_SIZE + 7 || bpf_probe_read_kernel(before, 7, (void *)name + len - ID_SIZE - 7) ||
	       !begins_with(before, "conmon-", 7);
}

#ifdef OLD
/*
 * As once.h has it: these write to a place of their own. Programs are not preempted on these kernels, but for PREEMPT_RT,
 * where none runs unasked (src/kernel/hazards.rs).
 */
static __always_inline struct container *container_place(void)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&container_read, &first);
}

__noinline int read_id_once(__u64 name)
{
	struct container *to = container_place();

	return to ? read_id_of(name, to) : false;
}
#define read_id(name, to) read_id_once(name)
#else
__noinline int read_id(__u64 name, struct container *to) { return to ? read_id_of(name, to) : false; }
#endif

/* Whether the group is in a container, and in which: the innermost. */
static __always_inline int names_container_of(__u64 cgroup, struct container *to)
{
	struct cgroup *at = (void *)cgroup;

	for (int i = 0; i < NESTED; i++) {
		struct cgroup_subsys_state *parent = BPF_CORE_READ(at, self.parent);

		if (!parent)
			break; /* the root has no name */
		if (read_id((__u64)BPF_CORE_READ(at, kn, name), to)) {
			to->cgroup = cgroup;
			return true;
		}
		at = BPF_CORE_READ(parent, cgroup);
	}
	return false;
}

#ifdef OLD
__noinline int names_container_once(__u64 cgroup)
{
	struct container *to = container_place();

	return to ? names_container_of(cgroup, to) : false;
}

static __always_inline int names_container(__u64 cgroup, struct container *to)
{
	struct container *read = names_container_once(cgroup) ? container_place() : 0;

	if (!read)
		return false;
	*to = *read;
	return true;
}
#else
__noinline int names_container(__u64 cgroup, struct container *to)
{
	return to ? names_container_of(cgroup, to) : false;
}
#endif

/* Whether the current process is in a container, and in which. Global: it is verified once. */
VERIFIED_ONCE int find_container(struct container *to)
{
	struct task_struct *task = current_task();
	/* Read, not followed: to the verifier these are numbers. */
	struct css_set *groups = BPF_CORE_READ(task, cgroups);
	__u64 unified = (__u64)BPF_CORE_READ(groups, dfl_cgrp), last = unified;
	__u64 hierarchies = bpf_core_enum_value(enum cgroup_subsys_id, CGROUP_SUBSYS_COUNT);

	if (!to)
		return false;
	if (names_container(unified, to))
		return true;
	for (__u32 i = 0; i < HIERARCHIES && i < hierarchies; i++) {
		struct cgroup_subsys_state *state = 0;
		__u64 cgroup;

		bpf_probe_read_kernel(&state, sizeof(state),
				      (void *)groups + bpf_core_field_offset(struct css_set, subsys) + i * sizeof(state));
		cgroup = (__u64)BPF_CORE_READ(state, cgroup);
		if (cgroup == last)
			continue;
		last = cgroup;
		if (names_container(cgroup, to))
			return true;
	}
	to->cgroup = unified;
	to->bits = 0;
	return false;
}

/* Whether the current process's container is wanted. Global: it is verified once. */
__noinline int is_container_wanted(void)
{
	struct container container = {};
	struct rule *rule = 0;

	if (find_container(&container))
		rule = bpf_map_lookup_elem(&container_rules, &container.bits);
	if (!rule)
		return container_mode == RULES_ALL_BUT_EXCLUDED;
	rule->hit = 1;
	return !rule->exclude;
}
