/*-------------------------------------------------------------------------
 *
 * supply.c
 *	  What grants draw on: tokens, and how long leases may live.
 *
 * Tokens are drawn from shared memory, inside the partition lock that grants
 * (engine.c), out of a range reserved ahead.  The end of the range is on disk
 * before any token of it is issued (control.c).  A new range begins above
 * everything that memory, sequence or row have ever said; what a crash leaves
 * unused is a gap.  The range in memory belongs to the database, not to the
 * extension: after DROP and CREATE EXTENSION it goes on, and the new relations
 * are raised to it at their first use.
 *
 * The control row also tells how long the longest lease may be that a restart
 * forgets (volatile_ttl), or a failover (longest_ttl).  A lease is granted only
 * when the row allows for its time to live.  What it allows for volatile leases
 * is lowered when none so long lives any more, for otherwise they would cost a
 * grace at the next start.  What it allows for any lease stays for a day: a
 * standby that has not heard of the last lease shall have heard of one as long.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"

#include "database.h"
#include "store.h"
#include "supply.h"

/* Tokens in a reserved range. */
#define RANGE_TOKENS		Max(16384, 8 * MaxBackends)

/* With fewer left, one request reserves the next range while others go on. */
#define LOW_TOKENS			(RANGE_TOKENS / 2)

/*
 * With fewer left, every request sees to it that there are more before it
 * enters: a lock may be granted where nothing can be written, and as many
 * grants as there are backends may be under way.
 */
#define SCARCE_TOKENS		(2 * MaxBackends)

/* For so long the row remembers the longest lease. */
#define MEMORY		USECS_PER_DAY

/* ---- Shared memory ---- */

/* The supply of a database that is new to us. */
void
dl_supply_init(DlSupply *supply)
{
	pg_atomic_init_u64(&supply->next, 1);
	pg_atomic_init_u64(&supply->limit, 0);
	pg_atomic_init_u64(&supply->opens_at, 0);
	for (int kept = 0; kept < DL_NKEPT; kept++)
	{
		pg_atomic_init_u32(&supply->nbuckets[kept], 0);
		for (int b = 0; b < DL_TTL_BUCKETS; b++)
			pg_atomic_init_u32(&supply->live[kept][b], 0);
	}
}

static int64
tokens_left(DlSupply *supply)
{
	return (int64) (pg_atomic_read_u64(&supply->limit) + 1 -
					pg_atomic_read_u64(&supply->next));
}

/* Skip what was handed out up to the floor, then open the range. */
static void
open_range(DlSupply *supply, int64 floor, int64 limit)
{
	uint64		known = pg_atomic_read_u64(&supply->limit);
	uint64		next = pg_atomic_read_u64(&supply->next);

	while ((uint64) floor > known && next <= (uint64) floor &&
		   !pg_atomic_compare_exchange_u64(&supply->next, &next, floor + 1))
		;
	pg_atomic_write_u64(&supply->limit, limit);
}

static int64
limit_above(int64 floor)
{
	if (floor > PG_INT64_MAX - 2 * RANGE_TOKENS)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("no fencing tokens are left"),
				 errdetail("The limit of tokens stands at " INT64_FORMAT ".", floor)));
	return floor + RANGE_TOKENS;
}

static int64 *
ttl_of(DlControl *control, DlKept kept)
{
	return kept == DL_DURABLE ? &control->longest_ttl : &control->volatile_ttl;
}

/* How many buckets a row allows for. */
static int
buckets_of(DlControl *control, DlKept kept)
{
	int64		ttl = *ttl_of(control, kept);

	return ttl == 0 ? 0 : dl_ttl_bucket(ttl) + 1;
}

static int64
longest_ttl(int nbuckets)
{
	return nbuckets == 0 ? 0 : dl_bucket_ttl(nbuckets - 1);
}

/*
 * May a greater limit of tokens be written to the row?  Not where a rollback of
 * this transaction would forget it, but for the first one: a table for which no
 * token has been issued yet may be as short-lived as it likes.
 */
static bool
may_raise(DlSupply *supply, const DlControlFile *file)
{
	if (dl_control_is_created(file))
		return pg_atomic_read_u64(&supply->limit) == 0;
	return !dl_control_is_rewritten(file);
}

/*
 * The limit to be written when nothing above the floor has been handed out: one
 * that leaves a range, if there are not so many tokens left or others have gone
 * beyond what we know.
 */
static int64
limit_for(DlSupply *supply, const DlControlFile *file, int64 floor, int64 tokens)
{
	if (may_raise(supply, file) &&
		(tokens_left(supply) < tokens ||
		 (uint64) floor > pg_atomic_read_u64(&supply->limit)))
		return limit_above(floor);
	return floor;
}

/*
 * Write the row of a database that is being attached, and open the supply as it
 * says.  Returns where the row ends in the log, which is flushed up to there.
 * Needs the token lock exclusively; may throw.
 */
XLogRecPtr
dl_supply_open(DlDatabase *database, const DlControlFile *file,
			   DlControl *control, int64 floor, int64 grace)
{
	DlSupply   *supply = &database->supply;
	int64		opens_at;
	XLogRecPtr	lsn;

	control->token_limit = limit_for(supply, file, floor, LOW_TOKENS);
	lsn = dl_control_write(file, control);
	XLogFlush(lsn);
	database->row_version++;
	open_range(supply, floor, control->token_limit);
	for (int kept = 0; kept < DL_NKEPT; kept++)
		pg_atomic_write_u32(&supply->nbuckets[kept], buckets_of(control, kept));
	opens_at = dl_accepting_since() + grace;
	if (grace > 0 && opens_at > dl_opens_at(supply))
		pg_atomic_write_u64(&supply->opens_at, opens_at);
	return lsn;
}

/* ---- Raising ---- */

static bool
is_wanting(DlSupply *supply, const int *wanted, int64 tokens)
{
	return tokens_left(supply) < tokens ||
		pg_atomic_read_u32(&supply->nbuckets[DL_VOLATILE]) < wanted[DL_VOLATILE] ||
		pg_atomic_read_u32(&supply->nbuckets[DL_DURABLE]) < wanted[DL_DURABLE];
}

/* Let leases live as long as the row allows. */
static void
open_buckets(DlSupply *supply, DlControl *control)
{
	for (int kept = 0; kept < DL_NKEPT; kept++)
		if (pg_atomic_read_u32(&supply->nbuckets[kept]) < buckets_of(control, kept))
			pg_atomic_write_u32(&supply->nbuckets[kept], buckets_of(control, kept));
}

static void
refuse_to_raise(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot %s in this transaction", what),
			 errdetail("It has created or rewritten relation \"distlock_control\", and what is written there would be lost by a rollback."),
			 errhint("Commit before you acquire.")));
}

/*
 * Write a row that allows for what is wanted, the same row if it does already.
 * Returns what has to be on the standbys before buckets are opened; tokens are
 * there at once.  Needs the token lock exclusively.
 */
static XLogRecPtr
raise_row(DlDatabase *database, const DlControlFile *file, const int *wanted,
		  int64 tokens)
{
	DlSupply   *supply = &database->supply;
	int64		known = (int64) pg_atomic_read_u64(&supply->limit);
	int64		sequence_limit;
	int64		floor;
	bool		raised = false;
	XLogRecPtr	lsn;
	DlControl	control = dl_control_read(file, &sequence_limit);

	if (!may_raise(supply, file) && tokens_left(supply) <= 0)
		refuse_to_raise("reserve fencing tokens");
	floor = Max(known, Max(control.token_limit, sequence_limit));
	control.token_limit = limit_for(supply, file, floor, tokens);
	for (int kept = 0; kept < DL_NKEPT; kept++)
	{
		if (buckets_of(&control, kept) >= wanted[kept])
			continue;
		if (dl_control_is_rewritten(file))
			refuse_to_raise("acquire or renew for that long");
		*ttl_of(&control, kept) = longest_ttl(wanted[kept]);
		raised = true;
	}
	control.longest_ttl = Max(control.longest_ttl, control.volatile_ttl);
	lsn = dl_control_write(file, &control);
	XLogFlush(lsn);
	if (raised)
		database->row_version++;
	open_range(supply, floor, control.token_limit);
	return lsn;
}

/*
 * See to it that there are so many tokens, and that so many buckets are open.
 * With "wait" false, do nothing when somebody else is about it or has a
 * relation locked.
 */
static void
refill(const DlExtension *extension, const int *wanted, int64 tokens, bool wait)
{
	DlDatabase *database = dl_database_rely_on(extension);
	bool		waited = false;
	uint64		version = 0;

	for (;;)
	{
		DlControlFile file;
		DlControl	control;
		int64		sequence_limit;
		XLogRecPtr	lsn = InvalidXLogRecPtr;
		bool		buckets;

		if (!dl_control_open(extension, wait, &file))
			return;
		if (wait)
			LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
		else if (!LWLockConditionalAcquire(dl_shared->token_lock, LW_EXCLUSIVE))
		{
			dl_control_close(&file);
			return;
		}

		/* If nobody has changed the row since, it is on the standbys. */
		if (waited && version == database->row_version)
		{
			control = dl_control_read(&file, &sequence_limit);
			open_buckets(&database->supply, &control);
			dl_wake_worker();	/* it sees to it if no lease follows */
		}
		buckets = is_wanting(&database->supply, wanted, 0);
		if (is_wanting(&database->supply, wanted, tokens))
			lsn = raise_row(database, &file, wanted, tokens);
		version = database->row_version;
		LWLockRelease(dl_shared->token_lock);
		dl_control_close(&file);
		if (!buckets)
			return;

		/* Our own record comes after that of the row. */
		dl_store_flush(lsn);
		waited = true;
	}
}

/*
 * The supply for a request that is about to enter, and counts in this bucket or,
 * if negative, in none.  May write and flush WAL, wait for standbys or for a lock on our
 * relations, and throw; needs a transaction and no LWLock held.
 */
DlSupply *
dl_supply_for(const DlExtension *extension, DlKept kept, int bucket)
{
	DlSupply   *supply = &dl_database_rely_on(extension)->supply;
	int			wanted[DL_NKEPT] = {0};
	int64		left = tokens_left(supply);

	wanted[kept] = bucket + 1;
	if (is_wanting(supply, wanted, SCARCE_TOKENS))
		refill(extension, wanted, LOW_TOKENS, true);
	else if (left < LOW_TOKENS)
		refill(extension, wanted, LOW_TOKENS, false);
	return supply;
}

/*
 * Refill the supply for a grant that found no token or not enough buckets open.
 * As dl_supply_for().
 */
void
dl_supply_refill(const DlExtension *extension, const int *wanted)
{
	refill(extension, wanted, LOW_TOKENS, true);
}

/* ---- Lowering ---- */

/* So many buckets are in use; of all leases, with DL_DURABLE. */
static int
buckets_in_use(DlSupply *supply, DlKept kept)
{
	int			n = pg_atomic_read_u32(&supply->nbuckets[kept]);

	while (n > 0 && pg_atomic_read_u32(&supply->live[kept][n - 1]) == 0)
		n--;
	if (kept == DL_DURABLE)
		n = Max(n, (int) pg_atomic_read_u32(&supply->nbuckets[DL_VOLATILE]));
	return n;
}

static bool
is_high(DlSupply *supply, DlKept kept)
{
	return buckets_in_use(supply, kept) < (int) pg_atomic_read_u32(&supply->nbuckets[kept]);
}

/* Has it been for so long that the row need not remember the longest lease? */
static bool
is_forgotten(const DlDatabase *database)
{
	return database->high_since != 0 && dl_now() - database->high_since > MEMORY;
}

/*
 * Does the row allow for longer leases than there are, or for a grace that is
 * over?  For the background worker, which notes since when it does; needs no
 * lock, and may be wrong for a moment.
 */
bool
dl_supply_is_high(DlDatabase *database)
{
	DlSupply   *supply = &database->supply;

	if (dl_now() < dl_opens_at(supply))
		return false;
	if (!is_high(supply, DL_DURABLE))
		database->high_since = 0;
	else if (database->high_since == 0)
		database->high_since = dl_now();
	return database->grace_noted || is_high(supply, DL_VOLATILE) || is_forgotten(database);
}

/*
 * Close the buckets that are not in use.  Whoever counts a lease counts first,
 * then looks whether its bucket is open: he sees that it is not, or we see that
 * he has counted.
 */
static void
close_buckets(DlSupply *supply, DlKept kept)
{
	uint32		n = pg_atomic_read_u32(&supply->nbuckets[kept]);
	uint32		in_use = buckets_in_use(supply, kept);

	pg_atomic_write_u32(&supply->nbuckets[kept], in_use);
	pg_memory_barrier();
	for (uint32 b = in_use; b < n; b++)
		if (pg_atomic_read_u32(&supply->live[kept][b]) > 0)
		{
			pg_atomic_write_u32(&supply->nbuckets[kept], n);
			return;
		}
}

/*
 * Lower the row to what is in use, and strike out a grace that is over.  Needs
 * no LWLock held; may wait for a lock on our relations, and throw.
 */
void
dl_supply_lower(const DlExtension *extension, DlDatabase *database)
{
	DlControlFile file;
	DlControl	control;
	int64		sequence_limit;
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	(void) dl_control_open(extension, true, &file);
	LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	if (dl_now() >= dl_opens_at(&database->supply))
	{
		close_buckets(&database->supply, DL_VOLATILE);
		if (is_forgotten(database))
			close_buckets(&database->supply, DL_DURABLE);
		control = dl_control_read(&file, &sequence_limit);
		for (int kept = 0; kept < DL_NKEPT; kept++)
			*ttl_of(&control, kept) =
				longest_ttl(pg_atomic_read_u32(&database->supply.nbuckets[kept]));
		control.longest_ttl = Max(control.longest_ttl, control.volatile_ttl);
		control.grace = 0;
		lsn = dl_control_write(&file, &control);
		database->row_version++;
		database->grace_noted = false;
	}
	LWLockRelease(dl_shared->token_lock);
	XLogFlush(lsn);
	dl_control_close(&file);
}
