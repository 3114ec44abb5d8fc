/*-------------------------------------------------------------------------
 *
 * extension.c
 *	  Which installation of the extension a call belongs to.
 *
 * Locks are private to one CREATE EXTENSION.  The function that is called
 * tells which one that is: DROP and CREATE give new functions, and no plan
 * outlives its functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "extension.h"

typedef struct CacheEntry
{
	Oid			function;
	DlExtension extension;
} CacheEntry;

/* Rarely more than a handful of our functions are used in one session. */
static CacheEntry cache[16];
static int	ncached = 0;

static void
forget(Datum arg, int cacheid, uint32 hashvalue)
{
	ncached = 0;
}

static Oid
member_relation(const char *name, Oid schema)
{
	Oid			relation = get_relname_relid(name, schema);

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("relation \"%s\" of extension distlock is missing", name),
				 errhint("Drop the extension and create it again.")));
	return relation;
}

/*
 * The installation that this SQL function belongs to.  Needs a transaction;
 * throws if there is none.
 */
DlExtension
dl_extension_of(Oid function)
{
	static bool registered = false;
	CacheEntry	entry;
	Oid			schema;

	for (int i = 0; i < ncached; i++)
		if (cache[i].function == function)
			return cache[i].extension;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(PROCOID, forget, (Datum) 0);
		registered = true;
	}
	entry.function = function;
	entry.extension.oid = getExtensionOfObject(ProcedureRelationId, function);
	if (!OidIsValid(entry.extension.oid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function with OID %u does not belong to extension distlock", function),
				 errhint("Use the functions that CREATE EXTENSION distlock has created.")));
	schema = get_func_namespace(function);
	entry.extension.sequence = member_relation("distlock_token_seq", schema);
	entry.extension.control = member_relation("distlock_control", schema);
	entry.extension.lease_table = member_relation("distlock_lease_table", schema);

	if (ncached == lengthof(cache))
		ncached = 0;
	cache[ncached++] = entry;
	return entry.extension;
}
