/*-------------------------------------------------------------------------
 *
 * deadlock.h
 *	  Finding cycles of sessions that wait for each other.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_DEADLOCK_H
#define DISTLOCK_DEADLOCK_H

extern bool dl_deadlock_check(bool queues);

#endif							/* DISTLOCK_DEADLOCK_H */
