/*-------------------------------------------------------------------------
 *
 * arguments.c
 *	  From SQL arguments to what the engine takes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "distlock.h"

static void
refuse_null(FunctionCallInfo fcinfo, int arg, const char *what)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
}

/*
 * The lock of that name in the current database.  Every byte of the key that
 * is compared goes into the hash.
 */
void
dl_make_key(const char *name, int len, const DlExtension *extension, DlKey *key)
{
	if (len < 1 || len > DL_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(len < 1 ? "lock name must not be empty" : "lock name is too long"),
				 errdetail("A lock name has 1 to %d bytes, this one has %d.",
						   DL_NAME_MAX, len)));
	key->database = MyDatabaseId;
	key->extension = extension->oid;
	key->len = len;
	memcpy(key->name, name, len);
	key->name[len] = '\0';
	key->hash = hash_bytes((const unsigned char *) key->name, len) ^
		hash_bytes_uint32(key->database) ^
		hash_bytes_uint32(~key->extension);
}

/* Where a request is found by its id: each role has its own, in each database. */
uint32
dl_request_id_hash(const char *request_id, Oid owner, const DlKey *key)
{
	return hash_bytes((const unsigned char *) request_id, strlen(request_id)) ^
		hash_bytes_uint32(owner) ^
		hash_bytes_uint32(key->database + 1) ^
		hash_bytes_uint32(~key->extension - 1);
}

void
dl_arg_key(FunctionCallInfo fcinfo, int arg, const DlExtension *extension,
		   DlKey *key)
{
	text	   *name;

	refuse_null(fcinfo, arg, "lock name");
	name = PG_GETARG_TEXT_PP(arg);
	dl_make_key(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), extension, key);
}

static int
compare_names(const void *a, const void *b)
{
	const DlKey *key_a = *(const DlKey *const *) a;
	const DlKey *key_b = *(const DlKey *const *) b;
	int			order = memcmp(key_a->name, key_b->name, Min(key_a->len, key_b->len));

	return order != 0 ? order : (int) key_a->len - (int) key_b->len;
}

/*
 * The locks of those names, each once, in the order of the array.  The result
 * is allocated.
 */
DlKey *
dl_arg_keys(FunctionCallInfo fcinfo, int arg, const DlExtension *extension,
			int *nkeys)
{
	Datum	   *names;
	bool	   *nulls;
	int			nnames;
	DlKey	   *keys;
	DlKey	  **sorted;
	int			n = 0;

	refuse_null(fcinfo, arg, "lock names");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, -1, false, TYPALIGN_INT,
					  &names, &nulls, &nnames);
	if (nnames == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lock names must not be empty"),
				 errhint("Give an array of at least one name.")));
	keys = palloc(nnames * sizeof(DlKey));
	sorted = palloc(nnames * sizeof(DlKey *));
	for (int i = 0; i < nnames; i++)
	{
		text	   *name;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("lock name must not be null")));
		name = DatumGetTextPP(names[i]);
		dl_make_key(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), extension, &keys[i]);
		sorted[i] = &keys[i];
	}

	/* Of those with the same name, mark all but the first. */
	qsort(sorted, nnames, sizeof(DlKey *), compare_names);
	for (int i = 1; i < nnames; i++)
		if (compare_names(&sorted[i - 1], &sorted[i]) == 0)
		{
			DlKey	   *later = Max(sorted[i - 1], sorted[i]);

			sorted[i] = Min(sorted[i - 1], sorted[i]);
			later->len = 0;
		}
	for (int i = 0; i < nnames; i++)
		if (keys[i].len > 0)
			keys[n++] = keys[i];
	pfree(sorted);
	if (n > DL_KEYS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many lock names"),
				 errdetail("At most %d locks can be acquired at once, and the array names %d.",
						   DL_KEYS_MAX, n)));
	*nkeys = n;
	return keys;
}

/* A token to look up: any value but null, though only positive ones exist. */
int64
dl_arg_token(FunctionCallInfo fcinfo, int arg)
{
	refuse_null(fcinfo, arg, "token");
	return PG_GETARG_INT64(arg);
}

static char *
interval_text(const Interval *interval)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(interval)));
}

/*
 * An interval in microseconds, a day being 24 hours.  Months have no fixed
 * length; from 17 on they also tell an infinite interval.
 */
static int64
interval_usecs(const Interval *interval, const char *what)
{
	int64		usecs;

	if (interval->month != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be infinite or contain months or years", what),
				 errdetail("The value given is \"%s\".", interval_text(interval)),
				 errhint("Use days or smaller units.")));
	if (pg_mul_s64_overflow(interval->day, USECS_PER_DAY, &usecs) ||
		pg_add_s64_overflow(usecs, interval->time, &usecs))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", what),
				 errdetail("The value given is \"%s\".", interval_text(interval))));
	return usecs;
}

/* A time to live in microseconds; if_null when it is null. */
int64
dl_arg_ttl(FunctionCallInfo fcinfo, int arg, int64 if_null)
{
	bool		given = !PG_ARGISNULL(arg);
	int64		ttl = if_null;

	if (given)
		ttl = interval_usecs(PG_GETARG_INTERVAL_P(arg), "ttl");
	if (given && ttl <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be greater than zero"),
				 errdetail("The value given is \"%s\".",
						   interval_text(PG_GETARG_INTERVAL_P(arg)))));
	if (ttl > dl_max_ttl * USECS_PER_SEC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must not be longer than %d seconds", dl_max_ttl),
				 given ?
				 errdetail("The value given is \"%s\".",
						   interval_text(PG_GETARG_INTERVAL_P(arg))) :
				 errdetail("\"distlock.default_ttl\" is %d milliseconds.", dl_default_ttl),
				 errhint("The limit is set by \"distlock.max_ttl\".")));
	return ttl;
}

/* The longest wait in microseconds, -1 (no limit) when it is null. */
int64
dl_arg_wait(FunctionCallInfo fcinfo, int arg)
{
	int64		wait;

	if (PG_ARGISNULL(arg))
		return -1;
	wait = interval_usecs(PG_GETARG_INTERVAL_P(arg), "wait");
	if (wait < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must not be negative"),
				 errdetail("The value given is \"%s\".",
						   interval_text(PG_GETARG_INTERVAL_P(arg))),
				 errhint("Use null to wait without limit, or zero not to wait.")));
	return wait;
}

/* Which of the n words it is. */
static int
arg_word(FunctionCallInfo fcinfo, int arg, const char *what,
		 const char *const *words, int n, const char *hint)
{
	text	   *value;

	refuse_null(fcinfo, arg, what);
	value = PG_GETARG_TEXT_PP(arg);
	for (int i = 0; i < n; i++)
		if (VARSIZE_ANY_EXHDR(value) == strlen(words[i]) &&
			memcmp(VARDATA_ANY(value), words[i], strlen(words[i])) == 0)
			return i;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized %s: \"%s\"", what, text_to_cstring(value)),
			 errhint("%s", hint)));
}

DlMode
dl_arg_mode(FunctionCallInfo fcinfo, int arg)
{
	static const char *const words[] = {
		[DL_EXCLUSIVE] = "exclusive",[DL_SHARED] = "shared"
	};

	return (DlMode) arg_word(fcinfo, arg, "mode", words, lengthof(words),
							 "Use \"exclusive\" or \"shared\".");
}

DlScope
dl_arg_scope(FunctionCallInfo fcinfo, int arg)
{
	static const char *const words[] = {
		[DL_SCOPE_LEASE] = "lease",[DL_SCOPE_SESSION] = "session",
		[DL_SCOPE_TRANSACTION] = "transaction"
	};

	return (DlScope) arg_word(fcinfo, arg, "scope", words, lengthof(words),
							  "Use \"lease\", \"session\" or \"transaction\".");
}

/* The label for people, application_name when it is null. */
void
dl_arg_holder(FunctionCallInfo fcinfo, int arg, char *holder)
{
	text	   *value;
	int			len;

	if (PG_ARGISNULL(arg))
	{
		strlcpy(holder, application_name ? application_name : "", DL_HOLDER_MAX + 1);
		return;
	}
	value = PG_GETARG_TEXT_PP(arg);
	len = VARSIZE_ANY_EXHDR(value);
	if (len > DL_HOLDER_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("holder is too long"),
				 errdetail("A holder has at most %d bytes, this one has %d.",
						   DL_HOLDER_MAX, len)));
	memcpy(holder, VARDATA_ANY(value), len);
	holder[len] = '\0';
}

/* How many may hold the semaphore at once, 0 (it is none) when it is null. */
int
dl_arg_max_holders(FunctionCallInfo fcinfo, int arg)
{
	int			limit;

	if (PG_ARGISNULL(arg))
		return 0;
	limit = PG_GETARG_INT32(arg);
	if (limit < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_holders must be greater than zero"),
				 errdetail("The value given is %d.", limit)));
	return limit;
}

/* What a request is known by when it is repeated, empty when it is null. */
void
dl_arg_request_id(FunctionCallInfo fcinfo, int arg, char *request_id)
{
	text	   *value;
	int			len;

	request_id[0] = '\0';
	if (PG_ARGISNULL(arg))
		return;
	value = PG_GETARG_TEXT_PP(arg);
	len = VARSIZE_ANY_EXHDR(value);
	if (len < 1 || len > DL_REQUEST_ID_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(len < 1 ? "request_id must not be empty" : "request_id is too long"),
				 errdetail("A request id has 1 to %d bytes, this one has %d.",
						   DL_REQUEST_ID_MAX, len)));
	memcpy(request_id, VARDATA_ANY(value), len);
	request_id[len] = '\0';
}
