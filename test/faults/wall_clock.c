/*-------------------------------------------------------------------------
 *
 * wall_clock.c
 *	  To be loaded into a server (LD_PRELOAD): its wall clock is off by as many
 *	  seconds as the file WALL_CLOCK says, the first eight bytes of it, at any
 *	  moment.  Nothing else is changed.
 *
 * PostgreSQL asks for the time in signal handlers, too, so nothing here may
 * allocate memory or take a lock.  libfaketime does, and corrupts the heap of a
 * session in which a timeout fires at the wrong moment.
 *
 *-------------------------------------------------------------------------
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef int (*ClockGettime) (clockid_t, struct timespec *);

static ClockGettime real_clock_gettime;
static const volatile int64_t *ahead;

/* Child processes inherit both by fork(). */
__attribute__((constructor)) static void
begin(void)
{
	const char *path = getenv("WALL_CLOCK");
	int			fd = path ? open(path, O_RDONLY) : -1;
	void	   *map = fd < 0 ? MAP_FAILED :
		mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);

	real_clock_gettime = (ClockGettime) dlsym(RTLD_NEXT, "clock_gettime");
	if (map == MAP_FAILED || !real_clock_gettime)
	{
		fputs("wall_clock: WALL_CLOCK must name a file\n", stderr);
		_exit(127);
	}
	close(fd);
	ahead = map;
}

/* Other constructors may run before ours. */
int
clock_gettime(clockid_t clock_id, struct timespec *tp)
{
	int			rc;

	if (!real_clock_gettime)
		real_clock_gettime = (ClockGettime) dlsym(RTLD_NEXT, "clock_gettime");
	rc = real_clock_gettime(clock_id, tp);
	if (rc == 0 && ahead && (clock_id == CLOCK_REALTIME || clock_id == CLOCK_REALTIME_COARSE))
		tp->tv_sec += *ahead;
	return rc;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec ts;

	(void) tz;
	(void) clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *timer)
{
	struct timespec ts;

	(void) clock_gettime(CLOCK_REALTIME, &ts);
	if (timer)
		*timer = ts.tv_sec;
	return ts.tv_sec;
}
