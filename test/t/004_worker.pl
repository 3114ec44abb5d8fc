# The background worker ends, counts and logs what has expired, and nothing
# depends on it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use List::Util qw(min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $max_leases = 64;
my $node = distlock_node('main', conf => "distlock.max_leases = $max_leases");

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub wait_until
{
	my ($condition) = @_;

	$node->poll_query_until('postgres', "SELECT $condition")
	  or die "it never came true that $condition";
	return;
}

sub stat_of
{
	my ($counter) = @_;

	return value("SELECT $counter FROM distlock_stats");
}

# How many lines of the log, from this offset on, tell of an expiry of the lock.
sub logged
{
	my ($name, $log) = @_;
	my @lines = slurp_file($node->logfile, $log) =~ /lease of lock "$name" expired/g;

	return scalar @lines;
}

# ---- Logging ----

my $log = -s $node->logfile;
my $expired = stat_of('expired');
my $token = value(q{SELECT distlock_acquire('logged', '200ms', holder => 'who "it" was')});

$node->wait_for_log(qr/LOG:  lease of lock "logged" expired/, $log);
like(
	slurp_file($node->logfile, $log),
	qr/lease of lock "logged" expired\n.*DETAIL:  Token $token, holder "who "it" was", process [0-9]+/,
	'an expiry is logged with name, token and holder');
is(stat_of('expired'), $expired + 1, 'and counted');

# Those whom nobody waits for are logged by the worker, the others by whoever
# takes the lock over; each of them once.
value(q{SELECT distlock_acquire('taken over', '10ms'); SELECT distlock_acquire('taken over')});
value(q{SELECT distlock_acquire('last', '10ms')});
$node->wait_for_log(qr/lease of lock "last" expired/, $log);
is(logged($_, $log), 1, "expiry of lock $_ is logged once") foreach 'logged', 'taken over', 'last';

# Released, renewed or undone is not expired.  One statement each, so that no
# time passes in between.
value(q{
SELECT distlock_release('released', distlock_acquire('released', '1s'));
SELECT distlock_renew('renewed', distlock_acquire('renewed', '1s'), '1h');
DO $$ BEGIN PERFORM distlock_acquire('undone', '1s'); ROLLBACK; END $$;
SELECT distlock_acquire('last but not least', '1100ms')});
$node->wait_for_log(qr/lease of lock "last but not least" expired/, $log);
is(logged($_, $log), 0, "lock $_: no expiry is logged") foreach 'released', 'renewed', 'undone';

# A new session has read the new setting, so the worker has been told of it.
$node->append_conf('postgresql.conf', 'distlock.log_expirations = off');
$node->reload;
wait_until(q{current_setting('distlock.log_expirations') = 'off'});
$log = -s $node->logfile;
$expired = stat_of('expired');
value(q{SELECT distlock_acquire('silent', '200ms')});
wait_until("expired = $expired + 1 FROM distlock_stats");
value(q{SELECT distlock_acquire('silent', '10ms'); SELECT distlock_acquire('silent')});

# Forced releases are logged all the same.  The worker logs them in the order
# in which they ended, so the silent one would be in the log before.
$token = value(q{SELECT distlock_acquire('forced', '1h', holder => 'the forced')});
is(value(q{SELECT distlock_force_release('forced')}), 1, 'one lease is ended');
$node->wait_for_log(qr/lease of lock "forced" was ended by distlock_force_release/, $log);
like(
	slurp_file($node->logfile, $log),
	qr/lease of lock "forced" was ended by distlock_force_release\(\)\n.*DETAIL:  Token $token, holder "the forced"/,
	'a forced release is logged with name, token and holder');
is(logged('silent', $log), 0, 'distlock.log_expirations = off silences expiries');
$node->append_conf('postgresql.conf', 'distlock.log_expirations = on');
$node->reload;
wait_until(q{current_setting('distlock.log_expirations') = 'on'});
$log = -s $node->logfile;
value(q{SELECT distlock_acquire('loud', '10ms')});
$node->wait_for_log(qr/lease of lock "loud" expired/, $log);
pass('and it is logged again');

# ---- Restart of the worker ----

my $started = value('SELECT pg_postmaster_start_time()');
my $worker = worker_pid($node);

value(q{SELECT distlock_acquire('kept', '1h')});
kill 'TERM', $worker;
$node->wait_for_log(qr/distlock worker.* \(PID $worker\) exited/, $log);
isnt(worker_pid($node), $worker, 'a terminated worker is started again');
is(value('SELECT pg_postmaster_start_time()'), $started, 'the server goes on');
is(value(q{SELECT count(*) FROM distlock_leases WHERE name = 'kept'}), 1, 'leases live on');
value(q{SELECT distlock_acquire('after restart', '10ms')});
$node->wait_for_log(qr/lease of lock "after restart" expired/, $log);
pass('the new worker does the work');

# ---- A frozen worker ----

# Nothing waits for it: an expired lease is taken over at its deadline, by who
# waits and by who comes.  The machine may be busy; the best of three counts.
$worker = freeze_worker($node);
$log = -s $node->logfile;
my @lateness;
foreach my $round (1 .. 3)
{
	my $waiter = session($node);

	my $deadline = value(q{
SELECT distlock_acquire('waited for', '2s') AS token \gset
SELECT extract(epoch FROM expires_at) FROM distlock_leases WHERE name = 'waited for'});
	$waiter->send(
		q{SELECT extract(epoch FROM clock_timestamp()) FROM distlock_acquire('waited for')});
	push @lateness, $waiter->result - $deadline;
	value(q{SELECT distlock_force_release('waited for')});
	$waiter->quit;
}
diag 'frozen worker: lease taken over after its deadline by '
  . join(', ', map { sprintf '%.1f ms', $_ * 1000 } @lateness);
cmp_ok(min(@lateness), '>', -0.05, 'frozen worker: nobody takes over before the deadline');
cmp_ok(min(@lateness), '<', 0.5, 'frozen worker: who waits takes over at the deadline');

value(q{SELECT distlock_acquire('come by', '300ms')});
wait_until(q{NOT EXISTS (SELECT FROM distlock_leases WHERE name = 'come by')});
like(value(q{SELECT distlock_try_acquire('come by')}), qr/^[0-9]+$/,
	'frozen worker: who comes takes over');

# Expired leases that nobody has ended make room for a newcomer.
value(q{SELECT distlock_force_release(name) FROM (SELECT DISTINCT name FROM distlock_leases) held});
value("SELECT distlock_acquire('full ' || n, '1h') FROM generate_series(1, $max_leases) n");
like(
	sql_error($node, q{SELECT distlock_acquire('one more')}),
	qr/ERROR:  53400: .*HINT:  .*distlock\.max_leases/s,
	'frozen worker: no more than max_leases live leases');
value(q{SELECT distlock_renew(name, token, '10ms') FROM distlock_leases});
wait_until('NOT EXISTS (SELECT FROM distlock_leases)');
like(value(q{SELECT distlock_acquire('one more')}), qr/^[0-9]+$/,
	'frozen worker: expired leases make room for a newcomer');

# Awake again, it does what there is to be done.
value(q{SELECT distlock_acquire('left behind', '10ms')});
wait_until(q{NOT EXISTS (SELECT FROM distlock_leases WHERE name = 'left behind')});
is(logged('left behind', $log), 0, 'frozen worker: an expiry waits to be logged');
thaw($worker);
$node->wait_for_log(qr/lease of lock "left behind" expired/, $log);
is(worker_pid($node), $worker, 'the worker goes on');
is(logged('full 7', $log), 1, 'what others have ended is logged once');

# ---- Counters ----

sub counters
{
	my @names = split /\|/, $_[0];
	my %counter;

	@counter{@names} = split /\|/,
	  value('SELECT ' . join(', ', @names) . ' FROM distlock_stats');
	return %counter;
}

value(q{SELECT distlock_force_release(name) FROM (SELECT DISTINCT name FROM distlock_leases) held});

# Runs the statements and compares the counters before and after.
sub counts
{
	my ($sql, %expected) = @_;
	my $names = 'acquired|contended|timeouts|renewed|released|undone|expired|forced|lapsed|lost';
	my %before = counters($names);
	my %after;

	$node->psql('postgres', $sql, on_error_stop => 0);
	%after = counters($names);
	is_deeply(
		{ map { $after{$_} == $before{$_} ? () : ($_ => $after{$_} - $before{$_}) } keys %after },
		\%expected, "counters: $sql");
	return;
}

counts(q{SELECT distlock_acquire('c', '1h')}, acquired => 1);
counts(q{SELECT distlock_try_acquire('c')}, contended => 1, timeouts => 1);
counts(q{SELECT distlock_acquire('c', wait => '10ms')}, contended => 1, timeouts => 1);
counts(q{SET lock_timeout = '10ms'; SELECT distlock_acquire('c')}, contended => 1, timeouts => 1);
counts(q{SELECT distlock_renew('c', token) FROM distlock_leases}, renewed => 1);
counts(q{SELECT distlock_renew('c', 1)}, lost => 1);
counts(q{SELECT distlock_release('c', 1)});
counts(q{SELECT distlock_release('c', token) FROM distlock_leases}, released => 1);
counts(q{SELECT distlock_acquire('c', scope => 'transaction')}, acquired => 1, released => 1);
counts(q{SELECT distlock_acquire('c', scope => 'session')}, acquired => 1, released => 1);
counts(q{BEGIN; SELECT distlock_acquire('c'); ROLLBACK}, acquired => 1, undone => 1);
counts(q{SELECT distlock_acquire('c'); SELECT distlock_force_release('c')},
	acquired => 1, forced => 1);
counts(
	q{SELECT distlock_acquire('c', '500ms'), distlock_acquire('c', '500ms'),
			 distlock_acquire('c', scope => 'transaction')},
	acquired => 3, contended => 2, expired => 2, released => 1);
cmp_ok(stat_of('wait_seconds'), '>', 1, 'counters: time spent waiting');

# ---- A worker without a deadline ----

# It sleeps without limit, and has to be woken for a forced release.  Once it
# has logged the first, it has nothing to do but sleep.
$node->restart;
$log = -s $node->logfile;
my $holder = session($node);
foreach my $name ('forced first', 'forced asleep')
{
	$holder->run("SELECT distlock_acquire('$name', scope => 'session')");
	value("SELECT distlock_force_release('$name')");
	$node->wait_for_log(qr/lease of lock "$name" was ended by distlock_force_release/, $log);
	pass("no deadline anywhere, $name: the worker is woken");
}
$holder->quit;

$node->stop;

# ---- Many leases ----

# A sweep looks at what has expired, not at all there is.
$node->append_conf('postgresql.conf', 'distlock.max_leases = 100100');
$node->start;
value(q{SELECT count(distlock_acquire('long ' || n, '1h')) FROM generate_series(1, 100000) n});
my %before = counters('expired|swept');
value(q{SELECT distlock_acquire('short ' || n, '100ms') FROM generate_series(1, 10) n});
wait_until("expired >= $before{expired} + 10 FROM distlock_stats");
my %after = counters('expired|swept');
is($after{expired} - $before{expired}, 10, 'many leases: those that expired are ended');
cmp_ok($after{swept} - $before{swept}, '>=', 10, 'many leases: the worker has ended them');
cmp_ok($after{swept} - $before{swept}, '<=', 100, 'many leases: few are looked at');
is(value('SELECT count(*) FROM distlock_leases'), 100000, 'many leases: the others live on');

# So it is when all of them are renewed in between.
value(q{SELECT count(distlock_renew(name, token, '2h')) FROM distlock_leases});
%before = counters('expired|swept');
value(q{SELECT distlock_acquire('short ' || n, '100ms') FROM generate_series(1, 10) n});
wait_until("expired >= $before{expired} + 10 FROM distlock_stats");
%after = counters('expired|swept');
cmp_ok($after{swept} - $before{swept}, '<=', 100, 'many leases, all renewed: few are looked at');

$node->stop;
done_testing();
