/*-------------------------------------------------------------------------
 *
 * acquire.h
 *	  Acquiring: what a session does from its request to its token.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_ACQUIRE_H
#define DISTLOCK_ACQUIRE_H

#include "engine.h"
#include "extension.h"

extern int64 dl_acquire(const DlExtension *extension, DlRequest *request,
						int64 wait, bool try);
extern void dl_acquire_abandon(void);

#endif							/* DISTLOCK_ACQUIRE_H */
