/*-------------------------------------------------------------------------
 *
 * supply.h
 *	  What grants draw on: tokens, and how long leases may live.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_SUPPLY_H
#define DISTLOCK_SUPPLY_H

#include "control.h"
#include "engine.h"
#include "extension.h"
#include "shmem.h"

extern void dl_supply_init(DlSupply *supply);
extern XLogRecPtr dl_supply_open(DlDatabase *database, const DlControlFile *file,
						   DlControl *control, int64 floor, int64 grace);
extern DlSupply *dl_supply_for(const DlExtension *extension, DlKept kept,
							   int bucket);
extern void dl_supply_refill(const DlExtension *extension, const int *wanted);
extern bool dl_supply_is_high(DlDatabase *database);
extern void dl_supply_lower(const DlExtension *extension, DlDatabase *database);

#endif							/* DISTLOCK_SUPPLY_H */
