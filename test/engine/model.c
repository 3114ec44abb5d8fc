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

int
model_guards(const Claim *claim)
{
	int			n = 0;

	for (int i = 0; i < MAX_GUARDS; i++)
		n += model.guards[i].record != NULL && model.guards[i].claim == claim;
	return n;
}

int
model_pins(const Claim *claim)
{
	int			n = 0;

	for (int i = 0; i < MAX_GUARDS; i++)
		n += model.guards[i].record != NULL && model.guards[i].claim == claim &&
			model.guards[i].pinned;
	return n;
}

bool
model_is_in_use(const ModelLock *lock)
{
	return lock->nholders + lock->nqueue + lock->nover > 0;
}

/* A lock that is forgotten leaves a raised barrier to all that are new. */
static void
forget_if_unused(ModelLock *lock)
{
	if (model_is_in_use(lock))
		return;
	model.forgotten += lock->raised;
	lock->barrier = DL_NO_BARRIER;
	lock->raised = false;
}

bool
model_is_barred(const ModelLock *lock, DlMode mode)
{
	switch (lock->barrier)
	{
		case DL_BARS_ALL:
			return true;
		case DL_BARS_EXCLUSIVE:
			return mode == DL_EXCLUSIVE;
		default:
			return false;
	}
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

static DlKept
kept_as(bool durable)
{
	return durable ? DL_DURABLE : DL_VOLATILE;
}

/* Are leases in this bucket granted?  If not, note what is wanted. */
static bool
is_bucket_open(ModelLock *lock, bool durable, int bucket)
{
	int		   *wanted = &model.wanted[kept_as(durable)];

	if (bucket < model.nbuckets[lock->database][kept_as(durable)])
		return true;
	*wanted = Max(*wanted, bucket + 1);
	return false;
}

/* A token, or 0. */
static int64
draw(ModelLock *lock, bool durable, int bucket)
{
	int64		token;

	if (!is_bucket_open(lock, durable, bucket))
		return 0;
	token = model.next_token[lock->database]++;
	return token <= model.limit[lock->database] ? token : 0;
}

static bool
is_open(ModelLock *lock)
{
	return model.opens_at[lock->database] <= model.now;
}

/* The first bucket that is long enough, as engine.h defines them. */
static int
bucket_of(DlScope scope, int64 ttl)
{
	int			bucket = 0;

	if (scope != DL_SCOPE_LEASE)
		return -1;
	while (dl_bucket_ttl(bucket) < ttl)
		bucket++;
	return bucket;
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

/* An ended lease gives up its place. */
static void
vacate(Claim *claim)
{
	ModelLock  *lock = claim->lock;
	int			partition = model_partition(lock);

	delete(lock->holders, &lock->nholders, claim);
	if (claim->cause == DL_REMOVED)
		model_drop_image(claim);
	model_abandon_image(claim);
	claim->state = DL_FREE;
	if (claim->cause == DL_EXPIRED || claim->cause == DL_FORCED || model_guards(claim) > 0)
	{
		claim->state = DL_OVER;
		append(model.over[partition], &model.nover[partition], claim);
		lock->nover++;
		model.ended = true;
	}
}

/* End a lease, without granting its lock to anybody. */
static void
end(Claim *claim, DlCause cause)
{
	ModelLock  *lock = claim->lock;
	DlCounters *counters = counters_of(lock);

	claim->nreleasing = 0;
	if (claim->state == DL_GRANTED && cause != DL_UNDONE)
	{
		delete(lock->holders, &lock->nholders, claim);
		if (cause == DL_REMOVED)
			model_drop_image(claim);
		model_abandon_image(claim);
		claim->state = cause == DL_REMOVED ? DL_DROPPED : DL_LAPSED;
		counters->lapsed++;
		return;
	}
	counters->released += cause == DL_RELEASED;
	counters->undone += cause == DL_UNDONE;
	counters->expired += cause == DL_EXPIRED;
	counters->forced += cause == DL_FORCED;
	claim->cause = cause;
	if (model_pins(claim) > 0)
	{
		claim->state = DL_PINNED;
		claim->deadline = DL_FOREVER;
	}
	else
		vacate(claim);
}

/* Ends the expired leases in the way, up to the first that is not. */
static bool
blocked(ModelLock *lock, DlMode mode)
{
	Claim	   *claim;

	while ((claim = model_conflict(lock, mode)) != NULL)
	{
		if (claim->state == DL_PINNED || claim->deadline > model.now)
			return true;
		end(claim, DL_EXPIRED);
	}
	return false;
}

/* One that is to be stored has the time for that, however short its TTL. */
static void
grant(Claim *claim, int64 token)
{
	claim->state = DL_GRANTED;
	claim->token = token;
	claim->deadline = deadline_after(claim->durable ? Max(claim->ttl, DL_FALLBACK_USECS) :
									 claim->ttl);
	model.earliest = Min(model.earliest, claim->deadline);
	append(claim->lock->holders, &claim->lock->nholders, claim);
	if (claim->durable)
		model_link_image(claim);
}

/* Is there nothing to be done on disk before the holder is told? */
static bool
may_tell(Claim *claim)
{
	return (!claim->durable || claim->flushed) && !model_has_leftovers(claim->lock);
}

static void
tell(Claim *claim)
{
	int64	   *told = &claim->lock->told[claim->mode];

	claim->state = DL_LIVE;
	claim->deadline = deadline_after(claim->ttl);
	model.earliest = Min(model.earliest, claim->deadline);
	counters_of(claim->lock)->acquired++;
	*told = Max(*told, claim->token);
}

/*
 * Grant from the head of the queue while there is room, no grace, no barrier,
 * and a token.
 */
static void
settle(ModelLock *lock)
{
	lock->settled_at = model.now;
	while (lock->nqueue > 0)
	{
		Claim	   *head = lock->queue[0];
		int64		token;

		if (!is_open(lock) || blocked(lock, head->mode) || model_is_barred(lock, head->mode))
			return;
		token = draw(lock, head->durable, head->bucket);
		if (token == 0)
			return;
		delete(lock->queue, &lock->nqueue, head);
		counters_of(lock)->waited += model.now - head->since;
		grant(head, token);
	}
	forget_if_unused(lock);
}

/* Somebody has the lock's tag, and thereby passed the barrier for this mode. */
static void
lower_barrier(ModelLock *lock, DlMode mode)
{
	if (mode == DL_EXCLUSIVE)
	{
		lock->barrier = DL_NO_BARRIER;
		lock->raised = false;
	}
	else if (lock->barrier == DL_BARS_ALL)
		lock->barrier = DL_BARS_EXCLUSIVE;
}

DlVerdict
model_request(ModelLock *lock, const DlRequest *request, Claim **result)
{
	Claim	   *claim = model.claims;
	bool		is_new = !model_is_in_use(lock);
	bool		wait = !is_open(lock);
	int64		token = 0;

	if (!wait && lock->nqueue > 0)
		settle(lock);
	wait = wait || lock->nqueue > 0 || blocked(lock, request->mode);
	counters_of(lock)->contended += wait;
	if (wait && !request->may_wait)
	{
		counters_of(lock)->timeouts++;
		return DL_BUSY;
	}
	if (model_used() == model.max_leases ||
		(request->durable && model_images_used() == 2 * model.max_leases))
	{
		forget_if_unused(lock);
		return DL_FULL;
	}
	if (is_new && model.forgotten != model.settled)
		lock->barrier = DL_BARS_ALL;
	if (!wait && model_is_barred(lock, request->mode))
	{
		if (request->pass == DL_PASS_NONE)
		{
			forget_if_unused(lock);
			return DL_BARRED;
		}
		if (request->pass == DL_PASS_HELD)
			lower_barrier(lock, request->mode);
		else
			wait = true;
	}
	if (!wait && (token = draw(lock, request->durable, bucket_of(request->scope, request->ttl))) == 0)
	{
		forget_if_unused(lock);
		return DL_NO_TOKEN;
	}

	while (claim->state != DL_FREE)
		claim++;
	memset(claim, 0, sizeof(Claim));
	claim->lock = lock;
	claim->mode = request->mode;
	claim->scope = request->scope;
	claim->ttl = request->ttl;
	claim->durable = request->durable;
	claim->usable = true;
	claim->bucket = bucket_of(request->scope, request->ttl);
	claim->backend = request->backend;
	claim->arrival = ++model.narrivals;
	if (request->durable)
	{
		claim->image = model_new_image();
		claim->image->claim = claim;
		claim->image->lock = lock;
	}
	*result = claim;
	if (!wait)
	{
		grant(claim, token);
		if (!may_tell(claim))
			return DL_UNTOLD;
		tell(claim);
		return DL_TOLD;
	}
	claim->state = DL_WAITING;
	claim->since = model.now;
	append(lock->queue, &lock->nqueue, claim);
	return model_look(claim);
}

DlVerdict
model_look(Claim *claim)
{
	ModelLock  *lock = claim->lock;
	int64		before;

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
			if (!may_tell(claim))
				return DL_UNTOLD;
			before = claim->deadline;
			tell(claim);
			if (claim->deadline < before)
				settle(lock);
			return DL_TOLD;
		case DL_WAITING:
			if (!is_open(lock) || model_conflict(lock, lock->queue[0]->mode) != NULL)
				return DL_QUEUED;
			if (!model_is_barred(lock, lock->queue[0]->mode))
				return DL_NO_TOKEN;
			return claim == lock->queue[0] ? DL_BARRED : DL_QUEUED;
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
	model_abandon_image(claim);
	claim->state = DL_FREE;
}

Claim *
model_find(ModelLock *lock, int64 token)
{
	for (int i = 0; i < lock->nholders; i++)
	{
		Claim	   *claim = lock->holders[i];

		if (claim->state != DL_LIVE || !claim->usable || claim->token != token)
			continue;
		if (claim->deadline > model.now)
			return claim;
		model_end(claim, DL_EXPIRED);
	}
	return NULL;
}

bool
model_renew(Claim *claim, int64 ttl)
{
	int64		before = claim->deadline;
	int			bucket = bucket_of(claim->scope, ttl);

	if (bucket != claim->bucket && !is_bucket_open(claim->lock, claim->durable, bucket))
		return false;
	claim->bucket = bucket;
	claim->ttl = ttl;
	claim->deadline = deadline_after(ttl);
	claim->renewals++;
	counters_of(claim->lock)->renewed++;
	if (claim->deadline < before)
	{
		model.earliest = Min(model.earliest, claim->deadline);
		settle(claim->lock);
	}
	return true;
}

void
model_end(Claim *claim, DlCause cause)
{
	end(claim, cause);
	settle(claim->lock);
}

/* ---- Guards ---- */

/* The caller sees to the record.  Null when all guards are in use. */
Guard *
model_guard(Claim *claim)
{
	Guard	   *guard = NULL;
	int			n = 0;

	for (int i = 0; i < MAX_GUARDS; i++)
		if (model.guards[i].record != NULL)
			n++;
		else
			guard = &model.guards[i];
	if (n == Max(model.max_leases, model.nbackends))
		return NULL;
	memset(guard, 0, sizeof(Guard));
	guard->pid = 5000 + ++model.nguards;
	guard->lock = claim->lock;
	guard->claim = claim;
	guard->mode = claim->mode;
	counters_of(claim->lock)->guards++;
	return guard;
}

static bool
is_good(Guard *guard)
{
	bool		good = guard->claim != NULL && guard->claim->state == DL_LIVE &&
		guard->claim->deadline > model.now;

	counters_of(guard->lock)->commits_refused += !good;
	return good;
}

bool
model_pin(Guard *guard)
{
	if (!is_good(guard))
		return false;
	guard->pinned = true;
	return true;
}

bool
model_bar(Guard *guard)
{
	if (!model_pin(guard))
		return false;
	guard->lock->raised = true;
	if (guard->mode == DL_EXCLUSIVE)
		guard->lock->barrier = DL_BARS_ALL;
	else if (guard->lock->barrier == DL_NO_BARRIER)
		guard->lock->barrier = DL_BARS_EXCLUSIVE;
	return true;
}

void
model_unguard(Guard *guard)
{
	Claim	   *claim = guard->claim;

	guard->record = NULL;
	if (claim != NULL && claim->state == DL_PINNED && guard->pinned && model_pins(claim) == 0)
	{
		vacate(claim);
		settle(claim->lock);
	}
}

void
model_pass(Claim *claim)
{
	if (claim->state == DL_WAITING)
		lower_barrier(claim->lock, claim->mode);
}

/* Can a transaction that prepares have the tag, or would it wait? */
bool
model_can_hold(const ModelLock *lock, DlMode mode)
{
	return lock->npassing[DL_EXCLUSIVE] == 0 &&
		(mode == DL_SHARED || lock->npassing[DL_SHARED] == 0);
}

/* Likewise, a session that wants to pass the barrier. */
bool
model_can_pass(const ModelLock *lock, DlMode mode)
{
	return lock->nheld[DL_EXCLUSIVE] == 0 && lock->npassing[DL_EXCLUSIVE] == 0 &&
		(mode == DL_SHARED || (lock->nheld[DL_SHARED] == 0 && lock->npassing[DL_SHARED] == 0));
}

/* ---- Ended leases ---- */

/* The ended lease whose guards are told next, or null. */
Claim *
model_stale(int partition)
{
	if (model.nover[partition] == 0 || model_guards(model.over[partition][0]) == 0)
		return NULL;
	return model.over[partition][0];
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
	forget_if_unused(claim->lock);
	return claim;
}

/* Does the claim end with its backend? */
static bool
ends_with_backend(const Claim *claim)
{
	switch (claim->state)
	{
		case DL_FREE:
		case DL_PINNED:
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
	model_remove_images(partition, database, extension);
	for (int i = 0; i < model.nlocks; i++)
	{
		ModelLock  *lock = &model.locks[i];

		if (model_partition(lock) != partition || lock->key.database != database ||
			(OidIsValid(extension) && lock->key.extension != extension))
			continue;
		while (lock->nqueue > 0)
		{
			lock->queue[0]->state = DL_DROPPED;
			model_abandon_image(lock->queue[0]);
			counters_of(lock)->waited += model.now - lock->queue[0]->since;
			delete(lock->queue, &lock->nqueue, lock->queue[0]);
		}
		for (int h = 0; h < lock->nholders;)
		{
			Claim	   *claim = lock->holders[h];

			/* One that this pins gives up its image along with its place. */
			if (claim->state == DL_PINNED)
				model_drop_image(claim);
			else
				end(claim, DL_REMOVED);
			h += claim->state == DL_PINNED;
		}
		forget_if_unused(lock);
	}
}

/* ---- After a crash ---- */

/*
 * The lease under that token, or null when one with a greater is in its way.
 * The caller sees to the records.
 */
Claim *
model_recover(ModelLock *lock, const DlRecovered *recovered)
{
	Claim	   *claim = model.claims;
	ModelImage *image = model_new_image();

	image->lock = lock;
	image->token = recovered->token;
	image->ttl = recovered->ttl;
	image->place = recovered->place;
	image->linked = true;
	if (model_conflict(lock, recovered->mode) != NULL)
	{
		model_make_stale(image, model.now);
		return NULL;
	}
	if (!model_is_in_use(lock) && model.forgotten != model.settled)
		lock->barrier = DL_BARS_ALL;

	while (claim->state != DL_FREE)
		claim++;
	memset(claim, 0, sizeof(Claim));
	claim->lock = lock;
	claim->mode = recovered->mode;
	claim->scope = DL_SCOPE_LEASE;
	claim->ttl = recovered->ttl;
	claim->durable = claim->flushed = true;
	claim->usable = recovered->usable;
	claim->bucket = bucket_of(DL_SCOPE_LEASE, recovered->ttl);
	claim->state = DL_LIVE;
	claim->token = recovered->token;
	claim->deadline = recovered->deadline;
	claim->image = image;
	claim->seen_granted = true;
	image->state = DL_IMAGE_KEPT;
	image->claim = claim;
	append(lock->holders, &lock->nholders, claim);
	model.earliest = Min(model.earliest, claim->deadline);
	return claim;
}

/* Null when the record stands for another lease by now. */
Claim *
model_claim_of(const DlLease *record, uint64 serial)
{
	for (int i = 0; i < MAX_CLAIMS; i++)
		if (model.claims[i].state != DL_FREE && model.claims[i].record == record &&
			model.claims[i].serial == serial)
			return &model.claims[i];
	return NULL;
}
