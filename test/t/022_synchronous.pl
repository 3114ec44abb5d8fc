# A durable lease is on disk, and on the synchronous standbys, before its token
# is returned; and so is the end of its predecessor.  What that costs.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Nothing but distlock shall flush WAL, or wait for standbys.
my $node = distlock_node(
	'primary',
	init => { allows_streaming => 1 },
	conf => q{
max_connections = 20
synchronous_commit = off
synchronous_standby_names = ''
wal_sender_timeout = 0
wal_receiver_timeout = 0
checkpoint_timeout = 1h
autovacuum = off
log_min_messages = debug1
});
my $standby = PostgreSQL::Test::Cluster->new('standby');

sub value
{
	my ($sql, $dbname) = @_;

	return $node->safe_psql($dbname // 'postgres', $sql);
}

sub wait_until
{
	my ($condition, $dbname) = @_;

	$node->poll_query_until($dbname // 'postgres', "SELECT $condition")
	  or die "it never came true that $condition";
	return;
}

sub force
{
	value("SELECT distlock_force_release('$_')") foreach @_;
	return;
}

# The leases of the locks whose names begin so, as a crash has left them.
sub leases
{
	my ($prefix) = @_;

	return value(
		qq{SELECT name, token, ttl, remaining > ttl - interval '1min' FROM distlock_leases
		   WHERE starts_with(name, '$prefix') ORDER BY token});
}

# The tokens of what is stored of a lock.
sub images
{
	my ($name, $where) = @_;

	return ($where // $node)->safe_psql('postgres',
		"SELECT string_agg(token::text, ' ' ORDER BY token) FROM distlock_images WHERE name = '$name'");
}

value(
	q{CREATE TABLE done (what text);
	  CREATE TABLE checked (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)});

# As long as there are leases with such a time to live, one more of them needs
# no write to the control row.
my @keepers = map { "allows for three hours, durable => $_" } 'true', 'false';
value("SELECT distlock_acquire('$_', '3h', durable => " . (/true/ ? 'true' : 'false') . ')')
  foreach @keepers;

# ---- Flushed ----

# With these stopped, only who acquires can have flushed.
my @writers;

sub stop_writers
{
	@writers = split /\n/,
	  value(q{SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer')});
	freeze($_) foreach @writers;
	return;
}

sub crash_without_writers
{
	crash($node, sub { thaw(@writers) });
	return;
}

# While the writers are stopped, only who writes flushes.
my $insert_lsn = 'SELECT pg_current_wal_insert_lsn()';

sub is_flushed
{
	my ($session, $before, $test) = @_;

	is($session->run("SELECT pg_current_wal_flush_lsn() > '$before'"), 't', $test);
	return;
}

# A crash would not know of the volatile one, and grant nothing for long.
force(grep { /false/ } @keepers);
wait_until('volatile_ttl = 0 FROM distlock_control');

# They return names and tokens.
my %acquires = (
	'many' => q{
SELECT n, distlock_acquire(n, '1h') FROM (SELECT 'many ' || g FROM generate_series(1, 100) g) v (n)},
	'read only' => q{
BEGIN READ ONLY;
SELECT 'read only', distlock_acquire('read only', '1h')},
	'renewed' => q{
SELECT distlock_acquire('renewed', '1h') AS token \gset
SELECT distlock_renew('renewed', :token, '2h');
SELECT distlock_renew('renewed', :token, '10min');
SELECT 'renewed', :token},
	'savepoint' => q{
BEGIN;
SAVEPOINT a;
SELECT distlock_acquire('savepoint, not kept', '1h');
ROLLBACK TO a;
SELECT distlock_acquire('savepoint, not kept', scope => 'session');
SAVEPOINT b;
SELECT 'savepoint', distlock_acquire('savepoint', '1h');
RELEASE b;
COMMIT});
$acquires{"level $_"} = qq{
SET synchronous_commit = $_;
SELECT 'level $_', distlock_acquire('level $_', '1h')} foreach 'off', 'local', 'remote_write', 'on';
{
	my $session = session($node);
	my %told;

	stop_writers();
	foreach my $test (sort keys %acquires)
	{
		my $before = $session->run($insert_lsn);

		$told{$test} = [ grep { /^$test/ && !/not kept/ } split /\n/, $session->run($acquires{$test}) ];
		is_flushed($session, $before, "$test: flushed");
		$session->run('COMMIT; RESET synchronous_commit');
	}

	# The last ones have nobody after them who flushes.
	$told{$_} = [ $session->run("SELECT '$_', distlock_acquire('$_', '1h')") ] foreach 'last, acquired';
	crash_without_writers();
	foreach my $test (sort keys %told)
	{
		my $ttl = $test eq 'renewed' ? '02:00:00' : '01:00:00';

		is(leases($test), join("\n", map { "$_|$ttl|t" } @{ $told{$test} }), "$test: kill -9 loses nothing");
	}
	$session->quit;
}
{
	my ($name, $token) = split /\|/, value(q{SELECT name, token FROM distlock_leases WHERE name = 'last, acquired'});

	stop_writers();
	is(value("SELECT distlock_renew('$name', $token, '90min') > now()"), 't', 'renewed for longer');
	crash_without_writers();
	is(leases($name), "$name|$token|01:30:00|t", 'renewed for longer: kill -9 loses nothing');
}

# Whoever follows a durable lease need not be stored, but the end of that must be.
{
	my @scopes = ('session', 'transaction');
	my %tokens = map { $_ => value("SELECT distlock_acquire('before $_', '1h')") } @scopes;
	my @sessions;

	stop_writers();
	foreach my $scope (@scopes)
	{
		my $session = session($node);
		my $before = $session->run($insert_lsn);

		push @sessions, $session;
		$session->run(
			qq{SELECT distlock_release('before $scope', $tokens{$scope});
			   BEGIN;
			   SELECT distlock_acquire('before $scope', scope => '$scope')});
		is_flushed($session, $before, "scope $scope after a durable lease: the end of that is flushed");
	}
	crash_without_writers();
	is(leases('before'), '', 'after durable leases: none comes back after kill -9');
	is(value("SELECT distlock_check('before $_', $tokens{$_})"),
		'f', "scope $_ after a durable lease: the token of that is dead") foreach @scopes;
	$_->quit foreach @sessions;
}

# A commit that fails releases nothing.
{
	my %tokens = map { $_ => value("SELECT distlock_acquire('$_', '1h')") } 'guarded', 'deferred', 'other';
	my $session = session($node);
	my $undone;

	$session->run(
		qq{BEGIN;
		   SELECT distlock_guard('other', $tokens{other});
		   SELECT distlock_release('guarded', $tokens{guarded})});
	force('other');
	$session->send('COMMIT');
	like($session->error, qr/ERROR:  LK001: /, 'a guarded commit is refused');
	$session->run(
		qq{BEGIN;
		   INSERT INTO checked VALUES (1), (1);
		   SELECT distlock_release('deferred', $tokens{deferred})});
	$session->send('COMMIT');
	like($session->error, qr/ERROR:  23505: /, 'a deferred constraint refuses a commit');

	# Nor does a rollback leave a lease.
	$undone = $session->run(q{BEGIN; SELECT distlock_acquire('undone', '1h')});
	is(images('undone'), $undone, 'a lease is stored before its transaction ends');
	$session->run('ROLLBACK');
	is(leases('undone'), '', 'rolled back, it is over');

	wait_until_cleared($node);
	is(images('undone'), '', 'and its image is cleared');
	is(images($_), $tokens{$_}, "$_: the lease is still stored") foreach 'guarded', 'deferred';
	crash($node);
	is(leases($_), "$_|$tokens{$_}|01:00:00|t", "$_: the lease outlives a crash")
	  foreach 'guarded', 'deferred';
	is(leases('undone'), '', 'undone: the lease does not');
	$session->quit;
}

# ---- WAL ----

# The records that the statements write, by relation; without what the server
# writes on its own.
sub wal_of
{
	my ($sql) = @_;
	my $session = session($node);
	my $lsn = q{SELECT pg_current_wal_insert_lsn()};
	my ($from, $to, $dump);
	my %names = map { reverse split /\|/ } split /\n/,
	  value(q{SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname LIKE 'distlock%'
			  AND relkind IN ('r', 'S')});
	my %written;

	$from = $session->run($lsn);
	$session->run($sql);
	$to = $session->run($lsn);
	$session->quit;

	# This makes the end readable.
	value(q{SET synchronous_commit = local; SELECT pg_logical_emit_message(true, '', '')});
	return {} if $from eq $to;
	($dump) = run_command(
		[ $node->installed_command('pg_waldump'), '-p', $node->data_dir . '/pg_wal', '-s', $from, '-e', $to ]);
	foreach my $record (split /\n/, $dump)
	{
		next if $record =~ /^rmgr: (Standby|XLOG) /;
		$written{$record =~ m{rmgr: Generic .* tx: +0, .*rel \d+/\d+/(\d+) } ? $names{$1} : $record}++;
	}
	return \%written;
}

{
	my $worker;
	my $xmax = 'SELECT pg_snapshot_xmax(pg_current_snapshot())';
	my ($before, $written);
	my $token = value(q{SELECT distlock_acquire('costs', '1h')});

	# Only the background worker starts what clears images.
	wait_until_cleared($node);
	wait_until(q{count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'distlock chores'});
	$worker = freeze_worker($node);
	is_deeply(
		wal_of("SELECT distlock_renew('costs', $token), distlock_renew('costs', $token, '1min'),
					   distlock_renew('costs', $token, '1h')"),
		{}, 'a renewal for no longer than is stored writes no WAL');
	is_deeply(
		wal_of("SELECT distlock_renew('costs', $token, '2h')"),
		{ 'distlock_lease_table' => 1 },
		'one for longer writes one record');
	is_deeply(
		wal_of("SELECT distlock_renew('costs', $token, '90min'), distlock_renew('costs', $token, '2h')"),
		{}, 'and those after it none');
	is_deeply(wal_of("SELECT distlock_release('costs', $token)"), {}, 'a release writes no WAL');
	is_deeply(
		wal_of(q{SELECT distlock_acquire('costs', '1h')}),
		{ 'distlock_lease_table' => 1 },
		'an acquire writes one record, in which it overwrites what was there before');
	force('costs');

	my $pair = q{
SELECT distlock_acquire('pair', '1h') AS token \gset
SELECT distlock_release('pair', :token);
};
	$before = value($xmax);
	$written = wal_of($pair x 100);
	is($written->{distlock_lease_table}, 100, '100 pairs of acquire and release write 100 records');
	delete $written->{distlock_lease_table};
	cmp_ok($written->{$_}, '<=', 1, "and at most one to $_, for a range of tokens")
	  foreach sort keys %$written;
	is( wal_of(
			q{DO $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		PERFORM distlock_release('pair ' || i, distlock_acquire('pair ' || i, '1h'));
		COMMIT;
	END LOOP;
END $$})->{distlock_lease_table},
		100,
		'so they do when each is of another lock');
	is( value(
			q{BEGIN;
			  SELECT distlock_acquire('no xid', '1h') AS token \gset
			  SELECT distlock_renew('no xid', :token, '2h'), distlock_release('no xid', :token) \gset
			  SELECT pg_current_xact_id_if_assigned() IS NULL;
			  COMMIT}),
		't', 'no transaction id is assigned');
	# That of wal_of(), twice.
	is(value($xmax), $before + 2, 'nor used up');
	thaw($worker);
}

# ---- Who clears images ----

# Waits for the locked table where it can be seen, then clears what it finds and
# goes away; the database is idle, and refuses connections.
value('CREATE DATABASE idle');
value('CREATE EXTENSION distlock', 'idle');
my $chores = q{FROM pg_stat_activity WHERE backend_type = 'distlock chores' AND datname = 'idle'};
{
	my $owner = session($node, 'idle');
	my $watcher = session($node, 'idle');
	my $count = q{SELECT count(*) FROM distlock_images};
	my $n;

	value(q{SELECT distlock_acquire('stays', '1h');
			SELECT distlock_release('a ' || n, distlock_acquire('a ' || n, '1h')) FROM generate_series(1, 200) n},
		'idle');
	$owner->run('BEGIN; LOCK TABLE distlock_lease_table IN SHARE MODE');
	cmp_ok($n = $watcher->run($count), '>', 1, 'leases that are over are still stored');
	value('ALTER DATABASE idle ALLOW_CONNECTIONS false');
	wait_until("wait_event_type = 'Lock' $chores");
	is($watcher->run($count), $n, 'somebody comes to clear them');
	$owner->run('COMMIT');
	wait_until("count(*) = 0 $chores");
	is($watcher->run($count), 1, 'they are cleared, and he is gone');
	is($watcher->run('SELECT name FROM distlock_images'), 'stays', 'what is held stays stored');
	value('ALTER DATABASE idle ALLOW_CONNECTIONS true');
	$_->quit foreach $owner, $watcher;
	wait_until(q{count(*) = 0 FROM pg_stat_activity WHERE datname = 'idle'});
}

# He is in nobody's way: a database is copied and dropped again and again until
# he has come and gone.
{
	my $oid = value(q{SELECT oid FROM pg_database WHERE datname = 'idle'});
	my $log = -s $node->logfile;
	my $errors = '';
	my $n = 0;

	value(q{SELECT distlock_release('b', distlock_acquire('b', '1h'))}, 'idle');
	until (slurp_file($node->logfile, $log) =~ /unregistering background worker "distlock chores for database $oid"/)
	{
		$errors .= sql_error($node, 'CREATE DATABASE copied TEMPLATE idle');
		$errors .= sql_error($node, 'DROP DATABASE copied');
		last if ++$n > 1000;
	}
	is($errors, '', "CREATE and DROP DATABASE, $n times");
	is(value('SELECT name FROM distlock_images', 'idle'), 'stays', 'it is cleared all the same');
	value(q{SELECT distlock_release('b', distlock_acquire('b', '1h'))}, 'idle');
	is(sql_error($node, 'DROP DATABASE idle'), '', 'DROP DATABASE with images to be cleared');
}

# ---- A standby ----

value(qq{SELECT distlock_force_release(name) FROM distlock_leases WHERE name <> '$keepers[0]'});
$node->backup('base');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;

sub set_standbys
{
	my ($names) = @_;

	$node->adjust_conf('postgresql.conf', 'synchronous_standby_names', "'$names'");
	$node->reload;
	return;
}

set_standbys('standby');
wait_until(q{count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
my $receiver = $standby->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');

# The volatile one of these is new.
value("SELECT distlock_acquire('$keepers[1]', '3h', durable => false)");

sub is_sent
{
	my ($name, $tokens, $test) = @_;

	$standby->poll_query_until(
		'postgres',
		qq{SELECT coalesce(string_agg(token::text, ' ' ORDER BY token), '')
		   FROM distlock_images WHERE name = '$name'}, $tokens)
	  or die "standby: not '$tokens' for lock $name";
	pass($test);
	return;
}

# What has been left behind of these locks goes, also on the standby.
my @left;

sub is_cleared
{
	wait_until_cleared($node);
	is_sent($_, '', "$_: nothing is left") foreach splice @left;
	return;
}

# A session that waits for the standby, in a statement.
sub stalled
{
	my ($sql, $setup) = @_;
	my $session = session($node);

	$session->run($setup) if $setup;
	freeze($receiver);
	$session->send($sql);
	wait_for_event($node, $session->pid, 'SyncRep');
	return $session;
}

sub told
{
	my ($session, $test) = @_;
	my ($stdout, $stderr) = $session->get;

	like($stdout, qr/^[0-9]+$/, $test);
	is($stderr, '', "$test, without a word");
	return $stdout;
}

# What others see of a lock whose new holder waits for the standby.
sub is_taken_not_held
{
	my ($name, $session, $test) = @_;
	my $token = images($name);

	is(leases($name), '', "$test: no lease is shown");
	is(value("SELECT position FROM distlock_waiters WHERE pid = " . $session->pid),
		0, "$test: a request that is granted is");
	is(value("SELECT distlock_try_acquire('$name')"), '', "$test: the lock is taken");
	like(
		sql_error($node, "SELECT distlock_acquire('$name', wait => '0')"),
		qr/ERROR:  55P03: .*DETAIL:  The lock has just been granted to "holder of $name", process ${\$session->pid}/s,
		"$test: the error says by whom");
	return if $token eq '';
	is(value("SELECT distlock_check('$name', $token), distlock_release('$name', $token)"),
		'f|f', "$test: its token is no good yet");
	like(
		sql_error($node, "SELECT distlock_$_('$name', $token)"),
		qr/ERROR:  LK001: /,
		"$test: nor to $_")
	  foreach 'renew', 'guard';
	return;
}

sub acquire_sql
{
	my ($name, $arguments) = @_;

	$arguments //= q{'1h'};
	return "SELECT distlock_acquire('$name', $arguments, holder => 'holder of $name')";
}

# ---- A durable lease waits for the standby ----

foreach my $level ('off', 'local', 'remote_write', 'on', 'remote_apply')
{
	my $holder = stalled(acquire_sql($level), "SET synchronous_commit = $level");
	my $next = session($node);
	my $token = images($level);

	like($token, qr/^[0-9]+$/, "$level: the lease is stored");
	is_taken_not_held($level, $holder, $level);
	$next->send(acquire_sql($level));
	wait_for_queue($node, $level, 1);
	is( value('SELECT position, blocked_by_pids FROM distlock_waiters WHERE pid = ' . $next->pid),
		'1|{' . $holder->pid . '}',
		"$level: who comes next stands in the queue behind it");
	is(images($level, $standby), '', "$level: the standby does not have it");
	is( value("SELECT count(*) FROM pg_locks WHERE relation = 'distlock_lease_table'::regclass AND pid = "
			  . $holder->pid),
		0,
		"$level: the table is not locked meanwhile");

	thaw($receiver);
	is(told($holder, "$level: its token is returned"), $token, "$level: that of the image");
	is($holder->run('SHOW synchronous_commit'), $level, "$level: the setting is as it was");
	is_sent($level, $token, "$level: the standby has it");
	is(leases($level), "$level|$token|01:00:00|t", "$level: it is held");
	$holder->run("SELECT distlock_release('$level', $token)");
	cmp_ok(told($next, "$level: the next one is told"), '>', $token, "$level: of a greater token");
	force($level);
	$_->quit foreach $holder, $next;
}

# Nobody else waits for the standby: renewals, releases, and leases that neither
# are stored nor follow one that is.
{
	my $token = value(q{SELECT distlock_acquire('held', '1h')});
	my $holder = stalled(acquire_sql('beside'));

	value(
		qq{SELECT distlock_renew('held', $token), distlock_check('held', $token), distlock_release('held', $token);
		   SELECT distlock_acquire('other, ' || scope, scope => scope)
		   FROM (VALUES ('session'), ('transaction')) v (scope);
		   SELECT distlock_acquire('other, not durable', '1s', durable => false)});
	value(q{SET lock_timeout = '1min'; VACUUM FULL distlock_lease_table});
	is_taken_not_held('beside', $holder, 'after other calls, and VACUUM FULL');
	thaw($receiver);
	told($holder, 'after other calls, and VACUUM FULL: its token is returned');
	force('beside');
	$holder->quit;
}

# Where it is acquired makes no difference.
foreach my $test (
	[ 'read only', 'BEGIN READ ONLY', 'COMMIT', 1 ],
	[ 'serializable', 'BEGIN ISOLATION LEVEL SERIALIZABLE', 'COMMIT', 1 ],
	[ 'in a savepoint', 'BEGIN; SAVEPOINT a', 'RELEASE a; COMMIT', 1 ],
	[ 'savepoint rolled back', 'BEGIN; SAVEPOINT a', 'ROLLBACK TO a; COMMIT', 0 ],
	[ 'transaction rolled back', 'BEGIN', 'ROLLBACK', 0 ])
{
	my ($name, $begin, $end, $stays) = @$test;
	my $holder = stalled(acquire_sql($name), $begin);
	my $token;

	is_taken_not_held($name, $holder, $name);
	thaw($receiver);
	$token = told($holder, "$name: its token is returned");
	is_sent($name, $token, "$name: the standby has it");
	$holder->run($end);
	is(leases($name), $stays ? "$name|$token|01:00:00|t" : '', "$name: what becomes of it");
	force($name);
	push @left, $name;
	$holder->quit;
}
is_cleared();

# ---- The wait ends early ----

my %ways = (
	'cancelled' => {
		end => sub { value('SELECT pg_cancel_backend(' . $_[0]->pid . ')') },
		error => qr/WARNING:  01000: canceling wait for .*ERROR:  57014: .*not on the synchronous standbys/s,
	},
	'statement_timeout' => {
		setup => q{SET statement_timeout = '1s'},
		error => qr/ERROR:  57014: /,
	},
	'terminated' => {
		end => sub { value('SELECT pg_terminate_backend(' . $_[0]->pid . ')') },
		error => qr/FATAL:  57P01: |terminat|lost|closed/,
	});

foreach my $way (sort keys %ways)
{
	my %way = %{ $ways{$way} };
	my $holder = stalled(acquire_sql($way), $way{setup});
	my $next = session($node);
	my ($stdout, $stderr, $token);

	$next->send(acquire_sql($way));
	$way{end}->($holder) if $way{end};
	($stdout, $stderr) = $holder->get;
	is($stdout, '', "$way: no token is returned");
	like($stderr, $way{error}, "$way: the client is told");
	wait_for_event($node, $next->pid, 'SyncRep');
	is_taken_not_held($way, $next, "$way, the next one");
	thaw($receiver);
	$token = told($next, "$way: the next one has the lock");
	is(leases($way), "$way|$token|01:00:00|t", "$way: and nobody else");
	is_sent($way, $token, "$way: nothing else is left on the standby");
	$next->run("SELECT distlock_release('$way', $token)");
	push @left, $way;
	$_->quit foreach $holder, $next;
}

# With nobody next.  What is left is cleared when the standby is back.
foreach my $way (sort keys %ways)
{
	my %way = %{ $ways{$way} };
	my $name = "$way, alone";
	my $holder = stalled(acquire_sql($name), $way{setup});

	$way{end}->($holder) if $way{end};
	like($holder->error, $way{error}, "$name: the client is told");
	is( value(
			qq{SELECT (SELECT count(*) FROM distlock_leases WHERE name = '$name'),
					  (SELECT count(*) FROM distlock_waiters)}),
		'0|0',
		"$name: nothing is left behind");
	thaw($receiver);
	push @left, $name;
	$holder->quit;
}

# A block that catches the cancel goes on.
{
	my $holder = stalled(
		q{DO $$
BEGIN
	INSERT INTO done VALUES ('before');
	BEGIN
		PERFORM distlock_acquire('caught', '1h');
	EXCEPTION WHEN query_canceled THEN
		INSERT INTO done VALUES ('caught');
	END;
END $$});

	value('SELECT pg_cancel_backend(' . $holder->pid . ')');
	like($holder->error, qr/^\S+ WARNING:  01000: [^\n]*\n(?!.*ERROR)/s, 'a cancel is caught');
	is(value(q{SELECT string_agg(what, ' ' ORDER BY what) FROM done}),
		'before caught', 'a cancel is caught: the block goes on');
	is(leases('caught'), '', 'a cancel is caught: no lease is left');
	thaw($receiver);
	push @left, 'caught';
	$holder->quit;
}
is_cleared();

# No standby is asked for any more.
{
	my $holder = stalled(acquire_sql('let through'));

	set_standbys('');
	told($holder, 'synchronous_standby_names is emptied: its token is returned');
	is(images('let through', $standby), '', 'synchronous_standby_names is emptied: the standby has nothing');
	set_standbys('standby');
	thaw($receiver);
	wait_until(q{count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
	force('let through');
	$holder->quit;
}

# ---- Longer than the time to live ----

# A grant that is over before it is told counts for nothing, and the request
# begins anew, if it may.
foreach my $test (
	[ 'lapsed, wait', q{'1s'}, 'queues' ],
	[ 'lapsed, no wait', q{'1s', wait => '0'}, 'gives up' ])
{
	my ($name, $arguments, $what) = @$test;
	my $lapsed = value('SELECT lapsed FROM distlock_stats');
	my $before = value(acquire_sql('probe', q{scope => 'transaction'}));
	my $holder = stalled(acquire_sql($name, $arguments));
	my $next = session($node);
	my $next_token;

	$next->send(acquire_sql($name));
	wait_for_event($node, $next->pid, 'SyncRep');
	cmp_ok(value('SELECT lapsed FROM distlock_stats'), '>', $lapsed, "$name: the grant has lapsed");
	is_taken_not_held($name, $next, "$name, the next one");
	thaw($receiver);
	is($next_token = told($next, "$name: the next one has the lock"),
		$before + 2, "$name: under a token of its own");
	if ($what eq 'queues')
	{
		wait_for_queue($node, $name, 1);
		pass("$name: the other one queues again");
		$next->run("SELECT distlock_release('$name', $next_token)");
		cmp_ok(told($holder, "$name: and is told"), '>', $next_token, "$name: of a later token");
	}
	else
	{
		like($holder->error, qr/ERROR:  55P03: could not obtain lock/, "$name: the other one gives up");
	}
	force($name);
	$_->quit foreach $holder, $next;
}

# With nobody next, it is granted anew.
foreach my $wait ('null', q{'0'})
{
	my $name = "lapsed, alone, $wait" =~ tr/'//dr;
	my $lapsed = value('SELECT lapsed FROM distlock_stats');
	my $before = value(acquire_sql('probe', q{scope => 'transaction'}));
	my $holder = stalled(acquire_sql($name, "'1s', wait => $wait"));

	wait_until("lapsed > $lapsed FROM distlock_stats");
	is(value('SELECT count(*) FROM distlock_waiters WHERE position = 0'), 0, "$name: it is over");
	thaw($receiver);
	cmp_ok(told($holder, "$name: told of another"), '>=', $before + 2, "$name: not of the one it was");
	force($name);
	push @left, $name;
	$holder->quit;
}
is_cleared();

# ---- After a durable lease ----

# What follows it may not be stored itself, but is told only when the standby
# has lost the image of before.
foreach my $arguments (q{scope => 'session'}, q{scope => 'transaction'}, q{'1h', durable => false},
	q{scope => 'session', mode => 'shared'})
{
	my $name = "after a durable one, $arguments" =~ tr/'//dr;
	my $old = value("SELECT distlock_acquire('$name', '1h')");
	my $holder;

	is_sent($name, $old, "$name: the standby has it");
	freeze($receiver);
	value("SELECT distlock_release('$name', $old)");
	$holder = stalled(acquire_sql($name, $arguments), 'BEGIN');
	is_taken_not_held($name, $holder, $name);
	is(images($name), '', "$name: the image is gone here");
	value('SELECT pg_cancel_backend(' . $holder->pid . ')');
	like($holder->error, qr/ERROR:  57014: /, "$name: the wait can be cancelled");
	$holder->run('ROLLBACK');
	is(leases($name), '', "$name: cancelled, nothing is left behind");

	# It was cleared by another, but is not on the standby yet.
	$holder->send('BEGIN; ' . acquire_sql($name, $arguments));
	wait_for_event($node, $holder->pid, 'SyncRep');
	is_taken_not_held($name, $holder, "$name, again");
	is(images($name, $standby), $old, "$name: the standby still has the image");
	thaw($receiver);
	told($holder, "$name: told");
	is_sent($name, '', "$name: the standby has lost the image");
	$holder->run('ROLLBACK');
	$holder->quit;
}

# ---- Renewals ----

# The longer time to live counts only when the standby has it, whether or not
# the control row has to allow for it first.
foreach my $ttl ('02:00:00', '05:00:00')
{
	my $name = "renewed for $ttl";
	my $token = value("SELECT distlock_acquire('$name', '1h')");
	my $renew = "SELECT distlock_renew('$name', $token, '$ttl') > now()";
	my $holder = stalled($renew);
	my $state = "SELECT ttl, renewals FROM distlock_leases WHERE name = '$name'";

	is(value($state), '01:00:00|0', "$name: not yet");
	is(value("SELECT distlock_check('$name', $token)"), 't', "$name: the lease goes on");
	is(value("SELECT distlock_renew('$name', $token, '30min') > now()"),
		't', "$name: a shorter renewal does not wait");
	value('SELECT pg_cancel_backend(' . $holder->pid . ')');
	like($holder->error, qr/ERROR:  57014: /, "$name: the wait can be cancelled");
	is(value($state), '00:30:00|1', "$name: it was not renewed");
	is(value("SELECT distlock_renew('$name', $token, '1h') > now()"),
		't', "$name: nor does one for as long as before wait");
	$holder->send($renew);
	wait_for_event($node, $holder->pid, 'SyncRep');
	is(value($state), '01:00:00|2', "$name: the next one waits again");
	thaw($receiver);
	is($holder->result, 't', "$name: it is renewed");
	is(value($state), "$ttl|3", "$name: for so long");
	$node->wait_for_catchup($standby);
	is($standby->safe_psql('postgres', "SELECT ttl FROM distlock_images WHERE name = '$name'"),
		$ttl, "$name: the standby knows");
	force($name);
	$holder->quit;
}

# The lease ends meanwhile.
foreach my $way ('released', 'taken over')
{
	my $name = "renewed, $way";
	my $token = value("SELECT distlock_acquire('$name', '1h')");
	my $holder = stalled("SELECT distlock_renew('$name', $token, '2h')");
	my $next;

	value("SELECT distlock_release('$name', $token)");
	if ($way eq 'taken over')
	{
		$next = session($node);
		$next->send(acquire_sql($name));
		wait_for_event($node, $next->pid, 'SyncRep');
	}
	thaw($receiver);
	like($holder->error, qr/ERROR:  LK001: /, "$name: the lease is lost");
	is_sent($name, told($next, "$name: it is"), "$name: nothing else is stored") if $next;
	force($name);
	push @left, $name;
	$holder->quit;
	$next->quit if $next;
}

is_cleared();

# ---- Commits in flight ----

# A lease that is over keeps its image while a commit keeps it in its place.
foreach my $way ('released', 'expired')
{
	my $name = "pinned, $way";
	my $token = value("SELECT distlock_acquire('$name', '1h')");
	my $committer = stalled('COMMIT', qq{
SET synchronous_commit = on;
BEGIN;
INSERT INTO done VALUES ('$name');
SELECT distlock_guard('$name', $token)});

	value(
		$way eq 'released'
		? "SELECT distlock_release('$name', $token)"
		: "SELECT distlock_renew('$name', $token, '1ms')");
	wait_until("NOT distlock_check('$name', $token)");

	# What is over later is cleared; after that comes the wait for the standby.
	my $other = session($node);
	$other->send(acquire_sql('later'));
	wait_for_event($node, $other->pid, 'SyncRep');
	value('SELECT pg_cancel_backend(' . $other->pid . ')');
	$other->get;
	wait_until(q{count(*) = 0 FROM distlock_images WHERE name = 'later'});
	is(images($name), $token, "$name: the lease is still stored");
	thaw($receiver);
	is($committer->error, '', "$name: the commit succeeds");
	push @left, $name;
	$_->quit foreach $committer, $other;
}
is_cleared();

# ---- A restart ----

# What is on disk here is taken for granted only when the standby has it, too: a
# crash may have come before.
{
	my $token = value(acquire_sql('kept'));
	my ($session, $other, $next);

	# Nor may the crash be followed by a long grace.
	value('SELECT distlock_force_release(name) FROM distlock_leases WHERE NOT durable');
	wait_until('volatile_ttl = 0 FROM distlock_control');
	$standby->stop('immediate');
	crash($node);
	is(leases('kept'), "kept|$token|01:00:00|t", 'first use after a crash, standby away: a view answers');
	($session, $other, $next) = map { session($node) } 1 .. 3;
	$session->send("SELECT distlock_renew('kept', $token) > now()");
	wait_for_event($node, $session->pid, 'SyncRep');
	$other->send("SELECT distlock_check('kept', $token)");
	wait_for_event($node, $other->pid, 'advisory');
	value('SELECT pg_cancel_backend(' . $session->pid . ')');
	like($session->error, qr/ERROR:  57014/, 'first use after a crash, standby away: it waits');
	wait_for_event($node, $other->pid, 'SyncRep');
	$next->send(acquire_sql('after a crash'));
	wait_for_event($node, $next->pid, 'advisory');
	is( value(
			q{SELECT (SELECT count(*) FROM distlock_leases WHERE name = 'after a crash'),
					 (SELECT count(*) FROM distlock_waiters), (SELECT acquired FROM distlock_stats)}),
		'0|0|0',
		'meanwhile nothing is granted, and the views answer');
	$standby->start;
	is($other->result, 't', 'first use after a crash: the standby is back');
	is($session->run("SELECT distlock_renew('kept', $token) > now()"), 't', 'and the lease is held');
	cmp_ok(told($next, 'who would acquire goes on'), '>', $token, 'with a greater token');
	force('after a crash');
	$_->quit foreach $session, $other, $next;
}

# ---- The standby takes over ----

# What was told is there.
{
	my $session = session($node);
	my $token = $session->run(acquire_sql('taken along'));

	$node->stop('immediate');
	$standby->append_conf('postgresql.conf', q{
synchronous_standby_names = ''
distlock.failover_grace = off});
	$standby->promote;
	$node = $standby;
	is(leases('taken along'), "taken along|$token|01:00:00|t", 'promotion: the lease is there');
	is(value("SELECT distlock_release('taken along', $token)"), 't', 'promotion: under its token');
	$session->quit;
}

$node->stop;
done_testing();
