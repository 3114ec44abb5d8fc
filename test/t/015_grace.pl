# Volatile leases are forgotten by a crash or a restart: until they must have
# run out, nobody is granted anything.  And nobody waits for any that are over.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What nobody flushes shall not get to disk by itself.
my $node = distlock_node('main', conf => 'wal_writer_delay = 10s');

# A database each, since every one has a grace of its own.
my @dbs = qw(durable sessions over shorter longer queue long late untouched);
foreach my $db (@dbs)
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, 'CREATE EXTENSION distlock');
}
my %oid = map { $_ => $node->safe_psql($_, 'SELECT oid FROM pg_database WHERE datname = current_database()') } @dbs;

# Longer than it takes to restart the server and to queue some sessions.
my $ttl = 4;

my $volatile = 'durable => false';
my $since_start = 'extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())';

# Seconds for which the control row allows volatile leases.
sub mark
{
	my ($db) = @_;

	return $node->safe_psql($db, 'SELECT volatile_ttl / 1e6::float8 FROM distlock_control');
}

sub wait_for_mark
{
	my ($db, $condition) = @_;

	$node->poll_query_until($db, "SELECT volatile_ttl $condition FROM distlock_control")
	  or die "the mark of volatile leases in database $db never became $condition";
	return;
}

# Is the lock free for anybody who asks without waiting?
sub grants
{
	my ($db) = @_;

	return $node->safe_psql($db,
		"SELECT distlock_try_acquire('probe', scope => 'transaction') IS NOT NULL");
}

# What the server log says of the grace of a database since then: for how many
# seconds, each time that it was said.
sub logged
{
	my ($db, $log) = @_;

	return map { $_ / 1000 }
	  slurp_file($node->logfile, $log) =~
	  /distlock grants no leases in database with OID $oid{$db} for another (\d+) ms/g;
}

sub log_end
{
	return -s $node->logfile;
}

my %end = (
	'kill -9' => sub { crash($node) },
	'fast shutdown' => sub { $node->restart });

# ---- What the control row says ----

is(mark('queue'), 0, 'no volatile lease, no mark');
foreach my $seconds (0.001, 2, 100, 86400)
{
	$node->safe_psql('queue', "SELECT distlock_acquire('$seconds', '$seconds s', $volatile)");
	cmp_ok(mark('queue'), '>=', $seconds, "the mark allows for a lease of $seconds s");
	cmp_ok(mark('queue'), '<=', $seconds < 1.05 ? 1.05 : 1.25 * $seconds, 'and for not much more');
}
$node->safe_psql('late', qq{BEGIN; SELECT distlock_acquire('undone', '1 day', $volatile); ROLLBACK});
cmp_ok(mark('late'), '>=', 86400, 'it allows for a lease that is rolled back');
my $token = $node->safe_psql('long', qq{
SET distlock.durable = off;
SELECT distlock_acquire('renewed', '5 min')});
$node->safe_psql('long', "SELECT distlock_renew('renewed', $token, '5 hours')");
cmp_ok(mark('long'), '>=', 5 * 3600, 'it rises with a renewal');

# It falls to what is left, whatever ends a lease, in a database where nobody
# does anything any more.
$node->safe_psql('queue',
	q{SELECT distlock_release(name, token) FROM distlock_leases WHERE name = '86400'});
$node->safe_psql('long', "SELECT distlock_renew('renewed', $token, '1 h')");
wait_for_mark('queue', 'BETWEEN 100e6 AND 125e6');
pass('the mark falls when the longest lease is released, to the longest one left');
wait_for_mark('long', 'BETWEEN 3600e6 AND 4500e6');
pass('and when one is renewed for less');
$node->safe_psql('queue', q{SELECT distlock_force_release('100')});
$node->safe_psql('long', "SELECT distlock_release('renewed', $token)");
wait_for_mark($_, '= 0') foreach qw(queue long late);
pass('and to nothing when the last one is released, forced, has expired, or is rolled back');

# ---- Any end of the server ----

$node->safe_psql('untouched', qq{SELECT distlock_acquire('a', '$ttl s', $volatile)});
foreach my $end ('kill -9', 'fast shutdown')
{
	my %token;

	# No volatile lease of scope lease: no grace.
	my $session = session($node, 'sessions');
	$session->run(q{
SELECT distlock_acquire('session', scope => 'session'), distlock_acquire('ttl', '1 day', scope => 'session');
BEGIN;
SELECT distlock_acquire('transaction', '1 day', scope => 'transaction')});
	$node->safe_psql('durable', q{SELECT distlock_acquire('held', '1 day')});

	# Long ones that are over.
	my $waiter = session($node, 'over');
	$node->safe_psql('over', qq{
SELECT distlock_acquire('day', '1 day', $volatile) AS token, distlock_acquire('forced', '1 day', $volatile),
	distlock_acquire('expired', '1 ms', $volatile) \\gset
SELECT distlock_release('day', :token), distlock_force_release('forced');
BEGIN; SELECT distlock_acquire('undone', '1 day', $volatile); ROLLBACK;
SELECT distlock_acquire('held', '1 day')});
	$waiter->send("SELECT distlock_acquire('held', '1 day', wait => '1 ms', $volatile)");
	like($waiter->error, qr/55P03/, "$end: a request for a volatile lease that is not granted");
	$waiter->quit;
	wait_for_mark('over', '= 0');

	# Others that are not.  The last has just been granted, or renewed.
	$token{shorter} = $node->safe_psql('shorter', qq{SELECT distlock_acquire('a', '1 day', $volatile)});
	$node->safe_psql('shorter', "SELECT distlock_renew('a', $token{shorter}, '$ttl s')");
	wait_for_mark('shorter', '< 10e6');
	$token{queue} = $node->safe_psql('queue', qq{SELECT distlock_acquire('kept', '1 hour')});
	$node->safe_psql($_, qq{SELECT distlock_acquire('a', '$ttl s', $volatile)}) foreach qw(queue late);
	$node->safe_psql('shorter', "SELECT distlock_renew('a', $token{shorter})");
	$token{longer} = $node->safe_psql('longer', qq{SELECT distlock_acquire('a', '1 ms', $volatile);
SELECT distlock_acquire('b', '1 s', $volatile)});
	$token{longer} =~ s/.*\n//s;
	$node->safe_psql('longer', "SELECT distlock_renew('b', $token{longer}, '$ttl s')");

	my $log = log_end();
	$end{$end}->();

	foreach my $db (qw(durable sessions over))
	{
		is(grants($db), 't', "$end: no grace in database $db");
		is(scalar(logged($db, $log)), 0, "$end: nor a word of it");
	}

	# Three wait for one lock, and one for each other kind of lease.
	my @queue = map { session($node, 'queue') } 1 .. 3;
	my @others = map { session($node, 'queue') } 1 .. 4;
	my @args = ("'2 s'", "'2 s', $volatile", q{scope => 'session'}, q{mode => 'shared', scope => 'transaction'});
	foreach my $n (1 .. 3)
	{
		$queue[ $n - 1 ]->send(qq{
SELECT distlock_acquire('queue', scope => 'transaction', holder => 'waiter $n');
SELECT $since_start});
		wait_for_queue($node, 'queue', $n, 'queue');
	}
	foreach my $n (0 .. 3)
	{
		$others[$n]->send("SELECT distlock_acquire('other $n', $args[$n]); SELECT $since_start");
		wait_for_queue($node, "other $n", 1, 'queue');
	}
	is( $node->safe_psql('queue', q{
SELECT string_agg(holder || ' ' || position || ' ' || blocked_by_tokens::text, ', ' ORDER BY position)
FROM distlock_waiters WHERE name = 'queue'}),
		'waiter 1 1 {}, waiter 2 2 {}, waiter 3 3 {}', "$end: the queue shows");
	is(grants('queue'), 'f', "$end: try_acquire returns null");
	is( $node->safe_psql('queue', qq{
SELECT distlock_renew('kept', $token{queue}, '2 hours') IS NOT NULL,
	distlock_check('kept', $token{queue}), distlock_guard('kept', $token{queue}) IS NOT NULL,
	distlock_release('kept', $token{queue});
SELECT distlock_check('kept', $token{queue})}),
		"t|t|t|t\nf", "$end: a durable lease can be used");

	my $last = 0;
	foreach my $n (1 .. 3)
	{
		my ($granted, $at) = split /\n/, $queue[ $n - 1 ]->result;

		cmp_ok($at, '>=', $ttl, "$end: the grace lasts as long as the lease that is lost");
		cmp_ok($granted, '>', $last, "$end: first come, first served");
		$last = $granted;
	}
	foreach my $n (0 .. 3)
	{
		my ($granted, $at) = split /\n/, $others[$n]->result;

		cmp_ok($at, '>=', $ttl, "$end: likewise for ($args[$n])");
	}
	foreach my $db (qw(shorter longer))
	{
		my $at = $node->safe_psql($db, qq{
SELECT distlock_acquire('b', scope => 'transaction') AS token \\gset
SELECT $since_start});

		cmp_ok($at, '>=', $ttl, "$end: likewise where the lease was renewed to a $db one");
		like($node->safe_psql($db, 'SELECT count(*) FROM distlock_leases'), qr/^0$/, "$end: which is gone");
	}
	my @said = logged('queue', $log);
	is(scalar(@said), 1, "$end: the log says once that nothing is granted");
	cmp_ok($said[0], '<=', 1.25 * $ttl, "$end: and for no longer than it is");

	# Nobody has used this database since the start.
	$node->safe_psql('late',
		"SELECT pg_sleep_until(pg_postmaster_start_time() + interval '1 s' * 1.25 * $ttl + interval '1 s')");
	is(grants('late'), 't', "$end: no grace at a first use long after the start");
	is(scalar(logged('late', $log)), 0, "$end: nor a word of it");

	$_->quit foreach $session, @queue, @others;
	foreach my $db (grep { $_ ne 'untouched' } @dbs)
	{
		$node->safe_psql($db, q{SELECT distlock_release(name, token) FROM distlock_leases});
		wait_for_mark($db, '= 0');
	}
}
cmp_ok(mark('untouched'), '>=', $ttl, 'a grace that nobody has waited for is still due');

# ---- While it lasts ----

# One that nobody can wait for, however slow the machine is.
my $kept = $node->safe_psql('long', q{SELECT distlock_acquire('kept', '2 hours')});
my $shared = $node->safe_psql('long', q{SELECT distlock_acquire('shared', '2 hours', mode => 'shared')});
$node->safe_psql('long', qq{SELECT distlock_acquire('lost', '1 hour', $volatile)});
my $victim = session($node);
my $log = log_end();
my $crashed = time;
crash_backend($node, $victim->pid);
$victim->quit;

is(grants('postgres'), 't', 'a database where nothing was lost does not wait for another');
foreach my $args (
	"'a'", "'lost'", "'shared', mode => 'shared'", "'a', mode => 'shared'", "'a', $volatile",
	"'a', scope => 'session'", "'a', '1 s', scope => 'session'", "'a', scope => 'transaction'")
{
	my $error = sql_error($node, "SELECT distlock_acquire($args, wait => '10 ms')", 'long');

	like($error, qr/ERROR:  55P03: could not obtain lock/, "($args) waits no longer than it was told to");
	like(
		$error,
		$args =~ /shared'/ && $args !~ /'a'/
		? qr/DETAIL: /
		: qr/DETAIL:  Nothing is granted for another \d+ ms, since leases that the server has lost/,
		'and is told why');
	is($node->safe_psql('long', "SELECT distlock_try_acquire($args) IS NULL"), 't', 'tried, it returns null');
	is($node->safe_psql('long', "SELECT distlock_try_acquire($args, wait => '10 ms') IS NULL"), 't', 'also if it waits');
}
like(
	sql_error($node, q{SELECT distlock_acquire('kept', wait => '10 ms')}, 'long'),
	qr/ERROR:  55P03: .*DETAIL:  The lock is held by .* under token $kept/s,
	'of a lock that is held, the holder is named');
like(
	sql_error($node, q{SET lock_timeout = '10 ms'; SELECT distlock_acquire('a')}, 'long'),
	qr/ERROR:  55P03: canceling statement due to lock timeout.*DETAIL:  Nothing is granted/s,
	'lock_timeout ends the wait');
like(
	sql_error($node, q{SET statement_timeout = '10 ms'; SELECT distlock_acquire('a')}, 'long'),
	qr/ERROR:  57014: /, 'so does statement_timeout');
is($node->safe_psql('long', 'SELECT count(*) FROM distlock_waiters'), 0, 'none of them is left in a queue');

# Those who wait wait for nobody, and do not keep each other from leaving.
my @sessions = map { session($node, 'long') } 1 .. 3;
foreach my $n (1 .. 3)
{
	$sessions[ $n - 1 ]->send(q{SELECT distlock_acquire('a')});
	wait_for_queue($node, 'a', $n, 'long');
}
is( $node->safe_psql('long', q{
SELECT bool_and(blocked_by_tokens = '{}'), array_agg(cardinality(blocked_by_pids) ORDER BY position)
FROM distlock_waiters WHERE name = 'a'}),
	't|{0,1,2}', 'who waits is blocked by those ahead, and by no lease');
$node->safe_psql('long', "SELECT pg_cancel_backend(${\($sessions[0]->pid)})");
like($sessions[0]->error, qr/57014/, 'a wait is cancelled');
wait_for_queue($node, 'a', 2, 'long');
$sessions[1]->kill_client;
$node->safe_psql('long', "SELECT pg_terminate_backend(${\($sessions[1]->pid)})");
wait_for_queue($node, 'a', 1, 'long');
is($sessions[2]->is_done, '', 'the last one waits on');

$node->safe_psql('long', 'CREATE TABLE work (name text)');
is( $node->safe_psql('long', qq{
BEGIN;
SELECT distlock_guard('kept', $kept);
INSERT INTO work VALUES ('kept');
COMMIT;
SELECT distlock_check('kept', $kept), distlock_check('shared', $shared),
	distlock_renew('kept', $kept, '3 hours') > clock_timestamp() + interval '2 hours',
	distlock_renew('shared', $shared) IS NOT NULL;
SELECT distlock_release('shared', $shared);
SELECT distlock_release('shared', $shared), distlock_check('shared', $shared);
SELECT count(*) FROM work}),
	"\nt|t|t|t\nt\nf|f\n1", 'durable leases can be guarded by, checked, renewed and released');
like(
	sql_error($node, "SELECT distlock_renew('shared', $shared)", 'long'),
	qr/ERROR:  LK001: /,
	'a lease that is lost is lost');
is( $node->safe_psql('long', q{SELECT distlock_force_release('kept')}), 1, 'an operator can end one');
is(grants('long'), 'f', 'which does not open its lock');
is(scalar(logged('long', $log)), 1, 'the log says it once, whatever is asked');
cmp_ok((logged('long', $log))[0], '>=', 3600 - (time - $crashed), 'and how long it is');

# Whoever clears the images would lower the mark, too.
wait_until_cleared($node, 'long');
cmp_ok(mark('long'), '>=', 3600, 'the mark stays while it lasts');
$node->safe_psql('long', "SELECT pg_terminate_backend(${\($sessions[2]->pid)})");
$_->kill_client foreach @sessions;

# ---- A crash while it lasts ----

# Some time after the first start, the server starts once more, and once more
# the grace counts from there.
$node->safe_psql('late', qq{SELECT distlock_acquire('a', '$ttl s', $volatile)});
$node->restart;
is(grants('late'), 'f', 'a grace has begun');
$node->safe_psql('late', q{SELECT pg_sleep_until(pg_postmaster_start_time() + interval '1 s')});
$log = log_end();
crash($node);
$node->safe_psql('late', q{SELECT pg_sleep_until(pg_postmaster_start_time() + interval '1 s')});
my $at = $node->safe_psql('late', qq{
SELECT distlock_acquire('a', scope => 'transaction') AS token \\gset
SELECT $since_start});
cmp_ok($at, '>=', $ttl, 'after a crash in between it begins anew');
cmp_ok((logged('late', $log))[0], '<=', 1.25 * $ttl - 1, 'at a first use a while after the start, what is left of it');
wait_for_mark('late', '= 0');
crash($node);
is(grants('late'), 't', 'when it was over before the crash there is none');

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC/, 'nothing failed inside the server');

done_testing();
