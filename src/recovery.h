/*-------------------------------------------------------------------------
 *
 * recovery.h
 *	  Bringing back the leases of the lease table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_RECOVERY_H
#define DISTLOCK_RECOVERY_H

#include "control.h"
#include "engine.h"
#include "shmem.h"

typedef struct DlRecovery
{
	DlRecovered *leases;		/* those that the engine does not know */
	int			nleases;
	int			max_leases;
	int64		token_limit;	/* no token above it has been issued */
	int			npages;			/* that the table has */
	int			first_vacant;	/* no vacant slot in pages before */
} DlRecovery;

extern void dl_recovery_read(const DlExtension *extension,
							 const DlControlFile *file, DlRecovery *recovery);
extern void dl_recovery_finish(DlRecovery *recovery, DlDatabase *database);
extern int	dl_recovery_find_damaged(const DlExtension *extension,
									 const DlControl *control, bool discard);

#endif							/* DISTLOCK_RECOVERY_H */
