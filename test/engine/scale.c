/*-------------------------------------------------------------------------
 *
 * scale.c
 *	  The engine with very many leases, and with several threads.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int			large_leases = 1000000;

/* ---- A large heap ---- */

#define HEAP_SIZE 20000

/* Ascending, descending, equal and random deadlines; removal in any order. */
void
test_large_heap(void)
{
	static DlLease leases[HEAP_SIZE];
	static DlPartition part;

	seed_random(1);
	for (int shape = 0; shape < 4; shape++)
	{
		int			n = 0;

		memset(leases, 0, sizeof(leases));
		part.deadlines = NULL;
		for (int i = 0; i < HEAP_SIZE; i++)
		{
			int64		deadlines[] = {i, HEAP_SIZE - i, 7, random_below(1000)};

			leases[i].state = DL_LIVE;
			leases[i].deadline = deadlines[shape];
			dl_deadline_insert(&part, &leases[i]);
		}
		verify(CHECK_LARGE_HEAP, check_heap(&part) == HEAP_SIZE, "members lost");
		for (int i = 0; i < 4 * HEAP_SIZE; i++)
		{
			DlLease    *lease = &leases[random_below(HEAP_SIZE)];

			if (lease->rank > 0)
				dl_deadline_remove(&part, lease);
			else
			{
				lease->deadline = random_below(1000);
				dl_deadline_insert(&part, lease);
			}
			if (i % 1000 == 0)
				check_heap(&part);
		}
		for (int i = 0; i < HEAP_SIZE; i++)
			n += leases[i].rank > 0;
		verify(CHECK_LARGE_HEAP, check_heap(&part) == n, "members lost");
		for (int64 last = 0; part.deadlines != NULL; n--)
		{
			verify(CHECK_LARGE_HEAP, part.deadlines->key >= last, "not in order");
			last = part.deadlines->key;
			dl_deadline_remove(&part, part.deadlines);
		}
		verify(CHECK_LARGE_HEAP, n == 0, "members lost");
	}
}

/* ---- A million leases ---- */

#define TTL		INT64CONST(30000000)
#define NSHORT	10

static int64 started;
static int64 longest;
static int64 total;

static int64
nanoseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64) t.tv_sec * INT64CONST(1000000000) + t.tv_nsec;
}

static void
start(void)
{
	started = nanoseconds();
}

static void
stop(void)
{
	int64		elapsed = nanoseconds() - started;

	longest = Max(longest, elapsed);
	total += elapsed;
}

static void
report(const char *what, int64 n)
{
	printf("# %-44s %8lld, longest %7.1f us, average %6.2f us\n", what, (long long) n,
		   longest / 1000.0, n == 0 ? 0 : total / 1000.0 / n);
	longest = total = 0;
}

static void
set_key(DlKey *key, int i)
{
	memset(key, 0, sizeof(DlKey));
	key->database = 1;
	key->extension = 100;
	key->hash = (uint32) i * UINT32_C(2654435761) ^ ((uint32) i >> 3);
	key->len = snprintf(key->name, sizeof(key->name), "job %d", i);
}

/* Sweep all partitions as the worker does.  Returns how many it looked at. */
static int64
sweep_all(int64 now, int most)
{
	int64		looked_at = 0;

	for (int p = 0; p < DL_NPARTITIONS; p++)
	{
		int			n;

		do
		{
			DlEffects	fx = DL_NO_EFFECTS;
			DlLease		lease;
			DlKey		key;

			start();
			n = dl_engine_sweep(engine, p, now, most, &fx);
			stop();
			verify(CHECK_SWEEP, n >= 0 && n <= most, "%d leases in one batch", n);
			looked_at += n;
			while (dl_engine_take_over(engine, p, &lease, &key))
				;
		} while (n == most);
	}
	return looked_at;
}

static int64
count_leases(void)
{
	int64		n = 0;

	for (int p = 0; p < DL_NPARTITIONS; p++)
		n += engine->partitions[p].nleases;
	return n;
}

/*
 * A sweep costs what has expired.  A renewal leaves the lease where it is in
 * the heap, so each lease costs the sweep one more look when the deadline it
 * had before its renewals has passed: never more looks than there were grants
 * and renewals, and none before that deadline.
 */
void
test_sweep(void)
{
	int			n = large_leases;
	int64	   *granted = malloc(n * sizeof(int64));
	DlKey		key;
	DlRequest	request = {.keys = &key,.nkeys = 1,.supply = &supplies[0],.scope = DL_SCOPE_LEASE};
	int64		now = 1000;
	int64		looked_at;

	begin_run(n, 1, false);
	pg_atomic_write_u64(&supplies[0].limit, PG_INT64_MAX / 2);
	for (int i = 0; i < n; i++)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLease    *lease;
		DlVerdict	verdict;

		set_key(&key, i);
		request.ttl = i < NSHORT ? 1000 : TTL + i;
		start();
		verdict = dl_engine_request(engine, &request, now, 0, &lease, &fx);
		stop();
		verify(CHECK_SWEEP, verdict == DL_TOLD, "verdict %d for lease %d", verdict, i);
		granted[i] = lease->token;
	}
	report("requests", n);

	/* Ten have expired. */
	now += 1000;
	looked_at = sweep_all(now, 64);
	report("batches of a sweep, ten leases expired", DL_NPARTITIONS);
	printf("# the sweep looked at %lld leases of %d\n", (long long) looked_at, n);
	verify(CHECK_SWEEP, looked_at == NSHORT && count_leases() == n - NSHORT,
		   "looked at %lld leases to end %d", (long long) looked_at, NSHORT);

	/* All others are renewed, ten of them to a short TTL. */
	now += TTL / 2;
	for (int i = NSHORT; i < n; i++)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLease    *lease;

		set_key(&key, i);
		start();
		lease = dl_engine_find(engine, &key, granted[i], now, &fx);
		if (lease != NULL)
			dl_engine_renew(engine, lease, i < 2 * NSHORT ? 1000 : TTL + i, now, &fx);
		stop();
		verify(CHECK_SWEEP, lease != NULL, "lease %d is lost", i);
	}
	report("renewals", n - NSHORT);
	now += 1000;
	looked_at = sweep_all(now, 64);
	report("batches of a sweep, all renewed, ten expired", DL_NPARTITIONS);
	printf("# the sweep looked at %lld leases of %d\n", (long long) looked_at, n);
	verify(CHECK_SWEEP, looked_at == NSHORT && count_leases() == n - 2 * NSHORT,
		   "looked at %lld leases to end %d", (long long) looked_at, NSHORT);

	/* Now the deadlines before the renewals are past: each is seen once. */
	now += TTL / 2 + n;
	looked_at = sweep_all(now, 64);
	report("batches of a sweep, old deadlines passed", looked_at / 64);
	printf("# the sweep moved %lld leases to their later deadlines\n", (long long) looked_at);
	verify(CHECK_SWEEP, looked_at == n - 2 * NSHORT && count_leases() == n - 2 * NSHORT,
		   "looked at %lld leases to move %d", (long long) looked_at, n - 2 * NSHORT);
	looked_at = sweep_all(now, 64);
	verify(CHECK_SWEEP, looked_at == 0, "looked at %lld leases a second time", (long long) looked_at);
	longest = total = 0;

	/* Half of them are released, the others expire. */
	for (int i = 2 * NSHORT; i < n; i += 2)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLease    *lease;

		set_key(&key, i);
		start();
		lease = dl_engine_find(engine, &key, granted[i], now, &fx);
		if (lease != NULL)
			dl_engine_end(engine, lease, DL_RELEASED, now, &fx);
		stop();
		verify(CHECK_SWEEP, lease != NULL, "lease %d is lost", i);
	}
	report("releases", (n - 2 * NSHORT + 1) / 2);
	now += 2 * TTL + n;
	looked_at = sweep_all(now, 64);
	report("batches of a sweep, all expired", looked_at / 64);
	verify(CHECK_SWEEP, count_leases() == 0, "%lld leases are left", (long long) count_leases());
	free(granted);
	end_run();
}

/* ---- Threads ---- */

/*
 * What partitions share is their free records, and the buckets of request ids.
 * Threads with more leases to take than there are records, each lease of a lock
 * of its own, under one mutex for each partition as in the server.
 */
#define NTHREADS		4
#define THREAD_LEASES	2		/* records for all of them */
#define THREAD_STEPS	500000
#define THREADS_SECS	100

static pthread_mutex_t mutexes[DL_NPARTITIONS];

/* Let the partition go for a moment. */
static void
yield_partition(int partition)
{
	pthread_mutex_unlock(&mutexes[partition]);
	pthread_mutex_lock(&mutexes[partition]);
}

/* Store a lease that has been granted, and have it told; or give it up. */
static DlVerdict
store_and_look(DlRequest *request, int partition, DlLease *lease, bool store)
{
	DlEffects	fx = DL_NO_EFFECTS;
	DlPlace		place = {.block = 0};

	if (store && dl_engine_place(lease, lease->serial, place, 0))
		dl_engine_stored(lease, lease->serial, lease->ttl);
	yield_partition(partition);
	if (dl_engine_look(engine, request, &lease, 0, 0, &fx) == DL_TOLD)
		return DL_TOLD;
	dl_engine_leave(engine, partition, lease, 0, &fx);
	return DL_AGAIN;
}

/* Clear what the lease has left on disk. */
static void
clear_leftover(int partition, const DlKey *key)
{
	DlImage    *image = dl_engine_condemn(engine, partition, key->database, key->extension, key);

	yield_partition(partition);
	if (image != NULL)
		dl_engine_forget(engine, partition, image, true);
}

static void *
run_thread(void *arg)
{
	int			me = *(int *) arg;
	DlKey		key;
	DlRequest	request = {.keys = &key,.nkeys = 1,.supply = &supplies[0],
	.scope = DL_SCOPE_LEASE,.ttl = 1000};

	for (int i = 0; i < THREAD_STEPS; i++)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLease    *lease;
		DlLease		copy;
		DlKey		key_copy;
		int			partition;
		DlVerdict	verdict;

		set_key(&key, i * NTHREADS + me);
		request.durable = i % 4 >= 2;
		partition = dl_partition_of(key.hash);
		pthread_mutex_lock(&mutexes[partition]);
		verdict = dl_engine_request(engine, &request, 0, 0, &lease, &fx);
		if (verdict == DL_UNTOLD)
			verdict = store_and_look(&request, partition, lease, i % 8 < 7);
		if (verdict == DL_TOLD)
		{
			DlGuard    *guard = dl_engine_guard(engine, lease, me);

			if (guard != NULL)
				dl_engine_unguard(engine, partition, guard, 0, &fx);
			if (i % 2 == 0)
				dl_engine_end(engine, lease, DL_RELEASED, 0, &fx);
			else
			{
				dl_engine_end(engine, lease, DL_FORCED, 0, &fx);
				yield_partition(partition);
				dl_engine_take_over(engine, partition, &copy, &key_copy);
			}
		}
		if (verdict == DL_TOLD && request.durable)
			clear_leftover(partition, &key);
		pthread_mutex_unlock(&mutexes[partition]);
	}
	return NULL;
}

/*
 * Requests for one to three of a few locks, under the mutexes of all of their
 * partitions, which are locked in ascending order.  Whoever waits looks until he
 * is told, or leaves.  All request ids are in one bucket.
 */
#define SEVERAL_LOCKS	6
#define SEVERAL_PARTS	3
#define SEVERAL_STEPS	50000	/* per thread */

static DlKey several_keys[SEVERAL_LOCKS];
static int	owners[SEVERAL_LOCKS];	/* 0: nobody */

static void
lock_partitions(uint32 partitions)
{
	for (int p = 0; p < DL_NPARTITIONS; p++)
		if ((partitions >> p & 1) != 0)
			pthread_mutex_lock(&mutexes[p]);
}

static void
unlock_partitions(uint32 partitions)
{
	for (int p = 0; p < DL_NPARTITIONS; p++)
		if ((partitions >> p & 1) != 0)
			pthread_mutex_unlock(&mutexes[p]);
}

/* The locks that this number stands for. */
static int
choose_locks(uint32 number, int *chosen)
{
	int			n = 1 + number % SEVERAL_PARTS;

	for (int i = 0; i < n; i++)
		chosen[i] = (number / 16 + i * (1 + number / 4 % 2)) % SEVERAL_LOCKS;
	return n;
}

static void
own(const int *chosen, int n, int before, int after)
{
	for (int i = 0; i < n; i++)
	{
		verify(CHECK_THREADS, owners[chosen[i]] == before, "two threads have one lock");
		owners[chosen[i]] = after;
	}
}

static void *
run_several(void *arg)
{
	int			me = *(int *) arg;
	DlKey		keys[SEVERAL_PARTS];
	DlRequest	request = {.keys = keys,.supply = &supplies[0],.scope = DL_SCOPE_SESSION,
	.backend = me,.may_wait = true};
	uint32		number = me;

	snprintf(request.request_id, sizeof(request.request_id), "%d", me);
	for (int i = 0; i < SEVERAL_STEPS; i++)
	{
		DlEffects	fx = DL_NO_EFFECTS;
		DlLease    *leases[DL_KEYS_MAX];
		int			chosen[SEVERAL_PARTS] = {0};
		uint32		partitions = 0;
		DlVerdict	verdict;
		int			looks = 0;

		number = number * 1664525 + 1013904223;
		request.nkeys = choose_locks(number >> 8, chosen);
		for (int k = 0; k < request.nkeys; k++)
		{
			keys[k] = several_keys[chosen[k]];
			partitions |= UINT32_C(1) << dl_partition_of(keys[k].hash);
		}
		lock_partitions(partitions);
		verdict = dl_engine_request(engine, &request, 0, 0, leases, &fx);
		while (verdict == DL_QUEUED && !(i % 8 == 0 && ++looks > 4))
		{
			unlock_partitions(partitions);
			sched_yield();
			lock_partitions(partitions);
			verdict = dl_engine_look(engine, &request, leases, 0, 0, &fx);
		}
		verify(CHECK_THREADS, verdict == DL_TOLD || verdict == DL_QUEUED, "verdict %d", verdict);
		if (verdict == DL_TOLD)
		{
			own(chosen, request.nkeys, 0, me + 1);
			unlock_partitions(partitions);
			sched_yield();
			lock_partitions(partitions);
			own(chosen, request.nkeys, me + 1, 0);
		}
		for (int k = 0; k < request.nkeys; k++)
			if (verdict == DL_TOLD)
				dl_engine_end(engine, leases[k], DL_RELEASED, 0, &fx);
			else
				dl_engine_leave(engine, dl_partition_of(keys[k].hash), leases[k], 0, &fx);
		unlock_partitions(partitions);
	}
	return NULL;
}

/* Whether all records are free in the end. */
static bool
run_threads(void *(*function) (void *), int nleases)
{
	pthread_t	threads[NTHREADS];
	int			numbers[NTHREADS];

	for (int i = 0; i < NTHREADS; i++)
	{
		numbers[i] = i;
		if (pthread_create(&threads[i], NULL, function, &numbers[i]) != 0)
			return false;
	}
	for (int i = 0; i < NTHREADS; i++)
		pthread_join(threads[i], NULL);
	return count_free(DL_LEASE) == nleases && count_free(DL_GUARD) == Max(nleases, NTHREADS) &&
		count_free(DL_IMAGE) == 2 * nleases && count_free(DL_LOCK) == nlock_records;
}

/* In a child process, since a failed assertion leaves threads and locks behind. */
static void
run_in_child(void *(*function) (void *), int nleases)
{
	pid_t		child;
	int			status;

	begin_run(nleases, NTHREADS, false);
	pg_atomic_write_u64(&supplies[0].limit, PG_INT64_MAX / 2);
	fflush(stdout);
	child = fork();
	if (child == 0)
	{
		in_child = true;
		alarm(THREADS_SECS);
		_exit(run_threads(function, nleases) ? 0 : 1);
	}
	verify(CHECK_THREADS, child > 0 && waitpid(child, &status, 0) == child, "no child process");
	verify(CHECK_THREADS, WIFEXITED(status) && WEXITSTATUS(status) == 0,
		   "records were lost, or one was taken that was not there, or all wait (status %d)", status);
}

void
test_threads(void)
{
	for (int p = 0; p < DL_NPARTITIONS; p++)
		pthread_mutex_init(&mutexes[p], NULL);
	run_in_child(run_thread, THREAD_LEASES);
	for (int i = 0; i < SEVERAL_LOCKS; i++)
		set_key(&several_keys[i], i);
	run_in_child(run_several, NTHREADS * SEVERAL_PARTS);
}
