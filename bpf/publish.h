/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Notes that a process has published its process context anew (OTEP 4719): it then names the mapping, whatever the
 * kernel says to that. Taken at the entry, the one side that every kind of hooks has the arguments at; what is published
 * is in memory by then, and user space looks some milliseconds later.
 */
#pragma once
#include "image.h"

#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#define CONTEXT_NAME "OTEL_CTX"

#define PUBLICATIONS_RING_SIZE (64 << 10)
/* A process that publishes again within this is noted once: user space looks later than that (src/who/contexts.rs). */
#define PUBLICATION_PAUSE_NS 10000000

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PUBLICATIONS_RING_SIZE);
} publications SEC(".maps");

struct noted {
	__u64 image; /* as in `sent` */
	__u64 at_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SENT_SLOTS);
	__type(key, __u32);
	__type(value, struct noted);
} noted SEC(".maps");

/* prctl(option, attribute, start, size, name); only of images that made a call: others are read at their first one. */
static __always_inline void enter_prctl(const unsigned long *args)
{
	struct task_struct *task = bpf_get_current_task_btf();
	char name[16] = {};
	__u64 now, hash, *last;
	struct noted *before;
	__u32 slot;

	if (args[0] != PR_SET_VMA || args[1] != PR_SET_VMA_ANON_NAME)
		return;
	/* A name that is not in memory yet may be the one. */
	if (bpf_probe_read_user_str(name, sizeof(name), (void *)args[4]) > 0 &&
	    !begins_with(name, CONTEXT_NAME, sizeof(CONTEXT_NAME)))
		return;
	struct publication publication = {
		.started_ns = task->group_leader->start_boottime,
		.pid = task->tgid,
		.exec_id = task->self_exec_id,
	};

	hash = image_hash(publication.started_ns, publication.pid, publication.exec_id);
	slot = image_slot(hash);
	last = bpf_map_lookup_elem(&sent, &slot);
	before = bpf_map_lookup_elem(&noted, &slot);
	if (!last || *last != hash || !before)
		return;
	now = bpf_ktime_get_ns();
	if (before->image == hash && now - before->at_ns < PUBLICATION_PAUSE_NS)
		return;
	if (bpf_ringbuf_output(&publications, &publication, sizeof(publication), 0))
		return; /* the next one is noted in its place */
	before->image = hash;
	before->at_ns = now;
}
