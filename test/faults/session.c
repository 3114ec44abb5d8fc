/*-------------------------------------------------------------------------
 *
 * session.c
 *	  The log of a client, its connection, and calls.
 *
 * The log has a line for each call before it is sent, and one for what became
 * of it when that is known, with microseconds of CLOCK_MONOTONIC.  Each line is
 * handed to the kernel before the client goes on, so that kill -9 loses nothing
 * that it has acted upon.
 *
 *		TIME call	ID what=... names=a,b ...	a call is about to be sent
 *		TIME answer	ID token=... | value=... | none=1 | error=SQLSTATE
 *		TIME lost	ID							the connection broke, or the answer
 *												took too long
 *		TIME begin, connect, close, end	0 ...
 *
 * The fields are separated by tabs.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "libpq-fe.h"

#include "client.h"

/*
 * An answer that takes so much longer than it has to is not waited for: the
 * network may have swallowed it.  More than a server process is stopped for.
 */
#define PATIENCE_MS	8000

int			connection;
char		sqlstate[6];

static int	logfile;
static int	last_id;
static PGconn *conn;

/* ---- The log ---- */

static int
open_log_of(int client, int flags)
{
	char		path[1024];
	int			file;

	snprintf(path, sizeof(path), "%s/client-%d.log", directory, client);
	file = open(path, flags, 0600);
	if (file < 0)
		die(path);
	return file;
}

/* It is locked as long as this client lives. */
void
open_log(void)
{
	logfile = open_log_of(number, O_WRONLY | O_CREAT | O_EXCL | O_APPEND);
	if (flock(logfile, LOCK_EX) != 0)
		die("could not lock the log");
}

bool
is_dead(int client)
{
	int			file = open_log_of(client, O_RDONLY);
	bool		dead = flock(file, LOCK_SH | LOCK_NB) == 0;

	close(file);
	return dead;
}

/* Write one line; returns its time. */
int64_t
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

int
new_id(void)
{
	return ++last_id;
}

/* ---- The connection ---- */

bool
connected(void)
{
	return conn != NULL && PQstatus(conn) != CONNECTION_BAD;
}

void
disconnect(void)
{
	PQfinish(conn);
	conn = NULL;
}

/* That the server goes down is no news here. */
static void
ignore_notice(void *arg, const char *message)
{
}

void
connect_again(void)
{
	static const char *const timeouts[] = {
		"statement_timeout=700",
		"statement_timeout=1200",
		"lock_timeout=500",
		"idle_in_transaction_session_timeout=200",
	};
	const char *timeout = !workload->patient && chance(25) ? timeouts[pick(lengthof(timeouts))] : NULL;
	char		conninfo[128];

	if (connected())
		return;
	snprintf(conninfo, sizeof(conninfo), "dbname=postgres application_name='client %d'%s%s%s",
			 number, timeout ? " options='-c " : "", timeout ? timeout : "", timeout ? "'" : "");
	for (;;)
	{
		if (conn)
			disconnect();
		conn = PQconnectdb(conninfo);
		if (PQstatus(conn) == CONNECTION_OK)
			break;
		if (stopping && !workload->finish)
		{
			note("end", 0, "connected=0");
			exit(0);
		}
		usleep(50000);
	}
	connection++;
	note("connect", 0, "pid=%d\t%s", PQbackendPID(conn), timeout ? timeout : "");
	PQsetNoticeProcessor(conn, ignore_notice, NULL);
}

/* ---- Calls ---- */

/*
 * As PQexec(), but returns null when there is no answer after so many
 * milliseconds.
 */
static PGresult *
execute(const char *sql, int limit)
{
	int64_t		end = now_us() + (int64_t) limit * 1000;
	PGresult   *last = NULL;
	PGresult   *result;

	if (!PQsendQuery(conn, sql))
		return NULL;
	for (;;)
	{
		while (PQisBusy(conn))
		{
			struct pollfd readable = {.fd = PQsocket(conn),.events = POLLIN};
			int64_t		left = end - now_us();

			/* If we have been stopped, the answer may be there by now. */
			if (poll(&readable, 1, left > 0 ? left / 1000 + 1 : 0) > 0)
			{
				if (!PQconsumeInput(conn))
					break;
			}
			else if (left <= 0)
			{
				PQclear(last);
				return NULL;
			}
		}
		result = PQgetResult(conn);
		if (!result)
			return last;
		PQclear(last);
		last = result;
	}
}

/*
 * Send a statement that has been noted as call "id", and note what becomes of
 * it.  The server may wait for so many milliseconds as it was asked to, or, if
 * that is negative, until we are tired of it.  The first value of the answer, or
 * the command tag, goes to "value".
 */
Outcome
ask_server(int id, const char *sql, const char *kind, int wait, char *value, size_t size)
{
	PGresult   *result = execute(sql, wait < 0 ? 6000 + pick(9000) : wait + PATIENCE_MS);
	ExecStatusType status = PQresultStatus(result);
	const char *error = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	bool		good = status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK;
	Outcome		outcome = ANSWERED;

	if (size > 0)
		value[0] = '\0';

	/*
	 * Errors without SQLSTATE are those of libpq, which may take a broken
	 * connection for good as long as something can be read from it.
	 */
	if (PQstatus(conn) == CONNECTION_BAD || (!good && !error))
	{
		note("lost", id, "%s", "");
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
		note("answer", id, "error=%s", error);
		snprintf(sqlstate, sizeof(sqlstate), "%s", error);
		if (strncmp(error, "XX", 2) == 0)
			fprintf(stderr, "client %d call %d: %s", number, id, PQresultErrorMessage(result));
		outcome = REFUSED;
	}
	PQclear(result);
	if (outcome == LOST)
		disconnect();
	return outcome;
}

/* Send a statement, and close the connection before the answer can be read. */
void
hang_up(int id, const char *sql)
{
	PQsendQuery(conn, sql);
	pause_ms(pick(100));
	note("lost", id, "%s", "");
	disconnect();
}

/* Note a call, and send it. */
Outcome
call(const char *what, const Lease *lease, const char *sql, char *value, size_t size)
{
	int			id = new_id();

	if (lease)
		note("call", id, "what=%s\tnames=%s\ttoken=%lld", what, lease->names, lease->token);
	else
		note("call", id, "what=%s", what);
	return ask_server(id, sql, "value", 0, value, size);
}

void
roll_back(void)
{
	if (conn)
		call("end", NULL, "ROLLBACK", NULL, 0);
}
