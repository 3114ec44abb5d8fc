/*-------------------------------------------------------------------------
 *
 * images.c
 *	  The reference model of what the engine knows of images on disk.
 *
 * An image has a claim until the claim gives up its place.  If it may be on
 * disk by then it turns stale, and is free again only when somebody has seen to
 * it that it is not, or its table is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

/* One that is not in use: there must be. */
ModelImage *
model_new_image(void)
{
	ModelImage *image = model.images;

	while (image->state != DL_IMAGE_FREE)
		image++;
	memset(image, 0, sizeof(ModelImage));
	image->state = DL_IMAGE_UNWRITTEN;
	return image;
}

int
model_images_used(void)
{
	int			n = 0;

	for (int i = 0; i < MAX_IMAGES; i++)
		n += model.images[i].state != DL_IMAGE_FREE;
	return n;
}

void
model_free_image(ModelImage *image)
{
	memset(image, 0, sizeof(ModelImage));
}

/* The claim is granted. */
void
model_link_image(Claim *claim)
{
	claim->image->token = claim->token;
	claim->image->nth = claim->nth;
	claim->image->ttl = claim->ttl;
	claim->image->linked = true;
}

void
model_make_stale(ModelImage *image, int64 since)
{
	int			partition = model_partition(image->lock);

	image->state = DL_IMAGE_STALE;
	image->claim = NULL;
	image->stale_since = since;
	model.stale[partition][model.nstale[partition]++] = image;
}

static void
leave_stale(ModelImage *image)
{
	int			partition = model_partition(image->lock);
	ModelImage **stale = model.stale[partition];
	int			i = 0;

	while (stale[i] != image)
		i++;
	memmove(&stale[i], &stale[i + 1], (--model.nstale[partition] - i) * sizeof(ModelImage *));
}

void
model_abandon_image(Claim *claim)
{
	ModelImage *image = claim->image;

	claim->image = NULL;
	if (image == NULL)
		return;
	if (image->state == DL_IMAGE_KEPT)
		model_make_stale(image, model.now);
	else
		model_free_image(image);
}

void
model_drop_image(Claim *claim)
{
	if (claim->image != NULL)
		model_free_image(claim->image);
	claim->image = NULL;
}

/* Did an earlier lease of the lock leave it behind, for all that can be told? */
bool
model_is_leftover(const ModelImage *image, const ModelLock *lock)
{
	return image->linked && image->claim == NULL &&
		image->lock->key.hash == lock->key.hash &&
		image->lock->key.database == lock->key.database &&
		image->lock->key.extension == lock->key.extension;
}

bool
model_has_leftovers(const ModelLock *lock)
{
	for (int i = 0; i < MAX_IMAGES; i++)
		if (model_is_leftover(&model.images[i], lock))
			return true;
	return false;
}

/* The claim may be null.  Returns whether the image is to be written. */
bool
model_place(Claim *claim, DlPlace place)
{
	if (claim == NULL || (claim->state != DL_GRANTED && claim->state != DL_LIVE) ||
		claim->deadline <= model.now)
		return false;
	claim->image->state = DL_IMAGE_KEPT;
	claim->image->place = place;
	return true;
}

/* The claim may be null. */
void
model_stored(Claim *claim, int64 ttl)
{
	if (claim == NULL || claim->image == NULL)
		return;
	claim->flushed = true;
	claim->image->ttl = Max(claim->image->ttl, ttl);
}

void
model_condemn(ModelImage *image)
{
	leave_stale(image);
	image->state = DL_IMAGE_CONDEMNED;
}

/* By whoever condemned it. */
void
model_spare(ModelImage *image)
{
	int			partition = model_partition(image->lock);
	ModelImage **stale = model.stale[partition];

	if (!image->linked)
	{
		model_free_image(image);
		return;
	}
	image->state = DL_IMAGE_STALE;
	memmove(&stale[1], stale, model.nstale[partition]++ * sizeof(ModelImage *));
	stale[0] = image;
}

/* Not by whoever condemned it, which calls model_free_image(). */
void
model_forget(ModelImage *image)
{
	if (image->state == DL_IMAGE_CONDEMNED)
	{
		image->linked = false;
		return;
	}
	leave_stale(image);
	model_free_image(image);
}

void
model_remove_images(int partition, Oid database, Oid extension)
{
	for (int i = 0; i < MAX_IMAGES; i++)
	{
		ModelImage *image = &model.images[i];

		if (image->state == DL_IMAGE_FREE || image->claim != NULL || !image->linked ||
			model_partition(image->lock) != partition ||
			image->lock->key.database != database ||
			(OidIsValid(extension) && image->lock->key.extension != extension))
			continue;
		model_forget(image);
	}
}

/* Null when there is none. */
ModelImage *
model_image_of(const DlImage *record)
{
	for (int i = 0; i < MAX_IMAGES; i++)
		if (model.images[i].state != DL_IMAGE_FREE && model.images[i].record == record)
			return &model.images[i];
	return NULL;
}
