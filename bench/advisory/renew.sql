\set k :client_id + 1000000
\if :token = 0
SELECT distlock_acquire(:k, ttl => '1h', scope => 'session') AS token \gset
\endif
SELECT distlock_renew(:k, :token);
