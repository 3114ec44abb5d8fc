/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background worker: ends and logs what has expired.
 *
 * Nobody waits for it.  A session that wants a lock whose lease has expired
 * ends that lease itself; the worker tidies up behind those for which nobody
 * waits, and does the logging of whoever cannot log.  After prepared
 * transactions it finds out when locks may begin without a barrier again.
 *
 * While any lease has a deadline the worker looks at the next one, and once
 * a second at the latest, so that a grant need not tell it.  Otherwise it
 * sets worker_asleep and sleeps until the first grant with a deadline, or an
 * ended lease to be logged, wakes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "barrier.h"
#include "chores.h"
#include "compat.h"
#include "distlock.h"
#include "lease.h"
#include "shmem.h"
#include "worker.h"

/* Bounds of a nap, in microseconds. */
#define SHORTEST_NAP	(10 * INT64CONST(1000))
#define LONGEST_NAP		USECS_PER_SEC

/* Bounds of the pause between two looks for prepared transactions. */
#define SHORTEST_PAUSE	USECS_PER_SEC
#define LONGEST_PAUSE	(60 * USECS_PER_SEC)

static void
worker_exit(int code, Datum arg)
{
	dl_shared->worker_latch = NULL;
}

/* The earliest deadline there may be. */
static int64
next_deadline(void)
{
	int64		next = DL_FOREVER;

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		int64		deadline;

		dl_partition_lock(p, LW_SHARED);
		deadline = dl_engine_next_deadline(dl_shared->engine, p);
		dl_partition_unlock(p, &fx);
		next = Min(next, deadline);
	}
	return next;
}

/*
 * Look for prepared transactions now and then while locks begin with a
 * barrier.  Returns when to look again.
 */
static int64
settle_barriers(void)
{
	static int64 look_at = 0;
	static int64 pause = SHORTEST_PAUSE;
	int64		now = dl_now();
	bool		settled = false;

	if (now >= look_at)
	{
		settled = dl_barrier_settle();
		pause = settled ? SHORTEST_PAUSE : Min(2 * pause, LONGEST_PAUSE);
		look_at = now + pause;
	}
	return settled ? DL_FOREVER : look_at;
}

void
dl_worker_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();

	on_shmem_exit(worker_exit, (Datum) 0);
	dl_shared->worker_latch = MyLatch;
	(void) dl_accepting_since();

	for (;;)
	{
		int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
		long		timeout = -1;
		int64		next;
		int64		chores_at;
		int64		barriers_at;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending)
			proc_exit(1);		/* 0 would mean never to come back */
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			dl_shared->max_ttl = dl_max_ttl;
		}

		/*
		 * Announce the sleep before looking: a grant after the look finds the
		 * flag and wakes us.
		 */
		pg_atomic_write_u32(&dl_shared->worker_asleep, 1);
		pg_memory_barrier();
		dl_lease_sweep();
		next = next_deadline();
		chores_at = dl_chores_start();
		barriers_at = settle_barriers();
		next = Min(next, Min(chores_at, barriers_at));
		if (next < DL_FOREVER)
		{
			int64		nap = next - dl_now();

			pg_atomic_write_u32(&dl_shared->worker_asleep, 0);
			nap = Max(SHORTEST_NAP, Min(nap, LONGEST_NAP));
			events |= WL_TIMEOUT;
			timeout = (long) (nap / 1000);
		}
		(void) WaitLatch(MyLatch, events, timeout, dl_worker_wait_event());
	}
}

/* Called from _PG_init while the server preloads us. */
void
dl_worker_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "distlock", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "dl_worker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "distlock worker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "distlock worker", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}
