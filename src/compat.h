/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every difference between the versions of PostgreSQL we build with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_COMPAT_H
#define DISTLOCK_COMPAT_H

#include "access/transam.h"
#include "catalog/pg_class.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#if PG_VERSION_NUM >= 160000
#include "utils/guc_hooks.h"	/* 15 has it in replication/syncrep.h */
#endif
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "distlock needs PostgreSQL 15 or later"
#endif

/* Before the declaration of a function that only throws. */
#if PG_VERSION_NUM >= 180000
#define dl_noreturn pg_noreturn
#else
#define dl_noreturn pg_attribute_noreturn()
#endif

/* Where this backend stands in ProcGlobal->allProcs, below MaxBackends. */
static inline int
dl_my_backend(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

static inline int
dl_backend_of(PGPROC *proc)
{
#if PG_VERSION_NUM >= 170000
	return GetNumberFromPGProc(proc);
#else
	return proc->pgprocno;
#endif
}

/* The transaction under way, among those of this backend. */
static inline LocalTransactionId
dl_my_lxid(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProc->vxid.lxid;
#else
	return MyProc->lxid;
#endif
}

/*
 * The latest transaction that has completed, without waiting for any lock.  A
 * platform that does not read eight bytes at once could see half of a change
 * when the epoch changes.
 */
static inline FullTransactionId
dl_latest_completed_xid(void)
{
#if PG_VERSION_NUM >= 170000
	return TransamVariables->latestCompletedXid;
#else
	return ShmemVariableCache->latestCompletedXid;
#endif
}

static inline bool
dl_owns_relation(Oid relation, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, relation, role);
#else
	return pg_class_ownercheck(relation, role);
#endif
}

/* Does this session hold the lock in this mode? */
static inline bool
dl_holds_lock(const LOCKTAG *tag, LOCKMODE mode)
{
#if PG_VERSION_NUM >= 170000
	return LockHeldByMe(tag, mode, false);
#else
	return LockHeldByMe(tag, mode);
#endif
}

/* The wait event of a session that waits for a lock.  May allocate once. */
static inline uint32
dl_acquire_wait_event(void)
{
#if PG_VERSION_NUM >= 170000
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("DistlockAcquire");
	return event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* The wait event of a session that watches a lock.  May allocate once. */
static inline uint32
dl_watch_wait_event(void)
{
#if PG_VERSION_NUM >= 170000
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("DistlockWatch");
	return event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* The wait event of the idle worker.  May allocate once. */
static inline uint32
dl_worker_wait_event(void)
{
#if PG_VERSION_NUM >= 170000
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("DistlockWorkerMain");
	return event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/*
 * Are synchronous standbys asked for that have not confirmed this position, or
 * what lies before it?  Takes SyncRepLock.
 */
static inline bool
dl_sync_standbys_lack(XLogRecPtr lsn)
{
	bool		lack;

	if (max_wal_senders == 0)
		return false;
	LWLockAcquire(SyncRepLock, LW_SHARED);
#ifdef SYNC_STANDBY_DEFINED
	/* Until the checkpointer has set the status, the setting tells. */
	lack = (WalSndCtl->sync_standbys_status & SYNC_STANDBY_INIT) != 0 ?
		(WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0 :
		SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0';
#else
	lack = WalSndCtl->sync_standbys_defined;
#endif
	lack = lack && WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH] < lsn;
	LWLockRelease(SyncRepLock);
	return lack;
}

/* What is put on a page. */
#if PG_VERSION_NUM >= 190000
#define DL_ITEM(data)	((const void *) (data))
#else
#define DL_ITEM(data)	((Item) (data))
#endif

/* Scan all of a relation. */
#if PG_VERSION_NUM >= 190000
#define dl_table_beginscan(rel, snapshot)	table_beginscan(rel, snapshot, 0, NULL, 0)
#else
#define dl_table_beginscan(rel, snapshot)	table_beginscan(rel, snapshot, 0, NULL)
#endif

/* In which file is this relation? */
#if PG_VERSION_NUM >= 160000
#define dl_file_of(rel) ((rel)->rd_locator.relNumber)
#else
#define dl_file_of(rel) ((rel)->rd_node.relNode)
#endif

/* Is this relation rewritten by the transaction under way? */
#if PG_VERSION_NUM >= 160000
#define dl_rewritten_subxact(rel) ((rel)->rd_firstRelfilelocatorSubid)
#else
#define dl_rewritten_subxact(rel) ((rel)->rd_firstRelfilenodeSubid)
#endif

#endif							/* DISTLOCK_COMPAT_H */
