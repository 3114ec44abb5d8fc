/*-------------------------------------------------------------------------
 *
 * crash.c
 *	  A crash of the server, and the first use of each database afterwards.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

/* Leases that must be there when their database is used again. */
typedef struct Owed
{
	ModelLock  *lock;
	int64		token;
	int64		ttl;
} Owed;

static Owed owed[MAX_CLAIMS];
static int	nowed;

void
begin_owed(void)
{
	nowed = 0;
}

/* The extension, or with an invalid "extension" the whole database, is dropped. */
void
forget_owed(Oid database, Oid extension)
{
	int			n = 0;

	for (int i = 0; i < nowed; i++)
	{
		const DlKey *key = &owed[i].lock->key;

		if (key->database != database ||
			(OidIsValid(extension) && key->extension != extension))
			owed[n++] = owed[i];
	}
	nowed = n;
}

/*
 * The server crashes and is started again.  What it keeps is on disk, and the
 * locks of prepared transactions: it must look for them if there are any.
 */
void
crash(bool barriers)
{
	begin_operation("crash", 0, 0);
	events.crashes++;
	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *claim = &model.claims[i];

		if (claim->state != DL_LIVE || !claim->durable || claim->deadline <= model.now)
			continue;
		verify(CHECK_DURABLE, nowed < MAX_CLAIMS, "more leases than records for them");
		owed[nowed].lock = claim->lock;
		owed[nowed].token = claim->token;
		owed[nowed++].ttl = claim->ttl;
	}
	disk_crash();
	begin_jobs();

	memset(model.claims, 0, sizeof(model.claims));
	memset(model.images, 0, sizeof(model.images));
	memset(model.guards, 0, sizeof(model.guards));
	memset(model.counters, 0, sizeof(model.counters));
	memset(model.nover, 0, sizeof(model.nover));
	memset(model.nstale, 0, sizeof(model.nstale));
	memset(sessions, 0, sizeof(sessions));
	for (int i = 0; i < model.nlocks; i++)
	{
		ModelLock  *lock = &model.locks[i];

		lock->nholders = lock->nqueue = lock->nover = lock->nwatchers = 0;
		lock->barrier = DL_NO_BARRIER;
		lock->raised = false;
		for (DlMode mode = 0; mode < NMODES; mode++)
		{
			barriers = barriers || lock->nprepared[mode] > 0;
			lock->nheld[mode] = lock->nprepared[mode];
			lock->npassing[mode] = 0;
		}
		lock->tag_freed_at = lock->settled_at = model.now;
		lock->idle_since = 0;
	}
	for (int d = 0; d < NDATABASES; d++)
	{
		model.attached[d] = false;
		model.next_token[d] += random_below(3);
		model.limit[d] = Max(model.limit[d], model.next_token[d] - 1);
	}
	open_engine(model.max_leases, model.nbackends, barriers);
	check_all_partitions();
	check_free_records();
}

/* ---- Bringing back ---- */

static int
by_falling_token(const void *a, const void *b)
{
	int64		x = ((const DlRecovered *) a)->token;
	int64		y = ((const DlRecovered *) b)->token;

	return (x < y) - (x > y);
}

/* All that is on disk in this database. */
static int
read_images(int database, int64 since, bool usable, DlRecovered *recovered)
{
	int			n = 0;

	for (int t = 0; t < MAX_TABLES; t++)
		for (int p = 0; p < tables[t].npages; p++)
			for (int s = 0; s < SLOTS_PER_PAGE; s++)
			{
				const DiskImage *image = &tables[t].pages[p].slots[s];
				DlRecovered *r = &recovered[n];

				if (image->token == 0 || image->lock->database != database)
					continue;
				verify(CHECK_DISK_SIZE, n < MAX_IMAGES, "more images on disk than records");
				memset(r, 0, sizeof(DlRecovered));
				r->key = image->lock->key;
				r->supply = &supplies[database];
				r->place.block = p;
				r->place.offset = s;
				r->token = image->token;
				r->ttl = image->ttl;
				r->deadline = since + image->ttl;
				r->granted_at = image->token;
				r->mode = image->mode;
				r->owner = image->owner;
				r->limit = image->limit;
				r->nparts = image->nparts;
				r->nth = image->nth;
				strcpy(r->request_id, image->request_id);
				r->id_hash = id_hash_of(image->request_id);
				r->usable = usable;
				snprintf(r->holder, sizeof(r->holder), "holder of " INT64_FORMAT, image->token);
				n++;
			}
	return n;
}

static ModelLock *
lock_of_image(const DlRecovered *recovered)
{
	for (int i = 0;; i++)
		if (dl_same_key(&model.locks[i].key, &recovered->key))
			return &model.locks[i];
}

/* Of what the engine brought back, as it says itself. */
static DlLease *
find_recovered(const DlRecovered *recovered)
{
	DlLock	   *lock = dl_engine_find_lock(engine, &recovered->key);
	dlist_iter	iter;

	if (lock == NULL)
		return NULL;
	dlist_foreach(iter, &lock->leases)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

		if (lease->token == recovered->token)
			return lease;
	}
	return NULL;
}

static void
recover(DlReserve *reserve, const DlRecovered *recovered, DlEffects *fx)
{
	ModelLock  *lock = lock_of_image(recovered);
	Claim	   *claim = model_recover(lock, recovered);
	ModelImage *image = NULL;
	DlLease    *record;

	for (int i = 0; i < MAX_IMAGES; i++)
		if (model.images[i].state != DL_IMAGE_FREE && model.images[i].lock == lock &&
			model.images[i].token == recovered->token)
			image = &model.images[i];
	verify(CHECK_RECOVERY, image != NULL, "the disk has an image that nobody wrote");
	dl_engine_recover(engine, reserve, recovered, model.now, fx);
	image->record = dl_engine_find_image(engine, &recovered->key, recovered->token, recovered->nth);
	verify(CHECK_RECOVERY, image->record != NULL, "a recovered image is not known");
	record = find_recovered(recovered);
	verify(CHECK_RECOVERY, (record != NULL) == (claim != NULL),
		   "the lease under token " INT64_FORMAT " is %s", recovered->token,
		   record != NULL ? "brought back in spite of its successor" : "not brought back");
	events.recovered += claim != NULL;
	events.superseded += claim == NULL;
	if (claim == NULL)
		return;
	claim->record = record;
	claim->serial = record->serial;
	verify(CHECK_RECOVERY, record->state == DL_LIVE && record->deadline == recovered->deadline &&
		   record->granted_at == recovered->granted_at && record->owner == recovered->owner &&
		   strcmp(record->holder, recovered->holder) == 0 &&
		   strcmp(record->request_id, recovered->request_id) == 0 && record->generation == DL_NO_SESSION &&
		   record->told_at == recovered->deadline - recovered->ttl && record->completed == 0,
		   "the lease under token " INT64_FORMAT " is not as it was", recovered->token);
}

/* Is every lease back that somebody believes he has? */
static void
check_owed(int database)
{
	int			n = 0;

	for (int i = 0; i < nowed; i++)
	{
		Claim	   *claim = NULL;

		if (owed[i].lock->database != database)
		{
			owed[n++] = owed[i];
			continue;
		}
		for (int c = 0; c < MAX_CLAIMS; c++)
			if (model.claims[c].state == DL_LIVE && model.claims[c].lock == owed[i].lock &&
				model.claims[c].token == owed[i].token)
				claim = &model.claims[c];
		verify(CHECK_DURABLE, claim != NULL && claim->record->ttl >= owed[i].ttl,
			   "a crash lost token " INT64_FORMAT " of lock %.8s", owed[i].token,
			   owed[i].lock->key.name);
	}
	nowed = n;
}

/*
 * The first use of a database after a start, its leases living anew since then.
 * Returns false if they do not fit, and then nothing must be left behind.
 */
bool
attach_database(int database, int64 since, bool usable)
{
	static DlRecovered recovered[MAX_IMAGES];
	int			n = read_images(database, since, usable, recovered);
	int			nleases = count_free(DL_LEASE);
	int			nlocks = count_free(DL_LOCK);
	int			nimages = count_free(DL_IMAGE);
	DlEffects	fx = DL_NO_EFFECTS;
	DlReserve	reserve;
	bool		fits;

	begin_operation("attach database, images", database, n);
	fits = dl_engine_reserve(engine, n, &reserve);
	verify(CHECK_RECOVERY, fits == (n <= nleases && n <= nlocks && n <= nimages),
		   "%d leases are %sbrought back with %d records free", n, fits ? "" : "not ", nleases);
	if (!fits)
	{
		events.unfit++;
		events.too_many += n > model.max_leases;
		verify(CHECK_RECOVERY, count_free(DL_LEASE) == nleases &&
			   count_free(DL_LOCK) == nlocks && count_free(DL_IMAGE) == nimages,
			   "records put aside are not given back");
		return false;
	}
	verify(CHECK_RECOVERY, count_free(DL_LEASE) == nleases - n &&
		   count_free(DL_LOCK) == nlocks - n && count_free(DL_IMAGE) == nimages - n,
		   "other records put aside than asked for");
	qsort(recovered, n, sizeof(DlRecovered), by_falling_token);
	for (int i = 0; i < n; i++)
		recover(&reserve, &recovered[i], &fx);
	dl_engine_unreserve(engine, &reserve);
	model.attached[database] = true;
	check_owed(database);
	verify(CHECK_WAKES, fx.nwakes == 0 && fx.deadline == model.earliest,
		   "the worker is told another deadline");
	check_all_partitions();
	check_free_records();
	return true;
}
