\if :token = 0
SELECT distlock_acquire(:client_id, ttl => '1h', durable => false) AS token \gset
\endif
SELECT distlock_renew(:client_id, :token);
