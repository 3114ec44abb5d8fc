\set k :client_id + 1000000
\set id random(1, 100000)
\if :token = 0
SELECT distlock_acquire(:k, ttl => '1h', scope => 'session') AS token \gset
\endif
UPDATE plain SET v = v + 1, token = :token WHERE id = :id AND token <= :token;
