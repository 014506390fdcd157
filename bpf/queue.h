/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the kernel knows of the queue behind a descriptor: its name, limits, depth, mode and namespace. Read from the
 * kernel's own structures, so it is right whatever the caller's memory says.
 */
#pragma once
#include "inode.h"
#include "pair.h"

/* Fills in the queue of an open file, its name at `at`; leaves the call as it is where the file is none. */
static __always_inline void read_queue(struct call *call, struct file *file, __u32 at)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	struct ipc_namespace *ns;
	const unsigned char *name;
	struct mq_attr attr;
	__u64 place = at;
	long len;

	if (!is_queue(inode))
		return;
	if (bpf_core_read(&attr, sizeof(attr), &queue_of((__u64)inode)->attr))
		return;
	name = BPF_CORE_READ(file, f_path.dentry, d_name.name);
	/* Checked right before it is used, as a whole register: older verifiers (seen on 6.1) forget what a part of one was. */
	asm volatile("" : "+r"(place));
	if (place > NAME_SIZE)
		return;
	len = bpf_probe_read_kernel_str(call->names + place, NAME_SIZE, name);
	if (len < 1)
		return;
	call->actual_len = len - 1;
	call->queue_inode = (__u64)inode;
	call->queue_ino = BPF_CORE_READ(inode, i_ino);
	call->queue_maxmsg = attr.mq_maxmsg;
	call->queue_msgsize = attr.mq_msgsize;
	call->queue_curmsgs = attr.mq_curmsgs;
	call->queue_mode = BPF_CORE_READ(inode, i_mode) & ~S_IFMT;
	ns = BPF_CORE_READ(sb, s_fs_info);
	call->queue_ns = (__u64)ns;
	call->ipc_ns = BPF_CORE_READ(ns, ns.inum);
	call->flags |= CALL_QUEUE;
}

/* The queue that the call's descriptor means at its entry. A queue is never renamed, and its limits never change. */
static __always_inline void enter_queue(struct slot *slot, struct task_struct *task)
{
	struct call *call = &slot->call;
	struct file *file = file_of(task, call->fd);

	if (!file)
		return;
	if (slot->queue_ipc_ns && inode_of(file) == call->queue_inode && number_of(call->queue_inode) == call->queue_ino) {
		call->actual_len = slot->queue_len;
		call->ipc_ns = slot->queue_ipc_ns;
		call->flags |= CALL_QUEUE;
		return;
	}
	read_queue(call, file, 0);
	slot->queue_ipc_ns = call->flags & CALL_QUEUE ? call->ipc_ns : 0;
	slot->queue_len = call->actual_len;
	slot->queue_hash = 0;
}

/*
 * Its depth when the call has ended. Another thread may have closed the descriptor meanwhile, or opened another queue
 * in its place; not where nobody shares the table of descriptors. `switches` voluntary switches mean waiting, unless the
 * descriptor says that it does not wait.
 */
static __always_inline void leave_queue(struct call *call, struct task_struct *task, __u64 switches)
{
	struct file *file;

	if (!(call->flags & CALL_QUEUE))
		return;
	if (FOLLOW(task, files, count.counter) == 1 && !switches) {
		call->queue_curmsgs = depth_of(call->queue_inode);
		return;
	}
	file = file_of(task, call->fd);
	if (file && inode_of(file) == call->queue_inode) {
		call->queue_curmsgs = depth_of(call->queue_inode);
		if (switches && !(BPF_CORE_READ(file, f_flags) & O_NONBLOCK))
			call->flags |= CALL_BLOCKED;
	} else {
		call->flags |= CALL_QUEUE_LEFT | (switches ? CALL_BLOCKED : 0);
	}
}

/* mqspan's own, one at a time (Programs::keep_queue, keep_file): too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct call);
} found SEC(".maps");

/* Keeps the state of a queue that was there before, and that no call may ever reach; 0: whichever number it has. */
static __always_inline int keep_file(struct file *file, __u64 number)
{
	__u32 first = 0;
	struct call *call = bpf_map_lookup_elem(&found, &first);

	if (!call || !file)
		return false;
	call->flags = 0;
	call->asked_len = 0;
	read_queue(call, file, 0);
	if (!(call->flags & CALL_QUEUE) || (number && call->queue_ino != number))
		return false;
	return !!state_of(call, hash_of_name(call));
}

/* The same of one that mqspan has opened. */
static __always_inline int keep_queue(__s64 fd)
{
	return keep_file(file_of(current_task(), fd), 0);
}
