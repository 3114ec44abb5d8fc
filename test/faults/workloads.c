/*-------------------------------------------------------------------------
 *
 * workloads.c
 *	  What clients ask for.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

static int	last_request;

static void
ask_exclusive(void)
{
	Lease		lease = chance(60) ? new_lease("e", 3, true) : new_lease("r", 2, true);

	if (acquire(&lease, "exclusive", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

static void
ask_shared(void)
{
	Lease		lease = new_lease("s", 3, true);

	if (acquire(&lease, chance(70) ? "shared" : "exclusive", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

static void
ask_semaphore(void)
{
	Lease		lease = new_lease("p", 2, true);

	if (acquire(&lease, "exclusive", 3, NULL, false) == ANSWERED)
		hold(&lease);
}

static void
ask_several(void)
{
	Lease		lease = new_lease("s", 3, true);
	int			left_out = pick(4);

	lease.several = true;
	lease.names[0] = '\0';
	for (int i = 0; i < 3; i++)
	{
		if (i != left_out)
			sprintf(lease.names + strlen(lease.names), "%ss%d", lease.names[0] ? "," : "", i);
	}
	if (acquire(&lease, chance(60) ? "exclusive" : "shared", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

/* Send a request until it is answered, and sometimes once more. */
static void
ask_again(void)
{
	Lease		lease = new_lease("r", 2, false);
	bool		give_up = chance(40);
	char		request[32];
	Outcome		outcome;

	snprintf(request, sizeof(request), "%d/%d", number, ++last_request);
	do
	{
		outcome = acquire(&lease, "exclusive", 0, request, give_up);
		give_up = chance(10);
	} while (outcome == LOST && !stopping);
	if (outcome == ANSWERED && chance(20))
	{
		pause_ms(pick(500));
		outcome = acquire(&lease, "exclusive", 0, request, false);
	}
	if (outcome == ANSWERED)
		hold(&lease);
}

static void
ask_for_lease(void)
{
	Lease		lease = new_lease(workload->prefix, workload->nnames, false);

	if (acquire(&lease, "exclusive", 0, NULL, false) == ANSWERED)
		hold(&lease);
}

/* What the dead have left prepared keeps everybody from the lock. */
static void
ask_to_prepare(void)
{
	if (chance(30))
		settle_all();
	ask_for_lease();
}

/*
 * Two clients, one lock: one of them holds it, the other waits, and nobody else
 * comes by.  Whoever has held it asks again only long after the other should have
 * been told, since that would help, and well before the other's lease ends.
 */
static void
take_over(void)
{
	Lease		lease = new_lease(workload->prefix, 1, false);

	lease.ttl = 2000 + pick(1000);
	lease.wait = -1;
	if (acquire(&lease, "exclusive", 0, NULL, false) != ANSWERED)
		return;
	if (chance(30))
	{
		pause_ms(pick(1000));
		lease.ttl = 500 + pick(2000);
		renew(&lease, lease.ttl);
	}
	if (chance(20) && connected())
	{
		pause_ms(pick(lease.ttl));
		use("release", &lease);
		lease.until = now_us();
	}
	while (!stopping && believed(&lease))
		pause_ms(20);
	pause_ms(1200 + pick(300));
}

/*
 * Leases that end with their transaction, or when it rolls back to before them.
 * Two at most, always in the same order.
 */
static void
ask_in_transaction(void)
{
	Lease		outer = new_lease("t", 2, false);
	Lease		inner = new_lease("t", 1, false);
	bool		held;
	bool		failed;

	outer.scope = inner.scope = TRANSACTION;
	outer.durable = inner.durable = false;
	outer.ttl = chance(50) ? 0 : outer.ttl;
	inner.ttl = chance(50) ? 0 : inner.ttl;
	inner.names[1] = outer.names[1] + 1;

	connect_again();
	if (call("begin", NULL, "BEGIN", NULL, 0) != ANSWERED)
		return;
	held = acquire(&outer, "exclusive", 0, NULL, false) == ANSWERED;
	if (held)
	{
		pause_ms(pick(200));
		use("check", &outer);
	}
	if (connected() && chance(60) && call("savepoint", NULL, "SAVEPOINT s", NULL, 0) == ANSWERED)
	{
		if (acquire(&inner, "exclusive", 0, NULL, false) == ANSWERED)
			pause_ms(pick(200));
		failed = false;
		if (connected() && chance(60))
			failed = call("rollback-to", NULL, "ROLLBACK TO s", NULL, 0) != ANSWERED;
		else if (connected() && chance(60))
			failed = call("release-savepoint", NULL, "RELEASE s", NULL, 0) != ANSWERED;
		if (connected() && !failed && inner.token > 0)
			use("check", &inner);
		if (connected() && held)
		{
			pause_ms(pick(500));
			use("check", &outer);
		}
	}
	if (connected())
		call("end", NULL, chance(70) ? "COMMIT" : "ROLLBACK", NULL, 0);
	if (connected() && held && chance(50))
		use("check", &outer);
}

/* Lead, and give up the lead, often to nobody. */
static void
lead(void)
{
	Lease		lease = new_lease("w", 1, false);

	lease.ttl = 2000 + pick(1000);
	if (acquire(&lease, "exclusive", 0, NULL, false) != ANSWERED)
		return;
	for (int i = pick(8); i > 0 && !stopping && believed(&lease); i--)
	{
		pause_ms(400);
		connect_again();
		renew(&lease, lease.ttl);
	}
	connect_again();
	if (chance(70))
		use("release", &lease);
	pause_ms(pick(3000));
}

/* Follow who leads. */
static void
watch(void)
{
	static int64_t token;		/* of the leader, 0: none */
	int			wait = chance(30) ? -1 : pick(4000);
	int			id;
	char		arguments[64];
	char		sql[128];
	char		value[32];
	Outcome		outcome;

	connect_again();
	snprintf(arguments, sizeof(arguments), token > 0 ? "'w0', %lld" : "'w0', NULL", (long long) token);
	if (wait >= 0)
		sprintf(arguments + strlen(arguments), ", '%d ms'", wait);
	snprintf(sql, sizeof(sql), chance(30) ? "CALL distlock_watch_next(%s)" : "SELECT distlock_watch(%s)",
			 arguments);
	id = new_id();
	note("call", id, "what=watch\tnames=w0\ttoken=%lld\twait=%d", (long long) token, wait);
	outcome = ask_server(id, sql, "value", wait, value, sizeof(value));
	if (outcome == ANSWERED)
		token = atoll(value);
	else if (outcome == NONE || chance(10))
		token = 0;
}

/* An operator, who ends leases that others write under. */
static void
force(void)
{
	Lease		lease = new_lease("f", 2, false);
	char		sql[128];

	connect_again();
	snprintf(sql, sizeof(sql), "SELECT distlock_force_release('%s')", lease.names);
	call("force", &lease, sql, NULL, 0);
	pause_ms(pick(400));
}

const Workload workloads[] = {
	{.name = "exclusive",.ask = ask_exclusive,.walk_away = 25},
	{.name = "shared",.ask = ask_shared,.walk_away = 10},
	{.name = "semaphore",.ask = ask_semaphore,.walk_away = 50},
	{.name = "request",.ask = ask_again,.walk_away = 15},
	{.name = "several",.ask = ask_several,.walk_away = 10},
	{.name = "takeover0",.ask = take_over,.prefix = "k",.patient = true},
	{.name = "takeover1",.ask = take_over,.prefix = "l",.patient = true},
	{.name = "takeover2",.ask = take_over,.prefix = "m",.patient = true},
	{.name = "takeover3",.ask = take_over,.prefix = "n",.patient = true},
	{.name = "transaction",.ask = ask_in_transaction},
	{.name = "lead",.ask = lead},
	{.name = "watch",.ask = watch},
	{.name = "operator",.ask = force},
	{.name = "forced",.ask = ask_for_lease,.prefix = "f",.nnames = 2,.work = write_forced,.walk_away = 10},
	{.name = "guard",.ask = ask_for_lease,.prefix = "e",.nnames = 3,.work = write_guarded,.walk_away = 10},
	{.name = "file",.ask = ask_for_lease,.prefix = "e",.nnames = 3,.work = write_file,.walk_away = 10},
	{.name = "protect",.ask = ask_for_lease,.prefix = "q",.nnames = 2,.work = write_protected,.walk_away = 10},
	{.name = "prepared",.ask = ask_to_prepare,.prefix = "x",.nnames = 2,.work = write_prepared,
	.walk_away = 10,.finish = finish_prepared},
};
const int	nworkloads = lengthof(workloads);
