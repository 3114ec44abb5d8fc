-- The contract about privileges: a lease belongs to the role that took it.
\set QUIET on
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset pager off

BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE EXTENSION IF NOT EXISTS distlock;
SELECT no_plan();

CREATE ROLE regress_distlock_owner;
CREATE ROLE regress_distlock_member IN ROLE regress_distlock_owner;
CREATE ROLE regress_distlock_other;

--
-- Privileges
--
SELECT function_privs_are('distlock_acquire',
    ARRAY['text', 'interval', 'interval', 'text', 'text', 'text', 'boolean', 'integer', 'text', 'bigint'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_try_acquire',
    ARRAY['text', 'interval', 'interval', 'text', 'text', 'text', 'boolean', 'integer', 'text', 'bigint'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_renew', ARRAY['text', 'bigint', 'interval'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_release', ARRAY['text', 'bigint'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_check', ARRAY['text', 'bigint'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_guard', ARRAY['text', 'bigint'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_protect', ARRAY['regclass', 'text'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_unprotect', ARRAY['regclass'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_force_release', ARRAY['text'], 'regress_distlock_other', ARRAY[]::text[]);
SELECT function_privs_are('distlock_discard_damaged', ARRAY[]::text[], 'regress_distlock_other', ARRAY[]::text[]);
SELECT table_privs_are(v, 'regress_distlock_other', ARRAY['SELECT'])
FROM unnest(ARRAY['distlock_leases', 'distlock_waiters', 'distlock_stats', 'distlock_protected',
    'distlock_images']::name[]) AS v;
SELECT table_privs_are(t, 'regress_distlock_other', ARRAY[]::text[])
FROM unnest(ARRAY['distlock_control', 'distlock_lease_table']::name[]) AS t;
SELECT sequence_privs_are('distlock_token_seq', 'regress_distlock_other', ARRAY[]::text[]);

--
-- What they mean
--
CREATE TEMP TABLE held (name text, token bigint);
GRANT ALL ON held TO PUBLIC;
SET LOCAL ROLE regress_distlock_owner;
SELECT lives_ok('INSERT INTO held VALUES (''tap'', distlock_acquire(''tap'', ttl => ''10 min''))',
    'an ordinary role acquires');
SELECT results_eq('SELECT owner FROM distlock_leases JOIN held USING (name, token)',
    ARRAY['regress_distlock_owner'::name], 'and owns the lease');
CREATE TEMP TABLE owned (id int);
GRANT ALL ON owned TO regress_distlock_other;
SELECT lives_ok('SELECT distlock_protect(''owned'', ''tap'')', 'it protects its table');

SET LOCAL ROLE regress_distlock_other;
SELECT throws_ok('SELECT distlock_renew(name, token) FROM held', '42501', NULL, 'others may not renew');
SELECT throws_ok('SELECT distlock_release(name, token) FROM held', '42501', NULL, 'nor release');
SELECT throws_ok('SELECT distlock_guard(name, token) FROM held', '42501', NULL, 'nor guard');
SELECT throws_ok('SELECT distlock_force_release(name) FROM held', '42501', NULL, 'nor force');
SELECT throws_ok('SELECT distlock_unprotect(''owned'')', '42501', NULL, 'nor unprotect a table, with whatever rights');
SELECT throws_ok('SELECT distlock_protect(''owned'', ''tap'')', '42501', NULL, 'nor protect it');
SELECT throws_ok('SELECT nextval(''distlock_token_seq'')', '42501', NULL, 'nor draw from the sequence');
SELECT throws_ok('SELECT * FROM distlock_control', '42501', NULL, 'nor read the control table');
SELECT throws_ok('SELECT * FROM distlock_lease_table', '42501', NULL, 'nor the lease table');
SELECT throws_ok('SELECT distlock_discard_damaged()', '42501', NULL, 'nor discard leases');
SELECT results_eq('SELECT owner FROM distlock_images JOIN held USING (name, token)',
    ARRAY['regress_distlock_owner'::name], 'but see what is stored');
SELECT results_eq('SELECT distlock_check(name, token) FROM held', ARRAY[true], 'but check');

SET LOCAL ROLE regress_distlock_member;
SELECT ok((SELECT distlock_renew(name, token) > clock_timestamp() FROM held), 'members of the owner renew');
SAVEPOINT s;
SELECT lives_ok('SELECT distlock_guard(name, token) FROM held', 'and guard');
SELECT lives_ok('SELECT distlock_unprotect(''owned''), distlock_protect(''owned'', ''tap 2'')', 'and protect');
SELECT ok((SELECT distlock_release(name, token) FROM held), 'and release');
ROLLBACK TO SAVEPOINT s;

RESET ROLE;
SELECT ok((SELECT distlock_renew(name, token) > clock_timestamp() FROM held), 'so do superusers');
SELECT lives_ok('SELECT distlock_guard(name, token) FROM held', 'and guard');
SELECT lives_ok('SELECT distlock_unprotect(''owned'')', 'and unprotect');
GRANT EXECUTE ON FUNCTION distlock_force_release TO regress_distlock_other;
SET LOCAL ROLE regress_distlock_other;
SELECT results_eq('SELECT distlock_force_release(name) FROM held', ARRAY[1], 'whoever is granted it, forces');
RESET ROLE;

SELECT finish();
ROLLBACK;
