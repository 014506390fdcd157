/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The reads of kernel memory that every call on a queue makes. Addresses are numbers to the verifier. From Linux 6.2 on it
 * lets them be read like pointers, by loads in the program that give 0 where nothing is mapped, as the helper does that
 * older kernels have, which takes ten times as long.
 */
#pragma once
#include "event.h"

/* FOLLOW: as READ, through a pointer that stands in a task. READ_AT: what FIELD of the TYPE at an address holds. */
#ifdef PLAIN
#define FOLLOW READ
#define READ_AT(type, address, field) ((__u64)BPF_CORE_READ((type *)(address), field))
#else
extern void *bpf_rdonly_cast(const void *address, __u32 type) __ksym __weak;

/*
 * From Linux 6.2 on the verifier searches all of the kernel's types, up to four times, for what makes a pointer in a trusted
 * structure one to trust (btf_nested_type_is_trusted): that took longer than all else that it does. In one that is not
 * trusted it searches nothing.
 */
#define FOLLOW(task, ...)                                                                                         \
	___arrow(((typeof(task))(bpf_ksym_exists(bpf_rdonly_cast) ?                                               \
					 bpf_rdonly_cast(task, bpf_core_type_id_kernel(typeof(*(task)))) :        \
					 (task))),                                                                \
		 __VA_ARGS__)

#define READ_AT(type, address, field)                                                                             \
	(bpf_ksym_exists(bpf_rdonly_cast) ?                                                                       \
		 (__u64)((type *)bpf_rdonly_cast((void *)(address), bpf_core_type_id_kernel(type)))->field :      \
		 (__u64)BPF_CORE_READ((type *)(address), field))
#endif

/* The pointer that an address holds: of the types known to the kernel any does that begins with one. */
static __always_inline void *pointer_at(void *address)
{
	return (void *)READ_AT(struct hlist_head, address, first);
}

static __always_inline struct file *file_of(struct task_struct *task, __s64 fd)
{
	struct fdtable *fdt = FOLLOW(task, files, fdt);

	return fd >= 0 && fd < READ(fdt, max_fds) ? pointer_at(READ(fdt, fd) + fd) : 0;
}

static __always_inline __u64 inode_of(struct file *file)
{
	return READ_AT(struct file, file, f_inode);
}

static __always_inline __u64 number_of(__u64 inode)
{
	return READ_AT(struct inode, inode, i_ino);
}

static __always_inline struct mqueue_inode_info *queue_of(__u64 inode)
{
	return (void *)inode - bpf_core_field_offset(struct mqueue_inode_info, vfs_inode);
}

/* Whether the inode is a queue's. The mount's own folder is none, although its inode is of the same kind. */
static __always_inline bool is_queue(struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_magic) == MQUEUE_MAGIC && (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFREG;
}

/* How many messages are in a queue. */
static __always_inline __u64 depth_of(__u64 inode)
{
	return READ_AT(struct mqueue_inode_info, queue_of(inode), attr.mq_curmsgs);
}
