/*-------------------------------------------------------------------------
 *
 * fence.c
 *	  Guards: this transaction commits only if its leases are live then.
 *
 * A guard is checked when it is made, to fail early, and again at the end of
 * the transaction's work, under the partition lock: there the lease is live
 * and pinned, or the commit fails.  A pinned lease keeps its place until the
 * transaction is visible and its locks are gone, so no conflicting lease is
 * granted in between, and what is granted afterwards sees what was written.
 *
 * A prepared transaction outlives the session, and shared memory.  It holds
 * the lock's tag instead of a pin; see barrier.c.
 *
 * The guards of a transaction are a stack, as its actions are: each has an
 * action in transaction.c, which pops it at the end of its (sub)transaction.
 * They are found by name through buckets, since a protected table asks for
 * each row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "barrier.h"
#include "compat.h"
#include "distlock.h"
#include "fence.h"
#include "lease.h"
#include "session.h"
#include "shmem.h"
#include "transaction.h"

typedef struct Guard
{
	DlKey		key;
	int64		token;
	DlMode		mode;
	DlGuard    *shared;
	int			next;			/* the one below it in its bucket, or -1 */
} Guard;

/* Live as long as the session; there are as many buckets as guards fit. */
static Guard *guards = NULL;
static int *buckets = NULL;
static int	nguards = 0;
static int	max_guards = 0;		/* a power of two */

/* Changes whenever a guard is popped. */
static uint64 generation = 0;

/* The guards have been looked at for the last time. */
static bool closed = false;

/* When the transaction block with this number began; see is_older(). */
static LocalTransactionId begun_lxid = InvalidLocalTransactionId;
static int64 begun_at;

#define FEW_GUARDS	16

/* Above this many, memory is given back before the next transaction's use. */
#define KEEP_GUARDS 1024

/* ---- The stack ---- */

static inline int *
bucket_of(const DlKey *key)
{
	return &buckets[key->hash & (max_guards - 1)];
}

static void
link_guard(int i)
{
	int		   *bucket = bucket_of(&guards[i].key);

	guards[i].next = *bucket;
	*bucket = i;
}

static void *
resize(void *memory, Size size)
{
	return memory == NULL ? MemoryContextAllocHuge(TopMemoryContext, size) :
		repalloc_huge(memory, size);
}

/* Make room for one more.  Throws when out of memory. */
static void
reserve(void)
{
	if (nguards == 0 && max_guards > KEEP_GUARDS)
	{
		max_guards = 0;
		guards = resize(guards, FEW_GUARDS * sizeof(Guard));
		buckets = resize(buckets, FEW_GUARDS * sizeof(int));
	}
	else if (nguards < max_guards)
		return;
	else
	{
		guards = resize(guards, Max(2 * max_guards, FEW_GUARDS) * sizeof(Guard));
		buckets = resize(buckets, Max(2 * max_guards, FEW_GUARDS) * sizeof(int));
	}
	max_guards = Max(2 * max_guards, FEW_GUARDS);
	for (int i = 0; i < max_guards; i++)
		buckets[i] = -1;
	for (int i = 0; i < nguards; i++)
		link_guard(i);
}

/* The topmost guard on this lock; with a token, the one by that lease. */
static Guard *
find_guard(const DlKey *key, int64 token)
{
	if (nguards == 0)
		return NULL;
	for (int i = *bucket_of(key); i >= 0; i = guards[i].next)
		if ((token == 0 || guards[i].token == token) &&
			dl_same_key(&guards[i].key, key))
			return &guards[i];
	return NULL;
}

/*
 * Guard the transaction by a live lease.  Needs its partition locked, and room
 * on both stacks; cannot throw.  Returns false when too many guards are in use.
 */
static bool
push_guard(DlLease *lease)
{
	Guard	   *guard = &guards[nguards];

	if (find_guard(&lease->lock->key, lease->token) != NULL)
		return true;
	guard->shared = dl_engine_guard(dl_shared->engine, lease, MyProcPid);
	if (guard->shared == NULL)
		return false;
	guard->key = lease->lock->key;
	guard->token = lease->token;
	guard->mode = dl_engine_prepares_as(lease);
	link_guard(nguards++);
	dl_txn_guarded();
	return true;
}

/*
 * The topmost guard's (sub)transaction has ended, rolled back or prepared.
 * Cannot throw; takes a partition lock.
 */
void
dl_fence_pop(void)
{
	DlEffects	fx = DL_NO_EFFECTS;
	Guard	   *guard = &guards[--nguards];
	int			partition = dl_partition_of(guard->key.hash);

	Assert(*bucket_of(&guard->key) == nguards);
	*bucket_of(&guard->key) = guard->next;
	generation++;
	dl_partition_lock(partition, LW_EXCLUSIVE);
	dl_engine_unguard(dl_shared->engine, partition, guard->shared, dl_now(), &fx);
	dl_partition_unlock(partition, &fx);
	if (fx.over)
		dl_wake_worker();		/* it logs, we cannot */
}

/* What is guarded stays so while this number is the same.  Cannot throw. */
uint64
dl_fence_generation(void)
{
	return generation;
}

/* ---- Which snapshots are too old ---- */

/*
 * A transaction block begins.  Its snapshot will be taken later, unless there
 * is one already: then the block has only taken over an implicit transaction.
 * Needs no lock; cannot throw.
 */
void
dl_fence_note_begin(void)
{
	if (FirstSnapshotSet)
		return;
	begun_lxid = dl_my_lxid();
	begun_at = dl_now();
}

/*
 * It has taken a snapshot of another transaction, which may be older.  Needs no
 * lock; cannot throw.
 */
void
dl_fence_forget_begin(void)
{
	begun_lxid = InvalidLocalTransactionId;
}

/*
 * Could a snapshot miss a transaction that had completed when "completed" was
 * the latest of them?
 *
 * If its end lies beyond, no; if it lies before, yes.  If they are the same,
 * only the transactions that it takes for running matter, and those still
 * running miss nothing.  One that has ended may have done so before or after,
 * so we say yes.
 */
static bool
may_miss(Snapshot snapshot, FullTransactionId completed)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint32		behind = XidFromFullTransactionId(next) - snapshot->xmax;
	FullTransactionId xmax =
		FullTransactionIdFromU64(U64FromFullTransactionId(next) - behind);

	FullTransactionIdAdvance(&completed);
	if (!FullTransactionIdEquals(xmax, completed))
		return FullTransactionIdPrecedes(xmax, completed);
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		if (!TransactionIdIsInProgress(snapshot->xip[i]))
			return true;
	return false;
}

/*
 * Is the snapshot that this transaction works with older than the lease?  Then
 * it may miss what the lease's predecessors wrote.  A transaction block knows
 * when it began; of other transactions the snapshot itself has to tell.
 */
static bool
is_older(int64 told_at, uint64 completed)
{
	if (!IsolationUsesXactSnapshot())
		return false;
	if (begun_lxid == dl_my_lxid())
		return begun_at <= told_at;
	return may_miss(GetTransactionSnapshot(), FullTransactionIdFromU64(completed));
}

static void
report_older(const DlKey *key, int64 token)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot guard a transaction by a lease that is younger than its snapshot"),
			 errdetail("The snapshot may miss what earlier holders of lock \"%s\" wrote before the lease under token %lld was granted.",
					   key->name, (long long) token),
			 errhint("Acquire before BEGIN, or use READ COMMITTED.")));
}

/* ---- Making guards ---- */

static void
check_open(void)
{
	if (closed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot guard a transaction that is about to commit")));
}

static void
report_full(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many guards"),
			 errdetail("%d leases guard open transactions.", Max(dl_max_leases, MaxBackends)),
			 errhint("Increase \"distlock.max_leases\", which sizes this too, and restart the server.")));
}

/* Make room in all that a guard needs.  May throw. */
static void
prepare_guard(void)
{
	check_open();
	dl_session_start();
	dl_txn_reserve(1);
	reserve();
}

/*
 * This transaction commits only if the lease is live then.  Throws LK001 when
 * it is not live now, 42501 when it is somebody else's, 55000 when this
 * transaction cannot rely on it, 53400 when too many guards are in use.
 */
void
dl_fence_guard(const DlKey *key, int64 token)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int			partition = dl_partition_of(key->hash);
	bool		vetted = !IsolationUsesXactSnapshot();
	int64		now;

	prepare_guard();
	for (;;)
	{
		DlLease    *lease = dl_lease_lock(key, token, &now, &fx);
		bool		releases = lease != NULL && dl_txn_releases(lease);
		bool		done;
		int64		told_at;
		uint64		completed;

		if (lease == NULL || releases)
		{
			dl_shared->engine->partitions[partition].counters.guards_refused++;
			dl_lease_report_lost(key, token, now, &fx,
								 releases ? DL_LOST_BY_RELEASE : DL_LOST);
		}
		told_at = lease->told_at;
		completed = lease->completed;
		done = vetted && push_guard(lease);
		dl_lease_unlock(partition, &fx);
		if (done)
			return;
		if (vetted)
			report_full();
		if (is_older(told_at, completed))
			report_older(key, token);
		vetted = true;
	}
}

/*
 * A lease of this lock that needs no token: this session holds it with session
 * or transaction scope, or this transaction has acquired it.  Needs the
 * partition locked.
 */
static DlLease *
own_lease(const DlKey *key, int64 now)
{
	dlist_iter	iter;

	/* What ends with this session, however many others share the lock. */
	dlist_foreach(iter, dl_engine_of_backend(dl_shared->engine, dl_my_backend(),
											 dl_partition_of(key->hash)))
	{
		DlLease    *lease = dlist_container(DlLease, backend_link, iter.cur);

		if (lease->state == DL_LIVE && lease->deadline > now &&
			dl_same_key(&lease->lock->key, key) && !dl_txn_releases(lease))
			return lease;
	}
	return dl_txn_find_acquired(key, now);
}

/*
 * Is this transaction guarded by a lease of this lock?  It becomes so if the
 * session has one that needs no token.  Throws as dl_fence_guard(), but for
 * LK001 and 42501.
 */
bool
dl_fence_is_guarded(const DlKey *key)
{
	int			partition = dl_partition_of(key->hash);
	bool		vetted = !IsolationUsesXactSnapshot();

	if (find_guard(key, 0) != NULL)
		return true;

	prepare_guard();
	for (;;)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLease    *lease;
		bool		found;
		bool		done = false;
		int64		told_at = 0;
		int64		token = 0;
		uint64		completed = 0;

		dl_partition_lock(partition, LW_EXCLUSIVE);
		lease = own_lease(key, dl_now());
		found = lease != NULL;
		if (found)
		{
			told_at = lease->told_at;
			token = lease->token;
			completed = lease->completed;
			done = vetted && push_guard(lease);
		}
		dl_partition_unlock(partition, &fx);
		if (done || !found)
			return done;
		if (vetted)
			report_full();
		if (is_older(told_at, completed))
			report_older(key, token);
		vetted = true;
	}
}

/* ---- The end of the transaction ---- */

/* Have the engine look at a guard for the last time; throws LK001. */
static void
settle_guard(Guard *guard, bool (*look) (DlEngine *, int, DlGuard *, int64))
{
	int			partition = dl_partition_of(guard->key.hash);
	DlEffects	fx = DL_NO_EFFECTS;
	int64		now;

	dl_partition_lock(partition, LW_EXCLUSIVE);
	now = dl_now();
	if (!look(dl_shared->engine, partition, guard->shared, now))
		dl_lease_report_lost(&guard->key, guard->token, now, &fx, DL_LOST_AT_COMMIT);
	dl_partition_unlock(partition, &fx);
}

/*
 * The transaction is about to commit: hold its leases in place, and throw
 * LK001 unless all of them are live.  Never waits but for LWLocks.
 */
void
dl_fence_pin(void)
{
	closed = true;
	for (int i = 0; i < nguards; i++)
		settle_guard(&guards[i], dl_engine_pin);
}

/*
 * The transaction is about to be prepared: take the tags of its locks, to be
 * held until it is committed or rolled back, and see that its leases are live
 * after that.  They stay pinned until it is prepared.  May wait for whoever is
 * passing a barrier; throws LK001.
 */
void
dl_fence_prepare(void)
{
	closed = true;
	for (int i = 0; i < nguards; i++)
	{
		/* With a stale lease we could wait for our successor's wait to end. */
		settle_guard(&guards[i], dl_engine_may_commit);
		dl_barrier_hold(&guards[i].key, guards[i].mode);
		settle_guard(&guards[i], dl_engine_bar);
	}
}

/* The transaction has ended.  Cannot throw. */
void
dl_fence_end(void)
{
	closed = false;
}
