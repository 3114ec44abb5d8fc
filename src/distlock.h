/*-------------------------------------------------------------------------
 *
 * distlock.h
 *	  The settings of distlock, defined in distlock.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_H
#define DISTLOCK_H

/* What distlock.max_leases allows at most; see shmem.c. */
#define DL_MOST_LEASES	(2 * 1024 * 1024)

extern int	dl_max_leases;		/* leases held and waited for */
extern int	dl_default_ttl;		/* milliseconds */
extern int	dl_max_ttl;			/* seconds */
extern bool dl_durable;
extern int	dl_failover_grace;	/* DlFailoverGrace */
extern bool dl_log_expirations;
extern bool dl_terminate_stale;

#endif							/* DISTLOCK_H */
