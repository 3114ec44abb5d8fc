/*-------------------------------------------------------------------------
 *
 * acquire.c
 *	  Acquiring: what a session does from its request to its token.
 *
 * The session asks the engine, sees to whatever the engine says is missing, and
 * asks again, until it is told its token or its time is over.  What it has in
 * the engine meanwhile is its claim.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/proc.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "acquire.h"
#include "barrier.h"
#include "bridge.h"
#include "compat.h"
#include "deadlock.h"
#include "distlock.h"
#include "lease.h"
#include "obstacle.h"
#include "session.h"
#include "shmem.h"
#include "store.h"
#include "supply.h"
#include "transaction.h"
#include "wait.h"

/*
 * Of so many looks for a deadlock one follows the queues.  Where nobody who might
 * wait for us is in our way, no other is of any use.
 */
#define SELDOM	10

/*
 * The records that this session has in queues, or has been granted but not told
 * of.  Whatever ends the wait early ends in dl_acquire_abandon().  Another
 * session that makes the same request takes them away; then they have other
 * serials.
 */
typedef struct Claim
{
	int			n;
	uint32		partitions;		/* of all of them */
	int			partition[DL_KEYS_MAX];
	DlLease    *leases[DL_KEYS_MAX];
	uint64		serials[DL_KEYS_MAX];
} Claim;

static Claim claim;

/* One call of dl_acquire(). */
typedef struct Acquire
{
	const DlExtension *extension;
	DlRequest  *request;
	uint32		partitions;
	int64		wait_end;
	int64		lock_timeout_end;
	bool		may_wait;
	bool		try;
	uint64		held;			/* keys whose barriers we keep from coming back */
	bool		stored;			/* so are the images of the grant */
	bool		swept;
	int64		queued_since;	/* 0: never */
	int64		check_at;		/* when to look for a deadlock */
	int			nchecks;		/* since that followed the queues */
	int			ahead;			/* backend right ahead that may have stopped */
	int64		help_at;		/* when to see to that */
	int			logged;			/* key that log_lock_waits has said we wait for, -1: none */

	/* What came of asking the engine */
	DlVerdict	verdict;
	DlEffects	fx;
	int64		now;
	int64		timer;			/* queued: when to ask again */
	int64		token;			/* told or repeated */
	int64		ttl;			/* that it was granted with */
	bool		over;			/* the time is */
	bool		self;			/* this transaction is in its own way */
	int			obstructed;		/* which of the keys */
	DlObstacle	obstacle;
} Acquire;

static inline bool
is_ours(int i)
{
	return claim.leases[i]->serial == claim.serials[i];
}

/* Give back what this session has in the engine.  Needs the partitions locked. */
static void
leave(int64 now, DlEffects *fx)
{
	int			n = claim.n;

	claim.n = 0;
	for (int i = 0; i < n; i++)
		if (is_ours(i))
			dl_engine_leave(dl_shared->engine, claim.partition[i], claim.leases[i], now, fx);
}

/*
 * Leave the queue, or give back a grant not told yet.  Called when the
 * (sub)transaction aborts or the session ends; cannot throw.
 */
void
dl_acquire_abandon(void)
{
	DlEffects	fx = DL_NO_EFFECTS;

	dl_store_abandon();
	dl_bridge_abandon();
	if (claim.n == 0)
		return;
	dl_partitions_lock(claim.partitions);
	leave(dl_now(), &fx);
	dl_partitions_unlock(claim.partitions, &fx);
	if (fx.over)
		dl_wake_worker();		/* it logs, we cannot */
}

/* ---- Asking the engine ---- */

/* Note what this session has in the engine now. */
static void
stake_claim(const Acquire *acquire)
{
	const DlRequest *request = acquire->request;

	claim.n = request->nkeys;
	claim.partitions = acquire->partitions;
	for (int i = 0; i < claim.n; i++)
	{
		claim.partition[i] = dl_partition_of(request->keys[i].hash);
		claim.serials[i] = claim.leases[i]->serial;
	}
}

/* Will this transaction release one of the locks?  Notes which. */
static bool
releases_itself(Acquire *acquire)
{
	const DlRequest *request = acquire->request;

	if (!dl_txn_releases_any())
		return false;
	for (int i = 0; i < request->nkeys; i++)
		if (dl_txn_releases_lock(dl_engine_find_lock(dl_shared->engine, &request->keys[i]),
								 acquire->now))
		{
			acquire->obstructed = i;
			return true;
		}
	return false;
}

/* The request was made before, and its leases are live. */
static void
take_back(const DlRequest *request)
{
	for (int i = 0; i < request->nkeys; i++)
	{
		DlLease    *lease = claim.leases[i];
		bool		here = lease->backend == request->backend &&
			lease->generation == request->generation;

		/* A transaction that is still open must not undo it any more; ours may. */
		if (!here && (lease->open || lease->scope != DL_SCOPE_LEASE))
		{
			dl_engine_adopt(dl_shared->engine, lease, request);
			if (lease->open)
				dl_txn_acquired(lease);
		}
	}
}

/* Find what is in the way: of several locks the first that has anything. */
static void
find_obstacle(Acquire *acquire)
{
	const DlRequest *request = acquire->request;
	bool		claimed = claim.n > 0;
	DlLock	   *lock = NULL;
	int			i;

	for (i = 0; i < request->nkeys; i++)
	{
		lock = dl_engine_find_lock(dl_shared->engine, &request->keys[i]);
		if (lock != NULL && !(claimed && claim.leases[i]->ready) &&
			lock->nleases + lock->nwaiting > (claimed ? 1 : 0))
			break;
	}
	acquire->obstructed = i < request->nkeys ? i : 0;
	dl_obstacle_describe(lock, acquire->now, &acquire->obstacle);
	acquire->obstacle.opens_in = dl_opens_at(request->supply) - acquire->now;
	if (claimed)
		acquire->obstacle.nwaiting--;	/* not us */
}

static inline bool
time_is_over(const Acquire *acquire)
{
	return acquire->now >= acquire->wait_end || acquire->now >= acquire->lock_timeout_end;
}

/* Ask once.  What is in acquire afterwards is for see_to_it(). */
static void
ask(Acquire *acquire)
{
	DlEngine   *engine = dl_shared->engine;
	DlRequest  *request = acquire->request;
	bool		claimed = claim.n > 0;

	acquire->fx = (DlEffects) DL_NO_EFFECTS;
	acquire->token = 0;
	acquire->over = false;

	dl_partitions_lock(acquire->partitions);
	acquire->now = dl_now();
	if (claimed && !is_ours(0))
	{
		acquire->verdict = DL_REPLACED;
		leave(acquire->now, &acquire->fx);
	}
	else if (claimed)
	{
		for (int i = 0; i < claim.n; i++)
		{
			if ((acquire->held >> i & 1) != 0)
				dl_engine_pass(claim.leases[i]);
			if (acquire->stored)
				dl_engine_stored(claim.leases[i], claim.serials[i], acquire->ttl);
		}
		acquire->verdict = dl_engine_look(engine, request, claim.leases, acquire->now,
										  GetCurrentTimestamp(), &acquire->fx);
	}
	else
	{
		acquire->stored = false;
		request->entered = false;
		acquire->self = releases_itself(acquire);
		acquire->verdict = acquire->self ? DL_BUSY :
			dl_engine_request(engine, request, acquire->now, GetCurrentTimestamp(),
							  claim.leases, &acquire->fx);
		if (request->entered && acquire->verdict != DL_TOLD)
			stake_claim(acquire);
	}

	/* We are granted, or else it is time to look at the clock. */
	switch (acquire->verdict)
	{
		case DL_TOLD:
			for (int i = 0; i < request->nkeys; i++)
			{
				DlLease    *lease = claim.leases[i];

				lease->completed = U64FromFullTransactionId(dl_latest_completed_xid());
				dl_txn_acquired(lease);
				dl_bridge_bind(lease);
			}
			acquire->token = claim.leases[0]->token;
			acquire->ttl = claim.leases[0]->ttl;
			claim.n = 0;
			break;
		case DL_UNTOLD:
			/* Another session may have asked for more, before we took over. */
			acquire->ttl = Max(request->ttl, claim.leases[0]->ttl);
			break;
		case DL_REPEATED:
			take_back(request);
			acquire->token = claim.leases[0]->token;
			break;
		case DL_QUEUED:
			acquire->timer = DL_FOREVER;
			acquire->ahead = -1;
			for (int i = 0; i < claim.n; i++)
			{
				acquire->timer = Min(acquire->timer, claim.leases[i]->timer);
				acquire->ahead = Max(acquire->ahead, dl_engine_ready_ahead(claim.leases[i]));
			}
			acquire->over = time_is_over(acquire);
			break;
		case DL_BUSY:
			acquire->over = true;
			break;
		default:
			break;
	}
	if (acquire->over && !acquire->self)
		find_obstacle(acquire);
	if (acquire->over && acquire->verdict == DL_QUEUED)
		engine->partitions[claim.partition[0]].counters.timeouts++;
	if (claim.n > 0 && (acquire->over || acquire->verdict == DL_AGAIN ||
						acquire->verdict == DL_GONE))
		leave(acquire->now, &acquire->fx);
	dl_partitions_unlock(acquire->partitions, &acquire->fx);
	if (acquire->fx.over)
		for (uint32 rest = acquire->partitions; rest != 0; rest &= rest - 1)
			dl_log_over(pg_rightmost_one_pos32(rest));
}

/* ---- Seeing to what it says ---- */

static inline const DlKey *
obstructed_key(const Acquire *acquire)
{
	return &acquire->request->keys[acquire->obstructed];
}

/* The time is over.  Throws, unless the caller only tries. */
static void
report_over(const Acquire *acquire)
{
	bool		lock_timeout = acquire->now >= acquire->lock_timeout_end;
	const char *name = obstructed_key(acquire)->name;

	if (acquire->self)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot acquire lock \"%s\" in the transaction that releases it", name),
				 errdetail("The release takes effect when this transaction commits."),
				 errhint("Commit first.")));
	if (lock_timeout)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("canceling statement due to lock timeout"),
				 errdetail_internal("%s", dl_obstacle_text(&acquire->obstacle)),
				 errcontext("while acquiring lock \"%s\"", name)));
	if (!acquire->try)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not obtain lock \"%s\"", name),
				 errdetail_internal("%s", dl_obstacle_text(&acquire->obstacle))));
}

/* Another session has made the same request, and waits in our place. */
static void
report_replaced(const Acquire *acquire)
{
	if (!acquire->try)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not obtain lock \"%s\"", acquire->request->keys[0].name),
				 errdetail("Another session has repeated request \"%s\", and waits in the place of this one.",
						   acquire->request->request_id)));
}

static char *
limit_text(int limit)
{
	return limit > 0 ? psprintf("at most %d holders at once", limit) :
		pstrdup("no max_holders");
}

static void
report_other_limit(const Acquire *acquire)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("lock \"%s\" is in use with another max_holders", acquire->request->other),
			 errdetail("It is held or waited for with %s; this request has %s.",
					   limit_text(acquire->request->other_limit),
					   limit_text(acquire->request->limit))));
}

static void
report_other_request(const Acquire *acquire)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("request \"%s\" is another one", acquire->request->request_id),
			 errdetail("It stands for a request for lock \"%s\", which differs from this one in its locks, mode, max_holders, scope or durable.",
					   acquire->request->other),
			 errhint("Use a new request_id for each request.")));
}

/* As log_lock_waits asks: say that we wait, or that it has come to an end. */
static void
log_wait(const Acquire *acquire, bool acquired)
{
	const DlRequest *request = acquire->request;
	const char *name = request->keys[acquire->logged].name;
	int64		usecs = acquire->now - acquire->queued_since;
	const char *mode = request->mode == DL_SHARED ? "shared" : "exclusive";

	if (acquired)
		ereport(LOG,
				(errmsg("process %d acquired %s lease of lock \"%s\" after %lld.%03d ms",
						MyProcPid, mode, name,
						(long long) (usecs / 1000), (int) (usecs % 1000))));
	else
		ereport(LOG,
				(errmsg("process %d still waiting for %s lease of lock \"%s\" after %lld.%03d ms",
						MyProcPid, mode, name,
						(long long) (usecs / 1000), (int) (usecs % 1000)),
				 errdetail_internal("%s", dl_obstacle_text(&acquire->obstacle))));
}

/*
 * We have waited for a while: see whether that can come to an end.  A cycle that
 * a wait for another lock closes later is found by whoever waits for a lease of
 * one who waits there, so he looks again and again.
 */
static void
check_wait(Acquire *acquire)
{
	int64		pause = DeadlockTimeout * INT64CONST(1000);

	if (log_lock_waits && acquire->logged < 0)
	{
		DlEffects	fx = DL_NO_EFFECTS;

		dl_partitions_lock(acquire->partitions);
		find_obstacle(acquire);
		dl_partitions_unlock(acquire->partitions, &fx);
		acquire->logged = acquire->obstructed;
		log_wait(acquire, false);
	}
	if (dl_deadlock_check(acquire->nchecks == 0))
	{
		acquire->nchecks = (acquire->nchecks + 1) % SELDOM;
		acquire->check_at = acquire->now + pause;
	}
	else
	{
		acquire->nchecks = 0;
		acquire->check_at = acquire->now + SELDOM * pause;
	}
}

/* Give up what keeps the barriers of these keys from coming back. */
static void
stop_passing(DlRequest *request, uint64 passed)
{
	for (; passed != 0; passed &= passed - 1)
		dl_barrier_passed(&request->keys[pg_rightmost_one_pos64(passed)], request->mode);
	request->pass = DL_PASS_NONE;
}

/*
 * Pass the barriers of all locks that have one, and take the advisory lock, if
 * there is one to be taken.  Whoever waits for these does so as the next to be
 * granted.  Returns false when that would take too long.
 */
static bool
pass(Acquire *acquire)
{
	DlRequest  *request = acquire->request;
	bool		wait = claim.n > 0;
	int64		until = Min(acquire->wait_end, acquire->lock_timeout_end);
	uint64		passed = 0;
	bool		ok = true;

	for (uint64 rest = request->barred; ok && rest != 0; rest &= rest - 1)
	{
		int			i = pg_rightmost_one_pos64(rest);

		ok = wait ? dl_barrier_pass(&request->keys[i], request->mode, until) :
			dl_barrier_try_pass(&request->keys[i], request->mode);
		if (ok)
			passed |= UINT64CONST(1) << i;
		else
			acquire->obstructed = i;
	}
	if (ok && request->bridging)
	{
		ok = dl_bridge_take(request, wait, until);
		request->bridging = !ok;
	}
	if (!ok)
		stop_passing(request, passed);
	return ok;
}

/*
 * Something else than a lease bars the request, and its time is over.  Says what
 * is in the way.
 */
static void
note_barred(Acquire *acquire)
{
	DlRequest  *request = acquire->request;
	int			partition = dl_partition_of(obstructed_key(acquire)->hash);
	DlEffects	fx = DL_NO_EFFECTS;

	dl_partition_lock(partition, LW_EXCLUSIVE);
	acquire->now = dl_now();
	dl_obstacle_describe(dl_engine_find_lock(dl_shared->engine, obstructed_key(acquire)),
						 acquire->now, &acquire->obstacle);
	acquire->obstacle.barred = request->barred != 0;
	acquire->obstacle.bridged = request->barred == 0;
	dl_shared->engine->partitions[partition].counters.timeouts++;
	dl_partition_unlock(partition, &fx);
}

static void
report_full(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many leases"),
			 errdetail("%d leases are held or waited for.", dl_max_leases),
			 errhint("Increase \"distlock.max_leases\" and restart the server, or release leases.")));
}

/*
 * Do what the engine's verdict asks for.  Returns false when the time is over,
 * or throws, if there is nothing to be asked any more.
 */
static bool
see_to_it(Acquire *acquire)
{
	DlRequest  *request = acquire->request;
	bool		claimed;
	int64		until;

	switch (acquire->verdict)
	{
		case DL_UNTOLD:
			if (request->durable && !acquire->stored)
				acquire->stored = dl_store_write(acquire->extension, request->keys,
												 claim.leases, claim.serials,
												 request->nkeys, acquire->ttl);
			else
				for (int i = 0; i < request->nkeys; i++)
					dl_store_clear_leftovers(acquire->extension, &request->keys[i]);
			break;
		case DL_QUEUED:
			if (acquire->queued_since == 0)
			{
				acquire->queued_since = acquire->now;
				acquire->check_at = acquire->now + DeadlockTimeout * INT64CONST(1000);
			}
			else if (acquire->now >= acquire->check_at)
				check_wait(acquire);
			if (acquire->ahead < 0)
				acquire->help_at = DL_FOREVER;
			else if (acquire->help_at == DL_FOREVER)
				acquire->help_at = acquire->now + DL_FALLBACK_USECS;
			else if (acquire->now >= acquire->help_at)
			{
				dl_help(acquire->extension, acquire->ahead);
				acquire->help_at = acquire->now + DL_FALLBACK_USECS;
			}
			until = Min(acquire->wait_end, acquire->lock_timeout_end);
			until = Min(until, acquire->help_at);
			until = Min(until, Min(acquire->timer, acquire->check_at));
			dl_sleep_until(until, dl_acquire_wait_event());
			break;
		case DL_NO_TOKEN:
			dl_supply_refill(acquire->extension, acquire->fx.wanted);
			break;
		case DL_BARRED:
			claimed = claim.n > 0;
			acquire->obstructed = 0;
			if (pass(acquire))
			{
				acquire->held = request->barred;
				request->pass = DL_PASS_HELD;
				break;
			}
			request->pass = DL_PASS_QUEUE;
			if (claimed || !request->may_wait)
			{
				/* What waited for the barrier has left the queue. */
				note_barred(acquire);
				return false;
			}
			break;
		case DL_AGAIN:
			/* We came too late; join the queue again, if there is time. */
			request->may_wait = acquire->may_wait && !time_is_over(acquire);
			request->again = true;
			break;
		case DL_FULL:
			if (acquire->swept)
				report_full();
			dl_lease_sweep();
			if (request->durable)
				dl_store_clear_stale(acquire->extension);
			acquire->swept = true;
			break;
		case DL_EXPIRED_ID:
			CHECK_FOR_INTERRUPTS();
			dl_lease_sweep();
			break;
		case DL_GONE:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("extension distlock was dropped while waiting for lock \"%s\"",
							request->keys[0].name)));
			break;
		case DL_OTHER_LIMIT:
			report_other_limit(acquire);
			break;
		case DL_OTHER_REQUEST:
			report_other_request(acquire);
			break;
		case DL_REPLACED:
			report_replaced(acquire);
			return false;
		case DL_TOLD:
		case DL_REPEATED:
		case DL_BUSY:
			break;
	}
	return true;
}

/*
 * The leases were told before, to us or to another session, or a crash has brought
 * them back: start their time anew.  Returns false if they have ended meanwhile.
 */
static bool
renew(const Acquire *acquire)
{
	const DlRequest *request = acquire->request;

	/* A crash may have brought back an image of an earlier lease along with them. */
	for (int i = 0; i < request->nkeys; i++)
		dl_store_clear_leftovers(acquire->extension, &request->keys[i]);
	if (!dl_lease_prepare(acquire->extension, request->keys, request->nkeys, acquire->token,
						  request->ttl, true))
		return false;
	for (int i = 0; i < request->nkeys; i++)
		if (dl_lease_renew(acquire->extension, &request->keys[i], acquire->token,
						   request->ttl, true) == 0)
			return false;
	return true;
}

/*
 * Acquire leases, one for each key and all under one token, or none.  The
 * request comes filled in but for its supply, the session and how it waits.
 * "wait" is the longest wait in microseconds, negative for no limit.
 *
 * Returns the token, with the catalog caches as fresh as the grant; 0 when the
 * wait is over and "try" is set.  Otherwise throws, and leaves nothing behind.
 * The leases are undone if the transaction aborts later.
 */
int64
dl_acquire(const DlExtension *extension, DlRequest *request, int64 wait, bool try)
{
	Acquire		acquire = {.extension = extension,.request = request,
		.try = try,.may_wait = wait != 0,
		.wait_end = DL_FOREVER,.lock_timeout_end = DL_FOREVER,.help_at = DL_FOREVER,
		.logged = -1
	};

	dl_acquire_abandon();		/* an error caught without a savepoint */
	request->backend = dl_my_backend();
	request->generation = dl_session_start();
	request->pid = MyProcPid;
	request->supply = dl_supply_for(extension, dl_kept_as(request->durable),
									dl_bucket_of(request->scope, request->ttl));
	request->may_wait = acquire.may_wait;
	request->again = false;
	request->pass = DL_PASS_NONE;
	request->barred = 0;
	for (int i = 0; i < request->nkeys; i++)
		acquire.partitions |= UINT32_C(1) << dl_partition_of(request->keys[i].hash);

	if (wait > 0 && pg_add_s64_overflow(dl_now(), wait, &acquire.wait_end))
		acquire.wait_end = DL_FOREVER;
	if (LockTimeout > 0 && wait != 0)
		acquire.lock_timeout_end = dl_now() + LockTimeout * INT64CONST(1000);

	for (;;)
	{
		bool		done;

		dl_txn_reserve(request->nkeys);
		ask(&acquire);
		if (request->pass == DL_PASS_HELD)
		{
			stop_passing(request, acquire.held);
			acquire.held = 0;
		}
		done = acquire.verdict == DL_TOLD ||
			(acquire.verdict == DL_REPEATED && renew(&acquire));
		if (done && acquire.verdict == DL_TOLD && acquire.ttl != request->ttl)
			done = renew(&acquire);
		if (done)
		{
			if (acquire.logged >= 0)
				log_wait(&acquire, true);
			/* Inside a transaction nothing else tells us of the DDL of others. */
			AcceptInvalidationMessages();
			return acquire.token;
		}
		if (acquire.over || !see_to_it(&acquire))
		{
			dl_bridge_abandon();
			if (acquire.verdict != DL_REPLACED)
				report_over(&acquire);
			return 0;
		}
	}
}
