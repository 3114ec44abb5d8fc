/*-------------------------------------------------------------------------
 *
 * store.h
 *	  Getting the images of leases onto disk, and off it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_STORE_H
#define DISTLOCK_STORE_H

#include "access/xlogdefs.h"

#include "engine.h"
#include "extension.h"

extern bool dl_store_write(const DlExtension *extension, const DlKey *keys,
						   DlLease **leases, const uint64 *serials, int n,
						   int64 ttl);
extern void dl_store_clear_leftovers(const DlExtension *extension,
									 const DlKey *key);
extern void dl_store_clear_stale(const DlExtension *extension);
extern void dl_store_flush(XLogRecPtr lsn);
extern void dl_store_abandon(void);

#endif							/* DISTLOCK_STORE_H */
