--
-- Who may do what with a lease: the lease belongs to the role that took it.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

DROP ROLE IF EXISTS regress_distlock_alice, regress_distlock_bob,
    regress_distlock_team, regress_distlock_admin, regress_distlock_carol;
CREATE ROLE regress_distlock_alice;
CREATE ROLE regress_distlock_bob;
CREATE ROLE regress_distlock_team;
CREATE ROLE regress_distlock_admin;

CREATE SCHEMA regress_distlock;
GRANT USAGE ON SCHEMA regress_distlock TO PUBLIC;

--
-- An ordinary role can do the whole job ...
--
SET ROLE regress_distlock_alice;
SELECT distlock_acquire('alice') AS token \gset
SELECT distlock_check('alice', :token), distlock_renew('alice', :token) > clock_timestamp();
SELECT name, owner, holder = current_setting('application_name') FROM distlock_leases;
SELECT count(*) FROM distlock_waiters;
SELECT count(*) FROM distlock_stats;
SELECT distlock_release('alice', :token);

-- ... with no rights on what the tokens are kept in.
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT last_value FROM distlock_token_seq'),
    ('SELECT nextval(''distlock_token_seq'')'),
    ('SELECT currval(''distlock_token_seq'')'),
    ('SELECT setval(''distlock_token_seq'', 1)'),
    ('ALTER SEQUENCE distlock_token_seq RESTART'),
    ('SELECT * FROM distlock_control'),
    ('UPDATE distlock_control SET token_limit = 0'),
    ('INSERT INTO distlock_control VALUES (0)'),
    ('DELETE FROM distlock_control'),
    ('TRUNCATE distlock_control')) AS s (statement);
RESET ROLE;
-- Their owner cannot write the table either.
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('UPDATE distlock_control SET token_limit = 0'),
    ('INSERT INTO distlock_control VALUES (0)'),
    ('DELETE FROM distlock_control'),
    ('TRUNCATE distlock_control')) AS s (statement);
SET session_replication_role = replica;
SELECT pg_temp.error_of('DELETE FROM distlock_control');
RESET session_replication_role;

--
-- Others may look, and nothing more.
--
SET ROLE regress_distlock_alice;
SELECT distlock_acquire('alice') AS token \gset
SET ROLE regress_distlock_bob;
SELECT distlock_check('alice', :token);
SELECT owner FROM distlock_leases WHERE token = :token;
SELECT pg_temp.error_of(format('SELECT distlock_renew(''alice'', %s)', :token));
SELECT pg_temp.error_of(format('SELECT distlock_renew(''alice'', %s, ''1 ms'')', :token));
SELECT pg_temp.error_of(format('SELECT distlock_release(''alice'', %s)', :token));
SELECT pg_temp.error_of('SELECT distlock_force_release(''alice'')');
SELECT pg_temp.error_of(format('SELECT distlock_guard(''alice'', %s)', :token));
-- With a wrong token there is no lease that could be refused.
SELECT pg_temp.error_of('SELECT distlock_renew(''alice'', 0)');
SELECT left(pg_temp.error_of('SELECT distlock_guard(''alice'', 0)'), 5);
SELECT distlock_release('alice', 0);
RESET ROLE;
SELECT renewals, ttl FROM distlock_leases WHERE token = :token;

-- A role that is gone too
CREATE ROLE regress_distlock_gone;
SET ROLE regress_distlock_gone;
SELECT distlock_acquire('gone') AS gone \gset
RESET ROLE;
DROP ROLE regress_distlock_gone;
SELECT owner ~ '^\d+$' FROM distlock_leases WHERE token = :gone;
SET ROLE regress_distlock_bob;
SELECT left(pg_temp.error_of(format('SELECT distlock_release(''gone'', %s)', :gone)), 5);
RESET ROLE;
SELECT distlock_release('gone', :gone);

--
-- Members of the owner, superusers
--
SELECT distlock_renew('alice', :token) > clock_timestamp(), distlock_guard('alice', :token);
GRANT regress_distlock_alice TO regress_distlock_bob;
SET ROLE regress_distlock_bob;
SELECT distlock_guard('alice', :token);
SELECT distlock_renew('alice', :token) > clock_timestamp(), distlock_release('alice', :token);
-- Membership does not work the other way round.
SELECT distlock_acquire('bob') AS token \gset
SET ROLE regress_distlock_alice;
SELECT left(pg_temp.error_of(format('SELECT distlock_renew(''bob'', %s)', :token)), 5);
RESET ROLE;
SELECT distlock_release('bob', :token);
REVOKE regress_distlock_alice FROM regress_distlock_bob;

-- A member that does not inherit the owner's rights can but become the owner.
CREATE ROLE regress_distlock_carol NOINHERIT IN ROLE regress_distlock_alice;
SET ROLE regress_distlock_alice;
SELECT distlock_acquire('alice') AS token \gset
RESET ROLE;
SET SESSION AUTHORIZATION regress_distlock_carol;
SELECT pg_temp.error_of(format('SELECT distlock_renew(''alice'', %s)', :token));
SELECT pg_temp.error_of(format('SELECT distlock_release(''alice'', %s)', :token));
SELECT pg_temp.error_of(format('SELECT distlock_guard(''alice'', %s)', :token));
SET ROLE regress_distlock_alice;
SELECT distlock_guard('alice', :token);
SELECT distlock_renew('alice', :token) > clock_timestamp(), distlock_release('alice', :token);
RESET SESSION AUTHORIZATION;
DROP ROLE regress_distlock_carol;

-- A group that both belong to, and that took the lease
GRANT regress_distlock_team TO regress_distlock_alice, regress_distlock_bob;
SET SESSION AUTHORIZATION regress_distlock_alice;
SET ROLE regress_distlock_team;
SELECT distlock_acquire('team') AS team \gset
RESET SESSION AUTHORIZATION;
SET ROLE regress_distlock_bob;
SELECT owner FROM distlock_leases WHERE token = :team;
SELECT distlock_renew('team', :team) > clock_timestamp();
RESET ROLE;
-- Taken away, it counts no more: the owner is looked at each time.
REVOKE regress_distlock_team FROM regress_distlock_bob;
SET ROLE regress_distlock_bob;
SELECT left(pg_temp.error_of(format('SELECT distlock_renew(''team'', %s)', :team)), 5);
SET ROLE regress_distlock_alice;
SELECT distlock_release('team', :team);
RESET ROLE;

--
-- current_user counts: SECURITY DEFINER functions act as their owner.
--
CREATE FUNCTION regress_distlock.take(name text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS 'SELECT public.distlock_acquire(name)';
CREATE FUNCTION regress_distlock.give(name text, token bigint) RETURNS boolean
LANGUAGE sql SECURITY DEFINER AS 'SELECT public.distlock_release(name, token)';
CREATE FUNCTION regress_distlock.guard(name text, token bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER AS 'SELECT public.distlock_guard(name, token)';
ALTER FUNCTION regress_distlock.take(text) OWNER TO regress_distlock_alice;
ALTER FUNCTION regress_distlock.guard(text, bigint) OWNER TO regress_distlock_alice;
ALTER FUNCTION regress_distlock.give(text, bigint) OWNER TO regress_distlock_alice;
SET ROLE regress_distlock_bob;
SELECT regress_distlock.take('definer') AS token \gset
SELECT owner FROM distlock_leases WHERE token = :token;
SELECT left(pg_temp.error_of(format('SELECT distlock_release(''definer'', %s)', :token)), 5);
SELECT distlock_check('definer', :token);
SELECT left(pg_temp.error_of(format('SELECT distlock_guard(''definer'', %s)', :token)), 5);
SELECT regress_distlock.guard('definer', :token);
SELECT regress_distlock.give('definer', :token);

-- Within a transaction, by the role of the moment
BEGIN;
SET LOCAL ROLE regress_distlock_alice;
SELECT distlock_acquire('moment') AS token \gset
SET LOCAL ROLE regress_distlock_bob;
SELECT left(pg_temp.error_of(format('SELECT distlock_release(''moment'', %s)', :token)), 5);
SET LOCAL ROLE regress_distlock_alice;
SELECT distlock_release('moment', :token);
SET LOCAL ROLE regress_distlock_bob;
COMMIT;
SELECT distlock_check('moment', :token);

-- A guard is looked at when it is made, and not again at commit.
SET ROLE regress_distlock_alice;
SELECT distlock_acquire('moment') AS token \gset
BEGIN;
SELECT distlock_guard('moment', :token);
SET LOCAL ROLE regress_distlock_bob;
SELECT left(pg_temp.error_of(format('SELECT distlock_guard(''moment'', %s)', :token)), 5);
COMMIT;
SELECT distlock_release('moment', :token);

-- What is undone is undone, whoever ends the transaction.
RESET ROLE;
BEGIN;
SET LOCAL ROLE regress_distlock_alice;
SELECT distlock_acquire('moment', scope => 'transaction') > 0, distlock_acquire('session', scope => 'session') > 0;
SET LOCAL ROLE regress_distlock_bob;
ROLLBACK;
SELECT count(*) FROM distlock_leases;

--
-- distlock_force_release()
--
SET ROLE regress_distlock_alice;
SELECT distlock_acquire('forced') AS token \gset
-- Not even on one's own leases
SELECT pg_temp.error_of('SELECT distlock_force_release(''forced'')');
RESET ROLE;
GRANT EXECUTE ON FUNCTION distlock_force_release TO regress_distlock_admin;
SET ROLE regress_distlock_admin;
SELECT left(pg_temp.error_of(format('SELECT distlock_release(''forced'', %s)', :token)), 5);
SELECT distlock_force_release('forced');
SELECT distlock_check('forced', :token);
RESET ROLE;
REVOKE EXECUTE ON FUNCTION distlock_force_release FROM regress_distlock_admin;

-- Settings: who may change what
SET ROLE regress_distlock_bob;
SET distlock.default_ttl = '1min';
SET distlock.max_ttl = '10d';
SET distlock.log_expirations = off;
SET distlock.terminate_stale = on;
SET distlock.max_leases = 100;
RESET ROLE;

SELECT count(*) FROM distlock_leases;
DROP SCHEMA regress_distlock CASCADE;
DROP ROLE regress_distlock_alice, regress_distlock_bob,
    regress_distlock_team, regress_distlock_admin;
