# Sessions that wait for each other: for leases, for PostgreSQL's own locks, or
# for some of each.  One of them gets an error that names every step of the
# cycle, and the others go on.  Where nobody needs an error, nobody gets one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = distlock_node(
	'main',
	conf => q{
deadlock_timeout = 100ms
log_lock_waits = on
max_prepared_transactions = 5
autovacuum = off
});
$node->safe_psql('postgres',
	'CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0), (2, 0)');

my @s = map { session($node) } 0 .. 4;
my ($monitor, $probe) = map { session($node) } 1 .. 2;
my $deadlocks = 0;

# The statement that acquires a lease of a lock, or of several: '{a,b}'.
sub acquire
{
	my ($name, %args) = @_;
	my $function = $name =~ /^\{/ ? 'distlock_acquire_all' : 'distlock_acquire';

	$args{scope} //= 'session';
	return "SELECT $function('$name', "
	  . join(', ', map { "$_ => '$args{$_}'" } sort keys %args) . ') > 0';
}

sub wait_for
{
	my ($what, $sql) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;

	until ($monitor->run($sql) eq 't')
	{
		die "waited in vain: $what" if time > $give_up;
		usleep(5_000);
	}
	return;
}

# Start a statement that has to wait, for a lease or another lock.
sub wait_with
{
	my ($session, $sql) = @_;
	my $pid = $session->pid;

	$session->send($sql);
	wait_for("$sql waits",
		"SELECT state = 'active' AND wait_event_type IN ('Lock', 'Extension') FROM pg_stat_activity WHERE pid = $pid");
	return;
}

# The first of the sessions whose statement has ended, taken out of the list.
sub next_done
{
	my ($sessions) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;

	for (;;)
	{
		foreach my $i (0 .. $#$sessions)
		{
			$sessions->[$i]->look;
			return splice @$sessions, $i, 1 if $sessions->[$i]->is_done;
		}
		die 'sessions wait for ever' if time > $give_up;
		usleep(2_000);
	}
}

# End the transaction of a session, and whatever it holds.
sub let_go
{
	my ($session) = @_;

	$session->run('ROLLBACK');
	$session->run('DISCARD ALL');
	return;
}

sub end_leases
{
	$monitor->run('SELECT distlock_force_release(name) FROM (SELECT DISTINCT name FROM distlock_leases) l');
	return;
}

sub nothing_is_left
{
	my ($test) = @_;

	is($monitor->run(q{
SELECT (SELECT count(*) FROM distlock_leases), (SELECT count(*) FROM distlock_waiters),
	(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')}),
		'0|0|0', "$test: nothing is left");
	return;
}

# Each of the sessions gets what it waits for, once those before it are done.
sub all_go_on
{
	my ($test, @sessions) = @_;
	my @errors;

	while (@sessions)
	{
		my $session = next_done(\@sessions);

		push @errors, grep { $_ ne '' } $session->error;
		let_go($session);
	}
	is("@errors", '', "$test: the others go on");
	return scalar @errors;
}

# The session that gets an error, taken out of the list, and the error.  Others
# may have what they wait for before we hear of it; they give it up again.
sub next_victim
{
	my ($sessions) = @_;

	for (;;)
	{
		my $session = next_done($sessions);
		my $error = $session->error;

		return ($session, $error) if $error ne '';
		let_go($session);
	}
}

# These steps may be in a cycle: who waits, for what, for whom.  The detail has
# to be a way along some of them from the victim to itself.
sub is_cycle
{
	my ($test, $victim, $error, @steps) = @_;
	my ($detail) = $error =~ /^DETAIL:  (.*?)\nHINT:  See server log for query details\.$/ms;
	my $at = $victim->pid;
	my $n = 0;
	my $wrong = '';

	foreach my $line (split /\n/, $detail // 'none')
	{
		my ($next) = grep {
			my ($waiter, $what, $blocker) = ($_->[0]->pid, $_->[1], $_->[2]->pid);

			$waiter == $at && $line =~ /^Process $waiter waits for $what; blocked by process $blocker\.$/
		} @steps;

		$wrong .= "$line\n" unless $next;
		last unless $next;
		$at = $next->[2]->pid;
		$n++;
	}
	is($wrong, '', "$test: each line is a step") or diag $error;
	is($at, $victim->pid, "$test: the last step leads back to the victim");
	return $n;
}

# One of the sessions, which wait for each other, gets an error.  When it has
# given up what it held, the others get what they wait for.  Returns the victim,
# and how many steps the detail has.
sub one_deadlock
{
	my ($test, $steps, @sessions) = @_;
	my ($victim, $error) = next_victim(\@sessions);
	my $n;

	like($error, qr/^psql:\S+ ERROR:  40P01: deadlock detected$/m, "$test: one gets an error");
	$n = is_cycle($test, $victim, $error, @$steps);
	$deadlocks++ if $error =~ /LOCATION:  report, /;
	let_go($victim);
	all_go_on($test, @sessions);
	nothing_is_left($test);
	return ($victim, $n);
}

# Others that have waited for longer have looked for a deadlock when later ones
# have been found.
sub pass_checks
{
	my ($n) = @_;

	$probe->run(acquire('probe'));
	foreach (1 .. $n)
	{
		$probe->send(acquire('probe'));
		die 'no deadlock' unless $probe->error =~ /40P01/;
		$deadlocks++;
	}
	$probe->run('DISCARD ALL');
	return;
}

# Wait until a session that waits for a lease has looked for a deadlock.
sub has_checked
{
	my ($session, $log) = @_;
	my $pid = $session->pid;

	$node->wait_for_log(qr/process $pid still waiting for \w+ lease of lock/, $log);
	pass_checks(1);
	return;
}

sub no_alarm
{
	my ($test, @sessions) = @_;

	pass_checks(4);
	is(scalar(grep { $_->look; $_->is_done } @sessions), 0, "$test: no alarm")
	  or diag map { ($_->get)[1] } grep { $_->is_done } @sessions;
	return;
}

sub lease_step
{
	my ($waiter, $name, $blocker, $mode) = @_;

	$mode //= 'exclusive';
	return [ $waiter, qr/$mode lease of lock "$name"/, $blocker ];
}

# ---- Leases ----

# However they are tied to the session: the transaction that acquires a lease of
# scope lease is still open.
foreach my $scope (qw(session transaction lease))
{
	my $test = "two sessions, scope $scope";
	my ($log, $queries) = (-s $node->logfile, '');
	my $victim;

	$_->run('BEGIN') foreach @s[ 0, 1 ];
	$s[0]->run(acquire('a', scope => $scope));
	$s[1]->run(acquire('b', scope => $scope));
	wait_with($s[0], acquire('b', scope => $scope));
	$s[1]->send(acquire('a', scope => $scope));
	($victim) = one_deadlock($test,
		[ lease_step($s[0], 'b', $s[1]), lease_step($s[1], 'a', $s[0]) ], @s[ 0, 1 ]);

	# The log says what they do, too.
	foreach my $i (0, 1)
	{
		my $pid = $s[$i]->pid;
		my $statement = quotemeta acquire($i ? 'a' : 'b', scope => $scope);

		$node->wait_for_log(qr/DETAIL:.*Process $pid: $statement/s, $log);
	}
	pass("$test: the log has the statements");
}

# Outside of transaction blocks
{
	my $test = 'two sessions, each statement by itself';

	$s[0]->run(acquire('a'));
	$s[1]->run(acquire('b'));
	wait_with($s[0], acquire('b'));
	$s[1]->send(acquire('a'));
	one_deadlock($test, [ lease_step($s[0], 'b', $s[1]), lease_step($s[1], 'a', $s[0]) ],
		@s[ 0, 1 ]);
}

# Modes in the detail, and who only holds what conflicts is in it.
{
	my $test = 'shared leases';

	$_->run(acquire('a', mode => 'shared')) foreach @s[ 0, 1 ];
	$s[2]->run(acquire('x'));
	wait_with($s[2], acquire('a'));
	$s[0]->send(acquire('x', mode => 'shared'));
	my @waiting = @s[ 0, 2 ];
	my ($victim, $error) = next_victim(\@waiting);

	is_cycle($test, $victim, $error, lease_step($s[2], 'a', $s[0]),
		lease_step($s[0], 'x', $s[2], 'shared'));
	$deadlocks++;
	let_go($victim);
	let_go($s[1]);
	all_go_on($test, @waiting);
	nothing_is_left($test);
}

{
	my $test = 'three sessions';
	my @names = qw(a b c);
	my @steps = map { lease_step($s[$_], $names[ ($_ + 1) % 3 ], $s[ ($_ + 1) % 3 ]) } 0 .. 2;
	my $n;

	foreach my $i (0 .. 2)
	{
		$s[$i]->run('BEGIN');
		$s[$i]->run(acquire($names[$i], scope => 'transaction'));
	}
	wait_with($s[$_], acquire($names[ $_ + 1 ], scope => 'transaction')) foreach 0, 1;
	$s[2]->send(acquire('a', scope => 'transaction'));
	(undef, $n) = one_deadlock($test, \@steps, @s[ 0 .. 2 ]);
	is($n, 3, "$test: three steps");
}

# All begin to wait, and look, at the same moment.
foreach my $round (1 .. 5)
{
	my $test = "all look at once, round $round";

	$monitor->run('SELECT pg_advisory_lock(9)');
	$s[$_]->run(acquire("ring $_")) foreach 0 .. 4;
	foreach my $i (0 .. 4)
	{
		wait_with($s[$i],
			acquire('ring ' . ($i + 1) % 5) =~ s/SELECT/SELECT pg_advisory_xact_lock_shared(9),/r);
	}
	$monitor->run('SELECT pg_advisory_unlock(9)');
	one_deadlock($test, [ map { lease_step($s[$_], 'ring ' . ($_ + 1) % 5, $s[ ($_ + 1) % 5 ]) } 0 .. 4 ],
		@s);
}

# A session that waits for one of a cycle is not in it.
{
	my $test = 'one waits for a cycle';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('{a,z}'));
	$s[1]->run(acquire('b'));
	wait_with($s[2], acquire('z'));
	has_checked($s[2], $log);
	# Those in it leave the other one time to look.
	$s[0]->run(q{SET deadlock_timeout = '1h'});
	$s[1]->run(q{SET deadlock_timeout = '500ms'});
	wait_with($s[0], acquire('b'));
	$s[1]->send(acquire('a'));
	my ($victim) = one_deadlock($test,
		[ lease_step($s[0], 'b', $s[1]), lease_step($s[1], 'a', $s[0]) ],
		@s[ 0 .. 2 ]);
	isnt($victim, $s[2], "$test: it is not the victim");
}

# Waiting for oneself
foreach my $again (
	[ 'its own lease', 'exclusive', 'exclusive', 1 ],
	[ 'its own lease, which is shared', 'shared', 'exclusive', 1 ],
	[ 'its own lease, to share it', 'exclusive', 'shared', 1 ])
{
	my ($test, $first, $second) = @$again;

	$s[0]->run(acquire('a', mode => $first));
	$s[0]->send(acquire('a', mode => $second));
	one_deadlock($test, [ lease_step($s[0], 'a', $s[0], $second) ], $s[0]);
}
{
	my $test = 'two who share want to have it alone';

	$_->run(acquire('a', mode => 'shared')) foreach @s[ 0, 1 ];
	$s[0]->send(acquire('a'));
	like($s[0]->error, qr/40P01/, $test);
	$deadlocks++;
	let_go($_) foreach @s[ 0, 1 ];
	nothing_is_left($test);
}
{
	my $test = 'its own lease, caught';

	$s[0]->run('BEGIN');
	$s[0]->run(acquire('a'));
	$s[0]->run(q{
DO $$
BEGIN
	PERFORM distlock_acquire('a', scope => 'session');
EXCEPTION WHEN deadlock_detected THEN
	PERFORM distlock_acquire('b', scope => 'session');
END $$});
	$deadlocks++;
	$s[0]->run('SAVEPOINT s');
	$s[0]->send(acquire('{c,b,d}'));
	like($s[0]->error, qr/40P01/, "$test: and another after it");
	$deadlocks++;
	$s[0]->run('ROLLBACK TO SAVEPOINT s');
	is($s[0]->run(acquire('c')), 't', "$test: what was free is still free");
	$s[0]->run('COMMIT');
	is($monitor->run(q{SELECT string_agg(name, ' ' ORDER BY name) FROM distlock_leases}),
		'a b c', "$test: the leases it had it keeps");
	let_go($s[0]);
	nothing_is_left($test);
}

# A wait that would end by itself, and a try, are no exception.
{
	my $test = 'waits with an end';

	$s[0]->run(acquire('a', ttl => '1h'));
	$s[1]->run(acquire('b', ttl => '1h'));
	$s[0]->run(q{SET lock_timeout = '1h'});
	wait_with($s[0], acquire('b'));
	$s[1]->send(q{SELECT distlock_try_acquire('a', wait => '1h', scope => 'session')});
	one_deadlock($test, [ lease_step($s[0], 'b', $s[1]), lease_step($s[1], 'a', $s[0]) ],
		@s[ 0, 1 ]);
}

# ---- Several locks at once ----

{
	my $test = 'several locks at once';

	$s[0]->run(acquire('{a,e}'));
	$s[1]->run(acquire('{f,b}'));
	wait_with($s[0], acquire('{b,c}'));
	$s[1]->send(acquire('{d,a}'));
	one_deadlock($test, [ lease_step($s[0], 'b', $s[1]), lease_step($s[1], 'a', $s[0]) ],
		@s[ 0, 1 ]);
}
{
	my $test = 'several locks at once, of which the last is in the cycle';

	$s[0]->run(acquire('a'));
	$s[1]->run(acquire('b'));
	$s[2]->run(acquire('c'));
	wait_with($s[0], acquire('{c,b}'));
	$s[1]->send(acquire('a'));
	my @waiting = @s[ 0, 1 ];
	my ($victim, $error) = next_victim(\@waiting);

	is_cycle($test, $victim, $error, lease_step($s[0], 'b', $s[1]),
		lease_step($s[1], 'a', $s[0]));
	$deadlocks++;
	let_go($victim);
	let_go($s[2]);
	all_go_on($test, @waiting);
	nothing_is_left($test);
}

# ---- Permits ----

# All who hold one wait in the cycle.
{
	my $test = 'permits, both holders wait';
	my @p = ('p', max_holders => 2);
	my $n;

	$_->run(acquire(@p)) foreach @s[ 0, 1 ];
	$s[2]->run(acquire('x'));
	wait_with($_, acquire('x')) foreach @s[ 0, 1 ];
	$s[2]->send(acquire(@p));
	(undef, $n) = one_deadlock($test,
		[ (map { (lease_step($s[$_], 'x', $s[2]), lease_step($s[2], 'p', $s[$_], 'shared')) } 0, 1),
			lease_step($s[1], 'x', $s[0]) ],
		@s[ 0 .. 2 ]);
	is($n, 2, "$test: two steps");
}
# One of them may give it back.
{
	my $test = 'permits, one holder is free';
	my @p = ('p', max_holders => 2);

	$_->run(acquire(@p)) foreach @s[ 0, 1 ];
	$s[2]->run(acquire('x'));
	wait_with($s[0], acquire('x'));
	wait_with($s[2], acquire(@p));
	no_alarm($test, @s[ 0, 2 ]);

	# The free one waits as well, later.
	$s[1]->send(acquire('x'));
	one_deadlock("$test, then waits",
		[ (map { (lease_step($s[$_], 'x', $s[2]), lease_step($s[2], 'p', $s[$_], 'shared')) } 0, 1),
			lease_step($s[1], 'x', $s[0]) ],
		@s[ 0 .. 2 ]);

	$_->run(acquire(@p)) foreach @s[ 0, 1 ];
	$s[2]->run(acquire('x'));
	wait_with($s[0], acquire('x'));
	wait_with($s[2], acquire(@p));
	let_go($s[1]);
	all_go_on($test, @s[ 0, 2 ]);
	nothing_is_left($test);
}
# The other permit is a lease of scope lease, of a session that waits.
{
	my $test = 'permits, one of scope lease';
	my @p = ('p', max_holders => 2);

	$s[0]->run(acquire(@p));
	$s[0]->run(acquire(@p, scope => 'lease'));
	$s[2]->run(acquire('x'));
	wait_with($s[0], acquire('x'));
	wait_with($s[2], acquire(@p));
	no_alarm($test, @s[ 0, 2 ]);
	$monitor->run(q{SELECT distlock_release(name, token) FROM distlock_leases WHERE scope = 'lease'});
	all_go_on($test, @s[ 0, 2 ]);
	nothing_is_left($test);
}
{
	my $test = 'permits, all its own';
	my @p = ('p', max_holders => 2);

	$s[0]->run(acquire(@p)) foreach 1, 2;
	$s[0]->send(acquire(@p));
	one_deadlock($test, [ lease_step($s[0], 'p', $s[0], 'shared') ], $s[0]);
}

# ---- PostgreSQL's own locks ----

my %others = (
	'row lock' => [
		'UPDATE t SET v = v + 1 WHERE id = 1', 'UPDATE t SET v = v + 1 WHERE id = 1',
		qr/ShareLock on transaction \d+/
	],
	'table lock' =>
	  [ 'LOCK TABLE t', 'SELECT count(*) FROM t', qr/AccessShareLock on relation \d+ of database \d+/ ],
	'advisory lock' => [
		'SELECT pg_advisory_xact_lock(7)', 'SELECT pg_advisory_xact_lock(7)',
		qr/ExclusiveLock on advisory lock \[\d+,0,7,1\]/
	]);

foreach my $kind (sort keys %others)
{
	my ($take, $want, $what) = @{ $others{$kind} };

	foreach my $scope (qw(session transaction lease))
	{
		foreach my $last ('who waits for the lease', 'who waits for the other')
		{
			my $test = "$kind, scope $scope, $last comes last";
			my $log = -s $node->logfile;
			my ($holder, $other) = @s[ 0, 1 ];
			my ($victim, $n);

			$_->run('BEGIN') foreach $holder, $other;
			$holder->run(acquire('a', scope => $scope));
			$other->run($take);
			if ($last =~ /lease/)
			{
				wait_with($holder, $want);
				$other->send(acquire('a', scope => $scope));
			}
			else
			{
				wait_with($other, acquire('a', scope => $scope));
				has_checked($other, $log);
				$holder->send($want);
			}
			($victim, $n) = one_deadlock($test,
				[ [ $holder, $what, $other ], lease_step($other, 'a', $holder) ], $holder, $other);
			is($victim, $other, "$test: it is the one that waits for the lease");
			is($n, 2, "$test: two steps");
		}
	}
}

# Some of each, in a long cycle
{
	my $test = 'leases, a row and a table';
	my ($victim, $n);

	$_->run('BEGIN') foreach @s[ 0 .. 3 ];
	$s[0]->run(acquire('a'));
	$s[1]->run('UPDATE t SET v = 1 WHERE id = 1');
	$s[2]->run(acquire('b'));
	$s[3]->run('CREATE TABLE u ()');
	$s[3]->run('SELECT pg_advisory_xact_lock(7)');
	wait_with($s[0], 'UPDATE t SET v = 2 WHERE id = 1');
	wait_with($s[1], acquire('b', mode => 'shared'));
	wait_with($s[2], 'SELECT pg_advisory_xact_lock(7)');
	$s[3]->send(acquire('a'));
	($victim, $n) = one_deadlock(
		$test,
		[
			[ $s[0], $others{'row lock'}[2], $s[1] ],
			lease_step($s[1], 'b', $s[2], 'shared'),
			[ $s[2], $others{'advisory lock'}[2], $s[3] ],
			lease_step($s[3], 'a', $s[0])
		],
		@s[ 0 .. 3 ]);
	is($n, 4, "$test: four steps");
}

# Behind another one who waits for the same row
{
	my $test = 'two wait for the row';

	$_->run('BEGIN') foreach @s[ 0 .. 2 ];
	$s[1]->run('UPDATE t SET v = 1 WHERE id = 1');
	$s[0]->run(acquire('a'));
	wait_with($s[2], 'UPDATE t SET v = 2 WHERE id = 1');
	wait_with($s[0], 'UPDATE t SET v = 3 WHERE id = 1');
	$s[1]->send(acquire('a'));
	my ($victim, $n) = one_deadlock(
		$test,
		[
			lease_step($s[1], 'a', $s[0]),
			[ $s[0], qr/ExclusiveLock on tuple \(\d+,\d+\) of relation \d+ of database \d+/, $s[2] ],
			[ $s[2], $others{'row lock'}[2], $s[1] ]
		],
		@s[ 0 .. 2 ]);
	is($victim, $s[1], "$test: it is the one that waits for the lease");
	is($n, 3, "$test: three steps");
}

# A cycle of PostgreSQL's locks alone is found by PostgreSQL alone.
{
	my $test = 'no lease in the cycle';
	my $log = -s $node->logfile;

	$_->run('BEGIN') foreach @s[ 0, 1 ];
	$s[0]->run(acquire('a'));
	wait_with($s[2], acquire('a'));
	has_checked($s[2], $log);
	$s[0]->run('SELECT pg_advisory_xact_lock(1)');
	$s[1]->run('SELECT pg_advisory_xact_lock(2)');
	wait_with($s[0], 'SELECT pg_advisory_xact_lock(2)');
	$s[1]->send('SELECT pg_advisory_xact_lock(1)');
	my ($victim) = one_deadlock(
		$test,
		[
			[ $s[0], qr/ExclusiveLock on advisory lock \[\d+,0,2,1\]/, $s[1] ],
			[ $s[1], qr/ExclusiveLock on advisory lock \[\d+,0,1,1\]/, $s[0] ]
		],
		@s[ 0 .. 2 ]);
	isnt($victim, $s[2], "$test: not whoever waits for one in it");
}

# ---- No false alarm ----

# The session that acquired a lease of scope lease may serve another client.
foreach my $scope (qw(lease session))
{
	my $test = "scope lease and scope $scope";

	$s[0]->run(acquire('a', scope => 'lease', ttl => '1h'));
	$s[1]->run(acquire('b', scope => $scope, ttl => '1h'));
	wait_with($s[0], acquire('b'));
	wait_with($s[1], acquire('a'));
	no_alarm($test, @s[ 0, 1 ]);
	$monitor->run(q{SELECT distlock_release(name, token) FROM distlock_leases WHERE name = 'a'});
	is($s[1]->result, 't', "$test: who waits gets it");
	let_go($s[1]);
	$monitor->run(q{SELECT distlock_release(name, token) FROM distlock_leases WHERE name = 'b'})
	  if $scope eq 'lease';
	all_go_on($test, $s[0]);
	nothing_is_left($test);
}
{
	my $test = 'a lease of scope lease of its own';

	$s[0]->run(acquire('a', scope => 'lease', ttl => '1h'));
	wait_with($s[0], acquire('a'));
	no_alarm($test, $s[0]);
	end_leases();
	all_go_on($test, $s[0]);
	nothing_is_left($test);
}
foreach my $kind (sort keys %others)
{
	my $test = "scope lease and a $kind";
	my ($take, $want) = @{ $others{$kind} };

	$s[0]->run(acquire('a', scope => 'lease', ttl => '1h'));
	$_->run('BEGIN') foreach @s[ 0, 1 ];
	$s[1]->run($take);
	wait_with($s[0], $want);
	wait_with($s[1], acquire('a'));
	no_alarm($test, @s[ 0, 1 ]);
	end_leases();
	all_go_on($test, @s[ 0, 1 ]);
	nothing_is_left($test);
}

# Acquired in a transaction that has ended since
{
	my $test = 'scope lease, its transaction ends';

	$s[0]->run('BEGIN');
	$s[0]->run(acquire('a', scope => 'lease', ttl => '1h'));
	$s[0]->run('SAVEPOINT s');
	$s[0]->run('RELEASE SAVEPOINT s');
	$s[1]->run(acquire('b'));
	wait_with($s[1], acquire('a'));
	no_alarm("$test: idle in transaction", $s[1]);
	$s[0]->run('COMMIT');
	wait_with($s[0], acquire('b'));
	no_alarm("$test: waits after it", @s[ 0, 1 ]);
	end_leases();
	all_go_on($test, @s[ 0, 1 ]);
	nothing_is_left($test);
}

# A long way that does not come back
{
	my $test = 'a way to one who does not wait';

	$_->run('BEGIN') foreach @s[ 0 .. 3 ];
	$s[$_]->run(acquire(qw(a b c d) [$_], scope => 'transaction')) foreach 0 .. 3;
	$s[1]->run('UPDATE t SET v = 1 WHERE id = 2');
	wait_with($s[0], 'UPDATE t SET v = 2 WHERE id = 2');
	wait_with($s[1], acquire('c', scope => 'transaction'));
	wait_with($s[2], acquire('{d,e}', scope => 'transaction'));
	wait_with($s[4], acquire('a'));
	no_alarm($test, @s[ 0, 1, 2, 4 ]);
	let_go($s[3]);
	all_go_on($test, @s[ 0, 1, 2, 4 ]);
	nothing_is_left($test);
}

# Shared ones do not wait for each other.
{
	my $test = 'shared beside shared';

	$_->run(acquire('a', mode => 'shared')) foreach @s[ 0, 1 ];
	$s[2]->run(acquire('x'));
	wait_with($s[0], acquire('x'));
	is($s[2]->run(acquire('a', mode => 'shared')), 't', "$test: granted at once");
	let_go($_) foreach @s[ 1, 2 ];
	all_go_on($test, $s[0]);
	nothing_is_left($test);
}

# ---- Going ahead of an earlier request ----

my $avoided = qr/LOG:  process \d+ avoided deadlock for lock "(.*)" by rearranging queue order/;

sub has_overtaken
{
	my ($test, $name, $log) = @_;

	$node->wait_for_log($avoided, $log);
	is(join(' ', slurp_file($node->logfile, $log) =~ /$avoided/g), $name, "$test: the log says so");
	return;
}

# The order of the queues is as it was.
sub has_not_overtaken
{
	my ($test, $log) = @_;

	unlike(slurp_file($node->logfile, $log), $avoided, "$test: nobody goes ahead");
	return;
}

{
	my $test = 'to share it once more';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('a', mode => 'shared'));
	wait_with($s[1], acquire('a'));
	is($s[0]->run(acquire('a', mode => 'shared')), 't', "$test: goes ahead");
	has_overtaken($test, 'a', $log);
	ok(!$s[1]->is_done, "$test: the other waits on");
	let_go($s[0]);
	all_go_on($test, $s[1]);
	nothing_is_left($test);
}
foreach my $ahead (1, 2)
{
	my $test = "three sessions, $ahead ahead";
	my $log = -s $node->logfile;

	# 1 waits for 0, who waits for 2, who stands behind 1, or behind 3 and 1.
	$s[0]->run(acquire('a', mode => 'shared'));
	$s[2]->run(acquire('x'));
	wait_with($s[1], acquire('a'));
	wait_with($s[3], acquire('a')) if $ahead == 2;
	wait_with($s[0], acquire('x'));
	is($s[2]->run(acquire('a', mode => 'shared')), 't', "$test: goes ahead");
	has_overtaken($test, 'a', $log);
	is(scalar(grep { $_->look; $_->is_done } @s[ 0, 1 ]), 0, "$test: the others wait on");
	let_go($s[2]);
	all_go_on($test, @s[ 0, 1 ], $ahead == 2 ? $s[3] : ());
	nothing_is_left($test);
}
# Who finds it need not be who goes ahead.
{
	my $test = 'closed by another';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('a', mode => 'shared'));
	$s[2]->run(acquire('x'));
	wait_with($s[1], acquire('a'));
	$s[2]->run(q{SET deadlock_timeout = '1h'});
	wait_with($s[2], acquire('a', mode => 'shared'));
	$s[0]->send(acquire('x'));
	is($s[2]->result, 't', "$test: goes ahead");
	has_overtaken($test, 'a', $log);
	let_go($s[2]);
	all_go_on($test, @s[ 0, 1 ]);
	nothing_is_left($test);
}
# Through one of PostgreSQL's locks
{
	my $test = 'behind one who waits for one who waits for a row';
	my $log = -s $node->logfile;

	$_->run('BEGIN') foreach @s[ 0, 2 ];
	$s[0]->run(acquire('a', mode => 'shared'));
	$s[2]->run('UPDATE t SET v = 1 WHERE id = 1');
	wait_with($s[1], acquire('a'));
	wait_with($s[2], acquire('a', mode => 'shared'));
	$s[0]->send('UPDATE t SET v = 2 WHERE id = 1');
	is($s[2]->result, 't', "$test: goes ahead");
	has_overtaken($test, 'a', $log);
	let_go($s[2]);
	all_go_on($test, @s[ 0, 1 ]);
	nothing_is_left($test);
}
# A lock that is free, but kept for a request for several
{
	my $test = 'kept for another';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('b'));
	wait_with($s[1], acquire('{b,c}'));
	is($s[0]->run(acquire('c')), 't', "$test: goes ahead");
	has_overtaken($test, 'c', $log);
	ok(!$s[1]->is_done, "$test: the other waits on");
	let_go($s[0]);
	all_go_on($test, $s[1]);
	nothing_is_left($test);
}
# Shared requests do not stand behind each other.
{
	my $test = 'behind a shared request, shared';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('a'));
	$s[2]->run(acquire('b'));
	wait_with($s[1], acquire('{a,b}', mode => 'shared'));
	wait_with($s[2], acquire('a', mode => 'shared'));
	no_alarm($test, @s[ 1, 2 ]);
	has_not_overtaken($test, $log);
	let_go($s[0]);
	is($s[2]->result, 't', "$test: goes first");
	let_go($s[2]);
	all_go_on($test, $s[1]);
	nothing_is_left($test);
}
# More than one change is needed: to go ahead in two queues, or of two requests.
{
	my $test = 'kept for another, two of them';

	$s[0]->run(acquire('c'));
	wait_with($s[1], acquire('{a,b,c}'));
	$s[0]->send(acquire('{a,b}'));
	$deadlocks += all_go_on($test, @s[ 0, 1 ]);
	nothing_is_left($test);
}
{
	my $test = 'kept for two others';

	$s[0]->run(acquire('x'));
	$_->run(acquire('h', mode => 'shared')) foreach @s[ 1, 2 ];
	wait_with($s[3], acquire('{c,x}'));
	wait_with($s[4], acquire('{d,x}'));
	wait_with($s[1], acquire('c'));
	wait_with($s[2], acquire('d'));
	$s[0]->send(acquire('h'));
	$deadlocks += all_go_on($test, @s[ 0 .. 4 ]);
	nothing_is_left($test);
}
# It would not help: what it waits for is held.
{
	my $test = 'behind another, in vain';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('a', mode => 'shared'));
	$s[2]->run(acquire('x'));
	# It might be the first to look, and then two would get an error.
	$s[1]->run(q{SET deadlock_timeout = '1h'});
	wait_with($s[1], acquire('a'));
	wait_with($s[0], acquire('x'));
	$s[2]->send(acquire('a'));
	one_deadlock(
		$test,
		[
			lease_step($s[0], 'x', $s[2]), lease_step($s[1], 'a', $s[0]),
			lease_step($s[2], 'a', $s[0]), lease_step($s[2], 'a', $s[1])
		],
		@s[ 0 .. 2 ]);
	has_not_overtaken($test, $log);
}
# The one ahead looks first.  That the other goes ahead does not help: it is in a
# cycle with a holder.
{
	my $test = 'ahead of another, in vain';
	my $log = -s $node->logfile;
	my @waiting = @s[ 0 .. 2 ];
	my $errors = 0;

	$s[0]->run(acquire('a', mode => 'shared'));
	$s[2]->run(acquire('x'));
	wait_with($s[1], acquire('a'));
	$_->run(q{SET deadlock_timeout = '500ms'}) foreach @s[ 0, 2 ];
	wait_with($s[0], acquire('x'));
	$s[2]->send(acquire('a'));
	while (@waiting)
	{
		my $session = next_done(\@waiting);

		$errors++ if $session->error =~ /40P01/;
		let_go($session);
	}
	cmp_ok($errors, '>', 0, "$test: there is an error");
	$deadlocks += $errors;
	has_not_overtaken($test, $log);
	nothing_is_left($test);
}
# It would close another cycle: who would stand behind holds what it waits for.
{
	my $test = 'behind another, in vain either way';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('a', mode => 'shared'));
	$s[1]->run(acquire('y'));
	wait_with($s[1], acquire('a'));
	# It may look before the victim is gone, and find itself in the way.
	$s[2]->run(q{SET deadlock_timeout = '1h'});
	wait_with($s[2], acquire('y'));
	$s[0]->send(acquire('y', mode => 'shared'));
	my ($victim) = one_deadlock(
		$test,
		[
			lease_step($s[0], 'y', $s[1], 'shared'), lease_step($s[0], 'y', $s[2], 'shared'),
			lease_step($s[1], 'a', $s[0]), lease_step($s[2], 'y', $s[1])
		],
		@s[ 0 .. 2 ]);
	isnt($victim, $s[2], "$test: not whoever is not in it");
	has_not_overtaken($test, $log);
}

# ---- advisory_key ----

foreach my $last ('the lease with the key', 'the other lease')
{
	my $test = "key held by a session that waits for a lease, $last comes last";
	my $log = -s $node->logfile;
	my @with_key = ('job', advisory_key => 7);
	my $victim;

	$s[0]->run('SELECT pg_advisory_lock(7)');
	$s[1]->run(acquire('m'));
	if ($last =~ /key/)
	{
		wait_with($s[0], acquire('m'));
		has_checked($s[0], $log);
		$s[1]->send(acquire(@with_key));
	}
	else
	{
		wait_with($s[1], acquire(@with_key));
		$s[0]->send(acquire('m'));
	}
	($victim) = one_deadlock($test,
		[ lease_step($s[0], 'm', $s[1]), [ $s[1], $others{'advisory lock'}[2], $s[0] ] ],
		@s[ 0, 1 ]);
	is($victim, $s[0], "$test: it is the one that waits for the lease");
}
{
	my $test = 'key held with a lease, by a session that waits';
	my $log = -s $node->logfile;

	$s[0]->run(acquire('job', advisory_key => 7));
	$s[1]->run(acquire('m'));
	wait_with($s[0], acquire('m'));
	has_checked($s[0], $log);
	$s[1]->send('SELECT pg_advisory_lock(7)');
	one_deadlock($test,
		[ lease_step($s[0], 'm', $s[1]), [ $s[1], $others{'advisory lock'}[2], $s[0] ] ],
		@s[ 0, 1 ]);
}
# All wait inside PostgreSQL, which finds it.
{
	my $test = 'two keys';
	my $step = sub {
		my ($key) = @_;
		return qr/ExclusiveLock on advisory lock \[\d+,0,$key,1\]/;
	};

	$s[0]->run('SELECT pg_advisory_lock(1)');
	$s[1]->run('SELECT pg_advisory_lock(2)');
	wait_with($s[0], acquire('a', advisory_key => 2));
	$s[1]->send(acquire('b', advisory_key => 1, wait => '1h'));
	one_deadlock($test,
		[ [ $s[0], $step->(2), $s[1] ], [ $s[1], $step->(1), $s[0] ] ], @s[ 0, 1 ]);
}
# Whoever has the key goes ahead of the one who waits for it.
foreach my $closed (0, 1)
{
	my $test = 'behind one who waits for the key' . ($closed ? ', later' : '');
	my $log = -s $node->logfile;
	my $token;

	$s[0]->run('SELECT pg_advisory_lock(7)');
	$token = $s[2]->run(q{SELECT distlock_acquire('job', '1h')}) if $closed;
	wait_with($s[1], acquire('job', advisory_key => 7));
	$s[0]->send(acquire('job'));
	if ($closed)
	{
		# Nobody waits for the key yet, and nobody holds anything that ends with a
		# session.
		has_checked($s[0], $log);
		$s[2]->run("SELECT distlock_release('job', $token)");
	}
	is($s[0]->result, 't', "$test: goes ahead");
	has_overtaken($test, 'job', $log);
	let_go($s[0]);
	all_go_on($test, $s[1]);
	let_go($s[2]);
	nothing_is_left($test);
}

# ---- log_lock_waits ----

{
	my $test = 'log_lock_waits';
	my $log = -s $node->logfile;
	my ($holder, $waiter) = @s[ 0, 1 ];
	my ($holder_pid, $pid) = map { $_->pid } $holder, $waiter;
	my $acquired;
	my $token = $holder->run(q{SELECT distlock_acquire('a', scope => 'session', holder => 'me')});

	$waiter->send(acquire('a', mode => 'shared'));
	$node->wait_for_log(
		qr/LOG:  process $pid still waiting for shared lease of lock "a" after 1\d\d\.\d{3} ms\n.*DETAIL:  The lock is held by "me" under token $token, process $holder_pid, with no time to live\.\n.*STATEMENT:  SELECT distlock_acquire/,
		$log);
	pass("$test: who waits is told of");
	pass_checks(4);
	let_go($holder);
	$waiter->result;
	$acquired = qr/LOG:  process $pid acquired shared lease of lock/;
	$node->wait_for_log($acquired, $log);
	like(slurp_file($node->logfile, $log),
		qr/$acquired "a" after \d+\.\d{3} ms\n/, "$test: and that it has ended");
	is(() = slurp_file($node->logfile, $log) =~ /process $pid still waiting/g,
		1, "$test: once");
	let_go($waiter);

	# Too short a wait, or switched off
	foreach my $setting (q{deadlock_timeout = '1h'}, 'log_lock_waits = off')
	{
		$log = -s $node->logfile;
		$holder->run(acquire('a'));
		$waiter->run("SET $setting");
		wait_with($waiter, acquire('a'));
		pass_checks(2);
		let_go($holder);
		$waiter->result;
		let_go($waiter);
		unlike(slurp_file($node->logfile, $log), qr/process $pid (still waiting|acquired)/,
			"$test: nothing with $setting");
	}
	nothing_is_left($test);
}

# ---- distlock_blocking_pids() ----

sub blocking
{
	my ($session) = @_;

	return $monitor->run('SELECT distlock_blocking_pids(' . $session->pid . ')');
}

sub pids
{
	return '{' . join(',', map { $_->pid } @_) . '}';
}

is($monitor->run("SELECT $_(NULL) IS NULL, $_(0), $_(-1), $_(2147483647), $_(pg_backend_pid())"),
	't|{}|{}|{}|{}', "$_: who does not wait")
  foreach qw(pg_blocking_pids distlock_blocking_pids);
{
	my $test = 'blocking pids';
	my @p = ('p', max_holders => 2);

	$s[0]->run(acquire('a', mode => 'shared'));
	$s[1]->run(acquire('a', mode => 'shared', scope => 'lease'));
	is(blocking($s[0]), '{}', "$test: a holder");
	wait_with($s[2], acquire('a'));
	wait_with($s[3], acquire('a', mode => 'shared'));
	wait_with($s[4], acquire('a'));
	is(blocking($s[2]), pids(@s[ 0, 1 ]), "$test: holders");
	is(blocking($s[3]), pids($s[2]), "$test: the request ahead, not those it shares with");
	is(blocking($s[4]), pids(@s[ 0 .. 3 ]), "$test: holders and requests ahead");

	# PostgreSQL says the same of its own locks.
	my @q = map { session($node) } 0 .. 4;

	$_->run('SELECT pg_advisory_lock_shared(1)') foreach @q[ 0, 1 ];
	wait_with($q[2], 'SELECT pg_advisory_lock(1)');
	wait_with($q[3], 'SELECT pg_advisory_lock_shared(1)');
	wait_with($q[4], 'SELECT pg_advisory_lock(1)');
	foreach my $i (0 .. 4)
	{
		my %place = (
			(map { $s[$_]->pid => $_ } 0 .. 4),
			(map { $q[$_]->pid => $_ } 0 .. 4));
		my @blockers = map {
			my $list = $monitor->run("SELECT $_->[0](" . $_->[1][$i]->pid . ')');

			join ' ', sort map { $place{$_} } $list =~ /\d+/g;
		} [ 'distlock_blocking_pids', \@s ], [ 'pg_blocking_pids', \@q ];

		is($blockers[0], $blockers[1], "$test: as pg_blocking_pids() of session $i");
	}
	$_->quit foreach @q;
	end_leases();
	all_go_on($test, @s[ 2 .. 4 ]);
	let_go($_) foreach @s[ 0, 1 ];

	$_->run(acquire(@p)) foreach @s[ 0, 1 ];
	wait_with($s[2], acquire(@p, mode => 'shared'));
	wait_with($s[3], acquire(@p, mode => 'shared'));
	is(blocking($s[2]), pids(@s[ 0, 1 ]), "$test: all who hold a permit");
	is(blocking($s[3]), pids(@s[ 0 .. 2 ]), "$test: and those who wait for one");
	let_go($_) foreach @s[ 0, 1 ];
	all_go_on($test, @s[ 2, 3 ]);

	# Of several locks those that it does not get
	$s[0]->run(acquire('a'));
	$s[1]->run(acquire('b'));
	wait_with($s[2], acquire('{a,b,c}'));
	is(join(' ', sort { $a <=> $b } (blocking($s[2]) =~ /\d+/g)),
		join(' ', sort { $a <=> $b } map { $_->pid } @s[ 0, 1 ]),
		"$test: several locks");
	wait_with($s[3], acquire('c'));
	is(blocking($s[3]), pids($s[2]), "$test: a lock that is kept for another");
	let_go($s[0]);
	is(blocking($s[2]), pids($s[1]), "$test: several locks, one of them given up");
	let_go($s[1]);
	all_go_on($test, @s[ 2, 3 ]);

	# A holder that is gone, and a wait inside PostgreSQL
	my $gone = session($node);
	my $pid = $gone->pid;

	$gone->run(acquire('a', scope => 'lease', ttl => '1h'));
	$gone->quit;
	wait_for('the holder ends', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
	wait_with($s[0], acquire('a'));
	is(blocking($s[0]), '{}', "$test: the holder is gone");
	end_leases();
	all_go_on($test, $s[0]);
	$s[1]->run('SELECT pg_advisory_lock(7)');
	wait_with($s[0], acquire('a', advisory_key => 7));
	is($monitor->run('SELECT pg_blocking_pids(' . $s[0]->pid . ')'),
		pids($s[1]), "$test: who has the key is in pg_blocking_pids()");
	let_go($s[1]);
	all_go_on($test, $s[0]);
	nothing_is_left($test);
}

# ---- A prepared transaction ----

# It is no session that waits.
{
	my $test = 'behind a prepared transaction';
	my $token;

	$s[0]->run('BEGIN');
	$token = $monitor->run(q{SELECT distlock_acquire('a', '1h')});
	$s[0]->run("SELECT distlock_guard('a', $token)");
	$s[0]->run('UPDATE t SET v = 1 WHERE id = 1');
	$s[0]->run(q{PREPARE TRANSACTION 'prepared'});
	end_leases();
	$s[1]->run(acquire('m'));
	$s[2]->run('BEGIN');
	$s[2]->run(acquire('n'));
	wait_with($s[1], acquire('a'));
	wait_with($s[2], 'UPDATE t SET v = 2 WHERE id = 1');
	wait_with($s[0], acquire('{m,n}'));
	no_alarm($test, @s[ 0 .. 2 ]);
	is($monitor->run('SELECT distlock_blocking_pids(' . $s[1]->pid . ')'),
		'{0}', "$test: it shows as process 0");
	is($monitor->run('SELECT pg_blocking_pids(' . $s[1]->pid . ')'),
		'{0}', "$test: as in pg_blocking_pids()");

	$monitor->run(q{COMMIT PREPARED 'prepared'});
	all_go_on($test, @s[ 0 .. 2 ]);
	nothing_is_left($test);
}
# Nor is who waits for it in a cycle, before it waits for somebody else.
{
	my $test = 'a cycle beside a prepared transaction';
	my $token;

	$token = $monitor->run(q{SELECT distlock_acquire('a', '1h')});
	$s[0]->run('BEGIN');
	$s[0]->run("SELECT distlock_guard('a', $token)");
	$s[0]->run(q{PREPARE TRANSACTION 'prepared'});
	end_leases();
	$s[1]->run(acquire('m'));
	wait_with($s[1], acquire('a'));
	$s[0]->run(acquire('n'));
	wait_with($s[0], acquire('m'));
	wait_with($s[2], acquire('a'));
	no_alarm($test, @s[ 0 .. 2 ]);
	$monitor->run(q{ROLLBACK PREPARED 'prepared'});
	is($s[1]->result, 't', "$test: the first gets it");
	$s[1]->send(acquire('n'));
	one_deadlock($test, [ lease_step($s[0], 'm', $s[1]), lease_step($s[1], 'n', $s[0]) ],
		@s[ 0 .. 2 ]);
}

{
	my $test = 'log_lock_waits';
	my ($holder, $waiter) = @s[ 0, 1 ];
	my $pid = $waiter->pid;
	my ($log, $token);

	# Of several locks both lines name the same.  A prepared transaction whose lock
	# is forgotten lets every new lock begin with a barrier.
	$probe->run('BEGIN');
	$token = $monitor->run(q{SELECT distlock_acquire('k', '1h')});
	$probe->run("SELECT distlock_guard('k', $token)");
	$probe->run(q{PREPARE TRANSACTION 'prepared'});
	end_leases();
	$log = -s $node->logfile;
	$holder->run(acquire('a'));
	$waiter->send(acquire('{b,a}'));
	has_checked($waiter, $log);
	is($monitor->run("SELECT distlock_blocking_pids($pid)"),
		'{' . $holder->pid . '}', "$test: blocking pids know no prepared transaction of another lock");
	let_go($holder);
	$waiter->result;
	$node->wait_for_log(qr/process $pid acquired exclusive lease/, $log);
	is( join(' ', slurp_file($node->logfile, $log) =~
			  /process $pid (?:still waiting for|acquired) exclusive lease of lock "(.)"/g),
		'a a', "$test: several locks");
	$monitor->run(q{ROLLBACK PREPARED 'prepared'});
	let_go($waiter);
	nothing_is_left($test);
}

is($monitor->run('SELECT deadlocks FROM distlock_stats'), $deadlocks, 'distlock_stats has counted them');

# ---- Load ----

# Several clients, each of which takes two pairs of a lease and an advisory lock.
sub load
{
	my ($lowest) = @_;
	my $script = $node->basedir . '/load.sql';
	my ($out, $err);

	append_to_file($script, qq{
\\set a random(1, 3)
\\set b $lowest
BEGIN;
SELECT distlock_acquire('load ' || :a, scope => 'transaction', mode => CASE random() < 0.3 WHEN true THEN 'shared' ELSE 'exclusive' END);
SELECT pg_advisory_xact_lock(:a);
SELECT distlock_acquire('load ' || :b, scope => 'transaction');
SELECT pg_advisory_xact_lock(:b);
COMMIT;
});
	local $ENV{PGOPTIONS} = '-c deadlock_timeout=1ms -c log_lock_waits=off';
	IPC::Run::run(
		[
			$node->installed_command('pgbench'), '-n', '-c', 6, '-t', 300, '--max-tries', 1000,
			'-f', $script, '-d', $node->connstr('postgres')
		],
		'>', \$out, '2>', \$err,
		IPC::Run::timeout(2 * $PostgreSQL::Test::Utils::timeout_default));
	unlink $script;
	note $out;
	return $out . $err;
}

# All take them in the same order: there is no deadlock.
like(load(':a + random(1, 2)'), qr/processed: 1800\/1800/, 'load in order: all is done');
nothing_is_left('load in order');
is($monitor->run('SELECT deadlocks FROM distlock_stats'), $deadlocks, 'load in order: no alarm');

# Any order: who gets an error tries again.
like(load('1 + (:a + random(0, 1)) % 3'), qr/processed: 1800\/1800/, 'load in any order: all is done');
nothing_is_left('load in any order');
cmp_ok($monitor->run('SELECT deadlocks FROM distlock_stats'),
	'>', $deadlocks, 'load in any order: there were deadlocks');

$_->quit foreach @s, $monitor, $probe;
$node->stop;
done_testing();
