\set k random(1, 100000)
SELECT distlock_acquire(:k, durable => false) AS token \gset
SELECT distlock_release(:k, :token);
