\set k :client_id + 1000000
SELECT pg_advisory_lock(:k);
