/*-------------------------------------------------------------------------
 *
 * recovery.c
 *	  Bringing back the leases of the lease table.
 *
 * All leases are brought back, or none: whatever is in the way, a damaged image
 * or too little memory, is an error, and nothing is lost by it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "arguments.h"
#include "distlock.h"
#include "lease_table.h"
#include "recovery.h"

/* ---- Reading ---- */

/* What is wrong with an image; null if nothing is. */
static const char *
damage_of(const DlImageData *image, DlImageCheck check, int64 token_limit)
{
	if (check == DL_CHECK_DAMAGED)
		return "the image does not match its checksum, or its values are impossible";
	if (check == DL_CHECK_LEASE && image->token > token_limit)
		return "its token is one that has not been handed out yet";
	return NULL;
}

static void
add_lease(DlRecovery *recovery, const DlKey *key, const DlImageData *image,
		  DlPlace place)
{
	DlRecovered *lease;

	if (recovery->nleases == recovery->max_leases)
	{
		recovery->max_leases = Max(64, 2 * recovery->max_leases);
		recovery->leases = recovery->leases == NULL ?
			palloc_extended(recovery->max_leases * sizeof(DlRecovered), MCXT_ALLOC_HUGE) :
			repalloc_huge(recovery->leases, recovery->max_leases * sizeof(DlRecovered));
	}
	lease = &recovery->leases[recovery->nleases++];
	lease->key = *key;
	lease->place = place;
	lease->token = image->token;
	lease->ttl = image->ttl;
	lease->granted_at = image->granted_at;
	lease->mode = image->mode;
	lease->limit = image->limit;
	lease->nparts = image->nparts;
	lease->nth = image->nth;
	lease->owner = image->owner;
	lease->id_hash = dl_request_id_hash(image->request_id, image->owner, key);
	strcpy(lease->holder, image->holder);
	strcpy(lease->request_id, image->request_id);
}

/*
 * Take in one image.  Its page is locked, so one that the engine knows of stays
 * as it is until we have looked.  Returns whether its slot is vacant.
 */
static bool
read_image(Relation rel, const DlExtension *extension, const DlImageData *image,
		   DlPlace place, DlRecovery *recovery)
{
	DlImageCheck check = dl_image_check(image);
	const char *damage = damage_of(image, check, recovery->token_limit);
	DlEffects	fx = DL_NO_EFFECTS;
	DlKey		key;
	bool		known;

	if (damage != NULL)
		dl_table_report_damage(rel, place.block, place.offset, damage);
	if (check == DL_CHECK_NEWER)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("lease table \"%s\" has images of a newer format",
						RelationGetRelationName(rel)),
				 errdetail("Block %u, slot %u: format %d; this version of distlock reads format %d.",
						   place.block, place.offset, image->format, DL_IMAGE_FORMAT),
				 errhint("Install a newer version of distlock.")));
	if (check == DL_CHECK_EMPTY || image->database != MyDatabaseId)
		return true;

	dl_make_key(image->name, image->name_len, extension, &key);
	dl_partition_lock(dl_partition_of(key.hash), LW_SHARED);
	known = dl_engine_find_image(dl_shared->engine, &key, image->token, image->nth) != NULL;
	dl_partition_unlock(dl_partition_of(key.hash), &fx);
	if (!known)
		add_lease(recovery, &key, image, place);
	return false;
}

static void
read_page(Relation rel, const DlExtension *extension, Page page,
		  BlockNumber block, bool required, DlRecovery *recovery)
{
	DlPlace		place = {.file = dl_file_of(rel),.block = block};

	if (PageIsNew(page) && !required)
	{
		/* A crash came after the table was extended, but before its slots. */
		recovery->npages = Min(recovery->npages, block);
		recovery->first_vacant = Min(recovery->first_vacant, block);
		return;
	}
	if (!dl_page_is_sound(page))
		dl_table_report_damage(rel, block, InvalidOffsetNumber,
							   PageIsNew(page) ? "the page is empty" : "the page has no proper slots");
	for (place.offset = FirstOffsetNumber; place.offset <= DL_SLOTS_PER_PAGE; place.offset++)
		if (read_image(rel, extension, dl_page_image(page, place.offset), place, recovery))
			recovery->first_vacant = Min(recovery->first_vacant, block);
}

static void
damage_context(void *arg)
{
	errcontext("while reading the leases of relation \"%s\"",
			   RelationGetRelationName((Relation) arg));
	/* A page that PostgreSQL itself refuses to read */
	if (geterrcode() == ERRCODE_DATA_CORRUPTED)
		(void) dl_table_hint_at_damage();
}

/*
 * Read the images that the engine does not know of.  Takes buffer locks; throws
 * when a page or an image is damaged, missing, or of a newer format.
 */
void
dl_recovery_read(const DlExtension *extension, const DlControlFile *file,
				 DlRecovery *recovery)
{
	Relation	rel = dl_table_open(extension, DL_TABLE_READ);
	ErrorContextCallback context;
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);
	int64		sequence_limit;
	DlControl	control = dl_control_read(file, &sequence_limit);
	int64		required = control.lease_pages;

	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT && nblocks < required)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("leases have been lost with unlogged relation \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("A crash empties an unlogged relation."),
				 errhint("Set it LOGGED, then have a superuser call distlock_discard_damaged().")));
	memset(recovery, 0, sizeof(DlRecovery));
	recovery->token_limit = control.token_limit;
	recovery->npages = recovery->first_vacant = nblocks;
	if (nblocks < required)
		dl_table_report_damage(rel, nblocks, InvalidOffsetNumber,
							   psprintf("the table ends here, but had %lld blocks", (long long) required));

	context.callback = damage_context;
	context.arg = rel;
	context.previous = error_context_stack;
	error_context_stack = &context;
	for (BlockNumber block = 0; block < nblocks; block++)
	{
		Buffer		buffer = ReadBuffer(rel, block);

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		read_page(rel, extension, BufferGetPage(buffer), block, block < required, recovery);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	error_context_stack = context.previous;
	dl_table_close(rel, DL_TABLE_READ);
}

/* ---- Bringing back ---- */

static int
by_falling_token(const void *a, const void *b)
{
	int64		token_a = ((const DlRecovered *) a)->token;
	int64		token_b = ((const DlRecovered *) b)->token;

	return token_a > token_b ? -1 : token_a < token_b;
}

/*
 * Bring back what was read.  Nobody else may use the database yet.  Throws
 * 53400, and leaves nothing behind, if it does not fit; takes partition locks.
 */
void
dl_recovery_finish(DlRecovery *recovery, DlDatabase *database)
{
	DlReserve	reserve;

	if (!dl_engine_reserve(dl_shared->engine, recovery->nleases, &reserve))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many leases"),
				 errdetail("%d durable leases of this database are to be brought back, and there is room for %d leases in all databases.",
						   recovery->nleases, dl_max_leases),
				 errhint("Increase \"distlock.max_leases\" and restart the server.")));
	if (recovery->nleases > 0)
		qsort(recovery->leases, recovery->nleases, sizeof(DlRecovered), by_falling_token);
	for (int i = 0; i < recovery->nleases; i++)
	{
		DlRecovered *lease = &recovery->leases[i];
		int			partition = dl_partition_of(lease->key.hash);
		DlEffects	fx = DL_NO_EFFECTS;

		lease->supply = &database->supply;
		lease->deadline = dl_accepting_since() + lease->ttl;
		lease->usable = lease->token > database->unusable_limit;
		dl_partition_lock(partition, LW_EXCLUSIVE);
		dl_engine_recover(dl_shared->engine, &reserve, lease, dl_now(), &fx);
		dl_partition_unlock(partition, &fx);
	}
	dl_engine_unreserve(dl_shared->engine, &reserve);
	pg_atomic_write_u32(&database->free_block, recovery->first_vacant);
	if (recovery->leases != NULL)
		pfree(recovery->leases);
}

/* ---- Giving up what is damaged ---- */

/* The damaged slots of a page, which is locked; with "discard", empty them. */
static int
find_damaged(Relation rel, Buffer buffer, int64 token_limit, bool discard)
{
	int			n = 0;

	if (!dl_page_is_sound(BufferGetPage(buffer)))
	{
		if (discard)
			dl_page_format(rel, buffer);
		return DL_SLOTS_PER_PAGE;
	}
	for (OffsetNumber offset = FirstOffsetNumber; offset <= DL_SLOTS_PER_PAGE; offset++)
	{
		const DlImageData *image = dl_page_image(BufferGetPage(buffer), offset);

		if (damage_of(image, dl_image_check(image), token_limit) == NULL)
			continue;
		if (discard)
			(void) dl_table_write(rel, buffer, offset, NULL);
		n++;
	}
	return n;
}

/*
 * How many slots are damaged.  A page that is no page of ours, cannot be read
 * or is missing counts as full of them.  With "discard", empties them.  May
 * throw; takes buffer locks.  Needs the database not to be attached.
 */
int
dl_recovery_find_damaged(const DlExtension *extension, const DlControl *control,
						 bool discard)
{
	Relation	rel = dl_table_open(extension, DL_TABLE_CLEAR);
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);
	int			n = 0;

	if (nblocks < control->lease_pages)
		n = (control->lease_pages - nblocks) * DL_SLOTS_PER_PAGE;
	for (BlockNumber block = 0; block < nblocks; block++)
	{
		Buffer		buffer = ReadBufferExtended(rel, MAIN_FORKNUM, block,
												RBM_ZERO_ON_ERROR, NULL);

		LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
		if (!PageIsNew(BufferGetPage(buffer)) || block < control->lease_pages)
			n += find_damaged(rel, buffer, control->token_limit, discard);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	dl_table_close(rel, DL_TABLE_CLEAR);
	return n;
}
