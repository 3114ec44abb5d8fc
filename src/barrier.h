/*-------------------------------------------------------------------------
 *
 * barrier.h
 *	  What a prepared transaction keeps others from its locks with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_BARRIER_H
#define DISTLOCK_BARRIER_H

#include "engine.h"

extern void dl_barrier_hold(const DlKey *key, DlMode mode);
extern bool dl_barrier_try_pass(const DlKey *key, DlMode mode);
extern bool dl_barrier_pass(const DlKey *key, DlMode mode, int64 until);
extern void dl_barrier_passed(const DlKey *key, DlMode mode);
extern bool dl_barrier_settle(void);

#endif							/* DISTLOCK_BARRIER_H */
