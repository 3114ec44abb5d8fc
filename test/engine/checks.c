/*-------------------------------------------------------------------------
 *
 * checks.c
 *	  What must hold of the engine after every operation.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

int			nlock_records;

static int64 last_token[NDATABASES];

void
begin_checks(void)
{
	memset(last_token, 0, sizeof(last_token));
}

static bool
is_held(const DlLease *lease)
{
	return lease->state == DL_GRANTED || lease->state == DL_LIVE;
}

static int
count_list(dlist_head *list)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, list)
		n++;
	return n;
}

/* ---- The deadline heap ---- */

static int
rank_of(const DlLease *lease)
{
	return lease == NULL ? 0 : lease->rank;
}

static int
check_subtree(const DlLease *lease, const DlLease *parent)
{
	if (lease == NULL)
		return 0;
	verify(CHECK_HEAP, lease->parent == parent, "wrong parent link");
	verify(CHECK_HEAP, parent == NULL || parent->key <= lease->key,
		   "key less than its parent's");
	verify(CHECK_HEAP, lease->key <= lease->deadline, "key after the deadline");
	verify(CHECK_HEAP, rank_of(lease->left) >= rank_of(lease->right), "leans right");
	verify(CHECK_HEAP, lease->rank == rank_of(lease->right) + 1, "wrong rank");
	verify(CHECK_HEAP, is_held(lease), "not held, but in the heap");
	return 1 + check_subtree(lease->left, lease) + check_subtree(lease->right, lease);
}

/* Returns the number of its members. */
int
check_heap(DlPartition *part)
{
	return check_subtree(part->deadlines, NULL);
}

/* ---- One partition ---- */

/* A lease that commits rely on is in force past its deadline, too. */
static void
check_exclusion(DlLock *lock)
{
	int			nexclusive = 0;
	int			nshared = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &lock->leases)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

		if (lease->deadline <= model.now && lease->state != DL_PINNED && lease->npins == 0)
			continue;
		if (lease->mode == DL_EXCLUSIVE)
			nexclusive++;
		else
			nshared++;
	}
	verify(CHECK_LIMIT, lock->limit == 0 || nexclusive + nshared <= lock->limit,
		   "lock %.8s has %d permits of %d", lock->key.name, nexclusive + nshared, lock->limit);
	verify(CHECK_EXCLUSION, nexclusive <= 1 && (nexclusive == 0 || nshared == 0),
		   "lock %.8s has %d exclusive and %d shared leases", lock->key.name,
		   nexclusive, nshared);
}

static void
check_claim(const Claim *claim)
{
	DlLease    *record = claim->record;
	int			npins = 0;
	dlist_iter	iter;
	bool		linked = claim->state != DL_LAPSED && claim->state != DL_DROPPED;

	verify(CHECK_MODEL, record->state == claim->state && record->serial == claim->serial,
		   "the request of backend %d for %.8s is in state %d, not %d",
		   claim->backend, claim->lock->key.name, record->state, claim->state);
	verify(CHECK_MODEL, record->mode == claim->mode && record->scope == claim->scope &&
		   record->ttl == claim->ttl && record->backend == claim->backend &&
		   record->renewals == claim->renewals &&
		   record->nreleasing == claim->nreleasing &&
		   record->durable == claim->durable && record->bucket == claim->bucket &&
		   record->nparts == claim->nparts && record->nth == claim->nth && record->owner == claim->owner &&
		   strcmp(record->request_id, claim->request_id) == 0,
		   "record of backend %d differs from the model", claim->backend);
	verify(CHECK_MODEL, (record->lock != NULL) == linked, "wrong lock link");
	verify(CHECK_IMAGES, record->image == (claim->image == NULL ? NULL : claim->image->record) &&
		   record->flushed == claim->flushed, "another image than the model's");
	if (claim->state == DL_PINNED || claim->state == DL_OVER)
		verify(CHECK_MODEL, record->cause == claim->cause && record->token == claim->token,
			   "ended by %d, should be %d", record->cause, claim->cause);
	dlist_foreach(iter, &record->guards)
	{
		DlGuard    *guard = dlist_container(DlGuard, link, iter.cur);

		verify(CHECK_GUARDS, guard->lease == record, "a guard of another lease");
		npins += guard->pinned;
	}
	verify(CHECK_GUARDS, count_list(&record->guards) == model_guards(claim),
		   "%d guards, should be %d", count_list(&record->guards), model_guards(claim));
	verify(CHECK_GUARDS, npins == model_pins(claim) && record->npins == npins,
		   "%d pins, counted %d, should be %d", npins, record->npins, model_pins(claim));
	if (claim->state == DL_PINNED)
		verify(CHECK_PINNED, npins > 0 && record->deadline == DL_FOREVER &&
			   dl_engine_pinning(record)->pinned,
			   "an ended lease keeps its place for %d commits", npins);
	if (is_held(record))
	{
		verify(CHECK_TOKENS, record->token == claim->token,
			   "token " INT64_FORMAT ", should be " INT64_FORMAT, record->token, claim->token);
		verify(CHECK_MODEL, record->deadline == claim->deadline,
			   "deadline " INT64_FORMAT ", should be " INT64_FORMAT, record->deadline, claim->deadline);
		verify(CHECK_HEAP, claim->deadline == DL_FOREVER || record->rank > 0,
			   "a lease with a deadline is not in the heap");
	}
	else
		verify(CHECK_HEAP, record->rank == 0, "not held, but in the heap");
	verify(CHECK_REQUEST_ID, claim->state != DL_LIVE || record->open == (claim->undoer >= 0),
		   "token " INT64_FORMAT " is of a transaction that is %sopen", record->token,
		   record->open ? "" : "not ");
	if (claim->state == DL_WAITING)
		verify(CHECK_PARTS, record->ready == claim->ready,
			   "the request of backend %d for %.8s is %sready", claim->backend,
			   claim->lock->key.name, record->ready ? "" : "not ");
	if (claim->state == DL_WAITING)
		verify(CHECK_MODEL, record->token == 0 && record->since == claim->since,
			   "waiting record differs from the model");
}

static void
check_list(dlist_head *list, Claim *const *claims, int n, const char *what)
{
	int			i = 0;
	dlist_iter	iter;

	dlist_foreach(iter, list)
	{
		verify(CHECK_MODEL, i < n &&
			   dlist_container(DlLease, lock_link, iter.cur) == claims[i]->record,
			   "%s: another order than the model's at %d of %d", what, i, n);
		i++;
	}
	verify(CHECK_MODEL, i == n, "%s: %d members, should be %d", what, i, n);
}

static int
check_lock(DlLock *lock)
{
	for (int i = 0; i < model.nlocks; i++)
	{
		ModelLock  *expected = &model.locks[i];
		int			nreleasing = 0;

		if (lock->key.database != expected->key.database ||
			lock->key.extension != expected->key.extension ||
			strcmp(lock->key.name, expected->key.name) != 0)
			continue;
		verify(CHECK_RECORDS, model_is_in_use(expected), "unused lock %.8s not dropped", lock->key.name);
		check_list(&lock->leases, expected->holders, expected->nholders, "leases");
		check_list(&lock->queue, expected->queue, expected->nqueue, "queue");
		for (int h = 0; h < expected->nholders; h++)
			nreleasing += expected->holders[h]->nreleasing;
		verify(CHECK_MODEL, lock->nleases == expected->nholders &&
			   lock->nwaiting == expected->nqueue && lock->nover == expected->nover &&
			   lock->nreleasing == nreleasing, "counts of lock %.8s are wrong", lock->key.name);
		verify(CHECK_LIMIT, expected->nholders + expected->nqueue == 0 ||
			   lock->limit == expected->limit, "lock %.8s has limit %d, should be %d",
			   lock->key.name, lock->limit, expected->limit);
		verify(CHECK_WATCH, count_list(&lock->watchers) == expected->nwatchers,
			   "lock %.8s has %d watchers, should be %d", lock->key.name,
			   count_list(&lock->watchers), expected->nwatchers);
		verify(CHECK_BARRIER, lock->barrier == expected->barrier &&
			   lock->raised == expected->raised,
			   "barrier of lock %.8s is %d, should be %d", lock->key.name,
			   lock->barrier, expected->barrier);
		verify(CHECK_MODEL, dl_engine_find_lock(engine, &expected->key) == lock,
			   "lock %.8s is not found", lock->key.name);
		verify(CHECK_MODEL, lock->supply == &supplies[expected->database],
			   "lock %.8s draws from another database's supply", lock->key.name);
		return 1;
	}
	fail(CHECK_RECORDS, "unknown lock %.8s", lock->key.name);
}

/* ---- Images ---- */

static void
check_image(const ModelImage *image)
{
	const DlImage *record = image->record;

	verify(CHECK_IMAGES, record->state == image->state && record->linked == image->linked &&
		   record->lease == (image->claim == NULL ? NULL : image->claim->record),
		   "an image is in state %d, should be %d", record->state, image->state);
	if (image->linked)
		verify(CHECK_IMAGES, record->token == image->token && record->ttl == image->ttl &&
			   record->database == image->lock->key.database &&
			   record->extension == image->lock->key.extension &&
			   record->hash == image->lock->key.hash,
			   "the image of token " INT64_FORMAT " differs from the model", image->token);
	if (image->state != DL_IMAGE_UNWRITTEN)
		verify(CHECK_IMAGES, record->place.block == image->place.block &&
			   record->place.offset == image->place.offset,
			   "the image of token " INT64_FORMAT " is said to be elsewhere", image->token);
	if (image->state == DL_IMAGE_STALE || image->state == DL_IMAGE_CONDEMNED)
		verify(CHECK_IMAGES, record->stale_since == image->stale_since,
			   "the image of token " INT64_FORMAT " is stale since another time", image->token);
}

static void
check_images(int partition)
{
	DlPartition *part = &engine->partitions[partition];
	int			nlinked = 0;
	int			nmembers = 0;
	int			nstale = 0;
	dlist_iter	iter;

	for (int i = 0; i < MAX_IMAGES; i++)
	{
		ModelImage *image = &model.images[i];

		if (image->state == DL_IMAGE_FREE || model_partition(image->lock) != partition)
			continue;
		check_image(image);
		nlinked += image->linked;
	}
	verify(CHECK_IMAGES, part->nimages == nlinked, "%d images are linked, should be %d",
		   part->nimages, nlinked);
	for (uint32 b = 0; nlinked > 0 && b < engine->nbuckets; b++)
		dlist_foreach(iter, &part->images[b])
		{
			DlImage    *record = dlist_container(DlImage, link, iter.cur);

			verify(CHECK_IMAGES, record->linked && dl_partition_of(record->hash) == partition &&
				   ((record->hash / DL_NPARTITIONS) & (engine->nbuckets - 1)) == b,
				   "an image is in a bucket where it does not belong");
			nmembers++;
		}
	verify(CHECK_IMAGES, nmembers == nlinked, "%d images in buckets, should be %d",
		   nmembers, nlinked);
	dlist_foreach(iter, &part->stale)
	{
		verify(CHECK_IMAGES, nstale < model.nstale[partition] &&
			   dlist_container(DlImage, stale_link, iter.cur) ==
			   model.stale[partition][nstale]->record,
			   "stale images are in another order than the model's at %d", nstale);
		nstale++;
	}
	verify(CHECK_IMAGES, nstale == model.nstale[partition] && part->nstale == nstale,
		   "%d stale images, counted %d, should be %d", nstale, part->nstale,
		   model.nstale[partition]);
}

/*
 * The counts by time to live: of what is granted or live, and of nothing else.
 */
static void
check_buckets(void)
{
	int			live[NDATABASES][DL_NKEPT][DL_TTL_BUCKETS] = {0};

	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *claim = &model.claims[i];

		if ((claim->state != DL_GRANTED && claim->state != DL_LIVE) ||
			claim->scope != DL_SCOPE_LEASE)
			continue;
		verify(CHECK_BUCKETS, claim->bucket >= 0 && claim->bucket < DL_TTL_BUCKETS &&
			   dl_bucket_ttl(claim->bucket) >= claim->ttl,
			   "a lease of " INT64_FORMAT " us counts in bucket %d", claim->ttl, claim->bucket);
		live[claim->lock->database][claim->durable ? DL_DURABLE : DL_VOLATILE][claim->bucket]++;
	}
	for (int d = 0; d < NDATABASES; d++)
		for (int kept = 0; kept < DL_NKEPT; kept++)
			for (int b = 0; b < DL_TTL_BUCKETS; b++)
				verify(CHECK_BUCKETS, pg_atomic_read_u32(&supplies[d].live[kept][b]) ==
					   live[d][kept][b],
					   "%d leases of database %d count in bucket %d, should be %d",
					   (int) pg_atomic_read_u32(&supplies[d].live[kept][b]), d, b,
					   live[d][kept][b]);
}

/* ---- Partitions ---- */

static void
check_counters(int partition)
{
	const DlCounters *have = &engine->partitions[partition].counters;
	const DlCounters *want = &model.counters[partition];

#define CHECK_COUNTER(field) \
	verify(CHECK_COUNTERS, have->field == want->field, "counter " #field " is " \
		   INT64_FORMAT ", should be " INT64_FORMAT, have->field, want->field)

	CHECK_COUNTER(acquired);
	CHECK_COUNTER(contended);
	CHECK_COUNTER(waited);
	CHECK_COUNTER(timeouts);
	CHECK_COUNTER(renewed);
	CHECK_COUNTER(released);
	CHECK_COUNTER(undone);
	CHECK_COUNTER(expired);
	CHECK_COUNTER(forced);
	CHECK_COUNTER(lapsed);
	CHECK_COUNTER(guards);
	CHECK_COUNTER(commits_refused);
	CHECK_COUNTER(swept);
}

void
check_partition(int partition)
{
	DlPartition *part = &engine->partitions[partition];
	int			nlocks = 0;
	int			ntokens = 0;
	int			nused = 0;
	int			nlive = 0;
	int			npins = 0;
	int			nlocks_expected = 0;
	int64		earliest = DL_FOREVER;
	int			nheap = 0;

	for (uint32 i = 0; i < engine->nbuckets; i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, &part->locks[i])
			check_exclusion(dlist_container(DlLock, bucket_link, iter.cur));
		ntokens += count_list(&part->tokens[i]);
	}
	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *claim = &model.claims[i];

		if (claim->state == DL_FREE || model_partition(claim->lock) != partition)
			continue;
		check_claim(claim);
		nused++;
		nlive += claim->state == DL_LIVE && claim->usable;
		npins += model_pins(claim);
		nheap += claim->record->rank > 0;
		if (is_held(claim->record))
			earliest = Min(earliest, claim->deadline);
	}
	for (uint32 i = 0; i < engine->nbuckets; i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, &part->locks[i])
			nlocks += check_lock(dlist_container(DlLock, bucket_link, iter.cur));
	}
	for (int i = 0; i < model.nlocks; i++)
		nlocks_expected += model_partition(&model.locks[i]) == partition &&
			model_is_in_use(&model.locks[i]);
	check_list(&part->over, model.over[partition], model.nover[partition], "ended leases");

	verify(CHECK_RECORDS, nlocks == nlocks_expected, "%d locks, should be %d",
		   nlocks, nlocks_expected);
	verify(CHECK_RECORDS, ntokens == nlive, "%d leases to be found by token, should be %d",
		   ntokens, nlive);
	verify(CHECK_RECORDS, part->nleases == nused, "%d records in use, should be %d",
		   part->nleases, nused);
	verify(CHECK_GUARDS, part->npins == npins, "%d commits in flight, should be %d",
		   part->npins, npins);
	verify(CHECK_HEAP, check_heap(part) == nheap, "members of the heap are not in it");
	verify(CHECK_HEAP, dl_engine_next_deadline(engine, partition) <= earliest,
		   "a lease expires before the next deadline");
	check_images(partition);
	check_counters(partition);
}

/* ---- Across partitions ---- */

void
check_all_partitions(void)
{
	for (int p = 0; p < DL_NPARTITIONS; p++)
		check_partition(p);
	check_buckets();

	/* Every member of a backend's lists knows, and is where it says. */
	for (int b = 0; b < model.nbackends; b++)
		for (int p = 0; p < DL_NPARTITIONS; p++)
		{
			dlist_iter	iter;

			dlist_foreach(iter, &engine->backends[b * DL_NPARTITIONS + p])
			{
				DlLease    *lease = dlist_container(DlLease, backend_link, iter.cur);

				verify(CHECK_RECORDS, lease->in_backend && lease->backend == b &&
					   (lease->lock == NULL || dl_partition_of(lease->lock->key.hash) == p),
					   "stray record in the list of backend %d", b);
			}
		}
	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *claim = &model.claims[i];
		bool		expected = claim->state != DL_OVER && claim->state != DL_PINNED &&
			(claim->state != DL_LIVE || claim->scope != DL_SCOPE_LEASE);

		verify(CHECK_RECORDS, claim->state == DL_FREE || claim->record->in_backend == expected,
			   "a record %s its backend", expected ? "does not end with" : "still ends with");
	}
}

int
count_free(DlKind kind)
{
	int			n = 0;

	for (int p = 0; p < DL_NPARTITIONS; p++)
		n += count_list(&engine->partitions[p].free[kind]);
	return n;
}

void
check_free_records(void)
{
	int			nleases = count_free(DL_LEASE);
	int			nlocks = count_free(DL_LOCK);
	int			nguards = count_free(DL_GUARD);
	int			nimages = count_free(DL_IMAGE);
	int			nlocks_used = 0;
	int			nguards_used = 0;

	for (int i = 0; i < model.nlocks; i++)
		nlocks_used += model_is_in_use(&model.locks[i]);
	for (int i = 0; i < MAX_GUARDS; i++)
	{
		Guard	   *guard = &model.guards[i];

		if (guard->record == NULL)
			continue;
		nguards_used++;
		verify(CHECK_GUARDS, guard->record->pid == guard->pid &&
			   guard->record->pinned == guard->pinned,
			   "guard of process %d differs from the model", guard->pid);
		verify(CHECK_STALE, guard->record->lease == (guard->claim == NULL ? NULL : guard->claim->record),
			   "the guard of process %d %s", guard->pid, guard->claim == NULL ?
			   "still has its lease" : "has lost its lease");
	}
	for (int i = 0; i < MAX_CLAIMS; i++)
		verify(CHECK_RECORDS, model.claims[i].state != DL_FREE ||
			   model.claims[i].record == NULL ||
			   model.claims[i].record->serial != model.claims[i].serial,
			   "a freed record kept its serial");
	verify(CHECK_RECORDS, nleases + model_used() == model.max_leases,
		   "%d lease records free and %d in use of %d", nleases, model_used(), model.max_leases);
	verify(CHECK_RECORDS, nlocks + nlocks_used == nlock_records,
		   "%d lock records free and %d in use of %d", nlocks, nlocks_used, nlock_records);
	verify(CHECK_RECORDS, nimages + model_images_used() == 2 * model.max_leases,
		   "%d image records free and %d in use", nimages, model_images_used());
	verify(CHECK_RECORDS, nguards + nguards_used == Max(model.max_leases, model.nbackends),
		   "%d guard records free and %d in use", nguards, nguards_used);
	verify(CHECK_BARRIER, pg_atomic_read_u64(&engine->barriers_forgotten) == model.forgotten &&
		   pg_atomic_read_u64(&engine->barriers_settled) == model.settled,
		   "%d barriers forgotten, should be %d",
		   (int) pg_atomic_read_u64(&engine->barriers_forgotten), (int) model.forgotten);
	for (int d = 0; d < NDATABASES; d++)
		verify(CHECK_TOKENS, pg_atomic_read_u64(&supplies[d].next) == model.next_token[d],
			   "the next token of database %d should be " INT64_FORMAT, d, model.next_token[d]);
}

static int
by_token(const void *a, const void *b)
{
	int64		x = (*(Claim *const *) a)->record->token;
	int64		y = (*(Claim *const *) b)->record->token;

	return (x > y) - (x < y);
}

/* Whom a commit in flight or a prepared transaction keeps from the lock. */
static void
check_transactions(const Claim *claim)
{
	const ModelLock *lock = claim->lock;

	for (int i = 0; i < MAX_GUARDS; i++)
	{
		const Guard *guard = &model.guards[i];

		verify(CHECK_PINNED, guard->record == NULL || !guard->pinned || guard->lock != lock ||
			   (claim->mode == DL_SHARED && guard->mode == DL_SHARED &&
				claim->limit == guard->limit),
			   "backend %d was granted %.8s while process %d commits",
			   claim->backend, lock->key.name, guard->pid);
	}
	verify(CHECK_BARRIER, lock->nprepared[DL_EXCLUSIVE] == 0 &&
		   (claim->mode == DL_SHARED || lock->nprepared[DL_SHARED] == 0),
		   "backend %d was granted %.8s in front of a prepared transaction",
		   claim->backend, lock->key.name);
}

/*
 * A claim was granted: nobody waits ahead of it, but for parts of requests that
 * wait for other locks, and then there is room for all.
 */
static void
check_order(const Claim *granted)
{
	const ModelLock *lock = granted->lock;
	int			nahead = 0;

	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		const Claim *claim = &model.claims[i];

		if (claim->state == DL_FREE || claim->lock != lock || claim == granted ||
			claim->record->serial != claim->serial || claim->record->state != DL_WAITING ||
			claim->arrival > granted->arrival)
			continue;
		nahead++;
		verify(CHECK_ORDER, claim->nparts > 1 && claim->mode == DL_SHARED &&
			   granted->mode == DL_SHARED && !claim->bridging,
			   "backend %d waits for %.8s, and a later request was granted",
			   claim->backend, lock->key.name);
	}
	verify(CHECK_ORDER, nahead == 0 || granted->limit == 0 || lock->nholders + nahead <= granted->limit,
		   "%d wait for %.8s who have no room beside a later request", nahead, lock->key.name);
}

/*
 * What the engine granted since the last call, in the order of the tokens:
 * each greater than all before, but for those of one request, and each lock's
 * requests in their order.  None of them to a lock that a transaction keeps from
 * it.
 */
void
check_grants(void)
{
	Claim	   *granted[MAX_CLAIMS];
	int			n = 0;

	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *claim = &model.claims[i];

		if (claim->state != DL_FREE && !claim->seen_granted &&
			claim->record->serial == claim->serial && is_held(claim->record))
			granted[n++] = claim;
	}
	qsort(granted, n, sizeof(Claim *), by_token);
	for (int i = 0; i < n; i++)
	{
		Claim	   *claim = granted[i];
		ModelLock  *lock = claim->lock;
		int64		token = claim->record->token;

		claim->seen_granted = true;
		verify(CHECK_TOKENS, (token > last_token[lock->database] ||
							  (i > 0 && token == granted[i - 1]->record->token &&
							   claim->backend == granted[i - 1]->backend &&
							   lock != granted[i - 1]->lock)) &&
			   token <= model.limit[lock->database],
			   "token " INT64_FORMAT " of backend %d, after " INT64_FORMAT, token, claim->backend, last_token[lock->database]);
		last_token[lock->database] = token;
		check_order(claim);
		check_transactions(claim);
	}
}

/* Is the part newly ready, or right behind one that is? */
static bool
is_news_of_ready(const DlLease *record, bool was_ready)
{
	return record->ready && !was_ready;
}

/* Of those who watch its lock: it looks at the deadline. */
static bool
is_first_watcher(const Session *session)
{
	return session->watched->nwatchers > 0 && session->watched->watchers[0] == session - sessions;
}

/* Has the session a reason to come? */
static bool
has_news(const Session *session)
{
	if (session->watched != NULL)
		return session->watched->news || engine->watchers[session - sessions].lock == NULL ||
			(is_first_watcher(session) && !session->first_watcher);
	if (session->claims[0] == NULL)
		return false;
	if (is_replaced(session))
		return true;
	for (int i = 0; i < session->request.nkeys; i++)
	{
		const DlLease *record = session->records[i];

		if (record->state != DL_WAITING || record->timer < session->was_timer[i] ||
			is_news_of_ready(record, session->was_ready[i]))
			return true;
	}
	return false;
}

/*
 * Whoever was woken, but for the backend that acts, has something to see: news
 * of its request, or an earlier timer.
 */
void
check_wakes(int actor)
{
	for (int b = 0; b < model.nbackends; b++)
		verify(CHECK_FEW_WAKES, !sessions[b].just_woken || b == actor || has_news(&sessions[b]),
			   "backend %d was woken for nothing, watching %d, waiting %d", b,
			   sessions[b].watched != NULL, sessions[b].claims[0] != NULL);
}

/* A watcher is awake once the newest token is another, and at its deadline. */
static void
check_watcher(const Session *session)
{
	const ModelLock *lock = session->watched;
	int64		newest = 0;
	int64		deadline = DL_FOREVER;

	if (session->woken)
		return;
	verify(CHECK_WATCH, engine->watchers[session - sessions].lock != NULL,
		   "backend %d was not woken when what it watches was removed", (int) (session - sessions));
	for (int i = 0; i < lock->nholders; i++)
	{
		const DlLease *record = lock->holders[i]->record;

		if (record->state == DL_LIVE && record->token > newest)
		{
			newest = record->token;
			deadline = record->deadline;
		}
	}
	verify(CHECK_WATCH, newest == session->seen, "backend %d was not woken for token " INT64_FORMAT,
		   (int) (session - sessions), newest);
	if (deadline < DL_FOREVER)
		verify(CHECK_WATCH, session->sleep_until <=
			   deadline + (is_first_watcher(session) ? 0 : DL_FALLBACK_USECS),
			   "backend %d watches until long after the lease expires", (int) (session - sessions));
}

/* Is the first in this queue who is not ready in front of a barrier, and of nothing else? */
static bool
is_barred_only(const Claim *claim)
{
	const ModelLock *lock = claim->lock;
	int			nahead = 0;

	while (lock->queue[nahead]->record->ready)
		if (lock->queue[nahead++]->mode == DL_EXCLUSIVE)
			return false;
	return lock->queue[nahead] == claim && model.opens_at[lock->database] <= model.now &&
		model_has_room(lock, claim->mode, nahead) &&
		(model_is_barred(lock, claim->mode) || claim->bridging);
}

/* One who could have all of its locks, if it came. */
static void
check_waiting(const Session *session, bool awake)
{
	int			n = session->request.nkeys;
	int			nready = 0;

	for (int i = 0; i < n; i++)
	{
		DlLease    *lease = session->records[i];

		if (lease->state != DL_WAITING)
			verify(CHECK_WAKES, awake, "backend %d was not woken in state %d",
				   (int) (session - sessions), lease->state);
		else
		{
			verify(CHECK_WAKES, awake || session->sleep_until <= lease->timer,
				   "backend %d was not woken when its timer became earlier",
				   (int) (session - sessions));
			nready += lease->ready || is_barred_only(session->claims[i]);
			/* It may have to grant what that one does not come for. */
			verify(CHECK_WAKES, awake || session->passing || lease->ready ||
				   dl_engine_ready_ahead(lease) < 0 ||
				   Min(session->sleep_until, session->help_at) < DL_FOREVER,
				   "backend %d never looks for the one ahead of it", (int) (session - sessions));
		}
	}
	verify(CHECK_PARTS, awake || session->passing || session->sleep_until <= model.now || n == 1 || nready < n,
		   "backend %d sleeps, and could have all of its locks", (int) (session - sessions));
}

/* When the one at this place of the queue has to look at the latest. */
static int64
latest_look(const ModelLock *lock, int place)
{
	const Claim *claim = lock->queue[place];
	const Claim *conflict;
	int			nahead = 0;
	int64		latest;
	int64		ahead;

	while (nahead < place && lock->queue[nahead]->record->ready &&
		   lock->queue[nahead]->mode == DL_SHARED)
		nahead++;
	if (claim->record->ready)
		return DL_FOREVER;
	if (nahead == place)
	{
		if (claim->record->passing && model_has_room(lock, claim->mode, nahead))
			return DL_FOREVER;
		if (model_has_room(lock, claim->mode, nahead))
			latest = model.now;
		else
		{
			conflict = model_in_the_way(lock);
			latest = conflict == NULL ? DL_FOREVER : conflict->deadline;
		}
		latest = Max(latest, model.opens_at[lock->database]);
		return nahead > 0 ? Min(latest, model.now + DL_FALLBACK_USECS) : latest;
	}
	if (lock->queue[place - 1]->record->ready)
		return model.now + DL_FALLBACK_USECS;
	ahead = lock->queue[place - 1]->record->timer;
	return ahead == DL_FOREVER ? DL_FOREVER : Max(ahead, model.now) + DL_FALLBACK_USECS;
}

/*
 * Nobody sleeps too long: a session sleeps until the timer it last saw unless
 * woken, and that timer must do.
 */
void
check_sessions(void)
{
	for (int b = 0; b < model.nbackends; b++)
	{
		Session    *session = &sessions[b];
		bool		awake = session->woken || session->reserving || is_storing(b);

		if (session->watched != NULL)
			check_watcher(session);
		else if (session->claims[0] == NULL)
			continue;
		else if (is_replaced(session))
			verify(CHECK_REQUEST_ID, awake, "backend %d does not know that it was replaced", b);
		else
			check_waiting(session, awake);
	}
	for (int i = 0; i < model.nlocks; i++)
	{
		ModelLock  *lock = &model.locks[i];

		for (int q = 0; q < lock->nqueue; q++)
			verify(CHECK_WAKES, lock->queue[q]->record->timer <= latest_look(lock, q),
				   "backend %d, %d in the queue of %.8s, looks at " INT64_FORMAT
				   ", should look at " INT64_FORMAT, lock->queue[q]->backend, q, lock->key.name,
				   lock->queue[q]->record->timer, latest_look(lock, q));
	}
}

/*
 * Since when could the claim at this place of the queue have the lock?  Those
 * ahead of it are ready.  DL_FOREVER: it could not.
 */
static int64
idle_since(const ModelLock *lock, int place)
{
	const Claim *claim = lock->queue[place];
	int64		since = model.opens_at[lock->database];

	if (!model_has_room(lock, claim->mode, place))
	{
		const Claim *conflict = model_in_the_way(lock);

		if (conflict == NULL)
			return DL_FOREVER;
		since = Max(since, conflict->deadline);
		for (int h = 0; h < lock->nholders && lock->limit == 0; h++)
			since = Max(since, lock->holders[h]->deadline);
		if (place > 0 && (lock->limit == 0 ? claim->mode == DL_EXCLUSIVE : place >= lock->limit))
			return DL_FOREVER;
	}
	for (int q = 0; q < place; q++)
		if (lock->queue[q]->mode == DL_EXCLUSIVE)
			return DL_FOREVER;
	/* To pass, one of several parts waits until the others are ready. */
	if (claim->bridging)
		return DL_FOREVER;
	if (model_is_barred(lock, claim->mode))
		since = claim->nparts == 1 && model_can_pass(lock, claim->mode) ?
			Max(since, lock->tag_freed_at) : DL_FOREVER;
	return since;
}

/*
 * For runs in which every session that is not frozen comes when it should: no
 * lock stays idle while someone waits who could have it.  Only behind frozen
 * sessions may that last, for one DL_FALLBACK_USECS each.
 *
 * A lock is not idle during a grace, while a commit in flight keeps the head
 * from it, or the tag of a prepared transaction keeps the head from passing its
 * barrier.  Nobody makes up for a head that has stopped while it waits for that
 * tag.  Nor is a lock idle for who stands behind a request that waits for other
 * locks, as far as that leaves no room.
 */
void
check_takeover(void)
{
	for (int i = 0; i < model.nlocks; i++)
	{
		ModelLock  *lock = &model.locks[i];
		int			first = 0;
		int64		since;

		while (first < lock->nqueue && lock->queue[first]->ready)
			first++;
		since = first < lock->nqueue ? idle_since(lock, first) : DL_FOREVER;
		if (since > model.now)
		{
			lock->idle_since = 0;
			continue;
		}
		if (lock->idle_since == 0)
			lock->idle_since = since == 0 ? model.now : since;
		since = Max(lock->idle_since, lock->settled_at);
		for (int q = first; q < lock->nqueue; q++)
		{
			Claim	   *claim = lock->queue[q];

			if (sessions[claim->backend].frozen)
			{
				if (sessions[claim->backend].passing)
					break;
				continue;
			}
			verify(CHECK_TAKEOVER, q > first, "lock %.8s expired, and backend %d still waits for it",
				   lock->key.name, claim->backend);
			verify(CHECK_TAKEOVER, model.now - since <= (q - first) * DL_FALLBACK_USECS,
				   "lock %.8s stays idle behind a frozen session, and backend %d does not look",
				   lock->key.name, claim->backend);
		}
	}
}
