/*-------------------------------------------------------------------------
 *
 * lease.h
 *	  What is done with leases: by their holders, and when they have ended.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_LEASE_H
#define DISTLOCK_LEASE_H

#include "compat.h"
#include "engine.h"
#include "extension.h"

#define ERRCODE_DISTLOCK_LEASE_LOST	MAKE_SQLSTATE('L','K','0','0','1')

/* How the caller of dl_lease_report_lost() has come to know. */
typedef enum DlLoss
{
	DL_LOST,
	DL_LOST_BY_RELEASE,			/* by this transaction itself */
	DL_LOST_AT_COMMIT,
} DlLoss;

/* As "ttl" of dl_lease_renew(): the one that the lease has. */
#define DL_KEEP_TTL		(-1)

extern int64 dl_lease_renew(const DlExtension *extension, const DlKey *key,
							int64 token, int64 ttl, bool missing_ok);
extern bool dl_lease_prepare(const DlExtension *extension, const DlKey *keys, int n,
							 int64 token, int64 ttl, bool missing_ok);
extern bool dl_lease_release(const DlKey *key, int64 token);
extern bool dl_lease_check(const DlKey *key, int64 token);
extern int	dl_lease_force_release(const DlKey *key);
extern DlLease *dl_lease_lock(const DlKey *key, int64 token, int64 *now,
							  DlEffects *fx);
extern void dl_lease_unlock(int partition, DlEffects *fx);
dl_noreturn extern void dl_lease_report_lost(const DlKey *key, int64 token,
											 int64 now, DlEffects *fx,
											 DlLoss loss);
extern void dl_lease_remove(Oid database, Oid extension);
extern void dl_lease_sweep(void);
extern void dl_log_over(int partition);

#endif							/* DISTLOCK_LEASE_H */
