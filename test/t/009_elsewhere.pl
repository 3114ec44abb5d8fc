# Where leases cannot be kept: in a parallel worker, and on the tables of a
# subscriber.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher =
  distlock_node('publisher', init => { allows_streaming => 'logical' });
my $subscriber = distlock_node('subscriber');

# A function wrongly marked PARALLEL SAFE takes an acquire into a worker,
# whose transaction is not the one that the lease would belong to.
my $force =
  $publisher->pg_version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';
$publisher->safe_psql(
	'postgres', q{
	CREATE FUNCTION smuggle() RETURNS bigint LANGUAGE sql PARALLEL SAFE
	AS $$ SELECT distlock_acquire('smuggled') $$});
like(
	sql_error($publisher, "SET $force = on; SELECT smuggle()"),
	qr/ERROR:  25000: cannot execute distlock_acquire\(\) during a parallel operation/,
	'an acquire in a parallel worker is refused');
is($publisher->safe_psql('postgres', 'SELECT count(*) FROM distlock_leases'),
	'0', 'and leaves no lease');

# A publication FOR ALL TABLES contains the control table.
my $read_row = 'SELECT count(*), max(token_limit) FROM distlock_control';
my $acquire = "SELECT distlock_acquire('x' || clock_timestamp()) > 0";

is($subscriber->safe_psql('postgres', $acquire),
	't', 'the subscriber has tokens of its own');
my $before = $subscriber->safe_psql('postgres', $read_row);

$publisher->safe_psql(
	'postgres', 'CREATE TABLE t (i int PRIMARY KEY);
	CREATE PUBLICATION everything FOR ALL TABLES');
$subscriber->safe_psql('postgres', 'CREATE TABLE t (i int PRIMARY KEY)');
my $connection = $publisher->connstr . ' dbname=postgres';
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION all_of_it CONNECTION '$connection' PUBLICATION everything"
);
ok( $subscriber->poll_query_until(
		'postgres',
		q{SELECT count(*) > 0 AND bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel}
	),
	'the tables of a publication FOR ALL TABLES are synchronised');

# What the apply worker gets: a new row in the control table of the publisher.
$publisher->safe_psql(
	'postgres', 'DROP EXTENSION distlock; CREATE EXTENSION distlock;
	INSERT INTO t VALUES (1)');
ok($subscriber->poll_query_until('postgres', 'SELECT count(*) = 1 FROM t'),
	'changes arrive');
is($subscriber->safe_psql('postgres', $read_row),
	$before, 'the control row of the subscriber stays its own');
is($subscriber->safe_psql('postgres', $acquire),
	't', 'and the subscriber goes on');

$subscriber->stop;
$publisher->stop;
done_testing();
