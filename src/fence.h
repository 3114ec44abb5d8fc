/*-------------------------------------------------------------------------
 *
 * fence.h
 *	  Guards: this transaction commits only if its leases are live then.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_FENCE_H
#define DISTLOCK_FENCE_H

#include "engine.h"

extern void dl_fence_guard(const DlKey *key, int64 token);
extern bool dl_fence_is_guarded(const DlKey *key);
extern uint64 dl_fence_generation(void);
extern void dl_fence_pin(void);
extern void dl_fence_prepare(void);
extern void dl_fence_pop(void);
extern void dl_fence_end(void);
extern void dl_fence_note_begin(void);
extern void dl_fence_forget_begin(void);

#endif							/* DISTLOCK_FENCE_H */
