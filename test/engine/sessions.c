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
		if (memcmp(&model.locks[i].key, key, sizeof(DlKey)) == 0)
			return &model.locks[i];
}

ModelLock *
lock_of_session(const Session *session)
{
	return lock_of_key(&session->key);
}

/* Pass the barrier in front of the session's request, which must be possible. */
static void
take_tag(Session *session)
{
	note("backend passes for mode", session - sessions, session->request.mode);
	lock_of_session(session)->npassing[session->request.mode]++;
	session->has_tag = true;
	events.passed++;
}

void
give_up_tag(Session *session)
{
	if (session->has_tag)
		lock_of_session(session)->npassing[session->request.mode]--;
	session->has_tag = session->passing = false;
}

/* What the session does about the verdict on its request. */
static void
react(Session *session, DlVerdict verdict)
{
	Claim	   *claim = session->claim;

	switch (verdict)
	{
		case DL_TOLD:
			session->claim = NULL;
			if (run.storing)
				check_told(claim);
			break;
		case DL_UNTOLD:
			start_acquire_job(session - sessions);
			break;
		case DL_QUEUED:
			session->sleep_until = claim->record->timer;
			verify(CHECK_WAKES, session->sleep_until > model.now, "the timer is past");
			break;
		case DL_NO_TOKEN:
			session->sleep_until = claim->record->timer;
			session->reserving = true;
			break;
		case DL_BARRED:
			session->sleep_until = claim->record->timer;
			session->passing = true;
			break;
		default:
			session->woken = true;	/* comes to leave */
			break;
	}
}

/* Enter the session's request. */
DlVerdict
enter(Session *session)
{
	DlRequest  *request = &session->request;
	ModelLock  *lock = lock_of_key(request->keys);
	DlEffects	fx = DL_NO_EFFECTS;
	DlLease    *record = NULL;
	Claim	   *claim = NULL;
	DlVerdict	expected;
	DlVerdict	verdict;

	begin_operation("request by backend, lock", request->backend, lock - model.locks);
	request->entered = false;
	expected = model_request(lock, request, &claim);
	verdict = dl_engine_request(engine, request, model.now, 0, &record, &fx);
	memcpy(session->wanted, fx.wanted, sizeof(session->wanted));
	session->stored = false;
	verify(CHECK_MODEL, verdict == expected, "request: verdict %d, should be %d", verdict, expected);
	events.verdicts[0][verdict]++;
	verify(CHECK_MODEL, request->entered == (claim != NULL), "a request has %sentered",
		   request->entered ? "" : "not ");
	if (claim != NULL)
	{
		claim->record = record;
		claim->serial = record->serial;
		if (claim->durable)
			claim->image->record = record->image;
		verify(CHECK_MODEL, record->generation == request->generation &&
			   record->pid == request->pid && record->owner == request->owner &&
			   strcmp(record->holder, request->holder) == 0, "request not copied");
	}
	if (claim != NULL)
	{
		session->claim = claim;
		session->record = record;
		session->woken = session->reserving = false;
		give_up_tag(session);
		react(session, verdict);
	}
	finish_operation(model_partition(lock), &fx, request->backend);
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
	ModelLock  *lock = lock_of_session(session);

	for (int i = 0; i < 6; i++)
	{
		DlVerdict	verdict;

		if (session->has_tag)
			request->pass = DL_PASS_HELD;
		verdict = enter(session);
		request->pass = DL_PASS_NONE;
		if (session->claim != NULL)
			return;
		give_up_tag(session);
		switch (verdict)
		{
			case DL_NO_TOKEN:
				if (one_in(3))
					return;
				refill(lock->database, session->wanted);
				break;
			case DL_BARRED:
				if (model_can_pass(lock, request->mode))
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
	Claim	   *claim = session->claim;
	int			partition = model_partition(claim->lock);

	abandon_job(session - sessions);
	begin_operation("leave by backend, state", claim->backend, claim->state);
	session->claim = NULL;
	session->reserving = false;
	give_up_tag(session);
	model_leave(claim);
	dl_engine_leave(engine, partition, claim->record, model.now, &fx);
	finish_operation(partition, &fx, session - sessions);
}

void
look(Session *session)
{
	DlEffects	fx = DL_NO_EFFECTS;
	Claim	   *claim = session->claim;
	int			partition = model_partition(claim->lock);
	DlVerdict	expected;
	DlVerdict	verdict;

	begin_operation("look by backend, state", claim->backend, claim->state);
	session->woken = session->reserving = false;
	if (session->has_tag)
	{
		model_pass(claim);
		dl_engine_pass(claim->record);
	}
	if (session->stored)
	{
		model_stored(claim, claim->ttl);
		dl_engine_stored(claim->record, claim->serial, claim->ttl);
	}
	expected = model_look(claim);
	verdict = dl_engine_look(engine, &session->request, &claim->record, model.now, 0, &fx);
	verify(CHECK_MODEL, verdict == expected, "look: verdict %d, should be %d", verdict, expected);
	events.verdicts[1][verdict]++;
	memcpy(session->wanted, fx.wanted, sizeof(session->wanted));
	give_up_tag(session);
	react(session, verdict);
	finish_operation(partition, &fx, session - sessions);
	if (verdict == DL_AGAIN || verdict == DL_GONE)
	{
		leave(session);
		if (verdict == DL_AGAIN && one_in(2))
			acquire(session);
	}
}

/* Whoever waits for a tag looks neither at its latch nor at its timer. */
bool
is_ready(const Session *session)
{
	if (session->claim == NULL || session->frozen || is_storing(session - sessions))
		return false;
	if (session->passing)
		return session->has_tag || model_can_pass(session->claim->lock, session->request.mode);
	return session->woken || session->reserving || session->sleep_until <= model.now;
}

/* Do what the session was off to, if it can. */
void
get_ready(Session *session)
{
	if (session->reserving)
		refill(session->claim->lock->database, session->wanted);
	if (session->passing && !session->has_tag &&
		model_can_pass(session->claim->lock, session->request.mode))
		take_tag(session);
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
				get_ready(&sessions[b]);
				look(&sessions[b]);
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
			if (sessions[b].claim != NULL && !sessions[b].frozen && !sessions[b].passing &&
				!is_storing(b))
				next = Min(next, sessions[b].sleep_until);
		if (next > time)
			break;
		model.now = Max(model.now, next);
		let_come();
	}
	model.now = time;
	if (run.prompt)
		let_come();
}

void
fill_request(int backend, ModelLock *lock, DlMode mode, DlScope scope, int64 ttl)
{
	DlRequest  *request = &sessions[backend].request;

	sessions[backend].key = lock->key;
	request->keys = &sessions[backend].key;
	request->nkeys = 1;
	request->supply = &supplies[lock->database];
	request->mode = mode;
	request->scope = scope;
	request->ttl = ttl;
	request->durable = false;
	request->may_wait = true;
	request->pass = DL_PASS_NONE;
	request->backend = backend;
	request->generation++;
	request->pid = 1000 + backend;
	request->owner = 10;
	snprintf(request->holder, sizeof(request->holder), "%d", backend);
}
