/*
 * distlock.pml
 *	  The protocol of leases, as a model for spin.
 *
 * One lock, held exclusively; two clients; a server that crashes once, and whose
 * standby is promoted once, in either order.  ./check says how it is run, and
 * README.md what is left out.
 *
 * What happens under one partition lock, one page lock or the token lock is one
 * step, and between any two steps anything else may happen: a client that stops
 * for a while is one whose next step comes late.
 *
 * Time.  Every timer counts down, and a tick lowers them all at once.  A tick may
 * come at any moment or never, so a lease may expire between any two steps, but
 * timers that were set together to the same time run out together.  A client
 * that is told its token believes in its lease for exactly as long as the server
 * told it to, whatever becomes of the server.
 *
 * Disk.  WAL is a sequence and a crash keeps a beginning of it, as a promotion
 * keeps what the standby has received.  So each state of the disk is there three
 * times: as written in the buffers, as flushed, and as received by the standby.
 * A flush copies the first to the second, whoever wrote it; replication the
 * second to the third.
 *
 * A lease is known by its number, which counts the grants.  It has a token, of
 * which only the greatest so far is remembered: they have to rise.
 *
 * Configurations: ASYNCHRONOUS (nobody waits for the standby, and failover_grace
 * is strict).  Otherwise the standby is synchronous and failover_grace is off, which
 * is the least that has to be enough.
 *
 * Each broken variant is a macro whose name is in ./check.  Those that begin with
 * SHOW are no variants: the assertion says that something never happens that
 * should, so that we see that it does.
 */

#ifndef ASKS
#define ASKS		2	/* requests, of both clients together */
#endif
#define GRANTS		ASKS	/* a request is granted once at most */

#define RANGE		2	/* tokens in a reserved range */
#define EPOCH		16	/* tokens of one epoch */

/* Time to live in ticks; that of volatile leases is distlock.max_ttl, too. */
#ifndef VOLATILE_TTL
#define VOLATILE_TTL	2
#endif
#define ttl_of(durable)	(durable -> 1 : VOLATILE_TTL)
#define LONGEST_TTL	VOLATILE_TTL

/* States of a lease; NO_LEASE: the lock is free */
#define NO_LEASE	0
#define GRANTED		1	/* not told yet */
#define LIVE		2	/* told */
#define PINNED		3	/* ended, but a commit holds it in its place */

/* States of an image, as the engine knows it */
#define NO_IMAGE	0
#define UNWRITTEN	1
#define KEPT		2	/* on disk, and its lease has its place */
#define STALE		3
#define CONDEMNED	4	/* + who is about to overwrite or clear it */

#define NOBODY		3
#define CHORES		2	/* clients are 0 and 1 */

/* ---- Disk ---- */

typedef Disk {
	byte limit;		/* of tokens */
	byte volatile_ttl;	/* the mark: no volatile lease has a longer one */
	byte longest_ttl;	/* no lease has */
	byte grace;		/* still due to a failover, at the next start */
	bit strict;
	byte image[GRANTS + 1];	/* TTL of the lease with this number; 0: no image */
	byte prepared;		/* under the lease with this number; 0: none */
};

#define BUFFERS		0
#define FLUSHED		1
#define STANDBY		2
Disk disk[3];

byte i;				/* of loops in one step; 0 between steps */

inline copy_disk(from, to)
{
	disk[to].limit = disk[from].limit;
	disk[to].volatile_ttl = disk[from].volatile_ttl;
	disk[to].longest_ttl = disk[from].longest_ttl;
	disk[to].grace = disk[from].grace;
	disk[to].strict = disk[from].strict;
	disk[to].prepared = disk[from].prepared;
	i = 1;
	do
	:: i <= GRANTS ->
		disk[to].image[i] = disk[from].image[i];
		i++
	:: else -> break
	od;
	i = 0
}

/* It does not matter any more. */
inline clear_disk(which)
{
	disk[which].limit = 0;
	disk[which].volatile_ttl = 0;
	disk[which].longest_ttl = 0;
	disk[which].grace = 0;
	disk[which].strict = 0;
	disk[which].prepared = 0;
	i = 1;
	do
	:: i <= GRANTS ->
		disk[which].image[i] = 0;
		i++
	:: else -> break
	od;
	i = 0
}

/*
 * What is flushed matters while there is a start to come, and what the standby
 * has, while it may be promoted.
 */
#define is_last		(crashed && promoted)

/* dl_flush_wal() */
inline flush()
{
	d_step {
		if
		:: !is_last -> copy_disk(BUFFERS, FLUSHED)
		:: else
		fi
	}
}

/* What nobody waits for reaches the standby all the same, or not. */
inline replicate()
{
	if
	:: d_step { !promoted -> copy_disk(FLUSHED, STANDBY) }
	:: skip
	fi
}

/* The rest of dl_store_flush(): wait for the synchronous standby. */
inline wait_for_standby()
{
#if defined(ASYNCHRONOUS) || defined(NO_WAIT_FOR_STANDBY)
	replicate()
#else
	d_step {
		if
		:: !promoted -> copy_disk(FLUSHED, STANDBY)
		:: else
		fi
	}
#endif
}

/* ---- Shared memory: gone with a crash ---- */

/* The lock: its lease, if there is one, and who waits */
byte state;			/* of the lease */
byte number;
byte owner = NOBODY;		/* whose request it was; NOBODY: from before a crash */
bit durable;
bit usable;			/* 0: recovered, under a strict grace */
bit flushed;			/* so is its image */
byte left;			/* until its deadline */
byte pins;
bit waiting[2];
bit wants_durable[2];
bit lapsed[2];			/* its grant ended before it came */
byte first;			/* in the queue, if both wait */
bit barrier;

byte image[GRANTS + 1];		/* state of each image */

/* The lock's tag, one of PostgreSQL's locks */
byte tag;			/* lease under which a transaction holds it; 0: none */
byte passing = NOBODY;		/* who has it in order to pass the barrier */
bit detached;			/* PREPARE TRANSACTION is done with it */
bit deciding;			/* COMMIT or ROLLBACK PREPARED is under way */

/* The supply.  Leases with a TTL up to open_* may be granted. */
byte next = 1;			/* token */
byte limit;
byte open_volatile;
byte open_durable;
byte closed_for;		/* until grants begin: the grace */
byte token_lock = NOBODY;
bit row_same[2];		/* the row is still as this client has written it */

bit attached = 1;		/* the database is in use since the start */

/* ---- The world ---- */

byte resets;			/* the server has started: the process whose session has ended */
bit crashed;
#ifdef NO_PROMOTION
bit promoted = 1;		/* there is no standby */
#else
bit promoted;
#endif

byte asks;			/* so many requests have been made */
byte grants;
byte belief[2];			/* for so long each client thinks that it holds the lock */
byte latest[2];			/* number of the lease that its latest grant made */
byte last_token;		/* the greatest ever granted */
byte told;			/* the latest lease of which any client was told */

#ifdef SHOW_PREPARED_SURVIVES
bit survived;			/* a prepared transaction, the last start */
#endif

/* ---- The engine: under the partition lock ---- */

#define is_live(n)	(state == LIVE && number == n && left > 0 && usable)
#define is_held		(state == GRANTED || state == LIVE)
#define head		(waiting[first] -> first : 1 - first)

/* An image of an earlier lease is on disk, as far as the engine knows. */
#if ASKS == 2
#define first_image(is)	((image[1] is) -> 1 : ((image[2] is) -> 2 : 0))
#elif ASKS == 3
#define first_image(is)	((image[1] is) -> 1 : ((image[2] is) -> 2 : \
			 ((image[3] is) -> 3 : 0)))
#else
#define first_image(is)	((image[1] is) -> 1 : ((image[2] is) -> 2 : \
			 ((image[3] is) -> 3 : ((image[4] is) -> 4 : 0))))
#endif
#define leftover_of	first_image(>= STALE)
#define stale_of	first_image(== STALE)

inline no_lease()
{
	state = NO_LEASE;
	number = 0;
	owner = NOBODY;
	durable = 0;
	usable = 0;
	flushed = 0;
	left = 0;
	pins = 0
}

/* The lease gives up its place, and its image turns stale. */
inline vacate()
{
	if
	:: image[number] == KEPT -> image[number] = STALE
	:: image[number] == UNWRITTEN -> image[number] = NO_IMAGE
	:: else
	fi;
	no_lease()
}

/* dl_end_lease(), for a lease that is held. */
inline end_lease(undone)
{
	if
	:: state == GRANTED ->
		if
		:: !undone -> lapsed[owner] = 1
		:: else
		fi;
		vacate()
	:: state == LIVE && pins > 0 ->
		state = PINNED;
		left = 0
	:: else ->
		vacate()
	fi
}

/*
 * The first in the queue is granted the lock, if it is free, grants have begun,
 * no barrier bars it, the row allows for its TTL, and there is a token.  Otherwise
 * it comes to look, and sees to what is missing.
 */
inline advance()
{
	if
	:: (waiting[0] || waiting[1]) && closed_for == 0 ->
		if
		:: is_held && left == 0 -> end_lease(0)
		:: else
		fi;
		if
		:: state == NO_LEASE && !barrier && next <= limit &&
		   (wants_durable[head] -> open_durable >= ttl_of(1) :
			open_volatile >= ttl_of(0)) ->
			grants++;
			state = GRANTED;
			number = grants;
			owner = head;
			durable = wants_durable[owner];
			usable = 1;
			left = ttl_of(durable);
			waiting[owner] = 0;
			wants_durable[owner] = 0;
			latest[owner] = number;
			if
			:: durable -> image[number] = UNWRITTEN
			:: else
			fi;
			/* G2: a later grant has a greater token. */
			assert(next > last_token);
			last_token = next;
			next++
		:: else
		fi
	:: else
	fi;
	if
	:: !waiting[first] -> first = (waiting[1] -> 1 : 0)
	:: else
	fi
}

/* The client that calls is told of the lease, or that it has been renewed. */
inline tell()
{
	left = ttl_of(durable);
	belief[me] = left;
	mine = number;
	/* G1, as clients see it: the server and its clock may be others by now. */
	assert(belief[1 - me] == 0);
	/* Nobody has been told of a later lease: a stale token is not accepted again. */
	assert(told <= number);
	told = number;
#ifdef SHOW_TWO_GRANTS
	assert(told < 2);
#endif
#ifdef SHOW_GRANT_AFTER_BOTH
	assert(!(told > 1 && owner == me && crashed && promoted));
#endif
#ifdef SHOW_RECOVERED_LEASE_USED
	assert(!(owner == NOBODY && promoted && told == number && mine == number));
#endif
}

/* ---- Starts ---- */

/*
 * Shared memory begins anew, and what is flushed is all there is: database.c and
 * recovery.c.  Whoever comes first does all of it, keeps others out, and writes
 * one record; so it is one step.
 */
inline start(moved)
{
	no_lease();
	waiting[0] = 0;
	waiting[1] = 0;
	wants_durable[0] = 0;
	wants_durable[1] = 0;
	lapsed[0] = 0;
	lapsed[1] = 0;
	first = 0;
	token_lock = NOBODY;
	row_same[0] = 0;
	row_same[1] = 0;

	/* PostgreSQL takes the locks of prepared transactions again. */
	passing = NOBODY;
	deciding = 0;
	tag = disk[FLUSHED].prepared;
	detached = (tag > 0);
#ifndef NO_BARRIER_AT_START
	barrier = 1;
#else
	barrier = 0;
#endif
#ifdef SHOW_PREPARED_SURVIVES
	survived = (tag > 0);
#endif

	/* settle_past() */
#ifdef ASYNCHRONOUS
	if
	:: moved ->
#ifdef REPLAYED_GRACE
		disk[FLUSHED].grace = disk[FLUSHED].longest_ttl
#else
		disk[FLUSHED].grace = LONGEST_TTL;
		disk[FLUSHED].strict = 1
#endif
	:: else
	fi;
#endif
#ifndef NO_GRACE
	closed_for = (disk[FLUSHED].grace > disk[FLUSHED].volatile_ttl ->
		disk[FLUSHED].grace : disk[FLUSHED].volatile_ttl);
#else
	closed_for = 0;
#endif
#ifdef GRACE_NOT_NOTED
	disk[FLUSHED].grace = 0;
#endif

	/* A new range, in the next epoch if others may have issued tokens. */
	next = disk[FLUSHED].limit + 1;
#ifndef EPOCH_NOT_RAISED
	if
	:: moved -> next = EPOCH * (disk[FLUSHED].limit / EPOCH + 1)
	:: else
	fi;
#endif
	limit = next + RANGE - 1;
	disk[FLUSHED].limit = limit;
	open_volatile = disk[FLUSHED].volatile_ttl;
	open_durable = disk[FLUSHED].longest_ttl;

	/* dl_recovery_finish(): of images that conflict the greatest token wins. */
	i = GRANTS;
	do
	:: i > 0 ->
		if
		:: disk[FLUSHED].image[i] == 0 -> image[i] = NO_IMAGE
		:: disk[FLUSHED].image[i] > 0 && state == NO_LEASE ->
			state = LIVE;
			number = i;
			durable = 1;
			flushed = 1;
			left = disk[FLUSHED].image[i];
#ifndef STRICT_BUT_USABLE
			usable = !disk[FLUSHED].strict;
#else
			usable = 1;
#endif
			image[i] = KEPT
		:: else -> image[i] = STALE
		fi;
		i--
	:: else -> break
	od;
	copy_disk(FLUSHED, BUFFERS);
#if defined(ASYNCHRONOUS) || defined(NO_WAIT_AT_START)
	attached = 1;
#else
	attached = moved;
#endif
	resets = 1
}

/* ---- Clients ---- */

#define is_closed(d)	(d -> open_durable < ttl_of(1) : open_volatile < ttl_of(0))
#define is_wanting(d)	(next > limit || is_closed(d))

#define is_mine		(state == GRANTED && owner == me)
#define is_stored	(!durable || flushed)
#define may_advance	(waiting[me] && head == me && closed_for == 0 && \
			 state == NO_LEASE)

/*
 * What the row allows for, tokens and TTL, is flushed before grants rely on it,
 * and the TTL is on the standby besides.
 */
inline refill(d)
{
	do
	:: atomic {
		token_lock == NOBODY ->
		/* If nobody has changed the row since, it is on the standby. */
		if
		:: row_same[me] ->
			open_volatile = disk[BUFFERS].volatile_ttl;
			open_durable = disk[BUFFERS].longest_ttl
		:: else
		fi;
		row_same[me] = 0;
		if
		:: !is_wanting(d) -> break
		:: else
		fi;
		token_lock = me;
		row_same[me] = is_closed(d);
		if
		:: next > limit -> disk[BUFFERS].limit = disk[BUFFERS].limit + RANGE
		:: else
		fi;
		if
		:: !d && disk[BUFFERS].volatile_ttl < ttl_of(0) ->
			disk[BUFFERS].volatile_ttl = ttl_of(0);
			row_same[1 - me] = 0
		:: d && disk[BUFFERS].longest_ttl < ttl_of(1) ->
			disk[BUFFERS].longest_ttl = ttl_of(1);
			row_same[1 - me] = 0
		:: else
		fi;
		if
		:: disk[BUFFERS].volatile_ttl > disk[BUFFERS].longest_ttl ->
			disk[BUFFERS].longest_ttl = disk[BUFFERS].volatile_ttl
		:: else
		fi;
#ifdef LIMIT_BEFORE_FLUSH
		limit = disk[BUFFERS].limit;
#endif
#ifdef MARK_BEFORE_FLUSH
		open_volatile = disk[BUFFERS].volatile_ttl;
		open_durable = disk[BUFFERS].longest_ttl;
#endif
	   };
		atomic {
			flush();
			limit = disk[BUFFERS].limit;
			token_lock = NOBODY;
			if
			:: !row_same[me] -> break
			:: else
			fi
		};
		wait_for_standby()
	od
}

/* dl_store_write(), for the lease that we were granted last. */
inline store_write()
{
	d_step {
		condemned = stale_of;
		if
		:: condemned > 0 -> image[condemned] = CONDEMNED + me
		:: else
		fi
	};
	d_step {
		/* The page is locked: where that image is, or a vacant slot. */
		if
		:: is_mine && left > 0 ->
			image[number] = KEPT;
			disk[BUFFERS].image[condemned] = 0;
			disk[BUFFERS].image[number] = ttl_of(1);
			written = 1
		:: else
		fi
	};
	if
	:: written ->
#ifndef IMAGE_NOT_FLUSHED
		flush();
		wait_for_standby()
#else
		skip
#endif
	:: else
	fi;
	d_step {
		if
		:: condemned > 0 && image[condemned] == CONDEMNED + me ->
			image[condemned] = (written -> NO_IMAGE : STALE)
		:: else
		fi;
		condemned = 0;
		/* dl_engine_stored() */
		if
		:: written && is_mine -> flushed = 1
		:: else
		fi;
		written = 0
	}
}

/* dl_store_clear_leftovers() */
inline clear_leftovers()
{
	d_step {
		leftover_of > 0 ->
		condemned = leftover_of;
		/* If it is not on its page any more, a record is written all the same. */
		written = (disk[BUFFERS].image[condemned] > 0);
		disk[BUFFERS].image[condemned] = 0
	};
#ifdef GONE_BUT_NOT_FLUSHED
	if
	:: written ->
		flush();
		wait_for_standby()
	:: else
	fi;
#else
	flush();
	wait_for_standby();
#endif
	d_step {
		/* Another may have done so before us. */
		if
		:: image[condemned] >= STALE -> image[condemned] = NO_IMAGE
		:: else
		fi;
		condemned = 0;
		written = 0
	}
}

/* The tag keeps the barrier from coming back until we have looked. */
inline pass_barrier()
{
	if
	:: atomic { tag == 0 && passing == NOBODY -> passing = me };
		d_step {
			if
			:: waiting[me] ->
				barrier = 0;
				advance()
			:: else
			fi
		};
		passing = NOBODY
	/* Or it takes too long. */
	:: d_step {
		waiting[me] ->
		waiting[me] = 0;
		wants_durable[me] = 0;
		advance()
	   }
	fi
}

/* A request has entered: ask, then see to the answer. */
inline acquire()
{
	do
	:: d_step {
#ifndef PREDECESSOR_NOT_CLEARED
		is_mine && left > 0 && is_stored && leftover_of == 0 ->
#else
		is_mine && left > 0 && is_stored ->
#endif
		state = LIVE;
		tell()
	   };
		break
	:: is_mine && left > 0 && !is_stored ->
		store_write()
	:: is_mine && left > 0 && is_stored && leftover_of > 0 ->
		if
		:: clear_leftovers()
		:: leftover_of == 0 -> skip
		fi
	/* Cancelled before it was told, or too late: given back. */
	:: d_step {
		is_mine && (left == 0 || leftover_of > 0) ->
		end_lease(1);
		advance()
	   };
		break
	:: d_step { lapsed[me] -> lapsed[me] = 0 };
		break
	/* In the queue */
	:: d_step { may_advance -> advance() }
	:: may_advance && !barrier && is_wanting(kind) ->
		refill(kind)
	:: may_advance && barrier ->
		pass_barrier()
	:: !waiting[me] && !is_mine && !lapsed[me] -> break
	od;
	kind = 0
}

/* The end of a transaction that was pinned, and released the lease or not. */
inline unpin(n, release)
{
	if
	:: pins > 0 && number == n ->
		pins--;
		if
		:: state == PINNED -> vacate()
		:: release && state == LIVE -> end_lease(0)
		:: else
		fi;
		advance()
	:: else
	fi
}

/* A commit under this lease is seen by every snapshot from now on. */
inline become_visible(n)
{
	/* G3: nobody has been told of a later lease, as far as its story goes on. */
	assert(told <= n)
}

/* A transaction guarded by the lease, whatever its client believes by now. */
inline commit()
{
	/* PRE_COMMIT: dl_fence_pin().  The earlier check, by the guard, is left out. */
	if
#if defined(PIN_APART_FROM_CHECK)
	:: is_live(mine);
		d_step {
			if
			:: number == mine -> pins++
			:: else
			fi
		}
#elif defined(PIN_BEFORE_CHECK)
	/* It is pinned if it is there, and what the guard saw is taken for the look. */
	:: d_step {
		if
		:: number == mine && state != NO_LEASE -> pins++
		:: else
		fi
	   }
#else
	:: d_step { is_live(mine) -> pins++ }
#endif
		/* From its release on the client does not count on the lease. */
		if
		:: releases = 1; belief[me] = 0
		:: skip
		fi;
#ifdef HANDED_OVER_BEFORE_VISIBLE
		d_step { unpin(mine, releases) };
#endif
		d_step {
			become_visible(mine);
#ifdef SHOW_LATE_COMMIT
			assert(!(state == PINNED && number == mine && waiting[1 - me]));
#endif
		};
		/* Its locks are gone. */
		d_step {
			unpin(mine, releases);
			releases = 0
		}
#ifndef PIN_BEFORE_CHECK
	:: else			/* LK001 */
#endif
	fi
}

/* PREPARE TRANSACTION: dl_fence_prepare() */
inline prepare()
{
	if
	:: is_live(mine) ->
		/* Others who prepare do not keep us from it; one is enough here. */
		atomic { tag == 0 && passing == NOBODY -> tag = mine };
		if
		:: d_step {
#ifndef PREPARE_CHECKED_BEFORE_TAG
			is_live(mine) ->
			pins++;
#endif
#ifndef NO_BARRIER
			barrier = 1;
#endif
			skip
		   };
			d_step {
				disk[BUFFERS].prepared = mine;
				if
				:: !is_last -> copy_disk(BUFFERS, FLUSHED)
				:: else
				fi
			};
			wait_for_standby();
			d_step {
				unpin(mine, 0);
				detached = 1
			}
#ifndef PREPARE_CHECKED_BEFORE_TAG
		:: else -> tag = 0	/* LK001 */
#endif
		fi
	:: else			/* LK001 */
	fi
}

#ifdef REPEATED_BUT_NOT_CLEARED
#define is_clear	1
#else
#define is_clear	(leftover_of == 0)
#endif
#define is_untold	(mine == 0 && latest[me] > 0 && is_live(latest[me]))

proctype Client(byte me) provided (resets == 0 || resets == _pid)
{
	byte mine;		/* the lease of which it was told the token */
	bit kind;		/* of lease it asks for; 1: durable */
	bit releases;		/* its transaction does */
	byte condemned;		/* the image that it overwrites or clears */
	bit written;

end:
	do
	:: {
end_session:
		do
		:: atomic {
			/* When it does not count on a lease; it does not matter who is first. */
			attached && asks < ASKS && belief[me] == 0 && (asks > 0 || me == 0) ->
			asks++;
			mine = 0;
			if
#ifndef ONLY_VOLATILE
			:: kind = 1
#endif
#ifndef ONLY_DURABLE
			:: skip
#endif
			fi
		   };
			if
			:: is_wanting(kind) -> refill(kind)
			:: else
			fi;
			/* atomic, since spin does not let refill() break into a d_step */
			atomic {
				waiting[me] = 1;
				wants_durable[me] = kind;
				if
				:: !waiting[1 - me] -> first = me
				:: else
				fi;
				advance()
			};
			acquire()

		/*
		 * The same request again: a crash brought back what it was granted, but
		 * not told.  It passes the same gates.
		 */
		:: d_step {
			attached && is_untold && is_clear ->
			tell()
		   }
		:: attached && is_untold && !is_clear ->
			if
			:: clear_leftovers()
			:: leftover_of == 0
			fi

		/* Renewal */
		:: d_step {
			attached && mine > 0 && is_live(mine) &&
			(left < ttl_of(durable) || belief[me] < left) ->
			tell()
		   }

		:: attached && mine > 0 -> commit()
#ifndef NO_PREPARED
		:: attached && is_live(mine) && tag == 0 && !is_last -> prepare()
#endif
		od
	   } unless {
		d_step {
			resets == _pid ->
			resets++;
			kind = 0;
			releases = 0;
			condemned = 0;
			written = 0
		}
	   }
	od
}

/* ---- Everything else ---- */

/*
 * The TTL that volatile leases need.  A lease is counted in the step that grants
 * it, so here either we see it or it sees that its TTL is not allowed for.
 */
#define in_use		((is_held && !durable) -> ttl_of(0) : 0)

/* chores.c: the short-lived worker that tidies up on disk. */
proctype Chores() provided (resets == 0 || resets == _pid)
{
	byte condemned;
	byte used;
	bit gone;

end:
	do
	:: {
end_session:
		do
		/* dl_store_clear_stale() */
		:: d_step {
			attached && !is_last && stale_of > 0 ->
			condemned = stale_of;
			image[condemned] = CONDEMNED + CHORES
		   };
			disk[BUFFERS].image[condemned] = 0;
			flush();
			/* flush_soon(): it does not wait for long. */
			if
			:: wait_for_standby();
				gone = 1
			:: skip
			fi;
			d_step {
				if
				:: image[condemned] == CONDEMNED + CHORES ->
					image[condemned] = (gone -> NO_IMAGE : STALE)
				:: else
				fi;
				condemned = 0;
				gone = 0
			}

		/* dl_supply_lower(): buckets_in_use(), then close_buckets() */
		:: d_step {
			attached && !is_last && token_lock == NOBODY &&
#ifndef MARK_LOWERED_IN_GRACE
			closed_for == 0 &&
#endif
#ifdef MARK_LOWERED_TOO_EARLY
			open_volatile > 0 ->
			used = 0;
#else
			(open_volatile > in_use || disk[BUFFERS].grace > 0) ->
			used = in_use;
#endif
			token_lock = CHORES
		   };
			d_step {
				gone = (open_volatile > used);
				open_volatile = used
			};
#if !defined(MARK_LOWERED_WITHOUT_LOOK) && !defined(MARK_LOWERED_TOO_EARLY)
			/* A lease may have been granted before we closed. */
			d_step {
				if
				:: gone && in_use > used -> open_volatile = in_use
				:: else
				fi
			};
#endif
			d_step {
				gone = 0;
				used = 0;
				disk[BUFFERS].volatile_ttl = open_volatile;
				disk[BUFFERS].longest_ttl = (open_durable > open_volatile ->
					open_durable : open_volatile);
				disk[BUFFERS].grace = 0;
				disk[BUFFERS].strict = 0;
				row_same[0] = 0;
				row_same[1] = 0;
				token_lock = NOBODY
			};
			flush();
			replicate()
		od
	   } unless {
		d_step {
			resets == _pid ->
			resets = 0;
			condemned = 0;
			used = 0;
			gone = 0
		}
	   }
	od
}

proctype World() provided (resets == 0)
{
end:
	do
	/* Time passes. */
	:: d_step {
		left > 0 || closed_for > 0 || belief[0] > 0 || belief[1] > 0 ->
		left = (left > 0 -> left - 1 : 0);
		closed_for = (closed_for > 0 -> closed_for - 1 : 0);
		belief[0] = (belief[0] > 0 -> belief[0] - 1 : 0);
		belief[1] = (belief[1] > 0 -> belief[1] - 1 : 0)
	   }

	/* A sweep */
	:: d_step {
		is_held && left == 0 ->
		end_lease(0);
		advance()
	   }

	/*
	 * The first use after a start.  Grants and guards rely on what was found
	 * flushed, so it has to be on the standby, too.
	 */
	:: d_step {
		!attached ->
		if
		:: !promoted -> copy_disk(FLUSHED, STANDBY)
		:: else
		fi;
		attached = 1
	   }

	/* COMMIT or ROLLBACK PREPARED: its record is flushed ... */
	:: d_step {
		attached && detached && !deciding ->
		disk[BUFFERS].prepared = 0;
		if
		:: !is_last -> copy_disk(BUFFERS, FLUSHED)
		:: else
		fi;
		deciding = 1
	   }
	/* ... and replicated; all see that it is over, then its locks are gone. */
	:: d_step {
		deciding ->
#ifndef ASYNCHRONOUS
		if
		:: !promoted -> copy_disk(FLUSHED, STANDBY)
		:: else
		fi;
#endif
		become_visible(tag);
#ifdef SHOW_PREPARED_SURVIVES
		assert(!survived);
#endif
		tag = 0;
		detached = 0;
		deciding = 0
	   }

	:: d_step {
		!crashed ->
		crashed = 1;
		start(0);
		if
		:: promoted -> clear_disk(FLUSHED)
		:: else
		fi
	   }
#ifndef NO_PROMOTION
	:: d_step {
		!promoted ->
		promoted = 1;
		copy_disk(STANDBY, FLUSHED);
		start(1);
#ifdef ASYNCHRONOUS
		/* They may have been told of what is lost. */
		told = 0;
#endif
		clear_disk(STANDBY);
		if
		:: crashed -> clear_disk(FLUSHED)
		:: else
		fi
	   }
#endif
	od
}

init
{
	atomic {
#ifdef IN_USE
		/* The row allows for all leases, since there have been some. */
		disk[BUFFERS].volatile_ttl = ttl_of(0);
		disk[BUFFERS].longest_ttl = ttl_of(0);
		open_volatile = ttl_of(0);
		open_durable = ttl_of(0);
		copy_disk(BUFFERS, FLUSHED);
		copy_disk(BUFFERS, STANDBY);
#endif
		run Client(0);
		run Client(1);
		run Chores();
		run World()
	}
}
