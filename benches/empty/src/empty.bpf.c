// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Programs that do nothing: what the kernel takes to get to them is the least that mqspan can cost. */
#define SEC(name) __attribute__((section(name), used))

char LICENSE[] SEC("license") = "GPL";

#define EMPTY(call)                                                                            \
	SEC("tp/syscalls/sys_enter_" #call) int enter_##call(void *context) { return 0; }      \
	SEC("tp/syscalls/sys_exit_" #call) int exit_##call(void *context) { return 0; }

EMPTY(mq_open)
EMPTY(mq_timedsend)
EMPTY(mq_timedreceive)
