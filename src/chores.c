/*-------------------------------------------------------------------------
 *
 * chores.c
 *	  Tidying up on disk what nobody else comes by for.
 *
 * Stale images, and a control row that allows for longer leases than there are,
 * do no harm while the server runs.  After a crash they would bring back leases
 * that are over, and a grace for leases that were none.  So when they have been
 * there for a while, the background worker, which has no database, starts a
 * short-lived one that has.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "chores.h"
#include "database.h"
#include "session.h"
#include "shmem.h"
#include "store.h"
#include "supply.h"

/* How long a chore may wait for somebody to come by. */
#define LINGER			USECS_PER_SEC

/* Bounds of the pause between two starts for the same database. */
#define SHORTEST_PAUSE	(2 * USECS_PER_SEC)
#define LONGEST_PAUSE	(10 * USECS_PER_SEC)

/* What the background worker remembers of a database. */
typedef struct Chores
{
	Oid			database;
	int64		since;			/* they have been due, or 0 */
	int64		pause;			/* before the next start */
	int64		started_at;		/* the last one */
	BackgroundWorkerHandle *worker; /* the last one that was started, or null */
} Chores;

/* When the oldest stale image of a database turned stale, or DL_FOREVER. */
static int64
oldest_stale(Oid database)
{
	int64		oldest = DL_FOREVER;

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		DlPartition *part = &dl_shared->engine->partitions[p];
		DlEffects	fx = DL_NO_EFFECTS;
		dlist_iter	iter;

		if (part->nstale == 0)
			continue;
		dl_partition_lock(p, LW_SHARED);
		dlist_foreach(iter, &part->stale)
		{
			DlImage    *image = dlist_container(DlImage, stale_link, iter.cur);

			if (image->database != database)
				continue;
			oldest = Min(oldest, image->stale_since);
			break;
		}
		dl_partition_unlock(p, &fx);
	}
	return oldest;
}

/* Is one about it?  It may have to wait for a lock on our relations. */
static bool
is_running(Chores *chores)
{
	pid_t		pid;

	if (chores->worker == NULL)
		return false;
	if (GetBackgroundWorkerPid(chores->worker, &pid) != BGWH_STOPPED)
		return true;
	pfree(chores->worker);
	chores->worker = NULL;
	return false;
}

/* If there is no room for one more worker, the next look tries again. */
static void
start(Chores *chores)
{
	Oid			database = chores->database;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "distlock", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "dl_chores_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "distlock chores for database %u", database);
	strlcpy(worker.bgw_type, "distlock chores", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	if (!RegisterDynamicBackgroundWorker(&worker, &chores->worker))
		chores->worker = NULL;
	MemoryContextSwitchTo(old);
}

/*
 * Look at one database.  Returns when to look again, DL_FOREVER if there is
 * nothing to do.
 */
static int64
look_at(DlDatabase *database, Chores *chores, int64 now)
{
	Oid			oid = database->database;
	int64		stale = oldest_stale(oid);
	bool		high = dl_supply_is_high(database);
	int64		start_at;

	if (chores->database != oid)
	{
		if (chores->worker != NULL)
			pfree(chores->worker);
		memset(chores, 0, sizeof(Chores));
		chores->database = oid;
		chores->pause = SHORTEST_PAUSE;
	}
	if (!OidIsValid(oid) || !OidIsValid(database->extension.oid) ||
		(stale == DL_FOREVER && !high))
	{
		int64		opens_at = dl_opens_at(&database->supply);

		/* What a grace has kept high can be lowered when it is over. */
		chores->since = 0;
		chores->pause = SHORTEST_PAUSE;
		return opens_at > now ? opens_at : DL_FOREVER;
	}

	/* A busy database overwrites its stale images soon enough. */
	if (chores->since == 0)
		chores->since = now;
	if (!high)
		chores->since = Max(chores->since, stale);
	/* What the last one has left undone may take a while to be possible. */
	if (!high && stale > chores->started_at)
		chores->pause = SHORTEST_PAUSE;
	start_at = Max(chores->since + LINGER, chores->started_at + chores->pause);
	if (now < start_at)
		return start_at;
	if (!is_running(chores))
		start(chores);
	chores->started_at = now;
	chores->pause = Min(2 * chores->pause, LONGEST_PAUSE);
	return now + chores->pause;
}

/*
 * For the background worker: start whatever has to be.  Returns when to look
 * again, DL_FOREVER if nothing is to be done.  May throw when out of memory.
 */
int64
dl_chores_start(void)
{
	static Chores *chores = NULL;
	int64		now = dl_now();
	int64		next = DL_FOREVER;

	if (chores == NULL)
		chores = MemoryContextAllocZero(TopMemoryContext,
										dl_shared->ndatabases * sizeof(Chores));
	for (int i = 0; i < dl_shared->ndatabases; i++)
		if (OidIsValid(dl_shared->databases[i].database) ||
			OidIsValid(chores[i].database))
		{
			/* Min() evaluates its arguments twice. */
			int64		look_again = look_at(&dl_shared->databases[i], &chores[i], now);

			next = Min(next, look_again);
		}
	return next;
}

/* The short-lived worker. */
void
dl_chores_main(Datum arg)
{
	Oid			oid = DatumGetObjectId(arg);
	DlExtension extension;
	DlDatabase *database;

	/* As a session does: not at once, as the default would. */
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(oid, InvalidOid, BGWORKER_BYPASS_ALLOWCONN);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "tidying up the lease table");
	database = dl_database_find();
	if (database != NULL)
	{
		LWLockAcquire(dl_shared->token_lock, LW_SHARED);
		extension = database->extension;
		LWLockRelease(dl_shared->token_lock);
	}
	if (database != NULL &&
		SearchSysCacheExists1(RELOID, ObjectIdGetDatum(extension.lease_table)))
	{
		dl_session_start();
		dl_store_clear_stale(&extension);
		dl_supply_lower(&extension, database);
	}
	CommitTransactionCommand();
	proc_exit(0);
}
