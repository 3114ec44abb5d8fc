# The library works only when the server preloads it, and says so otherwise.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node('main');

# ---- Preloaded ----

is($node->safe_psql(
		'postgres', q{
SELECT name, boot_val, unit, context, vartype FROM pg_settings
WHERE name LIKE 'distlock.%' ORDER BY name COLLATE "C"}),
	join("\n",
		'distlock.default_ttl|30000|ms|user|integer',
		'distlock.durable|on||user|bool',
		'distlock.failover_grace|replayed||sighup|enum',
		'distlock.log_expirations|on||sighup|bool',
		'distlock.max_leases|16384||postmaster|integer',
		'distlock.max_ttl|86400|s|superuser|integer',
		'distlock.terminate_stale|off||sighup|bool'),
	'settings, their defaults and contexts');
is( $node->safe_psql('postgres',
		q{SELECT current_setting('distlock.default_ttl'), current_setting('distlock.max_ttl')}),
	'30s|1d',
	'defaults of the times to live');
like(
	sql_error($node, 'SET distlock.no_such_setting = 1'),
	qr/ERROR:  42602: .*distlock\.no_such_setting/,
	'an unknown setting is refused');
$node->safe_psql('postgres', 'CREATE ROLE ordinary');
like(
	sql_error($node, "SET ROLE ordinary; SET distlock.max_ttl = '2d'"),
	qr/ERROR:  42501: /,
	'only a superuser raises the longest time to live');
$node->safe_psql('postgres', "LOAD 'distlock'");
pass('LOAD does no harm');
my $token = $node->safe_psql('postgres', q{SELECT distlock_acquire('a')});
is($token, 1, 'tokens begin with 1');

# ---- Not preloaded ----

$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;

my $refused = qr/ERROR:  55000: .*HINT:  .*shared_preload_libraries/s;

# Every function of the extension but those of triggers and of the type, with
# null for each of its arguments.
my @calls = split /\n/, $node->safe_psql(
	'postgres', q{
SELECT format(CASE p.prokind WHEN 'p' THEN 'CALL %s(%s)' ELSE 'SELECT * FROM %s(%s)' END, p.oid::regproc,
	(SELECT string_agg('NULL::' || format_type(a, NULL), ', ')
	 FROM unnest(p.proargtypes) a))
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass
	AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid
WHERE e.extname = 'distlock' AND p.prorettype <> 'trigger'::regtype
	AND p.proname !~ '^distlock_image_(in|out|recv|send)$'
ORDER BY 1});
cmp_ok(scalar @calls, '>=', 14, 'functions of the extension');
like(sql_error($node, $_), $refused, "not preloaded: $_") foreach @calls;
foreach my $view (qw(distlock_leases distlock_waiters distlock_stats distlock_images))
{
	like(sql_error($node, "TABLE $view"), $refused, "not preloaded: view $view");
}

$node->safe_psql('postgres', "LOAD 'distlock'");
pass('not preloaded: LOAD does not fail');
like(
	sql_error($node, "LOAD 'distlock'; SELECT distlock_acquire('a')"),
	$refused, 'not preloaded: LOAD is no substitute');
is($node->psql('postgres', 'SELECT 1', extra_params => [ '-v', 'ON_ERROR_STOP=1' ]),
	0, 'not preloaded: the server works');

$node->safe_psql('postgres', 'CREATE DATABASE other');
like(sql_error($node, 'CREATE EXTENSION distlock', 'other'),
	$refused, 'not preloaded: CREATE EXTENSION');
is( $node->safe_psql(
		'other', q{SELECT count(*) FROM pg_class WHERE relname LIKE 'distlock%'}),
	0,
	'not preloaded: CREATE EXTENSION leaves nothing behind');

# As a dump would.
like(
	$node->safe_psql('postgres', 'COPY distlock_lease_table TO STDOUT'),
	qr/^\\\\x[0-9a-f]{1120}$/m,
	'not preloaded: the lease table can be copied');

# session_preload_libraries comes too late, and must not lock anybody out.
$node->append_conf('postgresql.conf', "session_preload_libraries = 'distlock'");
$node->reload;
$node->poll_query_until('postgres',
	q{SELECT current_setting('session_preload_libraries') = 'distlock'})
  or die 'the setting was not reloaded';
like(sql_error($node, q{SELECT distlock_acquire('a')}),
	$refused, 'session_preload_libraries is no substitute');
$node->adjust_conf('postgresql.conf', 'session_preload_libraries', "''");

# ---- Preloaded again ----

$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'distlock'");
$node->restart;
is($node->safe_psql('postgres', q{SELECT token FROM distlock_leases WHERE name = 'a'}),
	$token, 'preloaded again: the lease is back');
cmp_ok($node->safe_psql('postgres', q{SELECT distlock_acquire('b')}),
	'>', $token, 'preloaded again: it works, with greater tokens');

# Without the library the extension can still be dropped.
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;
$node->safe_psql('postgres', 'DROP EXTENSION distlock');
is( $node->safe_psql('postgres', q{SELECT count(*) FROM pg_class WHERE relname LIKE 'distlock%'}),
	0,
	'not preloaded: DROP EXTENSION works');

$node->stop;
done_testing();
