/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What user space asks of a queue at a collection (Programs::look_at_queue), by a program that mqspan runs on itself: what
 * became of it, and since when the message that would be received next has been in it. No caller pays for it.
 */
#pragma once
#include "message.h"
#include "turn.h"

/* A queue that is in use changes while it is looked at. */
#define OLDEST_TRIES 4

/* Of the last look, CLOCK_MONOTONIC: its time, and since when the first message has been there (0: not known). */
__u64 looked_ns;
__u64 oldest_since_ns;

/* The message that would be received next, 0: there is none; without the lock of msg_get() (ipc/mqueue.c). */
static __always_inline __u64 first_message(struct mqueue_inode_info *info)
{
	void *last = BPF_CORE_READ(info, msg_tree_rightmost);
	struct posix_msg_tree_node *leaf = last - bpf_core_field_offset(struct posix_msg_tree_node, rb_node);

	return last ? (__u64)BPF_CORE_READ(leaf, msg_list.next) - bpf_core_field_offset(struct msg_msg, m_list) : 0;
}

/* Since when the first message of a queue has been there; 0 where its send was not seen. */
static __always_inline __u64 oldest_since(__u64 inode)
{
	struct message *message;
	__u64 first, since;

	for (int i = 0; i < OLDEST_TRIES; i++) {
		first = first_message(queue_of(inode));
		message = first ? find_message(first) : 0;
		if (!message || message->queue_inode != inode)
			continue;
		since = message->inserted_ns;
		/* It was there all the while: so this is of the message and not of one that came in its place. */
		if (first_message(queue_of(inode)) == first)
			return since;
	}
	return 0;
}

/*
 * -1 where the queue has ended; else its depth, in the two bits below that whether no receive and whether no send was under way
 * when that was read, where they are counted, and in the lowest whether it was unlinked. No call may have reached it for long. An
 * inode that nobody refers to is freed, and its memory may be anything's by now: the number is drawn anew for each inode,
 * and compared.
 */
static __always_inline int look_at_queue(__u64 address, __u64 number, __u64 ns)
{
	struct inode *inode = (void *)address;
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	volatile struct turns *all = infers_links ? turns_at(place_of(address, number)) : 0;
	__u64 sends = all ? all->ended[0] : 0, receives = all ? all->ended[1] : 0;
	int depth;

	if (BPF_CORE_READ(inode, i_ino) != number || BPF_CORE_READ(inode, i_count.counter) <= 0 ||
	    BPF_CORE_READ(sb, s_magic) != MQUEUE_MAGIC || (__u64)BPF_CORE_READ(sb, s_fs_info) != ns)
		return -1;
	depth = BPF_CORE_READ(queue_of(address), attr.mq_curmsgs);
	looked_ns = bpf_ktime_get_ns();
	oldest_since_ns = messages_carry_ids ? oldest_since(address) : 0;
	depth = depth << 1 | (all && all->started[0] == sends);
	depth = depth << 1 | (all && all->started[1] == receives);
	return depth << 1 | !BPF_CORE_READ(inode, i_nlink);
}
