/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The records of what is there now (live.bpf.c): their one definition, from which the Rust types are generated. Integers of
 * fixed width, padding written out.
 */
#pragma once
#include "event.h"

/* A queue that a descriptor is. */
struct live_queue {
	__u64 inode; /* as in struct call */
	__u64 ino;
	__u64 ns;
	__u32 ipc_ns;
	__u32 name_len; /* without the slash */
	__s64 maxmsg;
	__s64 msgsize;
	__s64 curmsgs;
	char name[NAME_SIZE];
};

/* What is known of a call's beginning. */
enum since {
	SINCE_LOOK,  /* nothing: the time of the look */
	SINCE_SLEEP, /* it was under way when the thread fell asleep */
	SINCE_ENTRY, /* its entry */
};

/* A thread that waits in a send or receive. */
struct waiter {
	__u32 pid; /* on the host */
	__u32 tid;
	__u32 local_pid; /* in mqspan's own pid namespace; 0: none */
	__u32 local_tid;
	__u32 uid;	 /* effective, in the initial user namespace */
	__u32 op;
	__u64 since_ns; /* CLOCK_MONOTONIC */
	__u64 switches; /* how often it has given up the CPU: as often as before, and it has not run since */
	__u64 started_ns; /* as in struct call */
	__u32 exec_id;
	__u32 vpid;
	__u32 ipc_ns;	/* its own */
	__u32 since;	/* enum since: what since_ns is */
	__s32 fd;
	__u32 priority; /* of a send */
	__u64 size;	/* of a send's message, or what a receive has room for */
	__s64 deadline_s; /* has_deadline: as in struct timeout */
	__s64 deadline_ns;
	__u32 has_deadline;
	__u32 is_compat; /* the caller is a 32-bit one */
	char comm[COMM_SIZE];
	struct live_queue queue; /* all zero: the descriptor is none */
};

/* An open descriptor of a queue. */
struct holder {
	__u32 pid;
	__s32 fd;
	__u32 mode; /* 1: reading, 2: writing, 3: both */
	__u32 unused;
	char comm[COMM_SIZE]; /* of the process's first thread */
	__u64 file; /* its address */
	struct live_queue queue;
};
