--
-- advisory_key: a lease that takes an advisory lock along.  What other sessions
-- see of it is in test/isolation/specs/bridge.spec.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

-- The advisory locks that this session has
CREATE FUNCTION pg_temp.advisory() RETURNS text
LANGUAGE sql AS $$
    SELECT coalesce(string_agg(format('%s/%s', (classid::bigint << 32) | objid::bigint, mode), ' ' ORDER BY classid, objid, mode), 'none')
    FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
$$;

--
-- Session scope
--
SELECT distlock_acquire('a', scope => 'session', advisory_key => 42) AS token \gset
SELECT pg_temp.advisory();
-- It is the one that pg_advisory_lock(bigint) takes.
SELECT pg_advisory_unlock(42);
SELECT pg_temp.advisory();
SELECT pg_advisory_unlock(42);
SELECT distlock_check('a', :token), distlock_release('a', :token);
SELECT pg_temp.advisory();

-- Given up at release, not before its commit
SELECT distlock_acquire('a', scope => 'session', advisory_key => 9223372036854775807) AS token \gset
BEGIN;
SELECT distlock_release('a', :token), pg_temp.advisory();
ROLLBACK;
SELECT pg_temp.advisory();
BEGIN;
SELECT distlock_release('a', :token);
SELECT pg_temp.advisory();
COMMIT;
SELECT pg_temp.advisory();
-- ... when forced, or released by its token in whatever way
SELECT distlock_acquire('a', scope => 'session', advisory_key => -1) > 0;
SELECT pg_temp.advisory();
SELECT distlock_force_release('a');
SELECT pg_temp.advisory();
SELECT distlock_acquire_all('{a,b}', scope => 'session', advisory_key => -9223372036854775808) AS token \gset
SELECT pg_temp.advisory(), count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT distlock_release('a', :token);
SELECT pg_temp.advisory(), distlock_check('b', :token);
SELECT distlock_release_all('{a,b}', :token);
SELECT pg_temp.advisory();
-- ... when undone
BEGIN;
SELECT distlock_acquire('a', scope => 'session', advisory_key => 1) > 0;
SAVEPOINT s;
SELECT distlock_acquire('b', scope => 'session', advisory_key => 2) > 0;
SELECT pg_temp.advisory();
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.advisory();
SELECT distlock_acquire('b', scope => 'session', advisory_key => 3) > 0;
RELEASE SAVEPOINT s;
SELECT pg_temp.advisory();
ROLLBACK;
SELECT pg_temp.advisory();
SELECT distlock_acquire('a', scope => 'session', advisory_key => 1) / 0;
SELECT pg_temp.advisory();
DO $$
BEGIN
    PERFORM distlock_acquire('a', scope => 'session', advisory_key => 1);
    PERFORM distlock_acquire('b', scope => 'session', advisory_key => 2) / 0;
EXCEPTION WHEN division_by_zero THEN
    PERFORM distlock_acquire('b', scope => 'session', advisory_key => 2);
END $$;
SELECT pg_temp.advisory();
CALL pg_temp.clear();
-- An expired one goes at the end of the next transaction.
SELECT distlock_acquire('a', scope => 'session', advisory_key => 1, ttl => '1 us') > 0;
SELECT pg_sleep(0.001);
SELECT pg_temp.advisory();
-- Renewed, it stays.
SELECT distlock_acquire('a', scope => 'session', advisory_key => 1, ttl => '1 min') AS token \gset
SELECT distlock_renew('a', :token) > now();
SELECT pg_temp.advisory();

-- Two leases with the same key hold it twice, and so does the session itself.
SELECT distlock_acquire('b', scope => 'session', advisory_key => 1) > 0, pg_advisory_lock(1);
SELECT distlock_release('a', :token);
SELECT pg_temp.advisory();
SELECT distlock_force_release('b');
SELECT pg_temp.advisory();
SELECT pg_advisory_unlock(1), pg_temp.advisory();
-- Many more than fit in the first piece of memory
SELECT count(distlock_acquire('many/' || i, scope => 'session', advisory_key => i)) FROM generate_series(1, 200) AS i;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
CALL pg_temp.clear();
SELECT pg_temp.advisory();

-- Shared, unless the lease keeps all others away
SELECT distlock_acquire('s', mode => 'shared', scope => 'session', advisory_key => 1) > 0,
    distlock_acquire('p', max_holders => 2, scope => 'session', advisory_key => 2) > 0,
    distlock_acquire('x', scope => 'session', advisory_key => 3) > 0;
SELECT pg_temp.advisory();
CALL pg_temp.clear();

-- Whoever gets no lease gets no advisory lock.
SELECT distlock_acquire('a') AS token \gset
SELECT distlock_try_acquire('a', scope => 'session', advisory_key => 1) IS NULL, distlock_try_acquire_all('{b,a}', scope => 'session', advisory_key => 1) IS NULL;
\set VERBOSITY sqlstate
SELECT distlock_acquire('a', scope => 'session', advisory_key => 1, wait => '10 ms');
SELECT distlock_acquire('a', scope => 'transaction', advisory_key => 1, wait => '0');
\set VERBOSITY default
SELECT pg_temp.advisory();
CALL pg_temp.clear();

--
-- Transaction scope
--
BEGIN;
SELECT distlock_acquire('a', scope => 'transaction', advisory_key => 1) > 0;
SAVEPOINT s;
SELECT distlock_acquire('b', scope => 'transaction', advisory_key => 2) > 0;
SELECT distlock_acquire_all('{c,d}', mode => 'shared', scope => 'transaction', advisory_key => 3) > 0;
SELECT pg_temp.advisory();
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.advisory();
SELECT distlock_acquire('b', scope => 'transaction', advisory_key => 2) > 0;
COMMIT;
SELECT pg_temp.advisory();
-- Released or not, it goes with the transaction.
BEGIN;
SELECT distlock_acquire('a', scope => 'transaction', advisory_key => 1) AS token \gset
SELECT distlock_release('a', :token), pg_temp.advisory();
COMMIT;
SELECT pg_temp.advisory();
SELECT distlock_acquire('a', scope => 'transaction', advisory_key => 1) > 0, pg_temp.advisory();
SELECT pg_temp.advisory();
-- Through the procedure
CALL distlock_lock('a', NULL, scope => 'session', advisory_key => 1) \gset
SELECT pg_temp.advisory(), distlock_release('a', :token);
SELECT pg_temp.advisory();

-- DISCARD ALL gives up everything.
SELECT distlock_acquire('a', scope => 'session', advisory_key => 1) > 0, distlock_acquire_all('{b,c}', scope => 'session', advisory_key => 2) > 0;
DISCARD ALL;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT count(*) FROM distlock_leases;
