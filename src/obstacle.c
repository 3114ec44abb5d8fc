/*-------------------------------------------------------------------------
 *
 * obstacle.c
 *	  What keeps a request from its lock, for people.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "obstacle.h"
#include "shmem.h"

/*
 * The first lease of the lock that has not expired is what is in the way.
 * Needs the partition locked, shared at least.  The lock may be null.
 */
void
dl_obstacle_describe(DlLock *lock, int64 now, DlObstacle *obstacle)
{
	dlist_iter	iter;

	memset(obstacle, 0, sizeof(DlObstacle));
	if (lock == NULL)
		return;
	obstacle->barred = dl_engine_is_barred(lock, DL_EXCLUSIVE);
	obstacle->nwaiting = lock->nwaiting;
	obstacle->opens_in = dl_opens_at(lock->supply) - now;
	dlist_foreach(iter, &lock->leases)
	{
		DlLease    *lease = dlist_container(DlLease, lock_link, iter.cur);

		if (lease->deadline <= now || obstacle->nleases++ > 0)
			continue;
		if (lease->state != DL_GRANTED)
			obstacle->token = lease->token;
		obstacle->ended = lease->state == DL_PINNED;
		obstacle->remaining = lease->deadline == DL_FOREVER ?
			DL_FOREVER : lease->deadline - now;
		if (obstacle->ended)
			obstacle->pid = dl_engine_pinning(lease)->pid;
		else if (dl_session_is_live(lease->backend, lease->generation))
			obstacle->pid = lease->pid;
		strcpy(obstacle->holder, lease->holder);
	}
}

/* The obstacle as a sentence or two, for an errdetail. */
char *
dl_obstacle_text(const DlObstacle *obstacle)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (obstacle->nleases == 0 && obstacle->barred)
		appendStringInfoString(&buf, "A prepared transaction that an earlier lease of the lock guards may be neither committed nor rolled back.");
	else if (obstacle->nleases == 0 && obstacle->opens_in > 0)
		appendStringInfo(&buf, "Nothing is granted for another %lld ms, since leases that the server has lost at its start or promotion may still be held.",
						 (long long) ((obstacle->opens_in + 999) / 1000));
	else if (obstacle->nleases == 0 && obstacle->bridged)
		appendStringInfoString(&buf, "Nobody holds the lock now, but another session holds the advisory lock of advisory_key.");
	else if (obstacle->nleases == 0)
		appendStringInfoString(&buf, "Nobody holds the lock now.");
	else if (obstacle->ended)
		appendStringInfo(&buf, "The lease of \"%s\" under token %lld is over, but process %d is committing a transaction that it guards.",
						 obstacle->holder, (long long) obstacle->token, obstacle->pid);
	else
	{
		if (obstacle->token == 0)
			appendStringInfo(&buf, "The lock has just been granted to \"%s\"",
							 obstacle->holder);
		else
			appendStringInfo(&buf, "The lock is held by \"%s\" under token %lld",
							 obstacle->holder, (long long) obstacle->token);
		if (obstacle->pid != 0)
			appendStringInfo(&buf, ", process %d", obstacle->pid);
		if (obstacle->remaining == DL_FOREVER)
			appendStringInfoString(&buf, ", with no time to live.");
		else
			appendStringInfo(&buf, ", for another %lld ms.",
							 (long long) ((obstacle->remaining + 999) / 1000));
		if (obstacle->nleases > 1)
			appendStringInfo(&buf, " Other holders: %d.",
							 obstacle->nleases - 1);
	}
	if (obstacle->nwaiting > 0)
		appendStringInfo(&buf, " Sessions waiting for it: %d.", obstacle->nwaiting);
	return buf.data;
}
