/*-------------------------------------------------------------------------
 *
 * session.c
 *	  What begins and ends with a session.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/ipc.h"

#include "bridge.h"
#include "compat.h"
#include "session.h"
#include "shmem.h"
#include "transaction.h"

static bool started = false;

/* End what is in the engine's list of this backend.  Cannot throw. */
static void
end_backend(void)
{
	DlEngine   *engine = dl_shared->engine;
	int			backend = dl_my_backend();

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		DlEffects	fx = DL_NO_EFFECTS;

		/* Only we add to our lists, so an empty one can be passed by. */
		if (dlist_is_empty(dl_engine_of_backend(engine, backend, p)))
			continue;
		dl_partition_lock(p, LW_EXCLUSIVE);
		dl_engine_end_backend(engine, p, backend, dl_now(), &fx);
		dl_partition_unlock(p, &fx);
		if (fx.over)
			dl_wake_worker();	/* it logs, we cannot */
	}
}

static void
session_end(int code, Datum arg)
{
	dl_txn_at_exit();
	end_backend();
	dl_shared->sessions[dl_my_backend()].generation++;
}

/*
 * Called at each acquire, release, guard and drop; does something at the first.  May
 * throw when out of memory.  Returns the generation of this session.
 */
uint32
dl_session_start(void)
{
	DlSession  *session = &dl_shared->sessions[dl_my_backend()];

	if (!started)
	{
		dl_txn_init();
		on_shmem_exit(session_end, (Datum) 0);
		session->generation++;
		started = true;
	}
	return session->generation;
}

/*
 * DISCARD ALL, which never runs inside a transaction block: the engine's list
 * holds the leases of session scope and nothing else.
 */
void
dl_session_discard(void)
{
	if (started)
	{
		end_backend();
		dl_bridge_sweep();
	}
}
