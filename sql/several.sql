--
-- Several locks at once: distlock_acquire_all() and its fellows
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

-- One token for all, greater than any before.
SELECT distlock_acquire('before') AS before \gset
SELECT distlock_acquire_all('{b,a,c,a}', holder => 'h') AS token \gset
SELECT :token > :before;
SELECT name, token = :token, mode, scope, holder, ttl, durable FROM distlock_leases ORDER BY name;
SELECT distlock_check_all('{a,b,c}', :token), distlock_check_all('{c,b,a,a}', :token), distlock_check_all('{a}', :token),
    distlock_check('b', :token), distlock_check_all('{a,b,c,before}', :token), distlock_check_all('{a}', :before);
-- All or none
SELECT distlock_try_acquire_all('{free,c}') IS NULL, distlock_try_acquire_all('{c,free}') IS NULL, distlock_try_acquire('b') IS NULL;
SELECT pg_temp.error_of('SELECT distlock_acquire_all(''{free,b}'', wait => ''10 ms'')');
SELECT pg_temp.error_of('SELECT distlock_acquire_all(''{c,free,b}'', wait => ''0'')');
SELECT pg_temp.held();
SELECT count(*) FROM distlock_waiters;

-- Renewed together or alone
SELECT distlock_renew_all('{c,a}', :token, '2 h') BETWEEN now() + interval '119 min' AND now() + interval '121 min';
SELECT name, ttl FROM distlock_images WHERE token = :token ORDER BY name;
SELECT distlock_renew('b', :token, '3 h') > now() + interval '2 h';
-- The earliest expiry counts.
SELECT distlock_renew_all('{a,b,c}', :token) BETWEEN now() + interval '119 min' AND now() + interval '121 min';
SELECT name, ttl, renewals FROM distlock_leases WHERE token = :token ORDER BY name;
SELECT pg_temp.error_of(format('SELECT distlock_renew_all(''{a,before}'', %s)', :token));
-- None is renewed unless all are there.
SELECT name, renewals FROM distlock_leases WHERE token = :token ORDER BY name;

-- Released alone; the others stay.
SELECT distlock_release('b', :token);
SELECT pg_temp.held(), distlock_check_all('{a,b,c}', :token), distlock_check_all('{a,c}', :token), distlock_renew_all('{c,a}', :token) > now();
SELECT pg_temp.error_of(format('SELECT distlock_renew_all(''{a,b}'', %s)', :token));
SELECT pg_temp.error_of(format('SELECT distlock_guard_all(''{a,b}'', %s)', :token));
SELECT distlock_acquire('b') > :token;
-- False if any is not held under the token; the others are released.
SELECT distlock_release_all('{a,b,c}', :token), distlock_release_all('{a,c}', :token);
SELECT pg_temp.held();
CALL pg_temp.clear();
SELECT distlock_acquire_all('{a,b}') AS token \gset
SELECT distlock_release_all('{b,a,b}', :token);
SELECT distlock_release_all('{a,b}', :token), pg_temp.held();

-- Forced, expired and lost one by one
SELECT distlock_acquire_all('{a,b,c}') AS token \gset
SELECT distlock_force_release('a');
SELECT distlock_renew('b', :token, '1 us') > '-infinity';
SELECT pg_sleep(0.001);
SELECT pg_temp.held(), distlock_check_all('{a,b,c}', :token), distlock_check('c', :token);
SELECT pg_temp.error_of(format('SELECT distlock_renew_all(''{b,c}'', %s)', :token));
SELECT distlock_release_all('{a,b,c}', :token), pg_temp.held();
SELECT pg_temp.held();

-- Shared ones go together.
SELECT distlock_acquire_all('{a,b}', mode => 'shared') AS s, distlock_acquire_all('{b,c}', mode => 'shared') AS t,
    distlock_acquire('b', mode => 'shared') AS u \gset
SELECT distlock_try_acquire_all('{x,b}') IS NULL, distlock_try_acquire_all('{a,b,c}', mode => 'shared') > 0;
CALL pg_temp.clear();

-- Permits of several semaphores
SELECT distlock_acquire_all('{a,b}', max_holders => 2) AS s, distlock_acquire('b', max_holders => 2) AS t \gset
SELECT distlock_try_acquire_all('{a,b}', max_holders => 2) IS NULL, distlock_try_acquire('a', max_holders => 2) > 0;
SELECT pg_temp.error_of('SELECT distlock_acquire_all(''{free,a}'')');
CALL pg_temp.clear();

--
-- Transactions
--
BEGIN;
SELECT distlock_acquire_all('{a,b}') > 0;
SAVEPOINT s;
SELECT distlock_acquire_all('{c,d}') AS token \gset
SELECT distlock_acquire_all('{e,f}', scope => 'transaction') > 0;
SELECT pg_temp.held();
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.held(), distlock_check_all('{c,d}', :token);
SELECT distlock_acquire_all('{c,d}') > :token, distlock_acquire_all('{g,h}', scope => 'transaction') > 0;
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();
BEGIN;
SELECT distlock_acquire_all('{a,b}') > 0;
ROLLBACK;
SELECT pg_temp.held();
SELECT distlock_acquire_all('{a,b}'), 1 / (1 - pg_backend_pid() / pg_backend_pid());
SELECT pg_temp.held();
DO $$
BEGIN
    PERFORM distlock_acquire_all('{a,b,c}');
    RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
    PERFORM distlock_acquire_all('{c,b}');
END $$;
SELECT pg_temp.held();
CALL pg_temp.clear();

-- A release takes effect at commit, and bars the transaction from the lock.
SELECT distlock_acquire_all('{a,b}') AS token \gset
BEGIN;
SELECT distlock_release('b', :token), distlock_check_all('{a,b}', :token), distlock_check('a', :token);
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_acquire_all(''{c,b}'')'), ('SELECT distlock_try_acquire_all(''{a,b,d}'')'),
    (format('SELECT distlock_renew_all(''{a,b}'', %s)', :token)),
    (format('SELECT distlock_guard_all(''{a,b}'', %s)', :token))) AS s (statement);
SELECT distlock_release_all('{a,b}', :token), distlock_release_all('{a,b}', :token);
ROLLBACK;
SELECT distlock_check_all('{a,b}', :token);
BEGIN;
SAVEPOINT s;
SELECT distlock_release_all('{a,b}', :token);
ROLLBACK TO SAVEPOINT s;
SELECT distlock_check_all('{a,b}', :token), distlock_release('b', :token);
COMMIT;
SELECT pg_temp.held();
CALL pg_temp.clear();

-- A guard on all is lost with any of them.
CREATE TEMP TABLE written (id int);
SELECT distlock_acquire_all('{a,b}') AS token \gset
BEGIN;
SELECT distlock_guard_all('{a,b,a}', :token);
INSERT INTO written VALUES (1);
COMMIT;
BEGIN;
SELECT distlock_guard_all('{a,b}', :token);
INSERT INTO written VALUES (2);
SELECT distlock_renew('b', :token, '1 us') > '-infinity', pg_sleep(0.001);
\set VERBOSITY sqlstate
COMMIT;
\set VERBOSITY default
SELECT string_agg(id::text, ' ') FROM written;
-- A guard that fails for one leaves none behind.
BEGIN;
SAVEPOINT s;
SELECT left(pg_temp.error_of(format('SELECT distlock_guard_all(''{a,b}'', %s)', :token)), 5);
SELECT distlock_renew('a', :token, '1 us') > '-infinity', pg_sleep(0.001);
INSERT INTO written VALUES (3);
COMMIT;
SELECT string_agg(id::text, ' ') FROM written;
CALL pg_temp.clear();

-- The other scopes
SELECT distlock_acquire_all('{a,b}', scope => 'session') > 0, distlock_acquire_all('{c,d}', scope => 'transaction', ttl => '1 min') > 0,
    distlock_acquire_all('{e,f}', durable => false) > 0, pg_temp.held();
SELECT name, scope, durable, ttl FROM distlock_leases ORDER BY name;
SELECT i.name FROM distlock_images i JOIN distlock_leases l USING (name, token);
DISCARD ALL;
SELECT string_agg(name, ', ' ORDER BY name) FROM distlock_leases;
SELECT distlock_release_all(array_agg(name), token) FROM distlock_leases GROUP BY token;

-- 64 at once, all under one token and all stored
SELECT distlock_acquire_all(array_agg('n/' || i)) AS token FROM generate_series(1, 64) AS i \gset
SELECT count(*), count(DISTINCT token) FROM distlock_leases JOIN distlock_images USING (name, token) WHERE token = :token;
SELECT distlock_try_acquire_all(array_agg('n/' || i)) IS NULL FROM generate_series(64, 127) AS i;
SELECT distlock_release_all(array_agg('n/' || i), :token) FROM generate_series(1, 64) AS i;
SELECT count(*) FROM distlock_leases;

--
-- No room for all of them: nothing is left behind, and nothing lost.
--
SET client_min_messages = warning;
SET statement_timeout = '5min';
SELECT distlock_acquire_all('{kept/a,kept/b}', ttl => '1 h') AS token \gset
DO $$
DECLARE
    n int := 64;
    i int := 0;
BEGIN
    WHILE n > 0 LOOP
        BEGIN
            PERFORM distlock_acquire_all((SELECT array_agg('full/' || i || '/' || j) FROM generate_series(1, n) AS j), ttl => '1 h', durable => false);
            i := i + 1;
        EXCEPTION WHEN configuration_limit_exceeded THEN
            n := n / 2;
        END;
    END LOOP;
END $$;
\set VERBOSITY sqlstate
SELECT distlock_acquire_all('{a,b}');
SELECT distlock_release(name, token) FROM distlock_leases WHERE name = 'full/0/1';
SELECT distlock_acquire_all('{a,b}');
SELECT distlock_try_acquire_all('{b,a,c}');
SELECT distlock_acquire_all('{kept/a,a}', wait => '1 s');
\set VERBOSITY default
SELECT name FROM distlock_leases WHERE name NOT LIKE 'full/%' ORDER BY name;
SELECT distlock_check_all('{kept/a,kept/b}', :token), distlock_renew_all('{kept/b,kept/a}', :token) > now();
SELECT distlock_acquire('a') > 0;
SELECT distlock_force_release('a');
SELECT bool_and(distlock_release(name, token)) FROM distlock_leases;
SELECT distlock_acquire_all('{a,b}') AS token \gset
SELECT distlock_release_all('{a,b}', :token);
SELECT count(*) FROM distlock_leases;

-- Two names with the same hash are told apart, under one token as well.
SELECT array_agg('n' || n ORDER BY n) AS twins FROM generate_series(1, 200000) AS n
GROUP BY hashtext('n' || n) HAVING count(*) = 2 LIMIT 1 \gset
SELECT distlock_acquire_all(:'twins', '1 h') AS token \gset
SELECT distlock_release((:'twins'::text[])[1], :token);
SELECT distlock_acquire((:'twins'::text[])[1], durable => false) > :token;
SELECT distlock_check((:'twins'::text[])[1], :token), distlock_check((:'twins'::text[])[2], :token);
SELECT sum(distlock_force_release(name)) FROM unnest(:'twins'::text[]) AS name;
SELECT distlock_acquire_all(:'twins', '1 h') AS token \gset
SELECT distlock_release((:'twins'::text[])[2], :token);
SELECT distlock_acquire((:'twins'::text[])[2], durable => false) > :token;
SELECT distlock_check((:'twins'::text[])[1], :token), distlock_check((:'twins'::text[])[2], :token);
SELECT sum(distlock_force_release(name)) FROM unnest(:'twins'::text[]) AS name;
