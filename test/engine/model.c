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
	return lock->nholders + lock->nqueue + lock->nover + lock->nwatchers > 0;
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

/* Could one more have the lock, were so many others granted before? */
bool
model_has_room(const ModelLock *lock, DlMode mode, int nahead)
{
	if (lock->limit > 0)
		return lock->nholders + nahead < lock->limit;
	for (int i = 0; i < lock->nholders; i++)
		if (mode == DL_EXCLUSIVE || lock->holders[i]->mode == DL_EXCLUSIVE)
			return false;
	return mode == DL_SHARED || nahead == 0;
}

/*
 * Which holder must whoever finds no room wait for?  Of a semaphore the one who
 * expires first.  Null if it is only others who wait.
 */
Claim *
model_in_the_way(const ModelLock *lock)
{
	Claim	   *first = lock->nholders > 0 ? lock->holders[0] : NULL;

	for (int i = 1; i < lock->nholders && lock->limit > 0; i++)
		if (lock->holders[i]->deadline < first->deadline)
			first = lock->holders[i];
	return first;
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
	lock->news = lock->news || claim->state == DL_LIVE;
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
blocked(ModelLock *lock, DlMode mode, int nahead)
{
	while (!model_has_room(lock, mode, nahead))
	{
		Claim	   *claim = model_in_the_way(lock);

		if (claim == NULL || claim->state == DL_PINNED || claim->deadline > model.now)
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
	int64	   *told = &claim->lock->told[claim->limit][claim->mode];

	claim->state = DL_LIVE;
	claim->deadline = deadline_after(claim->ttl);
	model.earliest = Min(model.earliest, claim->deadline);
	counters_of(claim->lock)->acquired++;
	*told = Max(*told, claim->token);
	claim->undoer = claim->backend;
	claim->lock->news = true;
}

/* Why somebody has to wait. */
typedef enum Why
{
	NOBODY_WAITS,
	TAKEN,
	BARRED,
	NO_TOKEN,
} Why;

/* Its wait in this queue is over. */
static void
dequeue(Claim *claim)
{
	ModelLock  *lock = claim->lock;

	delete(lock->queue, &lock->nqueue, claim);
	counters_of(lock)->waited += model.now - claim->since;
	claim->ready = false;
}

/*
 * Grant from the head of the queue while there is room, no grace, no barrier,
 * and a token.  Parts of requests for several locks are passed by where they
 * could be granted; those behind have to leave room for them.  Returns the
 * first who has to wait for this lock.
 */
static Claim *
advance(ModelLock *lock, Why *why)
{
	bool		closed = !is_open(lock);
	int			nready = 0;

	*why = NOBODY_WAITS;
	lock->settled_at = model.now;
	while (nready < lock->nqueue)
	{
		Claim	   *claim = lock->queue[nready];
		int64		token;

		*why = TAKEN;
		if (closed || blocked(lock, claim->mode, nready))
			break;
		*why = BARRED;
		if (model_is_barred(lock, claim->mode) || claim->bridging)
			break;
		if (claim->nparts > 1)
		{
			claim->ready = true;
			closed = claim->mode == DL_EXCLUSIVE;
			nready++;
			continue;
		}
		*why = NO_TOKEN;
		token = draw(lock, claim->durable, claim->bucket);
		if (token == 0)
			break;
		dequeue(claim);
		grant(claim, token);
	}
	for (int i = nready; i < lock->nqueue; i++)
		lock->queue[i]->ready = false;
	if (nready < lock->nqueue)
		return lock->queue[nready];
	*why = NOBODY_WAITS;
	return NULL;
}

static void
settle(ModelLock *lock)
{
	Why			why;

	(void) advance(lock, &why);
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

/* ---- Requests made before ---- */

/* Is it found by its request id? */
static bool
has_id(const Claim *claim)
{
	return claim->request_id[0] != '\0' && claim->usable &&
		(claim->state == DL_WAITING || claim->state == DL_GRANTED || claim->state == DL_LIVE);
}

/* Is the claim under the id of the request, and for which of its locks?  -1: for another. */
static bool
is_under_id(const Claim *claim, const DlRequest *request, ModelLock **locks, int *part)
{
	*part = -1;
	if (!has_id(claim) || strcmp(claim->request_id, request->request_id) != 0 ||
		claim->owner != request->owner || claim->lock->table != locks[0]->table)
		return false;
	for (int i = 0; i < request->nkeys; i++)
		if (claim->lock == locks[i])
			*part = i;
	return true;
}

/* The claim becomes that of the session which makes the same request again. */
void
model_adopt(Claim *claim, const DlRequest *request)
{
	claim->serial++;
	claim->backend = request->backend;
	claim->nreleasing = 0;
	claim->joined = ++model.njoined;
	if (claim->undoer >= 0)
		claim->undoer = request->backend;
}

/* Would these be leases of the request, if all of them are there? */
static bool
is_of_request(const Claim *claim, const DlRequest *request)
{
	return claim->mode == request->mode && claim->scope == request->scope &&
		claim->limit == request->limit && claim->durable == request->durable &&
		claim->nparts == request->nkeys;
}

/* Are they live, and some of them over? */
static bool
has_ended_in_part(const DlRequest *request, Claim **claims)
{
	int			n = 0;

	for (int i = 0; i < request->nkeys; i++)
	{
		if (claims[i] == NULL)
			continue;
		if (claims[i]->state != DL_LIVE || !is_of_request(claims[i], request))
			return false;
		n++;
	}
	return n < request->nkeys;
}

/*
 * Has the request been made before?  As the engine says it: again, when not, and
 * queued, when it is the caller's from now on.
 */
static DlVerdict
repeat(const DlRequest *request, ModelLock **locks, Claim **claims)
{
	bool		foreign = false;
	bool		expired = true;
	int			nfound = 0;
	int			nlive = 0;
	int			part;

	for (int i = 0; i < MAX_CLAIMS; i++)
		if (is_under_id(&model.claims[i], request, locks, &part))
		{
			nfound++;
			/* A crash may have brought back two: the later one. */
			if (part >= 0 && (claims[part] == NULL ||
							  claims[part]->token < model.claims[i].token))
				claims[part] = &model.claims[i];
			else if (part < 0)
			{
				foreign = true;
				expired = expired && model.claims[i].state != DL_WAITING &&
					model.claims[i].deadline <= model.now;
			}
		}
	for (int i = 0; i < request->nkeys; i++)
		if (claims[i] != NULL && claims[i]->state != DL_WAITING && claims[i]->deadline <= model.now)
		{
			model_end(claims[i], DL_EXPIRED);
			claims[i] = NULL;
			nfound--;
		}
	if (foreign)
		return expired ? DL_EXPIRED_ID : DL_OTHER_REQUEST;
	if (nfound == 0)
		return DL_AGAIN;
	if (has_ended_in_part(request, claims))
	{
		for (int i = 0; i < request->nkeys; i++)
		{
			if (claims[i] != NULL)
				model_end(claims[i], DL_RELEASED);
			claims[i] = NULL;
		}
		events.partly++;
		return DL_AGAIN;
	}
	for (int i = 0; i < request->nkeys; i++)
	{
		model.other = locks[i];
		if (claims[i] == NULL || !is_of_request(claims[i], request) ||
			claims[i]->token != claims[0]->token)
			return DL_OTHER_REQUEST;
		nlive += claims[i]->state == DL_LIVE;
	}
	if (nlive > 0)
		return DL_REPEATED;
	if (request->again)
		return DL_REPLACED;
	if (!request->may_wait)
	{
		counters_of(locks[0])->timeouts++;
		return DL_BUSY;
	}
	for (int i = 0; i < request->nkeys; i++)
	{
		model_adopt(claims[i], request);
		if (claims[i]->state == DL_WAITING)
		{
			claims[i]->ttl = request->ttl;
			claims[i]->bucket = bucket_of(request->scope, request->ttl);
		}
	}
	return DL_QUEUED;
}

/* ---- Requests ---- */

/* Would a request for this lock have to wait? */
static bool
has_to_wait(ModelLock *lock, DlMode mode)
{
	Why			why;

	if (!is_open(lock))
		return true;
	if (!model_is_in_use(lock))
		return false;
	if (lock->nqueue > 0 && advance(lock, &why) != NULL)
		return true;
	if (lock->nqueue > 0 && lock->queue[lock->nqueue - 1]->mode == DL_EXCLUSIVE)
		return true;
	return blocked(lock, mode, lock->nqueue);
}

/* Can a request under this limit be made? */
static bool
is_limit_good(ModelLock *lock, int limit)
{
	Why			why;

	if (!model_is_in_use(lock) || lock->limit == limit)
		return true;
	for (int h = 0; h < lock->nholders;)
	{
		Claim	   *claim = lock->holders[h];
		bool		expired = claim->state != DL_PINNED && claim->deadline <= model.now;

		if (expired)
			end(claim, DL_EXPIRED);
		h += !expired || claim->state == DL_PINNED;
	}
	(void) advance(lock, &why);
	return lock->nholders + lock->nqueue == 0;
}

/* Which keys have a barrier that bars the request? */
static uint64
find_barred(const DlRequest *request, ModelLock **locks)
{
	uint64		barred = 0;

	for (int i = 0; i < request->nkeys; i++)
	{
		if (request->pass == DL_PASS_HELD && (request->barred >> i & 1) != 0)
			lower_barrier(locks[i], request->mode);
		if (model_is_barred(locks[i], request->mode))
			barred |= UINT64CONST(1) << i;
	}
	return barred;
}

static Claim *
new_claim(ModelLock *lock, const DlRequest *request, int nth)
{
	Claim	   *claim = model.claims;

	while (claim->state != DL_FREE)
		claim++;
	memset(claim, 0, sizeof(Claim));
	claim->lock = lock;
	claim->mode = request->mode;
	claim->scope = request->scope;
	claim->ttl = request->ttl;
	claim->durable = request->durable;
	claim->limit = request->limit;
	claim->nparts = request->nkeys;
	claim->nth = nth;
	claim->owner = request->owner;
	strcpy(claim->request_id, request->request_id);
	claim->undoer = -1;
	claim->usable = true;
	claim->bucket = bucket_of(request->scope, request->ttl);
	claim->backend = request->backend;
	claim->arrival = model.narrivals;
	claim->joined = ++model.njoined;
	if (request->durable)
	{
		claim->image = model_new_image();
		claim->image->claim = claim;
		claim->image->lock = lock;
	}
	return claim;
}

/* All parts of a granted request are told, or none. */
static DlVerdict
tell_all(const DlRequest *request, Claim **claims)
{
	for (int i = 0; i < request->nkeys; i++)
		if (!may_tell(claims[i]))
			return DL_UNTOLD;
	for (int i = 0; i < request->nkeys; i++)
	{
		int64		before = claims[i]->deadline;

		tell(claims[i]);
		if (claims[i]->deadline < before)
			settle(claims[i]->lock);
	}
	return DL_TOLD;
}

/* What becomes of a request that need not be refused.  told: enter it. */
static DlVerdict
assess(const DlRequest *request, ModelLock **locks, const bool *existed, bool *wait,
	   int64 *token)
{
	int			n = request->nkeys;

	if (model_used() + n > model.max_leases ||
		(request->durable && model_images_used() + n > 2 * model.max_leases))
		return DL_FULL;
	for (int i = 0; i < n; i++)
		if (!existed[i] && model.forgotten != model.settled)
			locks[i]->barrier = DL_BARS_ALL;
	if (!*wait)
	{
		model.barred = find_barred(request, locks);
		if (model.barred != 0 || request->bridging)
		{
			if (request->pass != DL_PASS_QUEUE)
				return DL_BARRED;
			*wait = true;
		}
	}
	*token = *wait ? 0 : draw(locks[0], request->durable, bucket_of(request->scope, request->ttl));
	return *wait || *token != 0 ? DL_TOLD : DL_NO_TOKEN;
}

/* The claims are set if the request has entered, or is repeated. */
DlVerdict
model_request(const DlRequest *request, ModelLock **locks, Claim **claims)
{
	int			n = request->nkeys;
	bool		existed[MAX_PARTS];
	bool		wait = false;
	DlVerdict	verdict = DL_TOLD;
	int64		token;

	if (request->request_id[0] != '\0')
	{
		verdict = repeat(request, locks, claims);
		if (verdict == DL_QUEUED)
			return model_look(request, claims);
		if (verdict != DL_AGAIN)
			return verdict;
		verdict = DL_TOLD;
	}
	for (int i = 0; i < n && verdict == DL_TOLD; i++)
	{
		existed[i] = model_is_in_use(locks[i]);
		model.other = locks[i];
		if (is_limit_good(locks[i], request->limit))
			wait = has_to_wait(locks[i], request->mode) || wait;
		else
			verdict = DL_OTHER_LIMIT;
	}
	if (verdict == DL_TOLD)
	{
		counters_of(locks[0])->contended += wait;
		if (wait && !request->may_wait)
		{
			counters_of(locks[0])->timeouts++;
			verdict = DL_BUSY;
		}
	}
	if (verdict == DL_TOLD)
		verdict = assess(request, locks, existed, &wait, &token);
	if (verdict != DL_TOLD)
	{
		for (int i = 0; i < n; i++)
			forget_if_unused(locks[i]);
		return verdict;
	}

	model.narrivals++;
	for (int i = 0; i < n; i++)
	{
		claims[i] = new_claim(locks[i], request, i);
		locks[i]->limit = request->limit;
		if (wait)
		{
			claims[i]->state = DL_WAITING;
			claims[i]->since = model.now;
			append(locks[i]->queue, &locks[i]->nqueue, claims[i]);
		}
		else
			grant(claims[i], token);
	}
	return wait ? model_look(request, claims) : tell_all(request, claims);
}

/* Grant the parts of a request that are ready everywhere.  Returns false without a token. */
static bool
grant_all(Claim **claims, int n)
{
	int64		token = draw(claims[0]->lock, claims[0]->durable, claims[0]->bucket);
	Why			why;

	if (token == 0)
		return false;
	for (int i = 0; i < n; i++)
	{
		dequeue(claims[i]);
		grant(claims[i], token);
		(void) advance(claims[i]->lock, &why);
	}
	return true;
}

/* A look at a queue that is in want of a token says so to whoever looks. */
static DlVerdict
try_to_grant(const DlRequest *request, Claim **claims)
{
	int			nready = 0;
	int			nbarred = 0;
	bool		no_token = false;

	model.barred = 0;
	claims[0]->bridging = request->bridging;
	for (int i = 0; i < request->nkeys; i++)
	{
		Why			why;
		bool		first = advance(claims[i]->lock, &why) == claims[i];

		if (claims[i]->state == DL_GRANTED)
			return DL_UNTOLD;
		nready += claims[i]->ready;
		no_token = no_token || why == NO_TOKEN;
		if (first && why == BARRED)
		{
			nbarred++;
			if (model_is_barred(claims[i]->lock, claims[i]->mode))
				model.barred |= UINT64CONST(1) << i;
		}
	}
	if (nready == request->nkeys)
		return grant_all(claims, nready) ? DL_UNTOLD : DL_NO_TOKEN;
	if (nready + nbarred == request->nkeys)
		return DL_BARRED;
	return no_token ? DL_NO_TOKEN : DL_QUEUED;
}

DlVerdict
model_look(const DlRequest *request, Claim **claims)
{
	bool		states[DL_OVER + 1] = {0};
	DlVerdict	verdict;

	for (int i = 0; i < request->nkeys; i++)
	{
		if (claims[i]->state == DL_GRANTED && claims[i]->deadline <= model.now)
		{
			end(claims[i], DL_EXPIRED);
			settle(claims[i]->lock);
		}
		states[claims[i]->state] = true;
	}
	if (states[DL_DROPPED])
		return DL_GONE;
	if (states[DL_LAPSED])
		return DL_AGAIN;
	if (states[DL_WAITING])
	{
		verdict = try_to_grant(request, claims);
		if (verdict != DL_UNTOLD)
			return verdict;
	}
	return tell_all(request, claims);
}

void
model_leave(Claim *claim)
{
	if (claim->state == DL_GRANTED)
		model_end(claim, DL_UNDONE);
	else if (claim->state == DL_WAITING)
	{
		dequeue(claim);
		settle(claim->lock);
	}
	model_abandon_image(claim);
	claim->state = DL_FREE;
}

/* A waiting claim goes ahead of another; they keep the arrivals in order. */
void
model_overtake(Claim *claim, Claim *before)
{
	ModelLock  *lock = claim->lock;
	Why			why;
	int			from = 0;
	int			to = 0;

	while (lock->queue[from] != claim)
		from++;
	while (lock->queue[to] != before)
		to++;
	for (; from > to; from--)
	{
		Claim	   *other = lock->queue[from - 1];
		int64		arrival = other->arrival;

		other->arrival = claim->arrival;
		claim->arrival = arrival;
		lock->queue[from] = other;
	}
	lock->queue[to] = claim;
	(void) advance(lock, &why);
}

/*
 * Another session grants what this backend waits for in several queues.
 * Returns false if a token is all that it lacks.
 */
bool
model_grant_for(int backend)
{
	Claim	   *claims[MAX_PARTS] = {NULL};
	int			n = 0;
	Why			why;

	for (int p = 0; p < DL_NPARTITIONS; p++)
		for (int i = 0; i < MAX_CLAIMS; i++)
		{
			Claim	   *claim = &model.claims[i];
			int			at = n;

			if (claim->state != DL_WAITING || claim->backend != backend ||
				model_partition(claim->lock) != p)
				continue;
			while (at > 0 && model_partition(claims[at - 1]->lock) == p &&
				   claims[at - 1]->joined > claim->joined)
			{
				claims[at] = claims[at - 1];
				at--;
			}
			claims[at] = claim;
			n++;
		}
	if (n < 2 || n != claims[0]->nparts)
		return true;
	for (int i = 0; i < n; i++)
	{
		(void) advance(claims[i]->lock, &why);
		if (!claims[i]->ready)
			return true;
	}
	return grant_all(claims, n);
}

/* ---- Watchers ---- */

void
model_watch(ModelLock *lock, int backend)
{
	if (!model_is_in_use(lock) && model.forgotten != model.settled)
		lock->barrier = DL_BARS_ALL;
	if (!model_is_in_use(lock))
		lock->limit = 0;
	lock->watchers[lock->nwatchers++] = backend;
}

void
model_unwatch(ModelLock *lock, int backend)
{
	int			i = 0;

	while (lock->watchers[i] != backend)
		i++;
	memmove(&lock->watchers[i], &lock->watchers[i + 1], (--lock->nwatchers - i) * sizeof(int));
	forget_if_unused(lock);
}

/* The greatest live token, or 0, and when it expires. */
int64
model_newest(ModelLock *lock, int64 *deadline)
{
	for (;;)
	{
		Claim	   *newest = NULL;

		for (int i = 0; i < lock->nholders; i++)
			if (lock->holders[i]->state == DL_LIVE &&
				(newest == NULL || lock->holders[i]->token > newest->token))
				newest = lock->holders[i];
		*deadline = newest == NULL ? DL_FOREVER : newest->deadline;
		if (newest == NULL)
			return 0;
		if (newest->deadline > model.now)
			return newest->token;
		model_end(newest, DL_EXPIRED);
	}
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
		claim->lock->news = true;
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
	guard->limit = claim->limit;
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
	if (model_tag_mode(guard) == DL_EXCLUSIVE)
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

/* As what a prepared transaction keeps others away: nobody gets a permit beside it. */
DlMode
model_tag_mode(const Guard *guard)
{
	return guard->limit > 0 ? DL_EXCLUSIVE : guard->mode;
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

/* In the order in which it got them. */
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
				(first == NULL || claim->joined < first->joined))
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
		lock->nwatchers = 0;
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
	image->nth = recovered->nth;
	image->ttl = recovered->ttl;
	image->place = recovered->place;
	image->linked = true;
	if (model_is_in_use(lock) && (lock->limit != recovered->limit ||
								  !model_has_room(lock, recovered->mode, 0)))
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
	claim->limit = lock->limit = recovered->limit;
	claim->nparts = recovered->nparts;
	claim->nth = recovered->nth;
	claim->owner = recovered->owner;
	strcpy(claim->request_id, recovered->request_id);
	claim->undoer = -1;
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
