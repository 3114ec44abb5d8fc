# Commits in flight.  A lease that is over keeps its place while transactions
# that it guards are committing, and not for those that are merely open.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Commits wait for the standby in those sessions that ask for it.  Durable leases
# would wait for it in all of them.
my $node = distlock_node(
	'primary',
	init => { allows_streaming => 1 },
	conf => q{
max_connections = 20
synchronous_standby_names = 'standby'
synchronous_commit = local
max_prepared_transactions = 5
distlock.durable = off
wal_sender_timeout = 0
wal_receiver_timeout = 0
autovacuum = off
});
my $standby = PostgreSQL::Test::Cluster->new('standby');

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub wait_until
{
	my ($condition) = @_;

	$node->poll_query_until('postgres', "SELECT $condition")
	  or die "it never came true that $condition";
	return;
}

value('CREATE TABLE done (what text); CREATE TABLE rows (id int); INSERT INTO rows VALUES (1)');
$node->backup('base');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
wait_until(q{count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
my $receiver = $standby->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');

sub acquire
{
	my ($name, $mode, $durable) = @_;

	$mode //= 'exclusive';
	$durable //= 'false';
	return value(
		"SELECT distlock_acquire('$name', '1h', mode => '$mode', holder => 'old', durable => $durable)");
}

sub release
{
	my ($name, $token) = @_;

	value("SELECT distlock_release('$name', $token)");
	return;
}

sub expire
{
	my ($name, $token) = @_;

	value("SELECT distlock_renew('$name', $token, '1ms')");
	return;
}

sub force
{
	my ($name) = @_;

	return value("SELECT distlock_force_release('$name')");
}

# A session in a transaction guarded by the lease, that has written the name of
# the lock.
sub guarded
{
	my ($name, $token) = @_;
	my $session = session($node);

	$session->run(
		qq{SET synchronous_commit = on;
		   BEGIN;
		   INSERT INTO done VALUES ('$name');
		   SELECT distlock_guard('$name', $token)});
	return $session;
}

# Its commit, stalled: the standby does not answer until it is thawed.
sub stall
{
	my ($session) = @_;

	freeze($receiver);
	$session->send('COMMIT');
	wait_for_event($node, $session->pid, 'SyncRep');
	return;
}

sub stalled
{
	my $session = guarded(@_);

	stall($session);
	return $session;
}

sub pins
{
	my ($name) = @_;

	return value("SELECT pins FROM distlock_leases WHERE name = '$name'");
}

# A session that acquires the lock and then looks for the row.
sub successor
{
	my ($name, $arguments) = @_;
	my $session = session($node);

	$arguments //= '';
	$session->send(
		qq{SELECT distlock_acquire('$name', '1h'$arguments) > 0;
		   SELECT count(*) FROM done WHERE what = '$name'});
	return $session;
}

sub blockers
{
	my ($session) = @_;

	return value(
		'SELECT position, blocked_by_tokens, blocked_by_pids FROM distlock_waiters WHERE pid = '
		  . $session->pid);
}

sub blocking_tokens
{
	my ($session) = @_;

	return (split /\|/, blockers($session))[1];
}

# Nobody gets the lock while the commit of the session is in flight.
sub is_kept
{
	my ($name, $token, $pid, $test) = @_;

	is(value("SELECT distlock_try_acquire('$name') IS NULL"), 't', "$test: try_acquire returns null");
	like(
		sql_error($node, "SELECT distlock_acquire('$name', wait => '0')"),
		qr/ERROR:  55P03: .*The lease of "old" under token $token is over, but process $pid is committing/s,
		"$test: the error names the commit in flight");
	return;
}

# The successor has got the lock, and sees the row.
sub succeeds
{
	my ($session, $test) = @_;

	is_deeply([ $session->get ], [ "t\n1", '' ], "$test: the next one has the lock and sees the row");
	return;
}

sub is_gone
{
	my ($session) = @_;

	wait_until('count(*) = 0 FROM pg_stat_activity WHERE pid = ' . $session->pid);
	return;
}

# As long as there is a lease with such a time to live, one more of them writes
# nothing that the standby has to have.
acquire('allows for an hour');

# ---- A lease that ends during a commit ----

# "waits": somebody is in the queue when it ends.
my %ends = (
	'released' => { end => \&release },
	'released, waited for' => { end => \&release, waits => 1 },
	'forced' => { end => \&force },
	'forced, waited for' => { end => \&force, waits => 1 },
	'expired, swept by the worker' => {
		end => sub {
			my $expired = value('SELECT expired FROM distlock_stats');

			expire(@_);
			wait_until("expired = $expired + 1 FROM distlock_stats");
		},
	},
	'expired, waited for' => { end => \&expire, waits => 1 },

	'expired, worker frozen' => {
		end => sub {
			my $worker = freeze_worker($node);

			expire(@_);
			wait_until("NOT distlock_check('$_[0]', $_[1])");
			thaw($worker);
		},
		waits => 1,
	},
	'session ended' => {
		scope => 'session',
		end => sub { $_[2]->quit },
	});

foreach my $way (sort keys %ends)
{
	my %way = %{ $ends{$way} };
	my $holder = session($node);
	my $scope = $way{scope} // 'lease';
	my $token =
	  $holder->run("SELECT distlock_acquire('$way', holder => 'old', scope => '$scope')");
	my $committer = guarded($way, $token);
	my $in_the_way = "1|{$token}|{" . $committer->pid . '}';
	my ($first, $second, $log);

	is(pins($way), 0, "$way: an open transaction pins nothing");
	stall($committer);
	is(pins($way), 1, "$way: a commit in flight is a pin");
	$first = successor($way) if $way{waits};
	wait_for_queue($node, $way, 1) if $way{waits};
	$log = -s $node->logfile;
	$way{end}->($way, $token, $holder);
	wait_until("NOT EXISTS (SELECT FROM distlock_leases WHERE name = '$way')");
	is(value("SELECT distlock_check('$way', $token)"), 'f', "$way: the lease is over");
	is_kept($way, $token, $committer->pid, $way);
	$first //= successor($way);
	wait_for_queue($node, $way, 1);
	$second = successor($way);
	wait_for_queue($node, $way, 2);
	is(blockers($first), $in_the_way, "$way: the view shows what is in the way");
	is(force($way), 0, "$way: distlock_force_release() ends leases, not commits");
	is( value(
			q{SELECT bool_and(distlock_try_acquire('beside ' || n, '1ms') > 0)
			  FROM generate_series(1, 100) n}),
		't',
		"$way: other locks are not delayed");
	value('SELECT pg_cancel_backend(' . $first->pid . ')');
	like($first->error, qr/ERROR:  57014: /, "$way: who waits can be cancelled");
	is(blockers($second), $in_the_way, "$way: and the one behind waits on");
	thaw($receiver);
	is($committer->error, '', "$way: the commit succeeds");
	succeeds($second, $way);
	$node->wait_for_log(qr/lease of lock "$way" expired/, $log) if $way =~ /expired/;
	force($way);
	$_->quit foreach $holder, $committer, $first, $second;
}

# The committing transaction itself releases the lease, and holds it until it is
# done.
{
	my $token = acquire('own');
	my $committer = guarded('own', $token);
	my $next = successor('own');

	wait_for_queue($node, 'own', 1);
	$committer->run("SELECT distlock_release('own', $token)");
	stall($committer);
	is(pins('own'), 1, 'released by the commit: pinned');
	is(blocking_tokens($next), "{$token}", 'released by the commit: the lease itself is in the way');
	thaw($receiver);
	is($committer->error, '', 'released by the commit: the commit succeeds');
	succeeds($next, 'released by the commit');
	force('own');
	$_->quit foreach $committer, $next;
}

# ---- Several commits ----

{
	my $token = acquire('two');
	my @committers = map { guarded('two', $token) } 1 .. 2;
	my $idle = guarded('two', $token);
	my ($next, @pids);

	stall($_) foreach @committers;
	is(pins('two'), 2, 'two commits in flight: two pins');
	release('two', $token);
	$next = successor('two');
	wait_for_queue($node, 'two', 1);
	@pids = map { $_->pid } @committers;
	is(blockers($next), "1|{$token}|{$pids[0],$pids[1]}",
		'two commits in flight: both are in the way');
	value("SELECT pg_cancel_backend($pids[0])");
	like($committers[0]->error, qr/WARNING:  01000: canceling wait for synchronous replication/,
		'one of two commits is cancelled');
	is(blockers($next), "1|{$token}|{$pids[1]}",
		'one of two commits is cancelled: the other is in the way');
	is_kept('two', $token, $pids[1], 'one of two commits is cancelled');
	thaw($receiver);
	is($committers[1]->error, '', 'the other of two commits succeeds');
	is_deeply([ $next->get ], [ "t\n2", '' ], 'two commits: the next one sees both rows');
	$idle->send('COMMIT');
	like($idle->error, qr/ERROR:  LK001: lease of lock "two" under token $token is lost/,
		'a third transaction came too late');
	force('two');
	$_->quit foreach @committers, $idle, $next;
}

# ---- Shared leases ----

{
	my $token = acquire('shared', 'shared');
	my $committer = stalled('shared', $token);
	my ($reader, $writer);

	release('shared', $token);
	$reader = value(q{SELECT distlock_try_acquire('shared', '1h', mode => 'shared')});
	like($reader, qr/^[0-9]+$/, 'shared: another shared lease is not delayed');
	$writer = successor('shared');
	wait_for_queue($node, 'shared', 1);
	is(blocking_tokens($writer),
		"{$token,$reader}", 'shared: an exclusive one is, by the commit and by the other lease');
	release('shared', $reader);
	is(blockers($writer), "1|{$token}|{" . $committer->pid . '}', 'shared: then only by the commit');
	is_kept('shared', $token, $committer->pid, 'shared');
	thaw($receiver);
	is($committer->error, '', 'shared: the commit succeeds');
	succeeds($writer, 'shared');
	force('shared');
	$_->quit foreach $committer, $writer;
}

# ---- The commit is interrupted ----

# It has happened on the primary all the same.
my %interrupts = (
	'cancelled' => {
		how => sub { value('SELECT pg_cancel_backend(' . $_[0]->pid . ')') },
		message => qr/WARNING:  01000: canceling wait for synchronous replication/,
	},
	'terminated' => {
		how => sub { value('SELECT pg_terminate_backend(' . $_[0]->pid . ')') },
		message => qr/server closed the connection|lost|terminating connection/,
	},
	'client killed and terminated' => {
		how => sub {
			$_[0]->kill_client;
			value('SELECT pg_terminate_backend(' . $_[0]->pid . ')');
		},
	});

foreach my $way (sort keys %interrupts)
{
	my $token = acquire($way);
	my $committer = stalled($way, $token);
	my $next;

	release($way, $token);
	$next = successor($way);
	wait_for_queue($node, $way, 1);
	is(blockers($next), "1|{$token}|{" . $committer->pid . '}', "$way: the commit is in the way");
	$interrupts{$way}{how}->($committer);
	like($committer->error, $interrupts{$way}{message}, "$way: the client is told")
	  if $interrupts{$way}{message};
	succeeds($next, $way);
	thaw($receiver);
	force($way);
	$_->quit foreach $committer, $next;
}

# A backend that is stopped inside its commit keeps its successor from the lock,
# which is safe, until it goes on.
{
	my $token = acquire('stopped');
	my $committer = stalled('stopped', $token);
	my $next;

	release('stopped', $token);
	$next = successor('stopped');
	wait_for_queue($node, 'stopped', 1);
	freeze($committer->pid);
	thaw($receiver);
	$node->wait_for_catchup($standby, 'flush');
	is_kept('stopped', $token, $committer->pid, 'stopped in its commit');
	ok(!$next->is_done, 'stopped in its commit: the next one waits');
	thaw($committer->pid);
	is($committer->error, '', 'stopped in its commit: it goes on and succeeds');
	succeeds($next, 'stopped in its commit');
	force('stopped');
	$_->quit foreach $committer, $next;
}

# ---- Open transactions ----

# Stale, they delay nobody.
foreach my $way ('released', 'expired, swept by the worker', 'forced')
{
	my $token = acquire('open');
	my $open = guarded('open', $token);

	$ends{$way}{end}->('open', $token);
	wait_until("NOT distlock_check('open', $token)");
	is(value(q{SELECT distlock_try_acquire('open', '1h') > 0}), 't', "open, $way: nobody is delayed");
	$open->send('COMMIT');
	like(
		$open->error,
		qr/ERROR:  LK001: .*This transaction was guarded by it, and cannot commit\. The lock is held by/s,
		"open, $way: its commit fails");
	is(value(q{SELECT count(*) FROM done WHERE what = 'open'}), 0, "open, $way: nothing is written");
	force('open');
	$open->quit;
}

# However they end, no guard is left: each of them would use up a record.
{
	my $nguards = value('SHOW distlock.max_leases');
	my $token = acquire('many');

	value(
		qq{
DO \$\$
BEGIN
	FOR i IN 1 .. $nguards / 3 + 1 LOOP
		PERFORM distlock_guard('many', $token);
		COMMIT;
		PERFORM distlock_guard('many', $token);
		ROLLBACK;
		BEGIN
			PERFORM distlock_guard('many', $token);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
		END;
		PERFORM distlock_guard('many', $token);
	END LOOP;
END \$\$});
	is(pins('many'), 0, "$nguards guards come and go");
	force('many');
}

foreach my $way ('client killed', 'terminated')
{
	my $token = acquire('exit');
	my $open = guarded('exit', $token);
	my $next = successor('exit');

	wait_for_queue($node, 'exit', 1);
	$open->kill_client if $way eq 'client killed';
	value('SELECT pg_terminate_backend(' . $open->pid . ')') if $way eq 'terminated';
	is_gone($open);
	is(pins('exit'), 0, "$way in a guarded transaction: no pin, and the lease lives on");
	release('exit', $token);
	is_deeply([ $next->get ], [ "t\n0", '' ], "$way in a guarded transaction: nobody is delayed");
	force('exit');
	$_->quit foreach $open, $next;
}

# ---- distlock.terminate_stale ----

# A session in a transaction guarded by the lease that has locked the row.
sub row_holder
{
	my $session = guarded(@_);

	$session->run('UPDATE rows SET id = id');
	return $session;
}

# When an expiry is in the log, sessions have been seen to.
sub expire_logged
{
	my ($name, $token) = @_;
	my $log = -s $node->logfile;

	expire($name, $token);
	$node->wait_for_log(qr/lease of lock "$name" expired/, $log);
	return;
}

sub set_terminate_stale
{
	my ($setting) = @_;

	$node->append_conf('postgresql.conf', "distlock.terminate_stale = $setting");
	$node->reload;
	wait_until("current_setting('distlock.terminate_stale') = '$setting'");
	return;
}

{
	my $token = acquire('off');
	my $open = row_holder('off', $token);
	my $log = -s $node->logfile;

	is(value('SHOW distlock.terminate_stale'), 'off', 'distlock.terminate_stale is off by default');
	expire_logged('off', $token);
	is($open->run('SELECT 1'), 1, 'distlock.terminate_stale = off: nobody is terminated');
	unlike(
		slurp_file($node->logfile, $log),
		qr/terminating process/,
		'distlock.terminate_stale = off: nor is it said');
	set_terminate_stale('on');
	$open->quit;
}

# The one who waits for its row gets it.
my %stale = (
	'idle, released' => { end => \&release },
	'idle, expired' => { end => \&expire },
	'idle, forced' => { end => \&force },
	'idle, session ended' => { scope => 'session', end => sub { $_[2]->quit } },
	'active, expired' => { end => \&expire, sql => 'SELECT pg_sleep(1000)' },
	'waiting for another lock, expired' =>
	  { end => \&expire, sql => q{SELECT distlock_acquire('busy')} },

	# Whoever takes the lock over does it.
	'idle, worker frozen' => {
		end => sub {
			my $worker = freeze_worker($node);

			expire(@_);
			value("SELECT distlock_acquire('$_[0]')");
			wait_until("NOT distlock_check('$_[0]', $_[1])");
			thaw($worker);
		},
	});

acquire('busy');
foreach my $way (sort keys %stale)
{
	my %way = %{ $stale{$way} };
	my ($holder, $next) = map { session($node) } 1 .. 2;
	my $scope = $way{scope} // 'lease';
	my $token =
	  $holder->run("SELECT distlock_acquire('$way', holder => 'old', scope => '$scope')");
	my $open = row_holder($way, $token);
	my $pid = $open->pid;
	my $log;

	$next->send('UPDATE rows SET id = id + 1 RETURNING true');
	wait_for_event($node, $next->pid, 'transactionid');
	$open->send($way{sql}) if $way{sql};
	wait_until(
		"state = 'active' AND query LIKE 'SELECT%' FROM pg_stat_activity WHERE pid = $pid")
	  if $way{sql};
	$log = -s $node->logfile;
	$way{end}->($way, $token, $holder);
	is($next->result, 't', "terminate_stale, $way: the row is free");
	is_gone($open);
	$open->send('COMMIT') unless $way{sql};
	like($open->error, qr/FATAL:  57P01: |lost|closed/,
		"terminate_stale, $way: the session is terminated");
	like(
		slurp_file($node->logfile, $log),
		qr/terminating process $pid: .* a lease of lock "$way" that is over\n.*Token $token, holder "old"/,
		"terminate_stale, $way: it is logged");
	$_->quit foreach $holder, $open, $next;
}
force('busy');

# Those who are not guarded any more are let alone.
my %unguarded = (
	'savepoint rolled back' =>
	  q{BEGIN; SAVEPOINT s; SELECT distlock_guard('let alone', :token); ROLLBACK TO SAVEPOINT s},
	'committed' => q{BEGIN; SELECT distlock_guard('let alone', :token); COMMIT; BEGIN},
	'committed, chained' => q{BEGIN; SELECT distlock_guard('let alone', :token); COMMIT AND CHAIN},
	'rolled back' => q{BEGIN; SELECT distlock_guard('let alone', :token); ROLLBACK; BEGIN},
	'failed' => q{BEGIN; SELECT distlock_guard('let alone', :token); SELECT 1 / 0},
	'guarded by another lease' => q{BEGIN; SELECT distlock_guard('lives on', :other)});
{
	my $token = acquire('let alone');
	my $other = acquire('lives on');
	my $victim = guarded('let alone', $token);
	my %sessions;

	foreach my $way (sort keys %unguarded)
	{
		my $sql = $unguarded{$way} =~ s/:token/$token/r =~ s/:other/$other/r;

		$sessions{$way} = session($node);
		$sessions{$way}->send($sql);
		$sessions{$way}->get;
	}
	expire_logged('let alone', $token);
	is_gone($victim);
	$victim->quit;
	foreach my $way (sort keys %sessions)
	{
		$sessions{$way}->send($way eq 'failed' ? 'ROLLBACK' : 'COMMIT');
		is($sessions{$way}->error, '', "terminate_stale, $way: let alone");
		$sessions{$way}->quit;
	}
	force('lives on');
}

# So are those who are committing; another transaction under the same lease
# keeps until they are done.
{
	my $token = acquire('committing');
	my $open = guarded('committing', $token);
	my $committer = stalled('committing', $token);
	my $other = acquire('other');
	my $victim = guarded('other', $other);

	expire('committing', $token);
	wait_until(q{NOT EXISTS (SELECT FROM distlock_leases WHERE name = 'committing')});
	expire('other', $other);
	is_gone($victim);
	is_kept('committing', $token, $committer->pid, 'terminate_stale, committing');
	thaw($receiver);
	is($committer->error, '', 'terminate_stale, committing: the commit succeeds');
	is_gone($open);
	pass('terminate_stale, committing: then the other transaction is terminated');
	is(value(q{SELECT count(*) FROM done WHERE what = 'committing'}),
		1, 'terminate_stale, committing: its row is written, no other');
	$_->quit foreach $open, $committer, $victim;
}

# So are those who prepare.
{
	my $token = acquire('preparing');
	my $preparer = guarded('preparing', $token);
	my $other = acquire('other');
	my $victim = guarded('other', $other);

	freeze($receiver);
	$preparer->send(q{PREPARE TRANSACTION 'preparing'});
	wait_for_event($node, $preparer->pid, 'SyncRep');
	is(pins('preparing'), 1, 'terminate_stale, preparing: the lease is pinned');
	expire('preparing', $token);
	wait_until(q{NOT EXISTS (SELECT FROM distlock_leases WHERE name = 'preparing')});
	expire('other', $other);
	is_gone($victim);
	is_kept('preparing', $token, $preparer->pid, 'terminate_stale, preparing');
	thaw($receiver);
	is($preparer->error, '', 'terminate_stale, preparing: the transaction is prepared');
	value(q{COMMIT PREPARED 'preparing'});
	is(value(q{SELECT count(*) FROM done WHERE what = 'preparing'}),
		1, 'terminate_stale, preparing: its row is written');
	$_->quit foreach $preparer, $victim;
}

# ---- DROP EXTENSION ----

{
	my $token = acquire('dropped');
	my $committer = stalled('dropped', $token);
	my $next;

	release('dropped', $token);
	$next = successor('dropped');
	wait_for_queue($node, 'dropped', 1);
	value('DROP EXTENSION distlock; CREATE EXTENSION distlock');
	like($next->error, qr/ERROR:  55000: extension distlock was dropped/,
		'dropped during a commit: who waits is told');
	thaw($receiver);
	is($committer->error, '', 'dropped during a commit: the commit succeeds');
	is(value(q{SELECT distlock_try_acquire('dropped', scope => 'transaction') > 0}),
		't', 'created again: the lock is free');
	$_->quit foreach $committer, $next;
}

# ---- Killed with SIGKILL ----

# The commit in flight has happened, the open transaction has not.
{
	my @names = ('commit killed', 'open killed');
	my %tokens = map { $_ => acquire($_, 'exclusive', 'true') } @names;
	my ($committer, $open) = map { guarded($_, $tokens{$_}) } @names;
	my $next;

	stall($committer);
	crash_backend($node, $open->pid);
	thaw($receiver);
	foreach my $name (@names)
	{
		is(value("SELECT distlock_release('$name', $tokens{$name})"), 't', "$name: the lease is back");
		$next = successor($name, q{, wait => '0'});
		is_deeply(
			[ $next->get ],
			[ "t\n" . ($name eq $names[0] ? 1 : 0), '' ],
			"$name: the lock is free");
		$next->quit;
	}
	$_->quit foreach $open, $committer;
}

$standby->stop;
$node->stop;
done_testing();
