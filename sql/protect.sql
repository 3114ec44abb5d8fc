--
-- distlock_protect(): no write reaches the table without a guard on the row's
-- lock.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set begin :abs_srcdir '/sql/include/begin.sql'
\i :begin

CREATE SCHEMA regress_distlock_protect;
SET search_path = regress_distlock_protect, public;
DROP ROLE IF EXISTS regress_distlock_alice, regress_distlock_bob;
CREATE ROLE regress_distlock_alice;
CREATE ROLE regress_distlock_bob;
GRANT USAGE, CREATE ON SCHEMA regress_distlock_protect TO PUBLIC;

-- The error of a statement, without its hint; what succeeds is undone.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    error text;
BEGIN
    error := split_part(pg_temp.error_of(statement), E'\n  hint', 1);
    RAISE EXCEPTION '';
EXCEPTION WHEN raise_exception THEN
    RETURN error;
END $$;

-- Guards the transaction by the leases of these locks, which this session has
-- acquired in earlier transactions with scope lease.
CREATE FUNCTION pg_temp.guard(VARIADIC locks text[]) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM distlock_guard(name, token) FROM distlock_leases WHERE name = ANY (locks);
    RETURN 'guarded on ' || array_to_string(locks, ', ');
END $$;
-- Tries a statement under guards on these locks only.
CREATE FUNCTION pg_temp.try_with(statement text, VARIADIC locks text[]) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    error text;
BEGIN
    PERFORM pg_temp.guard(VARIADIC locks);
    error := pg_temp.try(statement);
    RAISE EXCEPTION '';
EXCEPTION WHEN raise_exception THEN
    RETURN error;
END $$;

\set SHOW_CONTEXT never

--
-- A lock for each row
--
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL DEFAULT 0);
INSERT INTO account VALUES (1, 10), (2, 20), (3, 30);
SELECT distlock_protect('account', 'account:{id}');
SELECT * FROM distlock_protected;
SELECT count(distlock_acquire('account:' || i)) FROM generate_series(1, 9) AS i WHERE i NOT IN (3, 4);

INSERT INTO account VALUES (5);
UPDATE account SET balance = 0 WHERE id = 2;
DELETE FROM account WHERE id = 1;
TRUNCATE account;
COPY account FROM stdin;
6	60
\.

CREATE TEMP TABLE writes (statement text);
INSERT INTO writes VALUES
    ('INSERT INTO account VALUES (5)'),
    ('INSERT INTO account SELECT i FROM generate_series(5, 9) AS i'),
    ('INSERT INTO account VALUES (2) ON CONFLICT (id) DO UPDATE SET balance = 0'),
    ('INSERT INTO account VALUES (5) ON CONFLICT DO NOTHING'),
    ('UPDATE account SET balance = 0 WHERE id = 2'),
    ('UPDATE account SET id = 5 WHERE id = 2'),
    ('DELETE FROM account WHERE id = 2'),
    ('WITH gone AS (DELETE FROM account WHERE id = 2 RETURNING id) SELECT * FROM gone'),
    ('WITH new AS (INSERT INTO account VALUES (5) RETURNING id) INSERT INTO account SELECT id + 1 FROM new'),
    ('MERGE INTO account USING (VALUES (2), (5)) AS s (i) ON id = i
      WHEN MATCHED THEN UPDATE SET balance = 0 WHEN NOT MATCHED THEN INSERT VALUES (i)'),
    ('MERGE INTO account USING (VALUES (2)) AS s (i) ON id = i WHEN MATCHED THEN DELETE');
-- Without a guard, with one on another lock, and with those that it takes
SELECT statement || E'\n  ' || pg_temp.try(statement) FROM writes;
SELECT pg_temp.try_with(statement, 'account:1') = pg_temp.try(statement) FROM writes;
SELECT pg_temp.try_with(statement, 'account:2', 'account:5', 'account:6', 'account:7', 'account:8', 'account:9')
FROM writes;
-- All of it is undone.
SELECT * FROM account ORDER BY id;

-- What does not write a row needs no guard.
SELECT pg_temp.try(statement) FROM (VALUES
    ('INSERT INTO account SELECT WHERE false'),
    ('INSERT INTO account VALUES (3) ON CONFLICT DO NOTHING'),
    ('INSERT INTO account VALUES (3) ON CONFLICT (id) DO UPDATE SET balance = 0 WHERE false'),
    ('UPDATE account SET balance = 0 WHERE id = 1000'),
    ('DELETE FROM account WHERE id = 1000'),
    ('MERGE INTO account USING (VALUES (3)) AS s (i) ON id = i WHEN MATCHED THEN DO NOTHING'),
    ('SELECT FROM account FOR UPDATE'),
    ('LOCK TABLE account'),
    ('ALTER TABLE account ADD COLUMN more text DEFAULT now()')) AS s (statement);

-- The last of many rows
SELECT pg_temp.try_with('INSERT INTO account SELECT i FROM generate_series(5, 10) AS i',
    'account:5', 'account:6', 'account:7', 'account:8', 'account:9');
SELECT pg_temp.try_with('UPDATE account SET balance = 0', 'account:1', 'account:2');

-- An UPDATE that moves a row needs both locks.
SELECT pg_temp.try_with('UPDATE account SET id = 5 WHERE id = 2', 'account:2');
SELECT pg_temp.try_with('UPDATE account SET id = 5 WHERE id = 2', 'account:5');
SELECT pg_temp.try_with('UPDATE account SET id = 5 WHERE id = 2', 'account:2', 'account:5');

-- COPY with guards
BEGIN;
SELECT pg_temp.guard('account:6', 'account:7');
COPY account FROM stdin;
6	60
7	70
\.
COMMIT;
BEGIN;
SELECT pg_temp.guard('account:8');
COPY account FROM stdin;
8	80
4	40
\.
ROLLBACK;
SELECT * FROM account ORDER BY id;

-- TRUNCATE names no row: refused whatever guards there are.
SELECT pg_temp.try_with('TRUNCATE account', 'account:1', 'account:2', 'account:6', 'account:7');

-- The lease counts at commit, as for any guard.
BEGIN;
SELECT pg_temp.guard('account:1');
UPDATE account SET balance = 11 WHERE id = 1;
SELECT distlock_renew(name, token, '1 us') IS NOT NULL FROM distlock_leases WHERE name = 'account:1';
\set VERBOSITY sqlstate
COMMIT;
\set VERBOSITY default
SELECT balance FROM account WHERE id = 1;
-- One that is lost before the write, but after the guard, is refused there, too.
SELECT distlock_acquire('account:1') > 0;
BEGIN;
SELECT pg_temp.guard('account:1');
SELECT distlock_renew(name, token, '1 us') IS NOT NULL FROM distlock_leases WHERE name = 'account:1';
UPDATE account SET balance = 11 WHERE id = 1;
\set VERBOSITY sqlstate
COMMIT;
\set VERBOSITY default
SELECT balance FROM account WHERE id = 1;

--
-- One lock for the table
--
CREATE TABLE ledger (entry text);
SELECT distlock_protect('ledger', 'ledger');
SELECT distlock_acquire('ledger') > 0;
DELETE FROM writes;
INSERT INTO writes VALUES
    ('INSERT INTO ledger VALUES (''one'')'),
    ('INSERT INTO ledger SELECT ''many'' FROM generate_series(1, 1000)'),
    ('WITH new AS (INSERT INTO ledger VALUES (''one'') RETURNING 1) SELECT FROM new'),
    ('TRUNCATE ledger');
SELECT pg_temp.try(statement) FROM writes;
SELECT pg_temp.try_with(statement, 'account:2') FROM writes;
SELECT pg_temp.try_with(statement, 'ledger') FROM writes;
SELECT pg_temp.try('UPDATE ledger SET entry = ''none''');
COPY ledger FROM stdin;
one
\.
BEGIN;
SELECT pg_temp.guard('ledger');
COPY ledger FROM stdin;
one
two
\.
DELETE FROM ledger WHERE entry = 'two';
COMMIT;
SELECT * FROM ledger;

-- A guard that has gone with its savepoint is gone for a statement prepared
-- before, and within a loop.
PREPARE enter AS INSERT INTO ledger VALUES ($1) RETURNING entry;
BEGIN;
SELECT pg_temp.guard('account:2');
SAVEPOINT s;
SELECT pg_temp.guard('ledger');
EXECUTE enter('before');
EXECUTE enter('again');
ROLLBACK TO SAVEPOINT s;
EXECUTE enter('after');
ROLLBACK;
DEALLOCATE enter;
CREATE FUNCTION pg_temp.loop(guard_at int[], by_hand boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    told text := '';
BEGIN
    FOR i IN 1..4 LOOP
        BEGIN
            IF i = ANY (guard_at) THEN
                PERFORM pg_temp.guard('ledger');
            END IF;
            IF NOT by_hand THEN
                INSERT INTO ledger VALUES (i);
            ELSIF distlock_unguarded('ledger', 'ledger') THEN
                RETURN 'never true';
            END IF;
            told := told || i || ' written, ';
            RAISE EXCEPTION '';
        EXCEPTION WHEN raise_exception THEN
            NULL;
        WHEN SQLSTATE 'LK002' THEN
            told := told || i || ' refused, ';
        END;
    END LOOP;
    RETURN told || 'done';
END $$;
SELECT pg_temp.loop('{1, 3}', false);
-- What a trigger calls for each statement anew, a function may call throughout
-- its transaction.
SELECT pg_temp.loop('{1, 3}', true);
SELECT pg_temp.guard('ledger'), pg_temp.loop('{}', false), pg_temp.loop('{}', true);
SELECT * FROM ledger;

--
-- Leases that guard without being asked: of session or transaction scope, or
-- acquired in this transaction.
--
SELECT distlock_acquire('account:3') AS three \gset
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
SELECT distlock_release('account:3', :three);
SELECT distlock_acquire('account:3', scope => 'session') AS three \gset
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
-- Not if it is released or expired
BEGIN;
SELECT distlock_release('account:3', :three);
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
ROLLBACK;
-- ... at the latest at commit
BEGIN;
UPDATE account SET balance = 0 WHERE id = 3;
SELECT distlock_renew('account:3', :three, '1 us') IS NOT NULL;
\set VERBOSITY sqlstate
COMMIT;
\set VERBOSITY default
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
BEGIN;
SELECT distlock_acquire('account:3', scope => 'transaction') > 0;
UPDATE account SET balance = 31 WHERE id = 3;
COMMIT;
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
BEGIN;
SELECT distlock_acquire('account:3') AS three \gset
UPDATE account SET balance = 32 WHERE id = 3;
COMMIT;
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
SELECT distlock_release('account:3', :three);
-- Acquired and written in one statement
WITH lease AS MATERIALIZED (SELECT distlock_acquire('account:3', scope => 'transaction'))
UPDATE account SET balance = 33 FROM lease WHERE id = 3;
-- Acquired in a savepoint, and again after that is gone
BEGIN;
SAVEPOINT s;
SELECT distlock_acquire('account:3') > 0;
UPDATE account SET balance = 0 WHERE id = 3;
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
COMMIT;
-- Such a guard goes with the savepoint of the write, and comes again.
SELECT distlock_acquire('account:3', scope => 'session') AS three \gset
BEGIN;
SAVEPOINT s;
UPDATE account SET balance = 0 WHERE id = 3;
ROLLBACK TO SAVEPOINT s;
UPDATE account SET balance = 34 WHERE id = 3;
COMMIT;
BEGIN;
SAVEPOINT s;
UPDATE account SET balance = 0 WHERE id = 3;
ROLLBACK TO SAVEPOINT s;
SELECT distlock_renew('account:3', :three, '1 us') IS NOT NULL;
COMMIT;
SELECT balance FROM account WHERE id = 3;
-- Shared leases guard as well.
SELECT distlock_acquire('account:3', mode => 'shared', scope => 'session') AS three \gset
SELECT distlock_acquire('account:3', mode => 'shared', scope => 'session') AS another \gset
UPDATE account SET balance = 35 WHERE id = 3;
SELECT distlock_release('account:3', :three), distlock_release('account:3', :another);
-- The lease must be older than the snapshot, as for any guard.
SELECT distlock_acquire('account:3', scope => 'session') AS three \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
UPDATE account SET balance = 36 WHERE id = 3;
SELECT distlock_acquire('account:4') > 0;
SELECT pg_temp.error_of('INSERT INTO account VALUES (4)');
COMMIT;
SELECT balance FROM account WHERE id = 3;
SELECT distlock_release('account:3', :three);

--
-- Other triggers: what counts is the row as it was written.
--
CREATE TABLE moved (id int, note text);
CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.id := NEW.id + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER zzz_last BEFORE INSERT OR UPDATE ON moved FOR EACH ROW EXECUTE FUNCTION move();
SELECT distlock_protect('moved', 'account:{id}');
SELECT pg_temp.try_with('INSERT INTO moved VALUES (1)', 'account:1');
SELECT pg_temp.try_with('INSERT INTO moved VALUES (1)', 'account:2');
BEGIN;
SELECT pg_temp.guard('account:2');
INSERT INTO moved VALUES (1);
COMMIT;
SELECT distlock_acquire('account:3') > 0;
SELECT pg_temp.try_with('UPDATE moved SET note = ''moves on''', 'account:2');
SELECT pg_temp.try_with('UPDATE moved SET note = ''moves on''', 'account:2', 'account:3');
SELECT distlock_release(name, token) FROM distlock_leases WHERE name = 'account:3';
DROP TRIGGER zzz_last ON moved;
CREATE FUNCTION move_later() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE moved SET id = id + 1 WHERE id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER aaa_first AFTER INSERT ON moved FOR EACH ROW EXECUTE FUNCTION move_later();
SELECT pg_temp.try_with('INSERT INTO moved VALUES (5)', 'account:5');
SELECT pg_temp.try_with('INSERT INTO moved VALUES (5)', 'account:5', 'account:6');
DROP TRIGGER aaa_first ON moved;
-- A row that a trigger suppresses is not written.
CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER suppress BEFORE DELETE ON moved FOR EACH ROW EXECUTE FUNCTION suppress();
SELECT pg_temp.try('DELETE FROM moved');
-- Written by a deferred trigger, at commit
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON moved
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION move_later();
BEGIN;
SELECT pg_temp.guard('account:5');
INSERT INTO moved VALUES (5);
COMMIT;
BEGIN;
SELECT pg_temp.guard('account:5', 'account:6');
INSERT INTO moved VALUES (5);
COMMIT;
SELECT id FROM moved ORDER BY id;

--
-- Names: several columns, quoted ones, braces
--
CREATE TABLE named (a int, "B {x}""}" text, c int GENERATED ALWAYS AS (a * 10) STORED, d text, e int);
SELECT template || E'\n  ' || pg_temp.error_of(format('SELECT distlock_protect(''named'', %L)', template))
FROM (VALUES (''), ('{'), ('}'), ('{a'), ('a}'), ('{a}}'), ('{"a}'), ('{"a"b}'), ('{}'), ('{A}'), ('{ctid}'), ('{nope}'),
    (repeat('n', 256)), (repeat('n', 256) || '{a}')) AS s (template);
SELECT left(pg_temp.error_of(format('SELECT distlock_protect(''named'', %L)', repeat('{a}', 100))), 5);
SELECT pg_temp.error_of('SELECT distlock_protect(NULL, ''a'')'), pg_temp.error_of('SELECT distlock_protect(''named'', NULL)');
SELECT count(*) FROM distlock_protected WHERE rel = 'named'::regclass;

-- The lock's name that each makes of the row (1, b, 10, null, 5)
CREATE FUNCTION pg_temp.name_by(template text, OUT shown text, OUT lock text)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM distlock_protect('named', template);
    SELECT name INTO shown FROM distlock_protected WHERE rel = 'named'::regclass;
    lock := regexp_replace(pg_temp.try('INSERT INTO named VALUES (1, ''b'', DEFAULT, NULL, 5)'), '.*\n  detail: ', '');
    PERFORM distlock_unprotect('named');
END $$;
SELECT template, (pg_temp.name_by(template)).* FROM (VALUES
    ('{a}'), ('{"a"}'), ('{a}{e}'), ('n:{a}/{e}/{a}.'), ('{c}'), ('{"B {x}""}"}'), ('{d}'), ('n{d}'),
    ('{{a}}'), ('{{{a}}}'), ('}}{{'), ('%s''\n{a}'), (repeat('n', 252) || '{{{a}}}')) AS s (template);
-- As long as a lock's name may be, and longer
SELECT pg_temp.name_by(repeat('n', 254) || '{a}') = (repeat('n', 254) || '{a}',
    format('This transaction is not guarded by a lease of lock "%s1".', repeat('n', 254)));
SELECT (pg_temp.name_by(repeat('n', 254) || '{c}')).lock;

-- A null in the name: there is no lock that would do.  Empty names neither.
SELECT distlock_protect('named', '{"B {x}""}"}{d}');
SELECT distlock_acquire('b') > 0;
SELECT pg_temp.try_with('INSERT INTO named VALUES (1, ''b'')', 'b');
SELECT pg_temp.try_with('INSERT INTO named VALUES (1, ''b'', DEFAULT, '''')', 'b');
SELECT pg_temp.try('INSERT INTO named VALUES (1, '''', DEFAULT, '''')');
SELECT pg_temp.try('INSERT INTO named VALUES (1, repeat(''n'', 256), DEFAULT, '''')');
BEGIN;
SELECT pg_temp.guard('b');
INSERT INTO named VALUES (1, 'b', DEFAULT, '');
COMMIT;
SELECT pg_temp.try_with('UPDATE named SET d = NULL', 'b');

-- Columns: renamed, and neither dropped nor altered
ALTER TABLE named RENAME COLUMN "B {x}""}" TO b;
SELECT name FROM distlock_protected WHERE rel = 'named'::regclass;
ALTER TABLE named RENAME COLUMN b TO "new}";
ALTER TABLE named DROP COLUMN a CASCADE;
SELECT name FROM distlock_protected WHERE rel = 'named'::regclass;
SELECT pg_temp.try_with('UPDATE named SET "new}" = ''c''', 'b');
SELECT pg_temp.try_with('UPDATE named SET e = 1', 'b');
SELECT left(pg_temp.error_of('ALTER TABLE named DROP COLUMN "new}"'), 5),
    left(pg_temp.error_of('ALTER TABLE named ALTER COLUMN d TYPE varchar(10)'), 5);
-- With CASCADE the protection goes, but for the refusal of TRUNCATE.
BEGIN;
ALTER TABLE named DROP COLUMN d CASCADE;
SELECT name, enabled FROM distlock_protected WHERE rel = 'named'::regclass;
SELECT pg_temp.try('DELETE FROM named'), left(pg_temp.try('TRUNCATE named'), 5);
SELECT distlock_unprotect('named');
SELECT pg_temp.try('TRUNCATE named');
ROLLBACK;
-- A generated column
SELECT distlock_unprotect('named');
ALTER TABLE named ADD COLUMN a int, ADD COLUMN c int GENERATED ALWAYS AS (a * 10) STORED;
SELECT distlock_protect('named', 'account:{c}');
SELECT pg_temp.try('UPDATE named SET a = 1');
DELETE FROM named;
SELECT distlock_unprotect('named');
DELETE FROM named;
SELECT distlock_protect('named', 'account:{c}');
SELECT distlock_acquire('account:10') > 0, distlock_acquire('account:20') > 0;
BEGIN;
SELECT pg_temp.guard('account:10');
INSERT INTO named VALUES (NULL, NULL, NULL, 1);
COMMIT;
SELECT pg_temp.try_with('UPDATE named SET a = 2', 'account:10'),
    pg_temp.try_with('UPDATE named SET a = 2', 'account:10', 'account:20');

-- Tables: renamed, moved, and with odd names
CREATE SCHEMA "Odd {""}";
CREATE TABLE "Odd {""}"."T'a%s" ("I'd%s" int);
SET search_path = '';
SELECT public.distlock_protect('"Odd {""}"."T''a%s"', 'account:{I''d%s}');
SELECT * FROM public.distlock_protected WHERE name LIKE '%I''d%';
SET search_path = regress_distlock_protect, public;
INSERT INTO "Odd {""}"."T'a%s" VALUES (5);
ALTER TABLE "Odd {""}"."T'a%s" SET SCHEMA regress_distlock_protect;
ALTER TABLE "T'a%s" RENAME TO plain;
INSERT INTO plain VALUES (5);
SELECT pg_temp.try_with('INSERT INTO plain VALUES (5)', 'account:5');
SELECT distlock_unprotect('plain');
INSERT INTO plain VALUES (5);
DROP SCHEMA "Odd {""}";
CREATE TEMP TABLE temporary (id int) ON COMMIT DELETE ROWS;
SELECT distlock_protect('temporary', 'account:{id}');
INSERT INTO temporary VALUES (5);
BEGIN;
SELECT pg_temp.guard('account:5');
INSERT INTO temporary VALUES (5);
SELECT count(*) FROM temporary;
COMMIT;
SELECT count(*) FROM temporary;

--
-- Columns whose text depends on settings of the session, and some whose does not
--
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN feeling AS mood;
CREATE DOMAIN day AS date;
CREATE TABLE typed (a_date date, a_domain day, a_timestamptz timestamptz, a_float float8, some_bytes bytea,
    an_array int[], an_interval interval, a_price money, a_point point,
    an_int bigint, a_numeric numeric, a_uuid uuid, a_bool boolean, a_name name, a_char char(3),
    a_label mood, a_label_domain feeling, an_address inet, a_varchar varchar(10));
SELECT attname, pg_temp.error_of(format('SELECT distlock_protect(''typed'', ''typed:{%s}'')', attname)),
    pg_temp.error_of('SELECT distlock_unprotect(''typed'')') = 'no error' AS was_protected
FROM pg_attribute WHERE attrelid = 'typed'::regclass AND attnum > 0 ORDER BY attnum;

--
-- Partitioned tables
--
CREATE TABLE part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (6);
CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (6) TO (8) PARTITION BY LIST (k);
CREATE TABLE part2a PARTITION OF part2 FOR VALUES IN (6);
SELECT distlock_protect('part', 'account:{k}');
SELECT * FROM distlock_protected WHERE rel::text LIKE 'part%';
SELECT pg_temp.try(statement) FROM (VALUES ('INSERT INTO part VALUES (5)'), ('INSERT INTO part1 VALUES (5)'),
    ('INSERT INTO part VALUES (6)'), ('INSERT INTO part2 VALUES (6)'), ('INSERT INTO part2a VALUES (6)'),
    ('TRUNCATE part'), ('TRUNCATE part1'), ('TRUNCATE part2'), ('TRUNCATE part2a'), ('TRUNCATE ledger, part2a')) AS s (statement);
BEGIN;
SELECT pg_temp.guard('account:5', 'account:6');
INSERT INTO part VALUES (5);
INSERT INTO part2 VALUES (6);
COMMIT;
-- Rows that move
SELECT pg_temp.try_with('UPDATE part SET k = 6 WHERE k = 5', 'account:5'),
    pg_temp.try_with('UPDATE part SET k = 6 WHERE k = 5', 'account:6'),
    pg_temp.try_with('UPDATE part SET k = 6 WHERE k = 5', 'account:5', 'account:6');
-- Partitions created and attached later
CREATE TABLE part2b PARTITION OF part2 FOR VALUES IN (7);
CREATE TABLE part3 (v text, dropped int, k int);
ALTER TABLE part3 DROP COLUMN dropped;
INSERT INTO part3 VALUES ('before', 8);
ALTER TABLE part ATTACH PARTITION part3 FOR VALUES FROM (8) TO (10);
SELECT pg_temp.try(statement) FROM (VALUES ('INSERT INTO part2b VALUES (7)'), ('DELETE FROM part3'),
    ('DELETE FROM part WHERE k = 8'), ('TRUNCATE part2b'), ('TRUNCATE part3')) AS s (statement);
SELECT pg_temp.try_with('DELETE FROM part3', 'account:8');
-- Also where replicated changes are applied
SET session_replication_role = replica;
SELECT pg_temp.try(statement) FROM (VALUES ('INSERT INTO part VALUES (5)'), ('DELETE FROM part1'), ('DELETE FROM part3'),
    ('INSERT INTO part2b VALUES (7)'), ('TRUNCATE part3'), ('TRUNCATE part'), ('INSERT INTO account VALUES (5)'),
    ('TRUNCATE ledger')) AS s (statement);
RESET session_replication_role;
-- They go with their table.
SELECT pg_temp.error_of('SELECT distlock_unprotect(''part1'')');
SELECT left(pg_temp.error_of('DROP TRIGGER distlock_protect_insert ON part1'), 5);
ALTER TABLE part DETACH PARTITION part3;
SELECT pg_temp.try('DELETE FROM part3'), pg_temp.try('TRUNCATE part3');
SELECT distlock_unprotect('part');
SELECT pg_temp.try('DELETE FROM part'), pg_temp.try('TRUNCATE part1'), pg_temp.try('INSERT INTO part2b VALUES (7)');
-- One lock for all of it, and one more for some of it
SELECT distlock_protect('part', 'ledger');
SELECT distlock_protect('part1', 'account:{k}');
SELECT rel, name FROM distlock_protected WHERE rel::text LIKE 'part%' ORDER BY rel::text;
SELECT pg_temp.try_with(statement, 'ledger') FROM (VALUES ('DELETE FROM part'), ('DELETE FROM part2a'),
    ('TRUNCATE part2a'), ('TRUNCATE part2'), ('TRUNCATE part1'), ('TRUNCATE part')) AS s (statement);
SELECT pg_temp.try_with('DELETE FROM part', 'account:5', 'account:6');
SELECT pg_temp.try_with('TRUNCATE part2a', 'account:6');
SELECT pg_temp.try_with('DELETE FROM part', 'account:5', 'ledger');
SELECT distlock_unprotect('part1');
SELECT pg_temp.try_with('TRUNCATE part', 'ledger');
-- Both of the same kind would have triggers of one name.
SELECT pg_temp.error_of('SELECT distlock_protect(''part1'', ''another'')');

--
-- Inheritance: triggers are not inherited, so neither is protection.
--
CREATE TABLE parent (k int);
CREATE TABLE child () INHERITS (parent);
SET client_min_messages = notice;
SELECT distlock_protect('parent', 'account:{k}');
SET client_min_messages = warning;
SELECT pg_temp.try('INSERT INTO parent VALUES (5)'), pg_temp.try('INSERT INTO child VALUES (5)');
INSERT INTO child VALUES (5);
SELECT pg_temp.try('UPDATE parent SET k = 6');
SELECT pg_temp.try('TRUNCATE parent');
SELECT distlock_protect('child', 'account:{k}'), distlock_unprotect('parent');
SELECT pg_temp.try('INSERT INTO parent VALUES (5)'), pg_temp.try('INSERT INTO child VALUES (5)');
SELECT pg_temp.try('UPDATE parent SET k = 6');
SELECT pg_temp.try('TRUNCATE parent');
SELECT pg_temp.try_with('UPDATE parent SET k = 6', 'account:5', 'account:6');

--
-- Foreign keys: a cascade is a write.
--
CREATE TABLE customer (id int PRIMARY KEY);
CREATE TABLE purchase (customer int REFERENCES customer ON DELETE CASCADE ON UPDATE CASCADE, what text);
CREATE TABLE favourite (customer int REFERENCES customer ON DELETE SET NULL ON UPDATE CASCADE, what text);
INSERT INTO customer VALUES (1), (2), (5);
INSERT INTO purchase VALUES (1, 'a'), (1, 'b');
INSERT INTO favourite VALUES (2, 'a');
SELECT distlock_protect('purchase', 'account:{customer}'), distlock_protect('favourite', 'account:{customer}');
SELECT distlock_acquire('account:1') > 0;
SELECT pg_temp.try('DELETE FROM customer WHERE id = 1'), pg_temp.try('UPDATE customer SET id = 6 WHERE id = 1'),
    pg_temp.try('TRUNCATE customer CASCADE'), pg_temp.try('DELETE FROM customer WHERE id = 5');
SELECT pg_temp.try_with('DELETE FROM customer WHERE id = 1', 'account:1'),
    pg_temp.try_with('UPDATE customer SET id = 6 WHERE id = 1', 'account:1'),
    pg_temp.try_with('UPDATE customer SET id = 6 WHERE id = 1', 'account:1', 'account:6');
-- Without its customer the row has no lock.
SELECT pg_temp.try('DELETE FROM customer WHERE id = 2'), pg_temp.try_with('DELETE FROM customer WHERE id = 2', 'account:2');
SELECT distlock_unprotect('favourite'), distlock_protect('favourite', '{what}');
SELECT distlock_acquire('a') > 0;
SELECT pg_temp.try('DELETE FROM customer WHERE id = 2'), pg_temp.try_with('DELETE FROM customer WHERE id = 2', 'a');

--
-- Views, rules, SECURITY DEFINER
--
CREATE VIEW account_view AS SELECT id, balance AS amount FROM account WHERE id < 9 WITH CHECK OPTION;
CREATE TABLE ruled (id int);
CREATE RULE ruled AS ON INSERT TO ruled DO INSTEAD INSERT INTO account VALUES (NEW.id, 1);
CREATE FUNCTION enter(id int) RETURNS void LANGUAGE sql SECURITY DEFINER
AS 'INSERT INTO regress_distlock_protect.account VALUES (id, 1)';
DELETE FROM writes;
INSERT INTO writes VALUES ('INSERT INTO account_view VALUES (8, 80)'), ('UPDATE account_view SET amount = 0 WHERE id = 5'),
    ('DELETE FROM account_view WHERE id = 5'), ('INSERT INTO ruled VALUES (8)'), ('SELECT enter(8)');
BEGIN;
SELECT pg_temp.guard('account:5');
INSERT INTO account VALUES (5);
COMMIT;
SELECT pg_temp.try(statement) FROM writes;
SELECT pg_temp.try_with(statement, 'account:5', 'account:8') FROM writes;

-- Whoever may write the table needs no other rights than on the lease.
GRANT SELECT, INSERT, UPDATE, TRIGGER ON account TO regress_distlock_bob;
SET ROLE regress_distlock_bob;
SELECT pg_temp.try('UPDATE account SET balance = 0 WHERE id = 3');
SELECT pg_temp.try('SELECT enter(9)');
SELECT distlock_acquire('account:3') AS three \gset
BEGIN;
SELECT distlock_guard('account:3', :three);
UPDATE account SET balance = 37 WHERE id = 3;
COMMIT;
SELECT distlock_release('account:3', :three);

--
-- Who may protect
--
SELECT pg_temp.error_of(statement) FROM (VALUES
    ('SELECT distlock_protect(''account'', ''a'')'),
    ('SELECT distlock_unprotect(''account'')'),
    ('SELECT distlock_protect(''pg_class'', ''a'')')) AS s (statement);
CREATE TABLE of_bob (id int);
SELECT distlock_protect('of_bob', '{id}');
SELECT rel, name FROM distlock_protected WHERE rel = 'of_bob'::regclass;
SET ROLE regress_distlock_alice;
SELECT left(pg_temp.error_of('SELECT distlock_unprotect(''of_bob'')'), 5);
RESET ROLE;
GRANT regress_distlock_bob TO regress_distlock_alice;
SET ROLE regress_distlock_alice;
SELECT distlock_unprotect('of_bob'), distlock_protect('of_bob', 'a');
RESET ROLE;
SELECT distlock_unprotect('of_bob'), distlock_protect('of_bob', 'b');

-- What cannot be protected
CREATE SEQUENCE seq;
CREATE MATERIALIZED VIEW matview AS SELECT 1;
SELECT pg_temp.try(format('SELECT distlock_protect(%L, ''a'')', rel))
FROM (VALUES ('account_view'), ('account_pkey'), ('seq'), ('matview')) AS s (rel);
SELECT left(pg_temp.error_of('SELECT distlock_protect(''pg_class'', ''a'')'), 5);
SELECT pg_temp.try('SELECT distlock_protect(0, ''a'')'), pg_temp.try('SELECT distlock_unprotect(0)'),
    pg_temp.try('SELECT distlock_unprotect(NULL)');

--
-- It is DDL: once, transactional, and what depends on the extension
--
SELECT pg_temp.error_of('SELECT distlock_protect(''account'', ''a'')');
SELECT pg_temp.error_of('SELECT distlock_unprotect(''customer'')');
BEGIN;
SELECT distlock_unprotect('account');
SELECT pg_temp.try('DELETE FROM account');
SAVEPOINT s;
SELECT distlock_protect('account', 'another');
SELECT pg_temp.try('DELETE FROM account');
ROLLBACK TO SAVEPOINT s;
SELECT pg_temp.try('DELETE FROM account');
ROLLBACK;
SELECT pg_temp.try('DELETE FROM account');
BEGIN;
SELECT distlock_protect('customer', 'customer');
SELECT pg_temp.try('INSERT INTO customer VALUES (7)');
ROLLBACK;
SELECT pg_temp.try('INSERT INTO customer VALUES (7)');

SELECT left(pg_temp.error_of('DROP EXTENSION distlock'), 5);
SELECT distlock_acquire('not dropped') > 0;
BEGIN;
DROP EXTENSION distlock CASCADE;
SELECT pg_temp.try('DELETE FROM account'), count(*) FROM pg_trigger WHERE tgrelid = 'account'::regclass;
ROLLBACK;
SELECT pg_temp.try('DELETE FROM account');

-- Its owner can disable it, as any trigger.
SELECT enabled FROM distlock_protected WHERE rel = 'account'::regclass;
ALTER TABLE account DISABLE TRIGGER distlock_protect_delete;
SELECT enabled FROM distlock_protected WHERE rel = 'account'::regclass;
SELECT pg_temp.try('DELETE FROM account'), pg_temp.try('INSERT INTO account VALUES (9)');
-- Not ALWAYS is not enough.
ALTER TABLE account ENABLE TRIGGER distlock_protect_delete;
SELECT enabled FROM distlock_protected WHERE rel = 'account'::regclass;
ALTER TABLE account ENABLE ALWAYS TRIGGER distlock_protect_delete;
SELECT enabled FROM distlock_protected WHERE rel = 'account'::regclass;
SELECT distlock_unprotect('ledger');
DROP TABLE account CASCADE;
SELECT rel, name, enabled FROM distlock_protected ORDER BY rel::text;

--
-- The functions behind it, called by hand
--
SELECT pg_temp.try(statement) FROM (VALUES
    ('SELECT distlock_unguarded(NULL, ''a'')'),
    ('SELECT distlock_unguarded(''pg_class'', NULL)'),
    ('SELECT distlock_unguarded(''pg_class'', VARIADIC ''{a}''::text[])'),
    ('SELECT distlock_unguarded(''pg_class'', '''')'),
    ('SELECT distlock_unguarded(''pg_class'', ''not '', ''held'')'),
    ('SELECT distlock_refuse_write()')) AS s (statement);
-- Also by one who owns no table
SET ROLE regress_distlock_bob;
BEGIN;
SELECT distlock_acquire('not held') > 0;
SELECT distlock_unguarded('pg_class', 'not ', 'held'), distlock_unguarded('pg_class', 'not held');
ROLLBACK;
RESET ROLE;
-- The name may change from call to call.
CREATE FUNCTION pg_temp.unguarded(VARIADIC locks text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    lock text;
    told text := '';
BEGIN
    FOREACH lock IN ARRAY locks LOOP
        IF NOT distlock_unguarded('pg_class', lock) THEN
            told := told || lock || ' guarded, ';
        END IF;
    END LOOP;
    RETURN told || 'done';
END $$;
SELECT pg_temp.guard('b'), pg_temp.error_of('SELECT pg_temp.unguarded(''b'', ''b'', ''not held'')');

-- Triggers made by hand stand for no name, and do no harm.
CREATE FUNCTION truth(regclass, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE TABLE by_hand (id int, name text) PARTITION BY LIST (id);
CREATE TABLE by_hand1 PARTITION OF by_hand FOR VALUES IN (1);
SELECT pg_temp.error_of(format(
    'CREATE TRIGGER "by hand %s" AFTER INSERT ON by_hand FOR EACH ROW %s EXECUTE FUNCTION distlock_refuse_write()',
    condition, 'WHEN (' || condition || ')'))
FROM (VALUES ('NEW.id > 0'), ('NEW.id > 0 OR NEW.id < 0'), ('NEW IS NULL'), ('true'), (NULL),
    ('distlock_unguarded(''by_hand'', 5)'), ('distlock_unguarded(''by_hand'', NULL::text)'),
    ('distlock_unguarded(''by_hand'', NEW)'), ('distlock_unguarded(''by_hand'', NEW.tableoid)'),
    ('distlock_unguarded(''by_hand'', NEW.id::text)'), ('distlock_unguarded(''by_hand'', VARIADIC ''{a}''::text[])'),
    ('truth(''by_hand'', NEW.name)')) AS s (condition);
SELECT count(name) FROM distlock_protected WHERE rel = 'by_hand'::regclass;
SELECT pg_temp.try('TRUNCATE by_hand1');
-- A function that would be called instead of the one of the extension
CREATE TABLE twin (id int);
CREATE FUNCTION pg_temp.protect_with(arguments text, name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE FUNCTION %I.distlock_unguarded(%s) RETURNS boolean LANGUAGE sql AS ''SELECT false''',
        (SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'distlock'),
        arguments);
    PERFORM distlock_protect('twin', name);
END $$;
SELECT pg_temp.error_of('SELECT pg_temp.protect_with(''regclass, text'', ''ledger'')');
SELECT pg_temp.error_of('SELECT pg_temp.protect_with(''regclass, text, int'', ''ledger:{id}'')');
SELECT count(*) FROM distlock_protected WHERE rel = 'twin'::regclass;
-- Whoever may create triggers may replace ours; the view shows it.
SELECT distlock_protect('twin', 'account:{id}');
SELECT rel, name, enabled FROM distlock_protected WHERE rel IN ('twin'::regclass, 'part'::regclass) ORDER BY 1;
CREATE OR REPLACE TRIGGER distlock_protect_update AFTER UPDATE ON twin
    FOR EACH ROW WHEN (false) EXECUTE FUNCTION distlock_refuse_write();
ALTER TABLE part1 DISABLE TRIGGER USER;
SELECT rel, name, enabled FROM distlock_protected WHERE rel IN ('twin'::regclass, 'part'::regclass) ORDER BY 1;
SELECT distlock_unprotect('twin'), distlock_unprotect('part');
-- An operator that calls our function
CREATE OPERATOR === (LEFTARG = regclass, RIGHTARG = "any", FUNCTION = distlock_unguarded);
SELECT pg_temp.error_of($$SELECT 'pg_class'::regclass === 5$$);
SELECT pg_temp.error_of($$SELECT 0::regclass === 5$$);
SELECT distlock_protected_name(NULL) IS NULL, distlock_protected_name(0) IS NULL;

SET client_min_messages = error;
DROP SCHEMA regress_distlock_protect CASCADE;
DROP TABLE temporary;
DROP ROLE regress_distlock_alice, regress_distlock_bob;
SELECT count(distlock_force_release(name)) > 0 FROM distlock_leases;
SELECT count(*) FROM distlock_leases;
SELECT count(*) FROM distlock_protected;
