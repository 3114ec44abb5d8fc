/*-------------------------------------------------------------------------
 *
 * transaction.c
 *	  What this transaction acquired, relies on and will release.
 *
 * An acquire takes effect at once and is undone with its (sub)transaction; a
 * release takes effect when its transaction has committed; a guard goes with
 * its (sub)transaction.  All are noted here as actions, a stack in which those
 * of the innermost subtransaction are on top.
 *
 * The end of a transaction is noted in the transaction callback and acted on
 * in the first resource release callback after the heavyweight locks are
 * gone.  Before that, a successor we wake could find our table locks held, or
 * miss the catalog invalidations we have not sent yet.  Nothing there throws,
 * allocates, or takes anything but LWLocks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "acquire.h"
#include "bridge.h"
#include "database.h"
#include "fence.h"
#include "lease.h"
#include "shmem.h"
#include "transaction.h"
#include "watch.h"

typedef enum ActionKind
{
	ACTION_ACQUIRED,
	ACTION_GUARD,				/* the topmost of fence.c goes with it */
	ACTION_RELEASE,
	ACTION_FORCE_RELEASE,
	ACTION_REMOVE,				/* a dropped extension or database */
} ActionKind;

typedef struct Action
{
	ActionKind	kind;
	int			nest_level;		/* of the transaction it belongs to */
	int			partition;
	DlLease    *lease;
	uint64		serial;			/* the lease is ours while it has this one */
	Oid			role;			/* who forces the release */
	Oid			database;		/* to be removed */
	Oid			extension;		/* likewise; invalid: all of the database */
} Action;

typedef enum Outcome
{
	OUTCOME_OPEN,
	OUTCOME_COMMITTED,
	OUTCOME_ABORTED,
} Outcome;

static Action *actions = NULL;	/* lives as long as the session */
static int	nactions = 0;
static int	max_actions = 0;
static int	nreleases = 0;		/* of them, ACTION_(FORCE_)RELEASE */
static Outcome outcome = OUTCOME_OPEN;

/* Above this many, memory is given back before the next transaction's use. */
#define KEEP_ACTIONS 1024

/*
 * Make room for n actions, so that noting them cannot throw.  Throws when out
 * of memory.
 */
void
dl_txn_reserve(int n)
{
	int			wanted = Max(max_actions, 64);

	if (nactions == 0 && max_actions > KEEP_ACTIONS)
	{
		pfree(actions);
		actions = NULL;
		max_actions = 0;
		wanted = 64;
	}
	while (wanted - nactions < n)
		wanted *= 2;
	if (wanted == max_actions)
		return;
	if (actions == NULL)
		actions = MemoryContextAllocHuge(TopMemoryContext, wanted * sizeof(Action));
	else
		actions = repalloc_huge(actions, wanted * sizeof(Action));
	max_actions = wanted;
}

static Action *
push(ActionKind kind)
{
	Action	   *action = &actions[nactions++];

	Assert(nactions <= max_actions);
	memset(action, 0, sizeof(Action));
	action->kind = kind;
	action->nest_level = GetCurrentTransactionNestLevel();
	return action;
}

static Action *
push_lease(ActionKind kind, DlLease *lease)
{
	Action	   *action = push(kind);

	action->partition = dl_partition_of(lease->lock->key.hash);
	action->lease = lease;
	action->serial = lease->serial;
	return action;
}

/*
 * The transaction has acquired the lease, which is live.  Needs the partition
 * locked and dl_txn_reserve() done; cannot throw.
 */
void
dl_txn_acquired(DlLease *lease)
{
	push_lease(ACTION_ACQUIRED, lease);
}

/* It is guarded by one more lease.  As dl_txn_acquired(). */
void
dl_txn_guarded(void)
{
	push(ACTION_GUARD);
}

/* It will release the lease at its commit.  As dl_txn_acquired(). */
void
dl_txn_release(DlLease *lease, bool forced)
{
	Action	   *action = push_lease(forced ? ACTION_FORCE_RELEASE : ACTION_RELEASE, lease);

	action->role = GetUserId();
	lease->nreleasing++;
	lease->lock->nreleasing++;
	nreleases++;
}

/*
 * The extension, or with an invalid "extension" the whole database, is gone
 * when this transaction commits.  May throw when out of memory.
 */
void
dl_txn_remove(Oid database, Oid extension)
{
	Action	   *action;

	dl_txn_reserve(1);
	action = push(ACTION_REMOVE);
	action->database = database;
	action->extension = extension;
}

/*
 * Does the action still speak of its lease?  Needs its partition locked.
 *
 * The record may by now serve a lease in a partition that we do not have
 * locked.  Its serial is safe to read all the same: it changed under our
 * partition's lock when the record was freed, and never comes back.
 */
static bool
is_current(const Action *action)
{
	return action->lease->serial == action->serial &&
		(action->lease->state == DL_LIVE || action->lease->state == DL_GRANTED);
}

static bool
is_release(const Action *action)
{
	return action->kind == ACTION_RELEASE || action->kind == ACTION_FORCE_RELEASE;
}

/* Will this transaction release anything?  Needs no lock. */
bool
dl_txn_releases_any(void)
{
	return nreleases > 0;
}

/*
 * Will this transaction release the lease?  Needs the partition locked, like
 * dl_txn_releases_lock().
 */
bool
dl_txn_releases(const DlLease *lease)
{
	if (!dl_txn_releases_any() || lease->nreleasing == 0)
		return false;
	for (int i = nactions - 1; i >= 0; i--)
		if (is_release(&actions[i]) && actions[i].lease == lease &&
			actions[i].serial == lease->serial)
			return true;
	return false;
}

/*
 * A live lease of this lock that the transaction has acquired, and will not
 * release; or null.  Needs the partition locked.
 */
DlLease *
dl_txn_find_acquired(const DlKey *key, int64 now)
{
	int			partition = dl_partition_of(key->hash);

	for (int i = nactions - 1; i >= 0; i--)
	{
		DlLease    *lease = actions[i].lease;

		if (actions[i].kind == ACTION_ACQUIRED && actions[i].partition == partition &&
			is_current(&actions[i]) && lease->deadline > now &&
			dl_same_key(&lease->lock->key, key) && !dl_txn_releases(lease))
			return lease;
	}
	return NULL;
}

/* Will it release a live lease of this lock, which may be null? */
bool
dl_txn_releases_lock(const DlLock *lock, int64 now)
{
	int			partition;

	if (lock == NULL || lock->nreleasing == 0)
		return false;
	partition = dl_partition_of(lock->key.hash);
	for (int i = nactions - 1; i >= 0; i--)
		if (is_release(&actions[i]) && actions[i].partition == partition &&
			is_current(&actions[i]) && actions[i].lease->lock == lock &&
			actions[i].lease->deadline > now)
			return true;
	return false;
}

static void
finish_lease(const Action *action, bool committed, DlEffects *fx)
{
	DlLease    *lease = action->lease;

	if (!is_current(action))
		return;
	if (is_release(action))
	{
		lease->nreleasing--;
		lease->lock->nreleasing--;
		lease->forced_by_pid = MyProcPid;
		lease->forced_by_role = action->role;
		if (committed)
			dl_engine_end(dl_shared->engine, lease,
						  action->kind == ACTION_RELEASE ? DL_RELEASED : DL_FORCED,
						  dl_now(), fx);
	}
	else if (!committed)
		dl_engine_end(dl_shared->engine, lease, DL_UNDONE, dl_now(), fx);
	else if (lease->scope == DL_SCOPE_TRANSACTION)
		dl_engine_end(dl_shared->engine, lease, DL_RELEASED, dl_now(), fx);
	else
		lease->open = false;
}

/*
 * Carry out or undo the actions of this nest level and deeper.  Cannot throw.
 */
static void
finish(int nest_level, bool committed)
{
	while (nactions > 0 && actions[nactions - 1].nest_level >= nest_level)
	{
		Action	   *action = &actions[--nactions];

		if (action->kind == ACTION_REMOVE)
		{
			if (committed)
			{
				dl_lease_remove(action->database, action->extension);
				dl_database_forget(action->database, action->extension);
			}
		}
		else if (action->kind == ACTION_GUARD)
			dl_fence_pop();
		else
		{
			DlEffects	fx = DL_NO_EFFECTS;

			dl_partition_lock(action->partition, LW_EXCLUSIVE);
			finish_lease(action, committed, &fx);
			dl_partition_unlock(action->partition, &fx);
			if (fx.over)
				dl_wake_worker();	/* it logs, we cannot */
			if (is_release(action))
				nreleases--;
		}
	}
}

/*
 * No callback tells of COMMIT PREPARED, so there must be nothing to do then.
 * Guards leave it to the tags of their locks.
 */
static void
check_prepare(void)
{
	for (int i = 0; i < nactions; i++)
	{
		if (actions[i].kind == ACTION_REMOVE)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has dropped extension distlock")));
		if (actions[i].kind != ACTION_GUARD)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has acquired or released leases"),
					 errhint("Acquire before BEGIN, and release after COMMIT PREPARED.")));
	}
}

/* What this session was waiting for is not wanted any more.  Cannot throw. */
static void
abandon(void)
{
	dl_acquire_abandon();
	dl_watch_abandon();
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			outcome = OUTCOME_COMMITTED;
			break;
		case XACT_EVENT_ABORT:
			outcome = OUTCOME_ABORTED;
			break;
		case XACT_EVENT_PRE_COMMIT:
			dl_fence_pin();
			break;
		case XACT_EVENT_PRE_PREPARE:
			check_prepare();
			dl_fence_prepare();
			break;
		case XACT_EVENT_PREPARE:
			outcome = OUTCOME_COMMITTED;	/* guards are all there is */
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId id,
				 SubTransactionId parent, void *arg)
{
	int			nest_level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		abandon();
		finish(nest_level, false);
		dl_bridge_sweep();
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = nactions - 1; i >= 0 && actions[i].nest_level >= nest_level; i--)
			actions[i].nest_level = nest_level - 1;
	}
}

static void
release_callback(ResourceReleasePhase phase, bool is_commit,
				 bool is_top_level, void *arg)
{
	bool		committed = outcome == OUTCOME_COMMITTED;

	if (outcome == OUTCOME_OPEN || phase != RESOURCE_RELEASE_AFTER_LOCKS ||
		!is_top_level)
		return;
	outcome = OUTCOME_OPEN;
	abandon();
	finish(0, committed);
	dl_bridge_sweep();
	dl_fence_end();
}

/* Called once a session, at its first use.  May throw when out of memory. */
void
dl_txn_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	RegisterResourceReleaseCallback(release_callback, NULL);
}

/*
 * The session ends.  Usually its transaction has been aborted by now and
 * nothing is left to do.  Cannot throw.
 */
void
dl_txn_at_exit(void)
{
	abandon();
	finish(0, outcome == OUTCOME_COMMITTED);
}
