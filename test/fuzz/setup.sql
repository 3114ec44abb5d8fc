-- What random statements meet: protected tables, a table of arguments for the
-- functions, two roles.  Run by scripts/test-sqlsmith.sh as superuser, in each
-- of its databases.

CREATE EXTENSION distlock;
DO $$
BEGIN
    CREATE ROLE fuzz_owner LOGIN;
    CREATE ROLE fuzz_other;
EXCEPTION WHEN duplicate_object THEN
    NULL;
END
$$;
GRANT CREATE ON SCHEMA public TO fuzz_owner;
GRANT EXECUTE ON FUNCTION distlock_force_release(text), distlock_discard_damaged(), distlock_refuse_change()
    TO fuzz_owner, fuzz_other;
GRANT SELECT ON distlock_control, distlock_lease_table, distlock_token_seq TO fuzz_owner, fuzz_other;

SET ROLE fuzz_owner;

CREATE TABLE plain (id integer, body text);
CREATE TABLE whole (id integer PRIMARY KEY, body text);
CREATE TABLE lines (id integer PRIMARY KEY, body text, kind text);
CREATE TABLE parted (id integer, body text) PARTITION BY LIST (id);
CREATE TABLE part1 PARTITION OF parted FOR VALUES IN (1, 2);
CREATE TABLE part2 PARTITION OF parted DEFAULT;
CREATE VIEW looks AS SELECT * FROM plain;
SELECT distlock_protect('whole', 'a'),
    distlock_protect('lines', 'line-{id}-{kind}'),
    distlock_protect('parted', 'part-{id}');

-- Guards, requests and releases at the very end of a transaction.
CREATE TABLE late (name text, token bigint);
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.token IS NULL THEN
        PERFORM distlock_try_acquire(NEW.name, scope => 'transaction');
    ELSIF NEW.token % 2 = 0 THEN
        PERFORM distlock_release(NEW.name, NEW.token);
    ELSE
        PERFORM distlock_guard(NEW.name, NEW.token);
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();

CREATE TABLE arguments (name text, names text[], token bigint, ttl interval, wait interval,
    mode text, scope text, flag boolean, most integer, rel regclass, trigger oid);
INSERT INTO arguments
SELECT n.name, ARRAY[n.name, 'b'], i, '1 s', '10 ms', m.mode, s.scope, i % 2 = 0, i % 4, r.rel, t.oid
FROM unnest(ARRAY['a', 'b', 'line-1-x', '', repeat('x', 255), repeat('x', 256), NULL]) WITH ORDINALITY AS n (name, i),
    unnest(ARRAY['exclusive', 'shared', 'x', NULL]) AS m (mode),
    unnest(ARRAY['lease', 'session', 'transaction', NULL]) AS s (scope),
    unnest(ARRAY['plain', 'whole', 'parted', 'looks', NULL]::regclass[]) AS r (rel),
    (SELECT oid FROM pg_trigger ORDER BY oid LIMIT 2) AS t;
ANALYZE arguments;
