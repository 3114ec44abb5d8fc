/*-------------------------------------------------------------------------
 *
 * flush.c
 *	  Flushing WAL for many sessions at once.
 *
 * With XLogFlush() alone, all who wait for the end of a flush are woken to see
 * whether it was enough, and most of them wait again.  Here the first to come
 * flushes for all who have come until it is its turn, and each of them is woken
 * once.  The list, and the semaphores, are used as in ProcArrayGroupClearXid().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/pg_sema.h"
#include "storage/proc.h"

#include "compat.h"
#include "flush.h"
#include "shmem.h"

#define NOBODY	PG_UINT32_MAX

/* Wait until the one who flushes has done so for us. */
static void
wait_for_leader(DlSession *session)
{
	int			extra_waits = 0;

	for (;;)
	{
		PGSemaphoreLock(MyProc->sem);
		if (!session->flushing)
			break;
		extra_waits++;
	}
	pg_read_barrier();
	while (extra_waits-- > 0)
		PGSemaphoreUnlock(MyProc->sem);
}

/*
 * Returns when WAL is flushed up to this position.  Cannot be interrupted, as
 * XLogFlush() cannot; needs no LWLock held.
 */
void
dl_flush_wal(XLogRecPtr lsn)
{
	uint32		me = dl_my_backend();
	DlSession  *session = &dl_shared->sessions[me];
	uint32		next = pg_atomic_read_u32(&dl_shared->flush_first);
	XLogRecPtr	upto = InvalidXLogRecPtr;

	session->flush_lsn = lsn;
	session->flushing = true;
	do
		session->flush_next = next;
	while (!pg_atomic_compare_exchange_u32(&dl_shared->flush_first, &next, me));
	if (next != NOBODY)
	{
		wait_for_leader(session);
		return;
	}

	/* An error here would leave the others waiting. */
	START_CRIT_SECTION();
	LWLockAcquire(dl_shared->flush_lock, LW_EXCLUSIVE);
	next = pg_atomic_exchange_u32(&dl_shared->flush_first, NOBODY);
	for (uint32 i = next; i != NOBODY; i = dl_shared->sessions[i].flush_next)
		upto = Max(upto, dl_shared->sessions[i].flush_lsn);
	XLogFlush(upto);
	LWLockRelease(dl_shared->flush_lock);

	while (next != NOBODY)
	{
		DlSession  *other = &dl_shared->sessions[next];
		PGPROC	   *proc = &ProcGlobal->allProcs[next];

		next = other->flush_next;
		pg_write_barrier();
		other->flushing = false;
		if (other != session)
			PGSemaphoreUnlock(proc->sem);
	}
	END_CRIT_SECTION();
}
