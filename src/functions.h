/*-------------------------------------------------------------------------
 *
 * functions.h
 *	  What all functions that SQL calls have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_FUNCTIONS_H
#define DISTLOCK_FUNCTIONS_H

extern void dl_require_library(void);

#endif							/* DISTLOCK_FUNCTIONS_H */
