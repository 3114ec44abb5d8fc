/*
 * A lock service as the driver uses it.  Each client has a session of its own, and
 * waits only by what fibers.h has.  Whatever fails ends the program.
 */
#ifndef RIVAL_H
#define RIVAL_H

#include <stdbool.h>
#include <stdint.h>

/* What a client was given with the lock, and has to show. */
typedef struct Grant
{
	char		name[64];
	char		secret[192];
	char		lease[32];
} Grant;

typedef struct Rival
{
	const char *name;

	/*
	 * "target" says where the server is, "number" which client it is.  Where the
	 * session has a time to live, and not the lock, it is "ttl_ms".
	 */
	void	   *(*open) (const char *target, int number, int ttl_ms);

	/*
	 * Take the lock as soon as it is free.  A service whose locks have no time to
	 * live ignores "ttl_ms".  See retry_after().
	 */
	void		(*acquire) (void *session, const char *name, int ttl_ms, Grant *grant);
	void		(*release) (void *session, Grant *grant);

	/* Null if there is nothing to renew. */
	void		(*renew) (void *session, Grant *grant, int ttl_ms);

	/* Does a lock end by itself some time after its holder is gone? */
	bool		expires;
} Rival;

extern const Rival postgres_rivals[];
extern const Rival redis_rivals[];
extern const Rival mariadb_rivals[];
extern const Rival zookeeper_rivals[];
extern const Rival etcd_rivals[];

/*
 * Sleep before trying again; returns false, at once, when nobody needs to wait any
 * more.  An acquire then returns without the lock.
 */
extern bool retry_after(int64_t us);

/*
 * The same, as a client does whom nobody tells when a lock is free: for 50 to 250
 * ms, at random, as redsync's does by default (redis-py's: 100 ms).
 */
extern bool retry_sometime(void);

/* A random number below n. */
extern int	pick(int n);

extern void die(const char *format,...) __attribute__((format(printf, 1, 2), noreturn));

#endif
