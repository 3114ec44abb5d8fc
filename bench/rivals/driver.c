/*
 * Measure one lock service: the same work, by the same number of clients, for
 * each of them.  All clients are fibers of one thread, so that what is measured is
 * the service, and not how the clients compete with it for the processors.
 *
 * Usage: driver RIVAL TARGET WORK CLIENTS SECONDS [NAMES [TTL_MS]]
 *
 *		pairs		acquire and release, names at random
 *		one			all clients want one name, and keep it for a millisecond; who
 *					has released waits until another client has it
 *		renew		each client renews a lease of its own
 *		hold		NAMES leases are taken by all clients together, and left
 *		beat		as hold, then each of them is renewed every ten seconds; says
 *					"begin" and "end" when the seconds of that begin and end, and
 *					lets go of them a second later
 *		takeover	CLIENTS holders are killed, SECONDS times; see takeover.c
 *
 * Prints what it measured, a line for each, times in microseconds: "rate" is
 * acquires or renewals a second, "latency" that of one of them.  With "one" there
 * is "handover", from the moment a release is sent until the next holder has its
 * answer, and how many grants the least and the most fortunate client had.
 * "driver" is what part of the time this program was on a processor.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fibers.h"
#include "rival.h"
#include "samples.h"
#include "takeover.h"

#define HOLD_US	1000
#define BEAT_US	10000000

typedef struct Client
{
	int			number;
	void	   *session;
	long		done;
	Samples		latency;
	Samples		handover;
} Client;

static const Rival *rival;
static const char *target;
static void (*work) (Client *client);
static int	nclients;
static double seconds;
static int	names = 100000;
static int	ttl_ms = 30000;

/* What is done between these counts; nobody begins anything after the second. */
static int64_t begin_at = INT64_MAX;
static int64_t end_at = INT64_MAX;
static int64_t released_at;
static long grants;
static Signal another_grant;
static Barrier ready;
static Barrier holding;
static Barrier timed;
static double driver_share;

void
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fprintf(stderr, "driver: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(1);
}

static bool
is_over(void)
{
	return now_us() >= end_at;
}

bool
retry_after(int64_t us)
{
	int64_t		until = now_us() + us;

	sleep_until(until < end_at ? until : end_at);
	return !is_over();
}

int
pick(int n)
{
	return random() % n;
}

bool
retry_sometime(void)
{
	return retry_after(50000 + pick(200000));
}

/* ---- Work ---- */

/* Count something that has just been done, if it is time. */
static bool
count(Client *client, int64_t start, int64_t end)
{
	if (end < begin_at || end >= end_at)
		return false;
	add_sample(&client->latency, end - start);
	client->done++;
	return true;
}

static void
work_pairs(Client *client)
{
	while (!is_over())
	{
		Grant		grant;
		char		name[64];
		int64_t		start = now_us();

		snprintf(name, sizeof(name), "n%d", pick(names));
		rival->acquire(client->session, name, ttl_ms, &grant);
		(void) count(client, start, now_us());
		rival->release(client->session, &grant);
	}
}

/* Until another client has been granted the lock, or it is over. */
static void
wait_for_another(long nth)
{
	if (grants == nth && nclients > 1)
		wait_for_signal(&another_grant, end_at);
}

static void
work_one(Client *client)
{
	while (!is_over())
	{
		Grant		grant;
		int64_t		start = now_us();
		int64_t		got;
		int64_t		released;
		long		nth;

		rival->acquire(client->session, "one", ttl_ms, &grant);
		got = now_us();
		released = released_at;
		nth = ++grants;
		tell_all(&another_grant);
		if (count(client, start, got) && released > 0)
			add_sample(&client->handover, got - released);
		sleep_us(HOLD_US);
		released_at = now_us();
		rival->release(client->session, &grant);
		wait_for_another(nth);
	}
}

static void
work_renew(Client *client)
{
	Grant		grant;
	char		name[64];

	snprintf(name, sizeof(name), "r%d", client->number);
	rival->acquire(client->session, name, ttl_ms, &grant);
	while (!is_over())
	{
		int64_t		start = now_us();

		rival->renew(client->session, &grant, ttl_ms);
		(void) count(client, start, now_us());
	}
	rival->release(client->session, &grant);
}

static int
share_of(const Client *client)
{
	return names / nclients + (client->number < names % nclients);
}

static Grant *
hold(Client *client)
{
	int			n = share_of(client);
	Grant	   *grants = calloc(n, sizeof(Grant));

	if (!grants)
		die("out of memory");
	for (int i = 0; i < n; i++)
	{
		char		name[64];
		int64_t		start = now_us();

		snprintf(name, sizeof(name), "h%d", i * nclients + client->number);
		rival->acquire(client->session, name, ttl_ms, &grants[i]);
		(void) count(client, start, now_us());
	}
	return grants;
}

static void
work_hold(Client *client)
{
	free(hold(client));
}

static void
work_beat(Client *client)
{
	Grant	   *grants = hold(client);
	int			n = share_of(client);
	int64_t		start;
	int64_t		due;

	wait_at_barrier(&holding);
	wait_at_barrier(&timed);
	start = begin_at + (int64_t) client->number * BEAT_US / names;
	for (int64_t i = 0; n > 0 && (due = start + i * BEAT_US / n) < end_at; i++)
	{
		sleep_until(due);
		rival->renew(client->session, &grants[i % n], ttl_ms);
		(void) count(client, due, now_us());
	}
	/* Whoever reads "end" has to find the server as it was. */
	sleep_until(end_at + 1000000);
	for (int i = 0; i < n; i++)
		rival->release(client->session, &grants[i]);
	free(grants);
}

static void
be_client(void *arg)
{
	Client	   *client = arg;

	client->session = rival->open(target, client->number, ttl_ms);
	wait_at_barrier(&ready);
	work(client);
}

/* ---- All together ---- */

/* The first tenth is for warming up. */
static void
set_time(void)
{
	int64_t		now = now_us();

	begin_at = now + (int64_t) (seconds * 1e5);
	end_at = now + (int64_t) (seconds * 11e5);
}

static int64_t
processor_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* Let the clients begin, and end. */
static void
lead(void *arg)
{
	bool		aloud = work == work_beat;
	int64_t		used;

	wait_at_barrier(&ready);
	if (work == work_hold)
	{
		begin_at = now_us();
		return;
	}
	if (aloud)
		wait_at_barrier(&holding);
	set_time();
	if (aloud)
		wait_at_barrier(&timed);
	sleep_until(begin_at);
	used = processor_us();
	if (aloud)
	{
		puts("begin");
		fflush(stdout);
	}
	sleep_until(end_at);
	driver_share = (processor_us() - used) / (seconds * 1e6);
	if (aloud)
	{
		puts("end");
		fflush(stdout);
	}
}

static void
measure(void)
{
	Client	   *clients = calloc(nclients, sizeof(Client));
	Samples		latency = {0};
	Samples		handover = {0};
	long		done = 0;
	long		fewest;
	long		most = 0;

	if (!clients)
		die("out of memory");
	ready.missing = holding.missing = timed.missing = nclients + 1;
	for (int i = 0; i < nclients; i++)
	{
		clients[i].number = i;
		make_fiber(be_client, &clients[i]);
	}
	make_fiber(lead, NULL);
	run_fibers();

	fewest = clients[0].done;
	for (int i = 0; i < nclients; i++)
	{
		done += clients[i].done;
		fewest = clients[i].done < fewest ? clients[i].done : fewest;
		most = clients[i].done > most ? clients[i].done : most;
		merge_samples(&latency, &clients[i].latency);
		merge_samples(&handover, &clients[i].handover);
		free(clients[i].latency.us);
		free(clients[i].handover.us);
	}
	free(clients);
	printf("rate %.1f\n", done / (work == work_hold ? (now_us() - begin_at) / 1e6 : seconds));
	if (work != work_hold)
		printf("driver %.3f\n", driver_share);
	print_quantiles("latency", &latency);
	if (work == work_one)
	{
		print_quantiles("handover", &handover);
		printf("fewest %ld\nmost %ld\n", fewest, most);
	}
	free(latency.us);
	free(handover.us);
}

static const Rival *
find_rival(const char *name)
{
	const Rival *const tables[] = {postgres_rivals, redis_rivals, mariadb_rivals,
	zookeeper_rivals, etcd_rivals};

	for (int t = 0; t < 5; t++)
	{
		for (const Rival *r = tables[t]; r->name; r++)
		{
			if (strcmp(r->name, name) == 0)
				return r;
		}
	}
	die("unknown rival \"%s\"", name);
}

static void (*find_work(const char *name)) (Client *)
{
	static const struct
	{
		const char *name;
		void		(*work) (Client *);
	}			works[] = {
		{"pairs", work_pairs}, {"one", work_one}, {"renew", work_renew},
		{"hold", work_hold}, {"beat", work_beat}
	};

	for (int i = 0; i < 5; i++)
	{
		if (strcmp(works[i].name, name) == 0)
			return works[i].work;
	}
	die("unknown work \"%s\"", name);
}

int
main(int argc, char **argv)
{
	if (argc < 6 || argc > 8)
		die("usage: driver RIVAL TARGET WORK CLIENTS SECONDS [NAMES [TTL_MS]]");
	rival = find_rival(argv[1]);
	target = argv[2];
	nclients = (int) strtol(argv[4], NULL, 10);
	seconds = strtod(argv[5], NULL);
	if (argc > 6)
		names = (int) strtol(argv[6], NULL, 10);
	if (argc > 7)
		ttl_ms = (int) strtol(argv[7], NULL, 10);
	if (nclients < 1 || seconds <= 0 || names < 1 || ttl_ms < 1)
		die("numbers must be positive");
	srandom((unsigned) (now_us() ^ getpid()));
	if (strcmp(argv[3], "takeover") == 0)
	{
		measure_takeover(rival, target, nclients, (int) seconds, ttl_ms);
		return 0;
	}
	work = find_work(argv[3]);
	if (!rival->renew && (work == work_renew || work == work_beat))
		die("%s: there is nothing to renew", rival->name);
	measure();
	return 0;
}
