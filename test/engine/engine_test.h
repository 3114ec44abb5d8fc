/*-------------------------------------------------------------------------
 *
 * engine_test.h
 *	  What the parts of the engine's model test share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ENGINE_TEST_H
#define ENGINE_TEST_H

#include "postgres.h"

/* The server's own printf and qsort live in libpgport; libc's will do. */
#undef printf
#undef fprintf
#undef snprintf
#undef vsnprintf
#undef qsort

#include "engine.h"
#include "model.h"

/* The check groups, each a line of the TAP output. */
typedef enum Check
{
	CHECK_ASSERT,
	CHECK_EXCLUSION,
	CHECK_TOKENS,
	CHECK_ORDER,
	CHECK_EXPIRY,
	CHECK_MODEL,
	CHECK_WAKES,
	CHECK_TAKEOVER,
	CHECK_COUNTERS,
	CHECK_RECORDS,
	CHECK_HEAP,
	CHECK_GUARDS,
	CHECK_PINNED,
	CHECK_STALE,
	CHECK_BARRIER,
	CHECK_FROZEN,
	CHECK_FROZEN_SHARED,
	CHECK_HAND_OVER,
	CHECK_SUCCESSOR,
	CHECK_FEW_WAKES,
	CHECK_LARGE_HEAP,
	CHECK_SWEEP,
	CHECK_THREADS,
	NCHECKS
} Check;

/* A backend as the engine knows it: it sleeps, is woken, and comes to look. */
typedef struct Session
{
	Claim	   *claim;			/* its request, until told or given up */
	DlLease    *record;			/* of the claim */
	DlRequest	request;		/* the same, to enter it again */
	int64		sleep_until;	/* the timer it last saw */
	bool		woken;			/* its latch */
	bool		just_woken;		/* by the operation under way */
	bool		reserving;		/* off to reserve tokens; looks afterwards */
	bool		passing;		/* off to pass a barrier; looks afterwards */
	bool		has_tag;		/* has passed, and keeps it from coming back */
	bool		frozen;			/* reacts to nothing */
} Session;

extern DlEngine *engine;
extern Session sessions[MAX_BACKENDS];
extern DlTokens tokens[NDATABASES];
extern int	nwakes;				/* of the latest operation */
extern bool in_child;			/* where a failure ends the process */

/* Note a failure in this check group, and give up the run under way. */
extern void fail(Check check, const char *format,...)
			__attribute__((noreturn, format(printf, 2, 3)));

#define verify(check, condition, ...) \
	do { \
		if (!(condition)) \
			fail(check, __VA_ARGS__); \
	} while (0)

/* Run a function that may fail().  Returns whether it did not. */
extern bool attempt(void (*function) (void));

/* Start afresh, with an empty engine and model. */
extern void begin_run(int max_leases, int nbackends, bool barriers);
extern void end_run(void);

extern uint64 random_below(uint64 n);
extern void seed_random(uint64 seed);

/* checks.c */
extern int	nlock_records;		/* the engine has, in use or not */
extern void begin_checks(void);
extern int	count_free(DlKind kind);
extern void check_partition(int partition);
extern void check_all_partitions(void);
extern void check_free_records(void);
extern void check_grants(void);
extern void check_wakes(int actor);
extern void check_sessions(void);
extern void check_takeover(void);
extern int	check_heap(DlPartition *part);

/* scale.c */
extern int	large_leases;
extern void test_large_heap(void);
extern void test_sweep(void);
extern void test_threads(void);

#endif							/* ENGINE_TEST_H */
