\set id random(1, 100000)
BEGIN;
UPDATE plain SET v = v + 1 WHERE id = :id;
COMMIT;
