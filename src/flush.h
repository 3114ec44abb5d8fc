/*-------------------------------------------------------------------------
 *
 * flush.h
 *	  Flushing WAL for many sessions at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_FLUSH_H
#define DISTLOCK_FLUSH_H

#include "access/xlogdefs.h"

extern void dl_flush_wal(XLogRecPtr lsn);

#endif							/* DISTLOCK_FLUSH_H */
