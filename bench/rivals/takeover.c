/*
 * How late the next one has the lock of a holder that is gone.
 *
 * Each holder is a process, which is killed as soon as it has its answer; from
 * then on nobody renews.  The lock should be free a time to live after that
 * answer came, or at once where the server frees it when the connection breaks.
 * All times are of CLOCK_MONOTONIC, which the processes share.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fibers.h"
#include "rival.h"
#include "samples.h"
#include "takeover.h"

/* Nobody keeps a waiting session alive, where one has to be. */
#define WAITING_SESSION_MS 60000

typedef struct Holder
{
	pid_t		pid;
	int			start;			/* a byte here lets it acquire the lock */
	int			answer;			/* and here is when it got it */
} Holder;

typedef struct Pair
{
	pthread_t	thread;
	int			number;
	Holder	   *holders;		/* one for each round */
	Samples		late;
} Pair;

static const Rival *rival;
static const char *target;
static int	rounds;
static int	ttl_ms;

static void
pair_name(char *name, size_t size, int number)
{
	snprintf(name, size, "t%d", number);
}

static void
be_holder(int number, int start, int answer)
{
	void	   *session;
	char		name[64];
	char		byte;
	Grant		grant;
	int64_t		got;

	if (read(start, &byte, 1) != 1)
		_exit(0);
	session = rival->open(target, number, ttl_ms);
	pair_name(name, sizeof(name), number);
	rival->acquire(session, name, ttl_ms, &grant);
	got = now_us();
	if (write(answer, &got, sizeof(got)) != sizeof(got))
		_exit(1);
	for (;;)
		pause();
}

static Holder
fork_holder(int number)
{
	Holder		holder;
	int			start[2];
	int			answer[2];

	if (pipe(start) != 0 || pipe(answer) != 0)
		die("could not make a pipe");
	holder.pid = fork();
	if (holder.pid < 0)
		die("could not fork");
	if (holder.pid == 0)
	{
		close(start[1]);
		close(answer[0]);
		be_holder(number, start[0], answer[1]);
	}
	close(start[0]);
	close(answer[1]);
	holder.start = start[1];
	holder.answer = answer[0];
	return holder;
}

static void *
pair_main(void *arg)
{
	Pair	   *pair = arg;
	void	   *session = rival->open(target, pair->number, WAITING_SESSION_MS);
	char		name[64];

	pair_name(name, sizeof(name), pair->number);
	/* So that not all deadlines are the same. */
	sleep_us((int64_t) ttl_ms * 1000 / 50 * (pair->number % 50));
	for (int i = 0; i < rounds; i++)
	{
		Holder	   *holder = &pair->holders[i];
		Grant		grant;
		int64_t		deadline;

		if (write(holder->start, "", 1) != 1 ||
			read(holder->answer, &deadline, sizeof(deadline)) != sizeof(deadline))
			die("a holder could not acquire its lock");
		if (rival->expires)
			deadline += (int64_t) ttl_ms * 1000;
		else
			deadline = now_us();
		kill(holder->pid, SIGKILL);
		/* Whoever looks once in a time to live may do so at any moment of it. */
		if (rival->expires)
			sleep_us((int64_t) pick(ttl_ms) * 900);
		rival->acquire(session, name, ttl_ms, &grant);
		add_sample(&pair->late, now_us() - deadline);
		rival->release(session, &grant);
		waitpid(holder->pid, NULL, 0);
		close(holder->start);
		close(holder->answer);
	}
	return NULL;
}

void
measure_takeover(const Rival *the_rival, const char *the_target, int npairs,
				 int nrounds, int ttl)
{
	Pair	   *pairs = calloc(npairs, sizeof(Pair));
	Samples		late = {0};

	rival = the_rival;
	target = the_target;
	rounds = nrounds;
	ttl_ms = ttl;
	for (int i = 0; i < npairs; i++)
	{
		pairs[i].number = i;
		pairs[i].holders = calloc(rounds, sizeof(Holder));
		for (int j = 0; j < rounds; j++)
			pairs[i].holders[j] = fork_holder(i);
	}
	for (int i = 0; i < npairs; i++)
		pthread_create(&pairs[i].thread, NULL, pair_main, &pairs[i]);
	for (int i = 0; i < npairs; i++)
	{
		pthread_join(pairs[i].thread, NULL);
		merge_samples(&late, &pairs[i].late);
		free(pairs[i].holders);
		free(pairs[i].late.us);
	}
	free(pairs);
	for (size_t i = 0; i < late.count; i++)
		printf("late_%zu %lld\n", i, (long long) late.us[i]);
	free(late.us);
}
