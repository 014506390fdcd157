/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Names of queues as numbers, short enough for a key. The name behind a number goes to user space once, before the
 * number is used.
 */
#pragma once
#include "image.h"

/* Names that were sent: marks that user space owns, as those of images. */
#define NAMES 32768

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NAMES);
	__type(key, __u64);
	__type(value, __u8);
} named SEC(".maps");

/* Random, so that nobody can make two names meet. */
const volatile __u64 name_seed[2];

/* Where the name that the call is known by stands: the queue's own, else the one asked for. False: it has none. */
static __always_inline bool find_name(const struct call *call, __u32 *start, __u32 *len)
{
	bool reached = call->flags & CALL_QUEUE;

	*start = reached ? call->asked_len : 0;
	*len = reached ? call->actual_len : call->asked_len;
	return reached || !(call->flags & CALL_NAME_BAD);
}

static __always_inline __u64 word_of_name(const struct call *call, __u32 at)
{
	return *(const __u64 *)(call->names + (at & (2 * NAME_SIZE - 1)));
}

static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9fb21c651e98df25;
	return hash ^ hash >> 29 ^ name_seed[1];
}

/* The hash of the call's name, 0 where it has none. What lies behind the end does not count. Global: verified once. */
VERIFIED_ONCE __u64 hash_of_name(const struct call *call)
{
	__u32 start, len, at;
	__u64 hash;

	if (!call || !find_name(call, &start, &len))
		return 0;
	hash = name_seed[0] ^ len;
	for (at = 0; at < NAME_SIZE - 8 && at + 8 <= len; at += 8)
		hash = mix(hash, word_of_name(call, start + at));
	if (len % 8)
		hash = mix(hash, word_of_name(call, start + at) & ~0ULL >> 8 * (8 - len % 8));
	hash *= 0xd6e8feb86659fd93;
	return (hash ^ hash >> 32) | 1;
}

/* Sends the call's name unless it is marked as sent. Global: it is verified once. */
VERIFIED_ONCE int send_name(const struct call *call, __u64 hash)
{
	struct name *name;
	__u32 start, len;
	__u8 mark = 1;

	if (!call || bpf_map_lookup_elem(&named, &hash) || !find_name(call, &start, &len))
		return 0;
	if (bpf_map_update_elem(&named, &hash, &mark, BPF_NOEXIST)) {
		count(COUNT_IMAGES_LOST);
		return 0;
	}
	name = bpf_ringbuf_reserve(&images, sizeof(*name), 0);
	if (!name) {
		count(COUNT_IMAGES_LOST);
		bpf_map_delete_elem(&named, &hash); /* the next series of the name tries again */
		return 0;
	}
	name->hash = hash;
	name->len = len;
	bpf_probe_read_kernel(name->bytes, sizeof(name->bytes), call->names + (start & (2 * NAME_SIZE - 1)));
	bpf_ringbuf_submit(name, BPF_RB_NO_WAKEUP);
	return 0;
}
