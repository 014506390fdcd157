/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the kernel knows of the queue behind a descriptor: its name, limits, depth, mode and namespace. Read from the
 * kernel's own structures, so it is right whatever the caller's memory says.
 */
#pragma once
#include "event.h"

static __always_inline struct file *file_of(struct task_struct *task, __s64 fd)
{
	struct fdtable *fdt = task->files->fdt;
	struct file **slots = fdt->fd, *file = 0;

	if (fd < 0 || fd >= fdt->max_fds)
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]);
	return file;
}

/* Fills in the queue of `fd`; leaves the call as it is where the descriptor is closed or no queue. */
static __always_inline void read_queue(struct call *call, struct task_struct *task, __s64 fd)
{
	struct file *file = file_of(task, fd);
	struct mqueue_inode_info *info;
	struct ipc_namespace *ns;
	struct super_block *sb;
	struct inode *inode;
	struct mq_attr attr;
	__u32 at = call->asked_len;
	long len;

	if (!file)
		return;
	inode = BPF_CORE_READ(file, f_inode);
	sb = BPF_CORE_READ(inode, i_sb);
	if (BPF_CORE_READ(sb, s_magic) != MQUEUE_MAGIC)
		return;
	info = (void *)inode - bpf_core_field_offset(struct mqueue_inode_info, vfs_inode);
	if (bpf_core_read(&attr, sizeof(attr), &info->attr))
		return;
	if (at > NAME_SIZE)
		return;
	len = bpf_probe_read_kernel_str(call->names + at, NAME_SIZE, BPF_CORE_READ(file, f_path.dentry, d_name.name));
	if (len < 1)
		return;
	call->actual_len = len - 1;
	call->queue_maxmsg = attr.mq_maxmsg;
	call->queue_msgsize = attr.mq_msgsize;
	call->queue_curmsgs = attr.mq_curmsgs;
	call->queue_mode = BPF_CORE_READ(inode, i_mode) & 07777;
	ns = BPF_CORE_READ(sb, s_fs_info);
	call->ipc_ns = BPF_CORE_READ(ns, ns.inum);
	call->flags |= CALL_QUEUE;
}
