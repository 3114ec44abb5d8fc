\if :token = 0
\set k 1000000 + :client_id + 1000 * random(1, 1000000000)
SELECT distlock_acquire(:k, ttl => '1h') AS token \gset
\endif
SELECT distlock_renew(:k, :token);
