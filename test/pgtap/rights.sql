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
SELECT function_privs_are(f, ARRAY[name, 'interval', 'interval', 'text', 'text', 'text', 'boolean', 'integer', 'text', 'bigint'],
    'regress_distlock_other', ARRAY['EXECUTE'])
FROM (VALUES ('distlock_acquire'::name, 'text'), ('distlock_try_acquire', 'text'), ('distlock_acquire_all', 'text[]'),
    ('distlock_try_acquire_all', 'text[]')) AS s (f, name);
SELECT ok(has_function_privilege('regress_distlock_other', oid, 'EXECUTE'), 'others may call ' || proname)
FROM pg_proc WHERE proname IN ('distlock_lock', 'distlock_watch_next');
SELECT function_privs_are('distlock_watch', ARRAY['text', 'bigint', 'interval'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are('distlock_renew_all', ARRAY['text[]', 'bigint', 'interval'], 'regress_distlock_other', ARRAY['EXECUTE']);
SELECT function_privs_are(f, ARRAY['text[]', 'bigint'], 'regress_distlock_other', ARRAY['EXECUTE'])
FROM unnest(ARRAY['distlock_release_all', 'distlock_check_all', 'distlock_guard_all']::name[]) AS f;
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
CREATE TEMP TABLE all_held AS SELECT distlock_acquire_all('{x,y}', request_id => 'r', ttl => '10 min') AS token;
GRANT ALL ON all_held TO PUBLIC;
SELECT results_eq('SELECT owner FROM distlock_leases JOIN held USING (name, token)',
    ARRAY['regress_distlock_owner'::name], 'and owns the lease');
CREATE TEMP TABLE owned (id int);
GRANT ALL ON owned TO regress_distlock_other;
SELECT lives_ok('SELECT distlock_protect(''owned'', ''tap'')', 'it protects its table');

SET LOCAL ROLE regress_distlock_other;
SELECT throws_ok('SELECT distlock_renew(name, token) FROM held', '42501', NULL, 'others may not renew');
SELECT throws_ok('SELECT distlock_release(name, token) FROM held', '42501', NULL, 'nor release');
SELECT throws_ok('SELECT distlock_guard(name, token) FROM held', '42501', NULL, 'nor guard');
SELECT throws_ok('SELECT distlock_renew_all(''{x,y}'', token) FROM all_held', '42501', NULL, 'nor renew several');
SELECT throws_ok('SELECT distlock_release_all(''{x,y}'', token) FROM all_held', '42501', NULL, 'nor release them');
SELECT throws_ok('SELECT distlock_release(''y'', token) FROM all_held', '42501', NULL, 'or one of them');
SELECT throws_ok('SELECT distlock_guard_all(''{y,x}'', token) FROM all_held', '42501', NULL, 'nor guard by them');
SELECT is(distlock_try_acquire_all('{x,y}', request_id => 'r'), NULL, 'nor ask for them under the same request id');
SELECT lives_ok('SELECT distlock_acquire(''other'', request_id => ''r'')', 'which is theirs for other requests');
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
SELECT ok((SELECT distlock_check_all('{x,y}', token) FROM all_held), 'several, too');
SELECT results_eq('SELECT distlock_watch(name, NULL) = token FROM held', ARRAY[true], 'and watch');

SET LOCAL ROLE regress_distlock_member;
SELECT ok((SELECT distlock_renew(name, token) > clock_timestamp() FROM held), 'members of the owner renew');
SELECT ok((SELECT distlock_renew_all('{x,y}', token) > clock_timestamp() FROM all_held), 'several, too');
SELECT is(distlock_try_acquire_all('{x,y}', request_id => 'r'), NULL, 'but a request is that of its role alone');
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
