# Holders that are paused until their lease is over lose updates, unless they
# write under a guard: the short form of test/paused_holders.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $python = python_with('psycopg');
if (!defined $python)
{
	die 'no Python with psycopg is installed' if $ENV{DISTLOCK_REQUIRE_DRIVERS};
	plan skip_all => 'no Python with psycopg is installed';
}

# With fsync, commits take long enough to be paused in.
my $node = distlock_node('main', conf => 'fsync = on');

local $ENV{PGHOST} = $node->host;
local $ENV{PGPORT} = $node->port;
local $ENV{PGDATABASE} = 'postgres';

my ($out, $err) = ('', '');
my $experiment = IPC::Run::start(
	[ $python, "$FindBin::RealBin/../paused_holders.py" ],
	'<', \undef, '>', \$out, '2>', \$err,
	IPC::Run::timeout(5 * $PostgreSQL::Test::Utils::timeout_default));
if (!eval { $experiment->finish; 1 })
{
	$err .= $@;
	$experiment->kill_kill(grace => 10);
}
note($out);

like(
	$out,
	qr/^unfenced: \d+ acknowledged, [1-9]\d* lost/m,
	'without a guard updates are lost');
foreach my $form (
	'guarded',
	'guarded, server processes paused',
	'guarded, terminate_stale')
{
	like(
		$out,
		qr/^$form: \d{3,} acknowledged, 0 lost .*, [1-9]\d* refused .*, 0 tokens out of order/m,
		"$form: none is lost");
}
cmp_ok(($out =~ /^guarded: (\d+) acknowledged/m)[0] // 0,
	'>=', 2000, 'guarded: enough updates to tell');
is($experiment->full_result(0), 0, 'all is as it should be') or diag($out, $err);

$node->stop;

done_testing();
