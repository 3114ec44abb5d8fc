SELECT distlock_acquire('one', scope => 'session', durable => false) AS token \gset
SELECT distlock_release('one', :token);
