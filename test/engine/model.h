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

typedef struct ModelLock
{
	DlKey		key;
	int			database;		/* index, for its tokens */
	Claim	   *holders[MAX_CLAIMS];	/* in the order of their grants */
	int			nholders;
	Claim	   *queue[MAX_CLAIMS];	/* the head first */
	int			nqueue;
	int			nover;
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

	/* What the operation under way did. */
	bool		ended;			/* something joined "over" */
	int64		earliest;		/* earliest deadline set */
} Model;

extern Model model;

extern int	model_partition(const ModelLock *lock);
extern int	model_used(void);
extern Claim *model_conflict(ModelLock *lock, DlMode mode);

extern DlVerdict model_request(ModelLock *lock, const DlRequest *request, Claim **claim);
extern DlVerdict model_look(Claim *claim);
extern void model_leave(Claim *claim);
extern Claim *model_find(ModelLock *lock, int64 token);
extern void model_renew(Claim *claim, int64 ttl);
extern void model_end(Claim *claim, DlCause cause);
extern Claim *model_take_over(int partition);
extern void model_end_backend(int partition, int backend);
extern void model_remove(int partition, Oid database, Oid extension);

#endif							/* MODEL_H */
