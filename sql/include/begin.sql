\set ECHO none
-- What each test begins with: the extension, no leases, settings that do not
-- depend on the server's, answers without frills, and routines that several have
-- use for.
SET client_min_messages = warning;
SET distlock.default_ttl = '10min';
SET distlock.max_ttl = '1d';
SET statement_timeout = '1min';		-- fail rather than wait for a lease for long
CREATE EXTENSION IF NOT EXISTS distlock;

-- Ends all leases of this database.
CREATE PROCEDURE pg_temp.clear()
LANGUAGE sql AS $$ SELECT distlock_force_release(name) FROM distlock_leases $$;
CALL pg_temp.clear();

-- The names that are held now.
CREATE FUNCTION pg_temp.held() RETURNS text
LANGUAGE sql AS $$
    SELECT coalesce(string_agg(name, ', ' ORDER BY name), 'nothing') FROM distlock_leases
$$;

-- What a person is shown when the statement fails, with N for the numbers
-- that differ from run to run.
CREATE FUNCTION pg_temp.error_of(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN regexp_replace(concat_ws(E'\n  ', SQLSTATE || ': ' || message,
                                    'detail: ' || nullif(detail, ''), 'hint: ' || nullif(hint, '')),
                          '(token|process|another) \d+', '\1 N', 'g');
END $$;

\pset format unaligned
\pset tuples_only on
\set ECHO all
