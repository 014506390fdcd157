// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Programs that do nothing: what the kernel takes to get to them is the least that mqspan can cost. */
#define SEC(name) __attribute__((section(name), used))

char LICENSE[] SEC("license") = "GPL";

#ifdef __TARGET_ARCH_arm64
#define PREFIX "__arm64_sys_"
#else
#define PREFIX "__x64_sys_"
#endif

/* User space takes the kind of hooks from a program's name. */
#define EMPTY(call)                                                                                   \
	SEC("?tp/syscalls/sys_enter_" #call) int tracepoint_enter_##call(void *context) { return 0; } \
	SEC("?tp/syscalls/sys_exit_" #call) int tracepoint_exit_##call(void *context) { return 0; }   \
	SEC("?fsession/" PREFIX #call) int fsession_both_##call(void *context) { return 0; }          \
	SEC("?fentry/" PREFIX #call) int fentry_enter_##call(void *context) { return 0; }             \
	SEC("?fexit/" PREFIX #call) int fentry_exit_##call(void *context) { return 0; }               \
	SEC("?kprobe/" PREFIX #call) int kprobe_enter_##call(void *context) { return 0; }             \
	SEC("?kretprobe/" PREFIX #call) int kprobe_exit_##call(void *context) { return 0; }

EMPTY(mq_open)
EMPTY(mq_timedsend)
EMPTY(mq_timedreceive)
