/*-------------------------------------------------------------------------
 *
 * model.h
 *	  The reference model of the engine: plain arrays, searched from end to
 *	  end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef MODEL_H
#define MODEL_H

#include "engine.h"

#define MAX_CLAIMS		64
#define MAX_BACKENDS	40
#define MAX_LOCKS		32
#define NDATABASES		3
#define MAX_GUARDS		MAX_CLAIMS	/* which exceeds MAX_BACKENDS */
#define NMODES			(DL_SHARED + 1)

/* A request and, once granted, the lease. */
typedef struct Claim
{
	DlState		state;
	DlMode		mode;
	DlScope		scope;
	DlCause		cause;
	DlLease    *record;			/* the engine's */
	uint64		serial;			/* of that record */
	struct ModelLock *lock;		/* kept until the claim is free */
	int			backend;
	int64		arrival;		/* counts requests */
	int64		ttl;
	int64		deadline;
	int64		token;
	int64		since;
	int64		renewals;
	int			nreleasing;
	bool		seen_granted;	/* by check_grants() */
} Claim;

/* A transaction that relies on a lease. */
typedef struct Guard
{
	DlGuard    *record;			/* the engine's; null when not in use */
	int			pid;			/* no two guards have the same */
	struct ModelLock *lock;
	Claim	   *claim;			/* null once the ended lease has let go of it */
	DlMode		mode;			/* of the lease */
	bool		pinned;			/* its commit is in flight */
	bool		holding;		/* has the tag, to put up the barrier */
	bool		prepared;		/* has put it up, and left the tag to nprepared */
} Guard;

typedef struct ModelLock
{
	DlKey		key;
	int			database;		/* index, for its tokens */
	Claim	   *holders[MAX_CLAIMS];	/* in the order of their grants */
	int			nholders;
	Claim	   *queue[MAX_CLAIMS];	/* the head first */
	int			nqueue;
	int			nover;
	DlBarrier	barrier;
	bool		raised;			/* the barrier was, not just there from the start */

	/*
	 * The lock's tag, which the server would keep among its own locks, by the
	 * mode of the lease it is for.  It outlives the lock.
	 */
	int			nheld[NMODES];	/* by transactions prepared or about to be */
	int			nprepared[NMODES];	/* those of them that are */
	int			npassing[NMODES];	/* by sessions that pass the barrier */
	int64		tag_freed_at;	/* when the latest transaction let go of it */

	int64		settled_at;		/* when someone last tried to grant */
	int64		idle_since;		/* see check_takeover() */
	int64		last_arrival;	/* see check_grants() */
} ModelLock;

typedef struct Model
{
	int64		now;
	int			max_leases;
	int			nbackends;
	int64		narrivals;
	Claim		claims[MAX_CLAIMS];
	ModelLock	locks[MAX_LOCKS];
	int			nlocks;
	Claim	   *over[DL_NPARTITIONS][MAX_CLAIMS];	/* to be logged, in order */
	int			nover[DL_NPARTITIONS];
	int64		next_token[NDATABASES];
	int64		limit[NDATABASES];
	DlCounters	counters[DL_NPARTITIONS];
	Guard		guards[MAX_GUARDS];
	int			nguards;		/* ever made */
	uint64		forgotten;		/* barriers, see DlEngine */
	uint64		settled;

	/* What the operation under way did. */
	bool		ended;			/* something joined "over" */
	int64		earliest;		/* earliest deadline set */
} Model;

extern Model model;

extern int	model_partition(const ModelLock *lock);
extern int	model_used(void);
extern Claim *model_conflict(ModelLock *lock, DlMode mode);
extern bool model_is_in_use(const ModelLock *lock);
extern bool model_is_barred(const ModelLock *lock, DlMode mode);
extern int	model_guards(const Claim *claim);
extern int	model_pins(const Claim *claim);

extern DlVerdict model_request(ModelLock *lock, const DlRequest *request, Claim **claim);
extern DlVerdict model_look(Claim *claim);
extern void model_leave(Claim *claim);
extern Claim *model_find(ModelLock *lock, int64 token);
extern void model_renew(Claim *claim, int64 ttl);
extern void model_end(Claim *claim, DlCause cause);
extern Guard *model_guard(Claim *claim);
extern bool model_pin(Guard *guard);
extern bool model_bar(Guard *guard);
extern void model_unguard(Guard *guard);
extern void model_pass(Claim *claim);
extern bool model_can_hold(const ModelLock *lock, DlMode mode);
extern bool model_can_pass(const ModelLock *lock, DlMode mode);
extern Claim *model_stale(int partition);
extern Claim *model_take_over(int partition);
extern void model_end_backend(int partition, int backend);
extern void model_remove(int partition, Oid database, Oid extension);

#endif							/* MODEL_H */
