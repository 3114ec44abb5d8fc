--
-- distlock_guard(): the transaction commits only if its leases are live then.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

-- Lets a lease of this session expire.
CREATE FUNCTION pg_temp.lose(lock text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM distlock_renew(name, token, '1 us') FROM distlock_leases WHERE name = lock;
    WHILE EXISTS (SELECT FROM distlock_leases WHERE name = lock) LOOP
        PERFORM pg_sleep(0.001);
    END LOOP;
END $$;

-- Acquires a lock and guards the transaction by the lease.
CREATE FUNCTION pg_temp.acquire_guarded(name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM distlock_guard(name, distlock_acquire(name));
END $$;

-- What has been written, and forget it.
CREATE TEMP TABLE done (what text);
CREATE FUNCTION pg_temp.done() RETURNS text
LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM done RETURNING what)
    SELECT coalesce(string_agg(what, ', ' ORDER BY what), 'nothing') FROM gone
$$;

-- At COMMIT, error_of() cannot show the error: tokens differ.
\set VERBOSITY sqlstate
\set SHOW_CONTEXT never

--
-- The main job
--
SELECT distlock_acquire('a') AS a \gset
BEGIN;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('work');
SELECT name, pins FROM distlock_leases;
COMMIT;
SELECT pg_temp.done(), distlock_check('a', :a), pins FROM distlock_leases;
-- A guard holds for its transaction only.
SELECT distlock_guard('a', :a);
BEGIN;
SELECT pg_temp.lose('a');
INSERT INTO done VALUES ('unguarded');
COMMIT;
SELECT pg_temp.done();

--
-- Refused at once
--
SELECT distlock_acquire('a') AS a \gset
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_guard(NULL, 1)'),
    ('SELECT distlock_guard(''a'', NULL)'),
    ('SELECT distlock_guard('''', 1)'),
    ('SELECT distlock_guard(repeat(''n'', 256), 1)'),
    ('SELECT distlock_guard(''a'', 0)'),
    ('SELECT distlock_guard(''nobody'', 1)'),
    (format('SELECT distlock_guard(''b'', %s)', :a)),
    (format('SELECT distlock_guard(''a'', %s)', :a - 1)),
    (format('SELECT distlock_guard(''a'', %s)', :a + 1))) AS s (statement);
-- Released in this transaction
BEGIN;
SAVEPOINT s;
SELECT distlock_release('a', :a);
SELECT pg_temp.error_of(format('SELECT distlock_guard(''a'', %s)', :a));
ROLLBACK TO SAVEPOINT s;
SELECT distlock_guard('a', :a);
COMMIT;
-- Released before
SELECT distlock_release('a', :a);
SELECT pg_temp.error_of(format('SELECT distlock_guard(''a'', %s)', :a));
-- Expired, and again when somebody else has the lock
SELECT distlock_acquire('a') AS a \gset
SELECT pg_temp.lose('a');
SELECT pg_temp.error_of(format('SELECT distlock_guard(''a'', %s)', :a));
SELECT distlock_acquire('a', holder => 'successor') > :a;
SELECT pg_temp.error_of(format('SELECT distlock_guard(''a'', %s)', :a));
CALL pg_temp.clear();

--
-- Refused at commit
--
SELECT distlock_acquire('a') AS a \gset
SELECT distlock_acquire('b') AS b \gset
BEGIN;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('stale');
SELECT pg_temp.lose('a');
COMMIT;
SELECT regexp_replace(:'LAST_ERROR_MESSAGE', '\d+', 'N');
SELECT pg_temp.done();
-- ... in its own transaction, as each statement is without BEGIN
WITH guarded AS MATERIALIZED (SELECT distlock_guard('b', :b)),
    late AS MATERIALIZED (SELECT pg_temp.lose('b') FROM guarded)
INSERT INTO done SELECT 'stale' FROM late;
SELECT pg_temp.done();
-- Also when somebody holds the lock anew by then
SELECT distlock_acquire('a') AS a \gset
BEGIN;
SELECT distlock_guard('a', :a);
SELECT pg_temp.lose('a');
SELECT distlock_acquire('a') > :a;
COMMIT;
SELECT count(*) FROM distlock_leases;
-- One of several is enough; the others, pinned or not, are what they were.
SELECT distlock_acquire('a') AS a \gset
SELECT distlock_acquire('b') AS b \gset
SELECT distlock_acquire('c') AS c \gset
BEGIN;
SELECT distlock_guard('a', :a), distlock_guard('b', :b), distlock_guard('c', :c);
SELECT pg_temp.lose('b');
COMMIT;
SELECT name, pins, distlock_check(name, token) FROM distlock_leases ORDER BY name;
SELECT distlock_release('a', :a), distlock_release('c', :c);
SELECT distlock_try_acquire('a') > :c, distlock_try_acquire('b') > :c, distlock_try_acquire('c') > :c;
CALL pg_temp.clear();

-- A transaction may release the lease that guards it, or be guarded by one that
-- it has acquired, whatever the scope.
SELECT distlock_acquire('a') AS a \gset
BEGIN;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('work');
SELECT distlock_release('a', :a);
COMMIT;
SELECT pg_temp.done(), count(*) FROM distlock_leases;
BEGIN;
SELECT pg_temp.acquire_guarded('a');
INSERT INTO done VALUES ('work');
SELECT distlock_force_release('a');
COMMIT;
SELECT pg_temp.done(), count(*) FROM distlock_leases;
BEGIN;
SELECT scope, distlock_guard('a/' || scope, distlock_acquire('a/' || scope, scope => scope))
FROM (VALUES ('lease'), ('session'), ('transaction')) AS s (scope);
COMMIT;
SELECT name, pins FROM distlock_leases ORDER BY name;
CALL pg_temp.clear();
-- ... and rolls back as any other.
SELECT distlock_acquire('a') AS a \gset
BEGIN;
SELECT distlock_guard('a', :a);
SELECT pg_temp.lose('a');
ROLLBACK;
SELECT distlock_acquire('a') AS a \gset
BEGIN;
SELECT distlock_guard('a', :a);
SELECT 1/0;
COMMIT;
SELECT name, pins, distlock_check(name, token) FROM distlock_leases;
CALL pg_temp.clear();

-- A renewal in between is fine.
SELECT distlock_acquire('a', ttl => '1 min') AS a \gset
BEGIN;
SELECT distlock_guard('a', :a);
SELECT distlock_renew('a', :a, '2 min') > clock_timestamp();
COMMIT;
SELECT name, ttl, pins FROM distlock_leases;
CALL pg_temp.clear();

--
-- Shared leases
--
SELECT distlock_acquire('a', mode => 'shared') AS one \gset
SELECT distlock_acquire('a', mode => 'shared') AS two \gset
BEGIN;
SELECT distlock_guard('a', :one), distlock_guard('a', :two);
INSERT INTO done VALUES ('both');
COMMIT;
-- Each is a lease of its own.
BEGIN;
SELECT distlock_guard('a', :one);
SELECT distlock_renew('a', :two, '1 us') IS NOT NULL;
INSERT INTO done VALUES ('one');
COMMIT;
SELECT distlock_acquire('a', mode => 'shared') AS two \gset
BEGIN;
SELECT distlock_guard('a', :one), distlock_guard('a', :two);
SELECT distlock_renew('a', :two, '1 us') IS NOT NULL;
INSERT INTO done VALUES ('stale');
COMMIT;
SELECT pg_temp.done(), distlock_check('a', :one), distlock_check('a', :two);
CALL pg_temp.clear();

--
-- Savepoints: a guard goes with the one in which it was made.
--
SELECT distlock_acquire('a') AS a \gset
SELECT distlock_acquire('b') AS b \gset
BEGIN;
SELECT distlock_guard('a', :a);
SAVEPOINT s;
SELECT distlock_guard('b', :b);
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('rolled back');
COMMIT;
SELECT pg_temp.done(), distlock_check('a', :a);
SELECT distlock_acquire('b') AS b \gset
BEGIN;
SAVEPOINT s;
SELECT distlock_guard('b', :b);
RELEASE SAVEPOINT s;
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('released');
COMMIT;
-- Nested: what an inner one has passed on goes with the outer one.
SELECT distlock_acquire('b') AS b \gset
BEGIN;
SAVEPOINT outer_one;
SAVEPOINT inner_one;
SELECT distlock_guard('b', :b);
RELEASE SAVEPOINT inner_one;
ROLLBACK TO SAVEPOINT outer_one;
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('nested');
COMMIT;
-- One made before stays, though made again within.
SELECT distlock_acquire('b') AS b \gset
BEGIN;
SELECT distlock_guard('b', :b);
SAVEPOINT s;
SELECT distlock_guard('b', :b);
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('made before');
COMMIT;
-- Made again after it has gone
SELECT distlock_acquire('b') AS b \gset
BEGIN;
SAVEPOINT s;
SELECT distlock_guard('b', :b);
ROLLBACK TO SAVEPOINT s;
SELECT distlock_guard('b', :b);
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('made again');
COMMIT;
SELECT pg_temp.done();
-- The lease itself is undone, and the guard with it.
BEGIN;
SAVEPOINT s;
SELECT pg_temp.acquire_guarded('b');
ROLLBACK TO SAVEPOINT s;
INSERT INTO done VALUES ('undone');
COMMIT;
SELECT pg_temp.done(), distlock_check('a', :a), count(*) FROM distlock_leases;
-- A lost lease can be guarded no more, and the transaction can go on.
BEGIN;
SAVEPOINT s;
SELECT distlock_guard('b', 1);
ROLLBACK TO SAVEPOINT s;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('went on');
COMMIT;
SELECT pg_temp.done();
CALL pg_temp.clear();

--
-- Functions, DO and EXCEPTION blocks
--
SELECT pg_temp.acquire_guarded('a');
DO $$
BEGIN
    PERFORM pg_temp.acquire_guarded('b');
    PERFORM pg_temp.lose('b');
    INSERT INTO done VALUES ('stale');
END $$;
DO $$
BEGIN
    BEGIN
        PERFORM pg_temp.acquire_guarded('b');
        PERFORM pg_temp.lose('b');
        RAISE EXCEPTION 'no';
    EXCEPTION WHEN raise_exception THEN
        INSERT INTO done VALUES ('its guard is gone');
    END;
END $$;
DO $$
BEGIN
    BEGIN
        PERFORM pg_temp.acquire_guarded('b');
    EXCEPTION WHEN raise_exception THEN
        NULL;
    END;
    PERFORM pg_temp.lose('b');
    INSERT INTO done VALUES ('stale');
END $$;
DO $$
BEGIN
    BEGIN
        PERFORM distlock_guard('b', 1);
    EXCEPTION WHEN SQLSTATE 'LK001' THEN
        INSERT INTO done VALUES ('caught');
    END;
END $$;
SELECT pg_temp.done(), name, pins FROM distlock_leases ORDER BY name;
CALL pg_temp.clear();

-- Procedures that end transactions
CREATE PROCEDURE pg_temp.stages() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_temp.acquire_guarded('a');
    INSERT INTO done VALUES ('first');
    COMMIT;
    PERFORM pg_temp.lose('a');
    INSERT INTO done VALUES ('second');
    COMMIT;
    PERFORM pg_temp.acquire_guarded('a');
    PERFORM pg_temp.lose('a');
    INSERT INTO done VALUES ('third');
    ROLLBACK;
    PERFORM pg_temp.acquire_guarded('a');
    PERFORM pg_temp.lose('a');
    INSERT INTO done VALUES ('fourth');
    COMMIT;
    INSERT INTO done VALUES ('fifth');
END $$;
CALL pg_temp.stages();
SELECT pg_temp.done();

-- AND CHAIN
SELECT distlock_acquire('a') AS a \gset
BEGIN;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('first');
COMMIT AND CHAIN;
SELECT pg_temp.lose('a');
INSERT INTO done VALUES ('second');
COMMIT AND CHAIN;
SELECT pg_temp.acquire_guarded('a');
SELECT pg_temp.lose('a');
INSERT INTO done VALUES ('third');
COMMIT AND CHAIN;
-- The chain has ended there.
SELECT pg_temp.done();

-- Statements sent as one string are one transaction.
SELECT distlock_acquire('a') AS a \gset
SELECT distlock_guard('a', :a) \; INSERT INTO done VALUES ('stale') \; SELECT pg_temp.lose('a');
SELECT pg_temp.done();

--
-- Cursors and prepared statements
--
SELECT distlock_acquire('a') AS a \gset
SELECT distlock_acquire('b') AS b \gset
PREPARE guard (text, bigint) AS SELECT distlock_guard($1, $2);
BEGIN;
EXECUTE guard('a', :a);
EXECUTE guard('b', :b);
INSERT INTO done VALUES ('both');
COMMIT;
BEGIN;
EXECUTE guard('b', :b);
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('stale');
COMMIT;
DEALLOCATE guard;
-- By EXPLAIN nothing is guarded.
BEGIN;
\o /dev/null
EXPLAIN SELECT distlock_guard('a', :a);
\o
SELECT pg_temp.lose('a');
INSERT INTO done VALUES ('explained');
COMMIT;
SELECT pg_temp.done();

-- A cursor guards by the rows that are fetched.
CREATE TEMP TABLE held AS
SELECT name, distlock_acquire(name) AS token FROM (VALUES ('a'), ('b')) AS s (name);
BEGIN;
DECLARE guards CURSOR FOR SELECT name, distlock_guard(name, token) FROM held ORDER BY name;
FETCH 1 FROM guards;
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('one row');
COMMIT;
UPDATE held SET token = distlock_acquire('b') WHERE name = 'b';
BEGIN;
DECLARE guards CURSOR FOR SELECT name, distlock_guard(name, token) FROM held ORDER BY name;
FETCH 2 FROM guards;
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('two rows');
COMMIT;
-- A holdable one is filled at commit, before the leases are looked at.
UPDATE held SET token = distlock_acquire('b') WHERE name = 'b';
BEGIN;
DECLARE guards NO SCROLL CURSOR WITH HOLD FOR
    SELECT name, distlock_guard(name, token) FROM held ORDER BY name;
INSERT INTO done VALUES ('holdable');
COMMIT;
FETCH ALL FROM guards;
CLOSE guards;
BEGIN;
DECLARE guards NO SCROLL CURSOR WITH HOLD FOR
    SELECT name, distlock_guard(name, token) FROM held ORDER BY name;
SELECT pg_temp.lose('b');
INSERT INTO done VALUES ('holdable');
COMMIT;
SELECT pg_temp.done();
CALL pg_temp.clear();

--
-- At commit: deferred triggers, ON COMMIT
--
CREATE FUNCTION pg_temp.guard_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM distlock_guard(NEW.lock, NEW.token);
    INSERT INTO done VALUES ('late for ' || NEW.lock);
    RETURN NULL;
END $$;
CREATE FUNCTION pg_temp.lose_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_temp.lose(NEW.lock);
    RETURN NULL;
END $$;
CREATE TEMP TABLE late (lock text, token bigint) ON COMMIT DELETE ROWS;
CREATE CONSTRAINT TRIGGER guard_late AFTER INSERT ON late
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.guard_late();
SELECT distlock_acquire('a') AS a \gset
BEGIN;
INSERT INTO late VALUES ('a', :a);
COMMIT;
SELECT pg_temp.done(), count(*) FROM late;
BEGIN;
INSERT INTO late VALUES ('a', :a);
SELECT pg_temp.lose('a');
COMMIT;
SELECT pg_temp.done();
-- A lease lost by a trigger that comes after the guard
CREATE CONSTRAINT TRIGGER lose_late AFTER INSERT ON late
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.lose_late();
SELECT distlock_acquire('a') AS a \gset
BEGIN;
INSERT INTO late VALUES ('a', :a);
COMMIT;
SELECT pg_temp.done();

--
-- READ ONLY
--
SELECT distlock_acquire('a') AS a \gset
BEGIN READ ONLY;
SELECT distlock_guard('a', :a);
COMMIT;
BEGIN READ ONLY;
SELECT distlock_guard('a', :a);
SELECT pg_temp.lose('a');
COMMIT;

--
-- REPEATABLE READ and SERIALIZABLE: the lease must be older than the snapshot,
-- which else may miss what the lease's predecessors wrote.
--
SELECT distlock_acquire('a') AS a \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('repeatable read');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM done;
-- A renewal makes the lease no younger.
SELECT distlock_renew('a', :a) > clock_timestamp();
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('serializable');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT distlock_guard('a', :a);
COMMIT;
START TRANSACTION;
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('set transaction');
COMMIT AND CHAIN;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('chained');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT distlock_guard('a', :a);
INSERT INTO done VALUES ('stale');
SELECT pg_temp.lose('a');
COMMIT;
SELECT pg_temp.done();

-- Acquired in the transaction
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT distlock_acquire('a') AS a \gset
SELECT pg_temp.error_of(format('SELECT distlock_guard(''a'', %s)', :a));
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT distlock_acquire('a') AS a \gset
SAVEPOINT s;
SELECT distlock_guard('a', :a);
ROLLBACK TO SAVEPOINT s;
-- It can do all else with it.
SELECT distlock_renew('a', :a) > clock_timestamp(), distlock_check('a', :a), distlock_release('a', :a);
COMMIT;
-- ... where READ COMMITTED lets it
BEGIN;
SELECT count(*) FROM done;
SELECT pg_temp.acquire_guarded('a');
COMMIT;
CALL pg_temp.clear();

-- Without BEGIN there is only the snapshot to tell.
SET default_transaction_isolation = serializable;
SELECT distlock_acquire('a') AS a \gset
SELECT distlock_guard('a', :a);
DO $$
BEGIN
    PERFORM distlock_guard(name, token) FROM distlock_leases;
    INSERT INTO done VALUES ('older lease');
END $$;
-- What a savepoint has written in vain is a transaction that the snapshot does
-- not know, as anybody's would be.
DO $$
BEGIN
    BEGIN
        INSERT INTO done VALUES ('unknown');
        RAISE EXCEPTION 'no';
    EXCEPTION WHEN raise_exception THEN
        NULL;
    END;
    PERFORM distlock_guard('a', token) FROM distlock_leases;
    PERFORM pg_temp.acquire_guarded('b');
END $$;
CREATE PROCEDURE pg_temp.serializable_stages() LANGUAGE plpgsql AS $$
DECLARE
    b bigint;
BEGIN
    INSERT INTO done VALUES ('acquired');
    b := distlock_acquire('b');
    COMMIT;
    PERFORM distlock_guard('b', b);
    INSERT INTO done VALUES ('guarded');
    COMMIT;
    PERFORM pg_temp.lose('b');
    COMMIT;
END $$;
CALL pg_temp.serializable_stages();
-- A BEGIN in the midst of a transaction makes its snapshot no younger.
CREATE PROCEDURE pg_temp.acquire_late() LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        INSERT INTO done VALUES ('unknown');
        RAISE EXCEPTION 'no';
    EXCEPTION WHEN raise_exception THEN
        PERFORM distlock_acquire('b');
    END;
END $$;
CALL pg_temp.acquire_late() \; BEGIN \; SELECT distlock_guard(name, token) FROM distlock_leases WHERE name = 'b';
ROLLBACK;
RESET default_transaction_isolation;
SELECT pg_temp.done();
CALL pg_temp.clear();

--
-- Two thousand guards; made twice they count once.
--
CREATE TEMP TABLE many AS
SELECT 'many/' || i AS name, distlock_acquire('many/' || i) AS token FROM generate_series(1, 2000) AS i;
SELECT guards AS before FROM distlock_stats \gset
BEGIN;
SELECT count(distlock_guard(name, token)) FROM many;
SELECT count(distlock_guard(name, token)) FROM many;
SELECT guards - :before BETWEEN 2000 AND 3999 FROM distlock_stats;
INSERT INTO done VALUES ('many');
COMMIT;
SELECT pg_temp.done();
-- Any one of them counts.
BEGIN;
SELECT count(distlock_guard(name, token)) FROM many;
SAVEPOINT s;
SELECT pg_temp.lose('many/1999');
INSERT INTO done VALUES ('stale');
COMMIT;
-- As many that a savepoint takes along
BEGIN;
SELECT distlock_guard(name, token) FROM many WHERE name = 'many/1';
SAVEPOINT s;
SELECT count(distlock_guard(name, token)) FROM many WHERE name <> 'many/1999';
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.lose('many/2000');
INSERT INTO done VALUES ('one');
COMMIT;
BEGIN;
SELECT count(distlock_guard(name, token)) FROM many WHERE name NOT IN ('many/1999', 'many/2000');
INSERT INTO done VALUES ('again');
COMMIT;
SELECT pg_temp.done();
SELECT count(*), sum(pins) FROM distlock_leases;
CALL pg_temp.clear();

-- Whatever was refused has left nothing behind.
SELECT count(*) FROM distlock_leases;
