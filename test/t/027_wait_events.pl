# What pg_stat_activity shows of a session that waits for a lock or watches one:
# on servers that know the wait events of extensions by name, which it does.

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
my $named = $node->pg_version >= 17;
my $token = $node->safe_psql('postgres', q{SELECT distlock_acquire('a', '1h')});
my @waits = (
	[ 'distlock_acquire', q{SELECT distlock_acquire('a', '1h')}, 'DistlockAcquire' ],
	[ 'distlock_lock', q{CALL distlock_lock('a', NULL, '1h')}, 'DistlockAcquire' ],
	[ 'distlock_watch', "SELECT distlock_watch('a', $token)", 'DistlockWatch' ],
	[ 'distlock_watch_next', "CALL distlock_watch_next('a', $token)", 'DistlockWatch' ]);

# Each in a session of its own, which has to find the name that is there.
foreach my $wait (@waits)
{
	my ($call, $sql, $name) = @$wait;
	my $event = $named ? $name : 'Extension';
	my $session = session($node);
	my $pid = $session->pid;

	$session->send($sql);
	ok( $node->poll_query_until(
			'postgres', "
SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = $pid", "Extension|$event"),
		"$call waits for $event");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	like($session->error, qr/57014/, "$call is cancelled");
	$session->quit;
}

SKIP:
{
	skip 'this server does not list wait events by name', 1 unless $named;

	# The worker, which pg_stat_activity does not show, has one as well.
	my $query = q{
SELECT string_agg(type || ' ' || name, ', ' ORDER BY name COLLATE "C")
FROM pg_wait_events WHERE name LIKE 'Distlock%'};
	my $events =
	  join ', ', map { "Extension $_" } qw(DistlockAcquire DistlockWatch DistlockWorkerMain);

	ok($node->poll_query_until('postgres', $query, $events), 'pg_wait_events lists each once');
}

$node->stop;
done_testing();
