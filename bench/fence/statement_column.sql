\set id :client_id + 1000
\if :token = 0
SELECT distlock_acquire('account:' || :id, scope => 'session') AS token \gset
\endif
UPDATE by_column SET v = v + 1 WHERE id = :id;
