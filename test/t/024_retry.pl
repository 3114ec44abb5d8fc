# A client that has no answer makes its request again, and gets the lease that
# the first one got: after a crash of the server as well, whether or not the
# first had been answered.  What several leases share survives with them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node(
	'main',
	init => { allows_streaming => 1 },
	conf => q{
autovacuum = off
});
$node->safe_psql('postgres', 'CREATE ROLE somebody LOGIN; CREATE ROLE nobody LOGIN');

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# As request('a', 'r'), or with more arguments.
sub acquire_sql
{
	my ($name, $id, $arguments) = @_;

	$arguments = defined $arguments ? ", $arguments" : '';
	return "SELECT distlock_acquire('$name', '1h', request_id => '$id'$arguments)";
}

sub wait_until_ended
{
	my ($pid) = @_;

	$node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid")
	  or die "session $pid does not end";
	return;
}

sub leases
{
	my ($name) = @_;

	return value(
		"SELECT string_agg(token::text, ',' ORDER BY token) FROM distlock_leases WHERE name = '$name'");
}

sub end_all
{
	value('SELECT distlock_force_release(name) FROM (SELECT DISTINCT name FROM distlock_leases) l');
	return;
}

# ---- The reply is lost ----

# The lease is granted to a session that is stopped before it can tell, and its
# TTL is over as soon as another tells.  That one asks anew, with as many leases in
# its transaction as there was room for at first.
{
	my ($victim, $again) = map { session($node) } 1 .. 2;
	my $held = value(q{SELECT distlock_acquire('a', '1h')});
	my $token;

	$victim->send(q{SELECT distlock_acquire('a', '1 us', request_id => 'r')});
	wait_for_queue($node, 'a', 1);
	freeze_waiter($node, $victim->pid);
	$again->run('BEGIN');
	$again->run(
		q{SELECT count(distlock_acquire('fill ' || n, durable => false)) FROM generate_series(1, 63) n});
	value("SELECT distlock_release('a', $held)");
	$token = $again->run(acquire_sql('a', 'r'));
	is($again->run(q{SELECT token || ' ' || ttl FROM distlock_images WHERE name = 'a'}),
		"$token 01:00:00", 'over when it is told: what is granted next is on disk');
	$again->run('COMMIT');
	thaw($victim->pid);
	like($victim->error, qr/ERROR:  55P03/, 'and the first is told that it was replaced');
	is(leases('a'), $token, 'one lease is held');
	$_->quit foreach $victim, $again;
	end_all();
}

# The lease is granted to a client that is not there to read it any more.
{
	my ($holder, $victim) = map { session($node) } 1 .. 2;
	my ($held, $token);

	$held = $holder->run(q{SELECT distlock_acquire('a', '1h')});
	$victim->send(acquire_sql('a', 'r'));
	wait_for_queue($node, 'a', 1);
	$victim->kill_client;
	$holder->run("SELECT distlock_release('a', $held)");
	wait_until_ended($victim->pid);
	$token = leases('a');
	cmp_ok($token, '>', $held, 'client killed while it waited: the lease is there');
	is(value(acquire_sql('a', 'r')), $token, 'and is given back to the same request');
	is(value('SELECT renewals FROM distlock_leases'), 1, 'renewed');
	end_all();
	$holder->quit;
}

# Killed as soon as the request is sent, wherever the server is with it: there
# is one lease, and the same request has it.
foreach my $end ('client killed', 'terminated')
{
	my (@tokens, @expected);

	foreach my $i (1 .. 10)
	{
		my $name = "$end $i";
		my $victim = session($node);
		my $killer = session($node);

		if ($end eq 'terminated')
		{
			$victim->send(acquire_sql($name, $name));
			$killer->run('SELECT pg_terminate_backend(' . $victim->pid . ')');
		}
		else
		{
			$victim->send(acquire_sql($name, $name));
			$victim->kill_client;
		}
		# A server that comes to the first request later takes it for the second.
		my ($stdout, $stderr);
		do
		{
			$killer->send(acquire_sql($name, $name));
			($stdout, $stderr) = $killer->get;
		} while ($stderr =~ /55P03/);
		is($stderr, '', "$name: no other error");
		push @tokens, $stdout;
		wait_until_ended($victim->pid);
		push @expected, leases($name);
		$_->quit foreach $victim, $killer;
	}
	is("@tokens", "@expected", "$end right after sending: one lease, and the repeated request has it");
}
end_all();

# While it waits: nothing is left that the request could get, and it queues.
{
	my ($holder, $victim, $again) = map { session($node) } 1 .. 3;
	my $held = $holder->run(q{SELECT distlock_acquire('a', '1h')});

	$victim->send(acquire_sql('a', 'r'));
	wait_for_queue($node, 'a', 1);
	value('SELECT pg_terminate_backend(' . $victim->pid . ')');
	wait_until_ended($victim->pid);
	$again->send(acquire_sql('a', 'r'));
	wait_for_queue($node, 'a', 1);
	$holder->run("SELECT distlock_release('a', $held)");
	is($again->result, leases('a'), 'terminated while it waited: the repeated request waits and gets it');
	end_all();
	$_->quit foreach $holder, $victim, $again;
}

# The client is gone, its server process does not know, and stands in the queue
# still: the repeated request has its place.
{
	my ($holder, $victim, $next, $again) = map { session($node) } 1 .. 4;
	my $held = $holder->run(q{SELECT distlock_acquire('a', '1h')});

	$victim->send(acquire_sql('a', 'r'));
	wait_for_queue($node, 'a', 1);
	$next->send(q{SELECT distlock_acquire('a', '1h')});
	wait_for_queue($node, 'a', 2);
	$victim->kill_client;
	$again->send(acquire_sql('a', 'r'));
	$node->poll_query_until('postgres',
		'SELECT position = 1 FROM distlock_waiters WHERE pid = ' . $again->pid)
	  or die 'the repeated request has not the place of the first';
	wait_until_ended($victim->pid);
	pass('client killed while it waits: the repeated request has its place');
	$holder->run("SELECT distlock_release('a', $held)");
	is($again->result, leases('a'), 'and gets the lock before those behind');
	end_all();
	like($next->result, qr/^\d+$/, 'who get it then');
	end_all();
	$_->quit foreach $holder, $next, $again;
}

# ---- Crashes of the server ----

# Each way makes the request without anybody being told, and returns what ends
# with the crash.
sub wait_for_lease
{
	my ($name) = @_;

	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM distlock_leases WHERE name = '$name'")
	  or die "lock $name is not held";
	return leases($name);
}

# Answered.
my $answered = value(acquire_sql('answered', 'r1', q{holder => 'first'}));
my $of_somebody = $node->safe_psql(
	'postgres',
	acquire_sql('of somebody', 'r1'),
	extra_params => [ '-U', 'somebody' ]);

# Granted and told, but the client is not there.
my ($holder, $unread) = map { session($node) } 1 .. 2;
my $token = $holder->run(q{SELECT distlock_acquire('unread', '1h')});
$unread->send(acquire_sql('unread', 'r2'));
wait_for_queue($node, 'unread', 1);
$unread->kill_client;
$holder->run("SELECT distlock_release('unread', $token)");
my $unread_token = wait_for_lease('unread');

# The transaction that has acquired it is still open.
my $open = session($node);
$open->run('BEGIN');
my $open_token = $open->run(acquire_sql('open', 'r3'));

# It waits.
my $queued = session($node);
my $blocker = $holder->run(q{SELECT distlock_acquire('queued', '1h')});
$queued->send(acquire_sql('queued', 'r4'));
wait_for_queue($node, 'queued', 1);

# Released.
value("SELECT distlock_release('released', distlock_acquire('released', '1h', request_id => 'r5'))");
wait_until_cleared($node);

crash($node);
$_->quit foreach $holder, $open, $queued;

is(leases('answered'), $answered, 'crash: the lease that was answered is there');
{
	my ($other, $again, $waiting) = map { session($node) } 1 .. 3;
	my $error;

	is($other->run(acquire_sql('answered', 'r1')), $answered, 'answered: given back');
	is($other->run('SELECT holder, renewals, ttl FROM distlock_leases ' . q{WHERE name = 'answered'}),
		'first|1|01:00:00', 'answered: renewed');
	is($again->run(acquire_sql('answered', 'r1', q{wait => '0'})),
		$answered, 'answered: given back again, to another session');
	$error = sql_error($node, acquire_sql('answered', 'r1', q{mode => 'shared'}));
	like($error, qr/22023.*"r1"/, 'answered: another mode under its id');
	$error = sql_error($node, acquire_sql('another', 'r1'));
	like($error, qr/22023.*"r1"/, 'answered: another lock under its id');
	$error = sql_error($node, acquire_sql('answered', 'r1', q{max_holders => 3}));
	like($error, qr/22023/, 'answered: another limit under its id');
	is(value(q{SELECT distlock_try_acquire('answered', request_id => 'other') IS NULL}),
		't', 'answered: taken for another request');

	is( $node->safe_psql('postgres', acquire_sql('of somebody', 'r1'),
			extra_params => [ '-U', 'somebody' ]),
		$of_somebody, 'the same id of another role is another request, and given back to that role');
	is( $node->safe_psql(
			'postgres', q{SELECT distlock_try_acquire('of somebody', '1h', request_id => 'r1') IS NULL},
			extra_params => [ '-U', 'nobody' ]),
		't',
		'but to no other');

	is(value(acquire_sql('unread', 'r2')), $unread_token, 'nobody has read it: given back');
	is(value(acquire_sql('open', 'r3')), $open_token, 'its transaction was open: given back');
	is(leases('queued'), $blocker, 'it waited: only the holder has a lease');
	is(value(q{SELECT distlock_try_acquire('queued', request_id => 'r4') IS NULL}),
		't', 'it waited: it is to wait again');
	cmp_ok(value(acquire_sql('released', 'r5')), '>', $unread_token, 'released: a new request');

	# A lease given back is not undone by a rollback that did not acquire it.
	$other->run('BEGIN');
	is($other->run(acquire_sql('answered', 'r1')), $answered, 'given back in a transaction');
	$other->run('ROLLBACK');
	is(leases('answered'), $answered, 'which rolls back: it is held');
	$other->run("SELECT distlock_release('answered', $answered)");
	cmp_ok($other->run(acquire_sql('answered', 'r1')), '>', $answered, 'released after the crash: a new request');
	$_->quit foreach $other, $again, $waiting;
}
end_all();

# Written, but the server waits for a standby before it tells anybody.
{
	my ($probe, $victim) = map { session($node) } 1 .. 2;
	my $token;

	value('CREATE TABLE probe (id integer)');
	$node->append_conf('postgresql.conf', q{synchronous_standby_names = 'none'});
	$node->reload;
	do
	{
		$probe->send('INSERT INTO probe VALUES (1)');
	} while ($probe->is_done_within(1));
	$victim->send(acquire_sql('untold', 'r'));
	wait_for_event($node, $victim->pid, 'SyncRep');
	is(leases('untold'), '', 'not on the standby: it is no lease yet');
	crash(
		$node,
		sub {
			$node->append_conf('postgresql.conf', q{synchronous_standby_names = ''});
		});
	$token = leases('untold');
	like($token, qr/^\d+$/, 'not on the standby, crash: the lease is there');
	is(value(acquire_sql('untold', 'r')), $token, 'and is given back');
	$_->quit foreach $probe, $victim;
}
end_all();

# Crash of one process: the same.
{
	my ($victim, $session) = map { session($node) } 1 .. 2;
	my $token = $victim->run(acquire_sql('a', 'r'));

	crash_backend($node, $victim->pid);
	is(value(acquire_sql('a', 'r')), $token, 'a server process is killed: the lease is given back');
	$_->quit foreach $victim, $session;
}

# Twice in a row, with nobody having asked in between.
{
	my $token = value(acquire_sql('b', 'r b'));

	crash($node);
	crash($node);
	is(value(acquire_sql('b', 'r b')), $token, 'two crashes: the lease is given back');
	is(value("SELECT distlock_release('b', $token)"), 't', 'and can be released');
}
end_all();

# An id as long as can be, and one that is not ASCII.
{
	my @ids = ('x' x 63, "\xc3\xa9t\xc3\xa9 \xf0\x9f\x94\x92");
	my @tokens = map { value(acquire_sql("id $_", $ids[$_])) } 0 .. 1;

	crash($node);
	is(value(acquire_sql("id $_", $ids[$_])), $tokens[$_], "id $_: given back")
	  foreach 0 .. 1;
}
end_all();

# ---- A semaphore ----

{
	my $permit = q{SELECT distlock_try_acquire('pool', '1h', max_holders => 3};
	my @tokens = map { value("$permit, request_id => 'p$_')") } 1 .. 3;

	is(value("$permit)"), '', 'semaphore: full');
	crash($node);
	is(value("$permit)"), '', 'semaphore, crash: full');
	is(value("SELECT count(*) FROM distlock_leases WHERE name = 'pool'"),
		3, 'semaphore, crash: all three are held');
	is_deeply(
		[ map { value("$permit, request_id => 'p$_')") } 1 .. 3 ],
		\@tokens, 'semaphore, crash: each request has its own back');
	foreach my $other ('max_holders => 4', 'max_holders => 2', q{mode => 'exclusive'},
		q{mode => 'shared'})
	{
		like(
			sql_error($node, "SELECT distlock_try_acquire('pool', $other)"),
			qr/22023.*"pool".*at most 3 holders/s,
			"semaphore, crash: no request with $other");
	}
	value("SELECT distlock_release('pool', $tokens[1])");
	like(value("$permit)"), qr/^\d+$/, 'semaphore, crash: what is released can be had');
	is(value("$permit)"), '', 'semaphore, crash: once');
	end_all();
	like(value(q{SELECT distlock_try_acquire('pool', max_holders => 1)}),
		qr/^\d+$/, 'semaphore: when nobody holds it, another limit');
	end_all();
}

# ---- Several locks ----

{
	my $names = q{ARRAY['x', 'y', 'z']};
	my $all = "SELECT distlock_acquire_all($names, '1h', request_id => 'all')";
	my @many = map { "'m$_'" } 1 .. 64;
	my $many = 'ARRAY[' . join(',', @many) . ']';
	my ($token, $token_of_many, $session);

	$token = value($all);
	$token_of_many = value("SELECT distlock_acquire_all($many, '1h', request_id => 'many')");
	crash($node);
	is( value(
			q{SELECT string_agg(name || token, ' ' ORDER BY name) FROM distlock_leases WHERE name IN ('x', 'y', 'z')}
		),
		"x$token y$token z$token",
		'several locks, crash: all leases are there, under one token');
	is(value("SELECT distlock_check_all($names, $token)"), 't', 'several locks, crash: good');
	is(value("SELECT count(*) FROM distlock_leases WHERE token = $token_of_many"),
		64, '64 locks, crash: all leases are there');
	is( value(
			"SELECT distlock_try_acquire_all($many, '1h', request_id => 'many')"),
		$token_of_many,
		'64 locks, crash: given back');
	is( value(
			q{SELECT distlock_acquire_all('{z,y,x,y}', '2h', request_id => 'all')}),
		$token,
		'several locks, crash: given back, in whatever order they are named');
	is(value(q{SELECT string_agg(DISTINCT ttl::text, ' ') FROM distlock_leases WHERE name IN ('x', 'y', 'z')}),
		'02:00:00', 'several locks, crash: all renewed');
	like(
		sql_error($node, q{SELECT distlock_acquire_all('{x,y}', '1h', request_id => 'all')}),
		qr/22023.*"all"/, 'several locks, crash: fewer locks are another request');
	like(
		sql_error($node, q{SELECT distlock_acquire_all('{w,x,y,z}', '1h', request_id => 'all')}),
		qr/22023.*"all"/, 'several locks, crash: so are more');
	is(value(q{SELECT distlock_try_acquire_all('{w,x}', '1h') IS NULL}),
		't', 'several locks, crash: all or nothing for others');

	# One of them is released alone.
	is(value("SELECT distlock_release('y', $token)"), 't', 'one is released alone');
	wait_until_cleared($node);
	crash($node);
	is(value(q{SELECT string_agg(name, ' ' ORDER BY name) FROM distlock_leases WHERE name IN ('x', 'y', 'z')}),
		'x z', 'and a crash: the others are held');
	is(value("SELECT distlock_release_all($names, $token)"), 'f', 'not all of them');
	is(value(q{SELECT count(*) FROM distlock_leases WHERE name IN ('x', 'y', 'z')}),
		0, 'but the others are released');

	# Written, but not told.
	value('SELECT distlock_release_all(' . $many . ", $token_of_many)");
	$session = session($node);
	$session->run('BEGIN');
	$token = $session->run($all);
	crash($node);
	is(value($all), $token, 'several locks, transaction open, crash: given back');
	$session->quit;
}

$node->stop;
done_testing();
