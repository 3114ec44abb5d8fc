-- Several locks and CALL from psql, which prints TAP: its variables, arrays and
-- \gset.  The table turns must be there; t/020_drivers.pl makes it.

\set names '{several b,"several, a",several b}'
\set name 'it''s mine'
\set ttl '1 minute'

SELECT distlock_acquire_all(:'names', ttl => :'ttl') AS token \gset
SELECT CASE WHEN string_agg(name, ';' ORDER BY name COLLATE "C") = 'several b;several, a' THEN 'ok' ELSE 'not ok' END
	|| ' 1 - several: a literal' FROM distlock_leases WHERE token = :token;
SELECT CASE WHEN distlock_release_all(:'names', :token) THEN 'ok' ELSE 'not ok' END
	|| ' 2 - several: release_all';

SELECT distlock_acquire_all(ARRAY['a', 'b'], '1min') AS token \gset
SELECT CASE WHEN distlock_check_all('{a,b}', :token) THEN 'ok' ELSE 'not ok' END
	|| ' 3 - several: ARRAY of literals';
SELECT CASE WHEN distlock_release_all(ARRAY['a', 'b']::varchar[], :token) THEN 'ok' ELSE 'not ok' END
	|| ' 4 - several: varchar[]';
SELECT distlock_acquire_all(names => array_agg('n' || g), ttl => '1min', holder => 'query') AS token
	FROM generate_series(1, 64) g \gset
SELECT CASE WHEN count(*) = 64 THEN 'ok' ELSE 'not ok' END
	|| ' 5 - several: names by a query' FROM distlock_leases WHERE token = :token;
SELECT CASE WHEN distlock_release_all(array_agg(name), :token) THEN 'ok' ELSE 'not ok' END
	|| ' 6 - several: released by a query' FROM distlock_leases WHERE token = :token;

CALL distlock_lock(:'name', NULL, :'ttl') \gset
SELECT CASE WHEN distlock_check(:'name', :token) THEN 'ok' ELSE 'not ok' END
	|| ' 7 - CALL: the token';
\set mine :token
CALL distlock_watch_next(name => :'name', token => NULL) \gset
SELECT CASE WHEN :token = :mine THEN 'ok' ELSE 'not ok' END
	|| ' 8 - CALL: watch_next, by names';
SELECT CASE WHEN distlock_release(:'name', :mine) THEN 'ok' ELSE 'not ok' END
	|| ' 9 - CALL: released';
CALL distlock_watch_next(:'name', :mine) \gset
-- \gset of a null unsets the variable.
\if :{?token}
\echo not ok 10 - CALL: watch_next, null for a lock that is free
\else
\echo ok 10 - CALL: watch_next, null for a lock that is free
\endif
CALL distlock_lock(name => :'name', ttl => '1min', max_holders => 2, request_id => 'psql', scope => 'lease') \gset
\set mine :token
CALL distlock_lock(name => :'name', ttl => '1min', max_holders => 2, request_id => 'psql', scope => 'lease') \gset
SELECT CASE WHEN :token = :mine THEN 'ok' ELSE 'not ok' END
	|| ' 11 - CALL: a request that is repeated';
SELECT CASE WHEN distlock_release(:'name', :mine) THEN 'ok' ELSE 'not ok' END
	|| ' 12 - CALL: released';
\echo 1..12
