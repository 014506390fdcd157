/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the kernel knows of the queue behind a descriptor: its name, limits, depth, mode and namespace. Read from the
 * kernel's own structures, so it is right whatever the caller's memory says.
 */
#pragma once
#include "pair.h"

static __always_inline struct file *file_of(struct task_struct *task, __s64 fd)
{
	struct fdtable *fdt = task->files->fdt;
	struct file **slots = fdt->fd, *file = 0;

	if (fd < 0 || fd >= fdt->max_fds)
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]);
	return file;
}

static __always_inline struct mqueue_inode_info *queue_of(struct inode *inode)
{
	return (void *)inode - bpf_core_field_offset(struct mqueue_inode_info, vfs_inode);
}

/* Fills in the queue of an open file, its name at `at`; leaves the call as it is where the file is none. */
static __always_inline void read_queue(struct call *call, struct file *file, __u32 at)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	struct ipc_namespace *ns;
	struct mq_attr attr;
	long len;

	if (BPF_CORE_READ(sb, s_magic) != MQUEUE_MAGIC)
		return;
	if (bpf_core_read(&attr, sizeof(attr), &queue_of(inode)->attr))
		return;
	if (at > NAME_SIZE)
		return;
	len = bpf_probe_read_kernel_str(call->names + at, NAME_SIZE, BPF_CORE_READ(file, f_path.dentry, d_name.name));
	if (len < 1)
		return;
	call->actual_len = len - 1;
	call->queue_inode = (__u64)inode;
	call->queue_ino = BPF_CORE_READ(inode, i_ino);
	call->queue_maxmsg = attr.mq_maxmsg;
	call->queue_msgsize = attr.mq_msgsize;
	call->queue_curmsgs = attr.mq_curmsgs;
	call->queue_mode = BPF_CORE_READ(inode, i_mode) & 07777;
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
	struct inode *inode;

	if (!file)
		return;
	inode = BPF_CORE_READ(file, f_inode);
	if (slot->queue_ipc_ns && (__u64)inode == call->queue_inode && BPF_CORE_READ(inode, i_ino) == call->queue_ino) {
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

static __always_inline void read_depth(struct call *call, struct inode *inode)
{
	struct mqueue_inode_info *info = queue_of(inode);

	call->queue_curmsgs = BPF_CORE_READ(info, attr.mq_curmsgs);
}

/*
 * Its depth when the call has ended. Another thread may have closed the descriptor meanwhile, or opened another queue
 * in its place; not where nobody shares the table of descriptors. `switches` voluntary switches mean waiting, unless the
 * descriptor says that it does not wait.
 */
static __always_inline void leave_queue(struct call *call, struct task_struct *task, __u64 switches)
{
	struct inode *inode = (struct inode *)call->queue_inode;
	struct file *file;

	if (!(call->flags & CALL_QUEUE))
		return;
	if (task->files->count.counter == 1 && !switches) {
		read_depth(call, inode);
		return;
	}
	file = file_of(task, call->fd);
	if (file && BPF_CORE_READ(file, f_inode) == inode) {
		read_depth(call, inode);
		if (switches && !(BPF_CORE_READ(file, f_flags) & O_NONBLOCK))
			call->flags |= CALL_BLOCKED;
	} else {
		call->flags |= CALL_QUEUE_LEFT | (switches ? CALL_BLOCKED : 0);
	}
}
