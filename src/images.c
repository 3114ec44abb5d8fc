/*-------------------------------------------------------------------------
 *
 * images.c
 *	  The type distlock_image.
 *
 * As text an image is its bytes in hex, as bytea has it: enough for COPY, dumps
 * and logical replication, where nobody looks into it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "libpq/pqformat.h"
#include "utils/builtins.h"

#include "lease_table.h"

PG_FUNCTION_INFO_V1(distlock_image_in);
PG_FUNCTION_INFO_V1(distlock_image_out);
PG_FUNCTION_INFO_V1(distlock_image_recv);
PG_FUNCTION_INFO_V1(distlock_image_send);

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
