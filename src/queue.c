/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  Requests, and the queues they wait in.
 *
 * Whatever has changed about a lock, advance() grants what can be granted, in
 * the order of the queue, and sees to it that the first who has to wait wakes
 * no later than what he waits for.
 *
 * A request for several locks stands in the queues of all of them, and has
 * joined them at one moment, so of two requests one is ahead of the other
 * wherever they meet.  Where nothing is in its way it is ready: it keeps its
 * place, and those behind it may pass if there would be room for all.  To grant
 * it takes all their partitions, so whoever frees a lock only wakes its session;
 * should that have stopped, whoever stands behind does it in its place.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bitutils.h"

#include "engine_parts.h"

/* Why a queue does not advance. */
typedef enum Halt
{
	HALT_NONE,					/* nobody waits but for other locks */
	HALT_TAKEN,
	HALT_BARRED,
	HALT_NO_TOKEN,
} Halt;

static inline bool
is_open(DlSupply *supply, int64 now)
{
	return dl_opens_at(supply) <= now;
}

static inline DlLease *
ahead_of(DlLock *lock, DlLease *lease)
{
	return dlist_has_prev(&lock->queue, &lease->lock_link) ?
		dlist_container(DlLease, lock_link,
						dlist_prev_node(&lock->queue, &lease->lock_link)) : NULL;
}

static inline DlLease *
behind(DlLock *lock, DlLease *lease)
{
	return dlist_has_next(&lock->queue, &lease->lock_link) ?
		dlist_container(DlLease, lock_link,
						dlist_next_node(&lock->queue, &lease->lock_link)) : NULL;
}

/* ---- Advancing ---- */

/*
 * Has a request of this mode to wait, behind so many that are ready?  Ends the
 * expired leases in its way.
 */
static bool
is_blocked(DlEngine *engine, DlLock *lock, DlMode mode, int nahead, int64 now,
		   DlEffects *fx)
{
	while (!dl_engine_has_room(lock, mode, nahead))
	{
		DlLease    *lease = dl_engine_in_the_way(lock);

		if (lease == NULL || lease->deadline > now)
			return true;
		dl_end_lease(engine, lease, DL_EXPIRED, now, fx);
	}
	return false;
}

/*
 * When a waiter must look by itself, if nobody wakes it before.
 *
 * The first who is not ready looks at the deadline of the lease in its way, or
 * when grants begin; if nothing is in its way, a token is missing or it is
 * barred, and it looks at once.  While it passes the barrier it sleeps elsewhere,
 * for as long as that takes.
 *
 * Whoever stands behind one that is ready looks a while later, since it may have
 * to grant that in its session's place.
 *
 * Any other waiter looks a while after the one ahead of it should have: that
 * is only to make up for a session that has stopped.  It looks earlier if the
 * one ahead, were it granted now, would expire earlier.  It then need not be
 * woken to set its timer when it becomes the head, which in a busy queue
 * would go on through all those behind it.
 */
static int64
timer_of(DlLock *lock, DlLease *lease, int64 now)
{
	DlLease    *other = ahead_of(lock, lease);
	int64		timer;
	int			nahead = 0;

	if (lease->ready)
		return DL_FOREVER;
	while (other != NULL && other->ready && other->mode == DL_SHARED)
	{
		other = ahead_of(lock, other);
		nahead++;
	}
	if (other == NULL)
	{
		timer = lease->passing ? DL_FOREVER : now;
		if (!lease->passing && !dl_engine_has_room(lock, lease->mode, nahead))
		{
			other = dl_engine_in_the_way(lock);
			timer = other == NULL ? DL_FOREVER : other->deadline;
		}
		timer = Max(timer, dl_opens_at(lock->supply));
		return nahead > 0 ? Min(timer, now + DL_FALLBACK_USECS) : timer;
	}
	if (lease->passing)
		return DL_FOREVER;
	other = ahead_of(lock, lease);
	if (other->ready)
		return now + DL_FALLBACK_USECS;
	if (other->timer == DL_FOREVER)
		return DL_FOREVER;
	timer = Max(other->timer, now) + DL_FALLBACK_USECS;
	if (other->ttl > 0)
		timer = Min(timer, now + Max(other->ttl, DL_FALLBACK_USECS));
	return timer;
}

/*
 * Wake a waiter that would otherwise look too late, and those behind it for
 * which that makes a difference.
 */
static void
check_timers(DlLock *lock, DlLease *lease, int64 now, DlEffects *fx)
{
	while (lease != NULL)
	{
		int64		timer = timer_of(lock, lease, now);

		if (lease->timer <= timer)
			return;
		lease->timer = timer;
		dl_wake(fx, lease->backend);
		lease = behind(lock, lease);
	}
}

static void
dequeue(DlEngine *engine, DlLock *lock, DlLease *lease, int64 now)
{
	dlist_delete(&lease->lock_link);
	lock->nwaiting--;
	lease->ready = false;
	dl_partition_at(engine, lock->key.hash)->counters.waited += now - lease->since;
}

/* One token for n leases, once all are counted; 0 if that is not possible. */
static int64
draw_for(int n, DlSupply *supply, bool durable, int bucket, DlEffects *fx)
{
	DlKept		kept = dl_kept_as(durable);
	int			ncounted = 0;
	int64		token = 0;

	while (ncounted < n && dl_supply_count(supply, kept, bucket, fx))
		ncounted++;
	if (ncounted == n)
		token = dl_supply_draw(supply);
	while (token == 0 && ncounted-- > 0)
		dl_supply_uncount(supply, kept, bucket);
	return token;
}

static void
grant_queued(DlEngine *engine, DlLock *lock, DlLease *lease, int64 token,
			 int64 now, DlEffects *fx)
{
	dequeue(engine, lock, lease, now);
	dl_grant(engine, lock, lease, token, now);
	fx->deadline = Min(fx->deadline, lease->deadline);
}

/*
 * Grant what can be granted, in the order of the queue.  Returns the first
 * request that can neither be granted nor is ready, and why; without a token, or
 * barred, it is woken to see to that.  Null if there is none.
 */
static DlLease *
advance(DlEngine *engine, DlLock *lock, int64 now, DlEffects *fx, Halt *why)
{
	bool		closed = !is_open(lock->supply, now);
	int			nahead = 0;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &lock->queue)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);
		int64		token;

		if (closed || is_blocked(engine, lock, lease->mode, nahead, now, fx))
			*why = HALT_TAKEN;
		else if (dl_engine_is_barred(lock, lease->mode) || lease->bridging)
			*why = HALT_BARRED;
		else if (lease->nparts > 1)
		{
			if (lease->asleep && !lease->ready)
				dl_wake(fx, lease->backend);
			lease->ready = true;
			lease->asleep = false;
			lease->timer = DL_FOREVER;
			closed = lease->mode == DL_EXCLUSIVE;
			nahead++;
			continue;
		}
		else if ((token = draw_for(1, lock->supply, lease->durable, lease->bucket, fx)) != 0)
		{
			grant_queued(engine, lock, lease, token, now, fx);
			dl_wake(fx, lease->backend);
			continue;
		}
		else
			*why = HALT_NO_TOKEN;
		lease->ready = false;
		lease->passing = lease->passing && *why == HALT_BARRED;
		check_timers(lock, lease, now, fx);
		/* Behind it may be some that were ready, and then one that was first. */
		while ((lease = behind(lock, lease)) != NULL && (lease->ready || lease->passing))
		{
			lease->ready = lease->passing = false;
			check_timers(lock, lease, now, fx);
		}
		return dlist_container(DlLease, lock_link, iter.cur);
	}
	*why = HALT_NONE;
	return NULL;
}

/* A lock that stays has changed: grant what can be granted. */
static void
settle(DlEngine *engine, DlLock *lock, int64 now, DlEffects *fx)
{
	Halt		why;

	(void) advance(engine, lock, now, fx, &why);
}

/* The same.  The lock is gone afterwards if nothing refers to it. */
void
dl_settle(DlEngine *engine, DlLock *lock, int64 now, DlEffects *fx)
{
	settle(engine, lock, now, fx);
	dl_lock_drop_unused(engine, lock);
}

/* ---- Barriers ---- */

/* Somebody has passed the lock's barrier for requests of this mode. */
static void
lower_barrier(DlLock *lock, DlMode mode)
{
	lock->barrier = mode == DL_EXCLUSIVE ? DL_NO_BARRIER :
		Min(lock->barrier, DL_BARS_EXCLUSIVE);
	lock->raised = lock->raised && lock->barrier != DL_NO_BARRIER;
}

/*
 * The session of this request, which is or was the first in its queue, has
 * passed the lock's barrier, and keeps it from coming back meanwhile.
 */
void
dl_engine_pass(DlLease *lease)
{
	if (lease->state == DL_WAITING)
		lower_barrier(lease->lock, lease->mode);
}

/* ---- Requests ---- */

/* Would a request entered now have to wait? */
static bool
has_to_wait(DlEngine *engine, DlLock *lock, const DlRequest *request, int64 now,
			DlEffects *fx)
{
	int			nahead = 0;
	Halt		why;

	if (!is_open(request->supply, now))
		return true;
	if (lock == NULL)
		return false;
	if (lock->nwaiting > 0)
	{
		/* Those before us come first, whether or not we conflict. */
		if (advance(engine, lock, now, fx, &why) != NULL)
			return true;
		nahead = lock->nwaiting;
		if (nahead > 0 &&
			dlist_tail_element(DlLease, lock_link, &lock->queue)->mode == DL_EXCLUSIVE)
			return true;
	}
	return is_blocked(engine, lock, request->mode, nahead, now, fx);
}

/*
 * The lock of this key, or null; prepared for a request with this limit.
 * Returns false if it has holders or requests under another limit.
 */
static bool
find_lock(DlEngine *engine, const DlKey *key, int limit, int64 now, DlEffects *fx,
		  DlLock **result)
{
	DlLock	   *lock = dl_engine_find_lock(engine, key);
	dlist_mutable_iter iter;

	*result = lock;
	if (lock == NULL || lock->limit == limit)
		return true;
	dlist_foreach_modify(iter, &lock->leases)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

		if (lease->deadline <= now)
			dl_end_lease(engine, lease, DL_EXPIRED, now, fx);
	}
	settle(engine, lock, now, fx);
	if (lock->nleases + lock->nwaiting > 0)
		return false;
	lock->limit = limit;
	return true;
}

/* Whose the request or lease is. */
static void
set_session(DlLease *lease, const DlRequest *request)
{
	lease->backend = request->backend;
	lease->generation = request->generation;
	lease->pid = request->pid;
	strcpy(lease->holder, request->holder);
}

static void
fill(DlLease *lease, const DlRequest *request, int nth)
{
	set_session(lease, request);
	lease->mode = request->mode;
	lease->scope = request->scope;
	lease->ttl = request->ttl;
	lease->bucket = dl_bucket_of(request->scope, request->ttl);
	lease->durable = request->durable;
	lease->nparts = request->nkeys;
	lease->nth = nth;
	lease->owner = request->owner;
	lease->id_hash = request->id_hash;
	strcpy(lease->request_id, request->request_id);
}

/* Tell a granted request, or say that its images come first. */
static DlVerdict
tell(DlEngine *engine, const DlRequest *request, DlLease **leases, int64 now,
	 TimestampTz wall, DlEffects *fx)
{
	for (int i = 0; i < request->nkeys; i++)
		if (!dl_may_tell(engine, leases[i]))
			return DL_UNTOLD;
	for (int i = 0; i < request->nkeys; i++)
	{
		int64		before = leases[i]->deadline;

		dl_tell(engine, leases[i], now, wall, fx);
		if (leases[i]->deadline < before)
			settle(engine, leases[i]->lock, now, fx);
	}
	return DL_TOLD;
}

/*
 * The locks of a request, and whether it has to wait for each.  Returns a
 * verdict if that is the end of it.  Locks may be left unused.
 */
static DlVerdict
look_around(DlEngine *engine, DlRequest *request, int64 now, DlLock **locks,
			bool *wait, DlEffects *fx)
{
	DlCounters *counters = &dl_partition_at(engine, request->keys[0].hash)->counters;

	for (int i = 0; i < request->nkeys; i++)
	{
		if (!find_lock(engine, &request->keys[i], request->limit, now, fx, &locks[i]))
		{
			strcpy(request->other, request->keys[i].name);
			request->other_limit = locks[i]->limit;
			return DL_OTHER_LIMIT;
		}
		*wait = has_to_wait(engine, locks[i], request, now, fx) || *wait;
	}
	if (*wait)
		counters->contended++;
	if (*wait && !request->may_wait)
	{
		counters->timeouts++;
		return DL_BUSY;
	}
	return DL_TOLD;
}

/* See what bars a request that need not wait.  Returns whether anything does. */
static bool
is_barred(DlRequest *request, DlLock **locks)
{
	uint64		barred = 0;

	for (int i = 0; i < request->nkeys; i++)
	{
		uint64		bit = UINT64CONST(1) << i;

		if (request->pass == DL_PASS_HELD && (request->barred & bit) != 0)
			lower_barrier(locks[i], request->mode);
		if (dl_engine_is_barred(locks[i], request->mode))
			barred |= bit;
	}
	request->barred = barred;
	return barred != 0 || request->bridging;
}

/* Take records for all of it, unlinked yet.  Returns false if there are too few. */
static bool
take_records(DlEngine *engine, const DlRequest *request, DlLock **locks,
			 dlist_node **nodes, dlist_node **images)
{
	bool		full = false;

	for (int i = 0; i < request->nkeys; i++)
	{
		int			partition = dl_partition_of(request->keys[i].hash);

		nodes[i] = full ? NULL : dl_take_free(engine, partition, DL_LEASE);
		images[i] = full || !request->durable ? NULL :
			dl_take_free(engine, partition, DL_IMAGE);
		if (!full && locks[i] == NULL)
			locks[i] = dl_lock_create(engine, &request->keys[i], request->supply,
									  dl_take_free(engine, partition, DL_LOCK));
		full = full || nodes[i] == NULL || locks[i] == NULL ||
			(request->durable && images[i] == NULL);
	}
	return !full;
}

/* Give back what a request that comes to nothing has taken. */
static void
give_up(DlEngine *engine, const DlRequest *request, DlLock **locks,
		dlist_node **nodes, dlist_node **images)
{
	for (int i = 0; i < request->nkeys; i++)
	{
		DlPartition *part = dl_partition_at(engine, request->keys[i].hash);

		if (nodes != NULL && nodes[i] != NULL)
			dl_give_free(part, DL_LEASE, nodes[i]);
		if (nodes != NULL && images[i] != NULL)
			dl_give_free(part, DL_IMAGE, images[i]);
		if (locks[i] != NULL)
			dl_lock_drop_unused(engine, locks[i]);
	}
}

/*
 * Enter a request.  told: the leases are live.  repeated: they are live, and
 * were told before.  Otherwise, if it has entered, its session must come to
 * dl_engine_look(), or leave; if queued, when woken and at the earliest of their
 * timers.  If it has not, "leases" are not set and nothing is left behind.
 */
DlVerdict
dl_engine_request(DlEngine *engine, DlRequest *request, int64 now,
				  TimestampTz wall, DlLease **leases, DlEffects *fx)
{
	DlLock	   *locks[DL_KEYS_MAX] = {NULL};
	dlist_node *nodes[DL_KEYS_MAX];
	dlist_node *images[DL_KEYS_MAX];
	DlVerdict	verdict;
	bool		wait = false;
	int64		token = 0;

	if (request->request_id[0] != '\0')
	{
		verdict = dl_id_find(engine, request, now, leases, fx);
		if (verdict == DL_QUEUED)
		{
			request->entered = true;
			return dl_engine_look(engine, request, leases, now, wall, fx);
		}
		if (verdict != DL_AGAIN)
			return verdict;
	}

	verdict = look_around(engine, request, now, locks, &wait, fx);
	if (verdict != DL_TOLD)
	{
		give_up(engine, request, locks, NULL, NULL);
		return verdict;
	}
	if (!take_records(engine, request, locks, nodes, images))
		verdict = DL_FULL;
	else if (!wait && is_barred(request, locks))
	{
		if (request->pass == DL_PASS_QUEUE)
			wait = true;
		else
			verdict = DL_BARRED;
	}
	if (verdict == DL_TOLD && !wait &&
		(token = draw_for(request->nkeys, request->supply, request->durable,
						  dl_bucket_of(request->scope, request->ttl), fx)) == 0)
		verdict = DL_NO_TOKEN;
	if (verdict != DL_TOLD)
	{
		give_up(engine, request, locks, nodes, images);
		return verdict;
	}

	for (int i = 0; i < request->nkeys; i++)
	{
		DlLock	   *lock = locks[i];
		uint32		hash = lock->key.hash;
		DlLease    *lease = dl_record_create(dl_partition_at(engine, hash), lock, nodes[i]);

		leases[i] = lease;
		fill(lease, request, i);
		lock->limit = request->limit;
		if (request->durable)
			dl_image_attach(lease, images[i]);
		dl_id_link(engine, lease);
		if (!wait)
		{
			dl_grant(engine, lock, lease, token, now);
			continue;
		}
		lease->state = DL_WAITING;
		lease->since = now;
		lease->timer = now;
		lease->bridging = request->bridging && i == 0;
		dlist_push_tail(&lock->queue, &lease->lock_link);
		lock->nwaiting++;
		dl_backend_join(engine, hash, lease);
	}
	request->entered = true;
	if (wait)
		return dl_engine_look(engine, request, leases, now, wall, fx);
	verdict = tell(engine, request, leases, now, wall, fx);
	for (int i = 0; verdict == DL_UNTOLD && i < request->nkeys; i++)
	{
		dl_backend_join(engine, request->keys[i].hash, leases[i]);
		fx->deadline = Min(fx->deadline, leases[i]->deadline);
	}
	return verdict;
}

/* Grant a request for several locks that is ready in all queues. */
static bool
grant_ready(DlEngine *engine, DlLease **leases, int n, int64 now, DlEffects *fx)
{
	int64		token = draw_for(n, leases[0]->lock->supply, leases[0]->durable,
								 leases[0]->bucket, fx);

	if (token == 0)
		return false;
	for (int i = 0; i < n; i++)
	{
		DlLock	   *lock = leases[i]->lock;

		grant_queued(engine, lock, leases[i], token, now, fx);
		settle(engine, lock, now, fx);
	}
	return true;
}

/*
 * Try to grant a queued request.  Returns untold if it is granted now.  The
 * look at one lock may tell of what others lack: a token.
 */
static DlVerdict
try_to_grant(DlEngine *engine, DlRequest *request, DlLease **leases, int64 now,
			 DlEffects *fx)
{
	int			nready = 0;
	int			nbarred = 0;
	bool		no_token = false;

	request->barred = 0;
	for (int i = 0; i < request->nkeys; i++)
		leases[i]->asleep = false;
	for (int i = 0; i < request->nkeys; i++)
	{
		DlLease    *lease = leases[i];
		Halt		why;
		bool		halted = advance(engine, lease->lock, now, fx, &why) == lease;
		int64		before;

		lease->passing = halted && why == HALT_BARRED;
		if (lease->passing)
		{
			nbarred++;
			if (dl_engine_is_barred(lease->lock, lease->mode))
				request->barred |= UINT64CONST(1) << i;
		}
		no_token = no_token || why == HALT_NO_TOKEN;
		if (lease->state == DL_GRANTED)
			return DL_UNTOLD;
		if (lease->ready)
			nready++;
		before = lease->timer;
		lease->timer = timer_of(lease->lock, lease, now);
		if (lease->timer < before)
			check_timers(lease->lock, behind(lease->lock, lease), now, fx);
	}
	if (nready == request->nkeys)
		return grant_ready(engine, leases, nready, now, fx) ? DL_UNTOLD : DL_NO_TOKEN;
	if (nready + nbarred == request->nkeys)
		return DL_BARRED;
	if (no_token)
		return DL_NO_TOKEN;
	for (int i = 0; i < request->nkeys; i++)
		leases[i]->asleep = true;
	return DL_QUEUED;
}

/*
 * The lease will soon be released, unless its transaction aborts.  Wake whom it
 * will be granted to, so that he is on a processor by then; should he look too
 * early, he goes on waiting.
 */
void
dl_engine_announce(DlLease *lease, DlEffects *fx)
{
	DlLock	   *lock = lease->lock;

	/* Where several hold the lock, only a semaphore gets room for another one. */
	if (lock->nwaiting > 0 && (lock->limit > 0 || lock->nleases == 1))
		dl_wake(fx, dlist_head_element(DlLease, lock_link, &lock->queue)->backend);
}

/*
 * The backend whose request for several locks stands right ahead of a waiting
 * one, and is ready here; -1 if there is none.
 */
int
dl_engine_ready_ahead(DlLease *lease)
{
	DlLease    *other = ahead_of(lease->lock, lease);

	return other != NULL && other->ready ? other->backend : -1;
}

/*
 * Grant the request for several locks of a backend that does not come to see
 * to it.  Its partitions are those whose bits are set.  Does nothing if it need
 * not be done, or the session itself has to.  Returns false when a token is all
 * that it lacks; see fx->wanted.
 */
bool
dl_engine_grant_for(DlEngine *engine, int backend, uint32 partitions, int64 now,
					DlEffects *fx)
{
	DlLease    *leases[DL_KEYS_MAX];
	int			n = 0;

	for (uint32 rest = partitions; rest != 0; rest &= rest - 1)
	{
		dlist_iter	iter;

		dlist_foreach(iter, dl_engine_of_backend(engine, backend,
												 pg_rightmost_one_pos32(rest)))
		{
			DlLease    *lease = dlist_container(DlLease, backend_link, iter.cur);

			if (lease->state == DL_WAITING && n < DL_KEYS_MAX)
				leases[n++] = lease;
		}
	}
	if (n < 2 || n != leases[0]->nparts)
		return true;
	for (int i = 0; i < n; i++)
	{
		settle(engine, leases[i]->lock, now, fx);
		if (!leases[i]->ready)
			return true;
	}
	if (!grant_ready(engine, leases, n, now, fx))
		return false;
	dl_wake(fx, backend);
	return true;
}

/*
 * A session comes to see what became of its queued request.  again and gone:
 * the records are still the session's, to be given back by dl_engine_leave().
 */
DlVerdict
dl_engine_look(DlEngine *engine, DlRequest *request, DlLease **leases,
			   int64 now, TimestampTz wall, DlEffects *fx)
{
	bool		waiting = false;
	bool		lapsed = false;
	bool		gone = false;

	for (int i = 0; i < request->nkeys; i++)
	{
		DlLease    *lease = leases[i];

		if (lease->state == DL_GRANTED && lease->deadline <= now)
		{
			DlLock	   *lock = lease->lock;

			dl_end_lease(engine, lease, DL_EXPIRED, now, fx);
			dl_settle(engine, lock, now, fx);
		}
		waiting = waiting || lease->state == DL_WAITING;
		lapsed = lapsed || lease->state == DL_LAPSED;
		gone = gone || lease->state == DL_DROPPED;
	}
	if (gone)
		return DL_GONE;
	if (lapsed)
		return DL_AGAIN;
	if (waiting)
	{
		DlVerdict	verdict;

		leases[0]->bridging = request->bridging;
		verdict = try_to_grant(engine, request, leases, now, fx);
		if (verdict != DL_UNTOLD)
			return verdict;
	}
	return tell(engine, request, leases, now, wall, fx);
}

/*
 * A session gives up its queued request for this lock, or the grant it has not
 * been told of.  The record is gone afterwards.
 */
void
dl_engine_leave(DlEngine *engine, int partition, DlLease *lease, int64 now,
				DlEffects *fx)
{
	DlLock	   *lock = lease->lock;

	if (lease->state == DL_GRANTED)
	{
		dl_engine_end(engine, lease, DL_UNDONE, now, fx);
		return;
	}
	if (lease->state == DL_WAITING)
	{
		DlLease    *next = behind(lock, lease);

		dequeue(engine, lock, lease, now);
		check_timers(lock, next, now, fx);
		dl_settle(engine, lock, now, fx);
	}
	else
		Assert(lease->state == DL_LAPSED || lease->state == DL_DROPPED);
	dl_record_free(engine, &engine->partitions[partition], lease);
}

/*
 * A request or lease becomes that of another session, which has made the same
 * request again.  What the first one still has to do with it is void.
 */
void
dl_engine_adopt(DlEngine *engine, DlLease *lease, const DlRequest *request)
{
	bool		in_backend = lease->in_backend;

	dl_backend_leave(lease);
	lease->serial++;
	set_session(lease, request);
	lease->lock->nreleasing -= lease->nreleasing;
	lease->nreleasing = 0;
	if (in_backend)
		dl_backend_join(engine, lease->lock->key.hash, lease);
}

/* To break a deadlock, a waiting request goes ahead of another one. */
void
dl_engine_overtake(DlEngine *engine, DlLease *lease, DlLease *before, int64 now,
				   DlEffects *fx)
{
	DlLock	   *lock = lease->lock;

	Assert(before->lock == lock && before->state == DL_WAITING);
	Assert(lease->state == DL_WAITING);
	dlist_delete(&lease->lock_link);
	dlist_insert_before(&before->lock_link, &lease->lock_link);
	for (DlLease *other = lease; other != NULL; other = behind(lock, other))
		check_timers(lock, other, now, fx);
	settle(engine, lock, now, fx);
}
