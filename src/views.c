/*-------------------------------------------------------------------------
 *
 * views.c
 *	  What the views show: the leases, waiters and counters of the engine.
 *
 * The records of a partition are copied under its lock, and turned into rows
 * after it is given up.  A view is exact for each lock, not across locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "barrier.h"
#include "database.h"
#include "extension.h"
#include "functions.h"
#include "lease_table.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(distlock_show_leases);
PG_FUNCTION_INFO_V1(distlock_show_waiters);
PG_FUNCTION_INFO_V1(distlock_show_stats);
PG_FUNCTION_INFO_V1(distlock_show_images);
PG_FUNCTION_INFO_V1(distlock_blocking_pids);

/*
 * A copy of one record: the leases of a lock, each followed by the commits that
 * keep it pinned, then its queue in order.
 */
typedef struct Row
{
	int			lock;			/* number of the lock within the copy */
	int			nwaiting;		/* of the lock */
	int			position;		/* in the queue; 0: lease, told or not */
	int			pinned_by;		/* process of a commit in flight, or 0 */
	bool		barred;			/* there is a barrier, and no lease before it */
	bool		semaphore;		/* whoever is ahead is in its way */
	DlLease		lease;
	DlKey		key;
} Row;

typedef struct Copy
{
	Row		   *rows;
	int			nrows;
	int			max_rows;
	int64		now;			/* both clocks, when it was made */
	TimestampTz wall;
} Copy;

static void
copy_row(Copy *copy, int number, const DlLock *lock, const DlLease *lease,
		 int position, int pinned_by)
{
	Row		   *row = &copy->rows[copy->nrows++];

	Assert(copy->nrows <= copy->max_rows);
	row->lock = number;
	row->nwaiting = lock->nwaiting;
	row->position = position;
	row->pinned_by = pinned_by;
	row->barred = lock->nleases == 0 && dl_engine_is_barred(lock, lease->mode);
	row->semaphore = lock->limit > 0;
	row->lease = *lease;
	row->key = lock->key;
}

static void
copy_list(Copy *copy, int number, DlLock *lock, dlist_head *list, bool queue)
{
	int			position = 0;
	dlist_iter	iter;

	dlist_foreach(iter, list)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);
		dlist_iter	pin;

		copy_row(copy, number, lock, lease, queue ? ++position : 0, 0);
		if (queue || lease->npins == 0)
			continue;
		dlist_foreach(pin, &lease->guards)
		{
			const DlGuard *guard = dlist_container(DlGuard, link, pin.cur);

			if (guard->pinned)
				copy_row(copy, number, lock, lease, 0, guard->pid);
		}
	}
}

/* Copy the records of this partition that belong to our installation. */
static void
copy_partition(Copy *copy, int partition, Oid extension)
{
	DlEngine   *engine = dl_shared->engine;
	DlPartition *part = &engine->partitions[partition];
	DlEffects	fx = DL_NO_EFFECTS;
	int			number = 0;

	for (;;)
	{
		int			needed;

		dl_partition_lock(partition, LW_SHARED);
		needed = part->nleases + part->npins;
		if (needed <= copy->max_rows)
			break;
		dl_partition_unlock(partition, &fx);
		if (copy->rows != NULL)
			pfree(copy->rows);
		copy->max_rows = needed + needed / 4 + 16;
		copy->rows = MemoryContextAllocHuge(CurrentMemoryContext,
											copy->max_rows * sizeof(Row));
	}
	copy->nrows = 0;
	copy->now = dl_now();
	copy->wall = GetCurrentTimestamp();
	for (uint32 i = 0; part->nleases > 0 && i < engine->nbuckets; i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, &part->locks[i])
		{
			DlLock	   *lock = dlist_container(DlLock, bucket_link, iter.cur);

			if (lock->key.database != MyDatabaseId ||
				lock->key.extension != extension)
				continue;
			copy_list(copy, number, lock, &lock->leases, false);
			copy_list(copy, number, lock, &lock->queue, true);
			number++;
		}
	}
	dl_partition_unlock(partition, &fx);
}

/*
 * Begin a view of one installation; returns its extension.  A view waits for no
 * standbys: it only says what this server has.
 */
static Oid
begin_view(FunctionCallInfo fcinfo)
{
	DlExtension extension;

	dl_require_library();
	InitMaterializedSRF(fcinfo, 0);
	extension = dl_extension_of(fcinfo->flinfo->fn_oid);
	if (!RecoveryInProgress())
		(void) dl_database_attach(&extension);
	return extension.oid;
}

static void
put_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* Where the values of one row live. */
static MemoryContext
row_context(void)
{
	return AllocSetContextCreate(CurrentMemoryContext, "distlock view row",
								 ALLOCSET_SMALL_SIZES);
}

static Datum
interval_of(int64 usecs)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = usecs;
	return IntervalPGetDatum(interval);
}

static Datum
role_name(Oid role)
{
	char	   *name = GetUserNameFromId(role, true);

	return DirectFunctionCall1(namein,
							   CStringGetDatum(name ? name : psprintf("%u", role)));
}

static Datum
mode_text(DlMode mode)
{
	return CStringGetTextDatum(mode == DL_SHARED ? "shared" : "exclusive");
}

static Datum
scope_text(DlScope scope)
{
	switch (scope)
	{
		case DL_SCOPE_LEASE:
			return CStringGetTextDatum("lease");
		case DL_SCOPE_SESSION:
			return CStringGetTextDatum("session");
		case DL_SCOPE_TRANSACTION:
			return CStringGetTextDatum("transaction");
	}
	pg_unreachable();
}

static void
put_lease(FunctionCallInfo fcinfo, const Copy *copy, const Row *row)
{
	const DlLease *lease = &row->lease;
	int64		remaining = lease->deadline - copy->now;
	Datum		values[15];
	bool		nulls[15] = {false};
	int			i = 0;

	values[i++] = CStringGetTextDatum(row->key.name);
	values[i++] = Int64GetDatum(lease->token);
	values[i++] = mode_text(lease->mode);
	values[i++] = scope_text(lease->scope);
	values[i++] = CStringGetTextDatum(lease->holder);
	values[i++] = role_name(lease->owner);
	nulls[i] = !dl_session_is_live(lease->backend, lease->generation);
	values[i++] = Int32GetDatum(lease->pid);
	values[i++] = BoolGetDatum(lease->durable);
	values[i++] = TimestampTzGetDatum(lease->granted_at);
	nulls[i] = lease->ttl == 0;
	values[i++] = interval_of(lease->ttl);
	values[i++] = TimestampTzGetDatum(lease->ttl == 0 ? DT_NOEND : copy->wall + remaining);
	nulls[i] = lease->ttl == 0;
	values[i++] = interval_of(remaining);
	values[i++] = Int64GetDatum(lease->renewals);
	values[i++] = Int32GetDatum(lease->npins);
	values[i++] = Int32GetDatum(row->nwaiting);
	Assert(i == lengthof(values));
	put_row(fcinfo, values, nulls);
}

/* The rows of distlock_leases. */
Datum
distlock_show_leases(PG_FUNCTION_ARGS)
{
	Oid			extension = begin_view(fcinfo);
	MemoryContext context = row_context();
	MemoryContext outer;
	Copy		copy = {0};

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		copy_partition(&copy, p, extension);
		for (int i = 0; i < copy.nrows; i++)
		{
			const DlLease *lease = &copy.rows[i].lease;

			CHECK_FOR_INTERRUPTS();
			if (lease->state != DL_LIVE || lease->deadline <= copy.now ||
				copy.rows[i].pinned_by != 0)
				continue;
			outer = MemoryContextSwitchTo(context);
			put_lease(fcinfo, &copy, &copy.rows[i]);
			MemoryContextSwitchTo(outer);
			MemoryContextReset(context);
		}
	}
	return (Datum) 0;
}

/*
 * Who keeps row number "waiter" waiting: the leases it conflicts with, or the
 * commits that keep them pinned, and the requests ahead of it that it conflicts
 * with.  A prepared transaction has no process, and shows as 0.
 */
static void
blockers(const Copy *copy, int waiter, Datum *tokens, Datum *pids)
{
	const Row  *row = &copy->rows[waiter];
	int			first = waiter;
	Datum	   *token_list;
	Datum	   *pid_list;
	int			ntokens = 0;
	int			npids = 0;

	while (first > 0 && copy->rows[first - 1].lock == row->lock)
		first--;
	token_list = palloc(sizeof(Datum) * (waiter - first + 1));
	pid_list = palloc(sizeof(Datum) * (waiter - first + 1));
	if (row->barred && row->position > 0 && dl_barrier_is_held(&row->key, row->lease.mode))
		pid_list[npids++] = Int32GetDatum(0);
	for (int i = first; i < waiter && row->position > 0 && !row->lease.ready; i++)
	{
		const DlLease *other = &copy->rows[i].lease;
		int			pinned_by = copy->rows[i].pinned_by;

		if (!row->semaphore && other->mode == DL_SHARED && row->lease.mode == DL_SHARED)
			continue;
		if (pinned_by != 0)
		{
			if (other->state == DL_PINNED)
				pid_list[npids++] = Int32GetDatum(pinned_by);
			continue;
		}
		if (other->state == DL_LIVE || other->state == DL_PINNED)
			token_list[ntokens++] = Int64GetDatum(other->token);
		if (other->state != DL_PINNED &&
			dl_session_is_live(other->backend, other->generation))
			pid_list[npids++] = Int32GetDatum(other->pid);
	}
	*tokens = PointerGetDatum(construct_array(token_list, ntokens, INT8OID,
											  sizeof(int64), FLOAT8PASSBYVAL,
											  TYPALIGN_DOUBLE));
	*pids = PointerGetDatum(construct_array(pid_list, npids, INT4OID,
											sizeof(int32), true, TYPALIGN_INT));
}

/* Append an array of process IDs. */
static ArrayBuildState *
add_all(ArrayBuildState *result, Datum pids)
{
	Datum	   *elements;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(pids), INT4OID, sizeof(int32), true,
					  TYPALIGN_INT, &elements, NULL, &n);
	for (int i = 0; i < n; i++)
		result = accumArrayResult(result, elements[i], false, INT4OID, CurrentMemoryContext);
	return result;
}

static void
put_waiter(FunctionCallInfo fcinfo, const Copy *copy, int number)
{
	const Row  *row = &copy->rows[number];
	const DlLease *lease = &row->lease;
	Datum		values[9];
	bool		nulls[9] = {false};
	int			i = 0;

	values[i++] = CStringGetTextDatum(row->key.name);
	values[i++] = mode_text(lease->mode);
	values[i++] = Int32GetDatum(lease->pid);
	values[i++] = role_name(lease->owner);
	values[i++] = CStringGetTextDatum(lease->holder);
	values[i++] = TimestampTzGetDatum(copy->wall - (copy->now - lease->since));
	values[i++] = Int32GetDatum(row->position);
	blockers(copy, number, &values[i], &values[i + 1]);
	Assert(i + 2 == lengthof(values));
	put_row(fcinfo, values, nulls);
}

/* The rows of distlock_waiters. */
Datum
distlock_show_waiters(PG_FUNCTION_ARGS)
{
	Oid			extension = begin_view(fcinfo);
	MemoryContext context = row_context();
	MemoryContext outer;
	Copy		copy = {0};

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		copy_partition(&copy, p, extension);
		for (int i = 0; i < copy.nrows; i++)
		{
			DlState		state = copy.rows[i].lease.state;

			CHECK_FOR_INTERRUPTS();
			if ((state != DL_WAITING && state != DL_GRANTED) ||
				copy.rows[i].pinned_by != 0)
				continue;
			outer = MemoryContextSwitchTo(context);
			put_waiter(fcinfo, &copy, i);
			MemoryContextSwitchTo(outer);
			MemoryContextReset(context);
		}
	}
	return (Datum) 0;
}

/* Who keeps a session waiting for a lock, as pg_blocking_pids() has it. */
Datum
distlock_blocking_pids(PG_FUNCTION_ARGS)
{
	DlExtension extension;
	Copy		copy = {0};
	ArrayBuildState *result = initArrayResult(INT4OID, CurrentMemoryContext, false);

	dl_require_library();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	extension = dl_extension_of(fcinfo->flinfo->fn_oid);
	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		copy_partition(&copy, p, extension.oid);
		for (int i = 0; i < copy.nrows; i++)
		{
			Datum		tokens;
			Datum		pids;

			if (copy.rows[i].lease.state == DL_WAITING &&
				copy.rows[i].lease.pid == PG_GETARG_INT32(0))
			{
				blockers(&copy, i, &tokens, &pids);
				result = add_all(result, pids);
			}
		}
	}
	PG_RETURN_DATUM(makeArrayResult(result, CurrentMemoryContext));
}

/* The row of distlock_stats. */
Datum
distlock_show_stats(PG_FUNCTION_ARGS)
{
	DlCounters	sum = {0};
	Datum		values[16];
	bool		nulls[16] = {false};
	int			i = 0;

	dl_require_library();
	InitMaterializedSRF(fcinfo, 0);
	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		const DlCounters *counters = &dl_shared->engine->partitions[p].counters;
		DlEffects	fx = DL_NO_EFFECTS;

		dl_partition_lock(p, LW_SHARED);
		sum.acquired += counters->acquired;
		sum.contended += counters->contended;
		sum.waited += counters->waited;
		sum.timeouts += counters->timeouts;
		sum.renewed += counters->renewed;
		sum.released += counters->released;
		sum.undone += counters->undone;
		sum.expired += counters->expired;
		sum.forced += counters->forced;
		sum.lapsed += counters->lapsed;
		sum.lost += counters->lost;
		sum.swept += counters->swept;
		sum.guards += counters->guards;
		sum.guards_refused += counters->guards_refused;
		sum.commits_refused += counters->commits_refused;
		sum.deadlocks += counters->deadlocks;
		dl_partition_unlock(p, &fx);
	}
	values[i++] = Int64GetDatum(sum.acquired);
	values[i++] = Int64GetDatum(sum.contended);
	values[i++] = Float8GetDatum((double) sum.waited / USECS_PER_SEC);
	values[i++] = Int64GetDatum(sum.timeouts);
	values[i++] = Int64GetDatum(sum.renewed);
	values[i++] = Int64GetDatum(sum.released);
	values[i++] = Int64GetDatum(sum.undone);
	values[i++] = Int64GetDatum(sum.expired);
	values[i++] = Int64GetDatum(sum.forced);
	values[i++] = Int64GetDatum(sum.lapsed);
	values[i++] = Int64GetDatum(sum.lost);
	values[i++] = Int64GetDatum(sum.swept);
	values[i++] = Int64GetDatum(sum.guards);
	values[i++] = Int64GetDatum(sum.guards_refused);
	values[i++] = Int64GetDatum(sum.commits_refused);
	values[i++] = Int64GetDatum(sum.deadlocks);
	Assert(i == lengthof(values));
	put_row(fcinfo, values, nulls);
	return (Datum) 0;
}

static void
put_image(FunctionCallInfo fcinfo, const DlImageData *image, DlImageCheck check,
		  BlockNumber block, OffsetNumber offset)
{
	bool		is_lease = check == DL_CHECK_LEASE;
	Datum		values[12] = {0};
	bool		nulls[12] = {false};
	int			i = 9;

	if (is_lease)
	{
		values[0] = CStringGetTextDatum(image->name);
		values[1] = Int64GetDatum(image->token);
		values[2] = mode_text(image->mode);
		values[3] = CStringGetTextDatum(image->holder);
		values[4] = role_name(image->owner);
		values[5] = TimestampTzGetDatum(image->granted_at);
		values[6] = interval_of(image->ttl);
		nulls[7] = image->limit == 0;
		values[7] = Int32GetDatum(image->limit);
		nulls[8] = image->request_id[0] == '\0';
		values[8] = CStringGetTextDatum(image->request_id);
	}
	else
		memset(nulls, true, i * sizeof(bool));
	values[i++] = Int64GetDatum(block);
	values[i++] = Int32GetDatum(offset);
	values[i++] = BoolGetDatum(!is_lease);
	Assert(i == lengthof(values));
	put_row(fcinfo, values, nulls);
}

/*
 * The rows of distlock_images.  A plain scan could see an image while it is
 * overwritten, so each page is copied under its lock.
 */
Datum
distlock_show_images(PG_FUNCTION_ARGS)
{
	MemoryContext context = row_context();
	MemoryContext outer;
	DlExtension extension;
	Relation	rel;
	PGAlignedBlock page;

	dl_require_library();
	InitMaterializedSRF(fcinfo, 0);
	extension = dl_extension_of(fcinfo->flinfo->fn_oid);
	rel = dl_table_open(&extension, DL_TABLE_READ);
	for (BlockNumber block = 0; block < RelationGetNumberOfBlocks(rel); block++)
	{
		Buffer		buffer = ReadBuffer(rel, block);
		OffsetNumber nslots;

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		memcpy(page.data, BufferGetPage(buffer), BLCKSZ);
		UnlockReleaseBuffer(buffer);
		nslots = dl_page_is_sound((Page) page.data) ? DL_SLOTS_PER_PAGE : 0;
		for (OffsetNumber offset = FirstOffsetNumber; offset <= nslots; offset++)
		{
			const DlImageData *image = dl_page_image((Page) page.data, offset);
			DlImageCheck check = dl_image_check(image);

			CHECK_FOR_INTERRUPTS();
			if (check == DL_CHECK_EMPTY ||
				(check == DL_CHECK_LEASE && image->database != MyDatabaseId))
				continue;
			outer = MemoryContextSwitchTo(context);
			put_image(fcinfo, image, check, block, offset);
			MemoryContextSwitchTo(outer);
			MemoryContextReset(context);
		}
	}
	dl_table_close(rel, DL_TABLE_READ);
	return (Datum) 0;
}
