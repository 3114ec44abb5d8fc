/*-------------------------------------------------------------------------
 *
 * deadlock.c
 *	  Finding cycles of sessions that wait for each other.
 *
 * A session waits for another if that one holds a lease of scope session or
 * transaction, or of a transaction that is open, stands ahead of it in a queue, or
 * holds one of PostgreSQL's own locks that it waits for.  That such a lease may have
 * a TTL is no hope worth waiting for.  A lease of scope lease is nobody's in this
 * sense, once the transaction that acquired it has ended: its session may serve
 * somebody else by now.
 *
 * What a session needs is put as terms: all of them have to come true.  A term
 * is a list of sessions, any one of which may make it true by going on.  Mostly
 * that is one session; of a semaphore it is all who hold a permit.  A session is
 * dead if one of its terms names dead sessions only.  We look at the sessions
 * that can be reached from ourselves, take all who wait for dead, and bring back
 * to life whoever we can.  If we are dead after that, and on the way of dead
 * sessions that leads back to us, there is a deadlock.
 *
 * To stand behind somebody in a queue need not be.  If a cycle goes that way, we
 * see whether it is gone when the two change places; if that leaves another cycle,
 * whether that one can be broken in the same way, and so on.
 *
 * What is looked at changes meanwhile, since nothing is locked for long.  So when
 * there is a cycle we look twice more, and believe what has stayed the same: the
 * waits of the cycle, and what they wait for, then were there at the same time.  The
 * deadlock lock sees to it that of several sessions that would find the same cycle
 * the first breaks it.
 *
 * Whoever waits looks again and again, since a wait for one of PostgreSQL's locks
 * may close a cycle later.  To follow the queues as well, where each may stand
 * behind many, is left to the first look and to every tenth.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/backend_status.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "acquire.h"
#include "compat.h"
#include "deadlock.h"
#include "shmem.h"

/* Somebody who may make a term come true. */
typedef struct Blocker
{
	int			pid;
	int			node;			/* -1: not looked up yet, or gone */
	uint64		serial;			/* of his lease or request; 0: other lock */
} Blocker;

typedef struct Term
{
	int			first;			/* blocker */
	int			n;
	bool		soft;			/* he only stands ahead of us */
	DlLease    *lease;			/* request that waits; null: for another lock */
	uint64		serial;
	int			partition;
	DlLease    *ahead;			/* soft: request that stands ahead */
	int			dropped;		/* by so many changes */
	int			name;			/* where the name of the lock is in "names" */
	DlMode		mode;
	LOCKTAG		tag;			/* of another lock */
	LOCKMODE	lockmode;
	uint64		wait_start;		/* likewise */
} Term;

typedef struct Waiter
{
	int			backend;
	int			pid;
	int			first;			/* term */
	int			n;
	bool		dead;
	bool		seen;
} Waiter;

/* One step of the cycle: this node, by this term, waits for that blocker. */
typedef struct Step
{
	int			node;
	int			term;
	int			blocker;
} Step;

/* A request that is overtaken, and waits for the one that goes ahead. */
typedef struct Overtaken
{
	DlLease    *lease;
	int			node;			/* whose it is */
	int			by;				/* node */
} Overtaken;

/* A request that goes ahead of another one, and of all in between. */
typedef struct Change
{
	const Term *term;			/* of the request; soft */
	int			node;			/* whose it is */
	DlLease    *ahead;			/* that one */
	uint64		ahead_serial;
	int			ahead_node;
	bool		right_ahead;	/* it waits for what that one waits for */
	int			novertaken;		/* before this change */
} Change;

/* More than that need not be tried, nor so many together. */
#define MOST_TRIES		1000
#define MAX_CHANGES		16

/* All arrays live in one context.  Room is made before a partition is locked. */
typedef struct Graph
{
	Waiter	   *nodes;
	int			nnodes;
	int		   *node_of;		/* by backend */
	Term	   *terms;
	int			nterms;
	int			max_terms;
	Blocker    *blockers;
	int			nblockers;
	int			max_blockers;
	char	   *names;
	int			names_len;
	int			names_max;
	Step	   *steps;			/* of the cycle */
	int			nsteps;
	Change		changes[MAX_CHANGES];
	int			nchanges;
	Overtaken  *overtaken;		/* by all changes */
	int			novertaken;
	int			max_overtaken;
	int			ntries;
	bool		queues;			/* also look at who stands ahead of whom */
	bool		bound;			/* we wait for somebody who might wait for us */
} Graph;

/* ---- Who waits for whom ---- */

static int
add_node(Graph *graph, int backend)
{
	Waiter	   *node;

	if (graph->node_of[backend] >= 0)
		return graph->node_of[backend];
	node = &graph->nodes[graph->nnodes];
	memset(node, 0, sizeof(Waiter));
	node->backend = backend;
	node->pid = ProcGlobal->allProcs[backend].pid;
	return graph->node_of[backend] = graph->nnodes++;
}

static bool
has_space(const Graph *graph, int nterms, int nblockers, int names_len)
{
	return graph->max_terms - graph->nterms >= nterms &&
		graph->max_blockers - graph->nblockers >= nblockers &&
		graph->names_max - graph->names_len >= names_len;
}

static void
make_space(Graph *graph, int nterms, int nblockers, int names_len)
{
	graph->max_terms = 2 * (graph->max_terms + nterms);
	graph->terms = repalloc(graph->terms, graph->max_terms * sizeof(Term));
	graph->max_blockers = 2 * (graph->max_blockers + nblockers);
	graph->blockers = repalloc(graph->blockers, graph->max_blockers * sizeof(Blocker));
	graph->names_max = 2 * (graph->names_max + names_len);
	graph->names = repalloc(graph->names, graph->names_max);
}

static Term *
add_term(Graph *graph)
{
	Term	   *term = &graph->terms[graph->nterms++];

	memset(term, 0, sizeof(Term));
	term->first = graph->nblockers;
	return term;
}

static void
add_blocker(Graph *graph, Term *term, int pid, uint64 serial)
{
	Blocker    *blocker = &graph->blockers[graph->nblockers++];

	blocker->pid = pid;
	blocker->node = -1;
	blocker->serial = serial;
	term->n++;
}

/* Is it the lease of a session, or of a transaction that is open? */
static bool
is_bound(const DlLease *lease)
{
	return dl_session_is_live(lease->backend, lease->generation) &&
		(lease->state == DL_GRANTED || lease->scope != DL_SCOPE_LEASE || lease->open);
}

static Term *
add_wait(Graph *graph, int partition, DlLease *lease, int name)
{
	Term	   *term = add_term(graph);

	term->partition = partition;
	term->lease = lease;
	term->serial = lease->serial;
	term->mode = lease->mode;
	term->name = name;
	return term;
}

/* The leases in the way of a waiting request.  Of a semaphore one is enough. */
static void
add_leases(Graph *graph, int partition, DlLease *lease, int name)
{
	DlLock	   *lock = lease->lock;
	Term	   *term = NULL;
	int			nterms = graph->nterms;
	int			nblockers = graph->nblockers;
	dlist_iter	iter;

	if (dl_engine_has_room(lock, lease->mode, 0))
		return;
	dlist_foreach(iter, &lock->leases)
	{
		DlLease    *holder = dlist_container(DlLease, lock_link, iter.cur);
		dlist_iter	guard;

		if (holder->state != DL_PINNED && !is_bound(holder))
		{
			if (lock->limit == 0)
				continue;
			/* This permit comes back whatever the others do. */
			graph->nterms = nterms;
			graph->nblockers = nblockers;
			return;
		}
		if (term == NULL || lock->limit == 0)
			term = add_wait(graph, partition, lease, name);
		if (holder->state != DL_PINNED)
			add_blocker(graph, term, holder->pid, holder->serial);
		else
			dlist_foreach(guard, &holder->guards)
			{
				const DlGuard *pin = dlist_container(DlGuard, link, guard.cur);

				if (pin->pinned)
					add_blocker(graph, term, pin->pid, holder->serial);
			}
	}
}

/* The requests ahead of it.  What is further ahead is in their way as well. */
static void
add_requests_ahead(Graph *graph, int partition, DlLease *lease, int name)
{
	DlLock	   *lock = lease->lock;
	DlLease    *other = lease;

	while (dlist_has_prev(&lock->queue, &other->lock_link))
	{
		Term	   *term;

		other = dlist_container(DlLease, lock_link,
								dlist_prev_node(&lock->queue, &other->lock_link));
		if (lock->limit == 0 && lease->mode == DL_SHARED && other->mode == DL_SHARED)
			continue;
		term = add_wait(graph, partition, lease, name);
		term->soft = true;
		term->ahead = other;
		add_blocker(graph, term, other->pid, other->serial);
		if (lock->limit > 0 || other->mode == DL_EXCLUSIVE)
			break;
	}
}

/* What the requests of this backend in a partition wait for. */
static void
add_waits(Graph *graph, int backend, int partition)
{
	DlEngine   *engine = dl_shared->engine;
	DlPartition *part = &engine->partitions[partition];
	dlist_head *list = dl_engine_of_backend(engine, backend, partition);
	DlEffects	fx = DL_NO_EFFECTS;
	dlist_iter	iter;
	int			n;
	int			nlocks;

	for (;;)
	{
		n = nlocks = 0;
		dl_partition_lock(partition, LW_SHARED);
		dlist_foreach(iter, list)
		{
			const DlLease *lease = dlist_container(DlLease, backend_link, iter.cur);

			if (lease->state != DL_WAITING)
				continue;
			n += lease->lock->nleases + part->npins + lease->lock->nwaiting;
			nlocks++;
		}
		if (has_space(graph, n, n, nlocks * (DL_NAME_MAX + 1)))
			break;
		dl_partition_unlock(partition, &fx);
		make_space(graph, n, n, nlocks * (DL_NAME_MAX + 1));
	}
	dlist_foreach(iter, list)
	{
		DlLease    *lease = dlist_container(DlLease, backend_link, iter.cur);
		int			name = graph->names_len;

		if (lease->state != DL_WAITING)
			continue;
		strcpy(graph->names + name, lease->lock->key.name);
		graph->names_len += lease->lock->key.len + 1;
		add_leases(graph, partition, lease, name);
		if (graph->queues)
			add_requests_ahead(graph, partition, lease, name);
	}
	dl_partition_unlock(partition, &fx);
}

/* What a session waits for in PostgreSQL's own lock manager. */
static void
add_other_lock(Graph *graph, int backend)
{
	PGPROC	   *proc = &ProcGlobal->allProcs[backend];
	int			pid = proc->pid;
	uint64		wait_start = pg_atomic_read_u64(&proc->waitStart);
	BlockedProcsData *data;
	Datum	   *pids;
	int			npids;
	LOCKTAG		tag;
	LOCKMODE	lockmode = NoLock;

	if (proc->waitStatus != PROC_WAIT_STATUS_WAITING)
		return;
	data = GetBlockerStatusData(pid);
	for (int i = 0; i < data->nlocks; i++)
		if (data->locks[i].pid == pid && data->locks[i].waitLockMode != NoLock)
		{
			tag = data->locks[i].locktag;
			lockmode = data->locks[i].waitLockMode;
		}
	if (lockmode == NoLock)
		return;
	deconstruct_array(DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids, Int32GetDatum(pid))),
					  INT4OID, sizeof(int32), true, TYPALIGN_INT, &pids, NULL, &npids);
	if (!has_space(graph, npids, npids, 0))
		make_space(graph, npids, npids, 0);
	for (int i = 0; i < npids; i++)
	{
		Term	   *term = add_term(graph);

		term->tag = tag;
		term->lockmode = lockmode;
		term->wait_start = wait_start;
		add_blocker(graph, term, DatumGetInt32(pids[i]), 0);
	}
}

/* All that node number i waits for. */
static void
expand(Graph *graph, int i)
{
	int			backend = graph->nodes[i].backend;

	graph->nodes[i].first = graph->nterms;
	for (int p = 0; p < DL_NPARTITIONS; p++)
		if (!dlist_is_empty(dl_engine_of_backend(dl_shared->engine, backend, p)))
			add_waits(graph, backend, p);
	add_other_lock(graph, backend);
	graph->nodes[i].n = graph->nterms - graph->nodes[i].first;

	for (int t = graph->nodes[i].first; t < graph->nterms; t++)
		for (int b = 0; b < graph->terms[t].n; b++)
		{
			Blocker    *blocker = &graph->blockers[graph->terms[t].first + b];
			PGPROC	   *proc = BackendPidGetProc(blocker->pid);

			if (proc != NULL)
				blocker->node = add_node(graph, dl_backend_of(proc));
		}
}

/* Look at all who can be reached from us, with "queues" also by who stands ahead. */
static Graph *
build_graph(bool queues)
{
	Graph	   *graph = palloc0(sizeof(Graph));
	int			me = dl_my_backend();

	graph->nodes = palloc(MaxBackends * sizeof(Waiter));
	graph->node_of = palloc(MaxBackends * sizeof(int));
	graph->steps = palloc(MaxBackends * sizeof(Step));
	graph->terms = palloc(sizeof(Term));
	graph->blockers = palloc(sizeof(Blocker));
	graph->names = palloc(1);
	graph->overtaken = palloc(sizeof(Overtaken));
	graph->queues = queues;
	memset(graph->node_of, -1, MaxBackends * sizeof(int));
	add_node(graph, me);
	for (int i = 0; i < graph->nnodes; i++)
		expand(graph, i);
	for (int t = 0; t < graph->nodes[0].n; t++)
		graph->bound = graph->bound || !graph->terms[t].soft;
	return graph;
}

/* ---- Who is dead ---- */

static bool
is_dead_term(const Graph *graph, int t)
{
	const Term *term = &graph->terms[t];

	if (term->dropped > 0)
		return false;
	for (int b = 0; b < term->n; b++)
	{
		int			node = graph->blockers[term->first + b].node;

		if (node < 0 || !graph->nodes[node].dead)
			return false;
	}
	return term->n > 0;
}

/* Is what stands ahead of the request that a change goes ahead of? */
static bool
is_queue_dead(const Graph *graph, const Change *change)
{
	const Waiter *node = &graph->nodes[change->ahead_node];

	for (int t = node->first; t < node->first + node->n; t++)
		if (graph->terms[t].soft && graph->terms[t].lease == change->ahead &&
			is_dead_term(graph, t))
			return true;
	return false;
}

static bool
is_dead_node(const Graph *graph, int i)
{
	const Waiter *node = &graph->nodes[i];

	for (int t = node->first; t < node->first + node->n; t++)
		if (is_dead_term(graph, t))
			return true;
	for (int o = 0; o < graph->novertaken; o++)
		if (i == graph->overtaken[o].node && graph->nodes[graph->overtaken[o].by].dead)
			return true;
	for (int c = 0; c < graph->nchanges; c++)
		if (i == graph->changes[c].node && graph->changes[c].right_ahead &&
			is_queue_dead(graph, &graph->changes[c]))
			return true;
	return false;
}

static void
solve(Graph *graph)
{
	bool		changed = true;

	for (int i = 0; i < graph->nnodes; i++)
		graph->nodes[i].dead = true;
	while (changed)
	{
		changed = false;
		/* Who waits for nobody was found last. */
		for (int i = graph->nnodes - 1; i >= 0; i--)
			if (graph->nodes[i].dead && !is_dead_node(graph, i))
			{
				graph->nodes[i].dead = false;
				changed = true;
			}
	}
}

/* Find a way of dead sessions from this node to us, and note its steps. */
static bool
find_way(Graph *graph, int i)
{
	Waiter	   *node = &graph->nodes[i];
	int			depth = graph->nsteps;

	if (!node->dead || node->seen)
		return false;
	node->seen = true;
	for (int t = node->first; t < node->first + node->n; t++)
		for (int b = 0; b < graph->terms[t].n && is_dead_term(graph, t); b++)
		{
			int			blocker = graph->terms[t].first + b;

			graph->steps[graph->nsteps++] = (Step) {.node = i,.term = t,.blocker = blocker};
			if (graph->blockers[blocker].node == 0 ||
				find_way(graph, graph->blockers[blocker].node))
				return true;
			graph->nsteps = depth;
		}
	return false;
}

static bool
find_cycle(Graph *graph)
{
	graph->nsteps = 0;
	solve(graph);
	for (int i = 0; i < graph->nnodes; i++)
		graph->nodes[i].seen = false;
	return find_way(graph, 0);
}

/* Is it the same cycle, of the same waits for the same things? */
static bool
is_same_cycle(const Graph *a, const Graph *b)
{
	if (a->nsteps != b->nsteps)
		return false;
	for (int i = 0; i < a->nsteps; i++)
	{
		const Term *term_a = &a->terms[a->steps[i].term];
		const Term *term_b = &b->terms[b->steps[i].term];
		const Blocker *blocker_a = &a->blockers[a->steps[i].blocker];
		const Blocker *blocker_b = &b->blockers[b->steps[i].blocker];

		if (a->nodes[a->steps[i].node].pid != b->nodes[b->steps[i].node].pid ||
			term_a->lease != term_b->lease || term_a->serial != term_b->serial ||
			term_a->wait_start != term_b->wait_start ||
			blocker_a->pid != blocker_b->pid || blocker_a->serial != blocker_b->serial)
			return false;
	}
	return true;
}

/* ---- What to do about it ---- */

/* Have a request go ahead of another one, if both still wait. */
static void
overtake(const Graph *graph, const Change *change)
{
	const Term *term = change->term;
	DlEffects	fx = DL_NO_EFFECTS;
	bool		done;

	dl_partition_lock(term->partition, LW_EXCLUSIVE);
	done = term->lease->serial == term->serial && term->lease->state == DL_WAITING &&
		change->ahead->serial == change->ahead_serial && change->ahead->state == DL_WAITING &&
		term->lease->lock == change->ahead->lock;
	if (done)
		dl_engine_overtake(dl_shared->engine, term->lease, change->ahead, dl_now(), &fx);
	dl_partition_unlock(term->partition, &fx);
	if (done && log_lock_waits)
		ereport(LOG,
				(errmsg("process %d avoided deadlock for lock \"%s\" by rearranging queue order",
						MyProcPid, graph->names + term->name)));
}

/* Does everybody get on, we and those who have changed places? */
static bool
is_helped(const Graph *graph)
{
	for (int c = 0; c < graph->nchanges; c++)
		if (graph->nodes[graph->changes[c].node].dead)
			return false;
	for (int o = 0; o < graph->novertaken; o++)
		if (graph->nodes[graph->overtaken[o].node].dead)
			return false;
	return !graph->nodes[0].dead;
}

static void
note_overtaken(Graph *graph, DlLease *lease, int node, int by)
{
	if (node < 0)
		return;
	if (graph->novertaken == graph->max_overtaken)
	{
		graph->max_overtaken = 2 * graph->max_overtaken + 16;
		graph->overtaken = repalloc(graph->overtaken, graph->max_overtaken * sizeof(Overtaken));
	}
	graph->overtaken[graph->novertaken++] =
		(Overtaken) {.lease = lease,.node = node,.by = by};
}

/*
 * Its request does not wait any more, or does again, for those that the last
 * change overtakes.  Returns whether it still waits for one ahead of them.
 */
static bool
drop_terms(Graph *graph, int by)
{
	const Change *change = &graph->changes[graph->nchanges - 1];
	const Waiter *node = &graph->nodes[change->node];
	bool		left = false;

	for (int t = node->first; t < node->first + node->n; t++)
	{
		Term	   *term = &graph->terms[t];
		bool		overtakes = false;

		if (!term->soft || term->lease != change->term->lease)
			continue;
		for (int o = change->novertaken; o < graph->novertaken && !overtakes; o++)
			overtakes = graph->overtaken[o].lease == term->ahead;
		if (overtakes)
			term->dropped += by;
		left = left || term->dropped == 0;
	}
	return left;
}

/*
 * Have the request of step "from" go ahead of the one that step "to" waits for,
 * all of them being in one queue.
 */
static void
add_change(Graph *graph, const Step *steps, int from, int to)
{
	Change	   *change = &graph->changes[graph->nchanges++];

	change->term = &graph->terms[steps[from].term];
	change->node = steps[from].node;
	change->ahead = graph->terms[steps[to].term].ahead;
	change->ahead_serial = graph->blockers[steps[to].blocker].serial;
	change->ahead_node = graph->blockers[steps[to].blocker].node;
	change->novertaken = graph->novertaken;
	for (int i = from; i <= to; i++)
	{
		const Term *term = &graph->terms[steps[i].term];

		/* The terms of a request are in the order of the queue, the nearest first. */
		for (const Term *t = term;
			 t >= &graph->terms[graph->nodes[steps[i].node].first] && t->soft && t->lease == term->lease;
			 t--)
			note_overtaken(graph, t->ahead, graph->blockers[t->first].node, change->node);
	}
	change->right_ahead = !drop_terms(graph, 1);
}

static void
take_back_change(Graph *graph)
{
	(void) drop_terms(graph, -1);
	graph->novertaken = graph->changes[--graph->nchanges].novertaken;
}

/*
 * See whether the cycle is gone if a request goes ahead of one that it stands
 * behind, or of the last of several such in a row; or if others do so as well,
 * where that leaves another cycle.  The changes are in the graph then.
 */
static bool
rearrange(Graph *graph)
{
	int			nsteps = graph->nsteps;
	Step	   *steps;

	if (graph->nchanges == MAX_CHANGES)
		return false;
	steps = palloc(nsteps * sizeof(Step));
	memcpy(steps, graph->steps, nsteps * sizeof(Step));
	for (int i = 0; i < nsteps; i++)
	{
		const Term *term = &graph->terms[steps[i].term];
		const Term *last = term;
		int			j = i;

		if (!term->soft)
			continue;
		while (j + 1 < nsteps && graph->terms[steps[j + 1].term].soft &&
			   graph->terms[steps[j + 1].term].lease == last->ahead)
			last = &graph->terms[steps[++j].term];
		if (graph->ntries++ == MOST_TRIES)
			return false;
		add_change(graph, steps, i, j);
		if (find_cycle(graph) ? rearrange(graph) : is_helped(graph))
			return true;
		take_back_change(graph);
	}
	return false;
}

/* Help ourselves, without an error, if that is possible. */
static bool
help_ourselves(Graph *graph)
{
	if (!rearrange(graph))
		return false;
	for (int c = 0; c < graph->nchanges; c++)
		overtake(graph, &graph->changes[c]);
	return true;
}

static void
report(const Graph *graph)
{
	StringInfoData client;
	StringInfoData log;
	StringInfoData tag;

	initStringInfo(&client);
	initStringInfo(&log);
	initStringInfo(&tag);
	for (int i = 0; i < graph->nsteps; i++)
	{
		const Term *term = &graph->terms[graph->steps[i].term];
		int			pid = graph->nodes[graph->steps[i].node].pid;
		int			blocker = graph->blockers[graph->steps[i].blocker].pid;

		if (i > 0)
			appendStringInfoChar(&client, '\n');
		if (term->lease != NULL)
			appendStringInfo(&client, "Process %d waits for %s lease of lock \"%s\"; blocked by process %d.",
							 pid, term->mode == DL_SHARED ? "shared" : "exclusive",
							 graph->names + term->name, blocker);
		else
		{
			resetStringInfo(&tag);
			DescribeLockTag(&tag, &term->tag);
			appendStringInfo(&client, "Process %d waits for %s on %s; blocked by process %d.",
							 pid, GetLockmodeName(term->tag.locktag_lockmethodid, term->lockmode),
							 tag.data, blocker);
		}
	}
	appendStringInfoString(&log, client.data);
	for (int i = 0; i < graph->nsteps; i++)
	{
		int			pid = graph->nodes[graph->steps[i].node].pid;

		appendStringInfo(&log, "\nProcess %d: %s", pid,
						 pgstat_get_backend_current_activity(pid, false));
	}
	pgstat_report_deadlock();
	ereport(ERROR,
			(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
			 errmsg("deadlock detected"),
			 errdetail_internal("%s", client.data),
			 errdetail_log("%s", log.data),
			 errhint("See server log for query details.")));
}

/*
 * This session, which waits in a queue, might be part of a deadlock.  If it is,
 * and cannot be helped, gives up what it waits for and throws.  Without "queues",
 * cycles in which somebody only stands ahead of somebody are not seen.  Returns
 * whether we wait for somebody who might come to wait for us.  Takes the deadlock
 * lock if there is a cycle, and under it partition locks and those of PostgreSQL's
 * lock manager.
 */
bool
dl_deadlock_check(bool queues)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "distlock deadlock",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext outer = MemoryContextSwitchTo(context);
	DlEffects	fx = DL_NO_EFFECTS;
	Graph	   *graph = build_graph(queues);
	bool		bound = graph->bound;
	bool		deadlock = false;

	if (find_cycle(graph))
	{
		LWLockAcquire(dl_shared->deadlock_lock, LW_EXCLUSIVE);
		graph = build_graph(true);
		if (find_cycle(graph))
		{
			Graph	   *again = build_graph(true);

			deadlock = find_cycle(again) && is_same_cycle(graph, again) && !help_ourselves(again);
		}
		if (deadlock)
		{
			dl_acquire_abandon();
			dl_partition_lock(0, LW_EXCLUSIVE);
			dl_shared->engine->partitions[0].counters.deadlocks++;
			dl_partition_unlock(0, &fx);
		}
		LWLockRelease(dl_shared->deadlock_lock);
	}
	if (deadlock)
		report(graph);
	MemoryContextSwitchTo(outer);
	MemoryContextDelete(context);
	return bound;
}
