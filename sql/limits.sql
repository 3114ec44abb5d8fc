--
-- distlock.max_leases: when memory is full, requests fail and no lease is lost.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin
SET distlock.default_ttl = '1h';
SET statement_timeout = '5min';		-- fail rather than wait for a lease for long

-- Acquires lock upon lock, until it fails, and tells whether the limit was
-- kept.  (Leases of other databases count, too.)
CREATE FUNCTION pg_temp.fill(prefix text, OUT granted bigint, OUT told text)
LANGUAGE plpgsql AS $$
DECLARE
    most bigint := current_setting('distlock.max_leases');
    held bigint := (SELECT count(*) FROM distlock_leases);
    detail text;
    hint text;
BEGIN
    granted := 0;
    LOOP
        PERFORM distlock_acquire(prefix || granted);
        granted := granted + 1;
        IF held + granted > most THEN
            RAISE EXCEPTION '% leases, although the limit is %', held + granted, most;
        END IF;
    END LOOP;
EXCEPTION WHEN configuration_limit_exceeded THEN
    GET STACKED DIAGNOSTICS told = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    told := concat_ws(E'\n  ', SQLSTATE || ': ' || told,
        'detail: ' || replace(detail, most::text, 'max_leases'), 'hint: ' || hint);
END $$;

-- The detail names the limit; fill() shows it without.
\set VERBOSITY terse

-- Leases of transactions before
SELECT count(distlock_acquire('kept/' || i)) FROM generate_series(1, 10) AS i;
SELECT count(distlock_acquire('kept too', mode => 'shared')) FROM generate_series(1, 10);
CREATE TEMP TABLE kept AS SELECT name, token FROM distlock_leases;

-- One statement too greedy: it fails, which undoes its own acquires alone.
SELECT count(distlock_acquire('greedy/' || i))
FROM generate_series(1, current_setting('distlock.max_leases')::int) AS i;
SELECT count(*), bool_and(name LIKE 'kept%') FROM distlock_leases;

-- In a transaction with a savepoint
BEGIN;
SELECT distlock_acquire('before') > 0;
SAVEPOINT s;
SELECT count(distlock_acquire('greedy/' || i))
FROM generate_series(1, current_setting('distlock.max_leases')::int) AS i;
ROLLBACK TO SAVEPOINT s;
SELECT distlock_acquire('after') > 0;
COMMIT;
SELECT name, distlock_release(name, token) FROM distlock_leases
WHERE name IN ('before', 'after') ORDER BY token;

-- It is the last but one request that still fits.
SELECT granted BETWEEN 1 AND current_setting('distlock.max_leases')::int - 20, told FROM pg_temp.fill('a/');
-- The exception block has undone them all.
SELECT count(*) FROM distlock_leases;

-- Fill it for good, one transaction for each lease.
DO $$
BEGIN
    FOR i IN 1..current_setting('distlock.max_leases')::int LOOP
        BEGIN
            PERFORM distlock_acquire('full/' || i);
        EXCEPTION WHEN configuration_limit_exceeded THEN
            EXIT;
        END;
        COMMIT;
    END LOOP;
END $$;
SELECT count(*) > 0 FROM distlock_leases WHERE name LIKE 'full/%';
SELECT distlock_acquire('one too many');
SELECT distlock_try_acquire('one too many');
SELECT distlock_acquire('kept too', mode => 'shared');
-- Those who hold one lose nothing, and can do everything with it.
SELECT count(*) FROM kept WHERE distlock_check(name, token);
SELECT bool_and(distlock_renew(name, token, '2 h') > clock_timestamp()) FROM kept;
SELECT count(*), bool_and(distlock_check(name, token)) FROM distlock_leases WHERE name IN (SELECT name FROM kept);
-- Nobody waits: the lock is taken, or there is no room to wait.
SELECT distlock_try_acquire('kept/1') IS NULL;
SELECT distlock_acquire('kept/1', wait => '1 s');

-- One released makes room for one.
SELECT distlock_release('kept/1', token) FROM kept WHERE name = 'kept/1';
SELECT distlock_acquire('one more') > 0;
SELECT distlock_acquire('one too many');
-- One expired does so, too, swept or not.
SELECT distlock_renew('one more', token, '1 us') IS NOT NULL FROM distlock_leases WHERE name = 'one more';
SELECT distlock_acquire('in its place') > 0;
SELECT distlock_acquire('one too many');
-- And one undone
BEGIN;
SELECT distlock_release('in its place', token) FROM distlock_leases WHERE name = 'in its place';
COMMIT;
BEGIN;
SELECT distlock_acquire('undone') > 0;
ROLLBACK;
SELECT distlock_acquire('in its place') > 0;

-- Release all, and all is as before.
SELECT bool_and(distlock_release(name, token)) FROM distlock_leases;
SELECT count(*) FROM distlock_leases;
SELECT granted BETWEEN 20 AND current_setting('distlock.max_leases')::int FROM pg_temp.fill('b/');
SELECT count(distlock_acquire('c/' || i)) FROM generate_series(1, 100) AS i;
SELECT count(distlock_force_release(name)) FROM distlock_leases;
SELECT count(*) FROM distlock_leases;
