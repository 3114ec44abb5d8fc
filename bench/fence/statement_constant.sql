\set id random(1, 100000)
\if :token = 0
SELECT distlock_acquire('accounts', mode => 'shared', scope => 'session') AS token \gset
\endif
UPDATE by_constant SET v = v + 1 WHERE id = :id;
