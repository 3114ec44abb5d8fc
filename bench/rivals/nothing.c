/* A C function in PostgreSQL that does nothing: what a call costs at least. */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(nothing);

Datum
nothing(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(0);
}
