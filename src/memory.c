/*-------------------------------------------------------------------------
 *
 * memory.c
 *	  The engine's memory: records, their free lists, and where to find them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "engine_parts.h"

static uint32
bucket_count(int max_leases)
{
	uint32		n = 16;

	while (n * DL_NPARTITIONS < (uint32) max_leases)
		n *= 2;
	return n;
}

/*
 * A lock exists only beside a lease or a watcher, but is freed after its last
 * one: each partition may have one such lock at any moment.
 */
static int
lock_count(int max_leases, int nbackends)
{
	return max_leases + nbackends + DL_NPARTITIONS;
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
		4 * buckets * sizeof(dlist_head) +
		(Size) nbackends * sizeof(DlWatcher) + PG_CACHE_LINE_SIZE +
		(Size) max_leases * CACHELINEALIGN(sizeof(DlLease)) +
		(Size) lock_count(max_leases, nbackends) * CACHELINEALIGN(sizeof(DlLock)) +
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
		part->ids = carve_lists(&memory, engine->nbuckets);
		dlist_init(&part->over);
		dlist_init(&part->stale);
		for (int kind = 0; kind < DL_NKINDS; kind++)
			dlist_init(&part->free[kind]);
		SpinLockInit(&part->mutex);
	}
	engine->watchers = (DlWatcher *) memory;
	memset(engine->watchers, 0, nbackends * sizeof(DlWatcher));
	for (int i = 0; i < nbackends; i++)
		engine->watchers[i].backend = i;
	memory += nbackends * sizeof(DlWatcher);
	memory = (char *) CACHELINEALIGN(memory);
	carve_records(engine, &memory, DL_LEASE, max_leases,
				  CACHELINEALIGN(sizeof(DlLease)), offsetof(DlLease, lock_link));
	carve_records(engine, &memory, DL_LOCK, lock_count(max_leases, nbackends),
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

static inline dlist_head *
lock_bucket(DlEngine *engine, uint32 hash)
{
	uint32		i = (hash / DL_NPARTITIONS) & (engine->nbuckets - 1);

	return &dl_partition_at(engine, hash)->locks[i];
}

/* Where the live lease of a lock with this hash is found by its token. */
dlist_head *
dl_token_bucket(DlEngine *engine, uint32 hash, int64 token)
{
	uint64		mixed = ((uint64) hash ^ (uint64) token) * UINT64CONST(0x9e3779b97f4a7c15);

	return &dl_partition_at(engine, hash)->tokens[(mixed >> 32) & (engine->nbuckets - 1)];
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

/* A lock that nobody has or wants.  Null when the node is. */
DlLock *
dl_lock_create(DlEngine *engine, const DlKey *key, DlSupply *supply, dlist_node *node)
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
	dlist_init(&lock->watchers);
	lock->limit = 0;
	lock->nleases = lock->nwaiting = lock->nover = lock->nreleasing = 0;
	lock->barrier = pg_atomic_read_u64(&engine->barriers_forgotten) ==
		pg_atomic_read_u64(&engine->barriers_settled) ? DL_NO_BARRIER : DL_BARS_ALL;
	lock->raised = false;
	dlist_push_head(lock_bucket(engine, key->hash), &lock->bucket_link);
	return lock;
}

/* The lock is gone afterwards if nothing refers to it. */
void
dl_lock_drop_unused(DlEngine *engine, DlLock *lock)
{
	DlPartition *part = dl_partition_at(engine, lock->key.hash);

	if (lock->nleases > 0 || lock->nwaiting > 0 || lock->nover > 0 ||
		!dlist_is_empty(&lock->watchers))
		return;
	Assert(lock->nreleasing == 0);
	/* What the lock began with has been counted before. */
	if (lock->raised)
		pg_atomic_fetch_add_u64(&engine->barriers_forgotten, 1);
	dlist_delete(&lock->bucket_link);
	dl_give_free(part, DL_LOCK, &lock->bucket_link);
}

/* The lease does not end with its session any more. */
void
dl_backend_leave(DlLease *lease)
{
	if (lease->in_backend)
	{
		dlist_delete(&lease->backend_link);
		lease->in_backend = false;
	}
}

/* The request or lease ends with the session. */
void
dl_backend_join(DlEngine *engine, uint32 hash, DlLease *lease)
{
	dlist_push_tail(dl_engine_of_backend(engine, lease->backend, dl_partition_of(hash)),
					&lease->backend_link);
	lease->in_backend = true;
}

/* A record that is in use, and linked nowhere yet. */
DlLease *
dl_record_create(DlPartition *part, DlLock *lock, dlist_node *node)
{
	DlLease    *lease = dlist_container(DlLease, lock_link, node);

	part->nleases++;
	lease->lock = lock;
	lease->token = 0;
	lease->deadline = DL_FOREVER;
	lease->renewals = 0;
	lease->nreleasing = 0;
	lease->image = NULL;
	lease->flushed = false;
	dlist_init(&lease->guards);
	lease->npins = 0;
	lease->rank = 0;
	lease->in_backend = false;
	lease->passing = lease->bridging = false;
	lease->nparts = 1;
	lease->nth = 0;
	lease->ready = lease->asleep = lease->open = lease->has_id = false;
	return lease;
}

/* The record must be linked nowhere but in its backend's list. */
void
dl_record_free(DlEngine *engine, DlPartition *part, DlLease *lease)
{
	Assert(lease->npins == 0);
	dl_image_abandon(part, lease, 0);
	dl_id_unlink(engine, lease);
	dl_backend_leave(lease);
	lease->state = DL_FREE;
	lease->lock = NULL;
	lease->token = 0;
	lease->serial++;
	part->nleases--;
	dl_give_free(part, DL_LEASE, &lease->lock_link);
}
