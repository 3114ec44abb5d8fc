# Leader election: candidates acquire, observers watch.  Whatever becomes of a
# leader, the observers learn of it, of the next one, and of nothing else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node('main', conf => q{
fsync = off
autovacuum = off
});
my $clock = 'SELECT extract(epoch FROM clock_timestamp())';

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# A statement that waits until the leader is not this one any more.
sub watch_sql
{
	my ($token, $name) = @_;

	$name //= 'leader';
	return "SELECT distlock_watch('$name', " . ($token eq '' ? 'NULL' : $token) . ')';
}

sub watches
{
	my (@pids) = map { $_->pid } @_;
	my $n = @pids;

	$node->poll_query_until(
		'postgres', "
SELECT count(*) = $n FROM pg_stat_activity
WHERE wait_event_type = 'Extension' AND pid IN (" . join(',', @pids) . ')')
	  or die 'the observers do not watch';
	return;
}

# What an observer who knew of this leader is told, until it is told of another.
sub next_leader
{
	my ($observer, $token) = @_;
	my $seen = $observer->result;

	$seen = $observer->run(watch_sql('')) if $seen eq '';
	return $seen;
}

sub switches
{
	my ($pid) = @_;
	my ($n) = slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)$/m;

	return $n;
}

sub client_pid
{
	my ($session) = @_;

	return $session->{psql}->{KIDS}[0]{PID};
}

sub wait_until_ended
{
	my ($pid) = @_;

	$node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid")
	  or die "session $pid does not end";
	return;
}

# ---- Campaign, observe, resign ----

my @observers = map { session($node) } 1 .. 3;
my ($leader, $candidate) = map { session($node) } 1 .. 2;
my $campaign = q{SELECT distlock_acquire('leader', '1h', scope => 'session')};
my $token;

$_->send(watch_sql('')) foreach @observers;
watches(@observers);
is(value('SELECT count(*) FROM distlock_waiters'), 0, 'who watches stands in no queue');
$token = $leader->run($campaign);
is($_->result, $token, 'an observer learns of the first leader') foreach @observers;
is($observers[0]->run(watch_sql('')), $token, 'who comes later is told at once');
is($observers[0]->run("SELECT distlock_watch('leader', $token, '10ms')"),
	$token, 'and at the end of the wait, if there is no other');

$candidate->send($campaign);
wait_for_queue($node, 'leader', 1);
$_->send(watch_sql($token)) foreach @observers;
watches(@observers);
$leader->run("SELECT distlock_release('leader', $token)");
my $next = $candidate->result;
cmp_ok($next, '>', $token, 'the leader resigns: the candidate is the next one');
is(next_leader($_), $next, 'the leader resigns: an observer learns of the next one')
  foreach @observers;

# It counts when it is committed, and a rollback of the resignation is none.
$_->send(watch_sql($next)) foreach @observers;
watches(@observers);
$candidate->run("BEGIN; SELECT distlock_release('leader', $next)");
$candidate->run('ROLLBACK');
$candidate->run("SELECT distlock_renew('leader', $next, '2h')");
$candidate->run("SELECT distlock_acquire('something else') > 0");
watches(@observers);
ok(!(grep { $_->look; $_->is_done } @observers), 'neither a rollback nor a renewal nor another lock is news');
$candidate->run("SELECT distlock_release('leader', $next)");
is($_->result, '', 'the leader resigns and nobody follows: an observer learns of that')
  foreach @observers;

# ---- The leader dies ----

my %deaths = (
	'client killed' => sub { $_[0]->kill_client },
	'terminated' => sub { value('SELECT pg_terminate_backend(' . $_[0]->pid . ')') },
	'forced' => sub { value(q{SELECT distlock_force_release('leader')}) },
	'DISCARD ALL' => sub { $_[0]->run('DISCARD ALL') });

foreach my $death (sort keys %deaths)
{
	my ($leader, $candidate) = map { session($node) } 1 .. 2;
	my $token = $leader->run($campaign);
	my $next;

	$candidate->send($campaign);
	wait_for_queue($node, 'leader', 1);
	$_->send(watch_sql($token)) foreach @observers;
	watches(@observers);
	$deaths{$death}->($leader);
	$next = $candidate->result;
	cmp_ok($next, '>', $token, "leader, $death: the candidate is the next one");
	is(next_leader($_), $next, "leader, $death: an observer learns of it") foreach @observers;
	$_->send(watch_sql($next)) foreach @observers;
	watches(@observers);
	$candidate->kill_client;
	is($_->result, '', "leader, $death: and that the next one is gone, too") foreach @observers;
	$leader->quit;
}

# ---- The leader freezes ----

# Its lease expires.  Whether or not somebody follows, and whether or not the
# worker runs, who watches is told at the deadline.
foreach my $follows (1, 0)
{
	foreach my $frozen ('the leader', 'the worker, too', 'the first observer, too')
	{
		my $test = 'the leader freezes'
		  . ($follows ? ', ' : ', nobody follows, ')
		  . ($frozen eq 'the leader' ? '' : "$frozen, ");
		my ($leader, $candidate) = map { session($node) } 1 .. 2;
		my ($first, @others) = @observers;
		my $token = $leader->run(q{SELECT distlock_acquire('leader', '1h')});
		my @told;
		my $worker;
		my ($next, $deadline);

		if ($follows)
		{
			$candidate->send(q{SELECT distlock_acquire('leader', '1h')});
			wait_for_queue($node, 'leader', 1);
		}
		$first->send(watch_sql($token));
		watches($first);
		$_->send("SELECT watched, extract(epoch FROM clock_timestamp()) FROM distlock_watch('leader', $token) watched")
		  foreach @others;
		watches(@observers);
		$worker = freeze_worker($node) if $frozen ne 'the leader';
		freeze_waiter($node, $first->pid) if $frozen =~ /first/;
		$deadline = $leader->run(
			"SELECT extract(epoch FROM distlock_renew('leader', $token, '1s'))");
		freeze(client_pid($leader));
		foreach my $observer (@others)
		{
			my ($watched, $at) = split /\|/, $observer->result;

			note sprintf '%sms %.1f', $test, ($at - $deadline) * 1000;
			cmp_ok($at - $deadline, '>', -0.1, "${test}an observer is not told before");
			cmp_ok($at - $deadline, '<', 4, "${test}an observer is told in time");
			push @told, $watched;
		}
		thaw($worker) if defined $worker;
		thaw($first->pid);
		thaw(client_pid($leader));
		$next = $follows ? $candidate->result : '';
		push @told, $first->result;
		foreach my $i (0 .. $#told)
		{
			my $seen = $told[$i];

			$seen = value(watch_sql('')) if $follows && $seen eq '';
			is($seen, $next, "${test}of the right one");
		}
		value(q{SELECT distlock_force_release('leader')}) if $follows;
		$leader->send("SELECT distlock_renew('leader', $token)");
		like($leader->error, qr/LK001/, "${test}the leader finds out");
		$_->quit foreach $leader, $candidate;
	}
}

# ---- No polling, one wake each ----

{
	my @many = map { session($node) } 1 .. 20;
	my ($leader) = session($node);
	my $token = $leader->run($campaign);
	my (%before, $now, $slept, $most);

	$_->send(watch_sql($token)) foreach @many;
	watches(@many);
	%before = map { $_->pid => switches($_->pid) } @many;
	$now = value('SELECT clock_timestamp()');
	$node->poll_query_until('postgres', "SELECT clock_timestamp() > '$now'::timestamptz + '1s'")
	  or die 'the clock stands still';

	# News of other locks, and things that do not change who leads.
	$leader->run("SELECT distlock_renew('leader', $token) FROM generate_series(1, 100)");
	$leader->run(
		q{SELECT distlock_release('lock ' || g, distlock_acquire('lock ' || g)) FROM generate_series(1, 100) g});
	$leader->run(q{SELECT distlock_try_acquire('leader') FROM generate_series(1, 100)});
	($slept) = sort { $b <=> $a } map { switches($_->pid) - $before{ $_->pid } } @many;
	cmp_ok($slept, '<=', 3, 'who watches sleeps while nothing changes');

	%before = map { $_->pid => switches($_->pid) } @many;
	$leader->run("SELECT distlock_release('leader', $token)");
	is(scalar(grep { $_->result eq '' } @many), 20, 'all observers of many are told');
	($most) = sort { $b <=> $a } map { switches($_->pid) - $before{ $_->pid } } @many;
	note "at most $most switches of an observer";
	cmp_ok($most, '<=', 5, 'by one wake each');
	$_->quit foreach @many, $leader;
}

# ---- Other kinds of leases ----

{
	my $observer = $observers[0];
	my @tokens = map { value(q{SELECT distlock_acquire('pool', '1h', max_holders => 3)}) } 1 .. 2;

	$observer->send(watch_sql($tokens[1], 'pool'));
	watches($observer);
	push @tokens, value(q{SELECT distlock_acquire('pool', '1h', max_holders => 3)});
	is($observer->result, $tokens[2], 'semaphore: the newest of its leases');
	$observer->send(watch_sql($tokens[2], 'pool'));
	watches($observer);
	value("SELECT distlock_release('pool', $tokens[0])");
	watches($observer);
	value("SELECT distlock_release('pool', $tokens[2])");
	is($observer->result, $tokens[1], 'semaphore: the newest that is left');
	value("SELECT distlock_release('pool', $tokens[1])");
	is($observer->run(watch_sql($tokens[1], 'pool')), '', 'semaphore: none');

	$observer->send(watch_sql('', 'free'));
	watches($observer);
	is( value(q{
SELECT distlock_acquire('free', '1h', max_holders => 2) = distlock_watch('free', NULL)}),
		't', 'a watched lock may be taken in whatever way');
	$observer->result;
	$observer->send(watch_sql('', 'one of two'));
	watches($observer);
	is(value(q{SELECT distlock_acquire_all('{one of two,two of two}', '1h')}),
		$observer->result, 'several locks: the token they share');
	value(q{SELECT distlock_force_release(name) FROM distlock_leases});
}

# An acquire that its transaction undoes was a lease all the same.
{
	my $observer = $observers[0];
	my $leader = session($node);
	my $token;

	$observer->send(watch_sql(''));
	watches($observer);
	$leader->run('BEGIN');
	$token = $leader->run($campaign);
	is($observer->result, $token, 'an acquire counts at once');
	$observer->send(watch_sql($token));
	watches($observer);
	$leader->run('ROLLBACK');
	is($observer->result, '', 'and its rollback');
	$leader->quit;
}

# ---- Observers die ----

{
	my %ends = (
		'cancelled' => sub { value('SELECT pg_cancel_backend(' . $_[0]->pid . ')') },
		'terminated' => sub { value('SELECT pg_terminate_backend(' . $_[0]->pid . ')') },
		'client killed' => sub { $_[0]->kill_client },
		'statement_timeout' => sub { });
	my $leader = session($node);
	my $token = $leader->run($campaign);
	my %victims;

	foreach my $end (sort keys %ends)
	{
		my $victim = session($node);

		$victim->run(q{SET client_connection_check_interval = '100ms'});
		$victim->run(q{SET statement_timeout = '1s'}) if $end =~ /timeout/;
		$victim->send(watch_sql($token));
		$victims{$end} = $victim;
	}
	$_->send(watch_sql($token)) foreach @observers;
	watches(@observers);
	foreach my $end (sort keys %ends)
	{
		$ends{$end}->($victims{$end});
		wait_until_ended($victims{$end}->pid) if $end =~ /terminated|killed/;
		like($victims{$end}->error, qr/57014/, "observer, $end") if $end =~ /cancelled|timeout/;
	}
	$leader->run("SELECT distlock_release('leader', $token)");
	is($_->result, '', 'the other observers are told') foreach @observers;

	# Those who come after them have the same places in shared memory.
	my @fresh = map { session($node) } 1 .. 6;

	$_->send(watch_sql('', 'fresh')) foreach @fresh;
	watches(@fresh);
	$token = value(q{SELECT distlock_acquire('fresh', '1h')});
	is(scalar(grep { $_->result eq $token } @fresh), 6, 'and those that come after');
	value("SELECT distlock_release('fresh', $token)");
	$_->quit foreach @fresh;
	is($victims{cancelled}->run(q{SELECT distlock_watch('another', 1)}),
		'', 'who was cancelled may watch again');

	$victims{cancelled}->run(q{SET statement_timeout = '100ms'});
	$victims{cancelled}->run(
		q{
DO $$
BEGIN
	PERFORM distlock_watch('leader', NULL);
EXCEPTION WHEN query_canceled THEN
	NULL;
END $$});
	is($victims{cancelled}->run(q{SELECT distlock_watch('leader', 1)}),
		'', 'so may who caught that');
	$_->quit foreach $leader, values %victims;
}

# A server process that is killed takes all others along, and what they watched.
{
	my $victim = session($node);

	value(q{SELECT distlock_acquire('leader', '1h')});
	$victim->send(q{SELECT distlock_watch('other', NULL)});
	watches($victim);
	crash_backend($node, $victim->pid);
	$victim->quit;
	$_->quit foreach @observers;
	@observers = map { session($node) } 1 .. 3;
	$token = value(watch_sql(''));
	like($token, qr/^\d+$/, 'a server process is killed: the durable lease leads on');
	$_->send(watch_sql($token)) foreach @observers;
	watches(@observers);
	value("SELECT distlock_release('leader', $token)");
	is($_->result, '', 'a server process is killed: observers are told as before')
	  foreach @observers;
}

# ---- DROP ----

{
	my ($free, $held, $procedure) = @observers;
	my $token = value(q{SELECT distlock_acquire('held', '1h')});

	$free->send(watch_sql('', 'free'));
	$held->send(watch_sql($token, 'held'));
	$procedure->send(qq{CALL distlock_watch_next('held', $token)});
	watches(@observers);
	value('DROP EXTENSION distlock');
	like($_->error, qr/55000.*dropped while watching lock/, 'DROP EXTENSION: an observer is turned away')
	  foreach @observers;
	value('CREATE EXTENSION distlock');
	is($_->run(q{SELECT distlock_watch('held', 1)}), '', 'CREATE EXTENSION: it watches again')
	  foreach @observers;

	# In a transaction block, which fails.
	$free->run('BEGIN');
	$free->send(watch_sql('', 'free'));
	watches($free);
	value('DROP EXTENSION distlock; CREATE EXTENSION distlock');
	like($free->error, qr/55000/, 'DROP EXTENSION: and in a transaction');
	$free->run('ROLLBACK');

	# Rolled back, it is nothing.
	$token = value(q{SELECT distlock_acquire('held', '1h')});
	$held->send(watch_sql($token, 'held'));
	watches($held);
	value('BEGIN; DROP EXTENSION distlock; ROLLBACK');
	watches($held);
	value("SELECT distlock_release('held', $token)");
	is($held->result, '', 'DROP EXTENSION, rolled back: the observer goes on');
}

{
	my ($observer, $other);

	value('CREATE DATABASE other');
	$node->safe_psql('other', 'CREATE EXTENSION distlock');
	$observer = session($node, 'other');
	$other = session($node);
	$observer->send(watch_sql(''));
	$other->send(watch_sql(''));
	watches($observer, $other);
	value('DROP DATABASE other WITH (FORCE)');
	like($observer->error, qr/57P01|57P04/, 'DROP DATABASE: the observer ends');
	watches($other);
	pass('DROP DATABASE: those of other databases go on');
	$token = value(q{SELECT distlock_acquire('leader', '1h')});
	is($other->result, $token, 'DROP DATABASE: and are told');
	$_->quit foreach $observer, $other;
}

$_->quit foreach @observers, $leader, $candidate;
$node->stop;
done_testing();
