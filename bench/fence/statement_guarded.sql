\set k :client_id + 1000000
\set id random(1, 100000)
\if :token = 0
SELECT distlock_acquire(:k, ttl => '1h', scope => 'session') AS token \gset
\endif
WITH g AS MATERIALIZED (SELECT distlock_guard(:k, :token))
UPDATE plain SET v = v + 1 FROM g WHERE id = :id;
