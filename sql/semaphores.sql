--
-- Counting semaphores: max_holders
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

CREATE FUNCTION pg_temp.permits(lock text) RETURNS bigint
LANGUAGE sql AS $$ SELECT count(*) FROM distlock_leases WHERE name = lock $$;

-- As many as that, each under a token of its own, and no more.
SELECT distlock_acquire('s', max_holders => 3) AS a, distlock_acquire('s', max_holders => 3) AS b,
    distlock_try_acquire('s', max_holders => 3) AS c \gset
SELECT :a < :b AND :b < :c, pg_temp.permits('s');
SELECT distlock_try_acquire('s', max_holders => 3) IS NULL;
SELECT pg_temp.error_of('SELECT distlock_acquire(''s'', max_holders => 3, wait => ''10 ms'')');
SELECT distlock_check('s', :a), distlock_check('s', :b), distlock_check('s', :c);
-- Whichever is given back makes room for one.
SELECT distlock_release('s', :b);
SELECT distlock_try_acquire('s', max_holders => 3) AS d \gset
SELECT :d > :c, distlock_try_acquire('s', max_holders => 3) IS NULL, distlock_check('s', :b), distlock_renew('s', :a) > now();

-- The limit stands as long as somebody holds the lock.
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_acquire(''s'', max_holders => 4)'),
    ('SELECT distlock_try_acquire(''s'', max_holders => 2)'),
    ('SELECT distlock_try_acquire(''s'', max_holders => 1)'),
    ('SELECT distlock_acquire(''s'')'),
    ('SELECT distlock_acquire(''s'', mode => ''shared'')'),
    ('SELECT distlock_try_acquire_all(''{other,s}'', max_holders => 2)'),
    ('SELECT distlock_try_acquire_all(''{other,s}'')'),
    ('CALL distlock_lock(''s'', max_holders => 5)')) AS s (statement);
SELECT name FROM distlock_leases WHERE name <> 's';
SELECT distlock_release('s', :a), distlock_release('s', :c);
SELECT left(pg_temp.error_of('SELECT distlock_acquire(''s'', max_holders => 2)'), 5);
SELECT distlock_release('s', :d);
-- Then it is a lock like any other.
SELECT distlock_acquire('s', max_holders => 2) AS a \gset
SELECT distlock_release('s', :a);
SELECT distlock_acquire('s', mode => 'shared') > 0, distlock_try_acquire('s') IS NULL;
BEGIN;
SELECT distlock_acquire('t') AS a, distlock_acquire('u', mode => 'shared') AS b \gset
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_acquire(''t'', max_holders => 1)'),
    ('SELECT distlock_try_acquire(''u'', max_holders => 9, mode => ''shared'')')) AS s (statement);
COMMIT;
CALL pg_temp.clear();

-- What mode is given makes no difference.
SELECT distlock_acquire('s', max_holders => 2, mode => 'exclusive') > 0, distlock_acquire('s', max_holders => 2, mode => 'shared') > 0,
    distlock_try_acquire('s', max_holders => 2, mode => 'exclusive') IS NULL;
CALL pg_temp.clear();

-- One holder at once
SELECT distlock_acquire('s', max_holders => 1) > 0, distlock_try_acquire('s', max_holders => 1) IS NULL;
CALL pg_temp.clear();

-- A permit expires by itself, and that takes its limit along.
SELECT distlock_acquire('s', max_holders => 2, ttl => '1 ms') > 0, distlock_acquire('s', max_holders => 2) > 0;
SELECT distlock_acquire('s', max_holders => 2, wait => '1 min') > 0, distlock_try_acquire('s', max_holders => 2) IS NULL;
CALL pg_temp.clear();
SELECT distlock_acquire('s', max_holders => 2, ttl => '1 us') > 0;
SELECT pg_sleep(0.001);
SELECT distlock_acquire('s', max_holders => 7) > 0;
CALL pg_temp.clear();

-- Transactions: undone at once, released at commit.
BEGIN;
SELECT distlock_acquire('s', max_holders => 2) > 0;
SAVEPOINT s;
SELECT distlock_acquire('s', max_holders => 2) > 0, distlock_try_acquire('s', max_holders => 2) IS NULL;
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.permits('s'), distlock_try_acquire('s', max_holders => 2) > 0;
ROLLBACK;
SELECT pg_temp.permits('s'), distlock_acquire('s') > 0;
CALL pg_temp.clear();
SELECT distlock_acquire('s', max_holders => 2) AS a \gset
BEGIN;
SELECT distlock_release('s', :a);
-- There is room for another, but the rule is the same for every lock.
SELECT pg_temp.error_of('SELECT distlock_acquire(''s'', max_holders => 2)');
ROLLBACK;
SELECT distlock_check('s', :a);
DO $$
BEGIN
    PERFORM distlock_acquire('s', max_holders => 2);
    RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
    PERFORM distlock_acquire('s', max_holders => 2);
END $$;
SELECT pg_temp.permits('s');
CALL pg_temp.clear();

-- The other scopes
BEGIN;
SELECT distlock_acquire('s', max_holders => 3, scope => 'transaction') > 0, distlock_acquire('s', max_holders => 3, scope => 'session') > 0,
    distlock_acquire('s', max_holders => 3, durable => false) > 0, distlock_try_acquire('s', max_holders => 3) IS NULL;
COMMIT;
SELECT scope FROM distlock_leases ORDER BY token;
DISCARD ALL;
SELECT scope FROM distlock_leases ORDER BY token;
SELECT distlock_force_release('s');

-- Forced, all go at once.
SELECT count(distlock_acquire('s', max_holders => 100)) FROM generate_series(1, 100);
SELECT distlock_try_acquire('s', max_holders => 100) IS NULL;
SELECT distlock_force_release('s');
SELECT count(*) FROM distlock_leases;

-- A guard needs the permit only, not those of others.
SELECT distlock_acquire('s', max_holders => 2) AS a, distlock_acquire('s', max_holders => 2) AS b \gset
BEGIN;
SELECT distlock_guard('s', :a);
COMMIT;
BEGIN;
SELECT distlock_guard('s', :b);
SELECT distlock_release('s', :a);
COMMIT;
SELECT distlock_release('s', :b);
SELECT count(*) FROM distlock_leases;
