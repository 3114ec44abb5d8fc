/*-------------------------------------------------------------------------
 *
 * model.c
 *	  The reference model of the engine.
 *
 * What engine.h promises, said as plainly as possible.  A lease past its
 * deadline ends when somebody meets it: by wanting its lock, by its token, or
 * by the sweep.  Timers and wakes are not modelled; checks.c looks at what
 * they are for.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

Model		model;

int
model_partition(const ModelLock *lock)
{
	return dl_partition_of(lock->key.hash);
}

static DlCounters *
counters_of(ModelLock *lock)
{
	return &model.counters[model_partition(lock)];
}

/* Records in use. */
int
model_used(void)
{
	int			n = 0;

	for (int i = 0; i < MAX_CLAIMS; i++)
		n += model.claims[i].state != DL_FREE;
	return n;
}

static void
append(Claim **list, int *n, Claim *claim)
{
	list[(*n)++] = claim;
}

static void
delete(Claim **list, int *n, Claim *claim)
{
	int			i = 0;

	while (list[i] != claim)
		i++;
	memmove(&list[i], &list[i + 1], (--*n - i) * sizeof(Claim *));
}

static int64
draw(ModelLock *lock)
{
	int64		token = model.next_token[lock->database]++;

	return token <= model.limit[lock->database] ? token : 0;
}

static int64
deadline_after(int64 ttl)
{
	return ttl == 0 ? DL_FOREVER : model.now + ttl;
}

/* Whom must a request of this mode wait for?  Null for nobody. */
Claim *
model_conflict(ModelLock *lock, DlMode mode)
{
	for (int i = 0; i < lock->nholders; i++)
		if (mode == DL_EXCLUSIVE || lock->holders[i]->mode == DL_EXCLUSIVE)
			return lock->holders[i];
	return NULL;
}

/* End a lease, without granting its lock to anybody. */
static void
end(Claim *claim, DlCause cause)
{
	ModelLock  *lock = claim->lock;
	DlCounters *counters = counters_of(lock);

	delete(lock->holders, &lock->nholders, claim);
	claim->nreleasing = 0;
	if (claim->state == DL_GRANTED && cause != DL_UNDONE)
	{
		claim->state = cause == DL_REMOVED ? DL_DROPPED : DL_LAPSED;
		counters->lapsed++;
		return;
	}
	counters->released += cause == DL_RELEASED;
	counters->undone += cause == DL_UNDONE;
	counters->expired += cause == DL_EXPIRED;
	counters->forced += cause == DL_FORCED;
	claim->state = DL_FREE;
	if (cause == DL_EXPIRED || cause == DL_FORCED)
	{
		int			partition = model_partition(lock);

		claim->state = DL_OVER;
		claim->cause = cause;
		append(model.over[partition], &model.nover[partition], claim);
		lock->nover++;
		model.ended = true;
	}
}

/* Ends the expired leases in the way, up to the first that is not. */
static bool
blocked(ModelLock *lock, DlMode mode)
{
	Claim	   *claim;

	while ((claim = model_conflict(lock, mode)) != NULL)
	{
		if (claim->deadline > model.now)
			return true;
		end(claim, DL_EXPIRED);
	}
	return false;
}

static void
grant(Claim *claim, int64 token)
{
	claim->state = DL_GRANTED;
	claim->token = token;
	claim->deadline = deadline_after(claim->ttl);
	model.earliest = Min(model.earliest, claim->deadline);
	append(claim->lock->holders, &claim->lock->nholders, claim);
}

static void
tell(Claim *claim)
{
	claim->state = DL_LIVE;
	claim->deadline = deadline_after(claim->ttl);
	model.earliest = Min(model.earliest, claim->deadline);
	counters_of(claim->lock)->acquired++;
}

/* Grant from the head of the queue while there is room and a token. */
static void
settle(ModelLock *lock)
{
	lock->settled_at = model.now;
	while (lock->nqueue > 0)
	{
		Claim	   *head = lock->queue[0];
		int64		token;

		if (blocked(lock, head->mode))
			return;
		token = draw(lock);
		if (token == 0)
			return;
		delete(lock->queue, &lock->nqueue, head);
		counters_of(lock)->waited += model.now - head->since;
		grant(head, token);
	}
}

DlVerdict
model_request(ModelLock *lock, const DlRequest *request, Claim **result)
{
	Claim	   *claim = model.claims;
	bool		wait = blocked(lock, request->mode);
	int64		token = 0;

	if (lock->nqueue > 0)
	{
		settle(lock);
		wait = lock->nqueue > 0 || model_conflict(lock, request->mode) != NULL;
	}
	counters_of(lock)->contended += wait;
	if (wait && !request->may_wait)
	{
		counters_of(lock)->timeouts++;
		return DL_BUSY;
	}
	if (model_used() == model.max_leases)
		return DL_FULL;
	if (!wait && (token = draw(lock)) == 0)
		return DL_NO_TOKEN;

	while (claim->state != DL_FREE)
		claim++;
	memset(claim, 0, sizeof(Claim));
	claim->lock = lock;
	claim->mode = request->mode;
	claim->scope = request->scope;
	claim->ttl = request->ttl;
	claim->backend = request->backend;
	claim->arrival = ++model.narrivals;
	*result = claim;
	if (!wait)
	{
		grant(claim, token);
		tell(claim);
		return DL_TOLD;
	}
	claim->state = DL_WAITING;
	claim->since = model.now;
	append(lock->queue, &lock->nqueue, claim);
	return DL_QUEUED;
}

DlVerdict
model_look(Claim *claim)
{
	ModelLock  *lock = claim->lock;

	if (claim->state == DL_WAITING)
		settle(lock);
	if (claim->state == DL_GRANTED && claim->deadline <= model.now)
	{
		end(claim, DL_EXPIRED);
		settle(lock);
	}
	switch (claim->state)
	{
		case DL_GRANTED:
			tell(claim);
			return DL_TOLD;
		case DL_WAITING:
			return model_conflict(lock, lock->queue[0]->mode) == NULL ?
				DL_NO_TOKEN : DL_QUEUED;
		case DL_LAPSED:
			return DL_AGAIN;
		default:
			return DL_GONE;
	}
}

void
model_leave(Claim *claim)
{
	ModelLock  *lock = claim->lock;

	if (claim->state == DL_GRANTED)
		model_end(claim, DL_UNDONE);
	else if (claim->state == DL_WAITING)
	{
		delete(lock->queue, &lock->nqueue, claim);
		counters_of(lock)->waited += model.now - claim->since;
		settle(lock);
	}
	claim->state = DL_FREE;
}

Claim *
model_find(ModelLock *lock, int64 token)
{
	for (int i = 0; i < lock->nholders; i++)
	{
		Claim	   *claim = lock->holders[i];

		if (claim->state != DL_LIVE || claim->token != token)
			continue;
		if (claim->deadline > model.now)
			return claim;
		model_end(claim, DL_EXPIRED);
	}
	return NULL;
}

void
model_renew(Claim *claim, int64 ttl)
{
	int64		before = claim->deadline;

	claim->ttl = ttl;
	claim->deadline = deadline_after(ttl);
	claim->renewals++;
	counters_of(claim->lock)->renewed++;
	if (claim->deadline < before)
	{
		model.earliest = Min(model.earliest, claim->deadline);
		settle(claim->lock);
	}
}

void
model_end(Claim *claim, DlCause cause)
{
	end(claim, cause);
	settle(claim->lock);
}

Claim *
model_take_over(int partition)
{
	Claim	   *claim;

	if (model.nover[partition] == 0)
		return NULL;
	claim = model.over[partition][0];
	delete(model.over[partition], &model.nover[partition], claim);
	claim->lock->nover--;
	claim->state = DL_FREE;
	return claim;
}

/* Does the claim end with its backend? */
static bool
ends_with_backend(const Claim *claim)
{
	switch (claim->state)
	{
		case DL_FREE:
		case DL_OVER:
			return false;
		case DL_LIVE:
			return claim->scope != DL_SCOPE_LEASE;
		default:
			return true;
	}
}

/* In the order in which the requests came. */
void
model_end_backend(int partition, int backend)
{
	for (;;)
	{
		Claim	   *first = NULL;

		for (int i = 0; i < MAX_CLAIMS; i++)
		{
			Claim	   *claim = &model.claims[i];

			if (ends_with_backend(claim) && claim->backend == backend &&
				model_partition(claim->lock) == partition &&
				(first == NULL || claim->arrival < first->arrival))
				first = claim;
		}
		if (first == NULL)
			return;
		if (first->state == DL_LIVE)
			model_end(first, DL_RELEASED);
		else
			model_leave(first);
	}
}

void
model_remove(int partition, Oid database, Oid extension)
{
	for (int i = 0; i < model.nlocks; i++)
	{
		ModelLock  *lock = &model.locks[i];

		if (model_partition(lock) != partition || lock->key.database != database ||
			(OidIsValid(extension) && lock->key.extension != extension))
			continue;
		while (lock->nqueue > 0)
		{
			lock->queue[0]->state = DL_DROPPED;
			counters_of(lock)->waited += model.now - lock->queue[0]->since;
			delete(lock->queue, &lock->nqueue, lock->queue[0]);
			}
		while (lock->nholders > 0)
			end(lock->holders[0], DL_REMOVED);
	}
}
