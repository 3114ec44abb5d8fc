/*-------------------------------------------------------------------------
 *
 * disk.c
 *	  A disk with lease tables on it, and what must be there at any moment.
 *
 * A write is a record in a log.  A crash keeps what has been flushed, and of
 * the rest as many of the oldest records as it likes.  So there is one state
 * of the disk for each record not flushed yet that a crash may leave, and what
 * must hold of the disk must hold of all of them.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

#define MAX_LOG 256

typedef struct Record
{
	int			table;
	DlPlace		place;
	DiskImage	image;
} Record;

Table		tables[MAX_TABLES];

static Record records[MAX_LOG];	/* not flushed yet; the first is flushed_lsn + 1 */
static int64 flushed_lsn;
static int64 end_lsn;

void
begin_disk(void)
{
	memset(tables, 0, sizeof(tables));
	for (int t = 0; t < MAX_TABLES; t++)
		for (int p = 0; p < MAX_PAGES; p++)
			tables[t].pages[p].locked_by = -1;
	flushed_lsn = end_lsn = 0;
}

/* Records that a crash may lose. */
int
disk_pending(void)
{
	return end_lsn - flushed_lsn;
}

/* Null when there is no such place. */
DiskImage *
disk_slot(int table, DlPlace place)
{
	if (place.block >= tables[table].npages)
		return NULL;
	return &tables[table].pages[place.block].slots[place.offset];
}

static DiskImage *
flushed_slot(int table, DlPlace place)
{
	return &tables[table].pages[place.block].flushed[place.offset];
}

/* Is it the image of the nth lease under that token, or, for 0, is the slot vacant? */
bool
disk_is_of(const DiskImage *image, int64 token, int nth)
{
	return image->token == token && image->nth == nth;
}

/*
 * Look for an image through the whole table.  *lsn is what to flush if it is
 * not there.  *busy is set when a page is locked by another job: try again.
 */
bool
disk_find(int table, int64 token, int nth, int job, DlPlace *place, int64 *lsn, bool *busy)
{
	Table	   *t = &tables[table];

	*busy = false;
	*lsn = 0;
	for (int p = 0; p < t->npages; p++)
	{
		if (t->pages[p].locked_by >= 0 && t->pages[p].locked_by != job)
		{
			*busy = true;
			return false;
		}
		*lsn = Max(*lsn, t->pages[p].lsn);
		for (int s = 0; s < SLOTS_PER_PAGE; s++)
			if (disk_is_of(&t->pages[p].slots[s], token, nth))
			{
				place->block = p;
				place->offset = s;
				return true;
			}
	}
	return false;
}

/* False when a page is locked by another job: try again. */
bool
disk_find_vacant(int table, int job, DlPlace *place)
{
	Table	   *t = &tables[table];
	int64		lsn;
	bool		busy;

	if (disk_find(table, 0, 0, job, place, &lsn, &busy))
		return true;
	if (busy)
		return false;
	verify(CHECK_DISK_SIZE, t->npages < MAX_PAGES, "a lease table grows without end");
	place->block = t->npages++;
	place->offset = 0;
	return true;
}

/* Returns what has to be flushed. */
int64
disk_write(int table, DlPlace place, const DiskImage *image)
{
	DiskImage  *slot = disk_slot(table, place);
	Record	   *record;

	if (disk_pending() == MAX_LOG)
		disk_flush(flushed_lsn + MAX_LOG / 2);
	record = &records[disk_pending()];
	record->table = table;
	record->place = place;
	record->image = *image;
	*slot = *image;
	return tables[table].pages[place.block].lsn = ++end_lsn;
}

void
disk_flush(int64 lsn)
{
	int			n = Max(lsn - flushed_lsn, 0);

	for (int i = 0; i < n; i++)
		*flushed_slot(records[i].table, records[i].place) = records[i].image;
	memmove(records, &records[n], (disk_pending() - n) * sizeof(Record));
	flushed_lsn += n;
}

/* Somebody else flushes, up to anywhere. */
void
disk_flush_some(void)
{
	disk_flush(flushed_lsn + random_below(disk_pending() + 1));
}

void
disk_crash(void)
{
	disk_flush_some();
	events.lost += disk_pending();
	end_lsn = flushed_lsn;
	for (int t = 0; t < MAX_TABLES; t++)
	{
		for (int p = 0; p < tables[t].npages; p++)
		{
			Page	   *page = &tables[t].pages[p];

			memcpy(page->slots, page->flushed, sizeof(page->slots));
			page->lsn = Min(page->lsn, end_lsn);
			page->locked_by = -1;
		}
		tables[t].nopen = 0;
	}
}

static void
forget_records(int table)
{
	static const DiskImage vacant;

	for (int i = 0; i < disk_pending(); i++)
		if (records[i].table == table)
			records[i].image = vacant;
}

/*
 * The extension, or with an invalid "extension" the whole database, is dropped.
 * Returns false if that would have to wait for somebody.
 */
bool
disk_drop(Oid database, Oid extension)
{
	bool		dropped[MAX_TABLES] = {0};

	for (int i = 0; i < model.nlocks; i++)
	{
		const DlKey *key = &model.locks[i].key;

		if (key->database == database &&
			(!OidIsValid(extension) || key->extension == extension))
			dropped[model.locks[i].table] = true;
	}
	for (int t = 0; t < MAX_TABLES; t++)
		if (dropped[t] && tables[t].nopen > 0)
			return false;
	for (int t = 0; t < MAX_TABLES; t++)
	{
		if (!dropped[t])
			continue;
		for (int p = 0; p < tables[t].npages; p++)
		{
			memset(tables[t].pages[p].slots, 0, sizeof(tables[t].pages[p].slots));
			memset(tables[t].pages[p].flushed, 0, sizeof(tables[t].pages[p].flushed));
		}
		forget_records(t);
		tables[t].generation++;
	}
	return true;
}

/* Rewrite the table, which nobody may have open: images move. */
void
disk_compact(int table)
{
	Table	   *t = &tables[table];
	int			nslots = t->npages * SLOTS_PER_PAGE;

	disk_flush(end_lsn);
	for (int i = nslots - 1; i > 0; i--)
	{
		int			j = random_below(i + 1);
		DiskImage  *a = &t->pages[i / SLOTS_PER_PAGE].slots[i % SLOTS_PER_PAGE];
		DiskImage  *b = &t->pages[j / SLOTS_PER_PAGE].slots[j % SLOTS_PER_PAGE];
		DiskImage	swap = *a;

		*a = *b;
		*b = swap;
	}
	for (int p = 0; p < t->npages; p++)
	{
		memcpy(t->pages[p].flushed, t->pages[p].slots, sizeof(t->pages[p].slots));
		t->pages[p].lsn = end_lsn;
	}
}

/* ---- What must hold ---- */

/* Would every crash bring back this lease, with its time to live at least? */
bool
disk_keeps(const Claim *claim)
{
	int			table = claim->lock->table;
	Table	   *t = &tables[table];

	for (uint32 p = 0; p < t->npages; p++)
		for (uint16 s = 0; s < SLOTS_PER_PAGE; s++)
		{
			const DiskImage *image = &t->pages[p].flushed[s];
			bool		kept = image->token == claim->token && image->lock == claim->lock &&
				image->ttl >= claim->ttl && image->mode == claim->mode &&
				image->limit == claim->limit && image->owner == claim->owner &&
				strcmp(image->request_id, claim->request_id) == 0;

			for (int i = 0; i < disk_pending() && kept; i++)
				if (records[i].table == table && records[i].place.block == p &&
					records[i].place.offset == s)
					kept = records[i].image.token == claim->token &&
						records[i].image.lock == claim->lock &&
						records[i].image.ttl >= claim->ttl;
			if (kept)
				return true;
		}
	return false;
}

/* May a crash bring back this lease? */
bool
disk_may_have(int table, int64 token, int nth)
{
	Table	   *t = &tables[table];

	for (int p = 0; p < t->npages; p++)
		for (int s = 0; s < SLOTS_PER_PAGE; s++)
			if (disk_is_of(&t->pages[p].flushed[s], token, nth))
				return true;
	for (int i = 0; i < disk_pending(); i++)
		if (records[i].table == table && disk_is_of(&records[i].image, token, nth))
			return true;
	return false;
}

/* What a crash may bring back must have no successor that was told. */
static void
check_image_on_disk(const DiskImage *image)
{
	const ModelLock *lock = image->lock;
	ModelImage *known = model.images;

	if (image->token == 0)
		return;
	for (int limit = 0; limit <= MAX_LIMIT; limit++)
		for (DlMode mode = 0; mode < NMODES; mode++)
			verify(CHECK_SUPERSEDED, image->token >= lock->told[limit][mode] ||
				   (limit == image->limit && mode == DL_SHARED && image->mode == DL_SHARED),
				   "a crash may bring back token " INT64_FORMAT " of lock %.8s, and " INT64_FORMAT
				   " has been told since, mode %d, limit %d", image->token, lock->key.name,
				   lock->told[limit][mode], mode, limit);

	/* Or else a successor would not find it. */
	while (known < &model.images[MAX_IMAGES] &&
		   (!known->linked || known->token != image->token ||
			known->lock != image->lock))
		known++;
	verify(CHECK_SUPERSEDED, known < &model.images[MAX_IMAGES] ||
		   !model.attached[lock->database],
		   "nobody knows that token " INT64_FORMAT " may be on disk", image->token);
}

/* A holder was told of this lease, or that it lives longer. */
void
check_told(const Claim *claim)
{
	Table	   *t = &tables[claim->lock->table];

	verify(CHECK_DURABLE, !claim->durable || disk_keeps(claim),
		   "a crash may lose token " INT64_FORMAT ", which was told", claim->token);
	for (int p = 0; p < t->npages; p++)
		for (int s = 0; s < SLOTS_PER_PAGE; s++)
			if (t->pages[p].flushed[s].lock == claim->lock)
				check_image_on_disk(&t->pages[p].flushed[s]);
	for (int i = 0; i < disk_pending(); i++)
		if (records[i].image.lock == claim->lock)
			check_image_on_disk(&records[i].image);
}

void
check_disk(void)
{
	for (int t = 0; t < MAX_TABLES; t++)
		for (int p = 0; p < tables[t].npages; p++)
			for (int s = 0; s < SLOTS_PER_PAGE; s++)
				check_image_on_disk(&tables[t].pages[p].flushed[s]);
	for (int i = 0; i < disk_pending(); i++)
		check_image_on_disk(&records[i].image);
	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		const Claim *claim = &model.claims[i];

		if (claim->state == DL_LIVE && claim->durable)
			verify(CHECK_DURABLE, disk_keeps(claim),
				   "a crash may lose token " INT64_FORMAT ", which was told", claim->token);
	}
}
