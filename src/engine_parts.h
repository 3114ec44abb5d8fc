/*-------------------------------------------------------------------------
 *
 * engine_parts.h
 *	  What the files of the engine call of each other.
 *
 * The rules of engine.h apply.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_ENGINE_PARTS_H
#define DISTLOCK_ENGINE_PARTS_H

#include "engine.h"

static inline DlPartition *
dl_partition_at(DlEngine *engine, uint32 hash)
{
	return &engine->partitions[dl_partition_of(hash)];
}

static inline int64
dl_deadline_after(int64 now, int64 ttl)
{
	return ttl == 0 ? DL_FOREVER : now + ttl;
}

static inline void
dl_wake(DlEffects *fx, int backend)
{
	if (fx->nwakes == DL_MAX_WAKES)
		dl_effects_wake(fx);
	fx->wakes[fx->nwakes++] = backend;
}

/* memory.c: records, and where they are found */
extern dlist_head *dl_token_bucket(DlEngine *engine, uint32 hash, int64 token);
extern dlist_node *dl_take_free(DlEngine *engine, int partition, DlKind kind);
extern void dl_give_free(DlPartition *part, DlKind kind, dlist_node *node);
extern DlLock *dl_lock_create(DlEngine *engine, const DlKey *key,
							  DlSupply *supply, dlist_node *node);
extern void dl_lock_drop_unused(DlEngine *engine, DlLock *lock);
extern DlLease *dl_record_create(DlPartition *part, DlLock *lock, dlist_node *node);
extern void dl_record_free(DlEngine *engine, DlPartition *part, DlLease *lease);
extern void dl_backend_join(DlEngine *engine, uint32 hash, DlLease *lease);
extern void dl_backend_leave(DlLease *lease);

/* engine.c: granting and ending */
extern bool dl_supply_count(DlSupply *supply, DlKept kept, int bucket, DlEffects *fx);
extern void dl_supply_uncount(DlSupply *supply, DlKept kept, int bucket);
extern int64 dl_supply_draw(DlSupply *supply);
extern void dl_grant(DlEngine *engine, DlLock *lock, DlLease *lease, int64 token,
					 int64 now);
extern bool dl_may_tell(DlEngine *engine, const DlLease *lease);
extern void dl_tell(DlEngine *engine, DlLease *lease, int64 now, TimestampTz wall,
					DlEffects *fx);
extern void dl_set_deadline(DlPartition *part, DlLease *lease, int64 deadline);
extern void dl_end_lease(DlEngine *engine, DlLease *lease, DlCause cause,
						 int64 now, DlEffects *fx);

/* queue.c: what can be granted now */
extern void dl_settle(DlEngine *engine, DlLock *lock, int64 now, DlEffects *fx);

/* request_id.c */
extern void dl_id_link(DlEngine *engine, DlLease *lease);
extern void dl_id_unlink(DlEngine *engine, DlLease *lease);
extern DlVerdict dl_id_find(DlEngine *engine, DlRequest *request, int64 now,
							DlLease **leases, DlEffects *fx);

/* watcher.c */
extern void dl_watchers_wake(DlLock *lock, DlEffects *fx);
extern void dl_watchers_dismiss(DlLock *lock, DlEffects *fx);

/* image.c: what becomes of the image of a lease */
extern void dl_image_attach(DlLease *lease, dlist_node *node);
extern void dl_image_link(DlEngine *engine, DlPartition *part, DlLease *lease);
extern void dl_image_abandon(DlPartition *part, DlLease *lease, int64 now);
extern void dl_image_drop(DlPartition *part, DlLease *lease);
extern void dl_image_add_stale(DlEngine *engine, DlPartition *part,
							   const DlRecovered *recovered, dlist_node *node,
							   int64 now);
extern void dl_image_remove(DlEngine *engine, DlPartition *part, Oid database,
							Oid extension);

/* deadline.c: a partition's heap of deadlines */
extern void dl_deadline_insert(DlPartition *part, DlLease *lease);
extern void dl_deadline_remove(DlPartition *part, DlLease *lease);

#endif							/* DISTLOCK_ENGINE_PARTS_H */
