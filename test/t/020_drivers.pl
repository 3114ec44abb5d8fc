
# Applications with real drivers take leases, directly and through a pooler in
# transaction mode with fewer server connections than clients.
#
# The applications are in test/drivers and print TAP, which is relayed.  Where a
# driver or the pooler is not installed, its part is skipped; with
# DISTLOCK_REQUIRE_DRIVERS=1 in the environment it fails.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename;
use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# Debian has pgbouncer where an ordinary user's PATH does not lead.
$ENV{PATH} .= ':/usr/sbin';

my $drivers = abs_path(dirname(__FILE__) . '/../drivers');
my $pool_size = 2;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf(
	'postgresql.conf', q{
shared_preload_libraries = 'distlock'
fsync = off
autovacuum = off
});
$node->start;
$node->safe_psql(
	'postgres', q{
CREATE EXTENSION distlock;
CREATE TABLE turns (turn integer PRIMARY KEY, token bigint, worker integer, pid integer);
});
my $user = $node->safe_psql('postgres', 'SELECT current_user');

# ---- Pooler ----

my $pooler;

# Start pgbouncer on the port, in a socket directory of its own: it asks nobody
# for a password.  Returns that directory when it serves queries.
sub start_pooler
{
	my ($port) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $host = $node->host;
	my $node_port = $node->port;

	append_to_file(
		"$dir/pgbouncer.ini", qq{
[databases]
postgres = host=$host port=$node_port user=$user
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = any
ignore_startup_parameters = extra_float_digits
pool_mode = transaction
default_pool_size = $pool_size
query_wait_timeout = 120
logfile = $dir/pgbouncer.log
pidfile = $dir/pgbouncer.pid
});
	$pooler = IPC::Run::start([ 'pgbouncer', '-q', "$dir/pgbouncer.ini" ],
		'<', \undef, '>', '/dev/null', '2>', '/dev/null');
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return $dir
		  if works('psql', '-XAtq', '-c', 'SELECT 1', '-d',
			"host=$dir port=$port dbname=postgres user=$user");
		$pooler->pump_nb;
		last if !$pooler->pumpable;
		usleep(100_000);
	}
	diag(slurp_file("$dir/pgbouncer.log")) if -e "$dir/pgbouncer.log";
	die 'could not start pgbouncer';
}

sub stop_pooler
{
	return if !defined $pooler;
	$pooler->kill_kill;
	undef $pooler;
}

END
{
	my $status = $?;

	stop_pooler();
	$? = $status;
}

# ---- Applications ----

# Run the application and make its tests ours.
sub relay
{
	my @command = @_;
	my ($out, $err) = ('', '');
	my ($planned, $seen) = (-1, 0);

	my $app = IPC::Run::start(
		\@command, '<', \undef, '>', \$out, '2>', \$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	if (!eval { $app->finish; 1 })
	{
		diag($@);
		$app->kill_kill;
	}
	my $status = $app->full_result(0);

	foreach my $line (split /\n/, $out)
	{
		if ($line =~ /^(not )?ok \d+ - (.*)$/)
		{
			ok(!$1, $2);
			$seen++;
		}
		elsif ($line =~ /^1\.\.(\d+)$/)
		{
			$planned = $1;
		}
		else
		{
			diag($line);
		}
	}
	diag($err) if $err ne '';
	is($planned, $seen, 'it came to its end');
	is($status, 0, 'it exited with success');
}

# A subtest that runs the application if the reason not to is empty.
sub application
{
	my ($name, $missing, @command) = @_;

	subtest $name => sub {
		if ($missing eq '')
		{
			relay(@command);
		}
		elsif ($ENV{DISTLOCK_REQUIRE_DRIVERS})
		{
			fail("$missing, and DISTLOCK_REQUIRE_DRIVERS is set");
		}
		else
		{
			plan skip_all => $missing;
		}
	};
}

my %python = map { $_ => python_with($_) } qw(psycopg psycopg2);
$ENV{NODE_PATH} = join(':', "$drivers/node_modules", $ENV{NODE_PATH} // ());
# Where the JDBC driver is, or why there is no application to run.
my ($jdbc) = grep { -e } $ENV{PGJDBC} // (), '/usr/share/java/postgresql.jar';
my $classes = PostgreSQL::Test::Utils::tempdir();
my $no_jdbc =
    !defined $jdbc ? 'the JDBC driver of PostgreSQL is not installed'
  : !works('javac', '-version') || !works('java', '-version') ? 'no Java with javac is installed'
  : '';
run_log([ 'javac', '-cp', $jdbc, '-d', $classes, "$drivers/JdbcApp.java" ]) or die 'javac failed'
  if $no_jdbc eq '';
my $node_postgres = works('node', '-e', "require('pg')");
my $have_pooler = works('pgbouncer', '--version');

foreach my $route ('direct', 'pooled')
{
	my $no_pooler = '';
	my $port = $node->port;
	my $host = $node->host;

	if ($route eq 'pooled')
	{
		$no_pooler = 'pgbouncer is not installed' if !$have_pooler;
		$port = PostgreSQL::Test::Cluster::get_free_port();
		$host = start_pooler($port) if $have_pooler;
	}
	local $ENV{PGHOST} = $host;
	local $ENV{PGPORT} = $port;
	local $ENV{PGUSER} = $user;
	local $ENV{PGDATABASE} = 'postgres';

	foreach my $module (sort keys %python)
	{
		my $python = $python{$module};

		application(
			"$module, $route",
			$no_pooler
			  || (defined $python ? '' : "no Python with $module is installed"),
			$python, "$drivers/psycopg_app.py", $module, $route);
	}
	application(
		"node-postgres, $route",
		$no_pooler || ($node_postgres ? '' : 'no node with pg is installed'),
		'node', "$drivers/node_app.js", $route);
	application(
		"JDBC, $route",
		$no_pooler || $no_jdbc,
		'java', '-cp', ($jdbc // '') . ":$classes", 'JdbcApp', $route);
	application("psql, $route", $no_pooler,
		'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', "$drivers/psql_app.sql");
}

stop_pooler();
$node->stop;

done_testing();
