/*-------------------------------------------------------------------------
 *
 * chores.h
 *	  Tidying up on disk what nobody else comes by for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_CHORES_H
#define DISTLOCK_CHORES_H

#include "postgres.h"

extern int64 dl_chores_start(void);
extern PGDLLEXPORT void dl_chores_main(Datum arg);

#endif							/* DISTLOCK_CHORES_H */
