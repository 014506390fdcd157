/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The records that go to user space: their one definition, from which the Rust types are generated
 * (src/kernel/decode.rs decodes them). Integers of fixed width in the machine's byte order, padding written out.
 */
#pragma once
#include "kernel.h"

/* Longest name the kernel takes is 255 bytes (NAME_MAX); one more for the NUL. */
#define NAME_SIZE 256
#define COMM_SIZE 16
#define PATH_SIZE 2048
#define CGROUP_SIZE 1024
#define ENVIRON_SIZE 8192
/* Buckets of a series of metrics (aggregate.h). */
#define POINT_BUCKETS 160

/* struct call, flags */
enum call_flag {
	CALL_NAME_LATE = 1 << 0,     /* asked: the page was not in memory at entry, read at exit */
	CALL_NAME_BAD = 1 << 1,	     /* asked: readable neither at entry nor at exit, or the call takes no name */
	CALL_ATTR = 1 << 2,	     /* attr holds the caller's struct mq_attr */
	CALL_ATTR_LATE = 1 << 3,     /* ... as read at exit */
	CALL_QUEUE = 1 << 4,	     /* a queue was reached: actual name and queue_* are set */
	CALL_QUEUE_LEFT = 1 << 5,    /* ... which the descriptor meant no more at exit: queue_curmsgs is not set */
	CALL_DEADLINE = 1 << 6,	     /* deadline_* hold the caller's timespec */
	CALL_PRIORITY = 1 << 7,	     /* priority is set */
	CALL_BLOCKED = 1 << 8,	     /* waited for room or for a message */
	CALL_EVENT = 1 << 9,	     /* method and signo hold the caller's struct sigevent */
	CALL_ATTR_CHANGED = 1 << 10, /* the kernel's own copy of attr differs from what the caller's memory held at entry */
	CALL_WAIT = 1 << 11,	     /* wait_ns is set */
	CALL_LINK = 1 << 12,	     /* sent_* are set */
	CALL_TRACKED = 1 << 13,	     /* who receives the message is found out */
	CALL_EMPTY = 1 << 14,	     /* at its entry the queue was empty, and no other call on it under way */
	CALL_QUIET = 1 << 15,	     /* no other call at all was when queue_curmsgs was read */
	CALL_FILTERED = 1 << 16,     /* refused by a filter: only its message matters */
	CALL_DECIDED = 1 << 17,	     /* whether it has a record was decided with its message, see limit.h */
	CALL_LIMITED = 1 << 18,	     /* it has none for the rate's sake */
	CALL_MEASURED = 1 << 19,     /* metrics hold it */
	CALL_CONTEXT = 1 << 20,	     /* context is set */
	CALL_CONTEXT_SAMPLED = 1 << 21, /* ... and its span is sampled: the parent of the call's */
	CALL_CONTEXT_OBI = 1 << 22,  /* ... from OBI's map, not from the thread itself */
	CALL_CAUSE = 1 << 23,	     /* it failed, and struct failure says why */
	CALL_TIMEOUT = 1 << 24,	     /* timeout is set: it was passed a deadline */
	CALL_SPAN = 1 << 25,	     /* comm is set, and the ids of its span if it has one */
};

/* The system calls of the family; their order is that of src/model/call.rs. */
enum op {
	OP_OPEN,
	OP_UNLINK,
	OP_SEND,
	OP_RECEIVE,
	OP_NOTIFY,
	OP_GETSETATTR,
};

/* How the caller lays out its arguments. */
enum abi {
	ABI_NATIVE,
	ABI_COMPAT,	   /* 32 bits, a timespec of 64 */
	ABI_COMPAT_TIME32, /* 32 bits, a timespec of 32 */
};

/* struct call, args of mq_open, mq_unlink (name_ptr) and mq_getsetattr (attr) */
struct open_args {
	__u64 name_ptr;
	__u64 attr_ptr;
	__s64 attr[4]; /* flags, maxmsg, msgsize, curmsgs */
	__u32 oflag;
	__u32 mode;
};

/* struct call, args of mq_timedsend and mq_timedreceive */
struct message_args {
	__u64 size;	   /* asked for by a send */
	__u32 priority;
	__u32 only_priority; /* of all sends that had begun at its exit, plus 1; 0: there are several, or none */
	__u64 turn;	/* number of the call among those of its kind, from 1; 0: not counted */
	__u64 begun[2]; /* sends and receives that had begun at its exit */
	__u64 begun_before; /* CALL_EMPTY: calls of the other kind that had begun at its entry */
	__u32 limited_calls; /* of this queue and kind that had no record since the last one */
	__u32 unused;
};

/* struct call, args of mq_notify */
struct notify_args {
	__u64 event_ptr;
	__s32 method; /* sigev_notify */
	__s32 signo;
};

#define ARGS_SIZE sizeof(struct message_args)
_Static_assert(sizeof(struct open_args) <= ARGS_SIZE && sizeof(struct notify_args) <= ARGS_SIZE, "no room");

/* The deadline of a send or receive: an absolute CLOCK_REALTIME time. */
struct timeout {
	__u64 ptr;
	__s64 s;
	__s64 ns;
};

/* What is known of a message that was received. */
struct received {
	__u64 wait_ns; /* from its insertion into the queue to its removal */
	__u64 trace_id[2]; /* of the span that sent it */
	__u64 span_id;
	char comm[COMM_SIZE]; /* name of the thread that sent it */
};

/* What the kernel checked (cause.h); their order is that of src/model/cause.rs. */
enum cause {
	CAUSE_NONE,
	CAUSE_RLIMIT_MSGQUEUE,
	CAUSE_RLIMIT_NOFILE,
	CAUSE_FILE_MAX,
	CAUSE_QUEUES_MAX,
	CAUSE_MSG_MAX,
	CAUSE_MSGSIZE_MAX,
	CAUSE_MAXMSG,
	CAUSE_MSGSIZE,
	CAUSE_NAME,
	CAUSE_PERMISSION,
	CAUSE_MISSING,
	CAUSE_CLOSED,
	CAUSE_NOT_A_QUEUE,
	CAUSE_ACCESS_MODE,
	CAUSE_PRIORITY,
	CAUSE_TIMEOUT,
	CAUSE_FLAGS,
	CAUSE_SIGNAL,
	CAUSE_FULL,
	CAUSE_EMPTY,
	CAUSE_REGISTERED,
	CAUSES,
};

/* struct failure, known */
enum failure_flag {
	FAILURE_LIMIT = 1 << 0, /* value and requested are set */
	FAILURE_USED = 1 << 1,	/* used is set */
};

/* Why a call failed: CALL_CAUSE. Numbers are in the limit's own unit. */
struct failure {
	__u16 cause;
	__u16 known;
	__u32 owner_pid; /* EBUSY: who is registered for notification, 0: not known */
	__u64 value;	 /* the limit in force for the caller */
	__u64 used;	 /* when the call ended */
	__u64 requested; /* by the call */
};

/* A span: where a call was made in one of the application's own. */
struct context {
	__u64 trace_id[2];
	__u64 span_id;
};

/*
 * One entry/exit pair. Times are CLOCK_MONOTONIC in ns. (pid, process_started_ns, exec_id) names the process image,
 * described by a struct image.
 *
 * The record of a call is its first word, then what follows from the first section on that its flags ask for (output.h),
 * cut after its names: `asked_len` bytes that the caller's memory held, then `actual_len` bytes of the queue's own name in
 * the kernel. What most calls lack stands first.
 */
struct call {
	__u8 op;
	__u8 abi;
	__u16 queue_mode;
	__u32 flags;
	/* The sections. */
	struct context context; /* CALL_CONTEXT */
	struct timeout timeout; /* CALL_TIMEOUT */
	struct received received; /* CALL_WAIT, CALL_LINK; CALL_CAUSE: a struct failure has its place */
	__u64 trace_id[2]; /* CALL_SPAN */
	__u64 span_id;
	char comm[COMM_SIZE];
	/* What every record has. */
	__u16 asked_len;
	__u16 actual_len;
	__s32 fd; /* as passed, of calls that take one */
	__u64 entered_ns;
	__u64 left_ns;
	__s64 ret;
	__u32 pid;
	__u32 tid;
	__u32 vpid; /* inside its pid namespace */
	__u32 local_pid; /* in mqspan's own pid namespace; 0: none */
	__u64 process_started_ns; /* CLOCK_BOOTTIME */
	__u32 exec_id;
	__u32 uid; /* effective, in the initial user namespace */
	__u64 queue_inode; /* its address, number and the address of its namespace: no two queues share all of these */
	__u64 queue_ino;
	__u64 queue_ns;
	__u32 queue_maxmsg; /* no queue has as many messages, or as long ones, as need more bits (include/linux/ipc_namespace.h) */
	__u32 queue_msgsize;
	__u32 queue_curmsgs;
	__u32 ipc_ns; /* the queue's, or the caller's where no queue was reached */
	__u32 losses[2]; /* sends and receives that were not numbered, until now: each may have passed a message */
	__u64 args[ARGS_SIZE / 8]; /* struct open_args, message_args or notify_args */
	char names[2 * NAME_SIZE + 8]; /* the last eight are never set: the end of a name is read by the word */
};

_Static_assert(sizeof(struct failure) <= sizeof(struct received), "no room");
#define FAILURE(call) ((struct failure *)&(call)->received)

/* struct image, flags */
enum image_flag {
	IMAGE_PATH_CUT = 1 << 0,     /* more components or bytes than fit */
	IMAGE_ENVIRON_CUT = 1 << 1,  /* longer than ENVIRON_SIZE */
	IMAGE_ENVIRON_BAD = 1 << 2,  /* not readable: not in memory */
	IMAGE_CGROUP_CUT = 1 << 3,   /* more components or bytes than fit */
};

/* A process image, sent at its first call: who called, read on the process itself, so that none is gone too early. */
struct image {
	__u32 pid;
	__u32 vpid;
	__u32 ppid;
	__u32 exec_id;
	__u64 started_ns; /* CLOCK_BOOTTIME */
	__u16 flags;
	__u16 path_len;
	__u32 environ_len;
	__u32 uid; /* of the first call, as in struct call */
	__u32 cgroup_len;
	__u32 local_pid; /* as in struct call */
	__u32 unused;
	__u64 environ_at; /* its address: another one in another image of the process */
	__u64 root_ino;   /* its root directory: the inode's number, the device, and whose mounts these are */
	__u32 root_dev;
	__u32 mnt_ns;
	char comm[COMM_SIZE];
	char path[PATH_SIZE + NAME_SIZE]; /* components of the executable's path, last one first, each with its NUL */
	char cgroup[CGROUP_SIZE + NAME_SIZE]; /* the path of its control group (container.h), in the same way */
	char environ[ENVIRON_SIZE];	  /* as given at exec: NAME=value, each with its NUL */
};

/* Which image, as in struct call. */
struct image_key {
	__u64 started_ns;
	__u32 pid;
	__u32 exec_id;
};

enum notice_kind {
	NOTICE_PUBLISHED, /* an image has published its process context (publish.h) */
	NOTICE_ENDED,	  /* its process has ended (image.h) */
};

/* What became of an image that was sent. */
struct notice {
	struct image_key image;
	__u32 kind;
	__u32 unused;
};

/* A name by the number that stands for it (name.h). On the ring of images, which it is told from by its size. */
struct name {
	__u64 hash;
	__u32 len;
	char bytes[NAME_SIZE];
	__u32 unused;
};

/* What is counted on the kernel side, for each CPU; their order is that of src/model/call.rs. */
enum counter {
	COUNT_FILTERED,	    /* pairs that a filter refused */
	COUNT_LOST_RING,    /* pairs that found the ring full */
	COUNT_LOST_STATE,   /* entries without room for the state in flight */
	COUNT_LOST_NO_EXIT, /* entries whose exit never came */
	COUNT_UNPAIRED,	    /* exits without an entry */
	COUNT_TREE_FULL,    /* forks of the traced command that found the set of processes full */
	COUNT_LIMITED,	    /* pairs without a record for the rate's sake */
	COUNT_IMAGES_LOST,  /* calls whose image or name found no room in its ring or among the marks */
	COUNT_QUEUES_FULL,  /* calls whose queue found no room for its state */
	COUNT_UNTRACKED,    /* messages that found no room to be registered */
	COUNT_CONTEXT_UNREADABLE, /* what a thread publishes that could not be read */
	COUNT_CONTEXT_INVALID,	  /* ... that says itself that it is not valid */
	COUNT_CONTEXT_ZERO,	  /* ... whose ids are zero */
	COUNTERS,
};
