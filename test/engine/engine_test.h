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

#include "engine_parts.h"
#include "model.h"
#include "disk.h"

#define MSECS			INT64CONST(1000)
#define SECS			INT64CONST(1000000)

#define FULL_CHECK		61		/* operations between looks at all partitions */

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
	CHECK_IMAGES,
	CHECK_BUCKETS,
	CHECK_DURABLE,
	CHECK_SUPERSEDED,
	CHECK_DISK_SIZE,
	CHECK_LIMIT,
	CHECK_PARTS,
	CHECK_REQUEST_ID,
	CHECK_WATCH,
	CHECK_FROZEN,
	CHECK_FROZEN_SHARED,
	CHECK_HAND_OVER,
	CHECK_SUCCESSOR,
	CHECK_FEW_WAKES,
	CHECK_GRACE,
	CHECK_RECOVERY,
	CHECK_NO_IMAGE,
	CHECK_LATE_WRITER,
	CHECK_TTLS,
	CHECK_LARGE_HEAP,
	CHECK_SWEEP,
	CHECK_THREADS,
	NCHECKS
} Check;

/* A lease that an open transaction has acquired. */
typedef struct Acquired
{
	DlLease    *record;
	uint64		serial;
} Acquired;

/* A backend as the engine knows it: it sleeps, is woken, and comes to look. */
typedef struct Session
{
	Claim	   *claims[MAX_PARTS];	/* its request, until told or given up; the
									 * first is null when there is none */
	DlLease    *records[MAX_PARTS];	/* of the claims */
	uint64		serials[MAX_PARTS];
	bool		was_ready[MAX_PARTS];	/* before the operation under way */
	int64		was_timer[MAX_PARTS];	/* likewise */
	DlRequest	request;		/* the same, to enter it again */
	DlKey		keys[MAX_PARTS];
	int64		ttl;			/* to be stored for it */
	int64		sleep_until;	/* the timer it last saw */
	bool		woken;			/* its latch */
	bool		just_woken;		/* by the operation under way */
	bool		reserving;		/* off to refill the supply; looks afterwards */
	int			wanted[DL_NKEPT];	/* with these buckets open */
	bool		stored;			/* the image of its grant is flushed */
	bool		passing;		/* off to pass barriers; looks afterwards */
	bool		has_tag;		/* has passed */
	uint64		tags;			/* the barriers that it keeps from coming back */
	int			ahead;			/* backend that it grants for, unless it comes */
	int64		help_at;		/* by then */
	ModelLock  *watched;		/* null: none */
	int64		seen;			/* newest token of that */
	bool		first_watcher;	/* of that, when it looked */
	Acquired	acquired[16];	/* by its open transaction */
	int			nacquired;
	bool		frozen;			/* reacts to nothing */
} Session;

/* What kind of run this is. */
typedef struct Run
{
	bool		prompt;			/* sessions come exactly when they should */
	bool		sweeping;
	bool		freezing;
	bool		scarce;			/* tokens run out all the time */
	bool		guarding;
	bool		preparing;
	bool		storing;
	bool		narrow;			/* buckets are closed all the time */
	bool		limiting;		/* semaphores */
	bool		combining;		/* requests for several locks */
	bool		repeating;		/* with request ids */
	bool		watching;
	bool		bridging;
} Run;

/* How often what is rare happened, to see that a run is worth its while. */
typedef struct Events
{
	int64		verdicts[2][DL_REPLACED + 1];	/* of requests, of looks */
	int64		guards;
	int64		no_guard;		/* all were in use */
	int64		commits;
	int64		prepared;
	int64		refused;		/* commits and preparations */
	int64		pinned;			/* leases that ended under a commit */
	int64		stale;
	int64		passed;
	int64		forgotten;
	int64		settled;
	int64		written;		/* images */
	int64		unwritten;		/* whose leases had ended by then */
	int64		rewritten;		/* for a renewal */
	int64		cleared;
	int64		missed;			/* not cleared, since overwritten meanwhile */
	int64		failed;			/* sessions, while storing */
	int64		renewals_refused;
	int64		crashes;
	int64		lost;			/* records of the log */
	int64		recovered;
	int64		superseded;		/* images not recovered because of another */
	int64		unfit;			/* databases whose leases did not fit */
	int64		too_many;		/* not even with no others there */
	int64		several;		/* requests for several locks told */
	int64		helped;			/* granted by those behind */
	int64		partly;			/* ended, and made again */
	int64		moved;			/* leases told again to another session */
	int64		undone;			/* transactions rolled back */
	int64		overtaken;
	int64		watched;		/* changes seen by watchers */
} Events;

extern Run	run;
extern Events events;
extern int64 step;				/* of the run */
extern DlEngine *engine;
extern Session sessions[MAX_BACKENDS];
extern DlSupply supplies[NDATABASES];
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
extern bool one_in(int n);
extern void seed_random(uint64 seed);
extern void open_engine(int max_leases, int nbackends, bool barriers);
extern void make_locks(int nlocks, int nnames, uint32 mask);
extern void begin_scene(int nbackends);
extern void note(const char *what, int64 a, int64 b);
extern void begin_operation(const char *what, int64 a, int64 b);
extern void finish_operation(int partition, DlEffects *fx, int actor);
extern void finish_in(uint32 partitions, DlEffects *fx, int actor);
extern void set_opens_at(int database, int64 opens_at);
extern void set_nbuckets(int database, DlKept kept, int nbuckets);
extern void refill(int database, const int *wanted);

/* sessions.c */
extern ModelLock *lock_of_session(const Session *session, int part);
extern bool is_replaced(const Session *session);
extern uint32 id_hash_of(const char *request_id);
extern void fill_request(int backend, ModelLock *lock, DlMode mode, DlScope scope,
						 int64 ttl);
extern DlVerdict enter(Session *session);
extern void acquire(Session *session);
extern void look(Session *session);
extern void leave(Session *session);
extern void give_up_tag(Session *session);
extern bool is_ready(const Session *session);
extern void come(Session *session, bool late);
extern void grant_for(int backend, int actor);
extern void end_transaction(Session *session, bool commit);
extern void watch(Session *session, ModelLock *lock);
extern void unwatch(Session *session);
extern void let_come(void);
extern void advance_to(int64 time);

/* operations.c */
extern Claim *find_lease(ModelLock *lock, int64 token);
extern bool renew_lease(Claim *claim, int64 ttl);
extern void store_and_renew(Claim *claim, int64 ttl);
extern void end_lease(Claim *claim, DlCause cause);
extern void end_backend(int backend);
extern void sweep_partition(int partition);
extern bool take_stale(int partition);
extern void log_over(int partition);
extern Guard *make_guard(Claim *claim);
extern Guard *random_guard(void);
extern bool pin(Guard *guard);
extern bool hold_tag(Guard *guard);
extern bool prepare(Guard *guard);
extern void unguard(Guard *guard);
extern void end_prepared(ModelLock *lock, DlMode mode);
extern ModelLock *random_lock(void);
extern void random_operation(void);
extern void end_everything(void);

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

/* scenes.c */
extern void test_frozen(void);
extern void test_frozen_shared(void);
extern void test_hand_over(void);
extern void test_successor(void);
extern void test_announce(void);
extern void test_few_wakes(void);
extern void test_grace(void);
extern void test_recovery(void);
extern void test_no_image(void);
extern void test_late_writer(void);
extern void test_ttls(void);

/* scale.c */
extern int	large_leases;
extern void test_large_heap(void);
extern void test_sweep(void);
extern void test_threads(void);

#endif							/* ENGINE_TEST_H */
