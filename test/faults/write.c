/*-------------------------------------------------------------------------
 *
 * write.c
 *	  What a client writes under a lease.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "client.h"

static int	last_op;

/* ---- A counter in the database ---- */

/* How a counter is written. */
typedef struct Writing
{
	const char *begin;
	const char *table;
	bool		may_guard_late;
} Writing;

static void
pause_at_times(int percent)
{
	if (chance(percent))
		pause_ms(pick(chance(25) ? 3500 : 200));
}

/*
 * Read, change and write back the counter of a lock, guarded, up to the commit.
 * Nothing but the guard keeps updates from getting lost: what is written is what
 * was read plus one, and nothing is unique.  Returns what is written, 0 if the
 * transaction has failed.
 */
static int
write_counter(const Writing *writing, Lease *lease, int op)
{
	bool		guard_late = writing->may_guard_late && chance(30);
	char		value[32];
	char		sql[512];
	int			n;

	if (call("sql", NULL, writing->begin, NULL, 0) != ANSWERED)
		return 0;
	if (!guard_late && use("guard", lease) != ANSWERED)
	{
		roll_back();
		return 0;
	}
	snprintf(sql, sizeof(sql), "SELECT n FROM %s WHERE name = '%s'", writing->table, lease->names);
	if (call("sql", NULL, sql, value, sizeof(value)) != ANSWERED)
	{
		roll_back();
		return 0;
	}
	n = atoi(value) + 1;
	pause_at_times(40);
	snprintf(sql, sizeof(sql),
			 "WITH changed AS (UPDATE %s SET n = %d WHERE name = '%s')"
			 " INSERT INTO committed VALUES ('%s', %d, %lld, %d, %d)",
			 writing->table, n, lease->names, lease->names, n, lease->token, number, op);
	if (call("sql", NULL, sql, NULL, 0) != ANSWERED ||
		(guard_late && use("guard", lease) != ANSWERED))
	{
		roll_back();
		return 0;
	}
	pause_at_times(20);
	return n;
}

/*
 * The last call of a transaction.  If its answer is lost, it may take effect at
 * any time, and nothing keeps apart what is written under one lease.
 */
static Outcome
finish_writing(const char *what, Lease *lease, int n, int op, const char *sql)
{
	int			id = new_id();
	Outcome		outcome;

	note("call", id, "what=%s\tnames=%s\ttoken=%lld\tn=%d\top=%d",
		 what, lease->names, lease->token, n, op);
	outcome = ask_server(id, sql, "value", 0, NULL, 0);
	lease->in_doubt = outcome == LOST;
	return outcome;
}

static void
write_and_commit(const Writing *writing, Lease *lease)
{
	int			op = ++last_op;
	int			n = write_counter(writing, lease, op);

	if (n == 0)
		return;
	if (chance(10))
	{
		char		sql[256];

		snprintf(sql, sizeof(sql), "SELECT distlock_release('%s', %lld)", lease->names, lease->token);
		call("release-at-commit", lease, sql, NULL, 0);
	}
	if (connected())
		finish_writing("commit", lease, n, op, "COMMIT");
}

void
write_guarded(Lease *lease)
{
	static const Writing writing = {"BEGIN", "counters", true};

	write_and_commit(&writing, lease);
}

/* The commit takes some time, in which the lease may be ended by force. */
void
write_forced(Lease *lease)
{
	static const Writing writing = {
		"BEGIN; SET LOCAL commit_siblings = 0; SET LOCAL commit_delay = 100000", "counters", true
	};

	write_and_commit(&writing, lease);
}

/* The table takes no write without a guard. */
void
write_protected(Lease *lease)
{
	static const Writing writing = {"BEGIN", "protected", false};
	char		sql[128];

	if (!chance(20))
	{
		write_and_commit(&writing, lease);
		return;
	}
	snprintf(sql, sizeof(sql), "UPDATE protected SET n = n + 1 WHERE name = '%s'", lease->names);
	call("unguarded", lease, sql, NULL, 0);
}

/* ---- Prepared transactions ---- */

/* Commit or roll back a prepared transaction, until it is known to be done. */
static void
settle(int client, int op, bool commit)
{
	char		sql[64];

	snprintf(sql, sizeof(sql), "%s PREPARED '%d/%d'", commit ? "COMMIT" : "ROLLBACK", client, op);
	for (;;)
	{
		int			id = new_id();
		Outcome		outcome;

		connect_again();
		note("call", id, "what=settle\twriter=%d\top=%d\tcommit=%d", client, op, commit);
		outcome = ask_server(id, sql, "value", 0, NULL, 0);

		/* 42704: there is no such transaction */
		if (outcome == ANSWERED || (outcome == REFUSED && strcmp(sqlstate, "42704") == 0))
			break;
		usleep(20000);
	}
}

/*
 * Settle all transactions that this client, or one that is dead, has left
 * prepared.
 */
void
settle_all(void)
{
	char		gids[4096];
	char	   *rest;

	connect_again();
	if (call("sql", NULL, "SELECT string_agg(gid, ' ') FROM pg_prepared_xacts",
			 gids, sizeof(gids)) != ANSWERED)
		return;
	for (char *gid = strtok_r(gids, " ", &rest); gid; gid = strtok_r(NULL, " ", &rest))
	{
		int			client;
		int			op;

		if (sscanf(gid, "%d/%d", &client, &op) == 2 && (client == number || is_dead(client)))
			settle(client, op, chance(60));
	}
}

void
write_prepared(Lease *lease)
{
	static const Writing writing = {"BEGIN", "counters", true};
	int			op = ++last_op;
	int			n;
	char		sql[64];

	/* What is left over keeps even us from the counter. */
	settle_all();
	connect_again();
	n = write_counter(&writing, lease, op);
	if (n == 0)
		return;
	snprintf(sql, sizeof(sql), "PREPARE TRANSACTION '%d/%d'", number, op);
	if (finish_writing("prepare", lease, n, op, sql) == REFUSED)
	{
		roll_back();
		return;
	}
	pause_at_times(60);
	if (chance(30))
		disconnect();
	if (!chance(20))
		settle(number, op, chance(60));
}

/* Nothing is left when the last client has been here. */
void
finish_prepared(void)
{
	char		value[32];

	/* One that we have given up may still be on its way. */
	for (int i = 0; i < 100; i++)
	{
		connect_again();
		if (call("sql", NULL, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
				 " AND query LIKE 'PREPARE%'", value, sizeof(value)) == ANSWERED &&
			strcmp(value, "0") == 0)
			break;
		usleep(100000);
	}
	settle_all();
}

/* ---- A file ---- */

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
	int			id = new_id();
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
void
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

