/*-------------------------------------------------------------------------
 *
 * lease_table.c
 *	  The lease table: its pages, their slots, and the images in them.
 *
 * distlock_lease_table is an ordinary heap with one column of fixed length.
 * Its pages are laid down full of frozen tuples with empty images, the slots,
 * and from then on images are overwritten in place with Generic WAL, under the
 * exclusive lock of the buffer.  So nothing ever dies in it, whatever the
 * oldest snapshot is, and all that PostgreSQL does to a heap can be done to it.
 *
 * What rewrites the table may move slots.  It needs a lock that conflicts with
 * ours, and a place is only a hint where to look first for an image.
 *
 * Extending the table says so in the control row (lease_pages): a page before
 * that which holds no slots has been lost.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/relation.h"
#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "control.h"
#include "lease_table.h"
#include "shmem.h"

StaticAssertDecl(sizeof(DlImageData) == MAXALIGN(sizeof(DlImageData)),
				 "the type distlock_image has no room at its end");

/* ---- Images ---- */

static pg_crc32c
image_crc(const DlImageData *image)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, (const char *) image + sizeof(crc), sizeof(DlImageData) - sizeof(crc));
	FIN_CRC32C(crc);
	return crc;
}

/* What is to be made of an image.  Needs a copy, or its page locked. */
DlImageCheck
dl_image_check(const DlImageData *image)
{
	if (!EQ_CRC32C(image->crc, image_crc(image)))
		return DL_CHECK_DAMAGED;
	if (image->format > DL_IMAGE_FORMAT)
		return DL_CHECK_NEWER;
	if (image->format != DL_IMAGE_FORMAT)
		return DL_CHECK_DAMAGED;
	if (image->token == 0)
		return DL_CHECK_EMPTY;
	if (image->token < 0 || image->ttl <= 0 || image->ttl > DL_TTL_LONGEST ||
		image->mode > DL_SHARED || image->limit < 0 ||
		image->nparts > DL_KEYS_MAX || image->nth >= image->nparts || image->name_len == 0 ||
		memchr(image->name, '\0', sizeof(image->name)) != image->name + image->name_len ||
		memchr(image->holder, '\0', sizeof(image->holder)) == NULL ||
		memchr(image->request_id, '\0', sizeof(image->request_id)) == NULL)
		return DL_CHECK_DAMAGED;
	return DL_CHECK_LEASE;
}

/* A slot that may be written: empty, or with what a copied database found. */
bool
dl_image_is_vacant(const DlImageData *image)
{
	switch (dl_image_check(image))
	{
		case DL_CHECK_EMPTY:
			return true;
		case DL_CHECK_LEASE:
			return image->database != MyDatabaseId;
		default:
			return false;
	}
}

/*
 * The image of a lease, but for its checksum.  Needs its partition locked,
 * as it copies from there.
 */
void
dl_image_fill(DlImageData *image, const DlLease *lease, int64 ttl)
{
	const DlKey *key = &lease->lock->key;

	memset(image, 0, sizeof(DlImageData));
	image->format = DL_IMAGE_FORMAT;
	image->mode = lease->mode;
	image->name_len = key->len;
	image->token = lease->token;
	image->ttl = ttl;
	image->granted_at = lease->state == DL_LIVE ? lease->granted_at : GetCurrentTimestamp();
	image->database = key->database;
	image->owner = lease->owner;
	image->limit = lease->lock->limit;
	image->nparts = lease->nparts;
	image->nth = lease->nth;
	strcpy(image->holder, lease->holder);
	strcpy(image->request_id, lease->request_id);
	memcpy(image->name, key->name, key->len);
}

static void
seal_image(DlImageData *image)
{
	image->crc = image_crc(image);
}

static void
empty_image(DlImageData *image)
{
	memset(image, 0, sizeof(DlImageData));
	image->format = DL_IMAGE_FORMAT;
	seal_image(image);
}

/* ---- Pages ---- */

/* Do its slots lie on the page as they should? */
bool
dl_page_is_sound(Page page)
{
	if (PageIsNew(page) || PageGetMaxOffsetNumber(page) != DL_SLOTS_PER_PAGE ||
		((PageHeader) page)->pd_upper != BLCKSZ - DL_SLOTS_PER_PAGE * DL_SLOT_SIZE)
		return false;
	for (OffsetNumber offset = FirstOffsetNumber; offset <= DL_SLOTS_PER_PAGE; offset++)
	{
		ItemId		item = PageGetItemId(page, offset);

		if (!ItemIdIsNormal(item) || ItemIdGetLength(item) != DL_SLOT_SIZE ||
			ItemIdGetOffset(item) != BLCKSZ - offset * DL_SLOT_SIZE ||
			((HeapTupleHeader) PageGetItem(page, item))->t_hoff != DL_HEADER_SIZE)
			return false;
	}
	return true;
}

/* The image in a slot of a sound page, or null when there is no such slot. */
DlImageData *
dl_page_image(Page page, OffsetNumber offset)
{
	if (offset < FirstOffsetNumber || offset > DL_SLOTS_PER_PAGE)
		return NULL;
	return (DlImageData *) ((char *) PageGetItem(page, PageGetItemId(page, offset)) +
							DL_HEADER_SIZE);
}

/* What a slot begins with: the header of a frozen tuple. */
static void
make_header(HeapTupleHeader header, BlockNumber block, OffsetNumber offset)
{
	memset(header, 0, DL_HEADER_SIZE);
	header->t_infomask = HEAP_XMIN_FROZEN | HEAP_XMAX_INVALID;
	header->t_hoff = DL_HEADER_SIZE;
	HeapTupleHeaderSetNatts(header, 1);
	HeapTupleHeaderSetXmin(header, FrozenTransactionId);
	ItemPointerSet(&header->t_ctid, block, offset);
}

/*
 * ALTER TABLE ... SET LOGGED leaves tuples that are not frozen, and row locks
 * leave traces.  Those have hint bits, which standbys need not have, so they are
 * laid down anew before an image changes.
 */
static void
freeze_slots(Relation rel, Buffer buffer)
{
	BlockNumber block = BufferGetBlockNumber(buffer);
	Page		page = BufferGetPage(buffer);
	GenericXLogState *state;
	bool		frozen = true;
	union
	{
		HeapTupleHeaderData header;
		char		data[DL_HEADER_SIZE];
	}			expected;

	for (OffsetNumber offset = FirstOffsetNumber; frozen && offset <= DL_SLOTS_PER_PAGE; offset++)
	{
		make_header(&expected.header, block, offset);
		frozen = memcmp(PageGetItem(page, PageGetItemId(page, offset)), expected.data,
						DL_HEADER_SIZE) == 0;
	}
	if (frozen)
		return;
	state = GenericXLogStart(rel);
	page = GenericXLogRegisterBuffer(state, buffer, GENERIC_XLOG_FULL_IMAGE);
	for (OffsetNumber offset = FirstOffsetNumber; offset <= DL_SLOTS_PER_PAGE; offset++)
		make_header((HeapTupleHeader) PageGetItem(page, PageGetItemId(page, offset)), block, offset);
	(void) GenericXLogFinish(state);
}

/* Lay down a page of empty slots.  Needs it locked exclusively. */
void
dl_page_format(Relation rel, Buffer buffer)
{
	XLogRecPtr	end = XactLastRecEnd;
	GenericXLogState *state = GenericXLogStart(rel);
	Page		page = GenericXLogRegisterBuffer(state, buffer, GENERIC_XLOG_FULL_IMAGE);
	union
	{
		HeapTupleHeaderData header;
		char		data[DL_SLOT_SIZE];
	}			slot;

	PageInit(page, BLCKSZ, 0);
	empty_image((DlImageData *) (slot.data + DL_HEADER_SIZE));
	for (OffsetNumber offset = FirstOffsetNumber; offset <= DL_SLOTS_PER_PAGE; offset++)
	{
		make_header(&slot.header, BufferGetBlockNumber(buffer), offset);
		if (PageAddItem(page, DL_ITEM(slot.data), sizeof(slot.data), offset, false, false) != offset)
			elog(ERROR, "could not lay down slot %u of the lease table", offset);
	}
	GenericXLogFinish(state);
	XactLastRecEnd = end;
}

/* ---- The table ---- */

/* What to do about damage; returns what errhint() does. */
int
dl_table_hint_at_damage(void)
{
	return errhint("Restore it from a backup, or have a superuser call distlock_discard_damaged(), which forgets the leases in question and lets nobody acquire any until they must have expired.");
}

void
dl_table_report_damage(Relation rel, BlockNumber block, OffsetNumber offset,
					   const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("lease table \"%s\" is damaged", RelationGetRelationName(rel)),
			 offset == InvalidOffsetNumber ?
			 errdetail("Block %u: %s.", block, what) :
			 errdetail("Block %u, slot %u: %s.", block, offset, what),
			 dl_table_hint_at_damage()));
}

static void
refuse_to_write(Relation rel, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot store a durable lease in relation \"%s\"",
					RelationGetRelationName(rel)),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}

/*
 * Open the lease table and lock it against being rewritten.  May wait for that
 * lock; throws when the table is gone, is not of this version, or cannot be
 * used this way.
 */
Relation
dl_table_open(const DlExtension *extension, DlTableUse use)
{
	LOCKMODE	mode = use == DL_TABLE_READ ? AccessShareLock : RowExclusiveLock;
	Relation	rel;

	LockRelationOid(extension->lease_table, mode);
	rel = try_relation_open(extension->lease_table, NoLock);
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension distlock has been dropped")));
	if (rel->rd_rel->relkind != RELKIND_RELATION ||
		RelationGetDescr(rel)->natts != 1 ||
		TupleDescAttr(RelationGetDescr(rel), 0)->attlen != sizeof(DlImageData))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("relation \"%s\" is not a lease table of this version of distlock",
						RelationGetRelationName(rel)),
				 errhint("Install the version of distlock that the extension was created with, or a later one.")));
	if (use == DL_TABLE_WRITE)
	{
		if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
			refuse_to_write(rel, "It would not outlive a crash.",
							"Set it LOGGED, or acquire with durable => false.");
		if (!RelationNeedsWAL(rel))
			refuse_to_write(rel, "This transaction has created it, and \"wal_level\" is \"minimal\".",
							"Commit before you acquire, or acquire with durable => false.");
	}
	if (use != DL_TABLE_READ &&
		dl_rewritten_subxact(rel) != InvalidSubTransactionId &&
		rel->rd_createSubid == InvalidSubTransactionId)
		refuse_to_write(rel, "This transaction has rewritten it, and what is stored there would be lost by a rollback.",
						"Commit before you acquire.");
	return rel;
}

/* Give up the lock as well: nothing that was written is undone by a rollback. */
void
dl_table_close(Relation rel, DlTableUse use)
{
	relation_close(rel, use == DL_TABLE_READ ? AccessShareLock : RowExclusiveLock);
}

/*
 * Lock the page of a place exclusively.  *image is null if the table has no
 * such place.  Throws when the page cannot be read; damage of the page is not
 * complained of here.
 */
Buffer
dl_table_lock_place(Relation rel, DlPlace place, DlImageData **image)
{
	static Oid	file = InvalidOid;
	static BlockNumber nblocks = 0;
	Buffer		buffer;

	/* Pages with slots are never cut off; asking for the length is a system call. */
	*image = NULL;
	if (file != dl_file_of(rel) || place.block >= nblocks)
	{
		file = dl_file_of(rel);
		nblocks = RelationGetNumberOfBlocks(rel);
	}
	if (place.block >= nblocks)
		return InvalidBuffer;
	buffer = ReadBuffer(rel, place.block);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (dl_page_is_sound(BufferGetPage(buffer)))
		*image = dl_page_image(BufferGetPage(buffer), place.offset);
	return buffer;
}

/* Is this the image of the nth lease under this token? */
bool
dl_image_is_of(const DlImageData *image, int64 token, int nth)
{
	return image->token == token && image->nth == nth && image->database == MyDatabaseId &&
		dl_image_check(image) == DL_CHECK_LEASE;
}

/*
 * Look for an image through the whole table.  Returns false if it is not
 * there.  Takes buffer locks; may throw when a page cannot be read.
 */
bool
dl_table_find_image(Relation rel, int64 token, int nth, DlPlace *place)
{
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);

	for (BlockNumber block = 0; block < nblocks; block++)
	{
		Buffer		buffer = ReadBuffer(rel, block);
		Page		page = BufferGetPage(buffer);
		bool		found = false;

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		if (dl_page_is_sound(page))
			for (OffsetNumber offset = FirstOffsetNumber;
				 offset <= DL_SLOTS_PER_PAGE && !found; offset++)
			{
				found = dl_image_is_of(dl_page_image(page, offset), token, nth);
				place->file = dl_file_of(rel);
				place->block = block;
				place->offset = offset;
			}
		UnlockReleaseBuffer(buffer);
		if (found)
			return true;
		CHECK_FOR_INTERRUPTS();
	}
	return false;
}

/*
 * Note in the control row that the table has that many pages.  What comes back
 * after a crash in between are pages that the row does not know of.
 */
static void
note_pages(const DlExtension *extension, BlockNumber npages)
{
	DlControlFile file;
	DlControl	control;
	int64		sequence_limit;

	(void) dl_control_open(extension, true, &file);
	LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	control = dl_control_read(&file, &sequence_limit);
	if (control.lease_pages < npages)
	{
		control.lease_pages = npages;
		(void) dl_control_write(&file, &control);
	}
	LWLockRelease(dl_shared->token_lock);
	dl_control_close(&file);
}

/* Lay down one more page, unless somebody else has meanwhile. */
static void
extend(Relation rel, const DlExtension *extension, BlockNumber nblocks)
{
	LockRelationForExtension(rel, ExclusiveLock);
	if (RelationGetNumberOfBlocks(rel) == nblocks)
	{
		Buffer		buffer = ReadBufferExtended(rel, MAIN_FORKNUM, P_NEW,
												RBM_ZERO_AND_LOCK, NULL);

		dl_page_format(rel, buffer);
		UnlockReleaseBuffer(buffer);
	}
	UnlockRelationForExtension(rel, ExclusiveLock);
	note_pages(extension, nblocks + 1);
}

/*
 * Find a vacant slot, in a new page if need be, and return its page locked
 * exclusively.
 *
 * free_block is where to begin.  It is moved under the lock of the page that
 * it moves to or from, so that no slot is left behind.
 */
Buffer
dl_table_lock_vacant(Relation rel, const DlExtension *extension,
					 DlDatabase *database, DlPlace *place)
{
	pg_atomic_uint32 *free_block = &database->free_block;

	for (;;)
	{
		uint32		block = pg_atomic_read_u32(free_block);
		BlockNumber nblocks = RelationGetNumberOfBlocks(rel);
		Buffer		buffer;
		Page		page;
		OffsetNumber nslots;

		if (block >= nblocks)
		{
			extend(rel, extension, nblocks);
			block = nblocks;
		}
		buffer = ReadBuffer(rel, block);
		page = BufferGetPage(buffer);
		LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
		if (PageIsNew(page))
		{
			/* A crash came before its slots, or it has been lost since. */
			dl_page_format(rel, buffer);
			UnlockReleaseBuffer(buffer);
			note_pages(extension, block + 1);
			continue;
		}
		nslots = dl_page_is_sound(page) ? DL_SLOTS_PER_PAGE : 0;
		for (OffsetNumber offset = FirstOffsetNumber; offset <= nslots; offset++)
			if (dl_image_is_vacant(dl_page_image(page, offset)))
			{
				place->file = dl_file_of(rel);
				place->block = block;
				place->offset = offset;
				return buffer;
			}
		(void) pg_atomic_compare_exchange_u32(free_block, &block, block + 1);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Overwrite the image in a slot of a sound page that is locked exclusively;
 * without an image, empty it.  Returns what has to be flushed.
 *
 * The record is one of Generic WAL, put together by hand: a fragment of the
 * page, its offset and length before it.  GenericXLogFinish() would find the
 * same by comparing two copies of the page, which takes more time than all the
 * rest of a durable acquire on this side of the kernel.
 */
XLogRecPtr
dl_table_write(Relation rel, Buffer buffer, OffsetNumber offset, DlImageData *image)
{
	XLogRecPtr	end = XactLastRecEnd;
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	Page		page = BufferGetPage(buffer);
	char	   *slot = (char *) dl_page_image(page, offset);
	OffsetNumber fragment[2] = {slot - page, sizeof(DlImageData)};
	DlImageData empty;

	freeze_slots(rel, buffer);
	if (image == NULL)
		empty_image(image = &empty);
	else
		seal_image(image);

	START_CRIT_SECTION();
	memcpy(slot, image, sizeof(DlImageData));
	MarkBufferDirty(buffer);
	if (RelationNeedsWAL(rel))
	{
		XLogBeginInsert();
		XLogRegisterBuffer(0, buffer, REGBUF_STANDARD);
		XLogRegisterBufData(0, (char *) fragment, sizeof(fragment));
		XLogRegisterBufData(0, slot, sizeof(DlImageData));
		lsn = XLogInsert(RM_GENERIC_ID, 0);
		PageSetLSN(page, lsn);
	}
	END_CRIT_SECTION();

	/* Whoever needs it flushed flushes it; the commit does not have to. */
	XactLastRecEnd = end;
	return lsn;
}

/*
 * Write a record, and change nothing.  Returns what has to be flushed, so that
 * everything that was written to the table before is as well.
 */
XLogRecPtr
dl_table_touch(Relation rel)
{
	XLogRecPtr	end = XactLastRecEnd;
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	Buffer		buffer;

	if (RelationGetNumberOfBlocks(rel) == 0)
		return lsn;
	buffer = ReadBuffer(rel, 0);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (dl_page_is_sound(BufferGetPage(buffer)))
	{
		GenericXLogState *state = GenericXLogStart(rel);

		(void) GenericXLogRegisterBuffer(state, buffer, 0);
		lsn = GenericXLogFinish(state);
	}
	UnlockReleaseBuffer(buffer);
	XactLastRecEnd = end;
	return lsn;
}

/* The page, which is locked exclusively, has a vacant slot. */
void
dl_table_note_vacant(DlDatabase *database, BlockNumber block)
{
	pg_atomic_uint32 *free_block = &database->free_block;
	uint32		first;

	first = pg_atomic_read_u32(free_block);
	while (block < first &&
		   !pg_atomic_compare_exchange_u32(free_block, &first, block))
		;
}
