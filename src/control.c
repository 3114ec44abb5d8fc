/*-------------------------------------------------------------------------
 *
 * control.c
 *	  The durable state of one database: a row and a sequence, written in place.
 *
 * The row is the only one of distlock_control.  The sequence repeats the limit
 * of tokens, since it is what pg_dump carries; the row is what setval() and
 * ALTER SEQUENCE do not reach.  Both are overwritten in place with Generic
 * WAL.
 *
 * nextval() would not do: it takes a transaction id, fails in a read-only
 * transaction, and is not flushed before the commit.
 *
 * Whoever reads in order to write holds the token lock.
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
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "control.h"

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

static void
check_row(Relation control, HeapTupleHeader tuple)
{
	TupleDesc	desc = RelationGetDescr(control);
	int			ncolumns = sizeof(DlControl) / sizeof(int64);
	bool		ours = desc->natts == ncolumns &&
		HeapTupleHeaderGetNatts(tuple) == ncolumns &&
		(tuple->t_infomask & HEAP_HASNULL) == 0;

	/* A column that has been dropped has no type. */
	for (int i = 0; ours && i < ncolumns; i++)
		ours = TupleDescAttr(desc, i)->atttypid == INT8OID;
	if (!ours)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("relation \"%s\" does not have the columns of this version of distlock",
						RelationGetRelationName(control)),
				 errhint("Install the version of distlock that the extension was created with, or a later one.")));
}

static HeapTupleHeader
tuple_on(Page page, OffsetNumber offset)
{
	return (HeapTupleHeader) PageGetItem(page, PageGetItemId(page, offset));
}

/* The user data of a tuple on a page. */
static void *
tuple_data(Page page, OffsetNumber offset)
{
	HeapTupleHeader tuple = tuple_on(page, offset);

	return (char *) tuple + tuple->t_hoff;
}

static ItemPointerData
find_row(Relation control)
{
	TableScanDesc scan = dl_table_beginscan(control, SnapshotSelf);
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

/*
 * Open and lock both relations.  With "wait" false, returns false and leaves
 * nothing behind when somebody else has one of them locked.  Throws when they
 * are gone or not what they should be.
 */
bool
dl_control_open(const DlExtension *extension, bool wait, DlControlFile *file)
{
	Buffer		buffer;

	if (wait)
	{
		LockRelationOid(extension->sequence, RowExclusiveLock);
		LockRelationOid(extension->control, RowExclusiveLock);
	}
	else if (!ConditionalLockRelationOid(extension->sequence, RowExclusiveLock))
		return false;
	else if (!ConditionalLockRelationOid(extension->control, RowExclusiveLock))
	{
		UnlockRelationOid(extension->sequence, RowExclusiveLock);
		return false;
	}
	file->sequence = try_relation_open(extension->sequence, NoLock);
	file->control = try_relation_open(extension->control, NoLock);
	if (file->sequence == NULL || file->control == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension distlock has been dropped")));
	check_relation(file->sequence, RELKIND_SEQUENCE);
	check_relation(file->control, RELKIND_RELATION);
	file->row = find_row(file->control);

	buffer = ReadBuffer(file->control, ItemPointerGetBlockNumber(&file->row));
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	check_row(file->control, tuple_on(BufferGetPage(buffer),
									  ItemPointerGetOffsetNumber(&file->row)));
	UnlockReleaseBuffer(buffer);
	return true;
}

/* Nothing of what is written is undone by a rollback, so the locks can go. */
void
dl_control_close(DlControlFile *file)
{
	relation_close(file->control, RowExclusiveLock);
	relation_close(file->sequence, RowExclusiveLock);
}

/*
 * Has this transaction created the row's table?  Then it goes with a rollback,
 * and a limit of tokens that was written there is forgotten.
 */
bool
dl_control_is_created(const DlControlFile *file)
{
	return file->control->rd_createSubid != InvalidSubTransactionId;
}

/* Has it rewritten the table?  Then a rollback brings back what was before. */
bool
dl_control_is_rewritten(const DlControlFile *file)
{
	return !dl_control_is_created(file) &&
		dl_rewritten_subxact(file->control) != InvalidSubTransactionId;
}

/* What the sequence says was handed out last, which is not below 0. */
static int64
limit_of(const FormData_pg_sequence_data *data)
{
	int64		last = Max(data->last_value, 1);

	return data->is_called ? last : last - 1;
}

/*
 * The row, and the limit that the sequence stands at.  Takes buffer locks; may
 * throw when a page cannot be read.
 */
DlControl
dl_control_read(const DlControlFile *file, int64 *sequence_limit)
{
	Buffer		buffer = ReadBuffer(file->control, ItemPointerGetBlockNumber(&file->row));
	DlControl	control;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	control = *(DlControl *) tuple_data(BufferGetPage(buffer),
										ItemPointerGetOffsetNumber(&file->row));
	UnlockReleaseBuffer(buffer);

	buffer = ReadBuffer(file->sequence, 0);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	*sequence_limit = limit_of(tuple_data(BufferGetPage(buffer), FirstOffsetNumber));
	UnlockReleaseBuffer(buffer);
	return control;
}

/*
 * Overwrite the row, and raise the sequence to its limit.  Returns what has to
 * be flushed, as far as the relations are WAL-logged.  Needs the token lock
 * exclusively; takes buffer locks; may throw when a page cannot be read.
 */
XLogRecPtr
dl_control_write(const DlControlFile *file, const DlControl *control)
{
	XLogRecPtr	end = XactLastRecEnd;
	Buffer		sequence_buffer = ReadBuffer(file->sequence, 0);
	Buffer		control_buffer = ReadBuffer(file->control,
											ItemPointerGetBlockNumber(&file->row));
	GenericXLogState *state;
	HeapTupleHeader tuple;
	XLogRecPtr	control_lsn;
	XLogRecPtr	sequence_lsn = InvalidXLogRecPtr;

	LockBuffer(sequence_buffer, BUFFER_LOCK_EXCLUSIVE);
	LockBuffer(control_buffer, BUFFER_LOCK_EXCLUSIVE);

	/* Frozen, so that it is the same on standbys, with no hint bits to be set. */
	state = GenericXLogStart(file->control);
	tuple = tuple_on(GenericXLogRegisterBuffer(state, control_buffer, 0),
					 ItemPointerGetOffsetNumber(&file->row));
	tuple->t_infomask = HEAP_XMIN_FROZEN | HEAP_XMAX_INVALID;
	HeapTupleHeaderSetCmin(tuple, FirstCommandId);
	memcpy((char *) tuple + tuple->t_hoff, control, sizeof(DlControl));
	control_lsn = GenericXLogFinish(state);

	if (control->token_limit > limit_of(tuple_data(BufferGetPage(sequence_buffer),
												   FirstOffsetNumber)))
	{
		FormData_pg_sequence_data *data;

		state = GenericXLogStart(file->sequence);
		data = tuple_data(GenericXLogRegisterBuffer(state, sequence_buffer, 0),
						  FirstOffsetNumber);
		data->last_value = control->token_limit;
		data->log_cnt = 0;
		data->is_called = true;
		sequence_lsn = GenericXLogFinish(state);
	}
	UnlockReleaseBuffer(control_buffer);
	UnlockReleaseBuffer(sequence_buffer);

	/* Whoever needs it flushed flushes it; the commit does not have to. */
	XactLastRecEnd = end;
	return Max(control_lsn, sequence_lsn);
}
