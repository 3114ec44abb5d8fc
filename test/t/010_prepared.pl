# A prepared transaction that was guarded: checked at PREPARE TRANSACTION, it
# keeps from its locks whomever its leases excluded, until it is committed or
# rolled back, whatever becomes of the leases, the session and the server.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# Without autovacuum, the lock table belongs to the sessions below.
my $max_leases = 64;
my $node = distlock_node(
	'main',
	init => { allows_streaming => 1 },
	conf => qq{
max_connections = 20
max_prepared_transactions = 20
distlock.max_leases = $max_leases
distlock.failover_grace = off
autovacuum = off
});

$node->safe_psql('postgres', 'CREATE TABLE done (what text)');

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub acquire
{
	my ($name, $mode) = @_;

	$mode //= 'exclusive';
	return value("SELECT distlock_acquire('$name', '1h', mode => '$mode')");
}

# Write a row that bears the name of the transaction, and prepare it; each guard
# is the name of a lock and a token.
sub prepare
{
	my ($gid, @guards) = @_;
	my @statements = ('BEGIN', "INSERT INTO done VALUES ('$gid')");

	push @statements, "SELECT distlock_guard('$_->[0]', $_->[1])" foreach @guards;
	return join ";\n", @statements, "PREPARE TRANSACTION '$gid'";
}

# Leave a transaction prepared under the name of the lock, and the lock free.
sub leave_prepared
{
	my ($name, $mode) = @_;
	my $token = acquire($name, $mode);

	value(prepare($name, [ $name, $token ]));
	value("SELECT distlock_release('$name', $token)");
	return;
}

# How many tags are held, and by how many transactions that are prepared.
sub tags
{
	return value(
		q{SELECT count(*), count(*) FILTER (WHERE pid IS NULL) FROM pg_locks
		  WHERE locktype = 'advisory' AND objsubid = 25708});
}

# A session that acquires the lock and then looks for the row of a transaction,
# by default of that name.
sub successor
{
	my ($name, $arguments, $gid) = @_;
	my $session = session($node);

	$gid //= $name;
	$arguments //= '';
	$session->send(
		qq{SELECT distlock_acquire('$name', '1h'$arguments) > 0;
		   SELECT count(*) FROM done WHERE what = '$gid'});
	return $session;
}

# It stands at the head of the queue, and waits for a prepared transaction.
sub waits
{
	my ($session) = @_;

	wait_for_event($node, $session->pid, 'advisory');
	return;
}

# The successor has got the lock, silently, and sees the row or does not.
sub succeeds
{
	my ($session, $nrows, $test) = @_;

	is_deeply([ $session->get ], [ "t\n$nrows", '' ], $test);
	return;
}

sub free
{
	my ($name) = @_;

	value("SELECT distlock_force_release('$name')");
	return;
}

# What is prepared under the name of the lock keeps the lock until it ends.
sub is_kept
{
	my ($name, $end, $test) = @_;
	my $next;

	is(value("SELECT distlock_try_acquire('$name') IS NULL"),
		't', "$test: try_acquire returns null at once");
	$next = successor($name);
	waits($next);
	is(value("SELECT distlock_try_acquire('beside $name', '1ms') > 0"),
		't', "$test: other names are not delayed");
	value("$end PREPARED '$name'");
	succeeds($next, $end eq 'COMMIT' ? 1 : 0, "$test: the next one has the lock after $end PREPARED");
	$next->quit;
	free($name);
	is(value("SELECT distlock_try_acquire('$name') > 0"), 't', "$test: nothing delays the one after");
	free($name);
	return;
}

# Ways to end a lease, given the name, the token and the session that holds it.
my %ends = (
	'released' => sub { value("SELECT distlock_release('$_[0]', $_[1])") },
	'expired' => sub { value("SELECT distlock_renew('$_[0]', $_[1], '1ms')") },
	'forced' => sub { free($_[0]) },
	'session ended' => sub { $_[2]->quit });

sub hold
{
	my ($name, $way) = @_;
	my $holder = session($node);
	my $arguments = $way eq 'session ended' ? q{scope => 'session'} : q{'1h'};

	return ($holder, $holder->run("SELECT distlock_acquire('$name', $arguments)"));
}

# ---- The lease is over before PREPARE ----

foreach my $way (sort keys %ends)
{
	my ($holder, $token) = hold('a', $way);
	my $session = session($node);

	$session->run("BEGIN; INSERT INTO done VALUES ('stale'); SELECT distlock_guard('a', $token)");
	$ends{$way}->('a', $token, $holder);
	$node->poll_query_until('postgres', "SELECT NOT distlock_check('a', $token)")
	  or die 'the lease does not end';
	$session->send(q{PREPARE TRANSACTION 'stale'});
	like($session->error, qr/ERROR:  LK001: lease of lock "a" under token $token is lost/,
		"$way before PREPARE: refused");
	is(value('SELECT count(*) FROM pg_prepared_xacts'), 0, "$way before PREPARE: nothing is prepared");
	is(tags(), '0|0', "$way before PREPARE: no tag is held");
	is(value(q{SELECT distlock_try_acquire('a') > 0}), 't', "$way before PREPARE: nobody is delayed");
	free('a');
	$_->quit foreach $holder, $session;
}
is(value(q{SELECT count(*) FROM done WHERE what = 'stale'}), 0, 'nothing is written');

# A PREPARE that fails for a reason of its own keeps nobody from anything.
{
	my $token = acquire('a');

	value(prepare('taken'));
	like(
		sql_error($node, prepare('taken', [ 'a', $token ])),
		qr/ERROR:  42710: /,
		'a name that is taken: refused');
	is(value("SELECT distlock_release('a', $token)"), 't', 'a name that is taken: the lease stays');
	is(value(q{SELECT distlock_try_acquire('a') > 0}), 't', 'a name that is taken: nobody is delayed');
	free('a');
	value(q{ROLLBACK PREPARED 'taken'});
}

# ---- The lease is over after PREPARE ----

foreach my $way (sort keys %ends)
{
	foreach my $end ('COMMIT', 'ROLLBACK')
	{
		my $name = "$way, $end";
		my ($holder, $token) = hold($name, $way);
		my $session = $way eq 'session ended' ? $holder : session($node);

		$session->run(prepare($name, [ $name, $token ]));
		is(tags(), '1|1', "$name: the prepared transaction holds a tag");
		$ends{$way}->($name, $token, $holder);
		is_kept($name, $end, $name);
		is(tags(), '0|0', "$name: the tag is gone");
		$_->quit foreach $holder, $session;
	}
}

# The lease outlives its prepared transactions, or some of them.
{
	my $token = acquire('a');
	my $next;

	value(prepare("early $_", [ 'a', $token ])) foreach 1 .. 2;
	value(q{COMMIT PREPARED 'early 1'});
	$next = successor('a', '', 'early 2');
	wait_for_queue($node, 'a', 1);
	value("SELECT distlock_release('a', $token)");
	waits($next);
	value(q{COMMIT PREPARED 'early 2'});
	succeeds($next, 1, 'two were prepared: the next one waits for both');
	$next->quit;
	free('a');

	$token = acquire('a');
	value(prepare('early 3', [ 'a', $token ]));
	value(q{COMMIT PREPARED 'early 3'});
	value("SELECT distlock_release('a', $token)");
	is(value(q{SELECT distlock_try_acquire('a') > 0}), 't', 'committed before the release: no delay');
	free('a');
}

# Somebody waits already when the lease expires behind a prepared transaction.
{
	my ($holder, $token) = hold('a', 'expired');
	my $next = successor('a', '', 'expired 1');

	wait_for_queue($node, 'a', 1);
	$holder->run(prepare('expired 1', [ 'a', $token ]));
	$ends{expired}->('a', $token);
	waits($next);
	value(q{COMMIT PREPARED 'expired 1'});
	succeeds($next, 1, 'who waits already waits for the prepared transaction too');
	free('a');
	$_->quit foreach $holder, $next;
}

# ---- Who waits gives up ----

my $is_prepared = qr/DETAIL:  A prepared transaction that an earlier lease of the lock guards/;
my %ways = (
	'cancelled' => {
		end => 'pg_cancel_backend',
		error => qr/ERROR:  57014: /,
	},
	'terminated' => {
		end => 'pg_terminate_backend',
		error => qr/FATAL:  57P01: /,
	},
	'statement_timeout' => {
		setup => q{SET statement_timeout = '300ms'},
		error => qr/ERROR:  57014: .*statement timeout/,
	},
	'lock_timeout' => {
		setup => q{SET lock_timeout = '300ms'},
		error => qr/ERROR:  55P03: .*lock timeout.*$is_prepared/s,
	},
	'wait is over' => {
		wait => '300ms',
		error => qr/ERROR:  55P03: could not obtain lock "wait is over".*$is_prepared/s,
	});

foreach my $way (sort keys %ways)
{
	my %way = %{ $ways{$way} };
	my $wait = defined $way{wait} ? ", wait => '$way{wait}'" : '';
	my $first = session($node);
	my $second;

	leave_prepared($way);
	$first->run($way{setup}) if $way{setup};
	$first->send("SELECT distlock_acquire('$way', '1h'$wait)");

	# Those whose time is short may be gone before we look.
	waits($first) if $way{end};
	$second = successor($way);
	wait_for_queue($node, $way, 2) if $way{end};
	value("SELECT $way{end}(" . $first->pid . ')') if $way{end};
	like($first->error, $way{error}, $way);
	waits($second);
	is( value("SELECT pid, position, blocked_by_tokens, blocked_by_pids FROM distlock_waiters WHERE name = '$way'"),
		$second->pid . '|1|{}|{0}',
		"$way: the next one is the head of the queue");
	is(value("SELECT distlock_try_acquire('$way') IS NULL"), 't', "$way: and still waits");
	value("COMMIT PREPARED '$way'");
	succeeds($second, 1, "$way: the next one has the lock when the transaction is committed");
	free($way);
	$_->quit foreach $first, $second;
}

leave_prepared('b');
is(value(q{SELECT distlock_try_acquire('b', wait => '300ms') IS NULL}), 't',
	'try_acquire returns null at the end of its wait');
like(sql_error($node, q{SELECT distlock_acquire('b', wait => '0')}),
	$is_prepared, 'the detail names the prepared transaction');

# A wait that has an end goes on within its transaction, and gives the tag back.
{
	my $next = session($node);

	$next->run('BEGIN');
	$next->send(q{SELECT distlock_acquire('b', '1h', wait => '1h') > 0});
	waits($next);
	value(q{COMMIT PREPARED 'b'});
	is_deeply([ $next->get ], [ 't', '' ], 'a wait that has an end succeeds');
	is(tags(), '0|0', 'and gives the tag back');
	$next->run('ROLLBACK');
	is(value(q{SELECT distlock_try_acquire('b') > 0}), 't', 'its lease is undone with its transaction');
	free('b');
	$next->quit;
}

# A block that catches the cancel goes on with its own transaction.
{
	my $next = session($node);

	leave_prepared('a');
	$next->send(
		q{DO $$
BEGIN
	INSERT INTO done VALUES ('before');
	BEGIN
		INSERT INTO done VALUES ('undone');
		PERFORM distlock_acquire('a', '1h', wait => '1h');
	EXCEPTION WHEN query_canceled THEN
		INSERT INTO done VALUES ('caught');
	END;
END $$});
	waits($next);
	value('SELECT pg_cancel_backend(' . $next->pid . ')');
	is($next->error, '', 'a cancel is caught');
	is( value(
			q{SELECT string_agg(what, ' ' ORDER BY what) FROM done WHERE what IN ('before', 'undone', 'caught')}
		),
		'before caught',
		'a cancel is caught: what its block had done is undone, nothing else');
	is_kept('a', 'COMMIT', 'a cancel is caught');
	$next->quit;
}

# ---- Modes ----

{
	my @tokens = map { acquire('shared', 'shared') } 1 .. 3;
	my ($reader, $writer);

	value(prepare('by one', [ 'shared', $tokens[0] ]));
	value(prepare('by two', map { [ 'shared', $_ ] } @tokens[ 1, 2 ]));
	value("SELECT distlock_release('shared', $_)") foreach @tokens;
	$reader = value(q{SELECT distlock_try_acquire('shared', '1h', mode => 'shared')});
	like($reader, qr/^[0-9]+$/, 'a shared lease is not delayed by those prepared under shared ones');
	$writer = successor('shared', '', 'by two');
	wait_for_queue($node, 'shared', 1);
	value("SELECT distlock_release('shared', $reader)");
	waits($writer);
	value(q{COMMIT PREPARED 'by one'});
	waits($writer);
	is(value(q{SELECT distlock_try_acquire('shared') IS NULL}),
		't', 'an exclusive one waits for each of them');
	value(q{COMMIT PREPARED 'by two'});
	succeeds($writer, 1, 'an exclusive one has the lock after the last of them');
	$writer->quit;
	free('shared');

	leave_prepared('exclusive');
	is(value(q{SELECT distlock_try_acquire('exclusive', mode => 'shared') IS NULL}),
		't', 'a shared lease is delayed by what was prepared under an exclusive one');
	$reader = successor('exclusive', q{, mode => 'shared'});
	waits($reader);
	value(q{COMMIT PREPARED 'exclusive'});
	succeeds($reader, 1, 'and has the lock afterwards');
	free('exclusive');
	$reader->quit;
}

# ---- Several guards ----

{
	my %tokens = map { $_ => acquire($_) } 'one', 'two', 'undone';
	my @next;

	value(
		qq{BEGIN;
INSERT INTO done VALUES ('several');
SELECT distlock_guard('one', $tokens{one});
SAVEPOINT s;
SELECT distlock_guard('undone', $tokens{undone});
ROLLBACK TO SAVEPOINT s;
SAVEPOINT s;
SELECT distlock_guard('two', $tokens{two});
RELEASE SAVEPOINT s;
PREPARE TRANSACTION 'several'});
	is(tags(), '2|2', 'each lock that guards the transaction has its tag held');
	value("SELECT distlock_release('$_', $tokens{$_})") foreach keys %tokens;
	is(value(q{SELECT distlock_try_acquire('undone') > 0}),
		't', 'a guard that was rolled back keeps nobody from its lock');
	@next = map { successor($_, '', 'several') } 'one', 'two';
	waits($_) foreach @next;
	value(q{COMMIT PREPARED 'several'});
	succeeds($_, 1, 'each of two guards keeps its lock') foreach @next;
	free($_) foreach keys %tokens;
	$_->quit foreach @next;

	# One stale guard of two is enough to refuse it.
	%tokens = map { $_ => acquire($_) } 'one', 'two';
	my $session = session($node);
	$session->run(
		qq{BEGIN; SELECT distlock_guard('one', $tokens{one}), distlock_guard('two', $tokens{two})});
	free('two');
	$session->send(q{PREPARE TRANSACTION 'half stale'});
	like($session->error, qr/ERROR:  LK001: lease of lock "two"/, 'one of two guards is stale: refused');
	is(tags(), '0|0', 'one of two guards is stale: no tag is held');
	free('one');
	$session->quit;
}

# ---- The server restarts in between ----

my %restarts = (
	'kill -9 of the postmaster' => sub { crash($node) },
	'immediate stop' => sub { $node->stop('immediate'); $node->start },
	'fast stop' => sub { $node->stop('fast'); $node->start },
	'crash of a backend' => sub {
		my $victim = session($node);

		crash_backend($node, $victim->pid);
		$victim->quit;
	});

# The last of the leases outlives the restart; returns its token.
sub leave_for_restart
{
	my ($way) = @_;
	my $token;

	leave_prepared("$way, committed");
	leave_prepared("$way, rolled back");
	leave_prepared("$way, shared", 'shared');
	$token = acquire("$way, held");
	value(prepare("$way, held", [ "$way, held", $token ]));
	wait_until_cleared($node);
	return $token;
}

sub is_kept_across_restart
{
	my ($way, $token) = @_;
	my $shared = "$way, shared";

	is_kept("$way, committed", 'COMMIT', "$way, committed");
	is(value("SELECT distlock_release('$way, held', $token)"), 't', "$way, held: the lease is back");
	is_kept("$way, held", 'COMMIT', "$way, held");
	is(value("SELECT distlock_try_acquire('$shared', mode => 'shared') > 0"),
		't', "$shared: another shared lease is not delayed");
	free($shared);
	is_kept($shared, 'COMMIT', "$shared, exclusive");
	is_kept("$way, rolled back", 'ROLLBACK', "$way, rolled back");
	return;
}

foreach my $way (sort keys %restarts)
{
	my $token = leave_for_restart($way);

	$restarts{$way}->();
	is_kept_across_restart($way, $token);
}

# ---- What is remembered of locks that nobody holds ----

# Locks used once do not use up the records of the server.
{
	my $names = 500;

	value(
		join "\n",
		map {
			qq{SELECT distlock_acquire('used once $_', '1h') AS token \\gset
BEGIN;
SELECT distlock_guard('used once $_', :token);
PREPARE TRANSACTION 'used once';
SELECT distlock_release('used once $_', :token);
COMMIT PREPARED 'used once';}
		} 1 .. $names);
	is(value('SELECT count(*) FROM distlock_leases'), 0, "$names locks used once: none is held");
	is( value(
			"SELECT count(distlock_acquire('all at once ' || n, '1h')) FROM generate_series(1, $max_leases) n"
		),
		$max_leases,
		"$names locks used once: none of the $max_leases leases is missing");
	value('SELECT distlock_force_release(name) FROM distlock_leases');
}

# When no tag is held, and the worker has seen that, PostgreSQL's lock table has
# no part in an acquire: it works with a full one.
my $hog = session($node);
my $probe = session($node);
my $nfresh = 0;

sub fill_lock_table
{
	$hog->send('SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 10000000) n');
	like($hog->error, qr/ERROR:  53200: /, 'the lock table is full');
	return;
}

sub acquire_fresh
{
	my ($n) = @_;

	$probe->send(
		qq{SELECT count(distlock_acquire('fresh $nfresh ' || n, '1 microsecond'))
		   FROM generate_series(1, $n) n});
	$nfresh++;
	return $probe->get;
}

sub wait_until_settled
{
	my ($test) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;

	while ((acquire_fresh(1))[1] ne '')
	{
		die "$test: each lock still begins with a barrier" if time > $give_up;
		usleep(100_000);
	}
	is_deeply([ acquire_fresh(1000) ], [ 1000, '' ], $test);
	return;
}

# What an acquire reads is in the caches afterwards.
acquire_fresh(1);
fill_lock_table();
wait_until_settled('nothing is prepared: 1000 fresh names with a full lock table');
$hog->run('SELECT pg_advisory_unlock_all()');
leave_prepared('prepared');
fill_lock_table();
like((acquire_fresh(1))[1], qr/ERROR:  53200: /, 'something is prepared: a fresh name needs its tag');
$hog->run('SELECT pg_advisory_unlock_all()');
is_deeply([ acquire_fresh(1000) ], [ 1000, '' ], 'something is prepared: 1000 fresh names');
value(q{COMMIT PREPARED 'prepared'});
fill_lock_table();
wait_until_settled('it is committed: 1000 fresh names with a full lock table');
$hog->run('SELECT pg_advisory_unlock_all()');
$_->quit foreach $hog, $probe;

# ---- Promotion of a standby ----

my $primary = $node;
my $standby = PostgreSQL::Test::Cluster->new('standby');
my $before = acquire('before the backup');

value(prepare('before the backup', [ 'before the backup', $before ]));
$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
leave_prepared('at once');
my $held = leave_for_restart('promotion');
$primary->wait_for_catchup($standby);

# This session asks again and again, and will be the first to get an answer.
$node = $standby;
my $first = session($node);
$first->send(
	q{DO $$
BEGIN
	LOOP
		BEGIN
			RAISE NOTICE 'answer: %', distlock_try_acquire('at once') IS NULL;
			EXIT;
		EXCEPTION WHEN read_only_sql_transaction THEN
		END;
	END LOOP;
END $$});
$primary->stop('immediate');
$standby->promote;
$standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()')
  or die 'the standby is not promoted';
like($first->error, qr/answer: t/, 'promotion: the lock is kept from the first moment on');
$first->quit;
value("SELECT distlock_release('before the backup', $before)");
is_kept('before the backup', 'COMMIT', 'promotion, before the backup');
is_kept_across_restart('promotion', $held);
leave_prepared('promoted');
wait_until_cleared($node);
crash($node);
is_kept('promoted', 'COMMIT', 'after the promotion, and a crash');
value(q{ROLLBACK PREPARED 'at once'});
is(value('SELECT count(*) FROM pg_prepared_xacts'), 0, 'nothing is left behind');

# ---- max_prepared_transactions = 0 ----

$node->append_conf('postgresql.conf', 'max_prepared_transactions = 0');
$node->restart;
{
	my $token = acquire('a');
	my $session = session($node);

	like(
		sql_error($node, prepare('off', [ 'a', $token ])),
		qr/ERROR:  55000: prepared transactions are disabled/,
		'prepared transactions are disabled: PostgreSQL says so');
	value("BEGIN; INSERT INTO done VALUES ('off'); SELECT distlock_guard('a', $token); COMMIT");
	$session->run("BEGIN; INSERT INTO done VALUES ('off'); SELECT distlock_guard('a', $token)");
	value("SELECT distlock_release('a', $token)");
	is(value(q{SELECT distlock_try_acquire('a') > 0}), 't', 'prepared transactions are disabled: acquire');
	$session->send('COMMIT');
	like($session->error, qr/ERROR:  LK001: /, 'prepared transactions are disabled: the fence holds');
	is(value(q{SELECT count(*) FROM done WHERE what = 'off'}),
		1, 'prepared transactions are disabled: a guarded commit');
	$session->quit;
}

$node->stop;
done_testing();
