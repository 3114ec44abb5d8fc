/*-------------------------------------------------------------------------
 *
 * images.c
 *	  The type distlock_image, and the view of what is stored.
 *
 * As text an image is its bytes in hex, as bytea has it: enough for COPY, dumps
 * and logical replication, where nobody looks into it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "extension.h"
#include "functions.h"
#include "lease_table.h"

PG_FUNCTION_INFO_V1(distlock_image_in);
PG_FUNCTION_INFO_V1(distlock_image_out);
PG_FUNCTION_INFO_V1(distlock_image_recv);
PG_FUNCTION_INFO_V1(distlock_image_send);
PG_FUNCTION_INFO_V1(distlock_show_images);

static bytea *
to_bytea(const void *image)
{
	bytea	   *bytes = palloc(VARHDRSZ + sizeof(DlImageData));

	SET_VARSIZE(bytes, VARHDRSZ + sizeof(DlImageData));
	memcpy(VARDATA(bytes), image, sizeof(DlImageData));
	return bytes;
}

static Datum
from_bytes(const char *bytes, Size len, int errcode_if_invalid)
{
	void	   *image;

	if (len != sizeof(DlImageData))
		ereport(ERROR,
				(errcode(errcode_if_invalid),
				 errmsg("invalid length of a value of type distlock_image"),
				 errdetail("It has %zu bytes, this one has %zu.", sizeof(DlImageData), len)));
	image = palloc(sizeof(DlImageData));
	memcpy(image, bytes, len);
	return PointerGetDatum(image);
}

Datum
distlock_image_in(PG_FUNCTION_ARGS)
{
	bytea	   *bytes = DatumGetByteaPP(DirectFunctionCall1(byteain, PG_GETARG_DATUM(0)));

	return from_bytes(VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes),
					  ERRCODE_INVALID_TEXT_REPRESENTATION);
}

Datum
distlock_image_out(PG_FUNCTION_ARGS)
{
	const char *image = (const char *) PG_GETARG_POINTER(0);
	char	   *text = palloc(2 + 2 * sizeof(DlImageData) + 1);

	text[0] = '\\';
	text[1] = 'x';
	text[2 + hex_encode(image, sizeof(DlImageData), text + 2)] = '\0';
	PG_RETURN_CSTRING(text);
}

Datum
distlock_image_recv(PG_FUNCTION_ARGS)
{
	StringInfo	buf = (StringInfo) PG_GETARG_POINTER(0);
	int			len = buf->len - buf->cursor;

	return from_bytes(pq_getmsgbytes(buf, len), len, ERRCODE_INVALID_BINARY_REPRESENTATION);
}

Datum
distlock_image_send(PG_FUNCTION_ARGS)
{
	PG_RETURN_BYTEA_P(to_bytea(PG_GETARG_POINTER(0)));
}

/* ---- The view ---- */

static void
put_image(ReturnSetInfo *result, const DlImageData *image, DlImageCheck check,
		  BlockNumber block, OffsetNumber offset)
{
	Datum		values[10] = {0};
	bool		nulls[10];
	char	   *owner;
	int			i = 0;

	memset(nulls, true, sizeof(nulls));
	if (check == DL_CHECK_LEASE)
	{
		Interval   *ttl = palloc0(sizeof(Interval));

		ttl->time = image->ttl;
		owner = GetUserNameFromId(image->owner, true);
		values[i++] = CStringGetTextDatum(image->name);
		values[i++] = Int64GetDatum(image->token);
		values[i++] = CStringGetTextDatum(image->mode == DL_SHARED ? "shared" : "exclusive");
		values[i++] = CStringGetTextDatum(image->holder);
		values[i++] = DirectFunctionCall1(namein,
										  CStringGetDatum(owner ? owner : psprintf("%u", image->owner)));
		values[i++] = TimestampTzGetDatum(image->granted_at);
		values[i++] = IntervalPGetDatum(ttl);
		memset(nulls, false, i * sizeof(bool));
	}
	i = 7;
	nulls[i] = nulls[i + 1] = nulls[i + 2] = false;
	values[i++] = Int64GetDatum(block);
	values[i++] = Int32GetDatum(offset);
	values[i++] = BoolGetDatum(check != DL_CHECK_LEASE);
	Assert(i == lengthof(values));
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * The rows of distlock_images.  A plain scan could see an image while it is
 * overwritten, so each page is copied under its lock.
 */
Datum
distlock_show_images(PG_FUNCTION_ARGS)
{
	MemoryContext context;
	MemoryContext outer;
	DlExtension extension;
	Relation	rel;
	PGAlignedBlock page;

	dl_require_library();
	InitMaterializedSRF(fcinfo, 0);
	extension = dl_extension_of(fcinfo->flinfo->fn_oid);
	context = AllocSetContextCreate(CurrentMemoryContext, "distlock view row",
									ALLOCSET_SMALL_SIZES);
	rel = dl_table_open(&extension, DL_TABLE_READ);
	for (BlockNumber block = 0; block < RelationGetNumberOfBlocks(rel); block++)
	{
		Buffer		buffer = ReadBuffer(rel, block);

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		memcpy(page.data, BufferGetPage(buffer), BLCKSZ);
		UnlockReleaseBuffer(buffer);
		for (OffsetNumber offset = FirstOffsetNumber;
			 dl_page_is_sound((Page) page.data) && offset <= DL_SLOTS_PER_PAGE; offset++)
		{
			const DlImageData *image = dl_page_image((Page) page.data, offset);
			DlImageCheck check = dl_image_check(image);

			CHECK_FOR_INTERRUPTS();
			if (check == DL_CHECK_EMPTY ||
				(check == DL_CHECK_LEASE && image->database != MyDatabaseId))
				continue;
			outer = MemoryContextSwitchTo(context);
			put_image((ReturnSetInfo *) fcinfo->resultinfo, image, check, block, offset);
			MemoryContextSwitchTo(outer);
			MemoryContextReset(context);
		}
	}
	dl_table_close(rel, DL_TABLE_READ);
	return (Datum) 0;
}
