/*-------------------------------------------------------------------------
 *
 * disk.h
 *	  The lease tables on a disk of which a crash keeps what was flushed, and
 *	  the sessions that write to them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISK_H
#define DISK_H

#include "model.h"

#define MAX_TABLES		MAX_LOCKS	/* one for each extension */
#define SLOTS_PER_PAGE	3
#define MAX_PAGES		64
#define MAX_JOBS		(MAX_BACKENDS + 4)
#define MAX_HELD		4		/* images that a job condemns at a time */

/* What is in a slot. */
typedef struct DiskImage
{
	ModelLock  *lock;
	int64		token;			/* 0: vacant */
	int64		ttl;
	DlMode		mode;
	int			limit;
	int			nparts;
	int			nth;
	Oid			owner;
	char		request_id[8];
} DiskImage;

typedef struct Page
{
	DiskImage	slots[SLOTS_PER_PAGE];	/* as in memory */
	DiskImage	flushed[SLOTS_PER_PAGE];	/* what a crash keeps at least */
	int64		lsn;
	int			locked_by;		/* a job, or -1 */
} Page;

typedef struct Table
{
	Page		pages[MAX_PAGES];
	int			npages;
	int			nopen;			/* jobs that keep it from being dropped */
	int			generation;		/* how often it has been dropped */
} Table;

/* disk.c */
extern Table tables[MAX_TABLES];
extern void begin_disk(void);
extern DiskImage *disk_slot(int table, DlPlace place);
extern bool disk_is_of(const DiskImage *image, int64 token, int nth);
extern bool disk_find(int table, int64 token, int nth, int job, DlPlace *place, int64 *lsn, bool *busy);
extern bool disk_find_vacant(int table, int job, DlPlace *place);
extern int64 disk_write(int table, DlPlace place, const DiskImage *image);
extern void disk_flush(int64 lsn);
extern void disk_flush_some(void);
extern int	disk_pending(void);
extern void disk_crash(void);
extern bool disk_drop(Oid database, Oid extension);
extern void disk_compact(int table);
extern bool disk_keeps(const Claim *claim);
extern bool disk_may_have(int table, int64 token, int nth);
extern void check_told(const Claim *claim);
extern void check_disk(void);

/* jobs.c */
extern void begin_jobs(void);
extern void start_acquire_job(int backend);
extern void start_renew_job(Claim *claim, int64 ttl);
extern void start_clean_job(int table);
extern bool is_storing(int job);
extern bool step_job(int number);
extern int	random_job(void);
extern void finish_critical_section(int number);
extern void abandon_job(int number);
extern void fail_job(int number);

/* crash.c */
extern void begin_owed(void);
extern void forget_owed(Oid database, Oid extension);
extern void crash(bool barriers);
extern bool attach_database(int database, int64 since, bool usable);

#endif							/* DISK_H */
