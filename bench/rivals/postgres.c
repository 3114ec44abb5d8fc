/*
 * Locks in PostgreSQL: distlock, and what is used without it.  Prepared
 * statements; "target" is a connection string.
 *
 * The statements of the lease tables are what ShedLock and cirello's pglock do,
 * in words of our own: see each of them for how it waits.
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fibers.h"
#include "rival.h"

typedef struct Session
{
	PGconn	   *conn;
	char		owner[32];
	PGresult   *result;			/* of the last statement */
} Session;

static void *
open_session(const char *target, int number)
{
	Session    *session = calloc(1, sizeof(Session));

	session->conn = PQconnectdb(target);
	if (PQstatus(session->conn) != CONNECTION_OK)
		die("%s", PQerrorMessage(session->conn));
	snprintf(session->owner, sizeof(session->owner), "client %d", number);
	return session;
}

static void
prepare(Session *session, const char *name, const char *sql)
{
	PGresult   *result = PQprepare(session->conn, name, sql, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die("%s", PQerrorMessage(session->conn));
	PQclear(result);
}

static PGresult *
next_result(Session *session)
{
	while (PQisBusy(session->conn))
	{
		(void) wait_for_file(PQsocket(session->conn), false, FOREVER);
		if (!PQconsumeInput(session->conn))
			die("%s", PQerrorMessage(session->conn));
	}
	return PQgetResult(session->conn);
}

/* Run a prepared statement; returns its rows or the rows it changed. */
static int
run(Session *session, const char *name, int n, const char *const *values)
{
	ExecStatusType status;

	PQclear(session->result);
	if (!PQsendQueryPrepared(session->conn, name, n, values, NULL, NULL, 0))
		die("%s", PQerrorMessage(session->conn));
	session->result = next_result(session);
	while (next_result(session))
		;
	status = PQresultStatus(session->result);
	if (status == PGRES_TUPLES_OK)
		return PQntuples(session->result);
	if (status != PGRES_COMMAND_OK)
		die("%s: %s", name, PQerrorMessage(session->conn));
	return atoi(PQcmdTuples(session->result));
}

static const char *
answer(Session *session)
{
	return PQgetvalue(session->result, 0, 0);
}

static void *
open_with(const char *target, int number, const char *const statements[][2])
{
	Session    *session = open_session(target, number);

	for (int i = 0; statements[i][0]; i++)
		prepare(session, statements[i][0], statements[i][1]);
	return session;
}

static void
fill_grant(Grant *grant, const char *name)
{
	snprintf(grant->name, sizeof(grant->name), "%s", name);
}

/* ---- distlock ---- */

static void *
open_distlock(const char *target, int number, const char *acquire)
{
	const char *statements[][2] = {
		{"acquire", acquire},
		{"release", "SELECT distlock_release($1, $2)"},
		{"renew", "SELECT distlock_renew($1, $2)"},
		{NULL}
	};

	return open_with(target, number, statements);
}

static void *
open_lease(const char *target, int number, int ttl_ms, bool durable)
{
	char		acquire[160];

	snprintf(acquire, sizeof(acquire), "SELECT distlock_acquire($1, ttl => '%d ms', durable => %s)",
			 ttl_ms, durable ? "true" : "false");
	return open_distlock(target, number, acquire);
}

static void *
open_volatile(const char *target, int number, int ttl_ms)
{
	return open_lease(target, number, ttl_ms, false);
}

static void *
open_durable(const char *target, int number, int ttl_ms)
{
	return open_lease(target, number, ttl_ms, true);
}

static void *
open_session_scope(const char *target, int number, int ttl_ms)
{
	return open_distlock(target, number, "SELECT distlock_acquire($1, scope => 'session')");
}

static void
distlock_acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	run(arg, "acquire", 1, &name);
	fill_grant(grant, name);
	snprintf(grant->secret, sizeof(grant->secret), "%s", answer(arg));
}

static void
distlock_release(void *arg, Grant *grant)
{
	const char *values[] = {grant->name, grant->secret};

	run(arg, "release", 2, values);
	if (answer(arg)[0] != 't')
		die("the lease of %s was lost", grant->name);
}

static void
distlock_renew(void *arg, Grant *grant, int ttl_ms)
{
	const char *values[] = {grant->name, grant->secret};

	run(arg, "renew", 2, values);
	if (answer(arg)[0] == '\0')
		die("the lease of %s was lost", grant->name);
}

/* ---- Advisory locks ---- */

static void *
open_advisory(const char *target, int number, int ttl_ms)
{
	static const char *const statements[][2] = {
		{"acquire", "SELECT pg_advisory_lock(hashtextextended($1, 0))"},
		{"release", "SELECT pg_advisory_unlock(hashtextextended($1, 0))"},
		{NULL}
	};

	return open_with(target, number, statements);
}

static void
advisory_acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	run(arg, "acquire", 1, &name);
	fill_grant(grant, name);
}

static void
advisory_release(void *arg, Grant *grant)
{
	const char *values[] = {grant->name};

	run(arg, "release", 1, values);
	if (answer(arg)[0] != 't')
		die("the advisory lock %s was lost", grant->name);
}

/* ---- SELECT FOR UPDATE on a table of locks, which has a row for each name ---- */

static void *
open_for_update(const char *target, int number, int ttl_ms)
{
	static const char *const statements[][2] = {
		{"begin", "BEGIN"},
		{"acquire", "SELECT name FROM locks WHERE name = $1 FOR UPDATE"},
		{"release", "COMMIT"},
		{NULL}
	};

	return open_with(target, number, statements);
}

static void
for_update_acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	run(arg, "begin", 0, NULL);
	if (run(arg, "acquire", 1, &name) != 1)
		die("table locks has no row for %s", name);
}

static void
for_update_release(void *arg, Grant *grant)
{
	run(arg, "release", 0, NULL);
}

/*
 * ---- ShedLock: one row a name, free when its time has come ----
 *
 * It does not wait; who wants to tries again.
 */

static void *
open_shedlock(const char *target, int number, int ttl_ms)
{
	char		acquire[512];
	char		renew[256];
	const char *statements[][2] = {
		{"acquire", acquire},
		{"release",
			"UPDATE shedlock SET lock_until = timezone('utc', clock_timestamp())"
		" WHERE name = $1 AND locked_by = $2"},
		{"renew", renew},
		{NULL}
	};

	snprintf(acquire, sizeof(acquire),
			 "INSERT INTO shedlock AS s (name, lock_until, locked_at, locked_by)"
			 " VALUES ($1, timezone('utc', clock_timestamp()) + interval '%d ms',"
			 " timezone('utc', clock_timestamp()), $2)"
			 " ON CONFLICT (name) DO UPDATE SET lock_until = excluded.lock_until,"
			 " locked_at = excluded.locked_at, locked_by = excluded.locked_by"
			 " WHERE s.lock_until <= timezone('utc', clock_timestamp())", ttl_ms);
	snprintf(renew, sizeof(renew),
			 "UPDATE shedlock SET lock_until = timezone('utc', clock_timestamp()) + interval '%d ms'"
			 " WHERE name = $1 AND locked_by = $2"
			 " AND lock_until > timezone('utc', clock_timestamp())", ttl_ms);
	return open_with(target, number, statements);
}

static void
shedlock_acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	Session    *session = arg;
	const char *values[] = {name, session->owner};

	fill_grant(grant, name);
	while (run(session, "acquire", 2, values) == 0 && retry_sometime())
		;
}

static void
shedlock_release(void *arg, Grant *grant)
{
	Session    *session = arg;
	const char *values[] = {grant->name, session->owner};

	run(session, "release", 2, values);
}

static void
shedlock_renew(void *arg, Grant *grant, int ttl_ms)
{
	Session    *session = arg;
	const char *values[] = {grant->name, session->owner};

	if (run(session, "renew", 2, values) != 1)
		die("the lease of %s was lost", grant->name);
}

/*
 * ---- pglock: a row with a version, which the holder changes as it renews ----
 *
 * Who waits looks again after a time to live, and takes the lock if the version
 * is still the same.  A release removes the row.
 */

static void *
open_pglock(const char *target, int number, int ttl_ms)
{
	static const char *const statements[][2] = {
		{"version", "SELECT nextval('pglock_rvn')"},
		{"acquire",
			"INSERT INTO pglock AS l (name, record_version_number, owner) VALUES ($1, $2, $4)"
			" ON CONFLICT (name) DO UPDATE SET"
			" record_version_number = CASE WHEN COALESCE(l.record_version_number = $3, true)"
			" THEN $2 ELSE l.record_version_number END,"
			" owner = CASE WHEN COALESCE(l.record_version_number = $3, true) THEN $4 ELSE l.owner END"
		" RETURNING record_version_number"},
		{"release", "DELETE FROM pglock WHERE name = $1 AND record_version_number = $2"},
		{"renew", "UPDATE pglock SET record_version_number = $3 WHERE name = $1 AND record_version_number = $2"},
		{NULL}
	};

	return open_with(target, number, statements);
}

static void
next_version(Session *session, char *version, size_t size)
{
	run(session, "version", 0, NULL);
	snprintf(version, size, "%s", answer(session));
}

static void
pglock_acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	Session    *session = arg;
	char		version[32];
	char		seen[32] = "0";
	const char *values[] = {name, version, seen, session->owner};

	fill_grant(grant, name);
	for (;;)
	{
		next_version(session, version, sizeof(version));
		run(session, "acquire", 4, values);
		if (strcmp(answer(session), version) == 0 || !retry_after((int64_t) ttl_ms * 1000))
			break;
		snprintf(seen, sizeof(seen), "%s", answer(session));
	}
	snprintf(grant->secret, sizeof(grant->secret), "%s", version);
}

static void
pglock_release(void *arg, Grant *grant)
{
	const char *values[] = {grant->name, grant->secret};

	run(arg, "release", 2, values);
}

static void
pglock_renew(void *arg, Grant *grant, int ttl_ms)
{
	Session    *session = arg;
	char		version[32];
	const char *values[] = {grant->name, grant->secret, version};

	next_version(session, version, sizeof(version));
	if (run(session, "renew", 3, values) != 1)
		die("the lease of %s was lost", grant->name);
	snprintf(grant->secret, sizeof(grant->secret), "%s", version);
}

/* ---- The floor ---- */

static void *
open_select(const char *target, int number, int ttl_ms)
{
	static const char *const statements[][2] = {{"select", "SELECT 1"}, {NULL}};

	return open_with(target, number, statements);
}

static void *
open_empty(const char *target, int number, int ttl_ms)
{
	static const char *const statements[][2] = {{"select", "SELECT nothing($1)"}, {NULL}};

	return open_with(target, number, statements);
}

static void
select_acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	run(arg, "select", 0, NULL);
}

static void
select_release(void *arg, Grant *grant)
{
	run(arg, "select", 0, NULL);
}

static void
empty_acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	fill_grant(grant, name);
	run(arg, "select", 1, &name);
}

static void
empty_release(void *arg, Grant *grant)
{
	const char *values[] = {grant->name};

	run(arg, "select", 1, values);
}

const Rival postgres_rivals[] = {
	{"distlock", open_volatile, distlock_acquire, distlock_release, distlock_renew, true},
	{"distlock-session", open_session_scope, distlock_acquire, distlock_release, distlock_renew, false},
	{"distlock-durable", open_durable, distlock_acquire, distlock_release, distlock_renew, true},
	{"advisory", open_advisory, advisory_acquire, advisory_release, NULL, false},
	{"for-update", open_for_update, for_update_acquire, for_update_release, NULL, false},
	{"shedlock", open_shedlock, shedlock_acquire, shedlock_release, shedlock_renew, true},
	{"pglock", open_pglock, pglock_acquire, pglock_release, pglock_renew, true},
	{"select-1", open_select, select_acquire, select_release, NULL, false},
	{"empty-function", open_empty, empty_acquire, empty_release, NULL, false},
	{NULL}
};
