/*-------------------------------------------------------------------------
 *
 * database.c
 *	  What distlock knows of this database, and its first use after a start.
 *
 * The first call in a database after a start of the server brings back the
 * durable leases of the lease table, and finds out from the control row what
 * may have been lost: volatile leases at any start; after a promotion, or
 * wherever the server is on a timeline or system on which the row was not
 * written, durable ones too, and tokens.  Tokens then go on in the next epoch.
 * While leases that have been lost may be held, nothing is granted: the grace.
 *
 * Times to live count from when the server began to accept connections.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"

#include "control.h"
#include "database.h"
#include "distlock.h"
#include "recovery.h"
#include "store.h"
#include "supply.h"

/* Tell the locks of those who attach from advisory locks; see barrier.c. */
#define ATTACH_KIND	0x646D
#define CONFIRM_KIND	0x646E

/* This session's database, once it is known. */
static DlDatabase *my_database = NULL;

/* The slot of our database, or null.  Needs the token lock. */
static DlDatabase *
find_slot(void)
{
	for (int i = 0; i < dl_shared->ndatabases; i++)
		if (dl_shared->databases[i].database == MyDatabaseId)
			return &dl_shared->databases[i];
	return NULL;
}

/*
 * A slot for our database, which counts only when the database is noted in it.
 * Needs the token lock exclusively.  It is given back when the database is
 * dropped.
 */
static DlDatabase *
take_slot(void)
{
	for (int i = 0; i < dl_shared->ndatabases; i++)
	{
		DlDatabase *database = &dl_shared->databases[i];

		if (OidIsValid(database->database))
			continue;
		dl_supply_init(&database->supply);
		pg_atomic_init_u32(&database->free_block, 0);
		database->extension.oid = database->confirmed = InvalidOid;
		database->grace_noted = false;
		database->unusable_limit = 0;
		database->row_version = 0;
		database->high_since = 0;
		return database;
	}
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many databases use distlock"),
			 errdetail("There is room for %d databases.", dl_shared->ndatabases),
			 errhint("Increase \"distlock.max_leases\", which sizes this too, and restart the server.")));
}

/*
 * Our database, attached or not, or null when it has not been used since the
 * start.  Takes the token lock at the first call; cannot throw.
 */
DlDatabase *
dl_database_find(void)
{
	if (my_database == NULL)
	{
		LWLockAcquire(dl_shared->token_lock, LW_SHARED);
		my_database = find_slot();
		LWLockRelease(dl_shared->token_lock);
	}
	return my_database;
}

static inline bool
is_attached(const DlExtension *extension)
{
	DlDatabase *database = dl_database_find();

	return database != NULL && database->extension.oid == extension->oid;
}

static inline bool
is_confirmed(const DlExtension *extension)
{
	DlDatabase *database = dl_database_find();

	return database != NULL && database->confirmed == extension->oid;
}

/* Those who attach in this database, or confirm, do so one after the other. */
static void
set_tag(LOCKTAG *tag, uint16 kind)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, 0, kind);
}

/* ---- What has happened since the row was written ---- */

typedef struct Past
{
	bool		copied;			/* with its database, from another one */
	bool		moved;			/* to another timeline or system */
	bool		restored;		/* its sequence was, by pg_restore */
	int64		nepochs;		/* so many begin, one for each such event */
} Past;

static Past
find_past(const DlControl *control, int64 sequence_limit, int64 known_limit)
{
	bool		unused = control->token_limit == 0;
	bool		same_system = control->system_id == (int64) GetSystemIdentifier();
	int64		ntimelines = GetWALInsertionTimeLine() - control->timeline;
	Past		past;

	past.copied = !unused && control->database != MyDatabaseId;
	past.moved = !same_system || ntimelines != 0;
	past.restored = unused && sequence_limit > known_limit;

	/*
	 * On each timeline since then tokens may have been issued, here or
	 * elsewhere, that we do not know of; of another system, on all of them.
	 */
	past.nepochs = 0;
	if (past.moved)
		past.nepochs += same_system ? Max(ntimelines, 1) : GetWALInsertionTimeLine();
	if (past.restored)
		past.nepochs++;
	return past;
}

/*
 * No lease that was granted lately has had a longer time to live, whatever this
 * session's own distlock.max_ttl says.
 */
static int64
longest_allowed(void)
{
	return Max(dl_max_ttl, dl_shared->max_ttl) * USECS_PER_SEC;
}

/*
 * Bring the row up to date, but for the limit of tokens, which go on above the
 * floor.  Returns the grace in microseconds.
 */
static int64
settle_past(DlControl *control, const Past *past, int64 floor, bool first)
{
	int64		longest = Max(control->volatile_ttl, control->longest_ttl);

	control->system_id = (int64) GetSystemIdentifier();
	control->timeline = GetWALInsertionTimeLine();
	control->database = MyDatabaseId;
	if (past->moved)
	{
		if (dl_failover_grace == DL_GRACE_REPLAYED)
			control->grace = Max(control->grace, longest);
		else if (dl_failover_grace == DL_GRACE_STRICT)
		{
			control->grace = Max(control->grace,
								 Max(longest, longest_allowed()));
			control->unusable_limit = floor;
		}
	}
	else if (past->copied)
	{
		/* Nobody has had a lease of this database yet. */
		control->volatile_ttl = control->longest_ttl = control->grace = 0;
	}
	return Max(control->grace, first ? control->volatile_ttl : 0);
}

static void
log_grace(int64 grace, int64 opens_at)
{
	int64		left = opens_at - dl_now();

	if (left > 0)
		ereport(LOG,
				(errmsg("distlock grants no leases in database with OID %u for another %lld ms",
						MyDatabaseId, (long long) (left / 1000)),
				 errdetail("Leases that the server does not know of any more may be held until %lld ms after its start or promotion.",
						   (long long) (grace / 1000)),
				 errhidestmt(true), errhidecontext(true)));
}

static void
log_epoch(const Past *past, int64 floor)
{
	ereport(LOG,
			(errmsg("fencing tokens of database with OID %u go on above %lld",
					MyDatabaseId, (long long) floor),
			 past->moved ?
			 errdetail("The server is on a timeline or system on which they were not handed out before.") :
			 errdetail("The database has been restored from a dump."),
			 errhidestmt(true), errhidecontext(true)));
}

/* ---- Attaching ---- */

/*
 * Find the slot of our database, or take one, and bring slot and control row
 * up to date.  *lsn is where the row ends in the log.  Needs the relations of the
 * file locked; takes the token lock.
 */
static DlDatabase *
settle_database(const DlControlFile *file, const DlRecovery *recovery, XLogRecPtr *lsn)
{
	DlDatabase *database;
	DlControl	control;
	Past		past;
	int64		sequence_limit;
	int64		known;
	int64		floor;
	int64		grace;
	bool		first;

	LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	database = find_slot();
	first = database == NULL;
	if (first)
		database = take_slot();
	known = (int64) pg_atomic_read_u64(&database->supply.limit);
	control = dl_control_read(file, &sequence_limit);
	past = find_past(&control, sequence_limit, known);

	floor = Max(known, Max(control.token_limit, sequence_limit));
	if (past.nepochs > 0)
		floor = Max((floor >> DL_EPOCH_SHIFT) + past.nepochs,
					(int64) GetWALInsertionTimeLine()) << DL_EPOCH_SHIFT;
	grace = settle_past(&control, &past, floor, first);
	control.lease_pages = Max(control.lease_pages, recovery->npages);
	*lsn = dl_supply_open(database, file, &control, floor, grace);
	database->grace_noted = control.grace > 0;
	database->unusable_limit = control.unusable_limit;
	database->database = MyDatabaseId;
	LWLockRelease(dl_shared->token_lock);

	if (past.nepochs > 0)
		log_epoch(&past, floor);
	if (grace > 0 && first)
		log_grace(grace, dl_opens_at(&database->supply));
	return database;
}

static void
attach(const DlExtension *extension)
{
	DlControlFile file;
	DlRecovery	recovery;
	DlDatabase *database;
	XLogRecPtr	lsn;

	(void) dl_control_open(extension, true, &file);
	dl_recovery_read(extension, &file, &recovery);
	database = settle_database(&file, &recovery, &lsn);
	dl_recovery_finish(&recovery, database);
	dl_control_close(&file);

	LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	database->confirmed = InvalidOid;
	database->found_lsn = lsn;
	database->extension = *extension;
	LWLockRelease(dl_shared->token_lock);
	my_database = database;
	dl_wake_worker();			/* the row may be high */
}

/*
 * Have the synchronous standbys confirm what was found.  If the wait is cancelled,
 * the next one comes here again.
 */
static void
confirm(const DlExtension *extension)
{
	XLogRecPtr	lsn;

	LWLockAcquire(dl_shared->token_lock, LW_SHARED);
	lsn = my_database->found_lsn;
	LWLockRelease(dl_shared->token_lock);
	dl_store_flush(lsn);
	LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	my_database->confirmed = extension->oid;
	LWLockRelease(dl_shared->token_lock);
}

/*
 * Our database as this installation of the extension has it.  At the first
 * use, brings back its leases: may then write and flush WAL, wait for a lock on our
 * relations, and throw, 53400 if the leases do not fit.  Needs a transaction and
 * no LWLock held, on a server that is not in recovery.
 *
 * This is enough for who only looks or tidies up.
 */
DlDatabase *
dl_database_attach(const DlExtension *extension)
{
	LOCKTAG		tag;

	if (likely(is_attached(extension)))
		return my_database;
	set_tag(&tag, ATTACH_KIND);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (!is_attached(extension))
		attach(extension);
	(void) LockRelease(&tag, ExclusiveLock, false);
	return my_database;
}

/*
 * As dl_database_attach(), for who grants leases or relies on them.  What a crash
 * came upon before the synchronous standbys had it, a row or an image, is taken for
 * granted from then on, so at the first use waits for them.  One session at a time
 * does: no two may wait with the same position.
 */
DlDatabase *
dl_database_rely_on(const DlExtension *extension)
{
	LOCKTAG		tag;

	if (likely(is_confirmed(extension)))
		return my_database;
	(void) dl_database_attach(extension);
	set_tag(&tag, CONFIRM_KIND);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (!is_confirmed(extension))
		confirm(extension);
	(void) LockRelease(&tag, ExclusiveLock, false);
	return my_database;
}

/*
 * The extension, or with an invalid "extension" the whole database, has been
 * dropped.  Cannot throw; takes the token lock.
 */
void
dl_database_forget(Oid database, Oid extension)
{
	LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	for (int i = 0; i < dl_shared->ndatabases; i++)
	{
		DlDatabase *slot = &dl_shared->databases[i];

		if (slot->database != database)
			continue;
		if (!OidIsValid(extension))
			slot->database = InvalidOid;
		if (!OidIsValid(extension) || slot->extension.oid == extension)
			slot->extension.oid = slot->confirmed = InvalidOid;
	}
	LWLockRelease(dl_shared->token_lock);
}

/*
 * Forget the leases whose images are damaged, so that the database can be used
 * again: nobody is granted anything until they must have expired.  Returns how
 * many slots that are; if none, does nothing.  Throws 55000 when the leases are
 * in use.
 */
int
dl_database_discard_damaged(const DlExtension *extension)
{
	DlControlFile file;
	DlControl	control;
	int64		sequence_limit;
	LOCKTAG		tag;
	int			n;

	set_tag(&tag, ATTACH_KIND);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (is_attached(extension))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the leases of this database are in use"),
				 errdetail("All of them have been read without finding any damaged."),
				 errhint("To have them read again, restart the server.")));
	(void) dl_control_open(extension, true, &file);
	control = dl_control_read(&file, &sequence_limit);
	n = dl_recovery_find_damaged(extension, &control, false);
	if (n > 0)
	{
		/* First the grace, so that a crash cannot come in between. */
		LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
		control = dl_control_read(&file, &sequence_limit);
		control.grace = Max(Max(control.grace, longest_allowed()),
							Max(control.volatile_ttl, control.longest_ttl));
		XLogFlush(dl_control_write(&file, &control));
		LWLockRelease(dl_shared->token_lock);

		(void) dl_recovery_find_damaged(extension, &control, true);

		LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
		control = dl_control_read(&file, &sequence_limit);
		control.lease_pages = 0;
		XLogFlush(dl_control_write(&file, &control));
		LWLockRelease(dl_shared->token_lock);
	}
	dl_control_close(&file);
	(void) LockRelease(&tag, ExclusiveLock, false);
	return n;
}
