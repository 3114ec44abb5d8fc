# Durable leases outlive whatever ends the server: a crash at any moment under
# load, a shutdown, the crash of one session.
#
# DISTLOCK_CRASHES is how often the postmaster is killed under load; see
# test/durable_crash.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockLoad;
use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What nobody flushes shall not get to disk by itself.  With fsync, a flush takes
# long enough to be hit by a crash.
my $node = distlock_node('main', conf => q{
fsync = on
wal_writer_delay = 10s
distlock.log_expirations = off
});
$node->safe_psql('postgres', 'CREATE TABLE work (name text); CREATE ROLE app');

my $crashes = $ENV{DISTLOCK_CRASHES} // 3;
my $seed = srand($ENV{DISTLOCK_TEST_SEED} // time);
note "DISTLOCK_TEST_SEED=$seed";

# What ends the server.  "meanwhile" runs when it has ended, or is ending.
my %end = (
	'kill -9' => sub {
		my ($meanwhile) = @_;
		crash($node, $meanwhile);
	},
	'immediate shutdown' => sub {
		my ($meanwhile) = @_;
		$node->stop('immediate');
		$meanwhile->();
		$node->start;
	},
	'fast shutdown' => sub {
		my ($meanwhile) = @_;
		$node->stop('fast');
		$meanwhile->();
		$node->start;
	},
	'crash of a session' => sub {
		my ($meanwhile) = @_;
		my $victim = session($node);
		crash_backend($node, $victim->pid);
		$victim->quit;
		$meanwhile->();
	});

sub sql
{
	return $node->safe_psql('postgres', @_);
}

sub judge
{
	my ($load, $test) = @_;

	is($load->complaints, '', $test);
	return;
}

# ---- One lease, and nothing else that could get it to disk ----

my $lease = session($node);
$lease->run('SET synchronous_commit = off');
my $token = $lease->run(q{SELECT distlock_acquire('one', '1 hour')});
crash($node);
is(sql("SELECT distlock_check('one', $token)"), 't', 'a lease, then a crash at once');

my $renewal = session($node);
$renewal->run('SET synchronous_commit = off');
$renewal->run("SELECT distlock_renew('one', $token, '5 hours')");
crash($node);
is(sql('SELECT token, ttl FROM distlock_leases'), "$token|05:00:00", 'a longer renewal, then a crash at once');
is(sql("SELECT distlock_release('one', $token)"), 't', 'it can be released');
$_->quit foreach $lease, $renewal;

# ---- Leases with a history ----

# Every end of the server finds the same leases.  The names say what is to be
# found of them: those of "old ..." are dead, whoever has come after.
my $prepare = q{
SELECT distlock_acquire('held', '1 hour');
SELECT distlock_acquire('shared', '1 hour', mode => 'shared')
FROM generate_series(1, 2);
SET ROLE app;
SELECT distlock_acquire(repeat('n', 255), '1 day', holder => repeat('h', 127));
RESET ROLE;

SELECT distlock_acquire('longer', '1 hour') AS token \gset
SELECT distlock_renew('longer', :token, '2 hours');
SELECT distlock_acquire('shorter', '1 hour') AS token \gset
SELECT distlock_renew('shorter', :token, '1 minute');

BEGIN;
SELECT distlock_acquire('in transaction', '1 hour');
SAVEPOINT s;
SELECT distlock_acquire('old savepoint', '1 hour');
ROLLBACK TO s;
COMMIT;
BEGIN;
SELECT distlock_acquire('old transaction', '1 hour');
ROLLBACK;
SELECT distlock_acquire('not released', '1 hour') AS token \gset
BEGIN;
SELECT distlock_release('not released', :token);
ROLLBACK;

SELECT distlock_acquire('old volatile', '1 hour') AS volatile,
	distlock_acquire('old session', '1 hour') AS session,
	distlock_acquire('old transaction scope', '1 hour') AS transaction,
	distlock_acquire('old durable', '1 hour') AS durable,
	distlock_acquire('old shared', '1 hour') AS shared,
	distlock_acquire('old forced', '1 hour') AS forced,
	distlock_acquire('old expired', '1 ms') AS expired \gset
SELECT distlock_release('old volatile', :volatile), distlock_release('old session', :session),
	distlock_release('old transaction scope', :transaction), distlock_release('old durable', :durable),
	distlock_release('old shared', :shared), distlock_force_release('old forced');
SELECT distlock_acquire('old volatile', '1 s', durable => false),
	distlock_acquire('old session', scope => 'session'),
	distlock_acquire('old transaction scope', scope => 'transaction'),
	distlock_acquire('old durable', '1 ms'),
	distlock_acquire('old shared', scope => 'session', mode => 'shared'),
	distlock_acquire('old forced', scope => 'session'),
	distlock_acquire('old expired', scope => 'session');

SELECT 'old volatile', :volatile UNION ALL SELECT 'old session', :session
UNION ALL SELECT 'old transaction scope', :transaction UNION ALL SELECT 'old durable', :durable
UNION ALL SELECT 'old shared', :shared UNION ALL SELECT 'old forced', :forced
UNION ALL SELECT 'old expired', :expired;
SELECT 'new: ' || count(*) FROM distlock_leases WHERE name ~ 'old' AND name <> 'old transaction'};

# Of each lease as it is to be found, but for its token.
my $expected = join "\n", map { join '|', @$_, 'lease', 't' } (
	[ 'held', 'exclusive', '01:00:00', '014_crash', 'postgres' ],
	[ 'in transaction', 'exclusive', '01:00:00', '014_crash', 'postgres' ],
	[ 'longer', 'exclusive', '02:00:00', '014_crash', 'postgres' ],
	[ 'n' x 255, 'exclusive', '24:00:00', 'h' x 127, 'app' ],
	[ 'not released', 'exclusive', '01:00:00', '014_crash', 'postgres' ],
	[ 'shared', 'shared', '01:00:00', '014_crash', 'postgres' ],
	[ 'shared', 'shared', '01:00:00', '014_crash', 'postgres' ],
	[ 'shorter', 'exclusive', '01:00:00', '014_crash', 'postgres' ]);

foreach my $end ('kill -9', 'immediate shutdown', 'fast shutdown', 'crash of a session')
{
	my $session = session($node);

	$session->run(q{SET application_name = '014_crash'});
	my @old = grep { /^old/ } split /\n/, $session->run($prepare);
	is(scalar(@old), 7, "$end: leases of before");
	my $leases = sql(q{SELECT string_agg(format('(%L, %s)', name, token), ', ')
		FROM distlock_leases WHERE name !~ 'old'});
	my $tokens = "(VALUES $leases) AS t (name, token)";
	my $greatest = sql('SELECT max(token) FROM distlock_leases');

	my $since = time;
	$end{$end}->(sub { });
	$session->quit;

	is( sql(q{SELECT name, mode, ttl, holder, owner, scope, durable FROM distlock_leases
			  WHERE name !~ 'old' ORDER BY name}),
		$expected, "$end: every lease is back, as it was");
	is( sql("SELECT count(*) FROM distlock_leases JOIN $tokens USING (name, token)
			 WHERE pid IS NULL AND distlock_check(name, token)"),
		8, "$end: under its token");
	is( sql("SELECT count(*) FROM distlock_leases WHERE name !~ 'old'
			 AND remaining <= ttl
			 AND expires_at >= greatest(to_timestamp($since), pg_postmaster_start_time()) + ttl - interval '1 ms'"),
		8, "$end: with its full time to live");
	is( sql("SELECT count(*) FROM $tokens WHERE distlock_try_acquire(name, scope => 'transaction') IS NOT NULL"),
		0, "$end: nobody else gets the lock");

	foreach my $old (@old)
	{
		my ($name, $token) = split /\|/, $old;

		like(
			sql_error($node, "SELECT distlock_renew('$name', $token)"),
			qr/ERROR:  LK001: /, "$end: $name: the token is dead");
	}
	is(sql(q{SELECT count(*) FROM distlock_leases WHERE name ~ 'old'
			 AND name NOT IN ('old transaction', 'old savepoint', 'old durable')}),
		0, "$end: no lease is back of which there was a successor");

	# They are leases as any other.
	sql(qq{
BEGIN;
SELECT distlock_guard(name, token) FROM $tokens;
INSERT INTO work SELECT name FROM $tokens;
COMMIT});
	is(sql('WITH w AS (DELETE FROM work RETURNING 1) SELECT count(*) FROM w'), 8,
		"$end: they guard commits");
	is(sql("SELECT count(distlock_renew(name, token, '1 minute')) FROM $tokens"),
		8, "$end: they are renewed");
	is( sql("SELECT count(*) FROM distlock_leases JOIN $tokens USING (name, token)
			 WHERE ttl = '1 minute' AND renewals = 1"),
		8, "$end: for the time asked for");
	is(sql("SELECT count(*) FROM $tokens WHERE distlock_release(name, token)"),
		8, "$end: they are released");
	is(sql("SELECT count(*) FROM $tokens WHERE distlock_release(name, token) OR distlock_check(name, token)"),
		0, "$end: and are over");
	is( sql("SELECT count(*) FROM (SELECT DISTINCT name FROM $tokens) t
			 WHERE distlock_acquire(name, scope => 'transaction') > $greatest"),
		7, "$end: the next tokens are greater");
	wait_until_cleared($node);
}

# ---- Again and again ----

$token = sql(q{SELECT distlock_acquire('again', '1 hour')});
crash($node);
crash($node);
is(sql(q{SELECT token FROM distlock_leases WHERE remaining > '59 minutes'}),
	$token, 'a second crash before the first use of the database');
sql(qq{SELECT distlock_renew('again', $token, '2 hours')});
crash($node);
is( sql(q{SELECT token, ttl, remaining > '119 minutes' FROM distlock_leases}),
	"$token|02:00:00|t",
	'a lease that was brought back, renewed, and brought back again');
sql(qq{SELECT distlock_release('again', $token)});

# ---- What has been released ----

# The worker is stopped, so that nobody clears images.
my $worker = freeze_worker($node);
$token = sql(q{SELECT distlock_acquire('released', '2 s')});
is(sql("SELECT distlock_release('released', $token)"), 't', 'released');
crash($node, sub { kill 'KILL', $worker });
my $back = sql(qq{
SELECT token = $token, remaining <= '2 s', expires_at < clock_timestamp() + '2 s'
FROM distlock_leases WHERE name = 'released'});
note 'the lease was not there any more' if $back eq '';
like($back, qr/^(t\|t\|t)?$/, 'released just before a crash: it comes back for no longer than its time to live');
cmp_ok(sql(q{SELECT distlock_acquire('released', scope => 'transaction')}),
	'>', $token, 'then the lock is free');
is(sql("SELECT distlock_check('released', $token)"), 'f', 'and the token dead');

# In a database where nobody does anything any more.
sql(q{
SELECT distlock_acquire('kept', '1 hour') AS kept,
	distlock_acquire('expired', '1 ms'),
	distlock_acquire('forced', '1 hour') \gset
SELECT distlock_force_release('forced');
BEGIN; SELECT distlock_acquire('undone', '1 hour'); ROLLBACK;
SELECT count(distlock_release(name, token))
FROM (SELECT 'released ' || g AS name, distlock_acquire('released ' || g, '1 hour') AS token
	  FROM generate_series(1, 100) g OFFSET 0) leases});
wait_until_cleared($node);
foreach my $end ('kill -9', 'fast shutdown')
{
	$end{$end}->(sub { });
	is(sql('SELECT name FROM distlock_leases'),
		'kept', "$end: of leases whose images have been cleared, none comes back");
}
sql(q{SELECT distlock_release(name, token) FROM distlock_leases});

# ---- Under load ----

my $load = DistlockLoad->new($node, 8);
my @rounds = map { 'kill -9' } 1 .. $crashes;
push @rounds, 'immediate shutdown', 'fast shutdown', 'crash of a session';

my $round = 0;
foreach my $end (@rounds)
{
	my $test = 'under load, ' . ++$round . ": $end";

	# Some crashes take all server processes at once, in the middle of whatever
	# they are at: one that has been stopped does nothing any more.
	my $at_once = $end eq 'kill -9' && $round % 2;
	$load->run(0.3 + rand 1.2, $at_once);
	my @frozen = $at_once ? freeze_server($node) : ();
	my $since = time;

	judge($load, "$test: nothing was refused that should not be");
	$load->strike;
	$end{$end}->(sub { kill 'KILL', @frozen; $load->end_sessions });
	my ($due, $untold) = $load->judge_recovery($since);
	judge($load, "$test: what was acknowledged and is not over is held again, and nothing else");
	cmp_ok($due, '>=', 5, "$test: $due leases were to be brought back, $untold more that were not acknowledged");
}

my $tokens = $load->judge_tokens;
judge($load, "no token comes twice, all grow: $tokens");
$load->judge_exclusion;
judge($load, 'no two leases that exclude each other were relied on at the same time');
my $writes = $load->judge_writes;
judge($load, "all guarded writes are there, in the order of the tokens: $writes");
cmp_ok($tokens, '>=', 100 * $round, 'enough of them to tell');
cmp_ok($writes, '>=', 10 * $round, 'likewise');

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC/, 'nothing failed inside the server');

done_testing();
