/*-------------------------------------------------------------------------
 *
 * watch.h
 *	  Waiting for the holder of a lock to change.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_WATCH_H
#define DISTLOCK_WATCH_H

#include "engine.h"
#include "extension.h"

extern int64 dl_watch(const DlExtension *extension, const DlKey *key,
					  int64 token, int64 wait);
extern void dl_watch_abandon(void);

#endif							/* DISTLOCK_WATCH_H */
