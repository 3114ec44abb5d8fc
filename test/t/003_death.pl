# A session that ends, in whatever way and at whatever moment, leaves nothing
# behind and delays nobody.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node('main');

# No TTL: whoever waits for a lease of a dead session waits for ever.
my $forever = q{scope => 'session'};

sub is_gone
{
	my ($pid, $test) = @_;

	# A lease has no pid any more when its session has ended.
	is( $node->safe_psql(
			'postgres', qq{
SELECT (SELECT count(*) FROM distlock_leases WHERE coalesce(pid, $pid) = $pid),
	   (SELECT count(*) FROM distlock_waiters WHERE pid = $pid)}),
		'0|0',
		"$test: nothing is left behind");
	return;
}

sub is_handed_over
{
	my ($session, $test) = @_;

	like(($session->get)[0], qr/^[0-9]+$/, "$test: the next one has the lock");
	return;
}

# As is_handed_over(), for a session that selects the time at which it got the
# lock.  The bound is generous to a busy machine, but below the 10 seconds after
# which a backend may wake for reasons of its own.
sub is_handed_over_by
{
	my ($session, $deadline, $test) = @_;
	my $late = $session->result - $deadline;

	note sprintf '%s: %.1f ms after the deadline', $test, $late * 1000;
	cmp_ok($late, '<', 6, "$test: the next one has the lock in time");
	return;
}

my $clock = 'SELECT extract(epoch FROM clock_timestamp())';

sub signal_session
{
	my ($function, $pid) = @_;

	$node->safe_psql('postgres', "SELECT $function($pid)");
	return;
}

sub wait_until_ended
{
	my ($pid) = @_;

	$node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid")
	  or die "session $pid does not end";
	return;
}

# Each way ends a wait, given the session that waits, and returns what its
# client sees.
my %ways = (
	'cancelled' => {
		end => sub { signal_session('pg_cancel_backend', $_[0]->pid) },
		error => qr/ERROR:  57014: /,
	},
	'terminated' => {
		end => sub { signal_session('pg_terminate_backend', $_[0]->pid) },
		error => qr/FATAL:  57P01: /,
	},
	'statement_timeout' => {
		setup => q{SET statement_timeout = '300ms'},
		end => sub { },
		error => qr/ERROR:  57014: .*statement timeout/,
	},
	'lock_timeout' => {
		setup => q{SET lock_timeout = '300ms'},
		end => sub { },
		error => qr/ERROR:  55P03: .*lock timeout/,
	},
	'wait is over' => {
		wait => '300ms',
		end => sub { },
		error => qr/ERROR:  55P03: .*could not obtain lock/,
	},
	'client killed' => {
		setup => q{SET client_connection_check_interval = '100ms'},
		end => sub { $_[0]->kill_client },
	});

# ---- While waiting ----

foreach my $way (sort keys %ways)
{
	my ($holder, $victim, $next) = map { session($node) } 1 .. 3;
	my %way = %{ $ways{$way} };
	my $wait = defined $way{wait} ? ", wait => '$way{wait}'" : '';
	my $test = "waiting, $way";

	$holder->run(qq{SELECT distlock_acquire('$way', $forever)});
	$victim->run($way{setup}) if $way{setup};
	$victim->send(qq{SELECT distlock_acquire('$way', $forever$wait)});

	# Those whose time is short may be gone before we look.
	wait_for_queue($node, $way, 1) unless $way =~ /timeout|over/;
	$next->send(qq{SELECT distlock_acquire('$way', $forever)});
	$way{end}->($victim);
	like($victim->error, $way{error}, $test) if $way{error};
	wait_until_ended($victim->pid) if $way =~ /terminated|killed/;
	is_gone($victim->pid, $test);
	wait_for_queue($node, $way, 1);
	is( $node->safe_psql(
			'postgres', "SELECT pid, position FROM distlock_waiters WHERE name = '$way'"),
		$next->pid . '|1',
		"$test: the next one is the head of the queue");
	$holder->run('DISCARD ALL');
	is_handed_over($next, $test);
	$_->quit foreach $holder, $victim, $next;
}

# A client that is gone is noticed at the latest when the wait has an end.
{
	my ($holder, $victim, $next) = map { session($node) } 1 .. 3;

	$holder->run(qq{SELECT distlock_acquire('a', $forever)});
	$victim->send(qq{SELECT distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', 1);
	$next->send(qq{SELECT distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', 2);
	$victim->kill_client;
	$holder->run('DISCARD ALL');
	is_handed_over($next, 'waiting, client killed unnoticed');
	wait_until_ended($victim->pid);
	is_gone($victim->pid, 'waiting, client killed unnoticed');
	$_->quit foreach $holder, $next;
}

# ---- Between grant and return ----

# The victim is stopped before the lock is handed to it, so that it has the
# lock and does not know.
foreach my $way ('cancelled', 'terminated', 'client killed')
{
	my ($holder, $victim, $next) = map { session($node) } 1 .. 3;
	my %way = %{ $ways{$way} };
	my $test = "granted, $way";

	$holder->run(qq{SELECT distlock_acquire('a', $forever)});
	$victim->run($way{setup}) if $way{setup};
	$victim->send(qq{SELECT distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', 1);
	freeze_waiter($node, $victim->pid);
	$next->send(qq{SELECT distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', 2);
	$holder->run('DISCARD ALL');
	is( $node->safe_psql(
			'postgres', q{
SELECT (SELECT string_agg(pid || ' ' || position, ', ' ORDER BY position)
		FROM distlock_waiters WHERE name = 'a'),
	   (SELECT count(*) FROM distlock_leases WHERE name = 'a')}),
		$victim->pid . ' 0, ' . $next->pid . ' 1|0',
		"$test: the grant waits to be told, and is no lease yet");
	$way{end}->($victim);
	thaw($victim->pid);
	like($victim->error, $way{error}, $test) if $way{error};
	is_handed_over($next, $test);
	wait_until_ended($victim->pid) if $way ne 'cancelled';
	is_gone($victim->pid, $test);
	$_->quit foreach $holder, $victim, $next;
}

# The time to live of the grant passes before it is told: the next one takes
# over at that deadline.  The late one queues again, unless its own wait is
# over.
foreach my $wait (undef, '5s')
{
	my ($holder, $victim, $next) = map { session($node) } 1 .. 3;
	my $test = defined $wait ? 'granted, lapsed, wait over' : 'granted, lapsed';
	my $lapsed = 'SELECT lapsed FROM distlock_stats';
	my $before = $node->safe_psql('postgres', $lapsed);

	my $arguments = defined $wait ? "'1s', wait => '$wait'" : "'1s'";
	my $queued_at;

	$holder->run(qq{SELECT distlock_acquire('a', $forever)});
	$victim->send("SELECT distlock_acquire('a', $arguments)");
	wait_for_queue($node, 'a', 1);
	$queued_at = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
	freeze_waiter($node, $victim->pid);
	$next->send(qq{$clock FROM distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', 2);
	$holder->run('DISCARD ALL');
	is_handed_over_by($next, 1 + $holder->run($clock), $test);
	is($node->safe_psql('postgres', $lapsed), $before + 1, "$test: counted");
	is_gone($victim->pid, $test);
	if (defined $wait)
	{
		$node->poll_query_until('postgres',
			"SELECT clock_timestamp() > '$queued_at'::timestamptz + '$wait'")
		  or die 'the clock stands still';
	}
	thaw($victim->pid);
	if (defined $wait)
	{
		like($victim->error, qr/ERROR:  55P03: /, "$test: it gives up");
	}
	else
	{
		wait_for_queue($node, 'a', 1);
		pass("$test: it queues again");
		$next->run('DISCARD ALL');
		is_handed_over($victim, $test);
		$victim->run(q{SELECT distlock_force_release('a')});
	}
	$_->quit foreach $holder, $victim, $next;
}

# ---- No polling ----

# Who waits sleeps until something happens: it is hardly ever scheduled.  To
# look for the lock every 20 ms would take a hundred turns.
{
	my ($holder, $waiter) = map { session($node) } 1 .. 2;
	my $turns = sub {
		my ($n) = slurp_file('/proc/' . $waiter->pid . '/status') =~
		  /^voluntary_ctxt_switches:\s+(\d+)$/m;
		return $n;
	};
	my ($before, $now);

	$holder->run(q{SELECT distlock_acquire('a', '1h')});
	$waiter->send(q{SELECT distlock_acquire('a', '1h')});
	wait_for_queue($node, 'a', 1);
	$before = $turns->();
	$now = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
	$node->poll_query_until('postgres',
		"SELECT clock_timestamp() > '$now'::timestamptz + '2s'")
	  or die 'the clock stands still';
	cmp_ok($turns->() - $before, '<=', 5, 'who waits sleeps');
	$holder->run(q{SELECT distlock_force_release('a')});
	is_handed_over($waiter, 'after a sleep');
	$holder->run(q{SELECT distlock_force_release('a')});
	$_->quit foreach $holder, $waiter;
}

# ---- Behind a session that has stopped ----

# The head of the queue and the worker are stopped when the lease expires, so
# that nobody is there to take it over but the one behind.
{
	my ($holder, $victim, $next) = map { session($node) } 1 .. 3;
	my ($worker, $deadline);

	$holder->run(q{SELECT distlock_acquire('a', '1h')});
	$victim->send(q{SELECT distlock_acquire('a', '1s')});
	wait_for_queue($node, 'a', 1);
	freeze_waiter($node, $victim->pid);
	$next->send(qq{$clock FROM distlock_acquire('a', '1h')});
	wait_for_queue($node, 'a', 2);
	$worker = freeze_worker($node);
	$deadline = $holder->run(q{
SELECT extract(epoch FROM distlock_renew('a', token, '10ms')) FROM distlock_leases});
	is_handed_over_by($next, $deadline, 'behind a frozen head, with a frozen worker');
	is_gone($victim->pid, 'behind a frozen head');
	thaw($worker, $victim->pid);
	$node->safe_psql('postgres', q{SELECT distlock_force_release('a')});
	is_handed_over($victim, 'the frozen head queues again');
	$node->safe_psql('postgres', q{SELECT distlock_force_release('a')});
	$_->quit foreach $holder, $victim, $next;
}

# ---- While holding ----

my %ends = (
	'terminated' => sub { signal_session('pg_terminate_backend', $_[0]->pid) },
	'client killed' => sub { $_[0]->kill_client },
	'client gone' => sub { $_[0]->quit },
	'DISCARD ALL' => sub { $_[0]->run('DISCARD ALL') },
	'idle_session_timeout' => sub { $_[0]->run(q{SET idle_session_timeout = '100ms'}) },
	'idle_in_transaction_session_timeout' => sub {
		$_[0]->run(q{SET idle_in_transaction_session_timeout = '100ms'; BEGIN});
	});

foreach my $way (sort keys %ends)
{
	my ($victim, $next) = map { session($node) } 1 .. 2;
	my $test = "holding, $way";

	$victim->run(qq{SELECT distlock_acquire('a', $forever)});
	$victim->run(qq{SELECT distlock_acquire('b', mode => 'shared', $forever)});
	$next->send(qq{SELECT distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', 1);
	$ends{$way}->($victim);
	is_handed_over($next, $test);
	is_gone($victim->pid, $test);
	$_->quit foreach $victim, $next;
}

# Scope transaction ends with the session in mid-transaction.
foreach my $way ('terminated', 'client killed', 'idle_in_transaction_session_timeout')
{
	my ($victim, $next) = map { session($node) } 1 .. 2;
	my $test = "in a transaction, $way";

	$victim->run('BEGIN');
	$victim->run(q{SELECT distlock_acquire('a', scope => 'transaction')});
	$next->send(qq{SELECT distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', 1);
	if ($way =~ /timeout/)
	{
		$victim->run(q{SET idle_in_transaction_session_timeout = '100ms'});
	}
	else
	{
		$ends{$way}->($victim);
	}
	is_handed_over($next, $test);
	is_gone($victim->pid, $test);
	$_->quit foreach $victim, $next;
}

# A session ends while its release is not committed: the lease stays.
{
	my $victim = session($node);
	my $token = $victim->run(q{SELECT distlock_acquire('a', '1h')});

	$victim->run("BEGIN; SELECT distlock_release('a', $token)");
	signal_session('pg_terminate_backend', $victim->pid);
	wait_until_ended($victim->pid);
	is($node->safe_psql('postgres', "SELECT distlock_check('a', $token)"),
		't', 'terminated before the release is committed: the lease stays');
	is( $node->safe_psql('postgres',
			q{SELECT pid IS NULL FROM distlock_leases WHERE name = 'a'}),
		't',
		'the lease outlives its session');
	$node->safe_psql('postgres', "SELECT distlock_release('a', $token)");
	$victim->quit;
}

# ---- Killed with SIGKILL ----

# The postmaster starts everything anew, with nothing in memory but what is
# stored.
foreach my $moment ('waiting', 'granted', 'holding')
{
	my ($holder, $victim, $next) = map { session($node) } 1 .. 3;
	my $test = "SIGKILL, $moment";
	my $token;

	if ($moment eq 'holding')
	{
		$victim->run(qq{SELECT distlock_acquire('a', $forever)});
	}
	else
	{
		$holder->run(qq{SELECT distlock_acquire('a', $forever)});
		$victim->send(qq{SELECT distlock_acquire('a', $forever)});
		wait_for_queue($node, 'a', 1);
	}
	if ($moment eq 'granted')
	{
		freeze_waiter($node, $victim->pid);
		$holder->run('DISCARD ALL');
	}
	$next->send(qq{SELECT distlock_acquire('a', $forever)});
	wait_for_queue($node, 'a', $moment eq 'waiting' ? 2 : 1);
	$token = $node->safe_psql('postgres', q{SELECT distlock_acquire('b', '1h')});

	crash_backend($node, $victim->pid);
	is( $node->safe_psql(
			'postgres', q{
SELECT (SELECT string_agg(name || ' ' || token, ', ') FROM distlock_leases),
	   (SELECT count(*) FROM distlock_waiters)}),
		"b $token|0",
		"$test: nothing is left behind but a durable lease");
	cmp_ok($node->safe_psql('postgres', q{SELECT distlock_acquire('a', wait => '0')}),
		'>', $token, "$test: the lock is free, tokens go on");
	ok(worker_pid($node), "$test: the worker runs");
	$node->safe_psql('postgres', q{SELECT distlock_force_release(name) FROM distlock_leases});
	$_->quit foreach $holder, $victim, $next;
}

$node->stop;
done_testing();
