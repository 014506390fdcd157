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

/* A process that publishes again within this is noted once: user space looks later than that (src/who/contexts.rs). */
#define PUBLICATION_PAUSE_NS 10000000

/* prctl(option, attribute, start, size, name); only of images that made a call: others are read at their first one. */
static __always_inline void enter_prctl(const unsigned long *args)
{
	struct task_struct *task = current_task();
	char name[16] = {};
	struct mark *mark;
	__u64 now;

	if (args[0] != PR_SET_VMA || args[1] != PR_SET_VMA_ANON_NAME)
		return;
	/* A name that is not in memory yet may be the one. */
	if (bpf_probe_read_user_str(name, sizeof(name), (void *)args[4]) > 0 &&
	    !begins_with(name, CONTEXT_NAME, sizeof(CONTEXT_NAME)))
		return;
	struct notice notice = { .image = image_key_of(task), .kind = NOTICE_PUBLISHED };

	mark = bpf_map_lookup_elem(&marks, &notice.image);
	if (!mark)
		return;
	now = bpf_ktime_get_ns();
	if (mark->noted_ns && now - mark->noted_ns < PUBLICATION_PAUSE_NS)
		return;
	if (bpf_ringbuf_output(&notices, &notice, sizeof(notice), 0))
		return; /* the next one is noted in its place */
	mark->noted_ns = now;
}
