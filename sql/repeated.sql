--
-- request_id: the same request again gets the same lease back
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin
DROP ROLE IF EXISTS regress_distlock_alice;
CREATE ROLE regress_distlock_alice;

-- The same token, renewed, by whichever function
SELECT distlock_acquire('a', request_id => 'r', ttl => '1 min', holder => 'h') AS token \gset
SELECT distlock_acquire('a', request_id => 'r') = :token, distlock_try_acquire('a', request_id => 'r', ttl => '1 h') = :token,
    distlock_acquire_all('{a,a}', request_id => 'r') = :token, distlock_acquire('a', request_id => 'r', wait => '0') = :token;
CALL distlock_lock('a', NULL, request_id => 'r', ttl => '2 h') \gset called_
SELECT :called_token = :token;
SELECT count(*), max(ttl), max(renewals), max(holder), bool_and(remaining > '119 min') FROM distlock_leases;
-- Also for less
SELECT distlock_acquire('a', request_id => 'r', ttl => '1 min') = :token;
SELECT ttl, remaining <= ttl FROM distlock_leases;
-- Without the id, or with another, it is somebody else's.
SELECT distlock_try_acquire('a') IS NULL, distlock_try_acquire('a', request_id => 'R') IS NULL, distlock_try_acquire('a', request_id => 'r ') IS NULL;

-- Anything else under the same id is refused, and changes nothing.
SELECT statement || E'\n  ' || pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_acquire(''b'', request_id => ''r'')'),
    ('SELECT distlock_try_acquire(''b'', request_id => ''r'')'),
    ('SELECT distlock_acquire(''a'', request_id => ''r'', mode => ''shared'')'),
    ('SELECT distlock_acquire(''a'', request_id => ''r'', max_holders => 2)'),
    ('SELECT distlock_acquire(''a'', request_id => ''r'', scope => ''session'')'),
    ('SELECT distlock_acquire(''a'', request_id => ''r'', durable => false)'),
    ('SELECT distlock_acquire_all(''{a,b}'', request_id => ''r'')'),
    ('SELECT distlock_acquire_all(''{b,a}'', request_id => ''r'')'),
    ('CALL distlock_lock(''b'', request_id => ''r'')')) AS s (statement);
SELECT name, token = :token, renewals FROM distlock_leases;

-- After the release it is a new request, for anything.
SELECT distlock_release('a', :token);
SELECT distlock_acquire('a', request_id => 'r') > :token;
SELECT distlock_release('a', token) FROM distlock_leases;
SELECT distlock_acquire('b', request_id => 'r', mode => 'shared') AS token \gset
-- So it is when forced, and when expired.
SELECT distlock_force_release('b');
SELECT distlock_acquire('b', request_id => 'r', ttl => '1 us') > :token;
SELECT pg_sleep(0.001);
SELECT distlock_acquire('c', request_id => 'r', ttl => '1 us') > :token;
SELECT pg_sleep(0.001);
SELECT distlock_acquire('c', request_id => 'r') AS token \gset
SELECT name, token = :token, renewals FROM distlock_leases;
-- A lease of another id that is in the way has not become free.
SELECT distlock_try_acquire('c', request_id => 's') IS NULL, distlock_acquire('c', request_id => 'r') = :token;
CALL pg_temp.clear();

-- Several locks, in any order
SELECT distlock_acquire_all('{a,b,c}', request_id => 'r') AS token \gset
SELECT distlock_acquire_all('{c,b,a,b}', request_id => 'r', ttl => '1 h') = :token;
SELECT name, token = :token, ttl, renewals FROM distlock_leases ORDER BY name;
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_acquire_all(''{a,b}'', request_id => ''r'')'),
    ('SELECT distlock_acquire(''a'', request_id => ''r'')'),
    ('SELECT distlock_acquire_all(''{a,b,c,d}'', request_id => ''r'')')) AS s (statement);
-- What is left of it when one is released is another request, and given up when
-- it is made again.
SELECT distlock_release('b', :token);
SELECT pg_temp.error_of('SELECT distlock_acquire_all(''{c,a}'', request_id => ''r'')');
SELECT distlock_check_all('{a,c}', :token);
SELECT distlock_acquire_all('{b,a,c}', request_id => 'r') AS again \gset
SELECT :again > :token, distlock_check('a', :token), distlock_check_all('{a,b,c}', :again);
SELECT distlock_renew('b', :again, '1 us') IS NOT NULL;
SELECT distlock_acquire_all('{a,b,c}', request_id => 'r') > :again, distlock_check('a', :again);
CALL pg_temp.clear();

-- One of several permits
SELECT distlock_acquire('s', max_holders => 2, request_id => 'r1') AS a, distlock_acquire('s', max_holders => 2, request_id => 'r2') AS b \gset
SELECT distlock_try_acquire('s', max_holders => 2, request_id => 'r1') = :a, distlock_try_acquire('s', max_holders => 2, request_id => 'r2') = :b,
    distlock_try_acquire('s', max_holders => 2, request_id => 'r3') IS NULL;
CALL pg_temp.clear();

-- Each role has ids of its own.
SELECT distlock_acquire('a', request_id => 'r') AS token \gset
SET ROLE regress_distlock_alice;
SELECT distlock_try_acquire('a', request_id => 'r') IS NULL;
SELECT distlock_acquire('b', request_id => 'r') > :token;
RESET ROLE;
SELECT distlock_acquire('a', request_id => 'r') = :token;
SELECT name, owner = current_user FROM distlock_leases ORDER BY name;
CALL pg_temp.clear();

--
-- Transactions
--
-- In the one that acquired it
BEGIN;
SELECT distlock_acquire('a', request_id => 'r') AS token \gset
SAVEPOINT s;
SELECT distlock_acquire('a', request_id => 'r') = :token;
ROLLBACK TO SAVEPOINT s;
SELECT distlock_check('a', :token);
ROLLBACK;
SELECT distlock_check('a', :token);
BEGIN;
SAVEPOINT s;
SELECT distlock_acquire('a', request_id => 'r') AS token \gset
ROLLBACK TO SAVEPOINT s;
SELECT distlock_acquire('a', request_id => 'r') > :token;
COMMIT;
-- In a later one: its rollback does not undo what was there before.
SELECT distlock_acquire('a', request_id => 'r') AS token \gset
BEGIN;
SELECT distlock_acquire('a', request_id => 'r') = :token;
ROLLBACK;
SELECT distlock_check('a', :token);
-- Released in this one, it is held until the commit, but not to be had.
BEGIN;
SELECT distlock_release('a', :token);
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', request_id => ''r'')');
ROLLBACK;
SELECT distlock_acquire('a', request_id => 'r') = :token;
CALL pg_temp.clear();

-- The other scopes
BEGIN;
SELECT distlock_acquire('a', request_id => 't', scope => 'transaction') AS a, distlock_acquire('b', request_id => 's', scope => 'session') AS b \gset
SELECT distlock_acquire('a', request_id => 't', scope => 'transaction') = :a, distlock_acquire('b', request_id => 's', scope => 'session') = :b;
COMMIT;
SELECT distlock_acquire('a', request_id => 't', scope => 'transaction') > :b, distlock_acquire('b', request_id => 's', scope => 'session') = :b;
SELECT name, scope FROM distlock_leases;
DISCARD ALL;
SELECT name, scope FROM distlock_leases;
DROP ROLE regress_distlock_alice;
