/*-------------------------------------------------------------------------
 *
 * transaction.h
 *	  What this transaction acquired, relies on and will release.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_TRANSACTION_H
#define DISTLOCK_TRANSACTION_H

#include "engine.h"

extern void dl_txn_init(void);
extern void dl_txn_at_exit(void);
extern void dl_txn_reserve(int n);
extern void dl_txn_acquired(DlLease *lease);
extern void dl_txn_guarded(void);
extern DlLease *dl_txn_find_acquired(const DlKey *key, int64 now);
extern void dl_txn_release(DlLease *lease, bool forced);
extern bool dl_txn_releases_any(void);
extern bool dl_txn_releases(const DlLease *lease);
extern bool dl_txn_releases_lock(const DlLock *lock, int64 now);
extern void dl_txn_remove(Oid database, Oid extension);

#endif							/* DISTLOCK_TRANSACTION_H */
