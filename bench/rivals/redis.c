/*
 * Locks in Redis: SET NX PX and a script that compares and deletes, on one
 * server or on most of five (Redlock).  "target" is one or more Unix sockets with
 * commas between them.
 *
 * Nobody is told when a lock is free; who waits tries again.
 */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fibers.h"
#include "rival.h"

#define MAX_SERVERS	5

typedef struct Session
{
	redisContext *servers[MAX_SERVERS];
	int			nservers;
	int			number;
	long		count;
} Session;

static const char release_script[] =
	"if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";
static const char renew_script[] =
	"if redis.call('get', KEYS[1]) == ARGV[1] then"
	" return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end";

static char release_sha[41];
static char renew_sha[41];

static void
load(redisContext *redis, const char *script, char *sha)
{
	redisReply *reply = redisCommand(redis, "SCRIPT LOAD %s", script);

	if (!reply || reply->type != REDIS_REPLY_STRING)
		die("redis: could not load a script");
	snprintf(sha, 41, "%s", reply->str);
	freeReplyObject(reply);
}

static void *
open_session(const char *target, int number, int ttl_ms)
{
	Session    *session = calloc(1, sizeof(Session));
	char	   *paths = strdup(target);
	char	   *save;

	session->number = number;
	for (char *path = strtok_r(paths, ",", &save); path; path = strtok_r(NULL, ",", &save))
	{
		redisContext *redis = redisConnectUnix(path);

		if (session->nservers == MAX_SERVERS)
			die("redis: at most %d servers", MAX_SERVERS);
		if (!redis || redis->err)
			die("redis: could not connect to %s", path);
		load(redis, release_script, release_sha);
		load(redis, renew_script, renew_sha);
		session->servers[session->nservers++] = redis;
	}
	free(paths);
	return session;
}

static redisReply *
next_reply(redisContext *redis)
{
	redisReply *reply = NULL;

	while (redisGetReplyFromReader(redis, (void **) &reply) == REDIS_OK && !reply)
	{
		(void) wait_for_file(redis->fd, false, FOREVER);
		if (redisBufferRead(redis) != REDIS_OK)
			break;
	}
	if (!reply)
		die("redis: %s", redis->errstr);
	return reply;
}

/* How many servers say yes?  All are asked before any is waited for. */
static int
count_replies(Session *session)
{
	int			yes = 0;

	for (int i = 0; i < session->nservers; i++)
	{
		redisReply *reply = next_reply(session->servers[i]);

		if (reply->type == REDIS_REPLY_ERROR)
			die("redis: %s", reply->str);
		yes += reply->type == REDIS_REPLY_STATUS ||
			(reply->type == REDIS_REPLY_INTEGER && reply->integer == 1);
		freeReplyObject(reply);
	}
	return yes;
}

static void
flush_out(Session *session)
{
	for (int i = 0; i < session->nservers; i++)
	{
		int			done = 0;

		while (!done)
		{
			if (redisBufferWrite(session->servers[i], &done) != REDIS_OK)
				die("redis: %s", session->servers[i]->errstr);
		}
	}
}

static int
give_up(Session *session, Grant *grant)
{
	for (int i = 0; i < session->nservers; i++)
		redisAppendCommand(session->servers[i], "EVALSHA %s 1 %s %s", release_sha,
						   grant->name, grant->secret);
	flush_out(session);
	return count_replies(session);
}

static void
acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	Session    *session = arg;

	snprintf(grant->name, sizeof(grant->name), "%s", name);
	do
	{
		int			locked;

		snprintf(grant->secret, sizeof(grant->secret), "%d/%ld", session->number, ++session->count);
		for (int i = 0; i < session->nservers; i++)
			redisAppendCommand(session->servers[i], "SET %s %s NX PX %d", name, grant->secret, ttl_ms);
		flush_out(session);
		locked = count_replies(session);
		if (locked > session->nservers / 2)
			return;
		if (locked > 0)
			(void) give_up(session, grant);
	} while (retry_sometime());
}

static void
release(void *arg, Grant *grant)
{
	(void) give_up(arg, grant);
}

static void
renew(void *arg, Grant *grant, int ttl_ms)
{
	Session    *session = arg;

	for (int i = 0; i < session->nservers; i++)
		redisAppendCommand(session->servers[i], "EVALSHA %s 1 %s %s %d", renew_sha,
						   grant->name, grant->secret, ttl_ms);
	flush_out(session);
	if (count_replies(session) <= session->nservers / 2)
		die("the lock %s was lost", grant->name);
}

const Rival redis_rivals[] = {
	{"redis", open_session, acquire, release, renew, true},
	{NULL}
};
