/* GET_LOCK of MariaDB, by prepared statements; "target" is a Unix socket. */
#include <mysql.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fibers.h"
#include "rival.h"

typedef struct Session
{
	MYSQL	   *mysql;
	MYSQL_STMT *acquire;
	MYSQL_STMT *release;
} Session;

static MYSQL_STMT *
prepare(MYSQL *mysql, const char *sql)
{
	MYSQL_STMT *statement = mysql_stmt_init(mysql);

	if (mysql_stmt_prepare(statement, sql, strlen(sql)) != 0)
		die("mariadb: %s", mysql_error(mysql));
	return statement;
}

static void *
open_session(const char *target, int number, int ttl_ms)
{
	Session    *session = calloc(1, sizeof(Session));

	session->mysql = mysql_init(NULL);
	mysql_options(session->mysql, MYSQL_OPT_NONBLOCK, NULL);
	if (!mysql_real_connect(session->mysql, NULL, "root", NULL, NULL, 0, target, 0))
		die("mariadb: %s", mysql_error(session->mysql));
	session->acquire = prepare(session->mysql, "SELECT GET_LOCK(?, ?)");
	session->release = prepare(session->mysql, "SELECT RELEASE_LOCK(?)");
	return session;
}

/* What mysql_stmt_execute() does, but for how it waits. */
static int
execute(MYSQL *mysql, MYSQL_STMT *statement)
{
	int			error;
	int			waits_for = mysql_stmt_execute_start(&error, statement);

	while (waits_for != 0)
	{
		(void) wait_for_file(mysql_get_socket(mysql), waits_for & MYSQL_WAIT_WRITE, FOREVER);
		waits_for = mysql_stmt_execute_cont(&error, statement, waits_for);
	}
	return error;
}

/* Run a statement with a name, and perhaps a number; returns the one number it answers. */
static int
run(Session *session, MYSQL_STMT *statement, const char *name, int number)
{
	unsigned long length = strlen(name);
	int			answer = 0;
	my_bool		is_null = 0;
	MYSQL_BIND	values[2] = {
		{.buffer_type = MYSQL_TYPE_STRING,.buffer = (void *) name,.buffer_length = length,.length = &length},
		{.buffer_type = MYSQL_TYPE_LONG,.buffer = &number}
	};
	MYSQL_BIND	result = {.buffer_type = MYSQL_TYPE_LONG,.buffer = &answer,.is_null = &is_null};

	if (mysql_stmt_bind_param(statement, values) || execute(session->mysql, statement) ||
		mysql_stmt_bind_result(statement, &result) || mysql_stmt_fetch(statement) != 0 ||
		mysql_stmt_free_result(statement))
		die("mariadb: %s", mysql_stmt_error(statement));
	return is_null ? -1 : answer;
}

static void
acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	Session    *session = arg;

	snprintf(grant->name, sizeof(grant->name), "%s", name);
	if (run(session, session->acquire, name, 3600) != 1)
		die("the lock %s was not granted", name);
}

static void
release(void *arg, Grant *grant)
{
	Session    *session = arg;

	if (run(session, session->release, grant->name, 0) != 1)
		die("the lock %s was lost", grant->name);
}

const Rival mariadb_rivals[] = {
	{"mariadb", open_session, acquire, release, NULL, false},
	{NULL}
};
