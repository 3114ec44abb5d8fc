--
-- distlock_watch(): what the newest live token of a lock is
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin
DROP ROLE IF EXISTS regress_distlock_alice;
CREATE ROLE regress_distlock_alice;

\pset null '(free)'

-- Whoever is up to date waits, whoever is not learns at once.
SELECT distlock_watch('leader', NULL, '0'), distlock_watch('leader', NULL, '10 ms'), distlock_watch('leader', 1);
SELECT distlock_acquire('leader') AS token \gset
SELECT distlock_watch('leader', NULL) = :token, distlock_watch('leader', 1) = :token, distlock_watch('leader', :token + 1) = :token,
    distlock_watch('leader', :token, '0') = :token, distlock_watch('leader', :token, '10 ms') = :token;
CALL distlock_watch_next('leader', NULL) \gset
SELECT distlock_check('leader', :token);
CALL distlock_watch_next('leader', 1, '1 min') \gset
SELECT distlock_check('leader', :token);
CALL distlock_watch_next('leader', :token, '10 ms') \gset
SELECT distlock_check('leader', :token);
CALL distlock_watch_next('nobody', 1);
CALL distlock_watch_next('nobody', NULL, '10 ms');

-- Any role may watch.
SET ROLE regress_distlock_alice;
SELECT distlock_watch('leader', NULL) = :token, distlock_watch('leader', :token, '10 ms') = :token;
RESET ROLE;

-- It is not in the way of anybody, and leaves nothing behind.
SELECT count(*) FROM distlock_waiters;
SELECT name, waiters, renewals FROM distlock_leases;
SELECT distlock_release('leader', :token);
SELECT distlock_watch('leader', :token);
SELECT distlock_watch('leader', NULL, '10 ms');

-- The end of a wait is no error, that of a statement is.
SET statement_timeout = '50ms';
SELECT distlock_watch('leader', NULL);
CALL distlock_watch_next('leader', NULL);
RESET statement_timeout;
SET statement_timeout = '1min';
-- There is no lock to wait for, so lock_timeout does not count.
SET lock_timeout = '10ms';
SELECT distlock_watch('leader', NULL, '100 ms');
RESET lock_timeout;
-- After an error it watches again.
BEGIN;
SAVEPOINT s;
SET LOCAL statement_timeout = '50ms';
SELECT distlock_watch('leader', NULL);
ROLLBACK TO SAVEPOINT s;
SELECT distlock_watch('leader', NULL, '1 ms'), distlock_watch('other', NULL, '1 ms');
COMMIT;

-- The newest of several
SELECT distlock_acquire('shared', mode => 'shared') AS a, distlock_acquire('shared', mode => 'shared') AS b,
    distlock_acquire_all('{shared,more}', mode => 'shared') AS c \gset
SELECT distlock_watch('shared', :a) = :c, distlock_watch('more', NULL) = :c;
SELECT distlock_release('shared', :b);
SELECT distlock_watch('shared', :c, '10 ms') = :c;
SELECT distlock_release('shared', :c);
SELECT distlock_watch('shared', :c) = :a;
CALL pg_temp.clear();
SELECT distlock_acquire('s', max_holders => 2) AS a, distlock_acquire('s', max_holders => 2) AS b \gset
SELECT distlock_watch('s', NULL) = :b;
CALL pg_temp.clear();

-- Expiry: of a lease that nobody else looks at
SELECT distlock_acquire('leader', ttl => '200 ms') AS token \gset
SELECT distlock_watch('leader', :token);
SELECT distlock_acquire('leader', ttl => '1 us') AS token \gset
SELECT pg_sleep(0.001);
SELECT distlock_watch('leader', :token);
SELECT distlock_acquire('shared', mode => 'shared') AS a, distlock_acquire('shared', mode => 'shared', ttl => '200 ms') AS b \gset
SELECT distlock_watch('shared', :b) = :a;
CALL pg_temp.clear();

-- A lease counts at once, a release when it is committed.
BEGIN;
SELECT distlock_acquire('leader') AS token \gset
SELECT distlock_watch('leader', NULL) = :token;
SELECT distlock_release('leader', :token);
SELECT distlock_watch('leader', :token, '10 ms') = :token;
COMMIT;
SELECT distlock_watch('leader', :token);
-- An aborted savepoint ends the watch, and the lease.
BEGIN;
SAVEPOINT s;
SELECT distlock_acquire('leader') AS token \gset
ROLLBACK TO SAVEPOINT s;
SELECT distlock_watch('leader', :token);
COMMIT;
-- In a READ ONLY transaction, too
BEGIN READ ONLY;
SELECT distlock_watch('leader', NULL, '1 ms'), distlock_watch('leader', 1);
COMMIT;
SELECT count(*) FROM distlock_leases;
DROP ROLE regress_distlock_alice;
