# Run the SQL examples of the README as a reader would, in one session.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $readme = slurp_file("$FindBin::RealBin/../../README.md");
my @examples;
while ($readme =~ /^```sql( error)?\n(.*?)^```$/msg)
{
	# An example of an error is one statement, and names its SQLSTATE.
	push @examples,
	  $1
	  ? "\\set ON_ERROR_STOP off\n$2\\echo :LAST_ERROR_SQLSTATE\n\\set ON_ERROR_STOP on\n"
	  : $2;
}
cmp_ok(scalar(@examples), '>=', 9, 'the README has examples');

my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'distlock'");
$node->start;

my ($stdout, $stderr);
my $status = $node->psql(
	'postgres', join("\\echo ----\n", @examples),
	stdout => \$stdout,
	stderr => \$stderr,
	on_error_stop => 1);
is($status, 0, 'every example runs');
unlike($stderr, qr/WARNING|ERROR.*ERROR/s, 'with the one error it announces');

my @shown = split /^----\n?/m, $stdout;

# The answers that the text around the examples promises.
like($shown[0], qr/^\d{4}-.*\nt\nt$/, 'renewed, good, released');
like($shown[1], qr/^t\nt$/, 'taken, and still taken after the wait');
like($shown[2], qr/^t\nt\|t$/, 'a writer waits for readers');
like(
	$shown[3],
	qr/^t\nt\nmigration\|session\n?$/,
	'transaction scope ended at commit');
like($shown[4], qr/^t\n0$/, 'an acquire is undone by rollback');
like($shown[5], qr/f\|f$/, 'a lost lease is neither good nor released');
like($shown[6], qr/^LK001$/, 'and cannot be renewed');
like($shown[7], qr/^report\|\d+\|worker 1\|[^|]+\|00:00:.*\|0$/m,
	'the views show the holder')
  or diag $stdout;
like($shown[8], qr/^1$/, 'force_release ends one lease');

$node->stop;
done_testing();
