/*-------------------------------------------------------------------------
 *
 * watcher.c
 *	  The engine's part of watching a lock: who is to be woken when the newest
 *	  token that is live has changed.
 *
 * A session watches one lock at a time, so each has one record for it.  A
 * watched lock is there although nobody has or wants it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "engine_parts.h"

/*
 * Have a backend, which watches nothing, woken when the newest token of this
 * lock changes.  Returns the lock; null when no record was found free.
 */
DlLock *
dl_engine_watch(DlEngine *engine, const DlKey *key, DlSupply *supply, int backend)
{
	DlWatcher  *watcher = &engine->watchers[backend];
	DlLock	   *lock = dl_engine_find_lock(engine, key);

	Assert(watcher->lock == NULL);
	if (lock == NULL)
		lock = dl_lock_create(engine, key, supply,
							  dl_take_free(engine, dl_partition_of(key->hash), DL_LOCK));
	if (lock == NULL)
		return NULL;
	watcher->lock = lock;
	dlist_push_tail(&lock->watchers, &watcher->link);
	return lock;
}

/*
 * The backend watches no more.  Needs the partition of what it watched locked.
 * The first of those who watch a lock looks at its deadline, so if that was this
 * one, the next is woken to do so.
 */
void
dl_engine_unwatch(DlEngine *engine, int backend, DlEffects *fx)
{
	DlWatcher  *watcher = &engine->watchers[backend];
	DlLock	   *lock = watcher->lock;

	if (lock == NULL)
		return;
	watcher->lock = NULL;
	if (dlist_head_node(&lock->watchers) == &watcher->link &&
		dlist_has_next(&lock->watchers, &watcher->link))
		dl_wake(fx, dlist_container(DlWatcher, link,
									dlist_next_node(&lock->watchers, &watcher->link))->backend);
	dlist_delete(&watcher->link);
	dl_lock_drop_unused(engine, lock);
}

/* The newest token of the lock may have changed. */
void
dl_watchers_wake(DlLock *lock, DlEffects *fx)
{
	dlist_iter	iter;

	dlist_foreach(iter, &lock->watchers)
		dl_wake(fx, dlist_container(DlWatcher, link, iter.cur)->backend);
}

/* The lock's extension is gone. */
void
dl_watchers_dismiss(DlLock *lock, DlEffects *fx)
{
	while (!dlist_is_empty(&lock->watchers))
	{
		DlWatcher  *watcher = dlist_container(DlWatcher, link,
											  dlist_pop_head_node(&lock->watchers));

		watcher->lock = NULL;
		dl_wake(fx, watcher->backend);
	}
}

/*
 * The greatest token of the live leases of a watched lock, 0 if there is none,
 * and when it expires.
 */
int64
dl_engine_newest(DlEngine *engine, DlLock *lock, int64 now, int64 *deadline,
				 DlEffects *fx)
{
	*deadline = DL_FOREVER;
	for (;;)
	{
		DlLease    *newest = NULL;
		dlist_iter	iter;

		dlist_foreach(iter, &lock->leases)
		{
			DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

			if (lease->state == DL_LIVE &&
				(newest == NULL || lease->token > newest->token))
				newest = lease;
		}
		if (newest == NULL)
			return 0;
		if (newest->deadline > now)
		{
			*deadline = newest->deadline;
			return newest->token;
		}
		dl_engine_end(engine, newest, DL_EXPIRED, now, fx);
	}
}
