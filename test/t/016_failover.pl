# Failover: a promoted server has the leases that it knows of, issues greater
# tokens than any server before it, and grants nothing while leases that it
# does not know of may be held.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use File::Copy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# All servers share its archive.
my $primary = distlock_node(
	'primary',
	init => { allows_streaming => 1, has_archiving => 1 },
	conf => q{
distlock.log_expirations = off
wal_keep_size = '64MB'
});

# What the databases are for:
#	postgres	a grace that ends soon
#	long		one that does not
#	fresh		standbys know the extension, but not its first use
#	restored	likewise, and it comes from a dump
#	ahead		there have been more epochs than timelines
my @databases = qw(postgres long fresh restored ahead);
foreach my $dbname (@databases[ 1 .. 4 ])
{
	$primary->safe_psql('postgres', "CREATE DATABASE $dbname");
	$primary->safe_psql($dbname, 'CREATE EXTENSION distlock');
}
$primary->safe_psql($_, q{SELECT setval('distlock_token_seq', 5::bigint << 40)})
  foreach qw(restored ahead);

# The greatest token of each database that any server has issued.
my %highest = map { $_ => 0 } @databases;

sub told
{
	my ($dbname, $token) = @_;

	$highest{$dbname} = $token if $token > $highest{$dbname};
	return $token;
}

# A token, as soon as there is one.
sub token
{
	my ($node, $dbname) = @_;

	return $node->safe_psql($dbname,
		q{SELECT distlock_acquire('probe', scope => 'transaction')});
}

# Several reserved ranges.
sub burn
{
	my ($node, $dbname) = @_;

	told($dbname, $node->safe_psql($dbname, q{
SELECT max(distlock_acquire('burn ' || n % 1000, '1us', durable => false))
FROM generate_series(1, 60000) n}));
	return;
}

sub grows
{
	my ($node, $dbname) = @_;
	my $token = token($node, $dbname);

	cmp_ok($token, '>', $highest{$dbname}, $node->name . ": tokens grow in database $dbname");
	told($dbname, $token);
	return;
}

sub acquire
{
	my ($node, $dbname, $arguments) = @_;

	return told($dbname, $node->safe_psql($dbname, "SELECT distlock_acquire($arguments)"));
}

# A standby made from the backup of the primary.
sub standby
{
	my ($name, $conf) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$standby->init_from_backup($primary, 'base', has_streaming => 1, has_restoring => 1);
	$standby->append_conf('postgresql.conf', $conf);
	$standby->start;
	return $standby;
}

# From here on the standby receives nothing.
sub cut_off
{
	my ($standby) = @_;

	$standby->append_conf('postgresql.conf', q{primary_conninfo = ''});
	$standby->reload;
	$standby->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_wal_receiver')
	  or die 'the standby does not let go of its primary';
	return;
}

# Wait until the server is on its timeline, and the others know that this one
# is taken.
sub wait_for_timeline
{
	my ($node, $timeline) = @_;
	my $history = $primary->archive_dir . sprintf('/%08X.history', $timeline);

	$node->poll_query_until('postgres',
		qq{SELECT NOT pg_is_in_recovery() AND (pg_stat_file('$history', true)).size IS NOT NULL})
	  or die "the server is not on timeline $timeline";
	return;
}

# ---- The primary ----

told('ahead', token($primary, 'ahead'));
$primary->backup('base');

# For point-in-time recovery.
my $past = acquire($primary, 'long', q{'past', '1h'});
$primary->safe_psql('postgres', q{SELECT pg_create_restore_point('past')});
$primary->safe_psql('long', qq{SELECT distlock_release('past', $past)});
$primary->safe_psql('postgres', 'SELECT pg_switch_wal()');

# Each stays on the primary's timeline until it is promoted.
my $replayed = standby('replayed', q{
recovery_target_timeline = 'current'
});
my $strict = standby('strict', q{
recovery_target_timeline = 'current'
distlock.failover_grace = strict
distlock.max_ttl = '4s'
distlock.default_ttl = '1s'
});
my $off = standby('off', q{
recovery_target_timeline = 'current'
distlock.failover_grace = off
});
my @standbys = ($replayed, $strict, $off);

my $kept = acquire($primary, 'long', q{'kept', '1h', holder => 'me'});
acquire($primary, 'long', q{'read', '2h', mode => 'shared'}) foreach 1 .. 2;

# It stays short of its deadline, so that its time to live counts.
my $short = acquire($primary, 'postgres', q{'short', '2s'});
my $renewing = session($primary);
$renewing->send(qq{
DO \$\$ BEGIN
	LOOP
		PERFORM distlock_renew('short', $short), pg_sleep(0.1);
	END LOOP;
END \$\$});
$primary->wait_for_catchup($_) foreach @standbys;

# From here on standbys have all that a client is told of.
$primary->append_conf('postgresql.conf', q{synchronous_standby_names = '3 (*)'});
$primary->reload;
$primary->poll_query_until('postgres',
	q{SELECT count(*) = 3 FROM pg_stat_replication WHERE sync_state = 'sync'})
  or die 'the standbys do not become synchronous';
my $holder = session($primary, 'long');
$holder->run('SET synchronous_commit = off');
my %reused;
foreach my $successor (
	q{scope => 'session'},
	q{scope => 'transaction'},
	q{ttl => '2h', durable => false})
{
	my $lock = "\$\$reused, $successor\$\$";

	$reused{$lock} = told('long', $holder->run("SELECT distlock_acquire($lock, '1h')"));
	$holder->run("SELECT distlock_release($lock, $reused{$lock})");
	told('long', $holder->run("SELECT distlock_acquire($lock, $successor)"));
}

cut_off($_) foreach @standbys;
$primary->append_conf('postgresql.conf', q{synchronous_standby_names = ''});
$primary->reload;
$primary->poll_query_until('postgres', q{SELECT current_setting('synchronous_standby_names') = ''});

burn($primary, $_) foreach @databases;
my $unknown = acquire($primary, 'postgres', q{'unknown', '1d'});
my $leases = q{
SELECT name, token, mode, scope, holder, owner, durable, ttl
FROM distlock_leases WHERE durable ORDER BY token};
my $leases_before = $primary->safe_psql('long', $leases);
my %of_primary = %highest;
$primary->stop('immediate');
$_->quit foreach $renewing, $holder;

# ---- Promoted, in the three settings ----

# The durable leases of database long, which is in its grace.
sub has_leases
{
	my ($node, $began, $when) = @_;
	my $name = $node->name . ", $when";
	my $usable = $node != $strict;

	is($node->safe_psql('long', $leases), $leases_before, "$name: the leases are there");
	is( $node->safe_psql('long', qq{
SELECT bool_and(expires_at >= to_timestamp($began) + ttl), count(pid) FROM distlock_leases}),
		't|0',
		"$name: with their full time to live");
	is($node->safe_psql('long', qq{SELECT distlock_check('kept', $kept)}),
		$usable ? 't' : 'f', "$name: check");
	foreach my $call ('renew', 'guard')
	{
		like(
			sql_error($node, qq{SELECT distlock_$call('kept', $kept)}, 'long'),
			$usable ? qr/^$/ : qr/ERROR:  LK001: /,
			"$name: $call");
	}
	foreach my $lock (sort keys %reused)
	{
		is( $node->safe_psql('long', qq{SELECT distlock_check($lock, $reused{$lock})}),
			'f', "$name: the old token stays dead, $lock");
	}

	like(
		sql_error($node, q{SELECT distlock_acquire('free', wait => '1ms')}, 'long'),
		qr/ERROR:  55P03: .*Nothing is granted for another [0-9]{7} ms/s,
		"$name: nothing is granted");
	foreach my $arguments (q{'free'}, q{'free', scope => 'session'}, q{'kept'}, q{'read'})
	{
		is( $node->safe_psql('long', "SELECT distlock_try_acquire($arguments) IS NULL"),
			't', "$name: not to $arguments either");
	}
	is( $node->safe_psql('long', 'SELECT grace > 0, unusable_limit > 0 FROM distlock_control'),
		$node == $off ? 'f|f' : $node == $strict ? 't|t' : 't|f',
		"$name: the grace is noted");
	return;
}

my $timeline = 1;
my %first;
foreach my $node (@standbys)
{
	my $name = $node->name;
	my $began = time;

	$node->promote;
	wait_for_timeline($node, ++$timeline);
	has_leases($node, $began, 'promoted');
	if ($node == $off)
	{
		cmp_ok(acquire($node, 'postgres', q{'free', wait => '0'}),
			'>', $of_primary{postgres}, "$name: leases are granted at once");
		next;
	}

	# The first use of database postgres, with the whole of its grace ahead.
	$node->safe_psql('postgres', 'SELECT count(*) FROM distlock_leases');
	$began = time;
	crash($node);
	$first{$name} = session($node);
	$first{$name}->send(q{
SELECT distlock_acquire('first'), extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())});
	has_leases($node, $began, 'after a crash in the grace');
}

my $timeline_of_off = $timeline;

# A standby of a promoted one, cut off before that has issued any token in the
# other databases.
my $cascading = standby('cascading', "primary_conninfo = '" . $off->connstr . q{'
distlock.failover_grace = off
});
$off->wait_for_catchup($cascading);
cut_off($cascading);

foreach my $node ($replayed, $strict)
{
	my $name = $node->name;
	my ($token, $after) = split /\|/, $first{$name}->result;

	cmp_ok($after, '>=', $node == $strict ? 4 : 2, "$name: the grace is observed");
	cmp_ok(acquire($node, 'postgres', q{'short', wait => '0'}),
		'>', $token, "$name: after it the recovered lease is over");
	$node->poll_query_until('postgres', 'SELECT grace = 0 FROM distlock_control');
	pass("$name: the grace is struck out");
	$first{$name}->quit;
}

# Tokens grow, and differ.
foreach my $dbname (qw(postgres fresh restored ahead))
{
	my %epochs;

	foreach my $node (@standbys)
	{
		my $token = told($dbname, token($node, $dbname));

		cmp_ok($token, '>', $of_primary{$dbname},
			$node->name . ": tokens grow in database $dbname");
		$epochs{ $token >> 40 }++;
	}
	is(scalar(keys %epochs), 3, "three servers, three epochs in database $dbname");
}
$_->stop foreach $replayed, $strict;

# ---- Cascading ----

burn($off, $_) foreach qw(postgres fresh restored ahead);
$cascading->promote;
wait_for_timeline($cascading, ++$timeline);
is($cascading->safe_psql('long', $leases), $leases_before, 'cascading: the leases are there');
grows($cascading, $_) foreach qw(postgres fresh restored ahead);
$cascading->stop;

# ---- The old primary comes back ----

my $conf = PostgreSQL::Test::Utils::tempdir() . '/postgresql.conf';
copy($primary->data_dir . '/postgresql.conf', $conf) or die $!;
$off->safe_psql('postgres', 'CHECKPOINT');
$primary->command_ok(
	[
		'pg_rewind', '--no-sync',
		'--target-pgdata', $primary->data_dir,
		'--source-server', $off->connstr('postgres')
	],
	'pg_rewind of the old primary');
copy($conf, $primary->data_dir . '/postgresql.conf') or die $!;
$primary->append_conf('postgresql.conf', "primary_conninfo = '" . $off->connstr . qq{'
recovery_target_timeline = '$timeline_of_off'
distlock.failover_grace = off
});
$primary->enable_restoring($primary, 1);
$primary->start;

my $later = acquire($off, 'postgres', q{'later', '1h'});
$off->wait_for_catchup($primary);
cut_off($primary);
burn($off, $_) foreach qw(postgres fresh restored ahead);
$off->stop('immediate');
$primary->promote;
wait_for_timeline($primary, ++$timeline);
is($primary->safe_psql('long', $leases), $leases_before, 'promotion back: the leases are there');
is( $primary->safe_psql(
		'postgres',
		"SELECT distlock_check('later', $later), distlock_renew('later', $later) > now()"),
	't|t',
	'promotion back: a lease of the server in between, too');
is($primary->safe_psql('postgres', "SELECT distlock_check('unknown', $unknown)"),
	'f', 'promotion back: one that went with the divergent WAL does not return');
grows($primary, $_) foreach qw(postgres fresh restored ahead);
$primary->stop;

# ---- Point-in-time recovery ----

my $recovered = PostgreSQL::Test::Cluster->new('recovered');
$recovered->init_from_backup($primary, 'base', has_restoring => 1, standby => 0);
$recovered->append_conf('postgresql.conf', q{
recovery_target_name = 'past'
recovery_target_action = promote
});
$recovered->start;
wait_for_timeline($recovered, ++$timeline);
is( $recovered->safe_psql('long',
		'SELECT name, token, durable, remaining > ttl / 2 FROM distlock_leases'),
	"past|$past|t|t",
	'point-in-time recovery: the lease of that time is there');
is($recovered->safe_psql('long', "SELECT distlock_check('past', $past)"),
	't', 'point-in-time recovery: and good');
is($recovered->safe_psql('long', q{SELECT distlock_try_acquire('free') IS NULL}),
	't', 'point-in-time recovery: nothing is granted in the grace');
grows($recovered, $_) foreach qw(postgres fresh restored ahead);
$recovered->stop;

# ---- Strict, for good ----

# Leases from before are not good again when the grace is over, whatever a crash
# brings back; later ones are good, even if the row still tells of the grace.
my $alone = distlock_node(
	'alone',
	init => { allows_streaming => 1 },
	conf => q{
distlock.failover_grace = strict
distlock.max_ttl = '2s'
distlock.log_expirations = off
synchronous_standby_names = ''
});

# The server goes on on a timeline of its own.
sub fail_over
{
	$alone->stop('immediate');
	$alone->set_standby_mode;
	$alone->start;
	$alone->promote;
	return;
}

sub set_standbys
{
	my ($names) = @_;

	$alone->adjust_conf('postgresql.conf', 'synchronous_standby_names', "'$names'");
	return;
}

# Leases of before: how many are held, and how many of them are good.
my $old = q{
SELECT count(*), count(*) FILTER (WHERE distlock_check(name, token))
FROM distlock_leases WHERE name LIKE 'old %'};

# With no worker, nobody clears the images of these.
my $worker = freeze_worker($alone);
$alone->safe_psql('postgres',
	q{SELECT count(distlock_acquire('old ' || n, '2s')) FROM generate_series(1, 500) n});
kill 'KILL', $worker;
fail_over();
is($alone->safe_psql('postgres', $old), '500|0', 'strict: none of the leases from before is good');

# A standby that is away keeps most of the images from being cleared.
set_standbys('nobody');
$alone->reload;
$alone->poll_query_until('postgres', 'SELECT grace = 0 FROM distlock_control')
  or die 'the grace is never struck out';
set_standbys('');
crash($alone);
like($alone->safe_psql('postgres', $old),
	qr/^[1-9][0-9]*\|0$/, 'strict: the grace is struck out, a crash brings some back, and none is good');

fail_over();
$alone->safe_psql('postgres', 'SELECT count(*) FROM distlock_leases');
my $blocker = session($alone);
$blocker->run('BEGIN; LOCK TABLE distlock_control IN SHARE MODE');
my $later_token = $alone->safe_psql('postgres', q{SELECT distlock_acquire('later', '2s')});
crash($alone);
is( $alone->safe_psql('postgres', "SELECT grace > 0, distlock_check('later', $later_token) FROM distlock_control"),
	't|t', 'strict: a lease from after the grace is good, before that is struck out');
$blocker->quit;
$alone->stop;

done_testing();
