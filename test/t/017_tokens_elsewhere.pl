# A database that goes on elsewhere: dumped and restored, copied, or moved to
# another cluster by pg_upgrade.  Tokens go back nowhere.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $tempdir = PostgreSQL::Test::Utils::tempdir();
my $node = distlock_node('main', conf => q{
distlock.log_expirations = off
});
my $elsewhere = distlock_node('elsewhere');

# A token, if nobody has to wait for it.
sub token
{
	my ($server, $dbname) = @_;

	return $server->safe_psql($dbname,
		q{SELECT distlock_acquire('probe', scope => 'transaction', wait => '0')});
}

sub epoch_of
{
	my ($token) = @_;

	return $token >> 40;
}

my $leases = q{
SELECT name, token, mode, scope, holder, owner, durable, ttl
FROM distlock_leases WHERE durable ORDER BY token};
my $counts = q{
SELECT (SELECT count(*) FROM distlock_leases), (SELECT count(*) FROM distlock_images)};

# More than one page of leases, and a grace if the server started anew.
my $kept = $node->safe_psql('postgres', q{SELECT distlock_acquire('kept', '1h', holder => 'me')});
$node->safe_psql('postgres', q{
SELECT distlock_acquire('read ' || n % 20, '2h', mode => 'shared') FROM generate_series(1, 40) n});
$node->safe_psql('postgres', q{SELECT distlock_acquire('volatile', '3h', durable => false)});

# ---- Dumps ----

sub dump_database
{
	my ($server, $dbname, $file) = @_;

	$server->command_ok([ 'pg_dump', '-Fc', '-f', "$tempdir/$file", $dbname ], "pg_dump: $file");
	return;
}

sub restore
{
	my ($server, $dbname, $file, @options) = @_;

	$server->command_ok([ 'pg_restore', '-e', @options, '-d', $dbname, "$tempdir/$file" ],
		join ' ', 'pg_restore:', $file, @options, "into $dbname");
	return;
}

# Restore into a new database.  Returns a token that was issued there.
sub go_on
{
	my ($server, $dbname, $file, $highest, $epoch) = @_;

	$server->safe_psql('postgres', "CREATE DATABASE $dbname");
	restore($server, $dbname, $file);
	is($server->safe_psql($dbname, $counts), '0|0', "$dbname: a dump carries no leases");

	my $token = token($server, $dbname);
	cmp_ok($token, '>', $highest, "$dbname: tokens grow, without a grace");
	is(epoch_of($token), $epoch, "$dbname: their epoch is $epoch");
	is( $server->safe_psql($dbname, q{SELECT distlock_acquire('kept', wait => '0') > 0}),
		't', "$dbname: the locks are free");
	return token($server, $dbname);
}

dump_database($node, 'postgres', 'first');
my $highest = token($node, 'postgres');
go_on($node, 'another', 'first', $highest, 1);
my $there = go_on($elsewhere, 'there', 'first', $highest, 1);

dump_database($elsewhere, 'there', 'second');
go_on($elsewhere, 'farther', 'second', token($elsewhere, 'there'), 2);

# An old dump over a database that has gone on since.
foreach my $option ('--data-only', '--clean')
{
	my $before = token($elsewhere, 'there');

	restore($elsewhere, 'there', 'first', $option);
	cmp_ok(token($elsewhere, 'there'), '>', $before, "restored with $option: tokens grow");
}

# One that has not been used before the server starts anew.
$elsewhere->safe_psql('postgres', 'CREATE DATABASE late');
restore($elsewhere, 'late', 'first');
crash($elsewhere);
cmp_ok(token($elsewhere, 'there'), '>', $there, 'there: tokens grow across a crash');
cmp_ok(token($elsewhere, 'late'), '>', $highest, 'late: tokens grow after a crash');
$elsewhere->stop;

# ---- CREATE DATABASE ... TEMPLATE ----

foreach my $strategy (qw(wal_log file_copy))
{
	my $before = token($node, 'postgres');

	$node->safe_psql('template1',
		"CREATE DATABASE copy_$strategy TEMPLATE postgres STRATEGY $strategy");
	is($node->safe_psql("copy_$strategy", $counts), '0|0', "$strategy: a copy has no leases");
	is($node->safe_psql("copy_$strategy", qq{SELECT distlock_check('kept', $kept)}),
		'f', "$strategy: its tokens are no good there");

	my $token = token($node, "copy_$strategy");
	cmp_ok($token, '>', $before, "$strategy: tokens grow in the copy, without a grace");
	is(epoch_of($token), 0, "$strategy: in the same epoch");
	$node->safe_psql(
		"copy_$strategy", q{
SELECT distlock_acquire('own ' || n, '1h', wait => '0') FROM generate_series(1, 40) n});
	is( $node->safe_psql("copy_$strategy", 'SELECT count(*), max(block) < 4 FROM distlock_images'),
		'40|t',
		"$strategy: its leases take the place of those it was copied with");
	cmp_ok(token($node, 'postgres'), '>', $before, "$strategy: tokens grow in the template");
}
is($node->safe_psql('postgres', $counts), '42|41', 'the template has its leases');
my $leases_before = $node->safe_psql('postgres', $leases);

crash($node);
foreach my $strategy (qw(wal_log file_copy))
{
	cmp_ok(token($node, "copy_$strategy"), '>', 0, "$strategy: no grace after a crash");
	is( $node->safe_psql("copy_$strategy", q{SELECT count(*) FROM distlock_leases WHERE name LIKE 'own %'}),
		'40',
		"$strategy: its own leases are there after a crash");
}
is($node->safe_psql('postgres', q{SELECT distlock_try_acquire('free') IS NULL}),
	't', 'the template has a grace after a crash');
is($node->safe_psql('postgres', $leases), $leases_before, 'and its leases');

# Copied in the grace, and never used before.
$node->safe_psql('template1', 'CREATE DATABASE copy_in_grace TEMPLATE postgres');
cmp_ok(token($node, 'copy_in_grace'), '>', $kept, 'a copy has no grace even if the template has one');

# ---- pg_upgrade ----

my %leases = map { $_ => $node->safe_psql($_, $leases) } qw(postgres copy_wal_log another);
my $epochs = 'SELECT token_limit >> 40 FROM distlock_control';
my %epochs = map { $_ => $node->safe_psql($_, $epochs) } keys %leases;
my $in_copy = token($node, 'copy_in_grace');
$node->stop;

my $upgraded = PostgreSQL::Test::Cluster->new('upgraded');
$upgraded->init;
$upgraded->append_conf(
	'postgresql.conf', q{
shared_preload_libraries = 'distlock'
restart_after_crash = on
log_statement = none
});
chdir $tempdir;
foreach my $options ([ '--check' ], [])
{
	command_ok(
		[
			'pg_upgrade', '--no-sync', @$options,
			'-d', $node->data_dir, '-D', $upgraded->data_dir,
			'-b', $node->config_data('--bindir'), '-B', $upgraded->config_data('--bindir'),
			'-s', $upgraded->host,
			'-p', $node->port, '-P', $upgraded->port
		],
		"pg_upgrade @$options");
}

my $began = time;
$upgraded->start;
foreach my $dbname (sort keys %leases)
{
	is($upgraded->safe_psql($dbname, $leases), $leases{$dbname}, "upgraded: leases are there in $dbname");
	is( $upgraded->safe_psql($dbname,
			"SELECT bool_and(expires_at >= to_timestamp($began) + ttl) FROM distlock_leases"),
		't',
		"upgraded: with their full time to live in $dbname");
	is($upgraded->safe_psql($dbname, $epochs), $epochs{$dbname} + 1, "upgraded: the next epoch in $dbname");
}
is( $upgraded->safe_psql(
		'postgres', qq{
BEGIN;
SELECT distlock_check('kept', $kept), distlock_renew('kept', $kept) > now();
SELECT distlock_guard('kept', $kept);
COMMIT;
SELECT distlock_release('kept', $kept);
SELECT distlock_try_acquire('kept') IS NULL}),
	"t|t\n\nt\nt",
	'upgraded: they can be used, and nothing is granted in the grace');

my $token = token($upgraded, 'copy_in_grace');
cmp_ok($token, '>', $in_copy, 'upgraded: tokens grow, without a grace where there was no lease');
is(epoch_of($token), 1, 'upgraded: in the next epoch');
crash($upgraded);
cmp_ok(token($upgraded, 'copy_in_grace'), '>', $token, 'upgraded: tokens grow across a crash');

$upgraded->stop;
done_testing();
