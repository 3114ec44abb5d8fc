/*-------------------------------------------------------------------------
 *
 * token.c
 *	  The supply of fencing tokens.
 *
 * Tokens are drawn from shared memory, inside the partition lock that grants
 * (engine.c), out of a range reserved ahead.  The end of the range is on disk
 * before any token of it is issued, in two places that are both overwritten
 * in place and flushed: the sequence distlock_token_seq, which pg_dump
 * carries, and the only row of distlock_control, which setval() and ALTER
 * SEQUENCE do not reach.  A new range begins above everything that memory,
 * sequence or row have ever said; what a crash leaves unused is a gap.
 *
 * nextval() would not do: it takes a transaction id, fails in a read-only
 * transaction, and is not flushed before the commit.
 *
 * The range in memory belongs to the database, not to the extension: after
 * DROP and CREATE EXTENSION it goes on, and the new relations are raised to
 * it at their first use.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "shmem.h"
#include "token.h"

/* Tokens in a reserved range. */
#define RANGE_TOKENS		Max(16384, 8 * MaxBackends)

/* With fewer left, one request reserves the next range while others go on. */
#define LOW_TOKENS			(RANGE_TOKENS / 2)

/*
 * With fewer left, every request sees to it that there are more before it
 * enters: a lock may be granted where nothing can be written, and as many
 * grants as there are backends may be under way.
 */
#define SCARCE_TOKENS		(2 * MaxBackends)

/* This session's database, once it is known. */
static DlDatabase *my_database = NULL;

static int64
tokens_left(DlDatabase *database)
{
	return (int64) (pg_atomic_read_u64(&database->tokens.limit) + 1 -
					pg_atomic_read_u64(&database->tokens.next));
}

/*
 * The slot of our database, which may be a new one.  Needs the token lock
 * exclusively.  A slot is given back when its database is dropped.
 */
static DlDatabase *
attach_database(void)
{
	DlDatabase *unused = NULL;

	for (int i = 0; i < dl_shared->ndatabases; i++)
	{
		DlDatabase *database = &dl_shared->databases[i];

		if (database->database == MyDatabaseId)
			return database;
		if (unused == NULL && !OidIsValid(database->database))
			unused = database;
	}
	if (unused == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases use distlock"),
				 errdetail("There is room for %d databases.", dl_shared->ndatabases),
				 errhint("Increase \"distlock.max_leases\", which sizes this too, and restart the server.")));
	pg_atomic_write_u64(&unused->tokens.next, 1);
	pg_atomic_write_u64(&unused->tokens.limit, 0);
	unused->extension = InvalidOid;
	unused->database = MyDatabaseId;
	return unused;
}

/* The slot of our database, or null while nobody has reserved tokens. */
static DlDatabase *
find_database(void)
{
	DlDatabase *found = NULL;

	LWLockAcquire(dl_shared->token_lock, LW_SHARED);
	for (int i = 0; i < dl_shared->ndatabases && found == NULL; i++)
		if (dl_shared->databases[i].database == MyDatabaseId)
			found = &dl_shared->databases[i];
	LWLockRelease(dl_shared->token_lock);
	return found;
}

static void
check_relation(Relation rel, char relkind)
{
	/* What is written in place has to outlive a crash. */
	if (rel->rd_rel->relkind != relkind ||
		rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("relation \"%s\" cannot keep the limit of tokens",
						RelationGetRelationName(rel)),
				 errdetail("It is not a permanent relation of the expected kind."),
				 errhint("Set it LOGGED, or drop the extension and create it again.")));
}

/*
 * Does what we write to the control table outlive a rollback of this
 * transaction?  Not if the transaction has created or rewritten the table:
 * the one of before would come back.  A table for which no token has been
 * issued yet may be as short-lived as it likes.
 */
static bool
outlives_rollback(Relation control, DlDatabase *database)
{
	if (control->rd_createSubid != InvalidSubTransactionId)
		return pg_atomic_read_u64(&database->tokens.limit) == 0;
	return dl_rewritten_subxact(control) == InvalidSubTransactionId;
}

static ItemPointerData
find_control_row(Relation control)
{
	TableScanDesc scan = table_beginscan(control, SnapshotSelf, 0, NULL);
	TupleTableSlot *slot = table_slot_create(control, NULL);
	ItemPointerData tid;

	if (!table_scan_getnextslot(scan, ForwardScanDirection, slot))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("relation \"%s\" has lost its row", RelationGetRelationName(control)),
				 errhint("Drop the extension and create it again.")));
	tid = slot->tts_tid;
	if (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("relation \"%s\" has more than one row", RelationGetRelationName(control)),
				 errhint("Drop the extension and create it again.")));
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	return tid;
}

static Buffer
lock_block(Relation rel, BlockNumber block)
{
	Buffer		buffer = ReadBuffer(rel, block);

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	return buffer;
}

/* The user data of a tuple on a page. */
static void *
tuple_data(Page page, OffsetNumber offset)
{
	HeapTupleHeader tuple;

	tuple = (HeapTupleHeader) PageGetItem(page, PageGetItemId(page, offset));
	return (char *) tuple + tuple->t_hoff;
}

/* What the sequence says was handed out last, which is not below 0. */
static int64
sequence_limit(const FormData_pg_sequence_data *data)
{
	int64		last = Max(data->last_value, 1);

	return data->is_called ? last : last - 1;
}

/*
 * Write a limit above everything handed out or reserved so far, flush it, and
 * open the range up to it.  Without "raise", the limit written is the one that
 * is known already.  Needs the token lock exclusively, and both relations
 * locked.
 */
static void
write_limit(DlDatabase *database, Relation sequence, Relation control,
			ItemPointer row, bool raise)
{
	OffsetNumber offset = ItemPointerGetOffsetNumber(row);
	Buffer		sequence_buffer = lock_block(sequence, 0);
	Buffer		control_buffer = lock_block(control, ItemPointerGetBlockNumber(row));
	int64		known = (int64) pg_atomic_read_u64(&database->tokens.limit);
	int64		floor;
	int64		limit;
	GenericXLogState *state;
	FormData_pg_sequence_data *data;
	XLogRecPtr	control_lsn;
	XLogRecPtr	sequence_lsn;
	uint64		next;

	floor = Max(known, *(int64 *) tuple_data(BufferGetPage(control_buffer), offset));
	floor = Max(floor, sequence_limit(tuple_data(BufferGetPage(sequence_buffer),
												 FirstOffsetNumber)));
	if (floor > PG_INT64_MAX - 2 * RANGE_TOKENS)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("no fencing tokens are left"),
				 errdetail("The sequence \"%s\" stands at " INT64_FORMAT ".",
						   RelationGetRelationName(sequence), floor)));
	limit = raise ? floor + RANGE_TOKENS : floor;

	state = GenericXLogStart(control);
	*(int64 *) tuple_data(GenericXLogRegisterBuffer(state, control_buffer, 0), offset) = limit;
	control_lsn = GenericXLogFinish(state);

	state = GenericXLogStart(sequence);
	data = tuple_data(GenericXLogRegisterBuffer(state, sequence_buffer, 0), FirstOffsetNumber);
	data->last_value = limit;
	data->log_cnt = 0;
	data->is_called = true;
	sequence_lsn = GenericXLogFinish(state);

	UnlockReleaseBuffer(control_buffer);
	UnlockReleaseBuffer(sequence_buffer);
	XLogFlush(Max(control_lsn, sequence_lsn));

	/* Skip what others have handed out, then open the range. */
	next = pg_atomic_read_u64(&database->tokens.next);
	while (floor > known && next <= (uint64) floor &&
		   !pg_atomic_compare_exchange_u64(&database->tokens.next, &next, floor + 1))
		;
	pg_atomic_write_u64(&database->tokens.limit, limit);
}

/*
 * Reserve a range unless there are tokens enough.  With "wait" false, do
 * nothing when somebody else is about it or has a relation locked.
 */
static void
reserve(const DlExtension *extension, bool wait)
{
	Relation	sequence;
	Relation	control;
	ItemPointerData row;
	DlDatabase *database;

	if (wait)
	{
		LockRelationOid(extension->sequence, RowExclusiveLock);
		LockRelationOid(extension->control, RowExclusiveLock);
	}
	else if (!ConditionalLockRelationOid(extension->sequence, RowExclusiveLock))
		return;
	else if (!ConditionalLockRelationOid(extension->control, RowExclusiveLock))
	{
		UnlockRelationOid(extension->sequence, RowExclusiveLock);
		return;
	}
	sequence = try_relation_open(extension->sequence, NoLock);
	control = try_relation_open(extension->control, NoLock);
	if (sequence == NULL || control == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension distlock has been dropped")));
	check_relation(sequence, RELKIND_SEQUENCE);
	check_relation(control, RELKIND_RELATION);
	row = find_control_row(control);

	if (wait)
		LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	else if (!LWLockConditionalAcquire(dl_shared->token_lock, LW_EXCLUSIVE))
	{
		relation_close(control, RowExclusiveLock);
		relation_close(sequence, RowExclusiveLock);
		return;
	}
	database = attach_database();
	if (database->extension != extension->oid || tokens_left(database) < LOW_TOKENS)
	{
		bool		raise = outlives_rollback(control, database);

		if (!raise && tokens_left(database) <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot reserve fencing tokens in this transaction"),
					 errdetail("It has created or rewritten relation \"%s\", and a limit written there would be lost by a rollback.",
							   RelationGetRelationName(control)),
					 errhint("Commit before you acquire.")));
		write_limit(database, sequence, control, &row, raise);
		database->extension = extension->oid;
	}
	LWLockRelease(dl_shared->token_lock);
	my_database = database;

	/* Nothing of this is undone by a rollback, so the locks can go now. */
	relation_close(control, RowExclusiveLock);
	relation_close(sequence, RowExclusiveLock);
}

/*
 * The tokens for a request that is about to enter.  May write and flush WAL,
 * wait for a lock on our relations, and throw; needs a transaction and no
 * LWLock held.
 */
DlTokens *
dl_token_supply(const DlExtension *extension)
{
	if (my_database == NULL)
		my_database = find_database();
	if (my_database == NULL || my_database->extension != extension->oid)
		reserve(extension, true);
	else
	{
		int64		left = tokens_left(my_database);

		if (left < LOW_TOKENS)
			reserve(extension, left < SCARCE_TOKENS);
	}
	return &my_database->tokens;
}

/* Reserve tokens for a request that found none.  As dl_token_supply(). */
void
dl_token_reserve(const DlExtension *extension)
{
	reserve(extension, true);
}

/* The database has been dropped.  Cannot throw; takes the token lock. */
void
dl_token_forget(Oid database)
{
	LWLockAcquire(dl_shared->token_lock, LW_EXCLUSIVE);
	for (int i = 0; i < dl_shared->ndatabases; i++)
		if (dl_shared->databases[i].database == database)
			dl_shared->databases[i].database = InvalidOid;
	LWLockRelease(dl_shared->token_lock);
}
