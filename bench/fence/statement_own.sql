\set id :client_id + 1000
UPDATE plain SET v = v + 1 WHERE id = :id;
