/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  Leases as a session sees them: the engine, plus waiting and errors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "common/int.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "barrier.h"
#include "compat.h"
#include "distlock.h"
#include "lease.h"
#include "session.h"
#include "shmem.h"
#include "store.h"
#include "supply.h"
#include "transaction.h"

/* Leases looked at in one go, so that a partition is never locked for long. */
#define SWEEP_BATCH 64

/*
 * The request this session has in a queue, or has been granted but not told
 * of.  Whatever ends the wait early ends in dl_lease_abandon_wait().
 */
static DlLease *waiting = NULL;
static int	waiting_partition;

/* What a person is told of the lease in the way. */
typedef struct Obstacle
{
	int64		token;			/* 0: a queue only, or a grant not told yet */
	int64		remaining;		/* microseconds, DL_FOREVER without TTL */
	int			pid;			/* that holds it, or commits; 0: is gone */
	bool		ended;			/* it is over, but a commit keeps it pinned */
	bool		barred;
	int64		opens_in;		/* microseconds of grace left */
	int			nleases;
	int			nwaiting;
	char		holder[DL_HOLDER_MAX + 1];
} Obstacle;

/*
 * The first lease of the lock that has not expired is what is in the way.
 * Needs the partition locked, shared at least.  The lock may be null.
 */
static void
describe(DlLock *lock, int64 now, Obstacle *obstacle)
{
	dlist_iter	iter;

	memset(obstacle, 0, sizeof(Obstacle));
	if (lock == NULL)
		return;
	obstacle->barred = dl_engine_is_barred(lock, DL_EXCLUSIVE);
	obstacle->nwaiting = lock->nwaiting;
	obstacle->opens_in = dl_opens_at(lock->supply) - now;
	dlist_foreach(iter, &lock->leases)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

		if (lease->deadline <= now || obstacle->nleases++ > 0)
			continue;
		if (lease->state != DL_GRANTED)
			obstacle->token = lease->token;
		obstacle->ended = lease->state == DL_PINNED;
		obstacle->remaining = lease->deadline == DL_FOREVER ?
			DL_FOREVER : lease->deadline - now;
		if (obstacle->ended)
			obstacle->pid = dl_engine_pinning(lease)->pid;
		else if (dl_session_is_live(lease->backend, lease->generation))
			obstacle->pid = lease->pid;
		strcpy(obstacle->holder, lease->holder);
	}
}

/* The obstacle as a sentence or two, for an errdetail. */
static char *
obstacle_text(const Obstacle *obstacle)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (obstacle->nleases == 0 && obstacle->barred)
		appendStringInfoString(&buf, "A prepared transaction that an earlier lease of the lock guards may be neither committed nor rolled back.");
	else if (obstacle->nleases == 0 && obstacle->opens_in > 0)
		appendStringInfo(&buf, "Nothing is granted for another %lld ms, since leases that the server has lost at its start or promotion may still be held.",
						 (long long) ((obstacle->opens_in + 999) / 1000));
	else if (obstacle->nleases == 0)
		appendStringInfoString(&buf, "Nobody holds the lock now.");
	else if (obstacle->ended)
		appendStringInfo(&buf, "The lease of \"%s\" under token %lld is over, but process %d is committing a transaction that it guards.",
						 obstacle->holder, (long long) obstacle->token, obstacle->pid);
	else
	{
		if (obstacle->token == 0)
			appendStringInfo(&buf, "The lock has just been granted to \"%s\"",
							 obstacle->holder);
		else
			appendStringInfo(&buf, "The lock is held by \"%s\" under token %lld",
							 obstacle->holder, (long long) obstacle->token);
		if (obstacle->pid != 0)
			appendStringInfo(&buf, ", process %d", obstacle->pid);
		if (obstacle->remaining == DL_FOREVER)
			appendStringInfoString(&buf, ", with no time to live.");
		else
			appendStringInfo(&buf, ", for another %lld ms.",
							 (long long) ((obstacle->remaining + 999) / 1000));
		if (obstacle->nleases > 1)
			appendStringInfo(&buf, " Other holders: %d.",
							 obstacle->nleases - 1);
	}
	if (obstacle->nwaiting > 0)
		appendStringInfo(&buf, " Sessions waiting for it: %d.", obstacle->nwaiting);
	return buf.data;
}

/* ---- Ended leases ---- */

/* Log what became of a lease, or of a session that relied on it. */
static void
log_over(const DlLease *lease, const DlKey *key, const DlGuard *stale)
{
	if (stale != NULL)
		ereport(LOG_SERVER_ONLY,
				(errmsg("terminating process %d: its transaction is guarded by a lease of lock \"%s\" that is over",
						stale->pid, key->name),
				 errdetail("Token %lld, holder \"%s\", database with OID %u.",
						   (long long) lease->token, lease->holder, key->database),
				 errhidestmt(true), errhidecontext(true)));
	else if (lease->cause == DL_FORCED)
		ereport(LOG_SERVER_ONLY,
				(errmsg("lease of lock \"%s\" was ended by distlock_force_release()", key->name),
				 errdetail("Token %lld, holder \"%s\", process %d, role with OID %u, database with OID %u; ended by process %d, role with OID %u.",
						   (long long) lease->token, lease->holder, lease->pid,
						   lease->owner, key->database,
						   lease->forced_by_pid, lease->forced_by_role),
				 errhidestmt(true), errhidecontext(true)));
	else if (lease->cause == DL_EXPIRED && dl_log_expirations)
		ereport(LOG_SERVER_ONLY,
				(errmsg("lease of lock \"%s\" expired", key->name),
				 errdetail("Token %lld, holder \"%s\", process %d, role with OID %u, database with OID %u.",
						   (long long) lease->token, lease->holder, lease->pid,
						   lease->owner, key->database),
				 errhidestmt(true), errhidecontext(true)));
}

/*
 * See to the leases of this partition that are over: end the sessions that
 * still have a transaction guarded by one, if asked to, and log.  May throw (as
 * any logging may); needs no LWLock held.  Whoever comes by logs, so the
 * statement of that session is left out.
 *
 * The signal is sent under the partition lock: as long as the guard is there,
 * so is its transaction, and no other is hit.
 */
void
dl_log_over(int partition)
{
	for (;;)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlGuard		guard;
		DlLease		lease;
		DlKey		key;
		bool		stale;
		bool		signalled = false;
		bool		found;

		dl_partition_lock(partition, LW_EXCLUSIVE);
		stale = dl_engine_take_stale(dl_shared->engine, partition, &guard, &lease, &key);
		if (stale && dl_terminate_stale)
			signalled = kill(guard.pid, SIGTERM) == 0;
		found = stale ||
			dl_engine_take_over(dl_shared->engine, partition, &lease, &key);
		dl_partition_unlock(partition, &fx);
		if (!found)
			return;
		if (signalled)
			log_over(&lease, &key, &guard);
		else if (!stale)
			log_over(&lease, &key, NULL);
	}
}

/*
 * As dl_partition_unlock(), then log what the engine has ended.  May throw (as
 * any logging may).
 */
void
dl_lease_unlock(int partition, DlEffects *fx)
{
	bool		over = fx->over;

	dl_partition_unlock(partition, fx);
	fx->over = false;
	if (over)
		dl_log_over(partition);
}

/*
 * End and log all that has expired.  May throw (as any logging may); needs no
 * LWLock held.
 */
void
dl_lease_sweep(void)
{
	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		int			looked_at;

		do
		{
			DlEffects	fx = DL_NO_EFFECTS;

			dl_partition_lock(p, LW_EXCLUSIVE);
			looked_at = dl_engine_sweep(dl_shared->engine, p, dl_now(),
										SWEEP_BATCH, &fx);
			dl_partition_unlock(p, &fx);
			dl_log_over(p);
		} while (looked_at == SWEEP_BATCH);
	}
}

/*
 * The extension, or with an invalid "extension" the whole database, has been
 * dropped.  Cannot throw.
 */
void
dl_lease_remove(Oid database, Oid extension)
{
	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		DlEffects	fx = DL_NO_EFFECTS;

		dl_partition_lock(p, LW_EXCLUSIVE);
		dl_engine_remove(dl_shared->engine, p, database, extension, dl_now(), &fx);
		dl_partition_unlock(p, &fx);
		if (fx.over)
			dl_wake_worker();	/* it tells guards, we cannot */
	}
}

/* ---- Acquire ---- */

/*
 * Leave the queue, or give back a grant not told yet.  Called when the
 * (sub)transaction aborts or the session ends; cannot throw.
 */
void
dl_lease_abandon_wait(void)
{
	DlEffects	fx = DL_NO_EFFECTS;
	DlLease    *lease = waiting;

	dl_store_abandon();
	if (lease == NULL)
		return;
	waiting = NULL;
	dl_partition_lock(waiting_partition, LW_EXCLUSIVE);
	dl_engine_leave(dl_shared->engine, waiting_partition, lease, dl_now(), &fx);
	dl_partition_unlock(waiting_partition, &fx);
	if (fx.over)
		dl_wake_worker();		/* it logs, we cannot */
}

/*
 * Sleep until woken or until a deadline passes.  May throw on interrupts, but
 * not after the sleep: the caller looks first whether it has been granted.
 */
static void
sleep_until(int64 deadline)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	CHECK_FOR_INTERRUPTS();
	if (deadline < DL_FOREVER)
	{
		int64		usecs = deadline - dl_now();

		events |= WL_TIMEOUT;
		timeout = (long) Min((Max(usecs, 0) + 999) / 1000, INT_MAX);
	}
	(void) WaitLatch(MyLatch, events, timeout, dl_acquire_wait_event());
	ResetLatch(MyLatch);
}

static void
wait_is_over(const DlKey *key, bool lock_timeout, const Obstacle *obstacle)
{
	if (lock_timeout)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("canceling statement due to lock timeout"),
				 errdetail_internal("%s", obstacle_text(obstacle)),
				 errcontext("while acquiring lock \"%s\"", key->name)));
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("could not obtain lock \"%s\"", key->name),
			 errdetail_internal("%s", obstacle_text(obstacle))));
}

/*
 * The wait for a barrier is over, and the request has left the queue if it
 * stood there.  Says what is in the way, and returns the time.
 */
static int64
barrier_holds(const DlKey *key, Obstacle *obstacle)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int			partition = dl_partition_of(key->hash);
	int64		now;

	dl_partition_lock(partition, LW_EXCLUSIVE);
	now = dl_now();
	describe(dl_engine_find_lock(dl_shared->engine, key), now, obstacle);
	obstacle->barred = true;
	dl_shared->engine->partitions[partition].counters.timeouts++;
	dl_partition_unlock(partition, &fx);
	return now;
}

/*
 * Acquire a lease.  The request comes filled in but for its supply and the
 * session.  "wait" is the longest wait in microseconds, negative for no limit.
 *
 * Returns the token, with the catalog caches as fresh as the grant; 0 when the
 * wait is over and "try" is set.  Otherwise throws, and leaves nothing behind.
 * The lease is undone if the transaction aborts later.
 */
int64
dl_lease_acquire(const DlExtension *extension, DlRequest *request,
				 int64 wait, bool try)
{
	DlEngine   *engine = dl_shared->engine;
	int			partition = dl_partition_of(request->key.hash);
	int64		now;
	int64		wait_end = DL_FOREVER;
	int64		lock_timeout_end = DL_FOREVER;
	bool		swept = false;
	bool		passing = false;	/* we keep the barrier from coming back */
	bool		stored = false;		/* so is the image of the grant */
	uint64		serial = 0;

	dl_lease_abandon_wait();	/* an error caught without a savepoint */
	request->backend = dl_my_backend();
	request->generation = dl_session_start();
	request->pid = MyProcPid;
	request->supply = dl_supply_for(extension, dl_kept_as(request->durable),
									dl_bucket_of(request->scope, request->ttl));
	dl_txn_reserve(1);

	if (wait > 0 && pg_add_s64_overflow(dl_now(), wait, &wait_end))
		wait_end = DL_FOREVER;
	if (LockTimeout > 0 && wait != 0)
		lock_timeout_end = dl_now() + LockTimeout * INT64CONST(1000);
	request->may_wait = wait != 0;
	request->pass = DL_PASS_NONE;

	for (;;)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLease    *lease = waiting;
		DlVerdict	verdict;
		int64		timer = 0;
		int64		token = 0;
		Obstacle	obstacle;
		bool		over = false;
		bool		self = false;

		dl_partition_lock(partition, LW_EXCLUSIVE);
		now = dl_now();
		if (lease == NULL)
		{
			self = dl_txn_releases_any() &&
				dl_txn_releases_lock(dl_engine_find_lock(engine, &request->key), now);
			verdict = self ? DL_BUSY :
				dl_engine_request(engine, request, now, GetCurrentTimestamp(),
								  &lease, &fx);
		}
		else
		{
			if (passing)
				dl_engine_pass(lease);
			if (stored)
				dl_engine_stored(lease, serial, request->ttl);
			verdict = dl_engine_look(engine, partition, lease, now,
									 GetCurrentTimestamp(), &fx);
		}

		/* We are granted, or else it is time to look at the clock. */
		switch (verdict)
		{
			case DL_TOLD:
				lease->completed = U64FromFullTransactionId(dl_latest_completed_xid());
				dl_txn_acquired(lease);
				token = lease->token;
				waiting = NULL;
				break;
			case DL_UNTOLD:
				waiting = lease;
				waiting_partition = partition;
				serial = lease->serial;
				break;
			case DL_QUEUED:
				waiting = lease;
				waiting_partition = partition;
				timer = lease->timer;
				over = now >= wait_end || now >= lock_timeout_end;
				if (over)
				{
					describe(lease->lock, now, &obstacle);
					obstacle.nwaiting--;	/* not us */
					engine->partitions[partition].counters.timeouts++;
				}
				break;
			case DL_BUSY:
				over = true;
				describe(dl_engine_find_lock(engine, &request->key), now, &obstacle);
				obstacle.opens_in = dl_opens_at(request->supply) - now;
				break;
			case DL_AGAIN:
				/* We came too late; join the queue again, if there is time. */
				request->may_wait = wait != 0 && now < wait_end && now < lock_timeout_end;
				stored = false;
				/* fall through */
			case DL_GONE:
				waiting = NULL;
				dl_engine_leave(engine, partition, lease, now, &fx);
				break;
			case DL_BARRED:
			case DL_NO_TOKEN:
			case DL_FULL:
				break;
		}
		if (over && waiting != NULL)
		{
			waiting = NULL;
			dl_engine_leave(engine, partition, lease, now, &fx);
		}
		dl_lease_unlock(partition, &fx);
		if (passing)
		{
			dl_barrier_passed(&request->key, request->mode);
			passing = false;
			request->pass = DL_PASS_NONE;
		}

		if (token != 0)
		{
			/* Inside a transaction nothing else tells us of the DDL of others. */
			AcceptInvalidationMessages();
			return token;
		}
		if (self)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot acquire lock \"%s\" in the transaction that releases it",
							request->key.name),
					 errdetail("The release takes effect when this transaction commits."),
					 errhint("Commit first.")));
		if (over)
		{
			if (try && now < lock_timeout_end)
				return 0;
			wait_is_over(&request->key, now >= lock_timeout_end, &obstacle);
		}
		switch (verdict)
		{
			case DL_UNTOLD:
				if (request->durable && !stored)
					stored = dl_store_write(extension, &request->key, lease,
											serial, request->ttl);
				if (stored || !request->durable)
					dl_store_clear_leftovers(extension, &request->key);
				break;
			case DL_QUEUED:
				sleep_until(Min(timer, Min(wait_end, lock_timeout_end)));
				break;
			case DL_NO_TOKEN:
				dl_supply_refill(extension, fx.wanted);
				break;
			case DL_BARRED:
				/* Whoever waits for the tag does so as the head of the queue. */
				if (lease != NULL)
					passing = dl_barrier_pass(&request->key, request->mode,
											  Min(wait_end, lock_timeout_end));
				else
					passing = dl_barrier_try_pass(&request->key, request->mode);
				request->pass = passing ? DL_PASS_HELD : DL_PASS_QUEUE;
				if (passing || (lease == NULL && request->may_wait))
					break;
				now = barrier_holds(&request->key, &obstacle);
				if (try && now < lock_timeout_end)
					return 0;
				wait_is_over(&request->key, now >= lock_timeout_end, &obstacle);
				break;
			case DL_GONE:
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("extension distlock was dropped while waiting for lock \"%s\"",
								request->key.name)));
				break;
			case DL_FULL:
				if (swept)
					ereport(ERROR,
							(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
							 errmsg("too many leases"),
							 errdetail("%d leases are held or waited for.", dl_max_leases),
							 errhint("Increase \"distlock.max_leases\" and restart the server, or release leases.")));
				dl_lease_sweep();
				if (request->durable)
					dl_store_clear_stale(extension);
				swept = true;
				break;
			default:
				break;
		}
	}
}

/* ---- Live leases ---- */

/* The name of a role in quotes, or its OID if it has been dropped. */
static char *
role_text(Oid role)
{
	char	   *name = GetUserNameFromId(role, true);

	return name != NULL ? psprintf("\"%s\"", name) : psprintf("with OID %u", role);
}

/*
 * Find the live lease of this name and token, and return with its partition
 * locked, whether or not there is one.  Throws 42501, without the lock, when
 * the current role lacks the privileges of the lease's owner.  Needs no LWLock
 * held; dl_lease_unlock() has to follow.
 */
DlLease *
dl_lease_lock(const DlKey *key, int64 token, int64 *now, DlEffects *fx)
{
	int			partition = dl_partition_of(key->hash);
	Oid			vetted = GetUserId();

	for (;;)
	{
		DlLease    *lease;
		Oid			owner;

		dl_partition_lock(partition, LW_EXCLUSIVE);
		*now = dl_now();
		lease = dl_engine_find(dl_shared->engine, key, token, *now, fx);
		if (lease == NULL || lease->owner == vetted)
			return lease;
		owner = lease->owner;
		dl_lease_unlock(partition, fx);

		/* This reads catalogs, so not under the lock. */
		if (!has_privs_of_role(GetUserId(), owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied for lease of lock \"%s\"", key->name),
					 errdetail("The lease under token %lld was acquired by role %s.",
							   (long long) token, role_text(owner))));
		vetted = owner;
	}
}

/*
 * Throw LK001, with the lock's state as the detail.  Needs the partition of the
 * lock locked, and gives it up.
 */
void
dl_lease_report_lost(const DlKey *key, int64 token, int64 now, DlEffects *fx,
					 DlLoss loss)
{
	Obstacle	obstacle;
	char	   *detail;

	describe(dl_engine_find_lock(dl_shared->engine, key), now, &obstacle);
	dl_lease_unlock(dl_partition_of(key->hash), fx);
	detail = loss == DL_LOST_BY_RELEASE ? "This transaction has released it." :
		obstacle_text(&obstacle);
	if (loss == DL_LOST_AT_COMMIT)
		detail = psprintf("This transaction was guarded by it, and cannot commit. %s", detail);
	ereport(ERROR,
			(errcode(ERRCODE_DISTLOCK_LEASE_LOST),
			 errmsg("lease of lock \"%s\" under token %lld is lost", key->name, (long long) token),
			 errdetail_internal("%s", detail),
			 errhint("Stop the work that relied on it, and acquire the lock again for a new token.")));
}

/*
 * Renew a lease.  A ttl of 0 means the one it has.  Returns what is left in
 * microseconds, DL_FOREVER without TTL.  Throws LK001 when there is no such
 * lease any more, 42501 when it is somebody else's.
 */
int64
dl_lease_renew(const DlExtension *extension, const DlKey *key, int64 token,
			   int64 ttl)
{
	int			partition = dl_partition_of(key->hash);
	bool		stored = false;
	uint64		serial = 0;

	for (;;)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		int64		now;
		DlLease    *lease = dl_lease_lock(key, token, &now, &fx);
		bool		releasing = lease != NULL && dl_txn_releases(lease);
		int64		remaining;

		if (lease == NULL || releasing)
		{
			dl_shared->engine->partitions[partition].counters.lost++;
			dl_lease_report_lost(key, token, now, &fx,
								 releasing ? DL_LOST_BY_RELEASE : DL_LOST);
		}
		if (stored)
			dl_engine_stored(lease, serial, ttl);
		if (lease->image != NULL && lease->image->ttl < ttl)
		{
			/* The disk must not say less than the holder is told. */
			serial = lease->serial;
			dl_lease_unlock(partition, &fx);
			(void) dl_supply_for(extension, DL_DURABLE, dl_ttl_bucket(ttl));
			stored = dl_store_write(extension, key, lease, serial, ttl);
			continue;
		}
		if (!dl_engine_renew(dl_shared->engine, lease, ttl == 0 ? lease->ttl : ttl, now, &fx))
		{
			dl_lease_unlock(partition, &fx);
			dl_supply_refill(extension, fx.wanted);
			continue;
		}
		remaining = lease->deadline == DL_FOREVER ? DL_FOREVER : lease->ttl;
		dl_lease_unlock(partition, &fx);
		return remaining;
	}
}

/*
 * Release a lease at the commit of this transaction.  Returns false when there
 * is no such lease any more; throws 42501 when it is somebody else's.
 */
bool
dl_lease_release(const DlKey *key, int64 token)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int64		now;
	DlLease    *lease;
	bool		ours;

	dl_session_start();
	dl_txn_reserve(1);
	lease = dl_lease_lock(key, token, &now, &fx);
	ours = lease != NULL && !dl_txn_releases(lease);
	if (ours)
		dl_txn_release(lease, false);
	dl_lease_unlock(dl_partition_of(key->hash), &fx);
	return ours;
}

/* Is this token good right now?  Any role may ask. */
bool
dl_lease_check(const DlKey *key, int64 token)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int			partition = dl_partition_of(key->hash);
	DlLease    *lease;
	bool		good;

	dl_partition_lock(partition, LW_EXCLUSIVE);
	lease = dl_engine_find(dl_shared->engine, key, token, dl_now(), &fx);
	good = lease != NULL && !dl_txn_releases(lease);
	dl_lease_unlock(partition, &fx);
	return good;
}

/*
 * End every lease that the lock has now, at the commit of this transaction.
 * Returns how many; those this transaction releases already do not count.
 */
int
dl_lease_force_release(const DlKey *key)
{
	int			partition = dl_partition_of(key->hash);
	int			room = 1;

	dl_session_start();
	for (;;)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLock	   *lock;
		int			nleases = 0;
		int			nforced = 0;
		int64		now;
		dlist_iter	iter;

		dl_txn_reserve(room);
		dl_partition_lock(partition, LW_EXCLUSIVE);
		now = dl_now();
		lock = dl_engine_find_lock(dl_shared->engine, key);
		if (lock != NULL)
			nleases = lock->nleases;
		if (nleases > 0 && nleases <= room)
		{
			dlist_foreach(iter, &lock->leases)
			{
				DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

				if (lease->state == DL_PINNED || lease->deadline <= now ||
					dl_txn_releases(lease))
					continue;
				dl_txn_release(lease, true);
				nforced++;
			}
		}
		dl_partition_unlock(partition, &fx);
		if (nleases <= room)
			return nforced;
		room = nleases;
	}
}
