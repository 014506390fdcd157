/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Names of queues as numbers, short enough for a key. The name behind a number goes to user space once, before the
 * number is used.
 */
#pragma once
#include "image.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SENT_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} named SEC(".maps");

/* Random, so that nobody can make two names meet. */
const volatile __u64 name_seed[2];

/* Eight bytes at a time; what lies behind the end does not count. Never 0. */
static __always_inline __u64 hash_name(const char *name, __u32 len)
{
	__u64 hash = name_seed[0] ^ len;

	for (__u32 at = 0; at < NAME_SIZE && at < len; at += 8) {
		__u64 chunk = *(const __u64 *)(name + at);

		if (len - at < 8)
			chunk &= ~0ULL >> 8 * (8 - (len - at));
		hash = (hash ^ chunk) * 0x9fb21c651e98df25;
		hash ^= hash >> 29 ^ name_seed[1];
	}
	hash *= 0xd6e8feb86659fd93;
	return (hash ^ hash >> 32) | 1;
}

/* The name that the call is known by: the queue's own, else the one asked for; 0 where there is none. */
static __always_inline const char *name_of(const struct call *call, __u32 *len)
{
	if (!(call->flags & CALL_QUEUE)) {
		*len = call->asked_len;
		return call->flags & CALL_NAME_BAD ? 0 : call->names;
	}
	*len = call->actual_len;
	return call->asked_len > NAME_SIZE ? 0 : call->names + call->asked_len;
}

/* Sends the call's name unless that was done; as with images, a slot that is taken only means that it is sent again. */
static __always_inline void send_name(const struct call *call, __u64 hash)
{
	__u32 slot = hash >> 52, len;
	__u64 *last = bpf_map_lookup_elem(&named, &slot);
	const char *bytes = name_of(call, &len);
	struct name *name;

	if (!last || *last == hash || !bytes)
		return;
	name = bpf_ringbuf_reserve(&images, sizeof(*name), 0);
	if (!name)
		return; /* not marked as sent: the next series of the name tries again */
	name->hash = hash;
	name->len = len;
	bpf_probe_read_kernel(name->bytes, sizeof(name->bytes), bytes);
	bpf_ringbuf_submit(name, BPF_RB_NO_WAKEUP);
	*last = hash;
}
