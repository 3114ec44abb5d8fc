/*-------------------------------------------------------------------------
 *
 * barrier.c
 *	  What a prepared transaction keeps others from its locks with.
 *
 * No callback tells of COMMIT PREPARED, and shared memory does not outlive a
 * crash, but PostgreSQL's own locks do both: a transaction that is prepared
 * keeps them until it has ended, also across a restart or a promotion.  So
 * each lock has a tag, an advisory lock that no application can reach.  A
 * guarded transaction takes the tags of its locks when it prepares; whoever is
 * to have the lock next has to pass, that is to take the tag in a mode that
 * conflicts, and give it up again.
 *
 * DlLock.barrier tells whether anybody has to.  It is raised while the tag is
 * held by the transaction that prepares, and lowered while it is held by the
 * one who passes, so it is never down while a prepared transaction holds the
 * tag.  When a lock with a raised barrier is forgotten, and at a start of the
 * server, every new lock begins with one, until the worker has seen that there
 * are no such tags.
 *
 * The tag is made from a hash of the name.  Names with the same hash share it,
 * and may wait for each other's prepared transactions; nothing else follows
 * from it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "barrier.h"
#include "shmem.h"

/* Tells our tags from advisory locks, which have 1 or 2 there. */
#define TAG_KIND	0x646C

/*
 * Transactions guarded by leases of one mode do not conflict, nor do shared
 * leases and those who pass for one.
 */
static const LOCKMODE hold_modes[] = {
	[DL_EXCLUSIVE] = RowExclusiveLock,
	[DL_SHARED] = AccessShareLock,
};
static const LOCKMODE pass_modes[] = {
	[DL_EXCLUSIVE] = AccessExclusiveLock,
	[DL_SHARED] = ShareLock,
};

static void
set_tag(LOCKTAG *tag, const DlKey *key)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) key->name, key->len, 0);

	SET_LOCKTAG_ADVISORY(*tag, key->database, (uint32) (hash >> 32), (uint32) hash, TAG_KIND);
}

/*
 * Take the tag for the transaction that is about to be prepared, guarded by a
 * lease of this mode.  It goes when that transaction, prepared or not, has
 * ended.  May wait for whoever is passing, and throw.
 */
void
dl_barrier_hold(const DlKey *key, DlMode mode)
{
	LOCKTAG		tag;

	set_tag(&tag, key);
	(void) LockAcquire(&tag, hold_modes[mode], false, false);
}

/*
 * Take or give up a lock of PostgreSQL.  Unless it is the session's, it belongs
 * to the transaction rather than to the portal that runs us, since that is where
 * the end of a subtransaction leaves it.
 */
static bool
take_tag(const LOCKTAG *tag, LOCKMODE mode, bool session, bool wait)
{
	ResourceOwner owner = CurrentResourceOwner;
	LockAcquireResult result;

	if (wait)
		InvalidateCatalogSnapshot();	/* it would hold back vacuum */
	CurrentResourceOwner = CurTransactionResourceOwner;
	result = LockAcquire(tag, mode, session, !wait);
	CurrentResourceOwner = owner;
	return result != LOCKACQUIRE_NOT_AVAIL;
}

static void
give_up_tag(const LOCKTAG *tag, LOCKMODE mode)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	(void) LockRelease(tag, mode, false);
	CurrentResourceOwner = owner;
}

/*
 * Does anybody keep a lease of this mode from the lock?  That a barrier is up
 * does not say so.  Takes locks of PostgreSQL's lock manager; may throw.
 */
bool
dl_barrier_is_held(const DlKey *key, DlMode mode)
{
	LOCKTAG		tag;
	int			n;

	set_tag(&tag, key);
	pfree(GetLockConflicts(&tag, pass_modes[mode], &n));
	return n > 0;
}

/*
 * Pass the barrier for a lease of this mode, if that is possible at once.  On
 * success, dl_barrier_passed() has to follow.  May throw.
 */
bool
dl_barrier_try_pass(const DlKey *key, DlMode mode)
{
	LOCKTAG		tag;

	set_tag(&tag, key);
	return dl_tag_try(&tag, pass_modes[mode], false);
}

/* Wait for it, with this lock_timeout in milliseconds. */
static void
take_within(const LOCKTAG *tag, LOCKMODE mode, bool session, int timeout)
{
	int			lock_timeout = LockTimeout;

	LockTimeout = timeout;
	PG_TRY();
	{
		(void) take_tag(tag, mode, session, true);
	}
	PG_FINALLY();
	{
		LockTimeout = lock_timeout;
	}
	PG_END_TRY();
}

/* As dl_barrier_try_pass(), but as dl_tag_acquire(). */
bool
dl_barrier_pass(const DlKey *key, DlMode mode, int64 until)
{
	LOCKTAG		tag;

	set_tag(&tag, key);
	return dl_tag_acquire(&tag, pass_modes[mode], false, until);
}

/* Take one of PostgreSQL's locks, if that is possible at once.  May throw. */
bool
dl_tag_try(const LOCKTAG *tag, LOCKMODE mode, bool session)
{
	return take_tag(tag, mode, session, false);
}

/*
 * Take one of PostgreSQL's locks, and wait for it until this time at the longest.
 *
 * Only lock_timeout ends a wait for one of PostgreSQL's own locks early, and it
 * does so with an error, so a wait that has an end is a subtransaction.  If the
 * wait is over, its abort has called dl_acquire_abandon().  Throws when
 * cancelled, or for a deadlock.
 */
bool
dl_tag_acquire(const LOCKTAG *tag, LOCKMODE mode, bool session, int64 until)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int64		remaining;
	volatile bool passed = true;

	if (until == DL_FOREVER)
	{
		take_within(tag, mode, session, 0);
		return true;
	}
	remaining = (until - dl_now() + 999) / 1000;
	remaining = Max(1, Min(remaining, INT_MAX));

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		take_within(tag, mode, session, (int) remaining);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(error);
		FreeErrorData(error);
		passed = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return passed;
}

/*
 * The barrier has been lowered, or it does not matter any more: give up the tag.
 * Needs no LWLock held.
 */
void
dl_barrier_passed(const DlKey *key, DlMode mode)
{
	LOCKTAG		tag;

	set_tag(&tag, key);
	give_up_tag(&tag, pass_modes[mode]);

	/* If every lock begins with a barrier, see whether that is still needed. */
	if (pg_atomic_read_u32(&dl_shared->worker_asleep) != 0)
		dl_wake_worker();
}

/*
 * If locks begin with a barrier, find out whether they have to.  For the
 * worker; needs the end of recovery, where prepared transactions get their
 * locks back.  Returns whether locks begin without.  May throw when out of
 * memory.
 *
 * A barrier forgotten after we have read the count is not settled by what we
 * see; one forgotten before was raised before, by a transaction whose tag we
 * see if it is still held.
 */
bool
dl_barrier_settle(void)
{
	DlEngine   *engine = dl_shared->engine;
	uint64		forgotten = pg_atomic_read_u64(&engine->barriers_forgotten);
	MemoryContext context;
	MemoryContext outer;
	LockData   *locks;
	bool		held = false;

	if (forgotten == pg_atomic_read_u64(&engine->barriers_settled))
		return true;
	pg_read_barrier();
	context = AllocSetContextCreate(CurrentMemoryContext, "distlock barriers",
									ALLOCSET_DEFAULT_SIZES);
	outer = MemoryContextSwitchTo(context);
	locks = GetLockStatusData();
	for (int i = 0; i < locks->nelements && !held; i++)
	{
		const LOCKTAG *tag = &locks->locks[i].locktag;

		held = tag->locktag_type == LOCKTAG_ADVISORY && tag->locktag_field4 == TAG_KIND;
	}
	MemoryContextSwitchTo(outer);
	MemoryContextDelete(context);
	if (!held)
		pg_atomic_write_u64(&engine->barriers_settled, forgotten);
	return !held;
}
