/*
 * Clients that take turns in one thread: each runs until it has to wait.
 *
 * Outside of fibers, as in a process with a single session, the same functions
 * wait as any program does.
 */
#ifndef FIBERS_H
#define FIBERS_H

#include <stdbool.h>
#include <stdint.h>

/* Nothing waits longer. */
#define FOREVER INT64_MAX

/* What a fiber waits for until another one tells it. */
typedef struct Signal
{
	struct Fiber *waiting;
} Signal;

/* Where some number of fibers wait for each other. */
typedef struct Barrier
{
	int			missing;
	Signal		all;
} Barrier;

/* Microseconds of CLOCK_MONOTONIC. */
extern int64_t now_us(void);

/* Make a fiber, which begins with the next run_fibers(). */
extern void make_fiber(void (*work) (void *arg), void *arg);

/* Returns when all fibers have returned. */
extern void run_fibers(void);

extern void sleep_until(int64_t us);
extern void sleep_us(int64_t us);

/*
 * Wait until something can be read, or, if "writing", written; returns false if it
 * has become "until" before.
 */
extern bool wait_for_file(int fd, bool writing, int64_t until);

/* Wait until it is told, or "until".  Only for fibers. */
extern void wait_for_signal(Signal *signal, int64_t until);
extern void tell_all(Signal *signal);
extern void wait_at_barrier(Barrier *barrier);

#endif
