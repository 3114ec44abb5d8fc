\set k random(1, 100000)
UPDATE locks SET lock_until = clock_timestamp() + interval '30 s', locked_at = clock_timestamp(), locked_by = :client_id::text WHERE name = :k::text AND lock_until <= clock_timestamp();
UPDATE locks SET lock_until = clock_timestamp() WHERE name = :k::text AND locked_by = :client_id::text;
