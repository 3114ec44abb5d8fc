# A full disk: what cannot be stored is refused; where it is WAL that cannot be
# written, PostgreSQL stops.  Nobody is told of a lease that is not on disk, and
# when there is room again every lease told before is there, and no other.
#
# DISTLOCK_SMALL_DISK is a folder on a file system of its own, small enough to be
# filled; see scripts/test.sh.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockLoad;
use DistlockTest;
use List::Util qw(max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $disk = $ENV{DISTLOCK_SMALL_DISK}
  or plan skip_all => 'DISTLOCK_SMALL_DISK names no small file system';
my $filler = "$disk/filler";
my ($node, $dbname);

# Leave so many bytes of the disk, which has blocks of 4 kB.
sub fill
{
	my ($left) = @_;
	my $block = "\0" x 4096;

	open my $file, '>>', $filler or die "could not open $filler: $!";
	while (syswrite $file, $block) { }
	truncate $file, max(0, (-s $file) - $left) or die "could not truncate $filler: $!";
	close $file;
	return;
}

sub make_room
{
	unlink $filler or die "could not remove $filler: $!";
	return;
}

sub sql
{
	return $node->safe_psql($dbname, @_);
}

# ---- The lease table ----

my $max_leases = 100;
my $nheld = 13;		# a page

$node = distlock_node('table', conf => "distlock.max_leases = $max_leases\ndistlock.default_ttl = '1h'\n");
mkdir "$disk/table" or die "could not make $disk/table: $!";
$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$disk/table'");

# The disk is full of files, or with half a page to spare.
foreach my $left (0, 4096)
{
	my $test = "lease table, $left bytes left";
	my %held;

	$dbname = "left_$left";
	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	sql('CREATE EXTENSION distlock');
	sql('ALTER TABLE distlock_lease_table SET TABLESPACE small');
	$held{$_} = sql("SELECT distlock_acquire('$_')") foreach map { "held $_" } 1 .. $nheld;
	my $values = 'VALUES ' . join ', ', map { "('$_', $held{$_})" } sort keys %held;
	my $are_held = "SELECT count(*) FROM ($values) v (name, token) WHERE distlock_check(name, token)";

	fill($left);
	foreach my $call (q{acquire('more')}, q{try_acquire('more')}, q{acquire_all('{more,and more}')})
	{
		like(sql_error($node, "SELECT distlock_$call", $dbname),
			qr/ERROR:  53100: could not extend file/, "$test: $call is refused");
	}
	is( sql(q{SELECT (SELECT count(*) FROM distlock_leases), (SELECT count(*) FROM distlock_waiters),
					 (SELECT count(*) FROM distlock_images)}),
		"$nheld|0|$nheld",
		"$test: nothing is left behind");

	# What need not be stored is granted, also in the transaction that was refused.
	is( sql(q{
BEGIN;
DO $$
BEGIN
	PERFORM distlock_acquire('more');
	RAISE 'granted';
EXCEPTION WHEN disk_full THEN
	PERFORM distlock_acquire('more', scope => 'transaction');
END $$;
SELECT count(*) FROM distlock_leases;
COMMIT;
SELECT distlock_release('more', distlock_acquire('more', scope => 'session'))}),
		$nheld + 1 . "\nt",
		"$test: what need not be stored is granted");

	# Who waits is refused in his turn; then it is the next one's.
	{
		my ($holder, $waiter, $next) = map { session($node, $dbname) } 1 .. 3;
		my $token = $holder->run(q{SELECT distlock_acquire('queue', scope => 'session')});

		$waiter->send(q{SELECT distlock_acquire('queue')});
		wait_for_queue($node, 'queue', 1, $dbname);
		$next->send(q{SELECT distlock_acquire('queue', scope => 'session')});
		wait_for_queue($node, 'queue', 2, $dbname);
		$holder->run("SELECT distlock_release('queue', $token)");
		like($waiter->error, qr/ERROR:  53100: /, "$test: who waits is refused in his turn");
		cmp_ok($next->result, '>', $token, "$test: then it is the next one's");
		$_->quit foreach $holder, $waiter, $next;
	}

	# However often it is refused, no memory is lost.
	{
		my $session = session($node, $dbname);
		my $others = $max_leases - $nheld;

		sql(qq{
DO \$\$
BEGIN
	FOR i IN 1 .. 3 * $max_leases LOOP
		BEGIN
			PERFORM distlock_acquire_all('{a,b,c}');
			RAISE 'granted';
		EXCEPTION WHEN disk_full THEN
		END;
	END LOOP;
END \$\$});
		is( $session->run(
				qq{SELECT count(distlock_acquire('volatile ' || i, scope => 'session')) FROM generate_series(1, $others) i}
			),
			$others,
			"$test: max_leases can be had");
		like(sql_error($node, q{SELECT distlock_acquire('more', scope => 'session')}, $dbname),
			qr/ERROR:  53400: /, "$test: and no more");
		$session->quit;
		$node->poll_query_until($dbname, "SELECT count(*) = $nheld FROM distlock_leases")
		  or die 'leases of scope session do not end';
	}

	# What has its place on disk keeps it.
	is(sql("SELECT distlock_renew('held 1', $held{'held 1'}, '2h') > now()"), 't', "$test: a longer renewal");
	sql("SELECT distlock_release('held 2', $held{'held 2'})");
	like(sql_error($node, q{SELECT distlock_acquire_all('{a,b}')}, $dbname),
		qr/ERROR:  53100: /, "$test: a request is refused of which a part is stored");
	is(sql('SELECT count(*) FROM distlock_leases'), $nheld - 1, "$test: no part of it is held");
	wait_until_cleared($node, $dbname);
	pass("$test: nor stays stored");
	my $token = sql(q{SELECT distlock_acquire('instead')});
	cmp_ok($token, '>', max(values %held), "$test: a lease in the place of another");

	make_room();
	my $nmore = $max_leases - $nheld;
	cmp_ok(sql(qq{SELECT min(distlock_acquire('more ' || i)) FROM generate_series(1, $nmore) i}),
		'>', $token, "$test: there is room again");
	crash($node);
	is(sql('SELECT count(*) FROM distlock_leases'), $max_leases, "$test: all are there after a crash");
	is(sql($are_held), $nheld - 1, "$test: those of before, too");
	sql('SELECT distlock_force_release(name) FROM distlock_leases');
}
$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC/, 'lease table: nothing failed inside the server');

# ---- WAL ----

# The server stays down, so that there can be room for it before it comes up.
sub wal_node
{
	my ($name, $conf) = @_;
	my $server = distlock_node(
		$name,
		init => { extra => [ '--waldir', "$disk/$name", '--wal-segsize', '1' ] },
		conf => qq{
restart_after_crash = off
fsync = on
wal_level = minimal
max_wal_senders = 0
wal_writer_delay = 10s
min_wal_size = 2MB
max_wal_size = 1GB
checkpoint_timeout = 1h
autovacuum = off
distlock.log_expirations = off
$conf});

	return $server;
}

sub is_down
{
	return !-e $node->data_dir . '/postmaster.pid';
}

sub wait_until_down
{
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;

	until (is_down())
	{
		die 'the server does not stop' if time > $give_up;
		usleep(20_000);
	}
	$node->kill9;		# it is, but its object shall know
	return;
}

$dbname = 'postgres';
$node = wal_node('wal', '');
sql('CREATE TABLE work (what text)');

# Of a lease that stays, and allows in the control row for two hours.
my $kept = sql(q{SELECT distlock_acquire('kept', '2h')});

# Go on to the last file of WAL that there is room for.
my $next_file = q{SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()};

sub use_last_file
{
	my $ahead = sql(qq{
SELECT count(*) FROM pg_ls_waldir()
WHERE name ~ '^[0-9A-F]{24}\$' AND name > pg_walfile_name(pg_current_wal_insert_lsn())});

	sql($next_file) foreach 1 .. $ahead;
	fill(0);
	return;
}

# The next record of WAL needs a new file.
sub use_up_wal
{
	use_last_file();
	sql($next_file);
	return;
}

# The statement, after a setup, is the first to write WAL.  What is stored before
# is what is held afterwards, when there is room again.
sub cannot_write
{
	my ($test, $setup, $statement) = @_;
	my $session = session($node);
	my $worker = freeze_worker($node);
	my ($stdout, $stderr, $images);

	$session->run($setup) if $setup;
	$images = sql('SELECT name, token FROM distlock_images ORDER BY token');
	use_up_wal();
	$session->send($statement);
	($stdout, $stderr) = $session->get;
	is($stdout, '', "WAL, disk full: $test: the client is told of nothing");
	like($stderr, qr/PANIC:  53100: /, "WAL, disk full: $test: but of an error");
	thaw($worker);
	wait_until_down();
	is($node->start(fail_ok => 1), 0, "WAL, disk full: $test: the server does not come up");
	make_room();
	$node->start;
	is( sql('SELECT name, token FROM distlock_leases ORDER BY token'),
		$images, "WAL, disk full: $test: then what is held is what was stored");
	$session->quit;
	return;
}

# In the course of each of these, tokens rise.
my $greatest = $kept;

sub grows
{
	my ($test) = @_;
	my $token = sql(q{SELECT distlock_acquire('probe', scope => 'transaction')});

	cmp_ok($token, '>', $greatest, "WAL, disk full: $test: tokens rise");
	$greatest = $token;
	return;
}

my %statements = (
	'a durable lease' => q{SELECT distlock_acquire('new', '1h')},
	'several durable leases' => q{SELECT distlock_acquire_all('{new,newer}', '1h')},
	'a longer lease than any' => q{SELECT distlock_acquire('new', '9h')},
	'a volatile lease, the first' => q{SELECT distlock_acquire('new', '1s', durable => false)},
	'a longer renewal' => qq{SELECT distlock_renew('kept', $kept, '3h')},
	'a guarded commit' => qq{BEGIN; INSERT INTO work VALUES ('lost'); DO \$\$ BEGIN PERFORM distlock_guard('kept', $kept); END \$\$; COMMIT},
	'a range of tokens' => q{
DO $$
BEGIN
	FOR i IN 1 .. 100000 LOOP
		PERFORM distlock_release('burn', distlock_acquire('burn', scope => 'session'));
		COMMIT;
	END LOOP;
END $$});
foreach my $test (sort keys %statements)
{
	cannot_write($test, '', $statements{$test});
	is(sql('SELECT count(*) FROM work'), 0, "WAL, disk full: $test: no commit is there that was not told of");
	grows($test);
}

# Of what is over, the image is cleared before a successor is told.
cannot_write(
	'after a durable lease',
	q{SELECT distlock_release('old', distlock_acquire('old', '1h'))},
	q{SELECT distlock_acquire('old', scope => 'session')});
sql(q{SELECT distlock_force_release('old')});
wait_until_cleared($node);
grows('after a durable lease');

# The first use of the database after a start: the worker has nothing to do.
{
	my $stderr;

	$node->restart;
	use_up_wal();
	like(sql_error($node, 'SELECT count(*) FROM distlock_leases'),
		qr/PANIC:  53100: /, 'WAL, disk full: the first use fails');
	wait_until_down();
	make_room();
	$node->start;
	is(sql('SELECT name, token FROM distlock_leases'),
		"kept|$kept", 'WAL, disk full: the first use: then what is held is what was stored');
	grows('the first use');
}
is(sql("SELECT distlock_renew('kept', $kept, '3h') > now()"), 't', 'WAL: all the time one lease was held');
sql("BEGIN; SELECT distlock_guard('kept', $kept); INSERT INTO work VALUES ('kept'); COMMIT");
$node->stop('immediate');
$node->start;
is(sql('SELECT what FROM work'), 'kept', 'WAL: a commit that was told of is there');
$node->stop;

# ---- WAL, under load ----

# Old files of WAL are kept, so that nothing makes room.
$node = wal_node('load', "wal_writer_delay = 200ms\nwal_keep_size = 1GB\n");
my $load = DistlockLoad->new($node, 6);
foreach my $round (1 .. 3)
{
	my $test = "WAL, disk full under load, $round";
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;
	my $since;

	use_last_file();
	sql('SELECT pg_logical_emit_message(false, $$$$, repeat($$x$$, ' . int(300_000 + rand 600_000) . '))');
	$load->open_sessions;
	until (is_down())
	{
		die 'the disk is never full' if time > $give_up;
		$load->step || usleep(200);
	}
	$since = time;
	is($load->complaints, '', "$test: nothing was refused that should not be");
	$load->strike;
	$load->end_sessions;
	wait_until_down();
	make_room();
	$node->start;
	my ($due, $untold) = $load->judge_recovery($since);
	is($load->complaints, '', "$test: what was acknowledged and is not over is held again, and nothing else");
	cmp_ok($due, '>', 0, "$test: $due leases were to be brought back, $untold more that were not acknowledged");
}
my $tokens = $load->judge_tokens;
is($load->complaints, '', "WAL, disk full under load: no token comes twice, all grow: $tokens");
$load->judge_exclusion;
is($load->complaints, '', 'WAL, disk full under load: no two leases that exclude each other were relied on');
my $writes = $load->judge_writes;
is($load->complaints, '', "WAL, disk full under load: all guarded writes are there: $writes");
$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:/, 'WAL, disk full under load: nothing else failed');

done_testing();
