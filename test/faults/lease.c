/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  What a client does with leases.
 *
 * It believes in a lease as a careful client does, until its time to live has
 * passed since the acquire or the renewal was sent; but with a guard, or where
 * tokens are compared, it sometimes goes on after that, as one that was paused
 * would.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>

#include "client.h"

static const char *const scope_names[] = {"lease", "session", "transaction"};

Lease
new_lease(const char *prefix, int nnames, bool may_be_session)
{
	Lease		lease = {.ttl = 1000 + pick(2000)};

	lease.scope = may_be_session && chance(30) ? SESSION : LEASE;
	if (lease.scope == SESSION && chance(50))
		lease.ttl = 0;
	lease.wait = chance(40) ? -1 : chance(30) ? 0 : pick(4000);
	lease.durable = lease.scope == LEASE && chance(50);
	if (lease.durable && chance(30))
		lease.ttl = 1000 + pick(longest_ttl - 1000);
	snprintf(lease.names, sizeof(lease.names), "%s%d", prefix, chance(50) ? 0 : pick(nnames));
	return lease;
}

bool
believed(const Lease *lease)
{
	return (lease->scope == LEASE || lease->connection == connection) &&
		(lease->ttl == 0 || now_us() < lease->until);
}

/* "a,b" as the argument of a function */
static void
names_argument(const Lease *lease, char *argument, size_t size)
{
	snprintf(argument, size, lease->several ? "'{%s}'" : "'%s'", lease->names);
}

/*
 * Ask for a lease.  With "give_up" the connection is closed before the answer can
 * be read.
 */
Outcome
acquire(Lease *lease, const char *mode, int limit, const char *request, bool give_up)
{
	const char *durable = lease->durable ? "true" : "false";
	const char *all = lease->several ? "_all" : "";
	const char *scope = scope_names[lease->scope];
	char		names[80];
	char		arguments[512];
	char		sql[640];
	char		value[32];
	int			len;
	int			id;
	int64_t		sent;
	Outcome		outcome;

	connect_again();
	names_argument(lease, names, sizeof(names));
	len = snprintf(arguments, sizeof(arguments), "%s, mode => '%s', scope => '%s', durable => %s",
				   names, mode, scope, durable);
	if (lease->ttl > 0)
		len += snprintf(arguments + len, sizeof(arguments) - len, ", ttl => '%d ms'", lease->ttl);
	if (lease->wait >= 0)
		len += snprintf(arguments + len, sizeof(arguments) - len, ", wait => '%d ms'", lease->wait);
	if (limit > 0)
		len += snprintf(arguments + len, sizeof(arguments) - len, ", max_holders => %d", limit);
	if (request)
		snprintf(arguments + len, sizeof(arguments) - len, ", request_id => '%s'", request);
	if (lease->wait >= 0 && chance(60))
		snprintf(sql, sizeof(sql), "SELECT distlock_try_acquire%s(%s)", all, arguments);
	else if (!lease->several && chance(20))
		snprintf(sql, sizeof(sql), "CALL distlock_lock(%s)", arguments);
	else
		snprintf(sql, sizeof(sql), "SELECT distlock_acquire%s(%s)", all, arguments);

	id = new_id();
	sent = note("call", id,
				"what=acquire\tnames=%s\tmode=%s\tscope=%s\tdurable=%s\tttl=%d\twait=%d\tlimit=%d\trequest=%s",
				lease->names, mode, scope, durable, lease->ttl, lease->wait, limit,
				request ? request : "");
	if (give_up)
	{
		hang_up(id, sql);
		return LOST;
	}
	outcome = ask_server(id, sql, "token", lease->wait, value, sizeof(value));
	if (outcome == ANSWERED)
	{
		lease->token = atoll(value);
		lease->until = sent + (int64_t) lease->ttl * 1000;
		lease->connection = connection;
	}
	return outcome;
}

Outcome
renew(Lease *lease, int ttl)
{
	char		names[80];
	char		sql[256];
	int			id = new_id();
	int64_t		sent;
	Outcome		outcome;

	names_argument(lease, names, sizeof(names));
	snprintf(sql, sizeof(sql), "SELECT distlock_renew%s(%s, %lld, '%d ms')",
			 lease->several ? "_all" : "", names, lease->token, ttl);
	sent = note("call", id, "what=renew\tnames=%s\ttoken=%lld\tttl=%d", lease->names, lease->token, ttl);
	outcome = ask_server(id, sql, "value", 0, NULL, 0);
	if (outcome == ANSWERED || sent + (int64_t) ttl * 1000 < lease->until)
		lease->until = sent + (int64_t) ttl * 1000;
	return outcome;
}

/* One of the calls that take nothing but names and token. */
Outcome
use(const char *what, Lease *lease)
{
	char		names[80];
	char		sql[256];

	names_argument(lease, names, sizeof(names));
	snprintf(sql, sizeof(sql), "SELECT distlock_%s%s(%s, %lld)", what,
			 lease->several ? "_all" : "", names, lease->token);
	return call(what, lease, sql, NULL, 0);
}

/*
 * Work under a lease, and release it or walk away.  One that ends with the
 * session is not left behind: the next request would wait for it, and for itself.
 */
void
hold(Lease *lease)
{
	bool		session = lease->scope == SESSION;
	bool		longer = lease->ttl > 3000;
	int			steps = 1 + pick(6) + (longer ? 4 : 0);

	for (int i = 0; i < steps && !lease->in_doubt && !stopping; i++)
	{
		connect_again();
		if (session && lease->connection != connection)
			return;

		/* It may still be ours, after a long wait for instance: ask. */
		if (!believed(lease) && lease->ttl > 0 && chance(70))
			renew(lease, lease->ttl);
		if (!believed(lease) && !workload->work)
			break;
		if (workload->work && chance(50))
			workload->work(lease);
		else if (chance(35) && lease->ttl > 0)
			renew(lease, longer || chance(80) ? lease->ttl : 1000 + pick(2000));
		else if (chance(30))
			use("check", lease);
		else if (chance(4))
			pause_ms(lease->ttl + 100);
		else
			pause_ms(pick(longer ? lease->ttl / 5 : 100));
	}

	if (session)
	{
		if (connected() && lease->connection == connection &&
			(chance(30) || use("release", lease) != ANSWERED))
		{
			note("close", 0, "%s", "");
			disconnect();
		}
		return;
	}
	if (!stopping && chance(workload->walk_away))
		return;
	connect_again();
	use("release", lease);
	if (connected() && chance(10))
		use("check", lease);
}
