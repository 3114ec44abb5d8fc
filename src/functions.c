/*-------------------------------------------------------------------------
 *
 * functions.c
 *	  The functions that SQL calls: arguments in, results and errors out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "tcop/utility.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "database.h"
#include "distlock.h"
#include "extension.h"
#include "fence.h"
#include "functions.h"
#include "lease.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(distlock_acquire);
PG_FUNCTION_INFO_V1(distlock_try_acquire);
PG_FUNCTION_INFO_V1(distlock_renew);
PG_FUNCTION_INFO_V1(distlock_release);
PG_FUNCTION_INFO_V1(distlock_check);
PG_FUNCTION_INFO_V1(distlock_guard);
PG_FUNCTION_INFO_V1(distlock_force_release);
PG_FUNCTION_INFO_V1(distlock_discard_damaged);
PG_FUNCTION_INFO_V1(distlock_refuse_change);

/* Throws 55000 unless the server has preloaded us. */
void
dl_require_library(void)
{
	if (dl_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("distlock must be loaded via \"shared_preload_libraries\""),
				 errhint("Add distlock to \"shared_preload_libraries\" in postgresql.conf and restart the server.")));
}

/* Throws 39P01 unless called as a trigger. */
void
dl_require_trigger(FunctionCallInfo fcinfo, const char *function)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager", function)));
}

/* What every function on leases begins with. */
static DlExtension
begin_call(FunctionCallInfo fcinfo, const char *function)
{
	DlExtension extension;

	dl_require_library();
	PreventCommandDuringRecovery(function);
	PreventCommandIfParallelMode(function);
	extension = dl_extension_of(fcinfo->flinfo->fn_oid);
	(void) dl_database_attach(&extension);
	return extension;
}

/* And every function on the lock of its first argument. */
static DlExtension
begin_with_key(FunctionCallInfo fcinfo, const char *function, DlKey *key)
{
	DlExtension extension = begin_call(fcinfo, function);

	dl_arg_key(fcinfo, 0, &extension, key);
	return extension;
}

static Datum
acquire(FunctionCallInfo fcinfo, const char *function, bool try)
{
	DlExtension extension = begin_call(fcinfo, function);
	DlRequest	request;
	int64		wait;
	int64		token;

	dl_arg_key(fcinfo, 0, &extension, &request.key);
	wait = dl_arg_wait(fcinfo, 2);
	request.mode = dl_arg_mode(fcinfo, 3);
	request.scope = dl_arg_scope(fcinfo, 4);
	request.ttl = dl_arg_ttl(fcinfo, 1, request.scope != DL_SCOPE_LEASE ? 0 :
							 dl_default_ttl * INT64CONST(1000));
	request.owner = GetUserId();
	dl_arg_holder(fcinfo, 5, request.holder);

	if (PG_ARGISNULL(6))
		request.durable = dl_durable && request.scope == DL_SCOPE_LEASE;
	else
		request.durable = PG_GETARG_BOOL(6);
	if (request.durable && request.scope != DL_SCOPE_LEASE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a lease of session or transaction scope cannot be durable"),
				 errhint("Use scope \"lease\", or leave out durable.")));

	token = dl_lease_acquire(&extension, &request, wait, try);
	if (token == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(token);
}

Datum
distlock_acquire(PG_FUNCTION_ARGS)
{
	return acquire(fcinfo, "distlock_acquire()", false);
}

Datum
distlock_try_acquire(PG_FUNCTION_ARGS)
{
	return acquire(fcinfo, "distlock_try_acquire()", true);
}

Datum
distlock_renew(PG_FUNCTION_ARGS)
{
	DlKey		key;
	DlExtension extension = begin_with_key(fcinfo, "distlock_renew()", &key);
	int64		token = dl_arg_token(fcinfo, 1);
	int64		remaining = dl_lease_renew(&extension, &key, token, dl_arg_ttl(fcinfo, 2, 0));

	if (remaining == DL_FOREVER)
		PG_RETURN_TIMESTAMPTZ(DT_NOEND);
	PG_RETURN_TIMESTAMPTZ(GetCurrentTimestamp() + remaining);
}

Datum
distlock_release(PG_FUNCTION_ARGS)
{
	DlKey		key;

	begin_with_key(fcinfo, "distlock_release()", &key);
	PG_RETURN_BOOL(dl_lease_release(&key, dl_arg_token(fcinfo, 1)));
}

Datum
distlock_check(PG_FUNCTION_ARGS)
{
	DlKey		key;

	begin_with_key(fcinfo, "distlock_check()", &key);
	PG_RETURN_BOOL(dl_lease_check(&key, dl_arg_token(fcinfo, 1)));
}

Datum
distlock_guard(PG_FUNCTION_ARGS)
{
	DlKey		key;

	begin_with_key(fcinfo, "distlock_guard()", &key);
	dl_fence_guard(&key, dl_arg_token(fcinfo, 1));
	PG_RETURN_VOID();
}

Datum
distlock_force_release(PG_FUNCTION_ARGS)
{
	DlKey		key;

	begin_with_key(fcinfo, "distlock_force_release()", &key);
	PG_RETURN_INT32(dl_lease_force_release(&key));
}

Datum
distlock_discard_damaged(PG_FUNCTION_ARGS)
{
	DlExtension extension;

	dl_require_library();
	PreventCommandDuringRecovery("distlock_discard_damaged()");
	PreventCommandIfParallelMode("distlock_discard_damaged()");
	extension = dl_extension_of(fcinfo->flinfo->fn_oid);
	PG_RETURN_INT32(dl_database_discard_damaged(&extension));
}

/*
 * The trigger that keeps SQL away from our tables.  A publication FOR ALL
 * TABLES contains them, but their rows mean nothing to a subscriber: there they
 * are passed over.
 */
Datum
distlock_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	dl_require_trigger(fcinfo, "distlock_refuse_change");
	if (IsLogicalWorker() && TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		return PointerGetDatum(NULL);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot change relation \"%s\"",
					RelationGetRelationName(trigger->tg_relation)),
			 errdetail("It belongs to extension distlock, which alone writes it.")));
}
