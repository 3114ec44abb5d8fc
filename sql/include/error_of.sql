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
