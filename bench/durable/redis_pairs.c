/*
 * SET NX PX, then compare-and-delete by script, as often as possible, from many
 * connections in a few threads, each of which serves its connections in turn as
 * pgbench does.  Prints pairs per second.
 *
 * Usage: redis_pairs SOCKET CLIENTS THREADS SECONDS
 */
#include <hiredis/hiredis.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NAMES		100000
#define TTL_MS		30000

typedef struct Client
{
	redisContext *redis;
	int			releasing;		/* the reply to come is that of the script */
	long		name;
	long		token;
	long		pairs;
} Client;

typedef struct Thread
{
	pthread_t	id;
	unsigned	seed;
	int			nclients;
	Client	   *clients;
} Thread;

static const char release_script[] =
	"if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

static char script_sha[41];
static double end_at;

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "redis_pairs: %s: %s\n", what, why);
	exit(1);
}

static void
flush_out(Client *client)
{
	int			done = 0;

	while (!done)
		if (redisBufferWrite(client->redis, &done) != REDIS_OK)
			fail("write", client->redis->errstr);
}

static void
acquire(Thread *thread, Client *client)
{
	client->releasing = 0;
	client->name = rand_r(&thread->seed) % NAMES;
	client->token++;
	redisAppendCommand(client->redis, "SET lock:%ld %ld NX PX %d",
					   client->name, client->token, TTL_MS);
	flush_out(client);
}

static void
release(Client *client)
{
	client->releasing = 1;
	redisAppendCommand(client->redis, "EVALSHA %s 1 lock:%ld %ld",
					   script_sha, client->name, client->token);
	flush_out(client);
}

static void
take_reply(Thread *thread, Client *client)
{
	redisReply *reply;

	if (redisBufferRead(client->redis) != REDIS_OK)
		fail("read", client->redis->errstr);
	if (redisGetReplyFromReader(client->redis, (void **) &reply) != REDIS_OK)
		fail("read", client->redis->errstr);
	if (reply == NULL)
		return;
	if (reply->type == REDIS_REPLY_ERROR)
		fail("reply", reply->str);
	if (client->releasing)
	{
		client->pairs++;
		acquire(thread, client);
	}
	else if (reply->type == REDIS_REPLY_NIL)
		acquire(thread, client);	/* taken by another */
	else
		release(client);
	freeReplyObject(reply);
}

static void *
serve(void *arg)
{
	Thread	   *thread = arg;
	struct pollfd *fds = calloc(thread->nclients, sizeof(struct pollfd));

	for (int i = 0; i < thread->nclients; i++)
	{
		fds[i].fd = thread->clients[i].redis->fd;
		fds[i].events = POLLIN;
		acquire(thread, &thread->clients[i]);
	}
	while (now() < end_at)
	{
		poll(fds, thread->nclients, 100);
		for (int i = 0; i < thread->nclients; i++)
			if (fds[i].revents != 0)
				take_reply(thread, &thread->clients[i]);
	}
	free(fds);
	return NULL;
}

int
main(int argc, char **argv)
{
	int			nclients;
	int			nthreads;
	double		seconds;
	double		start;
	long		pairs = 0;
	Client	   *clients;
	Thread	   *threads;

	if (argc != 5)
		fail("usage", "redis_pairs SOCKET CLIENTS THREADS SECONDS");
	nclients = atoi(argv[2]);
	nthreads = atoi(argv[3]);
	seconds = atof(argv[4]);
	clients = calloc(nclients, sizeof(Client));
	threads = calloc(nthreads, sizeof(Thread));
	for (int i = 0; i < nclients; i++)
	{
		clients[i].redis = redisConnectUnix(argv[1]);
		if (clients[i].redis == NULL || clients[i].redis->err)
			fail("connect", argv[1]);
		clients[i].token = i * 1000000000L;
	}
	if (nclients > 0)
	{
		redisReply *reply = redisCommand(clients[0].redis, "SCRIPT LOAD %s", release_script);

		if (reply == NULL || reply->type != REDIS_REPLY_STRING)
			fail("script", clients[0].redis->errstr);
		snprintf(script_sha, sizeof(script_sha), "%s", reply->str);
		freeReplyObject(reply);
	}
	start = now();
	end_at = start + seconds;
	for (int t = 0; t < nthreads; t++)
	{
		int			first = nclients * t / nthreads;

		threads[t].seed = t + 1;
		threads[t].clients = clients + first;
		threads[t].nclients = nclients * (t + 1) / nthreads - first;
		pthread_create(&threads[t].id, NULL, serve, &threads[t]);
	}
	for (int t = 0; t < nthreads; t++)
		pthread_join(threads[t].id, NULL);
	for (int i = 0; i < nclients; i++)
		pairs += clients[i].pairs;
	printf("%.1f\n", pairs / (now() - start));
	free(threads);
	free(clients);
	return 0;
}
