/*-------------------------------------------------------------------------
 *
 * engine.c
 *	  The state machine of locks, leases and their queues.
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
 * Every change to a lock ends in settle(), which does two things: it grants
 * what can be granted, and it sees to it that the head of the queue wakes no
 * later than the deadline it waits for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bitutils.h"

#include "engine.h"

/* ---- Memory ---- */

static uint32
bucket_count(int max_leases)
{
	uint32		n = 16;

	while (n * DL_NPARTITIONS < (uint32) max_leases)
		n *= 2;
	return n;
}

/*
 * A lock exists only beside a lease, but is freed after its last one: each
 * partition may have one such lock at any moment.
 */
static int
lock_count(int max_leases)
{
	return max_leases + DL_NPARTITIONS;
}

/* One for each lease, or for each session all of which guard by one lease. */
static int
guard_count(int max_leases, int nbackends)
{
	return Max(max_leases, nbackends);
}

/*
 * Each lease has at most one image, and what is stale is used up before the
 * lease table grows: as many again do for what other databases leave behind.
 */
static int
image_count(int max_leases)
{
	return 2 * max_leases;
}

/* Bytes of shared memory for that many leases.  Needs no lock. */
Size
dl_engine_size(int max_leases, int nbackends)
{
	Size		buckets = (Size) bucket_count(max_leases) * DL_NPARTITIONS;

	return MAXALIGN(sizeof(DlEngine)) +
		(Size) nbackends * DL_NPARTITIONS * sizeof(dlist_head) +
		3 * buckets * sizeof(dlist_head) + PG_CACHE_LINE_SIZE +
		(Size) max_leases * CACHELINEALIGN(sizeof(DlLease)) +
		(Size) lock_count(max_leases) * CACHELINEALIGN(sizeof(DlLock)) +
		(Size) guard_count(max_leases, nbackends) * MAXALIGN(sizeof(DlGuard)) +
		(Size) image_count(max_leases) * MAXALIGN(sizeof(DlImage));
}

static dlist_head *
carve_lists(char **memory, Size n)
{
	dlist_head *lists = (dlist_head *) *memory;

	for (Size i = 0; i < n; i++)
		dlist_init(&lists[i]);
	*memory += n * sizeof(dlist_head);
	return lists;
}

/* Spread n zeroed records over the free lists of their kind. */
static void
carve_records(DlEngine *engine, char **memory, DlKind kind, int n, Size size,
			  Size link)
{
	memset(*memory, 0, n * size);
	for (int i = 0; i < n; i++)
	{
		dlist_push_tail(&engine->partitions[i % DL_NPARTITIONS].free[kind],
						(dlist_node *) (*memory + link));
		*memory += size;
	}
}

/*
 * Lay out dl_engine_size() bytes.  With "barriers", transactions prepared
 * earlier may keep requests from locks.  Nobody else may have access yet.
 */
void
dl_engine_init(DlEngine *engine, int max_leases, int nbackends, bool barriers)
{
	char	   *memory = (char *) engine + MAXALIGN(sizeof(DlEngine));

	memset(engine, 0, sizeof(DlEngine));
	engine->max_leases = max_leases;
	engine->nbackends = nbackends;
	engine->nbuckets = bucket_count(max_leases);
	pg_atomic_init_u64(&engine->barriers_forgotten, barriers ? 1 : 0);
	pg_atomic_init_u64(&engine->barriers_settled, 0);
	engine->backends = carve_lists(&memory, (Size) nbackends * DL_NPARTITIONS);
	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		DlPartition *part = &engine->partitions[p];

		part->locks = carve_lists(&memory, engine->nbuckets);
		part->tokens = carve_lists(&memory, engine->nbuckets);
		part->images = carve_lists(&memory, engine->nbuckets);
		dlist_init(&part->over);
		dlist_init(&part->stale);
		for (int kind = 0; kind < DL_NKINDS; kind++)
			dlist_init(&part->free[kind]);
		SpinLockInit(&part->mutex);
	}
	memory = (char *) CACHELINEALIGN(memory);
	carve_records(engine, &memory, DL_LEASE, max_leases,
				  CACHELINEALIGN(sizeof(DlLease)), offsetof(DlLease, lock_link));
	carve_records(engine, &memory, DL_LOCK, lock_count(max_leases),
				  CACHELINEALIGN(sizeof(DlLock)), offsetof(DlLock, bucket_link));
	carve_records(engine, &memory, DL_GUARD, guard_count(max_leases, nbackends),
				  MAXALIGN(sizeof(DlGuard)), offsetof(DlGuard, link));
	carve_records(engine, &memory, DL_IMAGE, image_count(max_leases),
				  MAXALIGN(sizeof(DlImage)), offsetof(DlImage, link));
}

/*
 * Take a record off a free list: this partition's own, or else the next one
 * that has any.  Null when all were empty when it looked; since it looks at
 * one after the other, that can miss a record freed meanwhile.
 */
dlist_node *
dl_take_free(DlEngine *engine, int partition, DlKind kind)
{
	for (int i = 0; i < DL_NPARTITIONS; i++)
	{
		DlPartition *part = &engine->partitions[(partition + i) % DL_NPARTITIONS];
		dlist_node *node = NULL;

		SpinLockAcquire(&part->mutex);
		if (!dlist_is_empty(&part->free[kind]))
			node = dlist_pop_head_node(&part->free[kind]);
		SpinLockRelease(&part->mutex);
		if (node != NULL)
			return node;
	}
	return NULL;
}

/* Put a record on its partition's free list. */
void
dl_give_free(DlPartition *part, DlKind kind, dlist_node *node)
{
	SpinLockAcquire(&part->mutex);
	dlist_push_head(&part->free[kind], node);
	SpinLockRelease(&part->mutex);
}

static inline DlPartition *
partition_of(DlEngine *engine, uint32 hash)
{
	return &engine->partitions[dl_partition_of(hash)];
}

static inline dlist_head *
lock_bucket(DlEngine *engine, uint32 hash)
{
	uint32		i = (hash / DL_NPARTITIONS) & (engine->nbuckets - 1);

	return &partition_of(engine, hash)->locks[i];
}

static inline dlist_head *
token_bucket(DlEngine *engine, uint32 hash, int64 token)
{
	uint64		mixed = ((uint64) hash ^ (uint64) token) * UINT64CONST(0x9e3779b97f4a7c15);

	return &partition_of(engine, hash)->tokens[(mixed >> 32) & (engine->nbuckets - 1)];
}

/* The lock of that key, or null.  A shared partition lock is enough. */
DlLock *
dl_engine_find_lock(DlEngine *engine, const DlKey *key)
{
	dlist_iter	iter;

	dlist_foreach(iter, lock_bucket(engine, key->hash))
	{
		DlLock	   *lock = dlist_container(DlLock, bucket_link, iter.cur);

		if (dl_same_key(&lock->key, key))
			return lock;
	}
	return NULL;
}

/* Null when no record was found free. */
static DlLock *
create_lock(DlEngine *engine, const DlKey *key, DlSupply *supply, dlist_node *node)
{
	DlLock	   *lock;

	if (node == NULL)
		return NULL;
	lock = dlist_container(DlLock, bucket_link, node);
	lock->key.database = key->database;
	lock->key.extension = key->extension;
	lock->key.hash = key->hash;
	lock->key.len = key->len;
	memcpy(lock->key.name, key->name, key->len + 1);
	lock->supply = supply;
	dlist_init(&lock->leases);
	dlist_init(&lock->queue);
	lock->nleases = lock->nwaiting = lock->nover = lock->nreleasing = 0;
	lock->barrier = pg_atomic_read_u64(&engine->barriers_forgotten) ==
		pg_atomic_read_u64(&engine->barriers_settled) ? DL_NO_BARRIER : DL_BARS_ALL;
	lock->raised = false;
	dlist_push_head(lock_bucket(engine, key->hash), &lock->bucket_link);
	return lock;
}

static void
drop_lock_if_unused(DlEngine *engine, DlLock *lock)
{
	DlPartition *part = partition_of(engine, lock->key.hash);

	if (lock->nleases > 0 || lock->nwaiting > 0 || lock->nover > 0)
		return;
	Assert(lock->nreleasing == 0);
	/* What the lock began with has been counted before. */
	if (lock->raised)
		pg_atomic_fetch_add_u64(&engine->barriers_forgotten, 1);
	dlist_delete(&lock->bucket_link);
	dl_give_free(part, DL_LOCK, &lock->bucket_link);
}

static void
leave_backend(DlLease *lease)
{
	if (lease->in_backend)
	{
		dlist_delete(&lease->backend_link);
		lease->in_backend = false;
	}
}

static void
join_backend(DlEngine *engine, uint32 hash, DlLease *lease)
{
	dlist_push_tail(dl_engine_of_backend(engine, lease->backend, dl_partition_of(hash)),
					&lease->backend_link);
	lease->in_backend = true;
}

/* A record that is in use, and linked nowhere yet. */
static DlLease *
new_lease(DlPartition *part, DlLock *lock, dlist_node *node)
{
	DlLease    *lease = dlist_container(DlLease, lock_link, node);

	part->nleases++;
	lease->lock = lock;
	lease->token = 0;
	lease->renewals = 0;
	lease->nreleasing = 0;
	lease->image = NULL;
	lease->flushed = false;
	dlist_init(&lease->guards);
	lease->npins = 0;
	lease->rank = 0;
	lease->in_backend = false;
	lease->passing = false;
	return lease;
}

/* The record must be linked nowhere but in its backend's list. */
static void
free_lease(DlPartition *part, DlLease *lease)
{
	Assert(lease->npins == 0);
	dl_image_abandon(part, lease, 0);
	leave_backend(lease);
	lease->state = DL_FREE;
	lease->lock = NULL;
	lease->token = 0;
	lease->serial++;
	part->nleases--;
	dl_give_free(part, DL_LEASE, &lease->lock_link);
}

/* ---- Granting and ending ---- */

static void
wake(DlEffects *fx, int backend)
{
	if (fx->nwakes == DL_MAX_WAKES)
		dl_effects_wake(fx);
	fx->wakes[fx->nwakes++] = backend;
}

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
static bool
count_lease(DlSupply *supply, DlKept kept, int bucket, DlEffects *fx)
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

static void
uncount_lease(DlSupply *supply, DlKept kept, int bucket)
{
	if (bucket >= 0)
		pg_atomic_fetch_sub_u32(&supply->live[kept][bucket], 1);
}

/*
 * Count a lease and draw its token, 0 if none is left or its bucket is not
 * open.  A failed draw leaves a gap.  The limit is read first: a reservation
 * that ends in between may have skipped the token.
 */
static int64
draw_token(DlSupply *supply, DlKept kept, int bucket, DlEffects *fx)
{
	uint64		limit;
	uint64		token;

	if (!count_lease(supply, kept, bucket, fx))
		return 0;
	limit = pg_atomic_read_u64(&supply->limit);
	token = pg_atomic_fetch_add_u64(&supply->next, 1);
	if (token <= limit)
		return (int64) token;
	uncount_lease(supply, kept, bucket);
	return 0;
}

static inline bool
is_open(DlSupply *supply, int64 now)
{
	return dl_opens_at(supply) <= now;
}

static inline int64
deadline_after(int64 now, int64 ttl)
{
	return ttl == 0 ? DL_FOREVER : now + ttl;
}

/* The heap needs to know of an earlier deadline, and finds out about a later. */
static void
set_deadline(DlPartition *part, DlLease *lease, int64 deadline)
{
	lease->deadline = deadline;
	if (lease->rank > 0 && deadline < lease->key)
		dl_deadline_remove(part, lease);
	if (lease->rank == 0 && deadline < DL_FOREVER)
		dl_deadline_insert(part, lease);
}

/*
 * Give the lock to a request that is in no list of it.  Writing an image takes
 * longer than some leases are to live, once their holders have been told.
 */
static void
grant(DlEngine *engine, DlLock *lock, DlLease *lease, int64 token, int64 now)
{
	DlPartition *part = partition_of(engine, lock->key.hash);

	lease->state = DL_GRANTED;
	lease->token = token;
	dlist_push_tail(&lock->leases, &lease->lock_link);
	lock->nleases++;
	set_deadline(part, lease,
				 deadline_after(now, lease->image == NULL ? lease->ttl :
								Max(lease->ttl, DL_FALLBACK_USECS)));
	if (lease->image != NULL)
		dl_image_link(engine, part, lease);
}

/*
 * Granted: is there nothing on disk any more that would keep others from the
 * lock, or this one's own image yet to be written?
 */
static inline bool
may_tell(DlEngine *engine, DlPartition *part, const DlLease *lease)
{
	DlImage    *leftover;

	return (lease->image == NULL || lease->flushed) &&
		(part->nimages == 0 ||
		 dl_engine_leftovers(engine, &lease->lock->key, &leftover, 1) == 0);
}

/* Put a granted lease in force.  Its deadline starts anew. */
static void
tell(DlEngine *engine, DlLease *lease, int64 now, TimestampTz wall, DlEffects *fx)
{
	uint32		hash = lease->lock->key.hash;

	Assert(lease->state == DL_GRANTED);
	lease->state = DL_LIVE;
	set_deadline(partition_of(engine, hash), lease, deadline_after(now, lease->ttl));
	lease->told_at = now;
	lease->granted_at = wall;
	dlist_push_head(token_bucket(engine, hash, lease->token), &lease->token_link);
	if (lease->scope == DL_SCOPE_LEASE)
		leave_backend(lease);
	else if (!lease->in_backend)
		join_backend(engine, hash, lease);
	fx->deadline = Min(fx->deadline, lease->deadline);
	partition_of(engine, hash)->counters.acquired++;
}

/*
 * An ended lease gives up its place.  The caller settles the lock.  One that
 * is to be logged, or still has guards that have to be told, goes on the list
 * of those that are over.
 */
static void
vacate(DlPartition *part, DlLease *lease, int64 now, DlEffects *fx)
{
	DlLock	   *lock = lease->lock;

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
		free_lease(part, lease);
}

/*
 * End a lease, granted or live.  The caller settles the lock.  A grant not
 * told yet belongs to a session that will come to look: its record lapses and
 * stays with it, unless that session itself gives it up (DL_UNDONE).
 */
static void
end_lease(DlLease *lease, DlPartition *part, DlCause cause, int64 now,
		  DlEffects *fx)
{
	DlLock	   *lock = lease->lock;
	DlCounters *counters = &part->counters;
	bool		told = lease->state == DL_LIVE;

	Assert(lease->state == DL_LIVE || lease->state == DL_GRANTED);
	lock->nreleasing -= lease->nreleasing;
	lease->nreleasing = 0;
	if (lease->rank > 0)
		dl_deadline_remove(part, lease);
	if (told)
		dlist_delete(&lease->token_link);
	uncount_lease(lock->supply, dl_kept_as(lease->durable), lease->bucket);

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
		wake(fx, lease->backend);
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
	leave_backend(lease);
	if (lease->npins > 0)
	{
		/* Whoever waits is woken by the end of the last commit, not before. */
		lease->state = DL_PINNED;
		lease->deadline = DL_FOREVER;
	}
	else
		vacate(part, lease, now, fx);
}

/* Has a request of this mode to wait?  Ends the expired leases in its way. */
static bool
is_blocked(DlPartition *part, DlLock *lock, DlMode mode, int64 now, DlEffects *fx)
{
	DlLease    *conflict;

	while ((conflict = dl_engine_conflict(lock, mode)) != NULL)
	{
		if (conflict->deadline > now)
			return true;
		end_lease(conflict, part, DL_EXPIRED, now, fx);
	}
	return false;
}

/*
 * When a waiter must look by itself, if nobody wakes it before.
 *
 * The head looks at the deadline of the lease in its way, or when grants
 * begin; if nothing is in its way, a token is missing or it is barred, and it
 * looks at once.  While it passes the barrier it sleeps elsewhere, for as long
 * as that takes.
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
	DlLease    *other;
	int64		timer;

	if (dlist_head_node(&lock->queue) == &lease->lock_link)
	{
		if (lease->passing)
			return DL_FOREVER;
		other = dl_engine_conflict(lock, lease->mode);
		return Max(other == NULL ? now : other->deadline,
				   dl_opens_at(lock->supply));
	}
	other = dlist_container(DlLease, lock_link,
							dlist_prev_node(&lock->queue, &lease->lock_link));
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
	for (;;)
	{
		int64		timer = timer_of(lock, lease, now);

		if (lease->timer <= timer)
			return;
		lease->timer = timer;
		wake(fx, lease->backend);
		if (!dlist_has_next(&lock->queue, &lease->lock_link))
			return;
		lease = dlist_container(DlLease, lock_link,
								dlist_next_node(&lock->queue, &lease->lock_link));
	}
}

/*
 * Grant what can be granted, in the order of the queue, and see to the timer
 * of the head.  Without a token, or behind a barrier, the lock stays free and
 * the head is woken to see to that.  The lock is gone afterwards if nothing
 * refers to it.
 */
static void
settle(DlEngine *engine, DlLock *lock, int64 now, DlEffects *fx)
{
	DlPartition *part = partition_of(engine, lock->key.hash);

	while (lock->nwaiting > 0)
	{
		DlLease    *head = dlist_head_element(DlLease, lock_link, &lock->queue);
		int64		token;

		if (is_blocked(part, lock, head->mode, now, fx) ||
			!is_open(lock->supply, now) ||
			dl_engine_is_barred(lock, head->mode) ||
			(token = draw_token(lock->supply, dl_kept_as(head->durable),
								head->bucket, fx)) == 0)
		{
			check_timers(lock, head, now, fx);
			return;
		}
		dlist_delete(&head->lock_link);
		lock->nwaiting--;
		part->counters.waited += now - head->since;
		grant(engine, lock, head, token, now);
		fx->deadline = Min(fx->deadline, head->deadline);
		wake(fx, head->backend);
	}
	drop_lock_if_unused(engine, lock);
}

/* ---- Requests ---- */

/* Somebody has passed the lock's barrier for requests of this mode. */
static void
lower_barrier(DlLock *lock, DlMode mode)
{
	lock->barrier = mode == DL_EXCLUSIVE ? DL_NO_BARRIER :
		Min(lock->barrier, DL_BARS_EXCLUSIVE);
	lock->raised = lock->raised && lock->barrier != DL_NO_BARRIER;
}

/*
 * Enter a request.  told: *lease is live.  untold: *lease is granted, and its
 * session must come to dl_engine_look(), or leave.  queued: *lease waits, and its
 * session must come to dl_engine_look() when woken and at lease->timer, or
 * leave.  Otherwise *lease is not set and nothing is left behind.
 */
DlVerdict
dl_engine_request(DlEngine *engine, const DlRequest *request,
				  int64 now, TimestampTz wall, DlLease **result, DlEffects *fx)
{
	uint32		hash = request->key.hash;
	DlPartition *part = partition_of(engine, hash);
	DlLock	   *lock = dl_engine_find_lock(engine, &request->key);
	DlLease    *lease;
	dlist_node *node;
	dlist_node *image = NULL;
	DlVerdict	verdict = DL_TOLD;
	int			bucket = dl_bucket_of(request->scope, request->ttl);
	bool		wait = !is_open(request->supply, now);
	int64		token = 0;

	if (lock != NULL)
	{
		wait = is_blocked(part, lock, request->mode, now, fx) || wait;
		if (lock->nwaiting > 0)
		{
			/* Those before us come first, whether or not we conflict. */
			settle(engine, lock, now, fx);
			wait = wait || lock->nwaiting > 0 ||
				dl_engine_conflict(lock, request->mode) != NULL;
		}
	}
	if (wait)
		part->counters.contended++;
	if (wait && !request->may_wait)
	{
		part->counters.timeouts++;
		if (lock != NULL)
			drop_lock_if_unused(engine, lock);
		return DL_BUSY;
	}

	node = dl_take_free(engine, dl_partition_of(hash), DL_LEASE);
	if (request->durable)
		image = dl_take_free(engine, dl_partition_of(hash), DL_IMAGE);
	if (node == NULL || (request->durable && image == NULL))
		verdict = DL_FULL;
	else if (lock == NULL &&
			 (lock = create_lock(engine, &request->key, request->supply,
								 dl_take_free(engine, dl_partition_of(hash), DL_LOCK))) == NULL)
		verdict = DL_FULL;
	else if (!wait && dl_engine_is_barred(lock, request->mode))
	{
		if (request->pass == DL_PASS_HELD)
			lower_barrier(lock, request->mode);
		else if (request->pass == DL_PASS_QUEUE)
			wait = true;
		else
			verdict = DL_BARRED;
	}
	if (verdict == DL_TOLD && !wait &&
		(token = draw_token(request->supply, dl_kept_as(request->durable), bucket, fx)) == 0)
		verdict = DL_NO_TOKEN;
	if (verdict != DL_TOLD)
	{
		if (node != NULL)
			dl_give_free(part, DL_LEASE, node);
		if (image != NULL)
			dl_give_free(part, DL_IMAGE, image);
		if (lock != NULL)
			drop_lock_if_unused(engine, lock);
		return verdict;
	}

	lease = new_lease(part, lock, node);
	lease->mode = request->mode;
	lease->scope = request->scope;
	lease->ttl = request->ttl;
	lease->bucket = bucket;
	lease->durable = request->durable;
	if (request->durable)
		dl_image_attach(lease, image);
	lease->backend = request->backend;
	lease->generation = request->generation;
	lease->pid = request->pid;
	lease->owner = request->owner;
	strcpy(lease->holder, request->holder);
	*result = lease;

	if (!wait)
	{
		grant(engine, lock, lease, token, now);
		if (may_tell(engine, part, lease))
		{
			tell(engine, lease, now, wall, fx);
			return DL_TOLD;
		}
		join_backend(engine, hash, lease);
		fx->deadline = Min(fx->deadline, lease->deadline);
		return DL_UNTOLD;
	}
	lease->state = DL_WAITING;
	lease->since = now;
	dlist_push_tail(&lock->queue, &lease->lock_link);
	lock->nwaiting++;
	join_backend(engine, hash, lease);
	lease->timer = timer_of(lock, lease, now);
	return DL_QUEUED;
}

/*
 * A session comes to see what became of its queued request.  again and gone:
 * the record is still the session's, to be given back by dl_engine_leave().
 */
DlVerdict
dl_engine_look(DlEngine *engine, int partition, DlLease *lease,
			   int64 now, TimestampTz wall, DlEffects *fx)
{
	DlPartition *part = &engine->partitions[partition];
	DlLease    *head;
	int64		before;

	lease->passing = false;
	if (lease->state == DL_WAITING)
		settle(engine, lease->lock, now, fx);

	if (lease->state == DL_GRANTED && lease->deadline <= now)
	{
		DlLock	   *lock = lease->lock;

		end_lease(lease, part, DL_EXPIRED, now, fx);
		settle(engine, lock, now, fx);
	}
	switch (lease->state)
	{
		case DL_GRANTED:
			if (!may_tell(engine, part, lease))
				return DL_UNTOLD;
			before = lease->deadline;
			tell(engine, lease, now, wall, fx);
			if (lease->deadline < before)
				settle(engine, lease->lock, now, fx);
			return DL_TOLD;
		case DL_WAITING:
			head = dlist_head_element(DlLease, lock_link, &lease->lock->queue);
			if (is_open(lease->lock->supply, now) &&
				dl_engine_conflict(lease->lock, head->mode) == NULL)
			{
				if (!dl_engine_is_barred(lease->lock, head->mode))
					return DL_NO_TOKEN;
				if (lease == head)
				{
					lease->passing = true;
					lease->timer = DL_FOREVER;
					return DL_BARRED;
				}
			}
			lease->timer = timer_of(lease->lock, lease, now);
			return DL_QUEUED;
		case DL_LAPSED:
			return DL_AGAIN;
		default:
			Assert(lease->state == DL_DROPPED);
			return DL_GONE;
	}
}

/*
 * The session of this request, which is or was the head of its queue, has
 * passed the lock's barrier, and keeps it from coming back meanwhile.
 */
void
dl_engine_pass(DlLease *lease)
{
	if (lease->state == DL_WAITING)
		lower_barrier(lease->lock, lease->mode);
}

/*
 * A session gives up its queued request, or the grant it has not been told
 * of.  The record is gone afterwards.
 */
void
dl_engine_leave(DlEngine *engine, int partition, DlLease *lease, int64 now,
				DlEffects *fx)
{
	DlPartition *part = &engine->partitions[partition];
	DlLock	   *lock = lease->lock;
	DlLease    *next = NULL;

	if (lease->state == DL_GRANTED)
	{
		dl_engine_end(engine, lease, DL_UNDONE, now, fx);
		return;
	}
	if (lease->state == DL_WAITING)
	{
		if (dlist_has_next(&lock->queue, &lease->lock_link))
			next = dlist_container(DlLease, lock_link,
								   dlist_next_node(&lock->queue, &lease->lock_link));
		dlist_delete(&lease->lock_link);
		lock->nwaiting--;
		part->counters.waited += now - lease->since;
		if (next != NULL)
			check_timers(lock, next, now, fx);
		settle(engine, lock, now, fx);
	}
	else
		Assert(lease->state == DL_LAPSED || lease->state == DL_DROPPED);
	free_lease(part, lease);
}

/* ---- Leases ---- */

/* The live lease of this lock under this token, or null. */
DlLease *
dl_engine_find(DlEngine *engine, const DlKey *key, int64 token, int64 now,
			   DlEffects *fx)
{
	dlist_iter	iter;

	dlist_foreach(iter, token_bucket(engine, key->hash, token))
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
	DlPartition *part = partition_of(engine, lease->lock->key.hash);
	int64		before = lease->deadline;
	int			bucket = lease->bucket < 0 ? -1 : dl_ttl_bucket(ttl);

	Assert(lease->state == DL_LIVE && before > now);
	if (bucket != lease->bucket)
	{
		if (!count_lease(lease->lock->supply, dl_kept_as(lease->durable), bucket, fx))
			return false;
		uncount_lease(lease->lock->supply, dl_kept_as(lease->durable), lease->bucket);
		lease->bucket = bucket;
	}
	lease->ttl = ttl;
	set_deadline(part, lease, deadline_after(now, ttl));
	lease->renewals++;
	part->counters.renewed++;
	if (lease->deadline < before)
	{
		fx->deadline = Min(fx->deadline, lease->deadline);
		settle(engine, lease->lock, now, fx);
	}
	return true;
}

/* End a lease that is granted or live, and hand the lock on. */
void
dl_engine_end(DlEngine *engine, DlLease *lease, DlCause cause, int64 now,
			  DlEffects *fx)
{
	DlLock	   *lock = lease->lock;

	end_lease(lease, partition_of(engine, lock->key.hash), cause, now, fx);
	settle(engine, lock, now, fx);
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
	lock->barrier = Max(lock->barrier, guard->lease->mode == DL_EXCLUSIVE ?
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
		part->npins--;
		if (--lease->npins == 0 && lease->state == DL_PINNED)
		{
			DlLock	   *lock = lease->lock;

			vacate(part, lease, now, fx);
			settle(engine, lock, now, fx);
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
	free_lease(part, lease);
	drop_lock_if_unused(engine, lock);
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
				lease->state = DL_DROPPED;
				lease->lock = NULL;
				wake(fx, lease->backend);
			}
			dlist_foreach_modify(other, &lock->leases)
			{
				DlLease    *lease = dlist_container(DlLease, lock_link, other.cur);

				if (lease->state == DL_PINNED)
					dl_image_drop(part, lease);
				else
					end_lease(lease, part, DL_REMOVED, now, fx);
			}
			drop_lock_if_unused(engine, lock);
		}
	}
}

/* ---- Recovery ---- */

/*
 * Put aside records for n leases to be recovered.  Returns false, and leaves
 * nothing behind, if there are not so many.  Needs no partition locked.
 */
bool
dl_engine_reserve(DlEngine *engine, int n, DlReserve *reserve)
{
	static const DlKind kinds[] = {DL_LEASE, DL_LOCK, DL_IMAGE};

	for (int kind = 0; kind < DL_NKINDS; kind++)
		dlist_init(&reserve->free[kind]);
	for (int i = 0; i < n; i++)
	{
		for (int k = 0; k < lengthof(kinds); k++)
		{
			dlist_node *node = dl_take_free(engine, i % DL_NPARTITIONS, kinds[k]);

			if (node == NULL)
			{
				dl_engine_unreserve(engine, reserve);
				return false;
			}
			dlist_push_head(&reserve->free[kinds[k]], node);
		}
	}
	return true;
}

/* Give back what is left.  Needs no partition locked. */
void
dl_engine_unreserve(DlEngine *engine, DlReserve *reserve)
{
	for (int kind = 0; kind < DL_NKINDS; kind++)
		for (int p = 0; !dlist_is_empty(&reserve->free[kind]); p = (p + 1) % DL_NPARTITIONS)
			dl_give_free(&engine->partitions[p], kind,
						 dlist_pop_head_node(&reserve->free[kind]));
}

/*
 * Bring back a lease, unless one with a greater token is in its way: then its
 * image is stale.  Call this in the descending order of tokens, before anybody
 * else may come.
 */
void
dl_engine_recover(DlEngine *engine, DlReserve *reserve,
				  const DlRecovered *recovered, int64 now, DlEffects *fx)
{
	const DlKey *key = &recovered->key;
	DlPartition *part = partition_of(engine, key->hash);
	DlLock	   *lock = dl_engine_find_lock(engine, key);
	DlLease    *lease;

	if (lock != NULL && dl_engine_conflict(lock, recovered->mode) != NULL)
	{
		dl_image_add_stale(engine, part, recovered,
						   dlist_pop_head_node(&reserve->free[DL_IMAGE]), now);
		return;
	}
	if (lock == NULL)
		lock = create_lock(engine, key, recovered->supply,
						   dlist_pop_head_node(&reserve->free[DL_LOCK]));
	lease = new_lease(part, lock, dlist_pop_head_node(&reserve->free[DL_LEASE]));
	lease->mode = recovered->mode;
	lease->scope = DL_SCOPE_LEASE;
	lease->ttl = recovered->ttl;
	lease->bucket = dl_ttl_bucket(recovered->ttl);
	lease->durable = true;
	dl_image_attach(lease, dlist_pop_head_node(&reserve->free[DL_IMAGE]));
	lease->backend = 0;
	lease->generation = DL_NO_SESSION;
	lease->pid = 0;
	lease->owner = recovered->owner;
	strcpy(lease->holder, recovered->holder);
	pg_atomic_fetch_add_u32(&lock->supply->live[DL_DURABLE][lease->bucket], 1);

	grant(engine, lock, lease, recovered->token, now);
	lease->image->state = DL_IMAGE_KEPT;
	lease->image->place = recovered->place;
	lease->flushed = true;
	lease->state = DL_LIVE;
	/*
	 * Nothing its predecessors wrote is missed by a snapshot of this server, but
	 * by one from before its promotion.
	 */
	lease->told_at = recovered->deadline - recovered->ttl;
	lease->completed = 0;
	lease->granted_at = recovered->granted_at;
	set_deadline(part, lease, recovered->deadline);
	fx->deadline = Min(fx->deadline, lease->deadline);
	/* A lease that may not be used yet is in no bucket where it is looked for. */
	if (recovered->usable)
		dlist_push_head(token_bucket(engine, key->hash, lease->token), &lease->token_link);
	else
		lease->token_link.prev = lease->token_link.next = &lease->token_link;
}
