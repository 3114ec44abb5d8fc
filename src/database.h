/*-------------------------------------------------------------------------
 *
 * database.h
 *	  What distlock knows of this database, and its first use after a start.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_DATABASE_H
#define DISTLOCK_DATABASE_H

#include "extension.h"
#include "shmem.h"

/* Which tokens came before those of a standby that is promoted is not known. */
#define DL_EPOCH_SHIFT	40

/* distlock.failover_grace */
typedef enum DlFailoverGrace
{
	DL_GRACE_OFF,
	DL_GRACE_REPLAYED,
	DL_GRACE_STRICT,
} DlFailoverGrace;

extern DlDatabase *dl_database_find(void);
extern DlDatabase *dl_database_attach(const DlExtension *extension);
extern DlDatabase *dl_database_rely_on(const DlExtension *extension);
extern void dl_database_forget(Oid database, Oid extension);
extern int	dl_database_discard_damaged(const DlExtension *extension);

#endif							/* DISTLOCK_DATABASE_H */
