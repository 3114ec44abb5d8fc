--
-- What a lease does: acquire, renew, release, check, expire.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin
SET distlock.default_ttl = '30s';
SET application_name = 'leases';
SET statement_timeout = '2min';		-- fail rather than wait for long

-- Waits until the lease has expired, at most a minute.
CREATE FUNCTION pg_temp.await_expiry(name text, token bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..6000 LOOP
        IF NOT distlock_check(name, token) THEN
            RETURN true;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN false;
END $$;

-- Is it that long from now, less a minute at most?
CREATE FUNCTION pg_temp.is_about(expiry timestamptz, ttl interval) RETURNS boolean
LANGUAGE sql AS $$
    SELECT expiry - clock_timestamp() BETWEEN ttl - interval '1 min' AND ttl
$$;

--
-- The main job: one holder at a time, each with a greater token
--
SELECT distlock_acquire('job', ttl => '10 min') AS first \gset
SELECT distlock_check('job', :first), :first > 0;
SELECT distlock_try_acquire('job') IS NULL;
SELECT pg_temp.error_of('SELECT distlock_acquire(''job'', wait => ''0'')');
SELECT distlock_renew('job', :first) > clock_timestamp() + interval '9 min';
SELECT distlock_release('job', :first);
SELECT distlock_check('job', :first);
SELECT distlock_acquire('job', ttl => '10 min') AS second \gset
SELECT :second > :first, distlock_check('job', :second), distlock_check('job', :first);

-- The former token is refused, and does nothing to its successor.
SELECT pg_temp.error_of(format('SELECT distlock_renew(''job'', %s)', :first));
SELECT distlock_release('job', :first);
SELECT distlock_check('job', :second);

-- A token belongs to one name.
SELECT distlock_check('other', :second), distlock_release('other', :second);
SELECT pg_temp.error_of(format('SELECT distlock_renew(''other'', %s)', :second));
SELECT distlock_acquire('other') AS other \gset
SELECT distlock_check('other', :second), distlock_release('other', :second);
SELECT distlock_check('job', :second), distlock_check('other', :other);
SELECT distlock_release('other', :other), distlock_release('other', :other);
SELECT distlock_release('job', :second);
SELECT distlock_release('job', :second);

--
-- An exclusive lease does not re-enter, in any scope.
--
SELECT scope, distlock_try_acquire('again ' || scope, scope => scope) IS NOT NULL,
    distlock_try_acquire('again ' || scope, scope => scope) IS NULL
FROM (VALUES ('lease'), ('session'), ('transaction')) AS s (scope);
SELECT name, distlock_release(name, token) FROM distlock_leases ORDER BY name;

--
-- When the wait is over
--
SELECT distlock_acquire('busy', ttl => '10 min', holder => 'somebody') AS token \gset
SELECT pg_temp.error_of('SELECT distlock_acquire(''busy'', wait => ''0'')');
SELECT pg_temp.error_of('SELECT distlock_acquire(''busy'', wait => ''10 ms'')');
SELECT distlock_try_acquire('busy', wait => '10 ms') IS NULL;
SET lock_timeout = '10ms';
SELECT pg_temp.error_of('SELECT distlock_acquire(''busy'')');
SELECT pg_temp.error_of('SELECT distlock_try_acquire(''busy'', wait => NULL)');
SELECT distlock_try_acquire('busy') IS NULL;
RESET lock_timeout;
BEGIN;
SET LOCAL statement_timeout = '100ms';
SELECT distlock_acquire('busy');
ROLLBACK;
SELECT count(*) FROM distlock_waiters;
-- The detail tells the token and what remains, so that a person can act.
DO $$
DECLARE
    detail text;
    told text[];
    lease record;
BEGIN
    SELECT * INTO STRICT lease FROM distlock_leases WHERE name = 'busy';
    PERFORM distlock_acquire('busy', wait => '0');
EXCEPTION WHEN lock_not_available THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    told := regexp_match(detail, '"(.*)" under token (\d+), process (\d+), for another (\d+) ms');
    RAISE WARNING 'holder %, token %, process %, remaining %', told[1],
        told[2]::bigint = lease.token, told[3]::int = pg_backend_pid(),
        told[4]::int BETWEEN 1 AND 600000;
END $$;
SELECT distlock_release('busy', :token);
-- No time to live
SELECT distlock_acquire('busy', scope => 'session') AS token \gset
SELECT pg_temp.error_of('SELECT distlock_acquire(''busy'', wait => ''0'')');
SELECT distlock_release('busy', :token);

--
-- Shared leases stand beside each other, and not beside an exclusive one.
--
SELECT distlock_acquire('read', mode => 'shared', ttl => '10 min') AS one \gset
SELECT distlock_acquire('read', mode => 'shared', ttl => '10 min') AS two \gset
SELECT :two > :one, distlock_check('read', :one), distlock_check('read', :two);
SELECT distlock_try_acquire('read') IS NULL;
SELECT pg_temp.error_of('SELECT distlock_acquire(''read'', wait => ''0'')');
SELECT distlock_release('read', :one);
SELECT distlock_check('read', :one), distlock_check('read', :two);
SELECT distlock_try_acquire('read') IS NULL;
SELECT distlock_release('read', :two);
SELECT distlock_acquire('read', ttl => '10 min') AS token \gset
SELECT distlock_try_acquire('read', mode => 'shared') IS NULL;
SELECT distlock_release('read', :token);

--
-- Expiry: after its time to live a lease is over, released or not.
--
SELECT distlock_acquire('short', ttl => '50 ms') AS token \gset
SELECT pg_temp.await_expiry('short', :token);
SELECT distlock_release('short', :token);
SELECT pg_temp.error_of(format('SELECT distlock_renew(''short'', %s)', :token));
SELECT count(*) FROM distlock_leases WHERE name = 'short';
SELECT distlock_force_release('short');
SELECT distlock_try_acquire('short') > :token;
SELECT distlock_force_release('short');

-- Whoever waits for an expiring lease gets it when it expires, not before.
SELECT clock_timestamp() AS start \gset
SELECT distlock_acquire('short', ttl => '300 ms') AS token \gset
SELECT distlock_acquire('short', wait => '1 min') > :token,
    clock_timestamp() - :'start' >= interval '300 ms';
SELECT distlock_force_release('short');

-- One of two shared leases expires.
SELECT distlock_acquire('read', mode => 'shared', ttl => '50 ms') AS one \gset
SELECT distlock_acquire('read', mode => 'shared', ttl => '10 min') AS two \gset
SELECT pg_temp.await_expiry('read', :one), distlock_check('read', :two);
SELECT distlock_try_acquire('read') IS NULL;
SELECT distlock_release('read', :one), distlock_release('read', :two);

-- Session and transaction scope may have a time to live.
SELECT scope, pg_temp.await_expiry('short', distlock_acquire('short', scope => scope, ttl => '50 ms'))
FROM (VALUES ('session'), ('transaction')) AS s (scope);

--
-- Renewal: anew from now, with the old time to live, a longer or a shorter one
--
SELECT distlock_acquire('renewed', ttl => '10 min') AS token \gset
SELECT pg_temp.is_about(distlock_renew('renewed', :token), '10 min');
SELECT pg_temp.is_about(distlock_renew('renewed', :token, '2 hours'), '2 hours');
SELECT ttl, renewals, remaining BETWEEN interval '119 min' AND interval '120 min'
FROM distlock_leases WHERE token = :token;
-- The longer one is now the one it has.
SELECT pg_temp.is_about(distlock_renew('renewed', :token, NULL), '2 hours');
SELECT pg_temp.is_about(distlock_renew('renewed', :token, '50 ms'), '50 ms');
SELECT pg_temp.await_expiry('renewed', :token);
SELECT pg_temp.error_of(format('SELECT distlock_renew(''renewed'', %s, ''1 h'')', :token));
-- A waiter sees the shorter one: the old deadline is hours away.
SELECT distlock_acquire('renewed', ttl => '5 hours') AS token \gset
SELECT distlock_renew('renewed', :token, '200 ms') IS NOT NULL;
SELECT distlock_acquire('renewed', wait => '1 min') > :token;
SELECT distlock_force_release('renewed');
-- A lease lives on beyond its first time to live as long as it is renewed.
DO $$
DECLARE
    token bigint := distlock_acquire('kept', ttl => '1 s');
    start timestamptz := clock_timestamp();
BEGIN
    PERFORM distlock_renew('kept', token, '10 min');
    WHILE clock_timestamp() < start + interval '1100 ms' LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
    RAISE WARNING 'kept: %, released: %', distlock_check('kept', token), distlock_release('kept', token);
END $$;

-- A lease without time to live is good until infinity, unless given one.
SELECT distlock_acquire('endless', scope => 'session') AS token \gset
SELECT distlock_renew('endless', :token);
SELECT ttl IS NULL, remaining IS NULL, expires_at FROM distlock_leases WHERE token = :token;
SELECT isfinite(distlock_renew('endless', :token, '10 min'));
SELECT ttl, isfinite(expires_at) FROM distlock_leases WHERE token = :token;
SELECT distlock_release('endless', :token);

-- The default time to live
SET distlock.default_ttl = '40s';
SELECT distlock_acquire('default') AS token \gset
SELECT ttl, remaining BETWEEN interval '0' AND interval '40 s' FROM distlock_leases WHERE token = :token;
SELECT distlock_release('default', :token);

--
-- Whose it is
--
SELECT distlock_acquire('label') AS token \gset
SELECT holder, owner = current_user, pid = pg_backend_pid() FROM distlock_leases WHERE token = :token;
SELECT distlock_release('label', :token);
SELECT distlock_acquire('label', holder => 'worker 7') AS token \gset
SELECT holder FROM distlock_leases WHERE token = :token;
SELECT distlock_release('label', :token);
SET application_name = '';
SELECT distlock_acquire('label') AS token \gset
SELECT holder = '' FROM distlock_leases WHERE token = :token;
SELECT distlock_release('label', :token);
SET application_name = 'leases';

--
-- Scopes, and what DISCARD ALL ends
--
SELECT distlock_acquire('by lease', ttl => '10 min') AS lease \gset
SELECT distlock_acquire('by session', scope => 'session') AS session \gset
SELECT distlock_acquire('by session too', scope => 'session', ttl => '10 min', mode => 'shared') AS session_too \gset
SELECT distlock_acquire('by transaction', scope => 'transaction') AS transaction \gset
SELECT name, mode, scope, ttl FROM distlock_leases ORDER BY token;
SELECT distlock_check('by transaction', :transaction);
SELECT distlock_renew('by session', :session);
DISCARD ALL;
SELECT name, scope FROM distlock_leases ORDER BY token;
SELECT distlock_check('by session', :session), distlock_check('by session too', :session_too);
SELECT distlock_check('by lease', :lease);
-- The session can go on.
SELECT distlock_acquire('by session', scope => 'session') > :session;
-- Nothing less than DISCARD ALL ends them.
DISCARD PLANS;
DISCARD TEMP;
DISCARD SEQUENCES;
RESET ALL;
SELECT pg_advisory_unlock_all();
SELECT name, scope FROM distlock_leases ORDER BY token;

-- The end of the session ends what is in its scope, and nothing else.
\c -
SET distlock.default_ttl = '30s';
SET distlock.max_ttl = '1d';
DO $$
BEGIN
    FOR i IN 1..6000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM distlock_leases WHERE scope = 'session');
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT name, scope, pid FROM distlock_leases ORDER BY token;
-- What is left belongs to the role and can be renewed from any session.
SELECT distlock_renew('by lease', :lease) > clock_timestamp();
SELECT distlock_release('by lease', :lease);

--
-- In a READ ONLY transaction all of it works.
--
BEGIN READ ONLY;
SELECT distlock_acquire('read only', ttl => '10 min') AS token \gset
SELECT distlock_check('read only', :token), distlock_renew('read only', :token) IS NOT NULL;
COMMIT;
BEGIN READ ONLY;
SELECT distlock_try_acquire('read only') IS NULL, distlock_release('read only', :token);
COMMIT;
BEGIN READ ONLY;
SELECT distlock_acquire('read only', scope => 'session') > :token, distlock_force_release('read only');
COMMIT;

--
-- None of it takes a transaction id.
--
BEGIN;
SELECT distlock_acquire('no xid') AS token \gset
SELECT distlock_renew('no xid', :token) IS NOT NULL, distlock_check('no xid', :token);
SELECT distlock_release('no xid', :token);
SELECT pg_current_xact_id_if_assigned() IS NULL;
COMMIT;

--
-- Many at once: every one has its own token, in the order of the grants.
--
SELECT count(DISTINCT token), bool_and(token > previous)
FROM (SELECT token, lag(token) OVER (ORDER BY i) AS previous
      FROM (SELECT i, distlock_acquire('many/' || i) AS token
            FROM generate_series(1, 1000) AS i) AS granted) AS ordered;
SELECT count(*), bool_and(distlock_check(name, token)) FROM distlock_leases WHERE name LIKE 'many/%';
SELECT count(*) FROM distlock_leases WHERE distlock_release(name, token);
SELECT count(*) FROM distlock_leases;

-- The counters have counted.
SELECT acquired > 1000, contended > 0, wait_seconds > 0, timeouts > 0, renewed > 0,
    released > 1000, expired > 0, forced > 0, lost > 0 FROM distlock_stats;
