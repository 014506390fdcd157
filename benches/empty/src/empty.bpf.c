// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Programs that do nothing: what the kernel takes to get to them is the least that mqspan can cost. */
#define SEC(name) __attribute__((section(name), used))

char LICENSE[] SEC("license") = "GPL";

SEC("tp/syscalls/sys_enter_mq_open") int enter_mq_open(void *context)
{
	return 0;
}

SEC("tp/syscalls/sys_exit_mq_open") int exit_mq_open(void *context)
{
	return 0;
}
