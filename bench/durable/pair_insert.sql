\set k random(1, 100000)
INSERT INTO locks VALUES (:k::text, clock_timestamp() + interval '30 s', clock_timestamp(), :client_id::text) ON CONFLICT (name) DO UPDATE SET lock_until = excluded.lock_until, locked_at = excluded.locked_at, locked_by = excluded.locked_by WHERE locks.lock_until <= clock_timestamp();
UPDATE locks SET lock_until = clock_timestamp() WHERE name = :k::text AND locked_by = :client_id::text;
