\set k random(1, 100000)
SELECT distlock_acquire(:k) AS token \gset
SELECT distlock_release(:k, :token);
