/*-------------------------------------------------------------------------
 *
 * functions.h
 *	  What all functions that SQL calls have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_FUNCTIONS_H
#define DISTLOCK_FUNCTIONS_H

#include "fmgr.h"

extern void dl_require_library(void);
extern void dl_require_trigger(FunctionCallInfo fcinfo, const char *function);

#endif							/* DISTLOCK_FUNCTIONS_H */
