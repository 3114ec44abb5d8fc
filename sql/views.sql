--
-- The views, and what else the extension consists of
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin
SET distlock.default_ttl = '30s';
\pset format aligned
\pset tuples_only off
SET application_name = 'views';

--
-- Members and comments
--
CREATE TEMP VIEW members AS
SELECT d.classid, d.objid, i.type, i.identity
FROM pg_extension e
    JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
    CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
WHERE e.extname = 'distlock';
SELECT type, replace(identity, 'public.', '') AS member FROM members
WHERE type NOT LIKE '%type' ORDER BY type COLLATE "C", identity COLLATE "C";

-- Everything has a comment: members, columns, triggers, the extension itself.
SELECT identity AS uncommented FROM members
WHERE type NOT LIKE '%type' AND
    obj_description(objid, (SELECT relname FROM pg_class WHERE oid = classid)) IS NULL
UNION ALL
SELECT format('%s.%s', attrelid::regclass, attname)
FROM pg_attribute JOIN members ON classid = 'pg_class'::regclass AND objid = attrelid
WHERE attnum > 0 AND NOT attisdropped AND type IN ('view', 'table') AND col_description(attrelid, attnum) IS NULL
UNION ALL
SELECT format('trigger %s', tgname)
FROM pg_trigger JOIN members ON classid = 'pg_class'::regclass AND objid = tgrelid
WHERE NOT tgisinternal AND obj_description(pg_trigger.oid, 'pg_trigger') IS NULL
UNION ALL
SELECT 'extension' FROM pg_extension
WHERE extname = 'distlock' AND obj_description(oid, 'pg_extension') IS NULL;

-- The sequence is what pg_dump carries.
SELECT c::regclass FROM pg_extension, unnest(extconfig) AS c WHERE extname = 'distlock';

--
-- Functions
--
\pset format unaligned
SELECT proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
FROM pg_proc p JOIN members ON classid = 'pg_proc'::regclass AND objid = p.oid
WHERE proname !~ '_show_|_refuse_' ORDER BY proname;
\pset format aligned
-- But for the I/O of a type, none is STRICT, all are VOLATILE, PARALLEL UNSAFE and run as their caller.
SELECT proname FROM pg_proc p JOIN members ON classid = 'pg_proc'::regclass AND objid = p.oid
WHERE proname !~ '^distlock_image_' AND (proisstrict OR provolatile <> 'v' OR proparallel <> 'u' OR prosecdef OR proleakproof);
-- Those that PUBLIC must not call
SELECT proname FROM pg_proc p JOIN members ON classid = 'pg_proc'::regclass AND objid = p.oid
WHERE NOT EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a
                  WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
ORDER BY 1;

--
-- Columns
--
SELECT attrelid::regclass AS view, attname AS column, format_type(atttypid, atttypmod) AS type
FROM pg_attribute
WHERE attrelid IN ('distlock_leases'::regclass, 'distlock_waiters'::regclass, 'distlock_stats'::regclass,
    'distlock_protected'::regclass) AND attnum > 0
ORDER BY attrelid::regclass::text, attnum;
-- PUBLIC reads the views, and nothing else of ours.
SELECT relname, array_agg(privilege_type ORDER BY privilege_type) AS public
FROM pg_class c JOIN members ON classid = 'pg_class'::regclass AND objid = c.oid
    LEFT JOIN LATERAL aclexplode(relacl) AS a ON a.grantee = 0
GROUP BY relname ORDER BY relname;

--
-- distlock_leases
--
SELECT * FROM distlock_leases;
SELECT distlock_acquire('one', ttl => '10 min') AS one \gset
SELECT distlock_acquire('two', mode => 'shared', scope => 'session', holder => 'reader') AS two \gset
SELECT distlock_acquire('two', mode => 'shared', scope => 'session', ttl => '1 h', holder => 'reader') AS three \gset
SELECT distlock_renew('one', :one) IS NOT NULL AS renewed, distlock_renew('two', :three) IS NOT NULL AS renewed;
BEGIN;
SELECT distlock_acquire('zero', scope => 'transaction') AS zero \gset
SELECT name, mode, scope, holder, durable, ttl, renewals, pins, waiters FROM distlock_leases ORDER BY token;
SELECT name, token IN (:one, :two, :three, :zero) AS token, owner = current_user AS owner, pid = pg_backend_pid() AS pid,
    granted_at BETWEEN clock_timestamp() - interval '1 min' AND clock_timestamp() AS granted_at,
    expires_at BETWEEN clock_timestamp() + ttl - interval '1 min' AND clock_timestamp() + ttl AS expires_at,
    remaining BETWEEN ttl - interval '1 min' AND ttl AS remaining
FROM distlock_leases ORDER BY distlock_leases.token;
COMMIT;
-- A renewal moves the expiry and leaves the grant where it was.
SELECT granted_at, expires_at FROM distlock_leases WHERE token = :one \gset
SELECT distlock_renew('one', :one, '20 min') AS renewed_until \gset
SELECT granted_at = :'granted_at' AS granted_at, expires_at > :'expires_at' AS expires_at,
    expires_at - :'renewed_until' BETWEEN interval '-1 s' AND interval '1 s' AS as_returned, ttl, renewals
FROM distlock_leases WHERE token = :one;
-- In a transaction it shows the present, not the start of the transaction.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM distlock_leases;
SELECT distlock_acquire('present') > 0 AS granted;
SELECT count(*) FROM distlock_leases;
ROLLBACK;
SELECT distlock_release(name, token) FROM distlock_leases ORDER BY token;
SELECT * FROM distlock_leases;

--
-- distlock_waiters: the isolation tests show it with rows.
--
SELECT * FROM distlock_waiters;

--
-- distlock_stats: one row, counting up
--
SELECT count(*) FROM distlock_stats;
CREATE TEMP TABLE before AS SELECT * FROM distlock_stats;
SELECT distlock_acquire('a') AS token \gset
SELECT distlock_renew('a', :token) IS NOT NULL AS renewed;
SELECT distlock_try_acquire('a') AS busy;
SELECT distlock_try_acquire('a', wait => '20 ms') AS waited;
SELECT distlock_release('a', :token);
DO $$ BEGIN PERFORM distlock_renew('a', -1); EXCEPTION WHEN SQLSTATE 'LK001' THEN END $$;
DO $$ BEGIN PERFORM distlock_guard('a', -1); EXCEPTION WHEN SQLSTATE 'LK001' THEN END $$;
BEGIN;
SELECT distlock_acquire('a') > 0 AS granted;
ROLLBACK;
SELECT distlock_acquire('a') > 0 AS granted;
SELECT distlock_force_release('a');
SELECT distlock_acquire('a', ttl => '1 us') > 0 AS granted;
SELECT distlock_acquire('a') AS token \gset
BEGIN;
SELECT distlock_guard('a', :token);
SELECT distlock_release('a', :token);
COMMIT;
SELECT distlock_acquire('a') AS token \gset
BEGIN;
SELECT distlock_guard('a', :token);
SELECT distlock_renew('a', :token, '1 us') IS NOT NULL AS renewed;
\set VERBOSITY sqlstate
COMMIT;
\set VERBOSITY default
-- The counters are of the whole server, which others may use.
SELECT a.acquired - b.acquired >= 5 AS acquired, a.contended - b.contended >= 2 AS contended,
    a.wait_seconds - b.wait_seconds > 0.019 AS wait_seconds, a.timeouts - b.timeouts >= 2 AS timeouts,
    a.renewed > b.renewed AS renewed, a.released - b.released >= 2 AS released, a.undone > b.undone AS undone,
    a.expired > b.expired AS expired, a.forced > b.forced AS forced, a.lost > b.lost AS lost,
    a.guards - b.guards >= 2 AS guards, a.guards_refused > b.guards_refused AS guards_refused,
    a.commits_refused > b.commits_refused AS commits_refused
FROM distlock_stats a, before b;

-- The views cannot be written.
SELECT view, pg_relation_is_updatable(view, true)
FROM unnest(ARRAY['distlock_leases', 'distlock_waiters', 'distlock_stats']::regclass[]) AS view;

--
-- distlock_protected
--
CREATE TEMP TABLE protected (id int);
SELECT distlock_protect('protected', 'row {id}');
SELECT * FROM distlock_protected;
SELECT distlock_unprotect('protected');
SELECT * FROM distlock_protected;
