/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  What is done with leases: by their holders, and when they have ended.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "utils/acl.h"

#include "compat.h"
#include "distlock.h"
#include "lease.h"
#include "obstacle.h"
#include "session.h"
#include "shmem.h"
#include "store.h"
#include "supply.h"
#include "transaction.h"

/* Leases looked at in one go, so that a partition is never locked for long. */
#define SWEEP_BATCH 64

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
	DlObstacle	obstacle;
	char	   *detail;

	dl_obstacle_describe(dl_engine_find_lock(dl_shared->engine, key), now, &obstacle);
	dl_lease_unlock(dl_partition_of(key->hash), fx);
	detail = loss == DL_LOST_BY_RELEASE ? "This transaction has released it." :
		dl_obstacle_text(&obstacle);
	if (loss == DL_LOST_AT_COMMIT)
		detail = psprintf("This transaction was guarded by it, and cannot commit. %s", detail);
	ereport(ERROR,
			(errcode(ERRCODE_DISTLOCK_LEASE_LOST),
			 errmsg("lease of lock \"%s\" under token %lld is lost", key->name, (long long) token),
			 errdetail_internal("%s", detail),
			 errhint("Stop the work that relied on it, and acquire the lock again for a new token.")));
}

/*
 * As dl_lease_lock(), for a lease that is to be renewed.  Throws LK001, without
 * the lock, if it cannot be; if there is none and "missing_ok", returns null.
 */
static DlLease *
lock_to_renew(const DlKey *key, int64 token, bool missing_ok, int64 *now,
			  DlEffects *fx)
{
	DlLease    *lease = dl_lease_lock(key, token, now, fx);
	bool		releasing = lease != NULL && dl_txn_releases(lease);

	if (releasing || (lease == NULL && !missing_ok))
	{
		dl_shared->engine->partitions[dl_partition_of(key->hash)].counters.lost++;
		dl_lease_report_lost(key, token, *now, fx,
							 releasing ? DL_LOST_BY_RELEASE : DL_LOST);
	}
	return lease;
}

/* Does the disk say less than the holder is to be told? */
static inline bool
is_too_short(const DlLease *lease, int64 ttl)
{
	return lease->image != NULL && lease->image->ttl < ttl;
}

/*
 * Before n leases are renewed: have the disk say of all what their holder is
 * going to be told, with one flush.  When one of them is not there any more,
 * throws LK001, or returns false if "missing_ok".  As dl_store_write().
 */
bool
dl_lease_prepare(const DlExtension *extension, const DlKey *keys, int n, int64 token,
				 int64 ttl, bool missing_ok)
{
	DlKey	   *stored = palloc(n * sizeof(DlKey));
	DlLease    *leases[DL_KEYS_MAX];
	uint64		serials[DL_KEYS_MAX];
	int			nstored = 0;
	bool		found = true;

	for (int i = 0; i < n && found; i++)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		int64		now;
		DlLease    *lease = lock_to_renew(&keys[i], token, missing_ok, &now, &fx);

		found = lease != NULL;
		if (found && is_too_short(lease, ttl))
		{
			stored[nstored] = keys[i];
			leases[nstored] = lease;
			serials[nstored++] = lease->serial;
		}
		dl_lease_unlock(dl_partition_of(keys[i].hash), &fx);
	}
	if (found && nstored > 0)
	{
		(void) dl_supply_for(extension, DL_DURABLE, dl_ttl_bucket(ttl));
		if (!dl_store_write(extension, stored, leases, serials, nstored, ttl))
			nstored = 0;
		for (int i = 0; i < nstored; i++)
		{
			int			partition = dl_partition_of(stored[i].hash);
			DlEffects	fx = DL_NO_EFFECTS;

			dl_partition_lock(partition, LW_EXCLUSIVE);
			dl_engine_stored(leases[i], serials[i], ttl);
			dl_partition_unlock(partition, &fx);
		}
	}
	pfree(stored);
	return found;
}

/*
 * Renew a lease.  A ttl of 0 means none.  Returns what is left in
 * microseconds, DL_FOREVER without TTL.  When there is no such lease any more,
 * throws LK001, or returns 0 if "missing_ok"; throws 42501 when it is somebody
 * else's.
 */
int64
dl_lease_renew(const DlExtension *extension, const DlKey *key, int64 token,
			   int64 ttl, bool missing_ok)
{
	int			partition = dl_partition_of(key->hash);

	for (;;)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		int64		now;
		DlLease    *lease = lock_to_renew(key, token, missing_ok, &now, &fx);
		int64		remaining;

		if (lease == NULL)
		{
			dl_lease_unlock(partition, &fx);
			return 0;
		}
		if (is_too_short(lease, ttl))
		{
			dl_lease_unlock(partition, &fx);
			(void) dl_lease_prepare(extension, key, 1, token, ttl, missing_ok);
			continue;
		}
		if (!dl_engine_renew(dl_shared->engine, lease, ttl == DL_KEEP_TTL ? lease->ttl : ttl, now, &fx))
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
	{
		dl_txn_release(lease, false);
		dl_engine_announce(lease, &fx);
	}
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
