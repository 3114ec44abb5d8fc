/*-------------------------------------------------------------------------
 *
 * image.c
 *	  What the engine knows of the images of leases in the lease table.
 *
 * From before an image is written until after it is overwritten or cleared,
 * and that is flushed, there is a record of it here, in a bucket by the key of
 * its lock.  So whoever is granted a lock finds whatever a crash might bring
 * back of its earlier leases.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "engine_parts.h"

/*
 * So many stale images of other databases are passed by in search of one: the
 * partition is locked meanwhile.
 */
#define MOST_LOOKED_AT	64

static inline dlist_head *
image_bucket(DlEngine *engine, uint32 hash)
{
	return &engine->partitions[dl_partition_of(hash)].images[(hash / DL_NPARTITIONS) &
															 (engine->nbuckets - 1)];
}

static inline bool
is_of(const DlImage *image, const DlKey *key)
{
	return image->hash == key->hash && image->database == key->database &&
		image->extension == key->extension;
}

/* From now on the image may be found, by the key of its lock. */
static void
link_image(DlEngine *engine, DlPartition *part, DlImage *image, const DlKey *key,
		   int64 token, int nth, int64 ttl)
{
	image->database = key->database;
	image->extension = key->extension;
	image->hash = key->hash;
	image->token = token;
	image->nth = nth;
	image->ttl = ttl;
	dlist_push_head(image_bucket(engine, image->hash), &image->link);
	image->linked = true;
	part->nimages++;
}

static void
unlink_image(DlPartition *part, DlImage *image)
{
	dlist_delete(&image->link);
	image->linked = false;
	part->nimages--;
}

static void
free_image(DlPartition *part, DlImage *image)
{
	if (image->linked)
		unlink_image(part, image);
	image->state = DL_IMAGE_FREE;
	image->lease = NULL;
	dl_give_free(part, DL_IMAGE, &image->link);
}

static void
make_stale(DlPartition *part, DlImage *image, int64 now)
{
	image->state = DL_IMAGE_STALE;
	image->lease = NULL;
	image->stale_since = now;
	dlist_push_tail(&part->stale, &image->stale_link);
	part->nstale++;
}

static void
leave_stale(DlPartition *part, DlImage *image)
{
	dlist_delete(&image->stale_link);
	part->nstale--;
}

/* ---- With its lease ---- */

/* Give a request an image that is not in use. */
void
dl_image_attach(DlLease *lease, dlist_node *node)
{
	DlImage    *image = dlist_container(DlImage, link, node);

	image->state = DL_IMAGE_UNWRITTEN;
	image->lease = lease;
	image->linked = false;
	lease->image = image;
}

/* The lease is granted: from now on its image may be found. */
void
dl_image_link(DlEngine *engine, DlPartition *part, DlLease *lease)
{
	link_image(engine, part, lease->image, &lease->lock->key, lease->token, lease->nth,
			   lease->ttl);
}

/*
 * A session is about to write the image of the lease there, and keeps the page
 * locked until it has.  Returns whether the lease is still to be stored: granted
 * or live.
 */
bool
dl_engine_place(DlLease *lease, uint64 serial, DlPlace place, int64 now)
{
	if (lease->serial != serial ||
		(lease->state != DL_GRANTED && lease->state != DL_LIVE) ||
		lease->deadline <= now)
		return false;
	lease->image->state = DL_IMAGE_KEPT;
	lease->image->place = place;
	return true;
}

/*
 * The image of the lease is on disk, with this time to live at least.  Not if
 * the record stands for another lease by now.
 */
void
dl_engine_stored(DlLease *lease, uint64 serial, int64 ttl)
{
	if (lease->serial != serial || lease->image == NULL)
		return;
	Assert(lease->image->state == DL_IMAGE_KEPT);
	lease->flushed = true;
	lease->image->ttl = Max(lease->image->ttl, ttl);
}

/* The lease has given up its place, if it had any. */
void
dl_image_abandon(DlPartition *part, DlLease *lease, int64 now)
{
	DlImage    *image = lease->image;

	if (image == NULL)
		return;
	lease->image = NULL;
	if (image->state == DL_IMAGE_KEPT)
		make_stale(part, image, now);
	else
		free_image(part, image);
}

/* The lease table has been dropped. */
void
dl_image_drop(DlPartition *part, DlLease *lease)
{
	if (lease->image != NULL)
		free_image(part, lease->image);
	lease->image = NULL;
}

/* ---- On its own ---- */

/* An image on disk whose lease is not recovered. */
void
dl_image_add_stale(DlEngine *engine, DlPartition *part,
				   const DlRecovered *recovered, dlist_node *node, int64 now)
{
	DlImage    *image = dlist_container(DlImage, link, node);

	image->place = recovered->place;
	link_image(engine, part, image, &recovered->key, recovered->token, recovered->nth,
			   recovered->ttl);
	make_stale(part, image, now);
}

/*
 * The image of that lease under that token, or null: two locks of one request
 * may have the same hash.  A shared partition lock is enough.
 */
DlImage *
dl_engine_find_image(DlEngine *engine, const DlKey *key, int64 token, int nth)
{
	dlist_iter	iter;

	dlist_foreach(iter, image_bucket(engine, key->hash))
	{
		DlImage    *image = dlist_container(DlImage, link, iter.cur);

		if (is_of(image, key) && image->token == token && image->nth == nth)
			return image;
	}
	return NULL;
}

/*
 * The images that earlier leases of this lock have left behind, but no more
 * than "most".  Returns how many.  It does no harm to take those of another
 * name with the same hash for them.  A shared partition lock is enough.
 */
int
dl_engine_leftovers(DlEngine *engine, const DlKey *key, DlImage **images, int most)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, image_bucket(engine, key->hash))
	{
		DlImage    *image = dlist_container(DlImage, link, iter.cur);

		if (n < most && image->lease == NULL && is_of(image, key))
			images[n++] = image;
	}
	return n;
}

/*
 * Take a stale image of this extension in order to overwrite it: one left
 * behind by this lock if there is any, else the oldest; or null.  The key may
 * be null.
 */
DlImage *
dl_engine_condemn(DlEngine *engine, int partition, Oid database, Oid extension,
				  const DlKey *key)
{
	DlPartition *part = &engine->partitions[partition];
	DlImage    *image = NULL;
	int			nlooked = 0;
	dlist_iter	iter;

	if (part->nstale == 0)
		return NULL;
	if (key == NULL || dl_engine_leftovers(engine, key, &image, 1) == 0 ||
		image->state != DL_IMAGE_STALE)
	{
		image = NULL;
		dlist_foreach(iter, &part->stale)
		{
			image = dlist_container(DlImage, stale_link, iter.cur);
			if (image->database == database && image->extension == extension)
				break;
			image = NULL;
			if (++nlooked == MOST_LOOKED_AT)
				break;
		}
	}
	if (image == NULL)
		return NULL;
	leave_stale(part, image);
	image->state = DL_IMAGE_CONDEMNED;
	return image;
}

/* The image that this session has condemned was not overwritten after all. */
void
dl_engine_spare(DlEngine *engine, int partition, DlImage *image)
{
	DlPartition *part = &engine->partitions[partition];

	Assert(image->state == DL_IMAGE_CONDEMNED);
	if (image->linked)
	{
		/* It was among the oldest. */
		image->state = DL_IMAGE_STALE;
		dlist_push_head(&part->stale, &image->stale_link);
		part->nstale++;
	}
	else
		free_image(part, image);
}

/*
 * The image is gone from the disk, and that is flushed.  Of those that others
 * have condemned, the record stays with them.
 */
void
dl_engine_forget(DlEngine *engine, int partition, DlImage *image, bool condemned)
{
	DlPartition *part = &engine->partitions[partition];

	if (condemned)
		Assert(image->state == DL_IMAGE_CONDEMNED);
	else if (image->state == DL_IMAGE_CONDEMNED)
	{
		unlink_image(part, image);
		return;
	}
	else
		leave_stale(part, image);
	free_image(part, image);
}

/* The extension, or with an invalid "extension" the whole database, is gone. */
void
dl_image_remove(DlEngine *engine, DlPartition *part, Oid database, Oid extension)
{
	for (uint32 i = 0; part->nimages > 0 && i < engine->nbuckets; i++)
	{
		dlist_mutable_iter iter;

		dlist_foreach_modify(iter, &part->images[i])
		{
			DlImage    *image = dlist_container(DlImage, link, iter.cur);

			if (image->lease != NULL || image->database != database ||
				(OidIsValid(extension) && image->extension != extension))
				continue;
			dl_engine_forget(engine, part - engine->partitions, image, false);
		}
	}
}
