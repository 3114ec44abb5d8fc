/*-------------------------------------------------------------------------
 *
 * jobs.c
 *	  Sessions that write images of leases to disk and clear them, step by
 *	  step.
 *
 * A job does what src/store.c does for one session, and lease.c around it: it
 * stores the lease that the session is to be told of and clears what earlier
 * ones have left behind, or stores a longer time to live and then renews, or
 * clears all that is stale.  Between two steps anything may happen that the
 * partition lock, the lock of a page or that of the table do not prevent; and
 * wherever the server might throw, the job may end.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

typedef enum Purpose
{
	ACQUIRE,
	RENEW,
	CLEAN,
} Purpose;

typedef enum Phase
{
	IDLE,
	OPEN_TO_WRITE,
	CHOOSE_SLOT,
	LOCK_SLOT,
	LOCK_VACANT_SLOT,
	PLACE,						/* a page is locked */
	WRITE,						/* likewise */
	FLUSH_WRITTEN,
	LET_GO,
	RENEW_STORED,
	FIND_LEFTOVERS,
	OPEN_TO_CLEAR,
	CLEAR_LEFTOVER,
	FLUSH_CLEARED,
	FORGET_LEFTOVERS,
	OPEN_TO_CLEAN,
	CONDEMN_STALE,
	CLEAR_STALE,
	FLUSH_CLEAN,
} Phase;

/* Copied from an image that the engine knows of. */
typedef struct Leftover
{
	int64		token;
	int			nth;
	DlPlace		place;
} Leftover;

typedef struct Job
{
	Phase		phase;
	Purpose		purpose;
	int			table;
	int			generation;
	bool		open;
	int			part;			/* of a request for several locks */
	ModelLock  *lock;
	DlLease    *lease;
	uint64		serial;
	int64		token;
	int64		ttl;
	bool		kept;			/* the lease had an image already */
	bool		written;
	ModelImage *held[MAX_HELD]; /* that it has condemned */
	int			nheld;
	Leftover	leftovers[MAX_HELD];
	int			nleftovers;
	int			ncleared;
	DlPlace		place;			/* in phases place and write: locked */
	DiskImage	image;			/* to be written there */
	int64		lsn;			/* to be flushed */
	int			partition;		/* that is being cleaned */
} Job;

static Job	jobs[MAX_JOBS];

void
begin_jobs(void)
{
	memset(jobs, 0, sizeof(jobs));
}

bool
is_storing(int job)
{
	return jobs[job].phase != IDLE;
}

static int
number_of(const Job *job)
{
	return job - jobs;
}

static Job *
start_job(int number, Purpose purpose, Phase phase, int table)
{
	Job		   *job = &jobs[number];

	memset(job, 0, sizeof(Job));
	job->purpose = purpose;
	job->phase = phase;
	job->table = table;
	job->generation = tables[table].generation;
	return job;
}

/* ---- What the engine is told ---- */

static void
take_condemned(Job *job, ModelImage *image)
{
	job->held[job->nheld++] = image;
	job->leftovers[0].token = image->token;
	job->leftovers[0].nth = image->nth;
	job->leftovers[0].place = image->place;
}

/*
 * Condemn a stale image of this table in this partition.  One of the key's
 * lock goes first, at least if nobody else is about another; of the others the
 * oldest one.
 */
static bool
condemn_in(Job *job, int partition, const ModelLock *lock)
{
	DlEffects	fx = DL_NO_EFFECTS;
	ModelImage *oldest = NULL;
	int			nleftovers = 0;
	int			nstale = 0;
	DlImage    *record;
	ModelImage *image;
	const DlKey *any = NULL;

	for (int i = 0; i < model.nlocks; i++)
		if (model.locks[i].table == job->table)
			any = &model.locks[i].key;
	Assert(any != NULL);
	for (int i = model.nstale[partition] - 1; i >= 0; i--)
		if (model.stale[partition][i]->lock->table == job->table)
			oldest = model.stale[partition][i];
	for (int i = 0; i < MAX_IMAGES && lock != NULL; i++)
		if (model_is_leftover(&model.images[i], lock))
		{
			nleftovers++;
			nstale += model.images[i].state == DL_IMAGE_STALE;
		}

	begin_operation("condemn for job, in partition", number_of(job), partition);
	record = dl_engine_condemn(engine, partition, any->database, any->extension,
							   lock == NULL ? NULL : &lock->key);
	verify(CHECK_IMAGES, (record != NULL) == (oldest != NULL), "%s to condemn",
		   record != NULL ? "something" : "nothing");
	if (record != NULL)
	{
		image = model_image_of(record);
		verify(CHECK_IMAGES, image != NULL && image->state == DL_IMAGE_STALE &&
			   image->lock->table == job->table, "condemned what is not stale");
		verify(CHECK_IMAGES, (lock != NULL && model_is_leftover(image, lock)) ||
			   (image == oldest && (nstale == 0 || nstale < nleftovers)),
			   "not the stale image to be condemned first");
		model_condemn(image);
		take_condemned(job, image);
		note("condemned token", image->token, 0);
	}
	finish_operation(partition, &fx, -1);
	return record != NULL;
}

static bool
condemn(Job *job)
{
	int			own = model_partition(job->lock);

	for (int i = 0; i < DL_NPARTITIONS; i++)
	{
		int			p = (own + i) % DL_NPARTITIONS;

		if (engine->partitions[p].nstale > 0 &&
			condemn_in(job, p, i == 0 ? job->lock : NULL))
			return true;
	}
	return false;
}

/* Let go of one condemned image.  Is it gone from disk? */
static void
let_go(Job *job, bool gone)
{
	DlEffects	fx = DL_NO_EFFECTS;
	ModelImage *image = job->held[--job->nheld];
	DlImage    *record = image->record;
	int			partition = model_partition(image->lock);

	begin_operation(gone ? "forget token" : "spare token", image->token, image->linked);
	if (gone)
	{
		/* Unless the table is another by now. */
		verify(CHECK_SUPERSEDED, !image->linked || !disk_may_have(job->table, image->token, image->nth),
			   "token " INT64_FORMAT " is forgotten, and may be on disk", image->token);
		model_free_image(image);
		dl_engine_forget(engine, partition, record, true);
	}
	else
	{
		model_spare(image);
		dl_engine_spare(engine, partition, record);
	}
	finish_operation(partition, &fx, -1);
}

/* ---- Pages and tables ---- */

static bool
lock_page(Job *job, DlPlace place)
{
	Page	   *page = &tables[job->table].pages[place.block];

	if (page->locked_by >= 0)
		return false;
	page->locked_by = number_of(job);
	job->place = place;
	return true;
}

static void
unlock_page(Job *job)
{
	tables[job->table].pages[job->place.block].locked_by = -1;
}

static void
close_table(Job *job)
{
	if (job->open)
		tables[job->table].nopen--;
	job->open = false;
}

/* Fails when the table has been dropped. */
static bool
open_table(Job *job)
{
	if (tables[job->table].generation != job->generation)
	{
		fail_job(number_of(job));
		return false;
	}
	tables[job->table].nopen++;
	job->open = true;
	return true;
}

typedef enum Found
{
	LOCKED,						/* its page is */
	NOT_THERE,
	BUSY,						/* a page is locked by another; try again */
} Found;

/*
 * Lock the page of an image.  The place is a hint.  If the image is not there,
 * *lsn is what to flush until it stays so.
 */
static Found
lock_image(Job *job, const Leftover *leftover, int64 *lsn)
{
	DlPlace		place = leftover->place;
	const DiskImage *slot = disk_slot(job->table, place);
	bool		busy = false;

	if ((slot == NULL || !disk_is_of(slot, leftover->token, leftover->nth)) &&
		!disk_find(job->table, leftover->token, leftover->nth, number_of(job), &place, lsn, &busy))
		return busy ? BUSY : NOT_THERE;
	return lock_page(job, place) ? LOCKED : BUSY;
}

/* ---- Steps ---- */

static void store_part(int backend, int part);

/* The job is done, or goes on with the next lock of its request. */
static void
finish_job(Job *job)
{
	int			number = number_of(job);

	job->phase = IDLE;
	if (job->purpose == ACQUIRE)
	{
		Session    *session = &sessions[number];

		if ((job->written || !session->request.durable) && job->part + 1 < session->request.nkeys)
		{
			store_part(number, job->part + 1);
			return;
		}
		session->stored = job->written;
		sessions[number].woken = true;	/* comes to look now */
	}
}

static bool
choose_slot(Job *job)
{
	ModelImage *image;
	Claim	   *claim = model_claim_of(job->lease, job->serial);

	image = claim == NULL ? NULL : claim->image;
	job->kept = image != NULL && image->state == DL_IMAGE_KEPT;
	if (job->kept)
	{
		job->leftovers[0].token = image->token;
		job->leftovers[0].nth = image->nth;
		job->leftovers[0].place = image->place;
		job->phase = LOCK_SLOT;
	}
	else if (job->nheld < MAX_HELD && condemn(job))
		job->phase = LOCK_SLOT;
	else
		job->phase = LOCK_VACANT_SLOT;
	return true;
}

static bool
lock_slot(Job *job)
{
	int64		lsn;

	switch (lock_image(job, &job->leftovers[0], &lsn))
	{
		case LOCKED:
			job->phase = PLACE;
			return true;
		case NOT_THERE:
			job->phase = job->kept ? LOCK_VACANT_SLOT : CHOOSE_SLOT;
			return true;
		default:
			return false;
	}
}

static bool
lock_vacant_slot(Job *job)
{
	DlPlace		place;

	if (!disk_find_vacant(job->table, number_of(job), &place) || !lock_page(job, place))
		return false;
	job->phase = PLACE;
	return true;
}

/* Note the place, so that whoever wants the image waits for its page. */
static bool
place(Job *job)
{
	DlEffects	fx = DL_NO_EFFECTS;
	Claim	   *claim = model_claim_of(job->lease, job->serial);
	const DiskImage *slot = disk_slot(job->table, job->place);
	int			partition = model_partition(job->lock);
	bool		placed;
	bool		expected;

	begin_operation("place for job, ttl", number_of(job), job->ttl);
	expected = model_place(claim, job->place);
	placed = dl_engine_place(job->lease, job->serial, job->place, model.now);
	verify(CHECK_IMAGES, placed == expected, "a lease that %s is %s written",
		   expected ? "is held" : "has ended", placed ? "to be" : "not");
	if (placed)
	{
		job->image.lock = claim->lock;
		job->image.mode = claim->mode;
		job->image.limit = claim->limit;
		job->image.nparts = claim->nparts;
		job->image.nth = claim->nth;
		job->image.owner = claim->owner;
		strcpy(job->image.request_id, claim->request_id);
		job->image.token = claim->token;
		job->image.ttl = disk_is_of(slot, claim->token, claim->nth) ? Max(job->ttl, slot->ttl) : job->ttl;
		job->phase = WRITE;
	}
	else
	{
		events.unwritten++;
		unlock_page(job);
		close_table(job);
		job->phase = LET_GO;
	}
	finish_operation(partition, &fx, -1);
	return true;
}

static bool
write_image(Job *job)
{
	job->lsn = disk_write(job->table, job->place, &job->image);
	job->written = true;
	events.written++;
	events.rewritten += job->purpose == RENEW;
	unlock_page(job);
	close_table(job);
	job->phase = FLUSH_WRITTEN;
	return true;
}

static bool
let_go_of_one(Job *job)
{
	if (job->nheld > 0)
		let_go(job, job->written);
	else if (job->purpose == RENEW)
		job->phase = RENEW_STORED;
	else if (job->written)
		job->phase = FIND_LEFTOVERS;
	else
		finish_job(job);
	return true;
}

/* A longer time to live is on disk, if the lease is still there. */
static bool
renew_stored(Job *job)
{
	Claim	   *claim = find_lease(job->lock, job->token);

	if (claim == NULL)
	{
		finish_job(job);
		return true;
	}
	if (job->written)
	{
		/* As found just now, whatever it was when it was written. */
		model_stored(model_claim_of(claim->record, job->serial), job->ttl);
		dl_engine_stored(claim->record, job->serial, job->ttl);
	}
	if (claim->image->ttl < job->ttl)
	{
		job->serial = claim->record->serial;
		job->written = false;
		job->phase = OPEN_TO_WRITE;
		return true;
	}
	if (renew_lease(claim, job->ttl))
		finish_job(job);
	return true;
}

static bool
find_leftovers(Job *job)
{
	DlImage    *found[MAX_IMAGES];
	int			n = dl_engine_leftovers(engine, &job->lock->key, found, MAX_IMAGES);
	int			expected = 0;

	for (int i = 0; i < MAX_IMAGES; i++)
		expected += model_is_leftover(&model.images[i], job->lock);
	verify(CHECK_IMAGES, n == expected, "%d leftovers, should be %d", n, expected);
	verify(CHECK_IMAGES, dl_engine_leftovers(engine, &job->lock->key, found, MAX_HELD) == Min(n, MAX_HELD),
		   "more leftovers than asked for");
	job->nleftovers = Min(n, MAX_HELD);
	job->ncleared = 0;
	job->lsn = 0;
	for (int i = 0; i < job->nleftovers; i++)
	{
		ModelImage *image = model_image_of(found[i]);

		verify(CHECK_IMAGES, image != NULL && model_is_leftover(image, job->lock),
			   "no leftover of this lock");
		job->leftovers[i].token = image->token;
		job->leftovers[i].nth = image->nth;
		job->leftovers[i].place = image->place;
	}
	if (n > 0)
		job->phase = OPEN_TO_CLEAR;
	else
		finish_job(job);
	return true;
}

/* Clear one image.  Returns false when its page is locked. */
static bool
clear_image(Job *job, const Leftover *leftover)
{
	static const DiskImage vacant;
	int64		lsn = 0;

	switch (lock_image(job, leftover, &lsn))
	{
		case LOCKED:
			note("clear token", leftover->token, 0);
			lsn = disk_write(job->table, job->place, &vacant);
			unlock_page(job);
			events.cleared++;
			break;
		case NOT_THERE:
			events.missed++;
			/* Whoever overwrote it may not have flushed that yet. */
			break;
		default:
			return false;
	}
	job->lsn = Max(job->lsn, lsn);
	return true;
}

static bool
clear_leftover(Job *job)
{
	if (!clear_image(job, &job->leftovers[job->ncleared]))
		return false;
	if (++job->ncleared == job->nleftovers)
	{
		close_table(job);
		job->phase = FLUSH_CLEARED;
	}
	return true;
}

static bool
forget_leftovers(Job *job)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int			partition = model_partition(job->lock);

	begin_operation("forget leftovers, lock", job->lock - model.locks, job->nleftovers);
	for (int i = 0; i < job->nleftovers; i++)
	{
		int64		token = job->leftovers[i].token;
		int			nth = job->leftovers[i].nth;
		DlImage    *record = dl_engine_find_image(engine, &job->lock->key, token, nth);
		ModelImage *expected = model.images;

		while (expected < &model.images[MAX_IMAGES] &&
			   (!expected->linked || expected->token != token || expected->nth != nth ||
				expected->lock->table != job->lock->table ||
				expected->lock->key.hash != job->lock->key.hash))
			expected++;
		verify(CHECK_IMAGES, record == (expected == &model.images[MAX_IMAGES] ? NULL : expected->record),
			   "the image of token " INT64_FORMAT " is not found, or another", token);
		if (record == NULL || expected->claim != NULL)
			continue;
		verify(CHECK_SUPERSEDED, !disk_may_have(job->table, token, nth),
			   "token " INT64_FORMAT " is forgotten, and may be on disk", token);
		model_forget(expected);
		dl_engine_forget(engine, partition, record, false);
	}
	job->phase = FIND_LEFTOVERS;
	finish_operation(partition, &fx, -1);
	return true;
}

static bool
condemn_stale(Job *job)
{
	if (job->nheld < MAX_HELD && condemn_in(job, job->partition, NULL))
		job->phase = CLEAR_STALE;
	else
		job->phase = FLUSH_CLEAN;
	return true;
}

static bool
clear_stale(Job *job)
{
	if (!clear_image(job, &job->leftovers[0]))
		return false;
	job->phase = CONDEMN_STALE;
	return true;
}

static bool
flush_clean(Job *job)
{
	bool		more = job->nheld == MAX_HELD;

	disk_flush(job->lsn);
	while (job->nheld > 0)
		let_go(job, true);
	job->phase = CONDEMN_STALE;
	if (!more && ++job->partition == DL_NPARTITIONS)
	{
		close_table(job);
		finish_job(job);
	}
	return true;
}

static bool
open_and_go_on(Job *job, Phase next)
{
	if (open_table(job))
		job->phase = next;
	return true;
}

static bool
flush_and_go_on(Job *job, Phase next)
{
	disk_flush(job->lsn);
	job->phase = next;
	return true;
}

/* Returns false when the job has to wait for another. */
bool
step_job(int number)
{
	Job		   *job = &jobs[number];

	switch (job->phase)
	{
		case IDLE:
			return false;
		case OPEN_TO_WRITE:
			return open_and_go_on(job, CHOOSE_SLOT);
		case CHOOSE_SLOT:
			return choose_slot(job);
		case LOCK_SLOT:
			return lock_slot(job);
		case LOCK_VACANT_SLOT:
			return lock_vacant_slot(job);
		case PLACE:
			return place(job);
		case WRITE:
			return write_image(job);
		case FLUSH_WRITTEN:
			return flush_and_go_on(job, LET_GO);
		case LET_GO:
			return let_go_of_one(job);
		case RENEW_STORED:
			return renew_stored(job);
		case FIND_LEFTOVERS:
			return find_leftovers(job);
		case OPEN_TO_CLEAR:
			return open_and_go_on(job, CLEAR_LEFTOVER);
		case CLEAR_LEFTOVER:
			return clear_leftover(job);
		case FLUSH_CLEARED:
			return flush_and_go_on(job, FORGET_LEFTOVERS);
		case FORGET_LEFTOVERS:
			return forget_leftovers(job);
		case OPEN_TO_CLEAN:
			return open_and_go_on(job, CONDEMN_STALE);
		case CONDEMN_STALE:
			return condemn_stale(job);
		case CLEAR_STALE:
			return clear_stale(job);
		case FLUSH_CLEAN:
			return flush_clean(job);
	}
	return false;
}

/* A job that is under way and whose session is not frozen, or -1. */
int
random_job(void)
{
	int			start = random_below(MAX_JOBS);

	for (int i = 0; i < MAX_JOBS; i++)
	{
		int			number = (start + i) % MAX_JOBS;

		if (is_storing(number) && !(number < MAX_BACKENDS && sessions[number].frozen))
			return number;
	}
	return -1;
}

/* Nothing interrupts a session that has a page locked. */
void
finish_critical_section(int number)
{
	while (jobs[number].phase == PLACE || jobs[number].phase == WRITE)
		step_job(number);
}

/*
 * Give up, wherever the job is.  What it has condemned may be on disk still,
 * unless it is about to say that it is not.  The session keeps its request.
 */
void
abandon_job(int number)
{
	Job		   *job = &jobs[number];

	if (job->phase == IDLE)
		return;
	note("abandon job, phase", number, job->phase);
	finish_critical_section(number);
	close_table(job);
	while (job->nheld > 0)
		let_go(job, job->phase == LET_GO && job->written);
	job->phase = IDLE;
}

/* An error in a session, which leaves nothing behind. */
void
fail_job(int number)
{
	Purpose		purpose = jobs[number].purpose;

	abandon_job(number);
	if (purpose == ACQUIRE)
		leave(&sessions[number]);
}

/* ---- Starting ---- */

static void
store_part(int backend, int part)
{
	Session    *session = &sessions[backend];
	DlRequest  *request = &session->request;
	ModelLock  *lock = lock_of_session(session, part);
	Job		   *job = start_job(backend, ACQUIRE, request->durable && !session->stored ?
								OPEN_TO_WRITE : FIND_LEFTOVERS, lock->table);

	job->part = part;
	job->lock = lock;
	job->lease = session->records[part];
	job->serial = session->serials[part];
	job->ttl = session->ttl;
	job->written = session->stored;
}

/* The session has been granted leases, and is not to be told of them yet. */
void
start_acquire_job(int backend)
{
	store_part(backend, 0);
}

static int
idle_helper(void)
{
	for (int number = MAX_BACKENDS; number < MAX_JOBS; number++)
		if (!is_storing(number))
			return number;
	return -1;
}

/* Some session wants the lease to live longer than its image says. */
void
start_renew_job(Claim *claim, int64 ttl)
{
	int			number = idle_helper();
	Job		   *job;

	if (number < 0)
		return;
	job = start_job(number, RENEW, OPEN_TO_WRITE, claim->lock->table);
	job->lock = claim->lock;
	job->lease = claim->record;
	job->serial = claim->serial;
	job->token = claim->token;
	job->ttl = ttl;
}

void
start_clean_job(int table)
{
	int			number = idle_helper();

	if (number >= 0)
		start_job(number, CLEAN, OPEN_TO_CLEAN, table);
}
