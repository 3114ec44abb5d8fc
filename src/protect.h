/*-------------------------------------------------------------------------
 *
 * protect.h
 *	  Tables that are written only under a guard.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_PROTECT_H
#define DISTLOCK_PROTECT_H

extern void dl_protect_truncate(Oid relation);

#endif							/* DISTLOCK_PROTECT_H */
