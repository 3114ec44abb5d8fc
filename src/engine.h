/*-------------------------------------------------------------------------
 *
 * engine.h
 *	  The state machine of locks, leases and their queues.
 *
 * The engine knows memory and a clock, nothing else: no catalogs, no WAL, no
 * latches, no LWLocks of its own.  It compiles into the test program under
 * test/engine as it stands.
 *
 * Locking.  The locks of all databases are spread over partitions by the hash
 * of their key.  A lease belongs to the partition of its lock.  Unless its
 * comment says otherwise, a function of this file needs the partition of the
 * lock, lease or key it is given locked exclusively by the caller, cannot
 * throw, and leaves the partition consistent.  What must happen outside the
 * lock (setting latches, logging) is collected in a DlEffects.
 *
 * Time.  "now" and every deadline are microseconds on one monotonic clock.
 * A deadline is passed when deadline <= now.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_ENGINE_H
#define DISTLOCK_ENGINE_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "port/atomics.h"
#include "storage/spin.h"

#define DL_NAME_MAX			255 /* bytes in the name of a lock */
#define DL_HOLDER_MAX		127 /* bytes in a holder label */
#define DL_NPARTITIONS		32	/* a power of two */
#define DL_FOREVER			PG_INT64_MAX	/* a deadline that never passes */

/* How long after the one ahead of it a waiter looks, should that one not. */
#define DL_FALLBACK_USECS	INT64CONST(1000000)

typedef enum DlMode
{
	DL_EXCLUSIVE,
	DL_SHARED,
} DlMode;

typedef enum DlScope
{
	DL_SCOPE_LEASE,
	DL_SCOPE_SESSION,
	DL_SCOPE_TRANSACTION,
} DlScope;

typedef enum DlState
{
	DL_FREE,					/* on a free list */
	DL_WAITING,					/* in its lock's queue */
	DL_GRANTED,					/* holds the lock, its session not told yet */
	DL_LIVE,					/* holds the lock, token in force */
	DL_PINNED,					/* ended, keeps its place for commits in flight */
	DL_LAPSED,					/* expired or was ended before it was told */
	DL_DROPPED,					/* the lock's extension or database is gone */
	DL_OVER,					/* ended, to be logged or its guards told */
} DlState;

/* Why a lease ended. */
typedef enum DlCause
{
	DL_RELEASED,				/* by its holder, or with its session */
	DL_UNDONE,					/* its acquire was rolled back or abandoned */
	DL_EXPIRED,
	DL_FORCED,
	DL_REMOVED,					/* with its extension or database */
} DlCause;

/* Whom a prepared transaction may keep from the lock; see README.md. */
typedef enum DlBarrier
{
	DL_NO_BARRIER,
	DL_BARS_EXCLUSIVE,
	DL_BARS_ALL,
} DlBarrier;

/* What identifies a lock.  Names are compared byte for byte. */
typedef struct DlKey
{
	Oid			database;
	Oid			extension;
	uint32		hash;			/* of all the other fields, by the caller */
	uint16		len;
	char		name[DL_NAME_MAX + 1];
} DlKey;

/*
 * The tokens of one database: the next one, and the last that may be issued.
 * Any backend may draw at any time; only token.c writes otherwise.
 */
typedef struct DlTokens
{
	pg_atomic_uint64 next;
	pg_atomic_uint64 limit;
} DlTokens;

typedef struct DlLock
{
	dlist_node	bucket_link;
	DlKey		key;
	DlTokens   *tokens;
	dlist_head	leases;			/* granted, live, pinned; all of one mode */
	dlist_head	queue;			/* waiting, the head first */
	int			nleases;
	int			nwaiting;
	int			nover;			/* ended leases that still refer to us */
	int			nreleasing;		/* sum of our leases' nreleasing */
	DlBarrier	barrier;
	bool		raised;			/* the barrier was, by a transaction that prepared */
} DlLock;

/*
 * A request and, once granted, the lease.  One record serves both, so that
 * whoever frees a lock can grant it without allocating anything.
 */
typedef struct DlLease
{
	/* What renew, check and release look at comes first, close together. */
	dlist_node	token_link;		/* in a token bucket, while live */
	int64		token;			/* 0 while waiting */
	struct DlLock *lock;		/* null in states free, lapsed, dropped */
	int64		deadline;		/* DL_FOREVER when ttl is 0 */
	int64		ttl;			/* 0: none */
	int64		key;			/* in the heap; never above the deadline */
	int64		renewals;
	Oid			owner;
	int			nreleasing;		/* open transactions that will release it */
	DlState		state;
	DlMode		mode;
	DlScope		scope;
	uint8		rank;			/* deadline heap; 0 when not in it */
	bool		in_backend;
	bool		passing;		/* waiting: off to pass the lock's barrier */
	uint64		serial;			/* differs for each use of this record */
	dlist_node	lock_link;		/* in leases, queue, the over or a free list */
	dlist_node	backend_link;	/* if in_backend: ends with its backend */
	struct DlLease *left;
	struct DlLease *right;
	struct DlLease *parent;
	dlist_head	guards;			/* open transactions that rely on it */
	int			npins;			/* of them, those whose commit is in flight */
	int64		told_at;		/* same clock as the deadline */
	uint64		completed;		/* latest transaction completed when told */
	int64		timer;			/* waiting: when it will look by itself */
	int64		since;			/* waiting: when it joined the queue */
	TimestampTz granted_at;		/* wall clock, for people */
	DlCause		cause;			/* in states pinned and over */
	int			backend;		/* whose request it is or was */
	uint32		generation;		/* of that backend slot */
	int			pid;
	int			forced_by_pid;	/* who released it last; in state over */
	Oid			forced_by_role;
	char		holder[DL_HOLDER_MAX + 1];
} DlLease;

/*
 * A guard: an open transaction that commits only if the lease is live then.
 * Its commit in flight is a pin.
 */
typedef struct DlGuard
{
	dlist_node	link;			/* in its lease's guards or a free list */
	DlLease    *lease;			/* null once the ended lease has let go of it */
	int			pid;
	bool		pinned;
} DlGuard;

typedef struct DlCounters
{
	int64		acquired;		/* leases told to their holders */
	int64		contended;		/* requests that found the lock taken */
	int64		waited;			/* microseconds spent in queues */
	int64		timeouts;		/* requests that ended without a lease */
	int64		renewed;
	int64		released;		/* by their holder or with its session */
	int64		undone;			/* with their transaction */
	int64		expired;
	int64		forced;
	int64		lapsed;			/* grants their sessions came too late for */
	int64		lost;			/* renewals refused */
	int64		guards;
	int64		guards_refused;
	int64		commits_refused;
	int64		swept;			/* leases the worker looked at */
} DlCounters;

/* The kinds of records there are. */
typedef enum DlKind
{
	DL_LEASE,
	DL_LOCK,
	DL_GUARD,
	DL_NKINDS,
} DlKind;

typedef struct DlPartition
{
	dlist_head *locks;			/* nbuckets of them */
	dlist_head *tokens;			/* likewise, live leases by name and token */
	DlLease    *deadlines;		/* root of the heap */
	dlist_head	over;			/* ended leases to be logged */
	int			nleases;		/* records in use, whatever their state */
	int			npins;			/* sum of our leases' npins */
	DlCounters	counters;

	/* Records free for use; other partitions may take them: own mutex. */
	slock_t		mutex;
	dlist_head	free[DL_NKINDS];
} DlPartition;

typedef struct DlEngine
{
	int			max_leases;
	int			nbackends;
	uint32		nbuckets;		/* per partition, a power of two */
	dlist_head *backends;		/* [nbackends][DL_NPARTITIONS] */

	/*
	 * How many raised barriers have been forgotten along with their locks (at a
	 * start of the server: one, for whatever was prepared before), and how many
	 * of them have since been seen to keep nobody from anything.  While these
	 * differ, a new lock begins with a barrier.
	 */
	pg_atomic_uint64 barriers_forgotten;
	pg_atomic_uint64 barriers_settled;
	DlPartition partitions[DL_NPARTITIONS];
} DlEngine;

/* What the caller owes others once it has given up the partition lock. */
#define DL_MAX_WAKES 16

typedef struct DlEffects
{
	int			nwakes;
	int			wakes[DL_MAX_WAKES];	/* backends to be woken */
	bool		over;			/* an ended lease waits to be logged */
	int64		deadline;		/* earliest deadline set, or DL_FOREVER */
} DlEffects;

#define DL_NO_EFFECTS {.deadline = DL_FOREVER}

/* What a request has to say to a barrier. */
typedef enum DlPass
{
	DL_PASS_NONE,				/* tell me, and leave nothing behind */
	DL_PASS_QUEUE,				/* queue me in front of it */
	DL_PASS_HELD,				/* I have passed, and keep it from coming back */
} DlPass;

typedef struct DlRequest
{
	DlKey		key;
	DlTokens   *tokens;
	DlMode		mode;
	DlScope		scope;
	int64		ttl;			/* microseconds, 0: none */
	bool		may_wait;
	DlPass		pass;
	int			backend;
	uint32		generation;
	int			pid;
	Oid			owner;
	char		holder[DL_HOLDER_MAX + 1];
} DlRequest;

typedef enum DlVerdict
{
	DL_TOLD,					/* the lease is live */
	DL_QUEUED,					/* wait until its timer, or a wake */
	DL_BUSY,					/* taken, and the request may not wait */
	DL_FULL,					/* max_leases records are in use */
	DL_NO_TOKEN,				/* reserve tokens, then ask again */
	DL_BARRED,					/* you are next: pass the barrier, then ask again */
	DL_AGAIN,					/* the grant lapsed; request anew */
	DL_GONE,					/* the lock's extension was dropped */
} DlVerdict;

/*
 * Wake the backends collected so far and empty the list.  Called by the
 * engine, under the partition lock, when more are to be woken than fit.
 * Supplied by shmem.c, and by the test program.
 */
extern void dl_effects_wake(DlEffects *fx);

static inline int
dl_partition_of(uint32 hash)
{
	return hash % DL_NPARTITIONS;
}

static inline bool
dl_same_key(const DlKey *a, const DlKey *b)
{
	return a->hash == b->hash && a->len == b->len &&
		a->database == b->database && a->extension == b->extension &&
		memcmp(a->name, b->name, a->len) == 0;
}

extern Size dl_engine_size(int max_leases, int nbackends);
extern void dl_engine_init(DlEngine *engine, int max_leases, int nbackends,
						   bool barriers);

extern DlVerdict dl_engine_request(DlEngine *engine, const DlRequest *request,
								   int64 now, TimestampTz wall,
								   DlLease **lease, DlEffects *fx);
extern DlVerdict dl_engine_look(DlEngine *engine, int partition, DlLease *lease,
								int64 now, TimestampTz wall, DlEffects *fx);
extern void dl_engine_leave(DlEngine *engine, int partition, DlLease *lease,
							int64 now, DlEffects *fx);
extern DlLock *dl_engine_find_lock(DlEngine *engine, const DlKey *key);
extern DlLease *dl_engine_find(DlEngine *engine, const DlKey *key, int64 token,
							   int64 now, DlEffects *fx);
extern void dl_engine_renew(DlEngine *engine, DlLease *lease, int64 ttl,
							int64 now, DlEffects *fx);
extern void dl_engine_end(DlEngine *engine, DlLease *lease, DlCause cause,
						  int64 now, DlEffects *fx);
extern DlGuard *dl_engine_guard(DlEngine *engine, DlLease *lease, int pid);
extern bool dl_engine_may_commit(DlEngine *engine, int partition,
								 DlGuard *guard, int64 now);
extern bool dl_engine_pin(DlEngine *engine, int partition, DlGuard *guard,
						  int64 now);
extern bool dl_engine_bar(DlEngine *engine, int partition, DlGuard *guard,
						  int64 now);
extern void dl_engine_unguard(DlEngine *engine, int partition, DlGuard *guard,
							  int64 now, DlEffects *fx);
extern void dl_engine_pass(DlLease *lease);
extern int	dl_engine_sweep(DlEngine *engine, int partition, int64 now,
							int most, DlEffects *fx);
extern int64 dl_engine_next_deadline(DlEngine *engine, int partition);
extern bool dl_engine_take_stale(DlEngine *engine, int partition,
								 DlGuard *guard, DlLease *lease, DlKey *key);
extern bool dl_engine_take_over(DlEngine *engine, int partition,
								DlLease *lease, DlKey *key);
extern void dl_engine_end_backend(DlEngine *engine, int partition, int backend,
								  int64 now, DlEffects *fx);
extern void dl_engine_remove(DlEngine *engine, int partition, Oid database,
							 Oid extension, int64 now, DlEffects *fx);

/* The lease for which a request of this mode has to wait now, or null. */
static inline DlLease *
dl_engine_conflict(DlLock *lock, DlMode mode)
{
	DlLease    *first;

	if (dlist_is_empty(&lock->leases))
		return NULL;
	first = dlist_head_element(DlLease, lock_link, &lock->leases);
	return mode == DL_SHARED && first->mode == DL_SHARED ? NULL : first;
}

/*
 * What a backend has in a partition: its requests, and its leases of session
 * and transaction scope.
 */
static inline dlist_head *
dl_engine_of_backend(DlEngine *engine, int backend, int partition)
{
	return &engine->backends[backend * DL_NPARTITIONS + partition];
}

/* One of the commits in flight of a pinned lease. */
static inline DlGuard *
dl_engine_pinning(DlLease *lease)
{
	dlist_iter	iter;

	dlist_foreach(iter, &lease->guards)
	{
		DlGuard    *guard = dlist_container(DlGuard, link, iter.cur);

		if (guard->pinned)
			return guard;
	}
	Assert(false);
	return NULL;
}

/* Does a barrier keep a request of this mode from the lock? */
static inline bool
dl_engine_is_barred(const DlLock *lock, DlMode mode)
{
	return lock->barrier == DL_BARS_ALL ||
		(lock->barrier == DL_BARS_EXCLUSIVE && mode == DL_EXCLUSIVE);
}

/* deadline.c: a partition's heap of deadlines */
extern void dl_deadline_insert(DlPartition *part, DlLease *lease);
extern void dl_deadline_remove(DlPartition *part, DlLease *lease);

#endif							/* DISTLOCK_ENGINE_H */
