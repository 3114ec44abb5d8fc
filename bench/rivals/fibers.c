/* See fibers.h.  One epoll for all files, each of which only one fiber waits for. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#include "fibers.h"
#include "rival.h"

#define STACK_SIZE	(256 * 1024)
#define MAX_EVENTS	64

typedef struct Fiber
{
	ucontext_t	context;		/* to begin with */
	jmp_buf		resume;			/* afterwards: without the signal mask, which costs a call */
	bool		begun;
	void		(*work) (void *arg);
	void	   *arg;
	struct Fiber *next;			/* of all */
	struct Fiber *next_ready;
	bool		ready;
	bool		done;

	/* What it waits for: a file, a signal, or nothing but the time. */
	int64_t		until;
	bool		came;			/* and not the time */
	struct Fiber *next_waiting; /* for the same signal */
} Fiber;

static Fiber *fibers;
static Fiber *current;			/* null outside of fibers */
static Fiber *first_ready;
static Fiber *last_ready;
static jmp_buf scheduler;
static int	epoll_fd;

int64_t
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static struct timespec
timespec_of(int64_t us)
{
	return (struct timespec) {us / 1000000, us % 1000000 * 1000};
}

static void
make_ready(Fiber *fiber)
{
	if (fiber->ready)
		return;
	fiber->ready = true;
	fiber->next_ready = NULL;
	if (first_ready)
		last_ready->next_ready = fiber;
	else
		first_ready = fiber;
	last_ready = fiber;
}

static void
start(void)
{
	current->work(current->arg);
	current->done = true;
	_longjmp(scheduler, 1);
}

void
make_fiber(void (*work) (void *arg), void *arg)
{
	Fiber	   *fiber = calloc(1, sizeof(Fiber));
	void	   *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
							 MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);

	if (!fiber || stack == MAP_FAILED)
		die("out of memory");
	getcontext(&fiber->context);
	fiber->context.uc_stack.ss_sp = stack;
	fiber->context.uc_stack.ss_size = STACK_SIZE;
	makecontext(&fiber->context, start, 0);
	fiber->work = work;
	fiber->arg = arg;
	fiber->next = fibers;
	fibers = fiber;
	make_ready(fiber);
}

/* Let others run; returns whether what the fiber waits for came. */
static bool
wait_until(int64_t until)
{
	Fiber	   *me = current;

	me->until = until;
	me->came = false;
	if (_setjmp(me->resume) == 0)
		_longjmp(scheduler, 1);
	return me->came;
}

/* Let the current one run until it waits. */
static void
resume(void)
{
	if (_setjmp(scheduler) != 0)
		return;
	if (current->begun)
		_longjmp(current->resume, 1);
	current->begun = true;
	setcontext(&current->context);
}

static void
run_ready(void)
{
	while (first_ready)
	{
		current = first_ready;
		first_ready = current->next_ready;
		current->ready = false;
		resume();
	}
	current = NULL;
}

/* The first moment at which somebody has waited long enough; 0 if all are done. */
static int64_t
next_moment(void)
{
	int64_t		next = 0;

	for (Fiber *fiber = fibers; fiber; fiber = fiber->next)
	{
		if (!fiber->done && (next == 0 || fiber->until < next))
			next = fiber->until;
	}
	return next;
}

static void
wait_for_events(int64_t until)
{
	struct epoll_event events[MAX_EVENTS];
	int64_t		now = now_us();
	struct timespec timeout = timespec_of(until > now ? until - now : 0);
	int			n = epoll_pwait2(epoll_fd, events, MAX_EVENTS, until == FOREVER ? NULL : &timeout, NULL);

	for (int i = 0; i < n; i++)
	{
		Fiber	   *fiber = events[i].data.ptr;

		fiber->came = true;
		make_ready(fiber);
	}
	now = now_us();
	if (now < until)
		return;
	for (Fiber *fiber = fibers; fiber; fiber = fiber->next)
	{
		if (!fiber->done && fiber->until <= now)
			make_ready(fiber);
	}
}

void
run_fibers(void)
{
	int64_t		until;

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		die("could not make an epoll");
	for (;;)
	{
		run_ready();
		until = next_moment();
		if (until == 0)
			return;
		wait_for_events(until);
	}
}

void
sleep_until(int64_t us)
{
	struct timespec ts = timespec_of(us);

	if (current)
		(void) wait_until(us);
	else
	{
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
			;
	}
}

void
sleep_us(int64_t us)
{
	sleep_until(now_us() + us);
}

static bool
poll_file(int fd, bool writing, int64_t until)
{
	struct pollfd file = {.fd = fd,.events = writing ? POLLOUT : POLLIN};

	for (;;)
	{
		int64_t		now = now_us();
		struct timespec timeout = timespec_of(until > now ? until - now : 0);
		int			n = ppoll(&file, 1, until == FOREVER ? NULL : &timeout, NULL);

		if (n >= 0)
			return n > 0;
		if (errno != EINTR)
			die("could not wait for a file");
	}
}

bool
wait_for_file(int fd, bool writing, int64_t until)
{
	struct epoll_event event = {.events = (writing ? EPOLLOUT : EPOLLIN) | EPOLLONESHOT,.data.ptr = current};

	if (!current)
		return poll_file(fd, writing, until);
	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) != 0 &&
		(errno != ENOENT || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0))
		die("could not wait for a file");
	if (wait_until(until))
		return true;
	(void) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	return false;
}

void
wait_for_signal(Signal *signal, int64_t until)
{
	current->next_waiting = signal->waiting;
	signal->waiting = current;
	if (wait_until(until))
		return;
	for (Fiber **fiber = &signal->waiting; *fiber; fiber = &(*fiber)->next_waiting)
	{
		if (*fiber == current)
		{
			*fiber = current->next_waiting;
			break;
		}
	}
}

void
tell_all(Signal *signal)
{
	for (Fiber *fiber = signal->waiting; fiber; fiber = fiber->next_waiting)
	{
		fiber->came = true;
		make_ready(fiber);
	}
	signal->waiting = NULL;
}

void
wait_at_barrier(Barrier *barrier)
{
	if (--barrier->missing > 0)
		wait_for_signal(&barrier->all, FOREVER);
	else
		tell_all(&barrier->all);
}
