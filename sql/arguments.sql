--
-- Every argument of every function: what is refused, and with what words.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin
SET distlock.default_ttl = '30s';

--
-- Null is an error, not a null result: no function is STRICT.
--
SELECT statement || E'\n  ' || pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_acquire(NULL)'),
    ('SELECT distlock_try_acquire(NULL)'),
    ('SELECT distlock_renew(NULL, 1)'),
    ('SELECT distlock_release(NULL, 1)'),
    ('SELECT distlock_check(NULL, 1)'),
    ('SELECT distlock_force_release(NULL)'),
    ('SELECT distlock_renew(''a'', NULL)'),
    ('SELECT distlock_release(''a'', NULL)'),
    ('SELECT distlock_check(''a'', NULL)'),
    ('SELECT distlock_acquire(''a'', mode => NULL)'),
    ('SELECT distlock_acquire(''a'', scope => NULL)'),
    ('SELECT distlock_try_acquire(''a'', mode => NULL)'),
    ('SELECT distlock_try_acquire(''a'', scope => NULL)')) AS s (statement);

-- These may be null.
SELECT distlock_release('a', distlock_acquire('a', NULL, NULL, holder => NULL, durable => NULL));
SELECT distlock_release('a', distlock_try_acquire('a', NULL, NULL, holder => NULL, durable => NULL));

--
-- Names have 1 to 255 bytes.
--
SELECT function || '  ' || pg_temp.error_of(format('SELECT %s', replace(function, '?', '''''')))
FROM (VALUES ('distlock_acquire(?)'), ('distlock_try_acquire(?)'),
    ('distlock_renew(?, 1)'), ('distlock_release(?, 1)'),
    ('distlock_check(?, 1)'), ('distlock_force_release(?)')) AS s (function);
SELECT function || '  ' || pg_temp.error_of(format('SELECT %s', replace(function, '?', 'repeat(''n'', 256)')))
FROM (VALUES ('distlock_acquire(?)'), ('distlock_try_acquire(?)'),
    ('distlock_renew(?, 1)'), ('distlock_release(?, 1)'),
    ('distlock_check(?, 1)'), ('distlock_force_release(?)')) AS s (function);
-- Far too long: compressed or out of line in a table, too.
CREATE TEMP TABLE long_name AS SELECT repeat('n', 1000000) AS name;
SELECT pg_temp.error_of('SELECT distlock_acquire(name) FROM long_name');

SELECT distlock_acquire(repeat('n', 255)) AS token \gset
SELECT distlock_check(repeat('n', 255), :token), distlock_check(repeat('n', 254), :token);
SELECT distlock_release(repeat('n', 255), :token);

-- Bytes count, not characters.  (In other encodings this tests less.)
SELECT CASE getdatabaseencoding() WHEN 'UTF8' THEN chr(233) ELSE 'e' END AS e \gset
SELECT pg_temp.error_of(format('SELECT distlock_acquire(%L)',
    repeat(:'e', 256 / octet_length(:'e'))));
SELECT repeat(:'e', 255 / octet_length(:'e')) ||
    repeat('x', 255 % octet_length(:'e')) AS name \gset
SELECT distlock_acquire(:'name') AS token \gset
SELECT octet_length(name), name = :'name' FROM distlock_leases WHERE token = :token;
SELECT distlock_release(:'name', :token);

--
-- Names are the same only if every byte is: none waits for another.
--
CREATE TEMP TABLE names AS
SELECT name, distlock_try_acquire(name) AS token FROM (VALUES
    ('args'), ('Args'), ('ARGS'), ('args '), (' args'), (E'args\t'), (E'args\n'),
    ('args.'), ('arg'), ('argss'), ('args/1'), ('args/2'), ('{args}'), ('"args"'),
    ('0'), ('00'), ('args%'), ('a_gs'), (' '), ('args' || :'e')) AS s (name);
SELECT count(*) = 20, count(DISTINCT token) = 20, bool_and(token > 0) FROM names;
SELECT count(*) FROM names a, names b
WHERE distlock_check(a.name, b.token) <> (a.name = b.name);
SELECT bool_and(distlock_release(name, token)) FROM names;

--
-- The time to live
--
SELECT ttl || '  ' || pg_temp.error_of(format('SELECT distlock_acquire(''a'', ttl => %L)', ttl))
FROM (VALUES ('0'), ('-1 microsecond'), ('-1 day'), ('1 month'), ('-1 month'), ('1 year'),
    ('1 month -29 days'), ('1 day 1 microsecond'), ('2 days'), ('-1 day 23:59:59'),
    ('2147483647 days'), ('-2147483648 days'),
    ('2147483647 days 2562047788:00:54.775807'),
    ('-2147483648 days -2562047788:00:54.775807')) AS s (ttl);
SELECT pg_temp.error_of('SELECT distlock_try_acquire(''a'', ttl => ''0'')');
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', ttl => ''0'', scope => ''session'')');
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', ttl => ''2 days'', scope => ''transaction'')');
-- The sum counts, not its parts.
SELECT distlock_release('a', distlock_acquire('a', ttl => '-1 day 24:00:30'));
SELECT distlock_release('a', distlock_acquire('a', ttl => '1 day'));
SELECT distlock_release('a', distlock_acquire('a', ttl => '24:00:00'));

-- An infinite interval, which is no interval at all before version 17
SELECT CASE WHEN current_setting('server_version_num')::int < 170000
    THEN '22007' ELSE '22023' END AS infinite \gset
SELECT argument, value, left(pg_temp.error_of(format('SELECT distlock_acquire(''a'', %I => %L)',
    argument, value)), 5) = :'infinite' AS refused
FROM (VALUES ('ttl'), ('wait')) AS a (argument), (VALUES ('infinity'), ('-infinity')) AS v (value);

-- A renewal is checked alike, and before the lease is looked for.
SELECT ttl || '  ' || pg_temp.error_of(format('SELECT distlock_renew(''a'', 1, %L)', ttl))
FROM (VALUES ('0'), ('-1 second'), ('1 month'), ('1 day 1 second'), ('2147483647 days')) AS s (ttl);

-- The settings bound it.
SET distlock.default_ttl = '2d';
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'')');
SELECT distlock_release('a', distlock_acquire('a', ttl => '30 s'));
SELECT distlock_release('a', distlock_acquire('a', scope => 'session'));
SET distlock.max_ttl = '3d';
SELECT distlock_release('a', distlock_acquire('a'));
SET distlock.max_ttl = '1min';
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', ttl => ''61 s'')');
SELECT pg_temp.error_of('SELECT distlock_renew(''a'', 1, ''61 s'')');
SET distlock.default_ttl = '45500ms';
SELECT distlock_acquire('a') AS token \gset
SELECT ttl, remaining <= ttl FROM distlock_leases WHERE token = :token;
SELECT distlock_release('a', :token);
SET distlock.default_ttl = '30s';
SET distlock.max_ttl = '1d';

--
-- The wait
--
SELECT wait || '  ' || pg_temp.error_of(format('SELECT distlock_acquire(''a'', wait => %L)', wait))
FROM (VALUES ('-1 microsecond'), ('-1 day'), ('1 month'), ('1 year'),
    ('1 day -25:00:00'), ('2147483647 days 2562047788:00:54.775807')) AS s (wait);
SELECT pg_temp.error_of('SELECT distlock_try_acquire(''a'', wait => ''-1 s'')');
-- Longer than anybody waits
SELECT distlock_release('a', distlock_acquire('a', wait => '2147483647 hours'));
SELECT distlock_release('a', distlock_acquire('a', wait => '0'));

--
-- Mode and scope
--
SELECT pg_temp.error_of(format('SELECT distlock_acquire(''a'', mode => %L)', mode))
FROM (VALUES (''), ('Exclusive'), ('exclusive '), ('share'), ('read')) AS s (mode);
SELECT pg_temp.error_of(format('SELECT distlock_acquire(''a'', scope => %L)', scope))
FROM (VALUES (''), ('Lease'), ('lease '), ('xact'), ('session; DROP')) AS s (scope);
SELECT pg_temp.error_of('SELECT distlock_try_acquire(''a'', mode => ''none'')');
SELECT pg_temp.error_of('SELECT distlock_try_acquire(''a'', scope => ''none'')');

--
-- The holder is a label of at most 127 bytes.
--
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', holder => repeat(''h'', 128))');
SELECT distlock_acquire('a', holder => repeat('h', 127)) AS token \gset
SELECT length(holder) FROM distlock_leases WHERE token = :token;
SELECT distlock_release('a', :token);
SELECT distlock_acquire('a', holder => '') AS token \gset
SELECT holder = '' FROM distlock_leases WHERE token = :token;
SELECT distlock_release('a', :token);

--
-- durable: only of scope lease, where distlock.durable is the default.
--
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', durable => true, scope => ''session'')');
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', durable => true, scope => ''transaction'')');
SELECT distlock_acquire('default') AS a, distlock_acquire('true', durable => true) AS b,
    distlock_acquire('false', durable => false) AS c, distlock_acquire('session', scope => 'session') AS d \gset
SET distlock.durable = off;
SELECT distlock_acquire('off') AS e, distlock_acquire('off true', durable => true) AS f \gset
RESET distlock.durable;
SELECT name, durable FROM distlock_leases ORDER BY token;
SELECT i.name FROM distlock_images i JOIN distlock_leases l USING (token) ORDER BY token;
SELECT distlock_release('default', :a), distlock_release('true', :b), distlock_release('false', :c),
    distlock_release('session', :d), distlock_release('off', :e), distlock_release('off true', :f);
--
-- Any bigint may be asked for; nobody ever held these.
--
SELECT token, distlock_check('a', token), distlock_release('a', token)
FROM (VALUES (0), (-1), (9223372036854775807), (-9223372036854775808)) AS s (token);
SELECT pg_temp.error_of('SELECT distlock_renew(''a'', -1)');

--
-- max_holders, request_id, advisory_key
--
SELECT max_holders || '  ' || pg_temp.error_of(format('SELECT distlock_acquire(''a'', max_holders => %s)', max_holders))
FROM (VALUES ('0'), ('-1'), ('-2147483648')) AS s (max_holders);
SELECT distlock_release('a', distlock_acquire('a', max_holders => 2147483647));
-- The mode of a permit does not matter, but it has to be one.
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', max_holders => 1, mode => ''permit'')');
SELECT pg_temp.error_of('SELECT distlock_acquire(''a'', max_holders => 1, mode => NULL)');
SELECT distlock_release('a', distlock_acquire('a', max_holders => 1, mode => 'shared'));

SELECT pg_temp.error_of(format('SELECT distlock_acquire(''a'', request_id => %s)', request_id))
FROM (VALUES (''''''), ('repeat(''r'', 128)'), ('repeat(''r'', 1000000)')) AS s (request_id);
SELECT distlock_acquire('a', request_id => repeat('r', 127)) AS token \gset
SELECT distlock_acquire('a', request_id => repeat('r', 127)) = :token;
SELECT left(pg_temp.error_of('SELECT distlock_acquire(''a'', wait => ''0'', request_id => repeat(''r'', 126))'), 5);
SELECT distlock_release('a', :token);
-- Bytes count, not characters.
SELECT pg_temp.error_of(format('SELECT distlock_acquire(''a'', request_id => %L)',
    repeat(:'e', 128 / octet_length(:'e'))));

SELECT arguments || E'\n  ' || pg_temp.error_of(format('SELECT distlock_acquire(''a'', advisory_key => 1, %s)', arguments))
FROM (VALUES ('holder => NULL'), ('scope => ''lease'''), ('scope => ''session'', request_id => ''r'''),
    ('scope => ''transaction'', request_id => ''r''')) AS s (arguments);
SELECT advisory_key, distlock_release('a/' || advisory_key, distlock_acquire('a/' || advisory_key, scope => 'session', advisory_key => advisory_key))
FROM (VALUES (0), (-1), (9223372036854775807), (-9223372036854775808)) AS s (advisory_key);
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();

-- Null stands for none of them.
SELECT distlock_release('a', distlock_acquire('a', max_holders => NULL, request_id => NULL, advisory_key => NULL));

-- The other ways to acquire check the same arguments.
SELECT argument, count(*), count(DISTINCT told), min(told)
FROM (VALUES (1, 'ttl => ''0'''), (2, 'wait => ''-1 s'''), (3, 'mode => ''none'''), (4, 'scope => ''none'''),
    (5, 'holder => repeat(''h'', 128)'), (6, 'durable => true, scope => ''session'''),
    (7, 'max_holders => 0'), (8, 'request_id => '''''), (9, 'advisory_key => 1')) AS a (number, argument),
    (VALUES ('SELECT distlock_acquire(''a'', %s)'), ('SELECT distlock_try_acquire(''a'', %s)'),
    ('SELECT distlock_acquire_all(''{a}'', %s)'), ('SELECT distlock_try_acquire_all(''{a}'', %s)'),
    ('CALL distlock_lock(''a'', NULL, %s)')) AS f (function),
    pg_temp.error_of(format(function, argument)) AS told
GROUP BY number, argument ORDER BY number;

--
-- Arrays of names
--
SELECT names || E'\n  ' || pg_temp.error_of(format('SELECT distlock_acquire_all(%s)', names))
FROM (VALUES ('NULL'), ('NULL::text[]'), ('''{}'''), ('ARRAY[]::text[]'), ('ARRAY[NULL]::text[]'), ('ARRAY[''a'', NULL]'),
    ('ARRAY[''a'', '''']'), ('ARRAY[''a'', repeat(''n'', 256)]'),
    ('(SELECT array_agg(i::text) FROM generate_series(1, 65) AS i)')) AS s (names);
-- All others check them likewise.
SELECT names, count(*), count(DISTINCT pg_temp.error_of(format('SELECT %s', replace(function, '?', names)))) AS different
FROM (VALUES ('distlock_acquire_all(?)'), ('distlock_try_acquire_all(?)'), ('distlock_renew_all(?, 1)'),
    ('distlock_release_all(?, 1)'), ('distlock_check_all(?, 1)'), ('distlock_guard_all(?, 1)')) AS f (function),
    (VALUES ('NULL'), ('''{}'''), ('ARRAY[''a'', NULL]'), ('ARRAY[''a'', '''']'), ('ARRAY[''a'', repeat(''n'', 256)]'),
    ('(SELECT array_agg(i::text) FROM generate_series(1, 65) AS i)')) AS s (names)
GROUP BY names ORDER BY names COLLATE "C";
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_renew_all(''{a}'', NULL)'), ('SELECT distlock_release_all(''{a}'', NULL)'),
    ('SELECT distlock_check_all(''{a}'', NULL)'), ('SELECT distlock_guard_all(''{a}'', NULL)'),
    ('SELECT distlock_renew_all(''{a}'', 1, ''0'')')) AS s (statement);

-- However they come, they are text.  Of 65 no more than 64 differ.
CREATE DOMAIN pg_temp.lock_name AS text;
CREATE DOMAIN pg_temp.lock_names AS varchar[];
SELECT distlock_acquire_all('{a,b}') AS a, distlock_acquire_all(ARRAY['c', 'd']::varchar[]) AS b,
    distlock_acquire_all(ARRAY['e', 'f']::name[]) AS c, distlock_acquire_all('{{g,h},{i,g}}') AS d,
    distlock_acquire_all('[0:1]={j,k}') AS e, distlock_acquire_all(ARRAY['l', 'm']::pg_temp.lock_name[]) AS f,
    distlock_acquire_all(ARRAY['n', 'o']::pg_temp.lock_names) AS g,
    distlock_acquire_all('{"p,q","{r}"," s ","null"}') AS h,
    distlock_acquire_all((SELECT array_agg('many/' || i % 64) FROM generate_series(1, 65) AS i)) AS i,
    distlock_acquire_all((SELECT array_agg('t'::text) FROM generate_series(1, 10000))) AS j \gset
SELECT string_agg(format('[%s]', name), ' ' ORDER BY token, name COLLATE "C") FROM distlock_leases WHERE name NOT LIKE 'many/%';
SELECT count(*) FROM distlock_leases WHERE name LIKE 'many/%' AND token = :i;
SELECT distlock_check_all('{b,a,b}', :a), distlock_check_all(ARRAY['a', 'c'], :a), distlock_check_all('{g,h,i}', :d);
SELECT count(*), bool_and(distlock_release_all(names, token))
FROM (SELECT array_agg(name) AS names, token FROM distlock_leases GROUP BY token) AS l;

-- A name is not mistaken for an array, nor an array for a name.
SELECT distlock_release('{a,b}', distlock_acquire('{a,b}'));
SELECT left(pg_temp.error_of(statement), 5) FROM (VALUES
    ('SELECT distlock_acquire_all(''a'')'), ('SELECT distlock_acquire(ARRAY[''a''])')) AS s (statement);

-- Parameters without a type take it from the function.
PREPARE acquire AS SELECT distlock_acquire($1, ttl => $2, wait => $3, mode => $4, scope => $5,
    holder => $6, durable => $7, max_holders => $8, request_id => $9, advisory_key => $10) AS a;
EXECUTE acquire ('untyped', '1 min', '0', 'shared', 'lease', 'h', 'off', '2', 'r', NULL) \gset
PREPARE acquire_all AS SELECT distlock_acquire_all($1, $2, holder => $3) AS b;
EXECUTE acquire_all ('{a,b}', '1 min', 'all') \gset
SELECT parameter_types FROM pg_prepared_statements ORDER BY name;
SELECT name, mode, holder, durable, ttl FROM distlock_leases ORDER BY name;
PREPARE others AS SELECT distlock_check($1, $2), distlock_check_all($3, $4),
    distlock_renew_all($3, $4, $5) > clock_timestamp(), distlock_watch($1, $6, $7) = $2,
    distlock_release($1, $2), distlock_release_all($3, $4);
EXECUTE others ('untyped', :a, '{b,a}', :b, '2 min', 1, '0');
DEALLOCATE ALL;

--
-- Watching: any token, and null for a free lock.
--
SELECT statement || E'\n  ' || pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_watch(NULL, 1)'), ('SELECT distlock_watch('''', 1)'),
    ('SELECT distlock_watch(repeat(''n'', 256), 1)'),
    ('SELECT distlock_watch(''a'', NULL, ''-1 s'')'), ('SELECT distlock_watch(''a'', NULL, ''1 month'')'),
    ('CALL distlock_watch_next(NULL, 1)'), ('CALL distlock_watch_next('''', 1)'),
    ('CALL distlock_watch_next(''a'', NULL, ''-1 s'')'), ('CALL distlock_lock(NULL)'), ('CALL distlock_lock('''')')) AS s (statement);
-- No lease has these tokens, so whoever gives one learns at once what there is.
SET statement_timeout = '1min';
SELECT token, distlock_watch('a', token) IS NULL
FROM (VALUES (0), (-1), (9223372036854775807), (-9223372036854775808)) AS s (token);
CALL distlock_watch_next('a', 0);
RESET statement_timeout;
SELECT distlock_watch('a', NULL, '0') IS NULL;

-- A setting of ours that does not exist is refused.
SET distlock.max_lease = 1;

-- Whatever was refused has left nothing behind.
SELECT count(*) FROM distlock_leases;
