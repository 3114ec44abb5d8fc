--
-- The lease table: SQL may not change what is in it, and may do anything else.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

CREATE EXTENSION IF NOT EXISTS amcheck;
SET distlock.default_ttl = '1h';

-- Leases that fill more than a page
CREATE TEMP TABLE held AS
SELECT 'held ' || i AS name, distlock_acquire('held ' || i) AS token
FROM generate_series(1, 25) AS i;

-- Are all leases held still, can all images be found and overwritten, can
-- others be acquired, and are the pages as amcheck would have them?  Each call
-- renews for a little longer, so that the images are written.
CREATE SEQUENCE pg_temp.renewals;
CREATE FUNCTION pg_temp.check_all() RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    longer interval := interval '1h' + nextval('pg_temp.renewals') * interval '1s';
    n integer;
    damage text;
BEGIN
    SELECT count(*) INTO n FROM held WHERE distlock_check(name, token);
    IF n <> 25 THEN
        RETURN n || ' leases are held';
    END IF;
    PERFORM distlock_renew(name, token, longer) FROM held;
    SELECT count(*) INTO n FROM distlock_images JOIN held USING (name, token)
    WHERE ttl = longer;
    IF n <> 25 THEN
        RETURN n || ' images are as they should be';
    END IF;
    PERFORM distlock_release('other', distlock_acquire('other'));
    SELECT string_agg(v::text, E'\n') INTO damage
    FROM unnest('{distlock_lease_table,distlock_control}'::regclass[]) AS r, verify_heapam(r) AS v;
    RETURN coalesce(damage, 'all is well');
END $$;
SELECT pg_temp.check_all();

--
-- What is refused, to superusers and appliers of replication too
--
SELECT pg_temp.error_of($$INSERT INTO distlock_lease_table TABLE distlock_lease_table$$);
SELECT pg_temp.error_of($$INSERT INTO distlock_lease_table TABLE distlock_lease_table ON CONFLICT DO NOTHING$$);
SELECT pg_temp.error_of($$UPDATE distlock_lease_table SET image = image$$);
SELECT pg_temp.error_of($$DELETE FROM distlock_lease_table$$);
SELECT pg_temp.error_of($$TRUNCATE distlock_lease_table$$);
SELECT pg_temp.error_of($$MERGE INTO distlock_lease_table AS t
    USING (SELECT image FROM distlock_lease_table LIMIT 1) AS s ON false
    WHEN NOT MATCHED THEN INSERT VALUES (s.image)$$);
SELECT pg_temp.error_of($$MERGE INTO distlock_lease_table AS t
    USING (SELECT 1) AS s ON true WHEN MATCHED THEN DELETE$$);
\set VERBOSITY terse
COPY distlock_lease_table FROM stdin;
\\x0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
\.
SET session_replication_role = replica;
SELECT pg_temp.error_of($$INSERT INTO distlock_lease_table TABLE distlock_lease_table$$);
SELECT pg_temp.error_of($$UPDATE distlock_lease_table SET image = image$$);
SELECT pg_temp.error_of($$DELETE FROM distlock_lease_table$$);
SELECT pg_temp.error_of($$TRUNCATE distlock_lease_table$$);
COPY distlock_lease_table FROM stdin;
\\x0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
\.
RESET session_replication_role;
SELECT pg_temp.check_all();

--
-- What reads it
--
SELECT count(*) % 13 FROM distlock_lease_table;
SELECT count(*) <= (SELECT count(*) FROM distlock_lease_table) FROM distlock_lease_table TABLESAMPLE BERNOULLI (50) WHERE image::text LIKE '\\x%';
SELECT count(*) <= (SELECT count(*) FROM distlock_lease_table) FROM distlock_lease_table TABLESAMPLE SYSTEM (50) WHERE image::text LIKE '\\x%';
SELECT bool_and(image::text::distlock_image::text = image::text) FROM distlock_lease_table;
\o /dev/null
COPY distlock_lease_table TO stdout;
COPY distlock_lease_table TO stdout (FORMAT csv);
\o
SELECT count(*) % 13 FROM (SELECT FROM distlock_lease_table FOR UPDATE) AS locked;
SELECT pg_temp.check_all();

--
-- What tends it
--
VACUUM distlock_lease_table;
SELECT pg_temp.check_all();
VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) distlock_lease_table;
SELECT pg_temp.check_all();
ANALYZE distlock_lease_table;
VACUUM FULL distlock_lease_table, distlock_control;
SELECT pg_temp.check_all();
VACUUM (FULL, FREEZE, ANALYZE) distlock_lease_table;
SELECT pg_temp.check_all();
CREATE STATISTICS distlock_statistics ON (image::text), (image IS NULL) FROM distlock_lease_table;
ANALYZE distlock_lease_table;
DROP STATISTICS distlock_statistics;

-- What an index is of has to stay as it is.
SELECT pg_temp.error_of($$CREATE INDEX ON distlock_lease_table (image)$$);
SELECT pg_temp.error_of($$CREATE INDEX ON distlock_lease_table USING hash (image)$$);
SELECT pg_temp.error_of($$CREATE INDEX ON distlock_lease_table ((image::text))$$);
SELECT pg_temp.error_of($$ALTER TABLE distlock_lease_table ADD PRIMARY KEY (image)$$);
CREATE INDEX distlock_index ON distlock_lease_table ((1));
SELECT pg_temp.check_all();
REINDEX TABLE distlock_lease_table;
REINDEX TABLE CONCURRENTLY distlock_lease_table;
CLUSTER distlock_lease_table USING distlock_index;
SELECT pg_temp.check_all();
DROP INDEX distlock_index;

-- Whoever says so all the same gets an index that is out of date, and slots
-- that change places.
CREATE FUNCTION pg_temp.scatter(image distlock_image) RETURNS text
LANGUAGE sql IMMUTABLE AS $$SELECT md5(image::text)$$;
CREATE INDEX distlock_index ON distlock_lease_table (pg_temp.scatter(image));
CREATE TEMP TABLE places AS SELECT name, block, slot FROM distlock_images JOIN held USING (name);
CLUSTER distlock_lease_table USING distlock_index;
SELECT count(*) > 0 FROM distlock_images JOIN places USING (name) WHERE (distlock_images.block, distlock_images.slot) <> (places.block, places.slot);
SELECT pg_temp.check_all();
CLUSTER distlock_lease_table;
SELECT pg_temp.check_all();
DROP INDEX distlock_index;

--
-- What moves it
--
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE regress_distlock LOCATION '';
ALTER TABLE distlock_lease_table SET TABLESPACE regress_distlock;
SELECT pg_temp.check_all();
ALTER TABLE distlock_lease_table SET TABLESPACE pg_default;
SELECT pg_temp.check_all();
BEGIN;
ALTER TABLE distlock_lease_table SET TABLESPACE regress_distlock;
ROLLBACK;
SELECT pg_temp.check_all();

-- The transaction that does so stores nothing there.
BEGIN;
ALTER TABLE distlock_lease_table SET TABLESPACE regress_distlock;
SELECT pg_temp.error_of($$SELECT distlock_acquire('new')$$);
SELECT pg_temp.error_of($$SELECT distlock_renew(name, token, '2h') FROM held$$);
SELECT count(distlock_renew(name, token)) FROM held;
SELECT distlock_release('volatile', distlock_acquire('volatile', durable => false));
SELECT bool_and(distlock_check(name, token)) FROM held;
ROLLBACK;
SELECT pg_temp.check_all();
CREATE INDEX distlock_index ON distlock_lease_table ((1));
BEGIN;
CLUSTER distlock_lease_table USING distlock_index;
SELECT pg_temp.error_of($$SELECT distlock_acquire('new')$$);
COMMIT;
SELECT pg_temp.check_all();
DROP INDEX distlock_index;

-- A savepoint that is rolled back has not done it.
BEGIN;
SAVEPOINT s;
ALTER TABLE distlock_lease_table SET TABLESPACE regress_distlock;
ROLLBACK TO s;
SELECT distlock_acquire('new') > 0;
COMMIT;
SELECT count(*) FROM distlock_images WHERE name = 'new';

-- What was stored before goes along, or stays.
BEGIN;
SELECT distlock_release('new', token) FROM distlock_leases WHERE name = 'new';
INSERT INTO held SELECT 'held 0', distlock_acquire('held 0');
ALTER TABLE distlock_lease_table SET TABLESPACE regress_distlock;
COMMIT;
BEGIN;
SELECT distlock_acquire('new too') > 0;
ALTER TABLE distlock_lease_table SET TABLESPACE pg_default;
ROLLBACK;
SELECT count(*) FROM distlock_images JOIN held USING (name, token);
SELECT distlock_release(name, token) FROM held WHERE name = 'held 0';
DELETE FROM held WHERE name = 'held 0';
SELECT pg_temp.check_all();
ALTER TABLE distlock_lease_table SET TABLESPACE pg_default;
DROP TABLESPACE regress_distlock;

--
-- What does not outlive a crash, or is of another shape, stores nothing.
--
ALTER TABLE distlock_lease_table SET UNLOGGED;
SELECT pg_temp.error_of($$SELECT distlock_acquire('new')$$);
SELECT pg_temp.error_of($$SELECT distlock_renew(name, token, '2h') FROM held$$);
SELECT count(distlock_renew(name, token)) FROM held;
SELECT distlock_release('volatile', distlock_acquire('volatile', durable => false));
ALTER TABLE distlock_lease_table SET LOGGED;
SELECT pg_temp.check_all();
BEGIN;
ALTER TABLE distlock_lease_table ADD COLUMN more integer;
SELECT pg_temp.error_of($$SELECT distlock_acquire('new')$$);
SELECT pg_temp.error_of($$TABLE distlock_images$$);
ROLLBACK;
SELECT pg_temp.check_all();

SELECT count(*), bool_and(distlock_release(name, token)) FROM distlock_leases;
