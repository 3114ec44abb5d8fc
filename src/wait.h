/*-------------------------------------------------------------------------
 *
 * wait.h
 *	  What a session does while it waits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_WAIT_H
#define DISTLOCK_WAIT_H

#include "extension.h"

extern void dl_sleep_until(int64 deadline, uint32 wait_event);
extern void dl_help(const DlExtension *extension, int backend);

#endif							/* DISTLOCK_WAIT_H */
