/*-------------------------------------------------------------------------
 *
 * wait.c
 *	  What a session does while it waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/latch.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "shmem.h"
#include "supply.h"
#include "wait.h"

/*
 * Sleep until woken or until a deadline passes.  May throw on interrupts, but
 * not after the sleep: the caller looks first whether it has been granted.
 */
void
dl_sleep_until(int64 deadline, uint32 wait_event)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	CHECK_FOR_INTERRUPTS();
	/* A look at the catalogs must not hold back vacuum while we sleep. */
	InvalidateCatalogSnapshot();
	if (deadline < DL_FOREVER)
	{
		int64		usecs = deadline - dl_now();

		events |= WL_TIMEOUT;
		timeout = (long) Min((Max(usecs, 0) + 999) / 1000, INT_MAX);
	}
	(void) WaitLatch(MyLatch, events, timeout, wait_event);
	ResetLatch(MyLatch);
}

/*
 * A request for several locks stands right ahead of ours.  If all of them are to
 * be had, and its session has not come to take them for a while, do so in its
 * place: else we would wait as long as it is stopped.  May throw; needs no LWLock
 * held.
 */
void
dl_help(const DlExtension *extension, int backend)
{
	DlEngine   *engine = dl_shared->engine;
	uint32		partitions = 0;
	bool		ready = true;
	bool		done;
	DlEffects	fx = DL_NO_EFFECTS;

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		dlist_head *list = dl_engine_of_backend(engine, backend, p);
		dlist_iter	iter;

		if (dlist_is_empty(list))
			continue;
		dl_partition_lock(p, LW_SHARED);
		dlist_foreach(iter, list)
		{
			const DlLease *lease = dlist_container(DlLease, backend_link, iter.cur);

			if (lease->state != DL_WAITING)
				continue;
			partitions |= UINT32_C(1) << p;
			ready = ready && lease->ready;
		}
		dl_partition_unlock(p, &fx);
	}
	if (partitions == 0 || !ready)
		return;
	dl_partitions_lock(partitions);
	done = dl_engine_grant_for(engine, backend, partitions, dl_now(), &fx);
	dl_partitions_unlock(partitions, &fx);
	if (!done)
		dl_supply_refill(extension, fx.wanted);
	if (fx.over)
		dl_wake_worker();
}
