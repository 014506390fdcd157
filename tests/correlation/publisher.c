/*
 * Publishes a span for mqspan's tests (OTEP 4947), by itself or by a library, linked or loaded late, and makes sends and
 * receives inside it. Built in several ways: tests/correlation.rs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <mqueue.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct record {
	uint8_t trace_id[16], span_id[8], valid, flags;
	uint16_t attributes_len;
} __attribute__((packed));

#ifdef PUBLISHES
__thread struct record *otel_thread_ctx_v1;

void publish(struct record *record)
{
	otel_thread_ctx_v1 = record;
}
#else
extern void publish(struct record *record) __attribute__((weak));
#endif

#ifndef LIBRARY
#define ROUNDS 30

/* How to publish (`on`: until it is killed), the queue, and a library to load. */
int main(int argc, char **argv)
{
	struct record record = { .valid = 1, .flags = 1 };
	struct mq_attr attr = { .mq_maxmsg = 5, .mq_msgsize = 8 };
	const char *how = argv[1], *name = argv[2];
	void (*how_to)(struct record *) = publish;
	char message[8] = "";
	mqd_t queue = mq_open(name, O_RDWR | O_CREAT, 0600, &attr);

	if (queue < 0 || argc < 3)
		return 1;
	if (argc > 3) {
		void *library = dlopen(argv[3], RTLD_NOW);

		if (!library || !(how_to = (void (*)(struct record *))dlsym(library, "publish")))
			return 2;
	}
	memset(record.trace_id, 0xab, sizeof(record.trace_id));
	memset(record.span_id, 0xcd, sizeof(record.span_id));
	if (!strcmp(how, "unsampled"))
		record.flags = 0;
	if (!strcmp(how, "invalid"))
		record.valid = 0;
	if (!strcmp(how, "zero"))
		memset(record.span_id, 0, sizeof(record.span_id));
	if (strcmp(how, "again"))
		how_to(!strcmp(how, "unmapped") ? (struct record *)8 : &record);
	/* Until what was published is known for sure. */
	for (int round = 0; round < ROUNDS || !strcmp(how, "on"); round++) {
		if (mq_send(queue, message, sizeof(message), 0) || mq_receive(queue, message, sizeof(message), 0) < 0)
			return 3;
		usleep(100 * 1000);
	}
	if (!strcmp(how, "exec")) {
		execl("/proc/self/exe", argv[0], "again", name, (char *)0);
		return 4;
	}
	return mq_unlink(name);
}
#endif
