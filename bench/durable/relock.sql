\set k :client_id + 1000000
\if :token = 0
SELECT 1 AS token \gset
\endif
SELECT pg_advisory_lock(:k);
