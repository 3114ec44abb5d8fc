-- The token is for the usual substitute for a guard: who comes with an older one finds
-- no row.  Nothing else looks at it.
CREATE TABLE plain (id integer PRIMARY KEY, v integer, token bigint) WITH (fillfactor = 50);
CREATE TABLE by_constant (LIKE plain INCLUDING ALL) WITH (fillfactor = 50);
CREATE TABLE by_column (LIKE plain INCLUDING ALL) WITH (fillfactor = 50);
INSERT INTO plain SELECT g, 0, 0 FROM generate_series(1, 100000) g;
INSERT INTO by_constant TABLE plain;
INSERT INTO by_column TABLE plain;
VACUUM ANALYZE;
SELECT distlock_protect('by_constant', 'accounts');
SELECT distlock_protect('by_column', 'account:{id}');
