/*-------------------------------------------------------------------------
 *
 * engine.c
 *	  The state machine of locks, leases and their queues.
 *
 * engine.h says what holds for all files of the engine.  The others are queue.c
 * (requests and their queues), request_id.c, watcher.c, image.c, deadline.c,
 * restore.c and memory.c.
 *
 * A request that finds its lock free becomes a live lease at once.  Otherwise
 * its record joins the lock's queue, and whoever frees the lock grants it to
 * the head of the queue: the record moves to the lock's leases, gets its
 * token, and its session is woken to be told.
 *
 *		waiting --> granted --> live --> pinned --> over --> free
 *		   ^           |          '-----------^-------^-------^
 *		   '-- lapsed <'
 *
 * A lease that has to be stored, or whose lock has a predecessor's image on
 * disk still, stays granted until its session has seen to that.
 *
 * A lease that ends while commits it guards are in flight keeps its place as
 * pinned until the last of them is done.
 *
 * Every change to a lock ends in dl_settle(); see queue.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bitutils.h"

#include "engine_parts.h"

/* ---- Granting and ending ---- */

/* The bucket in which a lease of scope lease with this time to live counts. */
int
dl_ttl_bucket(int64 ttl)
{
	uint64		x = (uint64) (ttl - 1) >> (DL_TTL_SHORTEST_LOG - 2);
	int			log;

	if (x < 4)
		return 0;
	log = pg_leftmost_one_pos64(x) - 2;
	return 4 * log + ((x >> log) & 3) + 1;
}

/*
 * Count a lease in this bucket, unless it is not open.  Counts first, then
 * looks, where supply.c closes first, then looks: one of us sees the other.
 */
bool
dl_supply_count(DlSupply *supply, DlKept kept, int bucket, DlEffects *fx)
{
	if (bucket < 0)
		return true;
	pg_atomic_fetch_add_u32(&supply->live[kept][bucket], 1);
	if (bucket < pg_atomic_read_u32(&supply->nbuckets[kept]))
		return true;
	pg_atomic_fetch_sub_u32(&supply->live[kept][bucket], 1);
	fx->wanted[kept] = Max(fx->wanted[kept], bucket + 1);
	return false;
}

void
dl_supply_uncount(DlSupply *supply, DlKept kept, int bucket)
{
	if (bucket >= 0)
		pg_atomic_fetch_sub_u32(&supply->live[kept][bucket], 1);
}

/*
 * Draw a token, 0 if none is left.  A failed draw leaves a gap.  The limit is
 * read first: a reservation that ends in between may have skipped the token.
 */
int64
dl_supply_draw(DlSupply *supply)
{
	uint64		limit = pg_atomic_read_u64(&supply->limit);
	uint64		token = pg_atomic_fetch_add_u64(&supply->next, 1);

	return token <= limit ? (int64) token : 0;
}

/* The heap needs to know of an earlier deadline, and finds out about a later. */
void
dl_set_deadline(DlPartition *part, DlLease *lease, int64 deadline)
{
	lease->deadline = deadline;
	if (lease->rank > 0 && deadline < lease->key)
		dl_deadline_remove(part, lease);
	if (lease->rank == 0 && deadline < DL_FOREVER)
		dl_deadline_insert(part, lease);
}

/*
 * Give the lock to a request that is in no list of it, and has been counted.
 * Writing an image takes longer than some leases are to live, once their holders
 * have been told.
 */
void
dl_grant(DlEngine *engine, DlLock *lock, DlLease *lease, int64 token, int64 now)
{
	DlPartition *part = dl_partition_at(engine, lock->key.hash);

	lease->state = DL_GRANTED;
	lease->token = token;
	dlist_push_tail(&lock->leases, &lease->lock_link);
	lock->nleases++;
	dl_set_deadline(part, lease,
					dl_deadline_after(now, lease->image == NULL ? lease->ttl :
									  Max(lease->ttl, DL_FALLBACK_USECS)));
	if (lease->image != NULL)
		dl_image_link(engine, part, lease);
}

/*
 * Granted: is there nothing on disk any more that would keep others from the
 * lock, or this one's own image yet to be written?
 */
bool
dl_may_tell(DlEngine *engine, const DlLease *lease)
{
	DlImage    *leftover;

	return (lease->image == NULL || lease->flushed) &&
		(dl_partition_at(engine, lease->lock->key.hash)->nimages == 0 ||
		 dl_engine_leftovers(engine, &lease->lock->key, &leftover, 1) == 0);
}

/* Put a granted lease in force.  Its deadline starts anew. */
void
dl_tell(DlEngine *engine, DlLease *lease, int64 now, TimestampTz wall, DlEffects *fx)
{
	uint32		hash = lease->lock->key.hash;

	Assert(lease->state == DL_GRANTED);
	lease->state = DL_LIVE;
	lease->open = true;
	dl_set_deadline(dl_partition_at(engine, hash), lease, dl_deadline_after(now, lease->ttl));
	lease->told_at = now;
	lease->granted_at = wall;
	dlist_push_head(dl_token_bucket(engine, hash, lease->token), &lease->token_link);
	if (lease->scope == DL_SCOPE_LEASE)
		dl_backend_leave(lease);
	else if (!lease->in_backend)
		dl_backend_join(engine, hash, lease);
	fx->deadline = Min(fx->deadline, lease->deadline);
	dl_partition_at(engine, hash)->counters.acquired++;
	dl_watchers_wake(lease->lock, fx);
}

/*
 * An ended lease gives up its place.  The caller settles the lock.  One that
 * is to be logged, or still has guards that have to be told, goes on the list
 * of those that are over.
 */
static void
vacate(DlEngine *engine, DlLease *lease, int64 now, DlEffects *fx)
{
	DlLock	   *lock = lease->lock;
	DlPartition *part = dl_partition_at(engine, lock->key.hash);

	dlist_delete(&lease->lock_link);
	lock->nleases--;
	if (lease->cause == DL_REMOVED)
		dl_image_drop(part, lease);
	dl_image_abandon(part, lease, now);
	if (lease->cause == DL_EXPIRED || lease->cause == DL_FORCED ||
		!dlist_is_empty(&lease->guards))
	{
		lease->state = DL_OVER;
		dlist_push_tail(&part->over, &lease->lock_link);
		lock->nover++;
		fx->over = true;
	}
	else
		dl_record_free(engine, part, lease);
}

/*
 * End a lease, granted or live.  The caller settles the lock.  A grant not
 * told yet belongs to a session that will come to look: its record lapses and
 * stays with it, unless that session itself gives it up (DL_UNDONE).
 */
void
dl_end_lease(DlEngine *engine, DlLease *lease, DlCause cause, int64 now,
			 DlEffects *fx)
{
	DlLock	   *lock = lease->lock;
	DlPartition *part = dl_partition_at(engine, lock->key.hash);
	DlCounters *counters = &part->counters;
	bool		told = lease->state == DL_LIVE;

	Assert(lease->state == DL_LIVE || lease->state == DL_GRANTED);
	lock->nreleasing -= lease->nreleasing;
	lease->nreleasing = 0;
	if (lease->rank > 0)
		dl_deadline_remove(part, lease);
	if (told)
	{
		dlist_delete(&lease->token_link);
		dl_watchers_wake(lock, fx);
	}
	dl_id_unlink(engine, lease);
	dl_supply_uncount(lock->supply, dl_kept_as(lease->durable), lease->bucket);

	if (!told && cause != DL_UNDONE)
	{
		dlist_delete(&lease->lock_link);
		lock->nleases--;
		if (cause == DL_REMOVED)
			dl_image_drop(part, lease);
		dl_image_abandon(part, lease, now);
		lease->state = cause == DL_REMOVED ? DL_DROPPED : DL_LAPSED;
		lease->lock = NULL;
		counters->lapsed++;
		dl_wake(fx, lease->backend);
		return;
	}
	switch (cause)
	{
		case DL_RELEASED:
			counters->released++;
			break;
		case DL_UNDONE:
			counters->undone++;
			break;
		case DL_EXPIRED:
			counters->expired++;
			break;
		case DL_FORCED:
			counters->forced++;
			break;
		case DL_REMOVED:
			break;
	}
	lease->cause = cause;
	dl_backend_leave(lease);
	if (lease->npins > 0)
	{
		/* Whoever waits is woken by the end of the last commit, not before. */
		lease->state = DL_PINNED;
		lease->deadline = DL_FOREVER;
	}
	else
		vacate(engine, lease, now, fx);
}

/* ---- Leases ---- */

/* The live lease of this lock under this token, or null. */
DlLease *
dl_engine_find(DlEngine *engine, const DlKey *key, int64 token, int64 now,
			   DlEffects *fx)
{
	dlist_iter	iter;

	dlist_foreach(iter, dl_token_bucket(engine, key->hash, token))
	{
		DlLease    *lease = dlist_container(DlLease, token_link, iter.cur);

		if (lease->token != token || !dl_same_key(&lease->lock->key, key))
			continue;
		if (lease->deadline > now)
			return lease;
		dl_engine_end(engine, lease, DL_EXPIRED, now, fx);
		return NULL;
	}
	return NULL;
}

/*
 * Start a live lease's time anew, with this TTL.  Returns false, and does
 * nothing, when leases with that TTL are not open; see fx->wanted.
 */
bool
dl_engine_renew(DlEngine *engine, DlLease *lease, int64 ttl, int64 now,
				DlEffects *fx)
{
	DlPartition *part = dl_partition_at(engine, lease->lock->key.hash);
	int64		before = lease->deadline;
	int			bucket = lease->bucket < 0 ? -1 : dl_ttl_bucket(ttl);

	Assert(lease->state == DL_LIVE && before > now);
	if (bucket != lease->bucket)
	{
		if (!dl_supply_count(lease->lock->supply, dl_kept_as(lease->durable), bucket, fx))
			return false;
		dl_supply_uncount(lease->lock->supply, dl_kept_as(lease->durable), lease->bucket);
		lease->bucket = bucket;
	}
	lease->ttl = ttl;
	dl_set_deadline(part, lease, dl_deadline_after(now, ttl));
	lease->renewals++;
	part->counters.renewed++;
	if (lease->deadline < before)
	{
		fx->deadline = Min(fx->deadline, lease->deadline);
		dl_watchers_wake(lease->lock, fx);
		dl_settle(engine, lease->lock, now, fx);
	}
	return true;
}

/* End a lease that is granted or live, and hand the lock on. */
void
dl_engine_end(DlEngine *engine, DlLease *lease, DlCause cause, int64 now,
			  DlEffects *fx)
{
	DlLock	   *lock = lease->lock;

	dl_end_lease(engine, lease, cause, now, fx);
	dl_settle(engine, lock, now, fx);
}

/* ---- Guards ---- */

/*
 * A transaction wants to commit only if this live lease is live then.  Null
 * when no record was found free.
 */
DlGuard *
dl_engine_guard(DlEngine *engine, DlLease *lease, int pid)
{
	int			partition = dl_partition_of(lease->lock->key.hash);
	dlist_node *node = dl_take_free(engine, partition, DL_GUARD);
	DlGuard    *guard;

	Assert(lease->state == DL_LIVE);
	if (node == NULL)
		return NULL;
	guard = dlist_container(DlGuard, link, node);
	guard->lease = lease;
	guard->pid = pid;
	guard->pinned = false;
	dlist_push_tail(&lease->guards, &guard->link);
	engine->partitions[partition].counters.guards++;
	return guard;
}

/*
 * May the transaction commit?  Not, and that counts as a refusal, when the
 * lease is not live.
 */
bool
dl_engine_may_commit(DlEngine *engine, int partition, DlGuard *guard, int64 now)
{
	if (guard->lease != NULL && guard->lease->state == DL_LIVE &&
		guard->lease->deadline > now)
		return true;
	engine->partitions[partition].counters.commits_refused++;
	return false;
}

/*
 * The transaction commits: hold the lease in its place until it has.  Returns
 * whether it may.
 */
bool
dl_engine_pin(DlEngine *engine, int partition, DlGuard *guard, int64 now)
{
	if (!dl_engine_may_commit(engine, partition, guard, now))
		return false;
	Assert(!guard->pinned);
	guard->pinned = true;
	guard->lease->npins++;
	engine->partitions[partition].npins++;
	return true;
}

/*
 * The transaction prepares, and holds what whoever passes a barrier has to
 * wait for: put up the barrier, and pin the lease until it has prepared.
 * Returns as dl_engine_pin().
 */
bool
dl_engine_bar(DlEngine *engine, int partition, DlGuard *guard, int64 now)
{
	DlLock	   *lock;

	if (!dl_engine_pin(engine, partition, guard, now))
		return false;
	lock = guard->lease->lock;
	lock->barrier = Max(lock->barrier,
						dl_engine_prepares_as(guard->lease) == DL_EXCLUSIVE ?
						DL_BARS_ALL : DL_BARS_EXCLUSIVE);
	lock->raised = true;
	return true;
}

/* The transaction is over, or has rolled back to before it was guarded. */
void
dl_engine_unguard(DlEngine *engine, int partition, DlGuard *guard, int64 now,
				  DlEffects *fx)
{
	DlPartition *part = &engine->partitions[partition];
	DlLease    *lease = guard->lease;

	if (lease != NULL)
		dlist_delete(&guard->link);
	if (guard->pinned)
	{
		Assert(lease != NULL);
		part->npins--;
		if (--lease->npins == 0 && lease->state == DL_PINNED)
		{
			DlLock	   *lock = lease->lock;

			vacate(engine, lease, now, fx);
			dl_settle(engine, lock, now, fx);
		}
	}
	guard->lease = NULL;
	dl_give_free(part, DL_GUARD, &guard->link);
}

/* ---- Ended leases ---- */

/*
 * End what has expired in this partition, looking at no more than "most"
 * leases.  Returns how many it looked at.
 */
int
dl_engine_sweep(DlEngine *engine, int partition, int64 now, int most,
				DlEffects *fx)
{
	DlPartition *part = &engine->partitions[partition];
	int			n = 0;

	while (n < most && part->deadlines != NULL && part->deadlines->key <= now)
	{
		DlLease    *lease = part->deadlines;

		n++;
		if (lease->deadline <= now)
			dl_engine_end(engine, lease, DL_EXPIRED, now, fx);
		else
		{
			dl_deadline_remove(part, lease);
			if (lease->deadline < DL_FOREVER)
				dl_deadline_insert(part, lease);
		}
	}
	part->counters.swept += n;
	return n;
}

/*
 * No lease of this partition expires before this; DL_FOREVER when none will.
 * A shared partition lock is enough.
 */
int64
dl_engine_next_deadline(DlEngine *engine, int partition)
{
	DlLease    *root = engine->partitions[partition].deadlines;

	return root == NULL ? DL_FOREVER : root->key;
}

/*
 * Take one guard from the first ended lease that waits to be logged: copies
 * it, the lease and the key of its lock.  The transaction it belongs to is
 * open, and can only roll back, until the partition is unlocked.  Returns false
 * when there is none.
 */
bool
dl_engine_take_stale(DlEngine *engine, int partition, DlGuard *copy,
					 DlLease *lease_copy, DlKey *key)
{
	DlPartition *part = &engine->partitions[partition];
	DlLease    *lease;
	DlGuard    *guard;

	if (dlist_is_empty(&part->over))
		return false;
	lease = dlist_head_element(DlLease, lock_link, &part->over);
	if (dlist_is_empty(&lease->guards))
		return false;
	guard = dlist_container(DlGuard, link, dlist_pop_head_node(&lease->guards));
	guard->lease = NULL;
	*copy = *guard;
	*lease_copy = *lease;
	*key = lease->lock->key;
	return true;
}

/*
 * Take one ended lease that waits to be logged, when dl_engine_take_stale()
 * finds no more: copies it and the key of its lock, and frees it.  Returns
 * false when there is none.
 */
bool
dl_engine_take_over(DlEngine *engine, int partition, DlLease *copy, DlKey *key)
{
	DlPartition *part = &engine->partitions[partition];
	DlLease    *lease;
	DlLock	   *lock;

	if (dlist_is_empty(&part->over))
		return false;
	lease = dlist_container(DlLease, lock_link, dlist_pop_head_node(&part->over));
	lock = lease->lock;
	Assert(dlist_is_empty(&lease->guards));
	*copy = *lease;
	*key = lock->key;
	lock->nover--;
	dl_record_free(engine, part, lease);
	dl_lock_drop_unused(engine, lock);
	return true;
}

/*
 * End what a backend has in this partition: its leases of session and
 * transaction scope, and its request, queued or granted.
 */
void
dl_engine_end_backend(DlEngine *engine, int partition, int backend, int64 now,
					  DlEffects *fx)
{
	dlist_head *list = dl_engine_of_backend(engine, backend, partition);

	/* Settling a lock may end other leases of the list: begin anew each time. */
	while (!dlist_is_empty(list))
	{
		DlLease    *lease = dlist_head_element(DlLease, backend_link, list);

		if (lease->state == DL_LIVE)
			dl_engine_end(engine, lease, DL_RELEASED, now, fx);
		else
			dl_engine_leave(engine, partition, lease, now, fx);
	}
}

/*
 * The extension, or with an invalid "extension" the whole database, has been
 * dropped: end all its leases and turn away those who wait.  What commits
 * keep pinned goes when they are done.
 */
void
dl_engine_remove(DlEngine *engine, int partition, Oid database, Oid extension,
				 int64 now, DlEffects *fx)
{
	DlPartition *part = &engine->partitions[partition];

	dl_image_remove(engine, part, database, extension);
	for (uint32 i = 0; i < engine->nbuckets; i++)
	{
		dlist_mutable_iter iter;

		dlist_foreach_modify(iter, &part->locks[i])
		{
			DlLock	   *lock = dlist_container(DlLock, bucket_link, iter.cur);
			dlist_mutable_iter other;

			if (lock->key.database != database ||
				(OidIsValid(extension) && lock->key.extension != extension))
				continue;
			while (lock->nwaiting > 0)
			{
				DlLease    *lease = dlist_container(DlLease, lock_link,
													dlist_pop_head_node(&lock->queue));

				lock->nwaiting--;
				part->counters.waited += now - lease->since;
				dl_image_abandon(part, lease, now);
				dl_id_unlink(engine, lease);
				lease->state = DL_DROPPED;
				lease->lock = NULL;
				dl_wake(fx, lease->backend);
			}
			dlist_foreach_modify(other, &lock->leases)
			{
				DlLease    *lease = dlist_container(DlLease, lock_link, other.cur);

				if (lease->state == DL_PINNED)
					dl_image_drop(part, lease);
				else
					dl_end_lease(engine, lease, DL_REMOVED, now, fx);
			}
			dl_watchers_dismiss(lock, fx);
			dl_lock_drop_unused(engine, lock);
		}
	}
}

