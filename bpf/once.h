/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Functions of the call under way, or of its thread, that are verified once and not with each of their callers, which would
 * take longer than all else at the start. Before Linux 5.12 such functions take numbers alone: there they look up for
 * themselves what they are given elsewhere. NAME_of() is what they do.
 */
#pragma once
#include "thread.h"

#ifdef OLD
#define ONCE_OF_THREAD(name)                                                                                      \
	__noinline int name##_once(void)                                                                          \
	{                                                                                                         \
		struct thread *thread = thread_of(current_task());                                                \
                                                                                                                  \
		return thread ? name##_of(thread) : 0;                                                            \
	}                                                                                                         \
	static __always_inline int name(struct thread *thread) { return name##_once(); }
#define ONCE_OF_CALL(name)                                                                                        \
	__noinline int name##_once(void)                                                                          \
	{                                                                                                         \
		struct thread *thread = thread_of(current_task());                                                \
                                                                                                                  \
		return thread ? name##_of(call_of(thread)) : 0;                                                   \
	}                                                                                                         \
	static __always_inline int name(struct call *call) { return name##_once(); }
#else
#define ONCE_OF_THREAD(name)                                                                                      \
	__noinline int name(struct thread *thread) { return thread ? name##_of(thread) : 0; }
#define ONCE_OF_CALL(name)                                                                                        \
	__noinline int name(struct call *call) { return call ? name##_of(call) : 0; }
#endif
