/*
 * How long until the next in the queue has the lock: from the moment the release
 * of its holder is sent to the moment the reply of the next holder is here, by
 * one clock, in the one process that serves all connections.
 *
 * The systems are measured on the same connections, in turn, round by round.
 * Who has released queues up again as soon as the reply to that is here.  At any
 * time one lock is being handed over; when it has its next holder, the release
 * of the next lock is sent (of the same one, if there is one).
 *
 * Prints a line for each round and system: its name, then the median, the 99th
 * percentile and the maximum in microseconds.
 *
 * Usage: hand_over LOCKS WAITERS ROUNDS HANDOVERS
 *        (WAITERS sessions wait for each lock; HANDOVERS a round and system)
 */
#include <libpq-fe.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

typedef struct System
{
	const char *name;
	const char *acquire;		/* $1: the lock */
	const char *release;		/* $1: the lock, $2: what acquire returned */
	int			nparams;		/* of release */
} System;

static const System systems[] = {
	{
		"advisory",
		"SELECT pg_advisory_lock($1)",
		"SELECT pg_advisory_unlock($1)", 1
	},
	{
		"session",
		"SELECT distlock_acquire($1, scope => 'session', durable => false)",
		"SELECT distlock_release($1, $2)", 2
	},
	{
		"lease",
		"SELECT distlock_acquire($1, scope => 'lease', durable => false)",
		"SELECT distlock_release($1, $2)", 2
	},
};

#define NSYSTEMS	((int) (sizeof(systems) / sizeof(systems[0])))

typedef enum State
{
	IDLE,
	ACQUIRING,
	HOLDING,
	RELEASING,
} State;

typedef struct Lock
{
	char		name[16];
	struct Client *holder;		/* null while it is handed over */
	double		released_at;
} Lock;

typedef struct Client
{
	PGconn	   *conn;
	State		state;
	Lock	   *lock;
	char		token[32];
} Client;

static int	epoll_fd;
static PGconn *observer;
static int	nlocks;
static Lock *locks;
static int	nclients;
static Client *clients;

/* Of the system that is measured now */
static int	current;			/* its number */
static bool requeueing;
static bool handing_over;
static int	nlatencies;
static int	nskipped;			/* of these, not to be counted */
static double *latencies;

static double
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e6 + ts.tv_nsec / 1e3;
}

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "hand_over: %s: %s\n", what, why);
	exit(1);
}

static PGconn *
connect_one(void)
{
	PGconn	   *conn = PQconnectdb("");

	if (PQstatus(conn) != CONNECTION_OK)
		fail("connect", PQerrorMessage(conn));
	return conn;
}

static void
prepare(PGconn *conn, const char *kind, int system, const char *query)
{
	char		name[32];
	PGresult   *result;

	snprintf(name, sizeof(name), "%s %d", kind, system);
	result = PQprepare(conn, name, query, 0, NULL);
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail(query, PQerrorMessage(conn));
	PQclear(result);
}

static void
open_clients(void)
{
	for (int i = 0; i < nclients; i++)
	{
		Client	   *client = &clients[i];
		struct epoll_event event = {.events = EPOLLIN,.data.ptr = client};

		client->lock = &locks[i % nlocks];
		client->conn = connect_one();
		for (int s = 0; s < NSYSTEMS; s++)
		{
			prepare(client->conn, "acquire", s, systems[s].acquire);
			prepare(client->conn, "release", s, systems[s].release);
		}
		if (PQsetnonblocking(client->conn, 1) != 0)
			fail("connect", PQerrorMessage(client->conn));
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, PQsocket(client->conn), &event);
	}
}

static void
send_statement(Client *client, const char *kind, int nparams)
{
	const char *values[2] = {client->lock->name, client->token};
	char		name[32];

	snprintf(name, sizeof(name), "%s %d", kind, current);
	if (!PQsendQueryPrepared(client->conn, name, nparams, values, NULL, NULL, 0) ||
		PQflush(client->conn) != 0)
		fail("send", PQerrorMessage(client->conn));
}

static void
acquire(Client *client)
{
	client->state = ACQUIRING;
	send_statement(client, "acquire", 1);
}

static void
release(Client *client)
{
	Lock	   *lock = client->lock;

	client->state = RELEASING;
	lock->holder = NULL;
	lock->released_at = now_us();
	send_statement(client, "release", systems[current].nparams);
}

/* The reply to the acquire is here, since "now". */
static void
acquired(Client *client, double now)
{
	Lock	   *lock = client->lock;

	if (lock->holder != NULL)
		fail(lock->name, "has two holders");
	lock->holder = client;
	client->state = HOLDING;
	if (!handing_over)
		return;
	latencies[nlatencies++] = now - lock->released_at;
	if (!requeueing)
		return;
	if (++lock == locks + nlocks)
		lock = locks;
	release(lock->holder);
}

static void
take_reply(Client *client, double now)
{
	PGresult   *result;
	bool		released = client->state == RELEASING;

	if (!PQconsumeInput(client->conn))
		fail("read", PQerrorMessage(client->conn));
	while (!PQisBusy(client->conn))
	{
		result = PQgetResult(client->conn);
		if (result == NULL)
		{
			if (!released)
				acquired(client, now);
			else if (requeueing)
				acquire(client);
			else
				client->state = IDLE;
			return;
		}
		if (PQresultStatus(result) != PGRES_TUPLES_OK)
			fail(released ? "release" : "acquire", PQerrorMessage(client->conn));
		if (!released)
			snprintf(client->token, sizeof(client->token), "%s", PQgetvalue(result, 0, 0));
		else if (strcmp(PQgetvalue(result, 0, 0), "t") != 0)
			fail("release", "was not held");
		PQclear(result);
	}
}

static void
serve(void)
{
	struct epoll_event events[64];
	int			n = epoll_wait(epoll_fd, events, 64, 60000);
	double		now = now_us();

	if (n <= 0)
		fail("epoll_wait", n == 0 ? "nothing has happened for a minute" : "failed");
	for (int i = 0; i < n; i++)
		take_reply(events[i].data.ptr, now);
}

static bool
all_held(void)
{
	for (int i = 0; i < nlocks; i++)
		if (locks[i].holder == NULL)
			return false;
	return true;
}

/* How many sessions are in one of these states? */
static int
count(State one, State other)
{
	int			n = 0;

	for (int i = 0; i < nclients; i++)
		n += clients[i].state == one || clients[i].state == other;
	return n;
}

/* Wait until all who acquire, sleep. */
static void
await_sleepers(void)
{
	int			sleeping;

	do
	{
		PGresult   *result = PQexec(observer, "SELECT count(*) FROM pg_stat_activity"
									" WHERE state = 'active' AND wait_event IS NOT NULL");

		if (PQresultStatus(result) != PGRES_TUPLES_OK)
			fail("pg_stat_activity", PQerrorMessage(observer));
		sleeping = atoi(PQgetvalue(result, 0, 0));
		PQclear(result);
	} while (sleeping < nclients - nlocks);
}

/* Measure one system. */
static void
measure(int system, int nhand_overs)
{
	current = system;
	requeueing = true;
	handing_over = false;
	nlatencies = 0;
	for (int i = 0; i < nlocks; i++)
		acquire(&clients[i]);
	while (!all_held())
		serve();
	for (int i = nlocks; i < nclients; i++)
		acquire(&clients[i]);
	await_sleepers();

	handing_over = true;
	release(locks[0].holder);
	while (nlatencies < nskipped + nhand_overs)
		serve();

	/* Let all have their turn, so that everything is as before. */
	requeueing = false;
	handing_over = false;
	while (count(IDLE, IDLE) < nclients)
	{
		for (int i = 0; i < nlocks; i++)
			if (locks[i].holder != NULL)
				release(locks[i].holder);
		if (count(ACQUIRING, RELEASING) > 0)
			serve();
	}
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
}

int
main(int argc, char **argv)
{
	int			nwaiters;
	int			nrounds;
	int			nhand_overs;

	if (argc != 5)
		fail("usage", "hand_over LOCKS WAITERS ROUNDS HANDOVERS");
	nlocks = atoi(argv[1]);
	nwaiters = atoi(argv[2]);
	nrounds = atoi(argv[3]);
	nhand_overs = atoi(argv[4]);
	if (nlocks < 1 || nwaiters < 1 || nrounds < 1 || nhand_overs < 1)
		fail("usage", "numbers must be positive");
	nclients = nlocks * (nwaiters + 1);
	nskipped = nclients;
	locks = calloc(nlocks, sizeof(Lock));
	clients = calloc(nclients, sizeof(Client));
	latencies = calloc(nskipped + nhand_overs + nclients, sizeof(double));
	for (int i = 0; i < nlocks; i++)
		snprintf(locks[i].name, sizeof(locks[i].name), "%d", i + 1);
	epoll_fd = epoll_create1(0);
	observer = connect_one();
	open_clients();

	/* In each six rounds every order comes up once. */
	for (int round = 0; round < nrounds; round++)
		for (int i = 0; i < NSYSTEMS; i++)
		{
			int			s = (round + (round % 2 == 0 ? i : NSYSTEMS - i)) % NSYSTEMS;
			double	   *counted = latencies + nskipped;

			measure(s, nhand_overs);
			qsort(counted, nhand_overs, sizeof(double), compare);
			printf("%s %.1f %.1f %.1f\n", systems[s].name, counted[nhand_overs / 2],
				   counted[nhand_overs * 99L / 100], counted[nhand_overs - 1]);
			fflush(stdout);
		}
	for (int i = 0; i < nclients; i++)
		PQfinish(clients[i].conn);
	PQfinish(observer);
	return 0;
}
