--
-- An acquire is undone when its transaction or savepoint rolls back; a release
-- takes effect when its transaction has committed.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

--
-- Acquire
--

-- It takes effect at once, and stays at commit.
BEGIN;
SELECT distlock_acquire('a') > 0;
SELECT pg_temp.held();
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

-- Rollback undoes it, in every scope.
BEGIN;
SELECT distlock_acquire('a', scope => 'lease') > 0, distlock_acquire('b', scope => 'session') > 0,
    distlock_acquire('c', scope => 'transaction') > 0, distlock_try_acquire('d', mode => 'shared') > 0;
SELECT pg_temp.held();
ROLLBACK;
SELECT pg_temp.held();

-- So does an error anywhere later in the transaction.
BEGIN;
SELECT distlock_acquire('a') > 0;
SELECT 1/0;
COMMIT;
SELECT pg_temp.held();

-- And one later in the same statement.
SELECT distlock_acquire('a'), 1 / (1 - pg_backend_pid() / pg_backend_pid());
SELECT pg_temp.held();
SELECT distlock_acquire('a/' || i) > 0, 1 / (3 - i) FROM generate_series(1, 3) AS i;
SELECT pg_temp.held();
CREATE TEMP TABLE granted (granted boolean, late int CHECK (late < 3));
INSERT INTO granted SELECT distlock_acquire('a/' || i) > 0, i FROM generate_series(1, 3) AS i;
SELECT pg_temp.held();
-- ... or at its end
CREATE TEMP TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
INSERT INTO deferred SELECT 1 FROM (SELECT distlock_acquire('a')) AS s, generate_series(1, 2);
SELECT pg_temp.held();
-- ... or when it is cancelled
SELECT undone FROM distlock_stats \gset
SELECT distlock_acquire('a'), pg_cancel_backend(pg_backend_pid()), pg_sleep(60);
SELECT pg_temp.held(), undone > :undone FROM distlock_stats;
BEGIN;
SET LOCAL statement_timeout = '200ms';
SELECT distlock_acquire('a'), pg_sleep(60);
ROLLBACK;
SELECT pg_temp.held();

-- Transaction scope ends with the transaction, either way.
BEGIN;
SELECT distlock_acquire('a', scope => 'transaction') > 0;
SELECT pg_temp.held();
COMMIT;
SELECT pg_temp.held();
SELECT distlock_acquire('a', scope => 'transaction') > 0, pg_temp.held();
SELECT pg_temp.held();
BEGIN;
SAVEPOINT s;
SELECT distlock_acquire('a', scope => 'transaction') > 0;
RELEASE SAVEPOINT s;
SELECT pg_temp.held();
COMMIT;
SELECT pg_temp.held();

--
-- Savepoints
--
BEGIN;
SELECT distlock_acquire('before') > 0;
SAVEPOINT s;
SELECT distlock_acquire('inside') > 0;
SELECT pg_temp.held();
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.held();
-- The savepoint is there still, and the name is free.
SELECT distlock_acquire('inside') > 0, distlock_acquire('again') > 0;
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.held();
SELECT distlock_acquire('after') > 0;
RELEASE SAVEPOINT s;
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

-- Nested: what an inner one has passed on goes with the outer one.
BEGIN;
SAVEPOINT outer_one;
SELECT distlock_acquire('outer') > 0;
SAVEPOINT inner_one;
SELECT distlock_acquire('inner') > 0;
SAVEPOINT innermost;
SELECT distlock_acquire('innermost') > 0;
RELEASE SAVEPOINT innermost;
SELECT pg_temp.held();
RELEASE SAVEPOINT inner_one;
SELECT pg_temp.held();
SELECT distlock_acquire('outer too') > 0;
ROLLBACK TO SAVEPOINT outer_one;
SELECT pg_temp.held();
SELECT distlock_acquire('kept') > 0;
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

BEGIN;
SAVEPOINT outer_one;
SELECT distlock_acquire('outer') > 0;
SAVEPOINT inner_one;
SELECT distlock_acquire('inner') > 0;
ROLLBACK TO SAVEPOINT inner_one;
RELEASE SAVEPOINT outer_one;
SELECT pg_temp.held();
ROLLBACK;
SELECT pg_temp.held();

-- An error inside a savepoint
BEGIN;
SELECT distlock_acquire('before') > 0;
SAVEPOINT s;
SELECT distlock_acquire('inside') > 0;
SELECT distlock_acquire('before', wait => '-1 s');
ROLLBACK TO SAVEPOINT s;
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

--
-- Exception blocks
--
DO $$
BEGIN
    PERFORM distlock_acquire('before');
    BEGIN
        PERFORM distlock_acquire('inside');
        BEGIN
            PERFORM distlock_acquire('innermost');
        EXCEPTION WHEN division_by_zero THEN
            NULL;
        END;
        PERFORM 1/0;
    EXCEPTION WHEN division_by_zero THEN
        RAISE WARNING 'held in the handler: %', pg_temp.held();
        PERFORM distlock_acquire('handler');
    END;
END $$;
SELECT pg_temp.held();
CALL pg_temp.clear();

-- Many levels, each of them undone
CREATE FUNCTION pg_temp.descend(depth int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM distlock_acquire('depth/' || depth);
    IF depth = 0 THEN
        RAISE WARNING 'held: %', (SELECT count(*) FROM distlock_leases);
        RAISE EXCEPTION 'enough';
    END IF;
    PERFORM pg_temp.descend(depth - 1);
EXCEPTION WHEN raise_exception THEN
    IF depth < 50 THEN
        RAISE;
    END IF;
END $$;
SELECT pg_temp.descend(50);
SELECT pg_temp.held();

--
-- Release takes effect at commit.
--
SELECT distlock_acquire('a') AS token \gset
BEGIN;
SELECT distlock_release('a', :token);
-- For others it is still held; this transaction has no use for it any more.
SELECT pg_temp.held();
SELECT distlock_release('a', :token);
SELECT distlock_check('a', :token);
SELECT pg_temp.error_of(format('SELECT distlock_renew(''a'', %s)', :token));
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'')');
SELECT pg_temp.error_of('SELECT distlock_try_acquire(''a'')');
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', mode => ''shared'', wait => ''1 s'')');
SELECT distlock_acquire('b') > :token;
COMMIT;
SELECT pg_temp.held();
SELECT distlock_release('a', :token);
CALL pg_temp.clear();

-- Rollback undoes it.
SELECT distlock_acquire('a') AS token \gset
BEGIN;
SELECT distlock_release('a', :token);
ROLLBACK;
SELECT distlock_check('a', :token), distlock_renew('a', :token) > clock_timestamp();
BEGIN;
SELECT distlock_release('a', :token);
SELECT 1/0;
COMMIT;
SELECT distlock_check('a', :token);

-- Savepoints
BEGIN;
SAVEPOINT s;
SELECT distlock_release('a', :token);
SELECT distlock_check('a', :token);
ROLLBACK TO SAVEPOINT s;
SELECT distlock_check('a', :token), distlock_renew('a', :token) > clock_timestamp();
SELECT distlock_try_acquire('a') IS NULL;
COMMIT;
SELECT distlock_check('a', :token);
BEGIN;
SAVEPOINT s;
SAVEPOINT t;
SELECT distlock_release('a', :token);
RELEASE SAVEPOINT t;
SELECT distlock_check('a', :token);
ROLLBACK TO SAVEPOINT s;
SELECT distlock_check('a', :token);
SAVEPOINT u;
SELECT distlock_release('a', :token);
RELEASE SAVEPOINT u;
COMMIT;
SELECT pg_temp.held();

-- In an exception block
SELECT distlock_acquire('a') AS token \gset
CREATE FUNCTION pg_temp.release_in_vain(name text, token bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM distlock_release(name, token);
    RAISE EXCEPTION 'no';
EXCEPTION WHEN raise_exception THEN
    RETURN distlock_check(name, token);
END $$;
SELECT pg_temp.release_in_vain('a', :token);
SELECT distlock_check('a', :token);

-- One of two shared leases is released: the lock cannot be acquired again,
-- the other lease is not affected.
CALL pg_temp.clear();
SELECT distlock_acquire('a', mode => 'shared') AS one \gset
SELECT distlock_acquire('a', mode => 'shared') AS two \gset
BEGIN;
SELECT distlock_release('a', :one);
SELECT distlock_check('a', :two), distlock_renew('a', :two) > clock_timestamp();
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', mode => ''shared'')');
SELECT distlock_release('a', :two);
ROLLBACK;
SELECT distlock_check('a', :one), distlock_check('a', :two);
CALL pg_temp.clear();

-- Acquired and released in one transaction: committed or not, nothing is left.
BEGIN;
SELECT distlock_acquire('a') AS token \gset
SELECT distlock_release('a', :token);
COMMIT;
SELECT pg_temp.held();
BEGIN;
SELECT distlock_acquire('a') AS token \gset
SELECT distlock_release('a', :token);
ROLLBACK;
SELECT pg_temp.held();
BEGIN;
SELECT distlock_acquire('a') AS token \gset
SAVEPOINT s;
SELECT distlock_release('a', :token);
ROLLBACK TO SAVEPOINT s;
COMMIT;
SELECT pg_temp.held();
BEGIN;
SAVEPOINT s;
SELECT distlock_acquire('b') AS b \gset
SELECT distlock_release('b', :b);
ROLLBACK TO SAVEPOINT s;
-- The release is gone with its lease: this is the name's first acquire.
SELECT distlock_acquire('b') > :b;
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();
-- Session scope, too
SELECT distlock_acquire('a', scope => 'session') AS token \gset
BEGIN;
SELECT distlock_release('a', :token);
ROLLBACK;
SELECT distlock_check('a', :token);
SELECT distlock_release('a', :token);

-- A renewal stays, whatever becomes of the transaction.
SELECT distlock_acquire('a', ttl => '1 min') AS token \gset
BEGIN;
SELECT distlock_renew('a', :token, '2 hours') > clock_timestamp();
ROLLBACK;
SELECT ttl, renewals FROM distlock_leases WHERE token = :token;
CALL pg_temp.clear();

--
-- distlock_force_release() acts at commit, too.
--
SELECT distlock_acquire('a', mode => 'shared') AS one \gset
SELECT distlock_acquire('a', mode => 'shared', scope => 'session') AS two \gset
BEGIN;
SELECT distlock_force_release('a');
SELECT pg_temp.held();
SELECT distlock_check('a', :one), distlock_check('a', :two);
-- Those already ended count no more.
SELECT distlock_force_release('a'), distlock_release('a', :one);
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'')');
SELECT pg_temp.error_of(format('SELECT distlock_renew(''a'', %s)', :two));
ROLLBACK;
SELECT distlock_check('a', :one), distlock_check('a', :two);
BEGIN;
SAVEPOINT s;
SELECT distlock_force_release('a');
ROLLBACK TO SAVEPOINT s;
SELECT distlock_check('a', :one), distlock_check('a', :two);
SELECT distlock_release('a', :one), distlock_force_release('a');
COMMIT;
SELECT distlock_check('a', :one), distlock_check('a', :two), pg_temp.held();
SELECT distlock_force_release('a');
-- Also what this transaction has acquired
BEGIN;
SELECT distlock_acquire('a') > 0, distlock_force_release('a');
COMMIT;
SELECT pg_temp.held();

--
-- Statements sent as one string are one transaction.
--
SELECT distlock_acquire('a') > 0 \; SELECT distlock_acquire('b') > 0 \; SELECT 1/0;
SELECT pg_temp.held();
SELECT distlock_acquire('a') > 0 \; SELECT distlock_acquire('b') > 0;
SELECT pg_temp.held();
SELECT token AS a FROM distlock_leases WHERE name = 'a' \gset
SELECT distlock_release('a', :a) \; SELECT distlock_check('a', :a) \; SELECT 1/0;
SELECT distlock_check('a', :a);
-- A COMMIT within divides it, with a warning.
SET client_min_messages = error;
SELECT distlock_release('a', :a) \; COMMIT \; SELECT distlock_acquire('a') > :a;
SELECT pg_temp.held();
CALL pg_temp.clear();
SELECT distlock_acquire('a') > 0 \; COMMIT \; SELECT distlock_acquire('b') > 0 \; SELECT 1/0;
SELECT pg_temp.held();
CALL pg_temp.clear();
SET client_min_messages = warning;

-- AND CHAIN
BEGIN;
SELECT distlock_acquire('a') > 0;
COMMIT AND CHAIN;
SELECT distlock_acquire('b') > 0, distlock_acquire('c', scope => 'transaction') > 0;
ROLLBACK AND CHAIN;
SELECT pg_temp.held();
SELECT distlock_acquire('d', scope => 'transaction') > 0;
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

--
-- Procedures that end transactions
--
CREATE PROCEDURE pg_temp.stages() LANGUAGE plpgsql AS $$
DECLARE
    token bigint;
BEGIN
    token := distlock_acquire('committed');
    PERFORM distlock_acquire('committed transaction', scope => 'transaction');
    COMMIT;
    RAISE WARNING 'after commit: %', pg_temp.held();
    PERFORM distlock_acquire('rolled back');
    PERFORM distlock_release('committed', token);
    ROLLBACK;
    RAISE WARNING 'after rollback: %', pg_temp.held();
    PERFORM distlock_release('committed', token);
    RAISE WARNING 'before commit: %', pg_temp.held();
    COMMIT;
    RAISE WARNING 'after commit: %', pg_temp.held();
    PERFORM distlock_acquire('committed');
    COMMIT;
    PERFORM distlock_acquire('last');
    PERFORM 1/0;
END $$;
\set SHOW_CONTEXT never
CALL pg_temp.stages();
SELECT pg_temp.held();
CALL pg_temp.clear();

-- One transaction for each turn of the loop: worked off as they come
DO $$
DECLARE
    token bigint;
    previous bigint := 0;
BEGIN
    FOR i IN 1..20 LOOP
        token := distlock_acquire('loop', wait => '0');
        IF token <= previous THEN
            RAISE EXCEPTION 'token % after %', token, previous;
        END IF;
        previous := token;
        PERFORM distlock_release('loop', token);
        COMMIT;
    END LOOP;
END $$;
SELECT pg_temp.held();

--
-- Cursors
--

-- What a holdable cursor acquires as it is filled at commit, it keeps.
BEGIN;
DECLARE held NO SCROLL CURSOR WITH HOLD FOR
    SELECT i, distlock_acquire('held/' || i) > 0 FROM generate_series(1, 3) AS i;
FETCH 1 FROM held;
SELECT pg_temp.held();
COMMIT;
SELECT pg_temp.held();
FETCH ALL FROM held;
CLOSE held;
CALL pg_temp.clear();
-- One that can scroll, as by default this one can, begins anew at commit, and
-- waits for its own first row.
CREATE TEMP TABLE rows AS SELECT i FROM generate_series(1, 3) AS i;
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT i, distlock_acquire('held/' || i) > 0 FROM rows;
FETCH 1 FROM held;
SELECT pg_temp.held();
SET LOCAL lock_timeout = '200ms';
\set VERBOSITY sqlstate
COMMIT;
\set VERBOSITY default
SELECT pg_temp.held();
-- Filling it may fail otherwise.
BEGIN;
DECLARE held NO SCROLL CURSOR WITH HOLD FOR
    SELECT distlock_acquire('held/' || i) > 0, 1 / (3 - i) FROM generate_series(1, 3) AS i;
FETCH 1 FROM held;
COMMIT;
SELECT pg_temp.held();
BEGIN;
DECLARE held NO SCROLL CURSOR WITH HOLD FOR
    SELECT i, distlock_acquire('held/' || i) > 0 FROM generate_series(1, 3) AS i;
FETCH 1 FROM held;
ROLLBACK;
SELECT pg_temp.held();
-- Transaction scope: gone with the transaction that filled it
BEGIN;
DECLARE held NO SCROLL CURSOR WITH HOLD FOR
    SELECT i, distlock_acquire('held/' || i, scope => 'transaction') > 0 FROM generate_series(1, 3) AS i;
COMMIT;
SELECT pg_temp.held();
FETCH ALL FROM held;
CLOSE held;
-- A release by it
SELECT distlock_acquire('a') AS token \gset
BEGIN;
DECLARE held NO SCROLL CURSOR WITH HOLD FOR SELECT distlock_release('a', :token);
COMMIT;
FETCH ALL FROM held;
SELECT pg_temp.held();
CLOSE held;

-- Each row belongs to the savepoint in which it was fetched.
BEGIN;
DECLARE outer_cursor CURSOR FOR
    SELECT i, distlock_acquire('row/' || i) > 0 FROM generate_series(1, 3) AS i;
FETCH 1 FROM outer_cursor;
SAVEPOINT s;
FETCH 1 FROM outer_cursor;
SELECT pg_temp.held();
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.held();
FETCH 1 FROM outer_cursor;
SELECT pg_temp.held();
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

-- A cursor that is closed has acquired what it has acquired.
BEGIN;
DECLARE closed CURSOR FOR
    SELECT i, distlock_acquire('row/' || i) > 0 FROM generate_series(1, 3) AS i;
FETCH 1 FROM closed;
CLOSE closed;
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

--
-- Isolation levels: nothing here looks at snapshots.
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM granted;
SELECT distlock_acquire('a') AS token \gset
SELECT distlock_check('a', :token), distlock_renew('a', :token) > clock_timestamp(), pg_temp.held();
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM granted;
SELECT distlock_try_acquire('a') IS NULL, distlock_release('a', :token), distlock_acquire('b') > :token;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT distlock_acquire('a') > :token, distlock_force_release('b');
ROLLBACK;
SELECT pg_temp.held();
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT distlock_acquire('a') > :token, distlock_force_release('b');
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

--
-- Two-phase commit: what a prepared transaction acquired or released could
-- not be undone.  Refused whether or not the server allows prepared
-- transactions at all.
--
BEGIN;
SELECT distlock_acquire('a') > 0;
PREPARE TRANSACTION 'regress_distlock';
SELECT pg_temp.held();
SELECT distlock_acquire('a') AS token \gset
BEGIN;
SELECT distlock_release('a', :token);
PREPARE TRANSACTION 'regress_distlock';
SELECT distlock_check('a', :token);
BEGIN;
SELECT distlock_force_release('a');
PREPARE TRANSACTION 'regress_distlock';
SELECT distlock_check('a', :token);
SELECT pg_temp.held();
CALL pg_temp.clear();

--
-- EXPLAIN and PREPARE acquire nothing; EXPLAIN ANALYZE and EXECUTE do.
--
\o /dev/null
EXPLAIN SELECT distlock_acquire('a');
\o
PREPARE take AS SELECT distlock_acquire($1) > 0;
SELECT pg_temp.held();
EXECUTE take('a');
EXECUTE take('b');
\o /dev/null
EXPLAIN ANALYZE SELECT distlock_acquire('c');
\o
SELECT pg_temp.held();
CALL pg_temp.clear();
SELECT pg_temp.held();
