SELECT count(distlock_release(name, distlock_acquire(name, ttl => '1s', durable => false)))
FROM (SELECT format('used up %s %s', :client_id, g) FROM generate_series(1, 100) g) names (name);
