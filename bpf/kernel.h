/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The few kernel types that the programs look into, with CO-RE relocations in place of a generated vmlinux.h: only
 * the fields that are read stand here, and libbpf finds where they are in the running kernel. Constants that are part
 * of the kernel's ABI are written out, so that no kernel header is needed to build.
 */
#pragma once

typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum {
	BPF_F_NO_PREALLOC = 1,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };

/*
 * The programs are built three times from the same source (build.rs), for what kernels differ in and a program can't ask
 * while it runs: PLAIN, where the kernel does not describe its own types (or before 5.11, where tasks have none to the
 * verifier), and OLD, before 5.12, whose BPF can add to a number in memory, but not learn what it was before, and whose
 * verifier takes no pointers to functions that are verified once.
 */

/* Fields of a kernel's structure, from one to the next: by loads where the verifier knows the pointer's type. */
#ifdef PLAIN
#define READ(pointer, ...) BPF_CORE_READ(pointer, __VA_ARGS__)
#define current_task() ((struct task_struct *)bpf_get_current_task())
#else
#define READ(pointer, ...) ___arrow(pointer, __VA_ARGS__)
#define current_task() bpf_get_current_task_btf()
#endif

#ifdef OLD
/* Verified with each of its callers. Used, so that it is compiled in its turn, as the others are, and the variables with it. */
#define VERIFIED_ONCE static __noinline __attribute__((used))
/* Not atomic, as far as what they return goes: what may not go wrong is not left to them. */
#define fetch_and_add(at, number)                                                                                 \
	({                                                                                                        \
		typeof(*(at)) was = *(volatile typeof(*(at)) *)(at);                                              \
		__sync_fetch_and_add(at, number);                                                                 \
		was;                                                                                              \
	})
#define compare_and_swap(at, old, new)                                                                            \
	({                                                                                                        \
		typeof(*(at)) was = *(volatile typeof(*(at)) *)(at);                                              \
		if (was == (old))                                                                                 \
			*(volatile typeof(*(at)) *)(at) = (new);                                                  \
		was;                                                                                              \
	})
#define exchange(at, new)                                                                                         \
	({                                                                                                        \
		typeof(*(at)) was = *(volatile typeof(*(at)) *)(at);                                              \
		*(volatile typeof(*(at)) *)(at) = (new);                                                          \
		was;                                                                                              \
	})
#else
#define VERIFIED_ONCE __noinline
#define fetch_and_add(at, number) __sync_fetch_and_add(at, number)
#define compare_and_swap(at, old, new) __sync_val_compare_and_swap(at, old, new)
#define exchange(at, new) __sync_lock_test_and_set(at, new)
#endif

struct bpf_raw_tracepoint_args {
	__u64 args[3];
};

/* include/uapi/asm-generic/fcntl.h, include/uapi/linux/magic.h: the same on x86 and arm64 */
#define O_CREAT 0100
#define O_NONBLOCK 04000
/* include/uapi/asm-generic/errno.h, include/linux/errno.h */
#define EINTR 4
#define EAGAIN 11
#define EFAULT 14
#define ETIMEDOUT 110
#define ERESTARTSYS 512
#define MQUEUE_MAGIC 0x19800202
/* include/uapi/linux/stat.h */
#define S_IFMT 0170000
#define S_IFREG 0100000

/* include/uapi/linux/mqueue.h, struct mq_attr as a caller passes it: flags, maxmsg, msgsize, curmsgs */
struct mq_attr_user {
	long shown[4];
	long reserved[4];
};

/* ipc/mqueue.c, struct compat_mq_attr: the same of a 32-bit caller */
struct compat_mq_attr_user {
	__s32 shown[4];
	__s32 reserved[4];
};

/* include/linux/err.h: addresses from here to the end are errors */
#define MAX_ERRNO 4095

/*
 * The registers that hold a system call's arguments, or a function's: their layout is part of the ABI (the kernel's
 * asm/ptrace.h), and the fields after them are not needed.
 */
#ifdef __TARGET_ARCH_arm64
struct pt_regs {
	__u64 regs[8];
};
#define PARM1(ctx) ((ctx)->regs[0])
#define PARM2(ctx) ((ctx)->regs[1])
#define PARM4(ctx) ((ctx)->regs[3])
#define RETURNED(ctx) ((ctx)->regs[0])
#define NATIVE_ARGS(r) { (r)->regs[0], (r)->regs[1], (r)->regs[2], (r)->regs[3], (r)->regs[4] }
#define COMPAT_ARGS(r) NATIVE_ARGS(r)
#else
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
};
#define PARM1(ctx) ((ctx)->di)
#define PARM2(ctx) ((ctx)->si)
#define PARM4(ctx) ((ctx)->cx)
#define RETURNED(ctx) ((ctx)->ax)
#define NATIVE_ARGS(r) { (r)->di, (r)->si, (r)->dx, (r)->r10, (r)->r8 }
#define COMPAT_ARGS(r) { (__u32)(r)->bx, (__u32)(r)->cx, (__u32)(r)->dx, (__u32)(r)->si, (__u32)(r)->di }
#endif

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* include/linux/types.h */
struct hlist_head {
	void *first;
};

struct list_head {
	struct list_head *next;
	struct list_head *prev;
};

struct rb_node {
	unsigned long __rb_parent_color;
};

typedef struct {
	int counter;
} atomic_t;

struct qstr {
	const unsigned char *name;
};

struct super_block {
	unsigned int s_dev;
	unsigned long s_magic;
	void *s_fs_info; /* mqueue: its struct ipc_namespace (ipc/mqueue.c, mqueue_get_tree) */
};

struct inode {
	__u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned int i_nlink;
	atomic_t i_count;
};

struct dentry {
	struct qstr d_name;
	struct dentry *d_parent;
	struct inode *d_inode;
};

struct vfsmount {
	struct dentry *mnt_root;
};

/* fs/mount.h */
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct fs_struct {
	struct path root;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
	unsigned int f_flags;
	unsigned int f_mode;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
	unsigned long *open_fds;
};

struct files_struct {
	atomic_t count;
	struct fdtable *fdt;
	unsigned int next_fd;
};

/* include/uapi/linux/mqueue.h */
struct mq_attr {
	long mq_flags;
	long mq_maxmsg;
	long mq_msgsize;
	long mq_curmsgs;
};

/* ipc/mqueue.c */
struct mqueue_inode_info {
	struct inode vfs_inode;
	struct rb_node *msg_tree_rightmost;
	struct mq_attr attr;
	struct pid *notify_owner;
};

struct posix_msg_tree_node {
	struct rb_node rb_node;
	struct list_head msg_list;
};

/* include/linux/msg.h */
struct msg_msg {
	struct list_head m_list;
	long m_type;
};

struct ns_common {
	unsigned int inum;
};

struct ipc_namespace {
	struct ns_common ns;
	unsigned int mq_queues_count;
	unsigned int mq_queues_max;
	unsigned int mq_msg_max;
	unsigned int mq_msgsize_max;
	unsigned int mq_msg_default;
	unsigned int mq_msgsize_default;
};

/* fs/mount.h */
struct mnt_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct ipc_namespace *ipc_ns;
	struct mnt_namespace *mnt_ns;
};

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid { /* its number on the host is the first */
	unsigned int level;
	struct upid numbers[1];
};

typedef struct {
	__u32 val;
} kuid_t;

/* include/linux/user_namespace.h */
enum rlimit_type {
	UCOUNT_RLIMIT_MSGQUEUE = 1,
};

enum ucount_type___before_6_0 {
	UCOUNT_RLIMIT_MSGQUEUE___before_6_0 = 1,
};

typedef struct {
	long counter;
} atomic_long_t;

struct ucounts {
	struct user_namespace *ns;
	atomic_long_t rlimit[1];
};

struct ucounts___before_6_0 {
	atomic_long_t ucount[1];
};

struct user_namespace {
	int level;
	struct ucounts *ucounts;
	long rlimit_max[1];
};

struct user_namespace___before_6_0 {
	long ucount_max[1];
};

struct user_struct___before_5_14 {
	unsigned long mq_bytes;
};

struct user_struct;

/* include/linux/capability.h */
typedef struct {
	__u64 val;
} kernel_cap_t;

struct cred {
	kuid_t euid;
	kernel_cap_t cap_effective;
	struct user_struct *user;
	struct user_namespace *user_ns;
	struct ucounts *ucounts;
};

struct mm_struct {
	unsigned long env_start;
	unsigned long env_end;
	struct file *exe_file;
};

struct rlimit {
	unsigned long rlim_cur;
};

struct signal_struct {
	atomic_t live;
	struct rlimit rlim[16];
};

enum bpf_func_id {
	BPF_FUNC_task_pt_regs = 175,
	BPF_FUNC_loop = 181,
};

#ifdef __TARGET_ARCH_arm64
struct thread_info {
	unsigned long flags;
};
#endif

/* include/linux/seccomp_types.h */
struct seccomp {
	int mode;
};

#ifdef __TARGET_ARCH_arm64
/* arch/arm64/include/asm/ptrace.h: the first argument, which the result has replaced */
struct pt_regs___entry {
	__u64 orig_x0;
};
#endif

struct kernfs_node {
	const char *name;
};

/* include/linux/cgroup-defs.h: a group in a hierarchy, a controller's state in it, and what tasks in the same share */
struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};

/* Its value depends on the kernel's configuration. */
enum cgroup_subsys_id {
	CGROUP_SUBSYS_COUNT = 1,
};

/* arch/x86/include/asm/processor.h, arch/arm64/include/asm/processor.h */
struct thread_struct {
#ifdef __TARGET_ARCH_arm64
	struct {
		unsigned long tp_value;
	} uw;
#else
	unsigned long fsbase;
#endif
};

struct task_struct {
	struct thread_struct thread;
	struct css_set *cgroups;
#ifdef __TARGET_ARCH_arm64
	struct thread_info thread_info;
#endif
	struct mm_struct *mm;
	struct fs_struct *fs;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct list_head children;
	struct list_head sibling;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	__u64 start_boottime;
	unsigned long nvcsw;
	const struct cred *cred;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct seccomp seccomp;
	__u64 self_exec_id;
	char comm[16];
};

#pragma clang attribute pop
