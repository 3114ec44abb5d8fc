/*-------------------------------------------------------------------------
 *
 * control.h
 *	  The durable state of one database: a row and a sequence, written in place.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_CONTROL_H
#define DISTLOCK_CONTROL_H

#include "access/xlogdefs.h"
#include "storage/itemptr.h"
#include "utils/relcache.h"

#include "extension.h"

/* The row of distlock_control as it lies on its page. */
typedef struct DlControl
{
	int64		token_limit;	/* no token above it has been issued; 0: unused */
	int64		system_id;
	int64		timeline;
	int64		database;
	int64		lease_pages;	/* pages that the lease table has at least */
	int64		volatile_ttl;	/* no volatile lease has been longer, in us */
	int64		longest_ttl;	/* nor any lease, for a day at least */
	int64		grace;			/* after a failover, still pending; in us */
	int64		unusable_limit; /* leases up to this token are, for good */
} DlControl;

typedef struct DlControlFile
{
	Relation	sequence;
	Relation	control;
	ItemPointerData row;
} DlControlFile;

extern bool dl_control_open(const DlExtension *extension, bool wait,
							DlControlFile *file);
extern void dl_control_close(DlControlFile *file);
extern DlControl dl_control_read(const DlControlFile *file, int64 *sequence_limit);
extern XLogRecPtr dl_control_write(const DlControlFile *file,
								   const DlControl *control);
extern bool dl_control_is_created(const DlControlFile *file);
extern bool dl_control_is_rewritten(const DlControlFile *file);

#endif							/* DISTLOCK_CONTROL_H */
