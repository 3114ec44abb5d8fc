/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The background worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_WORKER_H
#define DISTLOCK_WORKER_H

extern void dl_worker_register(void);
extern PGDLLEXPORT void dl_worker_main(Datum arg);

#endif							/* DISTLOCK_WORKER_H */
