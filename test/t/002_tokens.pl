# Tokens only ever grow, whatever happens to the server, to the sequence that
# keeps their limit, or to the extension.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = distlock_node('main', conf => q{
distlock.log_expirations = off
allow_in_place_tablespaces = on
});

# Uses up so many tokens in one statement.  Each lease has expired before its
# lock's turn comes again.
sub burn
{
	my ($n) = @_;

	return "SELECT max(distlock_acquire('burn ' || n % 1000, '1 microsecond'))"
	  . " FROM generate_series(1, $n) n";
}

# More than a reserved range.
my $burn_a_range = burn(17000);

# The greatest token of database postgres that any client has been told of.
my $highest = 0;

sub told
{
	my ($token) = @_;

	$highest = $token if $token > $highest;
	return;
}

my $one_token = q{SELECT distlock_acquire('probe', scope => 'transaction')};

sub grows
{
	my ($test) = @_;
	my $token = $node->safe_psql('postgres', $one_token);

	cmp_ok($token, '>', $highest, "tokens grow: $test");
	told($token);
	return;
}

# The same in a copy of the database, which then goes its own way.
sub grows_in_copy
{
	my ($test, $dbname) = @_;
	my $token = $node->safe_psql($dbname, $one_token);

	cmp_ok($token, '>', $highest, "tokens grow: $test");
	crash($node);
	cmp_ok($node->safe_psql($dbname, $one_token), '>', $token, "tokens grow: $test, then a crash");
	return;
}

# Runs the statements, then asks for a token, first with no crash and then
# with one that leaves no time for anything else.
sub grows_after
{
	my ($test, $sql) = @_;

	$node->safe_psql('postgres', $sql);
	grows($test);
	$node->safe_psql('postgres', $sql);
	crash($node);
	grows("$test, then a crash at once");
	return;
}

# What is on disk; nothing beyond may have been handed out.
sub limits
{
	return split /\|/, $node->safe_psql('postgres',
		q{SELECT (SELECT last_value FROM distlock_token_seq),
				 (SELECT token_limit FROM distlock_control)});
}

# ---- Crashes under load ----

my $load = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
my $burner = PostgreSQL::Test::Utils::tempdir() . '/burner.sql';

append_to_file($load,
	join "\n",
	map { "SELECT distlock_acquire('lock ${\($_ % 3)}', scope => 'transaction');" }
	  1 .. 20000);
append_to_file($burner,
	"SELECT distlock_acquire('burn ' || n, '1 microsecond') FROM generate_series(1, 1000) n;\n" x 2000);

# The moments of the crashes; to repeat a run, give its seed.
my $seed = srand($ENV{DISTLOCK_TEST_SEED} // time);
note "DISTLOCK_TEST_SEED=$seed";

foreach my $round (1 .. 6)
{
	my @clients;

	foreach my $script ($load, $load, $load, $load, $burner)
	{
		my %client = (stdout => '', stderr => '');

		$client{psql} = IPC::Run::start(
			[
				$node->installed_command('psql'),
				'-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
				$node->connstr('postgres'), '-f', $script
			],
			'<', \undef,
			'>', \$client{stdout},
			'2>', \$client{stderr},
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
		push @clients, \%client;
	}

	# Let each of them get going, and strike at any moment.
	foreach my $client (@clients)
	{
		$client->{psql}->pump until $client->{stdout} =~ /\n/;
	}
	usleep(rand 400_000);
	crash($node, sub { $_->{psql}->finish foreach @clients });

	# No client is told of a token twice, or of a lower one after a higher one.
	my %seen;
	my $bad = 0;
	my $lowest;
	foreach my $client (@clients)
	{
		my $last = 0;

		foreach my $token ($client->{stdout} =~ /^([0-9]+)\n/mg)
		{
			$bad++ if $token <= $last || $seen{$token}++;
			$last = $token;
			$lowest = $token if !defined $lowest || $token < $lowest;
		}
	}
	note scalar(keys %seen) . ' tokens';
	is($bad, 0, "crash $round under load: tokens grow for each client, none comes twice");
	cmp_ok($lowest, '>', $highest, "crash $round under load: tokens grow across the crash before");
	told($_) foreach keys %seen;
	my ($in_sequence, $in_control) = limits();
	cmp_ok($in_sequence, '>=', $highest, "crash $round under load: the sequence covers all tokens");
	cmp_ok($in_control, '>=', $highest, "crash $round under load: the control row covers all tokens");
}
grows('crash under load');

# ---- The sequence ----

grows_after('setval', q{SELECT setval('distlock_token_seq', 1)});
grows_after('setval, not called', q{SELECT setval('distlock_token_seq', 1, false)});
grows_after('ALTER SEQUENCE RESTART', 'ALTER SEQUENCE distlock_token_seq RESTART');
grows_after('ALTER SEQUENCE RESTART rolled back',
	'BEGIN; ALTER SEQUENCE distlock_token_seq RESTART; ROLLBACK');
grows_after('nextval', q{SELECT nextval('distlock_token_seq')});

# What is reserved into a sequence that the transaction has rewritten is gone
# with it; a crash must find it elsewhere.
foreach my $end (qw(COMMIT ROLLBACK))
{
	told($node->safe_psql('postgres', qq{
BEGIN;
ALTER SEQUENCE distlock_token_seq RESTART;
$burn_a_range;
$end;
}));
	crash($node);
	grows("a range reserved in a transaction that restarts the sequence, $end, crash");
}

# A sequence that somebody has set ahead is followed.
$node->safe_psql('postgres', qq{SELECT setval('distlock_token_seq', $highest + 1000000)});
crash($node);
told($highest + 1000000);
grows('setval ahead, then a crash at once');

# ---- Whole ranges ----

is( $node->safe_psql(
		'postgres', q{
SELECT count(*), bool_and(token > previous), max(token) - min(token) >= 59999
FROM (SELECT token, lag(token, 1, 0::bigint) OVER (ORDER BY n) AS previous
	  FROM (SELECT n, distlock_acquire('range ' || n % 1000, '1 microsecond') AS token
			FROM generate_series(1, 60000) n OFFSET 0) granted) ordered}),
	'60000|t|t',
	'ranges are used up within one statement');
grows('ranges used up within one statement');

# Sessions that queue for one lock note their tokens while they hold it, so
# that n tells the order of the grants.  Others use up range after range, so
# that some hand-over finds no token left.
$node->safe_psql('postgres',
	'CREATE SEQUENCE grants; CREATE TABLE granted (token bigint, n bigint)');
my $hot = PostgreSQL::Test::Utils::tempdir() . '/hot.sql';
my $cold = PostgreSQL::Test::Utils::tempdir() . '/cold.sql';
append_to_file($hot, q{
INSERT INTO granted
SELECT token, nextval('grants')
FROM (SELECT distlock_acquire('hot', scope => 'transaction') AS token OFFSET 0) hot;
});
append_to_file($cold,
	q{SELECT count(distlock_acquire('cold ' || n, '1 microsecond')) FROM generate_series(1, 5000) n;});
$node->command_ok(
	[
		'pgbench', '-n', '-c', '10', '-j', '2', '-t', '60',
		'-f', "$hot\@9", '-f', "$cold\@1", 'postgres'
	],
	'ranges are used up under a queue');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) > 100, bool_and(token > previous)
FROM (SELECT token, lag(token, 1, 0::bigint) OVER (ORDER BY n) AS previous
	  FROM granted) ordered}),
	't|t',
	'tokens grow in the order of the grants');
grows('ranges used up under a queue');

# ---- Transactions that write nothing ----

is( $node->safe_psql(
		'postgres', qq{
BEGIN READ ONLY;
SELECT max(token) > $highest, pg_current_xact_id_if_assigned() IS NULL
FROM (SELECT distlock_acquire('burn ' || n % 1000, '1 microsecond') AS token
	  FROM generate_series(1, 17000) n) granted;
COMMIT}),
	't|t',
	'a range is reserved in a read-only transaction, without a transaction id');
crash($node);
is( $node->safe_psql(
		'postgres', qq{
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT distlock_acquire('probe', '1 microsecond') > $highest + 17000,
	pg_current_xact_id_if_assigned() IS NULL;
COMMIT}),
	't|t',
	'the first token after a crash is granted in a read-only transaction');

# ---- Others that lock the sequence ----

# lock_timeout ends any statement that waits for a lock at all.
my $owner = session($node);
my $user = session($node);
my $token = $user->run(q{SELECT distlock_acquire('probe', '1 microsecond')});
my ($limit) = limits();

cmp_ok($limit - $token, '>', 8192, 'half a range is left');
$owner->run('BEGIN; ALTER SEQUENCE distlock_token_seq CACHE 1');
is(sql_error($node, q{SET lock_timeout = '1ms'; SELECT distlock_acquire('probe', '1 microsecond')}),
	'',
	'ALTER SEQUENCE under way does not delay a new session');
$user->send(q{SET lock_timeout = '1ms'; } . burn($limit - $token - 1000));
is($user->error, '', 'ALTER SEQUENCE under way delays nobody while tokens are left');
$user->send(q{SET lock_timeout = '200ms'; } . burn(2000));
like($user->error, qr/ERROR:  55P03: /, 'lock_timeout ends the wait for it when tokens are scarce');
my $pid = $user->run('SELECT pg_backend_pid()');
$user->send(q{SET lock_timeout = 0; } . burn(2000));
# A worker that tidies up may wait as well.
$node->poll_query_until(
	'postgres', qq{
SELECT count(*) = 1 FROM pg_locks
WHERE relation = 'distlock_token_seq'::regclass AND NOT granted AND pid = $pid})
  or die 'nobody waits for the sequence';
$owner->run('ROLLBACK');
cmp_ok($user->result, '>', $limit, 'when it is over, tokens are reserved and requests go on');
$_->quit foreach $owner, $user;
told($limit);
grows('ALTER SEQUENCE rolled back');

# ---- The control row ----

foreach my $role (qw(origin replica))
{
	foreach my $sql (
		'INSERT INTO distlock_control VALUES (1)',
		'UPDATE distlock_control SET token_limit = 1',
		'DELETE FROM distlock_control',
		'TRUNCATE distlock_control',
		q{COPY distlock_control (token_limit) FROM PROGRAM 'echo 1'})
	{
		like(
			sql_error($node, "SET session_replication_role = $role; $sql"),
			qr/ERROR:  55000: .*distlock_control/,
			"refused as $role: $sql");
	}
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM distlock_control'),
	1, 'the control row is there');

$node->safe_psql('postgres', q{CREATE TABLESPACE elsewhere LOCATION ''});
foreach my $rewrite (
	'VACUUM FULL distlock_control',
	'VACUUM (FREEZE) distlock_control',
	'ALTER TABLE distlock_control SET TABLESPACE elsewhere',
	'ALTER TABLE distlock_control SET TABLESPACE pg_default',
	'ALTER TABLE distlock_control ALTER token_limit TYPE bigint USING token_limit + 0',
	'CREATE INDEX distlock_control_idx ON distlock_control (token_limit);'
	. ' CLUSTER distlock_control USING distlock_control_idx;'
	. ' DROP INDEX distlock_control_idx')
{
	$node->safe_psql('postgres', $rewrite);
	told($node->safe_psql('postgres', $burn_a_range));
	# The sequence shall be no help.
	$node->safe_psql('postgres', q{SELECT setval('distlock_token_seq', 1)});
	crash($node);
	grows("$rewrite, then a crash");
}

# A limit written to a relation that may be rolled back would be lost.
like(
	sql_error(
		$node,
		"BEGIN; ALTER TABLE distlock_control SET TABLESPACE elsewhere; $burn_a_range; COMMIT"
	),
	qr/ERROR:  55000: /,
	'a range is not reserved into a control row that the transaction has rewritten');
grows('a rewrite rolled back');

foreach my $change (
	[ 'SEQUENCE', 'distlock_token_seq' ],
	[ 'TABLE', 'distlock_control' ])
{
	my ($kind, $relation) = @$change;

	# In 15 and later both can be made unlogged.  A crash then empties the
	# relation, so there is no telling what has been handed out.
	$node->safe_psql('postgres', "ALTER $kind $relation SET UNLOGGED");
	like(
		sql_error($node, $burn_a_range),
		qr/ERROR:  55000: .*HINT:  .*LOGGED/s,
		"$relation unlogged: no range is reserved");
	$node->safe_psql('postgres', "ALTER $kind $relation SET LOGGED");
	told($node->safe_psql('postgres', $burn_a_range));
	crash($node);
	grows("$relation unlogged and logged again, then a crash");
}

# A crash resets an unlogged sequence; the control row knows better.
$node->safe_psql('postgres', 'ALTER SEQUENCE distlock_token_seq SET UNLOGGED');
crash($node);
like(
	sql_error($node, q{SELECT distlock_acquire('a')}),
	qr/ERROR:  55000: .*HINT:  .*LOGGED/s,
	'after a crash with the sequence unlogged: refused');
$node->safe_psql('postgres', 'ALTER SEQUENCE distlock_token_seq SET LOGGED');
grows('the sequence lost in a crash');

# ---- DROP and CREATE EXTENSION ----

my $again = 'DROP EXTENSION distlock; CREATE EXTENSION distlock';

told($node->safe_psql('postgres', $burn_a_range));
$node->safe_psql('postgres', $again);
grows('DROP and CREATE EXTENSION');
crash($node);
grows('DROP and CREATE EXTENSION, a token, a crash');

$node->safe_psql('postgres', "BEGIN; $again; COMMIT");
grows('DROP and CREATE EXTENSION in one transaction');
crash($node);
grows('DROP and CREATE EXTENSION in one transaction, a token, a crash');

told($node->safe_psql('postgres', "BEGIN; $again; $one_token; ROLLBACK"));
grows('DROP and CREATE EXTENSION rolled back after a token');

told($node->safe_psql('postgres', "BEGIN; $again; $one_token; ROLLBACK"));
crash($node);
grows('DROP and CREATE EXTENSION rolled back after a token, then a crash');

# What this transaction reserves stands in relations that a crash undoes,
# while those of before come back.  It may refuse, but not hand out twice.  A
# lease could not even be stored there, with wal_level = minimal.
my $stdout = '';
my $stderr = '';
$node->psql('postgres', "BEGIN; $again; SET LOCAL distlock.durable = off; $burn_a_range; ROLLBACK",
	stdout => \$stdout, stderr => \$stderr);
like("$stdout$stderr", qr/^[0-9]+$|ERROR/, 'a range used up by a transaction that creates the extension again');
told($1) if $stdout =~ /([0-9]+)/;
crash($node);
grows('a range used up by a transaction that creates the extension again, rolled back, crash');

# A session that lives through all that.
my $old = session($node);
told($old->run(q{SELECT distlock_acquire('probe', '1 microsecond')}));
$node->safe_psql('postgres', $again);
$token = $old->run(q{SELECT distlock_acquire('probe', '1 microsecond')});
cmp_ok($token, '>', $highest, 'tokens grow: for a session older than the extension');
told($token);
$old->quit;
crash($node);
grows('DROP and CREATE EXTENSION, a token to an older session, a crash');

# ---- Copies ----

told($node->safe_psql('postgres', $burn_a_range));
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
foreach my $format (qw(plain custom))
{
	my $dbname = "restored_$format";

	$node->command_ok([ 'pg_dump', '-F', $format, '-f', "$dump.$format", 'postgres' ],
		"pg_dump, format $format");
	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	$node->command_ok(
		$format eq 'plain'
		? [ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $dbname, '-f', "$dump.$format" ]
		: [ 'pg_restore', '-e', '-d', $dbname, "$dump.$format" ],
		"restore, format $format");
	grows_in_copy("a restored dump, format $format", $dbname);
}

foreach my $strategy (qw(wal_log file_copy))
{
	$node->safe_psql('postgres',
		"CREATE DATABASE copy_$strategy TEMPLATE postgres STRATEGY $strategy");
	crash($node);
	grows_in_copy("a copied database, $strategy", "copy_$strategy");
}

$node->stop;
done_testing();
