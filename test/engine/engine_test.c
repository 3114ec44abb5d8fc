/*-------------------------------------------------------------------------
 *
 * engine_test.c
 *	  The engine against a simple model, with a fake clock.
 *
 * Compiles the engine's files of src without the server around them, and
 * carries out random operations (operations.c) on the engine and on the model
 * (model.c, images.c) alike.  After each, everything the engine knows is
 * compared with the model, and checks.c looks for what must always hold.
 *
 * Even seeds let sessions come to look whenever chance has it: late, early,
 * or not at all.  In odd seeds every session that is not frozen comes exactly
 * when woken or at its timer, so that we see whether wakes and timers do.
 *
 * Of the server's own locks, by which prepared transactions and those who pass
 * a barrier exclude each other, the model has a plain count for each lock.  Who
 * takes them in which order is as in src/barrier.c.
 *
 * The lease tables are on a disk of its own (disk.c), which sessions write to
 * step by step (jobs.c), so that the server may crash at any moment (crash.c).
 *
 *		engine_test [--seed N] [--steps N] [--leases N]
 *
 * A failure prints its seed; the same seed and steps bring it back.
 *
 *-------------------------------------------------------------------------
 */
#include "engine_test.h"

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

#define DEFAULT_SEEDS	32
#define DEFAULT_STEPS	100000	/* per seed */
#define WATCHDOG_SECS	300		/* for one run: far more than it can take */

DlEngine   *engine;
Session		sessions[MAX_BACKENDS];
DlSupply	supplies[NDATABASES];
int			nwakes;
bool		in_child;

static const char *const check_names[NCHECKS] = {
	[CHECK_ASSERT] = "no assertion of the engine fails",
	[CHECK_EXCLUSION] = "exclusion",
	[CHECK_TOKENS] = "tokens rise in the order of grants",
	[CHECK_ORDER] = "first come, first granted",
	[CHECK_EXPIRY] = "a lease past its deadline is never found",
	[CHECK_MODEL] = "verdicts, leases and queues as in the model",
	[CHECK_WAKES] = "nobody sleeps too long",
	[CHECK_TAKEOVER] = "take-over at the deadline without a sweep",
	[CHECK_COUNTERS] = "counters add up",
	[CHECK_RECORDS] = "no record is lost",
	[CHECK_HEAP] = "the deadline heap is in order",
	[CHECK_GUARDS] = "a guard commits exactly while its lease is live",
	[CHECK_PINNED] = "a pinned lease keeps its place",
	[CHECK_STALE] = "stale guards are told once",
	[CHECK_BARRIER] = "a barrier holds until it is passed",
	[CHECK_IMAGES] = "images of leases as in the model",
	[CHECK_BUCKETS] = "leases are counted by their time to live",
	[CHECK_DURABLE] = "a crash loses no durable lease that was told",
	[CHECK_SUPERSEDED] = "a crash brings back no lease whose successor was told",
	[CHECK_DISK_SIZE] = "lease tables do not grow without end",
	[CHECK_LIMIT] = "a semaphore has no more holders than its limit",
	[CHECK_PARTS] = "of several locks all are told under one token, or none",
	[CHECK_REQUEST_ID] = "a repeated request stands for the same lease",
	[CHECK_WATCH] = "watchers see the newest token change",
	[CHECK_FROZEN] = "a frozen head delays the next for a bounded time",
	[CHECK_FROZEN_SHARED] = "a frozen head without TTL does not keep others from sharing",
	[CHECK_HAND_OVER] = "a hand-over waits for commits in flight and for nothing else",
	[CHECK_SUCCESSOR] = "who becomes the head in front of a barrier is woken",
	[CHECK_FEW_WAKES] = "nobody is woken for nothing",
	[CHECK_GRACE] = "requests queue during a grace, and are granted in turn after it",
	[CHECK_RECOVERY] = "leases are brought back, all or none",
	[CHECK_NO_IMAGE] = "records of images may run out",
	[CHECK_LATE_WRITER] = "who writes too late writes nothing",
	[CHECK_TTLS] = "buckets of times to live have the bounds they should",
	[CHECK_LARGE_HEAP] = "a large heap stays in order",
	[CHECK_SWEEP] = "a sweep looks only at what has expired",
	[CHECK_THREADS] = "partitions share their free records, and requests span them",
};

static bool failed[NCHECKS];
static sigjmp_buf give_up;
static uint64 seed;
int64		step;
static int64 noperations;

Events		events;

Run			run;

/* The latest operations, for the report of a failure. */
#define TRACE_LENGTH 24

static struct
{
	const char *what;
	int64		now;
	int64		a;
	int64		b;
}			trace[TRACE_LENGTH];
static int64 ntrace;

void
note(const char *what, int64 a, int64 b)
{
	int			i = ntrace++ % TRACE_LENGTH;

	trace[i].what = what;
	trace[i].now = model.now;
	trace[i].a = a;
	trace[i].b = b;
}

/* ---- Failures ---- */

static void give_up_run(Check check, const char *message) __attribute__((noreturn));

static void
give_up_run(Check check, const char *message)
{
	printf("# failed: %s\n#   seed %llu, step %lld, time %lld: %s\n",
		   check_names[check], (unsigned long long) seed, (long long) step,
		   (long long) model.now, message);
	for (int64 i = Max(0, ntrace - TRACE_LENGTH); i < ntrace; i++)
		printf("#   %12lld %s %lld %lld\n", (long long) trace[i % TRACE_LENGTH].now,
			   trace[i % TRACE_LENGTH].what, (long long) trace[i % TRACE_LENGTH].a,
			   (long long) trace[i % TRACE_LENGTH].b);
	failed[check] = true;
	siglongjmp(give_up, 1);
}

void
fail(Check check, const char *format,...)
{
	char		message[1024];
	va_list		args;

	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	if (in_child)
	{
		printf("# failed in a thread: %s\n", message);
		_exit(1);
	}
	give_up_run(check, message);
}

bool
attempt(void (*function) (void))
{
	if (sigsetjmp(give_up, 0) != 0)
		return false;
	alarm(WATCHDOG_SECS);
	function();
	return true;
}

static void
bail_out(int signal_number)
{
	char		message[200];
	int			n;

	/* NOLINTNEXTLINE(bugprone-signal-handler): takes no lock, and the process ends */
	n = snprintf(message, sizeof(message), "Bail out! Signal %d at seed %llu, step %lld\n",
				 signal_number, (unsigned long long) seed, (long long) step);
	if (write(STDOUT_FILENO, message, n) != n)
		_exit(3);
	_exit(2);
}

/* ---- What the server would supply ---- */

void
ExceptionalCondition(const char *conditionName,
#if PG_VERSION_NUM < 160000
					 const char *errorType,
#endif
					 const char *fileName, int lineNumber)
{
	fail(CHECK_ASSERT, "%s:%d: %s", fileName, lineNumber, conditionName);
}

int
s_lock(volatile slock_t *lock, const char *file, int line, const char *func)
{
	while (TAS_SPIN(lock))
		sched_yield();
	return 0;
}

void
dl_effects_wake(DlEffects *fx)
{
	for (int i = 0; i < fx->nwakes; i++)
	{
		int			backend = fx->wakes[i];

		verify(CHECK_WAKES, backend >= 0 && backend < engine->nbackends,
			   "no such backend: %d", backend);
		sessions[backend].woken = sessions[backend].just_woken = true;
	}
	nwakes += fx->nwakes;
	fx->nwakes = 0;
}

/* ---- Chance ---- */

static uint64 random_state;

void
seed_random(uint64 new_seed)
{
	random_state = new_seed;
}

/* splitmix64 */
uint64
random_below(uint64 n)
{
	uint64		x = (random_state += UINT64CONST(0x9e3779b97f4a7c15));

	x = (x ^ (x >> 30)) * UINT64CONST(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64CONST(0x94d049bb133111eb);
	return (x ^ (x >> 31)) % n;
}

bool
one_in(int n)
{
	return random_below(n) == 0;
}

/* ---- A run ---- */

/* An empty engine, with the supplies of the model. */
void
open_engine(int max_leases, int nbackends, bool barriers)
{
	end_run();
	engine = malloc(dl_engine_size(max_leases, nbackends));
	if (engine == NULL)
	{
		printf("Bail out! Out of memory\n");
		exit(2);
	}
	dl_engine_init(engine, max_leases, nbackends, barriers);
	nlock_records = count_free(DL_LOCK);
	model.forgotten = barriers;
	model.settled = 0;
	model.settle_stage = 0;
	for (int d = 0; d < NDATABASES; d++)
	{
		DlSupply   *supply = &supplies[d];

		pg_atomic_init_u64(&supply->next, model.next_token[d]);
		pg_atomic_init_u64(&supply->limit, model.limit[d]);
		pg_atomic_init_u64(&supply->opens_at, model.opens_at[d]);
		for (int kept = 0; kept < DL_NKEPT; kept++)
		{
			pg_atomic_init_u32(&supply->nbuckets[kept], model.nbuckets[d][kept]);
			for (int b = 0; b < DL_TTL_BUCKETS; b++)
				pg_atomic_init_u32(&supply->live[kept][b], 0);
		}
	}
}

void
begin_run(int max_leases, int nbackends, bool barriers)
{
	memset(&model, 0, sizeof(model));
	memset(sessions, 0, sizeof(sessions));
	model.now = 1000;
	model.max_leases = max_leases;
	model.nbackends = nbackends;
	for (int d = 0; d < NDATABASES; d++)
	{
		model.next_token[d] = 1;
		model.limit[d] = run.scarce ? 0 : PG_INT64_MAX / 2;
		model.attached[d] = true;
		for (int kept = 0; kept < DL_NKEPT; kept++)
			model.nbuckets[d][kept] = run.narrow ? 0 : DL_TTL_BUCKETS;
	}
	open_engine(max_leases, nbackends, barriers);
	begin_checks();
	begin_disk();
	begin_jobs();
	begin_owed();
	step = noperations = ntrace = 0;
}

void
end_run(void)
{
	free(engine);
	engine = NULL;
}

/*
 * Locks of a few names, each in several databases and extensions.  The mask
 * makes hashes collide.
 */
void
make_locks(int nlocks, int nnames, uint32 mask)
{
	model.nlocks = nlocks;
	for (int i = 0; i < nlocks; i++)
	{
		ModelLock  *lock = &model.locks[i];
		DlKey	   *key = &lock->key;
		int			scope = i / nnames;
		int			name = i % nnames;

		lock->table = scope;
		lock->database = scope % NDATABASES;
		lock->usual_limit = run.limiting && scope % 3 != 1 ? 1 + random_below(MAX_LIMIT) : 0;
		key->database = 1 + lock->database;
		key->extension = 100 + scope / NDATABASES;
		key->len = name == 1 ? DL_NAME_MAX : 1 + name / 26;
		memset(key->name, 'a' + name % 26, key->len);
		key->name[key->len] = '\0';
		key->hash = (uint32) ((key->database * 31 + key->extension) * 1009 + name) *
			UINT32_C(2654435761) >> 7 & mask;
	}
}

void
begin_operation(const char *what, int64 a, int64 b)
{
	note(what, a, b);
	model.ended = false;
	model.earliest = DL_FOREVER;
	memset(model.wanted, 0, sizeof(model.wanted));
	nwakes = 0;
	for (int b = 0; b < model.nbackends; b++)
	{
		Session    *session = &sessions[b];

		session->just_woken = false;
		for (int i = 0; session->claims[0] != NULL && i < session->request.nkeys; i++)
		{
			session->was_ready[i] = session->records[i]->ready;
			session->was_timer[i] = session->records[i]->timer;
		}
	}
	for (int i = 0; i < model.nlocks; i++)
		model.locks[i].news = false;
}

void
finish_operation(int partition, DlEffects *fx, int actor)
{
	finish_in(UINT32_C(1) << partition, fx, actor);
}

/*
 * What was done in these partitions.  "actor" is the backend that acts for
 * itself, or -1.
 */
void
finish_in(uint32 partitions, DlEffects *fx, int actor)
{
	verify(CHECK_WAKES, fx->nwakes >= 0 && fx->nwakes <= DL_MAX_WAKES, "%d wakes", fx->nwakes);
	dl_effects_wake(fx);
	check_grants();
	for (int p = 0; p < DL_NPARTITIONS; p++)
		if ((partitions >> p & 1) != 0)
			check_partition(p);
	if (noperations++ % FULL_CHECK == 0)
		check_all_partitions();
	check_free_records();
	check_wakes(actor);
	check_sessions();
	verify(CHECK_MODEL, fx->over == model.ended, "ended leases to be logged: %d", fx->over);
	verify(CHECK_MODEL, fx->deadline <= model.earliest, "the worker is told too late a deadline");
	verify(CHECK_BUCKETS, memcmp(fx->wanted, model.wanted, sizeof(model.wanted)) == 0,
		   "%d and %d buckets wanted, should be %d and %d", fx->wanted[DL_VOLATILE],
		   fx->wanted[DL_DURABLE], model.wanted[DL_VOLATILE], model.wanted[DL_DURABLE]);
}

void
set_opens_at(int database, int64 opens_at)
{
	model.opens_at[database] = opens_at;
	pg_atomic_write_u64(&supplies[database].opens_at, opens_at);
}

void
set_nbuckets(int database, DlKept kept, int nbuckets)
{
	model.nbuckets[database][kept] = nbuckets;
	pg_atomic_write_u32(&supplies[database].nbuckets[kept], nbuckets);
}

/* See to it that there are tokens, and that so many buckets are open. */
void
refill(int database, const int *wanted)
{
	if (model.limit[database] < PG_INT64_MAX / 2)
		model.limit[database] += 1 + random_below(6);
	pg_atomic_write_u64(&supplies[database].limit, model.limit[database]);
	for (int kept = 0; kept < DL_NKEPT; kept++)
		set_nbuckets(database, kept, Max(wanted[kept], model.nbuckets[database][kept]));
}

static int64 nsteps = DEFAULT_STEPS;

static void
random_run(void)
{
	static const uint32 masks[] = {PG_UINT32_MAX, 0, 3, 0x3e0};
	int			max_leases;
	int			nbackends;
	int			nlocks;
	int			nnames;
	bool		barriers;

	seed_random(seed);
	run.prompt = seed % 2 == 1;
	run.sweeping = !run.prompt || one_in(3);
	run.freezing = !one_in(3);
	run.scarce = one_in(3);
	run.guarding = !one_in(4);
	run.preparing = run.guarding && !one_in(3);
	run.storing = !one_in(3);
	run.narrow = one_in(3);
	run.limiting = !one_in(3);
	run.combining = !one_in(3);
	run.repeating = !one_in(3);
	run.watching = one_in(2);
	run.bridging = one_in(3);
	barriers = run.preparing ? !one_in(3) : one_in(4);
	max_leases = one_in(2) ? 4 + random_below(12) : 16 + random_below(MAX_CLAIMS - 15);
	if (run.storing)
		max_leases = Min(max_leases, 3 * MAX_CLAIMS / 4);
	nbackends = one_in(2) ? 2 + random_below(8) : MAX_BACKENDS;
	nlocks = 1 + random_below(one_in(3) ? 3 : MAX_LOCKS);
	nnames = 1 + random_below(run.combining ? 6 : 4);
	begin_run(max_leases, nbackends, barriers);
	make_locks(nlocks, nnames, masks[seed / 2 % lengthof(masks)]);

	/* Transactions prepared before the server was started. */
	for (int n = barriers ? random_below(4) : 0; n > 0; n--)
	{
		ModelLock  *lock = random_lock();
		DlMode		mode = random_below(NMODES);

		lock->nheld[mode]++;
		lock->nprepared[mode]++;
	}
	while (step++ < nsteps)
		random_operation();
	end_everything();
}

/* For scenes.c: one lock, and everybody comes when he should. */
void
begin_scene(int nbackends)
{
	run.prompt = true;
	run.sweeping = run.freezing = run.scarce = false;
	run.guarding = run.preparing = run.narrow = false;
	run.limiting = run.combining = run.repeating = run.watching = run.bridging = false;
	run.storing = true;
	begin_run(MAX_CLAIMS, nbackends, false);
	make_locks(1, 1, 0);
}

/* ---- Main ---- */

static int64
argument(int argc, char **argv, int i)
{
	char	   *end;
	int64		value;

	if (i >= argc)
	{
		fprintf(stderr, "%s needs a number\n", argv[i - 1]);
		exit(2);
	}
	value = strtoll(argv[i], &end, 10);
	if (*end != '\0' || value < 0)
	{
		fprintf(stderr, "not a number: \"%s\"\n", argv[i]);
		exit(2);
	}
	return value;
}

int
main(int argc, char **argv)
{
	uint64		first_seed = 1;
	uint64		last_seed = DEFAULT_SEEDS;
	int64		total_steps = 0;
	int64		total_operations = 0;
	bool		scenes = true;
	bool		ok = true;

	for (int i = 1; i < argc; i += 2)
	{
		if (strcmp(argv[i], "--seed") == 0)
		{
			first_seed = last_seed = argument(argc, argv, i + 1);
			scenes = false;
		}
		else if (strcmp(argv[i], "--steps") == 0)
			nsteps = argument(argc, argv, i + 1);
		else if (strcmp(argv[i], "--leases") == 0)
			large_leases = argument(argc, argv, i + 1);
		else
		{
			fprintf(stderr, "usage: %s [--seed N] [--steps N per seed] [--leases N]\n", argv[0]);
			return 2;
		}
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGALRM, bail_out);
	signal(SIGSEGV, bail_out);
	signal(SIGBUS, bail_out);

	printf("1..%d\n", NCHECKS);
	for (seed = first_seed; seed <= last_seed; seed++)
	{
		attempt(random_run);
		total_steps += Min(step, nsteps);
		total_operations += noperations;
	}
	printf("# seeds %llu to %llu, %lld steps, %lld operations compared with the model\n",
		   (unsigned long long) first_seed, (unsigned long long) last_seed,
		   (long long) total_steps, (long long) total_operations);
	for (int i = 0; i < 2; i++)
	{
		static const char *const names[] = {
			[DL_TOLD] = "told",[DL_UNTOLD] = "untold",[DL_QUEUED] = "queued",[DL_BUSY] = "busy",
			[DL_FULL] = "full",[DL_NO_TOKEN] = "no token",[DL_BARRED] = "barred",[DL_AGAIN] = "again",
			[DL_GONE] = "gone",[DL_REPEATED] = "repeated",[DL_OTHER_LIMIT] = "other limit",
			[DL_OTHER_REQUEST] = "other request",[DL_EXPIRED_ID] = "expired id",[DL_REPLACED] = "replaced"
		};

		printf("# %s:", i == 0 ? "requests" : "looks");
		for (DlVerdict v = 0; v <= DL_REPLACED; v++)
			printf(" %s %lld%s", names[v], (long long) events.verdicts[i][v], v < DL_REPLACED ? "," : "\n");
	}
	printf("# several locks told %lld, granted by others %lld; overtaken %lld, told again elsewhere %lld, rolled back %lld; changes watched %lld\n",
		   (long long) events.several, (long long) events.helped, (long long) events.overtaken,
		   (long long) events.moved, (long long) events.undone, (long long) events.watched);
	printf("# guards %lld, none left %lld, commits %lld, preparations %lld, refused %lld, leases ended under a commit %lld, stale %lld\n",
		   (long long) events.guards, (long long) events.no_guard,
		   (long long) events.commits, (long long) events.prepared,
		   (long long) events.refused, (long long) events.pinned, (long long) events.stale);
	printf("# barriers passed %lld, forgotten %lld, settled %lld\n",
		   (long long) events.passed, (long long) events.forgotten, (long long) events.settled);
	printf("# images written %lld, of leases that had ended %lld, longer %lld, cleared %lld, overwritten by others %lld; sessions failed meanwhile %lld\n",
		   (long long) events.written, (long long) events.unwritten, (long long) events.rewritten,
		   (long long) events.cleared, (long long) events.missed, (long long) events.failed);
	printf("# crashes %lld, records lost %lld, leases brought back %lld, images with a successor %lld, partly ended requests made again %lld, databases that did not fit %lld, a server of their own %lld; renewals refused %lld\n",
		   (long long) events.crashes, (long long) events.lost, (long long) events.recovered,
		   (long long) events.superseded, (long long) events.partly, (long long) events.unfit,
		   (long long) events.too_many, (long long) events.renewals_refused);
	seed = 0;
	if (scenes)
	{
		attempt(test_frozen);
		attempt(test_frozen_shared);
		attempt(test_hand_over);
		attempt(test_successor);
		attempt(test_announce);
		attempt(test_few_wakes);
		attempt(test_grace);
		attempt(test_recovery);
		attempt(test_no_image);
		attempt(test_late_writer);
		attempt(test_ttls);
		attempt(test_large_heap);
		attempt(test_sweep);
		attempt(test_threads);
	}
	end_run();

	for (Check check = 0; check < NCHECKS; check++)
	{
		printf("%s %d - %s%s\n", failed[check] ? "not ok" : "ok", check + 1,
			   check_names[check],
			   !scenes && check >= CHECK_FROZEN && check != CHECK_FEW_WAKES ?
			   " # SKIP one seed only" : "");
		ok = ok && !failed[check];
	}
	return ok ? 0 : 1;
}
