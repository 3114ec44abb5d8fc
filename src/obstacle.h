/*-------------------------------------------------------------------------
 *
 * obstacle.h
 *	  What keeps a request from its lock, for people.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_OBSTACLE_H
#define DISTLOCK_OBSTACLE_H

#include "engine.h"

/* What a person is told of the lease in the way. */
typedef struct DlObstacle
{
	int64		token;			/* 0: a queue only, or a grant not told yet */
	int64		remaining;		/* microseconds, DL_FOREVER without TTL */
	int			pid;			/* that holds it, or commits; 0: is gone */
	bool		ended;			/* it is over, but a commit keeps it pinned */
	bool		barred;			/* by a prepared transaction */
	bool		bridged;		/* the advisory lock is taken */
	int64		opens_in;		/* microseconds of grace left */
	int			nleases;
	int			nwaiting;
	char		holder[DL_HOLDER_MAX + 1];
} DlObstacle;

extern void dl_obstacle_describe(DlLock *lock, int64 now, DlObstacle *obstacle);
extern char *dl_obstacle_text(const DlObstacle *obstacle);

#endif							/* DISTLOCK_OBSTACLE_H */
