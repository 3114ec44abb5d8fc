/*-------------------------------------------------------------------------
 *
 * sessions.c
 *	  What sessions do: they ask for leases, sleep, and come to look.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

static ModelLock *
lock_of_key(const DlKey *key)
{
	for (int i = 0;; i++)
		if (dl_same_key(&model.locks[i].key, key))
			return &model.locks[i];
}

/* The lock of one part of the session's request. */
ModelLock *
lock_of_session(const Session *session, int part)
{
	return lock_of_key(&session->keys[part]);
}

static uint32
partitions_of(const Session *session)
{
	uint32		partitions = 0;

	for (int i = 0; i < session->request.nkeys; i++)
		partitions |= UINT32_C(1) << dl_partition_of(session->keys[i].hash);
	return partitions;
}

/* Has another session made the same request, and taken it over? */
bool
is_replaced(const Session *session)
{
	return session->claims[0] != NULL && session->records[0]->serial != session->serials[0];
}

/* ---- Barriers, and the advisory lock ---- */

/* Could the session pass now all that bars its request? */
static bool
can_pass(const Session *session)
{
	for (int i = 0; i < session->request.nkeys; i++)
		if ((session->request.barred >> i & 1) != 0 &&
			!model_can_pass(lock_of_session(session, i), session->request.mode))
			return false;
	return true;
}

/* Pass the barriers in front of the session's request, which must be possible. */
static void
take_tag(Session *session)
{
	note("backend passes for mode", session - sessions, session->request.mode);
	session->tags = session->request.barred;
	for (int i = 0; i < session->request.nkeys; i++)
		if ((session->tags >> i & 1) != 0)
			lock_of_session(session, i)->npassing[session->request.mode]++;
	session->has_tag = true;
	session->request.bridging = false;
	events.passed++;
}

void
give_up_tag(Session *session)
{
	for (int i = 0; i < session->request.nkeys; i++)
		if ((session->tags >> i & 1) != 0)
			lock_of_session(session, i)->npassing[session->request.mode]--;
	session->tags = 0;
	session->has_tag = session->passing = false;
}

/* ---- Requests ---- */

/* Its transaction may roll back, and then undoes the lease. */
static void
note_acquired(Session *session, DlLease *record)
{
	if (session->nacquired == lengthof(session->acquired))
		end_transaction(session, true);
	session->acquired[session->nacquired].record = record;
	session->acquired[session->nacquired++].serial = record->serial;
}

/* What the session does about the verdict on its request. */
static void
react(Session *session, DlVerdict verdict)
{
	int			n = session->request.nkeys;

	session->sleep_until = session->help_at = DL_FOREVER;
	for (int i = 0; i < n; i++)
	{
		int			ahead = verdict == DL_QUEUED ? dl_engine_ready_ahead(session->records[i]) : -1;

		if (ahead >= 0)
		{
			session->ahead = ahead;
			session->help_at = model.now + DL_FALLBACK_USECS;
		}
		session->sleep_until = Min(session->sleep_until, session->records[i]->timer);
	}
	switch (verdict)
	{
		case DL_TOLD:
			for (int i = 0; i < n; i++)
			{
				verify(CHECK_PARTS, session->claims[i]->token == session->claims[0]->token &&
					   session->records[i]->token == session->records[0]->token,
					   "a request is told two tokens");
				verify(CHECK_PARTS, session->claims[i]->state == DL_LIVE,
					   "a request is told, but not all of it");
				if (run.storing)
					check_told(session->claims[i]);
			}
			events.several += n > 1;
			session->claims[0] = NULL;
			break;
		case DL_UNTOLD:
			/* Another may have been granted it, with another time to live. */
			session->ttl = Max(session->request.ttl, session->records[0]->ttl);
			start_acquire_job(session - sessions);
			break;
		case DL_QUEUED:
			verify(CHECK_WAKES, session->sleep_until > model.now, "the timer is past");
			break;
		case DL_NO_TOKEN:
			session->reserving = true;
			break;
		case DL_BARRED:
			verify(CHECK_BARRIER, session->request.barred == model.barred,
				   "barred from %llx, should be %llx", (unsigned long long) session->request.barred,
				   (unsigned long long) model.barred);
			session->passing = true;
			break;
		default:
			session->woken = true;	/* comes to leave */
			break;
	}
}

static void
check_entered(const Session *session)
{
	const DlRequest *request = &session->request;

	for (int i = 0; i < request->nkeys; i++)
	{
		const DlLease *record = session->records[i];

		verify(CHECK_MODEL, record->generation == request->generation &&
			   record->backend == request->backend &&
			   record->pid == request->pid && record->owner == request->owner &&
			   strcmp(record->holder, request->holder) == 0 &&
			   strcmp(record->request_id, request->request_id) == 0, "request not copied");
	}
}

/*
 * The request was made before: the session is told that token again.  A
 * transaction that is open elsewhere must not undo it any more.
 */
static void
take_back(Session *session, Claim **claims, DlLease **records)
{
	DlRequest  *request = &session->request;

	for (int i = 0; i < request->nkeys; i++)
	{
		DlLease    *record = records[i];

		verify(CHECK_REQUEST_ID, claims[i] != NULL && record == claims[i]->record &&
			   record->token == records[0]->token && record->deadline > model.now,
			   "another lease is taken for the one of the request");
		if (record->backend == request->backend && record->generation == request->generation)
			continue;
		if (!record->open && record->scope == DL_SCOPE_LEASE)
			continue;
		model_adopt(claims[i], request);
		dl_engine_adopt(engine, record, request);
		if (record->open)
			note_acquired(session, record);
		events.moved++;
	}
}

/* Enter the session's request. */
DlVerdict
enter(Session *session)
{
	DlRequest  *request = &session->request;
	DlEffects	fx = DL_NO_EFFECTS;
	ModelLock  *locks[MAX_PARTS] = {NULL};
	DlLease    *records[DL_KEYS_MAX] = {NULL};
	Claim	   *claims[MAX_PARTS] = {NULL};
	bool		entered;
	DlVerdict	expected;
	DlVerdict	verdict;

	for (int i = 0; i < request->nkeys; i++)
		locks[i] = lock_of_session(session, i);
	begin_operation("request by backend, lock", request->backend, locks[0] - model.locks);
	request->entered = false;
	request->other[0] = '\0';
	model.other = NULL;
	expected = model_request(request, locks, claims);
	verdict = dl_engine_request(engine, request, model.now, 0, records, &fx);
	memcpy(session->wanted, fx.wanted, sizeof(session->wanted));
	session->stored = false;
	verify(CHECK_MODEL, verdict == expected, "request: verdict %d, should be %d", verdict, expected);
	events.verdicts[0][verdict]++;
	switch (verdict)
	{
		case DL_REPEATED:
		case DL_FULL:
		case DL_BUSY:
		case DL_OTHER_LIMIT:
		case DL_OTHER_REQUEST:
		case DL_EXPIRED_ID:
		case DL_REPLACED:
			entered = false;
			break;
		default:
			entered = claims[0] != NULL;
			break;
	}
	verify(CHECK_MODEL, request->entered == entered, "a request has %sentered",
		   request->entered ? "" : "not ");
	if (verdict == DL_OTHER_LIMIT)
		verify(CHECK_LIMIT, strcmp(request->other, model.other->key.name) == 0,
			   "a refusal speaks of another lock");
	if (verdict == DL_OTHER_REQUEST)
		verify(CHECK_REQUEST_ID, request->other[0] != '\0', "a refusal speaks of no lock");
	if (verdict == DL_BARRED)
		verify(CHECK_BARRIER, request->barred == model.barred, "barred from another lock");
	if (verdict == DL_REPEATED)
		take_back(session, claims, records);
	if (entered)
	{
		for (int i = 0; i < request->nkeys; i++)
		{
			session->claims[i] = claims[i];
			session->records[i] = claims[i]->record = records[i];
			session->serials[i] = claims[i]->serial = records[i]->serial;
			if (claims[i]->image != NULL)
				claims[i]->image->record = records[i]->image;
		}
		check_entered(session);
		session->woken = session->reserving = false;
		give_up_tag(session);
		react(session, verdict);
		if (verdict == DL_TOLD)
			for (int i = 0; i < request->nkeys; i++)
				note_acquired(session, records[i]);
	}
	finish_in(partitions_of(session), &fx, request->backend);
	if (verdict == DL_REPEATED && one_in(2))
		for (int i = 0; i < request->nkeys; i++)
		{
			Claim	   *claim = find_lease(locks[i], records[i]->token);

			if (claim != NULL)
				store_and_renew(claim, request->ttl);
		}
	return verdict;
}

/*
 * Enter it, refill the supply when it is short of something, and pass a barrier or else
 * queue in front of it.
 */
void
acquire(Session *session)
{
	DlRequest  *request = &session->request;
	int			database = lock_of_session(session, 0)->database;

	for (int i = 0; i < 6; i++)
	{
		DlVerdict	verdict;

		if (session->has_tag)
			request->pass = DL_PASS_HELD;
		verdict = enter(session);
		request->pass = DL_PASS_NONE;
		if (session->claims[0] != NULL)
			return;
		give_up_tag(session);
		switch (verdict)
		{
			case DL_NO_TOKEN:
				if (one_in(3))
					return;
				refill(database, session->wanted);
				break;
			case DL_BARRED:
				if (can_pass(session) && !(request->bridging && one_in(2)))
				{
					take_tag(session);
					if (!run.prompt && one_in(4))
						return; /* enters it later */
				}
				else if (request->may_wait)
					request->pass = DL_PASS_QUEUE;
				else
					return;
				break;
			default:
				return;
		}
	}
	give_up_tag(session);
}

void
leave(Session *session)
{
	DlEffects	fx = DL_NO_EFFECTS;
	bool		replaced = is_replaced(session);

	abandon_job(session - sessions);
	begin_operation("leave by backend, state", session - sessions, session->claims[0]->state);
	if (!replaced)
		for (int i = 0; i < session->request.nkeys; i++)
		{
			model_leave(session->claims[i]);
			dl_engine_leave(engine, dl_partition_of(session->keys[i].hash),
							session->records[i], model.now, &fx);
		}
	session->claims[0] = NULL;
	session->reserving = false;
	give_up_tag(session);
	finish_in(partitions_of(session), &fx, session - sessions);
}

void
look(Session *session)
{
	DlRequest  *request = &session->request;
	DlEffects	fx = DL_NO_EFFECTS;
	DlVerdict	expected;
	DlVerdict	verdict;

	if (is_replaced(session))
	{
		note("backend is replaced", session - sessions, 0);
		events.verdicts[1][DL_REPLACED]++;
		session->woken = session->reserving = false;
		give_up_tag(session);
		session->claims[0] = NULL;
		return;
	}
	begin_operation("look by backend, state", session - sessions, session->claims[0]->state);
	session->woken = session->reserving = false;
	for (int i = 0; i < request->nkeys; i++)
	{
		if ((session->tags >> i & 1) != 0)
		{
			model_pass(session->claims[i]);
			dl_engine_pass(session->records[i]);
		}
		if (session->stored)
		{
			model_stored(session->claims[i], session->ttl);
			dl_engine_stored(session->records[i], session->serials[i], session->ttl);
		}
	}
	expected = model_look(request, session->claims);
	verdict = dl_engine_look(engine, request, session->records, model.now, 0, &fx);
	verify(CHECK_MODEL, verdict == expected, "look: verdict %d, should be %d", verdict, expected);
	events.verdicts[1][verdict]++;
	memcpy(session->wanted, fx.wanted, sizeof(session->wanted));
	give_up_tag(session);
	react(session, verdict);
	if (verdict == DL_TOLD)
		for (int i = 0; i < request->nkeys; i++)
			note_acquired(session, session->records[i]);
	finish_in(partitions_of(session), &fx, session - sessions);
	if (verdict == DL_AGAIN || verdict == DL_GONE)
	{
		leave(session);
		request->again = true;
		if (verdict == DL_AGAIN && one_in(2))
			acquire(session);
	}
}

/*
 * Whoever stands behind a request for several locks grants it in the place of a
 * session that has stopped: "actor" in that of "backend".
 */
void
grant_for(int backend, int actor)
{
	DlEffects	fx = DL_NO_EFFECTS;
	uint32		partitions = 0;
	bool		expected;
	bool		done;

	for (int i = 0; i < MAX_CLAIMS; i++)
		if (model.claims[i].state == DL_WAITING && model.claims[i].backend == backend)
			partitions |= UINT32_C(1) << model_partition(model.claims[i].lock);
	begin_operation("grant for backend", backend, 0);
	expected = model_grant_for(backend);
	done = dl_engine_grant_for(engine, backend, partitions, model.now, &fx);
	verify(CHECK_PARTS, done == expected, "it %s a token", done ? "lacks" : "does not lack");
	events.helped += partitions != 0 && sessions[backend].claims[0] != NULL &&
		sessions[backend].claims[0]->state == DL_GRANTED;
	/* Those behind it are woken since it is ready, which it is no longer. */
	dl_effects_wake(&fx);
	for (int b = 0; b < model.nbackends; b++)
		sessions[b].just_woken = false;
	finish_in(partitions, &fx, actor);
	if (!done)
		refill(lock_of_session(&sessions[backend], 0)->database, fx.wanted);
}

/*
 * The open transaction of a session ends.  A rollback undoes what it acquired,
 * but for what another session has taken over.
 */
void
end_transaction(Session *session, bool commit)
{
	int			n = session->nacquired;

	session->nacquired = 0;
	for (int i = 0; i < n; i++)
	{
		DlLease    *record = session->acquired[i].record;
		Claim	   *claim = model_claim_of(record, session->acquired[i].serial);
		bool		ours = record->serial == session->acquired[i].serial &&
			record->state == DL_LIVE;

		verify(CHECK_REQUEST_ID, ours == (claim != NULL && claim->state == DL_LIVE &&
										  claim->undoer == session - sessions),
			   "a transaction %s the lease under token " INT64_FORMAT,
			   ours ? "undoes what is not its own" : "has lost", record->token);
		if (!ours)
			continue;
		if (commit)
		{
			claim->undoer = -1;
			record->open = false;
		}
		else
			end_lease(claim, DL_UNDONE);
	}
}

/* ---- Watching ---- */

/* Look at what the session watches; stop when that has changed. */
static void
look_at_newest(Session *session)
{
	ModelLock  *lock = session->watched;
	DlEffects	fx = DL_NO_EFFECTS;
	int64		expected_deadline;
	int64		deadline;
	int64		expected;
	int64		newest;
	bool		changed;

	session->woken = false;
	if (engine->watchers[session - sessions].lock == NULL)
	{
		session->watched = NULL;	/* the extension is gone */
		return;
	}
	begin_operation("watch by backend, lock", session - sessions, lock - model.locks);
	expected = model_newest(lock, &expected_deadline);
	newest = dl_engine_newest(engine, dl_engine_find_lock(engine, &lock->key), model.now,
							  &deadline, &fx);
	verify(CHECK_WATCH, newest == expected && deadline == expected_deadline,
		   "the newest token is " INT64_FORMAT ", should be " INT64_FORMAT, newest, expected);
	session->sleep_until = deadline;
	session->first_watcher = lock->watchers[0] == session - sessions;
	if (!session->first_watcher && deadline < DL_FOREVER)
		session->sleep_until += DL_FALLBACK_USECS;
	changed = newest != session->seen;
	events.watched += changed;
	session->seen = newest;
	finish_in(UINT32_C(1) << model_partition(lock), &fx, session - sessions);
	if (changed && one_in(2))
		unwatch(session);
}

void
watch(Session *session, ModelLock *lock)
{
	DlEffects	fx = DL_NO_EFFECTS;
	int64		deadline;

	begin_operation("start to watch, backend, lock", session - sessions, lock - model.locks);
	model_watch(lock, session - sessions);
	verify(CHECK_WATCH, dl_engine_watch(engine, &lock->key, &supplies[lock->database],
										session - sessions) != NULL, "no lock to watch");
	session->watched = lock;
	session->woken = false;
	session->seen = model_newest(lock, &deadline);
	verify(CHECK_WATCH, dl_engine_newest(engine, dl_engine_find_lock(engine, &lock->key), model.now,
										 &session->sleep_until, &fx) == session->seen &&
		   session->sleep_until == deadline, "another newest token than the model's");
	session->first_watcher = lock->nwatchers == 1;
	if (!session->first_watcher && deadline < DL_FOREVER)
		session->sleep_until += DL_FALLBACK_USECS;
	finish_in(UINT32_C(1) << model_partition(lock), &fx, session - sessions);
}

void
unwatch(Session *session)
{
	DlEffects	fx = DL_NO_EFFECTS;
	ModelLock  *lock = session->watched;

	begin_operation("unwatch by backend", session - sessions, 0);
	if (engine->watchers[session - sessions].lock != NULL)
		model_unwatch(lock, session - sessions);
	dl_engine_unwatch(engine, session - sessions, &fx);
	session->watched = NULL;
	finish_in(UINT32_C(1) << model_partition(lock), &fx, session - sessions);
}

/* ---- When they come ---- */

/* Whoever waits for a tag looks neither at its latch nor at its timer. */
bool
is_ready(const Session *session)
{
	if (session->frozen)
		return false;
	if (session->watched != NULL)
		return session->woken || session->sleep_until <= model.now;
	if (session->claims[0] == NULL || is_storing(session - sessions))
		return false;
	if (session->passing)
		return session->has_tag || can_pass(session);
	return session->woken || session->reserving ||
		Min(session->sleep_until, session->help_at) <= model.now;
}

/* Do what the session was off to, if it can. */
static void
get_ready(Session *session)
{
	if (session->reserving)
		refill(lock_of_session(session, 0)->database, session->wanted);
	if (session->passing && !session->has_tag && can_pass(session))
		take_tag(session);
}

/* Come to see to whatever it waits for.  "late": it may look later after all. */
void
come(Session *session, bool late)
{
	if (session->watched != NULL)
	{
		look_at_newest(session);
		return;
	}
	if (!session->woken && !session->passing && !is_replaced(session) && session->help_at <= model.now)
		grant_for(session->ahead, session - sessions);
	get_ready(session);
	if (!(session->has_tag && late))
		look(session);
}

/* Let come whoever has a reason to, until nobody has. */
void
let_come(void)
{
	for (int rounds = 0;; rounds++)
	{
		bool		any = false;

		for (int b = 0; b < model.nbackends; b++)
			if (is_ready(&sessions[b]))
			{
				come(&sessions[b], false);
				any = true;
			}
			else if (!sessions[b].frozen && step_job(b))
				any = true;
		if (!any)
			break;
		verify(CHECK_WAKES, rounds < 1000, "sessions never come to rest");
	}
	check_takeover();
}

void
advance_to(int64 time)
{
	note("clock to", time, 0);
	while (run.prompt)
	{
		int64		next = DL_FOREVER;

		for (int b = 0; b < model.nbackends; b++)
		{
			Session    *session = &sessions[b];

			if (session->watched != NULL && !session->frozen)
				next = Min(next, session->sleep_until);
			if (session->claims[0] != NULL && !session->frozen && !session->passing &&
				!is_storing(b))
				next = Min(next, Min(session->sleep_until, session->help_at));
		}
		if (next > time)
			break;
		model.now = Max(model.now, next);
		let_come();
	}
	model.now = time;
	if (run.prompt)
		let_come();
}

/* Few values, so that ids share them. */
uint32
id_hash_of(const char *request_id)
{
	return request_id[0] == '\0' ? 0 : 33 * (request_id[1] % 3);
}

void
fill_request(int backend, ModelLock *lock, DlMode mode, DlScope scope, int64 ttl)
{
	Session    *session = &sessions[backend];
	DlRequest  *request = &session->request;

	session->keys[0] = lock->key;
	request->keys = session->keys;
	request->nkeys = 1;
	request->supply = &supplies[lock->database];
	request->mode = mode;
	request->scope = scope;
	request->limit = 0;
	request->ttl = ttl;
	request->durable = false;
	request->may_wait = true;
	request->again = request->bridging = false;
	request->pass = DL_PASS_NONE;
	request->barred = 0;
	request->backend = backend;
	request->pid = 1000 + backend;
	request->owner = 10;
	request->request_id[0] = '\0';
	request->id_hash = 0;
	snprintf(request->holder, sizeof(request->holder), "%d", backend);
}
