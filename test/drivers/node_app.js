/*
 * An application that takes leases with node-postgres.
 *
 * usage: node_app.js {direct|pooled}
 *
 * Connects by the environment (PGHOST, PGPORT, PGUSER, PGDATABASE), directly
 * or to a pooler in transaction mode, and prints TAP.  The table turns must be
 * there; t/020_drivers.pl makes it.
 *
 * A pooler lends out a server connection for one transaction at a time.  So,
 * pooled, nothing here relies on having the same one again: no session scope,
 * and no named statement.
 */
'use strict';

const assert = require('assert');
const { Client, Pool } = require('pg');

const ROUTE = process.argv[2];
const POOLED = ROUTE === 'pooled';

const LONG = '60s';		// a wait or TTL that no test comes to the end of
const NOW = 'extract(epoch FROM clock_timestamp())';
const WORKERS = 4;
const TURNS = 25;

/* ---- TAP ---- */

let tests = 0;
let failures = 0;

function ok(good, name, note) {
	tests++;
	console.log(`${good ? 'ok' : 'not ok'} ${tests} - ${name}`);
	if (!good) {
		failures++;
		console.log(`# ${note}`.replace(/\n/g, '\n# '));
	}
}

function equal(got, expected, name) {
	try {
		assert.deepStrictEqual(got, expected);
		ok(true, name);
	} catch (error) {
		ok(false, name, error.message);
	}
}

/* Run a query that has to fail; returns its error. */
async function errorOf(name, sqlstate, client, query, ...args) {
	try {
		const result = await value(client, query, ...args);
		ok(false, name, `no error, but ${result}`);
	} catch (error) {
		equal(error.code, sqlstate, name);
		return error;
	}
	return {};
}

/* ---- Database ---- */

async function connect(options) {
	const client = new Client(options);

	await client.connect();
	return client;
}

/* The first column of the only row. */
async function value(client, query, ...args) {
	const { rows } = await client.query({ text: query, values: args, rowMode: 'array' });

	assert.strictEqual(rows.length, 1);
	return rows[0][0];
}

function sleep(ms) {
	return new Promise((resolve) => setTimeout(resolve, ms));
}

async function waitForWaiter(client, name) {
	const limit = process.uptime() + 180;

	while (!(await value(client,
		'SELECT EXISTS (SELECT FROM distlock_waiters WHERE name = $1 AND position > 0)', name))) {
		assert(process.uptime() < limit, `no waiter of ${name}`);
		await sleep(50);
	}
}

function tryLock(client, name) {
	return value(client, 'SELECT distlock_try_acquire($1, ttl => $2)', name, LONG);
}

function release(client, name, token) {
	return value(client, 'SELECT distlock_release($1, $2)', name, token);
}

function countLeases(client, name) {
	return value(client, 'SELECT count(*)::integer FROM distlock_leases WHERE name = $1', name);
}

/*
 * A connection that is not served by the server process with this id.
 *
 * Pooled, a transaction of ours keeps that process busy, whichever of the
 * pool's it is.  Returns what has to be closed, too.
 */
async function elsewhere(pid) {
	const others = [];
	const busy = [];

	while (POOLED && busy.length === 0) {
		const client = await connect();

		await client.query('BEGIN');
		if ((await value(client, 'SELECT pg_backend_pid()')) === pid)
			busy.push(client);
		else
			others.push(client);
	}
	for (const client of others)
		await client.end();
	return [await connect(), ...busy];
}

/* ---- Tests ---- */

/* Acquire, renew, check, release, with the types the driver sends. */
async function basics(client) {
	const other = await connect();

	let token = await value(client, 'SELECT distlock_acquire($1, $2)', 'basics', '1 minute');
	ok(typeof token === 'string' && /^\d+$/.test(token),
		'acquire: the token is a bigint, a string of digits', token);
	ok(BigInt(token) > 0n && Number.isSafeInteger(Number(token)),
		'acquire: it is exact as a number, too', token);
	equal(await value(client, 'SELECT distlock_check($1, $2)', 'basics', token), true,
		'check: true');
	equal(await value(client, 'SELECT distlock_check($1, $2)', 'basics', BigInt(token)), true,
		'check: true for the token as a BigInt');
	equal(await value(client, 'SELECT distlock_check($1, $2)', 'basics', Number(token)), true,
		'check: true for the token as a number');
	equal(await tryLock(other, 'basics'), null,
		'try_acquire: null while another holds it');

	const ttl = await value(client, 'SELECT ttl * 10 FROM distlock_leases WHERE name = $1', 'basics');
	const expiry = await value(client, 'SELECT distlock_renew($1, $2, $3)', 'basics', token, ttl);
	ok(expiry instanceof Date, 'renew: the expiry is a Date', expiry);
	ok(expiry > Date.now() + 5 * 60 * 1000, 'renew: it is later', expiry);
	equal(await value(client, 'SELECT ttl FROM distlock_leases WHERE name = $1', 'basics'), ttl,
		'renew: the TTL is the interval given');

	equal(await release(client, 'basics', token), true, 'release: true');
	equal(await release(client, 'basics', token), false, 'release again: false');
	equal(await value(client, 'SELECT distlock_check($1, $2)', 'basics', token), false,
		'check after release: false');

	const again = await value(client,
		'SELECT distlock_acquire(name => $1, ttl => $2, wait => $3, mode => $4, scope => $5,' +
		' holder => $6, durable => $7)',
		'basics', '60', null, 'exclusive', 'lease', 'Zo\u00eb', false);
	ok(BigInt(again) > BigInt(token), 'acquire with all arguments: a greater token', again);
	equal(await value(client, 'SELECT holder FROM distlock_leases WHERE name = $1', 'basics'),
		'Zo\u00eb', 'acquire with all arguments: the holder given');
	equal(await release(client, 'basics', again), true, 'release of that');

	const named = await connect({ application_name: `invoices-${ROUTE}` });
	token = await tryLock(named, 'basics');
	equal(await value(client, 'SELECT holder FROM distlock_leases WHERE name = $1', 'basics'),
		`invoices-${ROUTE}`, "acquire: the holder is the client's application_name");
	await release(named, 'basics', token);
	await named.end();

	const name = POOLED ? undefined : 'acquire';
	const tokens = [];
	for (let i = 0; i < 8; i++) {
		const { rows } = await client.query({
			name, text: 'SELECT distlock_acquire($1, $2) AS token', values: ['basics', LONG],
		});
		tokens.push(rows[0].token);
		await release(client, 'basics', rows[0].token);
	}
	ok(tokens.every((t, i) => i === 0 || BigInt(t) > BigInt(tokens[i - 1])),
		'the same statement, many times: tokens increase', tokens);
	await other.end();
}

/* Several locks: the names are an array. */
async function several(client) {
	const other = await connect();
	const names = ['several b', 'several, a', 'several "c"', 'several b'];
	const held = (token) => value(client,
		'SELECT array_agg(name ORDER BY name) FROM distlock_leases WHERE token = $1', token);

	let token = await value(client, 'SELECT distlock_acquire_all($1, $2)', names, LONG);
	ok(typeof token === 'string' && BigInt(token) > 0n, 'several: the token is a bigint', token);
	equal(await held(token), [...new Set(names)].sort(), 'several: a lock for each name of the array');
	equal(await value(other, 'SELECT distlock_try_acquire_all($1)', ['free', names[0]]), null,
		'several: null while another holds one');
	equal(await value(client, 'SELECT distlock_check_all($1, $2)', names, token), true,
		'several: check_all');
	ok(await value(client, 'SELECT distlock_renew_all($1, $2)', names, token) instanceof Date,
		'several: renew_all');
	equal(await release(client, names[0], token), true, 'several: one released alone');
	equal(await value(client, 'SELECT distlock_release_all($1, $2)', names, token), false,
		'several: release_all, one was not held any more');
	equal(await held(token), null, 'several: but all are released');

	token = await value(client,
		'SELECT distlock_try_acquire_all(names => $1, ttl => $2, wait => $3, mode => $4,' +
		' scope => $5, holder => $6, durable => $7, max_holders => $8, request_id => $9,' +
		' advisory_key => $10)',
		['several x', 'several y'], '1 minute', '0', 'shared', 'lease', 'Zo\u00eb', false, 3,
		'request node', null);
	equal(await held(token), ['several x', 'several y'], 'several: with all arguments');
	equal(await value(client, 'SELECT distlock_release_all($1::varchar[], $2)',
		['several x', 'several y'], token), true, 'several: varchar[]');

	await errorOf('several: 22023 for an empty array', '22023',
		client, 'SELECT distlock_acquire_all($1)', []);
	await errorOf('several: 22004 for null among the names', '22004',
		client, 'SELECT distlock_acquire_all($1)', ['a', null]);
	await other.end();
}

/* max_holders and request_id, by name. */
async function semaphoreAndRetry(client) {
	const other = await connect();
	const acquire = (by, i) => value(by,
		'SELECT distlock_try_acquire($1, ttl => $2, max_holders => $3, request_id => $4)',
		'permits', LONG, 2, `node ${i}`);
	const tokens = [await acquire(client, 0), await acquire(client, 1)];

	ok(BigInt(tokens[1]) > BigInt(tokens[0]), 'semaphore: two permits of two', tokens);
	equal(await acquire(client, 2), null, 'semaphore: no third');
	equal(await acquire(other, 0), tokens[0],
		'request_id: from another connection, the same token');
	for (const token of tokens)
		await release(client, 'permits', token);
	await other.end();
}

/* CALL returns a row: the argument that is INOUT. */
async function call(client) {
	const other = await connect();

	let token = await value(client, 'CALL distlock_lock($1, NULL, $2)', 'call', LONG);
	ok(typeof token === 'string' && BigInt(token) > 0n, 'CALL: the token is a bigint', token);
	equal(await value(client, 'CALL distlock_watch_next(name => $1, token => NULL)', 'call'), token,
		'CALL: watch_next, by names');
	equal(await value(client, 'CALL distlock_watch_next($1, $2, $3)', 'call', token, '1ms'), token,
		'CALL: watch_next, at the end of the wait');
	await errorOf('CALL: 55P03 when the wait is over', '55P03',
		other, 'CALL distlock_lock(name => $1, wait => $2)', 'call', '10ms');
	await release(client, 'call', token);
	equal(await value(other, 'CALL distlock_watch_next($1, $2)', 'call', token), null,
		'CALL: watch_next, null for a lock that is free');
	token = await value(client,
		'CALL distlock_lock(name => $1, token => $2, ttl => $3, wait => $4, mode => $5,' +
		' scope => $6, holder => $7, durable => $8, max_holders => $9, request_id => $10,' +
		' advisory_key => $11)',
		'call', null, '60', null, 'exclusive', 'lease', 'me', true, null, 'call node', null);
	equal(await release(client, 'call', token), true, 'CALL: with all arguments');

	/* A string of several statements is one transaction. */
	await errorOf('CALL, several statements: an error behind it', '22012',
		{ query: ({ text }) => other.query(text) },
		"INSERT INTO turns VALUES (0); CALL distlock_lock('call', NULL, '1h'); SELECT 1 / 0");
	equal(await value(client, 'SELECT count(*)::integer FROM turns'), 0,
		'CALL, several statements: what came before is not committed');
	equal(await countLeases(client, 'call'), 0, 'CALL, several statements: no lease is left');
	await other.end();
}

async function errors(client) {
	const other = await connect();
	const token = await value(client,
		"SELECT distlock_acquire('errors', $1, holder => 'the holder')", LONG);

	let error = await errorOf('error: 55P03 when the wait is over', '55P03',
		other, "SELECT distlock_acquire('errors', wait => $1)", '10ms');
	ok(/"errors"/.test(error.message), '55P03: message', error.message);
	ok(/"the holder"/.test(error.detail) && error.detail.includes(token),
		'55P03: the detail names holder and token', error.detail);

	await release(client, 'errors', token);
	error = await errorOf('error: LK001 from renew of a lost lease', 'LK001',
		client, 'SELECT distlock_renew($1, $2)', 'errors', token);
	ok(/"errors"/.test(error.message), 'LK001: message', error.message);
	ok(error.detail && error.hint, 'LK001: detail and hint');

	for (const [bad, what] of [['0', 'zero'], ['-1s', 'negative'], ['1 month', 'a month']])
		await errorOf(`error: 22023 for a TTL that is ${what}`, '22023',
			client, "SELECT distlock_acquire('errors', $1)", bad);
	await errorOf('error: 22023 for an empty name', '22023',
		client, 'SELECT distlock_acquire($1)', '');
	await errorOf('error: 22004 for null', '22004',
		client, 'SELECT distlock_acquire($1)', null);
	await errorOf('error: 22004 for undefined', '22004',
		client, 'SELECT distlock_release($1, $2)', 'errors', undefined);

	equal(await countLeases(other, 'errors'), 0, 'after the errors: no lease');
	await other.end();
}

async function transactions(client) {
	const txn = await connect();

	await txn.query('BEGIN');
	let token = await tryLock(txn, 'txn');
	equal(await tryLock(client, 'txn'), null, 'transaction: held before the commit');
	await txn.query('ROLLBACK');
	equal(await value(client, 'SELECT distlock_check($1, $2)', 'txn', token), false,
		'transaction: rollback leaves no lease');

	await txn.query('BEGIN');
	await tryLock(txn, 'txn');
	await errorOf('transaction: an error after acquire', '22012', txn, 'SELECT 1 / 0');
	await txn.query('COMMIT');
	equal(await countLeases(client, 'txn'), 0, 'transaction: the error leaves no lease');

	await txn.query('BEGIN');
	token = await tryLock(txn, 'txn');
	await txn.query('COMMIT');
	equal(await value(client, 'SELECT distlock_check($1, $2)', 'txn', token), true,
		'transaction: commit keeps the lease');

	await txn.query('BEGIN');
	equal(await release(txn, 'txn', token), true, 'transaction: release');
	equal(await tryLock(client, 'txn'), null, 'transaction: held until the commit');
	await txn.query('COMMIT');
	token = await tryLock(client, 'txn');
	ok(token !== null, 'transaction: released by the commit');
	await release(client, 'txn', token);

	await txn.query('BEGIN');
	await txn.query("SELECT distlock_acquire('txn', scope => 'transaction')");
	equal(await tryLock(client, 'txn'), null, 'scope transaction: held');
	await txn.query('COMMIT');
	equal(await countLeases(client, 'txn'), 0, 'scope transaction: gone after the commit');

	/* A query without arguments may be of several statements. */
	await errorOf('several statements: an error after acquire', '22012',
		{ query: ({ text }) => txn.query(text) },
		"SELECT distlock_acquire('txn', '1h'); SELECT 1 / 0");
	equal(await countLeases(client, 'txn'), 0, 'several statements: no lease is left');
	await txn.end();
}

/* A lease of scope lease belongs to no connection. */
async function anotherConnection() {
	const client = await connect();
	let { rows: [row] } = await client.query(
		"SELECT distlock_acquire('moving', $1) AS token, pg_backend_pid() AS pid", [LONG]);
	const { token, pid } = row;
	const [other, ...busy] = await elsewhere(pid);

	if (!POOLED)
		await client.end();
	({ rows: [row] } = await other.query(
		"SELECT distlock_renew('moving', $1) IS NOT NULL AS renewed," +
		" distlock_check('moving', $1) AS good, pg_backend_pid() AS pid", [token]));
	ok(row.pid !== pid, 'another connection: is of another server process', pid);
	equal([row.renewed, row.good], [true, true], 'another connection: renews');
	equal(await release(other, 'moving', token), true, 'another connection: releases');
	for (const each of [other, ...busy])
		await each.end();
	if (POOLED)
		await client.end();
}

/* A cancelled wait leaves no request and no lease. */
async function cancel(client) {
	const token = await tryLock(client, 'cancel');
	const waiter = await connect();
	const waiting = errorOf('cancel: of a waiting acquire', '57014',
		waiter, "SELECT distlock_acquire('cancel')");

	await waitForWaiter(client, 'cancel');
	await client.query("SELECT pg_cancel_backend(pid) FROM distlock_waiters WHERE name = 'cancel'");
	await waiting;
	await release(client, 'cancel', token);
	equal(await countLeases(client, 'cancel'), 0, 'cancel: the one cancelled has not got it');
	equal(await release(client, 'cancel', await tryLock(waiter, 'cancel')), true,
		'cancel: its connection goes on');
	await waiter.end();
}

/* A client whose connection breaks is succeeded: at once, or after the TTL. */
async function death(client, scope) {
	const dying = await connect();
	const acquire = scope === 'session' ?
		"distlock_acquire('dying', scope => 'session')" :
		"distlock_acquire('dying', '1s')";
	/* The time just before, and the token */
	const [started, dead] =
		(await value(dying, `SELECT concat(${NOW}, ' ', ${acquire})`)).split(' ');

	dying.on('error', () => {});
	dying.connection.stream.destroy();
	const token = await value(client, "SELECT distlock_acquire('dying', $1, wait => $1)", LONG);
	ok(BigInt(token) > BigInt(dead), `death, scope ${scope}: another takes over`, token);
	const elapsed = await value(client, `SELECT (${NOW} - $1)::float8`, started);
	if (scope === 'lease') {
		ok(elapsed > 0.99, 'death, scope lease: not before the TTL was over', elapsed);
		await errorOf('death, scope lease: the old token is lost', 'LK001',
			client, "SELECT distlock_renew('dying', $1)", dead);
	}
	await release(client, 'dying', token);
}

/*
 * Workers take turns to add one to a counter, read and written apart.
 *
 * A wait keeps its server connection busy.  Waiting with all connections of
 * the pool, the workers would keep the holder from its own, so, pooled, they
 * either wait in short pieces or hold and release in one transaction.
 */
async function contend(kind, client) {
	const held = [];	// tokens, in the order of holding

	await client.query('TRUNCATE turns');

	async function acquire(mine) {
		let token = null;

		if (kind !== 'pieces')
			return value(mine, "SELECT distlock_acquire('counter', $1)", LONG);
		while (token === null)
			token = await value(mine,
				"SELECT distlock_try_acquire('counter', $1, wait => '5ms')", LONG);
		return token;
	}

	async function work(worker) {
		const mine = await connect();

		for (let i = 0; i < TURNS; i++) {
			if (kind === 'transaction')
				await mine.query('BEGIN');
			const token = await acquire(mine);
			held.push(token);
			const turn = await value(mine, 'SELECT coalesce(max(turn), 0) FROM turns');
			await mine.query('INSERT INTO turns VALUES ($1, $2, $3, pg_backend_pid())',
				[turn + 1, token, worker]);
			assert(await release(mine, 'counter', token), `worker ${worker} lost its lease`);
			if (kind === 'transaction')
				await mine.query('COMMIT');
		}
		await mine.end();
	}

	/* The first of them finds it taken, however slow they are. */
	const contended = await value(client, 'SELECT contended FROM distlock_stats');
	await client.query('BEGIN');
	const first = await value(client, "SELECT distlock_acquire('counter', $1)", LONG);
	const working = Promise.allSettled(Array.from(Array(WORKERS).keys(), work));
	while (await value(client, 'SELECT contended FROM distlock_stats') === contended);
	await release(client, 'counter', first);
	await client.query('COMMIT');
	const workers = await working;

	equal(workers.filter((w) => w.reason).map((w) => w.reason.message), [],
		`contention, ${kind}: no errors`);
	equal(await value(client, 'SELECT max(turn) FROM turns'), WORKERS * TURNS,
		`contention, ${kind}: no turn is lost`);
	const { rows: turns } = await client.query(
		'SELECT count(*)::integer AS count FROM turns GROUP BY worker');
	equal(turns.map((row) => row.count), Array(WORKERS).fill(TURNS),
		`contention, ${kind}: each worker had its turns`);
	const pids = await value(client, 'SELECT count(DISTINCT pid)::integer FROM turns');
	ok(POOLED ? pids < WORKERS : pids === WORKERS,
		`contention, ${kind}: by the right number of server connections`, pids);
	const { rows } = await client.query('SELECT token FROM turns ORDER BY turn');
	const tokens = rows.map((row) => row.token);
	ok(tokens.every((t, i) => i === 0 || BigInt(t) > BigInt(tokens[i - 1])),
		`contention, ${kind}: tokens increase`, tokens);
	equal(held, tokens, `contention, ${kind}: in the order of holding`);
	ok(BigInt(await value(client, 'SELECT contended FROM distlock_stats')) > BigInt(contended),
		`contention, ${kind}: there was some`);
}

/* A pool of the driver serves each query by any of its connections. */
async function driverPool() {
	const pool = new Pool({ max: WORKERS });

	await Promise.all(Array.from(Array(20).keys(), async (i) => {
		const token = await tryLock(pool, `pool ${i}`);

		await value(pool, 'SELECT distlock_renew($1, $2)', `pool ${i}`, token);
		equal(await release(pool, `pool ${i}`, token), true, `pool: lock ${i}`);
	}));
	await pool.end();
}

async function main() {
	const client = await connect();

	await client.query('TRUNCATE turns');
	await basics(client);
	await several(client);
	await semaphoreAndRetry(client);
	await call(client);
	await errors(client);
	await transactions(client);
	await anotherConnection();
	await driverPool();
	await cancel(client);
	await death(client, 'lease');
	if (!POOLED) {
		await death(client, 'session');
		await contend('waiting', client);
	}
	await contend('pieces', client);
	await contend('transaction', client);
	equal(await value(client, 'SELECT count(*)::integer FROM distlock_leases'), 0,
		'at the end: no lease is left');
	await client.end();
	console.log(`1..${tests}`);
	process.exitCode = failures ? 1 : 0;
}

main().catch((error) => {
	console.error(error);
	process.exit(2);
});
