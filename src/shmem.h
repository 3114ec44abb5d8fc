/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  What distlock keeps in shared memory, and who may touch it.
 *
 * dl_shared is set in every process of a server that preloads the library and
 * never changes after the start of the server.
 *
 *	engine		each partition under its own LWLock, see engine.h
 *	databases	under the token lock, but for what is atomic; whoever finds
 *				his extension there may use the slot
 *	sessions	written by the backend whose slot it is; read by anyone, who
 *				may find a session that has just ended
 *	flush_*		see flush.c
 *	worker_*	see worker.c
 *
 * Lock order: see README.md.  Several partitions are locked in ascending order.
 * Nobody holds the token lock and a partition lock at the same time.  While a
 * partition is locked no other kind of lock is taken but the spinlocks of the
 * engine's free lists and request ids, nothing is allocated, nothing can throw
 * and nothing sleeps.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_SHMEM_H
#define DISTLOCK_SHMEM_H

#include "access/xlogdefs.h"
#include "storage/latch.h"
#include "storage/lwlock.h"

#include "engine.h"
#include "extension.h"

typedef struct DlDatabase
{
	Oid			database;		/* InvalidOid: the slot is free */
	DlExtension extension;		/* attached: its relations hold our state */
	Oid			confirmed;		/* of it, when the standbys have what we found */
	XLogRecPtr	found_lsn;		/* up to where they need it */
	bool		grace_noted;	/* in the control row, until it is over */
	int64		unusable_limit; /* as in the control row */
	uint64		row_version;	/* changes with the control row */
	int64		high_since;		/* it allows for longer leases than any */
	DlSupply	supply;
	pg_atomic_uint32 free_block;	/* no vacant slot in the lease table before */
} DlDatabase;

typedef struct DlSession
{
	uint32		generation;		/* changes when a session starts or ends */

	/* see flush.c */
	uint32		flush_next;
	volatile bool flushing;
	uint64		flush_lsn;
} DlSession;

typedef struct DlShared
{
	LWLockPadded *partition_locks;
	LWLock	   *token_lock;
	LWLock	   *flush_lock;
	LWLock	   *deadlock_lock;
	pg_atomic_uint32 flush_first;	/* backend that came last to flush */
	DlEngine   *engine;
	DlSession  *sessions;		/* by backend */
	DlDatabase *databases;
	int			ndatabases;
	pg_atomic_uint64 accepting_since;	/* connections; 0: not known yet */
	int			max_ttl;		/* distlock.max_ttl as the server has it */
	pg_atomic_uint32 worker_asleep;
	Latch	   *worker_latch;	/* null while no worker runs */
} DlShared;

extern PGDLLIMPORT DlShared *dl_shared;

extern void dl_shmem_init(void);
extern int64 dl_now(void);
extern void dl_partition_lock(int partition, LWLockMode mode);
extern void dl_partition_unlock(int partition, DlEffects *fx);
extern void dl_partitions_lock(uint32 partitions);
extern void dl_partitions_unlock(uint32 partitions, DlEffects *fx);
extern void dl_wake_worker(void);
extern int64 dl_accepting_since(void);
extern bool dl_session_is_live(int backend, uint32 generation);

#endif							/* DISTLOCK_SHMEM_H */
