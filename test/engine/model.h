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
#define MAX_IMAGES		(2 * MAX_CLAIMS)
#define NMODES			(DL_SHARED + 1)
#define MAX_PARTS		4		/* locks in one request */
#define MAX_LIMIT		4		/* holders of a semaphore */

/* A request for one lock, or one part of it, and, once granted, the lease. */
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
	int64		arrival;		/* counts requests; in the order of the queue */
	int64		joined;			/* counts what ends with its backend */
	int64		ttl;
	int64		deadline;
	int64		token;
	int64		since;
	int64		renewals;
	int			nreleasing;
	int			limit;
	int			nparts;			/* of the request */
	int			nth;			/* of them */
	Oid			owner;
	char		request_id[8];	/* empty: none */
	bool		ready;			/* one of several parts, and not blocked here */
	bool		bridging;
	int			undoer;			/* backend whose transaction may undo it, or -1 */
	bool		durable;
	bool		flushed;		/* is its image? */
	bool		usable;			/* may its token be used? */
	int			bucket;			/* -1: counts in none */
	struct ModelImage *image;	/* null once given up */
	bool		seen_granted;	/* by check_grants() */
} Claim;

/* What the engine knows of an image on disk. */
typedef struct ModelImage
{
	DlImageState state;			/* free: not in use */
	DlImage    *record;			/* the engine's */
	Claim	   *claim;
	struct ModelLock *lock;
	int64		token;
	int			nth;			/* of the leases under that token */
	int64		ttl;
	int64		stale_since;
	DlPlace		place;
	bool		linked;			/* may be found */
} ModelImage;

/* A transaction that relies on a lease. */
typedef struct Guard
{
	DlGuard    *record;			/* the engine's; null when not in use */
	int			pid;			/* no two guards have the same */
	struct ModelLock *lock;
	Claim	   *claim;			/* null once the ended lease has let go of it */
	DlMode		mode;			/* of the lease */
	int			limit;			/* likewise */
	bool		pinned;			/* its commit is in flight */
	bool		holding;		/* has the tag, to put up the barrier */
	bool		prepared;		/* has put it up, and left the tag to nprepared */
} Guard;

typedef struct ModelLock
{
	DlKey		key;
	int			database;		/* index, for its supply */
	int			table;			/* index of its lease table, see disk.c */
	Claim	   *holders[MAX_CLAIMS];	/* in the order of their grants */
	int			nholders;
	Claim	   *queue[MAX_CLAIMS];	/* the head first */
	int			nqueue;
	int			nover;
	int			watchers[MAX_BACKENDS];	/* the first first */
	int			nwatchers;
	bool		news;			/* by the operation under way, for watchers */
	int			limit;			/* if there are holders, or a queue */
	int			usual_limit;	/* of requests */
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
	int64		told[MAX_LIMIT + 1][NMODES];	/* greatest tokens, whatever has
												 * crashed since */
} ModelLock;

typedef struct Model
{
	int64		now;
	int			max_leases;
	int			nbackends;
	int64		narrivals;
	int64		njoined;
	Claim		claims[MAX_CLAIMS];
	ModelLock	locks[MAX_LOCKS];
	int			nlocks;
	Claim	   *over[DL_NPARTITIONS][MAX_CLAIMS];	/* to be logged, in order */
	int			nover[DL_NPARTITIONS];
	ModelImage	images[MAX_IMAGES];
	ModelImage *stale[DL_NPARTITIONS][MAX_IMAGES];	/* in order */
	int			nstale[DL_NPARTITIONS];
	int64		next_token[NDATABASES];
	int64		limit[NDATABASES];
	int64		opens_at[NDATABASES];
	int			nbuckets[NDATABASES][DL_NKEPT];
	bool		attached[NDATABASES];	/* are its leases brought back? */
	DlCounters	counters[DL_NPARTITIONS];
	Guard		guards[MAX_GUARDS];
	int			nguards;		/* ever made */
	uint64		forgotten;		/* barriers, see DlEngine */
	uint64		settled;
	int			settle_stage;	/* how far the worker is; see op_settle() */
	uint64		settle_seen;

	/* What the operation under way did. */
	bool		ended;			/* something joined "over" */
	int64		earliest;		/* earliest deadline set */
	int			wanted[DL_NKEPT];	/* buckets that were not open */
	uint64		barred;			/* if barred: which of the keys */
	ModelLock  *other;			/* that a refusal speaks of */
} Model;

extern Model model;

extern int	model_partition(const ModelLock *lock);
extern int	model_used(void);
extern bool model_has_room(const ModelLock *lock, DlMode mode, int nahead);
extern Claim *model_in_the_way(const ModelLock *lock);
extern bool model_is_in_use(const ModelLock *lock);
extern bool model_is_barred(const ModelLock *lock, DlMode mode);
extern int	model_guards(const Claim *claim);
extern int	model_pins(const Claim *claim);

extern DlVerdict model_request(const DlRequest *request, ModelLock **locks, Claim **claims);
extern DlVerdict model_look(const DlRequest *request, Claim **claims);
extern void model_adopt(Claim *claim, const DlRequest *request);
extern void model_overtake(Claim *claim, Claim *before);
extern bool model_grant_for(int backend);
extern void model_watch(ModelLock *lock, int backend);
extern void model_unwatch(ModelLock *lock, int backend);
extern int64 model_newest(ModelLock *lock, int64 *deadline);
extern void model_leave(Claim *claim);
extern Claim *model_find(ModelLock *lock, int64 token);
extern bool model_renew(Claim *claim, int64 ttl);
extern void model_end(Claim *claim, DlCause cause);
extern Guard *model_guard(Claim *claim);
extern bool model_pin(Guard *guard);
extern bool model_bar(Guard *guard);
extern void model_unguard(Guard *guard);
extern void model_pass(Claim *claim);
extern DlMode model_tag_mode(const Guard *guard);
extern bool model_can_hold(const ModelLock *lock, DlMode mode);
extern bool model_can_pass(const ModelLock *lock, DlMode mode);
extern Claim *model_stale(int partition);
extern Claim *model_take_over(int partition);
extern void model_end_backend(int partition, int backend);
extern void model_remove(int partition, Oid database, Oid extension);
extern Claim *model_recover(ModelLock *lock, const DlRecovered *recovered);
extern Claim *model_claim_of(const DlLease *record, uint64 serial);

/* images.c */
extern ModelImage *model_new_image(void);
extern int	model_images_used(void);
extern void model_link_image(Claim *claim);
extern void model_abandon_image(Claim *claim);
extern void model_drop_image(Claim *claim);
extern void model_free_image(ModelImage *image);
extern void model_make_stale(ModelImage *image, int64 since);
extern bool model_is_leftover(const ModelImage *image, const ModelLock *lock);
extern bool model_has_leftovers(const ModelLock *lock);
extern bool model_place(Claim *claim, DlPlace place);
extern void model_stored(Claim *claim, int64 ttl);
extern void model_condemn(ModelImage *image);
extern void model_spare(ModelImage *image);
extern void model_forget(ModelImage *image);
extern void model_remove_images(int partition, Oid database, Oid extension);
extern ModelImage *model_image_of(const DlImage *record);

#endif							/* MODEL_H */
