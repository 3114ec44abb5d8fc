# CALL distlock_lock() and CALL distlock_watch_next(): outside a transaction
# block they wait and hold nothing back; where a commit would end more than the
# call they wait as the functions do, and commit nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = distlock_node(
	'main',
	init => { allows_streaming => 1 },
	conf => q{
fsync = off
autovacuum = off
max_prepared_transactions = 10
});

$node->safe_psql(
	'postgres', q{
CREATE TABLE rows_deleted (id integer);
CREATE TABLE notes (note text);
CREATE PROCEDURE lock_note(INOUT token bigint) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO notes VALUES ('procedure');
	CALL distlock_lock('a', token, '1h');
END $$;
CREATE PROCEDURE watch_note(INOUT token bigint) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO notes VALUES ('procedure');
	CALL distlock_watch_next('a', token);
END $$;
CREATE FUNCTION lock_function() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE token bigint;
BEGIN
	CALL distlock_lock('a', token, '1h');
	RETURN token;
END $$;
CREATE PROCEDURE lock_definer(INOUT token bigint) LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	INSERT INTO notes VALUES ('definer');
	CALL distlock_lock('a', token, '1h');
END $$;
CREATE PROCEDURE lock_with_set(INOUT token bigint) LANGUAGE plpgsql SET work_mem = '1MB' AS $$
BEGIN
	INSERT INTO notes VALUES ('set');
	CALL distlock_lock('a', token, '1h');
END $$;
});

my $lock = q{CALL distlock_lock('a', NULL, '1h')};
my $files = PostgreSQL::Test::Utils::tempdir();

# pgbench in the background: it speaks the extended protocol, with prepared
# statements and pipelines, which psql of old versions does not.
sub bench
{
	my ($mode, $script) = @_;
	my %bench = (out => '', err => '');

	unlink "$files/script";
	append_to_file("$files/script", "$script\n");
	$bench{run} = IPC::Run::start(
		[
			$node->installed_command('pgbench'), '-n', '-c1', '-t1', '-M', $mode,
			'-f', "$files/script", '-d', $node->connstr('postgres')
		],
		'<', \undef,
		'>', \$bench{out},
		'2>', \$bench{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%bench;
}

# Wait for what has been started; returns its output and its errors.
sub outcome
{
	my ($started) = @_;

	return $started->get if ref $started ne 'HASH';
	$started->{run}->finish;
	return ($started->{out}, $started->{err});
}

# The process of the only session that waits for a lease or watches one.
sub waiting_pid
{
	my $query = q{
SELECT pid FROM pg_stat_activity
WHERE wait_event_type = 'Extension' AND backend_type = 'client backend'};

	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($query) w")
	  or die 'nobody waits';
	return $node->safe_psql('postgres', $query);
}

sub held_back_by
{
	my ($pid) = @_;

	return $node->safe_psql(
		'postgres', qq{
SELECT backend_xmin IS NOT NULL, backend_xid IS NOT NULL
FROM pg_stat_activity WHERE pid = $pid});
}

# Rows that are deleted while a session waits: how much is left of them after a
# vacuum?
sub rows_left
{
	$node->safe_psql(
		'postgres', q{
INSERT INTO rows_deleted SELECT generate_series(1, 1000);
DELETE FROM rows_deleted;
});
	$node->safe_psql('postgres', 'VACUUM rows_deleted');
	return $node->safe_psql('postgres', q{SELECT pg_relation_size('rows_deleted')});
}

sub nothing_left
{
	my ($test) = @_;

	is( $node->safe_psql(
			'postgres', q{
SELECT (SELECT count(*) FROM distlock_leases), (SELECT count(*) FROM distlock_waiters)}),
		'0|0',
		"$test: no lease, nobody waits");
	return;
}

sub notes
{
	return $node->safe_psql('postgres', q{SELECT string_agg(note, ',' ORDER BY note) FROM notes});
}

sub begin_test
{
	$node->safe_psql(
		'postgres', q{
SELECT distlock_force_release(name) FROM distlock_leases;
TRUNCATE notes;
});
	return;
}

# ---- Outside ----

# Each way starts a call, in a session of psql given or in one of its own.
# TOKEN stands for the token known to the watcher.
my %outside = (
	'simple protocol' => {
		lock => [ sql => $lock ],
		watch => [ sql => q{CALL distlock_watch_next('a', TOKEN)} ],
	},
	'serializable, read only' => {
		setup => q{
SET default_transaction_isolation = 'serializable';
SET default_transaction_read_only = on},
		lock => [ sql => $lock ],
		watch => [ sql => q{CALL distlock_watch_next('a', TOKEN)} ],
	},
	# No volatile lease was to live so long before, which has to be written down.
	'after a look at the catalogs' =>
	  { lock => [ sql => q{CALL distlock_lock('a', NULL, '5h', durable => false)} ], },
	'extended protocol' => {
		lock => [ extended => $lock ],
		watch => [ extended => q{CALL distlock_watch_next('a', TOKEN)} ],
	},
	'prepared' => {
		lock => [ prepared => $lock ],
		watch => [ prepared => q{CALL distlock_watch_next('a', TOKEN)} ],
	},
	'first in a pipeline' => {
		lock => [ extended => "\\startpipeline\n$lock;\nSELECT 1;\n\\endpipeline" ],
		watch =>
		  [ extended => "\\startpipeline\nCALL distlock_watch_next('a', TOKEN);\n\\endpipeline" ],
	},
	'DO' => {
		note => 'DO',
		lock => [
			sql => q{
DO $$
DECLARE token bigint;
BEGIN
	INSERT INTO notes VALUES ('DO');
	CALL distlock_lock('a', token, '1h');
	ASSERT distlock_check('a', token);
END $$}
		],
		watch => [
			sql => q{
DO $$
DECLARE token bigint = TOKEN;
BEGIN
	INSERT INTO notes VALUES ('DO');
	CALL distlock_watch_next('a', token);
	ASSERT token IS NULL;
END $$}
		],
	},
	'DO, in a loop over rows' => {
		note => 'DO',
		lock => [
			sql => q{
DO $$
DECLARE token bigint; name text;
BEGIN
	INSERT INTO notes VALUES ('DO');
	FOR name IN SELECT unnest('{a,b}'::text[]) LOOP
		CALL distlock_lock(name, token, '1h');
		ASSERT distlock_check(name, token);
	END LOOP;
END $$}
		],
	},
	'procedure' => {
		note => 'procedure',
		lock => [ sql => 'CALL lock_note(NULL)' ],
		watch => [ sql => 'CALL watch_note(TOKEN)' ],
	},
	'procedure, extended protocol' => {
		note => 'procedure',
		lock => [ extended => 'CALL lock_note(NULL)' ],
		watch => [ extended => 'CALL watch_note(TOKEN)' ],
	});

sub start
{
	my ($session, $token, $how, $call) = @_;

	$call =~ s/TOKEN/$token/;
	return bench($how, $call) if $how ne 'sql';
	$session->send($call);
	return $session;
}

foreach my $way (sort keys %outside)
{
	foreach my $what ('lock', 'watch')
	{
		my %way = %{ $outside{$way} };
		my $test = "$way, $what";
		my $session;
		my ($token, $started, $pid, $out, $err, $log);

		next if !$way{$what};
		begin_test();
		$session = session($node);
		$session->run($way{setup}) if $way{setup};
		$token = $node->safe_psql('postgres', q{SELECT distlock_acquire('a', '1h')});
		$started = start($session, $token, @{ $way{$what} });
		$pid = waiting_pid();
		is(held_back_by($pid), 'f|f', "$test: neither snapshot nor transaction ID");
		is(rows_left(), 0, "$test: vacuum removes what died meanwhile");
		$node->safe_psql('postgres',
			q{SET statement_timeout = '60s'; CREATE TABLE new (id integer)});
		is( $node->psql(
				'postgres', 'CREATE INDEX CONCURRENTLY ON new (id)',
				timeout => $PostgreSQL::Test::Utils::timeout_default),
			0,
			"$test: CREATE INDEX CONCURRENTLY finishes");

		# It has work to do while it waits: to forget what it knows of a table, to
		# look again because the lease ends earlier, and to say what memory it uses.
		$log = -s $node->logfile;
		$node->safe_psql(
			'postgres', qq{
DROP TABLE new;
SELECT distlock_renew('a', $token, '30min');
SELECT pg_log_backend_memory_contexts($pid)});
		$node->wait_for_log(qr/logging memory contexts of PID $pid/, $log);
		is(held_back_by($pid), 'f|f', "$test: nor after a while");
		is(notes(), $way{note} // '', "$test: what came before is committed");

		$node->safe_psql('postgres', "SELECT distlock_release('a', $token)");
		($out, $err) = outcome($started);
		unlike($err, qr/ERROR|aborted|failed/, "$test: no error");
		if ($what eq 'watch')
		{
			is($out, '', "$test: the lock is free") if $way{watch}[0] eq 'sql';
			nothing_left($test);
		}
		else
		{
			$token = $node->safe_psql('postgres',
				q{SELECT token FROM distlock_leases WHERE name = 'a'});
			like($token, qr/^\d+$/, "$test: it holds the lock");
			is($out, $token, "$test: it returns the token")
			  if $way{lock}[0] eq 'sql' && $way !~ /^DO/;
		}
		$session->quit;
	}
}

# What is returned and what is given.
begin_test();
{
	my $session = session($node);
	my $token = $session->run(q{CALL distlock_lock('a', 17, ttl => '1h', holder => 'me')});

	is($session->run('SELECT token, holder, ttl FROM distlock_leases'),
		"$token|me|01:00:00", 'the token given is of no account, the other arguments are');
	is($session->run(q{CALL distlock_watch_next('a', NULL)}),
		$token, 'watch_next: the token, at once, when another one was known');
	is($session->run(qq{CALL distlock_watch_next('a', $token, wait => '10ms')}),
		$token, 'watch_next: the token as it is when the wait is over');
	is($session->run(qq{CALL distlock_watch_next('b', 17)}),
		'', 'watch_next: null for a lock that is free');
	$session->send(q{CALL distlock_lock('a', wait => '10ms')});
	like($session->error, qr/55P03.*could not obtain lock "a"/, 'the wait is over');
	$session->send(q{CALL distlock_lock(NULL)});
	like($session->error, qr/22004/, 'a null name');
	$session->send(q{CALL distlock_watch_next(NULL, 1)});
	like($session->error, qr/22004/, 'watch_next: a null name');
	$session->run(q{CALL distlock_lock('c', scope => 'session')});
	is($session->run(q{SELECT scope FROM distlock_leases WHERE name = 'c'}),
		'session', 'scope session');
	$session->run(q{CALL distlock_lock('d', scope => 'transaction')});
	is($session->run(q{SELECT count(*) FROM distlock_leases WHERE name = 'd'}),
		0, 'scope transaction ends with the call');
	$session->quit;
}

# A wait for something else than a lease holds nothing back either: for a
# prepared transaction and for an advisory lock, which the next to be granted
# waits for, and for a standby.
{
	my ($session, $other) = map { session($node) } 1 .. 2;
	my ($token, $give_up);
	my $wait_for = sub {
		my ($event, $test) = @_;

		wait_for_event($node, $session->pid, $event);
		is(held_back_by($session->pid), 'f|f', "$test: neither snapshot nor transaction ID");
		return;
	};

	begin_test();
	$token = $other->run(q{SELECT distlock_acquire('a', '1h')});
	$other->run(
		qq{
BEGIN;
SELECT distlock_guard('a', $token);
SELECT pg_current_xact_id();
PREPARE TRANSACTION 'p';
SELECT distlock_release('a', $token)});
	foreach my $wait ('1h', undef)
	{
		my $arguments = defined $wait ? ", wait => '$wait'" : '';
		my $test = defined $wait ? 'with an end' : 'without end';

		$session->quit;
		$session = session($node);
		$session->send(qq{CALL distlock_lock('a', ttl => '1h'$arguments)});
		$wait_for->('advisory', "prepared transaction, $test");
		$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
		like($session->error, qr/57014/, "prepared transaction, $test: cancelled");
		nothing_left("prepared transaction, $test");
	}
	$node->safe_psql('postgres', q{ROLLBACK PREPARED 'p'});

	$other->run('SELECT pg_advisory_lock(7)');
	foreach my $wait ('1h', undef)
	{
		my $arguments = defined $wait ? ", wait => '$wait'" : '';
		my $test = defined $wait ? 'with an end' : 'without end';

		$session->quit;
		$session = session($node);
		$session->send(
			qq{CALL distlock_lock('a', scope => 'session', advisory_key => 7$arguments)});
		$wait_for->('advisory', "advisory lock, $test");
		$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
		like($session->error, qr/57014/, "advisory lock, $test: cancelled");
		nothing_left("advisory lock, $test");
	}
	$other->run('SELECT pg_advisory_unlock(7)');

	# The checkpointer tells the others what the setting is, some time later.
	$node->append_conf('postgresql.conf', q{synchronous_standby_names = 'nobody'});
	$node->reload;
	$give_up = time + $PostgreSQL::Test::Utils::timeout_default;
	do
	{
		die 'no commit waits for a standby' if time > $give_up;
		$other->send(q{INSERT INTO notes VALUES ('replicated')});
	} while ($other->is_done_within(1));
	wait_for_event($node, $other->pid, 'SyncRep');
	$session->quit;
	$session = session($node);
	$session->send(q{CALL distlock_lock('a', ttl => '1h')});
	$wait_for->('SyncRep', 'synchronous standby');
	$node->append_conf('postgresql.conf', q{synchronous_standby_names = ''});
	$node->reload;
	like($session->result, qr/^\d+$/, 'synchronous standby: it goes on');
	$_->quit foreach $session, $other;
}

# ---- As the function ----

my $insert = q{INSERT INTO notes VALUES ('before')};
my $fail = 'SELECT 1 / 0';

# Each way inserts a row, waits, and fails if it is to.
my %inside = (
	'block' => [ sql => "BEGIN; $insert;\n$lock;\nFAIL; COMMIT" ],
	'savepoint' => [ sql => "BEGIN; SAVEPOINT s; $insert;\n$lock;\nFAIL; COMMIT" ],
	'several statements' => [ string => "$insert; $lock; FAIL" ],
	'several statements, the call first' =>
	  [ string => "$lock; $insert; FAIL" ],
	'exception block' => [
		sql => qq{
DO \$\$
DECLARE token bigint;
BEGIN
	$insert;
	BEGIN
		CALL distlock_lock('a', token, '1h');
	EXCEPTION WHEN others THEN
		RAISE;
	END;
	FAILING
END \$\$}
	],
	'pipeline' => [ extended => "\\startpipeline\n$insert;\n$lock;\nFAIL;\n\\endpipeline" ],
	'pipeline, prepared' =>
	  [ prepared => "\\startpipeline\n$insert;\n$lock;\nFAIL;\n\\endpipeline" ],
	'pipeline, behind a query' =>
	  [ extended => "\\startpipeline\nSELECT 1;\n$lock;\n$insert;\nFAIL;\n\\endpipeline" ],
	'pipeline, from a procedure' => [
		extended => "\\startpipeline\n$insert;\nCALL lock_note(NULL);\nFAIL;\n\\endpipeline"
	],
	'block, extended protocol' => [ extended => "BEGIN;\n$insert;\n$lock;\nFAIL;\nCOMMIT;" ],
	'function' => [
		sql => qq{
DO \$\$
BEGIN
	$insert;
	PERFORM lock_function();
	FAILING
END \$\$}
	],
	'SECURITY DEFINER' => [
		sql => qq{
DO \$\$
DECLARE token bigint;
BEGIN
	$insert;
	CALL lock_definer(token);
	FAILING
END \$\$}
	],
	'procedure with SET' => [
		sql => qq{
DO \$\$
DECLARE token bigint;
BEGIN
	$insert;
	CALL lock_with_set(token);
	FAILING
END \$\$}
	]);

sub start_inside
{
	my ($session, $fails, $how, $text) = @_;
	my %replace = (
		FAIL => $fails ? $fail : 'SELECT 1',
		FAILING => $fails ? 'PERFORM 1 / 0;' : '');

	$text =~ s/\b(FAIL|FAILING)\b/$replace{$1}/;
	if ($how eq 'string')
	{
		# -c sends all of it at once.
		my %psql = (out => '', err => '');

		$psql{run} = IPC::Run::start(
			[
				$node->installed_command('psql'), '-XAtq', '-d',
				$node->connstr('postgres'), '-c', $text
			],
			'<', \undef,
			'>', \$psql{out},
			'2>', \$psql{err},
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
		return \%psql;
	}
	return bench($how, $text) if $how ne 'sql';
	$session->send($text);
	return $session;
}

foreach my $way (sort keys %inside)
{
	foreach my $fails (1, 0)
	{
		my $test = $way . ($fails ? ', fails' : ', succeeds');
		my $session = session($node);
		my ($token, $started, $pid, $err);

		begin_test();
		$token = $node->safe_psql('postgres', q{SELECT distlock_acquire('a', '1h')});
		$started = start_inside($session, $fails, @{ $inside{$way} });
		$pid = waiting_pid();
		isnt(held_back_by($pid), 'f|f', "$test: it waits in its transaction");
		is(notes(), '', "$test: nothing is committed");
		$node->safe_psql('postgres', "SELECT distlock_release('a', $token)");
		$err = (outcome($started))[1];
		if ($fails)
		{
			like($err, qr/division by zero/, "$test: the error");
			is(notes(), '', "$test: still nothing");
			nothing_left($test);
		}
		else
		{
			unlike($err, qr/ERROR|aborted|failed/, "$test: no error");
			like(notes(), qr/before/, "$test: committed in the end");
			is( $node->safe_psql('postgres',
					q{SELECT count(*) FROM distlock_leases WHERE name = 'a'}),
				1,
				"$test: it has the lease");
		}
		$session->quit;
	}
}

# Likewise when there is nothing to wait for.
foreach my $way (grep { /pipeline|several/ } sort keys %inside)
{
	begin_test();
	like((outcome(start_inside(undef, 1, @{ $inside{$way} })))[1],
		qr/division by zero/, "$way, no wait: the error");
	is(notes(), '', "$way, no wait: nothing is committed");
	nothing_left("$way, no wait");
}

# The wait of a watcher commits nothing there either.
begin_test();
outcome(
	bench(
		'extended',
		"\\startpipeline\n$insert;\nCALL distlock_watch_next('a', 1);\n$fail;\n\\endpipeline"));
is(notes(), '', 'pipeline, watch: nothing is committed');

# A lease that a call outside has acquired is undone by what fails behind it in
# the same statement or pipeline; what came before it is committed.
begin_test();
{
	my $session = session($node);

	$session->send(
		qq{
DO \$\$
DECLARE token bigint;
BEGIN
	$insert;
	CALL distlock_lock('a', token, '1h');
	PERFORM 1 / 0;
END \$\$});
	like($session->error, qr/22012/, 'DO fails behind the call: the error');
	is(notes(), 'before', 'DO fails behind the call: what came before is committed');
	nothing_left('DO fails behind the call');
	outcome(bench('extended', "\\startpipeline\n$lock;\n$fail;\n\\endpipeline"));
	nothing_left('pipeline fails behind the call');
	$session->quit;
}

# ---- The wait comes to nothing ----

my %ends = (
	'cancelled' => {
		end => sub { $node->safe_psql('postgres', "SELECT pg_cancel_backend($_[0])") },
		error => qr/57014/,
	},
	'terminated' => {
		end => sub { $node->safe_psql('postgres', "SELECT pg_terminate_backend($_[0])") },
		error => qr/57P01/,
	},
	'statement_timeout' => {
		setup => q{SET statement_timeout = '300ms'},
		error => qr/57014.*statement timeout/,
	},
	'lock_timeout' => {
		setup => q{SET lock_timeout = '300ms'},
		error => qr/55P03.*lock timeout/,
		lock_only => 1,
	},
	'wait is over' => {
		wait => q{, wait => '300ms'},
		error => qr/55P03/,
		lock_only => 1,
	},
	'client killed' => {
		setup => q{SET client_connection_check_interval = '100ms'},
		end => sub { $_[1]->kill_client },
	});

foreach my $end (sort keys %ends)
{
	foreach my $what ('lock', 'watch')
	{
		my %end = %{ $ends{$end} };
		my $session = session($node);
		my $test = "$end, $what";
		my $wait = $end{wait} // '';
		my $token;

		next if $end{lock_only} && $what ne 'lock';
		begin_test();
		$token = $node->safe_psql('postgres', q{SELECT distlock_acquire('a', '1h')});
		$session->run($end{setup}) if $end{setup};
		$session->send(
			$what eq 'lock' ?
			  "CALL distlock_lock('a', ttl => '1h'$wait)" :
			  "CALL distlock_watch_next('a', $token)");
		if ($end{end})
		{
			waiting_pid();
			$end{end}->($session->pid, $session);
		}
		like($session->error, $end{error}, "$test: the error") if $end{error};
		if ($end =~ /terminated|killed/)
		{
			$node->poll_query_until('postgres',
				'SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ' . $session->pid)
			  or die 'the session does not end';
		}
		else
		{
			is($session->run(q{SELECT 'alive'}), 'alive', "$test: the session goes on");
			$session->send(q{CALL distlock_watch_next('b', 1, wait => '1h')});
			is($session->result, '', "$test: it may watch another lock");
		}
		$node->safe_psql('postgres', "SELECT distlock_release('a', $token)");
		nothing_left($test);
		$session->quit;
	}
}

# Granted, but cancelled before it could be told.
foreach my $end ('cancelled', 'terminated')
{
	my $session = session($node);
	my $token;

	begin_test();
	$token = $node->safe_psql('postgres', q{SELECT distlock_acquire('a', '1h')});
	$session->send($lock);
	wait_for_queue($node, 'a', 1);
	freeze_waiter($node, $session->pid);
	$node->safe_psql('postgres', "SELECT distlock_release('a', $token)");
	$ends{$end}{end}->($session->pid);
	thaw($session->pid);
	like($session->error, $ends{$end}{error}, "granted, $end: the error");
	nothing_left("granted, $end");
	$session->quit;
}

$node->stop;
done_testing();
