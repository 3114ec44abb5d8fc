/*-------------------------------------------------------------------------
 *
 * restore.c
 *	  Bringing leases back into the engine.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "engine_parts.h"

/*
 * Put aside records for n leases to be recovered.  Returns false, and leaves
 * nothing behind, if there are not so many.  Needs no partition locked.
 */
bool
dl_engine_reserve(DlEngine *engine, int n, DlReserve *reserve)
{
	static const DlKind kinds[] = {DL_LEASE, DL_LOCK, DL_IMAGE};

	for (int kind = 0; kind < DL_NKINDS; kind++)
		dlist_init(&reserve->free[kind]);
	for (int i = 0; i < n; i++)
	{
		for (int k = 0; k < lengthof(kinds); k++)
		{
			dlist_node *node = dl_take_free(engine, i % DL_NPARTITIONS, kinds[k]);

			if (node == NULL)
			{
				dl_engine_unreserve(engine, reserve);
				return false;
			}
			dlist_push_head(&reserve->free[kinds[k]], node);
		}
	}
	return true;
}

/* Give back what is left.  Needs no partition locked. */
void
dl_engine_unreserve(DlEngine *engine, DlReserve *reserve)
{
	for (int kind = 0; kind < DL_NKINDS; kind++)
		for (int p = 0; !dlist_is_empty(&reserve->free[kind]); p = (p + 1) % DL_NPARTITIONS)
			dl_give_free(&engine->partitions[p], kind,
						 dlist_pop_head_node(&reserve->free[kind]));
}

/*
 * Bring back a lease, unless one with a greater token is in its way: then its
 * image is stale.  Call this in the descending order of tokens, before anybody
 * else may come.
 */
void
dl_engine_recover(DlEngine *engine, DlReserve *reserve,
				  const DlRecovered *recovered, int64 now, DlEffects *fx)
{
	const DlKey *key = &recovered->key;
	DlPartition *part = dl_partition_at(engine, key->hash);
	DlLock	   *lock = dl_engine_find_lock(engine, key);
	DlLease    *lease;

	if (lock != NULL && (lock->limit != recovered->limit ||
						 !dl_engine_has_room(lock, recovered->mode, 0)))
	{
		dl_image_add_stale(engine, part, recovered,
						   dlist_pop_head_node(&reserve->free[DL_IMAGE]), now);
		return;
	}
	if (lock == NULL)
		lock = dl_lock_create(engine, key, recovered->supply,
							  dlist_pop_head_node(&reserve->free[DL_LOCK]));
	lock->limit = recovered->limit;
	lease = dl_record_create(part, lock, dlist_pop_head_node(&reserve->free[DL_LEASE]));
	lease->mode = recovered->mode;
	lease->nparts = recovered->nparts;
	lease->nth = recovered->nth;
	lease->scope = DL_SCOPE_LEASE;
	lease->ttl = recovered->ttl;
	lease->bucket = dl_ttl_bucket(recovered->ttl);
	lease->durable = true;
	dl_image_attach(lease, dlist_pop_head_node(&reserve->free[DL_IMAGE]));
	lease->backend = 0;
	lease->generation = DL_NO_SESSION;
	lease->pid = 0;
	lease->owner = recovered->owner;
	strcpy(lease->holder, recovered->holder);
	strcpy(lease->request_id, recovered->request_id);
	lease->id_hash = recovered->id_hash;
	pg_atomic_fetch_add_u32(&lock->supply->live[DL_DURABLE][lease->bucket], 1);

	dl_grant(engine, lock, lease, recovered->token, now);
	lease->image->state = DL_IMAGE_KEPT;
	lease->image->place = recovered->place;
	lease->flushed = true;
	lease->state = DL_LIVE;
	/*
	 * Nothing its predecessors wrote is missed by a snapshot of this server, but
	 * by one from before its promotion.
	 */
	lease->told_at = recovered->deadline - recovered->ttl;
	lease->completed = 0;
	lease->granted_at = recovered->granted_at;
	dl_set_deadline(part, lease, recovered->deadline);
	fx->deadline = Min(fx->deadline, lease->deadline);
	/* A lease that may not be used yet is in no bucket where it is looked for. */
	if (recovered->usable)
	{
		dlist_push_head(dl_token_bucket(engine, key->hash, lease->token), &lease->token_link);
		dl_id_link(engine, lease);
	}
	else
		lease->token_link.prev = lease->token_link.next = &lease->token_link;
}
