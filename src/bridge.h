/*-------------------------------------------------------------------------
 *
 * bridge.h
 *	  Advisory locks held along with leases.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_BRIDGE_H
#define DISTLOCK_BRIDGE_H

#include "engine.h"

extern bool dl_bridge_take(const DlRequest *request, bool wait, int64 until);
extern void dl_bridge_bind(DlLease *lease);
extern void dl_bridge_abandon(void);
extern void dl_bridge_sweep(void);

#endif							/* DISTLOCK_BRIDGE_H */
