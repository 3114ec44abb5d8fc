/*-------------------------------------------------------------------------
 *
 * scenes.c
 *	  Short stories, each with an end that is known.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

static void
scene_acquire(int backend, DlMode mode, int64 ttl)
{
	fill_request(backend, &model.locks[0], mode,
				 ttl == 0 ? DL_SCOPE_SESSION : DL_SCOPE_LEASE, ttl);
	enter(&sessions[backend]);
}

/* The head is frozen and nobody sweeps: how long does the next one wait? */
void
test_frozen(void)
{
	int64		expiry;
	int64		ttl = 3 * SECS;

	begin_scene(4);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	expiry = model.now + 10 * SECS;
	scene_acquire(1, DL_EXCLUSIVE, ttl);
	scene_acquire(2, DL_EXCLUSIVE, 100 * MSECS);
	scene_acquire(3, DL_EXCLUSIVE, 0);
	sessions[1].frozen = true;

	advance_to(expiry - 1);
	verify(CHECK_FROZEN, sessions[2].claims[0] != NULL, "granted before the lease expired");

	/* After a while the third looks instead, and in the end the grant lapses. */
	advance_to(expiry + DL_FALLBACK_USECS + ttl);
	verify(CHECK_FROZEN, sessions[2].claims[0] == NULL, "still not granted");
	advance_to(model.now + 100 * MSECS);
	verify(CHECK_FROZEN, sessions[3].claims[0] == NULL, "the one behind is still not granted");
	sessions[1].frozen = false;
	let_come();
	end_backend(3);
	end_everything();
}

/* Here the head would hold the lock for ever, but others may share it. */
void
test_frozen_shared(void)
{
	int64		expiry;

	begin_scene(4);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	expiry = model.now + 10 * SECS;
	scene_acquire(1, DL_SHARED, 0);
	scene_acquire(2, DL_SHARED, 0);
	scene_acquire(3, DL_SHARED, 5 * SECS);
	sessions[1].frozen = true;
	advance_to(expiry + 2 * DL_FALLBACK_USECS);
	verify(CHECK_FROZEN_SHARED, sessions[2].claims[0] == NULL && sessions[3].claims[0] == NULL,
		   "the lock is free, and requests that could share it wait without end");
	end_everything();
}

/* Is the request still in the queue? */
static bool
is_waiting(int backend)
{
	return sessions[backend].claims[0] != NULL && sessions[backend].claims[0]->state == DL_WAITING;
}

static Claim *
first_holder(void)
{
	return model.locks[0].holders[0];
}

/* Of three transactions, two commit while their lease ends in some way. */
void
test_hand_over(void)
{
	static const DlCause causes[] = {DL_RELEASED, DL_UNDONE, DL_EXPIRED, DL_FORCED};

	for (int i = 0; i < lengthof(causes); i++)
	{
		Guard	   *guards[3];

		begin_scene(4);
		scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
		for (int g = 0; g < 3; g++)
			guards[g] = make_guard(first_holder());
		verify(CHECK_HAND_OVER, pin(guards[0]) && pin(guards[2]), "commits are refused");
		scene_acquire(1, DL_EXCLUSIVE, 10 * SECS);
		scene_acquire(2, DL_SHARED, 10 * SECS);
		if (causes[i] == DL_EXPIRED)
			advance_to(model.now + 10 * SECS);
		else
			end_lease(first_holder(), causes[i]);
		verify(CHECK_HAND_OVER, first_holder()->state == DL_PINNED && !pin(guards[1]),
			   "the lease did not end");
		advance_to(model.now + 3600 * SECS);
		sweep_partition(0);
		unguard(guards[1]);
		unguard(guards[0]);
		let_come();
		verify(CHECK_HAND_OVER, is_waiting(1) && is_waiting(2), "granted during a commit");
		unguard(guards[2]);
		verify(CHECK_HAND_OVER, sessions[1].records[0]->state == DL_GRANTED &&
			   sessions[1].just_woken, "not granted at the end of the last commit");
		let_come();
		verify(CHECK_HAND_OVER, sessions[1].claims[0] == NULL && is_waiting(2), "not handed over");
		end_everything();
	}

	/* Transactions that do not commit yet keep nobody from the lock. */
	begin_scene(2);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	make_guard(first_holder());
	make_guard(first_holder());
	scene_acquire(1, DL_EXCLUSIVE, 10 * SECS);
	end_lease(first_holder(), DL_RELEASED);
	let_come();
	verify(CHECK_HAND_OVER, sessions[1].claims[0] == NULL, "an open transaction is waited for");
	verify(CHECK_HAND_OVER, take_stale(0) && take_stale(0) && !take_stale(0),
		   "not all open transactions are told");
	end_everything();

	/* Shared leases do not wait for commits of others. */
	begin_scene(4);
	scene_acquire(0, DL_SHARED, 10 * SECS);
	pin(make_guard(first_holder()));
	end_lease(first_holder(), DL_RELEASED);
	scene_acquire(1, DL_SHARED, 10 * SECS);
	verify(CHECK_HAND_OVER, sessions[1].claims[0] == NULL, "a shared request waits");
	scene_acquire(2, DL_EXCLUSIVE, 10 * SECS);
	scene_acquire(3, DL_SHARED, 10 * SECS);
	end_backend(1);
	advance_to(model.now + 3600 * SECS);
	verify(CHECK_HAND_OVER, is_waiting(2) && is_waiting(3), "granted during a commit");
	unguard(random_guard());
	let_come();
	verify(CHECK_HAND_OVER, sessions[2].claims[0] == NULL && is_waiting(3), "not handed over");
	end_everything();
}

/*
 * Several wait where a transaction has been prepared, and the heads leave one
 * by one.  Nobody but the engine tells the next that it is its turn to pass.
 */
void
test_successor(void)
{
	ModelLock  *lock = model.locks;
	Guard	   *guard;

	begin_scene(4);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	guard = make_guard(first_holder());
	verify(CHECK_SUCCESSOR, hold_tag(guard) && prepare(guard), "not prepared");
	unguard(guard);
	for (int b = 1; b < 4; b++)
		scene_acquire(b, b < 3 ? DL_EXCLUSIVE : DL_SHARED, 0);
	advance_to(model.now + 10 * SECS);
	verify(CHECK_SUCCESSOR, lock->nholders == 0 && sessions[1].passing, "the head is not told of the barrier");
	for (int b = 2; b < 4; b++)
	{
		verify(CHECK_SUCCESSOR, !sessions[b].passing && !is_ready(&sessions[b]),
			   "another than the head is told, too");
		leave(&sessions[b - 1]);
		verify(CHECK_SUCCESSOR, sessions[b].just_woken, "the next is not woken");
		let_come();
		verify(CHECK_SUCCESSOR, is_waiting(b) && sessions[b].passing,
			   "the next is not told of the barrier");
	}
	end_prepared(lock, DL_EXCLUSIVE);
	let_come();
	verify(CHECK_SUCCESSOR, sessions[3].claims[0] == NULL && lock->nholders == 1 &&
		   lock->barrier == DL_BARS_EXCLUSIVE, "the barrier cannot be passed");
	end_everything();

	/* The lock is forgotten in the meantime: its barrier is not. */
	begin_scene(2);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	guard = make_guard(first_holder());
	verify(CHECK_SUCCESSOR, hold_tag(guard) && prepare(guard), "not prepared");
	unguard(guard);
	end_lease(first_holder(), DL_RELEASED);
	verify(CHECK_SUCCESSOR, dl_engine_find_lock(engine, &lock->key) == NULL, "not forgotten");
	fill_request(1, lock, DL_SHARED, DL_SCOPE_SESSION, 0);
	verify(CHECK_SUCCESSOR, enter(&sessions[1]) == DL_BARRED, "the barrier is gone");
	acquire(&sessions[1]);
	let_come();
	verify(CHECK_SUCCESSOR, is_waiting(1), "the barrier cannot be waited for");
	end_prepared(lock, DL_EXCLUSIVE);
	let_come();
	verify(CHECK_SUCCESSOR, sessions[1].claims[0] == NULL, "the barrier cannot be passed");
	end_everything();
}

/* A release to come is announced: how many backends does that wake? */
static int
announce(Claim *claim)
{
	DlEffects	fx = DL_NO_EFFECTS;

	begin_operation("announce token", claim->token, 0);
	dl_engine_announce(claim->record, &fx);
	dl_effects_wake(&fx);
	return nwakes;
}

/* It wakes the head of the queue, if there will be room for it, and grants nothing. */
void
test_announce(void)
{
	begin_scene(5);
	scene_acquire(0, DL_SHARED, 10 * SECS);
	verify(CHECK_FEW_WAKES, announce(first_holder()) == 0, "a release to nobody woke somebody");
	scene_acquire(1, DL_SHARED, 10 * SECS);
	scene_acquire(2, DL_EXCLUSIVE, 10 * SECS);
	scene_acquire(3, DL_EXCLUSIVE, 10 * SECS);
	verify(CHECK_FEW_WAKES, announce(first_holder()) == 0, "woken while another one still holds the lock");
	end_lease(first_holder(), DL_RELEASED);
	verify(CHECK_FEW_WAKES, announce(first_holder()) == 1 && sessions[2].just_woken,
		   "not the head is woken, or not only that");
	let_come();
	verify(CHECK_FEW_WAKES, is_waiting(2) && is_waiting(3), "granted before the release");
	end_lease(first_holder(), DL_RELEASED);
	let_come();
	verify(CHECK_FEW_WAKES, !is_waiting(2) && is_waiting(3), "not granted after it");
	end_everything();

	/* Of a semaphore any release makes room. */
	begin_scene(3);
	for (int b = 0; b < 3; b++)
	{
		fill_request(b, &model.locks[0], DL_SHARED, DL_SCOPE_LEASE, 10 * SECS);
		sessions[b].request.limit = 2;
		enter(&sessions[b]);
	}
	verify(CHECK_FEW_WAKES, is_waiting(2) && announce(first_holder()) == 1 && sessions[2].just_woken,
		   "the next one is not woken");
	let_come();
	end_everything();
}

void
test_few_wakes(void)
{
	/* Of a busy queue of exclusive requests the next is granted. */
	begin_scene(MAX_BACKENDS);
	for (int b = 0; b < MAX_BACKENDS; b++)
		scene_acquire(b, DL_EXCLUSIVE, 10 * SECS);
	for (int i = 0; i < 10 * MAX_BACKENDS; i++)
	{
		Claim	   *holder = model.locks[0].holders[0];
		int			backend = holder->backend;

		end_lease(holder, DL_RELEASED);
		verify(CHECK_FEW_WAKES, nwakes <= 2, "a hand-over woke %d backends", nwakes);
		advance_to(model.now + MSECS);
		scene_acquire(backend, DL_EXCLUSIVE, 10 * SECS);
	}

	/* All that share are granted at once: more than a DlEffects holds. */
	begin_scene(MAX_BACKENDS);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	for (int b = 1; b < MAX_BACKENDS; b++)
		scene_acquire(b, DL_SHARED, 10 * SECS);
	end_lease(model.locks[0].holders[0], DL_RELEASED);
	verify(CHECK_FEW_WAKES, nwakes == MAX_BACKENDS - 1 &&
		   model.locks[0].nholders == MAX_BACKENDS - 1,
		   "a release woke %d backends", nwakes);

	/* A lease that ends under a commit wakes nobody, its end only the next. */
	begin_scene(MAX_BACKENDS);
	for (int b = 0; b < MAX_BACKENDS; b++)
		scene_acquire(b, DL_EXCLUSIVE, 10 * SECS);
	for (int i = 0; i < 10 * MAX_BACKENDS; i++)
	{
		Claim	   *holder = first_holder();
		Claim	   *head = model.locks[0].queue[0];
		Guard	   *guard = make_guard(holder);
		int			backend = holder->backend;

		pin(guard);
		end_lease(holder, DL_RELEASED);
		verify(CHECK_FEW_WAKES, nwakes == 0, "%d backends woken during a commit", nwakes);
		advance_to(model.now + MSECS);
		unguard(guard);
		verify(CHECK_FEW_WAKES, nwakes == 1 && sessions[head->backend].just_woken,
			   "the end of a commit woke %d backends", nwakes);
		let_come();
		log_over(0);
		scene_acquire(backend, DL_EXCLUSIVE, 10 * SECS);
	}
	end_everything();

	/* Likewise if the head has seen that lease expire in the meantime. */
	begin_scene(4);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	pin(make_guard(first_holder()));
	scene_acquire(1, DL_EXCLUSIVE, 10 * SECS);
	advance_to(model.now + 5 * SECS);
	scene_acquire(2, DL_EXCLUSIVE, 10 * SECS);
	scene_acquire(3, DL_EXCLUSIVE, 10 * SECS);
	advance_to(first_holder()->deadline + 500 * MSECS);
	verify(CHECK_FEW_WAKES, first_holder()->state == DL_PINNED, "the head did not look");
	unguard(random_guard());
	verify(CHECK_FEW_WAKES, nwakes == 1 && sessions[1].just_woken,
		   "the end of a commit woke %d backends", nwakes);
	let_come();
	end_everything();
}

/* ---- After a start of the server ---- */

/* What a server that is no more has left on disk. */
static void
put(DiskImage image)
{
	ModelLock  *lock = image.lock;
	DlPlace		place;

	image.owner = 10;
	image.nparts = Max(image.nparts, 1);
	verify(CHECK_RECOVERY, disk_find_vacant(lock->table, -1, &place), "no vacant slot");
	disk_flush(disk_write(lock->table, place, &image));
	model.next_token[lock->database] = Max(model.next_token[lock->database], image.token + 1);
}

static void
put_image(ModelLock *lock, DlMode mode, int64 token, int64 ttl)
{
	put((DiskImage) {.lock = lock,.token = token,.ttl = ttl,.mode = mode});
}

/* Told of its lease? */
static bool
is_told(int backend)
{
	return sessions[backend].claims[0] == NULL;
}

void
test_grace(void)
{
	int64		opens_at;

	/* The queue of a lock that nobody holds. */
	begin_scene(6);
	opens_at = model.now + 5 * SECS;
	set_opens_at(0, opens_at);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	scene_acquire(1, DL_SHARED, 10 * SECS);
	scene_acquire(2, DL_SHARED, 0);
	scene_acquire(3, DL_EXCLUSIVE, 100 * MSECS);
	fill_request(4, &model.locks[0], DL_SHARED, DL_SCOPE_LEASE, SECS);
	sessions[4].request.may_wait = false;
	verify(CHECK_GRACE, enter(&sessions[4]) == DL_BUSY, "a try during the grace waits");
	advance_to(opens_at - 1);
	for (int b = 0; b < 4; b++)
		verify(CHECK_GRACE, is_waiting(b), "granted during the grace");
	advance_to(opens_at);
	verify(CHECK_GRACE, is_told(0) && is_waiting(1) && is_waiting(3), "not the head is granted");
	end_lease(first_holder(), DL_RELEASED);
	let_come();
	verify(CHECK_GRACE, is_told(1) && is_told(2) && is_waiting(3), "the queue has lost its order");
	end_everything();

	/* The head is frozen when the grace ends. */
	begin_scene(2);
	opens_at = model.now + 5 * SECS;
	set_opens_at(0, opens_at);
	scene_acquire(0, DL_SHARED, 10 * SECS);
	scene_acquire(1, DL_SHARED, 10 * SECS);
	sessions[0].frozen = true;
	advance_to(opens_at + DL_FALLBACK_USECS);
	verify(CHECK_GRACE, is_told(1), "nobody looks for the frozen head");
	end_everything();

	/* A lease that is brought back lives on, but its lock is not handed over. */
	begin_scene(2);
	put_image(&model.locks[0], DL_EXCLUSIVE, 7, 2 * SECS);
	crash(false);
	set_opens_at(0, model.now + 5 * SECS);
	opens_at = model.now + 5 * SECS;
	verify(CHECK_GRACE, attach_database(0, model.now, true), "not brought back");
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	advance_to(model.now + SECS);
	verify(CHECK_GRACE, find_lease(&model.locks[0], 7) != NULL &&
		   renew_lease(find_lease(&model.locks[0], 7), 2 * SECS), "not renewed during the grace");
	advance_to(opens_at - 1);
	verify(CHECK_GRACE, is_waiting(0), "handed over during the grace");
	advance_to(opens_at);
	verify(CHECK_GRACE, is_told(0) && first_holder()->token > 7, "not handed over after the grace");
	end_everything();
}

/* How many images has the engine of this lock, and of how many leases? */
static int
count_images(const ModelLock *lock, int64 token)
{
	DlImage    *image = dl_engine_find_image(engine, &lock->key, token, 0);

	return image == NULL ? 0 : image->lease == NULL ? 1 : 2;
}

/* A request for two locks, durable, under id r1. */
static void
fill_durable_pair(ModelLock *lock)
{
	fill_request(0, &lock[0], DL_EXCLUSIVE, DL_SCOPE_LEASE, SECS);
	sessions[0].keys[1] = lock[1].key;
	sessions[0].request.nkeys = 2;
	sessions[0].request.durable = true;
	strcpy(sessions[0].request.request_id, "r1");
	sessions[0].request.id_hash = id_hash_of("r1");
}

void
test_recovery(void)
{
	ModelLock  *lock = model.locks;
	DlReserve	reserve;

	/* Of what conflicts, the greater token wins. */
	begin_scene(2);
	make_locks(4, 4, PG_UINT32_MAX);
	put_image(&lock[0], DL_EXCLUSIVE, 5, SECS);
	put_image(&lock[0], DL_EXCLUSIVE, 9, 2 * SECS);
	put_image(&lock[0], DL_SHARED, 8, SECS);
	put_image(&lock[1], DL_SHARED, 3, 3 * SECS);
	put_image(&lock[1], DL_EXCLUSIVE, 4, SECS);
	put_image(&lock[1], DL_SHARED, 7, 30 * SECS);
	put_image(&lock[2], DL_EXCLUSIVE, 2, SECS);
	crash(false);
	verify(CHECK_RECOVERY, attach_database(0, model.now, true), "not brought back");
	verify(CHECK_RECOVERY, lock[0].nholders == 1 && find_lease(&lock[0], 9) != NULL &&
		   find_lease(&lock[0], 8) == NULL && find_lease(&lock[0], 5) == NULL,
		   "another than the greatest token has the lock");
	verify(CHECK_RECOVERY, find_lease(&lock[1], 7) != NULL && find_lease(&lock[1], 3) != NULL &&
		   find_lease(&lock[1], 4) == NULL, "leases that may share the lock do not");
	verify(CHECK_RECOVERY, count_images(&lock[0], 9) == 2 && count_images(&lock[0], 8) == 1 &&
		   count_images(&lock[0], 5) == 1 && count_images(&lock[1], 4) == 1,
		   "the images of the others are not stale");
	verify(CHECK_RECOVERY, pg_atomic_read_u32(&supplies[0].live[DL_DURABLE][dl_ttl_bucket(SECS)]) == 1 &&
		   pg_atomic_read_u32(&supplies[0].live[DL_DURABLE][dl_ttl_bucket(2 * SECS)]) == 1,
		   "what is brought back is not counted");
	advance_to(model.now + SECS);
	verify(CHECK_RECOVERY, find_lease(&lock[2], 2) == NULL && find_lease(&lock[0], 9) != NULL,
		   "not the times to live of the images");

	/* Its successor sees to it that none of them comes back again. */
	advance_to(model.now + SECS);
	scene_acquire(0, DL_EXCLUSIVE, 10 * SECS);
	let_come();
	verify(CHECK_RECOVERY, is_told(0) && !disk_may_have(0, 5, 0) && !disk_may_have(0, 8, 0) &&
		   !disk_may_have(0, 9, 0) && disk_may_have(0, 4, 0), "leftovers are on disk");
	end_everything();

	/* A lease that may not be used keeps others from the lock all the same. */
	begin_scene(2);
	put_image(lock, DL_EXCLUSIVE, 5, 10 * SECS);
	crash(false);
	verify(CHECK_RECOVERY, attach_database(0, model.now, false), "not brought back");
	verify(CHECK_RECOVERY, find_lease(lock, 5) == NULL && lock->nholders == 1, "it can be used");
	scene_acquire(0, DL_EXCLUSIVE, SECS);
	advance_to(model.now + 10 * SECS - 1);
	verify(CHECK_RECOVERY, is_waiting(0), "it does not hold the lock");
	advance_to(model.now + 1);
	verify(CHECK_RECOVERY, is_told(0), "it holds the lock for too long");
	end_everything();

	/* Permits under the limit of the latest, and no more than that. */
	begin_scene(2);
	for (int token = 4; token < 9; token++)
		put((DiskImage) {.lock = lock,.token = token,.ttl = SECS,.mode = DL_SHARED,
			.limit = token == 7 ? 0 : token == 5 ? 3 : 2});
	crash(false);
	verify(CHECK_RECOVERY, attach_database(0, model.now, true), "not brought back");
	verify(CHECK_RECOVERY, find_lease(lock, 8) != NULL && find_lease(lock, 7) == NULL &&
		   find_lease(lock, 6) != NULL && find_lease(lock, 5) == NULL &&
		   find_lease(lock, 4) == NULL, "not the two latest permits are brought back");
	end_everything();

	/* A request id may come back with two leases, which are not one request. */
	begin_scene(2);
	make_locks(2, 2, PG_UINT32_MAX);
	for (int i = 0; i < 2; i++)
		put((DiskImage) {.lock = &lock[i],.token = 5 + i,.ttl = SECS,.request_id = "r1"});
	crash(false);
	verify(CHECK_RECOVERY, attach_database(0, model.now, true), "not brought back");
	fill_durable_pair(lock);
	verify(CHECK_RECOVERY, enter(&sessions[0]) == DL_OTHER_REQUEST, "two tokens are told as one");
	end_everything();

	/* One that was not stored as a whole is made anew. */
	begin_scene(2);
	make_locks(2, 2, PG_UINT32_MAX);
	put((DiskImage) {.lock = &lock[1],.token = 5,.ttl = SECS,.nparts = 2,.request_id = "r1"});
	crash(false);
	verify(CHECK_RECOVERY, attach_database(0, model.now, true), "not brought back");
	fill_durable_pair(lock);
	verify(CHECK_RECOVERY, enter(&sessions[0]) == DL_UNTOLD && find_lease(&lock[1], 5) == NULL,
		   "what is left of a request bars its repetition");
	end_everything();

	/* Without room for all of them, none is brought back. */
	begin_scene(MAX_BACKENDS);
	make_locks(2, 2, PG_UINT32_MAX);
	for (int i = 0; i < MAX_CLAIMS; i++)
		put_image(&lock[0], DL_SHARED, i + 1, 10 * SECS);
	crash(false);
	model.attached[0] = true;	/* for a lease of somebody else */
	fill_request(0, &lock[1], DL_EXCLUSIVE, DL_SCOPE_LEASE, 10 * SECS);
	verify(CHECK_RECOVERY, enter(&sessions[0]) == DL_TOLD && !attach_database(0, model.now, true) &&
		   lock[0].nholders == 0, "too many leases are brought back");
	end_lease(lock[1].holders[0], DL_RELEASED);
	verify(CHECK_RECOVERY, attach_database(0, model.now, true) && lock[0].nholders == MAX_CLAIMS,
		   "leases that fit are not brought back");
	end_everything();

	/* Put aside and given back. */
	begin_scene(1);
	verify(CHECK_RECOVERY, dl_engine_reserve(engine, MAX_CLAIMS, &reserve), "records are missing");
	verify(CHECK_RECOVERY, count_free(DL_LEASE) == 0 && count_free(DL_IMAGE) == MAX_CLAIMS,
		   "not put aside");
	dl_engine_unreserve(engine, &reserve);
	check_free_records();
	verify(CHECK_RECOVERY, !dl_engine_reserve(engine, MAX_CLAIMS + 1, &reserve), "more than there are");
	check_free_records();
}

/* ---- Image records ---- */

/*
 * Each extension overwrites what its own leases have left behind, so others
 * can use up the records.
 */
void
test_no_image(void)
{
	ModelLock  *last = &model.locks[MAX_LOCKS - 1];
	int			nleft = 0;

	begin_scene(MAX_BACKENDS);
	make_locks(MAX_LOCKS, 1, PG_UINT32_MAX);
	for (int i = 0; nleft < 2 * MAX_CLAIMS; i++)
	{
		ModelLock  *lock = &model.locks[i];

		for (int b = 0; b < 5 && nleft < 2 * MAX_CLAIMS; b++, nleft++)
		{
			fill_request(b, lock, DL_SHARED, DL_SCOPE_LEASE, SECS);
			sessions[b].request.durable = true;
			verify(CHECK_NO_IMAGE, enter(&sessions[b]) == DL_UNTOLD, "told before it is stored");
		}
		let_come();
		while (lock->nholders > 0)
			end_lease(lock->holders[0], DL_RELEASED);
	}
	fill_request(0, last, DL_EXCLUSIVE, DL_SCOPE_LEASE, SECS);
	sessions[0].request.durable = true;
	verify(CHECK_NO_IMAGE, enter(&sessions[0]) == DL_FULL, "granted without an image");
	sessions[0].request.durable = false;
	verify(CHECK_NO_IMAGE, enter(&sessions[0]) == DL_TOLD, "a volatile lease is refused");
	end_everything();
}

/* Somebody comes late with the image of a lease that is no more. */
void
test_late_writer(void)
{
	ModelLock  *lock = model.locks;
	DlPlace		place = {.block = 0,.offset = 0};
	DlLease    *record;
	uint64		serial;

	begin_scene(1);
	fill_request(0, lock, DL_EXCLUSIVE, DL_SCOPE_LEASE, SECS);
	sessions[0].request.durable = true;
	enter(&sessions[0]);
	record = sessions[0].records[0];
	serial = record->serial;
	leave(&sessions[0]);
	verify(CHECK_LATE_WRITER, !dl_engine_place(record, serial, place, model.now),
		   "a lease that is no more is written");
	enter(&sessions[0]);
	verify(CHECK_LATE_WRITER, sessions[0].records[0] == record, "another record than the last one used");
	verify(CHECK_LATE_WRITER, !dl_engine_place(record, serial, place, model.now),
		   "a lease is written for another");
	dl_engine_stored(record, serial, SECS);
	verify(CHECK_LATE_WRITER, !record->flushed, "a lease is taken for stored for another");
	let_come();
	verify(CHECK_LATE_WRITER, is_told(0), "not told");
	end_everything();
}

/* ---- Buckets of times to live ---- */

static void
check_ttl(int64 ttl)
{
	int			bucket = dl_ttl_bucket(ttl);

	verify(CHECK_TTLS, bucket >= 0 && bucket < DL_TTL_BUCKETS,
		   INT64_FORMAT " us count in bucket %d", ttl, bucket);
	verify(CHECK_TTLS, dl_bucket_ttl(bucket) >= ttl, INT64_FORMAT " us are too long for bucket %d",
		   ttl, bucket);
	verify(CHECK_TTLS, bucket == 0 || dl_bucket_ttl(bucket - 1) < ttl,
		   INT64_FORMAT " us count in bucket %d, not a shorter one", ttl, bucket);
}

void
test_ttls(void)
{
	const int64 longest = INT64CONST(10) * 365 * 86400 * SECS;

	begin_scene(1);
	for (int b = 0; b < DL_TTL_BUCKETS; b++)
	{
		int64		ttl = dl_bucket_ttl(b);

		/* Within a quarter of an octave, the shorter the better. */
		verify(CHECK_TTLS, ttl >= INT64CONST(1) << DL_TTL_SHORTEST_LOG &&
			   (b < 4 || ttl == 2 * dl_bucket_ttl(b - 4)) &&
			   (b == 0 || (ttl > dl_bucket_ttl(b - 1) && 4 * ttl <= 5 * dl_bucket_ttl(b - 1))),
			   "bucket %d ends at " INT64_FORMAT " us", b, ttl);
		verify(CHECK_TTLS, dl_ttl_bucket(ttl) == b && dl_ttl_bucket(ttl + 1) == b + 1,
			   "bucket %d does not end at " INT64_FORMAT " us", b, ttl);
	}
	for (int64 power = 1; power <= longest; power *= 2)
		for (int64 ttl = Max(power - 1000, 1); ttl <= Min(power + 1000, longest); ttl++)
			check_ttl(ttl);
	for (int i = 0; i < 1000000; i++)
		check_ttl(1 + random_below(1 + random_below(longest)));
	check_ttl(longest);
}
