# Protected tables beyond one session: dump and restore, logical replication,
# open writers; and what a guard says to a transaction that others outran.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node('main', init => { allows_streaming => 'logical' });

# ---- Dump and restore ----

$node->safe_psql('postgres', 'CREATE DATABASE source');
$node->safe_psql(
	'source', q{
CREATE EXTENSION distlock;
CREATE SCHEMA app;
CREATE TABLE app.account (id int PRIMARY KEY, balance int);
INSERT INTO app.account SELECT g, 10 * g FROM generate_series(1, 100) g;
SELECT distlock_protect('app.account', 'account:{id}');
ALTER TABLE app.account RENAME COLUMN id TO "Account {id}";
CREATE TABLE app.ledger (entry text);
INSERT INTO app.ledger VALUES ('first');
SELECT distlock_protect('app.ledger', 'it''s the {{ledger}}');
CREATE TABLE app.part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE app.part1 PARTITION OF app.part FOR VALUES FROM (1) TO (2);
CREATE TABLE app.part2 PARTITION OF app.part FOR VALUES FROM (2) TO (3);
INSERT INTO app.part VALUES (1, 'one'), (2, 'two');
SELECT distlock_protect('app.part', 'part:{k}');
CREATE TABLE app.free (id int);
});

my $protected = q{SELECT * FROM distlock_protected ORDER BY rel::text};
my $expected = q{app.account|account:{"Account {id}"}|t
app.ledger|it's the {{ledger}}|t
app.part|part:{k}|t};
is($node->safe_psql('source', $protected), $expected, 'three tables are protected');

my $dump = $node->basedir . '/dump';
my %restore = (
	plain => [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', $dump, '-d' ],
	custom => [ 'pg_restore', '--exit-on-error', $dump, '-d' ]);
foreach my $format (sort keys %restore)
{
	my $db = "from_$format";

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->command_ok([ 'pg_dump', "--format=$format", '-f', $dump, 'source' ],
		"$format: dumped");
	$node->command_ok([ @{ $restore{$format} }, $db ], "$format: restored");
	is($node->safe_psql($db, $protected), $expected, "$format: the same tables are protected");
	is( $node->safe_psql($db, q{
			SELECT (SELECT sum(balance) FROM app.account), (SELECT entry FROM app.ledger),
				(SELECT string_agg(v, ' ' ORDER BY k) FROM app.part)}),
		'50500|first|one two',
		"$format: the data is there");
	foreach my $test (
		[ 'UPDATE app.account SET balance = 0 WHERE "Account {id}" = 7', 'account:7' ],
		[ q{INSERT INTO app.ledger VALUES ('second')}, q{it's the {ledger}} ],
		[ 'TRUNCATE app.ledger', q{it's the {ledger}} ],
		[ 'DELETE FROM app.part2', 'part:2' ])
	{
		my ($write, $lock) = @$test;
		my $guarded = q{SELECT distlock_acquire($$} . $lock . q{$$, scope => 'transaction') > 0};

		foreach my $role ('origin', 'replica')
		{
			like(
				sql_error($node, "SET session_replication_role = $role; $write", $db),
				qr/ERROR:  LK002: unguarded write .*\n.*DETAIL:  .* of lock "\Q$lock\E"/,
				"$format: $write as $role: refused");
		}
		is(sql_error($node, "BEGIN; $guarded; $write; COMMIT", $db),
			'', "$format: $write with a guard");
	}
	foreach my $table ('account', 'part', 'part1')
	{
		like(
			sql_error($node, "TRUNCATE app.$table", $db),
			qr/ERROR:  LK002: cannot truncate protected table/,
			"$format: TRUNCATE of $table: refused");
	}
	is(sql_error($node, 'INSERT INTO app.free VALUES (1)', $db),
		'', "$format: another table is not protected");
}

# ---- Logical replication ----

my $subscriber = distlock_node(
	'subscriber', conf => q{
log_error_verbosity = verbose
wal_retrieve_retry_interval = 100ms
distlock.max_leases = 16
});

# In the one direction only: what is protected there is none of our business.
my $tables = q{
CREATE TABLE part (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (1) TO (10);
CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (10) TO (20);
CREATE TABLE other (id int PRIMARY KEY);
};
$node->safe_psql('postgres', $tables . q{SELECT distlock_protect('part', 'part:{k}')});
$subscriber->safe_psql('postgres', $tables . q{SELECT distlock_protect('other', 'other')});

sub write_part
{
	my ($write, @keys) = @_;

	$node->safe_psql('postgres', join ';', 'BEGIN',
		(map { "SELECT distlock_acquire('part:$_', scope => 'transaction')" } @keys),
		$write, 'COMMIT');
	return;
}

sub subscribed
{
	return $subscriber->safe_psql('postgres', $_[0]);
}

# Wait until the subscriber refuses, as it does again and again.
sub wait_for_refusal
{
	$subscriber->wait_for_log(
		qr/ERROR:  LK002: unguarded write to protected table "other"/,
		-s $subscriber->logfile);
	return;
}

write_part(q{INSERT INTO part VALUES (1, 'copied'), (11, 'copied')}, 1, 11);
$node->safe_psql('postgres', 'INSERT INTO other VALUES (1), (2)');
$node->safe_psql('postgres', 'CREATE PUBLICATION pub FOR TABLE part, other');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '" . $node->connstr . " dbname=postgres' PUBLICATION pub");

# The protected table here works as any publisher's.
$subscriber->poll_query_until('postgres', 'SELECT count(*) = 2 FROM part')
  or die 'the partitioned table is not copied';
write_part(q{UPDATE part SET k = 12, v = 'moved' WHERE k = 1}, 1, 12);
write_part(q{DELETE FROM part WHERE k = 11}, 11);
$subscriber->poll_query_until('postgres',
	q{SELECT string_agg(k || v, ' ') = '12moved' FROM part})
  or die 'the partitioned table is not replicated';
pass('a protected table is published');

# The initial copy
wait_for_refusal();
is(subscribed('SELECT count(*) FROM other'), 0, 'a protected table refuses the initial copy');
subscribed(q{SELECT distlock_unprotect('other')});
$subscriber->wait_for_subscription_sync($node, 'sub');
is(subscribed('SELECT count(*) FROM other'), 2, 'unprotected, it is copied');

# Changes
foreach my $test (
	[ 'INSERT INTO other VALUES (3)', '1 2 3' ],
	[ 'UPDATE other SET id = 4 WHERE id = 3', '1 2 4' ],
	[ 'DELETE FROM other WHERE id = 4', '1 2' ],
	[ 'TRUNCATE other', '' ])
{
	my ($write, $after) = @$test;
	my $contents = q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM other};
	my $before = subscribed($contents);

	subscribed(q{SELECT distlock_protect('other', 'other')});
	$node->safe_psql('postgres', $write);
	wait_for_refusal();
	is(subscribed($contents), $before, "$write: refused");
	subscribed(q{SELECT distlock_unprotect('other')});
	$node->wait_for_catchup('sub');
	is(subscribed($contents), $after, "$write: applied when unprotected");
}
subscribed('DROP SUBSCRIPTION sub');

# ---- Guards are used up ----

# Few leases are enough: a guard outlives its lease.
like(
	sql_error($subscriber, q{
DO $$
DECLARE
	token bigint;
BEGIN
	FOR i IN 1..10000 LOOP
		token := distlock_acquire('lock ' || i);
		PERFORM distlock_guard('lock ' || i, token);
		PERFORM distlock_renew('lock ' || i, token, '1 us');
	END LOOP;
END $$}),
	qr/ERROR:  53400: too many guards.*\n.*DETAIL:  \d+ leases guard open transactions.*\n.*HINT:  Increase "distlock.max_leases"/,
	'there are so many guards and no more');
is( sql_error($subscriber, q{BEGIN; SELECT distlock_guard('a', distlock_acquire('a')); COMMIT}),
	'', 'a transaction that failed has given them back');

# ---- Writers and protectors wait for each other ----

my ($writer, $protector, $late) = map { session($node) } 1 .. 3;

# Wait until a session waits for a lock of PostgreSQL's.
sub wait_for_block
{
	my ($session) = @_;

	$node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = " . $session->pid)
	  or die 'the session does not wait';
	return;
}

$node->safe_psql('postgres', q{
CREATE TABLE busy (id int);
CREATE ROLE mallory;
CREATE TABLE of_mallory (id int);
ALTER TABLE of_mallory OWNER TO mallory});
$writer->run('BEGIN; INSERT INTO busy VALUES (1)');
like(
	sql_error($node, q{
		SET statement_timeout = '1min'; SET ROLE mallory; SELECT distlock_protect('busy', 'busy')}),
	qr/ERROR:  42501: must be owner/,
	'who may not protect is refused at once');
$protector->send(q{BEGIN; SELECT distlock_protect('busy', 'busy')});
wait_for_block($protector);
$late->send('INSERT INTO busy VALUES (2)');
wait_for_block($late);
$writer->run('INSERT INTO busy VALUES (3); COMMIT');
$protector->result;
pass('protect waits for open writers');
$protector->run('COMMIT');
like($late->error, qr/ERROR:  LK002/, 'who has waited for protect is refused');
is($node->safe_psql('postgres', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM busy'),
	'1 3', 'the earlier one has written');

# Prepared and planned before: the next execution knows.
$node->safe_psql('postgres', q{SELECT distlock_unprotect('busy')});
$writer->run('PREPARE enter AS INSERT INTO busy VALUES (4); EXECUTE enter');
$protector->run(q{BEGIN; SELECT distlock_protect('busy', 'busy')});
$late->send('INSERT INTO busy VALUES (5)');
wait_for_block($late);
$protector->run('ROLLBACK');
is($late->error, '', 'who has waited for a protect that rolled back writes');
$protector->run(q{SELECT distlock_protect('busy', 'busy')});
$writer->send('EXECUTE enter');
like($writer->error, qr/ERROR:  LK002/, 'a statement prepared before is refused');

# ---- A guard by a lease that others end ----

my $token = $node->safe_psql('postgres', q{SELECT distlock_acquire('busy', '1h', holder => 'first')});
$writer->run("BEGIN; SELECT distlock_guard('busy', $token); INSERT INTO busy VALUES (6)");
is($node->safe_psql('postgres', "SELECT distlock_release('busy', $token)"), 't', 'another session releases');
$node->safe_psql('postgres', q{SELECT distlock_acquire('busy', '1h', holder => 'second')});
$writer->send('COMMIT');
like(
	$writer->error,
	qr/ERROR:  LK001: lease of lock "busy" under token $token is lost\n.*DETAIL:  This transaction was guarded by it, and cannot commit. The lock is held by "second" under token \d+/,
	'the commit says why it fails');
is($node->safe_psql('postgres', 'SELECT count(*) FROM busy WHERE id = 6'), 0, 'nothing is written');

# ---- A snapshot from elsewhere may be older than the transaction ----

my $exporter = session($node);
my $importer = session($node);

sub import_snapshot
{
	my ($name) = @_;

	$importer->run('BEGIN ISOLATION LEVEL REPEATABLE READ');
	$importer->run("SET TRANSACTION SNAPSHOT '$name'");
	$importer->send("SELECT distlock_guard('snapshot', $token)");
	my $error = $importer->error;
	$importer->run('ROLLBACK');
	return $error;
}

my $snapshot = $exporter->run(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_export_snapshot()');
$node->safe_psql('postgres', 'INSERT INTO of_mallory VALUES (1)');
$token = $node->safe_psql('postgres', q{SELECT distlock_acquire('snapshot', '1h')});
like(
	import_snapshot($snapshot),
	qr/ERROR:  55000: cannot guard a transaction by a lease that is younger than its snapshot/,
	'a snapshot older than the lease');
$exporter->run('COMMIT');
$node->safe_psql('postgres', 'INSERT INTO of_mallory VALUES (1)');
$snapshot = $exporter->run(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_export_snapshot()');
is(import_snapshot($snapshot), '', 'one younger than the lease');

# The same for a session that took its snapshot before the lease was granted.
$importer->run('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM of_mallory');
$token = $node->safe_psql('postgres', q{SELECT distlock_acquire('younger', '1h')});
$importer->send("SELECT distlock_guard('younger', $token)");
like($importer->error, qr/ERROR:  55000: .*HINT:  Acquire before BEGIN/s,
	'a lease granted after BEGIN');
$importer->run('ROLLBACK');

$_->quit foreach $writer, $protector, $late, $exporter, $importer;
$subscriber->stop;
$node->stop;
done_testing();
