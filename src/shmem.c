/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Shared memory: its size, its layout, and how its locks are taken.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "access/twophase.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "postmaster/postmaster.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"

#include "compat.h"
#include "distlock.h"
#include "shmem.h"

DlShared   *dl_shared = NULL;

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

/*
 * What a lease and a backend take at most, here and in memory.c.  As many as there
 * may be fit a Size of 32 bits, so that no size overflows anywhere.
 */
#define LEASE_SIZE \
	(CACHELINEALIGN(sizeof(DlLease)) + CACHELINEALIGN(sizeof(DlLock)) + \
	 MAXALIGN(sizeof(DlGuard)) + 2 * MAXALIGN(sizeof(DlImage)) + \
	 4 * 2 * sizeof(dlist_head) + sizeof(DlDatabase) / 16)
#define BACKEND_SIZE \
	(CACHELINEALIGN(sizeof(DlLock)) + MAXALIGN(sizeof(DlGuard)) + \
	 DL_NPARTITIONS * sizeof(dlist_head) + sizeof(DlWatcher) + sizeof(DlSession))

#define SIZE_OF_THE_REST	(1024 * 1024)

StaticAssertDecl((uint64) DL_MOST_LEASES * LEASE_SIZE +
				 (uint64) MAX_BACKENDS * BACKEND_SIZE + SIZE_OF_THE_REST < PG_UINT32_MAX,
				 "shared memory may take more than 4 GB");

/* The documentation says about 1.4 kB. */
StaticAssertDecl(LEASE_SIZE < 1500, "a lease takes more than about 1.4 kB");

/* One slot per database that uses distlock; max_leases sizes this too. */
static int
database_count(void)
{
	return Max(64, dl_max_leases / 16);
}

static Size
shared_size(void)
{
	return MAXALIGN(sizeof(DlShared)) +
		MAXALIGN(database_count() * sizeof(DlDatabase)) +
		MAXALIGN(MaxBackends * sizeof(DlSession)) +
		dl_engine_size(dl_max_leases, MaxBackends);
}

static void
shmem_request(void)
{
	if (previous_request_hook)
		previous_request_hook();
	Assert(shared_size() <= (Size) dl_max_leases * LEASE_SIZE +
		   (Size) MaxBackends * BACKEND_SIZE + SIZE_OF_THE_REST);
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche("distlock", DL_NPARTITIONS);
	RequestNamedLWLockTranche("distlock_token", 1);
	RequestNamedLWLockTranche("distlock_flush", 1);
	RequestNamedLWLockTranche("distlock_deadlock", 1);
}

/* Runs at every start, also after the crash of a backend. */
static void
shmem_startup(void)
{
	bool		found;
	char	   *memory;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct("distlock", shared_size(), &found);
	dl_shared = (DlShared *) memory;
	if (!found)
	{
		memset(dl_shared, 0, sizeof(DlShared));
		dl_shared->partition_locks = GetNamedLWLockTranche("distlock");
		dl_shared->token_lock = &GetNamedLWLockTranche("distlock_token")->lock;
		dl_shared->flush_lock = &GetNamedLWLockTranche("distlock_flush")->lock;
		dl_shared->deadlock_lock = &GetNamedLWLockTranche("distlock_deadlock")->lock;
		pg_atomic_init_u32(&dl_shared->flush_first, PG_UINT32_MAX);
		pg_atomic_init_u32(&dl_shared->worker_asleep, 0);
		pg_atomic_init_u64(&dl_shared->accepting_since, 0);
		dl_shared->max_ttl = dl_max_ttl;
		memory += MAXALIGN(sizeof(DlShared));

		dl_shared->ndatabases = database_count();
		dl_shared->databases = (DlDatabase *) memory;
		memset(dl_shared->databases, 0, database_count() * sizeof(DlDatabase));
		memory += MAXALIGN(database_count() * sizeof(DlDatabase));

		dl_shared->sessions = (DlSession *) memory;
		memset(dl_shared->sessions, 0, MaxBackends * sizeof(DlSession));
		memory += MAXALIGN(MaxBackends * sizeof(DlSession));

		dl_shared->engine = (DlEngine *) memory;
		dl_engine_init(dl_shared->engine, dl_max_leases, MaxBackends,
					   max_prepared_xacts > 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Called from _PG_init while the server preloads us. */
void
dl_shmem_init(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* Microseconds on the clock of all deadlines.  Cannot throw. */
int64
dl_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

/* Holds off interrupts until dl_partition_unlock(). */
void
dl_partition_lock(int partition, LWLockMode mode)
{
	LWLockAcquire(&dl_shared->partition_locks[partition].lock, mode);
}

/* Lock those whose bit is set. */
void
dl_partitions_lock(uint32 partitions)
{
	for (uint32 rest = partitions; rest != 0; rest &= rest - 1)
		dl_partition_lock(pg_rightmost_one_pos32(rest), LW_EXCLUSIVE);
}

/* As dl_partition_unlock(), for all of them. */
void
dl_partitions_unlock(uint32 partitions, DlEffects *fx)
{
	int			first = pg_rightmost_one_pos32(partitions);

	for (uint32 rest = partitions & (partitions - 1); rest != 0; rest &= rest - 1)
		LWLockRelease(&dl_shared->partition_locks[pg_rightmost_one_pos32(rest)].lock);
	dl_partition_unlock(first, fx);
}

/*
 * Give up the partition lock, then wake whom the engine wants woken.  Cannot
 * throw.  Ended leases are left to be logged by dl_log_over(), by the caller
 * or, where nothing may throw, by the worker.
 */
void
dl_partition_unlock(int partition, DlEffects *fx)
{
	LWLockRelease(&dl_shared->partition_locks[partition].lock);
	dl_effects_wake(fx);
	if (fx->deadline < DL_FOREVER &&
		pg_atomic_read_u32(&dl_shared->worker_asleep) != 0)
		dl_wake_worker();
}

/* See engine.h.  Cannot throw. */
void
dl_effects_wake(DlEffects *fx)
{
	for (int i = 0; i < fx->nwakes; i++)
		SetLatch(&ProcGlobal->allProcs[fx->wakes[i]].procLatch);
	fx->nwakes = 0;
}

/* Have the worker look at the deadlines and at the leases to be logged. */
void
dl_wake_worker(void)
{
	Latch	   *latch;

	/* In this order: a worker that starts now may fall asleep after us. */
	pg_atomic_write_u32(&dl_shared->worker_asleep, 0);
	pg_memory_barrier();
	latch = dl_shared->worker_latch;
	if (latch != NULL)
		SetLatch(latch);
}

/*
 * When the server began to accept connections that may write, after its start
 * or promotion; or the first time we are asked, if that is all we know.  For
 * the worker, which starts then, and for whoever comes first.  Cannot throw.
 */
int64
dl_accepting_since(void)
{
	uint64		since = 0;

	if (pg_atomic_compare_exchange_u64(&dl_shared->accepting_since, &since, dl_now()))
		since = pg_atomic_read_u64(&dl_shared->accepting_since);
	return (int64) since;
}

/* Is the session that made a request still there?  Needs no lock. */
bool
dl_session_is_live(int backend, uint32 generation)
{
	return dl_shared->sessions[backend].generation == generation;
}
