/*-------------------------------------------------------------------------
 *
 * request_id.c
 *	  Finding what has become of a request that was made before.
 *
 * Leases and requests with a request id are linked by it.  The buckets have
 * nothing to do with the partitions of the locks, so they are under the spinlock
 * of the free lists, which may be taken while partitions are locked.  A record
 * is linked and unlinked under the partition of its lock, and its lock, owner
 * and id do not change in between.  Of what else is in it, only the deadline is
 * looked at without that partition: one that has just changed costs a refusal, or
 * one more look.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "engine_parts.h"

static DlPartition *
id_partition(DlEngine *engine, uint32 id_hash, dlist_head **bucket)
{
	DlPartition *part = dl_partition_at(engine, id_hash);

	*bucket = &part->ids[(id_hash / DL_NPARTITIONS) & (engine->nbuckets - 1)];
	return part;
}

/* From now on it may be found, if it has an id. */
void
dl_id_link(DlEngine *engine, DlLease *lease)
{
	dlist_head *bucket;
	DlPartition *part;

	if (lease->request_id[0] == '\0')
		return;
	part = id_partition(engine, lease->id_hash, &bucket);
	SpinLockAcquire(&part->mutex);
	dlist_push_head(bucket, &lease->id_link);
	SpinLockRelease(&part->mutex);
	lease->has_id = true;
}

void
dl_id_unlink(DlEngine *engine, DlLease *lease)
{
	dlist_head *bucket;
	DlPartition *part;

	if (!lease->has_id)
		return;
	part = id_partition(engine, lease->id_hash, &bucket);
	SpinLockAcquire(&part->mutex);
	dlist_delete(&lease->id_link);
	SpinLockRelease(&part->mutex);
	lease->has_id = false;
}

/* Which of the request's locks is it?  -1: none. */
static int
which_key(const DlRequest *request, const DlKey *key)
{
	for (int i = 0; i < request->nkeys; i++)
		if (dl_same_key(&request->keys[i], key))
			return i;
	return -1;
}

/*
 * Collect the records under this request's id, each where its key is.  Returns
 * how many there are, and a lock that is not among the request's, if any.
 */
static int
collect(DlEngine *engine, DlRequest *request, DlLease **leases, bool *foreign,
		int64 *foreign_deadline)
{
	const DlKey *key = &request->keys[0];
	dlist_head *bucket;
	DlPartition *part = id_partition(engine, request->id_hash, &bucket);
	int			n = 0;
	dlist_iter	iter;

	*foreign = false;
	*foreign_deadline = 0;
	for (int i = 0; i < request->nkeys; i++)
		leases[i] = NULL;
	SpinLockAcquire(&part->mutex);
	dlist_foreach(iter, bucket)
	{
		DlLease    *lease = dlist_container(DlLease, id_link, iter.cur);
		int			i;

		if (lease->id_hash != request->id_hash || lease->owner != request->owner ||
			lease->lock->key.database != key->database ||
			lease->lock->key.extension != key->extension ||
			strcmp(lease->request_id, request->request_id) != 0)
			continue;
		n++;
		i = which_key(request, &lease->lock->key);
		if (i >= 0)
			leases[i] = lease;
		else
		{
			strcpy(request->other, lease->lock->key.name);
			*foreign = true;
			*foreign_deadline = Max(*foreign_deadline, lease->deadline);
		}
	}
	SpinLockRelease(&part->mutex);
	return n;
}

static bool
is_same_request(const DlRequest *request, const DlLease *lease)
{
	return lease->mode == request->mode && lease->scope == request->scope &&
		lease->lock->limit == request->limit && lease->durable == request->durable &&
		lease->nparts == request->nkeys;
}

/*
 * Have some of its leases ended, alone, or did a crash that came before all images
 * were written bring back the others only?
 */
static bool
has_ended_in_part(const DlRequest *request, DlLease **leases)
{
	bool		ended = false;

	for (int i = 0; i < request->nkeys; i++)
	{
		if (leases[i] == NULL)
			ended = true;
		else if (leases[i]->state != DL_LIVE || !is_same_request(request, leases[i]))
			return false;
	}
	return ended;
}

/*
 * Has this request been made before?  again: no.  repeated: it has been told,
 * and its leases are live.  queued: it waits, or has been granted, and is the
 * caller's from now on.  replaced: the caller had a grant that lapsed, and has
 * been overtaken by another who makes the same request.
 */
DlVerdict
dl_id_find(DlEngine *engine, DlRequest *request, int64 now, DlLease **leases,
		   DlEffects *fx)
{
	int64		foreign_deadline;
	bool		foreign;
	int			n = collect(engine, request, leases, &foreign, &foreign_deadline);
	int			nlive = 0;

	for (int i = 0; i < request->nkeys; i++)
		if (leases[i] != NULL && leases[i]->state != DL_WAITING && leases[i]->deadline <= now)
		{
			dl_engine_end(engine, leases[i], DL_EXPIRED, now, fx);
			leases[i] = NULL;
			n--;
		}
	if (n == 0)
		return DL_AGAIN;
	if (foreign)
		return foreign_deadline <= now ? DL_EXPIRED_ID : DL_OTHER_REQUEST;
	if (has_ended_in_part(request, leases))
	{
		/* It is a new request, and gives up what is left of the old one. */
		for (int i = 0; i < request->nkeys; i++)
			if (leases[i] != NULL)
				dl_engine_end(engine, leases[i], DL_RELEASED, now, fx);
		return DL_AGAIN;
	}
	for (int i = 0; i < request->nkeys; i++)
	{
		if (leases[i] == NULL || !is_same_request(request, leases[i]) ||
			leases[i]->token != leases[0]->token)
		{
			for (int j = 0; j < request->nkeys; j++)
				if (leases[j] != NULL)
					strcpy(request->other, request->keys[j].name);
			return DL_OTHER_REQUEST;
		}
		nlive += leases[i]->state == DL_LIVE;
	}
	if (nlive == request->nkeys)
		return DL_REPEATED;
	Assert(nlive == 0);
	if (request->again)
		return DL_REPLACED;
	if (!request->may_wait)
	{
		dl_partition_at(engine, request->keys[0].hash)->counters.timeouts++;
		return DL_BUSY;
	}
	for (int i = 0; i < request->nkeys; i++)
	{
		dl_wake(fx, leases[i]->backend);
		dl_engine_adopt(engine, leases[i], request);
		if (leases[i]->state == DL_WAITING)
		{
			leases[i]->ttl = request->ttl;
			leases[i]->bucket = dl_bucket_of(request->scope, request->ttl);
		}
	}
	return DL_QUEUED;
}
