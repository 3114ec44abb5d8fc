/*-------------------------------------------------------------------------
 *
 * functions.c
 *	  The functions that SQL calls: arguments in, results and errors out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "tcop/utility.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "acquire.h"
#include "arguments.h"
#include "database.h"
#include "distlock.h"
#include "extension.h"
#include "fence.h"
#include "functions.h"
#include "lease.h"
#include "shmem.h"
#include "watch.h"

PG_FUNCTION_INFO_V1(distlock_acquire);
PG_FUNCTION_INFO_V1(distlock_try_acquire);
PG_FUNCTION_INFO_V1(distlock_acquire_all);
PG_FUNCTION_INFO_V1(distlock_try_acquire_all);
PG_FUNCTION_INFO_V1(distlock_lock);
PG_FUNCTION_INFO_V1(distlock_watch);
PG_FUNCTION_INFO_V1(distlock_watch_next);
PG_FUNCTION_INFO_V1(distlock_renew);
PG_FUNCTION_INFO_V1(distlock_release);
PG_FUNCTION_INFO_V1(distlock_check);
PG_FUNCTION_INFO_V1(distlock_guard);
PG_FUNCTION_INFO_V1(distlock_renew_all);
PG_FUNCTION_INFO_V1(distlock_release_all);
PG_FUNCTION_INFO_V1(distlock_check_all);
PG_FUNCTION_INFO_V1(distlock_guard_all);
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
	(void) dl_database_rely_on(&extension);
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

/* Or on the locks of the array of names that it is. */
static DlExtension
begin_with_keys(FunctionCallInfo fcinfo, const char *function, DlKey **keys,
				int *nkeys)
{
	DlExtension extension = begin_call(fcinfo, function);

	*keys = dl_arg_keys(fcinfo, 0, &extension, nkeys);
	return extension;
}

/* Where the arguments of an acquire begin, after what names the locks. */
typedef enum AcquireArgs
{
	ARG_TTL,
	ARG_WAIT,
	ARG_MODE,
	ARG_SCOPE,
	ARG_HOLDER,
	ARG_DURABLE,
	ARG_MAX_HOLDERS,
	ARG_REQUEST_ID,
	ARG_ADVISORY_KEY,
} AcquireArgs;

static void
refuse_argument(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s", message),
			 errhint("%s", hint)));
}

/*
 * Fill in a request from the arguments that begin at number "first".  Its keys
 * are set already.
 */
static void
fill_request(FunctionCallInfo fcinfo, int first, DlRequest *request)
{
	request->scope = dl_arg_scope(fcinfo, first + ARG_SCOPE);
	request->ttl = dl_arg_ttl(fcinfo, first + ARG_TTL,
							  request->scope != DL_SCOPE_LEASE ? 0 :
							  dl_default_ttl * INT64CONST(1000));
	request->limit = dl_arg_max_holders(fcinfo, first + ARG_MAX_HOLDERS);
	request->mode = dl_arg_mode(fcinfo, first + ARG_MODE);
	if (request->limit > 0)
		request->mode = DL_SHARED;	/* permits stand beside each other */
	request->owner = GetUserId();
	dl_arg_holder(fcinfo, first + ARG_HOLDER, request->holder);
	dl_arg_request_id(fcinfo, first + ARG_REQUEST_ID, request->request_id);
	request->id_hash = dl_request_id_hash(request->request_id, request->owner,
										  &request->keys[0]);
	request->bridging = !PG_ARGISNULL(first + ARG_ADVISORY_KEY);
	if (request->bridging)
		request->advisory_key = PG_GETARG_INT64(first + ARG_ADVISORY_KEY);

	if (PG_ARGISNULL(first + ARG_DURABLE))
		request->durable = dl_durable && request->scope == DL_SCOPE_LEASE;
	else
		request->durable = PG_GETARG_BOOL(first + ARG_DURABLE);
	if (request->durable && request->scope != DL_SCOPE_LEASE)
		refuse_argument("a lease of session or transaction scope cannot be durable",
						"Use scope \"lease\", or leave out durable.");
	if (request->bridging && request->scope == DL_SCOPE_LEASE)
		refuse_argument("a lease of scope \"lease\" cannot go with an advisory lock",
						"Use scope \"session\" or \"transaction\", or leave out advisory_key.");
	if (request->bridging && request->request_id[0] != '\0')
		refuse_argument("a request with an advisory lock cannot be repeated",
						"Leave out request_id or advisory_key.");
}

/*
 * End the transaction of a procedure that is called outside of any transaction
 * block, so that it waits in a new one that has no snapshot and no transaction
 * ID.  Not where that would commit more than the call itself: in a subtransaction,
 * or in a pipeline behind other statements.
 */
static void
wait_outside(FunctionCallInfo fcinfo)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context == NULL || !IsA(context, CallContext) || context->atomic ||
		IsSubTransaction() || (MyXactFlags & XACT_FLAGS_PIPELINING) != 0)
		return;
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SPI_commit();
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

static TupleDesc
result_row(FunctionCallInfo fcinfo)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return BlessTupleDesc(desc);
}

static Datum
token_row(TupleDesc desc, int64 token)
{
	Datum		value = Int64GetDatum(token);
	bool		null = token == 0;

	return HeapTupleGetDatum(heap_form_tuple(desc, &value, &null));
}

/* Acquire one lock by its name, or several by an array of names. */
static Datum
acquire(FunctionCallInfo fcinfo, const char *function, bool all, bool try)
{
	DlExtension extension;
	DlRequest	request;
	DlKey		key;
	DlKey	   *keys = &key;
	int64		wait;
	int64		token;

	request.nkeys = 1;
	extension = all ? begin_with_keys(fcinfo, function, &keys, &request.nkeys) :
		begin_with_key(fcinfo, function, &key);
	request.keys = keys;
	wait = dl_arg_wait(fcinfo, 1 + ARG_WAIT);
	fill_request(fcinfo, 1, &request);
	token = dl_acquire(&extension, &request, wait, try);
	if (token == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(token);
}

Datum
distlock_acquire(PG_FUNCTION_ARGS)
{
	return acquire(fcinfo, "distlock_acquire()", false, false);
}

Datum
distlock_try_acquire(PG_FUNCTION_ARGS)
{
	return acquire(fcinfo, "distlock_try_acquire()", false, true);
}

Datum
distlock_acquire_all(PG_FUNCTION_ARGS)
{
	return acquire(fcinfo, "distlock_acquire_all()", true, false);
}

Datum
distlock_try_acquire_all(PG_FUNCTION_ARGS)
{
	return acquire(fcinfo, "distlock_try_acquire_all()", true, true);
}

/* The procedure; its second argument is where the token goes. */
Datum
distlock_lock(PG_FUNCTION_ARGS)
{
	DlKey		key;
	DlExtension extension = begin_with_key(fcinfo, "distlock_lock()", &key);
	TupleDesc	desc = result_row(fcinfo);
	DlRequest	request;
	int64		wait = dl_arg_wait(fcinfo, 2 + ARG_WAIT);

	request.keys = &key;
	request.nkeys = 1;
	fill_request(fcinfo, 2, &request);
	wait_outside(fcinfo);
	return token_row(desc, dl_acquire(&extension, &request, wait, false));
}

/* The token that is watched, null for none. */
static int64
watched_token(FunctionCallInfo fcinfo, int arg)
{
	int64		token = PG_ARGISNULL(arg) ? 0 : dl_arg_token(fcinfo, arg);

	/* That no lease has token 0 does not make it null. */
	return token == 0 && !PG_ARGISNULL(arg) ? -1 : token;
}

Datum
distlock_watch(PG_FUNCTION_ARGS)
{
	DlKey		key;
	DlExtension extension = begin_with_key(fcinfo, "distlock_watch()", &key);
	int64		token = dl_watch(&extension, &key, watched_token(fcinfo, 1),
								 dl_arg_wait(fcinfo, 2));

	if (token == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(token);
}

Datum
distlock_watch_next(PG_FUNCTION_ARGS)
{
	DlKey		key;
	DlExtension extension = begin_with_key(fcinfo, "distlock_watch_next()", &key);
	TupleDesc	desc = result_row(fcinfo);
	int64		token = watched_token(fcinfo, 1);
	int64		wait = dl_arg_wait(fcinfo, 2);

	wait_outside(fcinfo);
	return token_row(desc, dl_watch(&extension, &key, token, wait));
}

/* When a lease with so much left expires. */
static Datum
expiry(int64 remaining)
{
	if (remaining == DL_FOREVER)
		PG_RETURN_TIMESTAMPTZ(DT_NOEND);
	PG_RETURN_TIMESTAMPTZ(GetCurrentTimestamp() + remaining);
}

Datum
distlock_renew(PG_FUNCTION_ARGS)
{
	DlKey		key;
	DlExtension extension = begin_with_key(fcinfo, "distlock_renew()", &key);
	int64		token = dl_arg_token(fcinfo, 1);

	return expiry(dl_lease_renew(&extension, &key, token, dl_arg_ttl(fcinfo, 2, DL_KEEP_TTL), false));
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

/* Each lease must be there before the time of any starts anew. */
Datum
distlock_renew_all(PG_FUNCTION_ARGS)
{
	DlKey	   *keys;
	int			nkeys;
	DlExtension extension = begin_with_keys(fcinfo, "distlock_renew_all()", &keys, &nkeys);
	int64		token = dl_arg_token(fcinfo, 1);
	int64		ttl = dl_arg_ttl(fcinfo, 2, DL_KEEP_TTL);
	int64		least = DL_FOREVER;

	(void) dl_lease_prepare(&extension, keys, nkeys, token, ttl, false);
	for (int i = 0; i < nkeys; i++)
	{
		int64		remaining = dl_lease_renew(&extension, &keys[i], token, ttl, false);

		least = Min(least, remaining);
	}
	return expiry(least);
}

Datum
distlock_release_all(PG_FUNCTION_ARGS)
{
	DlKey	   *keys;
	int			nkeys;
	int64		token;
	bool		all = true;

	begin_with_keys(fcinfo, "distlock_release_all()", &keys, &nkeys);
	token = dl_arg_token(fcinfo, 1);
	for (int i = 0; i < nkeys; i++)
		all = dl_lease_release(&keys[i], token) && all;
	PG_RETURN_BOOL(all);
}

Datum
distlock_check_all(PG_FUNCTION_ARGS)
{
	DlKey	   *keys;
	int			nkeys;
	int64		token;
	bool		all = true;

	begin_with_keys(fcinfo, "distlock_check_all()", &keys, &nkeys);
	token = dl_arg_token(fcinfo, 1);
	for (int i = 0; i < nkeys && all; i++)
		all = dl_lease_check(&keys[i], token);
	PG_RETURN_BOOL(all);
}

Datum
distlock_guard_all(PG_FUNCTION_ARGS)
{
	DlKey	   *keys;
	int			nkeys;
	int64		token;

	begin_with_keys(fcinfo, "distlock_guard_all()", &keys, &nkeys);
	token = dl_arg_token(fcinfo, 1);
	for (int i = 0; i < nkeys; i++)
		dl_fence_guard(&keys[i], token);
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
