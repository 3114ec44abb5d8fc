\set k random(1, 100000)
SELECT pg_advisory_lock(hashtextextended(:k, 0)) AS token \gset
SELECT pg_advisory_unlock(hashtextextended(:k, 0));
