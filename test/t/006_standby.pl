# A standby grants nothing; once promoted, it does at once.

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
$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

my $highest = $primary->safe_psql('postgres', q{
SELECT max(distlock_acquire('burn ' || n % 1000, '1 microsecond'))
FROM generate_series(1, 40000) n});
cmp_ok($highest, '>=', 40000, 'the primary hands out tokens');
$primary->wait_for_catchup($standby);

# ---- On the standby ----

my $session = session($standby);

foreach my $call (
	q{distlock_acquire('a')},
	q{distlock_acquire('b', wait => '0', scope => 'session')},
	q{distlock_try_acquire('a')},
	qq{distlock_renew('a', $token)},
	qq{distlock_release('a', $token)},
	qq{distlock_check('a', $token)},
	q{distlock_force_release('a')})
{
	$session->send("SELECT $call");
	like($session->error, qr/ERROR:  25006: /, "standby: $call");
}
is( $session->run(
		'SELECT (SELECT count(*) FROM distlock_leases), (SELECT count(*) FROM distlock_waiters)'),
	'0|0',
	'standby: the views are empty');
is($session->run('SELECT acquired, swept FROM distlock_stats'), '0|0', 'standby: nothing to count');
is( $primary->safe_psql('postgres', q{SELECT count(*) FROM distlock_leases WHERE name = 'a'}),
	1,
	'the primary shows its lease');

# What is written in place arrives.
is( $standby->safe_psql('postgres', 'SELECT last_value FROM distlock_token_seq'),
	$primary->safe_psql('postgres', 'SELECT last_value FROM distlock_token_seq'),
	'standby: the sequence has arrived');
is( $standby->safe_psql('postgres', 'SELECT token_limit FROM distlock_control'),
	$primary->safe_psql('postgres', 'SELECT token_limit FROM distlock_control'),
	'standby: the control row has arrived');

# The sequence is set back as the last thing that arrives.
$primary->safe_psql('postgres', q{SELECT setval('distlock_token_seq', 1)});
$primary->wait_for_catchup($standby);

# ---- After the promotion ----

$primary->stop('immediate');
$standby->promote;
$standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()')
  or die 'the standby is not promoted';

# The session from before the promotion too.
my $new = $session->run(q{SELECT distlock_acquire('a', '100ms', wait => '0')});
cmp_ok($new, '>', $highest, 'promoted: tokens are greater than those of the primary');
cmp_ok($standby->safe_psql('postgres', q{SELECT distlock_acquire('b')}),
	'>', $new, 'promoted: for new sessions too');
is($session->run(qq{SELECT distlock_check('a', $token)}), 'f', 'promoted: the old token is no good');
ok(worker_pid($standby), 'promoted: the worker runs');
$standby->wait_for_log(qr/lease of lock "a" expired/);
pass('promoted: the worker does the work');
$session->quit;

crash($standby);
cmp_ok($standby->safe_psql('postgres', q{SELECT distlock_acquire('a')}),
	'>', $new + 1, 'promoted: tokens grow across a crash');

$standby->stop;
done_testing();
