# The lease table is a heap like any other.  Whatever is done to it or with it,
# leases that are held stay held, a crash brings them back and no others, and a
# standby has the same pages.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node(
	'primary',
	init => { allows_streaming => 'logical', extra => ['--data-checksums'] },
	conf => q{
allow_in_place_tablespaces = on
autovacuum_freeze_max_age = 100000
autovacuum_naptime = 1s
autovacuum_vacuum_cost_delay = 0
distlock.default_ttl = '1h'
statement_timeout = '1min'
wal_consistency_checking = all
wal_keep_size = 1GB
});
$node->safe_psql('postgres', "CREATE EXTENSION $_") foreach qw(amcheck pageinspect);
$node->safe_psql('postgres', q{CREATE TABLESPACE elsewhere LOCATION ''});

# ---- What has to hold at any time ----

# Leases in more than one page, by their names.  No other lease may come back.
my %held = split /\s+/, $node->safe_psql('postgres',
	q{SELECT 'held/' || i || ' ' || distlock_acquire('held/' || i) FROM generate_series(1, 25) i});

# Lease "held/1" ends and has a successor, whose image overwrites its own.
sub succeed
{
	$held{'held/1'} = $node->safe_psql('postgres', qq{
DO \$\$ BEGIN ASSERT distlock_release('held/1', $held{'held/1'}); END \$\$;
SELECT distlock_acquire('held/1')});
	return;
}

# Are these leases held and no others, can their images be found and
# overwritten, and does amcheck find nothing wrong?
sub all_is_well
{
	my ($test) = @_;
	my $values = join ', ', map { "('$_', $held{$_}::bigint)" } keys %held;

	is( $node->safe_psql('postgres', qq{
			CREATE TEMP VIEW held AS SELECT * FROM (VALUES $values) v (name, token);
			SELECT count(*), count(held.token) FROM distlock_leases LEFT JOIN held USING (name, token);
			SELECT count(distlock_renew(name, token, ttl + interval '1s')) FROM distlock_images JOIN held USING (name, token);
			SELECT count(*) FROM distlock_images JOIN held USING (name, token) JOIN distlock_leases l USING (name, token)
				WHERE distlock_images.ttl = l.ttl;
			SELECT count(*) FROM unnest('{distlock_lease_table,distlock_control}'::regclass[]) r, verify_heapam(r)}),
		"25|25\n25\n25\n0",
		$test);
	return;
}

my $standby = PostgreSQL::Test::Cluster->new('standby');

# All pages but for what differs between a primary and its standby: their LSN
# and checksum.
sub pages
{
	my ($server) = @_;

	return $server->safe_psql('postgres', q{
SELECT r, b, md5(substring(get_raw_page(r, b) FROM 11))
FROM unnest('{distlock_lease_table,distlock_control,distlock_token_seq}'::text[]) r,
	generate_series(0, pg_relation_size(r) / 8192 - 1) b ORDER BY r, b});
}

sub same_pages
{
	my ($test) = @_;
	my ($before, $copy, $after);

	do
	{
		$before = pages($node);
		$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
		$copy = pages($standby);
		$after = pages($node);
	} while ($before ne $after);
	is($copy, $after, "the standby has the same pages: $test");
	return;
}

# The operation, with a lease that ends before it, then a crash.
sub survives
{
	my ($test, @sql) = @_;

	succeed();
	$node->safe_psql('postgres', $_) foreach @sql;
	wait_until_cleared($node);
	all_is_well("$test: all is well");
	same_pages($test);
	succeed();
	crash($node);
	all_is_well("$test: after a crash too");
	return;
}

# ---- A base backup becomes a standby ----

$node->backup('base');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
my $images = 'SELECT name, token, mode, holder, owner, granted_at, ttl FROM distlock_images ORDER BY token';
is($standby->safe_psql('postgres', $images), $node->safe_psql('postgres', $images), 'the standby shows the leases');
same_pages('a base backup');

# ---- All that distlock itself does there ----

succeed();
same_pages('a successor');
all_is_well('renewed for longer');
same_pages('renewals for longer');
my $token = $node->safe_psql('postgres', q{SELECT distlock_acquire('ended')});
same_pages('an acquire');
$node->safe_psql('postgres', "SELECT distlock_release('ended', $token)");
same_pages('a release');
wait_until_cleared($node);
same_pages('clearing');
crash($node);
all_is_well('what has been cleared does not come back');
same_pages('recovery');
my $size = $node->safe_psql('postgres', q{SELECT pg_relation_size('distlock_lease_table')});
$node->safe_psql('postgres', q{SELECT distlock_acquire('one of many ' || i) FROM generate_series(1, 50) i});
cmp_ok($node->safe_psql('postgres', q{SELECT pg_relation_size('distlock_lease_table')}), '>', $size, 'the table grows');
same_pages('extending the table');
$node->safe_psql('postgres', q{SELECT distlock_release(name, token) FROM distlock_leases WHERE name LIKE 'one of many %'});
wait_until_cleared($node);
same_pages('clearing pages');
$node->restart;
all_is_well('after a restart');
same_pages('a restart');

# ---- All that PostgreSQL can do to it ----

# Its order is another with every write, so CLUSTER moves slots.
my $index = q{
CREATE FUNCTION scatter(distlock_image) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT md5($1::text)';
CREATE INDEX scattered ON distlock_lease_table (scatter(image))};

survives('VACUUM, ANALYZE', 'VACUUM', 'ANALYZE', 'VACUUM (FREEZE, DISABLE_PAGE_SKIPPING)');
survives('VACUUM FULL', 'VACUUM FULL');
survives('CREATE INDEX, CLUSTER', $index, 'CLUSTER distlock_lease_table USING scattered');
survives('REINDEX, SET TABLESPACE',
	'REINDEX DATABASE postgres', 'ALTER TABLE distlock_lease_table SET TABLESPACE elsewhere');
survives('SET TABLESPACE, rolled back', q{
BEGIN;
ALTER TABLE distlock_lease_table SET TABLESPACE pg_default;
ROLLBACK}, q{
BEGIN;
SELECT distlock_acquire('undone');
ALTER TABLE distlock_lease_table SET TABLESPACE pg_default;
ROLLBACK});

# Tuples that are not frozen, or locked: what whoever reads them notes there is
# not logged, and must not confuse what is.  VACUUM FULL makes pages the same
# again where nothing is written.
my $read = 'SELECT count(*) FROM distlock_lease_table';
my $write = q{
SELECT distlock_renew(name, token, i.ttl + interval '1s') FROM distlock_images i JOIN distlock_leases USING (name, token)};
my $rewrite = 'VACUUM FULL distlock_lease_table';

survives('SET UNLOGGED, SET LOGGED',
	'ALTER TABLE distlock_lease_table SET UNLOGGED',
	'ALTER TABLE distlock_lease_table SET LOGGED',
	$read, $write, $rewrite);
survives('row locks', 'SELECT FROM distlock_lease_table FOR UPDATE', $read, $write, $rewrite);

# Autovacuum comes by only when transaction ids grow old.
$node->safe_psql('postgres', q{
SET synchronous_commit = off;
DO $$ BEGIN
	FOR i IN 1..110000 LOOP
		PERFORM pg_current_xact_id();
		COMMIT;
	END LOOP;
END $$});
$node->poll_query_until('postgres', q{
SELECT bool_and(age(relfrozenxid) < 100000) FROM pg_class
WHERE oid IN ('distlock_lease_table'::regclass, 'distlock_control'::regclass)})
  or die 'autovacuum does not come by';
all_is_well('autovacuum: all is well');
same_pages('autovacuum');

# ---- Under load ----

my $script = $node->basedir . '/load.sql';
my $output = '';
my $rounds = 0;

append_to_file($script, q{
\set i random(1, 20)
SELECT distlock_acquire('load ' || :i) AS token \gset
SELECT 1 / distlock_check('load ' || :i, :token)::integer;
SELECT distlock_renew('load ' || :i, :token, '2h');
SELECT 1 / distlock_release('load ' || :i, :token)::integer;
});
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '4', '-t', '2500', '-f', $script, $node->connstr('postgres') ],
	'>&', \$output);
while ($load->pumpable)
{
	foreach my $sql (
		'VACUUM FULL', 'CLUSTER distlock_lease_table',
		'SELECT * FROM distlock_lease_table',
		'ALTER TABLE distlock_lease_table SET TABLESPACE pg_default',
		'COPY distlock_lease_table TO STDOUT',
		q{SELECT * FROM verify_heapam('distlock_lease_table')},
		'ALTER TABLE distlock_lease_table SET TABLESPACE elsewhere',
		'VACUUM (FREEZE, DISABLE_PAGE_SKIPPING)')
	{
		my ($out, $err);

		$node->psql('postgres', $sql, stdout => \$out, stderr => \$err);
		is($err, '', "under load: $sql") if $err ne '';
		is($out, '', "under load: $sql") if $sql =~ /verify_heapam/ && $out ne '';
		eval { $load->pump_nb };
	}
	$rounds++;
}
ok($load->finish, 'under load: no client fails') or diag $output;
cmp_ok($rounds, '>', 1, 'under load: often enough');
wait_until_cleared($node);
survives('load');

# ---- Nothing dies in it ----

# The oldest snapshot of the system is held all along.
my $snapshot = session($node);
my $pairs = q{
DO $$ BEGIN
	FOR i IN 1..%d LOOP
		PERFORM distlock_release('pair ' || i, distlock_acquire('pair ' || i));
		COMMIT;
	END LOOP;
END $$;
SELECT pg_relation_size('distlock_lease_table')};

$snapshot->run('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM distlock_lease_table');
$size = $node->safe_psql('postgres', sprintf $pairs, 100);
is($node->safe_psql('postgres', sprintf $pairs, 3000), $size,
	'thousands of leases need no more room than a hundred, whatever the oldest snapshot is');
$snapshot->run('COMMIT');
$snapshot->quit;
wait_until_cleared($node);

# ---- Copies of the database ----

# Nobody is connected to a template.
$node->safe_psql('template1', "CREATE DATABASE copy_$_ TEMPLATE postgres STRATEGY $_")
  foreach qw(wal_log file_copy);
$node->command_ok([ 'pg_dump', '-Fc', '-f', $node->basedir . '/dump', $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('restored'), $node->basedir . '/dump' ], 'pg_restore');

# They get none of its leases, but tokens above all of its.
my @copies = qw(copy_wal_log copy_file_copy restored);
my $highest = $node->safe_psql('postgres', 'SELECT max(token) FROM distlock_leases');
my %token;
foreach my $dbname (@copies)
{
	is($node->safe_psql($dbname, 'SELECT count(*) FROM distlock_leases'), 0, "$dbname: there are no leases");
	is($node->safe_psql($dbname, 'SELECT count(*) FROM distlock_images'), 0, "$dbname: nor images of any");
	$token{$dbname} = $node->safe_psql($dbname, q{SELECT distlock_acquire('held/1')});
	cmp_ok($token{$dbname}, '>', $highest, "$dbname: tokens grow");
}
crash($node);
foreach my $dbname (@copies)
{
	is($node->safe_psql($dbname, 'SELECT name, token FROM distlock_leases'),
		"held/1|$token{$dbname}", "$dbname: a crash brings back its own");
}
all_is_well('copies: the original is not disturbed');

# ---- Logical replication of all tables ----

my $log = -s $node->logfile;
$node->safe_psql('postgres', q{
CREATE TABLE payload (i integer PRIMARY KEY);
CREATE PUBLICATION everything FOR ALL TABLES});
$node->safe_psql('postgres', 'CREATE DATABASE subscriber');
$node->safe_psql('subscriber', $_)
  foreach 'CREATE EXTENSION distlock', 'CREATE TABLE payload (i integer PRIMARY KEY)';
my $theirs = $node->safe_psql('subscriber', q{SELECT distlock_acquire('held/1')});
foreach my $binary (qw(false true))
{
	my $name = "subscription_$binary";

	# In a cluster that replicates to itself, the slot has to be there before.
	$node->safe_psql('postgres', "TRUNCATE payload; INSERT INTO payload SELECT generate_series(1, 10);
		SELECT pg_create_logical_replication_slot('$name', 'pgoutput')");
	$node->safe_psql('subscriber', 'TRUNCATE payload');
	$node->safe_psql('subscriber', qq{
CREATE SUBSCRIPTION $name CONNECTION '} . $node->connstr('postgres') =~ s/'/''/gr . qq{' PUBLICATION everything
WITH (create_slot = false, binary = $binary)});
	$node->wait_for_subscription_sync($node, $name, 'subscriber');
	succeed();
	$node->safe_psql('postgres', 'VACUUM FULL distlock_lease_table');
	$node->safe_psql('postgres', 'INSERT INTO payload VALUES (11)');
	$node->wait_for_catchup($name);
	is($node->safe_psql('subscriber', 'SELECT count(*) FROM payload'), 11, "subscription, binary = $binary: rows arrive");
	is($node->safe_psql('subscriber', q{
			SELECT count(*) FROM distlock_lease_table;
			SELECT name, token FROM distlock_leases;
			SELECT name, token FROM distlock_images}),
		"13\nheld/1|$theirs\nheld/1|$theirs",
		"subscription, binary = $binary: leases do not");
	$node->safe_psql('subscriber', "DROP SUBSCRIPTION $name");
}
unlike(slurp_file($node->logfile, $log), qr/cannot change relation/, 'subscriptions: nothing is refused');
all_is_well('subscriptions: the publisher is not disturbed');

# ---- Two locks with the same hash, of one request ----

# Each has an image of its own.
{
	my $twins = $node->safe_psql('postgres', q{
SELECT array_agg('n' || n) FROM generate_series(1, 200000) n GROUP BY hashtext('n' || n) HAVING count(*) = 2 LIMIT 1});
	my $ours = "name = ANY ('$twins')";
	my $worker = freeze_worker($node);

	# Only who follows one of them clears what that has left behind.
	foreach my $i (1, 2)
	{
		is( $node->safe_psql('postgres', qq{
SELECT distlock_acquire_all('$twins', '1h') AS token \\gset
SELECT distlock_release(('$twins'::text[])[$i], :token) AS released \\gset
SELECT distlock_acquire(('$twins'::text[])[$i], scope => 'session') > :token, distlock_check(('$twins'::text[])[3 - $i], :token)}),
			't|t', "the same hash: the next one of lock $i is told, and the other still held");
		$node->safe_psql('postgres', "SELECT distlock_force_release(name) FROM distlock_leases WHERE $ours");
	}
	thaw($worker);

	$token = $node->safe_psql('postgres', "SELECT distlock_acquire_all('$twins', '1h')");
	$node->safe_psql('postgres', 'REINDEX INDEX scattered; CLUSTER distlock_lease_table USING scattered');
	is($node->safe_psql('postgres', "SELECT distlock_renew(unnest('$twins'::text[]), $token, '2h') > now()"),
		"t\nt", 'the same hash: both are renewed');
	crash($node);
	is($node->safe_psql('postgres', "SELECT token, ttl FROM distlock_leases WHERE $ours"),
		"$token|02:00:00\n$token|02:00:00", 'the same hash: both outlive a crash');
	$node->safe_psql('postgres', "SELECT distlock_release_all('$twins', $token)");
	wait_until_cleared($node);
	all_is_well('the same hash: nothing is left behind');
}

# ---- The end ----

same_pages('the end');
foreach my $server ($node, $standby)
{
	$server->stop;
	unlike(slurp_file($server->logfile), qr/TRAP:|PANIC:|inconsistent page|terminated by signal (?!9:)/,
		$server->name . ': no process has crashed');
	command_ok([ 'pg_checksums', '--check', '-D', $server->data_dir ], $server->name . ': all checksums are right');
}

# ---- wal_level = minimal ----

# What a transaction creates is not logged then.
my $minimal = distlock_node('minimal', conf => "wal_level = minimal\nmax_wal_senders = 0\n");

$minimal->safe_psql('postgres', 'CREATE DATABASE fresh');
like(sql_error($minimal, q{
		BEGIN;
		CREATE EXTENSION distlock;
		SELECT distlock_acquire('a', '1h')}, 'fresh'),
	qr/ERROR:  55000: cannot store a durable lease .*\nDETAIL:  .*"wal_level" is "minimal"/,
	'wal_level = minimal: the transaction that creates the extension stores nothing');
$minimal->safe_psql('fresh', q{
BEGIN;
CREATE EXTENSION distlock;
SELECT distlock_acquire('volatile', '1 microsecond', durable => false);
COMMIT});
$token = $minimal->safe_psql('fresh', q{SELECT distlock_acquire('a', '1h')});
crash($minimal);
is($minimal->safe_psql('fresh', "SELECT distlock_check('a', $token)"), 't', 'wal_level = minimal: any other does');
$minimal->safe_psql('fresh', $_)
  foreach 'VACUUM FULL', "SELECT distlock_renew('a', $token, '2h')";
crash($minimal);
is($minimal->safe_psql('fresh', "SELECT name, token, ttl FROM distlock_leases"),
	"a|$token|02:00:00", 'wal_level = minimal: after VACUUM FULL too');
$minimal->stop;

done_testing();

