/*-------------------------------------------------------------------------
 *
 * bridge.c
 *	  Advisory locks held along with leases.
 *
 * A service that still calls pg_advisory_lock() and one that has moved to
 * distlock exclude each other if the lease takes that advisory lock along.  It
 * is taken by whoever is the next to be granted, before the lease is told, in
 * the same wait; and given up soon after the lease has ended.
 *
 * For transaction scope it is a lock of the transaction, which gives it up at
 * the same time as the lease, so there is nothing to be done here.  For session
 * scope it is a lock of the session, once for each lease; what leases they go
 * with is noted here.  Only the session itself can give them up: when its lease
 * has expired, that is at the end of its next (sub)transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/memutils.h"

#include "barrier.h"
#include "bridge.h"
#include "compat.h"
#include "shmem.h"

typedef struct Bridge
{
	LOCKTAG		tag;
	LOCKMODE	mode;
	DlLease    *lease;			/* null until it is told */
	uint64		serial;
	int			partition;
} Bridge;

/* Lives as long as the session.  Those not bound yet are on top. */
static Bridge *bridges = NULL;
static int	nbridges = 0;
static int	nbound = 0;
static int	max_bridges = 0;

/* Make room for n more.  Throws when out of memory. */
static void
reserve(int n)
{
	int			wanted = Max(max_bridges, DL_KEYS_MAX);

	while (wanted - nbridges < n)
		wanted *= 2;
	if (wanted == max_bridges)
		return;
	bridges = bridges == NULL ?
		MemoryContextAlloc(TopMemoryContext, wanted * sizeof(Bridge)) :
		repalloc(bridges, wanted * sizeof(Bridge));
	max_bridges = wanted;
}

/* Cannot throw.  A user may have given them all up with pg_advisory_unlock_all(). */
static void
give_up(const Bridge *bridge)
{
	if (dl_holds_lock(&bridge->tag, bridge->mode))
		(void) LockRelease(&bridge->tag, bridge->mode, true);
}

/*
 * Take the advisory lock for a request that is the next to be granted: shared if
 * others may hold the lock beside it.  Returns false when it is not to be had at
 * once, or, with "wait", until this time.  What was taken is bound to the leases
 * when they are told, or given up by dl_bridge_abandon().  May throw.
 */
bool
dl_bridge_take(const DlRequest *request, bool wait, int64 until)
{
	bool		session = request->scope == DL_SCOPE_SESSION;
	Bridge		bridge = {.mode = request->mode == DL_SHARED ? ShareLock : ExclusiveLock};

	/* As pg_advisory_lock(bigint) has it */
	SET_LOCKTAG_ADVISORY(bridge.tag, MyDatabaseId, (uint32) (request->advisory_key >> 32),
						 (uint32) request->advisory_key, 1);
	if (session)
		reserve(request->nkeys);
	if (!(wait ? dl_tag_acquire(&bridge.tag, bridge.mode, session, until) :
		  dl_tag_try(&bridge.tag, bridge.mode, session)))
		return false;
	if (!session)
		return true;
	bridges[nbridges++] = bridge;
	for (int i = 1; i < request->nkeys; i++)
	{
		(void) LockAcquire(&bridge.tag, bridge.mode, true, true);
		bridges[nbridges++] = bridge;
	}
	return true;
}

/* A lease is told.  Needs its partition locked; cannot throw. */
void
dl_bridge_bind(DlLease *lease)
{
	Bridge	   *bridge;

	if (nbound == nbridges)
		return;
	bridge = &bridges[nbound++];
	bridge->lease = lease;
	bridge->serial = lease->serial;
	bridge->partition = dl_partition_of(lease->lock->key.hash);
}

/* What was taken for leases that have not been told is given up.  Cannot throw. */
void
dl_bridge_abandon(void)
{
	while (nbridges > nbound)
		give_up(&bridges[--nbridges]);
}

/*
 * Give up the advisory locks of leases that have ended.  Cannot throw; takes
 * partition locks.
 */
void
dl_bridge_sweep(void)
{
	int			n = 0;

	if (nbridges == 0)
		return;
	dl_bridge_abandon();
	for (int i = 0; i < nbridges; i++)
	{
		const Bridge *bridge = &bridges[i];
		DlEffects	fx = DL_NO_EFFECTS;
		bool		live;

		dl_partition_lock(bridge->partition, LW_SHARED);
		live = bridge->lease->serial == bridge->serial &&
			bridge->lease->state == DL_LIVE && bridge->lease->deadline > dl_now();
		dl_partition_unlock(bridge->partition, &fx);
		if (live)
			bridges[n++] = *bridge;
		else
			give_up(bridge);
	}
	nbridges = nbound = n;
}
