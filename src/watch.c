/*-------------------------------------------------------------------------
 *
 * watch.c
 *	  Waiting for the holder of a lock to change.
 *
 * Whoever tells a lease or ends one wakes those who watch its lock.  So does a
 * deadline: the first in the list looks then, the others a while later, should
 * it not; what they find expired they end, which wakes the rest.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/extension.h"
#include "common/int.h"
#include "miscadmin.h"
#include "storage/proc.h"

#include "compat.h"
#include "lease.h"
#include "session.h"
#include "shmem.h"
#include "supply.h"
#include "wait.h"
#include "watch.h"

/* The partition of what this session watches, -1: nothing. */
static int	watched = -1;

/*
 * Watch no more.  Called when the (sub)transaction aborts or the session ends;
 * cannot throw.
 */
void
dl_watch_abandon(void)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int			partition = watched;

	if (partition < 0)
		return;
	watched = -1;
	dl_partition_lock(partition, LW_EXCLUSIVE);
	dl_engine_unwatch(dl_shared->engine, dl_my_backend(), &fx);
	dl_partition_unlock(partition, &fx);
}

static void
report_dropped(const DlKey *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension distlock was dropped while watching lock \"%s\"", key->name)));
}

/*
 * Wait until the greatest token of the lock's live leases is no longer this one,
 * 0 standing for none.  Returns what it is then, or after this many microseconds,
 * negative for no limit.  May throw, and leaves nothing behind then, or when the
 * (sub)transaction aborts.
 */
int64
dl_watch(const DlExtension *extension, const DlKey *key, int64 token, int64 wait)
{
	DlEngine   *engine = dl_shared->engine;
	int			backend = dl_my_backend();
	int			partition = dl_partition_of(key->hash);
	DlSupply   *supply;
	int64		end = DL_FOREVER;

	dl_watch_abandon();			/* an error caught without a savepoint */
	dl_session_start();
	supply = dl_supply_for(extension, DL_VOLATILE, -1);
	if (wait >= 0 && pg_add_s64_overflow(dl_now(), wait, &end))
		end = DL_FOREVER;

	for (;;)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLock	   *lock;
		int64		now;
		int64		timer = DL_FOREVER;
		int64		newest = 0;
		bool		entering = watched < 0;
		bool		done = false;

		dl_partition_lock(partition, LW_EXCLUSIVE);
		now = dl_now();
		if (entering)
			(void) dl_engine_watch(engine, key, supply, backend);
		lock = engine->watchers[backend].lock;
		watched = lock == NULL ? -1 : partition;
		if (lock != NULL)
		{
			newest = dl_engine_newest(engine, lock, now, &timer, &fx);
			done = newest != token || now >= end;
			if (timer < DL_FOREVER &&
				dlist_head_node(&lock->watchers) != &engine->watchers[backend].link)
				timer += DL_FALLBACK_USECS;
			if (done)
			{
				dl_engine_unwatch(engine, backend, &fx);
				watched = -1;
			}
		}
		dl_lease_unlock(partition, &fx);
		if (lock == NULL && entering)
			elog(ERROR, "found no free record for lock \"%s\"", key->name);
		if (lock == NULL)
			report_dropped(key);
		if (done)
			return newest;

		/* Whoever drops the extension dismisses those he finds watching. */
		if (entering && get_extension_name(extension->oid) == NULL)
		{
			dl_watch_abandon();
			report_dropped(key);
		}
		dl_sleep_until(Min(timer, end), dl_watch_wait_event());
	}
}
