/*-------------------------------------------------------------------------
 *
 * lease_table.h
 *	  The lease table: its pages, their slots, and the images in them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_LEASE_TABLE_H
#define DISTLOCK_LEASE_TABLE_H

#include "access/htup_details.h"
#include "access/xlogdefs.h"
#include "port/pg_crc32c.h"
#include "storage/buf.h"
#include "storage/bufpage.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

#include "compat.h"
#include "engine.h"
#include "extension.h"
#include "shmem.h"

#define DL_IMAGE_FORMAT	1

/*
 * An image on disk, and the value of type distlock_image.  A later format keeps
 * its length and the meaning of the first two fields.
 */
typedef struct DlImageData
{
	pg_crc32c	crc;			/* of all that follows */
	uint16		format;
	uint8		mode;
	uint8		name_len;
	int64		token;			/* 0: no lease */
	int64		ttl;			/* microseconds */
	TimestampTz granted_at;
	Oid			database;		/* a copied database ignores what it finds */
	Oid			owner;
	int32		limit;			/* of a semaphore, or 0 */
	uint16		nparts;			/* images of the request */
	uint16		nth;			/* of them, from 0; tells them apart */
	char		holder[DL_HOLDER_MAX + 1];
	char		request_id[DL_REQUEST_ID_MAX + 1];	/* empty: none */
	char		name[DL_NAME_MAX + 1];
} DlImageData;

#define DL_HEADER_SIZE	MAXALIGN(SizeofHeapTupleHeader)
#define DL_SLOT_SIZE	(DL_HEADER_SIZE + sizeof(DlImageData))
#define DL_SLOTS_PER_PAGE \
	((OffsetNumber) ((BLCKSZ - SizeOfPageHeaderData) / (DL_SLOT_SIZE + sizeof(ItemIdData))))

typedef enum DlImageCheck
{
	DL_CHECK_EMPTY,
	DL_CHECK_LEASE,
	DL_CHECK_NEWER,				/* of a later format */
	DL_CHECK_DAMAGED,
} DlImageCheck;

/* What to do about a table that cannot be written durably now. */
typedef enum DlTableUse
{
	DL_TABLE_READ,
	DL_TABLE_CLEAR,				/* only remove images */
	DL_TABLE_WRITE,
} DlTableUse;

extern DlImageCheck dl_image_check(const DlImageData *image);
extern void dl_image_fill(DlImageData *image, const DlLease *lease, int64 ttl);
extern bool dl_image_is_vacant(const DlImageData *image);
extern bool dl_image_is_of(const DlImageData *image, int64 token, int nth);

extern Relation dl_table_open(const DlExtension *extension, DlTableUse use);
extern void dl_table_close(Relation rel, DlTableUse use);
extern bool dl_page_is_sound(Page page);
extern DlImageData *dl_page_image(Page page, OffsetNumber offset);
extern Buffer dl_table_lock_place(Relation rel, DlPlace place,
								  DlImageData **image);
extern bool dl_table_find_image(Relation rel, int64 token, int nth, DlPlace *place);
extern Buffer dl_table_lock_vacant(Relation rel, const DlExtension *extension,
								   DlDatabase *database, DlPlace *place);
extern void dl_page_format(Relation rel, Buffer buffer);
extern XLogRecPtr dl_table_write(Relation rel, Buffer buffer, OffsetNumber offset,
								 DlImageData *image);
extern XLogRecPtr dl_table_touch(Relation rel);
extern void dl_table_note_vacant(DlDatabase *database, BlockNumber block);
extern int	dl_table_hint_at_damage(void);
dl_noreturn extern void dl_table_report_damage(Relation rel, BlockNumber block,
											   OffsetNumber offset,
											   const char *what);

#endif							/* DISTLOCK_LEASE_TABLE_H */
