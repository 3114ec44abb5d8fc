SELECT pg_advisory_lock(:client_id);
