/*-------------------------------------------------------------------------
 *
 * store.c
 *	  Getting the images of leases onto disk, and off it.
 *
 * A durable lease is told to its holder only when its image is flushed, and on
 * the synchronous standbys.  Whatever the lease, durable or not, it is told
 * only when no image of an earlier lease of its lock is on disk any more: a
 * crash would bring that lease back, and its token with it.
 *
 * The end of a lease writes nothing: its image turns stale.  A new image
 * overwrites a stale one if there is any, so an acquire and a release are one
 * record and one flush, and the table stays as small as it can.  What nobody
 * overwrites is cleared by chores.c after a while.
 *
 * The place of an image is noted, under the partition lock, before it is
 * written, and its page is locked from before that until it is.  So whoever
 * knows of an image and has its page locked finds it there, or finds that it is
 * gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender_private.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "database.h"
#include "flush.h"
#include "lease_table.h"
#include "shmem.h"
#include "store.h"

/*
 * Images that this session has condemned: it has overwritten or cleared them,
 * or is about to.
 */
#define MAX_CONDEMNED 64

/* How long a chore waits for standbys: so often, so many milliseconds. */
#define SOON_TRIES		10
#define SOON_PAUSE		50

typedef struct Condemned
{
	DlImage    *image;
	int			partition;
} Condemned;

static Condemned condemned[MAX_CONDEMNED];
static int	ncondemned = 0;

/* What has to be cleared, copied from an image of the engine. */
typedef struct Leftover
{
	int64		token;
	int			nth;
	DlPlace		place;
} Leftover;

static Leftover
copy_leftover(const DlImage *image)
{
	Leftover	leftover;

	leftover.token = image->token;
	leftover.nth = image->nth;
	leftover.place = image->place;
	return leftover;
}

/*
 * Condemn a stale image of this extension, in this partition or the next that
 * has one; with "only_here", in this one.  Of the key's lock, if it has any.
 */
static bool
condemn(const DlExtension *extension, int partition, const DlKey *key,
		bool only_here, Leftover *leftover)
{
	for (int i = 0; i < (only_here ? 1 : DL_NPARTITIONS); i++)
	{
		int			p = (partition + i) % DL_NPARTITIONS;
		DlEffects	fx = DL_NO_EFFECTS;
		DlImage    *image;

		if (dl_shared->engine->partitions[p].nstale == 0)
			continue;
		dl_partition_lock(p, LW_EXCLUSIVE);
		image = dl_engine_condemn(dl_shared->engine, p, MyDatabaseId, extension->oid,
								  i == 0 ? key : NULL);
		if (image != NULL)
		{
			*leftover = copy_leftover(image);
			condemned[ncondemned].image = image;
			condemned[ncondemned++].partition = p;
		}
		dl_partition_unlock(p, &fx);
		if (image != NULL)
			return true;
	}
	return false;
}

/* If "gone", they are not on disk any more, and that is flushed. */
static void
let_go(bool gone)
{
	while (ncondemned > 0)
	{
		Condemned  *last = &condemned[--ncondemned];
		DlEffects	fx = DL_NO_EFFECTS;

		dl_partition_lock(last->partition, LW_EXCLUSIVE);
		if (gone)
			dl_engine_forget(dl_shared->engine, last->partition, last->image, true);
		else
			dl_engine_spare(dl_shared->engine, last->partition, last->image);
		dl_partition_unlock(last->partition, &fx);
	}
}

/*
 * The (sub)transaction aborts: what this session has condemned may still be on
 * disk.  Cannot throw; takes partition locks.
 */
void
dl_store_abandon(void)
{
	let_go(false);
}

/* ---- Flushing ---- */

/* As SET would, for a moment in which nothing can throw. */
static void
set_synchronous_commit(int level)
{
	synchronous_commit = level;
	assign_synchronous_commit(level, NULL);
}

/*
 * Flush, and wait for the synchronous standbys whatever synchronous_commit
 * says.  Throws when that wait is cancelled.  Needs no lock held.
 */
void
dl_store_flush(XLogRecPtr lsn)
{
	int			level = synchronous_commit;

	if (XLogRecPtrIsInvalid(lsn))
		return;
	dl_flush_wal(lsn);

	/* A look at the catalogs must not hold back vacuum while we wait. */
	InvalidateCatalogSnapshot();
	if (level <= SYNCHRONOUS_COMMIT_REMOTE_WRITE)
		set_synchronous_commit(SYNCHRONOUS_COMMIT_REMOTE_FLUSH);
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(lsn, false);
	RESUME_INTERRUPTS();
	if (level != synchronous_commit)
		set_synchronous_commit(level);

	/* A wait that is cancelled ends with no more than a warning. */
	if (dl_sync_standbys_lack(lsn))
	{
		CHECK_FOR_INTERRUPTS();
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement: what a lease needs is not on the synchronous standbys"),
				 errdetail("A lease counts only when they have its image, and not that of an earlier one.")));
	}
}

/* ---- Writing ---- */

/*
 * Put the image of a lease in this slot, whose page is locked exclusively,
 * unless the lease has ended.
 */
static bool
write_slot(Relation rel, Buffer buffer, DlPlace place, int partition,
		   DlLease *lease, uint64 serial, int64 ttl, XLogRecPtr *lsn)
{
	const DlImageData *old = dl_page_image(BufferGetPage(buffer), place.offset);
	DlImageData image;
	DlEffects	fx = DL_NO_EFFECTS;
	bool		placed;

	dl_partition_lock(partition, LW_EXCLUSIVE);
	placed = dl_engine_place(lease, serial, place, dl_now());
	if (placed)
	{
		/* Two sessions may renew a lease: the longer time to live stays. */
		if (old->token == lease->token && old->nth == lease->nth &&
			old->database == MyDatabaseId)
			ttl = Max(ttl, old->ttl);
		dl_image_fill(&image, lease, ttl);
	}
	dl_partition_unlock(partition, &fx);
	if (placed)
		*lsn = dl_table_write(rel, buffer, place.offset, &image);
	return placed;
}

/*
 * Lock the page of an image that we know of.  Returns no buffer when it is not
 * on disk.
 */
static Buffer
lock_image(Relation rel, const Leftover *leftover, DlPlace *place)
{
	*place = leftover->place;
	for (;;)
	{
		DlImageData *image;
		Buffer		buffer = dl_table_lock_place(rel, *place, &image);

		if (image != NULL && dl_image_is_of(image, leftover->token, leftover->nth))
			return buffer;
		if (BufferIsValid(buffer))
			UnlockReleaseBuffer(buffer);

		/* It can have moved only if the table has been rewritten since. */
		if (place->file == dl_file_of(rel) ||
			!dl_table_find_image(rel, leftover->token, leftover->nth, place))
			return InvalidBuffer;
	}
}

/*
 * Lock a slot for the image of a lease: where it has its image, if it has, or
 * where it may overwrite another.
 */
static Buffer
lock_slot(Relation rel, const DlExtension *extension, DlDatabase *database,
		  const DlKey *key, DlLease *lease, uint64 serial, DlPlace *place)
{
	int			partition = dl_partition_of(key->hash);
	DlEffects	fx = DL_NO_EFFECTS;
	Leftover	leftover;
	Buffer		buffer;
	bool		kept;

	dl_partition_lock(partition, LW_SHARED);
	kept = lease->serial == serial && lease->image != NULL &&
		lease->image->state == DL_IMAGE_KEPT;
	if (kept)
		leftover = copy_leftover(lease->image);
	dl_partition_unlock(partition, &fx);

	if (kept)
	{
		buffer = lock_image(rel, &leftover, place);
		if (BufferIsValid(buffer))
			return buffer;
	}
	else
	{
		while (ncondemned < MAX_CONDEMNED &&
			   condemn(extension, partition, key, false, &leftover))
		{
			buffer = lock_image(rel, &leftover, place);
			if (BufferIsValid(buffer))
				return buffer;
		}
	}
	return dl_table_lock_vacant(rel, extension, database, place);
}

/*
 * Write and flush the images of n leases, granted or live, with this time to
 * live.  Returns false when one of them has ended.  May wait for the lock on the
 * table or for standbys; throws when they cannot be written, or such a wait is
 * cancelled.  Needs no LWLock held.
 */
bool
dl_store_write(const DlExtension *extension, const DlKey *keys, DlLease **leases,
			   const uint64 *serials, int n, int64 ttl)
{
	DlDatabase *database = dl_database_rely_on(extension);
	Relation	rel;
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	bool		written = true;

	dl_store_abandon();			/* an error caught without a savepoint */
	rel = dl_table_open(extension, DL_TABLE_WRITE);
	for (int i = 0; i < n && written; i++)
	{
		DlPlace		place;
		Buffer		buffer = lock_slot(rel, extension, database, &keys[i], leases[i],
									   serials[i], &place);

		written = write_slot(rel, buffer, place, dl_partition_of(keys[i].hash),
							 leases[i], serials[i], ttl, &lsn);
		UnlockReleaseBuffer(buffer);
	}
	dl_table_close(rel, DL_TABLE_WRITE);
	if (written)
		dl_store_flush(lsn);
	let_go(written);
	return written;
}

/* ---- Clearing ---- */

/* Clear one image.  Returns what has to be flushed until it is gone. */
static XLogRecPtr
clear_image(Relation rel, DlDatabase *database, const Leftover *leftover)
{
	DlPlace		place;
	Buffer		buffer = lock_image(rel, leftover, &place);
	XLogRecPtr	lsn;

	/*
	 * Whoever overwrote it may not have flushed that yet.  A record of our own
	 * comes after his; no two may wait for standbys with the same position.
	 */
	if (!BufferIsValid(buffer))
		return dl_table_touch(rel);
	lsn = dl_table_write(rel, buffer, place.offset, NULL);
	dl_table_note_vacant(database, place.block);
	UnlockReleaseBuffer(buffer);
	return lsn;
}

/* Copy what earlier leases of this lock have left behind, but no more. */
static int
find_leftovers(const DlKey *key, Leftover *leftovers, int most)
{
	int			partition = dl_partition_of(key->hash);
	DlEffects	fx = DL_NO_EFFECTS;
	DlImage    *images[MAX_CONDEMNED];
	int			n;

	dl_partition_lock(partition, LW_SHARED);
	n = dl_engine_leftovers(dl_shared->engine, key, images, most);
	for (int i = 0; i < n; i++)
		leftovers[i] = copy_leftover(images[i]);
	dl_partition_unlock(partition, &fx);
	return n;
}

/*
 * Clear what earlier leases of this lock have left on disk, and flush that.  No
 * more is left behind while the caller holds the lock exclusively.  Throws as
 * dl_store_write().
 */
void
dl_store_clear_leftovers(const DlExtension *extension, const DlKey *key)
{
	Leftover	leftovers[MAX_CONDEMNED];
	int			n;

	while ((n = find_leftovers(key, leftovers, MAX_CONDEMNED)) > 0)
	{
		int			partition = dl_partition_of(key->hash);
		DlDatabase *database = dl_database_rely_on(extension);
		Relation	rel = dl_table_open(extension, DL_TABLE_CLEAR);
		DlEffects	fx = DL_NO_EFFECTS;
		XLogRecPtr	lsn = InvalidXLogRecPtr;

		for (int i = 0; i < n; i++)
		{
			XLogRecPtr	cleared = clear_image(rel, database, &leftovers[i]);

			lsn = Max(lsn, cleared);
		}
		dl_table_close(rel, DL_TABLE_CLEAR);
		dl_store_flush(lsn);

		dl_partition_lock(partition, LW_EXCLUSIVE);
		for (int i = 0; i < n; i++)
		{
			DlImage    *image = dl_engine_find_image(dl_shared->engine, key,
													 leftovers[i].token, leftovers[i].nth);

			if (image != NULL && image->lease == NULL)
				dl_engine_forget(dl_shared->engine, partition, image, false);
		}
		dl_partition_unlock(partition, &fx);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Flush, and see whether the synchronous standbys follow soon.  Nobody waits for
 * a chore, which should not keep others from the database while standbys are
 * away.
 */
static bool
flush_soon(XLogRecPtr lsn)
{
	dl_flush_wal(lsn);
	for (int i = 0; i < SOON_TRIES; i++)
	{
		if (!dl_sync_standbys_lack(lsn))
			return true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 SOON_PAUSE, WAIT_EVENT_SYNC_REP);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return false;
}

/*
 * Clear all stale images of this extension, or as many as the synchronous
 * standbys confirm soon.  Throws as dl_store_write().  The table is not locked
 * meanwhile.
 */
void
dl_store_clear_stale(const DlExtension *extension)
{
	int			partition = 0;

	dl_store_abandon();
	while (partition < DL_NPARTITIONS)
	{
		DlDatabase *database = dl_database_attach(extension);
		Relation	rel = dl_table_open(extension, DL_TABLE_CLEAR);
		XLogRecPtr	lsn = InvalidXLogRecPtr;
		Leftover	leftover;
		bool		gone;

		while (ncondemned < MAX_CONDEMNED && partition < DL_NPARTITIONS)
		{
			if (condemn(extension, partition, NULL, true, &leftover))
			{
				XLogRecPtr	cleared = clear_image(rel, database, &leftover);

				lsn = Max(lsn, cleared);
			}
			else
				partition++;
		}
		dl_table_close(rel, DL_TABLE_CLEAR);
		gone = XLogRecPtrIsInvalid(lsn) || flush_soon(lsn);
		let_go(gone);
		if (!gone)
			return;
		CHECK_FOR_INTERRUPTS();
	}
}
