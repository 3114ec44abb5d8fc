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
 * lock, lease or key it is given, or those of all keys of the request, locked
 * exclusively by the caller, cannot throw, and leaves the partitions consistent.
 * What must happen outside the locks (setting latches, logging) is collected in
 * a DlEffects.
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
#define DL_REQUEST_ID_MAX	127 /* bytes in a request id */
#define DL_KEYS_MAX			64	/* locks in one request */
#define DL_NPARTITIONS		32	/* a power of two */
#define DL_FOREVER			PG_INT64_MAX	/* a deadline that never passes */

/* How long after the one ahead of it a waiter looks, should that one not. */
#define DL_FALLBACK_USECS	INT64CONST(1000000)

/* A generation that no session has. */
#define DL_NO_SESSION		PG_UINT32_MAX

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

/* What distlock.max_ttl allows at most: ten years, in microseconds. */
#define DL_TTL_LONGEST		(INT64CONST(10) * 365 * 86400 * 1000000)

/*
 * Leases that a crash could take from their holders, or that a failover could,
 * are counted by their time to live, in buckets of a quarter of an octave.
 */
#define DL_TTL_BUCKETS		120
#define DL_TTL_SHORTEST_LOG	20	/* all shorter ones share the first bucket */

typedef enum DlKept
{
	DL_VOLATILE,				/* not stored: a crash forgets it */
	DL_DURABLE,
	DL_NKEPT,
} DlKept;

/*
 * What the grants of one database draw on.  Only supply.c and recovery.c
 * write it, but for the next token and the counts.
 */
typedef struct DlSupply
{
	pg_atomic_uint64 next;		/* token */
	pg_atomic_uint64 limit;		/* the last token that may be issued */
	pg_atomic_uint64 opens_at;	/* nothing is granted before */

	/*
	 * Leases are granted in this many buckets, the shortest, since those who
	 * start the server next have been told of no longer ones; and how many
	 * live in each.  Only leases of scope lease count.
	 */
	pg_atomic_uint32 nbuckets[DL_NKEPT];
	pg_atomic_uint32 live[DL_NKEPT][DL_TTL_BUCKETS];
} DlSupply;

/*
 * An image: what is or may be of a lease on disk, or will be.
 *
 *		unwritten --> kept --> stale <--> condemned --> free
 *
 * An image without a lease has to go from the disk before anybody is told that
 * he has the lock.  Whoever is going to overwrite it condemns it first, and
 * lets go of it only when what he wrote is flushed.
 */
typedef enum DlImageState
{
	DL_IMAGE_FREE,
	DL_IMAGE_UNWRITTEN,			/* of a request or a grant */
	DL_IMAGE_KEPT,				/* written, or about to be, for its lease */
	DL_IMAGE_STALE,
	DL_IMAGE_CONDEMNED,
} DlImageState;

/* Where an image is in the lease table; only a hint, see store.c. */
typedef struct DlPlace
{
	Oid			file;			/* of the table when it was there */
	uint32		block;
	uint16		offset;
} DlPlace;

typedef struct DlImage
{
	dlist_node	link;			/* in its bucket, if linked, or a free list */
	dlist_node	stale_link;		/* in its partition's list of stale ones */
	struct DlLease *lease;		/* null in states free, stale, condemned */
	int64		token;
	int64		ttl;			/* what the disk says */
	int64		stale_since;
	Oid			database;
	Oid			extension;
	uint32		hash;			/* of the lock's key */
	uint8		nth;			/* of the leases under this token, from 0 */
	bool		linked;
	DlImageState state;
	DlPlace		place;			/* not set while unwritten */
} DlImage;

typedef struct DlLock
{
	dlist_node	bucket_link;
	DlKey		key;
	DlSupply   *supply;
	dlist_head	leases;			/* granted, live, pinned; all of one mode */
	dlist_head	queue;			/* waiting, the head first */
	dlist_head	watchers;
	int			limit;			/* of a semaphore, 0: it is none; kept while
								 * there are leases or requests */
	int			nleases;
	int			nwaiting;
	int			nover;			/* ended leases that still refer to us */
	int			nreleasing;		/* sum of our leases' nreleasing */
	DlBarrier	barrier;
	bool		raised;			/* the barrier was, by a transaction that prepared */
} DlLock;

/*
 * A request and, once granted, the lease.  One record serves both, so that
 * whoever frees a lock can grant it without allocating anything.  A request for
 * several locks has a record for each; once told, they are leases like others.
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
	int8		bucket;			/* counted there in the supply, or -1 */
	bool		durable;
	bool		flushed;		/* granted: its image is, and may be told */
	bool		in_backend;
	bool		passing;		/* waiting: off to pass the lock's barrier */
	bool		bridging;		/* waiting: has yet to take an advisory lock */
	uint8		nparts;			/* records of the request */
	uint8		nth;			/* of them, from 0 */
	bool		ready;			/* waiting, one of several: could be granted */
	bool		asleep;			/* likewise: to be woken when it is ready */
	bool		open;			/* live: the transaction that acquired it is */
	bool		has_id;			/* linked by its request id */
	uint64		serial;			/* differs for each use of this record */
	dlist_node	lock_link;		/* in leases, queue, the over or a free list */
	dlist_node	backend_link;	/* if in_backend: ends with its backend */
	struct DlLease *left;
	struct DlLease *right;
	struct DlLease *parent;
	DlImage    *image;			/* if durable */
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
	uint32		id_hash;
	dlist_node	id_link;		/* in an id bucket, if has_id */
	char		holder[DL_HOLDER_MAX + 1];
	char		request_id[DL_REQUEST_ID_MAX + 1];	/* empty: none */
} DlLease;

/* A session that waits for the newest token of a lock to change. */
typedef struct DlWatcher
{
	dlist_node	link;			/* in its lock's watchers, if any */
	DlLock	   *lock;			/* null: it watches none, or that is gone */
	int			backend;
} DlWatcher;

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
	int64		deadlocks;
	int64		swept;			/* leases the worker looked at */
} DlCounters;

/* The kinds of records there are. */
typedef enum DlKind
{
	DL_LEASE,
	DL_LOCK,
	DL_GUARD,
	DL_IMAGE,
	DL_NKINDS,
} DlKind;

typedef struct DlPartition
{
	dlist_head *locks;			/* nbuckets of them */
	dlist_head *tokens;			/* likewise, live leases by name and token */
	dlist_head *images;			/* likewise, by the key of their lock */
	dlist_head *ids;			/* likewise, leases by request id; own mutex */
	DlLease    *deadlines;		/* root of the heap */
	dlist_head	over;			/* ended leases to be logged */
	dlist_head	stale;			/* images, the oldest first */
	int			nstale;			/* may be read without the lock */
	int			nimages;		/* linked in our buckets */
	int			nleases;		/* records in use, whatever their state */
	int			npins;			/* sum of our leases' npins */
	DlCounters	counters;

	/* Request ids, and records free for use, have nothing to do with our locks. */
	slock_t		mutex;
	dlist_head	free[DL_NKINDS];
} DlPartition;

typedef struct DlEngine
{
	int			max_leases;
	int			nbackends;
	uint32		nbuckets;		/* per partition, a power of two */
	dlist_head *backends;		/* [nbackends][DL_NPARTITIONS] */
	DlWatcher  *watchers;		/* [nbackends] */

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
	int			wanted[DL_NKEPT];	/* buckets that a grant was refused for */
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
	const DlKey *keys;			/* no two are the same */
	int			nkeys;			/* 1 to DL_KEYS_MAX */
	DlSupply   *supply;
	DlMode		mode;			/* shared for a permit of a semaphore */
	DlScope		scope;
	int			limit;			/* holders of a semaphore, or 0 */
	int64		ttl;			/* microseconds, 0: none */
	bool		durable;
	bool		may_wait;
	bool		again;			/* it was granted before, but the grant lapsed */
	bool		bridging;		/* has yet to take an advisory lock */
	bool		entered;		/* its records are the session's, to look or leave */
	DlPass		pass;
	uint64		barred;			/* keys whose barriers it has to pass, or holds */
	int			backend;
	uint32		generation;
	int			pid;
	Oid			owner;
	uint32		id_hash;		/* of request id, owner, database, extension */
	char		holder[DL_HOLDER_MAX + 1];
	char		request_id[DL_REQUEST_ID_MAX + 1];	/* empty: none */
	int64		advisory_key;	/* for bridge.c */
	char		other[DL_NAME_MAX + 1]; /* lock that a refusal speaks of */
	int			other_limit;	/* the limit it is in use with */
} DlRequest;

/* Records put aside for leases to be recovered. */
typedef struct DlReserve
{
	dlist_head	free[DL_NKINDS];
} DlReserve;

/* A lease as its image has it. */
typedef struct DlRecovered
{
	DlKey		key;
	DlSupply   *supply;
	DlPlace		place;
	int64		token;
	int64		ttl;
	int64		deadline;
	TimestampTz granted_at;
	DlMode		mode;
	int			limit;
	int			nparts;			/* leases of its request */
	int			nth;			/* of them */
	Oid			owner;
	bool		usable;			/* may its token be used */
	uint32		id_hash;
	char		holder[DL_HOLDER_MAX + 1];
	char		request_id[DL_REQUEST_ID_MAX + 1];
} DlRecovered;

typedef enum DlVerdict
{
	DL_TOLD,					/* the lease is live */
	DL_UNTOLD,					/* granted; see to the images, then come back */
	DL_QUEUED,					/* wait until its timer, or a wake */
	DL_BUSY,					/* taken, and the request may not wait */
	DL_FULL,					/* max_leases records are in use */
	DL_NO_TOKEN,				/* refill the supply, then ask again */
	DL_BARRED,					/* you are next: pass what bars you, then ask again */
	DL_AGAIN,					/* the grant lapsed; request anew */
	DL_GONE,					/* the lock's extension was dropped */
	DL_REPEATED,				/* the request was made before: live leases */
	DL_OTHER_LIMIT,				/* the lock has holders under another limit */
	DL_OTHER_REQUEST,			/* the request id stands for something else */
	DL_EXPIRED_ID,				/* likewise, but that has expired: sweep */
	DL_REPLACED,				/* the same request was made again elsewhere */
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

/* The longest time to live that counts in this bucket. */
static inline int64
dl_bucket_ttl(int bucket)
{
	return (INT64CONST(4) + bucket % 4) << (DL_TTL_SHORTEST_LOG - 2 + bucket / 4);
}

extern int	dl_ttl_bucket(int64 ttl);
extern Size dl_engine_size(int max_leases, int nbackends);
extern void dl_engine_init(DlEngine *engine, int max_leases, int nbackends,
						   bool barriers);

extern DlVerdict dl_engine_request(DlEngine *engine, DlRequest *request,
								   int64 now, TimestampTz wall,
								   DlLease **leases, DlEffects *fx);
extern DlVerdict dl_engine_look(DlEngine *engine, DlRequest *request,
								DlLease **leases, int64 now, TimestampTz wall,
								DlEffects *fx);
extern void dl_engine_announce(DlLease *lease, DlEffects *fx);
extern int	dl_engine_ready_ahead(DlLease *lease);
extern bool dl_engine_grant_for(DlEngine *engine, int backend, uint32 partitions,
								int64 now, DlEffects *fx);
extern void dl_engine_adopt(DlEngine *engine, DlLease *lease,
							const DlRequest *request);
extern bool dl_engine_place(DlLease *lease, uint64 serial, DlPlace place,
							int64 now);
extern void dl_engine_stored(DlLease *lease, uint64 serial, int64 ttl);
extern void dl_engine_leave(DlEngine *engine, int partition, DlLease *lease,
							int64 now, DlEffects *fx);
extern DlLock *dl_engine_find_lock(DlEngine *engine, const DlKey *key);
extern DlLease *dl_engine_find(DlEngine *engine, const DlKey *key, int64 token,
							   int64 now, DlEffects *fx);
extern bool dl_engine_renew(DlEngine *engine, DlLease *lease, int64 ttl,
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
extern void dl_engine_overtake(DlEngine *engine, DlLease *lease, DlLease *before,
							   int64 now, DlEffects *fx);
extern DlLock *dl_engine_watch(DlEngine *engine, const DlKey *key, DlSupply *supply,
							   int backend);
extern void dl_engine_unwatch(DlEngine *engine, int backend, DlEffects *fx);
extern int64 dl_engine_newest(DlEngine *engine, DlLock *lock, int64 now,
							  int64 *deadline, DlEffects *fx);
extern DlImage *dl_engine_find_image(DlEngine *engine, const DlKey *key,
									 int64 token, int nth);
extern int	dl_engine_leftovers(DlEngine *engine, const DlKey *key,
								DlImage **images, int most);
extern DlImage *dl_engine_condemn(DlEngine *engine, int partition,
								  Oid database, Oid extension,
								  const DlKey *key);
extern void dl_engine_spare(DlEngine *engine, int partition, DlImage *image);
extern void dl_engine_forget(DlEngine *engine, int partition, DlImage *image,
							 bool condemned);
extern bool dl_engine_reserve(DlEngine *engine, int n, DlReserve *reserve);
extern void dl_engine_unreserve(DlEngine *engine, DlReserve *reserve);
extern void dl_engine_recover(DlEngine *engine, DlReserve *reserve,
							  const DlRecovered *recovered, int64 now,
							  DlEffects *fx);
extern int	dl_engine_sweep(DlEngine *engine, int partition, int64 now,
							int most, DlEffects *fx);
extern int64 dl_engine_next_deadline(DlEngine *engine, int partition);
extern bool dl_engine_take_stale(DlEngine *engine, int partition,
								 DlGuard *copy, DlLease *lease_copy, DlKey *key);
extern bool dl_engine_take_over(DlEngine *engine, int partition,
								DlLease *copy, DlKey *key);
extern void dl_engine_end_backend(DlEngine *engine, int partition, int backend,
								  int64 now, DlEffects *fx);
extern void dl_engine_remove(DlEngine *engine, int partition, Oid database,
							 Oid extension, int64 now, DlEffects *fx);

/*
 * Is there room for a request of this mode beside the leases the lock has, and
 * beside so many requests ahead that only wait for other locks?  None of them
 * is exclusive.
 */
static inline bool
dl_engine_has_room(DlLock *lock, DlMode mode, int nahead)
{
	if (lock->limit > 0)
		return lock->nleases + nahead < lock->limit;
	if (mode == DL_EXCLUSIVE)
		return lock->nleases + nahead == 0;
	return dlist_is_empty(&lock->leases) ||
		dlist_head_element(DlLease, lock_link, &lock->leases)->mode == DL_SHARED;
}

/*
 * The lease whose end a request has to wait for that finds no room: of a
 * semaphore the one that expires first.  Null if only requests are in the way.
 */
static inline DlLease *
dl_engine_in_the_way(DlLock *lock)
{
	DlLease    *first = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &lock->leases)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

		if (first == NULL || lease->deadline < first->deadline)
			first = lease;
		if (lock->limit == 0)
			break;
	}
	return first;
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

/* Nothing is granted before.  Atomic reads take no pointers to constants. */
static inline int64
dl_opens_at(DlSupply *supply)
{
	return (int64) pg_atomic_read_u64(&supply->opens_at);
}

static inline DlKept
dl_kept_as(bool durable)
{
	return durable ? DL_DURABLE : DL_VOLATILE;
}

/* In which bucket a lease counts; -1 for scopes that no crash takes away. */
static inline int
dl_bucket_of(DlScope scope, int64 ttl)
{
	return scope == DL_SCOPE_LEASE ? dl_ttl_bucket(ttl) : -1;
}

/*
 * As what a prepared transaction that this lease guards keeps others away.
 * Permits of a semaphore are not counted then: nobody gets one beside it.
 */
static inline DlMode
dl_engine_prepares_as(const DlLease *lease)
{
	return lease->lock->limit > 0 ? DL_EXCLUSIVE : lease->mode;
}

/* Does a barrier keep a request of this mode from the lock? */
static inline bool
dl_engine_is_barred(const DlLock *lock, DlMode mode)
{
	return lock->barrier == DL_BARS_ALL ||
		(lock->barrier == DL_BARS_EXCLUSIVE && mode == DL_EXCLUSIVE);
}

#endif							/* DISTLOCK_ENGINE_H */
