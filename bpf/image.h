/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Process images: sent once for each, at its first call, by the process itself. So a process that is gone before user
 * space looks is still known, no look-up in /proc stands in the way of an event, and none can meet a reused pid.
 * They have a ring of their own: its records are large and take a loop to fill, which the calls' ring must not wait for.
 */
#pragma once
#include "container.h"
#include "count.h"
#include "inode.h"
#include "once.h"

#define IMAGES_RING_SIZE (1 << 20)
#define IMAGES 16384
#define NOTICES_RING_SIZE (256 << 10)
#define PATH_DEPTH 40

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, IMAGES_RING_SIZE);
} images SEC(".maps");

/*
 * Marks: images that were sent. User space owns them: what it forgets it unmarks, and the image is sent again with the
 * next call. Where there is no room for a mark the image is not sent: it would be again and again.
 */
struct mark {
	__u64 noted_ns; /* when its process context was noted last, see publish.h */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, IMAGES);
	__type(key, struct image_key);
	__type(value, struct mark);
} marks SEC(".maps");

/* Counted up by user space after it removed a mark: what threads remember of theirs is looked up again. */
__u32 marks_age;

/* What became of images: rarely full, and what is lost is no call. Publications wake user space, ends do not. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, NOTICES_RING_SIZE);
} notices SEC(".maps");

/* Where a walk upwards is: a directory, or a control group. */
struct walk {
	__u64 at;
	__u64 mount;
};

enum step { STEP_UP, STEP_TOP, STEP_NO_ROOM };

/* Adds a name behind the `at` bytes that were read so far; returns how many there are then, 0: there is no room. */
static __always_inline __u32 add_name(char *names, __u32 size, __u64 at, __u64 name)
{
	long len;

	if (at >= size)
		return 0;
	/* Where the compiler finds this superfluous, older verifiers (seen on 6.1) do not. */
	asm volatile("" : "+r"(at));
	at &= size - 1;
	len = bpf_probe_read_kernel_str(names + at, NAME_SIZE, (void *)name);
	return len < 1 ? 0 : at + len;
}

/* From a directory to the one that it is in, or is mounted on. Global, as add_group(): verified once, not for each turn. */
VERIFIED_ONCE int add_component(struct image *image, struct walk *walk)
{
	struct dentry *dentry, *parent;
	struct mount *mount, *below;
	__u32 len;

	if (!image || !walk)
		return STEP_NO_ROOM;
	dentry = (void *)walk->at;
	mount = (void *)walk->mount;
	parent = BPF_CORE_READ(dentry, d_parent);
	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root) || dentry == parent) {
		below = BPF_CORE_READ(mount, mnt_parent);
		walk->at = (__u64)BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = (__u64)below;
		return below == mount ? STEP_TOP : STEP_UP;
	}
	len = add_name(image->path, PATH_SIZE, image->path_len, (__u64)BPF_CORE_READ(dentry, d_name.name));
	if (!len)
		return STEP_NO_ROOM;
	image->path_len = len;
	walk->at = (__u64)parent;
	return STEP_UP;
}

/* From a control group to its parent; the root has no name. */
VERIFIED_ONCE int add_group(struct image *image, struct walk *walk)
{
	struct cgroup_subsys_state *parent;
	struct cgroup *group;
	__u32 len;

	if (!image || !walk)
		return STEP_NO_ROOM;
	group = (void *)walk->at;
	parent = BPF_CORE_READ(group, self.parent);
	if (!parent)
		return STEP_TOP;
	len = add_name(image->cgroup, CGROUP_SIZE, image->cgroup_len, (__u64)BPF_CORE_READ(group, kn, name));
	if (!len)
		return STEP_NO_ROOM;
	image->cgroup_len = len;
	walk->at = (__u64)BPF_CORE_READ(parent, cgroup);
	return STEP_UP;
}

/* The path as d_path() makes it (fs/d_path.c), without its locks: a rename meanwhile may give a mixture. */
static __always_inline void read_path(struct image *image, struct file *exe)
{
	__u64 mount = (__u64)BPF_CORE_READ(exe, f_path.mnt) - bpf_core_field_offset(struct mount, mnt);
	struct walk walk = { (__u64)BPF_CORE_READ(exe, f_path.dentry), mount };
	int step = STEP_UP;

	image->path_len = 0;
	for (int i = 0; i < PATH_DEPTH && step == STEP_UP; i++)
		step = add_component(image, &walk);
	if (step != STEP_TOP)
		image->flags |= IMAGE_PATH_CUT;
}

static __always_inline void read_cgroup(struct image *image)
{
	/* Where the environment comes later: the stack is deep here. */
	struct container *container = (void *)image->environ;
	struct walk walk = {};
	int step = STEP_UP;

	_Static_assert(sizeof(*container) <= sizeof(image->environ), "no room");
	find_container(container);
	walk.at = container->cgroup;
	image->cgroup_len = 0;
	for (int i = 0; i < NESTED && step == STEP_UP; i++)
		step = add_group(image, &walk);
	if (step == STEP_TOP)
		return;
	image->cgroup_len = 0;
	image->flags |= IMAGE_CGROUP_CUT;
}

static __always_inline void read_environ(struct image *image, struct mm_struct *mm)
{
	unsigned long start = READ(mm, env_start), len = READ(mm, env_end) - start;

	image->environ_at = start;
	if (len > ENVIRON_SIZE) {
		len = ENVIRON_SIZE;
		image->flags |= IMAGE_ENVIRON_CUT;
	}
	if (bpf_probe_read_user(image->environ, len, (void *)start)) {
		len = 0;
		image->flags |= IMAGE_ENVIRON_BAD;
	}
	image->environ_len = len;
}

static __always_inline void read_root(struct image *image, struct task_struct *task)
{
	struct inode *root = BPF_CORE_READ(task, fs, root.dentry, d_inode);

	image->root_ino = BPF_CORE_READ(root, i_ino);
	image->root_dev = BPF_CORE_READ(root, i_sb, s_dev);
	image->mnt_ns = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
}

/* Fills in the record of the current process's image and sends it. Global: it is verified once. */
VERIFIED_ONCE int put_image(const struct call *call)
{
	struct task_struct *task = current_task();
	struct image *image;

	if (!call)
		return false;
	image = bpf_ringbuf_reserve(&images, sizeof(*image), 0);
	if (!image)
		return false;
	image->pid = call->pid;
	image->vpid = call->vpid;
	image->ppid = FOLLOW(task, real_parent, tgid);
	image->exec_id = call->exec_id;
	image->started_ns = call->process_started_ns;
	image->flags = 0;
	image->uid = call->uid;
	image->local_pid = call->local_pid;
	image->unused = 0;
	bpf_get_current_comm(image->comm, sizeof(image->comm));
	read_path(image, FOLLOW(task, mm, exe_file));
	read_cgroup(image);
	read_root(image, task);
	read_environ(image, FOLLOW(task, mm));
	bpf_ringbuf_submit(image, BPF_RB_NO_WAKEUP);
	return true;
}

static __always_inline struct image_key image_key_of(struct task_struct *task)
{
	struct image_key key = {
		.started_ns = BPF_CORE_READ(task, group_leader, start_boottime),
		.pid = BPF_CORE_READ(task, tgid),
		.exec_id = BPF_CORE_READ(task, self_exec_id),
	};

	return key;
}

/*
 * Sends the current process's image unless it is marked; the call's identity is filled in already. Marked first: of
 * two threads that come at once one sends it.
 */
static __always_inline int mark_image_of(const struct call *call)
{
	struct mark mark = {};
	struct image_key key = { call->process_started_ns, call->pid, call->exec_id };

	if (bpf_map_lookup_elem(&marks, &key))
		return true;
	if (bpf_map_update_elem(&marks, &key, &mark, BPF_NOEXIST)) {
		if (bpf_map_lookup_elem(&marks, &key))
			return true;
		count(COUNT_IMAGES_LOST);
		return false;
	}
	if (put_image(call))
		return true;
	count(COUNT_IMAGES_LOST);
	bpf_map_delete_elem(&marks, &key); /* the next call of the process tries again */
	return false;
}

ONCE_OF_CALL(mark_image)

/* A thread has ended: with its process's last one, the mark goes, and user space is told. */
static __always_inline void end_image(struct task_struct *task)
{
	struct notice notice = { .image = image_key_of(task), .kind = NOTICE_ENDED };

	if (BPF_CORE_READ(task, signal, live.counter) == 0 && !bpf_map_delete_elem(&marks, &notice.image))
		bpf_ringbuf_output(&notices, &notice, sizeof(notice), BPF_RB_NO_WAKEUP);
}
