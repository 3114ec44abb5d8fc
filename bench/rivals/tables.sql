-- What the rivals in PostgreSQL need; the variable "library" is nothing.so.  A session that looks in the schema
-- "unlogged" first gets the same tables, not durable.
CREATE TABLE locks (name text PRIMARY KEY);
INSERT INTO locks SELECT 'n' || g FROM generate_series(0, 99999) g;
INSERT INTO locks SELECT 't' || g FROM generate_series(0, 99) g;
INSERT INTO locks VALUES ('one');

CREATE TABLE shedlock (
	name text PRIMARY KEY,
	lock_until timestamp NOT NULL,
	locked_at timestamp NOT NULL,
	locked_by text NOT NULL
);
CREATE TABLE pglock (
	name text PRIMARY KEY,
	record_version_number bigint,
	data bytea,
	owner text
);
CREATE SEQUENCE pglock_rvn;

CREATE SCHEMA unlogged;
CREATE UNLOGGED TABLE unlogged.locks (LIKE locks INCLUDING ALL);
INSERT INTO unlogged.locks TABLE locks;
CREATE UNLOGGED TABLE unlogged.shedlock (LIKE shedlock INCLUDING ALL);
CREATE UNLOGGED TABLE unlogged.pglock (LIKE pglock INCLUDING ALL);

CREATE FUNCTION nothing(text) RETURNS integer LANGUAGE C AS :'library', 'nothing';
VACUUM ANALYZE;
