/*-------------------------------------------------------------------------
 *
 * client.c
 *	  One client of the fault test: one workload, one seed, one log.
 *
 * usage: client NUMBER WORKLOAD SEED DIRECTORY
 *
 * Connects by the environment, and again whenever the connection is lost, until
 * SIGTERM.  LONGEST_TTL in the environment lets some durable leases live for so
 * many ms.  What it does and sees is in DIRECTORY/client-NUMBER.log, see
 * session.c.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

const Workload *workload;
int			number;
int			longest_ttl = 3000;	/* ms; of durable leases */
const char *directory;
volatile sig_atomic_t stopping;

void
die(const char *what)
{
	fprintf(stderr, "client %d: %s: %s\n", number, what, strerror(errno));
	exit(1);
}

int
pick(int n)
{
	return random() % n;
}

bool
chance(int percent)
{
	return pick(100) < percent;
}

int64_t
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

void
pause_ms(int ms)
{
	int64_t		end = now_us() + (int64_t) ms * 1000;

	while (!stopping && now_us() < end)
		usleep(5000);
}

static void
stop(int signo)
{
	stopping = 1;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = stop,.sa_flags = SA_RESTART};
	const char *ttl;

	if (argc != 5)
	{
		fprintf(stderr, "usage: client NUMBER WORKLOAD SEED DIRECTORY\n");
		return 1;
	}
	number = atoi(argv[1]);
	for (int i = 0; i < nworkloads; i++)
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
	ttl = getenv("LONGEST_TTL");
	if (ttl)
		longest_ttl = atoi(ttl);
	sigaction(SIGTERM, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	open_log();
	note("begin", 0, "client=%d\tworkload=%s\tseed=%s", number, workload->name, argv[3]);
	while (!stopping)
	{
		workload->ask();
		pause_ms(pick(50));
	}
	if (workload->finish)
		workload->finish();
	if (connected())
		disconnect();
	note("end", 0, "connected=1");
	return 0;
}
