/*-------------------------------------------------------------------------
 *
 * client.c
 *	  One client of the fault test: one workload, one seed, one log.
 *
 * usage: client NUMBER WORKLOAD SEED DIRECTORY
 *
 * Connects by the environment, and again whenever the connection is lost, until
 * SIGTERM.  Each call is in the log before it is sent, and what became of it
 * when that is known, with microseconds of CLOCK_MONOTONIC.  Each line is
 * handed to the kernel before the client goes on, so that kill -9 loses nothing
 * that it has acted upon.
 *
 *		TIME call	ID what=... names=a,b ...	a call is about to be sent
 *		TIME answer	ID token=... | value=... | none=1 | error=SQLSTATE
 *		TIME lost	ID							the connection broke instead
 *		TIME begin, connect, close, end	0 ...
 *
 * The fields are separated by tabs.  It believes in a lease as a careful client
 * does, until its time to live has passed since the acquire or the renewal was
 * sent; but with a guard, or where tokens are compared, it sometimes goes on
 * after that, as one that was paused would.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "libpq-fe.h"

#define lengthof(array)	((int) (sizeof(array) / sizeof((array)[0])))

typedef enum Outcome
{
	ANSWERED,
	NONE,						/* answered with null, or no rows */
	REFUSED,					/* an error, and the connection stands */
	LOST						/* nobody knows */
} Outcome;

typedef struct Lease
{
	char		names[64];		/* with commas between them */
	bool		several;
	int			ttl;			/* ms; 0: none */
	bool		session;		/* does it end with the connection? */
	bool		durable;
	int			connection;
	long long	token;
	int64_t		until;			/* we believe in it so long */
} Lease;

/* A workload: what is asked for, and what is done while it is held. */
typedef struct Workload
{
	const char *name;
	void		(*ask) (void);
	void		(*work) (Lease *lease);
	int			walk_away;		/* percentage of leases not released */
} Workload;

static const Workload *workload;
static int	number;
static const char *directory;
static int	logfile;
static volatile sig_atomic_t stopping;
static PGconn *conn;
static int	connection;			/* how often we have connected */
static int	last_id;
static int	last_op;
static int	last_request;

static void
die(const char *what)
{
	fprintf(stderr, "client %d: %s: %s\n", number, what, strerror(errno));
	exit(1);
}

static int
pick(int n)
{
	return random() % n;
}

static bool
chance(int percent)
{
	return pick(100) < percent;
}

static int64_t
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void
pause_ms(int ms)
{
	int64_t		end = now_us() + (int64_t) ms * 1000;

	while (!stopping && now_us() < end)
		usleep(5000);
}

/* ---- The log ---- */

/* Write one line; returns its time. */
static int64_t
note(const char *event, int id, const char *format,...)
{
	char		line[1024];
	int64_t		now = now_us();
	int			len = snprintf(line, sizeof(line), "%lld\t%s\t%d\t", (long long) now, event, id);
	va_list		args;

	va_start(args, format);
	len += vsnprintf(line + len, sizeof(line) - len, format, args);
	va_end(args);
	if (len >= (int) sizeof(line) - 1)
		die("log line too long");
	line[len++] = '\n';
	if (write(logfile, line, len) != len)
		die("could not write the log");
	return now;
}

/* ---- The connection ---- */

static void
disconnect(void)
{
	PQfinish(conn);
	conn = NULL;
}

static void
run_quietly(const char *sql)
{
	PQclear(PQexec(conn, sql));
}

/* That the server goes down is no news here. */
static void
ignore_notice(void *arg, const char *message)
{
}

static void
connect_again(void)
{
	static const char *const timeouts[] = {
		"SET statement_timeout = '700ms'",
		"SET statement_timeout = '1200ms'",
		"SET lock_timeout = '500ms'",
		"SET idle_in_transaction_session_timeout = '200ms'",
	};
	char		conninfo[64];

	if (conn && PQstatus(conn) != CONNECTION_BAD)
		return;
	snprintf(conninfo, sizeof(conninfo), "dbname=postgres application_name='client %d'", number);
	for (;;)
	{
		if (conn)
			disconnect();
		conn = PQconnectdb(conninfo);
		if (PQstatus(conn) == CONNECTION_OK)
			break;
		if (stopping)
		{
			note("end", 0, "connected=0");
			exit(0);
		}
		usleep(50000);
	}
	connection++;
	note("connect", 0, "pid=%d", PQbackendPID(conn));
	PQsetNoticeProcessor(conn, ignore_notice, NULL);
	if (chance(25))
		run_quietly(timeouts[pick(lengthof(timeouts))]);
}

/*
 * Send a statement that has been noted as call "id", and note what becomes of
 * it.  The first value of the answer, or the command tag, goes to "value".
 */
static Outcome
ask_server(int id, const char *sql, const char *kind, char *value, size_t size)
{
	PGresult   *result = PQexec(conn, sql);
	ExecStatusType status = PQresultStatus(result);
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	bool		good = status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
	Outcome		outcome = ANSWERED;

	if (size > 0)
		value[0] = '\0';

	/*
	 * Errors without SQLSTATE are those of libpq, which may take a broken
	 * connection for good as long as something can be read from it.
	 */
	if (PQstatus(conn) == CONNECTION_BAD || (!good && !sqlstate))
	{
		note("lost", id, "");
		outcome = LOST;
	}
	else if (status == PGRES_TUPLES_OK &&
			 (PQntuples(result) == 0 || PQgetisnull(result, 0, 0)))
	{
		note("answer", id, "none=1");
		outcome = NONE;
	}
	else if (good)
	{
		const char *answer = status == PGRES_TUPLES_OK ?
			PQgetvalue(result, 0, 0) : PQcmdStatus(result);

		note("answer", id, "%s=%s", kind, answer);
		if (size > 0)
			snprintf(value, size, "%s", answer);
	}
	else
	{
		note("answer", id, "error=%s", sqlstate);
		if (strncmp(sqlstate, "XX", 2) == 0)
			fprintf(stderr, "client %d call %d: %s", number, id, PQresultErrorMessage(result));
		outcome = REFUSED;
	}
	PQclear(result);
	if (outcome == LOST)
		disconnect();
	return outcome;
}

/* Note a call, and send it. */
static Outcome
call(const char *what, const Lease *lease, const char *sql, char *value, size_t size)
{
	int			id = ++last_id;

	if (lease)
		note("call", id, "what=%s\tnames=%s\ttoken=%lld", what, lease->names, lease->token);
	else
		note("call", id, "what=%s", what);
	return ask_server(id, sql, "value", value, size);
}

static void
roll_back(void)
{
	if (conn)
		call("sql", NULL, "ROLLBACK", NULL, 0);
}

/* ---- Leases ---- */

/* "a,b" as the argument of a function */
static void
names_argument(const Lease *lease, char *argument, size_t size)
{
	snprintf(argument, size, lease->several ? "'{%s}'" : "'%s'", lease->names);
}

static bool
believed(const Lease *lease)
{
	return (!lease->session || lease->connection == connection) &&
		(lease->ttl == 0 || now_us() < lease->until);
}

/*
 * Ask for a lease.  With "hang_up" the connection is closed before the answer
 * can be read.
 */
static Outcome
acquire(Lease *lease, const char *mode, int limit, const char *request, bool hang_up)
{
	int			wait = chance(40) ? -1 : chance(30) ? 0 : pick(4000);
	const char *durable = lease->durable ? "true" : "false";
	const char *all = lease->several ? "_all" : "";
	char		names[80];
	char		arguments[512];
	char		sql[640];
	char		value[32];
	int			len;
	int			id;
	int64_t		sent;
	Outcome		outcome;

	connect_again();
	names_argument(lease, names, sizeof(names));
	len = snprintf(arguments, sizeof(arguments), "%s, mode => '%s', scope => '%s', durable => %s",
				   names, mode, lease->session ? "session" : "lease", durable);
	if (lease->ttl > 0)
		len += snprintf(arguments + len, sizeof(arguments) - len, ", ttl => '%d ms'", lease->ttl);
	if (wait >= 0)
		len += snprintf(arguments + len, sizeof(arguments) - len, ", wait => '%d ms'", wait);
	if (limit > 0)
		len += snprintf(arguments + len, sizeof(arguments) - len, ", max_holders => %d", limit);
	if (request)
		len += snprintf(arguments + len, sizeof(arguments) - len, ", request_id => '%s'", request);
	if (wait >= 0 && chance(60))
		snprintf(sql, sizeof(sql), "SELECT distlock_try_acquire%s(%s)", all, arguments);
	else if (!lease->several && chance(20))
		snprintf(sql, sizeof(sql), "CALL distlock_lock(%s)", arguments);
	else
		snprintf(sql, sizeof(sql), "SELECT distlock_acquire%s(%s)", all, arguments);

	id = ++last_id;
	sent = note("call", id,
				"what=acquire\tnames=%s\tmode=%s\tscope=%s\tdurable=%s\tttl=%d\twait=%d\tlimit=%d\trequest=%s",
				lease->names, mode, lease->session ? "session" : "lease", durable, lease->ttl, wait,
				limit, request ? request : "");
	if (hang_up)
	{
		PQsendQuery(conn, sql);
		pause_ms(pick(100));
		note("lost", id, "");
		disconnect();
		return LOST;
	}
	outcome = ask_server(id, sql, "token", value, sizeof(value));
	if (outcome == ANSWERED)
	{
		lease->token = atoll(value);
		lease->until = sent + (int64_t) lease->ttl * 1000;
		lease->connection = connection;
	}
	return outcome;
}

static Outcome
renew(Lease *lease, int ttl)
{
	char		names[80];
	char		sql[256];
	int			id = ++last_id;
	int64_t		sent;
	Outcome		outcome;

	names_argument(lease, names, sizeof(names));
	snprintf(sql, sizeof(sql), "SELECT distlock_renew%s(%s, %lld, '%d ms')",
			 lease->several ? "_all" : "", names, lease->token, ttl);
	sent = note("call", id, "what=renew\tnames=%s\ttoken=%lld\tttl=%d", lease->names, lease->token, ttl);
	outcome = ask_server(id, sql, "value", NULL, 0);
	if (outcome == ANSWERED || sent + (int64_t) ttl * 1000 < lease->until)
		lease->until = sent + (int64_t) ttl * 1000;
	return outcome;
}

/* One of the calls that take nothing but names and token. */
static Outcome
use(const char *what, Lease *lease, char *value, size_t size)
{
	char		names[80];
	char		sql[256];

	names_argument(lease, names, sizeof(names));
	snprintf(sql, sizeof(sql), "SELECT distlock_%s%s(%s, %lld)", what,
			 lease->several ? "_all" : "", names, lease->token);
	return call(what, lease, sql, value, size);
}

/*
 * Work under a lease, and release it or walk away.  One that ends with the
 * session is not left behind: the next request would wait for it, and for itself.
 */
static void
hold(Lease *lease)
{
	int			steps = 1 + pick(6);

	for (int i = 0; i < steps && !stopping; i++)
	{
		connect_again();
		if (lease->session && lease->connection != connection)
			return;

		/* It may still be ours, after a long wait for instance: ask. */
		if (!believed(lease) && lease->ttl > 0 && chance(70))
			renew(lease, lease->ttl);
		if (!believed(lease) && !workload->work)
			break;
		if (workload->work && chance(50))
			workload->work(lease);
		else if (chance(35) && lease->ttl > 0)
			renew(lease, chance(80) ? lease->ttl : 1000 + pick(2000));
		else if (chance(30))
			use("check", lease, NULL, 0);
		else if (chance(4))
			pause_ms(lease->ttl + 100);
		else
			pause_ms(pick(100));
	}

	if (lease->session)
	{
		if (conn && lease->connection == connection &&
			(chance(30) || use("release", lease, NULL, 0) != ANSWERED))
		{
			note("close", 0, "");
			disconnect();
		}
		return;
	}
	if (!stopping && chance(workload->walk_away))
		return;
	connect_again();
	use("release", lease, NULL, 0);
}

/* ---- Workloads ---- */

static Lease
new_lease(const char *prefix, int nnames, bool may_be_session)
{
	Lease		lease = {.ttl = 1000 + pick(2000)};

	lease.session = may_be_session && chance(30);
	if (lease.session && chance(50))
		lease.ttl = 0;
	lease.durable = !lease.session && chance(50);
	snprintf(lease.names, sizeof(lease.names), "%s%d", prefix, chance(50) ? 0 : pick(nnames));
	return lease;
}

static void
ask_exclusive(void)
{
	Lease		lease = chance(60) ? new_lease("e", 3, true) : new_lease("r", 2, true);

	if (acquire(&lease, "exclusive", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

static void
ask_for_lease(void)
{
	Lease		lease = new_lease("e", 3, false);

	if (acquire(&lease, "exclusive", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

static void
ask_shared(void)
{
	Lease		lease = new_lease("s", 3, true);

	if (acquire(&lease, chance(70) ? "shared" : "exclusive", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

static void
ask_semaphore(void)
{
	Lease		lease = new_lease("p", 2, true);

	if (acquire(&lease, "exclusive", 3, NULL, false) == ANSWERED)
		hold(&lease);
}

static void
ask_several(void)
{
	Lease		lease = new_lease("s", 3, true);
	int			left_out = pick(4);

	lease.several = true;
	lease.names[0] = '\0';
	for (int i = 0; i < 3; i++)
	{
		if (i != left_out)
			sprintf(lease.names + strlen(lease.names), "%ss%d", lease.names[0] ? "," : "", i);
	}
	if (acquire(&lease, chance(60) ? "exclusive" : "shared", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

/* Send a request until it is answered, and sometimes once more. */
static void
ask_again(void)
{
	Lease		lease = new_lease("r", 2, false);
	bool		hang_up = chance(40);
	char		request[32];
	Outcome		outcome;

	snprintf(request, sizeof(request), "%d/%d", number, ++last_request);
	do
	{
		outcome = acquire(&lease, "exclusive", 0, request, hang_up);
		hang_up = chance(10);
	} while (outcome == LOST && !stopping);
	if (outcome == ANSWERED && chance(20))
	{
		pause_ms(pick(500));
		outcome = acquire(&lease, "exclusive", 0, request, false);
	}
	if (outcome == ANSWERED)
		hold(&lease);
}

/*
 * Read, change and write back the counter of a lock, guarded.  Nothing but the
 * guard keeps updates from getting lost: what is written is what was read plus
 * one, and nothing is unique.
 */
static void
write_guarded(Lease *lease)
{
	int			op = ++last_op;
	bool		guard_late = chance(30);
	char		value[32];
	char		sql[512];
	int			n;
	int			id;

	if (call("sql", NULL, "BEGIN", NULL, 0) != ANSWERED)
		return;
	if (!guard_late && use("guard", lease, NULL, 0) != ANSWERED)
	{
		roll_back();
		return;
	}
	snprintf(sql, sizeof(sql), "SELECT n FROM counters WHERE name = '%s'", lease->names);
	if (call("sql", NULL, sql, value, sizeof(value)) != ANSWERED)
	{
		roll_back();
		return;
	}
	n = atoi(value) + 1;
	if (chance(40))
		pause_ms(pick(chance(25) ? 3500 : 200));
	snprintf(sql, sizeof(sql),
			 "WITH changed AS (UPDATE counters SET n = %d WHERE name = '%s')"
			 " INSERT INTO committed VALUES ('%s', %d, %lld, %d, %d)",
			 n, lease->names, lease->names, n, lease->token, number, op);
	if (call("sql", NULL, sql, NULL, 0) != ANSWERED ||
		(guard_late && use("guard", lease, NULL, 0) != ANSWERED))
	{
		roll_back();
		return;
	}
	if (chance(20))
		pause_ms(pick(chance(25) ? 3500 : 200));
	if (chance(10))
		use("release", lease, NULL, 0);
	id = ++last_id;
	note("call", id, "what=commit\tnames=%s\ttoken=%lld\tn=%d\top=%d",
		 lease->names, lease->token, n, op);
	ask_server(id, "COMMIT", "value", NULL, 0);
}

/*
 * A file as a receiver that keeps the greatest token seen.  Each line has a
 * token, what was done, the value, client and operation; the last one counts.
 * Returns false if a greater token was there before.
 */
static bool
touch_file(const char *what, Lease *lease, int op, int *value)
{
	char		path[1024];
	char		tail[128];
	int			file;
	int			id = ++last_id;
	int			len;
	off_t		size;
	long long	greatest = 0;
	int			found = 0;

	note("call", id, "what=%s\tnames=%s\ttoken=%lld\tn=%d\top=%d",
		 what, lease->names, lease->token, *value, op);
	snprintf(path, sizeof(path), "%s/file-%s", directory, lease->names);
	file = open(path, O_RDWR | O_CREAT | O_APPEND, 0600);
	if (file < 0 || flock(file, LOCK_EX) != 0)
		die(path);
	size = lseek(file, 0, SEEK_END);
	if (size > 0)
	{
		int			start;

		len = pread(file, tail, sizeof(tail) - 1, size < 127 ? 0 : size - 127);
		if (len < 2)
			die(path);
		tail[len] = '\0';
		for (start = len - 1; start > 0 && tail[start - 1] != '\n';)
			start--;
		if (sscanf(tail + start, "%lld\t%*s\t%d", &greatest, &found) != 2)
			die(path);
	}
	if (lease->token >= greatest)
	{
		if (strcmp(what, "file-read") == 0)
			*value = found;
		len = snprintf(tail, sizeof(tail), "%lld\t%s\t%d\t%d\t%d\n",
					   lease->token, what + strlen("file-"), *value, number, op);
		if (write(file, tail, len) != len)
			die(path);
		note("answer", id, "value=%d", *value);
	}
	else
		note("answer", id, "greatest=%lld", greatest);
	close(file);
	return lease->token >= greatest;
}

/* Read, change and write back a file, guarded by nothing but the token. */
static void
write_file(Lease *lease)
{
	int			op = ++last_op;
	int			value = 0;

	if (!touch_file("file-read", lease, op, &value))
		return;
	if (chance(40))
		pause_ms(pick(chance(15) ? 4000 : 200));
	value++;
	touch_file("file-write", lease, op, &value);
}

static const Workload workloads[] = {
	{"exclusive", ask_exclusive, NULL, 25},
	{"shared", ask_shared, NULL, 10},
	{"semaphore", ask_semaphore, NULL, 50},
	{"request", ask_again, NULL, 15},
	{"several", ask_several, NULL, 10},
	{"guard", ask_for_lease, write_guarded, 10},
	{"file", ask_for_lease, write_file, 10},
};

static void
stop(int signo)
{
	stopping = 1;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = stop,.sa_flags = SA_RESTART};
	char		path[1024];

	if (argc != 5)
	{
		fprintf(stderr, "usage: client NUMBER WORKLOAD SEED DIRECTORY\n");
		return 1;
	}
	number = atoi(argv[1]);
	for (int i = 0; i < lengthof(workloads); i++)
	{
		if (strcmp(workloads[i].name, argv[2]) == 0)
			workload = &workloads[i];
	}
	if (!workload)
	{
		fprintf(stderr, "unknown workload \"%s\"\n", argv[2]);
		return 1;
	}
	srandom(strtoul(argv[3], NULL, 10));
	directory = argv[4];
	sigaction(SIGTERM, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	snprintf(path, sizeof(path), "%s/client-%d.log", directory, number);
	logfile = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND, 0600);
	if (logfile < 0)
		die(path);
	note("begin", 0, "client=%d\tworkload=%s\tseed=%s", number, workload->name, argv[3]);
	while (!stopping)
	{
		workload->ask();
		pause_ms(pick(50));
	}
	if (conn)
		disconnect();
	note("end", 0, "connected=1");
	return 0;
}
