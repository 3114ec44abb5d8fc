# A standby grants nothing and shows what is stored; once promoted, it has the
# leases, and goes on for those who were connected to it all the time.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = distlock_node('primary', init => { allows_streaming => 1 });
my $standby = PostgreSQL::Test::Cluster->new('standby');

# Reserve before the backup, and more after it.
my $token = $primary->safe_psql('postgres', q{SELECT distlock_acquire('a', '1h')});
$primary->safe_psql('postgres', 'CREATE TABLE t (i int); CREATE ROLE nobody');
$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', 'distlock.failover_grace = off');
$standby->start;

my $highest = $primary->safe_psql('postgres', q{
SELECT max(distlock_acquire('burn ' || n % 1000, '1 microsecond', durable => false))
FROM generate_series(1, 40000) n});
cmp_ok($highest, '>=', 40000, 'the primary hands out tokens');
$primary->wait_for_catchup($standby);

# ---- On the standby ----

my $session = session($standby);

foreach my $call (
	q{distlock_acquire('a')},
	q{distlock_acquire('b', wait => '0', scope => 'session')},
	q{distlock_acquire('b', durable => false)},
	q{distlock_try_acquire('a')},
	qq{distlock_renew('a', $token)},
	qq{distlock_release('a', $token)},
	qq{distlock_check('a', $token)},
	qq{distlock_guard('a', $token)},
	q{distlock_force_release('a')},
	q{distlock_protect('t', 'a')},
	q{distlock_unprotect('t')},
	q{distlock_discard_damaged()})
{
	$session->send("SELECT $call");
	like($session->error, qr/ERROR:  25006: /, "standby: $call");
}
is( $session->run(
		'SELECT (SELECT count(*) FROM distlock_leases), (SELECT count(*) FROM distlock_waiters)'),
	'0|0',
	'standby: no lease is in force');
is( $session->run(
		q{SELECT count(*) FROM distlock_stats, jsonb_each_text(to_jsonb(distlock_stats)) WHERE value <> '0'}),
	'0',
	'standby: nothing to count');
is($session->run('SELECT count(*) FROM distlock_protected'), '0', 'standby: no table is protected');
is( $primary->safe_psql('postgres', q{SELECT count(*) FROM distlock_leases WHERE name = 'a'}),
	1,
	'the primary shows its lease');

# What is written in place arrives.  The worker may write something of its own
# between the one look and the other.
sub arrives
{
	my ($test, $sql) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;
	my ($there, $here);

	do
	{
		$primary->wait_for_catchup($standby);
		$there = $session->run($sql);
		$here = $primary->safe_psql('postgres', $sql);
	} until ($there eq $here || time > $give_up);
	is($there, $here, "standby: $test");
	return;
}

my $images = 'SELECT * FROM distlock_images ORDER BY block, slot';

arrives('the sequence', 'SELECT last_value FROM distlock_token_seq');
arrives('the control row', 'SELECT * FROM distlock_control');
arrives('the image of a lease', $images);
is($session->run('SELECT name, token, ttl, damaged FROM distlock_images'),
	"a|$token|01:00:00|f", 'standby: it is the lease');
$primary->safe_psql('postgres', qq{SELECT distlock_renew('a', $token, '2h')});
arrives('a longer time to live', $images);
is($session->run('SELECT ttl FROM distlock_images'), '02:00:00', 'standby: it is longer');
my $other = $primary->safe_psql(
	'postgres', q{
SELECT distlock_acquire('many ' || n, '1h', mode => 'shared', holder => 'me')
FROM generate_series(1, 30) n});
arrives('more pages', $images);
is( $session->run('SET ROLE nobody; SELECT count(*), count(DISTINCT block) FROM distlock_images; RESET ROLE'),
	'31|3',
	'standby: any role sees them all');
$primary->safe_psql(
	'postgres', q{
SELECT bool_and(distlock_release(name, token)) FROM distlock_leases WHERE name LIKE 'many%'});
wait_until_cleared($primary);
arrives('they are cleared', $images);
$primary->poll_query_until('postgres', 'SELECT volatile_ttl = 0 FROM distlock_control')
  or die 'the control row is not lowered';
# Nobody flushes that.
$primary->safe_psql('postgres', q{SELECT pg_logical_emit_message(true, 'flush', '')});
arrives('the control row is lowered', 'SELECT * FROM distlock_control');

# The sequence is set back as the last thing that arrives.
$primary->safe_psql('postgres', q{SELECT setval('distlock_token_seq', 1)});
$primary->wait_for_catchup($standby);

# ---- The promotion, with sessions connected ----

my %sessions = (idle => $session);
foreach my $level ('READ COMMITTED', 'REPEATABLE READ')
{
	$sessions{$level} = session($standby);
	$sessions{$level}->run("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM t");
}
$primary->stop('immediate');
$standby->promote;
$standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()')
  or die 'the standby is not promoted';

is( $session->run(q{SELECT name, token, scope, durable, pid IS NULL, remaining > '1h 55min' FROM distlock_leases}),
	"a|$token|lease|t|t|t",
	'promoted: the lease is there, its time to live begins anew');
my %tokens;
foreach my $name (sort keys %sessions)
{
	my $new = $sessions{$name}->run("SELECT distlock_acquire('$name', '1h', wait => '0')");

	cmp_ok($new, '>', $highest, "promoted: tokens grow for a session from before, $name");
	is( $sessions{$name}->run("SELECT distlock_check('$name', $new), distlock_check('a', $token)"),
		't|t',
		"promoted: leases are good there, $name");
	$tokens{$name} = $highest = $new;
}

# A snapshot from before may miss what earlier holders wrote.
is($sessions{'READ COMMITTED'}->run("SELECT distlock_guard('a', $token); COMMIT"),
	'', 'promoted: guard in a transaction from before');
$sessions{'REPEATABLE READ'}->send("SELECT distlock_guard('a', $token)");
like(
	$sessions{'REPEATABLE READ'}->error,
	qr/ERROR:  55000: .*younger than its snapshot/,
	'promoted: not with a snapshot from before');
is( $sessions{'REPEATABLE READ'}->run(qq{
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT distlock_guard('a', $token);
COMMIT}),
	'',
	'promoted: with a later one');
is($session->run("SELECT distlock_check('REPEATABLE READ', $tokens{'REPEATABLE READ'})"),
	'f', 'promoted: what such a transaction acquired is undone with it');

ok(worker_pid($standby), 'promoted: the worker runs');
$session->run(q{SELECT distlock_acquire('short', '1ms')});
$standby->wait_for_log(qr/lease of lock "short" expired/);
pass('promoted: the worker does the work');
is($session->run(qq{SELECT distlock_release('a', $token)}), 't', 'promoted: release');
cmp_ok($session->run(q{SELECT distlock_acquire('a', wait => '0')}),
	'>', $highest, 'promoted: acquire again');
$_->quit foreach values %sessions;

crash($standby);
cmp_ok($standby->safe_psql('postgres', q{SELECT distlock_acquire('b')}),
	'>', $highest + 1, 'promoted: tokens grow across a crash');

$standby->stop;
done_testing();
