-- The lease table of lock libraries that go through SQL, each lock a row.
CREATE TABLE locks (
    name text PRIMARY KEY,
    lock_until timestamptz NOT NULL,
    locked_at timestamptz NOT NULL,
    locked_by text NOT NULL) WITH (fillfactor = 50);
INSERT INTO locks SELECT g, 'epoch', 'epoch', '' FROM generate_series(1, 100000) g;
VACUUM ANALYZE locks;
