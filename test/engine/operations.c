/*-------------------------------------------------------------------------
 *
 * operations.c
 *	  What is done to the engine and the model alike, chosen at random.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

/* ---- Chance ---- */

/* A number below one of these limits, so that small and large ones occur. */
static int64
random_duration(void)
{
	static const int64 limits[] = {4, 100, MSECS, 300 * MSECS, 3 * SECS, 20 * SECS};

	return 1 + random_below(limits[random_below(lengthof(limits))]);
}

/* Of a database that is in use since the latest crash. */
ModelLock *
random_lock(void)
{
	for (;;)
	{
		ModelLock  *lock = &model.locks[random_below(model.nlocks)];

		if (model.attached[lock->database])
			return lock;
	}
}

/* One whose earlier leases are on disk, if there is any. */
static ModelLock *
random_leftover(void)
{
	int			start = random_below(MAX_IMAGES);

	for (int i = 0; i < MAX_IMAGES && run.storing; i++)
	{
		ModelImage *image = &model.images[(start + i) % MAX_IMAGES];

		if (image->state == DL_IMAGE_STALE || image->state == DL_IMAGE_CONDEMNED)
			return image->lock;
	}
	return random_lock();
}

/* A session that has a request, or has none; null when there is no such. */
static Session *
random_session(bool waiting)
{
	int			start = random_below(model.nbackends);

	for (int i = 0; i < model.nbackends; i++)
	{
		Session    *session = &sessions[(start + i) % model.nbackends];

		if (!session->frozen && (session->claims[0] != NULL) == waiting &&
			session->watched == NULL && !is_storing(session - sessions))
			return session;
	}
	return NULL;
}

/* "pinned": or a lease that has ended, but keeps its place. */
static Claim *
random_holder(bool pinned)
{
	int			start = random_below(MAX_CLAIMS);

	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *claim = &model.claims[(start + i) % MAX_CLAIMS];

		if (claim->state == DL_LIVE || claim->state == DL_GRANTED ||
			(pinned && claim->state == DL_PINNED))
			return claim;
	}
	return NULL;
}

Guard *
random_guard(void)
{
	int			start = random_below(MAX_GUARDS);

	for (int i = 0; i < MAX_GUARDS; i++)
	{
		Guard	   *guard = &model.guards[(start + i) % MAX_GUARDS];

		if (guard->record != NULL)
			return guard;
	}
	return NULL;
}

/* Another lock of the same table; or the same, if there is no other. */
static ModelLock *
random_neighbour(const ModelLock *lock)
{
	for (;;)
	{
		ModelLock  *other = &model.locks[random_below(model.nlocks)];

		if (other->table == lock->table)
			return other;
	}
}

/* Add a key to the session's request, unless it is there already. */
static void
add_key(Session *session)
{
	DlRequest  *request = &session->request;
	ModelLock  *lock = random_neighbour(lock_of_session(session, 0));

	for (int i = 0; i < request->nkeys; i++)
		if (lock_of_session(session, i) == lock)
			return;
	if (request->nkeys < MAX_PARTS)
		session->keys[request->nkeys++] = lock->key;
}

static void
set_limit(DlRequest *request, int limit)
{
	request->limit = limit;
	if (limit > 0)
		request->mode = DL_SHARED;
}

static void
set_id(DlRequest *request, int id, Oid owner)
{
	snprintf(request->request_id, sizeof(request->request_id), "r%d", id);
	request->id_hash = id_hash_of(request->request_id);
	request->owner = owner;
}

static void
op_request(void)
{
	Session    *session = random_session(false);
	DlRequest  *request;
	ModelLock  *lock = one_in(2) ? random_leftover() : random_lock();
	DlMode		mode = one_in(3) ? DL_EXCLUSIVE : DL_SHARED;
	DlScope		scope = random_below(3);
	int64		ttl = scope == DL_SCOPE_LEASE || one_in(2) ? random_duration() : 0;

	if (session == NULL)
		return;
	if (session->has_tag && model.attached[lock_of_session(session, 0)->database])
	{
		acquire(session);
		return;
	}
	give_up_tag(session);
	request = &session->request;
	fill_request(session - sessions, lock, mode, scope, ttl);
	request->durable = run.storing && scope == DL_SCOPE_LEASE && !one_in(3);
	request->may_wait = !one_in(6);
	set_limit(request, one_in(20) ? random_below(MAX_LIMIT + 1) : lock->usual_limit);
	while (run.combining && !one_in(2) && request->nkeys < MAX_PARTS)
		add_key(session);
	if (run.repeating && one_in(3))
		set_id(request, random_below(5), one_in(10) ? 11 : 10);
	request->bridging = run.bridging && scope != DL_SCOPE_LEASE &&
		request->request_id[0] == '\0' && one_in(3);
	acquire(session);
}

/* Make a request again that has been made before, or one that is nearly the same. */
static void
op_repeat(void)
{
	Session    *session = random_session(false);
	int			start = random_below(MAX_CLAIMS);
	Claim	   *claim = NULL;
	DlRequest  *request;

	for (int i = 0; i < MAX_CLAIMS && claim == NULL; i++)
	{
		claim = &model.claims[(start + i) % MAX_CLAIMS];
		if (claim->request_id[0] == '\0' || !claim->usable || (claim->state != DL_WAITING &&
											 claim->state != DL_GRANTED && claim->state != DL_LIVE))
			claim = NULL;
	}
	if (session == NULL || claim == NULL || session->has_tag)
		return;
	request = &session->request;
	fill_request(session - sessions, claim->lock, claim->mode, claim->scope,
				 claim->scope == DL_SCOPE_LEASE || one_in(2) ? random_duration() : 0);
	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *other = &model.claims[i];

		if (other->state == claim->state && other != claim && other->owner == claim->owner &&
			other->lock->table == claim->lock->table && request->nkeys < MAX_PARTS &&
			other->usable && other->lock != claim->lock &&
			strcmp(other->request_id, claim->request_id) == 0)
			session->keys[request->nkeys++] = other->lock->key;
	}
	/* In another order. */
	if (request->nkeys > 1 && one_in(2))
	{
		DlKey		first = session->keys[0];

		session->keys[0] = session->keys[request->nkeys - 1];
		session->keys[request->nkeys - 1] = first;
	}
	request->durable = claim->durable;
	request->limit = claim->limit;
	request->may_wait = !one_in(6);
	set_id(request, claim->request_id[1] - '0', claim->owner);
	switch (random_below(20))
	{
		case 0:
			request->mode = DL_EXCLUSIVE + DL_SHARED - request->mode;
			request->limit = 0;
			break;
		case 1:
			set_limit(request, random_below(MAX_LIMIT + 1));
			break;
		case 2:
			add_key(session);
			break;
		case 3:
			request->nkeys = 1;
			session->keys[0] = random_neighbour(claim->lock)->key;
			break;
		case 4:
			request->owner = 21 - request->owner;
			break;
		case 5:
			request->nkeys = Max(request->nkeys - 1, 1);
			break;
		case 6:
			request->durable = run.storing && claim->scope == DL_SCOPE_LEASE && !claim->durable;
			break;
	}
	acquire(session);
}

static void
op_end_transaction(void)
{
	Session    *session = &sessions[random_below(model.nbackends)];
	bool		commit = !one_in(3);

	events.undone += session->nacquired > 0 && !commit;
	end_transaction(session, commit);
}

static void
op_watch(void)
{
	Session    *session = &sessions[random_below(model.nbackends)];

	if (!run.watching || session->frozen)
		return;
	if (session->watched == NULL)
	{
		session = random_session(false);
		if (session != NULL && !session->has_tag)
			watch(session, random_lock());
	}
	else if (one_in(3))
		unwatch(session);
	else if (is_ready(session))
		come(session, false);
}

static void
op_help(void)
{
	grant_for(random_below(model.nbackends), -1);
}

/* A waiting request goes ahead of another one. */
static void
op_overtake(void)
{
	ModelLock  *lock = random_lock();
	DlEffects	fx = DL_NO_EFFECTS;
	Claim	   *claim;
	Claim	   *before;
	int			from;
	int			to;

	if (lock->nqueue < 2)
		return;
	from = 1 + random_below(lock->nqueue - 1);
	to = random_below(from);
	claim = lock->queue[from];
	before = lock->queue[to];
	begin_operation("overtake in queue, of", from, to);
	model_overtake(claim, before);
	dl_engine_overtake(engine, claim->record, before->record, model.now, &fx);
	events.overtaken++;
	finish_operation(model_partition(lock), &fx, -1);
}

static void
op_look(void)
{
	Session    *session = random_session(true);

	/* One that has a reason to, mostly. */
	for (int i = 0; i < 4 && session != NULL && !is_ready(session); i++)
		session = random_session(true);
	if (session == NULL)
		return;
	if (session->reserving)
	{
		if (one_in(4))
		{
			leave(session);		/* could not reserve */
			return;
		}
	}
	come(session, one_in(3));
}

static void
op_leave(void)
{
	Session    *session = random_session(true);

	if (session != NULL)
		leave(session);
}

void
end_lease(Claim *claim, DlCause cause)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int			partition = model_partition(claim->lock);

	begin_operation("end token, cause", claim->token, cause);
	model_end(claim, cause);
	events.pinned += claim->state == DL_PINNED;
	dl_engine_end(engine, claim->record, cause, model.now, &fx);
	finish_operation(partition, &fx, -1);
}

/* Returns false, and refills the supply, when so long leases are not granted. */
bool
renew_lease(Claim *claim, int64 ttl)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int			partition = model_partition(claim->lock);
	bool		expected;
	bool		renewed;

	begin_operation("renew token, ttl", claim->token, ttl);
	expected = model_renew(claim, ttl);
	renewed = dl_engine_renew(engine, claim->record, ttl, model.now, &fx);
	verify(CHECK_BUCKETS, renewed == expected, "a renewal is %s", renewed ? "let through" : "refused");
	if (renewed && run.storing)
		check_told(claim);
	finish_operation(partition, &fx, -1);
	if (!renewed)
		refill(claim->lock->database, fx.wanted);
	events.renewals_refused += !renewed;
	return renewed;
}

/* Transactions that will release the lease come and go. */
static void
mark_releasing(Claim *claim)
{
	int			change = claim->nreleasing > 0 && one_in(2) ? -1 : 1;

	claim->nreleasing += change;
	claim->record->nreleasing += change;
	claim->record->lock->nreleasing += change;
}

/* Null when there is none. */
Claim *
find_lease(ModelLock *lock, int64 token)
{
	DlEffects	fx = DL_NO_EFFECTS;
	Claim	   *expected;
	DlLease    *found;

	begin_operation("find token, lock", token, lock - model.locks);
	expected = model_find(lock, token);
	found = dl_engine_find(engine, &lock->key, token, model.now, &fx);
	verify(CHECK_EXPIRY, found == NULL || (found->state == DL_LIVE && found->deadline > model.now),
		   "found a lease past its deadline");
	verify(CHECK_MODEL, found == (expected == NULL ? NULL : expected->record),
		   "found %s under token " INT64_FORMAT, found == NULL ? "nothing" : "a lease", token);
	finish_operation(model_partition(lock), &fx, -1);
	return expected;
}

/* The disk must not say less than the holder is told. */
void
store_and_renew(Claim *claim, int64 ttl)
{
	if (claim->durable && claim->image->ttl < ttl)
		start_renew_job(claim, ttl);
	else
		renew_lease(claim, ttl);
}

/* As renew and release do: find the lease first. */
static void
op_find(void)
{
	Claim	   *claim = random_holder(true);
	ModelLock  *lock;
	int64		token;

	if (claim == NULL)
		return;
	lock = one_in(8) ? random_lock() : claim->lock;
	token = one_in(8) ? claim->token - 1 + (int64) random_below(3) : claim->token;
	claim = find_lease(lock, token);
	if (claim == NULL)
		return;
	switch (random_below(6))
	{
		case 0:
			end_lease(claim, DL_RELEASED);
			break;
		case 1:
			mark_releasing(claim);
			break;
		case 2:
			break;
		default:
			store_and_renew(claim, claim->scope != DL_SCOPE_LEASE && one_in(7) ? 0 : random_duration());
			break;
	}
}

/* As the end of a transaction does: by pointer, be it expired or not told. */
static void
op_end(void)
{
	Claim	   *claim = random_holder(false);

	if (claim == NULL)
		return;
	if (one_in(2))
		end_lease(claim, DL_FORCED);
	else if (claim->state == DL_LIVE && one_in(2))
		end_lease(claim, DL_UNDONE);
	else
		end_lease(claim, DL_RELEASED);
}

static void
op_clock(void)
{
	int64		few = random_below(3);
	int64		time = model.now + few;
	Claim	   *claim = random_holder(false);

	switch (random_below(8))
	{
		case 0:
		case 1:
			time = model.now + random_duration();
			break;
		case 2:
			/* to a deadline, or just before or after */
			if (claim != NULL && claim->deadline < DL_FOREVER)
				time = Max(model.now, claim->deadline - 1 + few);
			break;
	}
	advance_to(time);
}

/* Let the sweep look at one lease.  Returns false when there was none. */
static bool
sweep_one(int partition)
{
	DlEffects	fx = DL_NO_EFFECTS;
	DlLease    *root = engine->partitions[partition].deadlines;
	bool		due = root != NULL && root->key <= model.now;
	int			n;

	begin_operation("sweep partition", partition, due);
	if (due)
	{
		Claim	   *claim = model.claims;

		while (claim->record != root || (claim->state != DL_LIVE && claim->state != DL_GRANTED))
			claim++;
		if (claim->deadline <= model.now)
			model_end(claim, DL_EXPIRED);
		model.counters[partition].swept++;
	}
	n = dl_engine_sweep(engine, partition, model.now, 1, &fx);
	verify(CHECK_MODEL, n == due, "the sweep looked at %d leases, should be %d", n, due);
	finish_operation(partition, &fx, -1);
	return n > 0;
}

void
sweep_partition(int partition)
{
	while (sweep_one(partition))
		;
	for (int i = 0; i < MAX_CLAIMS; i++)
	{
		Claim	   *claim = &model.claims[i];

		verify(CHECK_EXPIRY, (claim->state != DL_LIVE && claim->state != DL_GRANTED) ||
			   model_partition(claim->lock) != partition || claim->deadline > model.now,
			   "the sweep left an expired lease");
	}
}

static void
op_sweep(void)
{
	int			partition = model_partition(random_lock());

	if (!run.sweeping)
		return;
	if (one_in(2))
		sweep_partition(partition);
	else
		sweep_one(partition);
}

/*
 * Be told of one guard whose lease has ended.  It may be any of those not told
 * yet of the lease that is next.
 */
bool
take_stale(int partition)
{
	DlEffects	fx = DL_NO_EFFECTS;
	Claim	   *expected;
	DlGuard		copy;
	DlLease		lease;
	DlKey		key;
	bool		found;

	begin_operation("take stale guard from partition", partition, 0);
	expected = model_stale(partition);
	found = dl_engine_take_stale(engine, partition, &copy, &lease, &key);
	verify(CHECK_STALE, found == (expected != NULL), "a stale guard is missing, or one too many");
	if (found)
	{
		Guard	   *guard = model.guards;

		while (guard < model.guards + MAX_GUARDS &&
			   (guard->record == NULL || guard->pid != copy.pid))
			guard++;
		verify(CHECK_STALE, guard < model.guards + MAX_GUARDS && guard->claim == expected,
			   "the guard of process %d is told again, or before its turn", copy.pid);
		verify(CHECK_STALE, lease.token == expected->token && lease.cause == expected->cause &&
			   dl_same_key(&key, &expected->lock->key), "told of another lease");
		verify(CHECK_STALE, !copy.pinned && lease.npins == 0, "a stale guard is committing");
		guard->claim = NULL;
		events.stale++;
	}
	finish_operation(partition, &fx, -1);
	return found;
}

/* When there is no stale guard to be taken before. */
static bool
take_over(int partition)
{
	DlEffects	fx = DL_NO_EFFECTS;
	Claim	   *expected;
	DlLease		copy;
	DlKey		key;
	bool		found;

	begin_operation("take over from partition", partition, 0);
	expected = model_take_over(partition);
	found = dl_engine_take_over(engine, partition, &copy, &key);
	verify(CHECK_MODEL, found == (expected != NULL), "an ended lease is missing, or one too many");
	verify(CHECK_MODEL, !found || (copy.token == expected->token &&
								   copy.cause == expected->cause &&
								   strcmp(key.name, expected->lock->key.name) == 0 &&
								   key.database == expected->lock->key.database),
		   "another ended lease than the model's");
	finish_operation(partition, &fx, -1);
	return found;
}

/* All that is over, as the server does. */
void
log_over(int partition)
{
	while (take_stale(partition) || take_over(partition))
		;
}

static void
op_take_over(void)
{
	int			partition = model_partition(random_lock());

	if (take_stale(partition) && one_in(2))
		return;
	while (take_stale(partition))
		;
	if (take_over(partition) && one_in(2))
		log_over(partition);
}

void
end_backend(int backend)
{
	abandon_job(backend);
	if (sessions[backend].watched != NULL)
		unwatch(&sessions[backend]);
	end_transaction(&sessions[backend], true);
	sessions[backend].claims[0] = NULL;
	sessions[backend].frozen = sessions[backend].reserving = false;
	sessions[backend].request.generation++;
	give_up_tag(&sessions[backend]);

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		DlEffects	fx = DL_NO_EFFECTS;

		begin_operation("end of backend, in partition", backend, p);
		model_end_backend(p, backend);
		dl_engine_end_backend(engine, p, backend, model.now, &fx);
		finish_operation(p, &fx, backend);
	}
}

static void
op_end_backend(void)
{
	end_backend(random_below(model.nbackends));
}

/*
 * One removal may end leases of several locks: in which order is the engine's
 * affair.
 */
static void
adopt_order(int partition, int first)
{
	Claim	  **over = model.over[partition];
	int			i = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &engine->partitions[partition].over)
	{
		DlLease    *record = dlist_container(DlLease, lock_link, iter.cur);

		for (int j = i; i >= first && j < model.nover[partition]; j++)
			if (over[j]->record == record)
			{
				Claim	   *claim = over[j];

				over[j] = over[i];
				over[i] = claim;
				break;
			}
		i++;
	}
}

static void
op_remove(void)
{
	ModelLock  *lock = random_lock();
	Oid			extension = one_in(3) ? InvalidOid : lock->key.extension;

	if (!disk_drop(lock->key.database, extension))
		return;
	forget_owed(lock->key.database, extension);
	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		int			nover = model.nover[p];

		begin_operation("remove database, extension", lock->key.database, extension);
		model_remove(p, lock->key.database, extension);
		dl_engine_remove(engine, p, lock->key.database, extension, model.now, &fx);
		adopt_order(p, nover);
		finish_operation(p, &fx, -1);
	}
}

static void
op_freeze(void)
{
	Session    *session = &sessions[random_below(model.nbackends)];

	if (!run.freezing)
		return;
	finish_critical_section(session - sessions);
	session->frozen = !session->frozen && one_in(2);
	note(session->frozen ? "freeze backend" : "thaw backend", session - sessions, 0);
}

/* ---- Transactions that rely on leases ---- */

static int
partition_of_guard(const Guard *guard)
{
	return model_partition(guard->lock);
}

/* Null when all guards are in use. */
Guard *
make_guard(Claim *claim)
{
	DlEffects	fx = DL_NO_EFFECTS;
	Guard	   *guard;
	DlGuard    *record;

	begin_operation("guard by token", claim->token, 0);
	guard = model_guard(claim);
	record = dl_engine_guard(engine, claim->record, guard == NULL ? 0 : guard->pid);
	verify(CHECK_RECORDS, (record != NULL) == (guard != NULL),
		   record == NULL ? "no guard, though not all are in use" : "a guard too many");
	if (guard != NULL)
		guard->record = record;
	events.guards += guard != NULL;
	events.no_guard += guard == NULL;
	finish_operation(model_partition(claim->lock), &fx, -1);
	return guard;
}

/* Said of the engine alone: who may commit has the lease, and nobody else. */
static void
check_in_force(const Guard *guard)
{
	const DlLease *lease = guard->record->lease;

	verify(CHECK_GUARDS, lease != NULL && lease->state == DL_LIVE && lease->deadline > model.now,
		   "process %d relies on a lease that is over", guard->pid);
}

/* The transaction commits.  Returns whether it may. */
bool
pin(Guard *guard)
{
	DlEffects	fx = DL_NO_EFFECTS;
	bool		expected;
	bool		good;

	begin_operation("pin by process", guard->pid, 0);
	expected = model_pin(guard);
	good = dl_engine_pin(engine, partition_of_guard(guard), guard->record, model.now);
	verify(CHECK_GUARDS, good == expected, "a commit is %s", good ? "let through" : "refused");
	if (good)
		check_in_force(guard);
	events.commits += good;
	events.refused += !good;
	finish_operation(partition_of_guard(guard), &fx, -1);
	return good;
}

/*
 * The transaction takes the tag, since it is about to be prepared.  Returns
 * false when it would have to wait for somebody who passes.
 */
bool
hold_tag(Guard *guard)
{
	DlMode		mode = model_tag_mode(guard);

	if (!model_can_hold(guard->lock, mode))
		return false;
	note("process holds tag in mode", guard->pid, mode);
	guard->lock->nheld[mode]++;
	guard->holding = true;
	return true;
}

static void
free_tag(ModelLock *lock, DlMode mode)
{
	lock->nheld[mode]--;
	lock->tag_freed_at = model.now;
}

/* It is prepared, and keeps the tag, or else it fails and does not. */
bool
prepare(Guard *guard)
{
	DlEffects	fx = DL_NO_EFFECTS;
	bool		expected;
	bool		good;

	begin_operation("bar by process", guard->pid, 0);
	expected = model_bar(guard);
	good = dl_engine_bar(engine, partition_of_guard(guard), guard->record, model.now);
	verify(CHECK_GUARDS, good == expected, "a preparation is %s", good ? "let through" : "refused");
	if (good)
		check_in_force(guard);
	guard->holding = false;
	guard->prepared = good;
	if (good)
		guard->lock->nprepared[model_tag_mode(guard)]++;
	else
		free_tag(guard->lock, model_tag_mode(guard));
	events.prepared += good;
	events.refused += !good;
	finish_operation(partition_of_guard(guard), &fx, -1);
	return good;
}

void
unguard(Guard *guard)
{
	DlEffects	fx = DL_NO_EFFECTS;
	DlGuard    *record = guard->record;

	begin_operation("unguard by process, pinned", guard->pid, guard->pinned);
	if (guard->holding)
		free_tag(guard->lock, model_tag_mode(guard));
	model_unguard(guard);
	dl_engine_unguard(engine, partition_of_guard(guard), record, model.now, &fx);
	finish_operation(partition_of_guard(guard), &fx, -1);
}

/* A prepared transaction is over. */
void
end_prepared(ModelLock *lock, DlMode mode)
{
	note("end of a prepared transaction, lock, mode", lock - model.locks, mode);
	lock->nprepared[mode]--;
	free_tag(lock, mode);
}

static void
op_guard(void)
{
	Claim	   *claim = random_holder(false);
	int			n = one_in(40) ? MAX_GUARDS : 1;

	if (!run.guarding || claim == NULL || claim->state != DL_LIVE)
		return;
	while (n-- > 0 && make_guard(claim) != NULL)
		;
}

/* One whose lease is live, mostly. */
static Guard *
good_guard(void)
{
	Guard	   *guard = random_guard();

	for (int i = 0; i < 4 && guard != NULL; i++)
	{
		if (guard->claim != NULL && guard->claim->state == DL_LIVE)
			break;
		guard = random_guard();
	}
	return guard;
}

static void
op_pin(void)
{
	Guard	   *guard = good_guard();

	if (guard != NULL && !guard->pinned)
		pin(guard);
}

static void
op_prepare(void)
{
	Guard	   *guard = good_guard();

	if (!run.preparing || guard == NULL || guard->pinned)
		return;
	if (!guard->holding && (!hold_tag(guard) || one_in(2)))
		return;
	prepare(guard);
}

static void
op_unguard(void)
{
	Guard	   *guard;

	for (int n = one_in(20) ? MAX_GUARDS / 2 : 1; n > 0 && (guard = random_guard()) != NULL; n--)
		unguard(guard);
}

static void
op_end_prepared(void)
{
	ModelLock  *lock = random_lock();
	DlMode		mode = random_below(NMODES);

	for (int n = one_in(8) ? MAX_GUARDS : 1; n > 0 && lock->nprepared[mode] > 0; n--)
		end_prepared(lock, mode);
}

/*
 * As the worker does: the count of the barriers forgotten is read first, then
 * the tags are looked at, and if none is held that count is settled.  A lot
 * may happen in between.
 */
static void
op_settle(void)
{
	bool		held = false;

	do
	{
		switch (model.settle_stage++)
		{
			case 0:
				model.settle_seen = pg_atomic_read_u64(&engine->barriers_forgotten);
				break;
			case 1:
				for (int i = 0; i < model.nlocks; i++)
					for (DlMode mode = 0; mode < NMODES; mode++)
						held = held || model.locks[i].nheld[mode] > 0;
				if (held)
					model.settle_stage = 0;
				break;
			default:
				note("settle barriers", model.settle_seen, 0);
				pg_atomic_write_u64(&engine->barriers_settled, model.settle_seen);
				events.settled += model.settled != model.settle_seen;
				model.settled = model.settle_seen;
				model.settle_stage = 0;
				break;
		}
	} while (model.settle_stage > 0 && one_in(2));
}

/* ---- The supply, the disk, and crashes ---- */

/*
 * Close the buckets that nothing lives in, as the server does now and then.
 */
static void
op_lower(void)
{
	int			database = random_below(NDATABASES);

	if (!run.narrow)
		return;
	for (int kept = 0; kept < DL_NKEPT; kept++)
	{
		int			n = model.nbuckets[database][kept];

		while (n > 0 && pg_atomic_read_u32(&supplies[database].live[kept][n - 1]) == 0)
			n--;
		set_nbuckets(database, kept, n);
	}
}

static void
op_fail(void)
{
	int			job = random_job();

	if (job >= 0)
	{
		events.failed++;
		fail_job(job);
	}
}

static void
op_clean(void)
{
	if (run.storing)
		start_clean_job(random_lock()->table);
}

static void
op_disk(void)
{
	int			table = random_lock()->table;

	if (!run.storing)
		return;
	if (tables[table].nopen == 0 && !one_in(4))
	{
		note("compact table", table, 0);
		disk_compact(table);
	}
	else if (one_in(4))
		disk_flush_some();
}

/* Use a database for the first time since the crash. */
static bool
use_database(int database)
{
	int64		since = model.now - (one_in(2) ? 0 : random_duration());

	return attach_database(database, Max(since, 0), !one_in(4));
}

static void
op_attach(void)
{
	int			database = random_below(NDATABASES);

	if (!model.attached[database])
		use_database(database);
}

static void
restart(void)
{
	for (int d = 0; d < NDATABASES; d++)
	{
		model.opens_at[d] = one_in(2) ? 0 : model.now + random_duration();
		for (int kept = 0; kept < DL_NKEPT; kept++)
			model.nbuckets[d][kept] = run.narrow ? random_below(10) : DL_TTL_BUCKETS;
	}
	crash(one_in(4));
}

static void
op_crash(void)
{
	if (!run.storing)
		return;
	check_disk();
	restart();
	/* With as many leases of an idle server as max_leases allows at least. */
	while (!use_database(model.locks[random_below(model.nlocks)].database))
	{
		verify(CHECK_RECOVERY, model.max_leases < MAX_CLAIMS, "leases do not fit");
		model.max_leases = MAX_CLAIMS;
		restart();
	}
}

/* A crash is most telling while something is not flushed. */
static void
op_store(void)
{
	int			job = random_job();

	for (int n = 1 + random_below(4); n > 0 && job >= 0; n--)
		if (!step_job(job))
			job = random_job();
	if (disk_pending() > 0 && one_in(40))
		op_crash();
}

static const struct
{
	void		(*function) (void);
	int			weight;
}			operations[] =
{
	{op_request, 260},
	{op_look, 260},
	{op_leave, 40},
	{op_find, 150},
	{op_end, 60},
	{op_clock, 120},
	{op_sweep, 30},
	{op_take_over, 70},
	{op_end_backend, 4},
	{op_remove, 2},
	{op_freeze, 24},
	{op_guard, 60},
	{op_pin, 40},
	{op_prepare, 40},
	{op_unguard, 80},
	{op_end_prepared, 80},
	{op_settle, 20},
	{op_lower, 10},
	{op_store, 300},
	{op_fail, 6},
	{op_clean, 4},
	{op_disk, 12},
	{op_crash, 1},
	{op_attach, 20},
	{op_repeat, 60},
	{op_end_transaction, 40},
	{op_watch, 60},
	{op_overtake, 4},
	{op_help, 4},
};

void
random_operation(void)
{
	static int	total = 0;
	int			chosen;
	int			i = 0;

	if (total == 0)
		for (int j = 0; j < lengthof(operations); j++)
			total += operations[j].weight;
	chosen = random_below(total);

	while (chosen >= operations[i].weight)
		chosen -= operations[i++].weight;
	operations[i].function();
	if (run.prompt)
		let_come();
	if (run.storing && step % FULL_CHECK == 0)
		check_disk();
}

/* Clear all that is on disk still. */
static void
clean_up(void)
{
	int			job;

	for (int i = 0; i < model.nlocks; i++)
	{
		if (!model.attached[model.locks[i].database])
			continue;
		start_clean_job(model.locks[i].table);
		while ((job = random_job()) >= 0)
			verify(CHECK_IMAGES, step_job(job), "an idle lease table cannot be cleared");
	}
}

/* End all leases. */
static void
end_leases(void)
{
	Claim	   *claim;
	Guard	   *guard;

	advance_to(model.now + 3600 * SECS);
	for (int p = 0; p < DL_NPARTITIONS; p++)
		sweep_partition(p);
	while ((claim = random_holder(false)) != NULL)
		end_lease(claim, DL_FORCED);
	while ((guard = random_guard()) != NULL)
	{
		log_over(partition_of_guard(guard));
		unguard(guard);
	}
	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		log_over(p);
		verify(CHECK_HEAP, engine->partitions[p].deadlines == NULL, "the heap is not empty");
	}
	clean_up();
}

/* End everything: every record must come back. */
void
end_everything(void)
{
	for (int b = 0; b < model.nbackends; b++)
	{
		sessions[b].frozen = false;
		if (sessions[b].claims[0] != NULL && one_in(2))
			leave(&sessions[b]);
		else
			end_backend(b);
	}
	for (int b = 0; b < model.nbackends; b++)
		end_backend(b);
	for (int job = random_job(); job >= 0; job = random_job())
		fail_job(job);
	end_leases();
	for (int d = 0; d < NDATABASES; d++)
		if (!model.attached[d])
		{
			verify(CHECK_RECOVERY, use_database(d), "leases do not fit");
			end_leases();
		}
	check_disk();
	check_all_partitions();
	events.forgotten += model.forgotten;
	verify(CHECK_RECORDS, model_used() == 0 && model_images_used() == 0,
		   "records in use after everything has ended");
}
