/*-------------------------------------------------------------------------
 *
 * barrier.h
 *	  What a prepared transaction keeps others from its locks with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_BARRIER_H
#define DISTLOCK_BARRIER_H

#include "storage/lock.h"

#include "engine.h"

extern void dl_barrier_hold(const DlKey *key, DlMode mode);
extern bool dl_barrier_is_held(const DlKey *key, DlMode mode);
extern bool dl_barrier_try_pass(const DlKey *key, DlMode mode);
extern bool dl_barrier_pass(const DlKey *key, DlMode mode, int64 until);
extern void dl_barrier_passed(const DlKey *key, DlMode mode);
extern bool dl_barrier_settle(void);

extern bool dl_tag_try(const LOCKTAG *tag, LOCKMODE mode, bool session);
extern bool dl_tag_acquire(const LOCKTAG *tag, LOCKMODE mode, bool session,
						   int64 until);

#endif							/* DISTLOCK_BARRIER_H */
