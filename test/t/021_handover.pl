
# A release takes effect when its transaction is visible and its locks are
# gone, and a statement or pipeline that fails leaves nothing behind.
#
# All clients of a pgbench run take turns under one lock, so each of them is
# releaser and successor in turn.  A turn locks the table that the turn before
# had locked, without waiting, uses the names that it has given, and goes on
# from the row that it has left; any error aborts the client and fails the run.
# No wait is without limit, so that a lost wake-up fails it, too.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 6;
my $rounds = 100;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf(
	'postgresql.conf', q{
shared_preload_libraries = 'distlock'
fsync = off
autovacuum = off
});
$node->start;

# The partitions make a commit's locks and invalidations many, and with them
# the time between its visibility and its end.
$node->safe_psql(
	'postgres', q{
CREATE EXTENSION distlock;

CREATE TABLE turns (turn integer PRIMARY KEY, token bigint);
INSERT INTO turns VALUES (0, 0);
CREATE TABLE work (id integer, c0 integer) PARTITION BY LIST (id);
DO $$
BEGIN
	FOR i IN 1..20 LOOP
		EXECUTE format('CREATE TABLE work%s PARTITION OF work FOR VALUES IN (%s)', i, i);
	END LOOP;
END $$;
CREATE FUNCTION generation() RETURNS integer LANGUAGE sql RETURN 1;
CREATE SEQUENCE generations;
SELECT nextval('generations');
CREATE SEQUENCE turns_before MINVALUE 0;

-- Take the turn that follows the last one seen.
CREATE FUNCTION take_turn(my_token bigint DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	last integer := max(turn) FROM turns;
BEGIN
	my_token := coalesce(my_token,
		(SELECT token FROM distlock_leases WHERE name = 'handover'));
	EXECUTE format('SELECT c%s FROM work', last);
	EXECUTE format('ALTER TABLE work RENAME c%s TO c%s', last, last + 1);
	INSERT INTO turns VALUES (last + 1, my_token);
	IF NOT distlock_release('handover', my_token) THEN
		RAISE 'turn % was without a lease', last + 1;
	END IF;
END $$;

-- Take the turn that follows the generation that the caller has seen.
CREATE FUNCTION take_generation(seen integer, my_token bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	last integer := max(turn) FROM turns;
	last_generation integer := last_value FROM generations;
BEGIN
	IF seen <> last_generation THEN
		RAISE 'generation % was called after generation % was made', seen, last_generation;
	END IF;
	EXECUTE format('CREATE OR REPLACE FUNCTION generation() RETURNS integer LANGUAGE sql RETURN %s',
				   nextval('generations'));
	INSERT INTO turns VALUES (last + 1, my_token);
	IF NOT distlock_release('handover', my_token) THEN
		RAISE 'turn % was without a lease', last + 1;
	END IF;
END $$;
});

# Run the script with all clients and look at the turns they took.
sub take_turns
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($name, $protocol, $script) = @_;
	my $turns = $clients * $rounds;

	(my $file = $name) =~ s/\W+/_/g;
	my $contended =
	  $node->safe_psql('postgres', 'SELECT contended FROM distlock_stats');
	$node->safe_psql('postgres',
		"SELECT setval('turns_before', max(turn)) FROM turns");
	$node->pgbench(
		"--no-vacuum --client=$clients --transactions=$rounds --protocol=$protocol",
		0,
		[qr{actually processed: $turns/$turns}],
		[qr{^$}],
		"$name: every turn found its predecessor's work done",
		{ $file => $script });
	is( $node->safe_psql(
			'postgres', q{
SELECT count(*), bool_and(increasing)
FROM (SELECT turn, token > lag(token) OVER (ORDER BY turn) AS increasing FROM turns) t
WHERE turn > (SELECT last_value FROM turns_before)}),
		"$turns|t",
		"$name: tokens increase with the turns");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM distlock_leases'),
		'0', "$name: no lease is left");
	cmp_ok(
		$node->safe_psql('postgres', 'SELECT contended FROM distlock_stats'),
		'>', $contended, "$name: clients have waited");
}

# The lease acquired in the transaction of the turn.  All of it is one message,
# so that the LOCK follows the wake-up without a round trip between.
take_turns('one message', 'simple', q{
SELECT distlock_acquire('handover', '1h', '3min') \; LOCK TABLE work NOWAIT \; SELECT take_turn();
});

# The same in PL/pgSQL.
take_turns('one statement', 'prepared', q{
DO $$
BEGIN
	PERFORM distlock_acquire('handover', '1h', '3min');
	LOCK TABLE work NOWAIT;
	PERFORM take_turn();
END $$;
});

# The same in a pipeline, which commits at its end.
take_turns('pipeline', 'prepared', q{
\startpipeline
SELECT distlock_acquire('handover', '1h', '3min');
DO $$ BEGIN LOCK TABLE work NOWAIT; PERFORM take_turn(); END $$;
\endpipeline
});

# As most applications do it: acquire, then a transaction, then release in it.
# (Of session scope, so that a client that fails does not hold up the others.)
take_turns('transaction', 'simple', q{
SELECT distlock_acquire('handover', NULL, '3min', scope => 'session') AS token \gset
BEGIN;
LOCK TABLE work NOWAIT;
SELECT take_turn(:token);
COMMIT;
});
take_turns('transaction of prepared statements', 'prepared', q{
SELECT distlock_acquire('handover', NULL, '3min', scope => 'session') AS token \gset
BEGIN;
LOCK TABLE work NOWAIT;
SELECT take_turn(:token);
COMMIT;
});

# Calling a function takes no lock, so nothing but the invalidations that the
# releaser has sent tells the successor, which has the old one in its cache,
# that there is a new one.
take_turns('function', 'simple', q{
SELECT generation();
SELECT distlock_acquire('handover', NULL, '3min', scope => 'session') AS token \gset
SELECT generation() AS generation \gset
SELECT take_generation(:generation, :token);
});
take_turns('function, in a transaction', 'simple', q{
BEGIN;
SELECT generation();
SELECT distlock_acquire('handover', '1h', '3min') AS token \gset
SELECT generation() AS generation \gset
SELECT take_generation(:generation, :token);
COMMIT;
});
take_turns('function, in a transaction of prepared statements', 'prepared', q{
BEGIN;
SELECT generation();
SELECT distlock_acquire('handover', '1h', '3min') AS token \gset
SELECT generation() AS generation \gset
SELECT take_generation(:generation, :token);
COMMIT;
});

# A message of several statements is one transaction, unless it says otherwise.
sub psql_message
{
	my ($message) = @_;
	my ($out, $err) = ('', '');

	# No warning that COMMIT is not in a block.
	local $ENV{PGOPTIONS} = '-c client_min_messages=error';
	my $result = IPC::Run::run [
		'psql', '-XAtq', '-d', $node->connstr('postgres'),
		'-v', 'VERBOSITY=sqlstate', '-c', $message
	  ],
	  '>', \$out, '2>', \$err;

	chomp($out, $err);
	return ($result ? 'ok' : 'failed', $err);
}

sub leases
{
	return $node->safe_psql('postgres',
		"SELECT coalesce(string_agg(name, ' ' ORDER BY name), 'none') FROM distlock_leases"
	);
}

sub undone
{
	return $node->safe_psql('postgres', 'SELECT undone FROM distlock_stats');
}

my $undone = undone();
is_deeply(
	[ psql_message("SELECT distlock_acquire('a', '1h', '0'); SELECT 1 / 0") ],
	[ 'failed', 'ERROR:  22012' ],
	'message: error after acquire');
is(leases(), 'none', 'message: no lease is left');
is(undone(), $undone + 1, 'message: there was one');

is_deeply(
	[   psql_message(
			"SELECT distlock_acquire('a', '1h', '0'); COMMIT; SELECT distlock_acquire('b', '1h', '0'); SELECT 1 / 0"
		)
	],
	[ 'failed', 'ERROR:  22012' ],
	'message: error after COMMIT');
is(leases(), 'a', 'message: the committed lease is left');

my $release =
  "SELECT distlock_release(name, token) FROM distlock_leases WHERE name = 'a'";
is_deeply(
	[ psql_message("$release; SELECT 1 / 0") ],
	[ 'failed', 'ERROR:  22012' ],
	'message: error after release');
is(leases(), 'a', 'message: the lease is not released');
is_deeply(
	[ psql_message("$release; SELECT distlock_acquire('a', '1h', '0')") ],
	[ 'failed', 'ERROR:  55000' ],
	'message: acquire after release');
is(leases(), 'a', 'message: the lease is not released by that either');
is_deeply(
	[ psql_message("$release; COMMIT; SELECT distlock_acquire('b', '1h', '0')") ],
	[ 'ok', '' ],
	'message: acquire after COMMIT of the release');
is(leases(), 'b', 'message: released and acquired');
$node->safe_psql('postgres', "SELECT distlock_force_release('b')");

# A pipeline is one transaction up to its Sync, which \endpipeline sends.
$undone = undone();
$node->pgbench(
	'--no-vacuum --client=1 --transactions=1 --protocol=extended',
	2,
	[qr{actually processed: 0/1}],
	[qr{division by zero}],
	'pipeline: error after acquire',
	{
		pipeline_error => q{
\startpipeline
SELECT distlock_acquire('a', '1h', '0');
SELECT distlock_acquire('b', '1h', '0');
SELECT 1 / 0;
\endpipeline
}
	});
is(leases(), 'none', 'pipeline: no lease is left');
is(undone(), $undone + 2, 'pipeline: there were two');

$node->pgbench(
	'--no-vacuum --client=1 --transactions=1 --protocol=extended',
	2,
	[qr{actually processed: 0/1}],
	[qr{division by zero}],
	'pipeline: error in the second one',
	{
		pipeline_second => q{
\startpipeline
SELECT distlock_acquire('a', '1h', '0');
\endpipeline
\startpipeline
SELECT distlock_release(name, token) FROM distlock_leases WHERE name = 'a';
SELECT 1 / 0;
\endpipeline
}
	});
is(leases(), 'a', 'pipeline: the lease of the first one is left');

$node->stop;

done_testing();
