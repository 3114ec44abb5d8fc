/* distlock--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION distlock" to load this file. \quit

-- ---- Views ----

CREATE FUNCTION distlock_show_stats(
    OUT acquired bigint,
    OUT contended bigint,
    OUT wait_seconds double precision,
    OUT timeouts bigint,
    OUT renewed bigint,
    OUT released bigint,
    OUT undone bigint,
    OUT expired bigint,
    OUT forced bigint,
    OUT lapsed bigint,
    OUT lost bigint,
    OUT swept bigint,
    OUT guards bigint,
    OUT guards_refused bigint,
    OUT commits_refused bigint,
    OUT deadlocks bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_show_stats() IS
'The row of the view distlock_stats; use the view';

-- Fails here and now, with a hint, unless the server preloads the library.
SELECT acquired FROM distlock_show_stats();

CREATE VIEW distlock_stats AS SELECT * FROM distlock_show_stats();
COMMENT ON VIEW distlock_stats IS
'Counters of the lock service since the server started, over all databases; one row';
COMMENT ON COLUMN distlock_stats.acquired IS 'Leases granted and told to their holders';
COMMENT ON COLUMN distlock_stats.contended IS 'Requests that found their lock taken, or others waiting for it';
COMMENT ON COLUMN distlock_stats.wait_seconds IS 'Time that requests have spent in queues, in seconds, whatever came of it';
COMMENT ON COLUMN distlock_stats.timeouts IS 'Requests that ended without a lease because their wait was over';
COMMENT ON COLUMN distlock_stats.renewed IS 'Renewals';
COMMENT ON COLUMN distlock_stats.released IS 'Leases ended by their holder, or with its session or transaction';
COMMENT ON COLUMN distlock_stats.undone IS 'Leases ended because the transaction that acquired them rolled back';
COMMENT ON COLUMN distlock_stats.expired IS 'Leases ended by their deadline';
COMMENT ON COLUMN distlock_stats.forced IS 'Leases ended by distlock_force_release()';
COMMENT ON COLUMN distlock_stats.lapsed IS 'Grants ended before their session came to take them';
COMMENT ON COLUMN distlock_stats.lost IS 'Renewals refused because the lease was lost (SQLSTATE LK001)';
COMMENT ON COLUMN distlock_stats.swept IS 'Leases that the search for expired ones has looked at';
COMMENT ON COLUMN distlock_stats.guards IS 'Guards: how often a transaction has bound its commit to a lease';
COMMENT ON COLUMN distlock_stats.guards_refused IS 'Calls of distlock_guard() refused because the lease was lost (SQLSTATE LK001)';
COMMENT ON COLUMN distlock_stats.commits_refused IS 'Commits and PREPARE TRANSACTIONs refused because a lease that guards them was lost (SQLSTATE LK001)';
COMMENT ON COLUMN distlock_stats.deadlocks IS 'Requests that failed because their wait closed a cycle (SQLSTATE 40P01)';
GRANT SELECT ON distlock_stats TO PUBLIC;

CREATE FUNCTION distlock_show_leases(
    OUT name text,
    OUT token bigint,
    OUT mode text,
    OUT scope text,
    OUT holder text,
    OUT owner name,
    OUT pid integer,
    OUT durable boolean,
    OUT granted_at timestamptz,
    OUT ttl interval,
    OUT expires_at timestamptz,
    OUT remaining interval,
    OUT renewals bigint,
    OUT pins integer,
    OUT waiters integer)
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_show_leases() IS
'The rows of the view distlock_leases; use the view';

CREATE VIEW distlock_leases AS SELECT * FROM distlock_show_leases();
COMMENT ON VIEW distlock_leases IS
'The live leases of this database, from memory';
COMMENT ON COLUMN distlock_leases.name IS 'Name of the lock';
COMMENT ON COLUMN distlock_leases.token IS 'Fencing token: greater than every token granted before it in this database';
COMMENT ON COLUMN distlock_leases.mode IS 'exclusive or shared';
COMMENT ON COLUMN distlock_leases.scope IS 'What ends the lease besides release and expiry: lease (nothing), session or transaction';
COMMENT ON COLUMN distlock_leases.holder IS 'Label for people, by default the application_name; it gives no rights';
COMMENT ON COLUMN distlock_leases.owner IS 'Role that acquired the lease; only roles with its privileges may renew or release it';
COMMENT ON COLUMN distlock_leases.pid IS 'Server process that acquired the lease; null once that session is gone';
COMMENT ON COLUMN distlock_leases.durable IS 'Does the lease outlive a crash of the server';
COMMENT ON COLUMN distlock_leases.granted_at IS 'When the holder was told of its lease, on the wall clock';
COMMENT ON COLUMN distlock_leases.ttl IS 'Time to live from the grant or the last renewal; null: none';
COMMENT ON COLUMN distlock_leases.expires_at IS 'When the lease expires unless renewed, on the wall clock; infinity without time to live';
COMMENT ON COLUMN distlock_leases.remaining IS 'Time until then, on the monotonic clock that decides; null without time to live';
COMMENT ON COLUMN distlock_leases.renewals IS 'How often the lease has been renewed';
COMMENT ON COLUMN distlock_leases.pins IS 'Commits in flight of transactions that the lease guards: until they are done, the lock goes to nobody whom the lease excludes';
COMMENT ON COLUMN distlock_leases.waiters IS 'How many requests wait for the lock';
GRANT SELECT ON distlock_leases TO PUBLIC;

CREATE FUNCTION distlock_show_waiters(
    OUT name text,
    OUT mode text,
    OUT pid integer,
    OUT owner name,
    OUT holder text,
    OUT waiting_since timestamptz,
    OUT "position" integer,
    OUT blocked_by_tokens bigint[],
    OUT blocked_by_pids integer[])
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_show_waiters() IS
'The rows of the view distlock_waiters; use the view';

CREATE VIEW distlock_waiters AS SELECT * FROM distlock_show_waiters();
COMMENT ON VIEW distlock_waiters IS
'The requests that wait for a lock of this database';
COMMENT ON COLUMN distlock_waiters.name IS 'Name of the lock';
COMMENT ON COLUMN distlock_waiters.mode IS 'exclusive or shared';
COMMENT ON COLUMN distlock_waiters.pid IS 'Server process that waits';
COMMENT ON COLUMN distlock_waiters.owner IS 'Role that waits, and will own the lease';
COMMENT ON COLUMN distlock_waiters.holder IS 'Label for people that the lease will have';
COMMENT ON COLUMN distlock_waiters.waiting_since IS 'When the request joined the queue, on the wall clock';
COMMENT ON COLUMN distlock_waiters.position IS 'Place in the queue of the lock, 1 is next; 0: granted, and the session has not come to take it yet';
COMMENT ON COLUMN distlock_waiters.blocked_by_tokens IS 'Tokens of the leases that conflict with the request: live ones, and ended ones kept by commits in flight';
COMMENT ON COLUMN distlock_waiters.blocked_by_pids IS 'Server processes of the leases, and of the requests ahead, that conflict with the request, without those whose session is gone; of an ended lease, those whose commits keep it; 0 for a prepared transaction';
GRANT SELECT ON distlock_waiters TO PUBLIC;

CREATE FUNCTION distlock_blocking_pids(pid integer)
RETURNS integer[]
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_blocking_pids(integer) IS
'Process IDs of the sessions that keep the one with the given process ID waiting for a lock of this database, as pg_blocking_pids() does for PostgreSQL''s own locks: they hold a lease in its way, keep one pinned by a commit in flight, or stand ahead of it. '
'pid: null: returns null. '
'An empty array if it does not wait for a lock, or only for leases whose sessions are gone; 0 stands for a prepared transaction';

-- ---- The limit of tokens ----

CREATE SEQUENCE distlock_token_seq;
COMMENT ON SEQUENCE distlock_token_seq IS
'Limit up to which fencing tokens are reserved; distlock writes it in place, and pg_dump carries it';
SELECT pg_catalog.pg_extension_config_dump('distlock_token_seq', '');

CREATE TABLE distlock_control (
    token_limit bigint NOT NULL,
    system_id bigint NOT NULL,
    timeline bigint NOT NULL,
    database_id bigint NOT NULL,
    lease_pages bigint NOT NULL,
    volatile_ttl bigint NOT NULL,
    longest_ttl bigint NOT NULL,
    grace bigint NOT NULL,
    unusable_limit bigint NOT NULL);
COMMENT ON TABLE distlock_control IS
'The durable state of distlock in this database: one row, which distlock overwrites in place';
COMMENT ON COLUMN distlock_control.token_limit IS
'Limit up to which fencing tokens are reserved; the greater of this and distlock_token_seq counts';
COMMENT ON COLUMN distlock_control.system_id IS
'System identifier of the server that has written the row';
COMMENT ON COLUMN distlock_control.timeline IS
'Timeline on which the row was written';
COMMENT ON COLUMN distlock_control.database_id IS
'OID of the database that has written the row; 0: none yet';
COMMENT ON COLUMN distlock_control.lease_pages IS
'Pages that distlock_lease_table has at least';
COMMENT ON COLUMN distlock_control.volatile_ttl IS
'Microseconds; volatile leases of scope lease that may be held have no longer time to live: the grace after a start of the server';
COMMENT ON COLUMN distlock_control.longest_ttl IS
'Microseconds; no lease of scope lease, durable or not, has had a longer time to live, nor had one for a day: the grace after a failover';
COMMENT ON COLUMN distlock_control.grace IS
'Microseconds; the grace of a failover that may not be over yet; 0: none';
COMMENT ON COLUMN distlock_control.unusable_limit IS
'Leases up to this token are unusable: they are from before a failover with distlock.failover_grace = strict';
-- A standby that is promoted before it hears of the first use has to know that
-- it is on another timeline.
INSERT INTO distlock_control
SELECT 0, system_identifier,
    ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::pg_catalog.bit(32)::bigint,
    0, 0, 0, 0, 0, 0
FROM pg_catalog.pg_control_system();

-- ---- The lease table ----

CREATE TYPE distlock_image;

CREATE FUNCTION distlock_image_in(cstring) RETURNS distlock_image
AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION distlock_image_in(cstring) IS 'I/O';
CREATE FUNCTION distlock_image_out(distlock_image) RETURNS cstring
AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION distlock_image_out(distlock_image) IS 'I/O';
CREATE FUNCTION distlock_image_recv(internal) RETURNS distlock_image
AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION distlock_image_recv(internal) IS 'I/O';
CREATE FUNCTION distlock_image_send(distlock_image) RETURNS bytea
AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION distlock_image_send(distlock_image) IS 'I/O';

CREATE TYPE distlock_image (
    INPUT = distlock_image_in,
    OUTPUT = distlock_image_out,
    RECEIVE = distlock_image_recv,
    SEND = distlock_image_send,
    INTERNALLENGTH = 560,
    ALIGNMENT = double);
COMMENT ON TYPE distlock_image IS
'The image of a durable lease in distlock_lease_table, as the view distlock_images shows it; as text, its bytes in hex';

CREATE TABLE distlock_lease_table (image distlock_image NOT NULL);
COMMENT ON TABLE distlock_lease_table IS
'The durable leases of this database, which distlock overwrites in place; see the view distlock_images';
COMMENT ON COLUMN distlock_lease_table.image IS
'Image of a lease, or of none';

CREATE FUNCTION distlock_show_images(
    OUT name text,
    OUT token bigint,
    OUT mode text,
    OUT holder text,
    OUT owner name,
    OUT granted_at timestamptz,
    OUT ttl interval,
    OUT max_holders integer,
    OUT request_id text,
    OUT block bigint,
    OUT slot integer,
    OUT damaged boolean)
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_show_images() IS
'The rows of the view distlock_images; use the view';

CREATE VIEW distlock_images AS SELECT * FROM distlock_show_images();
COMMENT ON VIEW distlock_images IS
'What is stored of the durable leases of this database, on a standby too; leases that have ended may be among them for a few seconds';
COMMENT ON COLUMN distlock_images.name IS 'Name of the lock';
COMMENT ON COLUMN distlock_images.token IS 'Fencing token';
COMMENT ON COLUMN distlock_images.mode IS 'exclusive or shared';
COMMENT ON COLUMN distlock_images.holder IS 'Label for people';
COMMENT ON COLUMN distlock_images.owner IS 'Role that acquired the lease';
COMMENT ON COLUMN distlock_images.granted_at IS 'When it was granted, on the wall clock';
COMMENT ON COLUMN distlock_images.ttl IS 'Time to live that the lease has after a crash, counted from the start of the server; renewals for less leave it as it is';
COMMENT ON COLUMN distlock_images.max_holders IS 'How many may hold the semaphore at once; null: it is none';
COMMENT ON COLUMN distlock_images.request_id IS 'What the request is known by when it is repeated; null: none';
COMMENT ON COLUMN distlock_images.block IS 'Block of distlock_lease_table';
COMMENT ON COLUMN distlock_images.slot IS 'Slot in that block, from 1';
COMMENT ON COLUMN distlock_images.damaged IS 'Does the image not match its checksum, or has it a newer format; then the columns before are null';
GRANT SELECT ON distlock_images TO PUBLIC;

CREATE FUNCTION distlock_refuse_change() RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_refuse_change() IS
'Trigger that refuses changes by SQL to the tables that distlock writes (SQLSTATE 55000)';
REVOKE EXECUTE ON FUNCTION distlock_refuse_change() FROM PUBLIC;

CREATE TRIGGER distlock_refuse_change
    BEFORE INSERT OR UPDATE OR DELETE ON distlock_control
    FOR EACH ROW EXECUTE FUNCTION distlock_refuse_change();
COMMENT ON TRIGGER distlock_refuse_change ON distlock_control IS
'Refuses changes by SQL, and passes over those of logical replication';
ALTER TABLE distlock_control ENABLE ALWAYS TRIGGER distlock_refuse_change;

CREATE TRIGGER distlock_refuse_truncate
    BEFORE TRUNCATE ON distlock_control
    FOR EACH STATEMENT EXECUTE FUNCTION distlock_refuse_change();
COMMENT ON TRIGGER distlock_refuse_truncate ON distlock_control IS
'Refuses TRUNCATE';
ALTER TABLE distlock_control ENABLE ALWAYS TRIGGER distlock_refuse_truncate;

CREATE TRIGGER distlock_refuse_change
    BEFORE INSERT OR UPDATE OR DELETE ON distlock_lease_table
    FOR EACH ROW EXECUTE FUNCTION distlock_refuse_change();
COMMENT ON TRIGGER distlock_refuse_change ON distlock_lease_table IS
'Refuses changes by SQL, and passes over those of logical replication';
ALTER TABLE distlock_lease_table ENABLE ALWAYS TRIGGER distlock_refuse_change;

CREATE TRIGGER distlock_refuse_truncate
    BEFORE TRUNCATE ON distlock_lease_table
    FOR EACH STATEMENT EXECUTE FUNCTION distlock_refuse_change();
COMMENT ON TRIGGER distlock_refuse_truncate ON distlock_lease_table IS
'Refuses TRUNCATE';
ALTER TABLE distlock_lease_table ENABLE ALWAYS TRIGGER distlock_refuse_truncate;

-- ---- Leases ----

CREATE FUNCTION distlock_acquire(
    name text,
    ttl interval DEFAULT NULL,
    wait interval DEFAULT NULL,
    mode text DEFAULT 'exclusive',
    scope text DEFAULT 'lease',
    holder text DEFAULT NULL,
    durable boolean DEFAULT NULL,
    max_holders integer DEFAULT NULL,
    request_id text DEFAULT NULL,
    advisory_key bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_acquire(text, interval, interval, text, text, text, boolean, integer, text, bigint) IS
'Acquires a lease of a lock and returns its fencing token. '
'name: 1 to 255 bytes, not null. '
'ttl: time to live, above zero and at most distlock.max_ttl, without months; null: distlock.default_ttl for scope lease, none for the other scopes. '
'wait: longest wait, zero: do not wait, null: no limit but lock_timeout. '
'mode: exclusive or shared, not null. '
'scope: lease, session or transaction: what ends the lease besides release and expiry; not null. '
'holder: label for people, at most 127 bytes; null: application_name. '
'durable: outlives a crash of the server, scope lease only; null: distlock.durable for scope lease, false for the others. '
'max_holders: makes the lock a semaphore that so many may hold at once, above zero, whatever the mode; null: it is none. All who hold it or wait for it must give the same. '
'request_id: 1 to 127 bytes; the same request of the same role again gets the same lease back while it is live, renewed, and takes over its place in the queue while it waits; null: each call is a request of its own. '
'advisory_key: for scope session and transaction, holds this advisory lock as well, as pg_advisory_lock(bigint) does, shared unless the mode is exclusive; null: none. '
'The lease is undone if the transaction or savepoint rolls back. '
'Errors: 55P03 when the wait is over or another session has repeated the request, 22004 for a null, 22023 for a value out of range, another max_holders, or a request_id that stands for another request, '
'40P01 when the wait closes a cycle, 53400 when distlock.max_leases is reached, '
'55000 for a lock that this transaction has released, and for a durable lease that cannot be stored, 57014 when the wait for synchronous standbys is cancelled, 25006 on a standby';

CREATE FUNCTION distlock_try_acquire(
    name text,
    ttl interval DEFAULT NULL,
    wait interval DEFAULT '0',
    mode text DEFAULT 'exclusive',
    scope text DEFAULT 'lease',
    holder text DEFAULT NULL,
    durable boolean DEFAULT NULL,
    max_holders integer DEFAULT NULL,
    request_id text DEFAULT NULL,
    advisory_key bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_try_acquire(text, interval, interval, text, text, text, boolean, integer, text, bigint) IS
'As distlock_acquire(), but does not wait unless told to (wait: zero by default, null: no limit but lock_timeout), and returns null when the wait is over or another session has repeated the request; '
'lock_timeout still raises 55P03';

CREATE FUNCTION distlock_acquire_all(
    names text[],
    ttl interval DEFAULT NULL,
    wait interval DEFAULT NULL,
    mode text DEFAULT 'exclusive',
    scope text DEFAULT 'lease',
    holder text DEFAULT NULL,
    durable boolean DEFAULT NULL,
    max_holders integer DEFAULT NULL,
    request_id text DEFAULT NULL,
    advisory_key bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_acquire_all(text[], interval, interval, text, text, text, boolean, integer, text, bigint) IS
'Acquires leases of several locks, all or none, under one fencing token, which it returns. '
'names: of 1 to 64 locks, each 1 to 255 bytes, in any order; the array and its elements not null; a name that occurs again counts once. '
'The request stands in the queues of all its locks at once, and is granted when it is the turn of none but it in any. '
'The other arguments and errors are those of distlock_acquire(). Each of the leases may be renewed, released and guarded by alone as well';

CREATE FUNCTION distlock_try_acquire_all(
    names text[],
    ttl interval DEFAULT NULL,
    wait interval DEFAULT '0',
    mode text DEFAULT 'exclusive',
    scope text DEFAULT 'lease',
    holder text DEFAULT NULL,
    durable boolean DEFAULT NULL,
    max_holders integer DEFAULT NULL,
    request_id text DEFAULT NULL,
    advisory_key bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_try_acquire_all(text[], interval, interval, text, text, text, boolean, integer, text, bigint) IS
'As distlock_acquire_all(), but does not wait unless told to (wait: zero by default, null: no limit but lock_timeout), and returns null when the wait is over or another session has repeated the request; '
'lock_timeout still raises 55P03';

CREATE PROCEDURE distlock_lock(
    name text,
    INOUT token bigint DEFAULT NULL,
    ttl interval DEFAULT NULL,
    wait interval DEFAULT NULL,
    mode text DEFAULT 'exclusive',
    scope text DEFAULT 'lease',
    holder text DEFAULT NULL,
    durable boolean DEFAULT NULL,
    max_holders integer DEFAULT NULL,
    request_id text DEFAULT NULL,
    advisory_key bigint DEFAULT NULL)
AS 'MODULE_PATHNAME'
LANGUAGE C;
COMMENT ON PROCEDURE distlock_lock(text, bigint, interval, interval, text, text, text, boolean, integer, text, bigint) IS
'As distlock_acquire(), but a call outside a transaction block commits what came before it in the same DO or procedure, and waits in a transaction of its own with no snapshot and no transaction ID, so that it holds back neither vacuum nor CREATE INDEX CONCURRENTLY. '
'In a transaction block, a string of several statements, an exception block or a pipeline behind other statements it waits as the function does. '
'token: what is given is of no account; returns the fencing token. '
'The other arguments and errors are those of distlock_acquire()';

CREATE FUNCTION distlock_watch(
    name text,
    token bigint,
    wait interval DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_watch(text, bigint, interval) IS
'Waits until the newest token under which the lock is held is another than the one given, and returns it, null if the lock is free. Does not hold the lock and does not stand in its queue; any role may watch. '
'name: of the lock, 1 to 255 bytes, not null. '
'token: null: the lock is free. '
'wait: longest wait, after which the token is returned as it is; zero: do not wait, null: no limit. '
'Errors: 22004 for a null name, 22023 for a value out of range, 55000 when the extension is dropped, 25006 on a standby';

CREATE PROCEDURE distlock_watch_next(
    name text,
    INOUT token bigint,
    wait interval DEFAULT NULL)
AS 'MODULE_PATHNAME'
LANGUAGE C;
COMMENT ON PROCEDURE distlock_watch_next(text, bigint, interval) IS
'As distlock_watch(), but outside a transaction block it waits with no snapshot and no transaction ID, as distlock_lock() does. '
'token: the one known so far, null: the lock is free; returns what it is now. '
'The other arguments and errors are those of distlock_watch()';

CREATE FUNCTION distlock_renew(
    name text,
    token bigint,
    ttl interval DEFAULT NULL)
RETURNS timestamptz
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_renew(text, bigint, interval) IS
'Starts the time to live of a lease anew, at once and whatever becomes of the transaction, and returns when it expires on the wall clock; infinity for a lease without time to live. '
'name, token: of the lease, not null. '
'ttl: the new time to live, above zero and at most distlock.max_ttl, without months; null: the one the lease has. '
'Errors: LK001 when the lease is released or expired, or released by this transaction, 42501 without the privileges of its owner, 22004 for a null, 22023 for a value out of range, 25006 on a standby';

CREATE FUNCTION distlock_release(
    name text,
    token bigint)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_release(text, bigint) IS
'Ends a lease when this transaction has committed. '
'name, token: of the lease, not null. '
'Returns true; false when the lock is not held under this token any more. '
'Errors: 42501 without the privileges of the owner, 22004 for a null, 22023 for a name out of range, 25006 on a standby';

CREATE FUNCTION distlock_check(
    name text,
    token bigint)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_check(text, bigint) IS
'Tells whether a lease is live right now; any role may ask. '
'name, token: of the lease, not null. '
'Errors: 22004 for a null, 22023 for a name out of range, 25006 on a standby';

CREATE FUNCTION distlock_guard(
    name text,
    token bigint)
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_guard(text, bigint) IS
'Binds this transaction to a lease: it commits only if the lease is live at its commit, and whom the lease excludes gets the lock only when the commit is visible. '
'name, token: of the lease, not null. '
'The guard goes when the savepoint in which it was made rolls back. PREPARE TRANSACTION counts as the commit; the next holder waits until the prepared transaction has ended. '
'Errors: LK001 when the lease is released or expired, or released by this transaction, now or at commit, 42501 without the privileges of its owner, '
'55000 in a REPEATABLE READ or SERIALIZABLE transaction older than the lease, 53400 when guards are used up, '
'22004 for a null, 22023 for a name out of range, 25006 on a standby';

CREATE FUNCTION distlock_renew_all(
    names text[],
    token bigint,
    ttl interval DEFAULT NULL)
RETURNS timestamptz
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_renew_all(text[], bigint, interval) IS
'As distlock_renew() for each of several leases under one token, after seeing that all of them are live; returns when the first expires. '
'names: of 1 to 64 locks, the array and its elements not null. '
'Errors: those of distlock_renew(), LK001 if any lease is lost';

CREATE FUNCTION distlock_release_all(
    names text[],
    token bigint)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_release_all(text[], bigint) IS
'As distlock_release() for each of several leases under one token. '
'names: of 1 to 64 locks, the array and its elements not null. '
'Returns true; false when any of the locks is not held under this token any more, the others are released all the same. '
'Errors: those of distlock_release()';

CREATE FUNCTION distlock_check_all(
    names text[],
    token bigint)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_check_all(text[], bigint) IS
'Tells whether all of several leases under one token are live right now; any role may ask. '
'names: of 1 to 64 locks, the array and its elements not null. '
'Errors: those of distlock_check()';

CREATE FUNCTION distlock_guard_all(
    names text[],
    token bigint)
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_guard_all(text[], bigint) IS
'As distlock_guard() for each of several leases under one token: this transaction commits only if all of them are live at its commit. '
'names: of 1 to 64 locks, the array and its elements not null. '
'Errors: those of distlock_guard(), LK001 if any lease is lost';

CREATE FUNCTION distlock_force_release(
    name text)
RETURNS integer
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_force_release(text) IS
'Ends every lease that a lock has now, when this transaction has committed, and returns how many. Each is logged; a grant that its session has not come to take yet ends too, and that session asks again. '
'name: of the lock, not null. '
'EXECUTE is revoked from PUBLIC: grant it to those who may take locks from others. '
'Errors: 22004 for a null, 22023 for a name out of range, 25006 on a standby';
REVOKE EXECUTE ON FUNCTION distlock_force_release(text) FROM PUBLIC;

CREATE FUNCTION distlock_discard_damaged()
RETURNS integer
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_discard_damaged() IS
'Gives up the durable leases whose images are damaged, so that a database whose lease table cannot be read can be used again; returns how many slots were damaged. '
'If there are any, nothing is granted in this database until distlock.max_ttl has passed since the start of the server. '
'EXECUTE is revoked from PUBLIC. '
'Errors: 55000 when the leases are in use, since all have been read without finding any damaged, 25006 on a standby';
REVOKE EXECUTE ON FUNCTION distlock_discard_damaged() FROM PUBLIC;

-- ---- Protected tables ----

CREATE FUNCTION distlock_refuse_write() RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_refuse_write() IS
'Trigger of distlock_protect() that refuses an unguarded write (SQLSTATE LK002)';

CREATE FUNCTION distlock_unguarded(
    rel regclass,
    VARIADIC name "any")
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_unguarded(regclass, "any") IS
'Condition of the triggers of distlock_protect(). '
'rel: the protected table, not null. '
'name: the parts of the lock''s name, put together as format() does with %s. '
'Returns false if this transaction is guarded by a lease of that lock, or becomes so by a lease that needs no token. '
'Errors: LK002 if it is not, or a part is null, 22023 for a name out of range';

CREATE FUNCTION distlock_protect(
    rel regclass,
    name text)
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_protect(regclass, text) IS
'Lets no write reach a table but in transactions guarded on a lock, by distlock_guard() or by a lease that the session holds with session or transaction scope or that the transaction has acquired. '
'rel: a table or partitioned table that the current role owns, not null. '
'name: name of the lock, not null; {column} in it takes the value of that column of the row, {{ and }} stand for braces. An UPDATE needs guards for the old and the new row. '
'TRUNCATE needs the guard, and is refused if the name contains a column. '
'Errors: 42501 for a table of somebody else, 42809 for what is no table, 42710 if it is protected already, 42725 if another function takes the place of distlock_unguarded(), 42703 for a column that does not exist, 22023 for one whose text depends on settings of the session, such as a date, and for a name out of range, 22004 for a null, 25006 on a standby; '
'LK002 for an unguarded write later on';

CREATE FUNCTION distlock_unprotect(
    rel regclass)
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_unprotect(regclass) IS
'Lets a table be written as any other again. '
'rel: a protected table that the current role owns, not null. '
'Errors: 42704 if it is not protected itself, 42501 for a table of somebody else, 22004 for a null, 25006 on a standby';

CREATE FUNCTION distlock_protected_name(
    trigger oid)
RETURNS text
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION distlock_protected_name(oid) IS
'The lock name in the condition of a trigger of distlock_protect(), null for any other trigger and for null';

-- A table is protected as a whole if row triggers with a condition of ours cover
-- INSERT (4), DELETE (8) and UPDATE (16), and one covers TRUNCATE (32).
CREATE VIEW distlock_protected AS
SELECT t.tgrelid::pg_catalog.regclass AS rel,
    pg_catalog.max(t.name) AS name,
    pg_catalog.bit_or(t.events) = 60 AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_partition_tree(t.tgrelid) p
            JOIN pg_catalog.pg_trigger o ON o.tgrelid = p.relid
        WHERE o.tgfoid = t.tgfoid AND o.tgenabled <> 'A') AS enabled
FROM (
    SELECT tgrelid, tgfoid, n.name,
        CASE WHEN tgenabled = 'A' AND (n.name IS NOT NULL OR tgtype & 1 = 0) THEN tgtype & 60 ELSE 0 END AS events
    FROM pg_catalog.pg_trigger, distlock_protected_name(pg_trigger.oid) AS n (name)
    WHERE tgfoid = 'distlock_refuse_write()'::pg_catalog.regprocedure AND tgparentid = 0) t
GROUP BY t.tgrelid, t.tgfoid;
COMMENT ON VIEW distlock_protected IS
'The tables of this database protected by distlock_protect(); partitions go with their table';
COMMENT ON COLUMN distlock_protected.rel IS 'The table';
COMMENT ON COLUMN distlock_protected.name IS 'Name of the lock that a write needs a guard on; {column} stands for the value of that column; null when the condition of its triggers has been changed';
COMMENT ON COLUMN distlock_protected.enabled IS 'Are its protecting triggers, and those of its partitions, complete and enabled, as they are unless somebody has changed them';
GRANT SELECT ON distlock_protected TO PUBLIC;
