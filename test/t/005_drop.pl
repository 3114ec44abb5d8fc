# Leases and waiters go with their extension or their database, and only with
# them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $max_leases = 64;
# With wal_level = minimal, a transaction could not store leases in the table
# that it has created.
my $node = distlock_node(
	'main',
	init => { allows_streaming => 1 },
	conf => "distlock.max_leases = $max_leases");

sub value
{
	my ($sql, $dbname) = @_;

	return $node->safe_psql($dbname // 'postgres', $sql);
}

sub fills
{
	my ($test, $dbname) = @_;

	is( value(
			qq{BEGIN; SELECT count(distlock_acquire('fill ' || n, wait => '0'))
			   FROM generate_series(1, $max_leases) n; ROLLBACK}, $dbname),
		$max_leases,
		"$test: memory is given back");
	return;
}

# ---- DROP EXTENSION ----

my $token;

foreach my $drop (
	'DROP EXTENSION distlock',
	'DROP EXTENSION distlock CASCADE',
	'DROP SCHEMA locks CASCADE',
	'BEGIN; SAVEPOINT s; DROP EXTENSION distlock; RELEASE s; COMMIT')
{
	value('CREATE SCHEMA IF NOT EXISTS locks; ALTER EXTENSION distlock SET SCHEMA locks;'
		  . q{ALTER DATABASE postgres SET search_path = locks, public});

	my ($holder, $waiter, $told, $watcher, $late) = map { session($node) } 1 .. 5;

	# A lease of each scope, a waiter, and a grant that is not told yet.
	my $last = $holder->run(q{
SELECT distlock_acquire('a', '1h');
SELECT distlock_acquire('session', scope => 'session');
BEGIN;
SELECT distlock_acquire('transaction', scope => 'transaction')});
	$last =~ s/.*\n//s;
	$token = value(q{SELECT distlock_acquire('handed over', '1h')});
	$waiter->send(q{SELECT distlock_acquire('a', scope => 'session')});
	$told->send(q{SELECT distlock_acquire('handed over', scope => 'session')});
	wait_for_queue($node, $_, 1) foreach 'a', 'handed over';
	freeze_waiter($node, $told->pid);
	value(qq{SELECT distlock_release('handed over', $token)});

	# One session watches, another is about to.
	$watcher->send(q{SELECT distlock_watch('watched', NULL)});
	$holder->run('SELECT pg_advisory_lock(1)');
	$late->send(q{
WITH other AS MATERIALIZED (SELECT pg_advisory_xact_lock(1)::text AS done)
SELECT distlock_watch('watched', NULL) FROM other WHERE done IS NOT NULL});
	foreach my $session ($watcher, $late)
	{
		$node->poll_query_until('postgres',
			q{SELECT wait_event IN ('Extension', 'DistlockWatch', 'advisory')
			  FROM pg_stat_activity WHERE pid = } . $session->pid)
		  or die 'the session does not wait';
	}

	value($drop);
	thaw($told->pid);
	like($watcher->error, qr/ERROR:  55000: .*dropped/, "$drop: who watches is turned away");
	$holder->run('SELECT pg_advisory_unlock(1)');
	like($late->error, qr/ERROR:  55000: /, "$drop: who comes to watch afterwards, too");
	like($waiter->error, qr/ERROR:  55000: .*dropped/, "$drop: who waits is turned away");
	like($told->error, qr/ERROR:  55000: .*dropped/, "$drop: who was granted and not told, too");
	like(
		sql_error($node, q{SELECT distlock_acquire('a')}),
		qr/ERROR:  42883: /,
		"$drop: the functions are gone");

	value('CREATE SCHEMA IF NOT EXISTS locks; CREATE EXTENSION distlock SCHEMA locks');
	is(value('SELECT (SELECT count(*) FROM distlock_leases), (SELECT count(*) FROM distlock_waiters)'),
		'0|0', "$drop: nothing is left in a new one");
	cmp_ok(value(q{SELECT distlock_acquire('a', wait => '0')}),
		'>', $last, "$drop: the name is free in a new one, tokens go on");

	# Sessions of before the drop, with open ends.
	$holder->run('COMMIT');
	$holder->run('DISCARD ALL');
	cmp_ok($_->run(q{SELECT distlock_acquire('session', wait => '0', scope => 'transaction')}),
		'>', $last, "$drop: an older session goes on") foreach $holder, $waiter, $told, $watcher, $late;
	$_->quit foreach $holder, $waiter, $told, $watcher, $late;
	value(q{SELECT distlock_force_release('a')});
	fills($drop);
}

# The same name is another lock for a new installation, even while the old one
# is not gone for others yet.
$token = value(q{SELECT distlock_acquire('a', '1h')});
cmp_ok(
	value(q{
BEGIN;
DROP EXTENSION distlock;
CREATE EXTENSION distlock;
SELECT distlock_acquire('a', wait => '0');
COMMIT}),
	'>', $token, 'DROP, CREATE EXTENSION and acquire in one transaction');
is(value(q{SELECT count(*) FROM distlock_leases WHERE name = 'a'}),
	1, 'its lease lives on');
value(q{SELECT distlock_force_release('a')});

# ---- DROP EXTENSION rolled back ----

foreach my $drop (
	'BEGIN; DROP EXTENSION distlock; ROLLBACK',
	'BEGIN; SAVEPOINT s; DROP EXTENSION distlock; ROLLBACK TO s; COMMIT',
	'BEGIN; DROP EXTENSION distlock; CREATE EXTENSION distlock;'
	. q{ SELECT distlock_acquire('a', wait => '0'); ROLLBACK})
{
	my $waiter = session($node);

	$token = value(q{SELECT distlock_acquire('a', '1h')});
	$waiter->send(q{SELECT distlock_acquire('a', scope => 'session')});
	wait_for_queue($node, 'a', 1);
	value($drop);
	is(value("SELECT distlock_check('a', $token)"), 't', "$drop: the lease lives on");
	is( value(q{SELECT pid || ' ' || position FROM distlock_waiters WHERE name = 'a'}),
		$waiter->pid . ' 1',
		"$drop: who waits waits on");
	value("SELECT distlock_release('a', $token)");
	cmp_ok($waiter->result, '>', $token, "$drop: and gets the lock");
	$waiter->quit;
}

# ---- Schemas ----

value(q{
ALTER DATABASE postgres RESET search_path;
DROP EXTENSION distlock;
CREATE SCHEMA "Other Schema";
CREATE EXTENSION distlock SCHEMA "Other Schema"});
my $session = session($node);
$token = $session->run(q{SELECT "Other Schema".distlock_acquire('a', '1h')});
like($token, qr/^[0-9]+$/, 'an extension in a schema that is not in search_path');
value('ALTER EXTENSION distlock SET SCHEMA public');
is($session->run("SELECT distlock_check('a', $token)"), 't', 'SET SCHEMA: the lease lives on');
is($session->run(q{SELECT distlock_try_acquire('a')}), '', 'SET SCHEMA: the lock is still the same');
like(value("SELECT distlock_renew('a', $token)"), qr/^20/, 'SET SCHEMA: renewed');
is(value("SELECT distlock_release('a', $token)"), 't', 'SET SCHEMA: released');

# More than a range of tokens, so that the relations have to be found again.
value('ALTER EXTENSION distlock SET SCHEMA "Other Schema"');
cmp_ok(
	$session->run(q{
SELECT max("Other Schema".distlock_acquire('a ' || n % 50, '1 microsecond'))
FROM generate_series(1, 20000) n}),
	'>', $token + 19000, 'SET SCHEMA: tokens are reserved');
value('ALTER EXTENSION distlock SET SCHEMA public');
$session->quit;

# ---- Databases ----

value('CREATE DATABASE other');
value('CREATE EXTENSION distlock', 'other');
$token = value(q{SELECT distlock_acquire('a', '1h')});
my $other_token = value(q{SELECT distlock_acquire('a', '1h', wait => '0')}, 'other');
like($other_token, qr/^[0-9]+$/, 'one name in two databases is two locks');
is(value("SELECT distlock_check('a', $other_token)"), 'f', 'a token is no good in the other database');
is(value(q{SELECT count(*) FROM distlock_leases WHERE name = 'a'}), 1, 'each database sees its own lease');
value(q{SELECT distlock_force_release('a')});
is(value("SELECT distlock_check('a', $other_token)", 'other'),
	't', 'a forced release does not reach into the other database');

# A DROP DATABASE that fails takes nothing along, and a new name neither.
my $guest = session($node, 'other');
like(sql_error($node, 'SET statement_timeout = 0; DROP DATABASE other'),
	qr/ERROR:  55006: /, 'a database in use is not dropped');
is(value("SELECT distlock_check('a', $other_token)", 'other'), 't', 'its leases live on');
$guest->quit;
$node->poll_query_until('postgres',
	q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'other'})
  or die 'the session does not end';
value('ALTER DATABASE other RENAME TO renamed');
is(value("SELECT distlock_check('a', $other_token)", 'renamed'),
	't', 'leases of a renamed database live on');

value(q{SELECT distlock_force_release('a')}, 'renamed');
is( value(
		"SELECT count(distlock_acquire('fill ' || n, '1h')) FROM generate_series(1, $max_leases) n",
		'renamed'),
	$max_leases,
	'a database takes all leases there are');
like(sql_error($node, q{SELECT distlock_acquire('a')}),
	qr/ERROR:  53400: /, 'so that none is left for another');
value('DROP DATABASE renamed');
fills('DROP DATABASE');

# With sessions that hold and wait.
value('CREATE DATABASE other');
value('CREATE EXTENSION distlock', 'other');
my ($holder, $waiter) = map { session($node, 'other') } 1 .. 2;
# The holder's lease outlives its session: else the waiter could be granted it
# before its own session is terminated.
$holder->run(q{SELECT distlock_acquire('a', ttl => '1h')});
$waiter->send(q{SELECT distlock_acquire('a', scope => 'session')});
wait_for_queue($node, 'a', 1, 'other');
value('DROP DATABASE other WITH (FORCE)');
like($waiter->error, qr/FATAL:  57P01: /, 'DROP DATABASE WITH (FORCE): who waits is terminated');
fills('DROP DATABASE WITH (FORCE)');
$_->quit foreach $holder, $waiter;

# There is room for the tokens of 64 databases; it is given back too.
value('CREATE DATABASE model');
value('CREATE EXTENSION distlock', 'model');
foreach my $n (1 .. 65)
{
	value('CREATE DATABASE passing TEMPLATE model STRATEGY file_copy');
	my ($code, $stdout, $stderr) = $node->psql('passing', q{SELECT distlock_acquire('a')});
	value('DROP DATABASE passing');
	next if $code == 0 && $n < 65;
	is($stderr, '', "database $n to come and go");
	last;
}

$node->stop;
done_testing();
