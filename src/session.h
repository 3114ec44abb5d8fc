/*-------------------------------------------------------------------------
 *
 * session.h
 *	  What begins and ends with a session.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_SESSION_H
#define DISTLOCK_SESSION_H

extern uint32 dl_session_start(void);
extern void dl_session_discard(void);

#endif							/* DISTLOCK_SESSION_H */
